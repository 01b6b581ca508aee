//! The runner's data connection to NATS: what guests send, receive and are called by.
//!
//! The only file of the runner that names `async_nats`. It is made when the first replica needs
//! it, has an inbox prefix of its own, and reconnects by itself for ever, with its subscriptions.
//! It asks nothing of the agent and takes part in no control traffic: which subjects a guest may
//! use is decided before anything gets here (`allow.rs`).
//!
//! Invariant: nothing waits here without a deadline, connected or not.

mod blobs;
mod durable;
mod jetstream;
mod keyvalue;

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use async_nats::connection::State;
use async_nats::{Client, ConnectOptions, Event, HeaderMap, Request, Subscriber};
use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use tokio::sync::{OnceCell, watch};
use tokio::time::timeout;
use wasmorch_api::{HostId, NatsOptions};

pub(super) use blobs::JetStreamContainer;
pub(super) use durable::{ACK_WAIT, Durable, DurableConfig, Taken};
pub(super) use keyvalue::JetStreamBucket;

/// Messages of one subscription that wait to be taken out, at most. The runner takes them out at
/// once (`intake.rs` bounds what waits then), so this only has to cover a burst between two polls.
const SUBSCRIPTION_CAPACITY: usize = 1024;
/// Between two attempts to reach the server, at most.
const RECONNECT_DELAY_MAX: Duration = Duration::from_secs(2);
/// To hand a message to the connection: long only while it is clogged.
const SEND_TIMEOUT: Duration = Duration::from_secs(5);
/// A server out of reach for so long is not waited for when subscriptions end.
const UNREACHED_FOR: Duration = Duration::from_millis(200);
/// For the round trip that confirms subscriptions.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(2);

/// Why something could not be sent, asked or subscribed to; the text is for people and guests.
#[derive(Debug, Clone, thiserror::Error)]
pub(super) enum LinkError {
    /// The runner was started without NATS.
    #[error("this runner has no NATS connection")]
    None,
    /// The options are wrong: a URL, a credentials file.
    #[error("the NATS connection cannot be made: {0}")]
    Options(String),
    /// The server is out of reach just now.
    #[error("NATS is not reachable just now")]
    Disconnected,
    /// Nobody listens.
    #[error("nobody answers at `{0}`")]
    NoResponders(String),
    /// No answer in time.
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
    /// Refused by the client: a subject or a payload.
    #[error("{0}")]
    Refused(String),
}

/// One message.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Delivery {
    /// Where it was, or is to be, published.
    pub(super) subject: String,
    /// Where an answer is expected.
    pub(super) reply: Option<String>,
    /// Header lines, in no order; a name may occur several times.
    pub(super) headers: Vec<(String, String)>,
    /// The payload.
    pub(super) body: Bytes,
}

impl Delivery {
    /// The first header of this name, in any case.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.headers.iter();
        headers
            .find(|(held, _)| held.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }
}

/// The data connection, connected when first used.
#[derive(Debug)]
pub(super) struct Link {
    options: Option<NatsOptions>,
    /// Its credentials when this was made. A process that is confined may not open a file that has been put in
    /// the place of theirs since.
    creds: Option<String>,
    inbox: String,
    name: String,
    client: OnceCell<Client>,
    connected: watch::Sender<bool>,
}

impl Link {
    pub(super) fn new(options: Option<NatsOptions>, host: &HostId) -> Self {
        let creds = options.as_ref().and_then(|options| options.creds.as_ref());
        Self {
            creds: creds.and_then(|file| std::fs::read_to_string(file).ok()),
            options,
            // One prefix per host: a server's permissions can then tell its inboxes from others'.
            inbox: format!("_INBOX_{host}"),
            name: format!("wasmorch runner {host}"),
            client: OnceCell::new(),
            connected: watch::Sender::new(false),
        }
    }

    /// Whether there is a server to reach at all.
    pub(super) fn is_configured(&self) -> bool {
        self.options.is_some()
    }

    async fn client(&self) -> Result<&Client, LinkError> {
        self.client.get_or_try_init(|| self.connect()).await
    }

    /// Returns without waiting for the server: it is tried in the background.
    async fn connect(&self) -> Result<Client, LinkError> {
        let wrong = |error: &dyn std::fmt::Display| LinkError::Options(error.to_string());
        let options = self.options.as_ref().ok_or(LinkError::None)?;
        let connected = self.connected.clone();
        let mut connect = ConnectOptions::new()
            .name(&self.name)
            .custom_inbox_prefix(&self.inbox)
            .subscription_capacity(SUBSCRIPTION_CAPACITY)
            .retry_on_initial_connect()
            .reconnect_delay_callback(|attempts| {
                let exponent = u32::try_from(attempts).unwrap_or(u32::MAX);
                Duration::from_millis(10 * 2_u64.saturating_pow(exponent)).min(RECONNECT_DELAY_MAX)
            })
            .event_callback(move |event| {
                note(&event, &connected);
                std::future::ready(())
            });
        if let Some(file) = &options.creds {
            let newest = tokio::fs::read_to_string(file).await;
            let creds = match (&newest, &self.creds) {
                (Ok(creds), _) | (Err(_), Some(creds)) => creds,
                (Err(error), None) => return Err(wrong(error)),
            };
            connect = connect.credentials(creds).map_err(|error| wrong(&error))?;
        }
        let urls: Vec<&str> = options.url.split(',').map(str::trim).collect();
        connect
            .connect(urls.as_slice())
            .await
            .map_err(|error| wrong(&error))
    }

    /// The client, when it has a server now.
    async fn ready_client(&self) -> Result<&Client, LinkError> {
        let client = self.client().await?;
        match client.connection_state() {
            State::Connected => Ok(client),
            _ => Err(LinkError::Disconnected),
        }
    }

    /// Waits until the server is reached.
    pub(super) async fn connected(&self) -> Result<(), LinkError> {
        self.client().await?;
        // The sender is `self`'s: it cannot be gone.
        let _ = self
            .connected
            .subscribe()
            .wait_for(|connected| *connected)
            .await;
        Ok(())
    }

    /// Joins the queue group of a subject. The server knows it once [`Self::confirm`] has returned.
    pub(super) async fn subscribe(&self, subject: &str, group: &str) -> Result<Feed, LinkError> {
        let client = self.client().await?;
        let subscribing = client.queue_subscribe(subject.to_owned(), group.to_owned());
        match timeout(SEND_TIMEOUT, subscribing).await {
            Ok(Ok(messages)) => Ok(Feed {
                messages,
                connected: self.connected.subscribe(),
            }),
            Ok(Err(error)) => Err(LinkError::Refused(format!(
                "cannot subscribe to `{subject}`: {error}"
            ))),
            Err(_) => Err(LinkError::Disconnected),
        }
    }

    /// A subject of its own, and what comes there.
    pub(super) async fn inbox(&self) -> Result<(String, Feed), LinkError> {
        let client = self.ready_client().await?;
        let inbox = client.new_inbox();
        let refused = |error| LinkError::Refused(format!("cannot subscribe to an inbox: {error}"));
        let subscribing = timeout(SEND_TIMEOUT, client.subscribe(inbox.clone())).await;
        let messages = subscribing.map_err(|_| LinkError::Disconnected)?;
        let messages = messages.map_err(refused)?;
        let connected = self.connected.subscribe();
        Ok((
            inbox,
            Feed {
                messages,
                connected,
            },
        ))
    }

    /// Proves that the server has taken everything sent before, subscriptions included: a message
    /// to ourselves has come back. A server handles what one connection sends in order.
    pub(super) async fn confirm(&self) -> Result<(), LinkError> {
        let client = self.ready_client().await?;
        let inbox = client.new_inbox();
        let round_trip = async {
            let refused = |error: &dyn std::fmt::Display| LinkError::Refused(error.to_string());
            let mut back = client
                .subscribe(inbox.clone())
                .await
                .map_err(|error| refused(&error))?;
            client
                .publish(inbox, Bytes::new())
                .await
                .map_err(|error| refused(&error))?;
            back.next().await.map(|_| ()).ok_or(LinkError::Disconnected)
        };
        timeout(CONFIRM_TIMEOUT, round_trip)
            .await
            .unwrap_or(Err(LinkError::TimedOut(CONFIRM_TIMEOUT)))
    }

    /// Publishes a message.
    pub(super) async fn publish(&self, message: Delivery) -> Result<(), LinkError> {
        let client = self.ready_client().await?;
        let headers = header_map(&message.headers);
        let Delivery {
            subject,
            reply,
            body,
            ..
        } = message;
        let publishing = async {
            match reply {
                Some(reply) => {
                    client
                        .publish_with_reply_and_headers(subject, reply, headers, body)
                        .await
                }
                None if headers.is_empty() => client.publish(subject, body).await,
                None => client.publish_with_headers(subject, headers, body).await,
            }
        };
        match timeout(SEND_TIMEOUT, publishing).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(LinkError::Refused(error.to_string())),
            Err(_) => Err(LinkError::Disconnected),
        }
    }

    /// Publishes a message and waits for one answer.
    pub(super) async fn request(
        &self,
        subject: &str,
        body: Bytes,
        limit: Duration,
    ) -> Result<Delivery, LinkError> {
        use async_nats::RequestErrorKind as Kind;
        let client = self.ready_client().await?;
        // An inbox for each: the client's shared one keeps an entry for every request that was
        // never answered, for ever, and a guest could fill it.
        let request = Request::new()
            .inbox(client.new_inbox())
            .payload(body)
            .timeout(Some(limit));
        // The client's timeout covers waiting for the answer, not sending.
        let answer = timeout(limit, client.send_request(subject.to_owned(), request)).await;
        match answer {
            Ok(Ok(message)) => Ok(delivery(message)),
            Err(_) => Err(LinkError::TimedOut(limit)),
            Ok(Err(error)) => Err(match error.kind() {
                Kind::NoResponders => LinkError::NoResponders(subject.to_owned()),
                Kind::TimedOut => LinkError::TimedOut(limit),
                _ => LinkError::Refused(error.to_string()),
            }),
        }
    }

    /// The largest message that the server takes, headers included; `None` before the first
    /// connection.
    pub(super) fn max_payload(&self) -> Option<usize> {
        self.client.get().map(Client::max_payload)
    }
}

fn note(event: &Event, connected: &watch::Sender<bool>) {
    match event {
        Event::Connected => {
            tracing::info!("data connection: connected");
            connected.send_replace(true);
        }
        Event::Disconnected | Event::Closed => {
            tracing::warn!("data connection: lost; it comes back by itself");
            connected.send_replace(false);
        }
        Event::SlowConsumer(subscription) => {
            tracing::warn!(
                subscription,
                "data connection: messages dropped, too many at once"
            );
        }
        other => tracing::debug!("data connection: {other}"),
    }
}

/// One subscription's messages. Dropping it ends the subscription.
#[derive(Debug)]
pub(super) struct Feed {
    messages: Subscriber,
    connected: watch::Receiver<bool>,
}

impl Feed {
    /// Ends the subscription at the server; the feed ends after what was under way has come.
    pub(super) async fn drain(&mut self) {
        let up = *self.connected.borrow();
        let within = if up { SEND_TIMEOUT } else { UNREACHED_FOR };
        if !matches!(timeout(within, self.messages.drain()).await, Ok(Ok(()))) {
            tracing::debug!("a subscription could not be drained");
        }
    }

    /// Returns once the server has been out of reach for a while: a drain that it has not confirmed
    /// by then is confirmed by nobody until it is back.
    pub(super) fn out_of_reach(&self) -> impl Future<Output = ()> + Send + use<> {
        unreached(self.connected.clone())
    }
}

async fn unreached(mut connected: watch::Receiver<bool>) {
    // Errors: the connection is gone altogether.
    while connected.wait_for(|connected| !*connected).await.is_ok() {
        let back = timeout(UNREACHED_FOR, connected.wait_for(|connected| *connected)).await;
        if !back.is_ok_and(|back| back.is_ok()) {
            return;
        }
    }
}

impl Stream for Feed {
    type Item = Delivery;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Delivery>> {
        self.messages
            .poll_next_unpin(cx)
            .map(|message| message.map(delivery))
    }
}

fn delivery(message: async_nats::Message) -> Delivery {
    let mut headers = Vec::new();
    for (name, values) in message.headers.iter().flat_map(HeaderMap::iter) {
        for value in values {
            headers.push((name.to_string(), value.as_str().to_owned()));
        }
    }
    Delivery {
        subject: message.subject.to_string(),
        reply: message.reply.map(|reply| reply.to_string()),
        headers,
        body: message.payload,
    }
}

/// Header lines that NATS can carry; others are left out.
fn header_map(lines: &[(String, String)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in lines {
        let name = name.parse::<async_nats::HeaderName>();
        let value = value.parse::<async_nats::HeaderValue>();
        if let (Ok(name), Ok(value)) = (name, value) {
            headers.append(name, value);
        }
    }
    headers
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn a_server_counts_as_unreached_once_it_has_been_away_for_a_while() {
        let deadline = Duration::from_secs(10);
        let connected = watch::Sender::new(true);
        let mut away = Box::pin(unreached(connected.subscribe()));
        assert!(away.as_mut().now_or_never().is_none(), "connected");
        connected.send_replace(false);
        assert!(away.as_mut().now_or_never().is_none(), "just lost");
        connected.send_replace(true);
        assert!(away.as_mut().now_or_never().is_none(), "and back");
        connected.send_replace(false);
        timeout(deadline, away).await.expect("lost for good");

        let gone = unreached(connected.subscribe());
        drop(connected);
        timeout(deadline, gone)
            .await
            .expect("nobody tells any more");
    }
}
