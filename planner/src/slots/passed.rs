//! What a pass leaves behind: whether its workload is in order, what it waits for, and what is said of it.
//!
//! Owns when a workload need not be looked at again. It decides nothing of what runs.

use wasmorch_api::{EventKind, RolloutState, Timestamp};

use super::{Pass, Standing};
use crate::awaited::Awaited;
use crate::write::EventDraft;
use crate::{explain, homes, place};

/// What a pass leaves behind, besides what it has added to the plan.
#[derive(Debug)]
pub(crate) struct Passed {
    pub(crate) unplaced: Option<wasmorch_api::messages::Unplaced>,
    /// Something could not be done yet, and no time will tell.
    pub(crate) waits: bool,
    pub(crate) wake: Option<Timestamp>,
    pub(crate) steady: bool,
    /// Its rollout waits for these slots, and for nothing else.
    pub(crate) awaited: Option<Awaited>,
    /// All of it was looked at.
    pub(crate) whole: bool,
    /// And it looks the same once what this pass wants is stored.
    pub(crate) through: bool,
}

impl Pass<'_> {
    pub(super) fn finish(mut self) -> Passed {
        self.end_fill();
        self.sum_up();
        let asked = self.in_vain.take().unwrap_or_else(|| self.target.clone());
        let target = std::mem::replace(&mut self.target, asked);
        let mut unplaced = (self.unplaced > 0).then(|| self.explain());
        self.target = target;
        if let Some(host) = &self.held_up {
            explain::held_up(self.key, &mut unplaced, host);
        }
        let rollout = self.record.rollout.as_ref();
        // A first revision that failed completes when it comes to life yet.
        let moves = rollout.is_some_and(|rollout| {
            !rollout.state.ended()
                || (rollout.state == RolloutState::Failed && rollout.from.is_none())
        });
        let calm = !self.target.kind.ends()
            && unplaced.is_none()
            && !self.waits
            && self.wake.is_none()
            && self.record.revision == self.workload.record.revision
            && self.refill.is_empty()
            && self
                .seats
                .values()
                .all(|seat| seat.fresh && seat.leaves.is_none() && seat.standing != Standing::Gone);
        let rolled = self.workload.record.active_rollout().is_some();
        if rolled && self.record.active_rollout().is_none() {
            // It has ended in this very pass: nobody waits for what was to become available.
            self.foreseen = None;
        }
        let wakes = self.wake.into_iter().chain(self.foreseen);
        let awaited = { self.awaited.take() }.filter(|_| calm && self.only_awaits());
        let steady = calm && !moves && self.foreseen.is_none();
        // What is stored and what is placed is looked at again for these.
        let follows = !self.record.moves.is_empty()
            || !self.record.homes.is_empty()
            || homes::has_data(&self.target.spec)
            || self.workload.may_rest();
        let passed = Passed {
            through: (steady || awaited.is_some()) && !follows,
            steady,
            waits: self.waits || unplaced.is_some(),
            unplaced,
            wake: wakes.min(),
            whole: self.scope.is_none(),
            awaited,
        };
        if self.record.held_bare() {
            self.record.stopped = self.workload.record.stopped;
        }
        if self.record != self.workload.record {
            self.record.updated = self.now;
            self.plan.update.push(self.record);
        }
        passed
    }

    /// One event for all that were not told of one by one.
    fn sum_up(&mut self) {
        let (placed, lost) = (self.placed, self.lost);
        if placed > 0 {
            let text = format!("{placed} more slots");
            let event = EventDraft::of(self.key, EventKind::Placed, text);
            self.plan.events.push(event.revision(self.record.revision));
        }
        if lost > 0 {
            let text = format!("{lost} more: their hosts are dead");
            let event = EventDraft::of(self.key, EventKind::ReplicaLost, text);
            self.plan.events.push(event);
        }
    }

    fn explain(&self) -> wasmorch_api::messages::Unplaced {
        let homes = self.awaited_homes();
        let mut ranking = self.with_standpoint(homes.as_ref(), |on| place::rank(on, &[]));
        if let Some(removed) = self.removed_by_quota() {
            let fits = std::mem::take(&mut ranking.fits).into_iter();
            ranking.removed = fits
                .map(|one| one.name)
                .chain(ranking.removed.into_iter().map(|one| one.0))
                .map(|name| (name, vec![removed.clone()]))
                .collect();
        }
        let mut unplaced = explain::unplaced(self.key, self.unplaced, &ranking);
        self.explain_homes(&mut unplaced);
        unplaced
    }
}
