//! The cluster's state as the leader knows it.
//!
//! Owns the maps and how stored entries and acknowledged writes change them. It decides nothing.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use wasmorch_api::record::{NamespaceRecord, Removed};
use wasmorch_api::status::{Capacity, Drain, HostRecord, HostState};
use wasmorch_api::{
    BootId, ClusterId, EndpointTable, EventKind, HostId, HostInfo, LeaderId, Name, PlacementNumber,
    PlacementSet, Record, ReplicaId, ReplicaState, ReplicaStatus, Revision, RevisionNumber,
    RouteTable, Slot, Term, Timestamp, WorkloadKey,
};

use crate::ENDED_KEPT;
use crate::agenda::Agenda;
use crate::autoscale::Scaling;
use crate::awaited::Awaited;
use crate::cached::Left;
use crate::detection::Detection;
use crate::judge::Tally;
use crate::plan::StopReason;
use crate::pool::{Booked, Classes, Holders, Pool};
use crate::ports::Listeners;
use crate::silence::Silence;
use crate::write::{EventDraft, Stored, Write};

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
    /// When a silent host counts as dead.
    pub detection: Detection,
    /// The last tick, to notice the leader's own stalls.
    pub(crate) ticked: Timestamp,
    /// Silences, to tell a network that broke from hosts that died.
    pub(crate) silence: Silence,
    pub(crate) hosts: BTreeMap<HostId, Host>,
    pub(crate) workloads: BTreeMap<WorkloadKey, Workload>,
    /// Counters of workloads that are gone.
    pub(crate) removed: BTreeMap<WorkloadKey, Removed>,
    /// Namespaces with a quota.
    pub(crate) namespaces: BTreeMap<Name, NamespaceRecord>,
    /// Those with `scale`, and what their load was.
    pub(crate) scaling: BTreeMap<WorkloadKey, Scaling>,
    /// Those with one replica on every host: whatever changes about hosts concerns them.
    pub(crate) per_host: BTreeSet<WorkloadKey>,
    /// Those that are held, or go with others: whatever changes about these concerns them.
    pub(crate) bound: BTreeSet<WorkloadKey>,
    /// How many workloads have each priority.
    pub(crate) priorities: BTreeMap<u32, usize>,
    /// What has to be planned.
    pub(crate) agenda: Agenda,
    /// Workloads whose stored endpoints name a host that holds nothing of them and has not spoken.
    pub(crate) stale_tables: BTreeSet<WorkloadKey>,
    pub(crate) classes: Classes,
    /// Workloads that listen on ports of their hosts.
    pub(crate) listeners: Listeners,
    /// The last number given to a host; none is given twice.
    pub(crate) numbered: u32,
    /// Where there is room: made from the hosts, and thrown away at will.
    pub(crate) pool: Pool,
    /// The counters are not to be trusted: the next plan counts anew.
    pub(crate) stale: bool,
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
    /// Its last heartbeat.
    pub(crate) beat: Timestamp,
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
    /// What its set books.
    pub(crate) booked: Booked,
    /// The hosts that are like it.
    pub(crate) class: u32,
    pub(crate) number: u32,
    /// Its reports of replicas that its set does not hold (any more).
    pub(crate) leaving: BTreeSet<(WorkloadKey, PlacementNumber)>,
    /// Events of it in this term, newest last.
    pub(crate) story: VecDeque<Line>,
    /// Since when it counts as dead.
    pub(crate) dead_since: Option<Timestamp>,
    /// When it was last heard again after that.
    pub(crate) back_since: Option<Timestamp>,
    /// It died with replicas that wait for its return: what they do is to be told again.
    pub(crate) forgotten: bool,
    /// It has told this leader that it holds its set.
    pub(crate) caught_up: bool,
    /// What must not run twice and was taken out of its set unheard, with the sequence of the set after.
    pub(crate) unsure: BTreeMap<(WorkloadKey, PlacementNumber), (Slot, u64)>,
}

impl Host {
    pub(crate) fn new(record: HostRecord, stored: bool, since: Timestamp) -> Self {
        Self {
            record,
            stored,
            boot: None,
            heard: since,
            beat: since,
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
            booked: Booked::default(),
            class: u32::MAX,
            number: 0,
            leaving: BTreeSet::new(),
            story: VecDeque::new(),
            dead_since: None,
            back_since: None,
            forgotten: false,
            caught_up: false,
            unsure: BTreeMap::new(),
        }
    }

    /// A copy that holds another set.
    fn without_set(&self, set: Option<PlacementSet>) -> Self {
        Self {
            record: self.record.clone(),
            boot: self.boot.clone(),
            set,
            leaving: BTreeSet::new(),
            story: VecDeque::new(),
            unsure: self.unsure.clone(),
            ..*self
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

    /// Neither cordoned nor drained.
    pub(crate) fn takes_new(&self) -> bool {
        !self.record.cordoned && self.record.drain.is_none()
    }

    /// Its record, if it is being drained and nothing is left there.
    pub(crate) fn now_drained(&self) -> Option<HostRecord> {
        let drain = self.record.drain.filter(|drain| !drain.drained)?;
        let held = self.set.iter().flat_map(|set| &set.groups);
        let silent = self.state == HostState::Dead;
        let ended = silent || self.known() && self.leaving.is_empty();
        (ended && held.count() == 0).then(|| HostRecord {
            drain: Some(Drain {
                drained: true,
                ..drain
            }),
            ..self.record.clone()
        })
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
    /// What hosts say, by placement. Boxed: a tree is half empty, and a report is large.
    pub reports: BTreeMap<PlacementNumber, Box<Reported>>,
    /// Replicas that have ended, newest last.
    pub ended: VecDeque<Reported>,
    /// Its endpoints as stored.
    pub endpoints: Option<EndpointTable>,
    /// Its routes as stored.
    pub routes: Option<RouteTable>,
    /// Events of it in this term, newest last.
    pub(crate) story: VecDeque<Line>,
    /// Slots that could not be placed when last planned.
    pub(crate) unplaced: Option<wasmorch_api::messages::Unplaced>,
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

/// One line of a workload's or a host's story: as much of an event as `why` shows.
#[derive(Debug, Clone)]
pub(crate) struct Line {
    pub(crate) at: Timestamp,
    pub(crate) kind: EventKind,
    pub(crate) replica: Option<ReplicaId>,
    pub(crate) reason: Box<str>,
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
    fn new(record: Record, index: u64) -> Self {
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

/// Events kept for each workload's and each host's `why`.
const STORY_KEPT: usize = 30;
/// Reasons kept for each workload: most are dropped when the replica has ended.
const TOLD_KEPT: usize = 256;

impl Cluster {
    /// An empty state at the start of a term.
    pub fn new(cluster: ClusterId, term: Term, leader: LeaderId, now: Timestamp) -> Self {
        Self {
            cluster,
            term,
            leader,
            since: now,
            detection: Detection::default(),
            ticked: now,
            silence: Silence::default(),
            hosts: BTreeMap::new(),
            workloads: BTreeMap::new(),
            removed: BTreeMap::new(),
            namespaces: BTreeMap::new(),
            scaling: BTreeMap::new(),
            per_host: BTreeSet::new(),
            bound: BTreeSet::new(),
            priorities: BTreeMap::new(),
            agenda: Agenda::default(),
            stale_tables: BTreeSet::new(),
            classes: Classes::default(),
            listeners: Listeners::default(),
            numbered: 0,
            pool: Pool::default(),
            stale: true,
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
        now.since(self.since) >= self.detection.settle()
    }

    /// A copy with these workloads alone. Hosts keep what all others book on them, so that a plan
    /// on the copy finds the room that there is; its size grows with hosts, not with replicas.
    pub(crate) fn excerpt(&self, keys: &[WorkloadKey]) -> Self {
        if self.stale {
            // Not counted yet: right after a start, and the next plan mends it.
            return self.clone();
        }
        let (cluster, leader) = (self.cluster.clone(), self.leader.clone());
        let mut copy = Self::new(cluster, self.term, leader, self.since);
        copy.detection = self.detection;
        copy.ticked = self.ticked;
        copy.stale = false;
        copy.classes = self.classes.clone();
        copy.listeners = self.listeners_without(keys);
        copy.numbered = self.numbered;
        for (id, host) in &self.hosts {
            let groups = keys.iter().flat_map(|key| host.groups_of(key));
            let set = host.set.as_ref().map(|set| PlacementSet {
                groups: groups.cloned().collect(),
                cluster: set.cluster.clone(),
                term: set.term,
                leader: set.leader.clone(),
                host: set.host.clone(),
            });
            copy.hosts.insert(id.clone(), host.without_set(set));
        }
        for key in keys {
            let removed = self.removed.get(key).cloned();
            copy.removed.extend(removed.map(|one| (key.clone(), one)));
            let Some(workload) = self.workloads.get(key) else {
                continue;
            };
            copy.agenda.whole(key);
            let workload = Workload {
                counted_as: None,
                ..workload.clone()
            };
            copy.workloads.insert(key.clone(), workload);
            copy.note_target(key);
            copy.note_bonds(key);
        }
        copy
    }

    pub(crate) fn count_priority(&mut self, before: Option<u32>, now: Option<u32>) {
        if let Some(now) = now {
            *self.priorities.entry(now).or_default() += 1;
        }
        if let Some(before) = before
            && let Some(count) = self.priorities.get_mut(&before)
        {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.priorities.remove(&before);
            }
        }
    }

    /// Folds in one stored entry at the start of a term. Records first, then the rest: an entry
    /// whose workload is unknown is a leftover and is ignored.
    pub fn load(&mut self, entry: Stored, sequence: u64) {
        // Revisions and sets come in any order: what they book is counted once all are there.
        self.stale = true;
        match entry {
            Stored::Record(record) => self.put_record(*record, sequence),
            Stored::Removed(removed) => {
                self.removed.insert(removed.key(), removed);
            }
            Stored::Revision(revision) => self.put_revision(*revision),
            Stored::Namespace(one) => self.put_namespace(one),
            Stored::Host(record) => self.put_host(*record),
            Stored::Placements(set) => self.set_placements(set, sequence, self.since),
            Stored::Endpoints(table) => self.put_endpoints(table),
            Stored::Routes(table) => self.put_routes(table),
        }
    }

    /// Folds in writes that the store has acknowledged. Write `i` of `n` has the sequence
    /// `last_sequence - n + 1 + i`: a batch is stored whole and in order.
    pub fn commit(&mut self, writes: Vec<Write>, last_sequence: u64, now: Timestamp) {
        let first = (last_sequence + 1).saturating_sub(writes.len() as u64);
        for (write, sequence) in writes.into_iter().zip(first..) {
            self.commit_one(write, sequence, now);
        }
    }

    fn commit_one(&mut self, write: Write, sequence: u64, now: Timestamp) {
        match write {
            Write::Record(record) => self.put_record(*record, sequence),
            Write::DeleteRecord(key) => self.remove_workload(&key),
            Write::Removed(removed) => {
                self.removed.insert(removed.key(), removed);
            }
            Write::DeleteRemoved(key) => {
                self.removed.remove(&key);
            }
            Write::Revision(revision) => self.put_revision(*revision),
            Write::DeleteRevision(key, number) => {
                if let Some(workload) = self.workloads.get_mut(&key) {
                    // Only revisions that nothing runs are deleted, so nothing booked changes.
                    workload.revisions.remove(&number);
                    self.agenda.whole(&key);
                }
            }
            Write::Namespace(one) => self.put_namespace(one),
            Write::DeleteNamespace(namespace) => {
                self.namespaces.remove(&namespace);
                self.agenda.room();
            }
            Write::Host(record) => self.put_host(*record),
            Write::DeleteHost(host) => self.remove_host(&host),
            Write::Placements(set) => self.set_placements(set, sequence, now),
            Write::DeletePlacements(id) => {
                let (cluster, term, leader) =
                    (self.cluster.clone(), self.term, self.leader.clone());
                if let Some(host) = self.hosts.get(&id).filter(|host| host.set.is_some()) {
                    let (groups, sequence, at) = (Vec::new(), host.set_sequence, host.set_at);
                    let host = id.clone();
                    let empty = PlacementSet {
                        cluster,
                        term,
                        leader,
                        host,
                        groups,
                    };
                    self.set_placements(empty, sequence, at);
                }
                if let Some(host) = self.hosts.get_mut(&id) {
                    host.set = None;
                }
            }
            Write::Endpoints(table) => self.put_endpoints(table),
            Write::DeleteEndpoints(key) => {
                if let Some(workload) = self.workloads.get_mut(&key) {
                    workload.endpoints = None;
                    self.agenda.whole(&key);
                }
            }
            Write::Routes(table) => self.put_routes(table),
            Write::DeleteRoutes(key) => {
                if let Some(workload) = self.workloads.get_mut(&key) {
                    workload.routes = None;
                    self.agenda.whole(&key);
                }
            }
        }
    }

    fn put_record(&mut self, record: Record, sequence: u64) {
        let key = record.key();
        let Some(workload) = self.workloads.get_mut(&key) else {
            self.agenda.whole(&key);
            self.workloads
                .insert(key.clone(), Workload::new(record, sequence));
            self.note_bonds(&key);
            return;
        };
        let before = std::mem::replace(&mut workload.record, record);
        workload.index = sequence;
        let what = |one: &Record| (one.desired, one.stopped, one.revision);
        let counted = what(&before) != what(&workload.record);
        if workload.tally.follow(&workload.record) {
            // Replicas of that revision may be there already.
            for known in workload.reports.values() {
                workload.tally.hear(&workload.record, &known.status);
            }
        }
        let only_counted = only_counted(before, &workload.record);
        if only_counted {
            self.agenda.part(&key, None, None);
        } else {
            self.agenda.whole(&key);
            self.note_target(&key);
            if counted {
                self.note_count(&key);
            }
            self.note_bonds(&key);
        }
    }

    /// The wanted revision may be another now.
    pub(crate) fn note_target(&mut self, key: &WorkloadKey) {
        let workload = self.workloads.get_mut(key);
        let now = { workload.as_ref() }.and_then(|one| one.target().map(|_| one.priority()));
        let before = workload.and_then(|one| std::mem::replace(&mut one.counted_as, now));
        self.count_priority(before, now);
        // Another revision may have a lower priority or a lower min_available: who waits above it may
        // have its room now.
        let above = |now| (Bound::Excluded(now), Bound::Unbounded);
        if now.is_some_and(|now| self.priorities.range(above(now)).next().is_some()) {
            self.agenda.room();
        }
        self.note_scale(key);
        if self.workloads.get(key).is_some_and(Workload::per_host) {
            self.per_host.insert(key.clone());
        } else {
            self.per_host.remove(key);
        }
    }

    fn put_namespace(&mut self, record: NamespaceRecord) {
        self.namespaces.insert(record.namespace.clone(), record);
        // What waited for it to be raised.
        self.agenda.room();
    }

    fn put_revision(&mut self, revision: Revision) {
        let key = revision.key();
        if let Some(workload) = self.workloads.get_mut(&key) {
            self.listeners.note(&revision);
            let wanted = revision.number == workload.record.revision;
            workload
                .revisions
                .insert(revision.number, Arc::new(revision));
            self.agenda.whole(&key);
            if wanted {
                self.note_target(&key);
            }
        }
    }

    fn put_host(&mut self, record: HostRecord) {
        let id = record.host.clone();
        if let Some(host) = self.hosts.get_mut(&id) {
            let same_shape =
                host.record.info == record.info && host.record.cordoned == record.cordoned;
            let until = |drain: Option<Drain>| drain.map(|drain| drain.deadline);
            let same_drain = until(host.record.drain) == until(record.drain);
            host.record = record;
            host.stored = true;
            if !same_drain {
                // Whose replicas come or stay is looked at whole: moving them is bounded by the rest.
                let held = host.set.iter().flat_map(|set| &set.groups);
                held.for_each(|group| self.agenda.whole(&group.key()));
            }
            if !same_shape || !same_drain {
                self.host_reshaped(&id);
            }
        } else {
            let mut host = Host::new(record, true, self.since);
            self.numbered += 1;
            host.number = self.numbered;
            self.hosts.insert(id.clone(), host);
            self.host_reshaped(&id);
        }
    }

    /// What a host is has changed: name, labels, capacity, cordon.
    pub(crate) fn host_reshaped(&mut self, id: &HostId) {
        self.classify(id);
        self.pool.rebuild();
        self.host_changed(id);
    }

    fn put_endpoints(&mut self, table: EndpointTable) {
        let key = table.key();
        if let Some(workload) = self.workloads.get_mut(&key) {
            workload.endpoints = Some(table);
            self.agenda.part(&key, None, None);
        }
    }

    fn put_routes(&mut self, table: RouteTable) {
        let key = table.key();
        if let Some(workload) = self.workloads.get_mut(&key) {
            workload.routes = Some(table);
            self.agenda.part(&key, None, None);
        }
    }

    /// The host, entered now if it was unknown: its record was lost or never written, and it tells
    /// what it is with its next heartbeat.
    pub(crate) fn host_entry(&mut self, id: &HostId, joined: Timestamp, heard: Timestamp) -> bool {
        if self.hosts.contains_key(id) {
            return false;
        }
        let record = HostRecord {
            host: id.clone(),
            info: HostInfo::default(),
            cordoned: false,
            drain: None,
            joined,
        };
        let mut host = Host::new(record, false, heard);
        self.numbered += 1;
        host.number = self.numbered;
        self.hosts.insert(id.clone(), host);
        self.host_reshaped(id);
        true
    }

    /// Remembers events of workloads and hosts for `why`.
    pub fn remember(&mut self, events: &[EventDraft], now: Timestamp) {
        for event in events {
            let story = match (&event.namespace, &event.workload, &event.host) {
                (Some(namespace), Some(name), _) => {
                    let key = WorkloadKey::new(namespace.clone(), name.clone());
                    let workload = self.workloads.get_mut(&key);
                    workload.map(|workload| &mut workload.story)
                }
                (None, None, Some(id)) => self.hosts.get_mut(id).map(|host| &mut host.story),
                _ => None,
            };
            let Some(story) = story else { continue };
            if story.len() == STORY_KEPT {
                story.pop_front();
            }
            story.push_back(Line {
                at: now,
                kind: event.kind,
                replica: event.replica,
                reason: event.reason.as_str().into(),
            });
        }
    }
}

/// Whether a record has only counted on, from which nothing new follows: a plan placed something, a
/// change that changed nothing was answered, a rollout has come further.
fn only_counted(mut before: Record, after: &Record) -> bool {
    before.next_placement = after.next_placement;
    before.updated = after.updated;
    before.answered.clone_from(&after.answered);
    if let (Some(before), Some(after)) = (&mut before.rollout, &after.rollout) {
        (before.best, before.deadline) = (after.best, after.deadline);
    }
    before == *after
}
