//! What the store holds for one workload: its record (mutable) and its revisions (immutable).
//!
//! Owns the shapes under the keys `workload.<ns>.<name>` and `revision.<ns>.<name>.<n>`. What
//! follows from them is the planner's to decide.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::ids::{
    ClusterId, Digest, HostId, LeaderId, Name, PlacementNumber, RequestId, RevisionNumber, Slot,
    Term, WorkloadKey,
};
use crate::spec::{Job, Kind, WorkloadSpec};
use crate::time::Timestamp;

mod rollout;

pub use rollout::{CanaryStep, Hold, Rollout, RolloutState, Together};

/// An immutable, numbered version of a workload's spec, artifact included.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revision {
    /// The namespace.
    pub namespace: Name,
    /// The workload.
    pub name: Name,
    /// Its number within the workload, from 1.
    pub number: RevisionNumber,
    /// The kind in force (the spec's, or taken from the component's exports).
    pub kind: Kind,
    /// The component's digest.
    pub artifact: Digest,
    /// What its component needs of a host beyond what every host has (`features`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub features: Vec<String>,
    /// What was asked for.
    pub spec: WorkloadSpec,
    /// When it was made.
    pub at: Timestamp,
    /// Who made it.
    pub by: String,
    /// What is different from the one before, a line each.
    #[serde(default)]
    pub changes: Vec<String>,
}

impl Revision {
    /// The workload it belongs to.
    pub fn key(&self) -> WorkloadKey {
        WorkloadKey::new(self.namespace.clone(), self.name.clone())
    }
}

/// The mutable side of a workload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The namespace.
    pub namespace: Name,
    /// The workload.
    pub name: Name,
    /// The kind of its current revision.
    pub kind: Kind,
    /// The revision that is wanted now; while a rollout is held, still the one before.
    pub revision: RevisionNumber,
    /// The highest revision ever made, so that no number is made twice.
    pub newest: RevisionNumber,
    /// The last one whose rollout completed: what a revert goes back to.
    #[serde(default)]
    pub stable: Option<RevisionNumber>,
    /// How many replicas are wanted.
    pub desired: u32,
    /// Held at zero until `start`.
    #[serde(default)]
    pub stopped: bool,
    /// The rollout that runs, or how the last one ended.
    #[serde(default)]
    pub rollout: Option<Rollout>,
    /// The next placement's number.
    pub next_placement: PlacementNumber,
    /// Placements with a lower number are replaced even at the same revision (`restart`).
    #[serde(default)]
    pub fresh_from: PlacementNumber,
    /// Jobs and cron: the newest run, and how it ended.
    #[serde(default)]
    pub run: Option<Run>,
    /// Replicas that are to run on another host (`rebalance`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub moves: Vec<Move>,
    /// Cron: runs before it that go on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub earlier: Vec<Run>,
    /// Cron: what its schedule names up to this time has been seen to: begun, or left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheduled: Option<Timestamp>,
    /// Slots in a crash loop: every host tried has used up its starts.
    #[serde(default)]
    pub crash_loop: Vec<CrashLoop>,
    /// Slots with volumes: the host that has them. The slot goes nowhere else.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub homes: BTreeMap<Slot, HostId>,
    /// When the workload was first deployed.
    pub created: Timestamp,
    /// When the record last changed.
    pub updated: Timestamp,
    /// Answers to recent writes, so that a repeat changes nothing.
    #[serde(default)]
    pub answered: Vec<Answered>,
}

impl Record {
    /// One of which nothing is wanted yet: its first, or the first since it was removed, whose numbers go on.
    pub fn new(
        key: &WorkloadKey,
        kind: Kind,
        revision: RevisionNumber,
        removed: Option<&Removed>,
        at: Timestamp,
    ) -> Self {
        Self {
            namespace: key.namespace.clone(),
            name: key.name.clone(),
            kind,
            revision,
            newest: revision,
            stable: None,
            desired: 0,
            stopped: false,
            rollout: None,
            next_placement: removed.map_or(PlacementNumber(1), |removed| removed.next_placement),
            fresh_from: PlacementNumber(0),
            run: None,
            moves: Vec::new(),
            earlier: Vec::new(),
            scheduled: None,
            crash_loop: Vec::new(),
            homes: removed.map_or_else(BTreeMap::new, |removed| removed.homes.clone()),
            created: at,
            updated: at,
            answered: removed.map_or_else(Vec::new, |removed| removed.answered.clone()),
        }
    }

    /// The workload's full name.
    pub fn key(&self) -> WorkloadKey {
        WorkloadKey::new(self.namespace.clone(), self.name.clone())
    }

    /// How many replicas it should have now.
    pub fn wanted(&self) -> u32 {
        if self.stopped { 0 } else { self.desired }
    }

    /// How many seats it has now: its replicas, or at zero its standbys. While a rollout moves at zero
    /// there are none: what rests proves nothing. One that is held leaves everything as it was.
    pub fn seats(&self, spec: &WorkloadSpec) -> u32 {
        if self.rests(spec) {
            spec.standbys()
        } else {
            self.wanted()
        }
    }

    /// Whether what it has is told to rest.
    pub fn rests(&self, spec: &WorkloadSpec) -> bool {
        let moves = self.active_rollout().is_some() && (self.held().is_none() || self.held_bare());
        self.desired == 0 && !self.stopped && !moves && spec.standbys() > 0
    }

    /// The runs that go on, oldest first.
    pub fn runs(&self) -> impl Iterator<Item = &Run> {
        let all = self.earlier.iter().chain(&self.run);
        all.filter(|run| run.outcome.is_none() && !self.stopped)
    }

    /// The revision on trial: some replicas of it run beside the record's own revision, which every
    /// slot keeps until they are promoted.
    pub fn on_trial(&self) -> Option<RevisionNumber> {
        let rollout = self.active_rollout()?;
        (rollout.canary.is_some() && !self.stopped).then_some(rollout.revision)
    }

    /// The rollout goes on, or begins, with canaries beside the revision `base`.
    pub fn put_on_trial(&mut self, base: RevisionNumber) {
        self.revision = base;
        if let Some(rollout) = self.rollout.as_mut() {
            rollout.state = RolloutState::Canary;
            rollout.canary = Some(CanaryStep::default());
        }
    }

    /// The revision that its last deploy asked for: on trial, held, or its own.
    pub fn asked(&self) -> RevisionNumber {
        let apart = |rollout: &&Rollout| {
            rollout.hold.is_some() || rollout.canary.is_some() && !rollout.state.ended()
        };
        let rollout = self.rollout.as_ref().filter(apart);
        rollout.map_or(self.revision, |rollout| rollout.revision)
    }

    /// How many replicas were asked for last.
    pub fn desired_asked(&self) -> u32 {
        let held = self.held();
        held.map_or(self.desired, |(_, hold)| hold.desired)
    }

    /// The rollout that waits for what it depends on.
    pub fn held(&self) -> Option<(&Rollout, &Hold)> {
        let rollout = self.rollout.as_ref()?;
        rollout.hold.as_ref().map(|hold| (rollout, hold))
    }

    /// It is held, and there is no earlier revision to serve meanwhile: nothing runs.
    pub fn held_bare(&self) -> bool {
        { self.held() }.is_some_and(|(rollout, _)| rollout.revision == self.revision)
    }

    /// The rollout when it still moves.
    pub fn active_rollout(&self) -> Option<&Rollout> {
        self.rollout
            .as_ref()
            .filter(|rollout| !rollout.state.ended())
    }
}

/// What the workloads of a namespace may have together; what is left out is not limited.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quota {
    /// Memory that they book.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// Cpu that they book, thousandths of a core.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_millis: Option<u64>,
    /// Replicas.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replicas: Option<u64>,
}

/// The value of the key `namespace.<ns>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamespaceRecord {
    /// The namespace.
    pub namespace: Name,
    /// Its quota.
    #[serde(default)]
    pub quota: Quota,
    /// When it was set.
    pub updated: Timestamp,
    /// Who set it.
    pub by: String,
}

/// What stays of a removed workload: its counters, so that a workload of the same name never gives
/// a revision or a placement a number that hosts may still hold as another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removed {
    /// The namespace.
    pub namespace: Name,
    /// The workload.
    pub name: Name,
    /// The highest revision ever made.
    pub newest: RevisionNumber,
    /// The next placement's number.
    pub next_placement: PlacementNumber,
    /// Where its volumes are: a workload of the same name finds them again.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub homes: BTreeMap<Slot, HostId>,
    /// What of its data hosts have still to remove, the oldest removal first. It outlives the removal of
    /// this entry's reason: a workload of the same name may be there again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub removals: Vec<PendingRemoval>,
    /// Answers to recent writes: a late copy of one must not bring the workload back.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub answered: Vec<Answered>,
}

/// One removal with its data, and the hosts that have not said that they have carried it out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingRemoval {
    /// What placements below this number have left.
    pub before: PlacementNumber,
    /// When it was asked for.
    pub at: Timestamp,
    /// The containers on disk that were its own alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub containers: Vec<String>,
    /// The hosts.
    pub hosts: BTreeSet<HostId>,
}

impl Removed {
    /// The workload's full name.
    pub fn key(&self) -> WorkloadKey {
        WorkloadKey::new(self.namespace.clone(), self.name.clone())
    }
}

/// A replica that is to run on another host: there first, then here no more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Move {
    /// Its placement.
    pub placement: PlacementNumber,
    /// The other host.
    pub to: HostId,
    /// The placement there, once it is made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub successor: Option<PlacementNumber>,
}

/// A slot that failed everywhere it was tried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CrashLoop {
    /// The seat.
    pub slot: Slot,
    /// What failed.
    pub revision: RevisionNumber,
    /// How many placements have failed in a row.
    pub placements: u32,
    /// Not tried again before this.
    pub until: Timestamp,
    /// The last reason; empty where others have failed since.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// With one replica on every host: whose slot it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<HostId>,
}

/// One run of a job.
///
/// Its seats are the slots after `after_slot`. A seat's replica brings one completion; then the seat
/// is free for the next, until there are as many as wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// Counts the runs of this workload, from 1.
    pub number: u64,
    /// Placements from this number on belong to the run.
    pub first_placement: PlacementNumber,
    /// Arguments given to `start` for this run alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub args: Option<Vec<String>>,
    /// The slot before its first.
    #[serde(default)]
    pub after_slot: u64,
    /// Replicas at once.
    #[serde(default = "one")]
    pub seats: u32,
    /// Good ends wanted.
    #[serde(default = "one")]
    pub completions: u32,
    /// Good ends so far.
    #[serde(default)]
    pub completed: u32,
    /// Ended placements that have been counted, for as long as a set may name them.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub counted: BTreeSet<PlacementNumber>,
    /// Tries in vain of the completion that a seat is at.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tries: BTreeMap<Slot, u32>,
    /// The time of the schedule that it was begun for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheduled: Option<Timestamp>,
    /// How it ended; `None` while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<RunOutcome>,
}

fn one() -> u32 {
    1
}

impl Run {
    /// A run that begins.
    pub fn new(
        number: u64,
        first_placement: PlacementNumber,
        args: Option<Vec<String>>,
        job: &Job,
    ) -> Self {
        Self {
            number,
            first_placement,
            args,
            after_slot: 0,
            seats: job.seats(),
            completions: job.completions,
            completed: 0,
            counted: BTreeSet::new(),
            tries: BTreeMap::new(),
            scheduled: None,
            outcome: None,
        }
    }

    /// Its slots.
    pub fn slots(&self) -> std::ops::RangeInclusive<Slot> {
        Slot(self.after_slot + 1)..=Slot(self.after_slot + u64::from(self.seats))
    }

    /// Whether a placement is one of this run.
    pub fn has(&self, slot: Slot, number: PlacementNumber) -> bool {
        number >= self.first_placement && self.slots().contains(&slot)
    }

    /// Replicas that it may still use at once.
    pub fn wanted(&self) -> u32 {
        self.seats
            .min(self.completions.saturating_sub(self.completed))
    }
}

/// How a job's run ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunOutcome {
    /// Whether it completed.
    pub completed: bool,
    /// The guest's exit code, when it had one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// When.
    pub at: Timestamp,
}

/// One answered write.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answered {
    /// The client's id for it.
    pub request_id: RequestId,
    /// The verb.
    pub verb: String,
    /// When it was answered.
    pub at: Timestamp,
    /// The answer's body.
    pub reply: serde_json::Value,
}

/// The value of the key `term`: who leads, and which cluster this store belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TermRecord {
    /// The cluster, minted with the first term.
    pub cluster: ClusterId,
    /// The leadership's number.
    pub term: Term,
    /// The leader.
    pub leader: LeaderId,
    /// When it began.
    pub at: Timestamp,
    /// Clusters that this store had begun, empty, before it was recovered to be `cluster` again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub formerly: Vec<ClusterId>,
}

/// The value of the key `lease`: held by the leader, ended by the store when not renewed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// Who holds it.
    pub leader: LeaderId,
    /// The leader's term.
    pub term: Term,
}
