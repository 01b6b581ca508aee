//! Leadership: candidate, leader, candidate again.
//!
//! ```text
//!  candidate ── lease free ─▶ take it ─▶ mint the term ─▶ load ─▶ serve and plan ─┐
//!      ▲                                                                          │
//!      └────────── lease lost, fenced, outcome unknown: drop everything ──────────┘
//! ```
//!
//! Owns the order of these steps and the tasks of a term. Nothing of a term outlives it: state,
//! queues and subscriptions are dropped and made anew.

mod keeper;
mod rebuild;
mod restore;
mod term;

use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use wasmorch_api::record::{Lease, TermRecord};
use wasmorch_api::{ClusterId, LeaderId, Term, subjects};
use wasmorch_planner::Detection;

use crate::artifacts::Artifacts;
use crate::control_loop::End;
use crate::lease::{LeaseTimes, Watch, look_again};
use crate::link::Link;
use crate::metrics::Metrics;
use crate::store::{Store, StoreError};

/// A store that fails is asked again this often.
const STORE_AGAIN: Duration = Duration::from_secs(1);

/// One controller process.
#[derive(Debug, Clone)]
pub(crate) struct Controller {
    pub(crate) link: Link,
    pub(crate) js_domain: Option<String>,
    pub(crate) store: Store,
    pub(crate) artifacts: Artifacts,
    pub(crate) leader: LeaderId,
    pub(crate) times: LeaseTimes,
    pub(crate) detection: Detection,
    pub(crate) metrics: Metrics,
}

/// A lease that was just won.
#[derive(Debug, Clone, Copy)]
struct Won {
    sequence: u64,
    sent: Instant,
}

/// What outlives a term in this process: enough to notice that the store does not remember it.
#[derive(Debug, Default)]
struct Memory {
    /// A term is later than any that a host has seen, even when the store forgot it.
    floor: Term,
    /// The cluster that was led first.
    cluster: Option<ClusterId>,
}

impl Memory {
    /// Why the store is not the one that was led before.
    fn contradicts(&mut self, term: &TermRecord) -> Option<String> {
        let cluster = &term.cluster;
        if self
            .cluster
            .as_ref()
            .is_some_and(|first| term.formerly.contains(first))
        {
            // What was led then was empty; it has been recovered since.
            self.cluster = None;
        }
        let first = self.cluster.get_or_insert_with(|| cluster.clone());
        (first != cluster).then(|| {
            format!("this controller led cluster {first}, and the store now begins cluster {cluster}: it was wiped")
        })
    }
}

impl Controller {
    /// Leads whenever it can, until told to stop.
    pub(crate) async fn run(mut self, shutdown: CancellationToken) {
        let mut memory = Memory::default();
        loop {
            let Some(won) = self.candidate(&shutdown).await else {
                return;
            };
            tracing::info!(leader = %self.leader, "the lease is won");
            let end = self.lead(won, &mut memory, &shutdown).await;
            self.metrics.led(0);
            match end {
                Ok(End::Stopped) => return,
                Ok(End::Deposed(why)) => tracing::warn!(why, "no longer the leader"),
                Ok(End::Unsure(error)) => {
                    tracing::warn!(%error, "stepping down to read the state anew");
                }
                Ok(End::Behind(seen)) => {
                    tracing::error!(term = %seen, "hosts have seen a later term than the store");
                    memory.floor = memory.floor.max(seen);
                }
                Ok(End::Recover(_)) => tracing::error!("a recovered state was not stored"),
                Err(error) => tracing::warn!(%error, "a term did not begin"),
            }
            if pause(STORE_AGAIN / 4, &shutdown).await {
                return;
            }
        }
    }

    /// Waits for the lease; `None`: told to stop.
    async fn candidate(&mut self, shutdown: &CancellationToken) -> Option<Won> {
        // Live messages on the key are a hint only: a clean stop is seen at once, a renewal soon after
        // it was stored, and whatever is missed is found by looking.
        let mut hints = self
            .link
            .subscribe(&subjects::state(subjects::key::LEASE), None)
            .await
            .ok();
        let mut troubled = false;
        let mut watch = Watch::default();
        loop {
            self.metrics.turned();
            if shutdown.is_cancelled() {
                return None;
            }
            let wake = match self.try_lease(&mut watch).await {
                Ok(Some(won)) => return Some(won),
                Ok(None) => {
                    troubled = false;
                    watch.look_at(Instant::now(), look_again(rand::random()), &self.times)
                }
                Err(error) => {
                    if !troubled {
                        tracing::warn!(%error, "the store does not answer");
                    }
                    troubled = true;
                    watch.forget();
                    self.open_again().await;
                    Instant::now() + STORE_AGAIN
                }
            };
            let hint = async {
                let said = match hints.as_mut() {
                    Some(hints) => hints.next().await,
                    None => None,
                };
                if said.is_none() {
                    std::future::pending().await
                }
            };
            tokio::select! {
                () = shutdown.cancelled() => return None,
                () = hint => {}
                () = tokio::time::sleep_until(wake.into()) => {}
            }
        }
    }

    /// Takes the lease if it may be taken.
    async fn try_lease(&self, watch: &mut Watch) -> Result<Option<Won>, StoreError> {
        let view = self.store.read_lease().await?;
        let now = Instant::now();
        let Some(sequence) = watch.may_take(&view, &self.leader, now, &self.times) else {
            return Ok(None);
        };
        let lease = Lease {
            leader: self.leader.clone(),
            term: Term(0),
        };
        let sent = Instant::now();
        match self.store.write_lease(&lease, sequence, &self.times).await {
            Ok(sequence) => Ok(Some(Won { sequence, sent })),
            Err(StoreError::Fenced) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The streams may be gone (a wiped server): they are made again, and whether the state that is
    /// then missing may be begun anew is the guard's to say.
    async fn open_again(&mut self) {
        match Store::open(&self.link, self.js_domain.as_deref()).await {
            Ok(store) => {
                self.artifacts = Artifacts::new(store.clone());
                self.store = store;
            }
            Err(error) => tracing::debug!(%error, "the store is not there"),
        }
    }
}

/// Sleeps; `true`: told to stop meanwhile.
async fn pause(time: Duration, shutdown: &CancellationToken) -> bool {
    tokio::select! {
        () = shutdown.cancelled() => true,
        () = tokio::time::sleep(time) => false,
    }
}
