//! How messages of a replica's subscriptions are taken in: those that have a seat are at work, a
//! bounded number waits, and everything beyond is refused at once.
//!
//! ```text
//!   feeds ──> a seat is free: at work ──────────────────────> handler
//!      \──> waiting (FIFO, bounded) ── a seat is free ──^
//!      \──> shed: its sender is told, when it waits for an answer
//! ```
//!
//! Seats are the replica's, over all runners that have a share of it: a message that was let in
//! here never meets a gate that has no room for it.
//!
//! Messages are always taken out of the connection at once: a slow replica then holds up no other
//! on the same connection, and what waits is bounded in bytes, which the connection's own queue is
//! not.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::Arc;

use futures::future::BoxFuture;
use futures::stream::SelectAll;
use futures::{FutureExt as _, StreamExt as _};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use wasmorch_runtime::MessagesReplica;

use super::link::{Delivery, Feed};

/// What all waiting messages of a replica may hold.
const WAITING_BYTES_MAX: usize = 16 << 20;
/// How many messages of a replica may wait without anyone waiting for an answer. They cost no one
/// time, so there may be more of them than of requests.
const WAITING_MAX: usize = 16 << 10;
/// Refusals under way at once. They are short, so only a clogged connection makes them so many;
/// who is refused beyond gets no answer.
const REFUSALS_MAX: usize = 1024;

/// Where messages sit and queue: the replica's, which all runners share.
pub(super) trait Room: Sync {
    type Seat: Send + 'static;
    type Place: Send;
    /// A seat now, if one is free and nobody waits for it.
    fn try_seat(&self) -> Option<Self::Seat>;
    /// A seat, however long that takes. `None`: there are none any more.
    fn seat(&self) -> impl Future<Output = Option<Self::Seat>> + Send;
    /// A place in the queue of requests, if there is one.
    fn queue_up(&self) -> Option<Self::Place>;
}

impl Room for MessagesReplica {
    type Seat = wasmorch_runtime::Seat;
    type Place = wasmorch_runtime::Place;
    fn try_seat(&self) -> Option<Self::Seat> {
        self.try_seat()
    }
    fn seat(&self) -> impl Future<Output = Option<Self::Seat>> + Send {
        self.seat()
    }
    fn queue_up(&self) -> Option<Self::Place> {
        self.queue_up().ok()
    }
}

/// Seats and places of one runner alone, for who has a gate of its own behind them.
#[derive(Debug, Clone)]
pub(super) struct Bounds {
    seats: Arc<Semaphore>,
    places: Arc<Semaphore>,
}

impl Bounds {
    pub(super) fn new(concurrency: u32, queue: u32) -> Self {
        let permits = |count: u32| {
            let count = usize::try_from(count).unwrap_or(usize::MAX);
            Arc::new(Semaphore::new(count.min(Semaphore::MAX_PERMITS)))
        };
        Self {
            seats: permits(concurrency.max(1)),
            places: permits(queue),
        }
    }
}

impl Room for Bounds {
    type Seat = OwnedSemaphorePermit;
    type Place = OwnedSemaphorePermit;
    fn try_seat(&self) -> Option<Self::Seat> {
        self.seats.clone().try_acquire_owned().ok()
    }
    async fn seat(&self) -> Option<Self::Seat> {
        self.seats.clone().acquire_owned().await.ok()
    }
    fn queue_up(&self) -> Option<Self::Place> {
        self.places.clone().try_acquire_owned().ok()
    }
}

/// Messages that wait; requests (messages with a reply subject) hold a place in the queue.
struct Waiting<Place> {
    messages: VecDeque<(Delivery, Option<Place>)>,
    bytes: usize,
}

impl<Place> Waiting<Place> {
    fn new() -> Self {
        Self {
            messages: VecDeque::new(),
            bytes: 0,
        }
    }

    /// Takes a message, or gives it back when there is no room.
    fn push(
        &mut self,
        message: Delivery,
        place: impl FnOnce() -> Option<Place>,
    ) -> Result<(), Delivery> {
        let size = message.body.len();
        if self.bytes + size > WAITING_BYTES_MAX || self.messages.len() >= WAITING_MAX {
            return Err(message);
        }
        let place = match &message.reply {
            None => None,
            Some(_) => match place() {
                None => return Err(message),
                place => place,
            },
        };
        self.bytes += size;
        self.messages.push_back((message, place));
        Ok(())
    }

    fn pop(&mut self) -> Option<Delivery> {
        let (message, _place) = self.messages.pop_front()?;
        self.bytes -= message.body.len();
        Some(message)
    }
}

impl<Place> Drop for Waiting<Place> {
    fn drop(&mut self) {
        let messages = self.messages.len();
        if messages > 0 {
            tracing::warn!(messages, "messages dropped: their replica was cut off");
        }
    }
}

/// Who waits, and for what. Invariant: while someone waits, a seat is waited for.
struct Desk<'a, R: Room> {
    room: &'a R,
    waiting: Waiting<R::Place>,
    seating: Option<BoxFuture<'a, Option<R::Seat>>>,
}

impl<'a, R: Room> Desk<'a, R> {
    fn new(room: &'a R) -> Self {
        Self {
            room,
            waiting: Waiting::new(),
            seating: None,
        }
    }

    fn is_empty(&self) -> bool {
        self.waiting.messages.is_empty()
    }

    /// A message with a seat; `None`: it waits. There is no room for it: it comes back.
    fn admit(&mut self, message: Delivery) -> Result<Option<(Delivery, R::Seat)>, Delivery> {
        if self.is_empty()
            && let Some(seat) = self.room.try_seat()
        {
            return Ok(Some((message, seat)));
        }
        let room = self.room;
        self.waiting.push(message, || room.queue_up())?;
        // Kept over messages that come meanwhile: who waits keeps his turn.
        self.seating.get_or_insert_with(|| room.seat().boxed());
        Ok(None)
    }

    /// The next that waited, once there is a seat; rests for ever when there will be none.
    async fn next(&mut self) -> (Delivery, R::Seat) {
        loop {
            let seat = match &mut self.seating {
                Some(seating) => seating.await,
                None => None,
            };
            // The replica is closed, or nobody waits.
            let Some(seat) = seat else {
                self.seating = None;
                std::future::pending().await
            };
            let next = self.waiting.pop();
            let room = self.room;
            self.seating = (!self.is_empty()).then(|| room.seat().boxed());
            if let Some(message) = next {
                return (message, seat);
            }
        }
    }
}

/// Takes in messages until `drain` is cancelled and everything taken has been handled. Dropping
/// the future drops whatever is at work.
pub(super) async fn take_in<R, Handled, Shed>(
    feeds: Vec<Feed>,
    room: Arc<R>,
    drain: CancellationToken,
    handle: impl Fn(Delivery, R::Seat) -> Handled,
    shed: impl Fn(Delivery) -> Shed,
) where
    R: Room,
    Handled: Future<Output = ()> + Send + 'static,
    Shed: Future<Output = ()> + Send + 'static,
{
    let mut feeds: SelectAll<Feed> = feeds.into_iter().collect();
    let mut desk = Desk::new(&*room);
    let mut work = JoinSet::new();
    // Refusals are short; they are tasks so that a clogged connection holds up no message.
    let mut refusals = JoinSet::new();
    let mut unanswered: u64 = 0;
    let mut draining = false;
    let mut out_of_reach: BoxFuture<'static, ()> = std::future::pending().boxed();
    loop {
        if draining && feeds.is_empty() && work.is_empty() && desk.is_empty() {
            break;
        }
        tokio::select! {
            biased;
            () = drain.cancelled(), if !draining => {
                draining = true;
                for feed in feeds.iter_mut() {
                    Box::pin(feed.drain()).await;
                    // All feeds are of one connection.
                    out_of_reach = feed.out_of_reach().boxed();
                }
            }
            Some(ended) = work.join_next(), if !work.is_empty() => {
                if ended.is_err_and(|error| error.is_panic()) {
                    tracing::error!("handling a message panicked");
                }
            }
            (message, seat) = desk.next(), if !desk.is_empty() => {
                work.spawn(handle(message, seat));
            }
            Some(_) = refusals.join_next(), if !refusals.is_empty() => {}
            message = feeds.next(), if !feeds.is_empty() => {
                // The last subscription has ended: the loop's head sees that nothing is left.
                let Some(message) = message else { continue };
                match desk.admit(message) {
                    Ok(Some((message, seat))) => _ = work.spawn(handle(message, seat)),
                    Ok(None) => {}
                    Err(message) if refusals.len() < REFUSALS_MAX => {
                        refusals.spawn(shed(message));
                    }
                    Err(_) => {
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

    #[tokio::test]
    async fn messages_wait_for_seats_that_another_runner_has() {
        let room = Bounds::new(2, 1);
        let elsewhere = room.seats.clone().acquire_many_owned(2).await.unwrap();
        let mut desk = Desk::new(&room);
        for _ in 0..300 {
            assert!(
                matches!(desk.admit(message(1, false)), Ok(None)),
                "it waits"
            );
        }
        assert!(matches!(desk.admit(message(1, true)), Ok(None)), "queued");
        assert!(desk.admit(message(1, true)).is_err(), "the queue is full");
        assert!(desk.next().now_or_never().is_none(), "no seat yet");
        drop(elsewhere);
        for _ in 0..301 {
            // Awaited: of so many at once tokio makes the task yield in between.
            let (_, _seat) = desk.next().await;
        }
        assert!(desk.is_empty() && desk.seating.is_none());
        assert_eq!(room.places.available_permits(), 1, "the place is free");
        let seated = desk.admit(message(1, false));
        assert!(matches!(seated, Ok(Some(_))), "nobody waits");
        room.seats.close();
        assert!(matches!(desk.admit(message(1, false)), Ok(None)));
        assert!(desk.next().now_or_never().is_none(), "closed: it rests");
    }

    #[test]
    fn what_waits_is_bounded_in_requests_and_bytes() {
        let mut waiting = Waiting::new();
        assert!(waiting.push(message(1, true), || Some(())).is_ok());
        assert!(waiting.push(message(1, true), || None).is_err(), "no place");
        assert!(
            waiting.push(message(1, false), || None).is_ok(),
            "no one waits for this one"
        );
        assert!(
            waiting
                .push(message(WAITING_BYTES_MAX, false), || None)
                .is_err(),
            "too many bytes"
        );
        while waiting.pop().is_some() {}
        assert_eq!(waiting.bytes, 0);
    }

    #[test]
    fn how_many_wait_is_bounded_too() {
        let mut waiting = Waiting::<()>::new();
        for _ in 0..WAITING_MAX {
            waiting.push(message(0, false), || None).unwrap();
        }
        assert!(waiting.push(message(0, false), || None).is_err());
    }
}
