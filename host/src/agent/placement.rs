//! One placement and its replicas: the state machine that only moves forward, and the arithmetic
//! of starting again.
//!
//! Owns what a placement remembers between events. It must not know sets, fetches or effects.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use wasmorch_api::spec::RestartPolicy;
use wasmorch_api::{
    Answers, PlacedSlot, ReplicaId, ReplicaState, ReplicaStatus, Revision, RevisionNumber,
    Timestamp,
};

use super::{PAST_MAX, PlacementKey, REASON_BYTES_MAX, STEADY};
use crate::planted::{self, Bug};
use crate::runner::protocol::{ReplicaKey, ReplicaUsage};

/// "This slot, this revision, here", and every start of it.
#[derive(Debug)]
pub(super) struct Placement {
    pub(super) revision: RevisionNumber,
    pub(super) args: Option<Arc<Vec<String>>>,
    /// It is told to rest, and does or not; `None`: it is told to run.
    pub(super) rest: Option<Rest>,
    /// In the set in force. One that is not is only waiting for its replica to end.
    pub(super) wanted: bool,
    /// Start numbers given out.
    pub(super) starts: u32,
    /// Starts in a row that did not go well for long.
    pub(super) tries: u32,
    /// The newest start, ended or not.
    pub(super) current: Option<Replica>,
    /// Starts before it, oldest first.
    pub(super) past: VecDeque<ReplicaStatus>,
    /// When to start again.
    pub(super) start_at: Option<Timestamp>,
    /// It will not be started again.
    pub(super) finished: bool,
    /// It is assigned, and goes on when a leader hears this host.
    pub(super) waits_for_lease: bool,
    /// Why it is being ended, when that is the host's own doing.
    pub(super) because: Option<String>,
}

/// A placement that is told to rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rest {
    /// It is prepared, and stays so.
    Asleep,
    /// A request has come: it runs until it is told anew.
    Woken,
}

/// One start.
#[derive(Debug)]
pub(super) struct Replica {
    pub(super) id: ReplicaId,
    pub(super) state: ReplicaState,
    pub(super) ready: bool,
    pub(super) since: Timestamp,
    pub(super) reason: Option<String>,
    pub(super) exit_code: Option<i32>,
    pub(super) given_up: bool,
    /// The runner has been told of it.
    pub(super) with_runner: bool,
    /// The runner has prepared it: it could start.
    pub(super) prepared: bool,
    /// And what comes for it finds it there.
    pub(super) listens: bool,
    /// When its drain is over at the latest, grace included.
    pub(super) overdue_at: Option<Timestamp>,
    /// The set by which it drains, while that says more than that it does.
    pub(super) drains_by: Option<u64>,
    pub(super) usage: Usage,
    /// The usage that the leader was last told.
    pub(super) usage_told: Usage,
    /// How it has answered: kept when it ends, for its revision is judged by it all the same.
    pub(super) answers: Answers,
    /// What of that the leader was last told.
    pub(super) answers_told: Answers,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Usage {
    pub(super) memory_bytes: u64,
    pub(super) cpu_millis: u64,
    pub(super) in_flight: u64,
    pub(super) request_millis: u64,
    pub(super) pending: u64,
}

impl Usage {
    /// Worth telling: a number moved by more than a tenth and more than noise.
    pub(super) fn moved_from(self, told: Self) -> bool {
        let moved = |now: u64, then: u64, noise: u64| now.abs_diff(then) > noise.max(then / 10);
        moved(self.memory_bytes, told.memory_bytes, 1 << 20)
            || moved(self.cpu_millis, told.cpu_millis, 20)
            || moved(self.in_flight, told.in_flight, 0)
    }
}

impl From<&ReplicaUsage> for Usage {
    fn from(usage: &ReplicaUsage) -> Self {
        Self {
            memory_bytes: usage.memory_bytes,
            cpu_millis: usage.cpu_millis,
            in_flight: usage.in_flight,
            request_millis: usage.request_millis,
            pending: usage.pending,
        }
    }
}

/// Whether answers are worth telling at once: a count has grown by a tenth, so that whoever judges by
/// it is never further off. That is told often while there is little, and some hundred times in all.
pub(super) fn grown_from(now: Answers, told: Answers) -> bool {
    let grown = |now: u64, told: u64| now > told.saturating_add(told / 10);
    grown(now.requests, told.requests)
        || grown(now.errors, told.errors)
        || grown(now.slow, told.slow)
}

/// What follows when a replica has ended by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// Start again after this.
    Again(Duration),
    /// It did what it should: never again.
    Done,
    /// The leader's turn.
    GiveUp,
}

impl Placement {
    pub(super) fn new(revision: RevisionNumber, told: &PlacedSlot) -> Self {
        Self {
            revision,
            args: told.args.clone(),
            rest: told.standby.then_some(Rest::Asleep),
            wanted: true,
            starts: 0,
            tries: 0,
            current: None,
            past: VecDeque::new(),
            start_at: None,
            finished: false,
            waits_for_lease: false,
            because: None,
        }
    }

    /// The replica that has not ended.
    pub(super) fn live(&self) -> Option<&Replica> {
        self.current
            .as_ref()
            .filter(|replica| !replica.state.ended())
    }

    /// The replica that has not ended.
    pub(super) fn live_mut(&mut self) -> Option<&mut Replica> {
        self.current
            .as_mut()
            .filter(|replica| !replica.state.ended())
    }

    /// Started once, or ended in trying.
    pub(super) fn settled(&self) -> bool {
        let sleeps = self.rest == Some(Rest::Asleep);
        let running = |replica: &Replica| {
            replica.state >= ReplicaState::Running || sleeps && replica.prepared
        };
        !self.wanted
            || self.finished
            || self.waits_for_lease
            || self.starts > 0 && self.current.as_ref().is_some_and(running)
            || !self.past.is_empty()
    }

    /// Numbers the next start and makes it the current replica.
    pub(super) fn next_replica(&mut self, key: &PlacementKey, now: Timestamp) -> ReplicaKey {
        if let Some(ended) = self.current.take() {
            debug_assert!(
                ended.state.ended(),
                "{key:?} is started while {ended:?} lives"
            );
            let status = self.status(key, &ended);
            self.past.push_back(status);
            while self.past.len() > PAST_MAX {
                self.past.pop_front();
            }
        }
        self.start_at = None;
        self.waits_for_lease = false;
        self.starts = self.starts.saturating_add(1);
        self.tries = self.tries.saturating_add(1);
        let id = ReplicaId {
            slot: key.slot,
            placement: key.placement,
            start: self.starts,
        };
        self.current = Some(Replica::new(id, now));
        ReplicaKey::new(key.workload.clone(), id)
    }

    /// What follows now that the current replica has ended by itself.
    pub(super) fn after_end(&mut self, revision: Option<&Revision>, well_for: Duration) -> Next {
        let Some(state) = self.current.as_ref().map(|replica| replica.state) else {
            return Next::Done;
        };
        let Some(revision) = revision else {
            return Next::GiveUp;
        };
        let spec = &revision.spec;
        let ends = revision.kind.ends();
        // The spec's own kind may be empty; the revision's word counts.
        let policy = spec.restart.policy.unwrap_or(if ends {
            RestartPolicy::OnFailure
        } else {
            RestartPolicy::Always
        });
        let completed = state == ReplicaState::Completed;
        if completed && (ends || policy != RestartPolicy::Always) {
            return Next::Done;
        }
        if policy == RestartPolicy::Never {
            return Next::GiveUp;
        }
        if well_for >= STEADY || planted::is(Bug::BackoffReset) {
            self.tries = 0;
        }
        let mut limit = spec.restart.starts_per_host;
        if ends {
            limit = limit.min(spec.job.attempts);
        }
        if self.tries >= limit.max(1) {
            return Next::GiveUp;
        }
        Next::Again(backoff(
            spec.restart.backoff.0,
            spec.restart.backoff_max.0,
            self.tries,
        ))
    }

    /// It rests, and what comes for it wakes it.
    fn listens(&self, replica: &Replica) -> bool {
        let waits = replica.state == ReplicaState::Preparing && replica.prepared;
        self.rest.is_some() && waits && replica.listens
    }

    /// A replica of this placement as the leader sees it.
    pub(super) fn status(&self, key: &PlacementKey, replica: &Replica) -> ReplicaStatus {
        ReplicaStatus {
            namespace: key.workload.namespace.clone(),
            workload: key.workload.name.clone(),
            replica: replica.id,
            revision: self.revision,
            state: replica.state,
            ready: replica.ready,
            since: replica.since,
            reason: replica.reason.clone(),
            exit_code: replica.exit_code,
            given_up: replica.given_up,
            standby: self.rest.is_some(),
            listens: self.listens(replica),
            memory_bytes: replica.usage.memory_bytes,
            cpu_millis: replica.usage.cpu_millis,
            in_flight: replica.usage.in_flight,
            answers: replica.answers,
        }
    }
}

/// Doubles from `first` with every try, up to `max`.
pub(super) fn backoff(first: Duration, max: Duration, tries: u32) -> Duration {
    let factor = 1u32
        .checked_shl(tries.saturating_sub(1))
        .unwrap_or(u32::MAX);
    first.saturating_mul(factor).min(max.max(first))
}

impl Replica {
    fn new(id: ReplicaId, now: Timestamp) -> Self {
        Self {
            id,
            state: ReplicaState::Assigned,
            ready: false,
            since: now,
            reason: None,
            exit_code: None,
            given_up: false,
            with_runner: false,
            prepared: false,
            listens: false,
            overdue_at: None,
            drains_by: None,
            usage: Usage::default(),
            usage_told: Usage::default(),
            answers: Answers::default(),
            answers_told: Answers::default(),
        }
    }

    /// One that ended before this start of the daemon.
    pub(super) fn ended_before(status: &ReplicaStatus) -> Self {
        Self {
            state: status.state,
            reason: status.reason.clone(),
            exit_code: status.exit_code,
            given_up: status.given_up,
            answers: status.answers,
            ..Self::new(status.replica, status.since)
        }
    }

    /// Moves forward. A backward move is a bug of the caller.
    pub(super) fn advance(&mut self, next: ReplicaState, now: Timestamp) {
        debug_assert!(
            self.state.may_become(next),
            "replica {} may not move from {} to {next}",
            self.id,
            self.state
        );
        if !self.state.may_become(next) {
            return;
        }
        self.state = next;
        self.since = now;
        self.ready = false;
        self.reason = None;
        if next.ended() {
            self.usage = Usage::default();
        }
    }

    /// Sets the reason; `true` when it is a new one.
    pub(super) fn explain(&mut self, reason: &str) -> bool {
        let reason = cut(reason);
        let new = self.reason.as_deref() != Some(reason);
        if new {
            self.reason = Some(reason.to_owned());
        }
        new
    }
}

fn cut(text: &str) -> &str {
    let mut end = text.len().min(REASON_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}
