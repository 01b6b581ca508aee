//! What a deploy would do, shown and then done as shown; and hosts that come and go for good.

use serde_json::Value;
use wasmorch_tests::daemons::Daemons;
use wasmorch_tests::{guest, wait_for};

/// So many replicas of `hello` are ready on a host.
fn ready_on(daemons: &Daemons, name: &str) -> usize {
    let status = daemons.run(&["status", "hello", "--json"]).ok().json();
    let replicas = status["replicas"].as_array().expect("an array");
    let there = replicas.iter().filter(|one| one["host"] == name);
    there.filter(|one| one["ready"] == true).count()
}

/// The names of all hosts.
fn hosts(daemons: &Daemons) -> Vec<String> {
    let listed = daemons.run(&["hosts", "--json"]).ok().json();
    let listed = listed.as_array().expect("a list is an array");
    let names = listed.iter().filter_map(|host| host["name"].as_str());
    names.map(str::to_owned).collect()
}

#[test]
fn a_plan_shows_what_a_deploy_does_and_a_deploy_may_insist_on_it() {
    let daemons = Daemons::start(1, 2);
    let hello = guest("hello-http");
    let hello = hello.to_str().expect("text");
    let asks = |verb: &str, replicas: &str, more: &[&str]| {
        let args = [verb, hello, "--name", "hello", "--replicas", replicas];
        let args: Vec<&str> = args.iter().chain(more).copied().collect();
        daemons.run(&args)
    };
    let shown = |replicas: &str| asks("plan", replicas, &["--json"]).ok().json();
    let starts = |plan: &Value| plan["start"].as_array().expect("an array").len();

    // Shown, and nothing is done.
    let first = shown("2");
    assert_eq!(starts(&first), 2, "{first}");
    let all = daemons.run(&["ps", "--json"]).ok().json();
    assert_eq!(all, Value::Array(Vec::new()), "a plan changes nothing");

    // Deployed exactly as shown.
    let index = first["index"].to_string();
    asks("deploy", "2", &["--if-index", &index]).ok();
    let second = shown("3");
    assert_eq!(starts(&second), 1, "{second}");

    // Somebody else was faster: refused, and nothing is changed.
    daemons.run(&["scale", "hello=1"]).ok();
    let index = second["index"].to_string();
    asks("deploy", "3", &["--if-index", &index]).refused(75, &["changed since", "wasmorch plan"]);
    let status = daemons.run(&["status", "hello", "--json"]).ok().json();
    assert_eq!(status["desired"], 1, "{status}");
    // Looked at again, it passes. What the rollout itself writes moves the index too.
    wait_for("a deploy of what was shown last", || {
        let index = shown("3")["index"].to_string();
        let deployed = asks("deploy", "3", &["--if-index", &index]);
        (deployed.code == 0).then_some(())
    });
    let status = daemons.run(&["status", "hello", "--json"]).ok().json();
    assert_eq!(status["desired"], 3, "{status}");

    // What would not be placed is told by the exit code, and why.
    let manifest = format!(
        "[workload]\nname = \"nowhere\"\ncomponent = \"{hello}\"\n\
         constraints = [{{ label = \"zone\", eq = \"moon\" }}]\n"
    );
    let manifest = daemons.home.write("nowhere.toml", manifest);
    let manifest = manifest.to_str().expect("text");
    let planned = daemons.run(&["plan", manifest]);
    assert_eq!(planned.code, 2, "{} {}", planned.out, planned.err);
    assert!(planned.out.contains("zone"), "{}", planned.out);
}

#[test]
fn replicas_are_rebalanced_to_a_host_that_joins_and_one_that_is_gone_is_removed() {
    let mut daemons = Daemons::start(1, 1);
    daemons.deploy("hello-http", "hello", &["--replicas", "4"]);
    daemons.start_host(1);
    daemons.wait_for_hosts(2);
    assert_eq!(ready_on(&daemons, "host-0"), 4, "a join moves nothing");
    let refused = daemons.run(&["host-rm", "host-1"]);
    refused.refused(75, &["host-1 is alive", "only a dead host is removed"]);

    // Nothing is moved in the middle of a rollout, and that it is over is decided a second after the deploy.
    let moves = wait_for("some moves", || {
        let moved = daemons.run(&["rebalance", "--max-moves", "2", "--json"]);
        let moves = moved.ok().json()["moves"].take();
        (moves != Value::Array(Vec::new())).then_some(moves)
    });
    assert_eq!(moves.as_array().map(Vec::len), Some(2), "{moves}");
    wait_for("two on each host", || {
        let on = ["host-0", "host-1"].map(|name| ready_on(&daemons, name));
        (on == [2, 2]).then_some(())
    });

    daemons.hosts[1].take().expect("runs").kill();
    wait_for("the dead host to be removed", || {
        (daemons.run(&["host-rm", "host-1"]).code == 0).then_some(())
    });
    assert_eq!(hosts(&daemons), ["host-0"]);
    wait_for("all of them where a host is left", || {
        (ready_on(&daemons, "host-0") == 4).then_some(())
    });
}
