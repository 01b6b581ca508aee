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
