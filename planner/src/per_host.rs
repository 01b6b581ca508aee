//! `replicas = "per-host"`: one replica on every host that is open to the workload.
//!
//! Owns which hosts are meant, which slot belongs to which of them, and how many that makes.
//!
//! Rule: a host is *open* when it is alive, heard, not cordoned and passes the spec's filters; a
//! replica starts there. One that is cordoned, suspect or not heard yet keeps the replica that it
//! has and gets none; one that is drained loses it: at once when it does not serve or more than
//! `min_available` do, at the latest at the deadline. A dead one keeps it and is not counted: should it
//! run behind a broken network, nothing has to change when it is heard again. A host that the filters bar loses its replica. An
//! open host without room counts as wanted and is told of as unplaced. A rollout waits for an old one that a
//! drain leaves serving until that has ended: to the drain's deadline, or to its own if that has none.
//!
//! A slot stays with its host for as long as there is a placement (or a crash loop that waits).
//! Where seats are in each other's way (before, there was a plain count), the fresh ones go first,
//! then those that are ready, then the older ones. A host without a seat gets the lowest free slot,
//! hosts in the order of their ids.

use std::collections::{BTreeMap, BTreeSet};

use wasmorch_api::status::HostState;
use wasmorch_api::{HostId, Slot};

use crate::cluster::{Cluster, Host, Workload};
use crate::place;
use crate::plan::StopReason;
use crate::planted::{self, Bug};
use crate::slots::{Pass, Seat, Standing};

/// Which slot is whose.
#[derive(Debug, Default)]
pub(crate) struct Seating {
    /// The slots that are wanted, and their hosts.
    slots: BTreeMap<Slot, HostId>,
    /// Those among them whose host takes nothing new now.
    held: BTreeSet<Slot>,
}

impl Seating {
    pub(crate) fn wants(&self, slot: Slot) -> bool {
        self.slots.contains_key(&slot)
    }

    pub(crate) fn slots(&self) -> impl Iterator<Item = Slot> + '_ {
        self.slots.keys().copied()
    }

    /// The host of a slot, if something may start there now.
    pub(crate) fn open(&self, slot: Slot) -> Option<&HostId> {
        self.slots.get(&slot).filter(|_| !self.held.contains(&slot))
    }
}

/// What a host is to a per-host workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meant {
    /// It shall have one.
    Open,
    /// It keeps the one that it has.
    Keeps,
    /// It keeps the one that it has, and is not counted.
    Away,
    /// It shall have none, as soon as the one that it has can be spared. It is not counted.
    Leaves,
    /// It shall have none.
    Barred,
}

/// What hosts are to one workload; what a class of hosts is refused for is looked at once.
struct Hosts<'a> {
    cluster: &'a Cluster,
    spec: &'a wasmorch_api::WorkloadSpec,
    needs: Vec<String>,
    classes: BTreeMap<u32, bool>,
}

impl Hosts<'_> {
    fn meant(&mut self, host: &Host) -> Meant {
        if host.state == HostState::Dead {
            let drained = host.record.drain.is_some();
            return if drained { Meant::Barred } else { Meant::Away };
        }
        // What it is has not been told yet.
        if !host.known() {
            return Meant::Keeps;
        }
        let (cluster, spec, needs) = (self.cluster, self.spec, &self.needs);
        let barred = *self.classes.entry(host.class).or_insert_with(|| {
            let class = cluster.classes.get(host.class);
            class.is_none_or(|class| place::is_against_class(spec, needs, class))
        });
        let name = host.info().name.as_str();
        if barred || !{ spec.constraints.iter() }.all(|one| place::name_passes(one, name)) {
            return Meant::Barred;
        }
        // What leaves has nowhere to go: it ends.
        if host.record.drain.is_some() {
            return Meant::Leaves;
        }
        if host.record.cordoned || host.state != HostState::Alive {
            return Meant::Keeps;
        }
        Meant::Open
    }
}

impl Workload {
    /// With one on every host: whether a slot has lost its placement, or is about to. Whose it is then
    /// only a look at all hosts tells.
    pub(crate) fn loses_a_seat(&self, slots: &BTreeSet<Slot>) -> bool {
        let given_up = |number| {
            let known = self.reports.get(&number);
            known.is_some_and(|known| known.status.given_up)
        };
        let lost = |slot: &Slot| {
            let mut numbers = self.numbers_of(*slot).peekable();
            numbers.peek().is_none() || numbers.any(given_up)
        };
        self.per_host() && slots.iter().any(lost)
    }
}

impl Pass<'_> {
    /// Gives every host that is meant its slot, ends the seats that are in the way, and counts.
    pub(crate) fn seat_hosts(&mut self) {
        if self.scope.is_some() {
            self.seat_scope();
            return;
        }
        let target = self.target.clone();
        let mut hosts = Hosts {
            cluster: self.cluster,
            spec: &target.spec,
            needs: place::needs(&target.spec, &target.features),
            classes: BTreeMap::new(),
        };
        let mut seating = Seating::default();
        let mut seated: BTreeMap<HostId, Slot> = BTreeMap::new();
        let mut taken: BTreeMap<Slot, HostId> = BTreeMap::new();
        let mut spared = self.to_spare();
        let mut seats: Vec<Seat> = self.seats.values().cloned().collect();
        seats.sort_by_key(|seat| {
            let ready = matches!(seat.standing, Standing::Ready(_));
            (!seat.fresh, !ready, seat.number)
        });
        for seat in seats {
            let (slot, id) = (seat.placed.slot, &seat.placed.host);
            let Some(host) = self.cluster.hosts.get(id) else {
                // A host that was removed: `end_gone_and_used_up` ends it once this leader may.
                taken.entry(slot).or_insert_with(|| id.clone());
                continue;
            };
            let meant = hosts.meant(host);
            let mine = taken.get(&slot).is_none_or(|owner| owner == id)
                && seated.get(id).is_none_or(|other| *other == slot);
            if meant == Meant::Barred || !mine {
                self.stop_if_heard(&seat, StopReason::NotWanted);
                continue;
            }
            if meant == Meant::Leaves && (!seat.serves() || spared > 0) {
                spared -= u64::from(seat.serves());
                self.stop_if_heard(&seat, StopReason::Drained);
                continue;
            }
            taken.insert(slot, id.clone());
            seated.insert(id.clone(), slot);
            if matches!(meant, Meant::Open | Meant::Keeps) {
                seating.slots.insert(slot, id.clone());
            }
            if meant == Meant::Keeps {
                seating.held.insert(slot);
            }
        }
        let mut free = Slot(1);
        let mut unheard = false;
        for (id, host) in &self.cluster.hosts {
            unheard |= !host.known() && host.state != HostState::Dead;
            if seated.contains_key(id) || hosts.meant(host) != Meant::Open {
                continue;
            }
            let looped = self.record.crash_loop.iter();
            let looped = { looped }.find(|one| one.host.as_ref() == Some(id));
            // What waits after failures has its slot, and what has volumes there too.
            let home = self.record.homes.iter();
            let home = { home }.find(|(slot, home)| *home == id && !taken.contains_key(*slot));
            let own = looped.map(|one| one.slot).or(home.map(|(slot, _)| *slot));
            let slot = match own {
                Some(slot) if !taken.contains_key(&slot) => slot,
                _ => {
                    let waits = |slot| {
                        let mut looped = self.record.crash_loop.iter();
                        looped.any(|one| one.slot == slot && one.host.is_some())
                    };
                    let elsewhere = |slot| self.home(slot).is_some_and(|home| home != id);
                    while taken.contains_key(&free) || waits(free) || elsewhere(free) {
                        free = Slot(free.0 + 1);
                    }
                    free
                }
            };
            taken.insert(slot, id.clone());
            seating.slots.insert(slot, id.clone());
        }
        // A leader that has not heard everyone yet knows no better than the one before.
        if !unheard || self.cluster.settled(self.now) {
            self.record.desired = u32::try_from(seating.slots.len()).unwrap_or(u32::MAX);
            let slots = &seating.slots;
            self.record.crash_loop.retain(|one| {
                let host = slots.get(&one.slot);
                host.is_some() && host == one.host.as_ref()
            });
        }
        self.seating = Some(seating);
    }

    /// So many ready ones may end on hosts that are drained.
    fn to_spare(&self) -> u64 {
        if planted::is(Bug::MinAvailableForgotten) {
            return u64::MAX;
        }
        let serving = self.seats.values().filter(|seat| seat.serves());
        let slots: BTreeSet<Slot> = serving.map(|seat| seat.placed.slot).collect();
        let least = u64::from(self.target.spec.min_available);
        (slots.len() as u64).saturating_sub(least)
    }

    /// Of a steady workload nothing but a slot's own replica has changed: its host stays.
    fn seat_scope(&mut self) {
        let mut seating = Seating::default();
        for slot in self.scope.iter().flatten() {
            let numbers = self.workload.numbers_of(*slot);
            let placed = numbers.filter_map(|number| self.workload.placements.get(&number));
            let Some(id) = { placed }.next().map(|placed| &placed.host) else {
                continue;
            };
            let host = self.cluster.hosts.get(id);
            let Some(host) = host.filter(|host| host.state != HostState::Dead) else {
                continue;
            };
            seating.slots.insert(*slot, id.clone());
            if !host.known() || host.state != HostState::Alive || host.record.cordoned {
                seating.held.insert(*slot);
            }
        }
        self.seating = Some(seating);
    }

    /// Slots that a rollout passes over: an old replica on a cordoned host is replaced when the host
    /// is open again.
    pub(crate) fn passed_over(&self, slot: Slot) -> bool {
        let Some(seating) = &self.seating else {
            return false;
        };
        let cordoned = |id: &HostId| {
            let host = self.cluster.hosts.get(id);
            host.is_some_and(|host| host.known() && host.record.cordoned)
        };
        seating.slots.get(&slot).is_some_and(cordoned)
            && self.seats_of(slot).all(|seat| !seat.fresh)
    }
}
