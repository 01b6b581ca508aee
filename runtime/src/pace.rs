//! Who may run, and for how long: short work goes first, long work goes in turns.
//!
//! ```text
//!            woken, with credit                     credit used up, at a tick
//!   waits ────────────────────────> runs ─────────────────────────────────────> queues for a turn
//!     ^  <── waits for its host ──   |  ^                                             |
//!     |                              |  └─ the executor has looked for I/O <── a turn ┘
//!     └── waits for its host ────────┘     and run what that woke; one tick
//! ```
//!
//! An instance has a credit of [`CREDIT`] and earns a part of the time it does not run. While that
//! lasts it runs whenever its executor polls it, which is what a short request needs. Beyond, it
//! must hold one of the runtime's turns (fair, in the order of asking; as many as there are
//! threads that run guests), and between two turns the executor polls its I/O driver and runs what
//! that woke. So a short request waits for a tick at the most, however many guests spin.
//!
//! A replica that has used up its share of the processor ([`CpuShare`]) waits for the next window
//! before either.
//!
//! It knows nothing of what runs. Whoever waits for a turn holds nothing that a running guest needs.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, SemaphorePermit};
use wasmtime::UpdateDeadline;

use crate::share::CpuShare;
use crate::ticker::Ticker;

/// What an instance may run without a turn: many times what a request to a small component takes,
/// and few enough milliseconds that a crowd of newcomers does not hold up its neighbours.
const CREDIT: Duration = Duration::from_millis(2);
/// The part of the time spent waiting that is earned again: one in so many.
const EARNED_ONE_IN: u32 = 10;

/// The ticks and the turns of one runtime.
pub(crate) struct Pacer {
    ticker: Ticker,
    turns: Semaphore,
}

impl Pacer {
    pub(crate) fn start(
        tick: impl FnMut() -> bool + Send + 'static,
        turns: usize,
    ) -> std::io::Result<Self> {
        Ok(Self {
            ticker: Ticker::start(tick)?,
            turns: Semaphore::new(turns.clamp(1, Semaphore::MAX_PERMITS)),
        })
    }

    /// Waits for a turn. `None`: there are none any more, which nothing brings about.
    async fn turn(&self) -> Option<SemaphorePermit<'_>> {
        let turn = self.turns.acquire().await.ok();
        // Comes back only after the executor has polled its drivers: short work gets in between.
        tokio::task::yield_now().await;
        turn
    }

    /// Runs a guest to its end, at its pace. `pace` is also what the store of the guest asks at
    /// every tick, by [`Pace::at_tick`].
    pub(crate) async fn paced<R>(
        &self,
        pace: &Pace,
        share: &CpuShare,
        guest: impl Future<Output = R>,
    ) -> R {
        let mut guest = pin!(guest);
        let mut credit = Credit::new(Instant::now());
        let mut turn = None;
        loop {
            let next = poll_fn(|cx| {
                let began = Instant::now();
                let left = match share.left() {
                    Ok(left) => left,
                    Err(wait) => return Poll::Ready(Next::Window(wait)),
                };
                let may_run = match turn {
                    Some(_) => Duration::ZERO,
                    None => credit.at(began).min(left),
                };
                if turn.is_none() && may_run.is_zero() {
                    return Poll::Ready(Next::Turn);
                }
                pace.run_until(began + may_run);
                let polled = {
                    let _running = self.ticker.run();
                    guest.as_mut().poll(cx)
                };
                let ended = Instant::now();
                credit.spend(began, ended);
                share.spend(ended.saturating_duration_since(began));
                match polled {
                    Poll::Ready(result) => Poll::Ready(Next::Ended(result)),
                    Poll::Pending if pace.gave_way() => Poll::Ready(Next::Turn),
                    Poll::Pending => {
                        // It waits for its host: others may have the turn.
                        turn = None;
                        Poll::Pending
                    }
                }
            })
            .await;
            // Given back before it is asked for again: whoever waits is first.
            drop(turn.take());
            pace.queued.store(true, Relaxed);
            match next {
                Next::Ended(result) => return result,
                Next::Turn => turn = self.turn().await,
                Next::Window(wait) => {
                    // Before it has passed: a guest that is out of time meanwhile does not come to its end.
                    pace.throttled.fetch_add(wait.as_nanos() as u64, Relaxed);
                    tokio::time::sleep(wait).await;
                }
            }
            pace.queued.store(false, Relaxed);
        }
    }
}

/// What a guest that was polled, or was to be, is to do.
enum Next<R> {
    Ended(R),
    /// Wait for a turn.
    Turn,
    /// Wait for so long: then there is processor time again.
    Window(Duration),
}

/// What one instance may still run without a turn.
struct Credit {
    left: Duration,
    at: Instant,
}

impl Credit {
    fn new(now: Instant) -> Self {
        Self {
            left: CREDIT,
            at: now,
        }
    }

    /// What is left now, with what was earned since it last ran.
    fn at(&self, now: Instant) -> Duration {
        let waited = now.saturating_duration_since(self.at);
        (self.left + waited / EARNED_ONE_IN).min(CREDIT)
    }

    fn spend(&mut self, began: Instant, ended: Instant) {
        let ran = ended.saturating_duration_since(began);
        self.left = self.at(began).saturating_sub(ran);
        self.at = ended;
    }
}

/// How far one instance may run, between whoever polls it and its store.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    /// Nanoseconds of this process's [`clock`].
    until: AtomicU64,
    gave_way: AtomicBool,
    /// It waits for a turn, or for the next window.
    queued: AtomicBool,
    /// Nanoseconds of all its waits for a window.
    throttled: AtomicU64,
}

impl Pace {
    fn run_until(&self, until: Instant) {
        self.until.store(clock(until), Relaxed);
    }

    /// Whether it is to be left alone until it is woken: polling it before would give it what is others'.
    pub(crate) fn is_queued(&self) -> bool {
        self.queued.load(Relaxed)
    }

    /// How long it has waited for its share of the processor.
    pub(crate) fn throttled(&self) -> Duration {
        Duration::from_nanos(self.throttled.load(Relaxed))
    }

    fn gave_way(&self) -> bool {
        self.gave_way.swap(false, Relaxed)
    }

    /// What a guest does at a tick: go on, or give way until it has a turn.
    pub(crate) fn at_tick(&self) -> UpdateDeadline {
        if clock(Instant::now()) < self.until.load(Relaxed) {
            return UpdateDeadline::Continue(1);
        }
        self.gave_way.store(true, Relaxed);
        UpdateDeadline::YieldCustom(1, Box::pin(GiveWay(false)))
    }
}

/// Pending once, waking nobody: `paced` polls it again when the guest has a turn.
struct GiveWay(bool);

impl Future for GiveWay {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        if std::mem::replace(&mut self.0, true) {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }
}

/// An instant as a number, so that an atomic can hold it.
fn clock(at: Instant) -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    let start = *START.get_or_init(Instant::now);
    u64::try_from(at.saturating_duration_since(start).as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::Account;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn credit_is_spent_by_running_and_earned_by_waiting() {
        let start = Instant::now();
        let mut credit = Credit::new(start);
        assert_eq!(credit.at(start + 60_000 * MS), CREDIT, "never more");
        credit.spend(start, start + CREDIT / 2);
        assert_eq!(credit.at(start + CREDIT / 2), CREDIT / 2);
        credit.spend(start + CREDIT / 2, start + 2 * CREDIT);
        assert_eq!(credit.at(start + 2 * CREDIT), Duration::ZERO);
        assert_eq!(credit.at(start + 2 * CREDIT + 10 * MS), MS);
    }

    #[test]
    fn a_guest_goes_on_until_its_time_is_over() {
        let pace = Pace::default();
        pace.run_until(Instant::now() + 60_000 * MS);
        assert!(matches!(pace.at_tick(), UpdateDeadline::Continue(1)));
        assert!(!pace.gave_way());
        pace.run_until(Instant::now());
        assert!(matches!(pace.at_tick(), UpdateDeadline::YieldCustom(1, _)));
        assert!(pace.gave_way());
        assert!(!pace.gave_way(), "told once");
    }

    fn all() -> CpuShare {
        CpuShare::new(Account::alone(), None)
    }

    /// A guest that gives way after so many polls, as one does at its ticks.
    async fn spin(pace: &Pace, turns: usize, ran: &mut usize) {
        for _ in 0..turns {
            *ran += 1;
            pace.gave_way.store(true, Relaxed);
            GiveWay(false).await;
        }
    }

    #[tokio::test]
    async fn long_guests_take_turns_in_order_and_a_short_one_runs_between() {
        let pacer = Pacer::start(|| true, 1).unwrap();
        let order = std::sync::Mutex::new(Vec::new());
        let long = |name: &'static str| {
            let (pacer, order) = (&pacer, &order);
            async move {
                let pace = Pace::default();
                let guest = async {
                    for _ in 0..3 {
                        order.lock().unwrap().push(name);
                        pace.gave_way.store(true, Relaxed);
                        GiveWay(false).await;
                    }
                };
                pacer.paced(&pace, &all(), guest).await;
            }
        };
        let short = async {
            // Another long one is in hand when it comes.
            tokio::task::yield_now().await;
            pacer
                .paced(&Pace::default(), &all(), async {
                    order.lock().unwrap().push("short")
                })
                .await;
        };
        tokio::join!(long("a"), long("b"), short);
        let order = order.into_inner().unwrap();
        let at = order.iter().position(|name| *name == "short").unwrap();
        assert!(at <= 3, "{order:?}");
        let long: Vec<_> = order.into_iter().filter(|name| *name != "short").collect();
        assert_eq!(long, ["a", "b", "a", "b", "a", "b"]);
    }

    #[tokio::test]
    async fn whoever_waits_for_a_turn_says_so() {
        let pacer = Pacer::start(|| true, 1).unwrap();
        let (pace, all, mut ran) = (Pace::default(), all(), 0);
        {
            let mut guest = pin!(pacer.paced(&pace, &all, spin(&pace, 1, &mut ran)));
            assert!(!pace.is_queued());
            poll_fn(|cx| Poll::Ready(guest.as_mut().poll(cx).is_pending())).await;
            assert!(pace.is_queued());
            guest.await;
        }
        assert_eq!(ran, 1);
    }

    #[tokio::test]
    async fn who_waits_for_its_host_keeps_no_turn() {
        let pacer = Pacer::start(|| true, 1).unwrap();
        let (tx, rx) = tokio::sync::oneshot::channel::<()>();
        let pace = Pace::default();
        let waiting = async {
            pace.gave_way.store(true, Relaxed);
            GiveWay(false).await;
            // It has a turn now, and waits.
            rx.await.unwrap();
        };
        let other = async {
            let (pace, mut ran) = (Pace::default(), 0);
            pacer.paced(&pace, &all(), spin(&pace, 5, &mut ran)).await;
            assert_eq!(ran, 5);
            tx.send(()).unwrap();
        };
        let all = all();
        tokio::join!(pacer.paced(&pace, &all, waiting), other);
        assert_eq!(pacer.turns.available_permits(), 1);
    }
}
