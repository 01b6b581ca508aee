//! The link to NATS: connecting, subscriptions, publishing, requests.
//!
//! Owns the connection. The rest of the crate sees [`Inbound`] messages and plain header pairs;
//! `async_nats` is named here and in the store only. Every operation ends: with its result or
//! after a bounded time, because a client that is reconnecting otherwise waits for as long as the
//! server is away.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_nats::connection::State;
use async_nats::{ConnectErrorKind, ConnectOptions, Event, HeaderMap};
use bytes::Bytes;
use futures::StreamExt;
use wasmorch_api::NatsOptions;

use crate::error::ControllerError;

/// How long one operation on the link may take: longer than a reconnect to a server that has
/// just restarted, shorter than what a person waits for an answer (10 s).
const LINK_TIMEOUT: Duration = Duration::from_secs(5);
/// Reconnecting is tried at least this often: a leader that comes back late loses its lease.
const RECONNECT_DELAY_MAX: Duration = Duration::from_secs(1);
/// A dead peer is noticed after two of these without an answer.
const PING_EVERY: Duration = Duration::from_secs(5);
/// Messages kept for one subscription that is not read: ten seconds of 6,100 heartbeats.
const SUBSCRIPTION_MESSAGES_MAX: usize = 65_536;

/// Why an operation on the link failed.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// Nobody listens on that subject.
    #[error("nobody answers on {0}")]
    NoResponders(String),
    /// No result in time; whether it was carried out is unknown.
    #[error("no answer in time on {0}")]
    TimedOut(String),
    /// The message is over the server's limit.
    #[error("a message of {bytes} bytes on {subject} is over the server's limit of {max}")]
    TooLarge {
        /// Where to.
        subject: String,
        /// How large.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// Anything else: the connection is closed, the subject is not legal.
    #[error("NATS failed on {subject}: {what}")]
    Failed {
        /// Where to.
        subject: String,
        /// What it said.
        what: String,
    },
}

/// A connection, cheap to clone.
#[derive(Debug, Clone)]
pub struct Link {
    client: async_nats::Client,
    url: Arc<str>,
    connected: Arc<AtomicBool>,
}

/// One message that came in.
#[derive(Debug, Clone)]
pub struct Inbound {
    /// Where it was sent.
    pub subject: String,
    /// Where the answer goes.
    pub reply: Option<String>,
    /// The payload.
    pub body: Bytes,
}

/// A subscription; dropping it unsubscribes.
#[derive(Debug)]
pub struct Subscription(async_nats::Subscriber);

impl Subscription {
    /// The next message; `None` when the connection is closed for good. Safe to cancel.
    pub async fn next(&mut self) -> Option<Inbound> {
        self.0.next().await.map(|message| Inbound {
            subject: message.subject.to_string(),
            reply: message.reply.map(|reply| reply.to_string()),
            body: message.payload,
        })
    }
}

impl Link {
    /// Connects once. After that the client reconnects by itself for as long as it lives.
    pub async fn connect(options: &NatsOptions, name: &str) -> Result<Self, ControllerError> {
        let url = options.shown();
        let connected = Arc::new(AtomicBool::new(true));
        let mut connect = match &options.creds {
            Some(path) => ConnectOptions::with_credentials_file(path)
                .await
                .map_err(|source| ControllerError::Credentials {
                    path: path.clone(),
                    source,
                })?,
            None => ConnectOptions::new(),
        };
        connect = connect
            .name(name)
            .ping_interval(PING_EVERY)
            .connection_timeout(LINK_TIMEOUT)
            .request_timeout(Some(LINK_TIMEOUT))
            .subscription_capacity(SUBSCRIPTION_MESSAGES_MAX)
            .reconnect_delay_callback(reconnect_delay)
            .event_callback({
                let connected = connected.clone();
                let url = url.clone();
                move |event| {
                    note_event(&event, &connected, &url);
                    async {}
                }
            });
        let servers: Vec<&str> = options.url.split(',').map(str::trim).collect();
        let client = connect
            .connect(servers)
            .await
            .map_err(|error| match error.kind() {
                ConnectErrorKind::Authentication | ConnectErrorKind::AuthorizationViolation => {
                    ControllerError::Denied {
                        url: url.clone(),
                        source: Box::new(error),
                    }
                }
                _ => ControllerError::Unreachable {
                    url: url.clone(),
                    source: Box::new(error),
                },
            })?;
        Ok(Self {
            client,
            url: url.into(),
            connected,
        })
    }

    /// Where the link goes, for messages; without a password.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Whether the connection stands now.
    pub fn is_connected(&self) -> bool {
        self.connected.load(Ordering::Relaxed) && self.client.connection_state() == State::Connected
    }

    /// The largest message the server takes, headers included.
    pub fn message_bytes_max(&self) -> usize {
        self.client.max_payload()
    }

    pub(crate) fn client(&self) -> &async_nats::Client {
        &self.client
    }

    /// Subscribes; with a queue group, only one of its members gets each message.
    pub async fn subscribe(
        &self,
        subject: &str,
        queue_group: Option<&str>,
    ) -> Result<Subscription, LinkError> {
        let subscribing = async {
            let subscriber = match queue_group {
                Some(group) => {
                    self.client
                        .queue_subscribe(subject.to_owned(), group.to_owned())
                        .await
                }
                None => self.client.subscribe(subject.to_owned()).await,
            };
            subscriber
                .map(Subscription)
                .map_err(|error| failed(subject, &error))
        };
        within(subject, subscribing).await
    }

    /// Publishes. It says that the message was handed over, not that it arrived.
    pub async fn publish(
        &self,
        subject: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> Result<(), LinkError> {
        self.fits(subject, headers, body.len())?;
        let publishing = async {
            let sent = if headers.is_empty() {
                self.client.publish(subject.to_owned(), body).await
            } else {
                self.client
                    .publish_with_headers(subject.to_owned(), header_map(headers), body)
                    .await
            };
            sent.map_err(|error| failed(subject, &error))
        };
        within(subject, publishing).await
    }

    /// Asks, and waits for one answer.
    pub async fn request(&self, subject: &str, body: Bytes) -> Result<Bytes, LinkError> {
        self.fits(subject, &[], body.len())?;
        let asking = async {
            use async_nats::RequestErrorKind::{NoResponders, TimedOut};
            match self.client.request(subject.to_owned(), body).await {
                Ok(message) => Ok(message.payload),
                Err(error) => Err(match error.kind() {
                    NoResponders => LinkError::NoResponders(subject.to_owned()),
                    TimedOut => LinkError::TimedOut(subject.to_owned()),
                    _ => failed(subject, &error),
                }),
            }
        };
        within(subject, asking).await
    }

    /// Waits until what was handed over has been written to the server.
    pub async fn flush(&self) -> Result<(), LinkError> {
        let subject = "(flush)";
        let flushing = async {
            self.client
                .flush()
                .await
                .map_err(|error| failed(subject, &error))
        };
        within(subject, flushing).await
    }

    fn fits(&self, subject: &str, headers: &[(&str, &str)], body: usize) -> Result<(), LinkError> {
        // `NATS/1.0\r\n`, each header with `: ` and `\r\n`, and the empty line at the end.
        let framing: usize = headers
            .iter()
            .map(|(name, value)| name.len() + value.len() + 4)
            .sum();
        let bytes = body + if headers.is_empty() { 0 } else { framing + 12 };
        let max = self.message_bytes_max();
        if bytes > max {
            return Err(LinkError::TooLarge {
                subject: subject.to_owned(),
                bytes,
                max,
            });
        }
        Ok(())
    }
}

async fn within<T>(
    subject: &str,
    work: impl Future<Output = Result<T, LinkError>>,
) -> Result<T, LinkError> {
    match tokio::time::timeout(LINK_TIMEOUT, work).await {
        Ok(result) => result,
        Err(_) => Err(LinkError::TimedOut(subject.to_owned())),
    }
}

fn failed(subject: &str, error: &dyn std::fmt::Display) -> LinkError {
    LinkError::Failed {
        subject: subject.to_owned(),
        what: error.to_string(),
    }
}

/// Header values may come from what a user wrote, and a line break in one would panic the client.
pub(crate) fn header_map(headers: &[(&str, &str)]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.insert(*name, value.replace(['\r', '\n'], " "));
    }
    map
}

fn reconnect_delay(attempts: usize) -> Duration {
    let doubled = 25u64 << attempts.min(10);
    Duration::from_millis(doubled).min(RECONNECT_DELAY_MAX)
}

fn note_event(event: &Event, connected: &AtomicBool, url: &str) {
    match event {
        Event::Connected => {
            connected.store(true, Ordering::Relaxed);
            tracing::info!(url, "connected to NATS");
        }
        Event::Disconnected | Event::Closed => {
            connected.store(false, Ordering::Relaxed);
            tracing::warn!(url, "no connection to NATS");
        }
        Event::SlowConsumer(_) => tracing::warn!("messages were dropped: a subscription is full"),
        other => tracing::debug!(event = %other, "NATS"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_break_in_a_header_is_harmless() {
        let map = header_map(&[("Nats-Service-Error", "line one\r\nline two")]);
        let value = map.get("Nats-Service-Error").unwrap();
        assert_eq!(value.as_str(), "line one  line two");
    }

    #[test]
    fn reconnecting_slows_down_to_a_bound() {
        assert_eq!(reconnect_delay(0), Duration::from_millis(25));
        assert_eq!(reconnect_delay(1000), RECONNECT_DELAY_MAX);
    }
}
