//! What a deploy makes of one workload: its record, its new revision, and what is too old to be kept.

use std::collections::BTreeSet;

use wasmorch_api::record::{Hold, Removed, Rollout};
use wasmorch_api::{
    ApiError, EventKind, Kind, Record, Revision, RevisionNumber, Slot, Timestamp, WorkloadKey,
    WorkloadSpec,
};

use super::Holding;
use crate::REVISIONS_KEPT;
use crate::cluster::Workload;
use crate::commands::differences::differences;
use crate::commands::{Call, change};
use crate::write::EventDraft;
use crate::{atomic, canary, cron, jobs};

/// What changes of one workload.
pub(super) struct Step {
    pub(super) record: Record,
    pub(super) revision: Option<Revision>,
    pub(super) forgotten: Vec<RevisionNumber>,
    pub(super) events: Vec<EventDraft>,
    /// The rollout of its revision, though nothing rolls of a cron workload unless others do with it.
    pub(super) rollout: Option<Rollout>,
    /// Nothing of it ran before.
    pub(super) from_nothing: bool,
    /// How many it had of what is no longer counted.
    pub(super) counted: Option<u32>,
}

/// One workload of a deploy; `None` when it is already as asked.
pub(super) fn one(
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
        None => Record {
            desired: 1,
            ..Record::new(key, kind, RevisionNumber(1), removed, call.now)
        },
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
        take_runs(&mut record, before, (spec, kind), call.wall);
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
        cron::go_on(&mut record, call.wall);
    }
    let said = format!("{} to {desired}", record.wanted());
    change::want(workload, &mut record, desired);
    record.updated = call.now;
    record.crash_loop.clear();
    change::give_time(workload, &mut record, call);
    let mut events = vec![EventDraft::of(key, EventKind::Scaled, said)];
    events.extend(change::go_on(workload, &mut record, call));
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

/// What another revision means for what runs: a job begins anew, a cron workload's runs go on and its
/// times are the new schedule's, and whatever else runs on has no runs.
pub(crate) fn take_runs(
    record: &mut Record,
    before: Option<(&WorkloadSpec, Kind)>,
    (spec, kind): (&WorkloadSpec, Kind),
    wall: Timestamp,
) {
    let same_kind = before.filter(|(_, before)| *before == kind);
    if same_kind.is_none() {
        record.earlier.clear();
        if let Some(run) = record.run.as_mut().filter(|run| run.outcome.is_none()) {
            run.outcome = Some(jobs::over("replaced by another revision", wall));
        }
    }
    match kind {
        Kind::Job => jobs::begin_alone(record, &spec.job, None),
        Kind::Cron => cron::take(record, same_kind.map(|(before, _)| before), spec, wall),
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
