//! Placement sets: which are obeyed, and what changes when one is.
//!
//! Owns the rules of terms and leaders, and the comparison of a set with what is held. Placement
//! numbers are the leader's and are never given out twice, so a known number is a known placement.

use std::collections::BTreeMap;

#[cfg(test)]
use wasmorch_api::ReplicaState;
use wasmorch_api::{PlacementSet, RevisionNumber, Term, Timestamp, WorkloadKey};

use super::placement::{Placement, Replica};
use super::{Agent, Effect, Held, PlacementKey, Refusal, Timer};
use crate::planted::{self, Bug};

/// What a set says of its placements.
type Wanted = BTreeMap<PlacementKey, Placement>;

fn wanted(set: &PlacementSet) -> Wanted {
    let mut wanted = Wanted::new();
    for group in &set.groups {
        for placed in &group.slots {
            let key = PlacementKey {
                workload: group.key(),
                slot: placed.slot,
                placement: placed.placement,
            };
            wanted.insert(key, Placement::new(group.revision, placed));
        }
    }
    wanted
}

impl Agent {
    /// Takes up what the disk held: every placement, its numbering, and how it ended.
    pub(super) fn take_up(&mut self, held: Held) {
        // A data folder's host.json may be older than its placements (a crash between the two).
        self.identity
            .cluster
            .get_or_insert_with(|| held.set.cluster.clone());
        for (key, mut placement) in wanted(&held.set) {
            self.timers
                .insert((Timestamp(0), Timer::Start(key.clone())));
            placement.start_at = Some(Timestamp(0));
            self.placements.insert(key, placement);
        }
        for memory in held.placements {
            let Some(placement) = self.placements.get_mut(&memory.key) else {
                continue;
            };
            if !planted::is(Bug::StartsForgotten) {
                placement.starts = memory.starts;
            }
            if let Some(status) = memory.ended.filter(|status| status.state.ended()) {
                placement.current = Some(Replica::ended_before(&status));
                placement.finished = true;
                placement.start_at = None;
            }
        }
        for revision in held.revisions {
            if !self
                .placements_of(&revision.key(), revision.number)
                .is_empty()
            {
                self.fetches.keep(revision);
            }
        }
        self.removals.take(&held.set.removals);
        self.sequence = held.sequence;
        self.seen_term = held.set.term;
        self.set = Some(held.set);
    }

    pub(super) fn apply_set(&mut self, set: PlacementSet, sequence: u64, now: Timestamp) {
        // Read from a server that lags behind: late, and nobody's fault.
        let late = |held: &PlacementSet| {
            set.term <= held.term
                && sequence <= self.sequence
                && !planted::is(Bug::SequenceNotChecked)
        };
        if self.set.as_ref().is_some_and(late) {
            return;
        }
        if let Err(refusal) = self.check(&set, sequence) {
            let deposed = |refusal: &Refusal| {
                matches!(
                    refusal,
                    Refusal::StaleTerm { .. } | Refusal::OtherLeader { .. }
                )
            };
            self.stale_sets += u64::from(refusal.as_ref().is_some_and(deposed));
            // The first set of all also names the cluster.
            self.effects.extend(refusal.map(Effect::Refused));
            return;
        }
        let wanted = wanted(&set);
        let dropped: Vec<_> = self
            .placements
            .iter()
            .filter(|(key, placement)| placement.wanted && !wanted.contains_key(key))
            .map(|(key, _)| key.clone())
            .collect();
        // What was said in another term, perhaps of another numbering, says nothing of this set.
        let ahead = { self.withdrawn_ahead.take() }.filter(|(term, _)| set.term == *term);
        self.seen_term = self.seen_term.max(set.term);
        self.sequence = sequence;
        self.removals.take(&set.removals);
        self.set = Some(set);
        self.persist = true;
        for key in dropped {
            self.drop_placement(&key, now);
        }
        for (key, told) in wanted {
            self.take_placement(key, told, now);
        }
        if let Some((_, ahead)) = ahead {
            self.withdrawn(Some(ahead));
        }
    }

    /// What a missing set must never lead to; see `planted`.
    pub(super) fn apply_nothing(&mut self, now: Timestamp) {
        for key in self.placements.keys().cloned().collect::<Vec<_>>() {
            self.drop_placement(&key, now);
        }
    }

    /// `Err(None)`: refused, and already said so.
    fn check(&mut self, set: &PlacementSet, sequence: u64) -> Result<(), Option<Refusal>> {
        if set.host != self.identity.host {
            let (ours, theirs) = (self.identity.host.clone(), set.host.clone());
            return Err(Some(Refusal::OtherHost { ours, theirs }));
        }
        let stale = |ours: Term| Refusal::StaleTerm {
            ours,
            theirs: set.term,
            leader: set.leader.clone(),
        };
        // A set of an earlier term is in force until the new leader writes another one. But what came
        // after that leader's term had begun, the store has not taken from anybody else.
        let (begun, fence) = self.fence;
        if set.term < begun && sequence > fence && !planted::is(Bug::TermIgnored) {
            return Err(Some(stale(begun)));
        }
        if let Some(held) = &self.set {
            if set.term < held.term && !planted::is(Bug::TermIgnored) {
                return Err(Some(stale(held.term)));
            }
            let other = set.term == held.term && set.leader != held.leader;
            if other && !planted::is(Bug::EqualTermAccepted) {
                return Err(Some(Refusal::OtherLeader {
                    term: set.term,
                    ours: held.leader.clone(),
                    theirs: set.leader.clone(),
                }));
            }
        }
        if self.join(&set.cluster) {
            Ok(())
        } else {
            Err(None)
        }
    }

    fn take_placement(&mut self, key: PlacementKey, told: Placement, now: Timestamp) {
        match self.placements.get_mut(&key) {
            None => {
                self.placements.insert(key.clone(), told);
                self.start(&key, now);
            }
            // Dropped and wanted again while it drains: started anew once that has ended.
            Some(placement) if !placement.wanted => {
                placement.wanted = true;
                placement.rest = told.rest;
                placement.tries = 0;
                self.forget.remove(&key);
                if placement.live().is_none() {
                    self.start(&key, now);
                }
            }
            Some(placement) => {
                // The number is the identity; a set that changes what it means is a leader's bug.
                if placement.revision != told.revision {
                    tracing::error!(
                        workload = %key.workload, placement = %key.placement, held = %placement.revision,
                        told = %told.revision, "a placement changed its revision: ignored"
                    );
                }
                if placement.rest.is_some() != told.rest.is_some() {
                    self.shift(&key, told.rest, now);
                }
            }
        }
    }

    /// No longer in the set: ended if it lives, forgotten once that has been told. When it had
    /// ended before, the drop is the leader's acknowledgement.
    fn drop_placement(&mut self, key: &PlacementKey, now: Timestamp) {
        let Some(placement) = self.placements.get_mut(key) else {
            return;
        };
        if planted::is(Bug::DropIgnored) {
            return;
        }
        placement.wanted = false;
        placement.start_at = None;
        if placement.live().is_none() {
            self.forget.insert(key.clone());
        } else {
            self.end_replica(key, None, now);
        }
    }

    /// Forgets what has ended, was told, and is not wanted. Runs after every report.
    pub(super) fn forget_ended(&mut self) {
        for key in std::mem::take(&mut self.forget) {
            let gone = |placement: &Placement| !placement.wanted && placement.live().is_none();
            if !self.placements.get(&key).is_some_and(gone) {
                continue;
            }
            let Some(placement) = self.placements.remove(&key) else {
                continue;
            };
            if self
                .placements_of(&key.workload, placement.revision)
                .is_empty()
            {
                self.fetches
                    .drop_revision(&key.workload, placement.revision);
            }
        }
    }

    /// The placements of one workload, in the order of their slots.
    pub(super) fn of_workload(
        &self,
        workload: &WorkloadKey,
    ) -> impl Iterator<Item = (&PlacementKey, &Placement)> {
        let from = PlacementKey {
            workload: workload.clone(),
            slot: Default::default(),
            placement: Default::default(),
        };
        let placements = self.placements.range(from..);
        placements.take_while(move |(key, _)| key.workload == *workload)
    }

    /// The placements of one revision.
    pub(super) fn placements_of(
        &self,
        workload: &WorkloadKey,
        number: RevisionNumber,
    ) -> Vec<PlacementKey> {
        self.of_workload(workload)
            .filter(|(_, placement)| placement.revision == number)
            .map(|(key, _)| key.clone())
            .collect()
    }

    /// Whether a placement's replica may be started at all now.
    pub(super) fn may_start(&self, key: &PlacementKey) -> bool {
        let startable = |placement: &Placement| {
            placement.wanted && !placement.finished && placement.live().is_none()
        };
        !self.shutting_down
            && !self.removals.holds_back(&key.workload)
            && self.placements.get(key).is_some_and(startable)
    }

    /// The replica's state, for tests and traces.
    #[cfg(test)]
    pub(super) fn state_of(&self, key: &PlacementKey) -> Option<ReplicaState> {
        Some(self.placements.get(key)?.current.as_ref()?.state)
    }
}
