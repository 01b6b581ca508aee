//! Cron: which runs a schedule begins, and which it leaves out.
//!
//! Owns `Record::scheduled`: whatever the schedule names up to that time has been seen to. It moves in
//! the same record, in the same batch, as the run that it begins, so that no other leader begins it
//! again, and what a leader did not live to see is found by the next.
//!
//! Rule: the times that are due are taken in their order. One that is later than `catch_up` is left
//! out. While a run goes on, `skip` leaves the time out, `replace` ends the run and begins the last
//! time that is due, `allow` begins another, at most [`RUNS_MOST`] at once: more wait for their turn
//! until `catch_up` is over. What is left out is said, once for all that are left out together.
//! Times while the workload was stopped are nobody's. All of them are by what clocks show
//! ([`Cluster::wall`](crate::Cluster::wall)), also when these have been set forward since the term began.

use std::time::Duration;

use wasmorch_api::record::Run;
use wasmorch_api::spec::Overlap;
use wasmorch_api::{
    EventKind, HumanDuration, Kind, Record, Revision, Schedule, Timestamp, WorkloadSpec,
};

use crate::jobs;
use crate::planted::{self, Bug};
use crate::slots::Pass;
use crate::write::EventDraft;

/// Runs of one workload at once, with `overlap = "allow"`.
pub(crate) const RUNS_MOST: usize = 16;
/// Times looked at in one pass; the rest in the next.
const TIMES_MOST: usize = 1_000;
/// `catch_up` unless given.
const CATCH_UP: Duration = Duration::from_secs(3_600);
/// A time is never late before this: a leader needs a moment, and may have to be followed first.
const CATCH_UP_MIN: Duration = Duration::from_secs(10);

/// A spec's schedule, if it is a cron workload's.
pub(crate) fn schedule(spec: &WorkloadSpec) -> Option<Schedule> {
    Schedule::parse(spec.schedule.as_ref()?, spec.timezone.as_deref()).ok()
}

/// The time that comes next, by what the record has seen to.
pub(crate) fn next(record: &Record, target: &Revision) -> Option<Timestamp> {
    if target.kind != Kind::Cron || record.stopped {
        return None;
    }
    let seen_to = record.scheduled.unwrap_or(record.created);
    schedule(&target.spec)?.next_after(seen_to)
}

/// The record of a cron workload that takes this spec: nothing rolls, and times count from now on,
/// unless the schedule goes on as it was.
pub(crate) fn take(
    record: &mut Record,
    before: Option<&WorkloadSpec>,
    after: &WorkloadSpec,
    now: Timestamp,
) {
    let goes_on = before.is_some_and(|before| {
        (&before.schedule, &before.timezone) == (&after.schedule, &after.timezone)
    });
    if record.stopped {
        go_on(record, now);
    } else if !goes_on || record.scheduled.is_none() {
        from_now(record, now);
    }
    // Nothing rolls: with an atomic deploy it has arrived.
    record.rollout = record.rollout.take().filter(|one| one.together.is_some());
    let rollout = record.rollout.as_mut();
    if let Some(together) = rollout.and_then(|one| one.together.as_mut()) {
        together.arrived = true;
    }
    record.stable = Some(record.revision);
}

/// A stopped one goes on: what would have run meanwhile is not made up for, and what was running has
/// ended.
pub(crate) fn go_on(record: &mut Record, now: Timestamp) {
    record.earlier.clear();
    if let Some(run) = record.run.as_mut().filter(|run| run.outcome.is_none()) {
        run.outcome = Some(jobs::over("stopped", now));
    }
    from_now(record, now);
}

/// Times count from now on. Never back: a leader's clock may be behind that of the one before.
pub(crate) fn from_now(record: &mut Record, now: Timestamp) {
    record.scheduled = Some(record.scheduled.map_or(now, |seen_to| seen_to.max(now)));
}

impl Pass<'_> {
    /// Begins the runs that are due, and says which are left out.
    pub(crate) fn begin_due(&mut self) {
        if self.record.stopped {
            return;
        }
        let Some(schedule) = schedule(&self.target.spec) else {
            return;
        };
        let now = self.cluster.wall(self.now);
        let ahead = now.since(self.now);
        let seen_to = self.record.scheduled.unwrap_or(self.record.created);
        let late = self.late(&schedule, seen_to);
        let overlap = self.target.spec.overlap.unwrap_or_default();
        let mut at = late.unwrap_or(seen_to);
        let mut left_out: Vec<Timestamp> = Vec::new();
        let mut replaces = None;
        // It waits until there is room, or until it is too late.
        let mut full = false;
        for _ in 0..TIMES_MOST {
            let Some(next) = schedule.next_after(at) else {
                break;
            };
            if next > now {
                self.wake(next.before(ahead));
                break;
            }
            let running = self.record.runs().count();
            match overlap {
                Overlap::Skip if running > 0 => left_out.push(next),
                Overlap::Replace => left_out.extend(replaces.replace(next)),
                Overlap::Allow if running >= RUNS_MOST => {
                    full = true;
                    break;
                }
                _ => self.begin_run(next),
            }
            at = next;
            if !planted::is(Bug::ScheduledForgotten) {
                self.record.scheduled = Some(at);
            }
        }
        if let Some(at) = replaces {
            self.replace_runs(at);
        }
        if let (Some(first), Some(last)) = (left_out.first(), left_out.last()) {
            let why = match overlap {
                Overlap::Replace => "a later one was due already",
                _ => "the run before still runs",
            };
            self.say_left_out(*first, *last, left_out.len(), why);
        }
        if let Some(next) = schedule.next_after(at).filter(|_| full) {
            let until = next.after(self.catch_up() + Duration::from_millis(1));
            self.wake(until.before(ahead));
        }
    }

    fn catch_up(&self) -> Duration {
        let given = self.target.spec.catch_up;
        given.map_or(CATCH_UP, |HumanDuration(given)| given.max(CATCH_UP_MIN))
    }

    /// Leaves out what was due before it could still be made up for; until when that is.
    fn late(&mut self, schedule: &Schedule, seen_to: Timestamp) -> Option<Timestamp> {
        let catch_up = self.catch_up();
        let from = self.cluster.wall(self.now).before(catch_up);
        let first = schedule.next_after(seen_to).filter(|first| *first < from)?;
        let (mut last, mut many) = (first, 1);
        while let Some(next) = schedule
            .next_after(last)
            .filter(|next| *next < from && many < TIMES_MOST)
        {
            (last, many) = (next, many + 1);
        }
        let words = format!("missed by more than catch_up ({})", HumanDuration(catch_up));
        self.say_left_out(first, last, many, &words);
        // Everything before has been seen to, counted or not.
        let until = Timestamp(from.0.saturating_sub(1)).max(last);
        self.record.scheduled = Some(until);
        Some(until)
    }

    fn begin_run(&mut self, at: Timestamp) {
        let run = jobs::next_run(&self.record, &self.target.spec.job, None);
        let run = Run {
            scheduled: Some(at),
            ..run
        };
        let said = format!("run {}, scheduled for {at}", run.number);
        let event = EventDraft::of(self.key, EventKind::Started, said);
        self.plan.events.push(event.revision(self.record.revision));
        jobs::begin(&mut self.record, run);
    }

    /// Ends what runs and begins the run of this time.
    fn replace_runs(&mut self, at: Timestamp) {
        let running: Vec<Run> = self.record.runs().cloned().collect();
        for mut run in running {
            let reason = format!("replaced by the run scheduled for {at}");
            self.end_run(&mut run, jobs::over(&reason, self.now));
            let mut known = self.record.earlier.iter_mut().chain(&mut self.record.run);
            if let Some(known) = known.find(|known| known.number == run.number) {
                *known = run;
            }
        }
        self.record.earlier.clear();
        self.begin_run(at);
    }

    fn say_left_out(&mut self, first: Timestamp, last: Timestamp, many: usize, why: &str) {
        let said = match many {
            1 => format!("{first}: {why}"),
            many => format!("{many} times, {first} to {last}: {why}"),
        };
        let event = EventDraft::of(self.key, EventKind::CronSkipped, said);
        self.plan.events.push(event.revision(self.record.revision));
    }
}
