//! Stores a rebuilt state in place of what is there.
//!
//! Owns the order of the steps, chosen so that a process that dies between any two of them leaves a
//! store that freezes its next leader, never one that makes hosts stop what they run:
//!
//! ```text
//!  empty ─▶ lease ─▶ `recovering` ─▶ term (the hosts' cluster) ─▶ everything ─▶ delete `recovering`
//! ```
//!
//! Without `term` the next leader begins another cluster, whose word hosts ignore. With it and with
//! `recovering`, it freezes. Another recover starts over: the hosts still hold everything.
//!
//! The lease is kept by a task of its own all the while: a batch may take longer than a lease lasts.

use std::time::Instant;

use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use wasmorch_api::record::{Lease, TermRecord};
use wasmorch_api::subjects::key;
use wasmorch_api::{ApiError, ErrorCode, Term, Timestamp};

use super::keeper::Keeper;
use super::{Controller, STORE_AGAIN};
use crate::control_loop::{End, Recovery};
use crate::lease::LeaseClock;
use crate::store::{BATCH_BYTES_MAX, BATCH_MESSAGES_MAX, Entry, StoreError};

/// Another controller may take the lease between two steps: then it is tried again, so often.
const TRIES: u32 = 5;
/// Clusters remembered that the store had begun before.
const FORMERLY_MAX: usize = 8;

impl Controller {
    /// Stores it and answers. The term is over either way.
    pub(super) async fn rebuild(
        &self,
        recovery: Recovery,
        term: &TermRecord,
        now: Timestamp,
    ) -> End {
        let Recovery {
            rebuilt,
            call,
            reply,
            kept,
            backup,
        } = recovery;
        let mut formerly = term.formerly.clone();
        if term.cluster != rebuilt.cluster {
            formerly.push(term.cluster.clone());
        }
        formerly.retain(|former| *former != rebuilt.cluster);
        let surplus = formerly.len().saturating_sub(FORMERLY_MAX);
        formerly.drain(..surplus);
        let record = TermRecord {
            cluster: rebuilt.cluster.clone(),
            term: rebuilt.term,
            leader: self.leader.clone(),
            at: now,
            formerly,
        };
        let entries: Vec<Entry> = rebuilt.entries.into_iter().chain(kept).collect();
        let mut next = rebuilt.next_sequence;
        let mut tries = 0;
        let stored = loop {
            tries += 1;
            match self.store_anew(next, &record, &entries).await {
                Err(StoreError::Fenced) if tries < TRIES => {
                    tracing::warn!(tries, "another controller came between: recovering again");
                    next += 1_000;
                }
                other => break other,
            }
        };
        match stored {
            Ok(()) => {
                let (cluster, term) = (&record.cluster, record.term);
                tracing::warn!(%cluster, %term, keys = entries.len(), "the state was recovered");
                if let Some(backup) = backup {
                    self.store.delete_object(&backup).await;
                }
                // Who asked may have given up.
                let _ = call.answer.send(Ok(reply));
                End::Deposed("the state was recovered: it is read anew".to_owned())
            }
            Err(error) => {
                tracing::error!(%error, "the state was not recovered");
                let _ = call.answer.send(Err(broken_off(&error)));
                tokio::time::sleep(STORE_AGAIN).await;
                End::Unsure(error)
            }
        }
    }

    async fn store_anew(
        &self,
        next: u64,
        record: &TermRecord,
        entries: &[Entry],
    ) -> Result<(), StoreError> {
        self.store.empty(next).await?;
        let lease = Lease {
            leader: self.leader.clone(),
            term: Term(0),
        };
        let sent = Instant::now();
        let held = self.store.write_lease(&lease, 0, &self.times).await?;
        let keeper = Keeper::new(
            self.store.clone(),
            self.leader.clone(),
            self.times,
            LeaseClock::won(self.times, sent),
            held,
        );
        let (lost, released) = (CancellationToken::new(), CancellationToken::new());
        let renewing = keeper.clone().renew(lost.clone(), released.clone());
        let renewing = AbortOnDropHandle::new(tokio::spawn(renewing));
        let filled = self.fill(record, entries).await;
        released.cancel();
        // A panic of the renewal has been reported by the runtime; the lease then ends by itself.
        let _ = renewing.await;
        if filled.is_ok() && !lost.is_cancelled() {
            // It is whole: whoever leads next need not wait.
            keeper.give_back().await;
        }
        filled
    }

    /// Everything but the lease. Another controller that gets it all the same has minted a term, and
    /// the next batch is refused.
    async fn fill(&self, record: &TermRecord, entries: &[Entry]) -> Result<(), StoreError> {
        self.store.mark_recovering().await?;
        let fence = self.store.write_term(record, 0).await?;
        for batch in batches(entries) {
            self.store.batch(fence, batch).await?;
        }
        let whole = Entry {
            key: key::RECOVERING.to_owned(),
            value: None,
        };
        self.store.batch(fence, &[whole]).await.map(|_| ())
    }
}

/// Cut to what the store takes at once.
fn batches(mut entries: &[Entry]) -> impl Iterator<Item = &[Entry]> {
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let fit = entries.iter().take(BATCH_MESSAGES_MAX).take_while(|entry| {
            bytes += entry.key.len() + entry.value.as_ref().map_or(0, bytes::Bytes::len);
            bytes <= BATCH_BYTES_MAX
        });
        // One that is too large alone is refused by the store, with its key.
        let count = fit.count().max(1).min(entries.len());
        let (batch, rest) = entries.split_at(count);
        entries = rest;
        (!batch.is_empty()).then_some(batch)
    })
}

fn broken_off(error: &StoreError) -> ApiError {
    ApiError::new(
        ErrorCode::Unavailable,
        "the recovery was broken off",
        format!("{error}; hosts still hold everything, and the cluster stays frozen"),
        "run `wasmorch recover` again",
    )
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn batches_are_what_the_store_takes() {
        let entry = |bytes: usize| Entry {
            key: "k".to_owned(),
            value: Some(Bytes::from(vec![b'x'; bytes])),
        };
        let sizes = |entries: &[Entry]| batches(entries).map(<[Entry]>::len).collect::<Vec<_>>();
        assert_eq!(sizes(&vec![entry(1); 2_500]), [1_000, 1_000, 500]);
        assert_eq!(sizes(&vec![entry(BATCH_BYTES_MAX / 2); 3]), [1, 1, 1]);
        assert_eq!(sizes(&[entry(BATCH_BYTES_MAX + 1), entry(1)]), [1, 1]);
        assert!(sizes(&[]).is_empty());
    }
}
