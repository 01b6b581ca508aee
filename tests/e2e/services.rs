//! Workloads that call each other by name, and what stands between them.

use wasmorch_tests::up::Up;
use wasmorch_tests::{guest, http, wait_for};

/// Deploys `caller-http` under a name, to call another workload. Readiness would be a request to
/// `/`, and so a call: it is left out.
fn caller(up: &Up, (name, namespace): (&str, &str), calls: &str, granted: &str) {
    let component = guest("caller-http");
    let text = format!(
        "namespace = \"{namespace}\"\n[workload]\nname = \"{name}\"\ncomponent = \"{}\"\n\
         environment = {{ CALLS = \"{calls}\" }}\nhealth = {{ ready = false }}\n\
         bindings = {{ workloads = [\"{granted}\"] }}\n",
        component.display()
    );
    let file = up.home.write(&format!("{name}.toml"), text);
    up.run(&["deploy", file.to_str().expect("text")]).ok();
}

/// The first answer that is not "no replica is ready".
fn routed(up: &Up, name: &str) -> http::Answer {
    wait_for("it to be routed", || {
        let answer = up.get(name, "/");
        (answer.status != 503).then_some(answer)
    })
}

#[test]
fn a_workload_calls_those_it_is_granted_and_no_other() {
    let up = Up::start(2);
    let component = guest("caller-http");
    let component = component.to_str().expect("text");
    // Not granted: refused before anything is uploaded, with what would pass.
    up.run(&["deploy", component, "--name", "web"])
        .refused(77, &["outgoing-handler", "--grant"]);

    up.deploy("caller-http", "stock", &["--grant", "workloads=nobody"]);
    // A namespace is the caller's own unless it says another.
    caller(&up, ("orders", "shop"), "stock.default", "stock.default");
    caller(&up, ("web", "default"), "orders.shop", "orders.shop");
    for gateway in up.gateways() {
        let answer = wait_for("it to be routed", || {
            let answer = http::get(&gateway, "web.default.localhost", "/x").expect("answers");
            (answer.status != 503).then_some(answer)
        });
        assert_eq!(
            (answer.status, answer.body.as_str()),
            (200, "web > orders > stock\n")
        );
    }

    // Denied: a grant for one workload is none for another, nor for its namesake elsewhere.
    for (calls, granted) in [("stock", "stock.shop"), ("orders.shop", "orders")] {
        let name = format!("not-{}", calls.replace('.', "-"));
        caller(&up, (&name, "default"), calls, granted);
        let answer = routed(&up, &name);
        assert_eq!(answer.status, 502, "{answer:?}");
        assert!(answer.body.ends_with("HttpRequestDenied\n"), "{answer:?}");
    }
    // What is granted and does not exist is an answer like any other.
    caller(&up, ("lost", "default"), "ghost.default", "ghost");
    let answer = routed(&up, "lost");
    assert_eq!(answer.status, 404, "{answer:?}");
    assert!(
        answer.body.contains("there is no workload default/ghost"),
        "{answer:?}"
    );
}

#[test]
fn a_circle_of_workloads_is_cut() {
    let up = Up::start(1);
    caller(&up, ("ping", "default"), "pong", "pong");
    caller(&up, ("pong", "default"), "ping", "ping");
    routed(&up, "pong");
    let answer = routed(&up, "ping");
    assert_eq!(answer.status, 508, "{answer:?}");
    assert!(
        answer.body.starts_with("ping > pong > ping > pong > "),
        "{answer:?}"
    );
    assert!(answer.body.contains("in a circle"), "{answer:?}");
}

#[test]
fn a_route_that_another_workload_has_is_refused_with_both_names() {
    let up = Up::start(1);
    up.deploy("hello-http", "first", &["--route", "shop.example.com/api"]);
    let component = guest("hello-http");
    let again = |route: &str| {
        let path = component.to_str().expect("text");
        up.run(&["deploy", path, "--name", "second", "--route", route])
    };
    again("Shop.example.com/api").refused(
        64,
        &["default/first", "default/second", "shop.example.com/api"],
    );
    // The longest prefix wins, so a longer one is another route.
    again("shop.example.com/api/v2").ok();
}

#[test]
fn a_body_beyond_its_limit_is_refused_at_every_gateway() {
    let up = Up::start(2);
    let text = format!(
        "[workload]\nname = \"web\"\ncomponent = \"{}\"\nresources = {{ body = \"1KiB\" }}\n",
        guest("hello-http").display()
    );
    let file = up.home.write("web.toml", text);
    up.run(&["deploy", file.to_str().expect("text")]).ok();
    // One has the replica, the other sends it on.
    for gateway in up.gateways() {
        let post = |bytes: usize| {
            let body = vec![b'x'; bytes];
            let answer = http::request(&gateway, "POST", "web.default.localhost", "/echo", &body);
            answer.expect("an answer")
        };
        let fits = wait_for("it to be routed there", || {
            let answer = post(1024);
            (answer.status == 200).then_some(answer)
        });
        assert_eq!(fits.body.len(), 1024);
        let large = post(1025);
        assert_eq!(large.status, 413, "{large:?}");
        assert_eq!(large.header("wasmorch-error"), Some("too-large"));
        assert!(large.body.contains("resources.body"), "{large:?}");
        assert_eq!(post(1024).status, 200, "the next one is served");
    }
}
