//! `deploy`: new revisions, all in one batch.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use wasmorch_api::messages::{DeployReply, Deployed};
use wasmorch_api::record::{Removed, Rollout};
use wasmorch_api::{
    ApiError, Digest, EventKind, Kind, PlacementNumber, Record, Revision, RevisionNumber,
    RolloutState, Route, Slot, WorkloadKey, WorkloadSpec,
};

use super::{Call, Outcome, remember};
use crate::REVISIONS_KEPT;
use crate::cluster::{Cluster, Workload};
use crate::planted::{self, Bug};
use crate::queries;
use crate::write::{EventDraft, Write};
use crate::{canary, cron, jobs, quota};

/// What is deployed, after the specs and the components have been checked.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct DeployInput {
    /// Each spec with the kind in force.
    pub workloads: Vec<(WorkloadSpec, Kind)>,
    /// Only if nothing named has changed since.
    pub if_index: Option<u64>,
    /// What components need that some hosts may lack, as far as they need any of it.
    pub features: BTreeMap<Digest, Vec<String>>,
}

/// Makes the revisions and records of a deploy. When nothing is different, nothing is written but that
/// this request was answered.
pub fn deploy(
    cluster: &Cluster,
    input: &DeployInput,
    call: &Call,
) -> Result<Outcome<DeployReply>, ApiError> {
    refuse_stale_index(cluster, input, call)?;
    refuse_route_conflicts(cluster, input, call)?;
    let mut writes = Vec::new();
    let mut events = Vec::new();
    let mut workloads = Vec::new();
    let mut changed = Vec::new();
    for (spec, kind) in &input.workloads {
        let key = call.key(&spec.name);
        let known = cluster.workload(&key);
        let removed = cluster.removed.get(&key);
        let removed = removed.filter(|_| !planted::is(Bug::NumbersForgotten));
        let mut step = one(known, removed, &key, spec, *kind, call)?;
        let revision = step.as_mut().and_then(|step| step.revision.as_mut());
        if let Some(revision) = revision {
            let features = input.features.get(&revision.artifact);
            revision.features = features.cloned().unwrap_or_default();
        }
        let record = step.as_ref().map_or_else(
            || known.map(|workload| workload.record.clone()),
            |step| Some(step.record.clone()),
        );
        let Some(record) = record else { continue };
        let deployed = Deployed {
            name: spec.name.clone(),
            revision: record.asked(),
            changed: step.is_some(),
            rollout: step
                .as_ref()
                .and_then(|_| queries::rollout_of_record(&record)),
            urls: queries::urls(cluster, &key, *kind, spec),
        };
        if let Some(mut step) = step {
            let reply = DeployReply {
                index: 0,
                workloads: vec![deployed.clone()],
            };
            remember(&mut step.record, "deploy", call, &reply);
            // The record first: a revision without its workload is a leftover.
            writes.push(Write::Record(Box::new(step.record)));
            writes.extend(removed.map(|_| Write::DeleteRemoved(key.clone())));
            writes.extend(
                step.revision
                    .map(|revision| Write::Revision(Box::new(revision))),
            );
            writes.extend(
                step.forgotten
                    .into_iter()
                    .map(|n| Write::DeleteRevision(key.clone(), n)),
            );
            events.extend(step.events);
        } else if call.request_id.is_some() {
            // What changes nothing is remembered too: a late copy would undo what came after.
            let mut record = record.clone();
            let reply = DeployReply {
                index: 0,
                workloads: vec![deployed.clone()],
            };
            remember(&mut record, "deploy", call, &reply);
            writes.push(Write::Record(Box::new(record)));
        }
        workloads.push(deployed);
        changed.push((record, spec));
    }
    quota::refuse_beyond(cluster, &call.namespace, &changed)?;
    Ok(Outcome {
        writes,
        events,
        reply: DeployReply {
            index: 0,
            workloads,
        },
    })
}

struct Step {
    record: Record,
    revision: Option<Revision>,
    forgotten: Vec<RevisionNumber>,
    events: Vec<EventDraft>,
}

/// One workload of a deploy; `None` when it is already as asked.
fn one(
    known: Option<&Workload>,
    removed: Option<&Removed>,
    key: &WorkloadKey,
    spec: &WorkloadSpec,
    kind: Kind,
    call: &Call,
) -> Result<Option<Step>, ApiError> {
    let Some(artifact) = spec.artifact.clone() else {
        return Err(ApiError::invalid(
            format!("{} names no component", spec.name),
            vec![wasmorch_api::Problem {
                at: "artifact".into(),
                line: None,
                column: None,
                what: "name the digest of uploaded bytes".into(),
            }],
        ));
    };
    let same_revision = known.and_then(Workload::asked).filter(|target| {
        target.kind == kind
            && target.artifact == artifact
            && target.spec.without_desired() == spec.without_desired()
    });
    if let (Some(workload), Some(_)) = (known, same_revision) {
        return Ok(rescale(workload, key, spec, call));
    }
    let newest = known
        .map(|workload| workload.record.newest)
        .or_else(|| removed.map(|removed| removed.newest))
        .unwrap_or_default();
    let number = newest.next();
    let changes = match known.and_then(Workload::asked) {
        Some(before) => differences(&before.spec, spec),
        None => vec!["first revision".to_owned()],
    };
    let revision = Revision {
        namespace: key.namespace.clone(),
        name: key.name.clone(),
        number,
        kind,
        artifact,
        features: Vec::new(),
        spec: spec.without_desired(),
        at: call.now,
        by: call.by.clone(),
        changes: changes.clone(),
    };
    let mut record = match known {
        Some(workload) => workload.record.clone(),
        None => first_record(key, removed, kind, call),
    };
    if record.stable.is_none() && known.is_some_and(serves) {
        record.stable = Some(record.revision);
    }
    let from = known.map(|_| record.stable.unwrap_or(record.revision));
    record.kind = kind;
    record.revision = number;
    record.newest = number;
    record.desired = if kind.ends() {
        spec.job.seats()
    } else {
        spec.desired_after(record.desired.max(1))
    };
    record.crash_loop.clear();
    record.updated = call.now;
    record.rollout = Some(Rollout {
        revision: number,
        from,
        state: RolloutState::Rolling,
        started: call.now,
        deadline: call.now.after(spec.update.progress_deadline.0),
        best: 0,
        canary: None,
        reason: None,
    });
    let before = known
        .and_then(Workload::target)
        .map(|target| (&target.spec, target.kind));
    take_runs(&mut record, before, (spec, kind), call);
    if let Some(base) = canary::base(known, record.stable, spec, kind) {
        record.put_on_trial(base);
    }
    record.stopped = false;
    let said = format!("revision {number}: {}", changes.join("; "));
    let mut events = vec![EventDraft::of(key, EventKind::Deployed, said).revision(number)];
    if record.rollout.is_some() {
        let said = format!("to revision {number}");
        let event = EventDraft::of(key, EventKind::RolloutStarted, said);
        events.push(event.revision(number));
    }
    let forgotten = known
        .map(|workload| too_old(workload, &record))
        .unwrap_or_default();
    Ok(Some(Step {
        record,
        revision: Some(revision),
        forgotten,
        events,
    }))
}

/// Whether a revision whose rollout goes on still has all of its replicas ready: for a first one
/// whoever deployed it has been told so, and it is what to go back to.
fn serves(workload: &Workload) -> bool {
    let record = &workload.record;
    let placed = workload.placements.iter();
    let ready = placed.filter(|(number, placed)| {
        placed.revision == record.revision && workload.is_ready(**number)
    });
    let slots: BTreeSet<Slot> = ready.map(|(_, placed)| placed.slot).collect();
    let goes_on = record.active_rollout().is_some() && !record.kind.ends();
    goes_on && record.wanted() > 0 && slots.len() as u64 >= u64::from(record.wanted())
}

/// The same revision with another count, or held at zero until now.
fn rescale(
    workload: &Workload,
    key: &WorkloadKey,
    spec: &WorkloadSpec,
    call: &Call,
) -> Option<Step> {
    let mut record = workload.record.clone();
    let desired = if record.kind.ends() {
        record.desired
    } else {
        spec.desired_after(record.desired)
    };
    if record.desired == desired && !record.stopped {
        return None;
    }
    // An ending kind has nothing else to change here than that it was stopped.
    if record.kind == Kind::Cron {
        cron::go_on(&mut record, call.now);
    }
    let said = format!("{} to {desired}", record.wanted());
    record.desired = desired;
    record.stopped = false;
    record.updated = call.now;
    record.crash_loop.clear();
    super::change::give_time(workload, &mut record, call);
    let events = vec![EventDraft::of(key, EventKind::Scaled, said)];
    Some(Step {
        record,
        revision: None,
        forgotten: Vec::new(),
        events,
    })
}

fn first_record(key: &WorkloadKey, removed: Option<&Removed>, kind: Kind, call: &Call) -> Record {
    Record {
        namespace: key.namespace.clone(),
        name: key.name.clone(),
        kind,
        revision: RevisionNumber(1),
        newest: RevisionNumber(1),
        stable: None,
        desired: 1,
        stopped: false,
        rollout: None,
        next_placement: removed.map_or(PlacementNumber(1), |removed| removed.next_placement),
        fresh_from: PlacementNumber(0),
        run: None,
        moves: Vec::new(),
        earlier: Vec::new(),
        scheduled: None,
        crash_loop: Vec::new(),
        homes: removed.map_or_else(BTreeMap::new, |removed| removed.homes.clone()),
        created: call.now,
        updated: call.now,
        answered: removed.map_or_else(Vec::new, |removed| removed.answered.clone()),
    }
}

/// What another revision means for what runs: a job begins anew, a cron workload's runs go on and its
/// times are the new schedule's, and whatever else runs on has no runs.
pub(super) fn take_runs(
    record: &mut Record,
    before: Option<(&WorkloadSpec, Kind)>,
    (spec, kind): (&WorkloadSpec, Kind),
    call: &Call,
) {
    let same_kind = before.filter(|(_, before)| *before == kind);
    if same_kind.is_none() {
        record.earlier.clear();
        if let Some(run) = record.run.as_mut().filter(|run| run.outcome.is_none()) {
            run.outcome = Some(jobs::over("replaced by another revision", call.now));
        }
    }
    match kind {
        Kind::Job => jobs::begin_alone(record, &spec.job, None),
        Kind::Cron => cron::take(record, same_kind.map(|(before, _)| before), spec, call.now),
        _ => {}
    }
}

/// Revisions beyond the number that is kept, but never one that is in use or may be gone back to.
fn too_old(workload: &Workload, record: &Record) -> Vec<RevisionNumber> {
    let in_use = |number: &RevisionNumber| {
        Some(*number) == record.stable
            || *number == record.revision
            || *number == record.asked()
            || workload
                .placements
                .values()
                .any(|placed| placed.revision == *number)
    };
    let excess = (workload.revisions.len() + 1).saturating_sub(REVISIONS_KEPT);
    workload
        .revisions
        .keys()
        .filter(|number| !in_use(number))
        .take(excess)
        .copied()
        .collect()
}

fn refuse_stale_index(cluster: &Cluster, input: &DeployInput, call: &Call) -> Result<(), ApiError> {
    let Some(shown) = input.if_index else {
        return Ok(());
    };
    let now = queries::index(
        cluster,
        input.workloads.iter().map(|(spec, _)| call.key(&spec.name)),
    );
    if now == shown {
        return Ok(());
    }
    Err(ApiError::new(
        wasmorch_api::ErrorCode::Conflict,
        "the workloads have changed since they were shown",
        format!("their index is {now} now, not {shown}"),
        "look again with `wasmorch plan`, then deploy with the index it prints",
    ))
}

/// One route belongs to one workload.
fn refuse_route_conflicts(
    cluster: &Cluster,
    input: &DeployInput,
    call: &Call,
) -> Result<(), ApiError> {
    let mut taken: Vec<(Route, WorkloadKey)> = Vec::new();
    for (key, workload) in cluster.workloads() {
        let replaced = input
            .workloads
            .iter()
            .any(|(spec, _)| call.key(&spec.name) == *key);
        // Those of a revision on trial are its own as soon as it is promoted.
        let specs = [workload.target(), workload.asked()].into_iter().flatten();
        for target in specs.filter(|_| !replaced) {
            let routes = { target.spec.routes.iter() }.filter_map(|text| Route::parse(text).ok());
            taken.extend(routes.map(|route| (route, key.clone())));
        }
    }
    for (spec, _) in &input.workloads {
        let key = call.key(&spec.name);
        for route in spec
            .routes
            .iter()
            .filter_map(|text| Route::parse(text).ok())
        {
            if let Some((_, owner)) = taken
                .iter()
                .find(|(other, owner)| *other == route && *owner != key)
            {
                return Err(ApiError::new(
                    wasmorch_api::ErrorCode::Conflict,
                    format!("route {route} of {key} is taken"),
                    format!("{owner} has it"),
                    format!("give one of the two another route, or remove {owner}"),
                ));
            }
            taken.push((route, key.clone()));
        }
    }
    Ok(())
}

/// What is different between two specs, a line for each value: `resources.memory: 64MiB -> 128MiB`.
pub(crate) fn differences(before: &WorkloadSpec, after: &WorkloadSpec) -> Vec<String> {
    changes(before, after)
        .into_iter()
        .map(|change| {
            format!(
                "{}: {} -> {}",
                change.path,
                short(&change.from),
                short(&change.to)
            )
        })
        .collect()
}

/// One value that is different.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Difference {
    pub(crate) path: String,
    pub(crate) from: Value,
    pub(crate) to: Value,
}

pub(crate) fn changes(before: &WorkloadSpec, after: &WorkloadSpec) -> Vec<Difference> {
    let json =
        |spec: &WorkloadSpec| serde_json::to_value(spec.without_desired()).unwrap_or_default();
    let mut found = Vec::new();
    compare("", &json(before), &json(after), &mut found);
    found
}

fn compare(path: &str, before: &Value, after: &Value, found: &mut Vec<Difference>) {
    if before == after {
        return;
    }
    if let (Value::Object(before), Value::Object(after)) = (before, after) {
        let mut names: Vec<&String> = before.keys().chain(after.keys()).collect();
        names.sort();
        names.dedup();
        for name in names {
            let path = if path.is_empty() {
                name.clone()
            } else {
                format!("{path}.{name}")
            };
            let get = |side: &serde_json::Map<String, Value>| {
                side.get(name).cloned().unwrap_or(Value::Null)
            };
            compare(&path, &get(before), &get(after), found);
        }
        return;
    }
    found.push(Difference {
        path: path.to_owned(),
        from: before.clone(),
        to: after.clone(),
    });
}

fn short(value: &Value) -> String {
    let text = match value {
        Value::Null => "nothing".to_owned(),
        Value::String(text) => match text.parse::<wasmorch_api::Digest>() {
            Ok(digest) => digest.short().to_owned(),
            Err(_) => text.clone(),
        },
        other => other.to_string(),
    };
    if text.chars().count() > 60 {
        text.chars().take(57).chain("...".chars()).collect()
    } else {
        text
    }
}
