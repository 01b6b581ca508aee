//! Laws of runs: what was counted has truly ended well, and what a schedule names is begun once.
//!
//! Owns the books of completions and of times. They read schedules by arithmetic of their own: the
//! user's are all of the form "every n minutes".

use std::collections::{BTreeMap, BTreeSet};

use wasmorch_api::{
    EventKind, Kind, PlacementNumber, Record, Revision, RevisionNumber, WorkloadKey,
};
use wasmorch_host::runner::protocol::ReplicaKey;
use wasmorch_planner::Plan;

use super::world::World;

const MINUTE: u64 = 60_000;

/// The books.
#[derive(Debug, Default)]
pub(crate) struct Runs {
    /// Placements of which a replica has truly ended well.
    completed: BTreeMap<WorkloadKey, BTreeSet<PlacementNumber>>,
    /// Minutes between two times, by revision.
    every: BTreeMap<(WorkloadKey, RevisionNumber), u64>,
    /// Times that were begun, since the workload was last removed.
    begun: BTreeMap<WorkloadKey, BTreeSet<u64>>,
}

impl Runs {
    pub(crate) fn note(&mut self, revision: &Revision) {
        let key = (revision.key(), revision.number);
        let every = match revision.spec.schedule.as_deref() {
            Some("*/2 * * * *") => 2,
            Some(_) => 1,
            None => {
                self.every.remove(&key);
                return;
            }
        };
        self.every.insert(key, every * MINUTE);
    }

    pub(crate) fn completed(&mut self, replica: &ReplicaKey) {
        let ended = self.completed.entry(replica.workload.clone()).or_default();
        ended.insert(replica.id.placement);
    }

    pub(crate) fn removed(&mut self, key: &WorkloadKey) {
        self.begun.remove(key);
    }

    /// When the schedule of a record names its next time.
    pub(crate) fn due(&self, record: &Record) -> Option<u64> {
        if record.kind != Kind::Cron || record.stopped {
            return None;
        }
        let every = self.every.get(&(record.key(), record.revision))?;
        let seen_to = record.scheduled?.0;
        Some((seen_to / every + 1) * every)
    }

    /// What a newly stored record says of its runs, held against the books.
    pub(crate) fn wrong(&mut self, before: Option<&Record>, after: &Record) -> Option<String> {
        let key = after.key();
        let nothing = BTreeSet::new();
        let ended = self.completed.get(&key).unwrap_or(&nothing);
        for run in after.earlier.iter().chain(&after.run) {
            let mine = ended.range(run.first_placement..).count() as u32;
            if run.completed > mine {
                return Some(format!(
                    "run {} of {key} counts {} completions, and there were {mine}",
                    run.number, run.completed
                ));
            }
            let outcome = run.outcome.as_ref();
            if outcome.is_some_and(|one| one.completed) && run.completed < run.completions {
                return Some(format!("run {} of {key} is over too early", run.number));
            }
            let known = before.is_some_and(|before| {
                let mut known = before.earlier.iter().chain(&before.run);
                known.any(|known| known.number == run.number)
            });
            let Some(at) = run.scheduled.filter(|_| !known) else {
                continue;
            };
            if at.0 % MINUTE != 0 {
                return Some(format!("{key} is begun at {at}, which no schedule names"));
            }
            if !self.begun.entry(key.clone()).or_default().insert(at.0) {
                return Some(format!("{key} is begun a second time for {at}"));
            }
        }
        None
    }

    /// Every time that a plan's record has seen to was begun, or is said to be left out.
    pub(crate) fn left_out(&self, before: &Record, after: &Record, plan: &Plan) -> Option<String> {
        let same = (before.revision, before.stopped) == (after.revision, after.stopped);
        let (from, to) = (before.scheduled?.0, after.scheduled?.0);
        let every = self.every.get(&(after.key(), after.revision))?;
        if !same || before.kind != Kind::Cron || after.kind != Kind::Cron {
            return None;
        }
        // Nothing of it ran until now: what was due meanwhile is nobody's, as of one that is stopped.
        if before.held_bare() {
            return None;
        }
        let runs = after.earlier.iter().chain(&after.run);
        let begun: BTreeSet<u64> = runs.filter_map(|run| Some(run.scheduled?.0)).collect();
        let mut times = (from / every + 1..=to / every).map(|n| n * every);
        let missing = times.find(|time| !begun.contains(time))?;
        let said = plan.events.iter().any(|event| {
            event.kind == EventKind::CronSkipped && event.workload.as_ref() == Some(&after.name)
        });
        // Of several that are due at once, what replaces may have begun and ended in one plan.
        (!said).then(|| {
            format!(
                "{}: nothing is said of what was due at {missing}",
                after.key()
            )
        })
    }
}

impl World {
    /// The records of a plan against those it was made from.
    pub(crate) fn runs_left_out(&self, at: usize, plan: &Plan) -> Option<String> {
        let leading = self.controllers[at].leads()?;
        plan.update.iter().find_map(|after| {
            let before = &leading.cluster.workload(&after.key())?.record;
            self.laws.runs.left_out(before, after, plan)
        })
    }
}
