//! The other hosts: pooled HTTP/2 connections to their peer ports, what is in hand there, who is
//! ejected.
//!
//! Owns the connections and the tasks that drive them. A request that fails here is told apart:
//! not sent, so that it may go elsewhere, or lost, so that it may not.
//!
//! Known limits: a connection is cleartext and the peer is not authenticated yet (identity comes
//! with mTLS); a host that cannot be dialled is not reached yet.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::Limits;
use crate::replay::Attempt;
use crate::stats::Counters;

/// Unread data of one response. Small beside the connection's, so that a few clients that do not
/// read cannot stop all others.
pub(crate) const STREAM_WINDOW_BYTES: u32 = 256 * 1024;
/// Unread data of one connection between gateways.
pub(crate) const CONNECTION_WINDOW_BYTES: u32 = 32 * 1024 * 1024;
/// A peer that does not answer a ping for this long while requests wait is gone: without this, a
/// host that lost its power would hold requests until TCP gives up.
const PING_INTERVAL: Duration = Duration::from_secs(5);
const PING_TIMEOUT: Duration = Duration::from_secs(5);
/// Known hosts above which the unused ones are forgotten.
const PEERS_MAX: usize = 1024;

/// Why a request got no response from another host.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SendError {
    /// It was not executed there.
    #[error("{0}")]
    NotSent(String),
    /// It may have been.
    #[error("{0}")]
    Lost(String),
}

/// Runs what HTTP/2 connections spawn, so that all of it is joined.
#[derive(Debug, Clone)]
pub(crate) struct Tasks {
    tracker: TaskTracker,
    end: CancellationToken,
}

impl<F> hyper::rt::Executor<F> for Tasks
where
    F: Future<Output: Send> + Send + 'static,
{
    fn execute(&self, task: F) {
        self.tracker
            .spawn(self.end.clone().run_until_cancelled_owned(task));
    }
}

/// All other hosts that requests went to.
#[derive(Debug)]
pub(crate) struct Peers {
    known: RwLock<HashMap<Arc<str>, Arc<Peer>>>,
    builder: http2::Builder<Tasks>,
    tasks: Tasks,
    counters: Arc<Counters>,
    started: Instant,
    connect_timeout: Duration,
    idle: Duration,
    connections: usize,
    eject_after: u32,
    eject_for: Duration,
}

/// One other host.
#[derive(Debug)]
pub(crate) struct Peer {
    address: Arc<str>,
    in_flight: AtomicU32,
    /// Which connection is next.
    turn: AtomicUsize,
    slots: Box<[Slot]>,
    /// Failures to connect in a row.
    failures: AtomicU32,
    /// Milliseconds after the pool's start.
    ejected_until: AtomicU64,
}

/// A place for one connection.
#[derive(Debug, Default)]
struct Slot {
    sender: Mutex<Option<http2::SendRequest<Attempt>>>,
    /// One request connects, the others wait for it.
    connecting: tokio::sync::Mutex<()>,
    /// Attempts to connect so far.
    attempts: AtomicU64,
    /// Requests so far.
    used: AtomicU64,
}

impl Slot {
    fn open(&self) -> Option<http2::SendRequest<Attempt>> {
        let mut held = self.sender.lock().unwrap_or_else(PoisonError::into_inner);
        if held.as_ref().is_some_and(http2::SendRequest::is_closed) {
            *held = None;
        }
        held.clone()
    }

    fn set(&self, sender: Option<http2::SendRequest<Attempt>>) {
        *self.sender.lock().unwrap_or_else(PoisonError::into_inner) = sender;
    }
}

impl Peer {
    pub(crate) fn address(&self) -> &str {
        &self.address
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

    fn is_used(&self) -> bool {
        self.in_flight() > 0 || self.slots.iter().any(|slot| slot.open().is_some())
    }
}

impl Peers {
    pub(crate) fn new(limits: &Limits, counters: Arc<Counters>) -> Self {
        let tasks = Tasks {
            tracker: TaskTracker::new(),
            end: CancellationToken::new(),
        };
        let mut builder = http2::Builder::new(tasks.clone());
        builder
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_header_list_size(u32::try_from(limits.header_bytes_max).unwrap_or(u32::MAX))
            .keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT);
        Self {
            known: RwLock::default(),
            builder,
            tasks,
            counters,
            started: Instant::now(),
            connect_timeout: limits.connect_timeout,
            idle: limits.peer_idle,
            connections: limits.peer_connections.max(1),
            eject_after: limits.eject_after.max(1),
            eject_for: limits.eject_for,
        }
    }

    /// The host behind an address, if a request ever went there.
    pub(crate) fn get(&self, address: &str) -> Option<Arc<Peer>> {
        self.known
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(address)
            .cloned()
    }

    /// The host behind an address.
    pub(crate) fn at(&self, address: &Arc<str>) -> Arc<Peer> {
        if let Some(peer) = self.get(address) {
            return peer;
        }
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= PEERS_MAX {
            known.retain(|_, peer| peer.is_used());
        }
        let peer = || Peer {
            address: address.clone(),
            in_flight: AtomicU32::new(0),
            turn: AtomicUsize::new(0),
            slots: (0..self.connections).map(|_| Slot::default()).collect(),
            failures: AtomicU32::new(0),
            ejected_until: AtomicU64::new(0),
        };
        known
            .entry(address.clone())
            .or_insert_with(|| Arc::new(peer()))
            .clone()
    }

    /// Whether the host is left alone for now.
    pub(crate) fn is_ejected(&self, peer: &Peer) -> bool {
        let until = peer.ejected_until.load(Relaxed);
        // Most hosts never were: no look at the clock.
        until > 0 && self.now_ms() < until
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Sends a request and waits for the head of its response.
    pub(crate) async fn send(
        &self,
        peer: &Arc<Peer>,
        request: Request<Attempt>,
    ) -> Result<Response<Incoming>, SendError> {
        let turn = peer.turn.fetch_add(1, Relaxed) % peer.slots.len();
        let slot = &peer.slots[turn];
        let mut request = request;
        loop {
            let (mut sender, pooled) = match slot.open() {
                Some(sender) => (sender, true),
                None => (
                    self.connect(peer, turn).await.map_err(SendError::NotSent)?,
                    false,
                ),
            };
            slot.used.fetch_add(1, Relaxed);
            let mut error = match sender.try_send_request(request).await {
                Ok(response) => return Ok(response),
                Err(error) => error,
            };
            let unsent = error.take_message();
            let error = error.into_error();
            request = match unsent {
                // The other side closed a connection that was kept; a new one is worth a try.
                Some(unsent) if pooled => unsent,
                unsent => {
                    let text = format!("{}: {}", peer.address, chain(&error));
                    return Err(if unsent.is_some() || is_refused_stream(&error) {
                        SendError::NotSent(text)
                    } else {
                        SendError::Lost(text)
                    });
                }
            };
            slot.set(None);
        }
    }

    async fn connect(
        &self,
        peer: &Arc<Peer>,
        turn: usize,
    ) -> Result<http2::SendRequest<Attempt>, String> {
        let slot = &peer.slots[turn];
        let attempts = slot.attempts.load(Relaxed);
        let _one_at_a_time = slot.connecting.lock().await;
        if let Some(sender) = slot.open() {
            return Ok(sender);
        }
        if slot.attempts.load(Relaxed) != attempts {
            // Whoever connected while this one waited has failed; a queue of requests must not
            // wait for one time-out after the other.
            return Err(format!("{}: could not connect a moment ago", peer.address));
        }
        slot.attempts.fetch_add(1, Relaxed);
        match self.dial(peer, turn).await {
            Ok(sender) => {
                peer.failures.store(0, Relaxed);
                peer.ejected_until.store(0, Relaxed);
                slot.set(Some(sender.clone()));
                Ok(sender)
            }
            Err(reason) => {
                let failures = peer.failures.fetch_add(1, Relaxed).saturating_add(1);
                if failures >= self.eject_after {
                    let length = u64::try_from(self.eject_for.as_millis()).unwrap_or(u64::MAX);
                    peer.ejected_until
                        .store(self.now_ms().saturating_add(length).max(1), Relaxed);
                    self.counters.ejected.fetch_add(1, Relaxed);
                    tracing::warn!(peer = peer.address(), failures, reason, "host ejected");
                }
                Err(format!("{}: {reason}", peer.address))
            }
        }
    }

    async fn dial(
        &self,
        peer: &Arc<Peer>,
        turn: usize,
    ) -> Result<http2::SendRequest<Attempt>, String> {
        if self.tasks.end.is_cancelled() {
            return Err("this gateway is shutting down".into());
        }
        let dialled = timeout(self.connect_timeout, async {
            let stream = TcpStream::connect(peer.address())
                .await
                .map_err(|e| e.to_string())?;
            stream.set_nodelay(true).map_err(|e| e.to_string())?;
            self.builder
                .handshake(TokioIo::new(stream))
                .await
                .map_err(|e| chain(&e))
        });
        let no_answer = |_| format!("no connection within {:?}", self.connect_timeout);
        let (sender, connection) = dialled.await.map_err(no_answer)??;
        let (peer, idle, end) = (peer.clone(), self.idle, self.tasks.end.clone());
        self.tasks.tracker.spawn(async move {
            let kept = keep(&peer.slots[turn], &peer, connection, idle);
            end.run_until_cancelled(kept).await;
        });
        Ok(sender)
    }

    /// Ends all connections and joins their tasks.
    pub(crate) async fn end(&self) {
        self.tasks.end.cancel();
        self.tasks.tracker.close();
        self.tasks.tracker.wait().await;
    }
}

/// Drives a connection until it ends; lets it end when it is not used for a while.
async fn keep(
    slot: &Slot,
    peer: &Peer,
    connection: impl Future<Output = hyper::Result<()>>,
    idle: Duration,
) {
    let mut connection = pin!(connection);
    let mut used = slot.used.load(Relaxed);
    loop {
        tokio::select! {
            ended = &mut connection => {
                if let Err(error) = ended {
                    tracing::debug!(peer = peer.address(), error = chain(&error), "connection ended");
                }
                return;
            }
            () = tokio::time::sleep(idle) => {
                let now = slot.used.load(Relaxed);
                if now == used && peer.in_flight() == 0 {
                    // Without a sender the connection ends by itself.
                    slot.set(None);
                }
                used = now;
            }
        }
    }
}

/// The peer said that it did not look at the request (RFC 9113, 8.7).
fn is_refused_stream(error: &hyper::Error) -> bool {
    let h2 = std::error::Error::source(error).and_then(|source| source.downcast_ref::<h2::Error>());
    h2.is_some_and(|h2| {
        h2.is_reset() && h2.is_remote() && h2.reason() == Some(h2::Reason::REFUSED_STREAM)
    })
}

/// An error and what caused it, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}
