//! The plan checker: written apart from the planner, so that one mistake is not made twice.
//!
//! It knows the rules and nothing of how a plan came about. Whole in tests and, for now, in front
//! of every dispatch.

use std::collections::{BTreeMap, BTreeSet};

use wasmorch_api::status::{Capacity, HostState};
use wasmorch_api::{HostId, PlacementNumber, RevisionNumber, Slot, WorkloadKey};

use crate::cluster::Cluster;
use crate::plan::{Plan, StopReason};

/// A rule that a plan breaks. Such a plan is not dispatched.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BrokenRule {
    /// More booked than there is.
    #[error("host {host} would be booked over its {dimension}")]
    OverCapacity {
        /// The host.
        host: HostId,
        /// What is short.
        dimension: &'static str,
    },
    /// A placement where none may be made.
    #[error("{workload} would start on host {host}, which is {why}")]
    BadHost {
        /// The workload.
        workload: WorkloadKey,
        /// The host.
        host: HostId,
        /// `dead`, `suspect`, `cordoned`, `unknown`.
        why: &'static str,
    },
    /// More live placements than wanted plus surge.
    #[error("{workload} would have {live} placements, more than {most}")]
    TooMany {
        /// The workload.
        workload: WorkloadKey,
        /// So many.
        live: u64,
        /// At most so many.
        most: u64,
    },
    /// A rollout would take more ready replicas away than promised.
    #[error("{workload} would keep {ready} ready slots, fewer than {least}")]
    TooFew {
        /// The workload.
        workload: WorkloadKey,
        /// So many.
        ready: u64,
        /// At least so many.
        least: u64,
    },
    /// A slot with more than a current placement and a successor.
    #[error("slot {slot} of {workload} would have {count} placements")]
    CrowdedSlot {
        /// The workload.
        workload: WorkloadKey,
        /// The seat.
        slot: Slot,
        /// So many.
        count: usize,
    },
    /// A placement number given twice.
    #[error("placement {number} of {workload} would be given twice")]
    NumberTwice {
        /// The workload.
        workload: WorkloadKey,
        /// The number.
        number: PlacementNumber,
    },
    /// A placement of a revision that does not exist.
    #[error("{workload} would run revision {revision}, which does not exist")]
    NoRevision {
        /// The workload.
        workload: WorkloadKey,
        /// The revision.
        revision: RevisionNumber,
    },
}

/// Every rule that `plan` breaks; empty when it may be dispatched.
pub fn check(cluster: &Cluster, plan: &Plan) -> Vec<BrokenRule> {
    let mut broken = Vec::new();
    starts_are_sound(cluster, plan, &mut broken);
    for key in cluster.workloads().keys() {
        slots_are_sound(cluster, plan, key, &mut broken);
    }
    capacity_is_kept(cluster, plan, &mut broken);
    broken
}

fn starts_are_sound(cluster: &Cluster, plan: &Plan, broken: &mut Vec<BrokenRule>) {
    let mut given = BTreeSet::new();
    for start in &plan.start {
        let why = match cluster.hosts().get(&start.host) {
            None => Some("unknown"),
            Some(host) if host.state == HostState::Dead => Some("dead"),
            Some(host) if host.state == HostState::Suspect => Some("suspect"),
            Some(host) if host.record.cordoned => Some("cordoned"),
            Some(_) => None,
        };
        if let Some(why) = why {
            broken.push(BrokenRule::BadHost {
                workload: start.key.clone(),
                host: start.host.clone(),
                why,
            });
        }
        let Some(workload) = cluster.workload(&start.key) else {
            continue;
        };
        let fresh = start.placement >= workload.record.next_placement
            && given.insert((&start.key, start.placement));
        if !fresh {
            broken.push(BrokenRule::NumberTwice {
                workload: start.key.clone(),
                number: start.placement,
            });
        }
        if !workload.revisions.contains_key(&start.revision) {
            broken.push(BrokenRule::NoRevision {
                workload: start.key.clone(),
                revision: start.revision,
            });
        }
    }
}

fn slots_are_sound(
    cluster: &Cluster,
    plan: &Plan,
    key: &WorkloadKey,
    broken: &mut Vec<BrokenRule>,
) {
    let Some(workload) = cluster.workload(key) else {
        return;
    };
    let stops: BTreeMap<PlacementNumber, StopReason> = plan
        .stop
        .iter()
        .filter(|stop| stop.key == *key)
        .map(|s| (s.placement, s.why))
        .collect();
    let starts: Vec<_> = plan
        .start
        .iter()
        .filter(|start| start.key == *key)
        .collect();
    if stops.is_empty() && starts.is_empty() {
        return;
    }
    let mut per_slot: BTreeMap<Slot, usize> = BTreeMap::new();
    let stays = workload
        .placements
        .iter()
        .filter(|(number, _)| !stops.contains_key(number));
    for slot in stays
        .map(|(_, placed)| placed.slot)
        .chain(starts.iter().map(|start| start.slot))
    {
        *per_slot.entry(slot).or_default() += 1;
    }
    for (slot, count) in per_slot.iter().filter(|(_, count)| **count > 2) {
        // What this leader has not heard of yet cannot be cleared away, and is not its doing.
        if starts.iter().any(|start| start.slot == *slot) {
            broken.push(BrokenRule::CrowdedSlot {
                workload: key.clone(),
                slot: *slot,
                count: *count,
            });
        }
    }
    let Some(target) = workload.target() else {
        return;
    };
    let record = plan
        .update
        .iter()
        .find(|record| record.key() == *key)
        .unwrap_or(&workload.record);
    let wanted = u64::from(record.wanted());
    let live: u64 = per_slot.values().map(|count| *count as u64).sum();
    let most = wanted + u64::from(target.spec.update.max_surge);
    let unheard = workload.placements.values().any(|placed| {
        !cluster
            .hosts()
            .get(&placed.host)
            .is_some_and(|host| host.known())
    });
    // Each wanted slot may be filled, even while another still holds the pair of a rollout that began
    // under a larger surge (a revert brings its own settings); only successors have to wait.
    let succeeds = |slot: &Slot| per_slot.get(slot).is_some_and(|count| *count > 1);
    let surges = starts
        .iter()
        .any(|start| start.slot.0 > wanted || succeeds(&start.slot));
    if surges && live > most.max(1) && !unheard {
        broken.push(BrokenRule::TooMany {
            workload: key.clone(),
            live,
            most,
        });
    }
    ready_is_kept(cluster, key, &stops, wanted, broken);
}

/// Stopping for a rollout must not take the last ready ones.
fn ready_is_kept(
    cluster: &Cluster,
    key: &WorkloadKey,
    stops: &BTreeMap<PlacementNumber, StopReason>,
    wanted: u64,
    broken: &mut Vec<BrokenRule>,
) {
    let Some(workload) = cluster.workload(key) else {
        return;
    };
    let Some(target) = workload.target() else {
        return;
    };
    let takes_ready = stops
        .iter()
        .any(|(number, why)| *why == StopReason::Replaced && workload.is_ready(*number));
    if !takes_ready {
        return;
    }
    let ready_slots: BTreeSet<Slot> = workload
        .placements
        .iter()
        .filter(|(number, _)| !stops.contains_key(number) && workload.is_ready(**number))
        .map(|(_, placed)| placed.slot)
        .filter(|slot| slot.0 <= wanted)
        .collect();
    let before: BTreeSet<Slot> = workload
        .placements
        .iter()
        // What a dead host ran is lost whether or not the plan says so.
        .filter(|(number, _)| {
            workload.is_ready(**number) && stops.get(*number) != Some(&StopReason::HostDead)
        })
        .map(|(_, placed)| placed.slot)
        .filter(|slot| slot.0 <= wanted)
        .collect();
    let least = wanted
        .saturating_sub(u64::from(target.spec.update.max_unavailable))
        .min(before.len() as u64);
    let ready = ready_slots.len() as u64;
    if ready < least {
        broken.push(BrokenRule::TooFew {
            workload: key.clone(),
            ready,
            least,
        });
    }
}

fn capacity_is_kept(cluster: &Cluster, plan: &Plan, broken: &mut Vec<BrokenRule>) {
    let stopped: BTreeSet<(&WorkloadKey, PlacementNumber)> = plan
        .stop
        .iter()
        .map(|stop| (&stop.key, stop.placement))
        .collect();
    let mut used: BTreeMap<&HostId, Capacity> = BTreeMap::new();
    let mut book = |host, key, revision| {
        let workload = cluster.workload(key);
        let Some(revision) = workload.and_then(|workload| workload.revisions.get(revision)) else {
            return;
        };
        let used: &mut Capacity = used.entry(host).or_default();
        let reserve = &revision.spec.resources.reserve;
        used.memory_bytes = used.memory_bytes.saturating_add(reserve.memory.0);
        used.cpu_millis = used.cpu_millis.saturating_add(reserve.cpu.0);
        used.replicas += 1;
    };
    for (key, workload) in cluster.workloads() {
        for (number, placed) in &workload.placements {
            if !stopped.contains(&(key, *number)) {
                book(&placed.host, key, &placed.revision);
            }
        }
    }
    for start in &plan.start {
        book(&start.host, &start.key, &start.revision);
    }
    let starts_on: BTreeSet<&HostId> = plan.start.iter().map(|start| &start.host).collect();
    for host in starts_on {
        let (Some(used), Some(known)) = (used.get(host), cluster.hosts().get(host)) else {
            continue;
        };
        let has = known.capacity();
        let over = [
            ("memory", used.memory_bytes > has.memory_bytes),
            (
                "cpu",
                used.cpu_millis > 0 && used.cpu_millis > has.cpu_millis,
            ),
            ("replicas", used.replicas > has.replicas),
        ];
        for (dimension, _) in over.into_iter().filter(|(_, over)| *over) {
            broken.push(BrokenRule::OverCapacity {
                host: host.clone(),
                dimension,
            });
        }
    }
}
