//! The cluster's state as the leader knows it.
//!
//! Owns the maps and how stored entries and acknowledged writes change them. It decides nothing.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use wasmorch_api::record::Removed;
use wasmorch_api::status::{Capacity, HostRecord, HostState};
use wasmorch_api::{
    BootId, ClusterId, EndpointTable, HostId, HostInfo, LeaderId, PlacementNumber, PlacementSet,
    Record, ReplicaState, ReplicaStatus, Revision, RevisionNumber, RouteTable, Slot, Term,
    Timestamp, WorkloadKey,
};

use crate::write::{EventDraft, Stored, Write};
use crate::{DEAD_AFTER, ENDED_KEPT};

/// The whole state.
#[derive(Debug, Clone)]
pub struct Cluster {
    /// Which cluster.
    pub cluster: ClusterId,
    /// The leader's term.
    pub term: Term,
    /// The leader.
    pub leader: LeaderId,
    /// When the term began: a host not heard since is given a full dead-window from here.
    pub since: Timestamp,
    /// The last tick, to notice the leader's own stalls.
    pub(crate) ticked: Timestamp,
    pub(crate) hosts: BTreeMap<HostId, Host>,
    pub(crate) workloads: BTreeMap<WorkloadKey, Workload>,
    /// Counters of workloads that are gone.
    pub(crate) removed: BTreeMap<WorkloadKey, Removed>,
}

/// One host.
#[derive(Debug, Clone)]
pub struct Host {
    /// As stored.
    pub record: HostRecord,
    /// The record has reached the store.
    pub(crate) stored: bool,
    /// Its current start; `None` until it has been heard in this term.
    pub boot: Option<BootId>,
    /// When it was last heard, or when the term began.
    pub heard: Timestamp,
    /// Whether it lives.
    pub state: HostState,
    /// Its set as stored.
    pub set: Option<PlacementSet>,
    /// The set's store sequence.
    pub set_sequence: u64,
    /// When the set was written.
    pub(crate) set_at: Timestamp,
    /// The sequence it says it holds.
    pub applied: u64,
    /// The last status report that was folded in.
    pub(crate) status_seq: u64,
    /// Everything it runs is known: a full report came in this boot.
    pub synced: bool,
    /// When its full status was last asked for.
    pub(crate) asked: Timestamp,
    /// The store sequence its gateway has applied.
    pub table_seq: u64,
    /// Memory of its replicas now.
    pub memory_bytes: u64,
    /// Live replicas, by its own count.
    pub replicas: u64,
}

impl Host {
    fn new(record: HostRecord, stored: bool, since: Timestamp) -> Self {
        Self {
            record,
            stored,
            boot: None,
            heard: since,
            state: HostState::Alive,
            set: None,
            set_sequence: 0,
            set_at: since,
            applied: 0,
            status_seq: 0,
            synced: false,
            asked: Timestamp(0),
            table_seq: 0,
            memory_bytes: 0,
            replicas: 0,
        }
    }

    /// What it last said of itself.
    pub fn info(&self) -> &HostInfo {
        &self.record.info
    }

    /// What may be booked on it.
    pub fn capacity(&self) -> Capacity {
        self.record.info.capacity
    }

    /// It runs by a set that the store no longer has: it was removed, and came back.
    pub(crate) fn holds_unkept(&self) -> bool {
        self.known() && self.set.is_none() && self.applied > 0
    }

    /// Heard in this term, and everything it runs is known.
    pub fn known(&self) -> bool {
        self.boot.is_some() && self.synced
    }
}

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
    /// What hosts say, by placement.
    pub reports: BTreeMap<PlacementNumber, Reported>,
    /// Replicas that have ended, newest last.
    pub ended: VecDeque<Reported>,
    /// Its endpoints as stored.
    pub endpoints: Option<EndpointTable>,
    /// Its routes as stored.
    pub routes: Option<RouteTable>,
    /// Events of it in this term, newest last.
    pub(crate) story: VecDeque<(Timestamp, EventDraft)>,
    /// Slots that could not be placed when last planned.
    pub(crate) unplaced: Option<wasmorch_api::messages::Unplaced>,
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
    /// Arguments in place of the spec's.
    pub args: Option<Vec<String>>,
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
    fn new(record: Record, index: u64) -> Self {
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
        }
    }

    /// The revision that is wanted. Written in the same batch as the record, so it is there.
    pub fn target(&self) -> Option<&Arc<Revision>> {
        self.revisions.get(&self.record.revision)
    }

    /// Whether a report says that this placement serves.
    pub fn is_ready(&self, number: PlacementNumber) -> bool {
        self.reports.get(&number).is_some_and(|report| {
            report.status.state == ReplicaState::Running && report.status.ready
        })
    }

    pub(crate) fn remember_ended(&mut self, report: Reported) {
        if self
            .ended
            .iter()
            .any(|known| known.status.replica == report.status.replica)
        {
            return;
        }
        if self.ended.len() == ENDED_KEPT {
            self.ended.pop_front();
        }
        self.ended.push_back(report);
    }
}

/// Events kept for each workload's `why`.
const STORY_KEPT: usize = 30;

impl Cluster {
    /// An empty state at the start of a term.
    pub fn new(cluster: ClusterId, term: Term, leader: LeaderId, now: Timestamp) -> Self {
        Self {
            cluster,
            term,
            leader,
            since: now,
            ticked: now,
            hosts: BTreeMap::new(),
            workloads: BTreeMap::new(),
            removed: BTreeMap::new(),
        }
    }

    /// Hosts by id.
    pub fn hosts(&self) -> &BTreeMap<HostId, Host> {
        &self.hosts
    }

    /// Workloads by namespace and name.
    pub fn workloads(&self) -> &BTreeMap<WorkloadKey, Workload> {
        &self.workloads
    }

    /// A workload.
    pub fn workload(&self, key: &WorkloadKey) -> Option<&Workload> {
        self.workloads.get(key)
    }

    /// A new leader has waited long enough for hosts to speak.
    pub(crate) fn settled(&self, now: Timestamp) -> bool {
        now.since(self.since) >= DEAD_AFTER
    }

    /// Folds in one stored entry at the start of a term. Records first, then the rest: an entry
    /// whose workload is unknown is a leftover and is ignored.
    pub fn load(&mut self, entry: Stored, sequence: u64) {
        match entry {
            Stored::Record(record) => {
                self.workloads
                    .insert(record.key(), Workload::new(*record, sequence));
            }
            Stored::Removed(removed) => {
                self.removed.insert(removed.key(), removed);
            }
            Stored::Revision(revision) => self.add_revision(*revision),
            Stored::Host(record) => {
                let host = Host::new(*record, true, self.since);
                self.hosts.insert(host.record.host.clone(), host);
            }
            Stored::Placements(set) => self.set_placements(set, sequence, self.since),
            Stored::Endpoints(table) => {
                if let Some(workload) = self.workloads.get_mut(&table.key()) {
                    workload.endpoints = Some(table);
                }
            }
            Stored::Routes(table) => {
                if let Some(workload) = self.workloads.get_mut(&table.key()) {
                    workload.routes = Some(table);
                }
            }
        }
    }

    /// Folds in writes that the store has acknowledged. Write `i` of `n` has the sequence
    /// `last_sequence - n + 1 + i`: a batch is stored whole and in order.
    pub fn commit(&mut self, writes: &[Write], last_sequence: u64, now: Timestamp) {
        let first = (last_sequence + 1).saturating_sub(writes.len() as u64);
        for (write, sequence) in writes.iter().zip(first..) {
            self.commit_one(write.clone(), sequence, now);
        }
    }

    fn commit_one(&mut self, write: Write, sequence: u64, now: Timestamp) {
        match write {
            Write::Record(record) => match self.workloads.get_mut(&record.key()) {
                Some(workload) => {
                    workload.record = *record;
                    workload.index = sequence;
                }
                None => self.load(Stored::Record(record), sequence),
            },
            Write::DeleteRecord(key) => {
                self.workloads.remove(&key);
            }
            Write::Removed(removed) => self.load(Stored::Removed(removed), sequence),
            Write::DeleteRemoved(key) => {
                self.removed.remove(&key);
            }
            Write::Revision(revision) => self.add_revision(*revision),
            Write::DeleteRevision(key, number) => {
                if let Some(workload) = self.workloads.get_mut(&key) {
                    workload.revisions.remove(&number);
                }
            }
            Write::Host(record) => match self.hosts.get_mut(&record.host) {
                Some(host) => {
                    host.record = *record;
                    host.stored = true;
                }
                None => self.load(Stored::Host(record), sequence),
            },
            Write::DeleteHost(host) => {
                self.hosts.remove(&host);
                for workload in self.workloads.values_mut() {
                    workload.placements.retain(|_, placed| placed.host != host);
                    workload.reports.retain(|_, known| known.host != host);
                }
            }
            Write::Placements(set) => self.set_placements(set, sequence, now),
            Write::DeletePlacements(host) => {
                if let Some(host) = self.hosts.get_mut(&host) {
                    host.set = None;
                }
            }
            Write::Endpoints(table) => self.load(Stored::Endpoints(table), sequence),
            Write::DeleteEndpoints(key) => {
                if let Some(workload) = self.workloads.get_mut(&key) {
                    workload.endpoints = None;
                }
            }
            Write::Routes(table) => self.load(Stored::Routes(table), sequence),
            Write::DeleteRoutes(key) => {
                if let Some(workload) = self.workloads.get_mut(&key) {
                    workload.routes = None;
                }
            }
        }
    }

    fn add_revision(&mut self, revision: Revision) {
        if let Some(workload) = self.workloads.get_mut(&revision.key()) {
            workload
                .revisions
                .insert(revision.number, Arc::new(revision));
        }
    }

    /// Takes a host's whole set in place of the one before.
    fn set_placements(&mut self, set: PlacementSet, sequence: u64, now: Timestamp) {
        let host_id = set.host.clone();
        for (_, workload) in self.workloads.iter_mut() {
            workload
                .placements
                .retain(|_, placed| placed.host != host_id);
        }
        for group in &set.groups {
            let Some(workload) = self.workloads.get_mut(&group.key()) else {
                continue;
            };
            for slot in &group.slots {
                workload.placements.insert(
                    slot.placement,
                    Placed {
                        slot: slot.slot,
                        revision: group.revision,
                        host: host_id.clone(),
                        args: slot.args.clone(),
                    },
                );
            }
        }
        self.forget_dropped(&host_id);
        let since = self.since;
        let host = self.hosts.entry(host_id.clone()).or_insert_with(|| {
            // A set without a host record: the record was lost or never written. The host tells
            // what it is with its next heartbeat.
            let record = HostRecord {
                host: host_id,
                info: HostInfo::default(),
                cordoned: false,
                joined: now,
            };
            Host::new(record, false, since)
        });
        host.set = Some(set);
        host.set_sequence = sequence;
        host.set_at = now;
    }

    /// Reports of ended replicas whose placement is gone from the set are kept as history only.
    fn forget_dropped(&mut self, host: &HostId) {
        for workload in self.workloads.values_mut() {
            let dropped: Vec<_> = workload
                .reports
                .iter()
                .filter(|(number, report)| {
                    report.host == *host
                        && report.status.state.ended()
                        && !workload.placements.contains_key(number)
                })
                .map(|(number, _)| *number)
                .collect();
            for number in dropped {
                if let Some(report) = workload.reports.remove(&number) {
                    workload.remember_ended(report);
                }
            }
        }
    }

    pub(crate) fn host_entry(&mut self, host: &HostId, now: Timestamp) -> (&mut Host, bool) {
        let new = !self.hosts.contains_key(host);
        let entry = self.hosts.entry(host.clone()).or_insert_with(|| {
            let record = HostRecord {
                host: host.clone(),
                info: HostInfo::default(),
                cordoned: false,
                joined: now,
            };
            Host::new(record, false, now)
        });
        (entry, new)
    }

    /// Remembers events of workloads for `why`.
    pub fn remember(&mut self, events: &[EventDraft], now: Timestamp) {
        for event in events {
            let (Some(namespace), Some(name)) = (&event.namespace, &event.workload) else {
                continue;
            };
            let key = WorkloadKey::new(namespace.clone(), name.clone());
            let Some(workload) = self.workloads.get_mut(&key) else {
                continue;
            };
            if workload.story.len() == STORY_KEPT {
                workload.story.pop_front();
            }
            workload.story.push_back((now, event.clone()));
        }
    }
}
