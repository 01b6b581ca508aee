//! Stores and streams, from the grant on the command line to what `rm` leaves.

use serde_json::json;
use wasmorch_tests::nats_client::Client;
use wasmorch_tests::up::Up;
use wasmorch_tests::{guest, wait_for};

#[test]
fn a_store_needs_a_grant_and_outlives_its_workload() {
    let up = Up::start(1);
    let path = guest("keeper-http");
    let path = path.to_str().expect("text");
    up.run(&["deploy", path, "--name", "keeper"])
        .refused(77, &["--grant keyvalue=NAME"]);
    up.deploy("keeper-http", "keeper", &["--grant", "keyvalue=default"]);
    assert_eq!(up.get("keeper", "/increment?visits/n").body, "1");
    assert_eq!(up.get("keeper", "/increment?visits/n").body, "2");
    let removed = up.run(&["rm", "keeper"]).ok();
    assert!(
        removed.out.contains("kept: bucket default_keeper_default"),
        "{}",
        removed.out
    );
    up.deploy("keeper-http", "keeper", &["--grant", "keyvalue=default"]);
    assert_eq!(up.get("keeper", "/increment?visits/n").body, "3");
}

#[test]
fn a_volume_is_there_again_after_a_roll() {
    let up = Up::start(2);
    up.deploy("files-http", "files", &["--grant", "volume=data:/data"]);
    assert_eq!(up.get("files", "/write?/data/file=1234").body, "done");
    wait_for("the first rollout is over", || {
        (up.status("files")["rollout"]["state"] != "rolling").then_some(())
    });
    up.run(&["restart", "files"]).ok();
    wait_for("the same file in the next replica", || {
        (up.status("files")["state"] == "ready"
            && up.get("files", "/size?/data/file").body == "1234")
            .then_some(())
    });
}

/// A store that two workloads use stays until the second of them goes.
#[test]
fn rm_with_data_takes_what_nobody_else_uses() {
    let up = Up::start(1);
    let keeper = |name: &str, bucket: &str| {
        let manifest = format!(
            "[workload]\nname = \"{name}\"\ncomponent = \"{}\"\n[workload.bindings]\n\
             keyvalue.default = {{ bucket = \"shared\" }}\n\
             keyvalue.own = {{ bucket = \"{bucket}\" }}\n",
            guest("keeper-http").display()
        );
        let file = up.home.write(&format!("{name}.toml"), manifest);
        up.run(&["deploy", file.to_str().expect("text")]).ok();
    };
    keeper("one", "of-one");
    keeper("two", "of-two");
    assert_eq!(up.get("one", "/increment?default/n").body, "1");
    assert_eq!(up.get("two", "/increment?default/n").body, "2");
    // Larger than a message: it lies in a stream of its own.
    assert_eq!(up.get("one", "/fill?own/large=3000000").status, 200);
    assert_eq!(up.get("two", "/increment?own/n").body, "1");
    let nats = Client::connect(&up.nats_url());
    let there = |stream: &str| nats.stream(stream).is_some();
    assert!(there("KV_of-one") && there("OBJ_of-one_large") && there("KV_shared"));

    // It runs: it is stopped first.
    let removed = up.run(&["rm", "one", "--data"]).ok();
    let kept = "kept: bucket shared, which default/two uses";
    assert!(removed.out.contains(kept), "{}", removed.out);
    assert!(!removed.out.contains("of-one"), "{}", removed.out);
    assert!(!there("KV_of-one") && !there("OBJ_of-one_large"));
    assert!(there("KV_shared") && there("KV_of-two"));
    assert_eq!(up.get("two", "/increment?default/n").body, "3");
    let removed = up.run(&["rm", "two", "--data"]).ok();
    assert!(!removed.out.contains("kept"), "{}", removed.out);
    assert!(!there("KV_shared") && !there("KV_of-two"));
    keeper("one", "of-one");
    assert_eq!(up.get("one", "/increment?default/n").body, "1");
}

/// What lies on hosts goes once, also over a restart of all of them.
#[test]
fn rm_with_data_takes_volumes_and_containers_from_hosts() {
    let mut up = Up::start(2);
    let on_hosts = |up: &Up, path: &str| {
        let data = up.home.path().join("data/wasmorch/up");
        (1..=2)
            .filter(|n| data.join(format!("h{n}/volumes/{path}")).exists())
            .count()
    };
    let files = |up: &Up| up.deploy("files-http", "files", &["--grant", "volume=data:/data"]);
    files(&up);
    assert_eq!(up.get("files", "/write?/data/file=1234").body, "done");
    let manifest = format!(
        "[workload]\nname = \"blobs\"\ncomponent = \"{}\"\n\
         [workload.bindings]\nblobstore.default = {{ backend = \"disk\" }}\n",
        guest("blobs-http").display()
    );
    let file = up.home.write("blobs.toml", manifest);
    up.run(&["deploy", file.to_str().expect("text")]).ok();
    assert_eq!(up.get("blobs", "/put?default/one=10").body, "done");
    let container = "_blobs/default/default_blobs_default";
    assert_eq!(on_hosts(&up, "default/files"), 1);
    assert_eq!(on_hosts(&up, container), 1);

    for workload in ["files", "blobs"] {
        let removed = up.run(&["rm", workload, "--data"]).ok();
        assert!(!removed.out.contains("kept"), "{}", removed.out);
    }
    wait_for("the hosts have removed both", || {
        let left = on_hosts(&up, "default/files") + on_hosts(&up, container);
        (left == 0).then_some(())
    });
    files(&up);
    let size = up.get("files", "/size?/data/file");
    assert_eq!((size.status, size.body.as_str()), (507, "no-entry"));
    assert_eq!(up.get("files", "/write?/data/file=5").body, "done");
    up.kill();
    up.start_again();
    wait_for("what was written after the removal", || {
        (up.get("files", "/size?/data/file").body == "5").then_some(())
    });
}

#[test]
fn rm_with_data_is_refused_whole_where_it_would_be_half_done() {
    let up = Up::start(1);
    let manifest = format!(
        "[workload]\nname = \"cached\"\ncomponent = \"{}\"\n[workload.bindings]\n\
         keyvalue.default = {{ backend = \"redis\", url = \"redis://127.0.0.1:1\" }}\n",
        guest("keeper-http").display()
    );
    let file = up.home.write("cached.toml", manifest);
    up.run(&["deploy", file.to_str().expect("text"), "--detach"])
        .ok();
    up.run(&["rm", "cached", "--data"])
        .refused(64, &["default (redis)", "a system of its own"]);
    assert_ne!(up.status("cached")["state"], "stopped");
    // By the API alone nothing is stopped: who asks has to.
    up.deploy("keeper-http", "keeper", &["--grant", "keyvalue=default"]);
    assert_eq!(up.get("keeper", "/increment?default/n").body, "1");
    let nats = Client::connect(&up.nats_url());
    let body = json!({"workload": "keeper", "data": true}).to_string();
    let answer = nats.request("wasmorch.v1.api.default.rm", body.as_bytes());
    let answer = String::from_utf8_lossy(&answer).into_owned();
    assert!(answer.contains("\"conflict\""), "{answer}");
    assert_eq!(up.get("keeper", "/increment?default/n").body, "2");
}

#[test]
fn rm_takes_the_consumer_of_a_stream_with_it() {
    let up = Up::start(1);
    let nats = Client::connect(&up.nats_url());
    let stream = json!({"name": "SHOP", "subjects": ["shop.orders.*"]});
    nats.json("$JS.API.STREAM.CREATE.SHOP", &stream);
    let manifest = format!(
        "[workload]\nname = \"echo\"\ncomponent = \"{}\"\n[workload.bindings]\n\
         subscribe = [{{ subject = \"shop.orders.*\", stream = \"SHOP\" }}]\n",
        guest("echo-messages").display()
    );
    let file = up.home.write("echo.toml", manifest);
    up.run(&["deploy", file.to_str().expect("text")]).ok();
    let consumer = || nats.json("$JS.API.CONSUMER.INFO.SHOP.default_echo_SHOP", &json!({}));
    nats.publish("shop.orders.eu", b"one");
    wait_for("the message is handled", || {
        let info = consumer();
        (info["ack_floor"]["stream_seq"] == 1).then_some(())
    });
    up.run(&["rm", "echo"]).ok();
    let gone = consumer();
    assert_eq!(gone["error"]["err_code"], 10014, "{gone}");
}
