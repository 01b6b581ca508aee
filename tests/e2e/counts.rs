//! How many: one on every host, several completions, runs by a schedule.

use wasmorch_tests::up::Up;
use wasmorch_tests::{guest, wait_for};

fn manifest(up: &Up, name: &str, sample: &str, keys: &str) -> String {
    let component = guest(sample);
    let text = format!(
        "[workload]\nname = \"{name}\"\ncomponent = \"{}\"\n{keys}\n",
        component.display()
    );
    let file = up.home.write(&format!("{name}.toml"), text);
    file.to_str().expect("text").to_owned()
}

#[test]
fn one_replica_on_every_host() {
    let up = Up::start(2);
    let file = manifest(&up, "agent", "hello-http", "replicas = \"per-host\"");
    up.run(&["deploy", &file]).ok();
    wait_for("one on each of both hosts", || {
        let status = up.status("agent");
        let hosts: std::collections::BTreeSet<String> = status["replicas"]
            .as_array()?
            .iter()
            .filter(|replica| replica["ready"] == true)
            .filter_map(|replica| replica["host"].as_str().map(str::to_owned))
            .collect();
        (hosts.len() == 2 && status["ready"] == 2 && status["desired"] == 2).then_some(())
    });
    up.run(&["deploy", &file]).ok();
    let again = up.run(&["scale", "agent=5"]);
    again.refused(64, &["one replica on every host"]);
    assert_eq!(up.status("agent")["revision"], 1);
}

#[test]
fn a_namespace_keeps_to_its_quota() {
    let up = Up::start(1);
    up.run(&["quota", "--replicas", "2", "--memory", "1GiB"])
        .ok();
    up.deploy("hello-http", "hello", &["--replicas", "2"]);
    up.run(&["scale", "hello=3"]).refused(
        77,
        &["beyond its quota", "wasmorch quota -n default --replicas 3"],
    );
    let shown = up.run(&["quota"]).ok().out;
    assert!(shown.contains("replicas  2 of 2"), "{shown}");
    let cleared = up.run(&["quota", "--clear", "--json"]).ok().json();
    assert_eq!(
        (&cleared["changed"], &cleared["used"]["replicas"]),
        (&true.into(), &2.into())
    );
    up.run(&["scale", "hello=3"]).ok();
    wait_for("three replicas", || {
        (up.status("hello")["ready"] == 3).then_some(())
    });
}

#[test]
fn a_job_of_several_completions() {
    let up = Up::start(1);
    let keys = "kind = \"job\"\njob = { completions = 4, parallelism = 2 }";
    let file = manifest(&up, "sum", "wordcount", keys);
    let done = up.run(&["deploy", &file]).ok();
    assert!(
        done.err.contains("of 4 completed") || done.out.contains("completed"),
        "{done:?}"
    );
    let status = up.status("sum");
    assert_eq!(
        (&status["state"], &status["run"]["completed"]),
        (&"completed".into(), &4.into())
    );
    up.run(&["start", "sum"]).ok();
    wait_for("the second run", || {
        let status = up.status("sum");
        let run = &status["run"];
        (run["number"] == 2 && run["completed"] == 4 && status["state"] == "completed")
            .then_some(())
    });
}

#[test]
fn a_cron_workload_is_stored_and_runs_when_told_to() {
    let up = Up::start(1);
    let keys = "kind = \"cron\"\nschedule = \"30 2 * * *\"\ntimezone = \"Europe/Berlin\"";
    let file = manifest(&up, "nightly", "wordcount", keys);
    let done = up.run(&["deploy", &file]).ok();
    assert!(done.out.contains("stored"), "{done:?}");
    let rollout = up.run(&["rollout", "status", "nightly"]).ok();
    assert!(rollout.out.contains("no rollout"), "{}", rollout.out);
    let none = up.run(&["rollout", "status", "nightly", "--json"]).ok();
    assert_eq!(none.json(), serde_json::Value::Null);
    up.run(&["restart", &file]).refused(64, &["ends by itself"]);
    let status = up.status("nightly");
    assert_eq!(
        (&status["state"], &status["run"]),
        (&"idle".into(), &serde_json::Value::Null)
    );
    let next = status["next"].as_str().expect("a time").to_owned();
    assert!(next.ends_with(":30:00.000Z"), "{next}");
    up.run(&["start", "nightly"]).ok();
    wait_for("its run", || {
        let status = up.status("nightly");
        (status["outcome"]["completed"] == true && status["state"] == "idle").then_some(())
    });
    assert_eq!(
        up.status("nightly")["next"],
        next.as_str(),
        "its times are its own"
    );
    let shown = up.run(&["status", "nightly"]).ok().out;
    assert!(shown.contains("next run"), "{shown}");
    let wrong = keys.replace("Berlin", "Atlantis");
    let file = manifest(&up, "other", "wordcount", &wrong);
    up.run(&["deploy", &file])
        .refused(64, &["timezone", "Europe/Atlantis"]);
}
