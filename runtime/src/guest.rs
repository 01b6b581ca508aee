//! Running one guest to its end: timeout, panics, processor time, and why it ended.
//!
//! ```text
//!   metered( bounded( paced( instantiate, call ) ) )
//!            |        |      `-- borrows the store, which the caller of `bounded` owns
//!            |        `-- who may run, and for how long
//!            `-- says why in the Watch BEFORE the store is dropped, so that whoever sees the
//!                response body break off finds the reason there
//! ```

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use wasmtime::component::ResourceTableError;
use wasmtime::{PoolConcurrencyLimitError, Trap, WasmBacktrace};

use crate::ended::Ended;
use crate::engines::{TABLE_ELEMENTS_MAX, WASM_STACK_BYTES};
use crate::holdings::{HANDLES_MAX, RESOURCES_MAX};
use crate::limits::Meter;
use crate::pace::Pace;
use crate::runtime::Runtime;

/// When to try again on a host whose pool is used up, or which cannot load the code.
pub(crate) const RETRY_AFTER: Duration = Duration::from_secs(1);

/// A deadline and the limit it comes from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deadline {
    pub(crate) at: tokio::time::Instant,
    pub(crate) limit: Duration,
    /// Whether it is the caller's.
    inherited: bool,
}

impl Deadline {
    pub(crate) fn after(limit: Option<Duration>) -> Option<Self> {
        let limit = limit?;
        // A limit beyond what the clock can express is no limit.
        let at = tokio::time::Instant::now().checked_add(limit)?;
        Some(Self {
            at,
            limit,
            inherited: false,
        })
    }

    /// The own one, or the caller's when that comes first.
    pub(crate) fn earlier(own: Option<Self>, callers: Option<Instant>) -> Option<Self> {
        let Some(callers) = callers.map(tokio::time::Instant::from_std) else {
            return own;
        };
        match own {
            Some(own) if own.at <= callers => Some(own),
            _ => Some(Self {
                at: callers,
                limit: callers.saturating_duration_since(tokio::time::Instant::now()),
                inherited: true,
            }),
        }
    }

    /// What its passing means.
    fn passed(self, throttled: Duration) -> Ended {
        let limit = self.limit;
        if self.inherited {
            Ended::CallerTimeout { limit }
        } else {
            Ended::Timeout { limit, throttled }
        }
    }
}

/// What is known about one instance while it runs, shared with its limiter and its response body.
#[derive(Debug)]
pub(crate) struct Watch {
    runtime: Runtime,
    pace: Pace,
    meter: Arc<Meter>,
    memory_limit: u64,
    memory_wanted: AtomicU64,
    /// The elements of a table that was not made.
    elements_wanted: AtomicU64,
    handles_denied: AtomicBool,
    /// What whoever sent the request made of its body, when that was not all of one.
    request_failed: OnceLock<Ended>,
    /// The guest has asked for more of the body than has come.
    awaits_client: AtomicBool,
    ended: OnceLock<Ended>,
    /// That of an instance which this request shares with others.
    instance: OnceLock<Arc<Watch>>,
    /// How long that had waited for the processor when this request came, in nanoseconds.
    throttled_before: AtomicU64,
    /// It is of such an instance: what ends that is counted by its requests.
    is_shared: bool,
}

impl Watch {
    pub(crate) fn new(runtime: Runtime, meter: Arc<Meter>, memory_limit: u64) -> Self {
        Self {
            runtime,
            pace: Pace::default(),
            meter,
            memory_limit,
            memory_wanted: AtomicU64::new(0),
            elements_wanted: AtomicU64::new(0),
            handles_denied: AtomicBool::new(false),
            request_failed: OnceLock::new(),
            awaits_client: AtomicBool::new(false),
            ended: OnceLock::new(),
            instance: OnceLock::new(),
            throttled_before: AtomicU64::new(0),
            is_shared: false,
        }
    }

    /// The watch of an instance that several requests share.
    pub(crate) fn of_several(self) -> Self {
        Self {
            is_shared: true,
            ..self
        }
    }

    /// The request of this watch runs in an instance with others.
    pub(crate) fn joined(&self, instance: &Arc<Self>) {
        let before = instance.pace.throttled().as_nanos() as u64;
        self.throttled_before.store(before, Relaxed);
        let first = self.instance.set(instance.clone());
        debug_assert!(first.is_ok(), "a request runs in one instance");
    }

    /// How far it may run; asked by its store.
    pub(crate) fn pace(&self) -> &Pace {
        match self.instance.get() {
            Some(instance) => &instance.pace,
            None => &self.pace,
        }
    }

    /// A growth was denied; a failure that follows is put down to it.
    pub(crate) fn memory_denied(&self, wanted: u64) {
        self.memory_wanted.fetch_max(wanted, Relaxed);
    }

    /// The same of a table with more elements than one may have.
    pub(crate) fn elements_denied(&self, wanted: u64) {
        self.elements_wanted.fetch_max(wanted, Relaxed);
    }

    /// It holds too much open; the failure that follows is put down to it.
    pub(crate) fn handles_denied(&self) {
        self.handles_denied.store(true, Relaxed);
    }

    /// Whether it met one of these limits, whatever it made of that.
    pub(crate) fn was_denied(&self) -> bool {
        self.memory_wanted.load(Relaxed) > 0
            || self.elements_wanted.load(Relaxed) > 0
            || self.handles_denied.load(Relaxed)
    }

    /// The request's body will not come whole, by its sender's doing: whatever the guest makes of
    /// that is put down to it.
    pub(crate) fn request_failed(&self, why: Ended) {
        // The others in the instance are to know whose doing its end was.
        if let Some(instance) = self.instance.get() {
            let _ = instance.request_failed.set(why.clone());
        }
        // The first reason is the cause of the others.
        let _ = self.request_failed.set(why);
    }

    /// Why the request's body did not come whole, when that is so.
    pub(crate) fn request_failure(&self) -> Option<&Ended> {
        self.request_failed.get()
    }

    /// Whether it is the sender's turn, as the request's body sees it.
    pub(crate) fn awaits_client(&self, awaits: bool) {
        self.awaits_client.store(awaits, Relaxed);
    }

    /// Records the first reason, counts the failure, and gives that reason back. A host without room
    /// is no failure of the guest: it did not run. Nor is what its client did.
    pub(crate) fn end(&self, ended: Ended) -> Ended {
        let mut first = false;
        let kept = self.ended.get_or_init(|| {
            first = true;
            self.by_the_client(&ended).unwrap_or(ended)
        });
        if first && !self.is_shared && !kept.is_the_clients() {
            let count = match kept {
                Ended::HostFull { .. } => &self.meter.refused,
                _ => &self.meter.failed,
            };
            count.fetch_add(1, Relaxed);
        }
        kept.clone()
    }

    /// The same where its time is over.
    pub(crate) fn end_late(&self, deadline: Deadline) -> Ended {
        let before = Duration::from_nanos(self.throttled_before.load(Relaxed));
        self.end(deadline.passed(self.pace().throttled().saturating_sub(before)))
    }

    /// What the client did that the guest ended so, if that is the cause.
    fn by_the_client(&self, ended: &Ended) -> Option<Ended> {
        match ended {
            Ended::Trap { .. }
            | Ended::MemoryLimit { .. }
            | Ended::TableLimit { .. }
            | Ended::Handles { .. }
            | Ended::NoResponse
            | Ended::Guest(_) => self.request_failed.get().cloned(),
            Ended::Timeout { limit, .. } => {
                let late = || Ended::RequestTimeout { limit: *limit };
                let failed = self.request_failed.get().cloned();
                failed.or_else(|| self.awaits_client.load(Relaxed).then(late))
            }
            // What the host did, or a limit that the guest alone meets.
            _ => None,
        }
    }

    /// Why it ended, when that is known.
    pub(crate) fn ended(&self) -> Option<&Ended> {
        let of_instance = || {
            let ended = self.instance.get()?.ended()?;
            // What the sender of another request did is no fault of this one, nor of the guest.
            let of_another = ended.is_the_clients() && self.request_failure().is_none();
            Some(if of_another { &Ended::Stopped } else { ended })
        };
        self.ended.get().or_else(of_instance)
    }

    fn explain(&self, error: &wasmtime::Error) -> Ended {
        let wanted_bytes = self.memory_wanted.load(Relaxed);
        if wanted_bytes > 0 {
            return Ended::MemoryLimit {
                limit_bytes: self.memory_limit,
                wanted_bytes,
            };
        }
        let wanted = self.elements_wanted.load(Relaxed);
        if wanted > 0 {
            let limit = TABLE_ELEMENTS_MAX as u64;
            return Ended::TableLimit { limit, wanted };
        }
        if self.handles_denied.load(Relaxed) {
            return Ended::Handles { limit: HANDLES_MAX };
        }
        if is_full(error) {
            return Ended::Handles {
                limit: RESOURCES_MAX as u64,
            };
        }
        if let Some(limit) = error.downcast_ref::<PoolConcurrencyLimitError>() {
            return Ended::HostFull {
                message: limit.to_string(),
                retry_after: RETRY_AFTER,
            };
        }
        let backtrace = error
            .downcast_ref::<WasmBacktrace>()
            .map(|backtrace| backtrace.to_string())
            .unwrap_or_default();
        let message = match error.downcast_ref::<Trap>() {
            Some(trap @ Trap::StackOverflow) => format!(
                "{trap}: more than the {} KiB of an instance, which is a fixed limit",
                WASM_STACK_BYTES >> 10
            ),
            Some(trap) => trap.to_string(),
            None => error.root_cause().to_string(),
        };
        Ended::Trap { message, backtrace }
    }
}

/// Whether one of the tables of a store, of resources or of handles, has no room left.
fn is_full(error: &wasmtime::Error) -> bool {
    let table = error.downcast_ref::<ResourceTableError>();
    matches!(table, Some(ResourceTableError::Full))
        // wasmtime has no type for this one.
        || error.root_cause().to_string().contains("store handle limit exceeded")
}

/// Runs `guest`, at its pace, until it is done, its deadline passes or it panics.
///
/// A failure is recorded in `watch` while the store still lives. When the returned future is
/// dropped, so is `guest`, at whatever point it was.
pub(crate) async fn bounded<R>(
    watch: &Watch,
    deadline: Option<Deadline>,
    guest: impl Future<Output = wasmtime::Result<R>> + Send,
) -> Result<R, Ended> {
    let guest = AssertUnwindSafe(guest).catch_unwind();
    let pacer = &watch.runtime.inner.pacer;
    let mut guest = pin!(pacer.paced(&watch.pace, &watch.meter.cpu, guest));
    let result = match deadline {
        Some(deadline) => match tokio::time::timeout_at(deadline.at, guest.as_mut()).await {
            Ok(result) => result,
            Err(_) => {
                return Err(watch.end_late(deadline));
            }
        },
        None => guest.as_mut().await,
    };
    match result {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(watch.end(watch.explain(&error))),
        Err(panic) => {
            let message = panic
                .downcast_ref::<&str>()
                .map(|text| (*text).to_owned())
                .or_else(|| panic.downcast_ref::<String>().cloned())
                .unwrap_or_default();
            tracing::error!(message, "a host call panicked");
            Err(watch.end(Ended::Internal(format!("a host call panicked: {message}"))))
        }
    }
}

/// Adds the time of every poll to the meter.
pub(crate) struct Metered<F> {
    meter: Arc<Meter>,
    inner: Pin<Box<F>>,
}

impl<F> Metered<F> {
    pub(crate) fn new(meter: Arc<Meter>, inner: F) -> Self {
        Self {
            meter,
            inner: Box::pin(inner),
        }
    }
}

impl<F: Future> Future for Metered<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let started = Instant::now();
        let polled = self.inner.as_mut().poll(cx);
        self.meter.add_cpu(started.elapsed());
        polled
    }
}
