//! What removed workloads left on this host: removed once, before anything of that name starts again.
//!
//! Owns which removals of the set in force are still to be carried out, and holds starts back
//! meanwhile. How far a removal has come stands on the disk beside the data (`crate::forget`): after
//! a restart all that the set names is asked for again, and what was done is not done twice.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use wasmorch_api::{Forget, ForgetId, Timestamp, WorkloadKey};

use super::{Agent, Effect, PlacementKey, Timer};
use crate::planted::{self, Bug};

/// A removal that failed is tried again after so long.
const AGAIN: Duration = Duration::from_secs(10);

/// How far a removal has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// A replica that may write into it has not ended.
    Waits,
    /// The disk is at it.
    Runs,
    /// It failed, and is tried again then.
    Failed(Timestamp),
}

/// The removals of the set in force.
#[derive(Debug, Default)]
pub(super) struct Forgets {
    open: BTreeMap<ForgetId, (Forget, Stage)>,
    done: BTreeSet<ForgetId>,
}

impl Forgets {
    /// Takes the removals of a set in place of those of the one before. One that was begun is carried
    /// out, whatever the next set says; one that waits for replicas to end is not.
    pub(super) fn take(&mut self, forgets: &[Forget]) {
        let named: BTreeSet<ForgetId> = forgets.iter().map(Forget::id).collect();
        self.done.retain(|one| named.contains(one));
        { &mut self.open }.retain(|id, (_, stage)| *stage != Stage::Waits || named.contains(id));
        for forget in forgets {
            let which = forget.id();
            match self.open.get_mut(&which) {
                Some((open, _)) => *open = forget.clone(),
                None if self.done.contains(&which) => {}
                None => {
                    self.open.insert(which, (forget.clone(), Stage::Waits));
                }
            }
        }
    }

    /// What is left to remove; `None` when there is nothing and was nothing.
    pub(super) fn left(&self) -> Option<Vec<ForgetId>> {
        let some = !(self.open.is_empty() && self.done.is_empty());
        some.then(|| self.open.keys().cloned().collect())
    }

    /// Whether something of this workload is still to be removed, or a container on disk that it might
    /// begin to use.
    pub(super) fn holds_back(&self, workload: &WorkloadKey) -> bool {
        let holds = |(id, (forget, stage)): (&ForgetId, &(Forget, Stage))| {
            let near = id.workload.namespace == workload.namespace;
            let takes = !forget.containers.is_empty() && *stage == Stage::Runs;
            id.workload == *workload || near && takes
        };
        !planted::is(Bug::DataNotWaited) && self.open.iter().any(holds)
    }
}

impl Agent {
    /// Has removed what can be: nothing that may write into it lives. One at a time of each workload, the
    /// earliest first. Runs after every batch of events.
    pub(super) fn forget_data(&mut self, now: Timestamp) {
        let mut last: Option<&WorkloadKey> = None;
        let (mut begun, mut late) = (Vec::new(), Vec::new());
        for (id, (forget, stage)) in &self.forgets.open {
            let first = last.replace(&id.workload) != Some(&id.workload);
            if !first || *stage != Stage::Waits {
                continue;
            }
            let of = || self.of_workload(&id.workload);
            let writes = of().any(|(key, held)| {
                key.placement < id.before && (held.live().is_some() || held.wanted)
            });
            // Told too late, by a store that was lost: what is there is no longer that one's.
            if of().any(|(key, held)| key.placement >= id.before && held.starts > 0) {
                late.push(forget.clone());
            } else if !writes {
                begun.push(id.clone());
            }
        }
        for id in begun {
            if let Some((forget, stage)) = self.forgets.open.get_mut(&id) {
                *stage = Stage::Runs;
                self.effects.push(Effect::Forget(forget.clone()));
            }
        }
        for forget in late {
            tracing::warn!(workload = %forget.id().workload, "a later one of that name has begun: its data stay");
            self.forgotten(&forget, None, now);
        }
    }

    /// A removal has ended: what waited for it starts, or it is tried again.
    pub(super) fn forgotten(&mut self, forget: &Forget, failed: Option<&str>, now: Timestamp) {
        let which = forget.id();
        let workload = which.workload.clone();
        if let Some(why) = failed {
            tracing::error!(%workload, why, "its data could not be removed: nothing of it starts before");
            if let Some((_, stage)) = self.forgets.open.get_mut(&which) {
                let at = now.after(AGAIN);
                *stage = Stage::Failed(at);
                self.timers.insert((at, Timer::Forget));
            }
            return;
        }
        if self.forgets.open.remove(&which).is_none() {
            return;
        }
        tracing::info!(%workload, before = %forget.before, "its data have been removed");
        self.forgets.done.insert(which);
        let near = |key: &PlacementKey| key.workload.namespace == workload.namespace;
        let waiting: Vec<_> = { self.placements.iter() }
            .filter(|(key, _)| near(key))
            .filter(|(_, placement)| placement.start_at.is_none_or(|at| at <= now))
            .map(|(key, _)| key.clone())
            .collect();
        for key in waiting {
            self.start(&key, now);
        }
    }

    pub(super) fn forget_again(&mut self, now: Timestamp) {
        for (_, stage) in self.forgets.open.values_mut() {
            if matches!(stage, Stage::Failed(at) if *at <= now) {
                *stage = Stage::Waits;
            }
        }
    }
}
