//! The main job: `up`, `deploy`, request, scale, roll, look, stop.

use rustix::process::Signal;
use wasmorch_tests::http::{self, Exchange};
use wasmorch_tests::up::Up;
use wasmorch_tests::{guest, wait_for};

#[test]
fn deploy_request_scale_roll_and_stop() {
    let mut up = Up::start(1);
    let done = up.deploy("hello-http", "hello", &[]);
    assert!(
        done.out.contains("http://hello.default.localhost:"),
        "the URL is shown:\n{}",
        done.out
    );
    assert_eq!(up.get("hello", "/").body, "Hello from wasmorch, v1\n");

    up.run(&["scale", "hello=3"]).ok();
    wait_for("three ready replicas", || {
        (up.ps()[0]["ready"] == 3).then_some(())
    });

    up.deploy("hello-http-v2", "hello", &[]);
    assert_eq!(up.get("hello", "/").body, "Hello from wasmorch, v2\n");
    let status = up.status("hello");
    assert_eq!(
        (&status["revision"], &status["desired"]),
        (&2.into(), &3.into())
    );

    let history = up.run(&["history", "hello", "--json"]).ok().json();
    assert_eq!(history.as_array().expect("a list is an array").len(), 2);

    up.run(&["rollback", "hello"]).ok();
    wait_for("version 1 again", || {
        (up.get("hello", "/").body == "Hello from wasmorch, v1\n").then_some(())
    });

    assert_eq!(up.get("hello", "/log?seen").status, 200);
    wait_for("the line in the log", || {
        up.run(&["logs", "hello"])
            .ok()
            .out
            .contains("seen")
            .then_some(())
    });

    up.run(&["stop", "hello"]).ok();
    wait_for("no replica", || {
        (up.ps()[0]["state"] == "stopped").then_some(())
    });
    wait_for("503 from the gateway", || {
        (up.get("hello", "/").status == 503).then_some(())
    });
    up.run(&["start", "hello"]).ok();
    wait_for("an answer again", || {
        (up.get("hello", "/").status == 200).then_some(())
    });
    up.run(&["restart", "hello"]).ok();
    up.run(&["rm", "hello"]).ok();
    assert_eq!(up.ps(), serde_json::json!([]));
    wait_for("404 from the gateway", || {
        (up.get("hello", "/").status == 404).then_some(())
    });

    let mut process = up.process.take().expect("up runs");
    process.signal(Signal::INT);
    let status = process.wait();
    assert_eq!(status.code(), Some(0), "{}", process.stderr());
}

#[test]
fn the_same_deploy_twice_changes_nothing_and_says_so() {
    let up = Up::start(1);
    up.deploy("hello-http", "hello", &["--env", "A=1"]);
    let before = up.status("hello");
    let again = up.deploy("hello-http", "hello", &["--env", "A=1"]);
    assert!(again.out.contains("unchanged"), "{}", again.out);
    let after = up.status("hello");
    assert_eq!(before["revision"], after["revision"]);
    assert_eq!(
        before["replicas"][0]["replica"],
        after["replicas"][0]["replica"]
    );
    // A deploy of bytes alone keeps the rest of the spec.
    up.deploy("hello-http-v2", "hello", &[]);
    assert_eq!(up.get("hello", "/env?A").body.trim(), "1");
}

#[test]
fn bodies_stream_both_ways() {
    let up = Up::start(1);
    up.deploy("hello-http", "hello", &[]);
    let gateway = up.gateways().remove(0);
    let mut exchange =
        Exchange::begin(&gateway, "POST", "hello.default.localhost", "/echo").expect("begins");
    exchange.send(b"first").expect("sends");
    assert_eq!(
        exchange
            .head()
            .expect("answers before the request has ended")
            .status,
        200
    );
    assert_eq!(exchange.piece().expect("a piece comes back"), b"first");
    exchange.send(b"second").expect("sends");
    assert_eq!(exchange.piece().expect("a piece comes back"), b"second");
    exchange.end().expect("ends");
    assert_eq!(exchange.piece().expect("the end comes"), b"");
}

#[test]
fn a_route_and_a_fresh_instance_for_every_request() {
    let up = Up::start(1);
    up.deploy("hello-http", "hello", &["--route", "shop.example/status"]);
    let gateway = up.gateways().remove(0);
    assert_eq!(
        http::get(&gateway, "shop.example", "/status?201")
            .expect("answers")
            .status,
        201
    );
    assert_eq!(
        http::get(&gateway, "shop.example", "/statuses")
            .expect("answers")
            .status,
        404
    );
    for _ in 0..3 {
        assert_eq!(up.get("hello", "/instance").body.trim(), "1");
    }
}

#[test]
fn a_manifest_of_two_workloads_commits_in_one_batch() {
    let up = Up::start(1);
    let hello = guest("hello-http");
    let echo = guest("echo-messages");
    let manifest = format!(
        "[[workload]]\nname = \"web\"\ncomponent = \"{}\"\nreplicas = 2\nenvironment = {{ A = \"b\" }}\n\n\
         [[workload]]\nname = \"echo\"\ncomponent = \"{}\"\n[workload.bindings]\nsubscribe = [\"ask.echo\"]\n",
        hello.display(),
        echo.display()
    );
    let file = up.home.write("wasmorch.toml", manifest);
    let file = file.to_str().expect("text");
    up.run(&["deploy", file]).ok();
    let listed = up.ps();
    let names: Vec<_> = listed
        .as_array()
        .expect("array")
        .iter()
        .map(|w| w["name"].clone())
        .collect();
    assert_eq!(names, ["echo", "web"]);
    let again = up.run(&["deploy", file]).ok();
    assert!(again.out.contains("unchanged"), "{}", again.out);
    // Where a workload stands, a manifest may.
    up.run(&["rm", file]).ok();
    assert_eq!(up.ps(), serde_json::json!([]));
}

#[test]
fn an_idle_replica_drains_at_once() {
    let up = Up::start(1);
    for sample in ["hello-http", "hello-http-v2"] {
        let text = format!(
            "[workload]\nname = \"hello\"\ncomponent = \"{}\"\n[workload.update]\ndrain = \"10m\"\n",
            guest(sample).display()
        );
        let file = up.home.write("hello.toml", text);
        up.run(&["deploy", file.to_str().expect("text")]).ok();
    }
    // Far sooner than the deadline: nothing is in hand.
    wait_for("the replica of revision 1 to be gone", || {
        let replicas = up.run(&["ps", "hello", "--json"]).ok().json();
        let live = replicas.as_array().expect("a list is an array");
        live.iter().all(|one| one["revision"] == 2).then_some(())
    });
}
