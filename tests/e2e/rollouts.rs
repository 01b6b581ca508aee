//! A new revision that proves itself on a canary first.

use serde_json::Value;
use wasmorch_tests::up::Up;
use wasmorch_tests::{guest, http, measured, wait_for};

const OLD: &str = "Hello from wasmorch, v1\n";
const NEW: &str = "Hello from wasmorch, v2\n";

/// A manifest of `hello` from this sample, three replicas, with a canary.
fn manifest(up: &Up, sample: &str, canary: &str) -> String {
    let component = guest(sample);
    // A good one has time on a busy machine.
    let patience = if sample == "crasher" { "5s" } else { "60s" };
    let text = format!(
        "[workload]\nname = \"hello\"\ncomponent = \"{}\"\nreplicas = 3\n[workload.update]\n\
         progress_deadline = \"{patience}\"\nmin_ready = \"200ms\"\ncanary = {{ {canary} }}\n",
        component.display()
    );
    let file = up.home.write(&format!("{sample}.toml"), text);
    file.to_str().expect("text").to_owned()
}

/// So many replicas of each revision are ready, in the revisions' order.
fn ready(status: &Value) -> Vec<(u64, usize)> {
    let replicas = status["replicas"].as_array().expect("an array");
    let ready = replicas.iter().filter(|one| one["ready"] == true);
    let mut counts = std::collections::BTreeMap::new();
    for one in ready {
        let revision = one["revision"].as_u64().expect("a number");
        *counts.entry(revision).or_default() += 1;
    }
    counts.into_iter().collect()
}

#[test]
fn a_canary_has_its_share_at_every_gateway_and_waits_to_be_promoted() {
    let up = Up::start(2);
    up.deploy("hello-http", "hello", &["--replicas", "3"]);
    let canary = "replicas = 1, percent = 60, bake = \"500ms\", promote = \"manual\"";
    let file = manifest(&up, "hello-http-v2", canary);
    let done = up.run(&["deploy", &file]).ok();
    assert!(
        done.out.contains("canary ready: 1 of 3")
            && done.out.contains("wasmorch rollout promote hello"),
        "{}",
        done.out
    );
    let status = up.status("hello");
    assert_eq!(ready(&status), [(1, 3), (2, 1)], "beside the others");
    assert_eq!(status["rollout"]["state"], "baking");

    for gateway in up.gateways() {
        wait_for("the canary to be heard of", || {
            let answer = http::get(&gateway, "hello.default.localhost", "/").expect("answers");
            (answer.body == NEW).then_some(())
        });
        let mut canary = 0;
        for _ in 0..300 {
            let answer = http::get(&gateway, "hello.default.localhost", "/").expect("answers");
            assert_eq!(answer.status, 200);
            assert!([OLD, NEW].contains(&answer.body.as_str()), "{answer:?}");
            canary += usize::from(answer.body == NEW);
        }
        // Three fifths are 180 (a quarter, by number, 75); five standard deviations of chance.
        assert!(
            (137..=223).contains(&canary),
            "{canary} of 300 at {gateway}"
        );
    }

    // What is scaled meanwhile is what has proven itself.
    up.run(&["scale", "hello=4"]).ok();
    wait_for("another one of the old revision", || {
        (ready(&up.status("hello")) == [(1, 4), (2, 1)]).then_some(())
    });
    up.run(&["rollout", "promote", "hello"]).ok();
    wait_for("the rollout to complete", || {
        (up.status("hello")["rollout"]["state"] == "completed").then_some(())
    });
    assert_eq!(ready(&up.status("hello")), [(2, 4)]);
    assert_eq!(up.get("hello", "/").body, NEW);
    let events = up.run(&["events", "--json"]).ok().out;
    assert!(events.contains("rollout-promoted"), "{events}");
    up.run(&["rollout", "promote", "hello"])
        .refused(75, &["no rollout"]);
}

#[test]
fn a_bad_canary_is_taken_back_by_itself_and_nobody_notices() {
    let up = Up::start(2);
    up.deploy("hello-http", "hello", &["--replicas", "3"]);
    let file = manifest(&up, "crasher", "replicas = 1, bake = \"500ms\"");
    up.run(&["deploy", &file])
        .refused(1, &["hello did not get there", "revision 1"]);
    let status = up.status("hello");
    assert_eq!(status["rollout"]["state"], "reverted");
    assert_eq!(ready(&status), [(1, 3)]);
    assert_eq!(up.get("hello", "/").body, OLD);

    // A good one promotes itself.
    let file = manifest(&up, "hello-http-v2", "replicas = 2, bake = \"500ms\"");
    up.run(&["deploy", &file]).ok();
    assert_eq!(ready(&up.status("hello")), [(3, 3)]);

    // And it cannot stand beside what must end first.
    let file = manifest(&up, "hello-http", "replicas = 1");
    let text = std::fs::read_to_string(&file).expect("written");
    let text = text.replace("canary =", "order = \"stop-first\"\ncanary =");
    std::fs::write(&file, text).expect("written");
    up.run(&["deploy", &file])
        .refused(64, &["canary", "start-first"]);
}

/// As `cargo xtask bench rollout` does it, with less load.
#[test]
fn thirty_rolls_in_a_row_lose_no_request() {
    use wasmorch_tests::rolls::{self, Fault, Plan};
    let fault = |n| match n % 6 {
        2 => Fault::Host,
        5 => Fault::Leader,
        _ => Fault::None,
    };
    let told = rolls::roll(&Plan {
        faults: (0..30).map(fault).collect(),
        replicas: 4,
        clients: 1,
    });
    let took: Vec<_> = told
        .rolls
        .iter()
        .map(|one| one.took.as_secs_f64())
        .collect();
    let (answered, posts, under_way) = (told.answered, told.posts, told.under_way.len());
    measured(&format!(
        "rolls: {took:.1?} s, {answered} answered, {posts} of them POSTs, {under_way} failed under way"
    ));
    assert!(told.lost.is_empty(), "{:#?}", told.lost);
    assert!(told.short.is_empty(), "{:?}", told.short);
    assert!(answered > 2_000 && posts > 500, "{told:?}");
    assert!(told.looks > 200 && told.leaderless_looks > 10, "{told:?}");
}

#[test]
fn a_person_holds_a_rollout_lets_it_go_on_ends_it_and_goes_back_to_a_number() {
    let up = Up::start(1);
    up.deploy("hello-http", "hello", &["--replicas", "3"]);
    let canary = "replicas = 1, bake = \"1m\", promote = \"manual\"";
    let file = manifest(&up, "hello-http-v2", canary);
    up.run(&["deploy", &file, "--detach"]).ok();
    let wait_until = |states: &[&str]| {
        wait_for(&format!("the rollout to be one of {states:?}"), || {
            let state = up.status("hello")["rollout"]["state"].clone();
            states.contains(&state.as_str()?).then_some(())
        });
    };
    wait_until(&["baking"]);
    up.run(&["rollout", "pause", "hello"]).ok();
    wait_until(&["paused"]);
    up.run(&["rollout", "resume", "hello"]).ok();
    wait_until(&["canary", "baking"]);
    up.run(&["rollout", "abort", "hello"]).ok();
    wait_until(&["aborted"]);
    wait_for("the canary to be gone", || {
        (ready(&up.status("hello")) == [(1, 3)]).then_some(())
    });
    let events = up.run(&["events"]).ok().out;
    for told in ["rollout-paused", "rollout-aborted"] {
        assert!(events.contains(told), "{told}: {events}");
    }

    // The third in full, and then by number to the first: the one before is the second.
    let component = guest("hello-http-v2");
    let component = component.to_str().expect("text");
    up.run(&["deploy", component, "--name", "hello", "--env", "THIRD=1"])
        .ok();
    up.run(&["rollback", "hello", "--to", "99"])
        .refused(66, &["no revision 99"]);
    up.run(&["rollback", "hello", "--to", "1"]).ok();
    wait_until(&["completed"]);
    let status = up.status("hello");
    assert_eq!(status["revision"], 1);
    assert_eq!(ready(&status), [(1, 3)]);
    assert_eq!(up.get("hello", "/").body, OLD);
}
