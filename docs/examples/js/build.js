// hello.js -> a component: `node build.js [OUTPUT]`, hello-js.wasm unless told.
//
// componentize-js carries an engine that is compiled against one exact WASI version, so the world
// must name that version. The definitions come from this project's wit/ folder, under that number.

import { componentize } from "@bytecodealliance/componentize-js";
import { cp, mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

// The version of the engine in componentize-js 0.23.
const WASI = "0.2.10";
const WORLD = `package example:hello; world hello { export wasi:http/incoming-handler@${WASI}; }`;

const here = (path) => fileURLToPath(new URL(path, import.meta.url));
const output = process.argv[2] ?? here("hello-js.wasm");
const wit = await mkdtemp(join(tmpdir(), "hello-js-"));
try {
  await writeFile(join(wit, "world.wit"), WORLD);
  const source = here("../../../wit/deps");
  for (const name of await readdir(source)) {
    if (!/^wasi-.*-0\.2$/.test(name)) continue;
    await cp(join(source, name), join(wit, "deps", name), { recursive: true });
    for (const file of await readdir(join(wit, "deps", name))) {
      const path = join(wit, "deps", name, file);
      const text = await readFile(path, "utf8");
      await writeFile(path, text.replace(/\b0\.2\.1[1-9]\b/g, WASI));
    }
  }
  const { component } = await componentize({ sourcePath: here("hello.js"), witPath: wit, worldName: "hello" });
  await writeFile(output, component);
  console.log(`${output}: ${component.length} bytes`);
} finally {
  await rm(wit, { recursive: true });
}
