//! Messages from JetStream: acknowledged after the handler, tried again, given up, never lost.

use std::time::Duration;

use async_nats::jetstream::{self, stream};
use futures::StreamExt as _;
use tokio::time::{Instant, timeout};
use wasmorch_api::spec::Subscription;
use wasmorch_api::{Kind, WorkloadSpec};
use wasmorch_host::runner::protocol::ToRunner;

use crate::support::nats::NatsServer;
use crate::support::{Bench, DEADLINE, spec};

fn taking(subject: &str, attempts: u32, dead_letter: Option<&str>) -> WorkloadSpec {
    let mut spec = spec();
    spec.bindings.subscribe = vec![Subscription {
        subject: subject.into(),
        stream: Some("SHOP".into()),
        max_in_flight: Some(8),
        attempts: Some(attempts),
        dead_letter: dead_letter.map(str::to_owned),
        ..Subscription::default()
    }];
    spec.bindings.publish = vec!["shop.seen".into()];
    spec
}

async fn shop(nats: &NatsServer) -> jetstream::Context {
    let js = jetstream::new(nats.client().await);
    js.create_stream(stream::Config {
        name: "SHOP".into(),
        subjects: vec!["shop.orders.*".into()],
        ..stream::Config::default()
    })
    .await
    .unwrap();
    js
}

async fn put(js: &jetstream::Context, subject: &str, body: &str) {
    let stored = js.publish(subject.to_owned(), body.to_owned().into()).await;
    stored.unwrap().await.unwrap();
}

/// Waits until the workload's consumer has nothing left, in hand or to come.
async fn settled(js: &jetstream::Context) {
    let until = Instant::now() + DEADLINE;
    let stream = js.get_stream("SHOP").await.unwrap();
    loop {
        let info = stream.consumer_info("default_echo_SHOP").await.unwrap();
        if info.num_pending == 0 && info.num_ack_pending == 0 {
            return;
        }
        assert!(Instant::now() < until, "{info:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn messages_are_handled_once_each_and_the_consumer_is_kept() {
    let nats = NatsServer::start_jetstream().await;
    let js = shop(&nats).await;
    for number in 0..50 {
        put(&js, "shop.orders.eu", &format!("tell before {number}")).await;
    }
    let client = nats.client().await;
    let mut seen = client.subscribe("shop.seen").await.unwrap();
    client.flush().await.unwrap();
    let mut bench = Bench::start(Some(nats.options()));
    let spec = taking("shop.orders.*", 3, None);
    let first = bench
        .serve("echo", Kind::Messages, "echo-messages", spec.clone())
        .await;
    for number in 0..50 {
        put(&js, "shop.orders.us", &format!("tell after {number}")).await;
    }
    let mut bodies = Vec::new();
    while bodies.len() < 100 {
        let message = timeout(DEADLINE, seen.next()).await.unwrap().unwrap();
        bodies.push(String::from_utf8(message.payload.to_vec()).unwrap());
    }
    settled(&js).await;
    bodies.sort();
    bodies.dedup();
    assert_eq!(bodies.len(), 100);

    // The next replica goes on where this one ended.
    bench.drain(&first).await;
    bench.stopped(&first).await;
    put(&js, "shop.orders.eu", "tell meanwhile").await;
    bench
        .serve("echo", Kind::Messages, "echo-messages", spec)
        .await;
    let message = timeout(DEADLINE, seen.next()).await.unwrap().unwrap();
    assert_eq!(&message.payload[..], b"echo: tell meanwhile");
    settled(&js).await;
    bench.end().await;
}

#[tokio::test]
async fn a_message_whose_handler_traps_is_tried_again_and_then_a_dead_letter() {
    let nats = NatsServer::start_jetstream().await;
    let js = shop(&nats).await;
    let client = nats.client().await;
    let mut dead = client.subscribe("shop.dead").await.unwrap();
    client.flush().await.unwrap();
    let mut bench = Bench::start(Some(nats.options()));
    let spec = taking("shop.orders.*", 2, Some("shop.dead"));
    let echo = bench
        .serve("echo", Kind::Messages, "echo-messages", spec)
        .await;
    put(&js, "shop.orders.eu", "trap").await;
    put(&js, "shop.orders.eu", "fine").await;
    let letter = timeout(DEADLINE, dead.next()).await.unwrap().unwrap();
    assert_eq!(&letter.payload[..], b"trap");
    let headers = letter.headers.unwrap();
    let header = |name: &str| headers.get(name).map(|value| value.as_str().to_owned());
    assert_eq!(
        header("Wasmorch-Subject").as_deref(),
        Some("shop.orders.eu")
    );
    assert_eq!(header("Wasmorch-Attempts").as_deref(), Some("2"));
    let reason = header("Wasmorch-Reason").unwrap();
    assert!(reason.contains("trapped"), "{reason}");
    settled(&js).await;
    bench
        .line(&echo, |line| {
            line.text.contains("is given up after 2 attempts")
        })
        .await;
    bench.end().await;
}

#[tokio::test]
async fn a_dead_letter_is_stored_once_where_a_stream_takes_it() {
    let nats = NatsServer::start_jetstream().await;
    let js = shop(&nats).await;
    let mut letters = js
        .create_stream(stream::Config {
            name: "DEAD".into(),
            subjects: vec!["shop.dead".into()],
            ..stream::Config::default()
        })
        .await
        .unwrap();
    let mut bench = Bench::start(Some(nats.options()));
    let spec = taking("shop.orders.*", 1, Some("shop.dead"));
    bench
        .serve("echo", Kind::Messages, "echo-messages", spec)
        .await;
    put(&js, "shop.orders.eu", "trap").await;
    let until = Instant::now() + DEADLINE;
    while letters.info().await.unwrap().state.messages == 0 {
        assert!(Instant::now() < until, "no letter");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    settled(&js).await;
    assert_eq!(letters.info().await.unwrap().state.messages, 1);
    bench.end().await;
}

#[tokio::test]
async fn a_runner_that_dies_with_messages_in_hand_loses_none() {
    let nats = NatsServer::start_jetstream().await;
    let js = shop(&nats).await;
    let mut spec = taking("shop.orders.*", 5, None);
    spec.resources.timeout = wasmorch_api::HumanDuration::secs(60);
    let mut first = Bench::start(Some(nats.options()));
    let echo = first
        .serve("echo", Kind::Messages, "echo-messages", spec.clone())
        .await;
    put(&js, "shop.orders.eu", "sleep").await;
    first.usage_until(&echo, |usage| usage.in_flight > 0).await;
    // Cut off in the middle of the handler.
    first
        .send(ToRunner::Stop {
            replica: echo.clone(),
        })
        .await;
    first.stopped(&echo).await;
    let stream = js.get_stream("SHOP").await.unwrap();
    let info = stream.consumer_info("default_echo_SHOP").await.unwrap();
    assert_eq!(
        info.num_ack_pending + usize::try_from(info.num_pending).unwrap(),
        1
    );
    first.end().await;
}

#[tokio::test]
async fn no_more_are_in_hand_than_may_be() {
    let nats = NatsServer::start_jetstream().await;
    let js = shop(&nats).await;
    for _ in 0..20 {
        put(&js, "shop.orders.eu", "sleep").await;
    }
    let mut spec = taking("shop.orders.*", 5, None);
    spec.resources.timeout = wasmorch_api::HumanDuration::secs(60);
    let mut bench = Bench::start(Some(nats.options()));
    let echo = bench
        .serve("echo", Kind::Messages, "echo-messages", spec)
        .await;
    bench.usage_until(&echo, |usage| usage.in_flight >= 8).await;
    // One more that is answered at once would be handed over now, if there were room.
    let stream = js.get_stream("SHOP").await.unwrap();
    for _ in 0..10 {
        put(&js, "shop.orders.us", "tell").await;
        let info = stream.consumer_info("default_echo_SHOP").await.unwrap();
        assert_eq!(info.num_ack_pending, 8, "{info:?}");
    }
    bench.usage_until(&echo, |usage| usage.in_flight == 8).await;
    bench
        .send(ToRunner::Stop {
            replica: echo.clone(),
        })
        .await;
    bench.stopped(&echo).await;
    bench.end().await;
}

#[tokio::test]
async fn without_its_stream_a_workload_says_what_is_missing() {
    let nats = NatsServer::start_jetstream().await;
    let mut bench = Bench::start(Some(nats.options()));
    let spec = taking("shop.orders.*", 2, None);
    let echo = bench
        .prepare("echo", Kind::Messages, "echo-messages", spec)
        .await
        .unwrap();
    bench.begin(&echo).await;
    let (ready, why) = bench.health(&echo).await;
    assert!(!ready && why.unwrap().contains("there is no stream SHOP"));
    // Made meanwhile, it is found.
    shop(&nats).await;
    assert_eq!(bench.health(&echo).await, (true, None));
    bench.end().await;
}
