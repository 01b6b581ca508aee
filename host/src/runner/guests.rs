//! The thread that runs guests and the gateway: one for a runner.
//!
//! A guest holds it for a tick at the most. What must never wait for a guest (the supervisor, and
//! with it pings) runs elsewhere and hands tasks over by [`Guests::handle`].

use std::io;
use std::sync::mpsc;
use std::time::Duration;

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

/// Tasks that are run between two looks at sockets and timers. Short guests take tens of
/// microseconds each, and tokio's 61 of them would hold up whoever comes by milliseconds.
const EVENT_INTERVAL: u32 = 8;
/// How long tasks and blocking calls that were told to end may take before they are left behind.
const ABANDON_AFTER: Duration = Duration::from_secs(2);

/// See the module's head.
pub(super) struct Guests {
    handle: Handle,
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
        let (stop, stopped) = oneshot::channel();
        let (end, ended) = mpsc::channel();
        std::thread::Builder::new()
            .name("wasmorch-guests".into())
            .spawn(move || {
                // Dropped unsent is as good: nobody is left who could stop it.
                let _ = executor.block_on(stopped);
                executor.shutdown_timeout(ABANDON_AFTER);
                drop(end);
            })?;
        Ok(Self {
            handle,
            stop,
            ended,
        })
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
