//! What a replica uses, counted over all its live instances, and the limit on its memory: over all
//! processes that have a share of it.
//!
//! A [`Meter`] is one replica's; a [`MemoryLimiter`] is one instance's share of it, given back
//! when its store is dropped. All counters are atomics: nothing here waits.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use wasmtime::{ResourceLimiter, UpdateDeadline};

use crate::engine::TABLE_ELEMENTS_MAX;
use crate::guest::Watch;
use crate::ledger::{Account, Field};
use crate::share::CpuShare;

/// Core instances in one store: several times what the largest known components have.
const INSTANCES_MAX: usize = 512;
/// Tables in one store.
const TABLES_MAX: usize = 128;
/// Memories in one store.
const MEMORIES_MAX: usize = 64;

/// What a replica uses now, and what it used so far, in this process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Linear memory of all live instances.
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
    /// Refused as busy so far; no instance was started for these.
    pub refused_total: u64,
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
}

impl MemoryLimiter {
    pub(crate) fn new(meter: Arc<Meter>, watch: Arc<Watch>, limit: u64) -> Self {
        Self {
            meter,
            watch,
            limit,
            held: 0,
            last: 0,
        }
    }

    /// What the guest does at a tick of the epoch.
    pub(crate) fn at_tick(&self) -> UpdateDeadline {
        self.watch.pace().at_tick()
    }
}

impl Drop for MemoryLimiter {
    fn drop(&mut self) {
        self.meter.give_back(self.held);
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
        let bytes = desired.saturating_sub(current) as u64;
        match self.meter.take(bytes, self.limit) {
            Ok(()) => {
                self.held += bytes;
                self.last = bytes;
                Ok(true)
            }
            Err(wanted) => {
                // The guest sees a growth that failed, as the specification has it. Most then
                // trap; the watch tells that trap from others.
                self.watch.memory_denied(wanted);
                Ok(false)
            }
        }
    }

    fn memory_grow_failed(&mut self, error: wasmtime::Error) -> wasmtime::Result<()> {
        tracing::debug!(error = format!("{error:#}"), "a memory could not grow");
        let bytes = std::mem::take(&mut self.last);
        self.held -= bytes;
        self.meter.give_back(bytes);
        Ok(())
    }

    fn table_growing(
        &mut self,
        _current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        Ok(desired <= TABLE_ELEMENTS_MAX)
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
