//! What waits for what: a rollout is held until the workloads that its spec depends on are ready.
//!
//! Owns `Rollout::hold`. A deploy of a spec with `depends_on` is stored held; nothing of its revision
//! starts, and what served before it serves on, at its own count. The first plan that finds every
//! dependency ready, all at once, begins the rollout: only then its deadline runs. A hold orders deploys
//! and nothing else: whatever happens to a dependency afterwards, and what a rollback or a restart
//! does, waits for nothing.
//!
//! Rule: a dependency is ready when it runs no rollout (or waits only for those of its own atomic
//! deploy) and has as many ready replicas as are wanted; a job, when it has completed at its revision.
//! One that was removed, that is stopped or scaled to zero is not waited for. One whose rollout has
//! failed since the deploy, or that lacks replicas without a rollout that would bring them, will not
//! come by itself: then, and only as long as that is so, the held one's own `progress_deadline` runs,
//! once. A job that runs and a paused rollout have no deadline: a person decides.
//!
//! Known limit: dependencies have to be ready at the same time, not each of them once.

use std::collections::{BTreeMap, BTreeSet};

use wasmorch_api::messages::WaitsFor;
use wasmorch_api::{
    ApiError, EventKind, Kind, Name, Problem, Record, RevisionNumber, RolloutState, Timestamp,
    WorkloadKey, WorkloadSpec,
};

use crate::agenda::Dirt;
use crate::cluster::{Cluster, Workload};
use crate::commands::{Call, DeployInput, take_runs};
use crate::planted::{self, Bug};
use crate::slots::Pass;
use crate::write::EventDraft;
use crate::{atomic, canary, queries, rollout};

/// How a wait ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ends {
    /// Something is under way that ends by itself.
    ByItself,
    ByAPerson,
    /// Nothing is under way that would end it.
    NotByItself,
}

struct Wait {
    on: Name,
    why: String,
    ends: Ends,
}

/// The revision that a revert goes back to, if there is one.
pub(crate) fn earlier(record: &Record) -> Option<RevisionNumber> {
    let rollout = record.rollout.as_ref()?;
    if rollout.hold.is_some() && record.revision != rollout.revision {
        // It has never left it.
        return Some(record.revision);
    }
    record.stable.filter(|stable| *stable != rollout.revision)
}

/// What the rollout waits for, for people.
pub(crate) fn view(cluster: &Cluster, workload: &Workload, record: &Record) -> Vec<WaitsFor> {
    let waits = waits_of(cluster, workload, record, &mut BTreeSet::new());
    let waits = waits.into_iter().map(|wait| WaitsFor {
        workload: wait.on,
        why: wait.why,
        for_a_person: wait.ends == Ends::ByAPerson,
    });
    waits.collect()
}

/// The dependencies that are not ready. Nobody waits for what is not there.
fn waits_of(
    cluster: &Cluster,
    workload: &Workload,
    record: &Record,
    seen: &mut BTreeSet<WorkloadKey>,
) -> Vec<Wait> {
    let Some((_, hold)) = record.held().filter(|_| !record.stopped) else {
        return Vec::new();
    };
    let mut waits = Vec::new();
    seen.insert(record.key());
    for on in depends_on(workload, record) {
        let key = WorkloadKey::new(record.namespace.clone(), on.clone());
        let Some(other) = cluster.workload(&key) else {
            continue;
        };
        if let Some((why, ends)) = bar(cluster, other, hold.since, seen) {
            let on = on.clone();
            waits.push(Wait { on, why, ends });
        }
    }
    waits
}

fn depends_on<'a>(workload: &'a Workload, record: &Record) -> &'a [Name] {
    let asked = workload.revisions.get(&record.asked());
    asked.map_or(&[], |asked| &asked.spec.depends_on)
}

/// Why a dependency is not ready; `None`: it is, or is not waited for.
fn bar(
    cluster: &Cluster,
    other: &Workload,
    since: Timestamp,
    seen: &mut BTreeSet<WorkloadKey>,
) -> Option<(String, Ends)> {
    let record = &other.record;
    if record.stopped || record.kind == Kind::Cron && record.held().is_none() {
        return None;
    }
    let rollout = record.rollout.as_ref();
    let because = |what: &str| match rollout.and_then(|rollout| rollout.reason.as_ref()) {
        Some(reason) => format!("{what}: {reason}"),
        None => what.to_owned(),
    };
    if let Some(over) = rollout.filter(|one| one.state.ended() && one.started >= since) {
        let what = match over.state {
            RolloutState::Completed => None,
            state => Some(format!("its rollout {}", ended(state))),
        };
        if let Some(what) = what {
            return Some((because(&what), Ends::NotByItself));
        }
    }
    let active = record.active_rollout();
    if active.is_some_and(|one| one.state == RolloutState::Paused) {
        return Some((because("its rollout is paused"), Ends::ByAPerson));
    }
    let baked = active.and_then(|one| one.canary.as_ref());
    if baked.is_some_and(|step| step.baked) {
        let why = "its canaries wait for `promote`".to_owned();
        return Some((why, Ends::ByAPerson));
    }
    if active.is_some_and(|one| one.hold.is_some()) {
        let known = seen.contains(&record.key());
        let theirs = (!known).then(|| waits_of(cluster, other, record, seen));
        let theirs = theirs.unwrap_or_default();
        let person = theirs.iter().any(|wait| wait.ends == Ends::ByAPerson);
        let on: Vec<&str> = theirs.iter().map(|wait| wait.on.as_str()).collect();
        let ends = if person {
            Ends::ByAPerson
        } else {
            Ends::ByItself
        };
        let why = match on.is_empty() {
            true => "it has not begun yet".to_owned(),
            false => format!("it waits for {} itself", on.join(", ")),
        };
        return Some((why, ends));
    }
    if record.kind == Kind::Job {
        return job_bar(record);
    }
    if let Some(moving) = active {
        // It may have arrived, and go back with another yet.
        if moving.state == RolloutState::Reverting {
            return Some((because("it is going back"), Ends::ByItself));
        }
        if moving.together.as_ref().is_some_and(|one| one.arrived) {
            return None;
        }
        let (_, ready) = queries::fresh(other, record);
        let why = format!("{ready} of {} ready", record.wanted());
        return Some((why, Ends::ByItself));
    }
    let (mut ready, wanted) = (queries::ready(cluster, other), record.wanted());
    let state = rollout.map(|rollout| rollout.state);
    if let Some(RolloutState::Aborted | RolloutState::Reverted) = state {
        // What was given up serves until its places are taken, and is not what is in force.
        ready = ready.min(queries::fresh(other, record).1);
    }
    (ready < wanted).then(|| (format!("{ready} of {wanted} ready"), Ends::NotByItself))
}

fn ended(state: RolloutState) -> &'static str {
    match state {
        RolloutState::Reverted => "was reverted",
        RolloutState::Aborted => "was aborted",
        _ => "failed",
    }
}

/// A job that has completed at its revision is ready for good.
fn job_bar(record: &Record) -> Option<(String, Ends)> {
    if record.stable == Some(record.revision) {
        return None;
    }
    if record.runs().next().is_some() {
        return Some(("it has not completed yet".to_owned(), Ends::ByItself));
    }
    let outcome = record.run.as_ref().and_then(|run| run.outcome.as_ref());
    let why = outcome.map_or("it has not run".to_owned(), |outcome| {
        format!("it failed: {}", outcome.reason)
    });
    Some((why, Ends::NotByItself))
}

impl Pass<'_> {
    /// Looks whether a held rollout may begin, or has failed. Then the record has moved, and the rest
    /// is for the next plan.
    pub(crate) fn look_at_hold(&mut self) -> bool {
        let record = &self.record;
        let Some((rollout, hold)) = record.held().filter(|_| !record.stopped) else {
            return false;
        };
        let (state, until) = (rollout.state, hold.until);
        if state == RolloutState::Paused {
            return false;
        }
        let waits = waits_of(self.cluster, self.workload, record, &mut BTreeSet::new());
        if waits.is_empty() || planted::is(Bug::DependencyNotAwaited) {
            self.begin_held();
            return true;
        }
        if state != RolloutState::Rolling {
            return false;
        }
        let failed = waits.iter().find(|wait| wait.ends == Ends::NotByItself);
        let Some(failed) = failed else {
            self.set_until(None);
            return false;
        };
        let asked = self.workload.revisions.get(&rollout.revision);
        let patience = asked.map_or(std::time::Duration::ZERO, |asked| {
            asked.spec.update.progress_deadline.0
        });
        let until = until.unwrap_or(self.now.after(patience));
        self.set_until(Some(until));
        if self.now < until {
            self.wake(until);
            return false;
        }
        self.set_until(None);
        let reason = format!("{} did not become ready: {}", failed.on, failed.why);
        rollout::fail(self, &reason);
        true
    }

    fn set_until(&mut self, until: Option<Timestamp>) {
        let rollout = self.record.rollout.as_mut();
        if let Some(hold) = rollout.and_then(|rollout| rollout.hold.as_mut()) {
            hold.until = until;
        }
    }

    /// What was held is wanted now.
    fn begin_held(&mut self) {
        let Some(asked) = self.workload.revisions.get(&self.record.asked()) else {
            return;
        };
        let bare = self.record.held_bare();
        let before = (!bare).then_some((&self.target.spec, self.target.kind));
        let record = &mut self.record;
        record.desired = match &asked.spec.scale {
            // Its load has gone on meanwhile.
            Some(scale) if self.target.spec.scale.is_some() && !bare => {
                scale.within(record.desired.max(1))
            }
            _ => record.desired_asked(),
        };
        record.revision = asked.number;
        record.kind = asked.kind;
        record.crash_loop.clear();
        if let Some(rollout) = record.rollout.as_mut() {
            rollout.hold = None;
            rollout.state = RolloutState::Rolling;
            rollout.reason = None;
            rollout.best = 0;
            rollout.deadline = self.now.after(asked.spec.update.progress_deadline.0);
        }
        take_runs(
            record,
            before,
            (&asked.spec, asked.kind),
            self.cluster.wall(self.now),
        );
        let known = Some(self.workload).filter(|_| !bare);
        if let Some(base) = canary::base(known, record.stable, &asked.spec, asked.kind) {
            record.put_on_trial(base);
        }
        let said = asked.spec.depends_on.iter().map(|on| {
            let key = WorkloadKey::new(self.key.namespace.clone(), on.clone());
            let stands = match self.cluster.workload(&key) {
                None => "is gone",
                Some(other) if other.record.stopped => "is stopped",
                Some(_) => "is ready",
            };
            format!("{on} {stands}")
        });
        let said: Vec<String> = said.collect();
        let said = format!("{}: to revision {}", said.join(", "), asked.number);
        let event = EventDraft::of(self.key, EventKind::RolloutStarted, said);
        self.plan.events.push(event.revision(asked.number));
    }
}

impl Cluster {
    /// A record may be held now, or part of an atomic deploy, or no more.
    pub(crate) fn note_bonds(&mut self, key: &WorkloadKey) {
        let record = self.workloads.get(key).map(|one| &one.record);
        let bound = record.is_some_and(|record| {
            let together = |one: &wasmorch_api::Rollout| one.together.is_some();
            record.held().is_some() || record.active_rollout().is_some_and(together)
        });
        if bound {
            self.bound.insert(key.clone());
        } else {
            self.bound.remove(key);
        }
    }

    /// What is held, or moves with others, is looked at whenever one of these is.
    pub(crate) fn follow_bonds(&self, work: &mut BTreeMap<WorkloadKey, Dirt>) {
        let concerned = self.bound.iter().filter(|key| {
            let Some(workload) = self.workloads.get(key) else {
                return false;
            };
            let record = &workload.record;
            let rollout = record.rollout.as_ref();
            let with = rollout.and_then(|rollout| rollout.together.as_ref());
            let with = with.into_iter().flat_map(|together| together.with.keys());
            let mut others = depends_on(workload, record).iter().chain(with);
            others.any(|name| {
                let other = WorkloadKey::new(key.namespace.clone(), name.clone());
                work.contains_key(&other) || !self.workloads.contains_key(&other)
            })
        });
        let concerned: Vec<WorkloadKey> = concerned.cloned().collect();
        for key in concerned {
            work.insert(key, Dirt::Whole);
        }
    }
}

/// What may not be depended on: what is not there, cron workloads, and whoever waits for the one that
/// waits for it.
pub(crate) fn refuse(cluster: &Cluster, input: &DeployInput, call: &Call) -> Result<(), ApiError> {
    let mut problems = Vec::new();
    let circle = circle(cluster, input, call);
    for (index, (spec, _)) in input.workloads.iter().enumerate() {
        let mut wrong = |what: String| {
            problems.push(Problem {
                at: format!("workloads[{index}].depends_on"),
                line: None,
                column: None,
                what,
            });
        };
        for on in &spec.depends_on {
            let with = input.workloads.iter().find(|(other, _)| other.name == *on);
            let there = cluster.workload(&call.key_of(on));
            let asked = there.and_then(Workload::asked).map(|asked| asked.kind);
            match with.map(|(_, kind)| *kind).or(asked) {
                None => wrong(format!(
                    "there is no workload {on} in namespace {}: deploy it first, or in the same manifest",
                    call.namespace
                )),
                Some(Kind::Cron) => wrong(format!(
                    "{on} is a cron workload, which is never ready: leave it out"
                )),
                Some(_) => {}
            }
        }
        if let Some((_, said)) = circle
            .as_ref()
            .filter(|(names, _)| names.contains(&spec.name))
        {
            wrong(said.clone());
        }
    }
    if problems.is_empty() {
        return Ok(());
    }
    let what = "this cannot be deployed in order";
    Err(ApiError::invalid(what, problems))
}

/// The workloads of a deploy that would wait for one another, and what to say of it.
fn circle(cluster: &Cluster, input: &DeployInput, call: &Call) -> Option<(Vec<Name>, String)> {
    let specs = input.workloads.iter().map(|(spec, _)| (&spec.name, spec));
    let specs: BTreeMap<&Name, &WorkloadSpec> = specs.collect();
    let waits_for = |name: &Name| match specs.get(name) {
        Some(spec) => spec.depends_on.clone(),
        None => {
            let there = cluster.workload(&call.key_of(name));
            let asked = there.and_then(Workload::asked);
            asked.map_or_else(Vec::new, |asked| asked.spec.depends_on.clone())
        }
    };
    wasmorch_api::manifest::circle(specs.keys().copied(), waits_for)
}

/// What a rollout waits for: its dependencies, or those that were deployed with it.
pub(crate) fn waits_for(cluster: &Cluster, workload: &Workload, record: &Record) -> Vec<WaitsFor> {
    let mut waits = view(cluster, workload, record);
    waits.extend(atomic::view(cluster, record));
    waits
}
