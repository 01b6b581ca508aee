//! What is counted from sets and records: what each host has booked, how many replicas of a workload are in
//! each class of hosts, and which hosts hold them.

use wasmorch_api::HostId;

use crate::booked::Booked;
use crate::boots::once_for;
use crate::cluster::Cluster;

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
            for group in host.set.iter().flat_map(|set| &set.groups) {
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
                host.once_for = host.once_for.max(once_for(&revision.spec));
                for slot in &group.slots {
                    let booked = Booked::of(&key, &revision.spec, slot.args.as_deref());
                    host.booked = host.booked.plus(booked);
                }
            }
        }
        self.recount_held();
        for key in self.workloads.keys() {
            self.agenda.whole(key);
        }
        self.pool.rebuild();
    }
}
