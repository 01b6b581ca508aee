//! The other hosts: pooled HTTP/2 connections to their peer ports, what is in hand there, who is
//! ejected.
//!
//! Owns the connections and the tasks that drive them. A request that fails here is told apart:
//! not sent, so that it may go elsewhere, or lost, so that it may not.
//!
//! ```text
//!   direct ──does not answer: through the tunnel too, whichever is first──> tunnelled
//!     ^                                                                        │
//!     └───────────── dialled now and then, in the background: it answers ──────┘
//! ```
//!
//! Whoever answers in its place does not count: see `dial`.
//!
//! Known limit: a connection is cleartext and the peer is not authenticated yet (identity comes
//! with mTLS).

use std::collections::HashMap;
use std::pin::pin;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use http::{Request, Response};
use hyper::client::conn::http2;
use hyper_util::rt::TokioTimer;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use wasmorch_api::error::chain;

use crate::Body;
use crate::balance::Candidate;
use crate::config::Limits;
use crate::health::{ms, now_ms};
use crate::replay::Attempt;
use crate::stats::Counters;
use crate::tunnel::Tunnel;

mod dial;
mod keeper;
mod passed;
mod peer;

use dial::{Joined, direct, join};
use keeper::{Keeper, Redial};
pub(crate) use passed::FromPeer;
use peer::Bounds;
pub(crate) use peer::Peer;

/// Unread data of one request or response.
pub(crate) const STREAM_WINDOW_BYTES: u32 = 256 * 1024;
/// And of a response over a connection that is not kept: those come when hundreds are under way to one host, and
/// of so many no single one needs to be fast. What all responses of a host may leave unread in a runner is 120 MiB
/// so (`the_unread_of_one_host_is_bounded`), and would be 512 MiB.
const FURTHER_WINDOW_BYTES: u32 = 32 * 1024;
/// The largest window that HTTP/2 knows (RFC 9113, 6.9.1).
const WINDOW_BYTES_MAX: u32 = (1 << 31) - 1;
/// A peer that has said nothing for this long while requests wait is asked whether it is there.
const PING_INTERVAL: Duration = Duration::from_secs(1);
/// One that does not answer for this long is gone: without this, a host that lost its power would hold
/// requests until TCP gives up. The answer may stand behind what a slow link has in its buffers: see
/// `socket.rs`.
const PING_TIMEOUT: Duration = Duration::from_secs(5);
/// Known hosts above which the unused ones are forgotten.
const PEERS_MAX: usize = 1024;

/// Unread data of one connection between gateways: what all its streams may hold. So whoever reads nothing
/// stops nobody else.
pub(crate) fn connection_window(streams_max: u32, stream_window: u32) -> u32 {
    streams_max
        .saturating_mul(stream_window)
        .clamp(stream_window, WINDOW_BYTES_MAX)
}

/// What connections to other hosts are made by, with so much unread of each response.
fn builder(tasks: &Tasks, limits: &Limits, stream_window: u32) -> http2::Builder<Tasks> {
    let window = connection_window(limits.peer_streams_max, stream_window);
    let mut builder = http2::Builder::new(tasks.clone());
    builder
        .timer(TokioTimer::new())
        .initial_stream_window_size(stream_window)
        .initial_connection_window_size(window)
        .max_header_list_size(u32::try_from(limits.header_bytes_max).unwrap_or(u32::MAX))
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT);
    builder
}

/// Why a request got no response from another host.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SendError {
    /// It was not executed there.
    #[error("{0}")]
    NotSent(String),
    /// Nor was it sent: as many as may be are in hand there.
    #[error("{0}")]
    Full(String),
    /// It may have been executed.
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
    /// By way: a host at an address.
    known: RwLock<HashMap<Arc<str>, Arc<Peer>>>,
    tunnel: Option<Arc<dyn Tunnel>>,
    /// Of the connections that are kept, and of those for when these are full.
    kept: http2::Builder<Tasks>,
    further: http2::Builder<Tasks>,
    tasks: Tasks,
    counters: Arc<Counters>,
    connect_timeout: Duration,
    tunnel_after: Duration,
    dial_again: (Duration, Duration),
    idle: Duration,
    connections: Bounds,
    eject_after: u32,
    eject_for: Duration,
}

impl Peers {
    pub(crate) fn new(
        limits: &Limits,
        tunnel: Option<Arc<dyn Tunnel>>,
        counters: Arc<Counters>,
    ) -> Self {
        let tasks = Tasks {
            tracker: TaskTracker::new(),
            end: CancellationToken::new(),
        };
        let kept = limits.peer_connections.max(1);
        Self {
            known: RwLock::default(),
            tunnel,
            kept: builder(&tasks, limits, STREAM_WINDOW_BYTES),
            further: builder(&tasks, limits, FURTHER_WINDOW_BYTES),
            tasks,
            counters,
            connect_timeout: limits.connect_timeout,
            tunnel_after: limits.tunnel_after,
            dial_again: limits.dial_again,
            idle: limits.peer_idle,
            connections: Bounds {
                kept,
                most: limits.peer_connections_max.max(kept),
                streams_max: limits.peer_streams_max.max(1),
            },
            eject_after: limits.eject_after.max(1),
            eject_for: limits.eject_for,
        }
    }

    /// Whether hosts that cannot be dialled are reached.
    pub(crate) fn has_tunnel(&self) -> bool {
        self.tunnel.is_some()
    }

    /// The host behind a way, if a request ever went there.
    pub(crate) fn get(&self, way: &str) -> Option<Arc<Peer>> {
        self.known
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(way)
            .cloned()
    }

    /// The host that serves a workload.
    pub(crate) fn at(&self, candidate: &Candidate) -> Arc<Peer> {
        if let Some(peer) = self.get(&candidate.way) {
            return peer;
        }
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= PEERS_MAX {
            known.retain(|_, peer| peer.is_used());
        }
        known
            .entry(candidate.way.clone())
            .or_insert_with(|| Arc::new(Peer::new(candidate, &self.connections)))
            .clone()
    }

    /// Whether the host is left alone for now.
    pub(crate) fn is_ejected(&self, peer: &Peer) -> bool {
        let until = peer.ejected_until.load(Relaxed);
        // Most hosts never were: no look at the clock.
        until > 0 && now_ms() < until
    }

    /// Sends a request and waits for the head of its response.
    pub(crate) async fn send(
        &self,
        peer: &Arc<Peer>,
        request: Request<Attempt>,
    ) -> Result<Response<FromPeer>, SendError> {
        let stream = peer.stream().ok_or_else(|| SendError::Full(peer.full()))?;
        let turn = stream.turn;
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
                Ok(response) => return Ok(response.map(|body| FromPeer::new(body, stream))),
                Err(error) => error,
            };
            let unsent = error.take_message();
            let error = error.into_error();
            request = match unsent {
                // The other side closed a connection that was kept; a new one is worth a try.
                Some(unsent) if pooled => unsent,
                unsent => {
                    let text = format!("{}: {}", peer.name(), chain(&error));
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
            return Err(format!("{}: could not connect a moment ago", peer.name()));
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
                    let until = now_ms().saturating_add(ms(self.eject_for));
                    peer.ejected_until.store(until, Relaxed);
                    self.counters.ejected.fetch_add(1, Relaxed);
                    tracing::warn!(peer = peer.name(), failures, reason, "host ejected");
                }
                Err(format!("{}: {reason}", peer.name()))
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
        let builder = match turn < self.connections.kept {
            true => &self.kept,
            false => &self.further,
        };
        let reached = timeout(self.connect_timeout, self.reach(peer, builder)).await;
        let no_answer = |_| format!("no connection within {:?}", self.connect_timeout);
        let ((sender, connection), tunnelled) = reached.map_err(no_answer)??;
        if tunnelled {
            self.counters.tunnelled.fetch_add(1, Relaxed);
        }
        let keeper = Keeper {
            peer: peer.clone(),
            turn,
            idle: self.idle,
            redial: tunnelled.then(|| Redial {
                builder: builder.clone(),
                within: self.connect_timeout,
                pauses: self.dial_again,
            }),
        };
        let end = self.tasks.end.clone();
        self.tasks.tracker.spawn(async move {
            end.run_until_cancelled(keeper.keep(connection)).await;
        });
        Ok(sender)
    }

    /// A connection to the host, and whether it goes through the tunnel.
    async fn reach(
        &self,
        peer: &Peer,
        builder: &http2::Builder<Tasks>,
    ) -> Result<(Joined, bool), String> {
        let dial = |address| direct(builder, address, &peer.host);
        let tunnelled = |tunnel| through(builder, tunnel, peer);
        let (address, tunnel) = match (&peer.address, &self.tunnel) {
            (Some(address), None) => return Ok((dial(address).await?, false)),
            (None, None) => return Err("it cannot be dialled".into()),
            (None, Some(tunnel)) => return Ok((tunnelled(tunnel).await?, true)),
            (Some(address), Some(tunnel)) => (address, tunnel),
        };
        if !peer.dials_in().is_zero() {
            if let Ok(joined) = tunnelled(tunnel).await {
                return Ok((joined, true));
            }
            let joined = dial(address).await?;
            peer.went_directly();
            return Ok((joined, false));
        }
        let mut dialling = pin!(dial(address));
        match timeout(self.tunnel_after, &mut dialling).await {
            Ok(Ok(joined)) => {
                peer.went_directly();
                return Ok((joined, false));
            }
            Ok(Err(reason)) => {
                let joined = tunnelled(tunnel).await;
                let joined = joined.map_err(|error| format!("{reason}; {error}"))?;
                peer.went_through_tunnel(self.dial_again);
                return Ok((joined, true));
            }
            Err(_) => {}
        }
        tokio::select! {
            Ok(joined) = &mut dialling => {
                peer.went_directly();
                Ok((joined, false))
            }
            Ok(joined) = tunnelled(tunnel) => {
                peer.went_through_tunnel(self.dial_again);
                Ok((joined, true))
            }
            else => Err("it answers neither directly nor through the tunnel".into()),
        }
    }

    /// An answer for whoever may stop to read it, and is no connection of ours: then it is ended.
    pub(crate) fn passed(&self, body: FromPeer, limit: Duration, called: &TaskTracker) -> Body {
        let (passing, passed) = passed::pass(body, limit);
        let passing = called.track_future(passing);
        let end = self.tasks.end.clone();
        self.tasks
            .tracker
            .spawn(end.run_until_cancelled_owned(passing));
        passed
    }

    /// Ends all connections and joins their tasks.
    pub(crate) async fn end(&self) {
        self.tasks.end.cancel();
        self.tasks.tracker.close();
        self.tasks.tracker.wait().await;
    }
}

/// What leads there by the host's id needs not to ask who is there.
async fn through(
    builder: &http2::Builder<Tasks>,
    tunnel: &Arc<dyn Tunnel>,
    peer: &Peer,
) -> Result<Joined, String> {
    join(builder, tunnel.open(&peer.host).await?).await
}

/// The peer said that it did not look at the request (RFC 9113, 8.7).
fn is_refused_stream(error: &hyper::Error) -> bool {
    let h2 = std::error::Error::source(error).and_then(|source| source.downcast_ref::<h2::Error>());
    h2.is_some_and(|h2| {
        h2.is_reset() && h2.is_remote() && h2.reason() == Some(h2::Reason::REFUSED_STREAM)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unread_of_one_host_is_bounded() {
        let limits = Limits::default();
        let of = |connections: usize, stream_window| {
            let window = connection_window(limits.peer_streams_max, stream_window);
            connections * window as usize
        };
        let (kept, most) = (limits.peer_connections, limits.peer_connections_max);
        let unread = of(kept, STREAM_WINDOW_BYTES) + of(most - kept, FURTHER_WINDOW_BYTES);
        assert_eq!(unread, 120 << 20);
    }
}
