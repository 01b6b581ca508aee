//! Admission: a bounded number of seats, and a bounded queue in front of them, both counted over
//! all runners that have a share of the replica.
//!
//! ```text
//!   enter ── a seat is free, nobody waits here ─────────────────────────────> seat
//!      \── a place in the queue ──> first in line here ── a seat is free ──^
//!      \── no place: busy
//! ```
//!
//! A seat that is given back in this runner wakes whoever is first in line here. One that is given
//! back in another runner wakes nobody: the first in line looks again after [`LOOK_AGAIN`], and the
//! longer it has waited, the later.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use tokio::sync::{Mutex, Notify};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use crate::ended::Ended;
use crate::ledger::{Account, Field};

/// What a refused caller is told to wait: long enough for a burst to pass, short enough not to
/// leave seats empty.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// How long a seat that another runner gave back may stay empty: at first, doubled at each look,
/// and at most. Only who is first in line looks.
const LOOK_AGAIN: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(50));

struct Shared {
    account: Account,
    concurrency: u64,
    queue: u64,
    /// Waiting here, so that nobody overtakes them.
    waiting: AtomicUsize,
    /// Held by who is first in line; fair.
    line: Mutex<()>,
    /// A seat was given back here.
    freed: Notify,
    /// The last seat here was given back.
    emptied: Notify,
    closed: CancellationToken,
}

/// A seat, given back when dropped.
pub struct Seat(Arc<Shared>);

impl Drop for Seat {
    fn drop(&mut self) {
        // Free first, then tell.
        self.0.account.give_back(Field::InFlight, 1);
        self.0.freed.notify_one();
        if self.0.account.own(Field::InFlight) == 0 {
            self.0.emptied.notify_waiters();
        }
    }
}

/// The seats and the queue of one replica, as one runner sees them.
pub(crate) struct Gate(Arc<Shared>);

impl Gate {
    pub(crate) fn new(account: Account, concurrency: usize, queue: usize) -> Self {
        Self(Arc::new(Shared {
            account,
            concurrency: u64::try_from(concurrency.max(1)).unwrap_or(u64::MAX),
            queue: u64::try_from(queue).unwrap_or(u64::MAX),
            waiting: AtomicUsize::new(0),
            line: Mutex::new(()),
            freed: Notify::new(),
            emptied: Notify::new(),
            closed: CancellationToken::new(),
        }))
    }

    /// Takes a seat, waiting for one in the queue until `deadline` if there is a place in it.
    pub(crate) async fn enter(&self, deadline: Option<Instant>) -> Result<Seat, Ended> {
        if self.0.closed.is_cancelled() {
            return Err(Ended::Stopped);
        }
        if let Some(seat) = self.try_seat() {
            return Ok(seat);
        }
        let _place = self.queue_up()?;
        let waiting = self.wait();
        let seated = match deadline {
            Some(deadline) => tokio::time::timeout_at(deadline, waiting).await,
            None => Ok(waiting.await),
        };
        seated.map_err(|_| self.busy())?
    }

    /// A seat now, if one is free and nobody here waits for it.
    pub(crate) fn try_seat(&self) -> Option<Seat> {
        (self.0.waiting.load(SeqCst) == 0)
            .then(|| self.try_enter())
            .flatten()
    }

    /// Takes a seat, however long that takes: for who bounds what waits by himself. `None`: closed.
    pub(crate) async fn seat(&self) -> Option<Seat> {
        if let Some(seat) = self.try_seat() {
            return Some(seat);
        }
        let _line = InLine::new(&self.0);
        self.wait().await.ok()
    }

    fn try_enter(&self) -> Option<Seat> {
        let taken = self.0.account.take(Field::InFlight, 1, self.0.concurrency);
        let seat = taken.ok().map(|_| Seat(self.0.clone()))?;
        // Looked at after it was taken: whoever closes and then finds no seat taken knows that
        // none is.
        (!self.0.closed.is_cancelled()).then_some(seat)
    }

    async fn wait(&self) -> Result<Seat, Ended> {
        let shared = &self.0;
        let seated = async {
            let _first = shared.line.lock().await;
            let mut look_again = LOOK_AGAIN.0;
            loop {
                let freed = shared.freed.notified();
                // A seat that is taken and found closed wakes this very loop: it would never end.
                if shared.closed.is_cancelled() {
                    return Err(Ended::Stopped);
                }
                if let Some(seat) = self.try_enter() {
                    return Ok(seat);
                }
                if shared.account.is_alone() {
                    freed.await;
                } else {
                    // Late is as good: the seat is looked for either way.
                    let _ = timeout(look_again, freed).await;
                    look_again = (look_again * 2).min(LOOK_AGAIN.1);
                }
            }
        };
        tokio::select! {
            // The replica stops.
            () = shared.closed.cancelled() => Err(Ended::Stopped),
            seat = seated => seat,
        }
    }

    /// Refuses everyone from now on, those in the queue too.
    pub(crate) fn close(&self) {
        self.0.closed.cancel();
    }

    /// Waits until every seat here is given back. Meant for after `close`, when none is taken any
    /// more.
    pub(crate) async fn idle(&self) {
        loop {
            let mut emptied = std::pin::pin!(self.0.emptied.notified());
            // Registered before the count is read, so that no seat is missed.
            emptied.as_mut().enable();
            if self.in_flight() == 0 {
                return;
            }
            emptied.await;
        }
    }

    /// Whether a seat would be free now, wherever they are taken.
    pub(crate) fn has_room(&self) -> bool {
        self.0.account.sum(Field::InFlight) < self.0.concurrency
    }

    /// Seats and places in the queue that are taken, wherever.
    pub(crate) fn load(&self) -> usize {
        let account = &self.0.account;
        let load = account.sum(Field::InFlight) + account.sum(Field::Queued);
        usize::try_from(load).unwrap_or(usize::MAX)
    }

    /// Seats taken here.
    pub(crate) fn in_flight(&self) -> usize {
        usize::try_from(self.0.account.own(Field::InFlight)).unwrap_or(usize::MAX)
    }

    /// How many wait here in the queue.
    pub(crate) fn queued(&self) -> usize {
        usize::try_from(self.0.account.own(Field::Queued)).unwrap_or(usize::MAX)
    }

    /// Takes a place in the queue, or tells that there is none.
    pub(crate) fn queue_up(&self) -> Result<Place, Ended> {
        let taken = self.0.account.take(Field::Queued, 1, self.0.queue);
        taken.map_err(|_| self.busy())?;
        let line = InLine::new(&self.0);
        Ok(Place { line })
    }

    fn busy(&self) -> Ended {
        let count = |count| usize::try_from(count).unwrap_or(usize::MAX);
        Ended::Busy {
            concurrency: count(self.0.concurrency),
            queue: count(self.0.queue),
            retry_after: RETRY_AFTER,
        }
    }
}

/// Someone who waits here: nobody overtakes him.
struct InLine(Arc<Shared>);

impl InLine {
    fn new(shared: &Arc<Shared>) -> Self {
        shared.waiting.fetch_add(1, SeqCst);
        Self(shared.clone())
    }
}

impl Drop for InLine {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, SeqCst);
    }
}

/// A place in the queue, given back when dropped.
pub struct Place {
    line: InLine,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.line.0.account.give_back(Field::Queued, 1);
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;
    use crate::ledger::Ledger;

    #[tokio::test]
    async fn who_waits_outside_the_queue_gets_a_seat_that_another_runner_gives_back() {
        let (ledger, _file) = Ledger::create(2, 1).unwrap();
        let gate = |column| Gate::new(Account::new(ledger.clone(), column, 0), 1, 0);
        let (here, there) = (gate(0), gate(1));
        let held = here.try_seat().expect("it is free");
        assert!(there.try_seat().is_none(), "it is taken elsewhere");
        assert!(there.enter(None).await.is_err(), "the queue has no place");
        let mut waiting = Box::pin(there.seat());
        assert!(waiting.as_mut().now_or_never().is_none());
        assert_eq!(there.queued(), 0, "it takes no place in the queue");
        drop(held);
        assert!(there.try_seat().is_none(), "nobody overtakes who waits");
        let seat = timeout(Duration::from_secs(10), waiting).await;
        assert!(seat.expect("in time").is_some());
        here.close();
        // Which of the two is looked at first is up to chance.
        for _ in 0..64 {
            assert!(here.seat().await.is_none(), "closed");
        }
    }
}
