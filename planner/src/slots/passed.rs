//! What a pass leaves behind: whether its workload is in order, what it waits for, and what is said of it.
//!
//! Owns when a workload need not be looked at again. It decides nothing of what runs.

use std::collections::BTreeSet;

use wasmorch_api::{EventKind, RolloutState, Timestamp};

use super::{Pass, Standing};
use crate::awaited::Awaited;
use crate::explain::{self, Trouble};
use crate::homes;
use crate::write::EventDraft;

/// So many hosts are looked at in one plan to tell why slots could not be placed; what more cannot be is told of
/// without. When a part of all hosts dies, thousands of workloads say so at once, each of which would look at all.
const EXPLAINED: usize = 5_000;

/// What a pass leaves behind, besides what it has added to the plan.
#[derive(Debug)]
pub(crate) struct Passed {
    pub(crate) unplaced: Option<Trouble>,
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
        let unplaced = self.trouble();
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

    /// What of it could not be placed, told aloud when it is not as much as before.
    fn trouble(&mut self) -> Option<Trouble> {
        let held_up = self.held_up.take();
        if self.unplaced == 0 && held_up.is_none() {
            return None;
        }
        let asked = self.in_vain.take().unwrap_or_else(|| self.target.clone());
        let target = std::mem::replace(&mut self.target, asked.clone());
        let (homes, all_at_home) = match self.unplaced {
            0 => (BTreeSet::new(), false),
            _ => self.awaited_homes(),
        };
        let trouble = Trouble {
            in_vain: self.unplaced,
            asked,
            quota: self.removed_by_quota(),
            homes,
            all_at_home,
            held_up,
        };
        let known = self.workload.unplaced.as_ref();
        if known.map(Trouble::slots) != Some(trouble.slots()) {
            self.say_unplaced(&trouble);
        }
        self.target = target;
        Some(trouble)
    }

    fn say_unplaced(&mut self, trouble: &Trouble) {
        let hosts = self.cluster.hosts.len();
        let (reason, unplaced) = if self.pool.explained < EXPLAINED {
            self.pool.explained += hosts;
            let unplaced = self.with_standpoint(trouble.only_homes(), |on| trouble.told(on));
            (explain::one_line(&unplaced), unplaced)
        } else {
            trouble.one_of_many(self.key)
        };
        let mut event = EventDraft::of(self.key, EventKind::Unplaced, reason);
        event.detail = serde_json::to_value(unplaced).unwrap_or_default();
        self.plan.events.push(event);
    }
}
