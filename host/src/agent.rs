//! The host's decisions: event in, effects out. Which replicas there shall be, where each stands,
//! when one is started again, what is told to the leader.
//!
//! Owns the held placement set, every replica's state machine, the numbering of starts, backoff
//! and status reports. Invariants:
//! - Pure: no tokio, no NATS, no wasmtime, no files, no clock, no randomness. `now` is an argument
//!   and never goes backward between calls (the driver sees to it). The simulator drives this very
//!   code.
//! - A replica's state only moves forward; a start number is given out once, also over restarts of
//!   the daemon, because [`Effect::Persist`] comes before the effects that rest on it.
//! - Missing or deleted set: hold. Only an explicit set without a placement stops it. The highest
//!   term wins; a lower one, or an equal one from another leader, or another cluster, is refused.
//! - Work is proportional to what an event touches, not to what the host runs.
//!
//! ```text
//! assigned --revision--> preparing --artifact, compiled--> starting --> running(ready?)
//!     |                      |                                |            |
//!     +----------------------+------ rejected <---------------+   completed | failed
//!                                       |                              |
//!                                       +--> backoff --> next start <--+   (or given up)
//! dropped from the set: draining --> stopped --> forgotten after one report
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use wasmorch_api::{
    BootId, ClusterId, Digest, HostId, LeaderId, PlacementSet, RevisionNumber, Term, Timestamp,
    WorkloadKey,
};

use crate::planted::{self, Bug};
use crate::runner::protocol::ReplicaKey;

mod events;
mod fetch;
mod lease;
#[cfg(test)]
mod leases;
mod placement;
mod removals;
#[cfg(test)]
mod removing;
mod report;
mod rest;
#[cfg(test)]
mod restarts;
#[cfg(test)]
mod resting;
mod sets;
#[cfg(test)]
mod simulated;
#[cfg(test)]
mod tests;
mod transitions;

pub use events::{Effect, Event, Held, HeldPlacement, PlacementKey, Refusal};
use fetch::Fetches;
use lease::Lease;
use placement::Placement;
use removals::Removals;
pub use report::Pulse;

/// Ready for so long without a break, a replica counts as well: earlier failures are forgiven.
const STEADY: Duration = Duration::from_secs(60);
/// Ended starts of one placement that are still told in full reports.
const PAST_MAX: usize = 4;
/// A reason is cut off here, so that a report's size is bounded.
const REASON_BYTES_MAX: usize = 1024;

/// Who this host is.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The host's id, kept with its data.
    pub host: HostId,
    /// This start of the daemon.
    pub boot: BootId,
    /// The cluster it has joined before, if any.
    pub cluster: Option<ClusterId>,
}

/// What a passed point in time means. Fired lazily: whoever it names checks that it still applies.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    Start(PlacementKey),
    DrainOverdue(PlacementKey),
    Lease(PlacementKey),
    Revision(WorkloadKey, RevisionNumber),
    Artifact(Digest),
    Removal,
    Report,
}

/// The agent. See the module's head.
#[derive(Debug)]
pub struct Agent {
    identity: Identity,
    /// The set in force, as it came; its groups are also in `placements`.
    set: Option<PlacementSet>,
    sequence: u64,
    /// A set that has not come yet, and past whose drains the gateways route already; the term in which that was
    /// said.
    withdrawn_ahead: Option<(Term, u64)>,
    seen_term: Term,
    /// The latest term whose sequence in the store is known, and that sequence.
    fence: (Term, u64),
    placements: BTreeMap<PlacementKey, Placement>,
    /// What a leader has last said of hearing this host.
    lease: Lease,
    fetches: Fetches,
    timers: BTreeSet<(Timestamp, Timer)>,
    status_seq: u64,
    /// Replicas to tell about in the next report.
    changed: BTreeSet<ReplicaKey>,
    /// Of many starts at once those that are only on their way, and when they are told.
    told_late: BTreeSet<ReplicaKey>,
    tell_at: Option<Timestamp>,
    /// Placements to forget once that report is made.
    forget: BTreeSet<PlacementKey>,
    /// What removed workloads left here.
    removals: Removals,
    /// Sets refused since the start because the term of their leader was over.
    stale_sets: u64,
    persist: bool,
    shutting_down: bool,
    usage_reported: Timestamp,
    effects: Vec<Effect>,
}

impl Agent {
    /// An agent that holds what the disk held. Nothing happens before the first event: give it a
    /// `Tick`.
    pub fn new(identity: Identity, held: Option<Held>) -> Self {
        let mut agent = Self {
            identity,
            set: None,
            sequence: 0,
            withdrawn_ahead: None,
            seen_term: Term(0),
            fence: (Term(0), 0),
            placements: BTreeMap::new(),
            lease: Lease::default(),
            fetches: Fetches::default(),
            timers: BTreeSet::new(),
            status_seq: 0,
            changed: BTreeSet::new(),
            told_late: BTreeSet::new(),
            tell_at: None,
            forget: BTreeSet::new(),
            removals: Removals::default(),
            stale_sets: 0,
            persist: false,
            shutting_down: false,
            usage_reported: Timestamp(0),
            effects: Vec::new(),
        };
        if let Some(held) = held {
            agent.take_up(held);
        }
        agent
    }

    /// Folds one event in.
    pub fn handle(&mut self, event: Event, now: Timestamp) -> Vec<Effect> {
        self.handle_all([event], now)
    }

    /// Folds a batch of events in: at most one write to disk and one round of reports for all.
    pub fn handle_all(
        &mut self,
        events: impl IntoIterator<Item = Event>,
        now: Timestamp,
    ) -> Vec<Effect> {
        self.note_time(now);
        for event in events {
            self.fold(event, now);
        }
        self.fire_timers(now);
        self.remove_data(now);
        let mut effects = Vec::with_capacity(self.effects.len() + 2);
        if std::mem::take(&mut self.persist) {
            effects.extend(self.held().map(|held| Effect::Persist(Box::new(held))));
        }
        effects.append(&mut self.effects);
        effects.extend(self.reports(now).into_iter().map(Effect::Report));
        self.forget_ended();
        effects
    }

    /// What was to be persisted did not reach the disk: the next event brings it again.
    pub fn persist_again(&mut self) {
        self.persist = true;
    }

    /// When the agent next wants an event, a `Tick` if there is no other.
    pub fn wake_at(&self) -> Option<Timestamp> {
        self.timers.first().map(|(at, _)| *at)
    }

    fn fold(&mut self, event: Event, now: Timestamp) {
        match event {
            Event::Set { set, sequence } => self.apply_set(*set, sequence, now),
            Event::NoSet if planted::is(Bug::MissingKeyIsEmpty) => self.apply_nothing(now),
            Event::NoSet => tracing::debug!("no placement set in the store: holding"),
            Event::Revision(revision) => self.revision_arrived(revision, now),
            Event::RevisionMissing {
                workload,
                number,
                reason,
            } => {
                self.revision_missing(workload, number, &reason, now);
            }
            Event::Fetched { digest, path } => self.artifact_arrived(&digest, &path, now),
            Event::FetchFailed {
                digest,
                reason,
                retryable,
            } => {
                self.artifact_failed(&digest, &reason, retryable, now);
            }
            Event::DataRemoved { removal, failed } => {
                self.data_removed(&removal, failed.as_deref(), now)
            }
            Event::Runner(message) => self.runner_said(message, now),
            Event::RunnerDied { reason } => self.runner_died(&reason, now),
            Event::Connected { cluster, term } => self.connected(cluster, term, now),
            Event::Term { term, fence } => {
                self.seen_term = self.seen_term.max(term);
                self.fence = self.fence.max((term, fence));
            }
            Event::Heard {
                boot,
                term,
                at,
                sequence,
            } => self.heard(&boot, term, (at, sequence), now),
            Event::Withdrawn { set } => self.withdrawn(set),
            Event::Disconnected | Event::Tick => {}
            Event::Shutdown { deadline } => self.shut_down(deadline, now),
        }
    }

    fn fire_timers(&mut self, now: Timestamp) {
        while let Some((at, _)) = self.timers.first() {
            if *at > now {
                break;
            }
            let Some((at, timer)) = self.timers.pop_first() else {
                break;
            };
            match timer {
                Timer::Start(key) => self.start_due(&key, at, now),
                Timer::DrainOverdue(key) => self.drain_overdue(&key, at, now),
                Timer::Lease(key) => self.lease_due(&key, now),
                Timer::Revision(workload, number) => self.revision_due(workload, number, at),
                Timer::Artifact(digest) => self.artifact_due(digest, at),
                Timer::Removal => self.remove_again(now),
                // Looked at when reports are made.
                Timer::Report => {}
            }
        }
    }

    fn connected(&mut self, cluster: ClusterId, term: Term, now: Timestamp) {
        if self.join(&cluster) {
            self.seen_term = self.seen_term.max(term);
            // What could not be fetched for want of a network need not wait out its backoff.
            for timer in self.fetches.waiting() {
                self.fetches.due_now(&timer, now);
                self.timers.insert((now, timer));
            }
        }
    }

    /// Whether this is the host's own cluster; a host without one takes the first that it meets.
    fn join(&mut self, cluster: &ClusterId) -> bool {
        match &self.identity.cluster {
            Some(ours) if ours == cluster => true,
            Some(ours) => {
                let refusal = Refusal::OtherCluster {
                    ours: ours.clone(),
                    theirs: cluster.clone(),
                };
                self.effects.push(Effect::Refused(refusal));
                false
            }
            None => {
                self.identity.cluster = Some(cluster.clone());
                self.effects.push(Effect::Joined(cluster.clone()));
                true
            }
        }
    }

    fn shut_down(&mut self, deadline: Duration, now: Timestamp) {
        self.shutting_down = true;
        let keys: Vec<_> = self.placements.keys().cloned().collect();
        for key in keys {
            self.end_replica(&key, Some(deadline), now);
        }
    }

    /// The cluster, once known.
    pub fn cluster(&self) -> Option<&ClusterId> {
        self.identity.cluster.as_ref()
    }

    /// The highest term seen, and whose set is held.
    pub fn term(&self) -> (Term, Option<&LeaderId>) {
        let held = self.set.as_ref();
        let term = held.map_or(Term(0), |set| set.term).max(self.seen_term);
        (term, held.map(|set| &set.leader))
    }

    /// The set that is held, as it came.
    pub fn held_set(&self) -> Option<&PlacementSet> {
        self.set.as_ref()
    }

    /// The store sequence of the set that is held; 0 without one.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Whether no replica lives any more.
    pub fn idle(&self) -> bool {
        self.placements
            .values()
            .all(|placement| placement.live().is_none())
    }

    /// Whether everything held has been started, or has ended in trying.
    pub fn settled(&self) -> bool {
        self.placements.values().all(Placement::settled)
    }

    /// Every artifact that a held placement uses: not to be pruned.
    pub fn artifacts_in_use(&self) -> BTreeSet<Digest> {
        self.fetches
            .revisions()
            .map(|revision| revision.artifact.clone())
            .collect()
    }

    fn held(&self) -> Option<Held> {
        let placements = self
            .placements
            .iter()
            .filter(|(_, placement)| placement.wanted);
        Some(Held {
            set: self.set.clone()?,
            sequence: self.sequence,
            revisions: self.fetches.revisions().cloned().collect(),
            placements: placements
                .map(|(key, placement)| HeldPlacement {
                    key: key.clone(),
                    starts: placement.starts,
                    ended: placement
                        .finished
                        .then(|| {
                            placement
                                .current
                                .as_ref()
                                .map(|replica| placement.status(key, replica))
                        })
                        .flatten(),
                })
                .collect(),
        })
    }
}
