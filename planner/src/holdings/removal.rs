//! A host or a workload that is gone for good takes with it what it held and what was said of it.

use std::cmp::Ordering;

use wasmorch_api::{HostId, Slot, WorkloadKey};

use super::{Changed, by_key, diff};
use crate::booked::Booked;
use crate::cluster::Cluster;
use crate::quota::note_held;

impl Cluster {
    /// The host is gone for good, and all that was on it.
    pub(crate) fn remove_host(&mut self, id: &HostId) {
        self.host_changed(id);
        let Some(host) = self.hosts.get(id) else {
            return;
        };
        let held = host.set.iter().flat_map(|set| &set.groups);
        let held = held.flat_map(|group| group.slots.iter().map(|s| (group.key(), s.placement)));
        let reports: Vec<_> = held.chain(host.leaving.iter().cloned()).collect();
        let groups = self.hosts.get_mut(id).and_then(|host| host.set.take());
        let groups = groups.map(|set| set.groups).unwrap_or_default();
        let mut changed = Changed::default();
        diff(&groups, &[], &mut changed);
        self.take_out(id, &changed.gone, None);
        for (key, number) in reports {
            self.remove_report(&key, number);
        }
        self.hosts.remove(id);
        self.pool.rebuild();
    }

    /// The workload is gone; the next plan writes the sets that name it anew.
    pub(crate) fn remove_workload(&mut self, key: &WorkloadKey) {
        let Some(workload) = self.workloads.remove(key) else {
            return;
        };
        self.agenda.forget(key, workload.wake);
        self.listeners.forget(key);
        self.stale_tables.remove(key);
        self.per_host.remove(key);
        self.bound.remove(key);
        self.scaling.remove(key);
        self.count_priority(workload.counted_as, None);
        let mut slots: Vec<Slot> = workload.slots.iter().map(|(slot, _)| *slot).collect();
        slots.dedup();
        for slot in slots {
            let counted = workload.slot_counts(key, slot);
            note_held(&mut self.held, &key.namespace, counted, Booked::default());
        }
        for (number, placed) in &workload.placements {
            let Some(host) = self.hosts.get_mut(&placed.host) else {
                continue;
            };
            let revision = workload.revisions.get(&placed.revision);
            if let Some(revision) = revision {
                let booked = Booked::of(key, &revision.spec, placed.args.as_deref());
                host.free(booked, workload.counted_as);
            }
            let report = workload.reports.get(number);
            match report.filter(|known| known.host == placed.host) {
                Some(known) if !known.status.state.ended() => {
                    host.still_ends(key, known.status.replica);
                }
                // Ended ones are started again until the host has heard of it.
                _ if revision.is_some_and(|one| one.spec.runs_once()) => {
                    host.may_run(key, *number, placed.slot);
                }
                _ => {}
            }
            if let Some(set) = &mut host.set {
                let before = set.groups.len();
                set.groups.retain(|g| by_key(g, key) != Ordering::Equal);
                if set.groups.len() < before {
                    host.names_removed = true;
                    self.to_write.insert(placed.host.clone());
                }
            }
            self.pool.touch(&placed.host);
            self.agenda.room();
        }
        for number in &workload.leaving {
            let report = workload.reports.get(number);
            let Some(known) = report else { continue };
            if let Some(host) = self.hosts.get_mut(&known.host) {
                host.leaving.remove(&(key.clone(), *number));
                if !known.status.state.ended() {
                    host.still_ends(key, known.status.replica);
                }
            }
        }
    }
}
