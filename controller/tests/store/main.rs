//! The store and the controller on a real nats-server: one binary, a server for each test.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod controller;
mod fake_host;
mod plans;
mod server;

use std::time::{Duration, Instant, SystemTime};

use async_nats::jetstream;
use bytes::Bytes;
use futures::StreamExt;
use wasmorch_api::record::{Lease, TermRecord};
use wasmorch_api::{Term, Timestamp, subjects};
use wasmorch_controller::ControllerError;
use wasmorch_controller::lease::LeaseTimes;
use wasmorch_controller::link::Link;
use wasmorch_controller::store::{BATCH_MESSAGES_MAX, Entry, LeaseView, Store, StoreError};

use server::{DEADLINE, Server, eventually};

async fn open(server: &Server) -> Store {
    let link = Link::connect(&server.options(), "test").await.unwrap();
    Store::open(&link, None).await.unwrap()
}

async fn client(server: &Server) -> async_nats::Client {
    // What a leader took with it when it died is asked again soon.
    let options = async_nats::ConnectOptions::new().request_timeout(Some(Duration::from_secs(1)));
    options.connect(server.url()).await.unwrap()
}

fn term(number: u64, leader: &str) -> TermRecord {
    TermRecord {
        cluster: "c1".parse().unwrap(),
        term: Term(number),
        leader: leader.parse().unwrap(),
        at: Timestamp(0),
        formerly: Vec::new(),
    }
}

fn put(key: &str, value: &str) -> Entry {
    Entry {
        key: key.to_owned(),
        value: Some(Bytes::from(value.to_owned())),
    }
}

fn delete(key: &str) -> Entry {
    Entry {
        key: key.to_owned(),
        value: None,
    }
}

fn times() -> LeaseTimes {
    LeaseTimes {
        ttl: Duration::from_secs(1),
        ..LeaseTimes::default()
    }
}

fn lease(leader: &str) -> Lease {
    Lease {
        leader: leader.parse().unwrap(),
        term: Term(0),
    }
}

async fn last_sequence_of(server: &Server, key: &str) -> Option<u64> {
    let js = jetstream::new(client(server).await);
    let stream = js.get_stream(subjects::STATE_STREAM).await.unwrap();
    let message = stream
        .get_last_raw_message_by_subject(&subjects::state(key))
        .await
        .ok()?;
    Some(message.sequence)
}

#[tokio::test]
async fn a_batch_is_stored_whole_and_in_order() {
    let server = Server::start();
    let store = open(&server).await;
    let fence = store.write_term(&term(1, "l1"), 0).await.unwrap();
    let entries: Vec<Entry> = (0..BATCH_MESSAGES_MAX)
        .map(|n| put(&format!("host.h{n}"), "{}"))
        .collect();
    let ack = store.batch(fence, &entries).await.unwrap();
    assert_eq!(ack.last_sequence, fence + BATCH_MESSAGES_MAX as u64);
    assert_eq!(last_sequence_of(&server, "host.h0").await, Some(fence + 1));
    assert_eq!(store.last_sequence().await.unwrap(), ack.last_sequence);

    let one = store
        .batch(fence, &[put("host.h0", "{\"a\":1}")])
        .await
        .unwrap();
    assert_eq!(one.last_sequence, ack.last_sequence + 1);

    let too_many: Vec<Entry> = (0..=BATCH_MESSAGES_MAX)
        .map(|n| put(&format!("host.x{n}"), "{}"))
        .collect();
    let error = store.batch(fence, &too_many).await.unwrap_err();
    assert!(matches!(error, StoreError::TooMany { .. }), "{error}");
}

#[tokio::test]
async fn a_deposed_leader_writes_nothing() {
    let server = Server::start();
    let store = open(&server).await;
    let old = store.write_term(&term(1, "l1"), 0).await.unwrap();
    store.batch(old, &[put("host.a", "1")]).await.unwrap();
    let new = store.write_term(&term(2, "l2"), old).await.unwrap();

    let before = store.last_sequence().await.unwrap();
    let error = store
        .batch(old, &[put("host.a", "2"), put("host.b", "2")])
        .await
        .unwrap_err();
    assert!(matches!(error, StoreError::Fenced), "{error}");
    let error = store.batch(old, &[put("host.a", "2")]).await.unwrap_err();
    assert!(matches!(error, StoreError::Fenced), "{error}");
    assert_eq!(
        store.last_sequence().await.unwrap(),
        before,
        "nothing was stored"
    );
    assert_eq!(last_sequence_of(&server, "host.b").await, None);

    store.batch(new, &[put("host.b", "3")]).await.unwrap();
    let error = store.write_term(&term(2, "l3"), old).await.unwrap_err();
    assert!(
        matches!(error, StoreError::Fenced),
        "a term is begun once: {error}"
    );
}

#[tokio::test]
async fn the_stores_own_time_is_that_of_the_last_lease() {
    let server = Server::start();
    let store = open(&server).await;
    assert_eq!(store.lease_written().await.unwrap(), None);
    // The server's clock is this one.
    let before = Timestamp::from(SystemTime::now());
    let first = store.write_lease(&lease("l1"), 0, &times()).await.unwrap();
    let written = store.lease_written().await.unwrap().unwrap();
    let after = Timestamp::from(SystemTime::now());
    assert!(before <= written && written <= after, "{written}");
    let second = store.write_lease(&lease("l1"), first, &times()).await;
    second.unwrap();
    let renewed = store.lease_written().await.unwrap().unwrap();
    assert!(after <= renewed, "{renewed}");
}

#[tokio::test]
async fn the_lease_is_renewed_ends_and_is_taken_over() {
    let server = Server::start();
    let store = open(&server).await;
    assert_eq!(
        store.read_lease().await.unwrap(),
        LeaseView::Free { sequence: 0 }
    );
    let first = store.write_lease(&lease("l1"), 0, &times()).await.unwrap();
    let error = store
        .write_lease(&lease("l2"), 0, &times())
        .await
        .unwrap_err();
    assert!(matches!(error, StoreError::Fenced), "{error}");
    assert_eq!(
        store.read_lease().await.unwrap(),
        LeaseView::Held {
            lease: lease("l1"),
            sequence: first
        }
    );

    // Renewed beyond what one TTL gives.
    let began = Instant::now();
    let (mut held, mut renewed_at) = (first, began);
    while began.elapsed() < Duration::from_millis(2_500) {
        tokio::time::sleep(Duration::from_millis(400)).await;
        renewed_at = Instant::now();
        held = store
            .write_lease(&lease("l1"), held, &times())
            .await
            .unwrap();
    }

    // Not renewed any more: it ends, never early, and leaves nothing that is in the way.
    let sequence = eventually("the end of the lease", || async {
        match store.read_lease().await.unwrap() {
            LeaseView::Free { sequence } => Some(sequence),
            LeaseView::Held { .. } => None,
        }
    })
    .await;
    assert!(
        renewed_at.elapsed() >= times().ttl,
        "it ended early: {:?}",
        renewed_at.elapsed()
    );
    let late = store
        .write_lease(&lease("l1"), held, &times())
        .await
        .unwrap_err();
    assert!(
        matches!(late, StoreError::Fenced),
        "a late renewal is refused: {late}"
    );
    let taken = store
        .write_lease(&lease("l2"), sequence, &times())
        .await
        .unwrap();

    // Given back: the marker's sequence is what the next must expect.
    store.drop_lease(taken).await.unwrap();
    let LeaseView::Free { sequence } = store.read_lease().await.unwrap() else {
        panic!("the lease was given back")
    };
    assert!(sequence > taken);
    store
        .write_lease(&lease("l1"), sequence, &times())
        .await
        .unwrap();
}

#[tokio::test]
async fn tables_arrive_with_their_sequence_after_they_are_stored() {
    let server = Server::start();
    let store = open(&server).await;
    let client = client(&server).await;
    let mut tables = client.subscribe("wasmorch.v1.>").await.unwrap();
    client.flush().await.unwrap();
    let fence = store.write_term(&term(1, "l1"), 0).await.unwrap();
    let written = [
        put("workload.shop.web", "{}"),
        put("pub.routes.shop.web", "{\"r\":1}"),
    ];
    let ack = store.batch(fence, &written).await.unwrap();
    store
        .batch(fence, &[delete("pub.routes.shop.web")])
        .await
        .unwrap();

    let mut next = async || {
        tokio::time::timeout(DEADLINE, tables.next())
            .await
            .expect("a table arrives")
            .unwrap()
    };
    let table = next().await;
    assert_eq!(table.subject.as_str(), "wasmorch.v1.routes.shop.web");
    assert_eq!(table.payload, "{\"r\":1}");
    let headers = table.headers.unwrap();
    assert_eq!(
        headers.get("Nats-Sequence").unwrap().as_str(),
        ack.last_sequence.to_string()
    );
    assert_eq!(
        headers.get("Nats-Subject").unwrap().as_str(),
        "$KV.wasmorch_state.pub.routes.shop.web"
    );

    let gone = next().await;
    assert_eq!(gone.subject.as_str(), "wasmorch.v1.routes.shop.web");
    assert!(gone.payload.is_empty());
    let headers = gone.headers.unwrap();
    assert_eq!(headers.get("KV-Operation").unwrap().as_str(), "DEL");
}

#[tokio::test]
async fn a_new_leader_reads_everything_that_was_acknowledged() {
    let server = Server::start();
    let store = open(&server).await;
    let fence = store.write_term(&term(1, "l1"), 0).await.unwrap();
    store
        .write_lease(&lease("l1"), 0, &LeaseTimes::default())
        .await
        .unwrap();
    let entries: Vec<Entry> = (0..700)
        .map(|n| put(&format!("host.h{n}"), &n.to_string()))
        .collect();
    let ack = store.batch(fence, &entries).await.unwrap();
    store
        .batch(fence, &[delete("host.h3"), put("host.h4", "new")])
        .await
        .unwrap();

    let next = store.write_term(&term(2, "l2"), fence).await.unwrap();
    let loaded = store.load(next, next).await.unwrap();
    assert_eq!(loaded.last_sequence, next);
    assert_eq!(loaded.entries.len(), 699);
    let find = |key: &str| loaded.entries.iter().find(|entry| entry.key == key);
    assert!(find("host.h3").is_none(), "deleted");
    assert_eq!(find("host.h4").unwrap().value, "new");
    assert_eq!(find("host.h4").unwrap().sequence, ack.last_sequence + 2);
    assert_eq!(find("host.h699").unwrap().value, "699");
    assert!(find("term").is_none() && find("lease").is_none());

    let newest = store.write_term(&term(3, "l3"), next).await.unwrap();
    let error = store.load(next, next).await.unwrap_err();
    assert!(
        matches!(error, StoreError::Fenced),
        "another term has begun: {error}"
    );

    // In the term, what it has written itself is behind the fence.
    let own = [put("host.h4", "newer"), put("host.h700", "700")];
    let last = store.batch(newest, &own).await.unwrap().last_sequence;
    let loaded = store.load(newest, last).await.unwrap();
    assert_eq!((loaded.last_sequence, loaded.entries.len()), (last, 700));
    let newer = loaded.entries.iter().find(|entry| entry.key == "host.h4");
    assert_eq!(newer.unwrap().value, "newer");
}

#[tokio::test]
async fn the_bucket_is_a_kv_bucket_for_other_clients() {
    let server = Server::start();
    let store = open(&server).await;
    let fence = store.write_term(&term(1, "l1"), 0).await.unwrap();
    store
        .batch(fence, &[put("host.a", "1"), put("host.b", "2")])
        .await
        .unwrap();
    store.batch(fence, &[delete("host.b")]).await.unwrap();
    let js = jetstream::new(client(&server).await);
    let bucket = js.get_key_value(subjects::STATE_BUCKET).await.unwrap();
    assert_eq!(bucket.get("host.a").await.unwrap().unwrap(), "1");
    assert_eq!(bucket.get("host.b").await.unwrap(), None);
}

#[tokio::test]
async fn a_full_store_is_told_from_a_newer_leader() {
    let server = Server::start();
    let store = open(&server).await;
    let fence = store.write_term(&term(1, "l1"), 0).await.unwrap();
    let js = jetstream::new(client(&server).await);
    let mut config = js
        .get_stream(subjects::STATE_STREAM)
        .await
        .unwrap()
        .cached_info()
        .config
        .clone();
    config.max_bytes = 4_096;
    js.update_stream(&config).await.unwrap();
    let error = store
        .batch(fence, &[put("host.a", &"x".repeat(8_192))])
        .await
        .unwrap_err();
    assert!(matches!(error, StoreError::Full(_)), "{error}");

    let large = put("host.a", &"x".repeat(2 * 1024 * 1024));
    let error = store.batch(fence, &[large]).await.unwrap_err();
    assert!(matches!(error, StoreError::TooLarge { .. }), "{error}");

    // Opening again puts the settings right.
    let store = open(&server).await;
    store
        .batch(fence, &[put("host.a", &"x".repeat(8_192))])
        .await
        .unwrap();
}

#[tokio::test]
async fn a_stream_that_cannot_hold_state_is_refused() {
    let server = Server::start();
    let js = jetstream::new(client(&server).await);
    js.create_stream(jetstream::stream::Config {
        name: subjects::STATE_STREAM.to_owned(),
        subjects: vec![subjects::state(">")],
        storage: jetstream::stream::StorageType::Memory,
        ..Default::default()
    })
    .await
    .unwrap();
    let link = Link::connect(&server.options(), "test").await.unwrap();
    let error = Store::open(&link, None).await.unwrap_err();
    assert!(
        matches!(&error, ControllerError::WrongStream { .. }),
        "{error}"
    );
    assert!(error.to_string().contains("memory"), "{error}");
}

#[tokio::test]
async fn servers_that_do_not_do_are_named() {
    let server = Server::without_jetstream();
    let link = Link::connect(&server.options(), "test").await.unwrap();
    let error = Store::open(&link, None).await.unwrap_err();
    assert!(
        matches!(error, ControllerError::NoJetStream { .. }),
        "{error}"
    );
    let options = server.options();
    drop(server);
    let error = Link::connect(&options, "test").await.unwrap_err();
    assert!(
        matches!(error, ControllerError::Unreachable { .. }),
        "{error}"
    );
}

#[tokio::test]
async fn a_server_that_is_too_old_is_named() {
    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("nats://{}", listener.local_addr().unwrap());
    let old = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let (read, mut write) = stream.into_split();
        let info = "INFO {\"server_id\":\"x\",\"version\":\"2.11.8\",\"proto\":1,\"headers\":true,\"max_payload\":1048576}\r\n";
        write.write_all(info.as_bytes()).await.unwrap();
        let mut lines = BufReader::new(read).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            if line.starts_with("PING") {
                write.write_all(b"PONG\r\n").await.unwrap();
            }
        }
    });
    let options = wasmorch_api::NatsOptions {
        url,
        ..Default::default()
    };
    let link = Link::connect(&options, "test").await.unwrap();
    let error = Store::open(&link, None).await.unwrap_err();
    assert!(
        matches!(&error, ControllerError::TooOld { found } if found == "2.11.8"),
        "{error}"
    );
    old.abort();
}
