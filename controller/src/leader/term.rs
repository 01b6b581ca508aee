//! One term: from the won lease to the last joined task.
//!
//! A clean stop goes in order: no new calls, those in hand are answered, the loop ends, the lease is
//! given back. A lost lease ends everything at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};
use wasmorch_api::record::{Lease, TermRecord};
use wasmorch_api::subjects::key;
use wasmorch_api::{ClusterId, LeaderId, Term};
use wasmorch_planner::{Cluster, Stored};

use super::{Controller, Won};
use crate::api::{Api, CALLS_MAX, Identity};
use crate::clock::Clock;
use crate::control_loop::{Begin, ControlLoop, End, FINDINGS_MAX, Inputs};
use crate::ears::{Asker, Ears, OBSERVATIONS_MAX};
use crate::events;
use crate::guard::Guard;
use crate::lease::{LeaseClock, LeaseTimes};
use crate::store::{LeaseView, Loaded, Store, StoreError};

/// Calls in hand have so long to finish at a clean stop.
const DRAIN: Duration = Duration::from_secs(5);
/// Minting is tried again when `term` changed between reading and writing.
const MINT_TRIES: u32 = 5;
/// A renewal that failed is tried again so soon.
const RENEW_AGAIN: Duration = Duration::from_millis(200);

/// The term as minted.
struct Minted {
    record: TermRecord,
    /// The sequence of its record: the fence of every write.
    fence: u64,
}

impl Controller {
    /// Leads one term. `Err`: it did not get so far as to serve.
    pub(super) async fn lead(
        &self,
        won: Won,
        floor: Term,
        shutdown: &CancellationToken,
    ) -> Result<End, StoreError> {
        let clock = LeaseClock::won(self.times, won.sent);
        let keeper = Keeper {
            store: self.store.clone(),
            leader: self.leader.clone(),
            times: self.times,
            clock: clock.clone(),
            term: Arc::new(AtomicU64::new(0)),
            sequence: Arc::new(AtomicU64::new(won.sequence)),
        };
        let (lost, released) = (CancellationToken::new(), CancellationToken::new());
        // Dropped with this future, should that be dropped: no lease is kept for nobody.
        let renewing = keeper.clone().renew(lost.clone(), released.clone());
        let renewing = AbortOnDropHandle::new(tokio::spawn(renewing));
        let end = self.term(&keeper, floor, &lost, shutdown).await;
        released.cancel();
        // A panic of the renewal has been reported by the runtime; the lease then ends by itself.
        let _ = renewing.await;
        clock.drop_now();
        if !lost.is_cancelled() {
            let sequence = keeper.sequence.load(Ordering::Relaxed);
            if let Err(error) = self.store.drop_lease(sequence).await {
                tracing::debug!(%error, "the lease was not given back: it ends by itself");
            }
        }
        end
    }

    async fn term(
        &self,
        keeper: &Keeper,
        floor: Term,
        lost: &CancellationToken,
        shutdown: &CancellationToken,
    ) -> Result<End, StoreError> {
        let began = Instant::now();
        let clock = Clock::new();
        let loading = async {
            let minted = self.mint(floor, &clock).await?;
            keeper.term.store(minted.record.term.0, Ordering::Relaxed);
            let loaded = self.store.load(minted.fence).await?;
            Ok::<_, StoreError>((minted, loaded))
        };
        let (minted, loaded) = tokio::select! {
            () = lost.cancelled() => return Ok(End::Deposed("the lease has ended".to_owned())),
            () = shutdown.cancelled() => return Ok(End::Stopped),
            loaded = loading => loaded?,
        };
        let term = minted.record.term;
        let (cluster, guard) = restore(&minted, loaded, &clock);
        let (hosts, workloads) = (cluster.hosts().len(), cluster.workloads().len());
        let took_ms = began.elapsed().as_millis();
        tracing::info!(%term, hosts, workloads, took_ms, "leading");
        let end = self.serve(minted, cluster, guard, keeper, clock, lost, shutdown).await;
        self.metrics.led(0);
        end
    }

    /// Begins the next term, and the cluster with the first.
    async fn mint(&self, floor: Term, clock: &Clock) -> Result<Minted, StoreError> {
        let mut tries = 0;
        loop {
            tries += 1;
            let (before, sequence) = self.store.read_term().await?;
            let record = next_term(before, floor, &self.leader, clock, rand::random());
            match self.store.write_term(&record, sequence).await {
                Ok(fence) => return Ok(Minted { record, fence }),
                // Our own write whose answer was lost, or a leader before us that was slow.
                Err(StoreError::Fenced) if tries < MINT_TRIES => {}
                Err(error) => return Err(error),
            }
        }
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of a term, put together once")]
    async fn serve(
        &self,
        minted: Minted,
        cluster: Cluster,
        guard: Guard,
        keeper: &Keeper,
        clock: Clock,
        lost: &CancellationToken,
        shutdown: &CancellationToken,
    ) -> Result<End, StoreError> {
        let TermRecord { cluster: cluster_id, term, leader, at } = minted.record;
        let unavailable = |error: crate::link::LinkError| StoreError::Unavailable(error.to_string());
        let (call_sender, calls) = mpsc::channel(CALLS_MAX);
        let (heard_sender, heard) = mpsc::channel(OBSERVATIONS_MAX);
        let (finding_sender, findings) = mpsc::channel(FINDINGS_MAX);
        let (events, publisher) = events::queue(term, self.link.clone(), self.metrics.clone());

        // Ends with the term, however it ends; dropped on an early return too.
        let over = lost.child_token();
        let _over = over.clone().drop_guard();
        let (hearing, calling) = (TaskTracker::new(), TaskTracker::new());
        let ears =
            Ears { link: self.link.clone(), clock, queue: heard_sender, metrics: self.metrics.clone() };
        ears.listen(&hearing, &over).await.map_err(unavailable)?;
        let asker = Asker::new(&ears, &hearing, &over);
        drop(ears);

        let begin = Begin {
            cluster,
            guard,
            fence: minted.fence,
            store: self.store.clone(),
            lease: keeper.clock.clone(),
            clock,
            events,
            asker,
            findings: finding_sender,
            metrics: self.metrics.clone(),
        };
        let stop = CancellationToken::new();
        let inputs = Inputs { calls, heard, findings };
        let main = ControlLoop::new(begin).run(inputs, stop.clone(), lost.clone());
        let mut main = AbortOnDropHandle::new(tokio::spawn(main));
        let publishing = AbortOnDropHandle::new(tokio::spawn(publisher.run()));

        let api = Api {
            link: self.link.clone(),
            lease: keeper.clock.clone(),
            artifacts: self.artifacts.clone(),
            calls: call_sender.clone(),
            metrics: self.metrics.clone(),
        };
        let intake = over.child_token();
        let identity = Identity { cluster: cluster_id, term, leader, since: at };
        let serving = api.serve(&identity, &calling, &intake).await.map_err(unavailable);
        if serving.is_ok() {
            self.metrics.led(term.0);
        }

        let joined = tokio::select! {
            joined = &mut main => joined,
            () = async {
                if serving.is_ok() {
                    shutdown.cancelled().await;
                }
            } => {
                intake.cancel();
                calling.close();
                if tokio::time::timeout(DRAIN, calling.wait()).await.is_err() {
                    tracing::warn!("calls are left unanswered");
                }
                stop.cancel();
                main.await
            }
        };
        // Until here, so that the loop never reads from a queue that nobody can write to.
        drop(call_sender);
        over.cancel();
        calling.close();
        hearing.close();
        let _ = tokio::time::timeout(DRAIN, async {
            calling.wait().await;
            hearing.wait().await;
            // The loop is gone, and with it the events' sender: what was said is published.
            let _ = publishing.await;
        })
        .await;
        serving?;
        match joined {
            Ok(end) => Ok(end),
            Err(panic) => Ok(End::Deposed(format!("the control loop broke off: {panic}"))),
        }
    }
}

/// What the stored term leads to.
fn next_term(
    before: Option<TermRecord>,
    floor: Term,
    leader: &LeaderId,
    clock: &Clock,
    random: [u8; 10],
) -> TermRecord {
    let (cluster, last) = match before {
        Some(record) => (record.cluster, record.term),
        None => (ClusterId::from_random(random), Term(0)),
    };
    TermRecord { cluster, term: last.max(floor).next(), leader: leader.clone(), at: clock.now() }
}

/// The state as loaded. Records come first: what belongs to an unknown workload is a leftover.
fn restore(minted: &Minted, loaded: Loaded, clock: &Clock) -> (Cluster, Guard) {
    let TermRecord { cluster, term, leader, .. } = &minted.record;
    let mut unreadable = Vec::new();
    let mut entries: Vec<(u8, Stored, u64)> = Vec::with_capacity(loaded.entries.len());
    for entry in loaded.entries {
        match Stored::parse(&entry.key, &entry.value) {
            Ok(Some(stored)) => entries.push((rank(&stored), stored, entry.sequence)),
            Ok(None) => tracing::debug!(key = entry.key, "a key of another version is left alone"),
            Err(error) => {
                tracing::error!(key = entry.key, %error, "a stored value cannot be read");
                unreadable.push(entry.key);
            }
        }
    }
    entries.sort_by_key(|(rank, _, sequence)| (*rank, *sequence));
    let known = |key: &str| key != key::TERM && key != key::LEASE;
    unreadable.retain(|key| known(key));
    let empty = entries.is_empty() && unreadable.is_empty();
    let mut state = Cluster::new(cluster.clone(), *term, leader.clone(), clock.now());
    for (_, stored, sequence) in entries {
        state.load(stored, sequence);
    }
    let last = loaded.last_sequence.max(minted.fence);
    (state, Guard::new(cluster.clone(), empty, last, &unreadable))
}

fn rank(stored: &Stored) -> u8 {
    match stored {
        Stored::Record(_) => 0,
        Stored::Revision(_) => 1,
        Stored::Host(_) => 2,
        Stored::Placements(_) => 3,
        Stored::Endpoints(_) | Stored::Routes(_) => 4,
    }
}

/// Keeps the lease.
#[derive(Debug, Clone)]
struct Keeper {
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
    /// Renews until `released`, or cancels `lost` when the lease is over.
    async fn renew(self, lost: CancellationToken, released: CancellationToken) {
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
            let lease = Lease { leader: self.leader.clone(), term };
            let sequence = self.sequence.load(Ordering::Relaxed);
            let sent = Instant::now();
            let rest = self.clock.holds_until().saturating_duration_since(sent);
            let write = self.store.write_lease(&lease, sequence, &self.times);
            match tokio::time::timeout(rest, write).await {
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
                Err(_) => return false,
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

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::store::LoadedEntry;

    fn leader() -> LeaderId {
        "l1".parse().unwrap()
    }

    #[test]
    fn terms_only_grow_and_the_cluster_stays() {
        let clock = Clock::new();
        let first = next_term(None, Term(0), &leader(), &clock, [7; 10]);
        assert_eq!((first.term, first.cluster.as_str()), (Term(1), "07070707070707070707"));
        let second = next_term(Some(first.clone()), Term(0), &leader(), &clock, [8; 10]);
        assert_eq!((second.term, &second.cluster), (Term(2), &first.cluster));
        let after_loss = next_term(Some(first), Term(9), &leader(), &clock, [8; 10]);
        assert_eq!(after_loss.term, Term(10), "later than what a host has seen");
    }

    fn minted() -> Minted {
        let record = next_term(None, Term(0), &leader(), &Clock::new(), [7; 10]);
        Minted { record, fence: 5 }
    }

    fn entry(key: &str, value: &'static str, sequence: u64) -> LoadedEntry {
        LoadedEntry { key: key.to_owned(), value: Bytes::from(value), sequence }
    }

    #[test]
    fn a_value_that_cannot_be_read_freezes_the_leader() {
        let loaded =
            Loaded { entries: vec![entry("workload.shop.web", "{", 3)], last_sequence: 5 };
        let (cluster, guard) = restore(&minted(), loaded, &Clock::new());
        assert!(cluster.workloads().is_empty());
        assert!(guard.frozen().is_some_and(|why| why.contains("workload.shop.web")));
    }

    #[test]
    fn records_are_loaded_before_what_belongs_to_them() {
        let routes = r#"{"cluster":"c","term":1,"namespace":"shop","workload":"web","kind":"http","routes":[]}"#;
        let record = r#"{"namespace":"shop","name":"web","kind":"http","revision":1,"newest":1,
            "desired":2,"next_placement":1,"created":"2023-11-14T22:13:20Z","updated":"2023-11-14T22:13:20Z"}"#;
        let loaded = Loaded {
            entries: vec![
                entry("pub.routes.shop.web", routes, 2),
                entry("workload.shop.web", record, 3),
                entry("namespace.shop", "{}", 4),
            ],
            last_sequence: 5,
        };
        let (cluster, guard) = restore(&minted(), loaded, &Clock::new());
        assert_eq!(guard.frozen(), None);
        let workload = cluster.workloads().values().next().unwrap();
        assert!(workload.routes.is_some());
        assert_eq!(workload.index, 3);
    }
}
