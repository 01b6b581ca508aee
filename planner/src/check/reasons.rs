//! Whether what a plan ends ends for a reason that is so: by the state alone, whatever the planner thought.
//!
//! How many a rollout, a drain or a higher priority may take away is judged by what is left (`slots`, and
//! pre-emption); everything else ends because of what it is itself, and would pass unseen if that were not
//! looked at. Work is proportional to what the plan ends.

use wasmorch_api::status::HostState;
use wasmorch_api::{PlacementNumber, Record, ReplicaState, WorkloadKey};

use super::{BrokenRule, Part};
use crate::cluster::{Cluster, Host, Placed, Workload};
use crate::place;
use crate::plan::StopReason;

/// A plan's part of a workload, and its record after the plan.
struct Look<'a> {
    cluster: &'a Cluster,
    key: &'a WorkloadKey,
    workload: &'a Workload,
    part: &'a Part<'a>,
    record: &'a Record,
}

pub(super) fn are_so(
    cluster: &Cluster,
    (key, workload): (&WorkloadKey, &Workload),
    part: &Part<'_>,
    record: &Record,
    broken: &mut Vec<BrokenRule>,
) {
    let look = Look {
        cluster,
        key,
        workload,
        part,
        record,
    };
    for (number, why) in &part.stops {
        // What no set holds is ended by nobody.
        let placed = workload.placements.get(number);
        if placed.is_some_and(|placed| !look.is_so(*number, placed, *why)) {
            broken.push(BrokenRule::WrongReason {
                workload: key.clone(),
                number: *number,
                why: *why,
            });
        }
    }
}

impl Look<'_> {
    fn is_so(&self, number: PlacementNumber, placed: &Placed, why: StopReason) -> bool {
        let host = self.cluster.hosts().get(&placed.host);
        let drain = host.and_then(|host| host.record.drain);
        let ends = self.workload.target().is_some_and(|one| one.kind.ends());
        match why {
            StopReason::HostDead => host.is_none_or(|host| host.state == HostState::Dead),
            StopReason::NotWanted => self.is_unwanted(number, placed, host),
            StopReason::Duplicate => self.has_better(number, placed, ends),
            StopReason::GivenUp => self.is_given_up(number, placed, ends),
            StopReason::Ended => ends,
            StopReason::Canary => self.workload.record.on_trial() == Some(placed.revision),
            StopReason::Overdue => drain.is_some_and(|drain| drain.deadline.is_some()),
            StopReason::Drained => drain.is_some(),
            // By what is left.
            StopReason::Replaced | StopReason::Moved | StopReason::Preempted => true,
        }
    }

    /// Its slot is beyond what is wanted; of a job, its run is over; with one on every host, its host is to
    /// have none, or has another.
    fn is_unwanted(&self, number: PlacementNumber, placed: &Placed, host: Option<&Host>) -> bool {
        let record = self.record;
        let Some(target) = self.workload.target() else {
            return true;
        };
        if record.held_bare() || record.stopped {
            return true;
        }
        let moved = self.workload.record.active_rollout().is_some();
        if record.wanted() == 0 && moved && !target.kind.ends() {
            // At zero nothing rests before the rollout has ended, which it may in this very plan.
            return true;
        }
        if target.kind.ends() {
            let mut runs = record.runs();
            return !runs.any(|run| run.has(placed.slot, number));
        }
        if target.spec.per_host() {
            return host.is_some_and(|host| self.bars(host) || self.has_another(number, placed));
        }
        // A rollout may have gone back in this very plan.
        let after = self.workload.revisions.get(&record.revision);
        let after = after.map_or(u32::MAX, |after| record.seats(&after.spec));
        placed.slot.0 > u64::from(record.seats(&target.spec).min(after))
    }

    /// A host that is to have none of what has one on every host.
    fn bars(&self, host: &Host) -> bool {
        let Some(target) = self.workload.target() else {
            return false;
        };
        if host.state == HostState::Dead {
            return host.record.drain.is_some();
        }
        let needs = place::needs(&target.spec, &target.features);
        let class = self.cluster.classes.get(host.class);
        let name = host.info().name.as_str();
        let mut constraints = target.spec.constraints.iter();
        class.is_none_or(|class| place::is_against_class(&target.spec, &needs, class))
            || !constraints.all(|one| place::name_passes(one, name))
    }

    /// Another of it is on its host, or in its slot, and does not end for the same reason.
    fn has_another(&self, number: PlacementNumber, placed: &Placed) -> bool {
        let host = self.cluster.hosts().get(&placed.host);
        let groups = host.map_or(&[][..], |host| host.groups_of(self.key)).iter();
        let there = groups.flat_map(|group| &group.slots);
        let there = there.map(|slot| slot.placement);
        let mut others = there.chain(self.workload.numbers_of(placed.slot));
        others.any(|other| {
            let why = self.part.stops.get(&other);
            other != number && why != Some(&StopReason::NotWanted)
        })
    }

    /// Another one in its slot stays, and serves if this one does. Of a job one is as good as another, and at
    /// zero one that rests.
    fn has_better(&self, number: PlacementNumber, placed: &Placed, ends: bool) -> bool {
        let serves = self.workload.is_ready(number);
        let mut others = self.workload.numbers_of(placed.slot);
        others.any(|other| {
            let stays = other != number && !self.part.stops.contains_key(&other);
            let rests = { self.workload.placements.get(&other) }.is_some_and(|one| one.standby);
            stays && (ends || !serves || rests || self.workload.is_ready(other))
        })
    }

    /// Its host will not start it again; of a job, the tries of its run may be used up before the host's are.
    fn is_given_up(&self, number: PlacementNumber, placed: &Placed, ends: bool) -> bool {
        let known = self.workload.reports.get(&number);
        let known = known.filter(|known| known.host == placed.host);
        known.is_some_and(|known| {
            let state = known.status.state;
            let failed = matches!(state, ReplicaState::Failed | ReplicaState::Rejected);
            known.status.given_up || ends && failed
        })
    }
}
