//! The epoch ticker: a thread of its own that advances the engines' epochs while guests run.
//!
//! A guest looks at the epoch again and again, and is asked whether it may go on whenever that has
//! advanced (see `pace.rs`): the tick bounds how long a guest can hold its thread unasked. The
//! thread is the operating system's, not tokio's: no guest can starve it. Guests that wait count
//! for nothing: when none has run for a while the thread sleeps, so an idle host wakes nobody.
//!
//! It owns nothing but its thread, which is joined when the ticker is dropped.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread::JoinHandle;
use std::time::Duration;

/// How long a guest may hold its thread unasked. Shorter costs wake-ups (1,000 a second are half a
/// per cent of a core), longer costs neighbours latency.
pub(crate) const TICK: Duration = Duration::from_millis(1);
/// Ticks without a running guest before the thread sleeps: under load it is not woken for every
/// request.
const IDLE_TICKS_MAX: u32 = 50;

struct Shared {
    stop: AtomicBool,
    /// Guests that are being polled now.
    running: AtomicUsize,
    asleep: AtomicBool,
}

/// Lets time pass for guests.
pub(crate) struct Ticker {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Ticker {
    /// Calls `tick` at every tick, until it says that there is nothing to tick for.
    pub(crate) fn start(mut tick: impl FnMut() -> bool + Send + 'static) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            stop: AtomicBool::new(false),
            running: AtomicUsize::new(0),
            asleep: AtomicBool::new(false),
        });
        let thread = std::thread::Builder::new()
            .name("wasmorch-epoch".into())
            .spawn({
                let shared = shared.clone();
                move || {
                    let mut idle = 0;
                    while !shared.stop.load(SeqCst) {
                        if idle >= IDLE_TICKS_MAX {
                            shared.sleep();
                            idle = 0;
                            continue;
                        }
                        pass(TICK);
                        if !tick() {
                            return;
                        }
                        let runs = shared.running.load(SeqCst) > 0;
                        idle = if runs { 0 } else { idle + 1 };
                    }
                }
            })?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// Keeps the epoch advancing until the returned guard is dropped. Held while a guest is polled.
    pub(crate) fn run(&self) -> Running<'_> {
        self.shared.running.fetch_add(1, SeqCst);
        // The thread says that it sleeps before it looks for guests a last time, and here it is
        // the other way round: one of the two sees the other.
        if self.shared.asleep.load(SeqCst) {
            self.wake();
        }
        Running(&self.shared)
    }

    fn wake(&self) {
        if let Some(thread) = &self.thread {
            thread.thread().unpark();
        }
    }
}

impl Shared {
    /// Sleeps until a guest runs. Waking without a reason costs some ticks.
    fn sleep(&self) {
        self.asleep.store(true, SeqCst);
        if self.running.load(SeqCst) == 0 && !self.stop.load(SeqCst) {
            std::thread::park();
        }
        self.asleep.store(false, SeqCst);
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the ticker's thread exists to let time pass; nobody waits for it"
)]
fn pass(time: Duration) {
    std::thread::sleep(time);
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.shared.stop.store(true, SeqCst);
        self.wake();
        if let Some(thread) = self.thread.take() {
            // The loop cannot panic; were it to, there is nothing left to stop.
            let _ = thread.join();
        }
    }
}

/// While it lives, epochs advance.
pub(crate) struct Running<'t>(&'t Shared);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, SeqCst);
    }
}
