//! Moves of replicas: what starts one, what the runner says of it, what ends it, what follows.
//!
//! Owns which message goes to the runner at which move, and that what the runner says too late
//! (about a replica that has moved on) changes nothing.

use std::time::Duration;

use wasmorch_api::messages::STOP_GRACE;
use wasmorch_api::{ReplicaState, Timestamp};

use super::placement::{Next, Replica, Usage, backoff, grown_from};
use super::{Agent, Effect, PlacementKey, Timer};
use crate::planted::{self, Bug};
use crate::runner::protocol::{FromRunner, Outcome, ReplicaKey, ReplicaUsage, ToRunner};

/// After the runner died, everything is started again so long afterwards.
const RUNNER_BACK: Duration = Duration::from_secs(1);
/// Up to so many answers, small changes of their count are told too; of more, a tenth is fine enough.
const ANSWERS_EXACT: u64 = 1_000;
/// Changes of usage alone, and small ones of answers, are told no more often than this.
const USAGE_EVERY: Duration = Duration::from_secs(5);

impl Agent {
    pub(super) fn start_due(&mut self, key: &PlacementKey, at: Timestamp, now: Timestamp) {
        if self
            .placements
            .get(key)
            .is_some_and(|placement| placement.start_at == Some(at))
        {
            self.start(key, now);
        }
    }

    /// Gives out the next start number and sets the replica on its way.
    pub(super) fn start(&mut self, key: &PlacementKey, now: Timestamp) {
        if !self.may_start(key) {
            return;
        }
        let Some(placement) = self.placements.get_mut(key) else {
            return;
        };
        let replica = placement.next_replica(key, now);
        let number = placement.revision;
        tracing::info!(%replica, revision = %number, to = "assigned", "replica");
        self.changed.insert(replica);
        self.persist |= !planted::is(Bug::StartNotPersisted);
        if self.fetches.revision(&key.workload, number).is_some() {
            self.prepare(key, now);
        } else {
            self.want_revision(&key.workload, number);
        }
    }

    /// The revision is known: get the artifact.
    pub(super) fn prepare(&mut self, key: &PlacementKey, now: Timestamp) {
        let Some(placement) = self.placements.get(key) else {
            return;
        };
        let assigned = |replica: &Replica| replica.state == ReplicaState::Assigned;
        if !placement.live().is_some_and(assigned) {
            return;
        }
        let revision = self.fetches.revision(&key.workload, placement.revision);
        let Some(digest) = revision.map(|revision| revision.artifact.clone()) else {
            return;
        };
        if !self.may_run(key, now) {
            self.wait_for_lease(key);
            return;
        }
        self.watch_lease(key);
        self.advance(key, ReplicaState::Preparing, now);
        self.want_artifact(&digest, key);
    }

    pub(super) fn runner_said(&mut self, message: FromRunner, now: Timestamp) {
        match message {
            FromRunner::Prepared { replica, listens } => self.prepared(&replica, listens, now),
            FromRunner::Started { replica } => self.started(&replica, now),
            FromRunner::Wake { workload, holder } => self.wake(&workload, holder, now),
            FromRunner::Rejected { replica, reason } => self.rejected(&replica, &reason, now),
            FromRunner::Health {
                replica,
                ready,
                reason,
            } => {
                self.health(&replica, ready, reason.as_deref(), now);
            }
            FromRunner::Ended { replica, outcome } => self.outcome(&replica, outcome, now),
            FromRunner::Stopped { replica } => self.stopped(&replica, now),
            FromRunner::Usage(usage) => self.used(&usage.replicas, now),
            // The pool's.
            FromRunner::Compile { .. } | FromRunner::Logs(_) | FromRunner::Pong(_) => {}
        }
    }

    fn prepared(&mut self, replica: &ReplicaKey, listens: bool, now: Timestamp) {
        let Some(live) = self.with_runner(replica) else {
            return;
        };
        live.prepared = true;
        let other = std::mem::replace(&mut live.listens, listens) != listens;
        let key = PlacementKey::of(replica);
        let rests = { self.placements.get(&key) }.is_some_and(|one| one.rest.is_some());
        if other && rests {
            self.changed.insert(replica.clone());
        }
        self.go(&key, now);
    }

    fn started(&mut self, replica: &ReplicaKey, now: Timestamp) {
        let starts = |live: &mut Replica| live.state == ReplicaState::Starting;
        if self.with_runner(replica).is_some_and(starts) {
            self.advance(&PlacementKey::of(replica), ReplicaState::Running, now);
        }
    }

    /// The replica while it lives and the runner knows it.
    fn with_runner(&mut self, replica: &ReplicaKey) -> Option<&mut Replica> {
        let placement = self.placements.get_mut(&PlacementKey::of(replica))?;
        placement
            .live_mut()
            .filter(|live| live.id == replica.id && live.with_runner)
    }

    fn rejected(&mut self, replica: &ReplicaKey, reason: &str, now: Timestamp) {
        let Some(live) = self.with_runner(replica) else {
            return;
        };
        // One that was being stopped anyway did not fail.
        let to = match live.state {
            ReplicaState::Draining => ReplicaState::Stopped,
            ReplicaState::Running => ReplicaState::Failed,
            _ => ReplicaState::Rejected,
        };
        self.ended(&PlacementKey::of(replica), to, None, Some(reason), now);
    }

    fn health(&mut self, replica: &ReplicaKey, ready: bool, reason: Option<&str>, now: Timestamp) {
        let Some(live) = self.with_runner(replica) else {
            return;
        };
        if live.state != ReplicaState::Running {
            return;
        }
        let mut changed = live.ready != ready;
        if changed {
            live.ready = ready;
            live.since = now;
        }
        match reason.filter(|_| !ready) {
            Some(reason) => changed |= live.explain(reason),
            None => changed |= live.reason.take().is_some(),
        }
        if changed {
            tracing::info!(%replica, ready, reason, "replica");
            self.changed.insert(replica.clone());
        }
    }

    fn outcome(&mut self, replica: &ReplicaKey, outcome: Outcome, now: Timestamp) {
        if self.with_runner(replica).is_none() {
            return;
        }
        let key = PlacementKey::of(replica);
        match outcome {
            Outcome::Completed { exit_code } => {
                self.ended(&key, ReplicaState::Completed, Some(exit_code), None, now);
            }
            Outcome::Failed { exit_code, reason } => {
                self.ended(&key, ReplicaState::Failed, exit_code, Some(&reason), now);
            }
            Outcome::Lost { reason } => self.lost(&key, &reason, now),
        }
    }

    fn stopped(&mut self, replica: &ReplicaKey, now: Timestamp) {
        if self.with_runner(replica).is_some() {
            self.ended(
                &PlacementKey::of(replica),
                ReplicaState::Stopped,
                None,
                None,
                now,
            );
        }
    }

    /// The replica has ended: tell it, and see what follows.
    pub(super) fn ended(
        &mut self,
        key: &PlacementKey,
        state: ReplicaState,
        exit_code: Option<i32>,
        reason: Option<&str>,
        now: Timestamp,
    ) {
        let Some(placement) = self.placements.get_mut(key) else {
            return;
        };
        let Some(live) = placement.live_mut() else {
            return;
        };
        let well_for = if live.ready {
            now.since(live.since)
        } else {
            Duration::ZERO
        };
        let told_to_stop = live.state == ReplicaState::Draining;
        let replica = ReplicaKey::new(key.workload.clone(), live.id);
        self.advance(key, state, now);
        let Some(placement) = self.placements.get_mut(key) else {
            return;
        };
        let Some(ended) = placement.current.as_mut() else {
            return;
        };
        ended.exit_code = exit_code;
        let because = placement.because.take();
        if let Some(reason) = reason.or(because.as_deref()) {
            ended.explain(reason);
        }
        self.effects.push(Effect::Ended(replica));
        if !placement.wanted {
            self.forget.insert(key.clone());
            return;
        }
        let revision = self.fetches.revision(&key.workload, placement.revision);
        let next = match state {
            // Told to end, and yet wanted: it came back into the set while it drained. How it
            // ended on the way is no failure; only a result is a result.
            ReplicaState::Stopped | ReplicaState::Failed | ReplicaState::Rejected
                if told_to_stop =>
            {
                Next::Again(Duration::ZERO)
            }
            _ => placement.after_end(revision.map(AsRef::as_ref), well_for),
        };
        match next {
            Next::Again(delay) => self.start_after(key, delay, now),
            Next::Done | Next::GiveUp => {
                placement.finished = true;
                if let Some(ended) = &mut placement.current {
                    ended.given_up = next == Next::GiveUp;
                }
                self.persist = true;
            }
        }
    }

    fn start_after(&mut self, key: &PlacementKey, delay: Duration, now: Timestamp) {
        let at = now.after(delay);
        if let Some(placement) = self.placements.get_mut(key) {
            placement.start_at = Some(at);
            if !self.shutting_down {
                self.timers.insert((at, Timer::Start(key.clone())));
            }
        }
    }

    /// Ends the placement's replica from outside; `at_most` shortens the spec's own drain.
    pub(super) fn end_replica(
        &mut self,
        key: &PlacementKey,
        at_most: Option<Duration>,
        now: Timestamp,
    ) {
        let Some(placement) = self.placements.get_mut(key) else {
            return;
        };
        let number = placement.revision;
        let Some(live) = placement.live_mut() else {
            return;
        };
        let replica = ReplicaKey::new(key.workload.clone(), live.id);
        if !live.with_runner {
            self.ended(key, ReplicaState::Stopped, None, None, now);
            return;
        }
        let revision = self.fetches.revision(&key.workload, number);
        let own = revision.map_or(Duration::ZERO, |revision| revision.spec.update.drain.0);
        let drain = at_most.map_or(own, |at_most| at_most.min(own));
        let overdue_at = now.after(drain).after(STOP_GRACE);
        let message = match live.state {
            // It drains already; a shutdown only brings the end nearer.
            ReplicaState::Draining => {
                if live.overdue_at.is_some_and(|at| overdue_at < at) {
                    self.overdue(key, overdue_at);
                }
                return;
            }
            // One that has not started may rest in some runner, and have in hand what is to wake it.
            _ => ToRunner::Drain {
                replica,
                deadline_ms: u64::try_from(drain.as_millis()).unwrap_or(u64::MAX),
            },
        };
        // By the host's own doing, no table was stored before.
        live.drains_by = at_most.is_none().then_some(self.sequence);
        self.advance(key, ReplicaState::Draining, now);
        self.overdue(key, overdue_at);
        self.effects.push(Effect::ToRunner(message));
    }

    /// The gateways of other hosts route past what drains by this set or an earlier one, or past all of it:
    /// it need not answer any longer.
    pub(super) fn withdrawn(&mut self, set: Option<u64>) {
        let ahead = set.filter(|set| *set > self.sequence);
        self.withdrawn_ahead = ahead.map(|set| (self.seen_term, set));
        for (key, placement) in &mut self.placements {
            let Some(live) = placement.live_mut() else {
                continue;
            };
            let told = set.is_none_or(|set| live.drains_by.is_some_and(|by| by <= set));
            if live.state == ReplicaState::Draining && told {
                live.drains_by = None;
                let replica = ReplicaKey::new(key.workload.clone(), live.id);
                let message = ToRunner::Withdrawn { replica };
                self.effects.push(Effect::ToRunner(message));
            }
        }
    }

    fn overdue(&mut self, key: &PlacementKey, at: Timestamp) {
        if let Some(live) = self
            .placements
            .get_mut(key)
            .and_then(|placement| placement.live_mut())
        {
            live.overdue_at = Some(at);
            self.timers.insert((at, Timer::DrainOverdue(key.clone())));
        }
    }

    /// The drain should long be over: stop it without asking, again until the runner says so.
    pub(super) fn drain_overdue(&mut self, key: &PlacementKey, at: Timestamp, now: Timestamp) {
        let Some(live) = self
            .placements
            .get_mut(key)
            .and_then(|placement| placement.live_mut())
        else {
            return;
        };
        if live.state != ReplicaState::Draining || live.overdue_at != Some(at) {
            return;
        }
        let replica = ReplicaKey::new(key.workload.clone(), live.id);
        tracing::warn!(%replica, "still there after its drain: stopping it");
        self.effects
            .push(Effect::ToRunner(ToRunner::Stop { replica }));
        self.overdue(key, now.after(STOP_GRACE));
    }

    /// Everything that the runner had is gone. It is not the replicas' failure: no start is
    /// counted against them.
    pub(super) fn runner_died(&mut self, reason: &str, now: Timestamp) {
        let known = |replica: &Replica| replica.with_runner;
        let lost: Vec<_> = self
            .placements
            .iter()
            .filter(|(_, placement)| placement.live().is_some_and(known))
            .map(|(key, _)| key.clone())
            .collect();
        for key in lost {
            self.lost(&key, reason, now);
        }
    }

    /// A replica ended with its runner: see [`Self::runner_died`].
    fn lost(&mut self, key: &PlacementKey, reason: &str, now: Timestamp) {
        let Some(placement) = self.placements.get_mut(key) else {
            return;
        };
        let Some(live) = placement.live_mut() else {
            return;
        };
        let replica = ReplicaKey::new(key.workload.clone(), live.id);
        let state = match live.state {
            ReplicaState::Draining => ReplicaState::Stopped,
            ReplicaState::Running => ReplicaState::Failed,
            _ => ReplicaState::Rejected,
        };
        placement.tries = placement.tries.saturating_sub(1);
        let wanted = placement.wanted;
        self.advance(key, state, now);
        if let Some(ended) = self
            .placements
            .get_mut(key)
            .and_then(|placement| placement.current.as_mut())
        {
            ended.explain(&format!("the runner ended: {reason}"));
        }
        self.effects.push(Effect::Ended(replica));
        if wanted {
            self.start_after(key, backoff(RUNNER_BACK, RUNNER_BACK, 1), now);
        } else {
            self.forget.insert(key.clone());
        }
    }

    fn used(&mut self, usages: &[ReplicaUsage], now: Timestamp) {
        let tell = now.since(self.usage_reported) >= USAGE_EVERY;
        let mut told = false;
        for usage in usages {
            let Some(live) = self.with_runner(&usage.replica) else {
                continue;
            };
            live.usage = Usage::from(usage);
            // Counts only grow; a runner that has just come back does not know all of them.
            if usage.answers.requests >= live.answers.requests {
                live.answers = usage.answers;
            }
            let few = live.answers.requests <= ANSWERS_EXACT;
            let answered = few && live.answers != live.answers_told;
            if tell && (live.usage.moved_from(live.usage_told) || answered) {
                self.changed.insert(usage.replica.clone());
                told = true;
            } else if grown_from(live.answers, live.answers_told) {
                self.changed.insert(usage.replica.clone());
            }
        }
        if told {
            self.usage_reported = now;
        }
    }

    pub(super) fn advance(&mut self, key: &PlacementKey, to: ReplicaState, now: Timestamp) {
        let Some(placement) = self.placements.get_mut(key) else {
            return;
        };
        let Some(replica) = placement.current.as_mut() else {
            return;
        };
        let name = ReplicaKey::new(key.workload.clone(), replica.id);
        tracing::info!(replica = %name, from = %replica.state, %to, "replica");
        replica.advance(to, now);
        if to.ended() && planted::is(Bug::EndNotTold) {
            return;
        }
        self.changed.insert(name);
    }
}
