//! What waits in the streams of a messages workload, for `scale.target.pending`.
//!
//! Owns how often that is asked. The server counts: its consumer's messages that nobody was given yet.
//! Each replica asks for itself, every [`ASK_EVERY`], and only when its spec follows it; all see
//! the same figure, so nobody adds theirs up.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use wasmorch_api::WorkloadSpec;
use wasmorch_api::spec::Measure;

use super::link::Durable;

/// Between two questions.
const ASK_EVERY: Duration = Duration::from_secs(2);

/// So many questions in a row without an answer, and nothing is taken to wait.
const FORGET_AFTER: u32 = 5;

/// The messages that wait for a replica, in all its streams.
#[derive(Debug, Default)]
pub(super) struct Backlog(AtomicU64);

impl Backlog {
    /// One, if the spec asks for it.
    pub(super) fn of(spec: &WorkloadSpec) -> Option<Arc<Self>> {
        let scale = spec.scale.as_ref()?;
        // What waits keeps it from going to zero, whatever else it goes by.
        let follows = scale.min == 0 || scale.target.contains_key(Measure::Pending.as_str());
        follows.then(Arc::default)
    }

    /// How many wait, as last heard.
    pub(super) fn messages(&self) -> u64 {
        self.0.load(Relaxed)
    }

    /// Asks for one stream until `draining`. A server that does not answer for a moment changes nothing.
    pub(super) async fn follow(self: Arc<Self>, durable: Durable, draining: CancellationToken) {
        let mut before = 0;
        let mut failures = 0;
        loop {
            let told = tokio::select! {
                biased;
                () = draining.cancelled() => break,
                told = durable.waiting() => told,
            };
            match told {
                Ok(now) => {
                    // One of several streams: the others' share stays.
                    self.0.fetch_add(now, Relaxed);
                    self.0.fetch_sub(before, Relaxed);
                    (before, failures) = (now, 0);
                }
                Err(error) => {
                    tracing::debug!(%error, "what waits in a stream is not known");
                    failures += 1;
                    if failures == FORGET_AFTER {
                        // A stream that is gone keeps nobody busy.
                        self.0.fetch_sub(std::mem::take(&mut before), Relaxed);
                    }
                }
            }
            tokio::select! {
                biased;
                () = draining.cancelled() => break,
                () = tokio::time::sleep(ASK_EVERY) => {}
            }
        }
        self.0.fetch_sub(before, Relaxed);
    }
}
