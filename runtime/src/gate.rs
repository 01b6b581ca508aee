//! Admission: a bounded number of seats, and a bounded queue in front of them.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, TryAcquireError};
use tokio::time::Instant;

use crate::ended::Ended;

/// What a refused caller is told to wait: long enough for a burst to pass, short enough not to
/// leave seats empty.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// A seat, given back when dropped.
pub(crate) struct Seat {
    permit: Option<OwnedSemaphorePermit>,
    freed: Arc<Notify>,
}

impl Drop for Seat {
    fn drop(&mut self) {
        // Free first, then tell.
        self.permit = None;
        self.freed.notify_waiters();
    }
}

/// The seats and the queue of one replica.
pub(crate) struct Gate {
    seats: Arc<Semaphore>,
    concurrency: usize,
    queue: usize,
    queued: AtomicUsize,
    freed: Arc<Notify>,
}

impl Gate {
    pub(crate) fn new(concurrency: usize, queue: usize) -> Self {
        let concurrency = concurrency.clamp(1, Semaphore::MAX_PERMITS);
        Self {
            seats: Arc::new(Semaphore::new(concurrency)),
            concurrency,
            queue,
            queued: AtomicUsize::new(0),
            freed: Arc::default(),
        }
    }

    /// Takes a seat, waiting for one in the queue until `deadline` if there is a place in it.
    pub(crate) async fn enter(&self, deadline: Option<Instant>) -> Result<Seat, Ended> {
        let permit = match self.seats.clone().try_acquire_owned() {
            Ok(permit) => permit,
            Err(TryAcquireError::Closed) => return Err(Ended::Stopped),
            Err(TryAcquireError::NoPermits) => self.wait(deadline).await?,
        };
        Ok(Seat {
            permit: Some(permit),
            freed: self.freed.clone(),
        })
    }

    async fn wait(&self, deadline: Option<Instant>) -> Result<OwnedSemaphorePermit, Ended> {
        let _place = self.queue_up()?;
        let permit = self.seats.clone().acquire_owned();
        let permit = match deadline {
            Some(deadline) => tokio::time::timeout_at(deadline, permit)
                .await
                .map_err(|_| self.busy())?,
            None => permit.await,
        };
        // Closed by `close`: the replica stops.
        permit.map_err(|_| Ended::Stopped)
    }

    /// Refuses everyone from now on, those in the queue too.
    pub(crate) fn close(&self) {
        self.seats.close();
    }

    /// Waits until every seat is given back. Meant for after `close`, when none is taken any more.
    pub(crate) async fn idle(&self) {
        loop {
            let mut freed = pin!(self.freed.notified());
            // Registered before the count is read, so that no seat is missed.
            freed.as_mut().enable();
            if self.in_flight() == 0 {
                return;
            }
            freed.await;
        }
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.concurrency - self.seats.available_permits()
    }

    pub(crate) fn queued(&self) -> usize {
        self.queued.load(Relaxed)
    }

    fn queue_up(&self) -> Result<Place<'_>, Ended> {
        self.queued
            .try_update(Relaxed, Relaxed, |queued| {
                (queued < self.queue).then_some(queued + 1)
            })
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
