//! One workload as the leader knows it: its record, its placements, and what hosts say of them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use wasmorch_api::{
    HostId, PlacementNumber, Record, ReplicaState, ReplicaStatus, Revision, RevisionNumber,
    RouteTable, Slot, Timestamp,
};

use super::Line;
use crate::ENDED_KEPT;
use crate::awaited::Awaited;
use crate::cached::Left;
use crate::explain::Trouble;
use crate::judge::Tally;
use crate::plan::StopReason;
use crate::pool::Holders;
use crate::tables::Endpoints;

/// Reasons kept for each workload: most are dropped when the replica has ended.
const TOLD_KEPT: usize = 256;

/// One workload.
#[derive(Debug, Clone)]
pub struct Workload {
    /// Its record.
    pub record: Record,
    /// The record's store sequence: the `index` of `--if-index`.
    pub index: u64,
    /// Its revisions.
    pub revisions: BTreeMap<RevisionNumber, Arc<Revision>>,
    /// What the placement sets hold of it.
    pub placements: BTreeMap<PlacementNumber, Placed>,
    /// What hosts say, by placement. Boxed: a tree is half empty, and a report is large.
    pub reports: BTreeMap<PlacementNumber, Box<Reported>>,
    /// Replicas that have ended, newest last.
    pub ended: VecDeque<Reported>,
    /// Its endpoints as stored.
    pub endpoints: Option<Endpoints>,
    /// Its routes as stored.
    pub routes: Option<RouteTable>,
    /// Events of it in this term, newest last.
    pub(crate) story: VecDeque<Line>,
    /// Slots that could not be placed when last planned.
    pub(crate) unplaced: Option<Trouble>,
    /// Why placements were taken out of their sets, until their replicas have ended.
    pub(crate) told: BTreeMap<PlacementNumber, StopReason>,
    /// The priority that it is counted under.
    pub(crate) counted_as: Option<u32>,
    /// The placements by slot.
    pub(crate) slots: BTreeSet<(Slot, PlacementNumber)>,
    /// Reports of replicas that no set holds (any more).
    pub(crate) leaving: BTreeSet<PlacementNumber>,
    /// Placements in each class of hosts.
    pub(crate) per_class: BTreeMap<u32, u32>,
    /// Placements on each host.
    pub(crate) holders: Holders,
    /// Hosts that may have its component still.
    pub(crate) left: Left,
    /// Nothing of it moves by itself: what has changed can be planned slot by slot.
    pub(crate) steady: bool,
    /// All of it is placed, and its rollout waits for these slots.
    pub(crate) awaited: Option<Awaited>,
    /// When it wants to be planned again though nothing happens.
    pub(crate) wake: Option<Timestamp>,
    /// How the revision that is being rolled out answers.
    pub(crate) tally: Tally,
}

/// One placement as dispatched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    /// The seat.
    pub slot: Slot,
    /// What it runs.
    pub revision: RevisionNumber,
    /// Where.
    pub host: HostId,
    /// It is told to rest.
    pub standby: bool,
    /// Arguments in place of the spec's.
    pub args: Option<Arc<Vec<String>>>,
}

/// What a host says of one placement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reported {
    /// Who says so.
    pub host: HostId,
    /// Its words.
    pub status: ReplicaStatus,
    /// Since when it has been ready, by the leader's clock: host clocks may jump.
    pub ready_at: Option<Timestamp>,
    /// Since when it has been running, by the leader's clock.
    pub running_at: Option<Timestamp>,
}

impl Workload {
    pub(super) fn new(record: Record, index: u64) -> Self {
        let mut tally = Tally::default();
        tally.follow(&record);
        Self {
            record,
            index,
            revisions: BTreeMap::new(),
            placements: BTreeMap::new(),
            reports: BTreeMap::new(),
            ended: VecDeque::new(),
            endpoints: None,
            routes: None,
            story: VecDeque::new(),
            unplaced: None,
            told: BTreeMap::new(),
            counted_as: None,
            slots: BTreeSet::new(),
            leaving: BTreeSet::new(),
            per_class: BTreeMap::new(),
            holders: Holders::default(),
            left: Left::default(),
            steady: false,
            awaited: None,
            wake: None,
            tally,
        }
    }

    /// The revision that is wanted. Written in the same batch as the record, so it is there.
    pub fn target(&self) -> Option<&Arc<Revision>> {
        self.revisions.get(&self.record.revision)
    }

    /// The revision that its last deploy asked for: on trial, held, or the wanted one.
    pub fn asked(&self) -> Option<&Arc<Revision>> {
        self.revisions.get(&self.record.asked())
    }

    /// Whether it wants one replica on every host.
    pub fn per_host(&self) -> bool {
        self.target().is_some_and(|target| target.spec.per_host())
    }

    /// Whether the host of this placement says that it serves. After a store went back, another host
    /// may still run what had the same number.
    pub fn is_ready(&self, number: PlacementNumber) -> bool {
        let placed = self.placements.get(&number);
        let report = self.reports.get(&number);
        placed.zip(report).is_some_and(|(placed, report)| {
            report.host == placed.host
                && report.status.state == ReplicaState::Running
                && report.status.ready
        })
    }

    /// Whether what a host tells of a placement leaves it as it stands: on its way, as it was.
    pub(crate) fn still_starts(&self, host: &HostId, status: &ReplicaStatus) -> bool {
        let number = status.replica.placement;
        let on_its_way = |status: &ReplicaStatus| {
            let ends = matches!(
                status.state,
                ReplicaState::Running | ReplicaState::Completed
            );
            !ends && !status.given_up && !status.standby
        };
        let placed = self.placements.get(&number);
        let before = self.reports.get(&number);
        !self.record.kind.ends()
            && placed.is_some_and(|placed| placed.host == *host)
            && on_its_way(status)
            && status.answers.is_empty()
            && before.is_none_or(|known| known.host == *host && on_its_way(&known.status))
    }

    /// Whether any of it may be at rest: what an earlier revision has left is woken as well.
    pub(crate) fn may_rest(&self) -> bool {
        let mut kept = self.revisions.values();
        kept.any(|revision| revision.spec.standbys() > 0)
    }

    /// Why a placement ends is kept until its replica has ended.
    pub(crate) fn told_to_end(&mut self, number: PlacementNumber, why: StopReason) {
        if self.told.len() >= TOLD_KEPT {
            self.told.pop_first();
        }
        self.told.insert(number, why);
    }

    pub(crate) fn remember_ended(&mut self, report: Reported) {
        if self
            .ended
            .iter()
            .any(|known| known.status.replica == report.status.replica)
        {
            return;
        }
        let keep = match self.target() {
            Some(target) if target.kind.ends() => target.spec.job.keep as usize,
            _ => ENDED_KEPT,
        };
        self.ended.push_back(report);
        while self.ended.len() > keep {
            self.ended.pop_front();
        }
    }
}
