//! `deploy`: new revisions, all in one batch.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use wasmorch_api::messages::{DeployReply, Deployed};
use wasmorch_api::record::{Hold, Removed, Rollout, Together};
use wasmorch_api::{
    ApiError, Digest, EventKind, Kind, Name, PlacementNumber, Record, Revision, RevisionNumber,
    Route, Slot, Timestamp, WorkloadKey, WorkloadSpec,
};

use super::{Call, Outcome, remember};
use crate::REVISIONS_KEPT;
use crate::cluster::{Cluster, Workload};
use crate::planted::{self, Bug};
use crate::queries;
use crate::write::{EventDraft, Write};
use crate::{atomic, canary, cron, hold, jobs, quota};

/// What is deployed, after the specs and the components have been checked.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct DeployInput {
    /// Each spec with the kind in force.
    pub workloads: Vec<(WorkloadSpec, Kind)>,
    /// Only if nothing named has changed since.
    pub if_index: Option<u64>,
    /// What components need that some hosts may lack, as far as they need any of it.
    pub features: BTreeMap<Digest, Vec<String>>,
    /// They complete together or go back together.
    pub atomic: bool,
}

/// Whether what depends on others waits for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Holding {
    /// It does.
    Waits,
    /// Not in a preview, which shows how it ends.
    Looks,
}

/// Makes the revisions and records of a deploy. When nothing is different, nothing is written but that
/// this request was answered.
pub fn deploy(
    cluster: &Cluster,
    input: &DeployInput,
    call: &Call,
) -> Result<Outcome<DeployReply>, ApiError> {
    deploy_as(cluster, input, call, Holding::Waits)
}

pub(crate) fn deploy_as(
    cluster: &Cluster,
    input: &DeployInput,
    call: &Call,
    holding: Holding,
) -> Result<Outcome<DeployReply>, ApiError> {
    refuse_stale_index(cluster, input, call)?;
    refuse_route_conflicts(cluster, input, call)?;
    atomic::refuse(input)?;
    hold::refuse(cluster, input, call)?;
    let mut steps = Vec::new();
    for (spec, kind) in &input.workloads {
        let key = call.key(&spec.name);
        let known = cluster.workload(&key);
        let removed = cluster.removed.get(&key);
        let removed = removed.filter(|_| !planted::is(Bug::NumbersForgotten));
        let mut step = one(known, removed, &key, (spec, *kind), call, holding)?;
        let revision = step.as_mut().and_then(|step| step.revision.as_mut());
        if let Some(revision) = revision {
            let features = input.features.get(&revision.artifact);
            revision.features = features.cloned().unwrap_or_default();
        }
        steps.push(step);
    }
    if input.atomic {
        bind(&mut steps);
    }
    let mut writes = Vec::new();
    let mut events = Vec::new();
    let mut workloads = Vec::new();
    let mut changed = Vec::new();
    for ((spec, kind), step) in input.workloads.iter().zip(steps) {
        let key = call.key(&spec.name);
        let known = cluster.workload(&key);
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
            let removed = cluster.removed.get(&key);
            let removed = removed.filter(|_| !planted::is(Bug::NumbersForgotten));
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
        changed.push((record, spec, *kind));
    }
    quota::refuse_beyond(cluster, &call.namespace, &changed)?;
    let named = |name: &Name| input.workloads.iter().any(|(spec, _)| spec.name == *name);
    for (spec, _) in &input.workloads {
        let Some(known) = cluster.workload(&call.key(&spec.name)) else {
            continue;
        };
        for (record, event) in atomic::leave(cluster, known, call.now) {
            if !named(&record.name) {
                writes.push(Write::Record(Box::new(record)));
                events.extend(event);
            }
        }
    }
    Ok(Outcome {
        writes,
        events,
        reply: DeployReply {
            index: 0,
            workloads,
        },
    })
}

/// Whatever has a new revision goes on or back with the others that have.
fn bind(steps: &mut [Option<Step>]) {
    let new = |step: &&mut Step| step.revision.is_some();
    let of = |step: &Step| (step.record.name.clone(), step.record.newest);
    let all: BTreeMap<_, _> = { steps.iter_mut().flatten() }
        .filter(new)
        .map(|step| of(step))
        .collect();
    if all.len() < 2 {
        return;
    }
    for step in steps.iter_mut().flatten().filter(new) {
        let (own, from_nothing) = (of(step).0, step.from_nothing);
        let stored = step.record.rollout.is_none();
        if stored {
            step.record.rollout = step.rollout.take();
        }
        let with = all.iter().filter(|(name, _)| **name != own);
        let with = with.map(|(name, number)| (name.clone(), *number)).collect();
        if let Some(rollout) = step.record.rollout.as_mut() {
            rollout.together = Some(Together {
                with,
                arrived: stored,
                from_nothing,
                desired: step.counted,
            });
        }
    }
}

struct Step {
    record: Record,
    revision: Option<Revision>,
    forgotten: Vec<RevisionNumber>,
    events: Vec<EventDraft>,
    /// The rollout of its revision, though nothing rolls of a cron workload unless others do with it.
    rollout: Option<Rollout>,
    /// Nothing of it ran before.
    from_nothing: bool,
    /// How many it had of what is no longer counted.
    counted: Option<u32>,
}

/// One workload of a deploy; `None` when it is already as asked.
fn one(
    known: Option<&Workload>,
    removed: Option<&Removed>,
    key: &WorkloadKey,
    (spec, kind): (&WorkloadSpec, Kind),
    call: &Call,
    holding: Holding,
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
    let again = known.filter(|workload| !atomic::was_undone(&workload.record));
    let same_revision = again.and_then(Workload::asked).filter(|target| {
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
    let served = known.and_then(serving);
    // What failed with others, and never served before, is nothing to go back to.
    let last = again.map(|workload| workload.record.revision);
    let from = known.filter(|workload| !workload.record.held_bare());
    let from = from.and_then(|_| record.stable.or(last));
    let desired = if kind.ends() {
        spec.job.seats()
    } else {
        spec.desired_after(record.desired_asked().max(1))
    };
    let held = !spec.depends_on.is_empty() && holding == Holding::Waits;
    record.newest = number;
    record.updated = call.now;
    let rollout = Rollout {
        hold: held.then_some(Hold {
            since: call.now,
            desired,
            until: None,
        }),
        ..Rollout::begin(number, from, call.now, spec.update.progress_deadline.0)
    };
    record.rollout = Some(rollout.clone());
    match served.filter(|_| held) {
        Some(serves) => {
            record.kind = serves.kind;
            record.revision = serves.number;
            // One that follows its load goes on to do so.
            let counts = !serves.kind.ends() && serves.spec.scale.is_none();
            if !kind.ends() && counts {
                record.desired = desired;
            }
        }
        None => {
            record.kind = kind;
            record.revision = number;
            record.desired = desired;
            record.crash_loop.clear();
        }
    }
    if !held {
        let before = known.and_then(Workload::target);
        let before = before.map(|target| (&target.spec, target.kind));
        take_runs(&mut record, before, (spec, kind), call.now);
        if let Some(base) = canary::base(known, record.stable, spec, kind) {
            record.put_on_trial(base);
        }
    }
    record.stopped = false;
    let said = format!("revision {number}: {}", changes.join("; "));
    let mut events = vec![EventDraft::of(key, EventKind::Deployed, said).revision(number)];
    if record.rollout.is_some() && !held {
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
        rollout: Some(rollout),
        from_nothing: served.is_none(),
        counted: { known.map(|known| &known.record) }
            .filter(|before| kind.ends() && !before.kind.ends())
            .map(|before| before.desired),
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

/// The revision that serves while another is held: the last good one when there is one, and none when
/// nothing runs.
fn serving(workload: &Workload) -> Option<&Revision> {
    let record = &workload.record;
    if record.stopped || record.held_bare() {
        return None;
    }
    let good = record.stable.filter(|_| record.active_rollout().is_some());
    let serves = workload.revisions.get(&good.unwrap_or(record.revision));
    serves.map(|revision| &**revision)
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
        record.desired_asked()
    } else {
        spec.desired_after(record.desired_asked())
    };
    if record.desired_asked() == desired && !record.stopped {
        return None;
    }
    // An ending kind has nothing else to change here than that it was stopped.
    if record.kind == Kind::Cron {
        cron::go_on(&mut record, call.now);
    }
    let said = format!("{} to {desired}", record.wanted());
    super::change::want(workload, &mut record, desired);
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
        rollout: None,
        from_nothing: false,
        counted: None,
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
pub(crate) fn take_runs(
    record: &mut Record,
    before: Option<(&WorkloadSpec, Kind)>,
    (spec, kind): (&WorkloadSpec, Kind),
    now: Timestamp,
) {
    let same_kind = before.filter(|(_, before)| *before == kind);
    if same_kind.is_none() {
        record.earlier.clear();
        if let Some(run) = record.run.as_mut().filter(|run| run.outcome.is_none()) {
            run.outcome = Some(jobs::over("replaced by another revision", now));
        }
    }
    match kind {
        Kind::Job => jobs::begin_alone(record, &spec.job, None),
        Kind::Cron => cron::take(record, same_kind.map(|(before, _)| before), spec, now),
        _ => {}
    }
}

/// Revisions beyond the number that is kept, but never one that is in use or may be gone back to.
fn too_old(workload: &Workload, record: &Record) -> Vec<RevisionNumber> {
    let in_use = |number: &RevisionNumber| {
        // A cron workload's new revision is stable at once, and may go back with others yet.
        Some(*number) == record.stable
            || Some(*number) == workload.record.stable
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
        // Those of a revision on trial, or held, are its own as soon as it is promoted, or begins.
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
