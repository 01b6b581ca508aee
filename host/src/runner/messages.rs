//! The life of a messages replica, and what guests of any kind may send.
//!
//! ```text
//!   listen.rs: subscribed, confirmed ──> ready
//!   delivered ──> intake (bounded) ──> a fresh instance ──> answered, failed (its sender is told)
//!   streams ──> consume.rs
//! ```
//!
//! One that rests listens as well: the first message has it started, and waits for that.
//!
//! Invariants:
//! - A guest sends only where its allow-list says, or to the reply subject of a message that one
//!   of this replica's instances has in hand.
//! - A failure ends one message, never the replica.
//! - Losing NATS changes no readiness: subscriptions come back by themselves, and the leader would
//!   not hear of it anyway.

mod listen;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::watch;
use wasmorch_api::subjects;
use wasmorch_runtime::{Ended, Message, MessagesReplica, Messaging, MessagingError, Seat};

use super::allow::{self, AllowList};
use super::invoke;
use super::link::Delivery;
use super::logs;
use super::replica::{End, Life, Resting};
use super::supervisor::Context;
pub(super) use listen::Intake;
use listen::{RETRY_AFTER, Stands, Start};

/// Before a message that found no instance free on this host is tried again.
const HOST_FULL_AGAIN: Duration = Duration::from_millis(100);

/// The queue group of a workload: each message goes to one of its replicas.
pub(super) fn queue_group(workload: &wasmorch_api::WorkloadKey) -> String {
    format!("wasmorch.{}.{}", workload.namespace, workload.name)
}

/// Reply subjects of the messages that a replica has in hand, and whether each was answered.
#[derive(Debug, Default)]
struct InHand(Mutex<HashMap<String, Reply>>);

#[derive(Debug, Default)]
struct Reply {
    /// Messages that want their answer there: nothing keeps two senders from sharing a subject.
    holders: usize,
    answered: bool,
}

impl InHand {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Reply>> {
        // A panic while it was held leaves a map that is usable.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hold(self: &Arc<Self>, subject: &str) -> Held {
        self.lock().entry(subject.to_owned()).or_default().holders += 1;
        Held {
            in_hand: self.clone(),
            subject: subject.to_owned(),
        }
    }

    /// Marks a reply subject as answered, when it is in hand.
    fn answer(&self, subject: &str) -> bool {
        let mut replies = self.lock();
        let reply = replies.get_mut(subject);
        reply.map(|reply| reply.answered = true).is_some()
    }
}

/// Keeps a reply subject in hand.
struct Held {
    in_hand: Arc<InHand>,
    subject: String,
}

impl Held {
    fn answered(&self) -> bool {
        self.in_hand
            .lock()
            .get(&self.subject)
            .is_some_and(|reply| reply.answered)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut replies = self.in_hand.lock();
        if let Some(reply) = replies.get_mut(&self.subject) {
            reply.holders -= 1;
            if reply.holders == 0 {
                replies.remove(&self.subject);
            }
        }
    }
}

/// What the guests of one replica send by `wasmcloud:messaging/consumer`.
pub(super) struct GuestMessaging {
    context: Arc<Context>,
    allowed: AllowList,
    in_hand: Arc<InHand>,
}

impl GuestMessaging {
    pub(super) fn new(context: Arc<Context>, allowed: AllowList) -> Self {
        Self {
            context,
            allowed,
            in_hand: Arc::default(),
        }
    }
}

#[async_trait]
impl Messaging for GuestMessaging {
    async fn publish(&self, message: Message) -> Result<(), MessagingError> {
        if !self.in_hand.answer(&message.subject) {
            let may = self.allowed.may_publish(&message.subject);
            may.map_err(MessagingError::NotGranted)?;
        }
        if let Some(reply) = &message.reply_to {
            let may = self.allowed.may_be_answered_at(reply);
            may.map_err(MessagingError::NotGranted)?;
        }
        let message = Delivery {
            subject: message.subject,
            reply: message.reply_to,
            headers: Vec::new(),
            body: message.body,
        };
        self.context
            .link
            .publish(message)
            .await
            .map_err(|error| MessagingError::Failed(error.to_string()))
    }

    async fn request(
        &self,
        subject: &str,
        body: Bytes,
        limit: Duration,
    ) -> Result<Message, MessagingError> {
        let may = self.allowed.may_publish(subject);
        may.map_err(MessagingError::NotGranted)?;
        let answer = self.context.link.request(subject, body, limit).await;
        let answer = answer.map_err(|error| MessagingError::Failed(error.to_string()))?;
        Ok(Message {
            subject: answer.subject,
            body: answer.body,
            reply_to: answer.reply,
        })
    }
}

/// Handles messages until the replica is told to end.
pub(super) async fn live(mut life: Life, guest: Arc<MessagesReplica>) -> End {
    let rested = match life.resting.take() {
        Some(Resting::Intake(intake)) => Some(intake),
        _ => None,
    };
    let mut intake = rested.unwrap_or_else(|| Intake::begin(&life, &guest));
    intake.start();
    let mut stands = intake.stands();
    let mut orders = life.orders.clone();
    tokio::select! {
        biased;
        _ = orders.ending() => {}
        () = tell(&life, &mut stands) => {}
    }
    tokio::select! {
        biased;
        () = life.orders.cut_off() => {}
        () = intake.end() => {}
    }
    guest.close();
    // Messages still at work are dropped with the task that has them.
    intake.cut_off().await;
    End::Stopped
}

/// Tells whether it is ready, once for each reason; without end.
async fn tell(life: &Life, stands: &mut watch::Receiver<Stands>) {
    loop {
        let now = stands.borrow_and_update().clone();
        match now {
            Stands::Unknown => {}
            Stands::Ready => life.health(true, None).await,
            Stands::NotReady(reason) => life.health(false, Some(reason)).await,
        }
        if stands.changed().await.is_err() {
            std::future::pending().await
        }
    }
}

/// What happens to one message.
pub(super) struct Handler {
    pub(super) context: Arc<Context>,
    guest: Arc<MessagesReplica>,
    in_hand: Arc<InHand>,
    logs: Arc<logs::ReplicaLogs>,
    /// The workload's `invoke` subject.
    invoke: String,
    start: Start,
    /// Messages that found no room, and whose senders wait for no answer.
    dropped: AtomicU64,
}

impl Handler {
    fn of(life: &Life, guest: &Arc<MessagesReplica>, start: Start) -> Self {
        Self {
            context: life.context.clone(),
            guest: guest.clone(),
            in_hand: life.messaging.in_hand.clone(),
            logs: life.logs.clone(),
            invoke: subjects::invoke(&life.replica.workload),
            start,
            dropped: AtomicU64::new(0),
        }
    }

    async fn handle(&self, message: Delivery, seat: Seat) {
        let invoked = message.subject == self.invoke;
        if !invoked && !allow::may_see(&message.subject) {
            tracing::debug!(
                subject = message.subject,
                "a message that a guest may not see"
            );
            return;
        }
        self.guest.count_request();
        self.start.awaited().await;
        // A reply subject that nobody may write to is none.
        let reply = message.reply.filter(|reply| allow::may_answer(reply));
        let held = reply.as_deref().map(|reply| self.in_hand.hold(reply));
        let subject = message.subject.clone();
        let message = Message {
            subject: message.subject,
            body: message.body,
            reply_to: reply.clone(),
        };
        let handled = match reply {
            // Whoever waits for an answer is told at once that there is no room.
            Some(_) => self.guest.handle_seated(&seat, message).await,
            None => self.handle_in_time(&seat, message).await,
        };
        drop(seat);
        if let Err(ended) = &handled {
            tracing::debug!(subject, %ended, "a message failed");
            logs::failed(
                &*self.logs,
                &format!("the message on `{subject}`"),
                None,
                ended,
            );
        }
        // Whoever waits for an answer gets one: the guest's, or why there is none.
        let Some((reply, held)) = reply.zip(held) else {
            return;
        };
        if held.answered() {
            return;
        }
        let answer = match handled {
            Err(ended) => invoke::failure(reply, &subject, &ended),
            // A call is always answered; on its own subjects a guest may be silent.
            Ok(()) if invoked => invoke::empty(reply),
            Ok(()) => return,
        };
        self.answer(answer).await;
    }

    /// Hands a message to an instance as soon as this host has one: nobody would hear that it had
    /// none.
    async fn handle_in_time(&self, seat: &Seat, message: Message) -> Result<(), Ended> {
        loop {
            match self.guest.handle_seated(seat, message.clone()).await {
                Err(Ended::HostFull { .. }) => tokio::time::sleep(HOST_FULL_AGAIN).await,
                handled => return handled,
            }
        }
    }

    /// Waits until a seat is free, and leaves it to whoever comes; `false`: there is none any more.
    pub(super) async fn has_room(&self) -> bool {
        self.guest.seat().await.is_some()
    }

    /// Handles a message of a stream, once there is a seat. What becomes of it is the caller's
    /// business.
    pub(super) async fn handle_kept(&self, message: &Delivery) -> Result<(), Ended> {
        if !allow::may_see(&message.subject) {
            tracing::debug!(
                subject = message.subject,
                "a message that a guest may not see"
            );
            return Ok(());
        }
        let seat = self.guest.seat().await.ok_or(Ended::Stopped)?;
        self.guest.count_request();
        self.start.awaited().await;
        let handed = Message {
            subject: message.subject.clone(),
            body: message.body.clone(),
            reply_to: None,
        };
        let handled = self.handle_in_time(&seat, handed).await;
        drop(seat);
        if let Err(ended) = &handled {
            let what = format!("the message on `{}`", message.subject);
            logs::failed(&*self.logs, &what, None, ended);
        }
        handled
    }

    /// A line in the workload's logs.
    pub(super) fn say(&self, text: &str) {
        logs::say(&*self.logs, text);
    }

    /// Tells the sender of a message that there was no room for it.
    async fn shed(&self, message: Delivery) {
        tracing::debug!(subject = message.subject, "a message found no room");
        let Some(reply) = message.reply.filter(|reply| allow::may_answer(reply)) else {
            let dropped = self.dropped.fetch_add(1, Relaxed) + 1;
            // Now and then: a flood of messages shall not become one of log lines.
            if dropped.is_power_of_two() {
                self.say(&format!(
                    "{dropped} messages were dropped until now: more came than are handled; the \
                     last one was on `{}`",
                    message.subject
                ));
            }
            return;
        };
        let usage = self.guest.usage();
        let busy = Ended::Busy {
            concurrency: usage.in_flight,
            queue: usage.queued,
            retry_after: RETRY_AFTER,
        };
        self.answer(invoke::failure(reply, &message.subject, &busy))
            .await;
    }

    async fn answer(&self, answer: Delivery) {
        if let Err(error) = self.context.link.publish(answer).await {
            tracing::debug!(%error, "an answer could not be sent");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_subject_is_in_hand_while_its_message_is() {
        let in_hand = Arc::new(InHand::default());
        assert!(!in_hand.answer("_INBOX.1"));
        let first = in_hand.hold("_INBOX.1");
        let second = in_hand.hold("_INBOX.1");
        assert!(!first.answered());
        assert!(in_hand.answer("_INBOX.1"));
        assert!(first.answered());
        drop(first);
        assert!(in_hand.answer("_INBOX.1"), "the second still holds it");
        drop(second);
        assert!(!in_hand.answer("_INBOX.1"));
        assert!(in_hand.lock().is_empty());
    }
}
