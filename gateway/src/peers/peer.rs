//! One other host: its connections, what each of them has in hand, and how it was last reached.

use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::client::conn::http2;
use tokio::sync::watch;
use wasmorch_api::HostId;

use crate::balance::Candidate;
use crate::health::{ms, now_ms};
use crate::replay::Attempt;

/// Connections to one host, and what they carry.
#[derive(Debug)]
pub(super) struct Bounds {
    /// Kept.
    pub(super) kept: usize,
    /// At the most.
    pub(super) most: usize,
    /// Requests at once on one of them.
    pub(super) streams_max: u32,
}

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
    /// How often it was reached on its own address: told to whatever still goes through the tunnel.
    pub(super) reached: watch::Sender<u64>,
    /// Which of the connections that are kept is next.
    turn: AtomicUsize,
    /// So many share the requests evenly; the rest are for when these are full.
    kept: usize,
    /// Requests at once on one connection.
    streams_max: u32,
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
    /// Requests in hand.
    in_hand: AtomicU32,
}

/// One request's place on a connection, until the last byte of its answer.
#[derive(Debug)]
pub(crate) struct Stream {
    peer: Arc<Peer>,
    pub(super) turn: usize,
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.peer.slots[self.turn].in_hand.fetch_sub(1, Relaxed);
    }
}

impl Slot {
    pub(super) fn open(&self) -> Option<http2::SendRequest<Attempt>> {
        let mut held = self.sender.lock().unwrap_or_else(PoisonError::into_inner);
        if held.as_ref().is_some_and(http2::SendRequest::is_closed) {
            *held = None;
        }
        held.clone()
    }

    pub(super) fn is_idle(&self) -> bool {
        self.in_hand.load(Relaxed) == 0
    }

    fn take(&self, streams_max: u32) -> bool {
        let one_more = |now| (now < streams_max).then_some(now + 1);
        self.in_hand
            .fetch_update(Relaxed, Relaxed, one_more)
            .is_ok()
    }

    pub(super) fn set(&self, sender: Option<http2::SendRequest<Attempt>>) {
        *self.sender.lock().unwrap_or_else(PoisonError::into_inner) = sender;
    }
}

impl Peer {
    pub(super) fn new(candidate: &Candidate, limits: &Bounds) -> Self {
        Self {
            host: candidate.host.clone(),
            address: candidate.address.clone(),
            undialled: AtomicU32::new(0),
            dial_at: AtomicU64::new(0),
            reached: watch::Sender::new(0),
            turn: AtomicUsize::new(0),
            kept: limits.kept,
            streams_max: limits.streams_max,
            slots: (0..limits.most).map(|_| Slot::default()).collect(),
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
        self.reached.send_modify(|times| *times += 1);
    }

    /// How long it is not dialled from now on.
    pub(super) fn dials_in(&self) -> Duration {
        Duration::from_millis(self.dial_at.load(Relaxed).saturating_sub(now_ms()))
    }

    /// A place on the emptiest of the connections that are kept, or on a further one when these are full;
    /// `None`: all are.
    pub(super) fn stream(self: &Arc<Self>) -> Option<Stream> {
        let turn = self.turn.fetch_add(1, Relaxed);
        let in_turn = (0..self.kept).map(|at| turn.wrapping_add(at) % self.kept);
        let emptiest = in_turn.min_by_key(|at| self.slots[*at].in_hand.load(Relaxed));
        let mut all = emptiest.into_iter().chain(self.kept..self.slots.len());
        let turn = all.find(|at| self.slots[*at].take(self.streams_max))?;
        Some(Stream {
            peer: self.clone(),
            turn,
        })
    }

    /// For people: why no more are sent there.
    pub(super) fn full(&self) -> String {
        let most = self.slots.len() * usize::try_from(self.streams_max).unwrap_or(usize::MAX);
        format!(
            "{}: {most} requests are in hand there, and no more are sent",
            self.name()
        )
    }

    pub(super) fn is_used(&self) -> bool {
        let used = |slot: &Slot| !slot.is_idle() || slot.open().is_some();
        self.slots.iter().any(used)
    }
}
