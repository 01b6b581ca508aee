//! Standbys: placements that are told to rest, and what wakes one.
//!
//! Owns when a prepared replica waits instead of starting. The host wakes one by itself, whoever leads or
//! whether anyone does; it runs then as any other, the leader hears of it and adopts it, and tells it to
//! rest again when nothing is asked of it for long.

use wasmorch_api::{ReplicaId, ReplicaState, Timestamp, WorkloadKey};

use super::placement::{Placement, Rest};
use super::{Agent, Effect, PlacementKey};
use crate::runner::protocol::{ReplicaKey, ToRunner};

impl Agent {
    /// A placement is told to rest, or to run.
    pub(super) fn shift(&mut self, key: &PlacementKey, rest: Option<Rest>, now: Timestamp) {
        let Some(placement) = self.placements.get_mut(key) else {
            return;
        };
        placement.rest = rest;
        placement.tries = 0;
        let Some(live) = placement.live() else {
            // It starts when its time has come, and then as told.
            return;
        };
        let state = live.state;
        self.changed
            .insert(ReplicaKey::new(key.workload.clone(), live.id));
        match state {
            ReplicaState::Starting | ReplicaState::Running if rest.is_some() => {
                placement.because = Some("idle: it rests until a request comes".to_owned());
                self.end_replica(key, None, now);
            }
            _ => self.go(key, now),
        }
    }

    /// A request has come for a workload of which nothing runs here: one of its standbys starts; the one
    /// that holds the request, whatever else runs. Asked again it changes nothing.
    pub(super) fn wake(
        &mut self,
        workload: &WorkloadKey,
        holder: Option<ReplicaId>,
        now: Timestamp,
    ) {
        let key = match holder {
            Some(id) => Some(PlacementKey::of(&ReplicaKey::new(workload.clone(), id))),
            None => self.to_wake(workload),
        };
        let asleep = |placement: &&mut Placement| {
            let sleeps = placement.rest == Some(Rest::Asleep);
            // Another start of it holds nothing.
            let holds = |id: ReplicaId| placement.live().is_some_and(|live| live.id == id);
            placement.wanted && !placement.finished && sleeps && holder.is_none_or(holds)
        };
        let Some(key) = key else { return };
        if let Some(placement) = self.placements.get_mut(&key).filter(asleep) {
            tracing::info!(%workload, slot = %key.slot, "a request wakes it");
            placement.rest = Some(Rest::Woken);
            self.go(&key, now);
        }
    }

    /// Which of the standbys of a workload, one that is prepared before others; `None`: it has none here,
    /// or something runs.
    fn to_wake(&self, workload: &WorkloadKey) -> Option<PlacementKey> {
        let mut asleep: Option<(&PlacementKey, bool)> = None;
        for (key, placement) in self.of_workload(workload) {
            if !placement.wanted || placement.finished {
                continue;
            }
            if placement.rest != Some(Rest::Asleep) {
                return None;
            }
            let prepared = placement.live().is_some_and(|live| live.prepared);
            if asleep.is_none_or(|(_, other)| prepared && !other) {
                asleep = Some((key, prepared));
            }
        }
        asleep.map(|(key, _)| key.clone())
    }

    /// Starts what is prepared, unless it sleeps.
    pub(super) fn go(&mut self, key: &PlacementKey, now: Timestamp) {
        let may = |placement: &&Placement| placement.rest != Some(Rest::Asleep);
        let placement = self.placements.get(key).filter(may);
        let live = placement.and_then(Placement::live);
        let Some(live) = live.filter(|live| live.prepared) else {
            return;
        };
        if live.state != ReplicaState::Preparing {
            return;
        }
        let replica = ReplicaKey::new(key.workload.clone(), live.id);
        self.advance(key, ReplicaState::Starting, now);
        self.effects
            .push(Effect::ToRunner(ToRunner::Start { replica }));
    }
}
