//! What removed workloads left on this host: removed once, before anything of that name starts again.
//!
//! Owns which removals of the set in force are still to be carried out, and holds starts back
//! meanwhile. How far a removal has come stands on the disk beside the data (`crate::remover`): after
//! a restart all that the set names is asked for again, and what was done is not done twice.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use wasmorch_api::{Removal, RemovalId, Timestamp, WorkloadKey};

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
pub(super) struct Removals {
    open: BTreeMap<RemovalId, (Removal, Stage)>,
    done: BTreeSet<RemovalId>,
}

impl Removals {
    /// Takes the removals of a set in place of those of the one before. One that was begun is carried
    /// out, whatever the next set says; one that waits for replicas to end is not.
    pub(super) fn take(&mut self, named: &[Removal]) {
        let ids: BTreeSet<&RemovalId> = named.iter().map(|one| &one.id).collect();
        self.done.retain(|one| ids.contains(one));
        { &mut self.open }.retain(|id, (_, stage)| *stage != Stage::Waits || ids.contains(id));
        for removal in named {
            match self.open.get_mut(&removal.id) {
                Some((open, _)) => *open = removal.clone(),
                None if self.done.contains(&removal.id) => {}
                None => {
                    self.open
                        .insert(removal.id.clone(), (removal.clone(), Stage::Waits));
                }
            }
        }
    }

    /// What is left to remove; `None` when there is nothing and was nothing.
    pub(super) fn left(&self) -> Option<Vec<RemovalId>> {
        let some = !(self.open.is_empty() && self.done.is_empty());
        some.then(|| self.open.keys().cloned().collect())
    }

    /// Whether something of this workload is still to be removed, or a container on disk that it might
    /// begin to use.
    pub(super) fn holds_back(&self, workload: &WorkloadKey) -> bool {
        let holds = |(id, (removal, stage)): (&RemovalId, &(Removal, Stage))| {
            let near = id.workload.namespace == workload.namespace;
            let takes = !removal.containers.is_empty() && *stage == Stage::Runs;
            id.workload == *workload || near && takes
        };
        !planted::is(Bug::DataNotWaited) && self.open.iter().any(holds)
    }
}

impl Agent {
    /// Has removed what can be: nothing that may write into it lives. One at a time of each workload, the
    /// earliest first. Runs after every batch of events.
    pub(super) fn remove_data(&mut self, now: Timestamp) {
        let mut last: Option<&WorkloadKey> = None;
        let (mut begun, mut late) = (Vec::new(), Vec::new());
        for (id, (removal, stage)) in &self.removals.open {
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
                late.push(removal.clone());
            } else if !writes {
                begun.push(id.clone());
            }
        }
        for id in begun {
            if let Some((removal, stage)) = self.removals.open.get_mut(&id) {
                *stage = Stage::Runs;
                self.effects.push(Effect::RemoveData(removal.clone()));
            }
        }
        for removal in late {
            tracing::warn!(workload = %removal.id.workload, "a later one of that name has begun: its data stay");
            self.data_removed(&removal, None, now);
        }
    }

    /// A removal has ended: what waited for it starts, or it is tried again.
    pub(super) fn data_removed(&mut self, removal: &Removal, failed: Option<&str>, now: Timestamp) {
        let workload = &removal.id.workload;
        if let Some(why) = failed {
            tracing::error!(%workload, why, "its data could not be removed: nothing of it starts before");
            if let Some((_, stage)) = self.removals.open.get_mut(&removal.id) {
                let at = now.after(AGAIN);
                *stage = Stage::Failed(at);
                self.timers.insert((at, Timer::Removal));
            }
            return;
        }
        if self.removals.open.remove(&removal.id).is_none() {
            return;
        }
        tracing::info!(%workload, before = %removal.id.before, "its data have been removed");
        self.removals.done.insert(removal.id.clone());
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

    pub(super) fn remove_again(&mut self, now: Timestamp) {
        for (_, stage) in self.removals.open.values_mut() {
            if matches!(stage, Stage::Failed(at) if *at <= now) {
                *stage = Stage::Waits;
            }
        }
    }
}
