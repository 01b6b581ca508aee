//! A durable consumer of a stream: what is taken from it, and what becomes of each message.
//!
//! A message that is neither acknowledged, given back nor given up comes again after [`ACK_WAIT`]:
//! whoever dies with one in hand has lost nothing.

use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::AckKind;
use async_nats::jetstream::Message;
use async_nats::jetstream::consumer::{AckPolicy, Consumer, pull};
use async_nats::jetstream::context::GetStreamByNameErrorKind;
use bytes::Bytes;
use futures::StreamExt as _;
use tokio::time::timeout;

use super::jetstream::{JetStream, refused};
use super::{Delivery, Link, LinkError, delivery};

/// A message in hand is told to be so at least this often, else it comes again.
pub(in crate::runner) const ACK_WAIT: Duration = Duration::from_secs(30);
/// How long one question for messages stands at the server.
const ASK_FOR: Duration = Duration::from_secs(1);
/// For an answer of the server.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Which messages of which stream, under which name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::runner) struct DurableConfig {
    pub(in crate::runner) stream: String,
    pub(in crate::runner) name: String,
    pub(in crate::runner) subject: String,
    pub(in crate::runner) in_flight_max: u32,
}

/// A consumer that is there.
#[derive(Clone)]
pub(in crate::runner) struct Durable {
    jetstream: JetStream,
    consumer: Consumer<pull::Config>,
}

/// A message in hand.
pub(in crate::runner) struct Taken {
    pub(in crate::runner) delivery: Delivery,
    /// Which delivery of the message this is, from 1.
    pub(in crate::runner) attempt: u64,
    message: Message,
    jetstream: JetStream,
}

impl Link {
    /// Finds the durable consumer or makes it, with these settings.
    pub(in crate::runner) async fn durable(
        &self,
        config: &DurableConfig,
    ) -> Result<Durable, LinkError> {
        let jetstream = self.jetstream().await?;
        let Some(stream) = jetstream.find(&config.stream).await? else {
            return Err(LinkError::Refused(format!(
                "there is no stream {}: make it, for instance with `nats stream add`",
                config.stream
            )));
        };
        let consumer = pull::Config {
            durable_name: Some(config.name.clone()),
            description: Some("wasmorch: a messages workload".to_owned()),
            filter_subject: config.subject.clone(),
            ack_policy: AckPolicy::Explicit,
            ack_wait: ACK_WAIT,
            // How often a message is tried is decided here, where it can be told why it was given up.
            max_deliver: -1,
            max_ack_pending: i64::from(config.in_flight_max),
            ..pull::Config::default()
        };
        let consumer = stream.create_consumer(consumer).await;
        let consumer = consumer
            .map_err(|error| LinkError::Refused(format!("consumer {}: {error}", config.name)))?;
        Ok(Durable {
            jetstream,
            consumer,
        })
    }
}

impl Durable {
    /// How many messages wait: for this workload, and given to nobody yet.
    pub(in crate::runner) async fn waiting(&self) -> Result<u64, LinkError> {
        let info = timeout(ANSWER_TIMEOUT, self.consumer.get_info()).await;
        match info {
            Ok(Ok(info)) => Ok(info.num_pending),
            Ok(Err(error)) => Err(LinkError::Refused(error.to_string())),
            Err(_) => Err(LinkError::Disconnected),
        }
    }

    /// Takes up to `count` messages, each given to `each` as it comes. Returns when that many have
    /// come, or after about a second.
    pub(in crate::runner) async fn take(
        &self,
        count: usize,
        mut each: impl FnMut(Taken),
    ) -> Result<(), LinkError> {
        let asked = self.consumer.batch().max_messages(count).expires(ASK_FOR);
        let mut batch = asked.messages().await.map_err(|error| refused(&error))?;
        while let Some(message) = batch.next().await {
            let message = message.map_err(|error| LinkError::Refused(error.to_string()))?;
            let attempt = message.info().map_err(|error| refused(&error))?.delivered;
            each(Taken {
                delivery: Delivery {
                    // It is where the server wants to hear of the message: nobody's to see.
                    reply: None,
                    ..delivery(message.message.clone())
                },
                attempt: u64::try_from(attempt).unwrap_or(1),
                message,
                jetstream: self.jetstream.clone(),
            });
        }
        Ok(())
    }
}

impl Taken {
    /// It was handled: it does not come again.
    pub(in crate::runner) async fn done(&self) {
        self.say(AckKind::Ack, true).await;
    }

    /// It shall come again, after a while.
    pub(in crate::runner) async fn again(&self, after: Duration) {
        self.say(AckKind::Nak(Some(after)), false).await;
    }

    /// It was given up: it does not come again.
    pub(in crate::runner) async fn given_up(&self) {
        self.say(AckKind::Term, true).await;
    }

    /// It is still in hand.
    pub(in crate::runner) async fn working(&self) {
        self.say(AckKind::Progress, false).await;
    }

    async fn say(&self, what: AckKind, confirmed: bool) {
        let said = async {
            if confirmed {
                self.message.double_ack_with(what).await
            } else {
                self.message.ack_with(what).await
            }
        };
        match timeout(ANSWER_TIMEOUT, said).await {
            Ok(Ok(())) => {}
            // The message comes again: what was done for it may be done twice.
            Ok(Err(error)) => tracing::debug!(%error, "an acknowledgement did not arrive"),
            Err(_) => tracing::debug!("an acknowledgement was not confirmed"),
        }
    }

    /// Puts a copy elsewhere, with these headers added: stored, where a stream takes that subject.
    pub(in crate::runner) async fn copy_to(
        &self,
        subject: &str,
        added: &[(&str, String)],
    ) -> Result<(), LinkError> {
        let mut headers = self.message.headers.clone().unwrap_or_default();
        // What a store was told about the original does not hold for the copy.
        headers = without_nats(&headers);
        for (name, value) in added {
            headers.insert(*name, value.as_str());
        }
        let body: Bytes = self.message.payload.clone();
        let put = async {
            // Asked first: who only listens never says that it has a message.
            match self.jetstream.context.stream_by_subject(subject).await {
                Ok(_) => {
                    let stored = self.jetstream.store(subject, headers, body).await;
                    stored.map(|_| ()).map_err(|error| refused(&error))
                }
                Err(error) if error.kind() == GetStreamByNameErrorKind::NotFound => {
                    let client = &self.jetstream.client;
                    let published = client.publish_with_headers(subject.to_owned(), headers, body);
                    published.await.map_err(|error| refused(&error))?;
                    client.flush().await.map_err(|error| refused(&error))
                }
                Err(error) => Err(refused(&error)),
            }
        };
        timeout(ANSWER_TIMEOUT, put)
            .await
            .unwrap_or(Err(LinkError::TimedOut(ANSWER_TIMEOUT)))
    }
}

fn without_nats(headers: &HeaderMap) -> HeaderMap {
    let mut kept = HeaderMap::new();
    for (name, values) in headers.iter() {
        let text: &str = name.as_ref();
        if text.to_ascii_lowercase().starts_with("nats-") {
            continue;
        }
        for value in values {
            kept.append(name.clone(), value.clone());
        }
    }
    kept
}
