//! `deploy`: new revisions, all in one batch.

mod step;

use std::collections::BTreeMap;

use wasmorch_api::messages::{DeployReply, Deployed};
use wasmorch_api::record::{Removed, Together};
use wasmorch_api::{ApiError, Digest, Kind, Name, Record, WorkloadKey, WorkloadSpec};

use super::{Call, Outcome, remember, routes};
use crate::cluster::Cluster;
use crate::planted::{self, Bug};
use crate::queries;
use crate::write::Write;
use crate::{atomic, hold, quota};
pub(crate) use step::take_runs;
use step::{Step, one};

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
    let specs = input.workloads.iter();
    let specs: Vec<_> = specs
        .map(|(spec, _)| (call.key(&spec.name), spec))
        .collect();
    routes::refuse_automatic(cluster, &specs)?;
    routes::refuse_taken(cluster, &specs)?;
    atomic::refuse(input)?;
    hold::refuse(cluster, input, call)?;
    let mut steps = Vec::new();
    for (spec, kind) in &input.workloads {
        let key = call.key(&spec.name);
        let known = cluster.workload(&key);
        let mut step = one(
            known,
            removed(cluster, &key),
            &key,
            (spec, *kind),
            call,
            holding,
        )?;
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
        let reply = DeployReply {
            index: 0,
            workloads: vec![deployed.clone()],
        };
        let step = step.map(|mut step| {
            events.append(&mut step.events);
            step
        });
        writes.extend(stored(cluster, &record, step, call, &reply));
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

/// What to store of one workload.
fn stored(
    cluster: &Cluster,
    known: &Record,
    step: Option<Step>,
    call: &Call,
    reply: &DeployReply,
) -> Vec<Write> {
    let Some(mut step) = step else {
        // What changes nothing is remembered too: a late copy would undo what came after.
        let mut record = known.clone();
        remember(&mut record, "deploy", call, reply);
        let remembered = call.request_id.as_ref();
        let write = remembered.map(|_| Write::Record(Box::new(record)));
        return write.into_iter().collect();
    };
    let key = known.key();
    remember(&mut step.record, "deploy", call, reply);
    // The record first: a revision without its workload is a leftover.
    let mut writes = vec![Write::Record(Box::new(step.record))];
    // What hosts have still to remove is kept beside the record.
    if removed(cluster, &key).is_some_and(|removed| removed.removals.is_empty()) {
        writes.push(Write::DeleteRemoved(key.clone()));
    }
    let revision = step.revision.map(Box::new);
    writes.extend(revision.map(Write::Revision));
    let forgotten = step.forgotten.into_iter();
    writes.extend(forgotten.map(|number| Write::DeleteRevision(key.clone(), number)));
    writes
}

/// What is kept of a workload of this name that was removed.
fn removed<'a>(cluster: &'a Cluster, key: &WorkloadKey) -> Option<&'a Removed> {
    let removed = cluster.removed.get(key);
    removed.filter(|_| !planted::is(Bug::NumbersForgotten))
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
