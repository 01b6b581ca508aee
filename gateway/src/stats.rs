//! Counters of a gateway since it started.
//!
//! Owns the kinds of errors that a gateway answers with.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use http::{HeaderMap, HeaderValue, StatusCode};
use serde::{Deserialize, Serialize};

use crate::headers;

/// What kind of error a gateway answered with; the value of the header `wasmorch-error`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorClass {
    /// The request cannot be routed, or its body broke off.
    BadRequest,
    /// No workload answers for this host name and path.
    UnknownHost,
    /// The workload is known, and no replica is ready.
    NoEndpoint,
    /// This gateway has too many requests in hand.
    Overloaded,
    /// The replica's queue is full.
    Busy,
    /// The replica took too long.
    TimedOut,
    /// The body is too large.
    TooLarge,
    /// The guest failed.
    Failed,
    /// Every host that was tried refused; nothing was executed.
    Refused,
    /// No host that was tried could be reached; nothing was executed.
    Unreachable,
    /// The connection to the other host broke, or the replica was ended; the request may have been executed.
    Lost,
    /// It passed too many gateways.
    Loop,
    /// It asks for what `wasi:http` cannot carry to a guest.
    NotCarried,
    /// Its body did not come in time.
    LateRequest,
}

impl ErrorClass {
    /// All of them.
    pub const ALL: [Self; 14] = [
        Self::BadRequest,
        Self::UnknownHost,
        Self::NoEndpoint,
        Self::Overloaded,
        Self::Busy,
        Self::TimedOut,
        Self::TooLarge,
        Self::Failed,
        Self::Refused,
        Self::Unreachable,
        Self::Lost,
        Self::Loop,
        Self::NotCarried,
        Self::LateRequest,
    ];

    /// The word in the header and in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::BadRequest => "bad-request",
            Self::UnknownHost => "unknown-host",
            Self::NoEndpoint => "no-endpoint",
            Self::Overloaded => "overloaded",
            Self::Busy => "busy",
            Self::TimedOut => "timed-out",
            Self::TooLarge => "too-large",
            Self::Failed => "failed",
            Self::Refused => "refused",
            Self::Unreachable => "unreachable",
            Self::Lost => "lost",
            Self::Loop => "loop",
            Self::NotCarried => "not-carried",
            Self::LateRequest => "late-request",
        }
    }

    /// Of an answer that a gateway made, and no guest: a guest's own headers of ours are taken off.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let error = headers.get(headers::ERROR)?;
        let mut all = Self::ALL.into_iter();
        all.find(|class| error == class.as_str())
    }

    /// Whether it speaks against the replica. `patient`: its own time was over, not its caller's.
    pub(crate) const fn blames_replica(self, patient: bool) -> bool {
        match self {
            Self::Failed | Self::Lost => true,
            Self::TimedOut => patient,
            _ => false,
        }
    }

    /// Whether whoever asked has brought it about: it speaks neither for the replica nor against it.
    pub(crate) const fn is_the_clients(self) -> bool {
        matches!(self, Self::BadRequest | Self::TooLarge | Self::LateRequest)
    }

    pub(crate) const fn header(self) -> HeaderValue {
        HeaderValue::from_static(self.as_str())
    }

    pub(crate) const fn status(self) -> StatusCode {
        match self {
            Self::BadRequest => StatusCode::BAD_REQUEST,
            Self::UnknownHost => StatusCode::NOT_FOUND,
            Self::NoEndpoint
            | Self::Overloaded
            | Self::Busy
            | Self::Refused
            | Self::Unreachable => StatusCode::SERVICE_UNAVAILABLE,
            Self::TimedOut => StatusCode::GATEWAY_TIMEOUT,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Failed | Self::Lost => StatusCode::BAD_GATEWAY,
            Self::Loop => StatusCode::LOOP_DETECTED,
            Self::NotCarried => StatusCode::NOT_IMPLEMENTED,
            Self::LateRequest => StatusCode::REQUEST_TIMEOUT,
        }
    }
}

/// A gateway's counters at one moment; all but the gauges only grow.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Stats {
    /// Requests taken: public, peer and dispatched.
    pub requests: u64,
    /// Of these, on the peer port.
    pub from_peers: u64,
    /// Requests in hand now, until the last byte of the response (gauge).
    pub in_flight: u64,
    /// Handed to a replica of this host.
    pub local: u64,
    /// Handed to another host, further tries included.
    pub forwarded: u64,
    /// Further tries.
    pub retried: u64,
    /// Times a host was ejected.
    pub ejected: u64,
    /// Connections to other hosts that went through the tunnel, because dialling failed.
    pub tunnelled: u64,
    /// Answers by the status' hundreds: 2xx, 3xx, 4xx, 5xx.
    pub answers: [u64; 4],
    /// Errors that this gateway made, by [`ErrorClass`], in the order of [`ErrorClass::ALL`].
    pub errors: [u64; ErrorClass::ALL.len()],
    /// Connections accepted.
    pub connections: u64,
    /// Connections turned away for being too many.
    pub connections_refused: u64,
    /// Open connections (gauge).
    pub connections_open: u64,
}

impl Stats {
    /// Adds what another gateway has counted.
    pub fn add(&mut self, other: &Self) {
        let Self {
            requests,
            from_peers,
            in_flight,
            local,
            forwarded,
            retried,
            ejected,
            tunnelled,
            answers,
            errors,
            connections,
            connections_refused,
            connections_open,
        } = self;
        *requests += other.requests;
        *from_peers += other.from_peers;
        *in_flight += other.in_flight;
        *local += other.local;
        *forwarded += other.forwarded;
        *retried += other.retried;
        *ejected += other.ejected;
        *tunnelled += other.tunnelled;
        let many = answers.iter_mut().zip(other.answers);
        let many = many.chain(errors.iter_mut().zip(other.errors));
        many.for_each(|(sum, one)| *sum += one);
        *connections += other.connections;
        *connections_refused += other.connections_refused;
        *connections_open += other.connections_open;
    }

    /// What it has counted, without what is now: of a gateway that has ended.
    #[must_use]
    pub fn counters(&self) -> Self {
        Self {
            in_flight: 0,
            connections_open: 0,
            ..self.clone()
        }
    }

    /// Errors of one kind.
    pub fn errors_of(&self, class: ErrorClass) -> u64 {
        self.errors[class as usize]
    }
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) requests: AtomicU64,
    pub(crate) from_peers: AtomicU64,
    pub(crate) in_flight: AtomicU64,
    pub(crate) local: AtomicU64,
    pub(crate) forwarded: AtomicU64,
    pub(crate) retried: AtomicU64,
    pub(crate) ejected: AtomicU64,
    pub(crate) tunnelled: AtomicU64,
    answers: [AtomicU64; 4],
    errors: [AtomicU64; ErrorClass::ALL.len()],
    pub(crate) connections: AtomicU64,
    pub(crate) connections_refused: AtomicU64,
    pub(crate) connections_open: AtomicU64,
}

impl Counters {
    pub(crate) fn answered(&self, status: StatusCode) {
        let hundreds = usize::from(status.as_u16() / 100).saturating_sub(2);
        if let Some(counter) = self.answers.get(hundreds) {
            counter.fetch_add(1, Relaxed);
        }
    }

    pub(crate) fn failed(&self, class: ErrorClass) {
        self.errors[class as usize].fetch_add(1, Relaxed);
    }

    pub(crate) fn snapshot(&self) -> Stats {
        let load = |counter: &AtomicU64| counter.load(Relaxed);
        Stats {
            requests: load(&self.requests),
            from_peers: load(&self.from_peers),
            in_flight: load(&self.in_flight),
            local: load(&self.local),
            forwarded: load(&self.forwarded),
            retried: load(&self.retried),
            ejected: load(&self.ejected),
            tunnelled: load(&self.tunnelled),
            answers: self.answers.each_ref().map(load),
            errors: self.errors.each_ref().map(load),
            connections: load(&self.connections),
            connections_refused: load(&self.connections_refused),
            connections_open: load(&self.connections_open),
        }
    }
}

/// Adds one now, takes it away when dropped.
#[derive(Debug)]
pub(crate) struct Gauge<T, F: Fn(&T) -> &AtomicU64> {
    of: T,
    counter: F,
}

impl<T, F: Fn(&T) -> &AtomicU64> Gauge<T, F> {
    pub(crate) fn new(of: T, counter: F) -> Self {
        counter(&of).fetch_add(1, Relaxed);
        Self { of, counter }
    }
}

impl<T, F: Fn(&T) -> &AtomicU64> Drop for Gauge<T, F> {
    fn drop(&mut self) {
        (self.counter)(&self.of).fetch_sub(1, Relaxed);
    }
}

/// One of the gateway's own counters.
pub(crate) type CounterGauge = Gauge<Arc<Counters>, fn(&Arc<Counters>) -> &AtomicU64>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_gateways_are_summed() {
        let counters = Counters::default();
        counters.in_flight.fetch_add(1, Relaxed);
        counters.connections_refused.fetch_add(2, Relaxed);
        counters.answered(StatusCode::OK);
        counters.failed(ErrorClass::Busy);
        let one = counters.snapshot();
        let mut sum = one.counters();
        sum.add(&one);
        assert_eq!((sum.in_flight, sum.connections_refused), (1, 4));
        assert_eq!(
            (sum.answers, sum.errors_of(ErrorClass::Busy)),
            ([2, 0, 0, 0], 2)
        );
    }

    #[test]
    fn classes_are_numbered_as_listed() {
        for (at, class) in ErrorClass::ALL.into_iter().enumerate() {
            assert_eq!(class as usize, at);
            assert_eq!(serde_json::to_value(class).unwrap(), class.as_str());
        }
    }
}
