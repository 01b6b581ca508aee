//! How many of a workload there may be: in a slot, on a host, in a run, on trial, and in all; and how many
//! of them a plan must leave ready.

use std::collections::{BTreeMap, BTreeSet};

use wasmorch_api::status::HostState;
use wasmorch_api::{HostId, PlacementNumber, Record, RevisionNumber, Slot, WorkloadKey};

use super::{BrokenRule, Part};
use crate::cluster::{Cluster, Workload};
use crate::plan::StopReason;

pub(super) fn are_sound(
    cluster: &Cluster,
    (key, workload): (&WorkloadKey, &Workload),
    part: &Part<'_>,
    (record, wanted): (&Record, u64),
    whole: bool,
    broken: &mut Vec<BrokenRule>,
) {
    let mut per_slot: BTreeMap<Slot, usize> = BTreeMap::new();
    for start in &part.starts {
        *per_slot.entry(start.slot).or_default() += 1;
    }
    if whole {
        for (number, placed) in &workload.placements {
            if let Some(count) = per_slot.get_mut(&placed.slot) {
                *count += usize::from(!part.stops.contains_key(number));
            }
        }
    } else {
        for (slot, count) in &mut per_slot {
            let stay = workload.numbers_of(*slot);
            *count += stay
                .filter(|number| !part.stops.contains_key(number))
                .count();
        }
    }
    // What this leader has not heard of yet cannot be cleared away, and is not its doing: only
    // slots in which something starts are judged.
    for (slot, count) in per_slot.iter().filter(|(_, count)| **count > 2) {
        broken.push(BrokenRule::CrowdedSlot {
            workload: key.clone(),
            slot: *slot,
            count: *count,
        });
    }
    let Some(target) = workload.target() else {
        return;
    };
    let held = |slot: Slot| workload.numbers_of(slot).next().is_some();
    if target.spec.runs_once() {
        let twice = part.starts.iter().filter(|start| held(start.slot));
        broken.extend(twice.map(|start| BrokenRule::Twice {
            workload: key.clone(),
            slot: start.slot,
        }));
    }
    if target.kind.ends() {
        runs_are_sound(cluster, (key, workload), part, record, broken);
        return;
    }
    if workload.per_host() {
        hosts_are_sound(cluster, (key, workload), part, whole, broken);
        ready_is_kept(cluster, key, &part.stops, (wanted, u64::MAX), broken);
        return;
    }
    // Canaries stand over and above the surge, as many as were asked for.
    let trial = workload.record.on_trial();
    let canary = |revision: &RevisionNumber| Some(*revision) == trial;
    canaries_are_few(cluster, (key, workload), part, wanted, broken);
    let most = wanted + u64::from(target.spec.update.max_surge);
    // Each wanted slot may be filled, even while another still holds the pair of a rollout that began
    // under a larger surge (a revert brings its own settings); only successors have to wait.
    let canaries = part.starts.iter().filter(|start| canary(&start.revision));
    for start in canaries {
        per_slot.entry(start.slot).and_modify(|count| *count -= 1);
    }
    let held = |slot: &Slot| {
        let stay = workload.numbers_of(*slot);
        let stay = stay.filter(|number| !part.stops.contains_key(number));
        let placed = stay.filter_map(|number| workload.placements.get(&number));
        placed.filter(|placed| canary(&placed.revision)).count()
    };
    let mut successors = part.starts.iter().filter(|start| !canary(&start.revision));
    let surges = successors.any(|start| {
        let count = per_slot.get(&start.slot);
        start.slot.0 > wanted || count.is_some_and(|count| *count > 1 + held(&start.slot))
    });
    if surges {
        surge_is_kept(cluster, (key, workload), part, most.max(1), broken);
    }
    // At zero the seats are standbys', and nothing has to be ready.
    let promised = u64::from(record.wanted());
    ready_is_kept(cluster, key, &part.stops, (promised, wanted), broken);
}

/// No more than `most` live, canaries apart. It looks at every placement, so only what surges is asked.
fn surge_is_kept(
    cluster: &Cluster,
    (key, workload): (&WorkloadKey, &Workload),
    part: &Part<'_>,
    most: u64,
    broken: &mut Vec<BrokenRule>,
) {
    let trial = workload.record.on_trial();
    let canary = |revision: &RevisionNumber| Some(*revision) == trial;
    let stays = |number: &PlacementNumber| !part.stops.contains_key(number);
    let placed = workload.placements.iter();
    let stay = placed.filter(|(number, placed)| stays(number) && !canary(&placed.revision));
    let starts = part.starts.iter();
    let starts = starts.filter(|start| !canary(&start.revision));
    let live = (stay.count() + starts.count()) as u64;
    if live <= most {
        return;
    }
    let host = |placed: &crate::Placed| cluster.hosts().get(&placed.host);
    let dead =
        |placed: &crate::Placed| host(placed).is_some_and(|host| host.state == HostState::Dead);
    let unheard = { workload.placements.values() }
        .any(|placed| !dead(placed) && !host(placed).is_some_and(|host| host.known()));
    // What is on a dead host may wait there for its return.
    let lost = workload.placements.iter();
    let lost =
        lost.filter(|(number, placed)| dead(placed) && !canary(&placed.revision) && stays(number));
    if !unheard && live - lost.count() as u64 > most {
        broken.push(BrokenRule::TooMany {
            workload: key.clone(),
            live,
            most,
        });
    }
}

/// No more canaries than the revision on trial asks for, and each in a slot that is wanted.
fn canaries_are_few(
    cluster: &Cluster,
    (key, workload): (&WorkloadKey, &Workload),
    part: &Part<'_>,
    wanted: u64,
    broken: &mut Vec<BrokenRule>,
) {
    let Some(trial) = workload.record.on_trial() else {
        return;
    };
    let starts = part.starts.iter().filter(|start| start.revision == trial);
    let (starts, strays) = starts.fold((0, 0), |(starts, strays), start| {
        (starts + 1, strays + u64::from(start.slot.0 > wanted))
    });
    if starts == 0 {
        return;
    }
    let target = workload.revisions.get(&trial);
    let canary = target.and_then(|target| target.spec.update.canary.as_ref());
    let most = canary.map_or(0, |canary| u64::from(canary.replicas));
    let stay = workload.placements.iter().filter(|(number, placed)| {
        let heard = cluster.hosts().get(&placed.host);
        placed.revision == trial
            && heard.is_some_and(|host| host.known() && host.state != HostState::Dead)
            && !part.stops.contains_key(number)
    });
    let live = stay.count() as u64 + starts;
    if live > most || strays > 0 {
        broken.push(BrokenRule::TooMany {
            workload: key.clone(),
            live,
            most,
        });
    }
}

/// What starts belongs to a run that goes on, and no run has more replicas than it has seats, or
/// completions left.
fn runs_are_sound(
    cluster: &Cluster,
    (key, workload): (&WorkloadKey, &Workload),
    part: &Part<'_>,
    record: &Record,
    broken: &mut Vec<BrokenRule>,
) {
    let strays = part.starts.iter().filter(|start| {
        let mut runs = record.runs();
        !runs.any(|run| run.has(start.slot, start.placement))
    });
    let strays = strays.count() as u64;
    if strays > 0 {
        broken.push(BrokenRule::TooMany {
            workload: key.clone(),
            live: strays,
            most: 0,
        });
    }
    for run in record.runs() {
        let mine = |slot: Slot, number: PlacementNumber| run.has(slot, number);
        let starts = part.starts.iter();
        let starts = starts
            .filter(|start| mine(start.slot, start.placement))
            .count();
        if starts == 0 {
            continue;
        }
        let stays = workload.placements.iter().filter(|(number, placed)| {
            mine(placed.slot, **number) && !part.stops.contains_key(number)
        });
        // What this leader has not heard of yet may stand in a seat twice.
        let heard = stays.filter(|(_, placed)| {
            let host = cluster.hosts().get(&placed.host);
            host.is_some_and(|host| host.known() || host.state == HostState::Dead)
        });
        let (live, most) = ((heard.count() + starts) as u64, u64::from(run.wanted()));
        if live > most {
            broken.push(BrokenRule::TooMany {
                workload: key.clone(),
                live,
                most,
            });
        }
    }
}

/// With one on every host: what starts on a host finds nothing of the workload there that stays, but
/// for the one that it is the successor of.
fn hosts_are_sound(
    cluster: &Cluster,
    (key, workload): (&WorkloadKey, &Workload),
    part: &Part<'_>,
    whole: bool,
    broken: &mut Vec<BrokenRule>,
) {
    let surge = workload
        .target()
        .map_or(0, |target| target.spec.update.max_surge);
    let most = if surge > 0 { 2 } else { 1 };
    let mut per_host: BTreeMap<&HostId, usize> = BTreeMap::new();
    for start in &part.starts {
        *per_host.entry(&start.host).or_default() += 1;
    }
    for (host, count) in &mut per_host {
        if whole {
            let there = workload.placements.iter();
            let stay = there.filter(|(number, placed)| {
                placed.host == **host && !part.stops.contains_key(number)
            });
            *count += stay.count();
        } else if let Some(known) = cluster.hosts().get(*host) {
            let groups = known.groups_of(key).iter();
            let there = groups.flat_map(|group| &group.slots);
            *count += there
                .filter(|slot| !part.stops.contains_key(&slot.placement))
                .count();
        }
    }
    for (host, count) in per_host.into_iter().filter(|(_, count)| *count > most) {
        broken.push(BrokenRule::CrowdedHost {
            workload: key.clone(),
            host: host.clone(),
            count,
        });
    }
}

/// Stopping for a rollout or a drain must not take the last ready ones.
fn ready_is_kept(
    cluster: &Cluster,
    key: &WorkloadKey,
    stops: &BTreeMap<PlacementNumber, StopReason>,
    (promised, last): (u64, u64),
    broken: &mut Vec<BrokenRule>,
) {
    let Some(workload) = cluster.workload(key) else {
        return;
    };
    let Some(target) = workload.target() else {
        return;
    };
    // What a dead host ran is lost whether or not the plan says so.
    let serves = |number: &PlacementNumber| {
        let placed = workload.placements.get(number);
        let host = placed.and_then(|placed| cluster.hosts().get(&placed.host));
        host.is_some_and(|host| host.state != HostState::Dead) && workload.is_ready(*number)
    };
    let takes = |wanted: StopReason| {
        let mut stops = stops.iter();
        stops.any(|(number, why)| *why == wanted && serves(number))
    };
    let slots = |stays: &dyn Fn(&PlacementNumber) -> bool| -> u64 {
        let placed = workload.placements.iter();
        let ready: BTreeSet<Slot> = placed
            .filter(|(number, placed)| placed.slot.0 <= last && serves(number))
            .filter(|(number, _)| stays(number))
            .map(|(_, placed)| placed.slot)
            .collect();
        ready.len() as u64
    };
    let mut judge = |before: u64, ready: u64, least: u64| {
        let least = least.min(before);
        if ready < least {
            broken.push(BrokenRule::TooFew {
                workload: key.clone(),
                ready,
                least,
            });
        }
    };
    let moves = takes(StopReason::Moved);
    if moves || takes(StopReason::Replaced) {
        let may_lack = u64::from(target.spec.update.max_unavailable);
        // What ends for another reason (a drain's deadline, a higher priority) is not this rule's.
        let chosen = |why: &StopReason| matches!(why, StopReason::Moved | StopReason::Replaced);
        let before = slots(&|number| stops.get(number).is_none_or(chosen));
        let ready = slots(&|number| !stops.contains_key(number));
        judge(before, ready, promised.saturating_sub(may_lack));
    }
    if moves || takes(StopReason::Drained) {
        let drained = |why: &StopReason| matches!(why, StopReason::Moved | StopReason::Drained);
        let ready = slots(&|number| !stops.get(number).is_some_and(drained));
        judge(
            slots(&|_| true),
            ready,
            u64::from(target.spec.min_available),
        );
    }
}
