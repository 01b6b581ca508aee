//! Plans of a whole controller on a real nats-server: what is refused, and what is shown of them.

use futures::StreamExt;
use serde_json::{Value, json};
use wasmorch_api::Digest;

use crate::controller::{Controller, SERVICE, call, cluster_of, deploy, term_of, upload};
use crate::fake_host::FakeHost;
use crate::server::{DEADLINE, Server, eventually};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plan_that_breaks_a_rule_is_not_carried_out_and_an_alarm_names_the_rule() {
    let server = Server::start();
    let controller = Controller::start(&server).await;
    let client = crate::client(&server).await;
    assert_eq!(term_of(&client).await, 1);
    let host = FakeHost::start(&client, cluster_of(&client).await, "h1").await;
    let digest = Digest::of(SERVICE);
    upload(&client, &digest, SERVICE).await;
    call(&client, "default.deploy", deploy(&digest, 1, "r1"))
        .await
        .unwrap();
    let set = || async { crate::last_sequence_of(&server, "pub.placements.h1").await };
    let held = eventually("its set", set).await;
    let mut alarms = client
        .subscribe("wasmorch.v1.events._.alarm-plan-refused")
        .await
        .unwrap();

    // It says that it holds a later set than the state knows of, if none later than all that is stored.
    let claims = eventually("the end of the rollout", || async {
        let record = crate::last_sequence_of(&server, "workload.default.web").await;
        record.filter(|sequence| *sequence > held)
    })
    .await;
    let mut beats = client.subscribe("wasmorch.v1.heartbeat.h1").await.unwrap();
    *host.claims.lock().await = Some(claims);
    // The leader has heard the first such beat when the second is here.
    let mut heard = 0;
    while heard < 2 {
        let beat = tokio::time::timeout(DEADLINE, beats.next()).await.unwrap();
        let beat: Value = serde_json::from_slice(&beat.unwrap().payload).unwrap();
        heard += u32::from(beat["sequence"] == claims);
    }
    let scale = json!({"workload": "web", "desired": 2});
    let rule = format!("host h1 holds set {claims}, and the last one stored for it is {held}");
    call(&client, "default.scale", scale).await.unwrap();
    let alarm = tokio::time::timeout(DEADLINE, alarms.next())
        .await
        .unwrap()
        .unwrap();
    let alarm: Value = serde_json::from_slice(&alarm.payload).unwrap();
    assert_eq!(alarm["kind"], "alarm-plan-refused");
    assert_eq!(alarm["reason"], rule, "{alarm}");
    assert_eq!(set().await, Some(held), "nothing was written for it");

    // Whatever it was, it is over.
    *host.claims.lock().await = None;
    eventually("the second slot", || async {
        let set = host.set.lock().await.clone()?;
        (set.groups[0].slots.len() == 2).then_some(())
    })
    .await;
    controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_deploy_would_do_is_told_when_all_hosts_have_been_heard() {
    let server = Server::start();
    let controller = Controller::start(&server).await;
    let client = crate::client(&server).await;
    let cluster = cluster_of(&client).await;
    let one = FakeHost::start(&client, cluster.clone(), "h1").await;
    let two = FakeHost::start(&client, cluster.clone(), "h2").await;
    let digest = Digest::of(SERVICE);
    upload(&client, &digest, SERVICE).await;
    let mut wanted = deploy(&digest, 2, "r1");
    wanted["workloads"][0]["constraints"] = json!([{"distinct": "host"}]);
    let starts = |plan: &Value| plan["start"].as_array().unwrap().len();
    eventually("both hosts", || async {
        let hosts = call(&client, "_.hosts", Value::Null).await.unwrap();
        (hosts["items"].as_array()?.len() == 2).then_some(())
    })
    .await;
    let plan = call(&client, "default.plan", wanted.clone()).await.unwrap();
    assert_eq!(starts(&plan), 2, "{plan}");

    // Another leader begins, and one of them is silent.
    drop(two);
    controller.stop().await;
    let controller = Controller::start(&server).await;
    assert_eq!(term_of(&client).await, 2);
    let subject = "wasmorch.v1.api.default.plan";
    let body = serde_json::to_vec(&wanted).unwrap();
    let refusal = client.request(subject, body.into()).await.unwrap();
    let refusal: Value = serde_json::from_slice(&refusal.payload).unwrap();
    assert_eq!(refusal["error"]["code"], "unavailable", "{refusal}");
    let two = FakeHost::start(&client, cluster, "h2").await;
    let plan = call(&client, "default.plan", wanted).await.unwrap();
    assert_eq!(
        (starts(&plan), &plan["unplaced"]),
        (2, &json!([])),
        "{plan}"
    );
    drop((one, two));
    controller.stop().await;
}
