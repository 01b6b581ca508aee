//! What the store holds, folded into the state: its entries at the start of a term, and writes that it has
//! acknowledged.
//!
//! Owns what follows from an entry for the counters and for what is to be planned. It decides nothing.

use std::ops::Bound;
use std::sync::Arc;

use wasmorch_api::record::NamespaceRecord;
use wasmorch_api::status::{Drain, HostRecord, HostState};
use wasmorch_api::{PlacementSet, Record, Revision, RouteTable, Timestamp, WorkloadKey};

use super::{Cluster, Host, Workload};
use crate::tables::Endpoints;
use crate::write::{Stored, Write};

impl Cluster {
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
                self.put_endpoints(table.into());
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
        self.move_priority(key, before, now);
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
            self.once_for = self.once_for.max(revision.spec.ended_alone());
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
            host.granted.clone_from(&record.boot);
            host.record = record;
            (host.stored, host.recorded) = (true, true);
            if host.may_be_written() {
                self.to_write.insert(id.clone());
            }
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
            if host.record.dead_since.is_some() {
                // To the leader before this one. What may run there is waited for anew: that one's clock
                // is another.
                let window = self.detection.dead(host.info());
                host.state = HostState::Dead;
                host.dead_since = Some(self.since.after(window));
            }
            self.numbered += 1;
            host.number = self.numbered;
            self.hosts.insert(id.clone(), host);
            self.to_write.insert(id.clone());
            self.host_reshaped(&id);
        }
    }

    fn put_endpoints(&mut self, table: Endpoints) {
        let key = table.key();
        if let Some(workload) = self.workloads.get_mut(&key) {
            // What it changes is let go first, so that it need not be copied.
            workload.endpoints = None;
            workload.endpoints = Some(table.settled());
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
