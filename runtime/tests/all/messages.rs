//! The messages kind, and the consumer: allowed, not granted, denied.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use wasmorch_runtime::{Ended, Message, MessagesReplica, Messaging, MessagingError, ReplicaConfig};

use crate::support::{artifact, runtime};

/// Keeps what is published; refuses subjects under `secret.`, panics for `panic`.
#[derive(Default)]
pub(crate) struct Broker(pub(crate) Mutex<Vec<Message>>);

#[async_trait::async_trait]
impl Messaging for Broker {
    async fn publish(&self, message: Message) -> Result<(), MessagingError> {
        assert_ne!(message.subject, "panic", "a host call that panics");
        if message.subject.starts_with("secret.") {
            let why = format!("denied: {}", message.subject);
            return Err(MessagingError::NotGranted(why));
        }
        self.0.lock().unwrap().push(message);
        Ok(())
    }

    async fn request(&self, _: &str, _: Bytes, _: Duration) -> Result<Message, MessagingError> {
        Err(MessagingError::Failed("no one answers".into()))
    }
}

fn message(body: &str, reply_to: Option<&str>) -> Message {
    Message {
        subject: "shop.ask".into(),
        body: body.to_owned().into(),
        reply_to: reply_to.map(str::to_owned),
    }
}

async fn echo(messaging: Option<Arc<dyn Messaging>>) -> MessagesReplica {
    let config = ReplicaConfig {
        messaging,
        ..ReplicaConfig::new("test")
    };
    MessagesReplica::prepare(&runtime(), &artifact("echo-messages").await, config).unwrap()
}

#[tokio::test]
async fn a_message_is_answered() {
    let broker = Arc::new(Broker::default());
    let replica = echo(Some(broker.clone())).await;
    replica
        .handle(message("hi", Some("inbox.1")))
        .await
        .unwrap();
    replica
        .handle(message("no answer wanted", None))
        .await
        .unwrap();
    let published = broker.0.lock().unwrap().clone();
    assert_eq!(published.len(), 1);
    assert_eq!(
        (published[0].subject.as_str(), &published[0].body[..]),
        ("inbox.1", &b"echo: hi"[..])
    );
    let usage = replica.usage();
    assert_eq!(
        (usage.started_total, usage.failed_total, usage.memory_bytes),
        (2, 0, 0)
    );
}

#[tokio::test]
async fn a_trap_loses_the_message_only() {
    let replica = echo(None).await;
    let ended = replica.handle(message("trap", None)).await.unwrap_err();
    assert!(matches!(ended, Ended::Trap { .. }), "{ended:?}");
    replica.handle(message("fine", None)).await.unwrap();
    assert_eq!(replica.usage().failed_total, 1);
}

#[tokio::test]
async fn publishing_without_a_grant_fails_in_the_guest() {
    let ended = echo(None)
        .await
        .handle(message("hi", Some("inbox.1")))
        .await
        .unwrap_err();
    assert_eq!(
        ended,
        Ended::Guest(
            "not granted: subject `inbox.1`; grant it with `--grant publish=inbox.1`".into()
        )
    );
}

#[tokio::test]
async fn a_denied_subject_fails_in_the_guest() {
    let replica = echo(Some(Arc::new(Broker::default()))).await;
    let ended = replica
        .handle(message("hi", Some("secret.1")))
        .await
        .unwrap_err();
    assert_eq!(ended, Ended::Guest("denied: secret.1".into()));
}

#[tokio::test]
async fn a_panic_in_a_host_call_is_a_failed_message() {
    let replica = echo(Some(Arc::new(Broker::default()))).await;
    let ended = replica
        .handle(message("hi", Some("panic")))
        .await
        .unwrap_err();
    assert!(matches!(ended, Ended::Internal(_)), "{ended:?}");
    replica
        .handle(message("hi", Some("inbox.1")))
        .await
        .unwrap();
    assert_eq!(replica.usage().memory_bytes, 0);
}
