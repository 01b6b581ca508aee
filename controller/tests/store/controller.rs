//! Whole controllers on a real nats-server.

use std::time::{Duration, Instant};

use async_nats::{Client, jetstream};
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use wasmorch_api::record::TermRecord;
use wasmorch_api::{ClusterId, Digest, Term, Timestamp, subjects};
use wasmorch_controller::store::LeaseView;
use wasmorch_controller::{ControllerConfig, ControllerError, ControllerStarted};

use crate::fake_host::FakeHost;
use crate::server::{DEADLINE, Server, eventually};

/// `(module (func (export "_start")))`: the smallest service.
pub(crate) const SERVICE: &[u8] = b"\0asm\x01\0\0\0\x01\x04\x01\x60\0\0\x03\x02\x01\0\x07\x0a\x01\x06_start\0\0\x0a\x04\x01\x02\0\x0b";

pub(crate) struct Controller {
    started: ControllerStarted,
    shutdown: CancellationToken,
    running: JoinHandle<Result<(), ControllerError>>,
}

impl Controller {
    pub(crate) async fn start(server: &Server) -> Self {
        let (sender, started) = oneshot::channel();
        let config = ControllerConfig {
            nats: server.options(),
            admin: Some("127.0.0.1:0".parse().unwrap()),
            dead_after: wasmorch_controller::DEAD_AFTER,
            started: Some(sender),
        };
        let shutdown = CancellationToken::new();
        let running = tokio::spawn(wasmorch_controller::run(config, shutdown.clone()));
        let started = tokio::time::timeout(DEADLINE, started)
            .await
            .unwrap()
            .unwrap();
        Self {
            started,
            shutdown,
            running,
        }
    }

    pub(crate) async fn stop(self) {
        self.shutdown.cancel();
        tokio::time::timeout(DEADLINE, self.running)
            .await
            .unwrap()
            .unwrap()
            .unwrap();
    }
}

/// Calls the API as any NATS client would, again while nobody leads, or the leader still listens.
pub(crate) async fn call(
    client: &Client,
    subject: &str,
    body: Value,
) -> Result<Value, (u16, Value)> {
    let subject = format!("wasmorch.v1.api.{subject}");
    let body = if body.is_null() {
        Vec::new()
    } else {
        serde_json::to_vec(&body).unwrap()
    };
    let message = eventually("an answer", || async {
        let answer = client.request(subject.clone(), body.clone().into()).await;
        let listens = |body: &[u8]| String::from_utf8_lossy(body).contains("listens to its hosts");
        answer.ok().filter(|answer| !listens(&answer.payload))
    })
    .await;
    let code = message
        .headers
        .as_ref()
        .and_then(|headers| headers.get("Nats-Service-Error-Code"));
    let value = serde_json::from_slice(&message.payload).unwrap();
    match code {
        Some(code) => Err((code.as_str().parse().unwrap(), value)),
        None => Ok(value),
    }
}

pub(crate) async fn term_of(client: &Client) -> u64 {
    // A leader that steps down says so while it still holds the lease.
    let version = || async { call(client, "_.version", Value::Null).await.ok() };
    let version = eventually("a leader", version).await;
    version["term"].as_u64().unwrap()
}

pub(crate) async fn upload(client: &Client, name: &Digest, mut bytes: &[u8]) {
    let js = jetstream::new(client.clone());
    let objects = js
        .get_object_store(subjects::ARTIFACT_BUCKET)
        .await
        .unwrap();
    objects.put(name.as_str(), &mut bytes).await.unwrap();
}

pub(crate) async fn cluster_of(client: &Client) -> ClusterId {
    let js = jetstream::new(client.clone());
    // A new store has neither before its first leader.
    let term = eventually("a term", || async {
        let bucket = js.get_key_value(subjects::STATE_BUCKET).await.ok()?;
        bucket.get("term").await.unwrap()
    })
    .await;
    let term: Value = serde_json::from_slice(&term).unwrap();
    term["cluster"].as_str().unwrap().parse().unwrap()
}

pub(crate) fn deploy(digest: &Digest, replicas: u32, request_id: &str) -> Value {
    json!({
        "workloads": [{"name": "web", "artifact": digest, "replicas": replicas}],
        "request_id": request_id,
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deploy_reaches_a_host_and_survives_its_leader() {
    let server = Server::start();
    let controller = Controller::start(&server).await;
    let client = super::client(&server).await;
    assert_eq!(term_of(&client).await, 1);
    let host = FakeHost::start(&client, cluster_of(&client).await, "h1").await;
    eventually("the host", || async {
        let hosts = call(&client, "_.hosts", Value::Null).await.unwrap();
        (hosts["items"][0]["state"] == "alive").then_some(())
    })
    .await;

    let digest = Digest::of(SERVICE);
    let missing = call(&client, "default.deploy", deploy(&digest, 2, "r0"))
        .await
        .unwrap_err();
    assert_eq!(missing.0, 404, "{missing:?}");
    assert!(
        missing.1["error"]["fix"]
            .as_str()
            .unwrap()
            .contains("upload it first")
    );
    upload(&client, &digest, SERVICE).await;
    let plan = call(&client, "default.plan", deploy(&digest, 2, "r0"))
        .await
        .unwrap();
    assert_eq!(plan["start"].as_array().unwrap().len(), 2, "{plan}");
    let deployed = call(&client, "default.deploy", deploy(&digest, 2, "r1"))
        .await
        .unwrap();
    assert_eq!(deployed["workloads"][0]["changed"], true, "{deployed}");
    assert!(deployed["index"].as_u64().unwrap() > 0);

    let ready = || async {
        let status = call(&client, "default.status", json!({"workload": "web"}))
            .await
            .unwrap();
        (status["ready"] == 2 && status["state"] == "ready").then_some(status)
    };
    let status = eventually("two ready replicas", ready).await;
    assert_eq!(status["replicas"].as_array().unwrap().len(), 2);
    let set = host.set.lock().await.clone().unwrap();
    assert_eq!((set.term, set.groups[0].slots.len()), (Term(1), 2));
    let js = jetstream::new(client.clone());
    let bucket = js.get_key_value(subjects::STATE_BUCKET).await.unwrap();

    // The same again: the same request is not done twice, another one changes nothing.
    let again = call(&client, "default.deploy", deploy(&digest, 2, "r1"))
        .await
        .unwrap();
    assert_eq!(again, deployed);
    let same = call(&client, "default.deploy", deploy(&digest, 2, "r2"))
        .await
        .unwrap();
    assert_eq!(same["workloads"][0]["changed"], false);

    // The next leader knows all of it, the answers too.
    controller.stop().await;
    assert!(
        bucket.get("lease").await.unwrap().is_none(),
        "the lease was given back"
    );
    let controller = Controller::start(&server).await;
    assert_eq!(term_of(&client).await, 2);
    eventually("two ready replicas", ready).await;
    let again = call(&client, "default.deploy", deploy(&digest, 2, "r1"))
        .await
        .unwrap();
    assert_eq!(
        again["workloads"][0]["changed"], true,
        "the first answer: {again}"
    );
    let scale = json!({"workload": "web", "desired": 1});
    call(&client, "default.scale", scale).await.unwrap();
    eventually("one slot in the host's set", || async {
        let set = host.set.lock().await.clone()?;
        (set.term == Term(2) && set.groups[0].slots.len() == 1).then_some(())
    })
    .await;
    let remove = json!({"workload": "web", "request_id": "r9"});
    let removed = call(&client, "default.rm", remove.clone()).await.unwrap();
    assert_eq!(removed["changed"], true);
    assert_eq!(call(&client, "default.rm", remove).await.unwrap(), removed);
    let gone = call(&client, "default.status", json!({"workload": "web"}))
        .await
        .unwrap_err();
    assert_eq!(gone.0, 404);
    controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_call_is_answered() {
    let server = Server::start();
    let controller = Controller::start(&server).await;
    let client = super::client(&server).await;
    let empty = call(&client, "default.list", Value::Null).await.unwrap();
    assert_eq!(empty, json!({"items": [], "next": null}));
    for (subject, body, code, says) in [
        ("default.explode", json!({}), 404, "no verb"),
        ("_.deploy", json!({}), 400, "namespace"),
        ("default.hosts", json!({}), 400, "whole cluster"),
        ("NOT.list", json!({}), 400, "no subject"),
        ("a.b.c.list", json!({}), 400, "no subject"),
        (
            "default.status",
            json!({"workload": "nope"}),
            404,
            "no workload",
        ),
        ("default.status", json!({"worklod": "nope"}), 400, "worklod"),
        (
            "default.scale",
            json!({"workload": "nope", "desired": -1}),
            400,
            "desired",
        ),
        ("default.deploy", json!({"workloads": []}), 400, "empty"),
        ("default.deploy", json!("what"), 400, ""),
        ("_.drain", json!({"host": "h1"}), 404, "no host"),
        ("_.cordon", json!({"host": "h1"}), 404, "no host"),
        ("_.cordon", json!({}), 400, "no host"),
    ] {
        let (found, body) = call(&client, subject, body).await.unwrap_err();
        assert_eq!(found, code, "{subject}: {body}");
        let text = body.to_string();
        // A refusal of -1 names the type, with its place.
        let says = if says == "desired" {
            "invalid value"
        } else {
            says
        };
        assert!(text.contains(says), "{subject}: {text}");
    }

    let corrupt = Digest::of(b"something else");
    upload(&client, &corrupt, SERVICE).await;
    let (code, body) = call(&client, "default.deploy", deploy(&corrupt, 1, "r"))
        .await
        .unwrap_err();
    assert_eq!(code, 400);
    assert!(body.to_string().contains("corrupt"), "{body}");
    let text = Digest::of(b"#!/bin/sh");
    upload(&client, &text, b"#!/bin/sh").await;
    let (code, body) = call(&client, "default.deploy", deploy(&text, 1, "r"))
        .await
        .unwrap_err();
    assert_eq!(code, 400, "{body}");
    let list = call(&client, "_.list", Value::Null).await.unwrap();
    assert_eq!(list["items"], json!([]), "nothing is half done");

    // Discovery, as `nats micro` asks.
    for (subject, kind) in [
        ("$SRV.PING", "io.nats.micro.v1.ping_response"),
        ("$SRV.INFO.wasmorch", "io.nats.micro.v1.info_response"),
        ("$SRV.STATS.wasmorch", "io.nats.micro.v1.stats_response"),
    ] {
        let answer = client.request(subject, "".into()).await.unwrap();
        let answer: Value = serde_json::from_slice(&answer.payload).unwrap();
        assert_eq!(answer["type"], kind);
        assert_eq!(
            answer["metadata"]["leader"],
            controller.started.leader.as_str()
        );
    }

    // Health, as a machine asks.
    let admin = controller.started.admin.unwrap();
    let ask = async |path: &str| {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut stream = tokio::net::TcpStream::connect(admin).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    };
    assert!(ask("/healthz").await.starts_with("HTTP/1.1 200"));
    assert!(ask("/readyz").await.contains("\"leading\":true"));
    assert!(
        ask("/metrics")
            .await
            .contains("\nwasmorch_controller_term 1\n")
    );
    assert!(ask("/x").await.starts_with("HTTP/1.1 404"));
    controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_controller_takes_over() {
    let server = Server::start();
    let first = Controller::start(&server).await;
    let client = super::client(&server).await;
    assert_eq!(term_of(&client).await, 1);
    let second = Controller::start(&server).await;
    let third = Controller::start(&server).await;
    let leader = call(&client, "_.version", Value::Null).await.unwrap()["leader"].clone();
    assert_eq!(leader, first.started.leader.as_str());

    // A clean stop gives the lease back: nobody waits for its end.
    let began = Instant::now();
    first.stop().await;
    assert_eq!(term_of(&client).await, 2);
    assert!(
        began.elapsed() < Duration::from_millis(1_500),
        "{:?}",
        began.elapsed()
    );

    // One that dies is waited for, no longer than the lease lasts.
    let leader = call(&client, "_.version", Value::Null).await.unwrap()["leader"].clone();
    let (dies, lives) = if leader == second.started.leader.as_str() {
        (second, third)
    } else {
        (third, second)
    };
    let began = Instant::now();
    dies.running.abort();
    let term = eventually("the next leader", || async {
        let version = call(&client, "_.version", Value::Null).await.ok()?;
        (version["leader"] == lives.started.leader.as_str()).then(|| version["term"].clone())
    })
    .await;
    assert_eq!(term, 3);
    assert!(
        began.elapsed() < Duration::from_secs(6),
        "{:?}",
        began.elapsed()
    );
    lives.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wiped_store_freezes_and_a_restarted_one_goes_on() {
    let mut server = Server::start();
    let controller = Controller::start(&server).await;
    let client = super::client(&server).await;
    assert_eq!(term_of(&client).await, 1);
    let cluster = cluster_of(&client).await;
    let digest = Digest::of(SERVICE);
    upload(&client, &digest, SERVICE).await;
    let host = FakeHost::start(&client, cluster.clone(), "h1").await;
    call(&client, "default.deploy", deploy(&digest, 1, "r1"))
        .await
        .unwrap();

    server.restart(false);
    let status = eventually("the workload after a restart of NATS", || async {
        call(&client, "default.status", json!({"workload": "web"}))
            .await
            .ok()
    })
    .await;
    assert_eq!(status["revision"], 1);
    assert_eq!(cluster_of(&client).await, cluster);

    server.restart(true);
    let frozen = eventually("the freeze", || async {
        let host = json!({"host": "x"});
        let _ = call(&client, "_.cordon", host).await;
        upload_again(&client, &digest).await?;
        match call(&client, "default.deploy", deploy_anew(&digest)).await {
            Err((503, body)) if body["error"]["code"] == "frozen" => Some(body),
            _ => None,
        }
    })
    .await;
    assert!(frozen.to_string().contains("wiped"), "{frozen}");
    call(&client, "_.hosts", Value::Null)
        .await
        .expect("questions are answered");

    // Another controller, which remembers nothing, believes the hosts.
    controller.stop().await;
    let controller = Controller::start(&server).await;
    let frozen = eventually("the freeze", || async {
        match call(&client, "default.deploy", deploy_anew(&digest)).await {
            Err((503, body)) if body["error"]["code"] == "frozen" => Some(body),
            _ => None,
        }
    })
    .await;
    assert!(frozen.to_string().contains("wiped"), "{frozen}");
    assert!(
        host.set
            .lock()
            .await
            .as_ref()
            .is_none_or(|set| set.cluster == cluster)
    );
    controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_was_deposed_changes_nothing_and_comes_back_later() {
    let server = Server::start();
    let controller = Controller::start(&server).await;
    let client = super::client(&server).await;
    assert_eq!(term_of(&client).await, 1);
    let digest = Digest::of(SERVICE);
    upload(&client, &digest, SERVICE).await;

    // Another leader has begun a term; this one does not know, and its lease still holds.
    let store = super::open(&server).await;
    let (ours, sequence) = store.read_term().await.unwrap();
    let other = TermRecord {
        cluster: ours.unwrap().cluster,
        ..super::term(7, "other")
    };
    store.write_term(&other, sequence).await.unwrap();
    let (code, body) = call(&client, "default.deploy", deploy(&digest, 1, "r1"))
        .await
        .unwrap_err();
    assert_eq!(
        (code, body["error"]["code"].as_str()),
        (503, Some("unavailable")),
        "{body}"
    );
    assert_eq!(term_of(&client).await, 8);
    let fence = store.read_term().await.unwrap().1;
    let loaded = store.load(fence, fence).await.unwrap();
    assert!(loaded.entries.is_empty());
    let deployed = call(&client, "default.deploy", deploy(&digest, 1, "r1"))
        .await
        .unwrap();
    assert_eq!(deployed["workloads"][0]["revision"], 1);

    // Another one holds the lease: nobody answers until that has ended.
    let LeaseView::Held { sequence, .. } = store.read_lease().await.unwrap() else {
        panic!("somebody leads")
    };
    let stolen = store
        .write_lease(&super::lease("other"), sequence, &super::times())
        .await;
    if stolen.is_ok() {
        eventually("a later term", || async {
            let version = call(&client, "_.version", Value::Null).await.ok()?;
            (version["term"] == 9).then_some(())
        })
        .await;
    }
    controller.stop().await;
}

fn deploy_anew(digest: &Digest) -> Value {
    let now = Timestamp::from(std::time::SystemTime::now());
    let mut request = deploy(digest, 1, &format!("anew-{}", now.0));
    request["workloads"][0]["environment"] = json!({ "AT": now.to_string() });
    request
}

async fn upload_again(client: &Client, digest: &Digest) -> Option<()> {
    let js = jetstream::new(client.clone());
    let objects = js.get_object_store(subjects::ARTIFACT_BUCKET).await.ok()?;
    let mut bytes = SERVICE;
    objects
        .put(digest.as_str(), &mut bytes)
        .await
        .ok()
        .map(|_| ())
}
