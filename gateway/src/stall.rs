//! Clients that do not take their answers.
//!
//! Such a one holds its place, and of a response that comes from another host a part of the window
//! that all requests between the two share. So a response in which nothing moves for a while is
//! ended: by HTTP/1.1 its connection, by HTTP/2 its stream alone.
//!
//! ```text
//!   asked for a frame ──gives one──> the client's turn ──asked for the next──> ..
//!                                        └── nothing for too long ──> ended
//! ```
//!
//! The protocol libraries ask a body for more when there is room for it. So it is seen here alike
//! whether a socket is full or a window of HTTP/2 is closed. A body that has nothing to give (an
//! event stream between two events) waits for the replica, and nothing is counted. A timer there is
//! only for a response that waits.
//!
//! Many streams share a slow link, and each has its turn only now and then: while others of its
//! connection move, a stream is waited for longer.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

/// So many times as long a stream is waited for while others of its connection move.
const AMONG_OTHERS: u32 = 10;

tokio::task_local! {
    /// Of what drives the response that is made in this task.
    static DRIVEN: Arc<Progress>;
}

/// How far a response is, as its body tells whoever drives it.
#[derive(Debug, Default)]
struct Progress {
    /// Whether something is there for the client and has not been asked for.
    waits: AtomicBool,
    /// Grows with every step.
    steps: AtomicU64,
    /// How often a response on its connection went on.
    all: OnceLock<Arc<AtomicU64>>,
}

impl Progress {
    fn all(&self) -> u64 {
        self.all.get().map_or(0, |all| all.load(Relaxed))
    }
}

/// One response's part of it, as long as its body lasts.
#[derive(Debug)]
pub(crate) struct Turn(Arc<Progress>);

impl Turn {
    /// A response to the client whose connection or stream this task drives, if it drives one. It is
    /// the client's turn. `all`: of that connection.
    pub(crate) fn begin(all: &Arc<AtomicU64>) -> Option<Self> {
        let turn = Self(DRIVEN.try_with(Arc::clone).ok()?);
        turn.0.all.get_or_init(|| all.clone());
        turn.is_the_clients(true);
        Some(turn)
    }

    /// A step was made: is it the client's turn now, or the replica's?
    pub(crate) fn is_the_clients(&self, waits: bool) {
        self.0.waits.store(waits, Relaxed);
        // The task that drives it alone writes.
        self.0.steps.store(self.0.steps.load(Relaxed) + 1, Relaxed);
    }

    /// There is room for more: of what only ends, others learn nothing.
    pub(crate) fn goes_on(&self) {
        if let Some(all) = self.0.all.get() {
            all.fetch_add(1, Relaxed);
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.is_the_clients(false);
    }
}

/// Drives responses until they end by themselves; `None`: the client has taken nothing for `limit`.
pub(crate) async fn driven<F: Future>(limit: Duration, driven: F) -> Option<F::Output> {
    let progress = Arc::<Progress>::default();
    let mut driven = pin!(DRIVEN.scope(progress.clone(), driven));
    let mut patience = Patience {
        progress,
        limit,
        seen: (0, 0),
        until: None,
        last: None,
        timer: None,
    };
    poll_fn(|cx| match driven.as_mut().poll(cx) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending => patience.poll_over(cx).map(|()| None),
    })
    .await
}

struct Patience {
    progress: Arc<Progress>,
    limit: Duration,
    /// The step that has been waited for since, and what others had done then.
    seen: (u64, u64),
    /// While it is the client's turn.
    until: Option<Instant>,
    /// However much others move.
    last: Option<Instant>,
    /// Made when it is first needed, and left to run when something moves: it is set anew once
    /// it goes off.
    timer: Option<Pin<Box<Sleep>>>,
}

impl Patience {
    fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.progress.waits.load(Relaxed) {
            self.until = None;
            return Poll::Pending;
        }
        let step = self.progress.steps.load(Relaxed);
        let (mut until, last) = match (self.until, self.last) {
            (Some(until), Some(last)) if step == self.seen.0 => (until, last),
            _ => {
                self.seen = (step, self.progress.all());
                let now = Instant::now();
                (now + self.limit, now + self.limit * AMONG_OTHERS)
            }
        };
        let timer = self
            .timer
            .get_or_insert_with(|| Box::pin(sleep_until(until)));
        loop {
            (self.until, self.last) = (Some(until), Some(last));
            ready!(timer.as_mut().poll(cx));
            let (now, all) = (Instant::now(), self.progress.all());
            if now >= until && all != self.seen.1 {
                self.seen.1 = all;
                until = last.min(now + self.limit);
            }
            if now >= until {
                return Poll::Ready(());
            }
            timer.as_mut().reset(until);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(30);

    fn begin() -> Turn {
        Turn::begin(&Arc::default()).unwrap()
    }

    async fn after(time: Duration) {
        tokio::time::sleep(time).await;
    }

    #[tokio::test(start_paused = true)]
    async fn who_takes_nothing_is_not_waited_for() {
        let began = Instant::now();
        let ended = driven(LIMIT, async {
            let _turn = begin();
            std::future::pending::<()>().await;
        });
        assert_eq!(ended.await, None);
        assert!(began.elapsed() >= LIMIT && began.elapsed() < LIMIT * 2);
    }

    #[tokio::test(start_paused = true)]
    async fn every_step_begins_anew_and_a_replica_takes_its_time() {
        let done = driven(LIMIT, async {
            let turn = begin();
            for _ in 0..5 {
                after(LIMIT * 2 / 3).await;
                turn.is_the_clients(true);
            }
            turn.is_the_clients(false);
            after(LIMIT * 10).await;
            turn.is_the_clients(true);
            after(LIMIT / 2).await;
            drop(turn);
            after(LIMIT * 10).await;
        });
        assert_eq!(done.await, Some(()));
        assert!(Turn::begin(&Arc::default()).is_none(), "nobody drives it");
    }

    #[tokio::test(start_paused = true)]
    async fn while_others_move_it_is_waited_for_longer_and_not_for_ever() {
        let all = Arc::<AtomicU64>::default();
        let began = Instant::now();
        let ended = driven(LIMIT, async {
            let _turn = Turn::begin(&all).unwrap();
            std::future::pending::<()>().await;
        });
        let others = async {
            loop {
                after(LIMIT / 2).await;
                all.fetch_add(1, Relaxed);
            }
        };
        tokio::select! {
            ended = ended => assert_eq!(ended, None),
            () = others => {}
        }
        let times = began.elapsed().as_secs() / LIMIT.as_secs();
        assert_eq!(times, u64::from(AMONG_OTHERS));
    }
}
