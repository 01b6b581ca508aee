//! One other host: what is in hand there, its connections, and how it was last reached.

use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::client::conn::http2;
use wasmorch_api::HostId;

use crate::balance::Candidate;
use crate::health::{ms, now_ms};
use crate::replay::Attempt;

/// One other host.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(super) host: HostId,
    /// `None`: it cannot be dialled.
    pub(super) address: Option<Arc<str>>,
    /// Dialling failed so often in a row, while the tunnel worked.
    pub(super) undialled: AtomicU32,
    /// When to dial again, after that; on the clock of `now_ms`.
    pub(super) dial_at: AtomicU64,
    pub(super) in_flight: AtomicU32,
    /// Which connection is next.
    pub(super) turn: AtomicUsize,
    pub(super) slots: Box<[Slot]>,
    /// Failures to connect in a row.
    pub(super) failures: AtomicU32,
    /// Milliseconds after the pool's start.
    pub(super) ejected_until: AtomicU64,
}

/// A place for one connection.
#[derive(Debug, Default)]
pub(super) struct Slot {
    pub(super) sender: Mutex<Option<http2::SendRequest<Attempt>>>,
    /// One request connects, the others wait for it.
    pub(super) connecting: tokio::sync::Mutex<()>,
    /// Attempts to connect so far.
    pub(super) attempts: AtomicU64,
    /// Requests so far.
    pub(super) used: AtomicU64,
}

impl Slot {
    pub(super) fn open(&self) -> Option<http2::SendRequest<Attempt>> {
        let mut held = self.sender.lock().unwrap_or_else(PoisonError::into_inner);
        if held.as_ref().is_some_and(http2::SendRequest::is_closed) {
            *held = None;
        }
        held.clone()
    }

    pub(super) fn set(&self, sender: Option<http2::SendRequest<Attempt>>) {
        *self.sender.lock().unwrap_or_else(PoisonError::into_inner) = sender;
    }
}

impl Peer {
    pub(super) fn new(candidate: &Candidate, connections: usize) -> Self {
        Self {
            host: candidate.host.clone(),
            address: candidate.address.clone(),
            undialled: AtomicU32::new(0),
            dial_at: AtomicU64::new(0),
            in_flight: AtomicU32::new(0),
            turn: AtomicUsize::new(0),
            slots: (0..connections).map(|_| Slot::default()).collect(),
            failures: AtomicU32::new(0),
            ejected_until: AtomicU64::new(0),
        }
    }

    /// For people: where it is, or which it is.
    pub(crate) fn name(&self) -> &str {
        self.address.as_deref().unwrap_or(self.host.as_str())
    }

    /// Dialling failed, and the tunnel worked: until when it is not dialled.
    pub(super) fn went_through_tunnel(&self, (first, last): (Duration, Duration)) {
        let times = self.undialled.fetch_add(1, Relaxed).min(16);
        if times == 0 && self.address.is_some() {
            tracing::info!(host = %self.host, peer = self.name(), "reached through the tunnel");
        }
        let pause = first.saturating_mul(1 << times).min(last);
        self.dial_at
            .store(now_ms().saturating_add(ms(pause)), Relaxed);
    }

    pub(super) fn went_directly(&self) {
        if self.undialled.swap(0, Relaxed) > 0 {
            tracing::info!(host = %self.host, peer = self.name(), "reached directly again");
        }
        self.dial_at.store(0, Relaxed);
    }

    /// How long it is not dialled from now on.
    pub(super) fn dials_in(&self) -> Duration {
        Duration::from_millis(self.dial_at.load(Relaxed).saturating_sub(now_ms()))
    }

    pub(crate) fn request_began(&self) {
        self.in_flight.fetch_add(1, Relaxed);
    }

    pub(crate) fn request_ended(&self) {
        self.in_flight.fetch_sub(1, Relaxed);
    }

    pub(crate) fn in_flight(&self) -> u32 {
        self.in_flight.load(Relaxed)
    }

    pub(super) fn is_used(&self) -> bool {
        self.in_flight() > 0 || self.slots.iter().any(|slot| slot.open().is_some())
    }
}
