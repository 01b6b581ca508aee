//! What runs beside the loop: reads of the store that end in an event, and chores that nothing waits for.
//!
//! Owns no state: its tasks are the driver's, which joins them.

use tokio::task::JoinError;
use tokio::time::Instant;
use wasmorch_api::{Digest, RevisionNumber, WorkloadKey};

use super::{Driver, PRUNE_EVERY};
use crate::agent::Event;

impl Driver {
    pub(super) fn fetch_revision(&mut self, workload: WorkloadKey, number: RevisionNumber) {
        let (link, reads) = (self.parts.link.clone(), self.reads.clone());
        self.fetches.spawn(async move {
            let _permit = reads.acquire().await;
            match link.revision(&workload, number).await {
                Ok(revision) => Event::Revision(revision),
                Err(error) => Event::RevisionMissing {
                    workload,
                    number,
                    reason: error.to_string(),
                },
            }
        });
    }

    pub(super) fn fetch_artifact(&mut self, digest: Digest) {
        let (link, artifacts) = (self.parts.link.clone(), self.parts.artifacts.clone());
        self.fetches.spawn(async move {
            match artifacts.have(&digest, || link.artifact(&digest)).await {
                Ok(path) => Event::Fetched { digest, path },
                Err(error) => {
                    let (reason, retryable) = (error.reason, error.retryable);
                    Event::FetchFailed {
                        digest,
                        reason,
                        retryable,
                    }
                }
            }
        });
    }

    /// Writes the tables, and now and then removes what nobody uses; one after the other.
    pub(super) fn do_chores(&mut self) {
        while let Some(done) = self.chores.try_join_next() {
            self.chore_done(done);
        }
        if !self.chores.is_empty() {
            return;
        }
        if let Some(tables) = self.parts.tables.take_dirty() {
            let data = self.parts.data.clone();
            self.chores.spawn_blocking(move || {
                let written = data.write_tables(&tables);
                if let Err(error) = &written {
                    tracing::warn!(%error, "the routing tables on disk are as before");
                }
                written.is_ok()
            });
        }
        if self.pruned.elapsed() >= PRUNE_EVERY {
            self.pruned = Instant::now();
            let artifacts = self.parts.artifacts.clone();
            let in_use = self.parts.agent.artifacts_in_use();
            let data = self.parts.data.clone();
            self.chores.spawn_blocking(move || {
                artifacts.prune(&in_use);
                crate::compiled::prune(&data.compiled(), &data.artifacts());
                true
            });
        }
    }

    pub(super) fn chore_done(&mut self, done: Result<bool, JoinError>) {
        let written = done.unwrap_or_else(|error| {
            tracing::error!(%error, "a chore was cut off");
            false
        });
        if !written {
            self.parts.tables.keep_dirty();
        }
    }
}
