//! The thread that runs guests and the gateway: one for a runner.
//!
//! A guest holds it for a tick at the most; how long ago it last did something else is its [`Beat`].
//! What must never wait for a guest (the supervisor, and with it pings) runs elsewhere and hands
//! tasks over by [`Guests::handle`].

use std::io;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

/// Tasks that are run between two looks at sockets and timers. Short guests take tens of
/// microseconds each, and tokio's 61 of them would hold up whoever comes by milliseconds.
const EVENT_INTERVAL: u32 = 8;
/// The thread shows so often that it is not stuck.
const BEAT_EVERY: Duration = Duration::from_millis(250);
/// Without a beat for so long it is stuck: a call that blocks (a disk that hangs), or a loop of
/// ours. Guests and their requests then go nowhere, and the runner is of no use to anybody.
const STUCK_AFTER: Duration = Duration::from_secs(10);
/// How long tasks and blocking calls that were told to end may take before they are left behind.
const ABANDON_AFTER: Duration = Duration::from_secs(2);

/// When the thread last had time for something small.
#[derive(Debug, Clone)]
pub(super) struct Beat(Arc<Mutex<Instant>>);

impl Beat {
    fn new() -> Self {
        Self(Arc::new(Mutex::new(Instant::now())))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Instant> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_stuck(&self) -> bool {
        self.lock().elapsed() > STUCK_AFTER
    }

    /// Beats until it is dropped.
    async fn keep(self) {
        loop {
            *self.lock() = Instant::now();
            tokio::time::sleep(BEAT_EVERY).await;
        }
    }
}

/// See the module's head.
pub(super) struct Guests {
    handle: Handle,
    beat: Beat,
    stop: oneshot::Sender<()>,
    ended: mpsc::Receiver<()>,
}

impl Guests {
    pub(super) fn start() -> io::Result<Self> {
        let executor = Builder::new_current_thread()
            .thread_name("wasmorch-blocking")
            .event_interval(EVENT_INTERVAL)
            .enable_all()
            .build()?;
        let handle = executor.handle().clone();
        let beat = Beat::new();
        let beating = beat.clone().keep();
        let (stop, stopped) = oneshot::channel();
        let (end, ended) = mpsc::channel();
        std::thread::Builder::new()
            .name("wasmorch-guests".into())
            .spawn(move || {
                executor.block_on(async {
                    tokio::select! {
                        // Dropped unsent is as good: nobody is left who could stop it.
                        _ = stopped => {}
                        () = beating => {}
                    }
                });
                executor.shutdown_timeout(ABANDON_AFTER);
                drop(end);
            })?;
        Ok(Self {
            handle,
            beat,
            stop,
            ended,
        })
    }

    /// Whether the thread still turns.
    pub(super) fn beat(&self) -> Beat {
        self.beat.clone()
    }

    /// Where tasks are spawned that run guests or serve requests.
    pub(super) fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Ends the thread with all its tasks, and waits for that; a guest in the middle of something
    /// that cannot be interrupted is left behind.
    pub(super) fn end(self) {
        drop(self.stop);
        // Disconnected when the thread has ended.
        if self.ended.recv_timeout(2 * ABANDON_AFTER) == Err(mpsc::RecvTimeoutError::Timeout) {
            tracing::warn!("a guest did not give way: its thread is left behind");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_is_held_up_shows_it_and_recovers() {
        let guests = Guests::start().unwrap();
        let beat = guests.beat();
        assert!(!beat.is_stuck());
        let (go_on, held) = mpsc::channel::<()>();
        guests.handle().spawn(async move { _ = held.recv() });
        let deadline = Instant::now() + Duration::from_secs(60);
        let until = |stuck: bool| {
            while beat.is_stuck() != stuck {
                assert!(Instant::now() < deadline, "in time");
                std::thread::yield_now();
            }
        };
        // As if it were held up for longer than a test wants to wait.
        let long_ago = Instant::now().checked_sub(STUCK_AFTER).unwrap();
        while !beat.is_stuck() {
            assert!(Instant::now() < deadline, "in time");
            *beat.lock() = long_ago;
            std::thread::yield_now();
        }
        until(true);
        drop(go_on);
        until(false);
        guests.end();
    }
}
