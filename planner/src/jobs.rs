//! Jobs: runs that end by themselves, with as many completions as wanted and so many replicas at once.
//!
//! Owns [`Run`]: its seats, its count, its tries, its end. When a cron workload begins one is `cron`'s.
//!
//! Rule: a run fills as many of its seats as it has completions left. A replica that ends well is
//! counted once: its number stays in `counted` until no set names it, however the batch with both
//! was cut. A host's attempts go first (`starts_per_host`, at most `attempts`); what it has given up
//! is tried on another host until `attempts` are used up, and then the run has failed and ends
//! whatever is left of it. A lost host is nobody's attempt.
//!
//! Known limit: the number of tries on a second host is taken from the starts of its replica, so
//! there a start after the runner died counts as one.

use std::collections::BTreeSet;

use wasmorch_api::record::{Run, RunOutcome};
use wasmorch_api::spec::{Job, RestartPolicy};
use wasmorch_api::{
    EventKind, Kind, Record, ReplicaState, ReplicaStatus, RolloutState, Slot, Timestamp,
};

use crate::moves;
use crate::plan::StopReason;
use crate::planted::{self, Bug};
use crate::rollout;
use crate::slots::{Pass, Seat, Standing};
use crate::write::EventDraft;

/// The next run of a workload, beside those that go on.
pub(crate) fn next_run(record: &Record, job: &Job, args: Option<Vec<String>>) -> Run {
    let number = record.run.as_ref().map_or(1, |run| run.number + 1);
    let mut run = Run::new(number, record.next_placement, args, job);
    let mut others: Vec<&Run> = record.runs().collect();
    others.sort_by_key(|run| run.after_slot);
    for other in others {
        if other.slots().start() > run.slots().end() {
            break;
        }
        run.after_slot = other.slots().end().0;
    }
    run
}

/// Begins a run; the one before goes on.
pub(crate) fn begin(record: &mut Record, run: Run) {
    let before = record.run.replace(run);
    record
        .earlier
        .extend(before.filter(|run| run.outcome.is_none()));
}

/// Begins a run in place of all that go on.
pub(crate) fn begin_alone(record: &mut Record, job: &Job, args: Option<Vec<String>>) {
    record.earlier.clear();
    let run = next_run(record, job, args);
    record.run = Some(Run {
        after_slot: 0,
        ..run
    });
}

/// An end that came from outside.
pub(crate) fn over(reason: &str, at: Timestamp) -> RunOutcome {
    RunOutcome {
        completed: false,
        exit_code: None,
        reason: reason.to_owned(),
        at,
    }
}

impl Pass<'_> {
    /// The runs of a job or a cron workload.
    pub(crate) fn jobs(&mut self) {
        let runs: Vec<Run> = self.record.runs().cloned().collect();
        let seats: Vec<Seat> = self.seats.values().cloned().collect();
        for seat in seats {
            let placed = &seat.placed;
            if !runs.iter().any(|run| run.has(placed.slot, seat.number)) {
                self.stop_if_heard(&seat, StopReason::NotWanted);
            }
        }
        for mut run in runs {
            let ended = self.go_on(&mut run);
            if let Some(outcome) = ended {
                self.end_run(&mut run, outcome);
            }
            let mut known = self.record.earlier.iter_mut().chain(&mut self.record.run);
            if let Some(known) = known.find(|known| known.number == run.number) {
                *known = run;
            }
        }
        self.record.earlier.retain(|run| run.outcome.is_none());
    }

    /// One run: counts what has ended, fills the seats that are free; how it ended, if it has.
    fn go_on(&mut self, run: &mut Run) -> Option<RunOutcome> {
        let held = &self.workload.placements;
        run.counted.retain(|number| held.contains_key(number));
        let seats: Vec<Seat> = { self.seats.values() }
            .filter(|seat| run.has(seat.placed.slot, seat.number))
            .cloned()
            .collect();
        let mut filled: BTreeSet<Slot> = BTreeSet::new();
        let mut failed = None;
        let mut exit_code = None;
        for seat in seats {
            let slot = seat.placed.slot;
            if run.counted.contains(&seat.number) && !planted::is(Bug::CompletionCountedTwice) {
                self.stop_if_heard(&seat, StopReason::Ended);
                continue;
            }
            let status = self.status_of(&seat);
            match seat.standing {
                Standing::Starting | Standing::Unready(_) | Standing::Ready(_)
                    if moves::overdue(self, &seat) =>
                {
                    self.stop(&seat, StopReason::Overdue);
                }
                // Beyond a drain's deadline nothing stays, not even for want of another host.
                Standing::Gone if !moves::overdue(self, &seat) && self.nowhere_else(&seat) => {
                    filled.insert(slot);
                }
                Standing::Gone => self.stop(&seat, StopReason::HostDead),
                Standing::Done => {
                    self.stop(&seat, StopReason::Ended);
                    run.counted.insert(seat.number);
                    run.tries.remove(&slot);
                    run.completed += 1;
                    exit_code = status.and_then(|status| status.exit_code);
                }
                _ if self.tries_of(run, &seat, status.as_ref()).is_some() => {
                    let tries = self.tries_of(run, &seat, status.as_ref()).unwrap_or(0);
                    self.stop(&seat, StopReason::GivenUp);
                    run.counted.insert(seat.number);
                    run.tries.insert(slot, tries);
                    if tries >= self.tries_max() {
                        failed = status;
                    }
                }
                _ if filled.contains(&slot) => self.stop_if_heard(&seat, StopReason::Duplicate),
                _ => drop(filled.insert(slot)),
            }
        }
        let over = if let Some(status) = failed {
            Some(RunOutcome {
                completed: false,
                exit_code: status.exit_code,
                reason: status.reason.unwrap_or_default(),
                at: self.now,
            })
        } else {
            (run.completed >= run.completions).then_some(RunOutcome {
                completed: true,
                exit_code,
                reason: String::new(),
                at: self.now,
            })
        };
        if over.is_none() {
            self.fill_seats(run, &filled);
        }
        over
    }

    fn fill_seats(&mut self, run: &Run, filled: &BTreeSet<Slot>) {
        let mut free = u64::from(run.wanted()).saturating_sub(filled.len() as u64);
        let slots = (run.slots().start().0..=run.slots().end().0).map(Slot);
        for slot in slots {
            if free == 0 {
                return;
            }
            // What is left of an earlier run on a host that has not been heard from cannot be ended yet.
            if self.seats_of(slot).next().is_some() {
                continue;
            }
            self.start(slot, run.args.clone());
            free -= 1;
        }
    }

    fn status_of(&self, seat: &Seat) -> Option<ReplicaStatus> {
        let known = self.workload.reports.get(&seat.number);
        let known = known.filter(|known| known.host == seat.placed.host);
        known.map(|known| known.status.clone())
    }

    /// Tries that a completion may have.
    fn tries_max(&self) -> u32 {
        let spec = &self.target.spec;
        match spec.restart.policy {
            Some(RestartPolicy::Never) => 1,
            _ => spec.job.attempts.max(1),
        }
    }

    /// The tries of a seat's completion when this host is done with it; `None`: it goes on.
    fn tries_of(&self, run: &Run, seat: &Seat, status: Option<&ReplicaStatus>) -> Option<u32> {
        let most = self.tries_max();
        let before = run.tries.get(&seat.placed.slot).copied().unwrap_or(0);
        let here = self.target.spec.restart.starts_per_host.max(1).min(most);
        if seat.standing == Standing::GivenUp {
            return Some(before.saturating_add(here));
        }
        // The host would go on with its own number of starts; the run has fewer left.
        let status = status.filter(|_| before > 0 && seat.standing == Standing::Starting)?;
        let ended = matches!(status.state, ReplicaState::Failed | ReplicaState::Rejected);
        let all = before.saturating_add(status.replica.start);
        (ended && all >= most).then_some(all)
    }

    /// The run is over: what is left of it ends, and it is said.
    pub(crate) fn end_run(&mut self, run: &mut Run, outcome: RunOutcome) {
        let left: Vec<Seat> = { self.seats.values() }
            .filter(|seat| run.has(seat.placed.slot, seat.number))
            .cloned()
            .collect();
        for seat in left {
            self.stop_if_heard(&seat, StopReason::NotWanted);
        }
        let (completed, reason) = (outcome.completed, outcome.reason.clone());
        let said = match (completed, run.completions) {
            (true, 1) => format!("exit code {}", outcome.exit_code.unwrap_or(0)),
            (true, many) => format!("{many} of {many} completions"),
            (false, 1) => reason.clone(),
            (false, many) => format!("after {} of {many} completions: {reason}", run.completed),
        };
        let kind = if completed {
            EventKind::JobCompleted
        } else {
            EventKind::JobFailed
        };
        self.plan.events.push(EventDraft::of(self.key, kind, said));
        run.outcome = Some(outcome);
        if completed {
            self.record.stable = Some(self.record.revision);
        }
        // What ends while another revision is held is the one before's, and how a cron workload's run ends
        // says nothing of the deploy.
        let active = self.record.active_rollout().is_some();
        if !active || self.record.held().is_some() || self.target.kind == Kind::Cron {
            return;
        }
        if completed {
            let (state, kind) = (RolloutState::Completed, EventKind::RolloutCompleted);
            rollout::end(self, state, kind, "the job completed");
        } else {
            rollout::set_reason(self, &reason);
            rollout::end(
                self,
                RolloutState::Failed,
                EventKind::RolloutFailed,
                &reason,
            );
        }
    }
}
