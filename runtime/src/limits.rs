//! What a replica uses, counted over all its live instances, and the limit on its memory: over all
//! processes that have a share of it.
//!
//! A [`Meter`] is one replica's; a [`MemoryLimiter`] is one instance's share of it, given back
//! when its store is dropped. All counters are atomics: nothing here waits.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::time::Duration;

use wasmtime::component::ResourceTable;
use wasmtime::{ResourceLimiter, UpdateDeadline};

use crate::engines::TABLE_ELEMENTS_MAX;
use crate::guest::Watch;
use crate::holdings::{HANDLES_MAX, Held, Looks};
use crate::ledger::{Account, Field};
use crate::reuse::Pool;
use crate::share::CpuShare;

/// Core instances in one store: several times what the largest known components have.
pub const INSTANCES_MAX: usize = 512;
/// Tables in one store.
pub const TABLES_MAX: usize = 128;
/// Memories in one store.
pub const MEMORIES_MAX: usize = 64;
/// One element of a table.
pub(crate) const ELEMENT_BYTES: u64 = 8;

/// What a replica uses now, and what it used so far, in this process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Memory and tables of all live instances, and what the host holds for them.
    pub memory_bytes: u64,
    /// The most that was in use at the same time.
    pub memory_bytes_peak: u64,
    /// Requests, messages or runs in progress.
    pub in_flight: usize,
    /// Requests or messages that wait for a seat.
    pub queued: usize,
    /// Instances started so far.
    pub started_total: u64,
    /// Of those, how many ended without success.
    pub failed_total: u64,
    /// Refused so far, as busy or as the host had no room for one more instance: no guest ran for
    /// these.
    pub refused_total: u64,
    /// Requests that came so far, refused ones included; probes are none.
    pub requests_total: u64,
    /// Wall time of all polls of guests: the processor time of the guests and of their host calls.
    pub cpu_time: Duration,
}

/// The counters of one replica.
#[derive(Debug)]
pub(crate) struct Meter {
    account: Account,
    pub(crate) cpu: CpuShare,
    memory_peak: AtomicU64,
    pub(crate) started: AtomicU64,
    pub(crate) failed: AtomicU64,
    pub(crate) refused: AtomicU64,
    /// Requests that came from outside.
    pub(crate) came: AtomicU64,
    cpu_nanos: AtomicU64,
}

impl Meter {
    pub(crate) fn new(account: Account, cpu_millis: Option<u64>) -> Self {
        Self {
            cpu: CpuShare::new(account.clone(), cpu_millis),
            account,
            memory_peak: AtomicU64::new(0),
            started: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            came: AtomicU64::new(0),
            cpu_nanos: AtomicU64::new(0),
        }
    }

    pub(crate) fn add_cpu(&self, time: Duration) {
        self.cpu_nanos.fetch_add(time.as_nanos() as u64, Relaxed);
    }

    /// Takes memory unless that would exceed `limit`; then says what would have been in use.
    fn take(&self, bytes: u64, limit: u64) -> Result<(), u64> {
        self.account.take(Field::Memory, bytes, limit)?;
        let here = self.account.own(Field::Memory);
        self.memory_peak.fetch_max(here, Relaxed);
        Ok(())
    }

    fn give_back(&self, bytes: u64) {
        self.account.give_back(Field::Memory, bytes);
    }

    pub(crate) fn usage(&self, in_flight: usize, queued: usize) -> Usage {
        Usage {
            memory_bytes: self.account.own(Field::Memory),
            memory_bytes_peak: self.memory_peak.load(Relaxed),
            in_flight,
            queued,
            started_total: self.started.load(Relaxed),
            failed_total: self.failed.load(Relaxed),
            refused_total: self.refused.load(Relaxed),
            requests_total: self.came.load(Relaxed),
            cpu_time: Duration::from_nanos(self.cpu_nanos.load(Relaxed)),
        }
    }
}

/// One instance's share of the memory of its replica.
pub(crate) struct MemoryLimiter {
    meter: Arc<Meter>,
    watch: Arc<Watch>,
    limit: u64,
    held: u64,
    last: u64,
    looks: Looks,
    /// What was last found to be held outside; its bytes are part of `held`.
    outside: Held,
    /// Instances of the replica that wait: they go before this one is denied.
    waiting: Weak<Pool>,
}

impl MemoryLimiter {
    pub(crate) fn new(meter: Arc<Meter>, watch: Arc<Watch>, limit: u64) -> Self {
        Self {
            meter,
            watch,
            limit,
            held: 0,
            last: 0,
            looks: Looks::default(),
            outside: Held::default(),
            waiting: Weak::new(),
        }
    }

    pub(crate) fn instead_of(&mut self, waiting: Weak<Pool>) {
        self.waiting = waiting;
    }

    /// What it meets from now on is another request's.
    pub(crate) fn begin(&mut self, watch: Arc<Watch>) {
        self.watch = watch;
    }

    /// Whether it met a limit in this request.
    pub(crate) fn was_denied(&self) -> bool {
        self.watch.was_denied()
    }

    fn take(&self, bytes: u64) -> Result<(), u64> {
        loop {
            match self.meter.take(bytes, self.limit) {
                Err(_)
                    if self
                        .waiting
                        .upgrade()
                        .is_some_and(|pool| pool.give_up_one()) => {}
                taken => return taken,
            }
        }
    }

    /// What the guest does at a tick of the epoch. An error ends it: it holds more outside its
    /// memory than it may.
    pub(crate) fn at_tick(
        &mut self,
        table: &mut ResourceTable,
        streams: u64,
    ) -> wasmtime::Result<UpdateDeadline> {
        if let Some(found) = self.looks.look(table, streams) {
            self.count_outside(found)?;
        }
        Ok(self.watch.pace().at_tick())
    }

    fn count_outside(&mut self, found: Held) -> wasmtime::Result<()> {
        let more = found.bytes.saturating_sub(self.outside.bytes);
        if let Err(wanted) = self.take(more) {
            self.watch.memory_denied(wanted);
            wasmtime::bail!("what the host holds for the guest is over the memory limit");
        }
        let less = self.outside.bytes.saturating_sub(found.bytes);
        self.meter.give_back(less);
        self.held = self.held + more - less;
        self.outside.bytes = found.bytes;

        let account = &self.meter.account;
        let more = found.handles.saturating_sub(self.outside.handles);
        if account.take(Field::Handles, more, HANDLES_MAX).is_err() {
            self.watch.handles_denied();
            wasmtime::bail!("too many files, sockets and streams are open");
        }
        let less = self.outside.handles.saturating_sub(found.handles);
        account.give_back(Field::Handles, less);
        self.outside.handles = found.handles;
        Ok(())
    }

    /// Takes bytes for a memory or a table that grows.
    fn grow(&mut self, bytes: u64) -> bool {
        match self.take(bytes) {
            Ok(()) => {
                self.held += bytes;
                self.last = bytes;
                true
            }
            Err(wanted) => {
                // The guest sees a growth that failed, as the specification has it. Most then
                // trap; the watch tells that trap from others.
                self.watch.memory_denied(wanted);
                false
            }
        }
    }

    fn grow_failed(&mut self) {
        let bytes = std::mem::take(&mut self.last);
        self.held -= bytes;
        self.meter.give_back(bytes);
    }
}

impl Drop for MemoryLimiter {
    fn drop(&mut self) {
        self.meter.give_back(self.held);
        let handles = self.outside.handles;
        self.meter.account.give_back(Field::Handles, handles);
    }
}

impl ResourceLimiter for MemoryLimiter {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        if maximum.is_some_and(|maximum| desired > maximum) {
            // The module's own maximum: growing fails whatever is answered, and takes nothing.
            self.last = 0;
            return Ok(true);
        }
        Ok(self.grow(desired.saturating_sub(current) as u64))
    }

    fn memory_grow_failed(&mut self, error: wasmtime::Error) -> wasmtime::Result<()> {
        tracing::debug!(error = format!("{error:#}"), "a memory could not grow");
        self.grow_failed();
        Ok(())
    }

    fn table_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        // The module's own maximum, or what a place of the pool has room for.
        let maximum = maximum.unwrap_or(usize::MAX);
        if desired > maximum.min(TABLE_ELEMENTS_MAX) {
            self.last = 0;
            if maximum >= TABLE_ELEMENTS_MAX {
                self.watch.elements_denied(desired as u64);
            }
            return Ok(false);
        }
        Ok(self.grow(desired.saturating_sub(current) as u64 * ELEMENT_BYTES))
    }

    fn table_grow_failed(&mut self, error: wasmtime::Error) -> wasmtime::Result<()> {
        tracing::debug!(error = format!("{error:#}"), "a table could not grow");
        self.grow_failed();
        Ok(())
    }

    fn instances(&self) -> usize {
        INSTANCES_MAX
    }

    fn tables(&self) -> usize {
        TABLES_MAX
    }

    fn memories(&self) -> usize {
        MEMORIES_MAX
    }
}
