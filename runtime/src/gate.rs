//! Admission: a bounded number of seats, and a bounded queue in front of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::ended::Ended;

/// What a refused caller is told to wait: long enough for a burst to pass, short enough not to
/// leave seats empty.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// A seat, given back when dropped.
pub(crate) type Seat = OwnedSemaphorePermit;

/// The seats and the queue of one replica.
pub(crate) struct Gate {
    seats: Arc<Semaphore>,
    concurrency: usize,
    queue: usize,
    queued: AtomicUsize,
}

impl Gate {
    pub(crate) fn new(concurrency: usize, queue: usize) -> Self {
        let concurrency = concurrency.clamp(1, Semaphore::MAX_PERMITS);
        Self {
            seats: Arc::new(Semaphore::new(concurrency)),
            concurrency,
            queue,
            queued: AtomicUsize::new(0),
        }
    }

    /// Takes a seat, waiting for one in the queue until `deadline` if there is a place in it.
    pub(crate) async fn enter(&self, deadline: Option<Instant>) -> Result<Seat, Ended> {
        if let Ok(seat) = self.seats.clone().try_acquire_owned() {
            return Ok(seat);
        }
        let _place = self.queue_up()?;
        let seat = self.seats.clone().acquire_owned();
        let entered = match deadline {
            Some(deadline) => {
                tokio::time::timeout_at(deadline, seat).await.map_err(|_| self.busy())?
            }
            None => seat.await,
        };
        // Closed by `close`: the replica stops.
        entered.map_err(|_| Ended::Stopped)
    }

    /// Refuses everyone from now on, those in the queue too.
    pub(crate) fn close(&self) {
        self.seats.close();
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.concurrency - self.seats.available_permits()
    }

    pub(crate) fn queued(&self) -> usize {
        self.queued.load(Relaxed)
    }

    fn queue_up(&self) -> Result<Place<'_>, Ended> {
        self.queued
            .try_update(Relaxed, Relaxed, |queued| (queued < self.queue).then_some(queued + 1))
            .map(|_| Place(&self.queued))
            .map_err(|_| self.busy())
    }

    fn busy(&self) -> Ended {
        Ended::Busy {
            concurrency: self.concurrency,
            queue: self.queue,
            retry_after: RETRY_AFTER,
        }
    }
}

/// A place in the queue, given back when dropped.
struct Place<'a>(&'a AtomicUsize);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}
