//! What removed workloads left on this host: removed once, before anything of that name starts again.
//!
//! Owns which removals of the set in force are still to be carried out, and holds starts back
//! meanwhile. How far a removal has come stands on the disk beside the data (`crate::forget`): after
//! a restart all that the set names is asked for again, and what was done is not done twice.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use wasmorch_api::{Forget, PlacementNumber, Timestamp, WorkloadKey};

use super::{Agent, Effect, Timer};
use crate::planted::{self, Bug};

/// A removal that failed is tried again after so long.
const AGAIN: Duration = Duration::from_secs(10);

/// One removal: of whom, up to which placement, and when it was asked for.
pub(super) type Which = (WorkloadKey, PlacementNumber, Timestamp);

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
    open: BTreeMap<Which, (Forget, Stage)>,
    done: BTreeSet<Which>,
}

impl Forgets {
    /// Takes the removals of a set in place of those of the one before. One that was begun is carried
    /// out, whatever the next set says.
    pub(super) fn take(&mut self, forgets: &[Forget]) {
        let named: BTreeSet<Which> = forgets.iter().map(which).collect();
        self.done.retain(|one| named.contains(one));
        for forget in forgets {
            let which = which(forget);
            match self.open.get_mut(&which) {
                Some((open, _)) => *open = forget.clone(),
                None if self.done.contains(&which) => {}
                None => {
                    self.open.insert(which, (forget.clone(), Stage::Waits));
                }
            }
        }
    }

    /// Whether there is nothing left to remove.
    pub(super) fn all_done(&self) -> bool {
        self.open.is_empty()
    }

    /// Whether something of this workload is still to be removed.
    pub(super) fn holds_back(&self, workload: &WorkloadKey) -> bool {
        !planted::is(Bug::DataNotWaited) && { self.open.keys() }.any(|(key, ..)| key == workload)
    }
}

fn which(forget: &Forget) -> Which {
    (forget.key(), forget.before, forget.at)
}

impl Agent {
    /// Has removed what can be: nothing that may write into it lives. One at a time of each workload, the
    /// earliest first. Runs after every batch of events.
    pub(super) fn forget_data(&mut self) {
        if self.forgets.all_done() {
            return;
        }
        let mut last: Option<WorkloadKey> = None;
        let mut begun = Vec::new();
        for (which, (_, stage)) in &self.forgets.open {
            let (key, before, _) = which;
            let first = last.as_ref() != Some(key);
            last = Some(key.clone());
            let writes = self.of_workload(key).any(|(placement, held)| {
                placement.placement < *before && (held.live().is_some() || held.wanted)
            });
            if first && *stage == Stage::Waits && !writes {
                begun.push(which.clone());
            }
        }
        for which in begun {
            if let Some((forget, stage)) = self.forgets.open.get_mut(&which) {
                *stage = Stage::Runs;
                self.effects.push(Effect::Forget(forget.clone()));
            }
        }
    }

    /// A removal has ended: what waited for it starts, or it is tried again.
    pub(super) fn forgotten(&mut self, forget: &Forget, failed: Option<&str>, now: Timestamp) {
        let which = which(forget);
        let workload = forget.key();
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
        let waiting: Vec<_> = { self.of_workload(&workload) }
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
