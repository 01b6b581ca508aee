//! The cluster's state as the leader knows it.
//!
//! Owns the maps and how stored entries and acknowledged writes change them. It decides nothing.

mod host;
mod workload;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use wasmorch_api::record::{NamespaceRecord, Removed};
use wasmorch_api::status::{Drain, HostRecord, HostState};
use wasmorch_api::{
    ClusterId, EndpointTable, EventKind, HostId, HostInfo, Kind, LeaderId, Name, PlacementSet,
    Record, ReplicaId, Revision, RouteTable, Term, Timestamp, WorkloadKey,
};

use crate::agenda::Agenda;
use crate::autoscale::Scaling;
use crate::detection::Detection;
use crate::pool::{Classes, Pool};
use crate::ports::Listeners;
use crate::silence::Silence;
use crate::withdrawals::Withdrawals;
use crate::write::{EventDraft, Stored, Write};

pub use host::Host;
pub use workload::{Placed, Reported, Workload};

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
    /// The largest value that the store takes.
    pub value_bytes_max: usize,
    /// How far clocks are ahead of the time that everything here counts by: they have been set forward, or
    /// the machine was suspended, since the term began.
    pub(crate) ahead: Duration,
    /// The last tick, to notice the leader's own stalls.
    pub(crate) ticked: Timestamp,
    /// Silences, to tell a network that broke from hosts that died.
    pub(crate) silence: Silence,
    pub(crate) hosts: BTreeMap<HostId, Host>,
    pub(crate) workloads: BTreeMap<WorkloadKey, Workload>,
    /// Counters of workloads that are gone.
    pub(crate) removed: BTreeMap<WorkloadKey, Removed>,
    /// The store sequence of each of those removals.
    pub(crate) removed_at: BTreeMap<WorkloadKey, u64>,
    /// Those of them whose data hosts have still to remove.
    pub(crate) removing: BTreeSet<WorkloadKey>,
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
    /// Hosts that wait until gateways route past what they drain.
    pub(crate) withdrawals: Withdrawals,
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

/// One line of a workload's or a host's story: as much of an event as `why` shows.
#[derive(Debug, Clone)]
pub(crate) struct Line {
    pub(crate) at: Timestamp,
    pub(crate) kind: EventKind,
    pub(crate) replica: Option<ReplicaId>,
    pub(crate) reason: Box<str>,
}

/// A clock that is ahead by less has drifted, and was not set.
const STEP: Duration = Duration::from_secs(1);
/// Events kept for each workload's and each host's `why`.
const STORY_KEPT: usize = 30;
/// What a server takes unless it is told otherwise, without what a message carries beside its value.
const VALUE_BYTES_MAX: usize = (1 << 20) - (4 << 10);

impl Cluster {
    /// An empty state at the start of a term.
    pub fn new(cluster: ClusterId, term: Term, leader: LeaderId, now: Timestamp) -> Self {
        Self {
            cluster,
            term,
            leader,
            since: now,
            detection: Detection::default(),
            value_bytes_max: VALUE_BYTES_MAX,
            ahead: Duration::ZERO,
            ticked: now,
            silence: Silence::default(),
            hosts: BTreeMap::new(),
            workloads: BTreeMap::new(),
            removed: BTreeMap::new(),
            removed_at: BTreeMap::new(),
            removing: BTreeSet::new(),
            namespaces: BTreeMap::new(),
            scaling: BTreeMap::new(),
            per_host: BTreeSet::new(),
            bound: BTreeSet::new(),
            priorities: BTreeMap::new(),
            agenda: Agenda::default(),
            withdrawals: Withdrawals::default(),
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

    /// Whether a new leader still waits for hosts to say what they hold: until then nothing is placed on
    /// them, and what would be cannot be told.
    pub fn listens(&self, now: Timestamp) -> bool {
        let waits = |host: &Host| host.state != HostState::Dead && !host.known();
        !self.settled(now) && self.hosts.values().any(waits)
    }

    /// What clocks show at a time: what people name, times of a schedule, is meant by those. Whether a host
    /// lives, and how long something may take, is not: that would see a clock that is set as time that passed.
    pub fn wall(&self, now: Timestamp) -> Timestamp {
        now.after(self.ahead)
    }

    /// The clock shows `wall` at `now`. It is followed where it is set; what has been begun stays begun, so
    /// that one that is set back repeats nothing. `true`: something may be due.
    pub fn follow_clock(&mut self, wall: Timestamp, now: Timestamp) -> bool {
        let ahead = wall.since(now);
        if ahead.abs_diff(self.ahead) < STEP {
            return false;
        }
        self.ahead = ahead;
        let cron = self.workloads.iter();
        let cron = cron.filter(|(_, one)| one.record.kind == Kind::Cron);
        cron.for_each(|(key, _)| self.agenda.whole(key));
        true
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
        copy.value_bytes_max = self.value_bytes_max;
        copy.ahead = self.ahead;
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
                removals: Vec::new(),
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
            Stored::Removed(removed) => self.put_removed(removed, sequence),
            Stored::Revision(revision) => self.put_revision(*revision),
            Stored::Namespace(one) => self.put_namespace(one),
            Stored::Host(record) => self.put_host(*record),
            Stored::Placements(set) => self.set_placements(set, sequence, self.since),
            Stored::Endpoints(table) => {
                // Of the one before it nothing is known: it may have withdrawn something.
                self.withdrawals.note(sequence);
                self.put_endpoints(table);
            }
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

    /// The same with writes of the last plan, which knows what follows from them.
    pub fn commit_planned(&mut self, writes: Vec<Write>, last_sequence: u64, now: Timestamp) {
        self.agenda.follow_plan(true);
        self.commit(writes, last_sequence, now);
        self.agenda.follow_plan(false);
    }

    fn commit_one(&mut self, write: Write, sequence: u64, now: Timestamp) {
        match write {
            Write::Record(record) => self.put_record(*record, sequence),
            Write::DeleteRecord(key) => self.remove_workload(&key),
            Write::Removed(removed) => self.put_removed(removed, sequence),
            Write::DeleteRemoved(key) => {
                self.removing.remove(&key);
                self.removed.remove(&key);
                self.removed_at.remove(&key);
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
                        removals: Vec::new(),
                    };
                    self.set_placements(empty, sequence, at);
                }
                if let Some(host) = self.hosts.get_mut(&id) {
                    host.set = None;
                }
            }
            Write::Endpoints(table) => {
                self.note_table(&table.key(), Some(&table), sequence);
                self.put_endpoints(table);
            }
            Write::DeleteEndpoints(key) => {
                self.note_table(&key, None, sequence);
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
        if let Some(host) = self.hosts.get_mut(id) {
            host.note_zone();
        }
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
pub(crate) fn only_counted(mut before: Record, after: &Record) -> bool {
    before.next_placement = after.next_placement;
    before.updated = after.updated;
    before.answered.clone_from(&after.answered);
    if let (Some(before), Some(after)) = (&mut before.rollout, &after.rollout) {
        (before.best, before.deadline) = (after.best, after.deadline);
    }
    before == *after
}
