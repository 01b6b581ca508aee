//! What one workload needs now: which slots are empty, crowded, old, or on a dead host.
//!
//! A slot has one current placement and, only while that is being replaced, one successor. Every
//! pass goes through the same steps in the same order, each of which may only see what the ones
//! before have left:
//!
//! 1. gone and used-up placements end; 2. slots that are not wanted end; 3. a slot keeps its best
//!    placement of the wanted revision and at most one old one, which ends when its successor is
//!    available; 4. empty slots are placed; 5. what is to leave its host is given a successor
//!    elsewhere (`moves`), and a rollout replaces old placements, both within `max_surge` and
//!    `max_unavailable`; 6. the rollout's own state moves (`rollout`; of one on trial, `canary`).
//!
//! A new leader stops or moves nothing on a host it has not heard from (DESIGN, section 4).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use wasmorch_api::spec::UpdateOrder;
use wasmorch_api::status::HostState;
use wasmorch_api::{
    HostId, Kind, PlacementNumber, Record, ReplicaState, Revision, RevisionNumber, Slot, Timestamp,
    WorkloadKey,
};

use crate::agenda::Dirt;
use crate::awaited::Awaited;
use crate::booked::Booked;
use crate::canary;
use crate::cluster::{Cluster, Workload};
use crate::explain::HeldUp;
use crate::fill::{Delta, Fill, Ground};
use crate::judge;
use crate::moves;
use crate::per_host::Seating;
use crate::place::Standpoint;
use crate::plan::Plan;
use crate::pool::{Pool, Rank};
use crate::ports;
use crate::rollout;

mod ending;
mod passed;
mod placements;
mod seat;
mod seats;

pub(crate) use passed::Passed;
pub(crate) use seat::{Seat, Standing};

/// One workload's pass.
pub(crate) struct Pass<'a> {
    pub(crate) cluster: &'a Cluster,
    pub(crate) pool: &'a mut Pool,
    pub(crate) plan: &'a mut Plan,
    pub(crate) key: &'a WorkloadKey,
    pub(crate) workload: &'a Workload,
    pub(crate) target: Arc<Revision>,
    pub(crate) record: Record,
    pub(crate) now: Timestamp,
    pub(crate) seats: BTreeMap<(Slot, PlacementNumber), Seat>,
    /// Those of the revision on trial (`canary`).
    pub(crate) others: BTreeMap<(Slot, PlacementNumber), Seat>,
    /// The slots to look at; `None`: all of them.
    pub(crate) scope: Option<BTreeSet<Slot>>,
    /// With one on every host: whose each slot is.
    pub(crate) seating: Option<Seating>,
    delta: Delta,
    fill: Option<Fill>,
    /// Its place has been given up already, while it was asked whether there is another.
    pub(crate) vacated: Option<PlacementNumber>,
    /// Slots to fill although what is lost stays in its host's set.
    pub(crate) refill: BTreeMap<Slot, Option<Seat>>,
    /// A host that may still run what must not run twice.
    pub(crate) held_up: Option<HeldUp>,
    /// No host has room: nothing was freed since that was found.
    full: bool,
    /// Slots that could not be placed.
    pub(crate) unplaced: u32,
    /// What the last of them was to run.
    in_vain: Option<Arc<Revision>>,
    /// Slots with a replica that is still ending.
    draining: Option<BTreeSet<Slot>>,
    pub(crate) waits: bool,
    wake: Option<Timestamp>,
    /// When a rollout that only waits for readiness is to be looked at again.
    foreseen: Option<Timestamp>,
    /// What it waits for, as far as that has been counted.
    pub(crate) awaited: Option<Awaited>,
    /// Slots that others have been ended for, and who that was for the next that is placed.
    pub(crate) helped: u32,
    /// Lost ones that have been told that there is such room.
    pub(crate) promised: u32,
    pub(crate) displaced: Vec<String>,
    /// What the namespace's quota lacks for one more.
    pub(crate) over_quota: Option<(&'static str, u64)>,
    /// Told of one by one, and not.
    said_placed: u32,
    placed: u32,
    pub(crate) said_lost: u32,
    pub(crate) lost: u32,
}

/// So many events of one kind for one workload in one plan; the rest are summed up.
pub(crate) const SAID_EACH: u32 = 16;
/// In a plan with more starts than this every workload's are summed up.
const SAID_STARTS: usize = 1_024;

/// Plans one workload; `None` when nothing can be decided.
pub(crate) fn plan_workload(
    cluster: &Cluster,
    pool: &mut Pool,
    (key, dirt): (&WorkloadKey, &Dirt),
    awaited: Option<Awaited>,
    now: Timestamp,
    plan: &mut Plan,
) -> Option<Passed> {
    let workload = cluster.workloads.get(key)?;
    // Record and revision are written in one batch; without its revision nothing can be decided.
    let target = workload.target().cloned()?;
    // What rests is few, and one that was woken concerns all.
    let rests = workload.record.rests(&target.spec);
    let scope = match dirt {
        _ if rests => None,
        Dirt::Part { slots, .. } if workload.steady && !workload.loses_a_seat(slots) => {
            Some(slots.clone())
        }
        Dirt::Part { slots, .. } => {
            let awaited = awaited.as_ref();
            awaited.and_then(|awaited| awaited.scope(workload, slots, now))
        }
        Dirt::Whole => None,
    };
    let awaited = awaited.filter(|_| scope.is_some());
    let mut pass = Pass {
        cluster,
        pool,
        plan,
        key,
        workload,
        record: workload.record.clone(),
        target,
        now,
        seats: BTreeMap::new(),
        others: BTreeMap::new(),
        scope,
        seating: None,
        delta: Delta::default(),
        fill: None,
        vacated: None,
        refill: BTreeMap::new(),
        held_up: None,
        full: false,
        unplaced: 0,
        in_vain: None,
        draining: None,
        waits: false,
        wake: None,
        foreseen: None,
        awaited,
        helped: 0,
        promised: 0,
        displaced: Vec::new(),
        over_quota: None,
        said_placed: 0,
        placed: 0,
        said_lost: 0,
        lost: 0,
    };
    if pass.look_at_others() || pass.look_at_hold() {
        return Some(pass.finish());
    }
    if pass.record.held_bare() {
        // Nothing of it starts, and what is left ends.
        pass.record.stopped = true;
    }
    pass.take_seats();
    pass.adopt_homes();
    if pass.target.kind == Kind::Cron {
        pass.begin_due();
        pass.complete_stored();
    }
    if pass.target.kind.ends() {
        pass.jobs();
    } else {
        pass.serve();
    }
    Some(pass.finish())
}

impl Workload {
    /// Hosts where a slot failed at a revision, as far as is remembered.
    pub(crate) fn failed_on(
        &self,
        slot: Slot,
        revision: RevisionNumber,
    ) -> impl Iterator<Item = &HostId> {
        let live = self.numbers_of(slot);
        let live = live.filter_map(|number| self.reports.get(&number).map(Box::as_ref));
        let failed = self.ended.iter().chain(live).filter(move |known| {
            let status = &known.status;
            let badly = matches!(status.state, ReplicaState::Failed | ReplicaState::Rejected);
            status.replica.slot == slot && status.revision == revision && badly
        });
        failed.map(|known| &known.host)
    }
}

impl Pass<'_> {
    /// Looks at the workload as another revision of it: the seats of the one are the others of the
    /// other. Done twice, it is as it was.
    pub(crate) fn exchange(&mut self, target: Arc<Revision>, revision: RevisionNumber) {
        self.aim(target);
        self.record.revision = revision;
        std::mem::swap(&mut self.seats, &mut self.others);
    }

    /// What starts from here on is this; what it was until now. No room for the one says nothing of
    /// the other.
    pub(crate) fn aim(&mut self, target: Arc<Revision>) -> Arc<Revision> {
        self.end_fill();
        self.full = false;
        std::mem::replace(&mut self.target, target)
    }

    pub(crate) fn wake(&mut self, at: Timestamp) {
        self.wake = Some(self.wake.map_or(at, |earlier| earlier.min(at)));
    }

    /// Like `wake`, for what `Awaited` knows of.
    pub(crate) fn foresee(&mut self, at: Timestamp) {
        self.foreseen = Some(self.foreseen.map_or(at, |earlier| earlier.min(at)));
    }

    fn serve(&mut self) {
        self.end_gone_and_used_up();
        if self.record.revision != self.workload.record.revision {
            // A revert began: seats and target belong to the revision just given up. The record is
            // stored first; the next pass sees the other one.
            return;
        }
        self.follow_load();
        if self.target.spec.per_host() && !self.record.stopped {
            self.seat_hosts();
        } else {
            self.end_unwanted();
        }
        moves::settle(self);
        moves::end_overdue(self);
        for slot in self.wanted() {
            self.keep_the_best(slot);
        }
        self.place_empty();
        self.shift_standbys();
        if self.scope.is_none() {
            moves::replace(self);
            rollout::replace(self);
            if self.record.on_trial().is_some() {
                canary::step(self);
            } else {
                rollout::advance(self);
            }
        } else if self.awaited.is_some() {
            rollout::advance(self);
        }
    }

    /// Looks at hosts one by one, with what this plan has decided so far.
    pub(crate) fn with_standpoint<T>(
        &self,
        homes: Option<&BTreeSet<HostId>>,
        look: impl FnOnce(&Standpoint<'_>) -> T,
    ) -> T {
        let ground = self.ground();
        look(&Standpoint {
            cluster: self.cluster,
            key: self.key,
            spec: &self.target.spec,
            features: &self.target.features,
            used: &|id, _| self.pool.used(id),
            count: &|id, host| match self.pool.rank(id) {
                Some(rank) => ground.count(self.pool, rank),
                None => host.count_of(self.key),
            },
            ports: ports::View {
                claims: Some(&self.pool.ports),
                without: None,
            },
            homes,
            goes: None,
        })
    }

    pub(crate) fn ground(&self) -> Ground<'_> {
        Ground {
            cluster: self.cluster,
            key: self.key,
            workload: self.workload,
            delta: &self.delta,
        }
    }

    /// The best host for one more replica, where the one on `goes` ends when it is there.
    pub(crate) fn best(
        &mut self,
        args: Option<&Vec<String>>,
        failed: &BTreeSet<Rank>,
        goes: Option<&HostId>,
    ) -> Option<Rank> {
        let wants = Booked::of(self.key, &self.target.spec, args);
        if self.pool.is_full_for(wants) {
            return None;
        }
        let (fill, ground, pool) = self.filling(args);
        let best = fill.best(&ground, pool, failed, goes);
        if best.is_none() {
            pool.note_left();
        }
        best
    }

    /// This pass's filling, begun when it is first asked for.
    pub(crate) fn filling(
        &mut self,
        args: Option<&Vec<String>>,
    ) -> (&mut Fill, Ground<'_>, &mut Pool) {
        let ground = Ground {
            cluster: self.cluster,
            key: self.key,
            workload: self.workload,
            delta: &self.delta,
        };
        let pool = &mut *self.pool;
        let target = &self.target;
        let fill = self
            .fill
            .get_or_insert_with(|| Fill::new(&ground, pool, target, args));
        (fill, ground, pool)
    }

    pub(crate) fn end_fill(&mut self) {
        if let Some(fill) = self.fill.take() {
            fill.end(self.pool);
        }
    }

    fn class_of(&self, host: &HostId) -> Option<u32> {
        self.cluster.hosts.get(host).map(|host| host.class)
    }

    /// Ready for `min_ready`; asks to be planned again when that is still to come.
    pub(crate) fn available(&mut self, seat: &Seat) -> bool {
        let due = self.available_at(seat);
        if let Some(due) = due.filter(|due| self.now < *due) {
            self.foresee(due);
        }
        due.is_some_and(|due| self.now >= due)
    }

    /// When it is, or was, ready for as long as it has to be; `None` while it is not ready.
    pub(crate) fn available_at(&self, seat: &Seat) -> Option<Timestamp> {
        let Standing::Ready(since) = seat.standing else {
            return None;
        };
        let mut others = self.seats_of(seat.placed.slot);
        let proves = seat.fresh
            && (self.record.active_rollout().is_some() || others.any(|one| one.leaves.is_some()));
        Some(if proves {
            since.after(judge::ready_for(self))
        } else {
            Timestamp(0)
        })
    }

    fn place_empty(&mut self) {
        for slot in self.wanted() {
            let seated = self.seats_of(slot).next().is_some() && !self.refill.contains_key(&slot);
            if seated || !self.open(slot) {
                continue;
            }
            if self.crash_loop_waits(slot) {
                continue;
            }
            let stop_first = self.target.spec.update.order == UpdateOrder::StopFirst;
            if stop_first && self.still_draining(slot) {
                self.waits = true;
                continue;
            }
            let (unplaced, others) = (self.unplaced, !self.seats.is_empty());
            let placed = self.start(slot, None);
            if !placed && others && self.record.rests(&self.target.spec) {
                // One standby will do until there is room for another.
                self.unplaced = unplaced;
                self.waits = true;
            }
            if placed && let Some(lost) = self.refill.get_mut(&slot).and_then(Option::take) {
                self.say_lost(&lost);
            }
        }
    }

    /// A replica of this slot that has left its set and has not ended yet.
    fn still_draining(&mut self, slot: Slot) -> bool {
        let (cluster, workload) = (self.cluster, self.workload);
        let draining = self.draining.get_or_insert_with(|| {
            let alive = |host: &HostId| {
                let host = cluster.hosts.get(host);
                host.is_some_and(|host| host.state != HostState::Dead)
            };
            workload.draining(alive)
        });
        draining.contains(&slot)
    }

    pub(crate) fn host_name(&self, host: &HostId) -> String {
        self.cluster
            .hosts
            .get(host)
            .map_or_else(|| host.to_string(), |h| h.info().name.to_string())
    }
}
