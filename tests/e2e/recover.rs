//! A store that is lost, or goes back: the cluster freezes, goes on serving, and is recovered.

use std::path::Path;

use serde_json::json;
use wasmorch_tests::daemons::{Daemons, leader, says_hello, serving};
use wasmorch_tests::wait_for;

fn wipe(daemons: &mut Daemons) {
    daemons.nats[0].kill();
    std::fs::remove_dir_all(daemons.nats[0].store()).expect("the store is there");
    daemons.nats[0].start_again();
}

/// Waits for the freeze, and checks that everything that should say so does.
#[track_caller]
fn frozen(daemons: &Daemons, why: &str) {
    // A leader that has not heard a host yet may still take one: each asks for another count.
    let mut wanted = 10;
    let refused = wait_for("the freeze", || {
        wanted += 1;
        let done = daemons.run(&["scale", &format!("hello={wanted}")]);
        (done.code == 69 && done.err.contains("frozen")).then_some(done)
    });
    refused.refused(69, &["frozen", why, "wasmorch recover"]);
    let client = daemons.client();
    let scale = json!({"workload": "hello", "desired": 3});
    let refused = client.json("wasmorch.v1.api.default.scale", &scale);
    assert_eq!(refused["error"]["code"], "frozen", "{refused}");
    wait_for("the alarm", || client.last_event("alarm-frozen"));
}

#[test]
fn a_wiped_store_freezes_and_is_rebuilt_from_the_hosts() {
    let mut daemons = Daemons::start(2, 2);
    daemons.deploy(
        "hello-http",
        "hello",
        &["--replicas", "2", "--route", "hello.example/"],
    );
    daemons.deploy("hello-http-v2", "second", &[]);
    let client = daemons.client();
    let cluster = client.kept("term").expect("led").value["cluster"].clone();
    let gateways = daemons.gateways();
    wait_for("an answer from every gateway", || {
        let all = |name: &str| gateways.iter().all(|gateway| says_hello(gateway, name));
        (all("hello") && all("second")).then_some(())
    });

    // Refused where nothing is lost.
    daemons
        .run(&["recover"])
        .refused(75, &["needs no recovery"]);

    serving(&gateways, "second", || {
        wipe(&mut daemons);
        frozen(&daemons, "wiped");
        let said = daemons
            .run(&["backup", "kept.json"])
            .refused(1, &["nothing to back up"]);
        assert!(!daemons.home.path().join("kept.json").exists(), "{said:?}");
        let recovered = daemons.run(&["recover", "--json"]).ok().json();
        assert_eq!(recovered["cluster"], cluster, "{recovered}");
        assert_eq!(
            (&recovered["workloads"], &recovered["placements"]),
            (&json!(2), &json!(3))
        );
        assert_eq!(recovered["artifacts_put_back"], 2, "{recovered}");
        assert_eq!(recovered["lost"], json!([]), "{recovered}");
        wait_for("everything to be as before", || {
            let listed = daemons.run(&["ps", "--json"]);
            let ready = |n: usize| listed.json()[n]["ready"].clone();
            (listed.code == 0 && ready(0) == 2 && ready(1) == 1).then_some(())
        });
        daemons.wait_for_hosts(2);
    });
    let client = daemons.client();
    assert_eq!(client.kept("term").expect("led").value["cluster"], cluster);
    assert!(client.kept("recovering").is_none());

    // It is a whole cluster again: new work goes on, old numbers are not given again.
    daemons.deploy("hello-http-v2", "hello", &[]);
    assert_eq!(
        client.kept("workload.default.hello").expect("there").value["revision"],
        2
    );
    daemons.deploy("hello-http", "third", &["--replicas", "2"]);
    daemons.run(&["scale", "second=2"]).ok();
    wait_for("every gateway to answer for all", || {
        let all = |name: &str| gateways.iter().all(|gateway| says_hello(gateway, name));
        (all("hello") && all("second") && all("third")).then_some(())
    });
    // Every controller believes the recovered store, those too that led the empty one.
    for _ in 0..2 {
        let client = daemons.client();
        let (id, term) = wait_for("a leader", || leader(&client));
        let n = daemons.controller_of(&id);
        daemons.controllers[n].take().expect("leads").kill();
        wait_for("the next leader", || {
            leader(&client).filter(|(_, next)| *next > term)
        });
        daemons.start_controller(n);
        daemons.controller_id(n);
    }
    wait_for("a write by the last leader", || {
        (daemons.run(&["scale", "second=1"]).code == 0).then_some(())
    });
}

#[test]
fn a_backup_brings_back_what_no_host_holds() {
    let mut daemons = Daemons::start(1, 1);
    daemons.deploy("hello-http-v2", "hello", &[]);
    daemons.deploy("hello-http", "hello", &[]);
    daemons.deploy("hello-http", "stopped", &[]);
    daemons.run(&["stop", "stopped"]).ok();
    let (client, host) = (daemons.client(), daemons.host_id("host-0"));
    wait_for("the host to be told that it has stopped", || {
        let set = client.kept(&format!("pub.placements.{host}"))?.value;
        (set["groups"].as_array()?.len() == 1).then_some(())
    });
    daemons.run(&["backup", "kept.json"]).ok();
    let gateways = daemons.gateways();
    serving(&gateways, "hello", || {
        wipe(&mut daemons);
        frozen(&daemons, "wiped");
        let recovered = daemons.run(&["recover", "kept.json", "--json"]).ok().json();
        assert_eq!(
            (&recovered["workloads"], &recovered["from_backup"]),
            (&json!(2), &json!(1))
        );
    });
    let history = daemons.run(&["history", "hello", "--json"]).ok().json();
    assert_eq!(history.as_array().map(Vec::len), Some(2), "{history}");
    daemons.run(&["start", "stopped"]).ok();
    wait_for("what was stopped to serve", || {
        says_hello(&gateways[0], "stopped").then_some(())
    });
    daemons.run(&["rollback", "hello"]).ok();

    // On an empty cluster a backup is enough; a file that is none is refused.
    let empty = Daemons::start(1, 0);
    std::fs::copy(
        daemons.home.path().join("kept.json"),
        empty.home.path().join("kept.json"),
    )
    .expect("the backup is there");
    empty.home.write("none.json", "{}");
    empty
        .run(&["recover", "none.json"])
        .refused(64, &["is no backup"]);
    empty.run(&["recover"]).refused(66, &["nothing to recover"]);
    let recovered = empty.run(&["recover", "kept.json", "--json"]);
    assert_eq!(
        recovered.code, 1,
        "its artifacts are elsewhere: {}",
        recovered.err
    );
    assert_eq!(recovered.json()["workloads"], 2);
    assert_eq!(
        recovered.json()["artifacts_missing"]
            .as_array()
            .map(Vec::len),
        Some(2)
    );
    wait_for("the workloads", || {
        let listed = empty.run(&["ps", "--json"]);
        (listed.code == 0 && listed.json().as_array()?.len() == 2).then_some(())
    });
}

#[test]
fn a_store_that_went_back_freezes_and_is_brought_up_to_the_hosts() {
    let mut daemons = Daemons::start(1, 1);
    daemons.deploy("hello-http-v2", "hello", &[]);
    let old = daemons.home.path().join("old-store");
    daemons.nats[0].kill();
    copy(&daemons.nats[0].store(), &old);
    daemons.nats[0].start_again();
    wait_for("a deploy that the copy does not know", || {
        let path = wasmorch_tests::guest("hello-http");
        let args = ["deploy", path.to_str().expect("text"), "--name", "hello"];
        (daemons.run(&args).code == 0).then_some(())
    });
    let gateways = daemons.gateways();
    serving(&gateways, "hello", || {
        daemons.nats[0].kill();
        let store = daemons.nats[0].store();
        std::fs::remove_dir_all(&store).expect("there");
        copy(&old, &store);
        daemons.nats[0].start_again();
        frozen(&daemons, "lost what it had acknowledged");
        let recovered = daemons.run(&["recover", "--json"]).ok().json();
        // The current one from the host, the one before from the store, whether or not the leader is
        // still the one that wrote it.
        assert_eq!(recovered["revisions"], 2, "{recovered}");
        let kept = recovered["kept"].as_str().expect("a copy was kept");
        assert!(daemons.home.path().join(kept).exists());
    });
    let client = daemons.client();
    let record = client
        .kept("workload.default.hello")
        .expect("recovered")
        .value;
    assert_eq!(
        (&record["revision"], &record["newest"]),
        (&json!(2), &json!(2))
    );
    wait_for("a write", || {
        (daemons.run(&["scale", "hello=2"]).code == 0).then_some(())
    });
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("writable");
    for entry in std::fs::read_dir(from).expect("readable") {
        let entry = entry.expect("readable");
        let target = to.join(entry.file_name());
        if entry.file_type().expect("known").is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).expect("copied");
        }
    }
}
