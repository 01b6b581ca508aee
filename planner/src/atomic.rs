//! `atomic`: several workloads of one deploy complete together, or go back together.
//!
//! Owns `Rollout::together`. A member whose slots have all been available at its revision has *arrived*,
//! which is stored; from then on no deadline runs for it. When all have arrived, all complete: until
//! then every one of them still has its earlier revision to go back to, and nothing that has completed
//! ever has to be undone. When one fails, all others find it so in the next plan, by what is stored,
//! whoever leads then: what follows of one failure is one plan. A change that takes the failed one out
//! before that takes the others back in its own batch.
//!
//! Each goes back to the revision that it had before the deploy; what ran nothing before goes back to
//! that: it is held at zero, and its rollout has `failed`. A cron workload has arrived as soon as it is
//! stored, and is back as soon as that is; the runs that it began meanwhile are nobody's to undo.
//!
//! A later deploy, rollback, stop or removal of one member takes it out: the others neither wait for it
//! nor go back with it. `abort` of one is `abort` of all.

use wasmorch_api::messages::WaitsFor;
use wasmorch_api::{
    ApiError, EventKind, Kind, Record, Rollout, RolloutState, Timestamp, WorkloadKey,
};

use crate::cluster::{Cluster, Workload};
use crate::commands::{DeployInput, take_runs};
use crate::planted::{self, Bug};
use crate::queries;
use crate::rollout;
use crate::slots::Pass;
use crate::write::EventDraft;

/// The others that are still part of it.
fn others<'a>(
    cluster: &'a Cluster,
    record: &Record,
) -> impl Iterator<Item = (&'a Workload, &'a Rollout)> {
    let rollout = record.rollout.as_ref();
    let together = rollout.and_then(|rollout| rollout.together.clone());
    let with = together.into_iter().flat_map(|together| together.with);
    let namespace = record.namespace.clone();
    with.filter_map(move |(name, revision)| {
        let key = WorkloadKey::new(namespace.clone(), name);
        let other = cluster.workload(&key)?;
        let rollout = other.record.rollout.as_ref()?;
        let part = rollout.revision == revision && rollout.together.is_some();
        part.then_some((other, rollout))
    })
}

/// It can still go back: neither over nor on its way back.
fn moves(rollout: &Rollout) -> bool {
    !rollout.state.ended() && rollout.state != RolloutState::Reverting
}

fn has_arrived(rollout: &Rollout) -> bool {
    let arrived = rollout.together.as_ref().is_some_and(|one| one.arrived);
    match rollout.state {
        RolloutState::Completed => true,
        RolloutState::Rolling => arrived,
        _ => false,
    }
}

/// Whether all of them have arrived, as far as is stored: then nothing sends them back any more.
pub(crate) fn decided(cluster: &Cluster, record: &Record) -> bool {
    let own = record.active_rollout().is_some_and(has_arrived);
    own && others(cluster, record).all(|(_, rollout)| has_arrived(rollout))
}

/// What one that has arrived waits for.
pub(crate) fn view(cluster: &Cluster, record: &Record) -> Vec<WaitsFor> {
    let rollout = record.active_rollout();
    if !rollout.is_some_and(has_arrived) {
        return Vec::new();
    }
    let waits = others(cluster, record).filter(|(_, rollout)| !has_arrived(rollout));
    let waits = waits.map(|(other, rollout)| {
        let (_, ready) = match other.record.held() {
            Some(_) => (0, 0),
            None => queries::fresh(other, &other.record),
        };
        let desired = other.record.desired_asked();
        let paused = rollout.state == RolloutState::Paused;
        let baked = rollout.canary.as_ref().is_some_and(|step| step.baked);
        let why = match (paused, baked) {
            (true, _) => "deployed together, and its rollout is paused".to_owned(),
            (_, true) => "deployed together, and its canaries wait for `promote`".to_owned(),
            _ => format!("deployed together, {ready} of {desired} ready"),
        };
        WaitsFor {
            workload: other.record.name.clone(),
            why,
            for_a_person: paused || baked,
        }
    });
    waits.collect()
}

/// Whether this one was new with an atomic deploy that failed: the same deploy again is another try.
pub(crate) fn was_undone(record: &Record) -> bool {
    let rollout = record.rollout.as_ref();
    record.stopped
        && rollout.is_some_and(|rollout| {
            let undone = matches!(
                rollout.state,
                RolloutState::Failed | RolloutState::Aborted | RolloutState::Reverted
            );
            let nothing = { rollout.together.as_ref() }.is_some_and(|one| one.from_nothing);
            undone && nothing
        })
}

/// Refuses what could not go back with the others.
pub(crate) fn refuse(input: &DeployInput) -> Result<(), ApiError> {
    if !input.atomic || input.workloads.len() < 2 {
        return Ok(());
    }
    let mut problems = Vec::new();
    for (index, (spec, kind)) in input.workloads.iter().enumerate() {
        for mut problem in wasmorch_api::manifest::not_undone(spec, *kind) {
            problem.at = format!("workloads[{index}].{}", problem.at);
            problems.push(problem);
        }
    }
    if problems.is_empty() {
        return Ok(());
    }
    let what = "these cannot be deployed together";
    Err(ApiError::invalid(what, problems))
}

/// Sends one back, as far as its record goes, and what there is to say already.
fn undo(
    cluster: &Cluster,
    record: &mut Record,
    workload: &Workload,
    (reason, aborted): (&str, bool),
    now: Timestamp,
) -> Option<EventDraft> {
    let held_back = record.held().is_some() && !record.held_bare();
    let key = record.key();
    let rollout = record.rollout.as_mut()?;
    let together = rollout.together.as_ref()?;
    let (asked, nothing, counted) = (rollout.revision, together.from_nothing, together.desired);
    let back = match held_back {
        true => Some(record.revision),
        false => rollout.from,
    };
    let back = back.and_then(|back| workload.revisions.get(&back));
    let given_up = workload.revisions.get(&asked);
    let deadline = given_up.map(|asked| asked.spec.update.progress_deadline.0);
    rollout.hold = None;
    rollout.canary = None;
    rollout.reason = Some(reason.to_owned());
    rollout.deadline = now.after(deadline.unwrap_or_default());
    rollout.best = 0;
    rollout.state = match back {
        _ if aborted => RolloutState::Aborted,
        // Of what runs to its end nothing rolls.
        Some(back) if nothing || back.kind.ends() => RolloutState::Reverted,
        Some(_) => RolloutState::Reverting,
        None => RolloutState::Failed,
    };
    let kind = match rollout.state {
        RolloutState::Aborted => Some(EventKind::RolloutAborted),
        RolloutState::Reverted => Some(EventKind::RolloutReverted),
        RolloutState::Failed => Some(EventKind::RolloutFailed),
        _ => None,
    };
    record.updated = now;
    if let Some(back) = back {
        record.revision = back.number;
        record.kind = back.kind;
        let counted = counted.filter(|_| !held_back);
        record.desired = match back.kind.ends() {
            true => back.spec.job.seats(),
            false => counted.unwrap_or(record.desired),
        };
    }
    let cron = given_up.filter(|one| one.kind == Kind::Cron && !held_back);
    match back.filter(|_| !held_back) {
        Some(back) if back.kind == Kind::Cron || cron.is_some() && !back.kind.ends() => {
            let before = given_up.map(|one| (&one.spec, one.kind));
            take_runs(record, before, (&back.spec, back.kind), cluster.wall(now));
            record.stable = Some(back.number);
        }
        Some(back) if cron.is_some() => record.stable = Some(back.number),
        _ => {}
    }
    record.stopped |= nothing || back.is_none();
    kind.map(|kind| EventDraft::of(&key, kind, reason).revision(asked))
}

/// All that still move go back because a person said so.
pub(crate) fn abort(
    cluster: &Cluster,
    workload: &Workload,
    by: &str,
    now: Timestamp,
) -> Vec<(Record, EventDraft)> {
    let own = format!("aborted by {by}");
    let reason = format!(
        "{} aborted by {by}, deployed together (atomic)",
        workload.record.name
    );
    let with = others(cluster, &workload.record).filter(|(_, rollout)| moves(rollout));
    let all = with.map(|(other, _)| (other, &reason));
    let all = std::iter::once((workload, &own)).chain(all);
    let all = all.filter_map(|(one, reason)| {
        let mut record = one.record.clone();
        let event = undo(cluster, &mut record, one, (reason, true), now)?;
        Some((record, event))
    });
    all.collect()
}

/// What goes with a change that takes a workload out of its deploy: when it has failed, and others
/// have not followed yet, nobody would know any more that they have to.
pub(crate) fn leave(
    cluster: &Cluster,
    workload: &Workload,
    now: Timestamp,
) -> Vec<(Record, Option<EventDraft>)> {
    let record = &workload.record;
    let Some(reason) = record.rollout.as_ref().and_then(|own| failure(record, own)) else {
        return Vec::new();
    };
    let with = others(cluster, record).filter(|(_, rollout)| moves(rollout));
    let all = with.map(|(other, _)| {
        let mut record = other.record.clone();
        let event = undo(cluster, &mut record, other, (&reason, false), now);
        (record, event)
    });
    all.collect()
}

/// In what words the others of one that has failed go back.
fn failure(record: &Record, rollout: &Rollout) -> Option<String> {
    let over = rollout.state != RolloutState::Completed && !moves(rollout);
    if !over || rollout.together.is_none() {
        return None;
    }
    let said = rollout.reason.as_deref().unwrap_or("it went back");
    Some(match said.ends_with(TOGETHER) {
        true => said.to_owned(),
        false => format!("{} failed: {said}{TOGETHER}", record.name),
    })
}

impl Pass<'_> {
    /// Follows a member that has failed. Then the record has moved, and the rest is for the next plan.
    pub(crate) fn look_at_others(&mut self) -> bool {
        let rollout = self.record.rollout.as_ref();
        if !rollout.is_some_and(|one| one.together.is_some() && moves(one)) {
            return false;
        }
        let failed = others(self.cluster, &self.record)
            .find_map(|(other, rollout)| failure(&other.record, rollout));
        let Some(reason) = failed.filter(|_| !planted::is(Bug::OthersStay)) else {
            return false;
        };
        let event = undo(
            self.cluster,
            &mut self.record,
            self.workload,
            (&reason, false),
            self.now,
        );
        self.plan.events.extend(event);
        true
    }

    /// It has failed; the next plan finds all others so.
    pub(crate) fn fail_together(&mut self, reason: &str) {
        if decided(self.cluster, &self.workload.record) {
            return;
        }
        // The seats were judged by the revision that is given up.
        self.wake(self.now);
        let starts = self.plan.start.last();
        if starts.is_some_and(|start| start.key == *self.key) {
            // What starts in this pass belongs to a record that still wants it.
            return;
        }
        let event = undo(
            self.cluster,
            &mut self.record,
            self.workload,
            (reason, false),
            self.now,
        );
        self.plan.events.extend(event);
    }

    /// Every slot is, or has been, available at the revision; whether it may complete.
    pub(crate) fn arrive(&mut self) -> bool {
        let rollout = self.record.rollout.as_mut();
        let Some(together) = rollout.and_then(|rollout| rollout.together.as_mut()) else {
            return true;
        };
        together.arrived = true;
        // By what is stored alone: another may fail in this very plan.
        decided(self.cluster, &self.workload.record)
    }

    /// Of a cron workload nothing rolls: it completes as soon as all others have arrived.
    pub(crate) fn complete_stored(&mut self) {
        let rollout = self.record.active_rollout();
        let waits = rollout.filter(|one| one.state == RolloutState::Rolling && one.hold.is_none());
        let Some(number) = waits
            .map(|one| one.revision)
            .filter(|_| !self.record.stopped)
        else {
            return;
        };
        if self.arrive() {
            let reason = format!("revision {number} is stored");
            let (state, kind) = (RolloutState::Completed, EventKind::RolloutCompleted);
            rollout::end(self, state, kind, &reason);
        }
    }

    /// It has arrived before.
    pub(crate) fn has_arrived(&self) -> bool {
        self.record.rollout.as_ref().is_some_and(has_arrived)
    }
}

/// What ends the reason of whoever goes back for another's sake.
const TOGETHER: &str = ", deployed together (atomic)";
