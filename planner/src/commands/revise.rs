//! `rollback` and `rollout`: which revision is wanted, and what a person does about its rollout.

use wasmorch_api::messages::{DeployReply, Deployed, RolloutAction, RolloutRequest, RolloutView};
use wasmorch_api::record::{CanaryStep, Rollout};
use wasmorch_api::{
    ApiError, ErrorCode, EventKind, Record, Revision, RevisionNumber, RolloutState,
};

use super::{Call, Outcome, find, leave, remember, routes};
use crate::cluster::{Cluster, Workload};
use crate::planted::{self, Bug};
use crate::write::{EventDraft, Write};
use crate::{atomic, canary, hold, jobs, queries};

pub(super) fn in_the_way(record: &Record, rollout: &Rollout) -> ApiError {
    let fix = match rollout.state {
        RolloutState::Reverting => {
            "wait for it: it ends by itself, at its deadline at the latest".to_owned()
        }
        _ => match ends(record) {
            Some(ends) => format!("wait for it, or end it with {ends}"),
            None => {
                "wait for it: a restart ends by itself, at its deadline at the latest".to_owned()
            }
        },
    };
    ApiError::new(
        ErrorCode::Conflict,
        format!("a rollout of {} is in the way", record.name),
        format!("it is {} to revision {}", rollout.state, rollout.revision),
        fix,
    )
}

/// What ends a rollout of a workload: of a first revision there is nothing to go back to. `None`: nothing does,
/// for what a restart goes to is what serves.
pub(crate) fn ends(record: &Record) -> Option<String> {
    let name = &record.name;
    if hold::earlier(record).is_some() {
        return Some(format!("`wasmorch rollout abort {name}`"));
    }
    let first = { record.rollout.as_ref() }.is_none_or(|rollout| rollout.from.is_none());
    first.then(|| format!("`wasmorch stop {name}`"))
}

/// Back to an earlier revision; `desired` stays, and so does what is stopped: that has no rollout before it
/// is started.
pub fn rollback(
    cluster: &Cluster,
    request: &RolloutRequest,
    call: &Call,
) -> Result<Outcome<DeployReply>, ApiError> {
    let key = call.key(&request.workload);
    let workload = find(cluster, &key)?;
    let record = &workload.record;
    if let Some(rollout) = record
        .active_rollout()
        .filter(|rollout| rollout.state == RolloutState::Reverting)
    {
        return Err(in_the_way(record, rollout));
    }
    let to = match request.to {
        Some(to) => to,
        None => previous(workload).ok_or_else(|| {
            let why = format!(
                "its revision {} is the earliest that is kept",
                record.asked()
            );
            ApiError::new(
                ErrorCode::NotFound,
                format!("{} has no earlier revision", key.name),
                why,
                format!("see `wasmorch history {}`", key.name),
            )
        })?,
    };
    let Some(target) = workload.revisions.get(&to) else {
        let kept: Vec<String> = workload.revisions.keys().map(ToString::to_string).collect();
        return Err(ApiError::new(
            ErrorCode::NotFound,
            format!("{} has no revision {to}", key.name),
            format!("kept are {}", kept.join(", ")),
            format!("see `wasmorch history {}`", key.name),
        ));
    };
    let deployed = |record: &Record, changed| Deployed {
        name: key.name.clone(),
        revision: to,
        changed,
        rollout: if changed {
            queries::rollout_of_record(record)
        } else {
            None
        },
        urls: queries::urls(cluster, &key, target.kind, &target.spec),
    };
    // To the revision that serves while another is held, or on trial: that one is given up.
    let apart = asks_for_another(record) || record.held().is_some();
    if to == record.revision && !apart {
        let reply = DeployReply {
            index: workload.index,
            workloads: vec![deployed(record, false)],
        };
        return Ok(Outcome {
            writes: Vec::new(),
            events: Vec::new(),
            reply,
        });
    }
    routes::refuse_taken(cluster, &[(key.clone(), &target.spec)])?;
    let mut after = record.clone();
    let patience = target.spec.update.progress_deadline.0;
    after.rollout = Some(Rollout::begin(to, Some(record.asked()), call.now, patience));
    if !planted::is(Bug::RollbackForgotten) {
        after.revision = to;
    }
    after.kind = target.kind;
    after.crash_loop.clear();
    after.updated = call.now;
    let before = workload.target().map(|target| (&target.spec, target.kind));
    super::deploy::take_runs(&mut after, before, (&target.spec, target.kind), call.wall);
    if after.stopped {
        // Nothing rolls, and nobody waits for it.
        after.rollout = None;
    }
    let rests = |one: &std::sync::Arc<Revision>| one.spec.standbys() > 0;
    if target.kind.ends() {
        after.desired = target.spec.job.seats();
    } else if after.desired == 0 && (rests(target) || workload.target().is_some_and(rests)) {
        // It was at zero because nobody asked: what it goes back to proves itself all the same.
        after.desired = 1;
    }
    let changed = [(after.clone(), &target.spec, target.kind)];
    crate::quota::refuse_beyond(cluster, &call.namespace, &changed)?;
    let reply = DeployReply {
        index: 0,
        workloads: vec![deployed(&after, true)],
    };
    remember(&mut after, "rollback", call, &reply);
    let (kind, said) = match after.stopped {
        true => (
            EventKind::Deployed,
            format!("back to revision {to}; it is stopped"),
        ),
        false => (EventKind::RolloutStarted, format!("back to revision {to}")),
    };
    let mut events = vec![EventDraft::of(&key, kind, said).revision(to)];
    let mut writes = vec![Write::Record(Box::new(after))];
    leave(cluster, workload, call, &mut writes, &mut events);
    Ok(Outcome {
        writes,
        events,
        reply,
    })
}

/// What canaries stand beside; else the last stable revision when the wanted one is not it, or the
/// one made before.
fn previous(workload: &Workload) -> Option<RevisionNumber> {
    let record = &workload.record;
    if asks_for_another(record) {
        // What the canaries stand beside, or what serves meanwhile.
        return Some(record.revision);
    }
    record
        .stable
        .filter(|stable| *stable != record.revision && workload.revisions.contains_key(stable))
        .or_else(|| {
            workload
                .revisions
                .range(..record.revision)
                .next_back()
                .map(|(n, _)| *n)
        })
}

/// Whether a rollout is under way to another revision than the one that all slots keep meanwhile; also of
/// what is stopped, where no trial goes on.
fn asks_for_another(record: &Record) -> bool {
    let rollout = record.active_rollout();
    rollout.is_some_and(|rollout| rollout.revision != record.revision)
}

/// `status | pause | resume | promote | abort`. A rollout with canaries resumes with them.
pub fn rollout(
    cluster: &Cluster,
    request: &RolloutRequest,
    call: &Call,
) -> Result<Outcome<Option<RolloutView>>, ApiError> {
    let key = call.key(&request.workload);
    let workload = find(cluster, &key)?;
    let action = request.action.unwrap_or(RolloutAction::Status);
    if action == RolloutAction::Status {
        let reply = queries::rollout_view(cluster, workload);
        return Ok(Outcome {
            writes: Vec::new(),
            events: Vec::new(),
            reply,
        });
    }
    let mut record = workload.record.clone();
    let Some(mut rollout) = record.active_rollout().cloned() else {
        return Err(ApiError::new(
            ErrorCode::Conflict,
            format!("no rollout of {} is under way", key.name),
            "",
            format!("see `wasmorch status {}`", key.name),
        ));
    };
    let patience = workload.asked().map_or_else(Default::default, |target| {
        target.spec.update.progress_deadline.0
    });
    let moves = matches!(
        rollout.state,
        RolloutState::Rolling | RolloutState::Canary | RolloutState::Baking
    );
    if matches!(action, RolloutAction::Pause | RolloutAction::Abort)
        && atomic::decided(cluster, &record)
    {
        return Err(ApiError::new(
            ErrorCode::Conflict,
            format!("the rollout of {} is over", key.name),
            "all that was deployed together is there: it completes",
            format!("go back with `wasmorch rollback {}`", key.name),
        ));
    }
    if action == RolloutAction::Abort
        && rollout.together.is_some()
        && rollout.state != RolloutState::Reverting
    {
        return Ok(abort_all(cluster, workload, call));
    }
    let kind = match (action, rollout.state) {
        (RolloutAction::Pause, _) if moves => {
            rollout.state = RolloutState::Paused;
            rollout.reason = Some(format!("paused by {}", call.by));
            EventKind::RolloutPaused
        }
        (RolloutAction::Resume, RolloutState::Paused) => {
            rollout.state = RolloutState::Rolling;
            if rollout.canary.is_some() {
                // They are watched anew, from the beginning.
                rollout.state = RolloutState::Canary;
                rollout.canary = Some(CanaryStep::default());
                rollout.best = 0;
            }
            rollout.reason = None;
            rollout.deadline = call.now.after(patience);
            EventKind::RolloutStarted
        }
        (RolloutAction::Promote, _) if rollout.canary.is_some() => {
            canary::promote(&mut record, workload, call.now);
            let promoted = record.rollout.take();
            rollout = promoted.unwrap_or(rollout);
            EventKind::RolloutPromoted
        }
        (RolloutAction::Promote, _) => {
            return Err(ApiError::new(
                ErrorCode::Conflict,
                format!("{} has no canary to promote", key.name),
                format!("its rollout is {}", rollout.state),
                format!("see `wasmorch rollout status {}`", key.name),
            ));
        }
        (RolloutAction::Abort, state) if moves || state == RolloutState::Paused => {
            abort(workload, &mut record, &mut rollout, call)?;
            EventKind::RolloutAborted
        }
        (_, state) => {
            return Err(ApiError::new(
                ErrorCode::Conflict,
                format!("the rollout of {} is {state}", key.name),
                "the action does not apply to it",
                format!("see `wasmorch rollout status {}`", key.name),
            ));
        }
    };
    let reason = match kind {
        EventKind::RolloutPromoted => format!("promoted by {}", call.by),
        _ => { rollout.reason.clone() }.unwrap_or_else(|| "as asked".to_owned()),
    };
    let events = vec![EventDraft::of(&key, kind, reason).revision(rollout.revision)];
    record.rollout = Some(rollout);
    record.updated = call.now;
    let reply = queries::rollout_view_of(cluster, workload, &record);
    remember(&mut record, "rollout", call, &reply);
    Ok(Outcome {
        writes: vec![Write::Record(Box::new(record))],
        events,
        reply,
    })
}

/// Back to the last good revision, as a person says.
fn abort(
    workload: &Workload,
    record: &mut Record,
    rollout: &mut Rollout,
    call: &Call,
) -> Result<(), ApiError> {
    let name = &record.name;
    let Some(back) = hold::earlier(record) else {
        let (why, fix) = match ends(record) {
            Some(stop) => (
                "this is its first".to_owned(),
                format!("end it with {stop}, or `wasmorch rm {name}`"),
            ),
            None => (
                format!(
                    "revision {} is restarted, and is what serves",
                    rollout.revision
                ),
                "wait for it: a restart ends by itself, at its deadline at the latest".to_owned(),
            ),
        };
        let what = format!("{name} has no revision to go back to");
        return Err(ApiError::new(ErrorCode::Conflict, what, why, fix));
    };
    record.revision = back;
    if let Some(revision) = workload.revisions.get(&back) {
        record.kind = revision.kind;
    }
    let begun = rollout.hold.take().is_none();
    let run = record.run.as_mut().filter(|run| run.outcome.is_none());
    if let Some(run) = run.filter(|_| begun) {
        // Ends the aborted run; what came before is not run again.
        run.outcome = Some(jobs::over("aborted", call.now));
    }
    rollout.state = RolloutState::Aborted;
    rollout.canary = None;
    rollout.reason = Some(format!("aborted by {}", call.by));
    Ok(())
}

/// Who was deployed together is aborted together.
fn abort_all(cluster: &Cluster, workload: &Workload, call: &Call) -> Outcome<Option<RolloutView>> {
    let (mut writes, mut events, mut reply) = (Vec::new(), Vec::new(), None);
    for (mut record, event) in atomic::abort(cluster, workload, &call.by, call.now) {
        if record.key() == workload.record.key() {
            reply = queries::rollout_view_of(cluster, workload, &record);
            remember(&mut record, "rollout", call, &reply);
        }
        writes.push(Write::Record(Box::new(record)));
        events.push(event);
    }
    Outcome {
        writes,
        events,
        reply,
    }
}
