//! Who holds what: a host's set folded into the workloads, and everything that is counted from it.
//!
//! Owns the link between [`Host::set`] and [`Workload::placements`] (each is the index of the
//! other), what is booked on a host, how many replicas a workload has in each class of hosts, and
//! the reports of replicas that have left their set. Work is proportional to what differs between
//! a set and the one before.

use std::cmp::Ordering;
use std::collections::BTreeSet;

use wasmorch_api::{
    HostId, PlacedSlot, PlacementGroup, PlacementNumber, PlacementSet, ReplicaId, ReplicaStatus,
    Slot, StatusReport, Timestamp, WorkloadKey,
};

use crate::booked::Booked;
use crate::cluster::{Cluster, Host, Placed, Reported, Workload};
use crate::observe::ASK_EVERY;
use crate::quota::note_held;

mod counted;
mod removal;

impl Host {
    /// How many placements of a workload its set holds.
    pub(crate) fn count_of(&self, key: &WorkloadKey) -> u32 {
        self.groups_of(key)
            .iter()
            .map(|group| group.slots.len() as u32)
            .sum()
    }

    /// The groups of a workload in its set.
    pub(crate) fn groups_of(&self, key: &WorkloadKey) -> &[PlacementGroup] {
        let Some(set) = &self.set else { return &[] };
        let from = set
            .groups
            .partition_point(|group| by_key(group, key) == Ordering::Less);
        let rest = &set.groups[from..];
        let many = rest
            .iter()
            .take_while(|group| by_key(group, key) == Ordering::Equal)
            .count();
        &rest[..many]
    }
}

fn by_key(group: &PlacementGroup, key: &WorkloadKey) -> Ordering {
    group
        .workload
        .cmp(&key.name)
        .then_with(|| group.namespace.cmp(&key.namespace))
}

/// The order of groups in a set as this crate keeps it. By name first: names differ sooner than
/// namespaces do.
fn order(a: &PlacementGroup, b: &PlacementGroup) -> Ordering {
    a.workload
        .cmp(&b.workload)
        .then_with(|| a.namespace.cmp(&b.namespace))
        .then_with(|| a.revision.cmp(&b.revision))
}

impl Cluster {
    /// Takes a host's whole set in place of the one before.
    pub(crate) fn set_placements(&mut self, mut set: PlacementSet, sequence: u64, now: Timestamp) {
        let id = set.host.clone();
        let mut names_removed = false;
        set.groups.retain_mut(|group| {
            let Some(workload) = self.workloads.get(&group.key()) else {
                // Removed, and the set has not been written since.
                names_removed = true;
                return false;
            };
            // One allocation for a name, however many sets name it.
            group.namespace = workload.record.namespace.clone();
            group.workload = workload.record.name.clone();
            group.slots.sort_by_key(|slot| slot.placement);
            // It stays for as long as the host: what was left over from reading is given back.
            group.slots.shrink_to_fit();
            true
        });
        set.groups.sort_by(order);
        set.groups.shrink_to_fit();
        self.host_entry(&id, now, self.since);
        let before = self.hosts.get_mut(&id).and_then(|host| host.set.take());
        let before = before.map(|set| set.groups).unwrap_or_default();
        let mut changed = Changed::default();
        diff(&before, &set.groups, &mut changed);
        self.take_out(&id, &changed.gone, Some(sequence));
        self.put_in(&id, &changed.come);
        self.drop_ended(&id, &changed.gone);
        let removed = self.hosts.get(&id).is_some_and(|host| host.names_removed);
        self.note_withdrawn(&id, (&changed.gone, removed), sequence, now);
        self.pool.touch(&id);
        if let Some(host) = self.hosts.get_mut(&id) {
            host.once_less |= removed || !changed.gone.is_empty();
            host.set = Some(set);
            host.names_removed = names_removed;
            if names_removed {
                self.to_write.insert(id.clone());
            }
            host.note_set(sequence);
            host.set_sequence = sequence;
            host.set_at = now;
            host.sync_due = now.after(ASK_EVERY);
            host.sync_wait = ASK_EVERY;
        }
    }

    fn put_in(&mut self, id: &HostId, come: &[(&PlacementGroup, &PlacedSlot)]) {
        let Some(host) = self.hosts.get_mut(id) else {
            return;
        };
        for (group, slot) in come {
            let key = group.key();
            let Some(workload) = self.workloads.get_mut(&key) else {
                continue;
            };
            let args = slot.args.clone();
            if let Some(revision) = workload.revisions.get(&group.revision) {
                let booked = Booked::of(&key, &revision.spec, args.as_deref());
                host.book(booked, workload.counted_as);
                host.once_for = host.once_for.max(revision.spec.ended_alone());
            }
            *workload.per_class.entry(host.class).or_default() += 1;
            workload.holders.add(host.number, 1);
            let counted = workload.slot_counts(&key, slot.slot);
            workload.slots.insert((slot.slot, slot.placement));
            let placed = Placed {
                slot: slot.slot,
                revision: group.revision,
                host: id.clone(),
                standby: slot.standby,
                args,
            };
            host.unsure.remove(&(key.clone(), slot.placement));
            workload.placements.insert(slot.placement, placed);
            let counts = workload.slot_counts(&key, slot.slot);
            note_held(&mut self.held, &key.namespace, counted, counts);
            if host.leaving.remove(&(key.clone(), slot.placement)) {
                workload.leaving.remove(&slot.placement);
            }
            self.agenda.part(&key, Some(slot.slot), Some(id));
        }
    }

    /// `sequence` is that of the set without them; `None`: the host is gone for good.
    fn take_out(
        &mut self,
        id: &HostId,
        gone: &[(&PlacementGroup, &PlacedSlot)],
        sequence: Option<u64>,
    ) {
        if !gone.is_empty() {
            self.agenda.room();
        }
        for (group, slot) in gone {
            let key = group.key();
            let Some(workload) = self.workloads.get_mut(&key) else {
                continue;
            };
            self.agenda.part(&key, Some(slot.slot), Some(id));
            let counted = workload.slot_counts(&key, slot.slot);
            if let Some(host) = self.hosts.get_mut(id) {
                if let Some(revision) = workload.revisions.get(&group.revision) {
                    let args = slot.args.as_deref();
                    let booked = Booked::of(&key, &revision.spec, args);
                    host.free(booked, workload.counted_as);
                }
                let reported = workload
                    .reports
                    .get(&slot.placement)
                    .is_some_and(|r| r.host == *id);
                if reported {
                    host.leaving.insert((key.clone(), slot.placement));
                    workload.leaving.insert(slot.placement);
                }
                if let Some(sequence) = sequence
                    && (!reported || !host.alone())
                    && let Some(revision) = workload.revisions.get(&group.revision)
                    && revision.spec.runs_once()
                {
                    let unsure = (slot.slot, sequence);
                    host.unsure.insert((key.clone(), slot.placement), unsure);
                }
                workload.holders.remove(host.number, 1);
                workload.leaves(id, host.number, slot.placement);
                if let Some(count) = workload.per_class.get_mut(&host.class) {
                    *count = count.saturating_sub(1);
                    if *count == 0 {
                        workload.per_class.remove(&host.class);
                    }
                }
            }
            workload.slots.remove(&(slot.slot, slot.placement));
            if workload
                .placements
                .get(&slot.placement)
                .is_some_and(|placed| placed.host == *id)
            {
                workload.placements.remove(&slot.placement);
            }
            let counts = workload.slot_counts(&key, slot.slot);
            note_held(&mut self.held, &key.namespace, counted, counts);
        }
    }

    /// Reports of ended replicas whose placement is gone from the set are kept as history only.
    fn drop_ended(&mut self, id: &HostId, gone: &[(&PlacementGroup, &PlacedSlot)]) {
        for (group, slot) in gone {
            let key = group.key();
            let ended = self.workloads.get(&key).is_some_and(|workload| {
                let report = workload.reports.get(&slot.placement);
                report.is_some_and(|r| r.host == *id && r.status.state.ended())
                    && !workload.placements.contains_key(&slot.placement)
            });
            if ended
                && let Some(report) = self.remove_report(&key, slot.placement)
                && let Some(workload) = self.workloads.get_mut(&key)
            {
                workload.remember_ended(report);
            }
        }
    }

    /// Puts a report in place of the one before.
    pub(crate) fn put_report(&mut self, key: &WorkloadKey, report: Reported) {
        let Some(workload) = self.workloads.get_mut(key) else {
            return;
        };
        let (number, id) = (report.status.replica.placement, report.host.clone());
        let leaves = workload
            .placements
            .get(&number)
            .is_none_or(|placed| placed.host != id);
        let before = workload.reports.insert(number, Box::new(report));
        if let Some(before) = before.filter(|before| before.host != id)
            && let Some(other) = self.hosts.get_mut(&before.host)
        {
            other.leaving.remove(&(key.clone(), number));
        }
        if leaves {
            workload.leaving.insert(number);
            if let Some(host) = self.hosts.get_mut(&id) {
                host.leaving.insert((key.clone(), number));
            }
        }
    }

    /// Takes a report out.
    pub(crate) fn remove_report(
        &mut self,
        key: &WorkloadKey,
        number: PlacementNumber,
    ) -> Option<Reported> {
        let workload = self.workloads.get_mut(key)?;
        let report = *workload.reports.remove(&number)?;
        if workload.leaving.remove(&number)
            && let Some(host) = self.hosts.get_mut(&report.host)
        {
            host.leaving.remove(&(key.clone(), number));
        }
        Some(report)
    }

    /// A full report is everything: what it does not name is no more. Nothing that another boot said
    /// is of use: a copy of the data folder gives the same ids to runs of its own.
    pub(crate) fn forget_reports(&mut self, report: &StatusReport, first_of_boot: bool) {
        // The very start: a later one that the host does not know was another's (two hosts with one
        // id), and would hide all that this one says.
        let named: BTreeSet<(&str, &str, ReplicaId)> =
            report.replicas.iter().map(name_of).collect();
        let Some(host) = self.hosts.get_mut(&report.host) else {
            return;
        };
        if host.forget_ending(|id, number| {
            first_of_boot
                || !named.iter().any(|(namespace, name, replica)| {
                    (*namespace, *name) == (id.namespace.as_str(), id.name.as_str())
                        && replica.placement == number
                })
        }) {
            self.agenda.room();
        }
        let held = host.set.iter().flat_map(|set| &set.groups);
        let held = held.flat_map(|group| {
            let key = group.key();
            let slots = group.slots.iter();
            slots.map(move |slot| (key.clone(), slot.placement))
        });
        let mut gone: Vec<(WorkloadKey, PlacementNumber, Slot)> = Vec::new();
        for (key, number) in held.chain(host.leaving.iter().cloned()) {
            let known = self
                .workloads
                .get(&key)
                .and_then(|workload| workload.reports.get(&number))
                .filter(|known| known.host == report.host)
                .map(|known| known.status.replica);
            let Some(known) = known else { continue };
            let name = (key.namespace.as_str(), key.name.as_str(), known);
            if first_of_boot || !named.contains(&name) {
                gone.push((key, number, known.slot));
            }
        }
        for (key, number, slot) in gone {
            let before = self.remove_report(&key, number);
            if first_of_boot && let Some(before) = before {
                self.may_run_on(&key, &before);
            }
            self.agenda.part(&key, Some(slot), Some(&report.host));
            // A slot may have waited for this one's end.
            self.agenda.room();
        }
    }
}

impl Cluster {
    /// An earlier start of a host has not told the end of something that no set names any more. Where it must
    /// not run twice, it may run until that start is known to be gone.
    fn may_run_on(&mut self, key: &WorkloadKey, report: &Reported) {
        let (number, slot) = (report.status.replica.placement, report.status.replica.slot);
        let Some(workload) = self.workloads.get(key) else {
            return;
        };
        let revision = workload.revisions.get(&report.status.revision);
        let once = revision.is_none_or(|revision| revision.spec.runs_once());
        let held = { workload.placements.get(&number) }.is_some_and(|one| one.host == report.host);
        if !once || held || report.status.state.ended() {
            return;
        }
        if let Some(host) = self.hosts.get_mut(&report.host) {
            let until = (slot, host.set_sequence);
            host.unsure.insert((key.clone(), number), until);
        }
    }
}

fn name_of(status: &ReplicaStatus) -> (&str, &str, ReplicaId) {
    (
        status.namespace.as_str(),
        status.workload.as_str(),
        status.replica,
    )
}

/// What differs between two sets.
#[derive(Default)]
struct Changed<'a> {
    gone: Vec<(&'a PlacementGroup, &'a PlacedSlot)>,
    come: Vec<(&'a PlacementGroup, &'a PlacedSlot)>,
}

fn diff<'a>(before: &'a [PlacementGroup], after: &'a [PlacementGroup], changed: &mut Changed<'a>) {
    let (mut old, mut new) = (before.iter().peekable(), after.iter().peekable());
    loop {
        let which = match (old.peek(), new.peek()) {
            (None, None) => return,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(a), Some(b)) => order(a, b),
        };
        let gone = if which.is_le() { old.next() } else { None };
        let come = if which.is_ge() { new.next() } else { None };
        if let (Some(gone), Some(come)) = (gone, come)
            && gone.slots == come.slots
        {
            continue;
        }
        let slots = |group: Option<&'a PlacementGroup>| {
            group
                .into_iter()
                .flat_map(|group| group.slots.iter().map(move |slot| (group, slot)))
        };
        let in_other = |other: Option<&PlacementGroup>, slot: &PlacedSlot| {
            let at = |group: &PlacementGroup| {
                let found = group
                    .slots
                    .binary_search_by_key(&slot.placement, |s| s.placement);
                found.is_ok_and(|at| group.slots[at] == *slot)
            };
            other.is_some_and(at)
        };
        changed
            .gone
            .extend(slots(gone).filter(|(_, slot)| !in_other(come, slot)));
        changed
            .come
            .extend(slots(come).filter(|(_, slot)| !in_other(gone, slot)));
    }
}

impl Workload {
    /// Slots with a replica that has left its set and has not ended, on a host that may still run it.
    pub(crate) fn draining(&self, alive: impl Fn(&HostId) -> bool) -> BTreeSet<wasmorch_api::Slot> {
        self.leaving
            .iter()
            .filter_map(|number| self.reports.get(number))
            .filter(|known| !known.status.state.ended() && alive(&known.host))
            .map(|known| known.status.replica.slot)
            .collect()
    }
}
