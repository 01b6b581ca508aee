//! Several workloads of one manifest: in order, and back together.

use wasmorch_tests::guest;
use wasmorch_tests::up::Up;

/// A manifest of `web` and `orders`, each with more keys.
fn both(up: &Up, (file, top): (&str, &str), web: &str, orders: (&str, &str)) -> String {
    let one = |name: &str, sample: &str, keys: &str| {
        let component = guest(sample);
        let component = component.display();
        format!("[[workload]]\nname = \"{name}\"\ncomponent = \"{component}\"\n{keys}\n")
    };
    let text = format!(
        "{top}\n{}{}",
        one("web", "hello-http-v2", web),
        one("orders", orders.0, orders.1)
    );
    let file = up.home.write(file, text);
    file.to_str().expect("text").to_owned()
}

#[test]
fn what_depends_on_another_is_placed_when_that_is_ready() {
    let up = Up::start(1);
    let slow = "update = { min_ready = \"1500ms\" }";
    let web = "depends_on = [\"orders\"]";
    let file = both(&up, ("order.toml", ""), web, ("hello-http", slow));
    let done = up.run(&["deploy", &file]).ok();
    assert!(done.err.contains("web  waits for orders ("), "{done:?}");

    let events = up.run(&["events", "--json"]).ok().json();
    let events = events.as_array().expect("a list");
    let at = |kind: &str, workload: &str| {
        let found = events
            .iter()
            .position(|event| event["kind"] == kind && event["workload"] == workload);
        found.unwrap_or_else(|| panic!("no {kind} of {workload}: {events:?}"))
    };
    let (ready, completed) = (
        at("replica-ready", "orders"),
        at("rollout-completed", "orders"),
    );
    let (began, placed) = (at("rollout-started", "web"), at("placed", "web"));
    assert!(
        ready < completed && completed < began && began < placed,
        "{ready} {completed} {began} {placed}"
    );

    let alone =
        "[workload]\nname = \"late\"\ncomponent = \"none.wasm\"\ndepends_on = [\"stock\"]\n";
    let component = guest("hello-http").display().to_string();
    let alone = up
        .home
        .write("alone.toml", alone.replace("none.wasm", &component));
    up.run(&["deploy", alone.to_str().expect("text")])
        .refused(64, &["there is no workload stock in namespace default"]);
}

#[test]
fn an_atomic_manifest_goes_back_as_one() {
    let up = Up::start(1);
    for name in ["web", "orders"] {
        up.deploy("hello-http", name, &[]);
    }
    // Nothing answers with 599.
    let never =
        "health = { start_grace = \"3s\", ready = { status = \"599\", interval = \"200ms\" } }";
    let orders = ("hello-http-v2", never);
    let file = both(&up, ("atomic.toml", "atomic = true"), "", orders);
    let done = up.run(&["deploy", &file]).refused(1, &["orders", "web"]);
    assert!(done.err.contains("deployed together (atomic)"), "{done:?}");
    for name in ["web", "orders"] {
        let status = up.status(name);
        assert_eq!(
            (&status["revision"], &status["rollout"]["state"]),
            (&1.into(), &"reverted".into()),
            "{status}"
        );
        let answer = up.get(name, "/");
        assert_eq!(
            (answer.status, answer.body.contains("v1")),
            (200, true),
            "{answer:?}"
        );
    }

    let both = both(
        &up,
        ("good.toml", "atomic = true"),
        "",
        ("hello-http-v2", ""),
    );
    up.run(&["deploy", &both]).ok();
    for name in ["web", "orders"] {
        assert!(up.get(name, "/").body.contains("v2"), "{name}");
    }
    let text = std::fs::read_to_string(&both).expect("written");
    let pauses = text.replace(
        "name = \"web\"",
        "name = \"web\"\nupdate = { on_failure = \"pause\" }",
    );
    let pauses = up.home.write("pauses.toml", pauses);
    up.run(&["deploy", pauses.to_str().expect("text")])
        .refused(64, &["on_failure", "all go back together"]);
}
