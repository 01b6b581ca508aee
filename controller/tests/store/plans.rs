//! Plans of a whole controller on a real nats-server: what is refused, and what is shown of them.

use async_nats::jetstream;
use futures::StreamExt;
use serde_json::{Value, json};
use wasmorch_api::{Digest, Term, subjects};

use crate::controller::{Controller, SERVICE, call, cluster_of, deploy, term_of, upload};
use crate::fake_host::FakeHost;
use crate::server::{DEADLINE, Server, eventually};

/// A host of the first term, and a service of one replica for it.
async fn deployed_to_h1(client: &async_nats::Client) -> FakeHost {
    assert_eq!(term_of(client).await, 1);
    let host = FakeHost::start(client, cluster_of(client).await, "h1").await;
    let digest = Digest::of(SERVICE);
    upload(client, &digest, SERVICE).await;
    call(client, "default.deploy", deploy(&digest, 1, "r1"))
        .await
        .unwrap();
    host
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plan_that_breaks_a_rule_is_not_carried_out_and_an_alarm_names_the_rule() {
    let server = Server::start();
    let controller = Controller::start(&server).await;
    let client = crate::client(&server).await;
    let host = deployed_to_h1(&client).await;
    let set = || async { crate::last_sequence_of(&server, "pub.placements.h1").await };
    eventually("its set", set).await;
    controller.stop().await;

    // Somebody has written past the fence, in a term that is not there yet.
    let held = eventually("the set there", || async { host.set.lock().await.clone() }).await;
    let js = jetstream::new(client.clone());
    let write = async |term: u64| {
        let mut set = held.clone();
        set.term = Term(term);
        let body = serde_json::to_vec(&set).unwrap();
        let subject = subjects::state("pub.placements.h1");
        js.publish(subject, body.into())
            .await
            .unwrap()
            .await
            .unwrap();
    };
    write(99).await;
    let written = set().await;
    let mut alarms = client
        .subscribe("wasmorch.v1.events._.alarm-plan-refused")
        .await
        .unwrap();
    let controller = Controller::start(&server).await;
    let term = term_of(&client).await;
    let scale = json!({"workload": "web", "desired": 2});
    call(&client, "default.scale", scale).await.unwrap();
    let alarm = tokio::time::timeout(DEADLINE, alarms.next())
        .await
        .unwrap()
        .unwrap();
    let alarm: Value = serde_json::from_slice(&alarm.payload).unwrap();
    assert_eq!(alarm["kind"], "alarm-plan-refused");
    let rule = format!("the set of host h1 is of term 99, and this leader's is {term}");
    assert_eq!(alarm["reason"], rule, "{alarm}");
    assert_eq!(set().await, written, "nothing was written for it");

    // Whatever it was, it is over.
    controller.stop().await;
    write(1).await;
    let controller = Controller::start(&server).await;
    eventually("the second slot", || async {
        let set = host.set.lock().await.clone()?;
        (set.groups[0].slots.len() == 2).then_some(())
    })
    .await;
    controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_holds_a_later_set_than_the_store_freezes_its_leader() {
    let server = Server::start();
    let controller = Controller::start(&server).await;
    let client = crate::client(&server).await;
    let host = deployed_to_h1(&client).await;
    let set = || async { crate::last_sequence_of(&server, "pub.placements.h1").await };
    let held = eventually("its set", set).await;
    // One that was lost, and other writes have taken its sequence since.
    let claims = eventually("the end of the rollout", || async {
        let record = crate::last_sequence_of(&server, "workload.default.web").await;
        record.filter(|sequence| *sequence > held)
    })
    .await;
    let mut alarms = client
        .subscribe("wasmorch.v1.events._.alarm-frozen")
        .await
        .unwrap();
    *host.claims.lock().await = Some(claims);
    let alarm = tokio::time::timeout(DEADLINE, alarms.next())
        .await
        .unwrap()
        .unwrap();
    let alarm: Value = serde_json::from_slice(&alarm.payload).unwrap();
    let said =
        format!("host h1 holds a placement set of sequence {claims} and the store's is of {held}");
    let reason = alarm["reason"].as_str().unwrap();
    assert!(reason.starts_with(&said), "{alarm}");
    let scale = json!({"workload": "web", "desired": 2});
    let refused = call(&client, "default.scale", scale).await.unwrap_err();
    assert_eq!(refused.1["error"]["code"], "frozen", "{refused:?}");
    assert_eq!(set().await, Some(held), "nothing was written");
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
