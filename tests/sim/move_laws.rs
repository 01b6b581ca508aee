//! What must hold when replicas are moved off a host that is drained.
//!
//! A second reading of `moves`: by what the leader knows, and by nothing of how it decides.

use std::collections::{BTreeMap, BTreeSet};

use wasmorch_api::{PlacementNumber, Slot, Timestamp, WorkloadKey};
use wasmorch_planner::{Cluster, Plan, StopReason};

/// What a plan does to replicas that are to run elsewhere, and must not.
pub(crate) fn wrong(cluster: &Cluster, plan: &Plan, now: Timestamp) -> Option<String> {
    let mut moved: BTreeMap<&WorkloadKey, BTreeSet<PlacementNumber>> = BTreeMap::new();
    let mut drained = moved.clone();
    for stop in &plan.stop {
        let record = cluster.hosts().get(&stop.host).map(|host| &host.record);
        let drain = record.and_then(|record| record.drain);
        match stop.why {
            StopReason::Overdue => {
                let deadline = drain.and_then(|drain| drain.deadline);
                if deadline.is_none_or(|deadline| now < deadline) {
                    return Some(format!(
                        "{} of {} is overdue, and the deadline is {deadline:?}",
                        stop.placement, stop.key
                    ));
                }
            }
            StopReason::Moved => {
                moved.entry(&stop.key).or_default().insert(stop.placement);
            }
            StopReason::Drained if drain.is_none() => {
                let (number, key, host) = (stop.placement, &stop.key, &stop.host);
                return Some(format!(
                    "{number} of {key} leaves {host}, which is not drained"
                ));
            }
            StopReason::Drained => {
                drained.entry(&stop.key).or_default().insert(stop.placement);
            }
            _ => {}
        }
    }
    let mut moved = moved.into_iter();
    let wrong = moved.find_map(|(key, numbers)| too_few(cluster, key, &numbers, false));
    let mut drained = drained.into_iter();
    wrong.or_else(|| drained.find_map(|(key, numbers)| too_few(cluster, key, &numbers, true)))
}

/// What is moved leaves `min_available` and what `max_unavailable` lets be missing; what ends with a
/// drained host, since it has no other, leaves `min_available`.
fn too_few(
    cluster: &Cluster,
    key: &WorkloadKey,
    moved: &BTreeSet<PlacementNumber>,
    ends: bool,
) -> Option<String> {
    let workload = cluster.workload(key)?;
    let spec = &workload.target()?.spec;
    let wanted = u64::from(workload.record.wanted());
    let last = if ends { u64::MAX } else { wanted };
    let serving = |without: &BTreeSet<PlacementNumber>| {
        let ready = workload.placements.iter().filter(|(number, placed)| {
            placed.slot.0 <= last && workload.is_ready(**number) && !without.contains(number)
        });
        ready
            .map(|(_, placed)| placed.slot)
            .collect::<BTreeSet<Slot>>()
    };
    let (before, after) = (serving(&BTreeSet::new()), serving(moved));
    let least = match ends {
        true => 0,
        false => wanted.saturating_sub(u64::from(spec.update.max_unavailable)),
    };
    let least = least.max(u64::from(spec.min_available)) as usize;
    (after.len() < before.len() && after.len() < least).then(|| {
        format!(
            "moving {moved:?} of {key} leaves {} serving of {}, and {least} must",
            after.len(),
            before.len()
        )
    })
}
