//! What is told to a host and what it is asked: that neither waits for the other.

use std::path::PathBuf;

use async_nats::ConnectOptions;
use async_nats::jetstream;
use tokio::sync::mpsc::Receiver;
use wasmorch_api::messages::{HeardNote, WithdrawnNote};
use wasmorch_api::{Term, Timestamp};

use super::*;

/// A stream of what is sent to it.
fn fed() -> (mpsc::Sender<Message>, BoxStream<'static, Message>) {
    let (feed, fed) = mpsc::channel(1);
    let next = async |mut fed: Receiver<Message>| Some((fed.recv().await?, fed));
    (feed, futures::stream::unfold(fed, next).boxed())
}

/// To nobody: no answer is awaited.
fn message(verb: &str, body: &impl Serialize) -> Message {
    Message {
        subject: format!("wasmorch.v1.host.h1.{verb}").into(),
        reply: None,
        payload: serde_json::to_vec(body).unwrap().into(),
        headers: None,
        status: None,
        description: None,
        length: 0,
    }
}

/// A link whose server is never there.
async fn unconnected() -> Link {
    let options = ConnectOptions::new().retry_on_initial_connect();
    let client = options.connect("nats://127.0.0.1:1").await.unwrap();
    Link {
        context: jetstream::new(client.clone()),
        client,
        api: "$JS.API".into(),
        host: "h1".parse().unwrap(),
    }
}

#[tokio::test]
async fn questions_that_hang_keep_no_note_from_the_host() {
    let (events, mut told) = mpsc::channel(REFUSALS_MAX);
    let nowhere = PathBuf::from("/nowhere");
    let answers = Answers {
        link: unconnected().await,
        shared: Arc::default(),
        events,
        logs: LogReader::new(nowhere.clone()),
        artifacts: Artifacts::new(nowhere),
    };
    let (requests, fed) = fed();
    let subscriptions = Subscriptions {
        placements: futures::stream::pending().boxed(),
        routes: futures::stream::pending().boxed(),
        endpoints: futures::stream::pending().boxed(),
        requests: fed,
    };
    let shared = answers.shared.clone();
    let listening = tokio::spawn(listen(answers, subscriptions));

    let mut hanging = Vec::new();
    for _ in 0..REQUESTS_MAX {
        let question = HostStatusRequest { cursor: None };
        requests.send(message("status", &question)).await.unwrap();
        let Some(LinkEvent::Status { reply, .. }) = told.recv().await else {
            panic!("no question");
        };
        hanging.push(reply);
    }
    let heard = HeardNote {
        term: Term(3),
        boot: "b1".parse().unwrap(),
        at: Timestamp(7),
        sequence: 9,
    };
    let sync = SyncRequest {
        term: Term(3),
        sequence: 11,
    };
    let withdrawn = WithdrawnNote { set: Some(9) };
    requests.send(message("sync", &sync)).await.unwrap();
    requests.send(message("heard", &heard)).await.unwrap();
    requests
        .send(message("withdrawn", &withdrawn))
        .await
        .unwrap();
    // Taken once the one before has been: this one more is refused.
    let question = HostStatusRequest { cursor: None };
    requests.send(message("status", &question)).await.unwrap();
    requests.send(message("status", &question)).await.unwrap();
    assert!(matches!(told.try_recv(), Ok(LinkEvent::Heard(note)) if note == heard));
    assert!(matches!(told.try_recv(), Ok(LinkEvent::Withdrawn(note)) if note == withdrawn));
    assert!(told.try_recv().is_err(), "eight are being answered");
    let wanted = shared
        .wanted_sequence
        .load(std::sync::atomic::Ordering::Relaxed);
    assert_eq!(wanted, 11);
    listening.abort();
    drop(hanging);
}
