//! What a deploy would change, without changing it.
//!
//! Owns the look ahead: the deploy is carried out on a copy of what it concerns, then the planner's own
//! plans, one after the other, as if every replica became ready at once. So what is shown is what
//! the same code would do, to the end of the rollout and not only its first step.
//!
//! Known limits: other workloads that wait for room, and would go first by priority, are not asked. A
//! rollout of very many replicas is followed for a bounded number of steps; how many slots are left then
//! is told.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};
use wasmorch_api::messages::Unplaced;
use wasmorch_api::{
    HostId, Name, PlacementNumber, ReplicaId, ReplicaState, ReplicaStatus, Slot, Timestamp,
    WorkloadKey, WorkloadSpec,
};

use crate::canary;
use crate::cluster::{Cluster, Reported, Workload};
use crate::commands::Difference;
use crate::commands::{self, Call, DeployInput, Holding};
use crate::explain;
use crate::plan::{Stop, StopReason};
use crate::queries::{host_name, index};
use crate::write::Write;

/// So many plans are followed, and so many seats looked at in all of them together.
const STEPS_MAX: usize = 500;
const SEATS_MAX: usize = 200_000;
/// So many starts, stops and moves are named, each.
const NAMED_MAX: usize = 500;

/// Where each slot runs, by the placement that would stay.
type Seats = BTreeMap<(WorkloadKey, Slot), (PlacementNumber, HostId)>;

/// What a deploy would do, without doing it.
pub fn of_deploy(
    cluster: &Cluster,
    input: &DeployInput,
    call: &Call,
) -> Result<Value, wasmorch_api::ApiError> {
    let outcome = commands::deploy_as(cluster, input, call, Holding::Looks)?;
    let keys = input.workloads.iter();
    let keys: Vec<WorkloadKey> = keys.map(|(spec, _)| call.key_of(&spec.name)).collect();
    let before = seats(cluster, &keys);
    // What a namespace with a quota holds only the whole knows.
    let limited = cluster.namespace(&call.namespace).is_some();
    let mut after = if limited {
        cluster.clone()
    } else {
        cluster.excerpt(&keys)
    };
    let mut played = play(&mut after, &keys, outcome.writes.clone(), call.now);
    let waits = |after: &Cluster| {
        let mut workloads = keys.iter().filter_map(|key| after.workload(key));
        workloads.any(|one| one.unplaced.is_some())
    };
    let highest = input.workloads.iter().map(|(spec, _)| spec.priority).max();
    let lower = { &cluster.priorities }.range(..highest.unwrap_or(0)).next();
    if !limited && lower.is_some() && waits(&after) {
        // And whose room it could have.
        after = cluster.clone();
        played = play(&mut after, &keys, outcome.writes, call.now);
    }
    let left = played.left;
    let then = seats(&after, &keys);
    let mut changes = Vec::new();
    let (mut granted, mut revoked) = (Vec::new(), Vec::new());
    for ((spec, _), key) in input.workloads.iter().zip(&keys) {
        let before = cluster.workload(key).and_then(Workload::asked);
        let before = before.map(|target| &target.spec);
        changes.extend(changes_of(cluster, key, before, spec));
        let had = before.map(|spec| grants(key, spec)).unwrap_or_default();
        let has = grants(key, spec);
        granted.extend(has.iter().filter(|grant| !had.contains(grant)).cloned());
        revoked.extend(had.into_iter().filter(|grant| !has.contains(grant)));
    }
    let (mut start, mut stop, mut moves) = (Vec::new(), Vec::new(), Vec::new());
    let slots: BTreeSet<&(WorkloadKey, Slot)> = before.keys().chain(then.keys()).collect();
    for at in slots {
        let (key, slot) = at;
        let name = |seat: Option<&(PlacementNumber, HostId)>| {
            seat.map(|(_, host)| host_name(&after, host))
        };
        let (from, to) = (before.get(at), then.get(at));
        let same = from.map(|seat| seat.0) == to.map(|seat| seat.0);
        let list = match (from, to) {
            _ if same => continue,
            (None, _) => &mut start,
            (_, None) => &mut stop,
            _ => &mut moves,
        };
        let (from, to) = (name(from), name(to));
        let host = to.clone().or(from.clone());
        let mut step = json!({"workload": key.to_string(), "slot": slot, "host": host});
        if let (Some(from), Some(to)) = (from, to) {
            step["from"] = json!(from);
            step["to"] = json!(to);
        }
        list.push(step);
    }
    for one in &played.preempted {
        let from = host_name(&after, &one.host);
        let (workload, slot, why) = (one.key.to_string(), one.slot, one.why.words());
        let mut step = json!({"workload": workload, "slot": slot, "host": from, "why": why});
        match goes_to(&after, one) {
            None => stop.push(step),
            Some(to) => {
                step["host"] = json!(to);
                step["from"] = json!(from);
                step["to"] = json!(to);
                moves.push(step);
            }
        }
    }
    let named = [&start, &stop, &moves].map(|list| list.len().saturating_sub(NAMED_MAX));
    for list in [&mut start, &mut stop, &mut moves] {
        list.truncate(NAMED_MAX);
    }
    let unplaced = keys.iter().filter_map(|key| explain::unplaced(&after, key));
    // What makes room and fits nowhere else stays unplaced no less.
    let others: BTreeSet<&WorkloadKey> = played.preempted.iter().map(|one| &one.key).collect();
    let others = others.into_iter().filter(|key| !keys.contains(key));
    let others = others.filter_map(|key| {
        let slots = |cluster: &Cluster| Some(cluster.workload(key)?.unplaced.as_ref()?.slots());
        let more = slots(&after) > slots(cluster);
        { explain::unplaced(&after, key) }.filter(|_| more)
    });
    let unplaced: Vec<Unplaced> = unplaced.chain(others).collect();
    Ok(json!({
        "index": index(cluster, keys.iter().cloned()), "changes": changes, "start": start,
        "stop": stop, "move": moves, "more": left + named.iter().sum::<usize>(),
        "unplaced": unplaced, "granted": granted, "revoked": revoked,
    }))
}

/// Where the slot of what has made room runs then.
fn goes_to(after: &Cluster, stop: &Stop) -> Option<Name> {
    let workload = after.workload(&stop.key)?;
    let newest = workload.numbers_of(stop.slot).last()?;
    let placed = workload.placements.get(&newest)?;
    Some(host_name(after, &placed.host))
}

/// Each slot's placement: of two the later one.
fn seats(cluster: &Cluster, keys: &[WorkloadKey]) -> Seats {
    let mut seats = Seats::new();
    for key in keys {
        let Some(workload) = cluster.workload(key) else {
            continue;
        };
        for (number, placed) in &workload.placements {
            let at = (key.clone(), placed.slot);
            seats.insert(at, (*number, placed.host.clone()));
        }
    }
    seats
}

/// What came of it.
struct Played {
    /// Slots that it did not come to.
    left: usize,
    /// What others lose.
    preempted: Vec<Stop>,
}

/// Carries the writes out, then plans and carries out until there is nothing more to do.
fn play(after: &mut Cluster, keys: &[WorkloadKey], writes: Vec<Write>, now: Timestamp) -> Played {
    // Sequences only have to be new; the copy is thrown away.
    let mut sequence = u64::MAX / 2;
    after.commit(writes, sequence, now);
    // Shown to its end: as if canaries had been promoted.
    let promoted = keys.iter().filter_map(|key| {
        let workload = after.workload(key)?;
        let mut record = workload.record.clone();
        record.on_trial()?;
        canary::promote(&mut record, workload, now);
        Some(Write::Record(Box::new(record)))
    });
    let promoted: Vec<Write> = promoted.collect();
    sequence += promoted.len() as u64;
    after.commit(promoted, sequence, now);
    let mut played = Played {
        left: 0,
        preempted: Vec::new(),
    };
    let mut looked = 0;
    for _ in 0..STEPS_MAX {
        let plan = after.plan(now);
        let ended = plan.stop.iter();
        let ended = ended.filter(|stop| stop.why == StopReason::Preempted);
        played.preempted.extend(ended.cloned());
        let mine = |key: &WorkloadKey| keys.contains(key);
        let moves = plan.start.iter().any(|start| mine(&start.key))
            || plan.stop.iter().any(|stop| mine(&stop.key));
        let updates = !plan.update.is_empty();
        let writes = after.writes(plan);
        if writes.is_empty() || !moves && !updates {
            return played;
        }
        sequence += writes.len() as u64;
        after.commit(writes, sequence, now);
        for key in keys {
            looked += as_if_ready(after, key);
        }
        if looked > SEATS_MAX {
            break;
        }
    }
    let old = keys
        .iter()
        .filter_map(|key| after.workload(key))
        .map(|one| {
            let slots = one.placements.values();
            let old = slots.filter(|placed| placed.revision != one.record.revision);
            old.map(|placed| placed.slot)
                .collect::<BTreeSet<Slot>>()
                .len()
        });
    played.left = old.sum();
    played
}

/// Every replica of the workload that a set holds serves, and has for long; every other has ended.
fn as_if_ready(after: &mut Cluster, key: &WorkloadKey) -> usize {
    let Some(workload) = after.workload(key) else {
        return 0;
    };
    let gone: Vec<PlacementNumber> = workload.leaving.iter().copied().collect();
    let placed: Vec<Reported> = workload
        .placements
        .iter()
        .filter(|(number, _)| !workload.is_ready(**number))
        .map(|(number, placed)| Reported {
            host: placed.host.clone(),
            status: ReplicaStatus {
                ready: true,
                ..ReplicaStatus::new(
                    key,
                    ReplicaId {
                        slot: placed.slot,
                        placement: *number,
                        start: 1,
                    },
                    placed.revision,
                    (ReplicaState::Running, Timestamp(0)),
                )
            },
            ready_at: Some(Timestamp(0)),
            running_at: Some(Timestamp(0)),
        })
        .collect();
    let looked = workload.placements.len();
    for number in gone {
        after.remove_report(key, number);
    }
    for report in placed {
        after.put_report(key, report);
    }
    after.agenda.whole(key);
    looked
}

fn changes_of(
    cluster: &Cluster,
    key: &WorkloadKey,
    before: Option<&WorkloadSpec>,
    after: &WorkloadSpec,
) -> Vec<Value> {
    let Some(before) = before else {
        return vec![json!({"op": "add", "path": key.to_string(), "from": null, "to": after})];
    };
    let mut lines: Vec<Value> = commands::changes(before, after)
        .into_iter()
        .map(|Difference { path, from, to }| {
            let op = match (&from, &to) {
                (Value::Null, _) => "add",
                (_, Value::Null) => "remove",
                _ => "change",
            };
            json!({"op": op, "path": format!("{key}.{path}"), "from": from, "to": to})
        })
        .collect();
    let desired = cluster
        .workload(key)
        .map(|workload| workload.record.desired);
    if let (Some(from), Some(to)) = (desired, after.replicas_named())
        && from != to
    {
        let path = format!("{key}.replicas");
        lines.push(json!({"op": "change", "path": path, "from": from, "to": to}));
    }
    lines
}

/// A spec's capabilities as `--grant` lines, with the workload in front.
fn grants(key: &WorkloadKey, spec: &WorkloadSpec) -> Vec<String> {
    wasmorch_api::manifest::grant_flags(&spec.bindings)
        .into_iter()
        .map(|flag| format!("{key}: {flag}"))
        .collect()
}
