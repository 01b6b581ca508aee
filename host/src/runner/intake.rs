//! How messages of a replica's subscriptions are taken in: a bounded number at work, a bounded
//! number waiting, and everything beyond refused at once.
//!
//! ```text
//!   feeds ──> at work (<= concurrency) ──> handler
//!      \──> waiting (FIFO, bounded) ──^
//!      \──> shed: its sender is told, when it waits for an answer
//! ```
//!
//! Messages are always taken out of the connection at once: a slow replica then holds up no other
//! on the same connection, and what waits is bounded in bytes, which the connection's own queue is
//! not.

use std::collections::VecDeque;
use std::future::Future;

use futures::future::BoxFuture;
use futures::stream::SelectAll;
use futures::{FutureExt as _, StreamExt as _};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::link::{Delivery, Feed};

/// What all waiting messages of a replica may hold.
const WAITING_BYTES_MAX: usize = 16 << 20;
/// How many messages of a replica may wait without anyone waiting for an answer. They cost no one
/// time, so there may be more of them than of requests.
const WAITING_MAX: usize = 16 << 10;
/// Refusals under way at once. They are short, so only a clogged connection makes them so many;
/// who is refused beyond gets no answer.
const REFUSALS_MAX: usize = 1024;

/// Bounds of one replica.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Messages at work.
    pub(super) concurrency: usize,
    /// Requests (messages with a reply subject) that may wait.
    pub(super) queue: usize,
}

/// Messages that wait.
#[derive(Debug, Default)]
struct Waiting {
    messages: VecDeque<Delivery>,
    bytes: usize,
    requests: usize,
}

impl Waiting {
    /// Takes a message, or gives it back when there is no room.
    fn push(&mut self, message: Delivery, queue: usize) -> Result<(), Delivery> {
        let size = message.body.len();
        let request = message.reply.is_some();
        let full = self.bytes + size > WAITING_BYTES_MAX
            || self.messages.len() >= WAITING_MAX
            || (request && self.requests >= queue);
        if full {
            return Err(message);
        }
        self.bytes += size;
        self.requests += usize::from(request);
        self.messages.push_back(message);
        Ok(())
    }

    fn pop(&mut self) -> Option<Delivery> {
        let message = self.messages.pop_front()?;
        self.bytes -= message.body.len();
        self.requests -= usize::from(message.reply.is_some());
        Some(message)
    }
}

/// Takes in messages until `drain` is cancelled and everything taken has been handled. Dropping
/// the future drops whatever is at work.
pub(super) async fn take_in<Handled, Shed>(
    feeds: Vec<Feed>,
    limits: Limits,
    drain: CancellationToken,
    handle: impl Fn(Delivery) -> Handled,
    shed: impl Fn(Delivery) -> Shed,
) where
    Handled: Future<Output = ()> + Send + 'static,
    Shed: Future<Output = ()> + Send + 'static,
{
    let mut feeds: SelectAll<Feed> = feeds.into_iter().collect();
    let mut waiting = Waiting::default();
    let mut work = JoinSet::new();
    // Refusals are short; they are tasks so that a clogged connection holds up no message.
    let mut refusals = JoinSet::new();
    let concurrency = limits.concurrency.max(1);
    let mut unanswered: u64 = 0;
    let mut draining = false;
    let mut out_of_reach: BoxFuture<'static, ()> = std::future::pending().boxed();
    loop {
        if draining && feeds.is_empty() && work.is_empty() && waiting.messages.is_empty() {
            break;
        }
        tokio::select! {
            biased;
            () = drain.cancelled(), if !draining => {
                draining = true;
                for feed in feeds.iter_mut() {
                    feed.drain().await;
                    // All feeds are of one connection.
                    out_of_reach = feed.out_of_reach().boxed();
                }
            }
            Some(ended) = work.join_next(), if !work.is_empty() => {
                if ended.is_err_and(|error| error.is_panic()) {
                    tracing::error!("handling a message panicked");
                }
                if let Some(next) = waiting.pop() {
                    work.spawn(handle(next));
                }
            }
            Some(_) = refusals.join_next(), if !refusals.is_empty() => {}
            message = feeds.next(), if !feeds.is_empty() => {
                // The last subscription has ended: the loop's head sees that nothing is left.
                let Some(message) = message else { continue };
                if work.len() < concurrency {
                    work.spawn(handle(message));
                } else if let Err(message) = waiting.push(message, limits.queue) {
                    if refusals.len() < REFUSALS_MAX {
                        refusals.spawn(shed(message));
                    } else {
                        unanswered += 1;
                        // Now and then: a flood of messages shall not become one of log lines.
                        if unanswered.is_power_of_two() {
                            tracing::warn!(unanswered, "messages dropped without an answer");
                        }
                    }
                }
            }
            // No server confirms the end of the subscriptions, and nothing more comes of them.
            () = &mut out_of_reach, if draining && !feeds.is_empty() => feeds.clear(),
            // The connection is gone for good; only a drain ends this.
            else => drain.cancelled().await,
        }
    }
    while refusals.join_next().await.is_some() {}
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(bytes: usize, reply: bool) -> Delivery {
        Delivery {
            body: vec![0; bytes].into(),
            reply: reply.then(|| "_INBOX.1".to_owned()),
            ..Delivery::default()
        }
    }

    #[test]
    fn what_waits_is_bounded_in_requests_and_bytes() {
        let mut waiting = Waiting::default();
        assert!(waiting.push(message(1, true), 1).is_ok());
        assert!(
            waiting.push(message(1, true), 1).is_err(),
            "a second request"
        );
        assert!(
            waiting.push(message(1, false), 1).is_ok(),
            "no one waits for this one"
        );
        assert!(
            waiting.push(message(WAITING_BYTES_MAX, false), 1).is_err(),
            "too many bytes"
        );
        assert!(waiting.pop().is_some());
        assert!(waiting.push(message(1, true), 1).is_ok(), "room again");
        while waiting.pop().is_some() {}
        assert_eq!((waiting.bytes, waiting.requests), (0, 0));
    }

    #[test]
    fn how_many_wait_is_bounded_too() {
        let mut waiting = Waiting::default();
        for _ in 0..WAITING_MAX {
            waiting.push(message(0, false), 0).unwrap();
        }
        assert!(waiting.push(message(0, false), 0).is_err());
    }
}
