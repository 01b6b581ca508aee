//! What other services use: the API, `$SRV`, `invoke`, and the README's Python.

use std::process::Command;

use serde_json::{Value, json};
use wasmorch_tests::nats_client::Client;
use wasmorch_tests::process::Done;
use wasmorch_tests::up::Up;

#[test]
fn every_request_is_answered() {
    let up = Up::start(1);
    up.deploy("hello-http", "hello", &[]);
    let nats = Client::connect(&up.nats_url());
    let listed = nats.json("wasmorch.v1.api.default.list", &json!({}));
    assert_eq!(listed["items"][0]["name"], "hello");
    let wrong = nats.json(
        "wasmorch.v1.api.default.scale",
        &json!({"workload": "hello", "wish": 3}),
    );
    assert_eq!(wrong["error"]["code"], "invalid", "{wrong}");
    let nobody = nats.json(
        "wasmorch.v1.api.default.status",
        &json!({"workload": "nobody"}),
    );
    assert_eq!(nobody["error"]["code"], "not_found", "{nobody}");
    let rubbish: Value =
        serde_json::from_slice(&nats.request("wasmorch.v1.api.default.deploy", b"\xff{"))
            .expect("JSON");
    assert_eq!(rubbish["error"]["code"], "invalid", "{rubbish}");
    // Not by the order of its fields.
    let array = nats.json("wasmorch.v1.api.default.scale", &json!(["hello", 2]));
    assert_eq!(array["error"]["code"], "invalid", "{array}");
    let by = json!({"workload": "hello", "by": "two\nlines"});
    let by = nats.json("wasmorch.v1.api.default.restart", &by);
    assert_eq!(by["error"]["problems"][0]["at"], "by", "{by}");
    let asked = json!({"workload": "hello", "limit": 1});
    let history = nats.json("wasmorch.v1.api.default.history", &asked);
    assert_eq!(history["items"][0]["revision"], 1, "{history}");
    assert_eq!(history["next"], Value::Null, "{history}");
    let hosts = nats.json("wasmorch.v1.api._.hosts", &json!({}));
    assert_eq!(hosts["items"][0]["state"], "alive", "{hosts}");
    assert!(hosts["items"][0]["used"]["replicas"].is_u64(), "{hosts}");
    let version = nats.json("wasmorch.v1.api._.version", &json!({}));
    assert_eq!(version["term"], 1, "{version}");
}

#[test]
fn a_repeated_write_is_applied_once() {
    let up = Up::start(1);
    up.deploy("hello-http", "hello", &[]);
    let nats = Client::connect(&up.nats_url());
    let scale = |desired: u32, id: &str| {
        let request = json!({"workload": "hello", "desired": desired, "request_id": id});
        nats.json("wasmorch.v1.api.default.scale", &request)
    };
    let first = scale(2, "one");
    scale(3, "two");
    assert_eq!(scale(2, "one"), first, "the first answer");
    assert_eq!(
        up.status("hello")["desired"],
        3,
        "and nothing applied again"
    );
}

#[test]
fn the_service_is_found_by_micro_tools() {
    let up = Up::start(1);
    let nats = Client::connect(&up.nats_url());
    let info: Value =
        serde_json::from_slice(&nats.request("$SRV.INFO.wasmorch", b"")).expect("JSON");
    assert_eq!(info["name"], "wasmorch", "{info}");
    let endpoints = info["endpoints"].as_array().expect("endpoints");
    assert!(
        endpoints.iter().any(|one| one["name"] == "deploy"),
        "{info}"
    );
    let stats: Value =
        serde_json::from_slice(&nats.request("$SRV.STATS.wasmorch", b"")).expect("JSON");
    assert_eq!(stats["type"], "io.nats.micro.v1.stats_response", "{stats}");
}

#[test]
fn a_workload_is_invoked_by_request() {
    let up = Up::start(1);
    up.deploy("hello-http", "hello", &[]);
    let nats = Client::connect(&up.nats_url());
    let subject = "wasmorch.v1.invoke.default.hello";
    assert_eq!(nats.request(subject, b""), b"Hello from wasmorch, v1\n");
    let (status, body) = nats.invoke(subject, &[("Wasmorch-Path", "/status?418")], b"");
    assert_eq!(status.as_deref(), Some("418"), "{body:?}");
    let (status, body) = nats.invoke(subject, &[("Wasmorch-Path", "/echo")], b"by message");
    assert_eq!(
        (status.as_deref(), body.as_slice()),
        (Some("200"), b"by message".as_slice())
    );
}

#[test]
fn env_points_other_tools_at_the_cluster() {
    let up = Up::start(1);
    let told = up.run(&["env"]).ok().out;
    assert!(
        told.contains(&format!("export NATS_URL={}", up.nats_url())),
        "{told}"
    );
}

/// The README's Python, as it stands there, against a real cluster.
#[test]
fn the_python_in_the_readme_runs() {
    let up = Up::start(1);
    up.deploy("hello-http", "hello", &[]);
    let readme = include_str!("../../README.md");
    let snippets: Vec<&str> = readme
        .split("```python\n")
        .skip(1)
        .filter_map(|rest| rest.split("```").next())
        .collect();
    assert!(!snippets.is_empty(), "the README shows Python");
    let packages = up.home.path().join("python");
    let mut pip = Command::new("python3");
    pip.args([
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--target",
    ])
    .arg(&packages)
    .arg("nats-py");
    Done::run(pip).ok();
    for snippet in snippets {
        let mut python = Command::new("python3");
        python
            .arg("-c")
            .arg(snippet)
            .env("PYTHONPATH", &packages)
            .env("NATS_URL", up.nats_url());
        let done = Done::run(python).ok();
        assert!(
            done.out.contains("hello") || done.out.contains("Hello"),
            "{done:?}"
        );
    }
}
