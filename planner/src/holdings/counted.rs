//! What is counted from sets and records: what each host has booked, how many replicas of a workload are in
//! each class of hosts, and which hosts hold them.
//!
//! What a host has booked is counted by priority too: who looks for room that others could make finds in it
//! which hosts hold anything lower, and how much.

use wasmorch_api::{HostId, WorkloadKey};

use crate::booked::Booked;
use crate::cluster::{Cluster, Host};

impl Host {
    /// Counts what a placement books; its workload's priority is `None` while that is not known.
    pub(crate) fn book(&mut self, booked: Booked, priority: Option<u32>) {
        self.booked = self.booked.plus(booked);
        self.book_under(booked, priority);
    }

    /// Counts what a placement no longer books.
    pub(crate) fn free(&mut self, booked: Booked, priority: Option<u32>) {
        self.booked = self.booked.minus(booked);
        self.free_under(booked, priority);
    }

    /// What all of a lower priority than this book together.
    pub(crate) fn booked_below(&self, priority: u32) -> Booked {
        let lower = self.by_priority.range(..priority);
        lower.fold(Booked::default(), |all, (_, one)| all.plus(*one))
    }

    fn book_under(&mut self, booked: Booked, priority: Option<u32>) {
        if let Some(priority) = priority {
            let under = self.by_priority.entry(priority).or_default();
            *under = under.plus(booked);
        }
    }

    fn free_under(&mut self, booked: Booked, priority: Option<u32>) {
        if let Some(priority) = priority
            && let Some(under) = self.by_priority.get_mut(&priority)
        {
            *under = under.minus(booked);
            if under.replicas == 0 {
                self.by_priority.remove(&priority);
            }
        }
    }
}

impl Cluster {
    /// Puts a host into the class of its labels, and its replicas with it.
    pub(crate) fn classify(&mut self, id: &HostId) {
        let Some(host) = self.hosts.get_mut(id) else {
            return;
        };
        let class = self.classes.of(&host.record.info);
        let before = std::mem::replace(&mut host.class, class);
        if before == class {
            return;
        }
        for group in host.set.iter().flat_map(|set| &set.groups) {
            let Some(workload) = self.workloads.get_mut(&group.key()) else {
                continue;
            };
            let many = group.slots.len() as u32;
            if let Some(count) = workload.per_class.get_mut(&before) {
                *count = count.saturating_sub(many);
                if *count == 0 {
                    workload.per_class.remove(&before);
                }
            }
            *workload.per_class.entry(class).or_default() += many;
        }
    }

    /// What a workload's placements book counts under another priority from now on.
    pub(crate) fn move_priority(
        &mut self,
        key: &WorkloadKey,
        before: Option<u32>,
        now: Option<u32>,
    ) {
        let workload = self.workloads.get(key);
        // All is counted anew before anyone asks.
        let Some(workload) = workload.filter(|_| before != now && !self.stale) else {
            return;
        };
        for placed in workload.placements.values() {
            let revision = workload.revisions.get(&placed.revision);
            let host = self.hosts.get_mut(&placed.host);
            if let (Some(revision), Some(host)) = (revision, host) {
                let booked = Booked::of(key, &revision.spec, placed.args.as_deref());
                host.free_under(booked, before);
                host.book_under(booked, now);
                self.pool.touch(&placed.host);
            }
        }
    }

    /// Counts everything anew from sets and records.
    pub(crate) fn recount(&mut self) {
        for workload in self.workloads.values_mut() {
            workload.per_class.clear();
            workload.holders.clear();
            workload.steady = false;
            workload.awaited = None;
            let slots = workload.placements.iter();
            workload.slots = slots
                .map(|(number, placed)| (placed.slot, *number))
                .collect();
        }
        let ids: Vec<HostId> = self.hosts.keys().cloned().collect();
        for id in &ids {
            self.classify(id);
        }
        for host in self.hosts.values_mut() {
            host.booked = Booked::default();
            host.by_priority.clear();
            let set = host.set.take();
            for group in set.iter().flat_map(|set| &set.groups) {
                let key = group.key();
                let Some(workload) = self.workloads.get_mut(&key) else {
                    continue;
                };
                let many = group.slots.len() as u32;
                *workload.per_class.entry(host.class).or_default() += many;
                workload.holders.add(host.number, many);
                let Some(revision) = workload.revisions.get(&group.revision) else {
                    continue;
                };
                for slot in &group.slots {
                    let booked = Booked::of(&key, &revision.spec, slot.args.as_deref());
                    host.book(booked, workload.counted_as);
                }
            }
            host.set = set;
        }
        self.to_write = ids.into_iter().collect();
        self.recount_held();
        for key in self.workloads.keys() {
            self.agenda.whole(key);
        }
        self.pool.rebuild();
    }
}
