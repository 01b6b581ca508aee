//! The messages kind: a component that exports `wasmcloud:messaging/handler@0.2.0`, and the
//! consumer that guests of any kind may import.
//!
//! A fresh instance for every message. Subscriptions are the host's; it hands messages in.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use bytes::Bytes;

use crate::artifact::Artifact;
use crate::bindings::messaging::wasmcloud::messaging::{consumer, types};
use crate::config::ReplicaConfig;
use crate::ended::{Ended, PrepareError};
use crate::gate::{Gate, Place, Seat};
use crate::guest::{Deadline, Metered, bounded};
use crate::limits::Usage;
use crate::link;
use crate::logs::RequestTag;
use crate::refusals::Refused;
use crate::runtime::Runtime;
use crate::state::{GuestState, ReplicaShared};

/// The longest that a guest's `request` may wait, whatever it asks for.
const REQUEST_TIMEOUT_MAX: Duration = Duration::from_secs(600);

/// A message in either direction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Where it was, or is to be, published.
    pub subject: String,
    /// The payload.
    pub body: Bytes,
    /// Where an answer is expected, if anywhere.
    pub reply_to: Option<String>,
}

/// Why a message was not published, or had no answer. The text goes to the guest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MessagingError {
    /// It may not; told in the replica's log as well.
    #[error("{0}")]
    NotGranted(String),
    /// It could not be done.
    #[error("{0}")]
    Failed(String),
}

/// What carries out `wasmcloud:messaging/consumer` for the guests of a replica.
///
/// The host supplies it with the allow-lists of the bindings applied.
#[async_trait::async_trait]
pub trait Messaging: Send + Sync {
    /// Publishes a message.
    async fn publish(&self, message: Message) -> Result<(), MessagingError>;

    /// Publishes a message and waits for one answer.
    async fn request(
        &self,
        subject: &str,
        body: Bytes,
        timeout: Duration,
    ) -> Result<Message, MessagingError>;
}

/// What exports no handler.
pub(crate) const WRONG: PrepareError = PrepareError::WrongShape {
    kind: "a messages workload",
    expected: "wasmcloud:messaging/handler@0.2.0",
};

/// A replica that handles messages.
pub struct MessagesReplica {
    shared: Arc<ReplicaShared>,
    artifact: Arc<Artifact>,
    gate: Gate,
}

impl MessagesReplica {
    /// Links the component, once for all messages.
    ///
    /// # Errors
    ///
    /// When it exports no handler, imports what is not provided, or fits in no instance.
    pub fn prepare(
        runtime: &Runtime,
        artifact: &Arc<Artifact>,
        config: ReplicaConfig,
    ) -> Result<Self, PrepareError> {
        let code = link::code(runtime, artifact, &config)?;
        let component = code.component().ok_or(WRONG)?;
        let concurrency = link::concurrency(runtime, component, &config.limits)?;
        let gate = Gate::new(config.account.clone(), concurrency, config.limits.queue);
        let shared = ReplicaShared::new(runtime, artifact.engine(), config)?;
        code.messages(&shared)?;
        Ok(Self {
            shared,
            artifact: artifact.clone(),
            gate,
        })
    }

    /// Hands a message to a fresh instance, waiting for a seat if need be.
    ///
    /// # Errors
    ///
    /// Why the message was not handled; [`Ended::Guest`] when the handler said so itself.
    pub async fn handle(&self, message: Message) -> Result<(), Ended> {
        let deadline = Deadline::after(self.shared.config.limits.timeout);
        let _seat = self
            .gate
            .enter(deadline.map(|deadline| deadline.at))
            .await
            .inspect_err(|_| _ = self.shared.meter.refused.fetch_add(1, Relaxed))?;
        Metered::new(self.shared.meter.clone(), self.run(message, deadline)).await
    }

    /// Hands a message to a fresh instance, in a seat that the caller has.
    ///
    /// # Errors
    ///
    /// As those of [`Self::handle`], but for [`Ended::Busy`].
    pub async fn handle_seated(&self, _seat: &Seat, message: Message) -> Result<(), Ended> {
        let deadline = Deadline::after(self.shared.config.limits.timeout);
        Metered::new(self.shared.meter.clone(), self.run(message, deadline)).await
    }

    /// A seat now, if one is free and nobody waits for it.
    pub fn try_seat(&self) -> Option<Seat> {
        self.gate.try_seat()
    }

    /// A seat, however long that takes: the caller bounds what waits for it. `None`: closed.
    pub async fn seat(&self) -> Option<Seat> {
        self.gate.seat().await
    }

    /// A place in the queue, for a message that the caller keeps.
    ///
    /// # Errors
    ///
    /// [`Ended::Busy`] when all places are taken.
    pub fn queue_up(&self) -> Result<Place, Ended> {
        let place = self.gate.queue_up();
        place.inspect_err(|_| _ = self.shared.meter.refused.fetch_add(1, Relaxed))
    }

    async fn run(&self, message: Message, deadline: Option<Deadline>) -> Result<(), Ended> {
        let shared = &self.shared;
        let tag = RequestTag::new(None);
        let watch = shared.watch();
        let code = shared.code(&self.artifact, deadline).await;
        let code = code.map_err(|ended| watch.end(ended))?;
        let internal = |error: wasmtime::Error| watch.end(Ended::Internal(format!("{error:#}")));
        let mut wasi = shared.wasi().map_err(internal)?;
        shared.log_streams(&mut wasi, &tag);
        let mut store = shared.store(wasi.build(), tag, &watch);
        let message = types::BrokerMessage {
            subject: message.subject,
            body: message.body.into(),
            reply_to: message.reply_to,
        };
        let handled = bounded(&watch, deadline, async {
            let pre = code.messages(shared)?;
            let instance = pre.instantiate_async(&mut store).await?;
            instance
                .wasmcloud_messaging_handler()
                .call_handle_message(&mut store, &message)
                .await
        })
        .await?;
        handled.map_err(|error| watch.end(Ended::Guest(error)))
    }

    /// Counts a message that has come, before it is handled: it may be tried more than once.
    pub fn count_request(&self) {
        self.shared.meter.came.fetch_add(1, Relaxed);
    }

    /// What it uses.
    pub fn usage(&self) -> Usage {
        self.shared
            .meter
            .usage(self.gate.in_flight(), self.gate.queued())
    }

    /// Refuses every message from now on, those that wait too. What runs goes on until its caller
    /// drops it.
    pub fn close(&self) {
        self.gate.close();
    }
}

impl types::Host for GuestState {}

impl GuestState {
    /// What a guest hears of it.
    fn heard<T>(&self, sent: Result<T, MessagingError>) -> Result<T, String> {
        sent.map_err(|error| {
            if let MessagingError::NotGranted(why) = &error {
                self.shared.refusals.tell(Refused::Publish(why));
            }
            error.to_string()
        })
    }
}

impl consumer::Host for GuestState {
    async fn request(
        &mut self,
        subject: String,
        body: Vec<u8>,
        timeout_ms: u32,
    ) -> wasmtime::Result<Result<types::BrokerMessage, String>> {
        let timeout = Duration::from_millis(timeout_ms.into()).min(REQUEST_TIMEOUT_MAX);
        let answer = match self.shared.config.messaging.clone() {
            Some(messaging) => messaging.request(&subject, body.into(), timeout).await,
            None => Err(not_granted(&subject)),
        };
        Ok(self.heard(answer).map(|message| types::BrokerMessage {
            subject: message.subject,
            body: message.body.into(),
            reply_to: message.reply_to,
        }))
    }

    async fn publish(
        &mut self,
        message: types::BrokerMessage,
    ) -> wasmtime::Result<Result<(), String>> {
        let message = Message {
            subject: message.subject,
            body: message.body.into(),
            reply_to: message.reply_to,
        };
        let sent = match self.shared.config.messaging.clone() {
            Some(messaging) => messaging.publish(message).await,
            None => Err(not_granted(&message.subject)),
        };
        Ok(self.heard(sent))
    }
}

fn not_granted(subject: &str) -> MessagingError {
    MessagingError::NotGranted(format!(
        "not granted: subject `{subject}`; grant it with `--grant publish={subject}`"
    ))
}
