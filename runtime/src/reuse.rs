//! Instances that have answered a request and wait for another (`instance = { reuse = N, idle = T }`).
//!
//! ```text
//!   request ──> the one used last, or a fresh one ──> answered well, and not yet N ──> kept
//!                                                \──> anything else ──> dropped
//!                                         unused for T, or its memory is wanted ──> dropped
//! ```
//!
//! One instance serves one request at a time, or several of 0.3 (`together.rs`). What it keeps from one to the next is what the guest
//! keeps: its memory and its open handles, both counted until it is dropped.
//!
//! Invariants:
//! - A trap, a panic, a timeout, a limit that was met, a request that was dropped: no second request.
//! - Nothing of the host's that belongs to one request is left when it is kept.
//! - What waits holds no seat, and is the first to go when the replica is short of memory.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use wasmtime::Store;
use wasmtime_wasi_http::p2::bindings::Proxy;
use wasmtime_wasi_http::p3::bindings::Service;

use crate::artifact::Code;
use crate::runtime::Runtime;
use crate::state::GuestState;
use crate::together::Together;

/// How often an instance of an http replica is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reuse {
    /// Requests that one instance may serve; 1 is a fresh instance for each.
    pub requests: u32,
    /// So many of them at the same time, in an instance of 0.3; one of 0.2 serves one after another.
    pub concurrency: u32,
    /// One that is unused for so long is dropped.
    pub idle: Duration,
}

impl Default for Reuse {
    fn default() -> Self {
        Self {
            requests: 1,
            concurrency: 1,
            idle: Duration::from_secs(10),
        }
    }
}

/// What is called in a store.
pub(crate) enum Instance {
    P2(Proxy),
    P3(Service),
}

/// A store with its instance; `None` until it is instantiated.
pub(crate) struct Running {
    pub(crate) instance: Option<Instance>,
    pub(crate) store: Store<GuestState>,
    pub(crate) code: Arc<Code>,
    /// Requests that it has answered.
    pub(crate) served: u32,
}

/// What waits.
pub(crate) enum Idle {
    /// An instance for one request at a time.
    Alone(Running),
    /// One for several.
    Together(Arc<Together>),
}

struct Kept {
    idle: Idle,
    since: Instant,
    _place: Place,
}

/// The instances of one replica that wait.
pub(crate) struct Pool {
    reuse: Reuse,
    runtime: Runtime,
    waiting: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    /// The one used last at the end.
    kept: Vec<Kept>,
    closed: bool,
    /// Whether somebody looks after those that are unused for long.
    watched: bool,
}

impl Pool {
    pub(crate) fn new(reuse: Reuse, runtime: &Runtime) -> Arc<Self> {
        Arc::new(Self {
            reuse,
            runtime: runtime.clone(),
            waiting: Mutex::default(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // A panic while it was held leaves a list that is usable.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The one that was used last: its memory is the warmest, and the others get old.
    pub(crate) fn take(&self) -> Option<Idle> {
        self.lock().kept.pop().map(|kept| kept.idle)
    }

    /// Keeps an instance that has answered well, if it may answer again. Must be called in a tokio
    /// runtime.
    pub(crate) fn keep(self: &Arc<Self>, mut running: Running) {
        running.served += 1;
        if running.served >= self.reuse.requests || !running.store.data_mut().is_between_requests()
        {
            return;
        }
        self.rest(Idle::Alone(running));
    }

    /// Keeps an instance in which nothing runs. Must be called in a tokio runtime.
    pub(crate) fn rest(self: &Arc<Self>, idle: Idle) {
        let Some(place) = Place::take(&self.runtime) else {
            return;
        };
        let kept = Kept {
            idle,
            since: Instant::now(),
            _place: place,
        };
        let mut waiting = self.lock();
        if waiting.closed {
            // Dropping a store takes time: not under the lock.
            drop(waiting);
            drop(kept);
            return;
        }
        waiting.kept.push(kept);
        let watched = std::mem::replace(&mut waiting.watched, true);
        drop(waiting);
        if !watched {
            tokio::spawn(watch(Arc::downgrade(self), self.reuse.idle));
        }
    }

    /// Drops the one that has waited longest, for its memory; whether there was one.
    pub(crate) fn give_up_one(&self) -> bool {
        let oldest = {
            let mut waiting = self.lock();
            (!waiting.kept.is_empty()).then(|| waiting.kept.remove(0))
        };
        oldest.is_some()
    }

    /// Drops all, and keeps none from now on.
    pub(crate) fn close(&self) {
        let kept = {
            let mut waiting = self.lock();
            waiting.closed = true;
            std::mem::take(&mut waiting.kept)
        };
        drop(kept);
    }

    /// Drops what is unused for too long. How long until there may be more; `None`: nothing waits.
    fn sweep(&self) -> Option<Duration> {
        let (old, next) = {
            let mut waiting = self.lock();
            let now = Instant::now();
            let fresh = |kept: &Kept| now.saturating_duration_since(kept.since) < self.reuse.idle;
            let first = waiting.kept.iter().position(fresh);
            let first = first.unwrap_or(waiting.kept.len());
            let old: Vec<_> = waiting.kept.drain(..first).collect();
            let next = waiting.kept.first().map(|kept| {
                let age = now.saturating_duration_since(kept.since);
                self.reuse.idle.saturating_sub(age)
            });
            waiting.watched = next.is_some();
            (old, next)
        };
        drop(old);
        next
    }
}

/// Lives as long as something waits.
async fn watch(pool: Weak<Pool>, idle: Duration) {
    let mut wait = idle;
    loop {
        tokio::time::sleep(wait).await;
        let Some(next) = pool.upgrade().and_then(|pool| pool.sweep()) else {
            return;
        };
        wait = next;
    }
}

/// A place among all that wait in this runtime: at most a quarter of what may live.
struct Place(Runtime);

/// How many wait, over all replicas.
#[derive(Debug, Default)]
pub(crate) struct Places(AtomicUsize);

impl Place {
    fn take(runtime: &Runtime) -> Option<Self> {
        let most = usize::try_from(runtime.config().instances_max / 4).unwrap_or(usize::MAX);
        let taken = runtime
            .inner
            .waiting
            .0
            .try_update(SeqCst, SeqCst, |count| (count < most).then_some(count + 1));
        taken.is_ok().then(|| Self(runtime.clone()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.inner.waiting.0.fetch_sub(1, SeqCst);
    }
}
