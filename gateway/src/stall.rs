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

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

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
}

/// One response's part of it, as long as its body lasts.
#[derive(Debug)]
pub(crate) struct Turn(Arc<Progress>);

impl Turn {
    /// A response to the client whose connection or stream this task drives, if it drives one. It is
    /// the client's turn.
    pub(crate) fn begin() -> Option<Self> {
        let turn = Self(DRIVEN.try_with(Arc::clone).ok()?);
        turn.is_the_clients(true);
        Some(turn)
    }

    /// A step was made: is it the client's turn now, or the replica's?
    pub(crate) fn is_the_clients(&self, waits: bool) {
        self.0.waits.store(waits, Relaxed);
        // The task that drives it alone writes.
        self.0.steps.store(self.0.steps.load(Relaxed) + 1, Relaxed);
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
        seen: 0,
        until: None,
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
    /// The step that has been waited for since.
    seen: u64,
    /// While it is the client's turn.
    until: Option<Instant>,
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
        let until = match self.until {
            Some(until) if step == self.seen => until,
            _ => Instant::now() + self.limit,
        };
        (self.seen, self.until) = (step, Some(until));
        let timer = self
            .timer
            .get_or_insert_with(|| Box::pin(sleep_until(until)));
        loop {
            ready!(timer.as_mut().poll(cx));
            if Instant::now() >= until {
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

    async fn after(time: Duration) {
        tokio::time::sleep(time).await;
    }

    #[tokio::test(start_paused = true)]
    async fn who_takes_nothing_is_not_waited_for() {
        let began = Instant::now();
        let ended = driven(LIMIT, async {
            let _turn = Turn::begin().unwrap();
            std::future::pending::<()>().await;
        });
        assert_eq!(ended.await, None);
        assert!(began.elapsed() >= LIMIT && began.elapsed() < LIMIT * 2);
    }

    #[tokio::test(start_paused = true)]
    async fn every_step_begins_anew_and_a_replica_takes_its_time() {
        let done = driven(LIMIT, async {
            let turn = Turn::begin().unwrap();
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
        assert!(Turn::begin().is_none(), "nobody drives it");
    }
}
