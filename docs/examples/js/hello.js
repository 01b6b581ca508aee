// A web service in plain JavaScript, with the `fetch` event of service workers: nothing of wasmorch in it.
//
//     GET  /          a greeting, as JSON
//     POST /upper     the body in capitals
//     anything else   404

addEventListener("fetch", (event) => event.respondWith(answer(event.request)));

async function answer(request) {
  const { pathname } = new URL(request.url);
  if (pathname === "/") return Response.json({ greeting: "Hello from JavaScript" });
  if (pathname === "/upper" && request.method === "POST") {
    return new Response((await request.text()).toUpperCase());
  }
  return new Response("no such path\n", { status: 404 });
}
