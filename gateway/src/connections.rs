//! The open connections of one port: who may stay, who rests for too long, who goes at shutdown.
//!
//! ```text
//!   accepted ──first request──> serving <──> resting ──idle, or shutdown──> closing ──> gone
//!      └── no complete head in time ──────────────────────────────────────────────────> gone
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

use crate::crowd::{self, Crowd};

const STAY: u8 = 0;
/// Go with the next answer, which says so.
const LEAVE: u8 = 1;
/// Finish what is in hand, take nothing new.
const CLOSE: u8 = 2;
/// Go now.
const DROP: u8 = 3;

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
    now: Arc<AtomicU32>,
}

impl Watch {
    pub(crate) fn request_began(&self) {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        self.served.store(true, Ordering::Relaxed);
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
    pub(crate) fn new(max: usize, header_timeout: Duration, idle_timeout: Duration) -> Self {
        let shortest = header_timeout.min(idle_timeout);
        let tick = (shortest / 4).clamp(Duration::from_millis(10), Duration::from_secs(1));
        // One more: the first tick comes early.
        let ticks = |timeout: Duration| {
            u32::try_from(timeout.as_nanos().div_ceil(tick.as_nanos()) + 1).unwrap_or(u32::MAX)
        };
        Self {
            open: Mutex::default(),
            max,
            next: AtomicU64::new(0),
            now: Arc::default(),
            tick,
            header_ticks: ticks(header_timeout),
            idle_ticks: ticks(idle_timeout),
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

    /// A place for a new connection; `None`: there are too many.
    pub(crate) fn enter(self: &Arc<Self>) -> Option<Place> {
        let mut open = self.lock();
        if open.len() >= self.max {
            return None;
        }
        let now = self.now.clone();
        let watch = Arc::new(Watch {
            order: AtomicU8::new(STAY),
            waker: AtomicWaker::new(),
            in_flight: AtomicU32::new(0),
            served: AtomicBool::new(false),
            rests_since: AtomicU32::new(now.load(Ordering::Relaxed)),
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

    /// Ends those that rest for too long, and those that others should have.
    pub(crate) fn sweep(&self) {
        self.shed();
        let now = self.now.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        for watch in self.lock().values() {
            if watch.in_flight.load(Ordering::Acquire) > 0 {
                continue;
            }
            let rested = now.wrapping_sub(watch.rests_since.load(Ordering::Relaxed));
            if !watch.served.load(Ordering::Relaxed) {
                if rested >= self.header_ticks {
                    watch.order(DROP);
                }
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
mod tests {
    use super::*;

    fn connections() -> Arc<Connections> {
        // Ticks of a second: 5 for a head, 11 for a rest (each one more than the time-out).
        Arc::new(Connections::new(
            2,
            Duration::from_secs(4),
            Duration::from_secs(10),
        ))
    }

    fn sweep(connections: &Connections, place: &Place, times: u32) -> u8 {
        (0..times).for_each(|_| connections.sweep());
        place.watch.order.load(Ordering::Relaxed)
    }

    #[test]
    fn a_connection_without_a_request_goes() {
        let connections = connections();
        let place = connections.enter().unwrap();
        assert_eq!(sweep(&connections, &place, 4), STAY);
        assert_eq!(sweep(&connections, &place, 1), DROP);
    }

    #[test]
    fn a_request_may_take_its_time_and_a_rest_may_not() {
        let connections = connections();
        let place = connections.enter().unwrap();
        place.watch.request_began();
        assert_eq!(sweep(&connections, &place, 100), STAY);
        place.watch.request_ended();
        assert_eq!(sweep(&connections, &place, 10), STAY);
        assert_eq!(sweep(&connections, &place, 1), CLOSE);
        assert_eq!(sweep(&connections, &place, 5), DROP);
    }

    /// Another process that has none.
    #[derive(Debug, Default)]
    struct Half(std::sync::atomic::AtomicUsize);

    impl Crowd for Half {
        fn tell(&self, open: usize) {
            self.0.store(open, Ordering::Relaxed);
        }

        fn share(&self) -> usize {
            self.0.load(Ordering::Relaxed).div_ceil(2)
        }
    }

    #[test]
    fn what_is_over_its_share_goes_and_those_at_work_first() {
        let crowd = Arc::new(Half::default());
        let connections = Connections::new(100, Duration::from_secs(4), Duration::from_secs(10));
        let connections = Arc::new(connections.among(Some(crowd.clone())));
        let mut places: Vec<_> = (0..20).map(|_| connections.enter().unwrap()).collect();
        assert!(connections.is_over());
        let (working, resting) = places.split_at(5);
        working.iter().for_each(|place| place.watch.request_began());
        for place in resting {
            place.watch.request_began();
            place.watch.request_ended();
        }
        let leaves = |place: &Place| place.watch.order.load(Ordering::Relaxed) == LEAVE;
        // Nobody else is asked while these are still there.
        for _ in 0..3 {
            connections.sweep();
            assert!(working.iter().all(leaves));
            assert_eq!(places.iter().filter(|place| leaves(place)).count(), 10);
        }
        places.truncate(2);
        assert!(!connections.is_over());
        assert_eq!(crowd.0.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn who_leaves_is_told_with_an_answer() {
        let connections = connections();
        let place = connections.enter().unwrap();
        let (watch, mut answer) = (place.watch(), Response::new(()));
        watch.part(Version::HTTP_11, &mut answer);
        assert!(answer.headers().is_empty(), "it stays");
        watch.order(LEAVE);
        let mut upgraded = Response::new(());
        *upgraded.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        watch.part(Version::HTTP_11, &mut upgraded);
        assert!(
            upgraded.headers().is_empty(),
            "it is no connection of requests any more"
        );
        watch.part(Version::HTTP_11, &mut answer);
        assert_eq!(answer.headers()[header::CONNECTION], "close");
        assert_eq!(watch.order.load(Ordering::Relaxed), LEAVE);
        let mut second = Response::new(());
        watch.part(Version::HTTP_2, &mut second);
        assert!(second.headers().is_empty());
        assert_eq!(watch.order.load(Ordering::Relaxed), CLOSE);
    }

    #[test]
    fn places_are_limited() {
        let connections = connections();
        let (first, _second) = (connections.enter().unwrap(), connections.enter().unwrap());
        assert!(connections.enter().is_none());
        drop(first);
        assert!(connections.enter().is_some());
    }
}
