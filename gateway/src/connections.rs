//! The open connections of one port: who may stay, who rests for too long, who goes at shutdown.
//!
//! ```text
//!   accepted ──first request──> serving <──> resting ──idle, or shutdown──> closing ──> gone
//!      │                                     │ first byte of a head
//!      └── no complete head in time ─────────┴────────────────────────────────────────> gone
//!   serving ── the client has closed its half, and nothing was sent to it for too long ─> gone
//!   resting ── all places are taken, and it rests longest ───────────────────────────────> gone
//! ```
//!
//! One sweep looks at all of them now and then, so that a connection carries no timer and no
//! subscription of its own: its task looks at one atomic when it is woken anyway. This covers what
//! the protocol libraries' own time-outs do not: the bytes before the protocol is known, and
//! HTTP/2 connections that send half a head.

use std::collections::HashMap;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::task::AtomicWaker;
use http::{HeaderValue, Response, StatusCode, Version, header};
use hyper_util::server::graceful::GracefulConnection;

use crate::config::Limits;
use crate::crowd::{self, Crowd};

const STAY: u8 = 0;
/// Go with the next answer, which says so.
const LEAVE: u8 = 1;
/// Finish what is in hand, take nothing new.
const CLOSE: u8 = 2;
/// Go now.
const DROP: u8 = 3;

/// How long what a client gives up is remembered: short, so that a browser that is closed over many
/// requests, or a service whose deadlines all pass at once, is soon forgiven.
const RESETS_WINDOW: Duration = Duration::from_secs(10);
/// Of those that are answered, one in so many may be given up on top.
const RESETS_PER_ANSWER: u32 = 10;

/// That connections are refused is said again after so long without one.
const QUIET: Duration = Duration::from_secs(60);
/// Once a port is closed, sweeps that a connection without requests has to go by itself.
const CLOSING_TICKS: u32 = 2;
/// No sweep comes so late.
const NEVER: u32 = u32::MAX;

/// The open connections of one port.
#[derive(Debug)]
pub(crate) struct Connections {
    open: Mutex<HashMap<u64, Arc<Watch>>>,
    max: usize,
    next: AtomicU64,
    /// Sweeps so far: the clock by which connections rest.
    now: Arc<AtomicU32>,
    tick: Duration,
    header_ticks: u32,
    idle_ticks: u32,
    half_closed_ticks: u32,
    /// Requests that a connection may give up, before they are answered, in [`RESETS_WINDOW`].
    resets_max: u32,
    resets_ticks: u32,
    /// When the port was closed.
    closed_at: AtomicU32,
    /// When one was refused last.
    refused_at: AtomicU32,
    quiet_ticks: u32,
    /// Who else accepts here.
    crowd: Option<Arc<dyn Crowd>>,
}

/// One connection as the sweep, its task and its requests see it.
#[derive(Debug)]
pub(crate) struct Watch {
    order: AtomicU8,
    waker: AtomicWaker,
    in_flight: AtomicU32,
    /// Whether a request has come.
    served: AtomicBool,
    /// When it began to rest.
    rests_since: AtomicU32,
    /// Whether bytes are more than heads and bodies: HTTP/2, with its pings.
    framed: AtomicBool,
    /// Whether a head has begun that is not complete.
    in_head: AtomicBool,
    head_since: AtomicU32,
    /// Whether the client has closed its half, and when something was last sent to it since.
    half_closed: AtomicBool,
    half_closed_since: AtomicU32,
    /// Lately: requests that were answered, and those that were given up before.
    answered: AtomicU32,
    given_up: AtomicU32,
    resets_max: u32,
    /// How often its client has made room for more of a response.
    went_on: Arc<AtomicU64>,
    now: Arc<AtomicU32>,
}

/// A client's request that has not been answered. Dropped without an answer it was given up.
#[derive(Debug)]
pub(crate) struct Unanswered<'w>(Option<&'w Watch>);

impl Unanswered<'_> {
    pub(crate) fn answered(mut self) {
        if let Some(watch) = self.0.take() {
            watch.answered.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Drop for Unanswered<'_> {
    fn drop(&mut self) {
        if let Some(watch) = self.0 {
            watch.gives_up();
        }
    }
}

impl Watch {
    pub(crate) fn request_began(&self, version: Version) {
        let framed = version >= Version::HTTP_2;
        self.framed.store(framed, Ordering::Relaxed);
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        self.served.store(true, Ordering::Relaxed);
        self.in_head.store(false, Ordering::Relaxed);
    }

    /// A client's request, which it may give up.
    pub(crate) fn asks(&self) -> Unanswered<'_> {
        Unanswered(Some(self))
    }

    /// Each costs the start of a guest and nothing of the client (CVE-2023-44487). The library counts only
    /// those that are given up before it has looked at them.
    fn gives_up(&self) {
        let given_up = self.given_up.fetch_add(1, Ordering::Relaxed) + 1;
        let answered = self.answered.load(Ordering::Relaxed);
        let max = self.resets_max.saturating_add(answered / RESETS_PER_ANSWER);
        if given_up > max.saturating_mul(2) {
            // It was asked to go, and goes on.
            self.order(DROP);
        } else if given_up > max {
            self.order(CLOSE);
        }
    }

    /// Between two requests, and no further one has begun.
    fn rests(&self) -> bool {
        self.served.load(Ordering::Relaxed)
            && self.in_flight.load(Ordering::Acquire) == 0
            && !self.in_head.load(Ordering::Acquire)
    }

    pub(crate) fn went_on(&self) -> &Arc<AtomicU64> {
        &self.went_on
    }

    /// Bytes were read that no request has been made of yet.
    pub(crate) fn bytes_came(&self) {
        let between = self.served.load(Ordering::Relaxed)
            && self.in_flight.load(Ordering::Relaxed) == 0
            && !self.framed.load(Ordering::Relaxed);
        if between && !self.in_head.load(Ordering::Relaxed) {
            let now = self.now.load(Ordering::Relaxed);
            self.head_since.store(now, Ordering::Relaxed);
            self.in_head.store(true, Ordering::Release);
        }
    }

    /// Whether a request by HTTP/1.1 is in hand.
    pub(crate) fn answers_http1(&self) -> bool {
        self.in_flight.load(Ordering::Relaxed) > 0 && !self.framed.load(Ordering::Relaxed)
    }

    /// Its client has closed its half of the connection; or, later, has been sent something.
    pub(crate) fn half_closed(&self) {
        let now = self.now.load(Ordering::Relaxed);
        self.half_closed_since.store(now, Ordering::Relaxed);
        self.half_closed.store(true, Ordering::Release);
    }

    pub(crate) fn request_ended(&self) {
        // Before the count: a sweep between the two must not see a rest that began long ago.
        self.rests_since
            .store(self.now.load(Ordering::Relaxed), Ordering::Relaxed);
        self.in_flight.fetch_sub(1, Ordering::Release);
    }

    /// The answer of a connection that is to leave says so: a client whose connection is closed while it
    /// rests may have a request on its way, which nobody would answer. HTTP/2 has words of its own for it.
    pub(crate) fn part<B>(&self, version: Version, response: &mut Response<B>) {
        if self.order.load(Ordering::Relaxed) != LEAVE {
            return;
        }
        if version >= Version::HTTP_2 {
            self.order(CLOSE);
        } else if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            let close = HeaderValue::from_static("close");
            response.headers_mut().insert(header::CONNECTION, close);
        }
    }

    fn order(&self, order: u8) {
        self.order.fetch_max(order, Ordering::Relaxed);
        self.waker.wake();
    }
}

impl Connections {
    pub(crate) fn new(limits: &Limits) -> Self {
        let shortest = limits.header_timeout.min(limits.idle_timeout);
        let shortest = shortest.min(limits.half_closed_timeout);
        let tick = (shortest / 4).clamp(Duration::from_millis(10), Duration::from_secs(1));
        // One more: the first tick comes early.
        let ticks = |timeout: Duration| {
            u32::try_from(timeout.as_nanos().div_ceil(tick.as_nanos()) + 1).unwrap_or(u32::MAX)
        };
        Self {
            open: Mutex::default(),
            max: limits.connections_max,
            next: AtomicU64::new(0),
            now: Arc::default(),
            tick,
            header_ticks: ticks(limits.header_timeout),
            idle_ticks: ticks(limits.idle_timeout),
            half_closed_ticks: ticks(limits.half_closed_timeout),
            resets_max: limits.resets_max,
            resets_ticks: ticks(RESETS_WINDOW),
            closed_at: AtomicU32::new(NEVER),
            refused_at: AtomicU32::new(NEVER),
            quiet_ticks: ticks(QUIET),
            crowd: None,
        }
    }

    /// The same among others that accept from the same listener.
    pub(crate) fn among(self, crowd: Option<Arc<dyn Crowd>>) -> Self {
        Self { crowd, ..self }
    }

    /// Whether a new connection is better left to others.
    pub(crate) fn is_over(&self) -> bool {
        let over = |crowd: &Arc<dyn Crowd>| crowd::is_over(self.lock().len(), crowd.share());
        self.crowd.as_ref().is_some_and(over)
    }

    fn tell(&self, open: usize) {
        if let Some(crowd) = &self.crowd {
            crowd.tell(open);
        }
    }

    /// Asks what is over this process's share to leave, each with its next answer. Those that are at work
    /// first: theirs comes soonest.
    fn shed(&self) {
        let Some(crowd) = &self.crowd else {
            return;
        };
        let open = self.lock();
        let stays = |watch: &&Arc<Watch>| watch.order.load(Ordering::Relaxed) == STAY;
        let surplus = crowd::surplus(open.values().filter(stays).count(), crowd.share());
        let works = |watch: &&Arc<Watch>| watch.in_flight.load(Ordering::Relaxed) > 0;
        let rests = |watch: &&Arc<Watch>| !works(watch) && watch.served.load(Ordering::Relaxed);
        let chosen = open.values().filter(stays).filter(works);
        let chosen = chosen.chain(open.values().filter(stays).filter(rests));
        chosen.take(surplus).for_each(|watch| watch.order(LEAVE));
    }

    /// How often to sweep.
    pub(crate) fn tick(&self) -> Duration {
        self.tick
    }

    /// A place for a new connection, that of who rests longest if need be; `None`: there are too many.
    pub(crate) fn enter(self: &Arc<Self>) -> Option<Place> {
        let mut open = self.lock();
        if open.len() >= self.max && !self.makes_room(&open) {
            return None;
        }
        let now = self.now.clone();
        let watch = Arc::new(Watch {
            order: AtomicU8::new(STAY),
            waker: AtomicWaker::new(),
            in_flight: AtomicU32::new(0),
            served: AtomicBool::new(false),
            rests_since: AtomicU32::new(now.load(Ordering::Relaxed)),
            framed: AtomicBool::new(false),
            in_head: AtomicBool::new(false),
            head_since: AtomicU32::new(0),
            half_closed: AtomicBool::new(false),
            half_closed_since: AtomicU32::new(0),
            answered: AtomicU32::new(0),
            given_up: AtomicU32::new(0),
            resets_max: self.resets_max,
            went_on: Arc::default(),
            now,
        });
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        open.insert(id, watch.clone());
        self.tell(open.len());
        Some(Place {
            connections: self.clone(),
            id,
            watch,
        })
    }

    /// Ends the connection that rests longest, where one does: whoever only keeps it for later has no right to
    /// it over who comes with a request.
    fn makes_room(&self, open: &HashMap<u64, Arc<Watch>>) -> bool {
        let now = self.now.load(Ordering::Relaxed);
        let rests =
            |watch: &&Arc<Watch>| watch.rests() && watch.order.load(Ordering::Relaxed) < DROP;
        let since =
            |watch: &&Arc<Watch>| now.wrapping_sub(watch.rests_since.load(Ordering::Relaxed));
        let longest = open.values().filter(rests).max_by_key(since);
        longest.inspect(|watch| watch.order(DROP)).is_some()
    }

    /// One was refused. Whether that is news.
    pub(crate) fn refuses(&self) -> bool {
        let now = self.now.load(Ordering::Relaxed);
        let last = self.refused_at.swap(now, Ordering::Relaxed);
        last == NEVER || now.wrapping_sub(last) >= self.quiet_ticks
    }

    /// Ends those that rest for too long, and those that others should have.
    pub(crate) fn sweep(&self) {
        self.shed();
        let now = self.now.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        let forgives = now.is_multiple_of(self.resets_ticks);
        for watch in self.lock().values() {
            if forgives {
                watch.answered.store(0, Ordering::Relaxed);
                watch.given_up.store(0, Ordering::Relaxed);
            }
            let since = |at: &AtomicU32| now.wrapping_sub(at.load(Ordering::Relaxed));
            if watch.in_flight.load(Ordering::Acquire) > 0 {
                if watch.half_closed.load(Ordering::Acquire)
                    && since(&watch.half_closed_since) >= self.half_closed_ticks
                {
                    watch.order(DROP);
                }
                continue;
            }
            let rested = since(&watch.rests_since);
            let closed = self.closed_at.load(Ordering::Relaxed);
            if closed != NEVER && rested.min(now.wrapping_sub(closed)) >= CLOSING_TICKS {
                // It was asked to go, and nothing of it is in hand: who is gone has not heard it.
                watch.order(DROP);
                continue;
            }
            if !watch.served.load(Ordering::Relaxed) {
                if rested >= self.header_ticks {
                    watch.order(DROP);
                }
            } else if watch.in_head.load(Ordering::Acquire)
                && since(&watch.head_since) >= self.header_ticks
            {
                watch.order(DROP);
            } else if rested >= self.idle_ticks.saturating_add(self.header_ticks) {
                // Asked to close, and still in the middle of a head.
                watch.order(DROP);
            } else if rested >= self.idle_ticks {
                watch.order(CLOSE);
            }
        }
    }

    /// Asks all to finish what is in hand.
    pub(crate) fn close(&self) {
        let now = self.now.load(Ordering::Relaxed);
        self.closed_at.store(now, Ordering::Relaxed);
        self.lock().values().for_each(|watch| watch.order(CLOSE));
    }

    /// Ends all now.
    pub(crate) fn end(&self) {
        self.lock().values().for_each(|watch| watch.order(DROP));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Arc<Watch>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection's place among the open ones, until it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    connections: Arc<Connections>,
    id: u64,
    watch: Arc<Watch>,
}

impl Place {
    pub(crate) fn watch(&self) -> &Arc<Watch> {
        &self.watch
    }

    /// What comes before the protocol is known; `None`: the connection is to go meanwhile.
    pub(crate) async fn until_ordered<F: Future>(&self, preparing: F) -> Option<F::Output> {
        let mut preparing = pin!(preparing);
        std::future::poll_fn(|cx| {
            self.watch.waker.register(cx.waker());
            if self.watch.order.load(Ordering::Relaxed) >= CLOSE {
                return Poll::Ready(None);
            }
            preparing.as_mut().poll(cx).map(Some)
        })
        .await
    }

    /// Serves the connection until it ends or is ended.
    pub(crate) async fn drive<C: GracefulConnection>(self, connection: C) -> Result<(), C::Error> {
        let mut connection = pin!(connection);
        let mut closing = false;
        std::future::poll_fn(|cx| self.poll(connection.as_mut(), &mut closing, cx)).await
    }

    fn poll<C: GracefulConnection>(
        &self,
        mut connection: Pin<&mut C>,
        closing: &mut bool,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), C::Error>> {
        // Before the order is read, so that no order is missed.
        self.watch.waker.register(cx.waker());
        match self.watch.order.load(Ordering::Relaxed) {
            DROP => return Poll::Ready(Ok(())),
            CLOSE if !*closing => {
                *closing = true;
                connection.as_mut().graceful_shutdown();
            }
            _ => {}
        }
        connection.poll(cx)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.connections.lock();
        open.remove(&self.id);
        self.connections.tell(open.len());
    }
}

#[cfg(test)]
mod tests;
