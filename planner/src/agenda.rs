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
    /// The last plan writes all that there is to write of these, if it is stored.
    through: BTreeSet<WorkloadKey>,
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
        self.follows_plan && self.through.contains(key)
    }

    /// The plan that is being made writes all that there is to write of it.
    pub(crate) fn planned_through(&mut self, key: &WorkloadKey) {
        self.through.insert(key.clone());
    }

    /// That plan's writes are being committed, or not any more.
    pub(crate) fn follow_plan(&mut self, follows: bool) {
        self.follows_plan = follows;
    }

    /// All of it is stored.
    pub(crate) fn carried_out(&mut self) {
        self.through.clear();
    }

    /// Nobody has said that it is: those are looked at whole.
    pub(crate) fn doubt_plan(&mut self) {
        for key in std::mem::take(&mut self.through) {
            self.whole(&key);
        }
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

    /// What a plan found: `wrote` keeps it here until the store has acknowledged and a plan finds
    /// nothing more, so that a plan that is never stored is made again.
    pub(crate) fn planned(
        &mut self,
        key: &WorkloadKey,
        dirt: Option<Dirt>,
        waits: bool,
        wakes: (Option<Timestamp>, Option<Timestamp>),
    ) {
        match dirt {
            Some(Dirt::Whole) => self.whole(key),
            Some(Dirt::Part { slots, hosts }) => {
                self.part(key, None, None);
                if let Some(Dirt::Part { slots: s, hosts: h }) = self.dirty.get_mut(key) {
                    s.extend(slots);
                    h.extend(hosts);
                }
            }
            None => {}
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
