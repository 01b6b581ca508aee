//! What has to be planned: the workloads that something has touched since they were last in order.
//!
//! Owns the dirty workloads, those that wait for room, and the times at which one wants to be
//! looked at again. It knows nothing of what planning finds.
//!
//! Invariant: planning a workload that is not named here changes nothing. Whoever changes
//! something that a plan may depend on names the workloads it concerns; the property test
//! `every_incremental_plan_equals_one_from_scratch` holds everyone to it.

use std::collections::{BTreeMap, BTreeSet};

use wasmorch_api::{HostId, PlacementNumber, Slot, Timestamp, WorkloadKey};

use crate::cluster::{Cluster, Workload};
use crate::planted::{self, Bug};

/// How much of a workload has to be looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Dirt {
    /// All of it.
    Whole,
    /// These slots, and how many are ready on these hosts. A workload can be planned in part only when
    /// nothing is unplaced and nothing moves but, perhaps, a rollout that waits for readiness alone.
    Part {
        slots: BTreeSet<Slot>,
        hosts: BTreeSet<HostId>,
    },
}

impl Dirt {
    /// No slot and no host: only its record and tables.
    pub(crate) fn nothing() -> Self {
        let (slots, hosts) = (BTreeSet::new(), BTreeSet::new());
        Self::Part { slots, hosts }
    }

    fn and(self, other: Self) -> Self {
        match (self, other) {
            (
                Self::Part {
                    mut slots,
                    mut hosts,
                },
                Self::Part { slots: s, hosts: h },
            ) => {
                slots.extend(s);
                hosts.extend(h);
                Self::Part { slots, hosts }
            }
            _ => Self::Whole,
        }
    }
}

/// How a plan leaves a workload that it has looked at.
#[derive(Debug)]
pub(crate) enum Left {
    /// Nothing was written.
    InOrder,
    /// What was written may ask for more: this is looked at again.
    Open(Dirt),
    /// Nothing but what gateways know was written, of this much: in order once that is stored.
    Told(Dirt),
    /// All that there is to write of it was written, and what follows from that was counted on.
    Through,
}

/// What a plan that is not carried out has to look at again.
#[derive(Debug, Clone)]
struct Written {
    of: Dirt,
    /// What its writes mark has been planned on already.
    foreseen: bool,
}

/// The work that waits.
#[derive(Debug, Clone, Default)]
pub(crate) struct Agenda {
    dirty: BTreeMap<WorkloadKey, Dirt>,
    /// Something could not be done for want of room, or until a host has spoken: tried again when
    /// `room` says that there may be more.
    waiting: BTreeSet<WorkloadKey>,
    wakes: BTreeSet<(Timestamp, WorkloadKey)>,
    room: bool,
    /// What the last plan leaves in order, if all of it is stored; looked at again if not.
    written: BTreeMap<WorkloadKey, Written>,
    /// What is marked follows from that plan's own writes.
    follows_plan: bool,
}

impl Agenda {
    /// Look at all of it.
    pub(crate) fn whole(&mut self, key: &WorkloadKey) {
        if self.is_foreseen(key) {
            return;
        }
        if self.dirty.get(key) != Some(&Dirt::Whole) {
            self.dirty.insert(key.clone(), Dirt::Whole);
        }
    }

    /// Look at a slot, and at what is ready on a host.
    pub(crate) fn part(&mut self, key: &WorkloadKey, slot: Option<Slot>, host: Option<&HostId>) {
        if self.is_foreseen(key) {
            return;
        }
        if !self.dirty.contains_key(key) {
            self.dirty.insert(key.clone(), Dirt::nothing());
        }
        if let Some(Dirt::Part { slots, hosts }) = self.dirty.get_mut(key) {
            slots.extend(slot);
            if let Some(host) = host
                && !hosts.contains(host)
            {
                hosts.insert(host.clone());
            }
        }
    }

    fn is_foreseen(&self, key: &WorkloadKey) -> bool {
        self.follows_plan && self.written.get(key).is_some_and(|one| one.foreseen)
    }

    /// The last plan's writes are being committed, or not any more.
    pub(crate) fn follow_plan(&mut self, follows: bool) {
        self.follows_plan = follows;
    }

    /// All of it is stored.
    pub(crate) fn carried_out(&mut self) {
        self.written.clear();
    }

    /// Nobody has said that it is: what it left in order is looked at again.
    pub(crate) fn doubt_plan(&mut self) {
        for (key, written) in std::mem::take(&mut self.written) {
            self.look_at(&key, written.of);
        }
    }

    fn look_at(&mut self, key: &WorkloadKey, dirt: Dirt) {
        let dirt = match self.dirty.remove(key) {
            Some(before) => before.and(dirt),
            None => dirt,
        };
        self.dirty.insert(key.clone(), dirt);
    }

    fn note_written(&mut self, key: &WorkloadKey, of: Dirt, foreseen: bool) {
        let before = self.written.insert(key.clone(), Written { of, foreseen });
        debug_assert!(before.is_none(), "a plan looks at each workload once");
    }

    /// There may be more room than before.
    pub(crate) fn room(&mut self) {
        self.room = true;
    }

    /// The workload is gone.
    pub(crate) fn forget(&mut self, key: &WorkloadKey, wake: Option<Timestamp>) {
        self.dirty.remove(key);
        self.waiting.remove(key);
        if let Some(at) = wake {
            self.wakes.remove(&(at, key.clone()));
        }
    }

    /// What is due now. Of those that `count` their slots the time is up for some of them only.
    pub(crate) fn take(
        &mut self,
        now: Timestamp,
        count: impl Fn(&WorkloadKey) -> bool,
    ) -> BTreeMap<WorkloadKey, Dirt> {
        while let Some((_, key)) = self.wakes.first().filter(|(at, _)| *at <= now).cloned() {
            self.wakes.pop_first();
            if count(&key) {
                self.part(&key, None, None);
            } else {
                self.whole(&key);
            }
        }
        if std::mem::take(&mut self.room) {
            for key in self.waiting.clone() {
                self.whole(&key);
            }
        }
        std::mem::take(&mut self.dirty)
    }

    /// The workloads that wait for room.
    pub(crate) fn waiting(&self) -> &BTreeSet<WorkloadKey> {
        &self.waiting
    }

    /// What a plan found. What it wrote keeps a workload here until the store has acknowledged, so that
    /// a plan that is never stored is made again.
    pub(crate) fn planned(
        &mut self,
        key: &WorkloadKey,
        left: Left,
        waits: bool,
        wakes: (Option<Timestamp>, Option<Timestamp>),
    ) {
        match left {
            Left::InOrder => {}
            Left::Open(dirt) => self.look_at(key, dirt),
            Left::Told(dirt) => self.note_written(key, dirt, false),
            Left::Through => self.note_written(key, Dirt::Whole, true),
        }
        if waits {
            self.waiting.insert(key.clone());
        } else {
            self.waiting.remove(key);
        }
        let (before, after) = wakes;
        if let Some(at) = before.filter(|_| before != after) {
            self.wakes.remove(&(at, key.clone()));
        }
        if let Some(at) = after {
            self.wakes.insert((at, key.clone()));
        }
    }

    /// The next time at which something is due by itself.
    pub(crate) fn next_wake(&self) -> Option<Timestamp> {
        self.wakes.first().map(|(at, _)| *at)
    }
}

impl Cluster {
    /// Makes the next plan look at everything and trust no counter: planning from scratch. For a new
    /// leader, and for tests that hold the incremental plan against it.
    pub fn mark_all_dirty(&mut self) {
        self.stale = true;
    }

    /// Something about a host changed that what it holds depends on: whether it lives, is heard, is
    /// to be had, where it is reached.
    pub(crate) fn host_changed(&mut self, id: &HostId) {
        self.pool.touch(id);
        self.agenda.room();
        let follow = { &self.per_host }.iter();
        let follow = follow.filter(|_| !planted::is(Bug::JoinedForgotten));
        for key in self.stale_tables.iter().chain(follow) {
            self.agenda.whole(key);
        }
        let Some(host) = self.hosts.get(id) else {
            return;
        };
        for group in host.set.iter().flat_map(|set| &set.groups) {
            let key = group.key();
            for slot in &group.slots {
                self.agenda.part(&key, Some(slot.slot), Some(id));
            }
        }
        for (key, number) in &host.leaving {
            if let Some(known) = self
                .workloads
                .get(key)
                .and_then(|workload| workload.reports.get(number))
            {
                self.agenda
                    .part(key, Some(known.status.replica.slot), Some(id));
            }
        }
    }
}

impl Workload {
    /// The numbers that the sets hold for a slot.
    pub(crate) fn numbers_of(&self, slot: Slot) -> impl Iterator<Item = PlacementNumber> + '_ {
        let (first, last) = (PlacementNumber(0), PlacementNumber(u64::MAX));
        self.slots
            .range((slot, first)..=(slot, last))
            .map(|(_, number)| *number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> WorkloadKey {
        WorkloadKey::new("default".parse().unwrap(), "web".parse().unwrap())
    }

    fn part(slot: u64) -> Dirt {
        let hosts = BTreeSet::from([HostId::from_random([slot as u8; 10])]);
        let slots = BTreeSet::from([Slot(slot)]);
        Dirt::Part { slots, hosts }
    }

    fn take(agenda: &mut Agenda) -> Option<Dirt> {
        agenda.take(Timestamp(0), |_| false).remove(&key())
    }

    fn planned(left: Left) -> Agenda {
        let mut agenda = Agenda::default();
        agenda.planned(&key(), left, false, (None, None));
        agenda
    }

    #[test]
    fn what_was_told_is_looked_at_again_only_if_it_was_not_stored() {
        let mut agenda = planned(Left::Told(part(1)));
        agenda.carried_out();
        agenda.doubt_plan();
        assert_eq!(take(&mut agenda), None);

        let mut agenda = planned(Left::Told(part(1)));
        agenda.part(&key(), Some(Slot(2)), None);
        agenda.doubt_plan();
        let Some(Dirt::Part { slots, hosts }) = take(&mut agenda) else {
            panic!("a part");
        };
        assert_eq!(slots, BTreeSet::from([Slot(1), Slot(2)]));
        assert_eq!(hosts.len(), 1);
    }

    #[test]
    fn what_follows_from_a_plan_that_was_through_is_not_looked_at() {
        let mut agenda = planned(Left::Through);
        agenda.follow_plan(true);
        agenda.part(&key(), Some(Slot(3)), None);
        agenda.whole(&key());
        agenda.follow_plan(false);
        assert_eq!(take(&mut agenda), None);
        agenda.doubt_plan();
        assert_eq!(take(&mut agenda), Some(Dirt::Whole));
    }
}
