//! The epoch ticker: a thread of its own that advances the engine's epoch while guests live.
//!
//! Every guest yields when the epoch has advanced, so the tick bounds how long a guest holds its
//! thread, and with it how late a timeout can fire. The thread is the operating system's, not
//! tokio's: no guest can starve it. With no live guest it sleeps, so an idle host wakes nobody.
//!
//! It owns nothing but its thread, which is joined when the ticker is dropped.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use wasmtime::Engine;

/// How long a guest may hold its thread. Shorter costs wake-ups, longer costs neighbours latency.
pub(crate) const TICK: Duration = Duration::from_millis(10);

struct Shared {
    stop: AtomicBool,
    live: AtomicUsize,
}

/// Advances the epoch of one engine.
pub(crate) struct Ticker {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Ticker {
    pub(crate) fn start(engine: &Engine) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            stop: AtomicBool::new(false),
            live: AtomicUsize::new(0),
        });
        let thread = std::thread::Builder::new()
            .name("wasmorch-epoch".into())
            .spawn({
                let shared = shared.clone();
                // A weak engine: the thread must not keep what the last owner drops.
                let engine = engine.weak();
                move || {
                    #[allow(
                        clippy::disallowed_methods,
                        reason = "this thread exists to let time pass; nobody waits for it"
                    )]
                    while !shared.stop.load(Ordering::SeqCst) {
                        if shared.live.load(Ordering::SeqCst) == 0 {
                            std::thread::park();
                            continue;
                        }
                        std::thread::sleep(TICK);
                        let Some(engine) = engine.upgrade() else {
                            return;
                        };
                        engine.increment_epoch();
                    }
                }
            })?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// Keeps the epoch advancing until the returned guard is dropped. Every store holds one.
    pub(crate) fn keep(&self) -> TickGuard {
        if self.shared.live.fetch_add(1, Ordering::SeqCst) == 0 {
            self.wake();
        }
        TickGuard(self.shared.clone())
    }

    fn wake(&self) {
        if let Some(thread) = &self.thread {
            thread.thread().unpark();
        }
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.wake();
        if let Some(thread) = self.thread.take() {
            // The loop cannot panic; were it to, there is nothing left to stop.
            let _ = thread.join();
        }
    }
}

/// While it lives, epochs advance.
pub(crate) struct TickGuard(Arc<Shared>);

impl Drop for TickGuard {
    fn drop(&mut self) {
        self.0.live.fetch_sub(1, Ordering::SeqCst);
    }
}
