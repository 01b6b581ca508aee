//! Keeping the lease: renewals in a task of their own, so that no work of the leader delays them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use wasmorch_api::record::Lease;
use wasmorch_api::{LeaderId, Term};

use crate::lease::{LeaseClock, LeaseTimes};
use crate::store::{LeaseView, Store, StoreError};

/// One try of a renewal may take so long: a lost answer must leave time for a second.
const RENEWAL_MAX: Duration = Duration::from_millis(500);
/// A renewal that failed is tried again so soon.
const RENEW_AGAIN: Duration = Duration::from_millis(200);

/// Keeps the lease.
#[derive(Debug, Clone)]
pub(super) struct Keeper {
    store: Store,
    leader: LeaderId,
    times: LeaseTimes,
    clock: LeaseClock,
    /// 0 until the term is minted.
    term: Arc<AtomicU64>,
    /// What the next write of the lease must expect.
    sequence: Arc<AtomicU64>,
}

impl Keeper {
    pub(super) fn new(
        store: Store,
        leader: LeaderId,
        times: LeaseTimes,
        clock: LeaseClock,
        sequence: u64,
    ) -> Self {
        let (term, sequence) = (Arc::default(), Arc::new(AtomicU64::new(sequence)));
        Self {
            store,
            leader,
            times,
            clock,
            term,
            sequence,
        }
    }

    pub(super) fn clock(&self) -> &LeaseClock {
        &self.clock
    }

    /// The term is minted: renewals carry it.
    pub(super) fn leads(&self, term: Term) {
        self.term.store(term.0, Ordering::Relaxed);
    }

    /// Deletes the lease, so that the next leader need not wait for its end.
    pub(super) async fn give_back(&self) {
        let sequence = self.sequence.load(Ordering::Relaxed);
        if let Err(error) = self.store.drop_lease(sequence).await {
            tracing::debug!(%error, "the lease was not given back: it ends by itself");
        }
    }

    /// Renews until `released`, or cancels `lost` when the lease is over.
    pub(super) async fn renew(self, lost: CancellationToken, released: CancellationToken) {
        loop {
            let due = self.clock.renewal_due().min(self.clock.holds_until());
            tokio::select! {
                () = released.cancelled() => return,
                () = tokio::time::sleep_until(due.into()) => {}
            }
            tokio::select! {
                () = released.cancelled() => return,
                kept = self.renew_once() => if !kept {
                    break;
                }
            }
        }
        self.clock.drop_now();
        lost.cancel();
    }

    /// One renewal, tried until it is stored, or the lease is another's, or time is up.
    async fn renew_once(&self) -> bool {
        while self.clock.holds(Instant::now()) {
            let term = Term(self.term.load(Ordering::Relaxed));
            let lease = Lease {
                leader: self.leader.clone(),
                term,
            };
            let sequence = self.sequence.load(Ordering::Relaxed);
            let sent = Instant::now();
            let rest = self.clock.holds_until().saturating_duration_since(sent);
            let write = self.store.write_lease(&lease, sequence, &self.times);
            match tokio::time::timeout(rest.min(RENEWAL_MAX), write).await {
                Ok(Ok(sequence)) => {
                    self.sequence.store(sequence, Ordering::Relaxed);
                    self.clock.renewed(sent, Instant::now());
                    return self.clock.holds(Instant::now());
                }
                Ok(Err(StoreError::Fenced)) => match self.still_ours(rest).await {
                    // An earlier renewal got through although its answer did not.
                    Some(sequence) => self.sequence.store(sequence, Ordering::Relaxed),
                    None => return false,
                },
                Ok(Err(error)) => {
                    tracing::debug!(%error, "the lease was not renewed");
                    tokio::time::sleep(RENEW_AGAIN).await;
                }
                // Its answer is late or lost: the loop ends when the lease does. If it got through,
                // the next one is fenced and `still_ours` finds it.
                Err(_) => {}
            }
        }
        false
    }

    /// The sequence to expect when the stored lease is ours.
    async fn still_ours(&self, within: Duration) -> Option<u64> {
        match tokio::time::timeout(within, self.store.read_lease()).await {
            Ok(Ok(LeaseView::Held { lease, sequence })) if lease.leader == self.leader => {
                Some(sequence)
            }
            _ => None,
        }
    }
}
