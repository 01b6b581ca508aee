//! `scale`, `stop`, `start`, `restart`, `rm`: changes that make no revision.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use wasmorch_api::messages::{ChangeReply, ChangeRequest};
use wasmorch_api::record::{Removed, Rollout};
use wasmorch_api::spec::Overlap;
use wasmorch_api::{
    ApiError, ErrorCode, EventKind, Kind, Record, Revision, RolloutState, WorkloadKey, stores,
};

use super::{Call, Outcome, data, find, leave, remember};
use crate::cluster::{Cluster, Workload};
use crate::planted::{self, Bug};
use crate::queries;
use crate::write::{EventDraft, Write};
use crate::{atomic, cron, jobs, quota, removals};

type Changed = Result<Outcome<ChangeReply>, ApiError>;

fn reply(cluster: &Cluster, workload: &Workload, record: &Record, changed: bool) -> ChangeReply {
    ChangeReply {
        workload: record.name.clone(),
        desired: record.wanted(),
        state: queries::state_of(cluster, workload, record),
        changed,
        note: None,
        kept: Vec::new(),
    }
}

/// Stores the record when it is different, and the answer with it. The answer to a request that can
/// be told from others is stored although nothing changes: a copy of it that comes late, after other
/// changes, must not be taken for a new one.
fn finish(
    cluster: &Cluster,
    workload: &Workload,
    record: Record,
    verb: &str,
    call: &Call,
    event: EventDraft,
) -> Outcome<ChangeReply> {
    finish_noting(cluster, workload, record, (verb, None), call, event)
}

/// The same, with a word beside the answer.
fn finish_noting(
    cluster: &Cluster,
    workload: &Workload,
    mut record: Record,
    (verb, note): (&str, Option<String>),
    call: &Call,
    event: EventDraft,
) -> Outcome<ChangeReply> {
    let changed = record != workload.record;
    let reply = ChangeReply {
        note,
        ..reply(cluster, workload, &record, changed)
    };
    if changed {
        record.updated = call.now;
    }
    remember(&mut record, verb, call, &reply);
    let writes = if record == workload.record {
        Vec::new()
    } else {
        vec![Write::Record(Box::new(record))]
    };
    Outcome {
        writes,
        events: changed.then_some(event).into_iter().collect(),
        reply,
    }
}

/// Sets how many replicas are wanted. Nothing rolls.
pub fn scale(cluster: &Cluster, request: &ChangeRequest, call: &Call) -> Changed {
    let key = call.key(&request.workload);
    let workload = find(cluster, &key)?;
    let desired = request.desired.ok_or_else(|| {
        ApiError::new(
            ErrorCode::Invalid,
            "scale names no count",
            "",
            "pass `desired`",
        )
    })?;
    if desired > wasmorch_api::manifest::COUNT_MAX {
        return Err(ApiError::new(
            ErrorCode::Invalid,
            format!("{desired} replicas are more than a workload may have"),
            format!("the most is {}", wasmorch_api::manifest::COUNT_MAX),
            "",
        ));
    }
    if workload.record.kind.ends() {
        return Err(ApiError::new(
            ErrorCode::Invalid,
            format!(
                "{} is a {}: it has no replicas to scale",
                key.name, workload.record.kind
            ),
            "",
            format!("run it once more with `wasmorch start {}`", key.name),
        ));
    }
    if workload.per_host() {
        return Err(ApiError::new(
            ErrorCode::Invalid,
            format!("{} has one replica on every host", key.name),
            "their number follows the hosts",
            "deploy it with `replicas = N` to have so many",
        ));
    }
    let mut record = workload.record.clone();
    let whole = desired;
    let desired = within(workload.target(), whole);
    let said = format!("{} to {desired}", record.wanted());
    if record.desired_asked() != within(workload.asked(), whole) {
        // A larger count is something to wait for: the running rollout gets time for it.
        give_time(workload, &mut record, call);
    }
    want(workload, &mut record, whole);
    within_quota(cluster, workload, &record)?;
    let remembered = record.stopped.then(|| {
        let kept = record.desired_asked();
        format!(
            "{kept} remembered: it is stopped, and `wasmorch start {}` brings them",
            key.name
        )
    });
    let notes = [remembered.clone(), note(workload, whole)];
    let notes: Vec<String> = notes.into_iter().flatten().collect();
    let note = (!notes.is_empty()).then(|| notes.join("; "));
    let said = remembered.unwrap_or(said);
    let event = EventDraft::of(&key, EventKind::Scaled, said);
    let verb = ("scale", note);
    Ok(finish_noting(cluster, workload, record, verb, call, event))
}

/// A workload that follows its load takes a person's count within its bounds, and goes on from there.
fn note(workload: &Workload, asked: u32) -> Option<String> {
    let scale = workload.target()?.spec.scale.as_ref()?;
    let (min, max) = (scale.min, scale.max);
    let beyond = if scale.within(asked) == asked {
        String::new()
    } else {
        format!("{asked} is beyond {min} to {max}, and ")
    };
    Some(format!(
        "{beyond}its load moves it on from there: deploy it with `replicas` instead of `scale` to hold a count"
    ))
}

/// So many are wanted, now and after what is held, each within its own revision's bounds.
pub(super) fn want(workload: &Workload, record: &mut Record, desired: u32) {
    record.desired = within(workload.target(), desired);
    let rollout = record.rollout.as_mut();
    if let Some(hold) = rollout.and_then(|rollout| rollout.hold.as_mut()) {
        hold.desired = within(workload.asked(), desired);
    }
}

fn within(revision: Option<&Arc<Revision>>, desired: u32) -> u32 {
    let scale = revision.and_then(|revision| revision.spec.scale.as_ref());
    scale.map_or(desired, |scale| scale.within(desired))
}

/// Holds the workload at zero; the record stays.
pub fn stop(cluster: &Cluster, request: &ChangeRequest, call: &Call) -> Changed {
    let key = call.key(&request.workload);
    let workload = find(cluster, &key)?;
    let mut record = workload.record.clone();
    record.stopped = true;
    if let Some(rollout) = record.rollout.as_mut().filter(|one| !one.state.ended()) {
        // Nobody waits for it any more.
        rollout.together = None;
    }
    let event = EventDraft::of(&key, EventKind::Stopped, "held at zero until it is started");
    let mut done = finish(cluster, workload, record, "stop", call, event);
    leave(cluster, workload, call, &mut done.writes, &mut done.events);
    Ok(done)
}

/// Undoes `stop`; or runs a job once now.
pub fn start(cluster: &Cluster, request: &ChangeRequest, call: &Call) -> Changed {
    let key = call.key(&request.workload);
    let workload = find(cluster, &key)?;
    let mut record = workload.record.clone();
    if record.kind.ends() {
        run_now(workload, &mut record, request, call)?;
        // A job that failed as a first revision is judged anew by this run.
        if let Some(rollout) = record
            .rollout
            .as_mut()
            .filter(|one| one.state == RolloutState::Failed && one.together.is_none())
        {
            rollout.state = RolloutState::Rolling;
            rollout.reason = None;
        }
        if record.kind == Kind::Cron && record.stopped && record.held().is_none() {
            // It goes on by itself, and nothing of it rolls.
            record.rollout = None;
        }
    } else if request.args.is_some() {
        return Err(ApiError::new(
            ErrorCode::Invalid,
            "arguments can be given to a job's start only",
            format!("{} is a {}", key.name, record.kind),
            "set `args` in its spec and deploy it",
        ));
    }
    let undone = atomic::was_undone(&record);
    if let Some(rollout) = record.rollout.as_mut().filter(|_| undone) {
        // From here on it is on its own, and may complete though the others went back.
        rollout.together = None;
    }
    record.crash_loop.clear();
    give_time(workload, &mut record, call);
    let left = undone || record.rollout.is_none();
    let proves = go_on(workload, &mut record, call);
    within_quota(cluster, workload, &record)?;
    let event = EventDraft::of(&key, EventKind::Started, "as asked");
    let mut done = finish(cluster, workload, record, "start", call, event);
    done.events.extend(proves);
    if left {
        leave(cluster, workload, call, &mut done.writes, &mut done.events);
    }
    Ok(done)
}

/// Ends that it is stopped. What a rollback has chosen meanwhile proves itself now, as it would have then.
pub(super) fn go_on(workload: &Workload, record: &mut Record, call: &Call) -> Option<EventDraft> {
    let stopped = std::mem::take(&mut record.stopped);
    let revision = record.revision;
    let chosen = record.stable.filter(|stable| *stable != revision);
    let target = workload.revisions.get(&revision)?;
    if !stopped || chosen.is_none() || record.rollout.is_some() || record.kind == Kind::Cron {
        return None;
    }
    let patience = target.spec.update.progress_deadline.0;
    record.rollout = Some(Rollout::begin(revision, chosen, call.now, patience));
    let said = format!("to revision {revision}");
    let event = EventDraft::of(&record.key(), EventKind::RolloutStarted, said);
    Some(event.revision(revision))
}

fn within_quota(cluster: &Cluster, workload: &Workload, record: &Record) -> Result<(), ApiError> {
    let Some(asked) = workload.asked() else {
        return Ok(());
    };
    let changed = [(record.clone(), &asked.spec, asked.kind)];
    quota::refuse_beyond(cluster, &record.namespace, &changed)
}

/// Runs a job once more, or a cron workload out of its turn; a cron workload that was stopped only
/// waits for its next time again.
fn run_now(
    workload: &Workload,
    record: &mut Record,
    request: &ChangeRequest,
    call: &Call,
) -> Result<(), ApiError> {
    let Some(target) = workload.target() else {
        return Ok(());
    };
    let job = &target.spec.job;
    if record.kind != Kind::Cron {
        refuse_while_running(record, "a job runs once at a time", 1)?;
        jobs::begin_alone(record, job, request.args.clone());
        return Ok(());
    }
    if record.stopped {
        if request.args.is_some() {
            return Err(ApiError::new(
                ErrorCode::Conflict,
                format!("{} is stopped: starting it runs nothing yet", record.name),
                "arguments are for a run",
                format!(
                    "start it without, and then again with them: `wasmorch start {}`",
                    record.name
                ),
            ));
        }
        cron::go_on(record, call.wall);
        return Ok(());
    }
    match target.spec.overlap.unwrap_or_default() {
        Overlap::Replace => jobs::begin_alone(record, job, request.args.clone()),
        Overlap::Skip => {
            refuse_while_running(record, "overlap is \"skip\": one run at a time", 1)?;
            jobs::begin_alone(record, job, request.args.clone());
        }
        Overlap::Allow => {
            refuse_while_running(record, "so many runs at once are allowed", cron::RUNS_MOST)?;
            let run = jobs::next_run(record, job, request.args.clone());
            jobs::begin(record, run);
        }
    }
    Ok(())
}

fn refuse_while_running(record: &Record, why: &str, most: usize) -> Result<(), ApiError> {
    if record.runs().count() < most {
        return Ok(());
    }
    Err(ApiError::new(
        ErrorCode::Conflict,
        format!("{} is still running", record.name),
        why,
        format!(
            "wait for it, or end it with `wasmorch stop {}`",
            record.name
        ),
    ))
}

/// The running rollout's deadline begins anew.
pub(super) fn give_time(workload: &Workload, record: &mut Record, call: &Call) {
    // The revision that rolls, on trial or not; a bake's deadline lies further off.
    let Some(target) = workload.asked() else {
        return;
    };
    if let Some(rollout) = record
        .rollout
        .as_mut()
        .filter(|rollout| !rollout.state.ended())
    {
        let patience = target.spec.update.progress_deadline.0;
        rollout.deadline = rollout.deadline.max(call.now.after(patience));
    }
}

/// Rolls the same revision: every replica is replaced, within the update settings.
pub fn restart(cluster: &Cluster, request: &ChangeRequest, call: &Call) -> Changed {
    let key = call.key(&request.workload);
    let workload = find(cluster, &key)?;
    let mut record = workload.record.clone();
    if record.kind.ends() {
        return Err(ApiError::new(
            ErrorCode::Invalid,
            format!("{} is a {}: it is not restarted", key.name, record.kind),
            "",
            format!("run it once more with `wasmorch start {}`", key.name),
        ));
    }
    if record.stopped {
        return Err(ApiError::new(
            ErrorCode::Conflict,
            format!("{} is stopped", key.name),
            "there is nothing to restart",
            format!("start it with `wasmorch start {}`", key.name),
        ));
    }
    if let Some(rollout) = record.active_rollout() {
        return Err(super::revise::in_the_way(&record, rollout));
    }
    let patience = { workload.target() }.map(|target| target.spec.update.progress_deadline.0);
    if !planted::is(Bug::RestartForgotten) {
        record.fresh_from = record.next_placement;
    }
    record.crash_loop.clear();
    if record.desired == 0 && { workload.target() }.is_some_and(|target| target.spec.standbys() > 0)
    {
        // What rests is woken: a standby proves nothing.
        record.desired = 1;
    }
    let (revision, patience) = (record.revision, patience.unwrap_or_default());
    record.rollout = Some(Rollout::begin(revision, Some(revision), call.now, patience));
    let event =
        EventDraft::of(&key, EventKind::RolloutStarted, "restart").revision(record.revision);
    Ok(finish(cluster, workload, record, "restart", call, event))
}

/// Removes the workload with its history. Its replicas drain and stop.
pub fn rm(cluster: &Cluster, request: &ChangeRequest, call: &Call) -> Changed {
    let key = call.key(&request.workload);
    let workload = find(cluster, &key)?;
    if request.data {
        data::check(cluster, workload, &key)?;
    }
    // The sets that name it are the next plan's to write: they may be more than one batch takes.
    let endpoints = workload.endpoints.as_ref();
    let mut writes: Vec<Write> = endpoints
        .map(|_| Write::DeleteEndpoints(key.clone()))
        .into_iter()
        .collect();
    writes.extend(
        workload
            .routes
            .as_ref()
            .map(|_| Write::DeleteRoutes(key.clone())),
    );
    let mut reply = reply(cluster, workload, &workload.record, true);
    reply.desired = 0;
    reply.kept = if request.data {
        data::left(cluster, workload, &key)
    } else {
        kept(cluster, workload, &key)
    };
    reply.state = wasmorch_api::messages::WorkloadState::Stopped;
    let mut record = workload.record.clone();
    remember(&mut record, "rm", call, &reply);
    writes.push(Write::Removed(Removed {
        namespace: key.namespace.clone(),
        name: key.name.clone(),
        newest: workload.record.newest,
        next_placement: workload.record.next_placement,
        homes: if request.data {
            BTreeMap::new()
        } else {
            record.homes
        },
        removals: if request.data {
            removals::of_removal(cluster, workload, &key, call.now)
        } else {
            removals::still_to_do(cluster, &key)
        },
        answered: record.answered,
    }));
    let mut events = vec![EventDraft::of(&key, EventKind::Removed, "as asked")];
    leave(cluster, workload, call, &mut writes, &mut events);
    // What runs is booked by its revision: the workload goes first.
    writes.push(Write::DeleteRecord(key.clone()));
    let revisions = workload.revisions.keys();
    writes.extend(revisions.map(|number| Write::DeleteRevision(key.clone(), *number)));
    Ok(Outcome {
        writes,
        events,
        reply,
    })
}

/// What a removed workload leaves behind: the stores of its revisions, and its volumes by host.
fn kept(cluster: &Cluster, workload: &Workload, key: &WorkloadKey) -> Vec<String> {
    let mut kept = BTreeSet::new();
    for revision in workload.revisions.values() {
        let bindings = &revision.spec.bindings;
        for (name, store) in &bindings.keyvalue {
            let own = stores::own_name(key, name);
            let named = |setting: &str| store.settings.get(setting).unwrap_or(&own);
            match store.backend.as_str() {
                "jetstream" => kept.insert(format!("bucket {}", named("bucket"))),
                "redis" => kept.insert(format!("redis keys under {}", named("prefix"))),
                _ => false,
            };
        }
        for (name, store) in &bindings.blobstore {
            let own = stores::own_name(key, name);
            let container = store.settings.get("container").unwrap_or(&own);
            kept.insert(format!("container {container} ({})", store.backend));
        }
        for name in bindings.volume.keys() {
            for (slot, home) in &workload.record.homes {
                let host = cluster.hosts.get(home);
                let host = host.map_or(home.to_string(), |host| host.info().name.to_string());
                kept.insert(format!("volume {name} of slot {slot} on {host}"));
            }
        }
    }
    kept.into_iter().take(KEPT_SAID).collect()
}

/// So many are listed.
const KEPT_SAID: usize = 1_000;
