//! What follows from how a revision answers: a sick replica is started again.

use wasmorch_tests::up::Up;
use wasmorch_tests::{guest, wait_for};

/// `hello-http` with more of a manifest.
fn deploy(up: &Up, more: &str) -> wasmorch_tests::process::Done {
    let component = guest("hello-http");
    let text = format!(
        "[workload]\nname = \"web\"\ncomponent = \"{}\"\n{more}",
        component.display()
    );
    let file = up.home.write("web.toml", text);
    up.run(&["deploy", file.to_str().expect("text")])
}

#[test]
fn a_replica_that_turns_sick_is_started_again() {
    let up = Up::start(1);
    // An instance that serves again can be sick for whoever comes after.
    deploy(
        &up,
        "instance = { reuse = 1000, idle = \"1m\" }\nrestart = { backoff = \"100ms\" }\n\
         [workload.health]\nstart_grace = \"0s\"\n\
         live = { path = \"/health\", status = \"200\", interval = \"100ms\", fail = 3 }\n",
    )
    .ok();
    assert_eq!(up.get("web", "/sick").status, 200);
    let replica = wait_for("its second start is ready", || {
        let replicas = up.status("web")["replicas"].clone();
        let mut replicas = replicas.as_array().expect("a list").iter();
        let again = replicas.find(|one| {
            let id = one["replica"].as_str().unwrap_or_default();
            id.ends_with("-2") && one["ready"] == true
        });
        again.cloned()
    });
    assert_eq!(up.get("web", "/health").status, 200, "{replica}");
    let why = "health.live failed 3 times in a row (health.live.fail): GET /health: status 500, and \
               200 is wanted (health.live.status)";
    wait_for("the reason among the events", || {
        up.run(&["events"]).ok().out.contains(why).then_some(())
    });
}
