//! The one owner of the cluster's state while this process leads.
//!
//! ```text
//!  calls ────────▶ ┌──────────────┐ ── execute ─▶ batch ─▶ commit ─▶ answer
//!  heard (hosts) ▶ │ ControlLoop  │ ── plan ─▶ check ─▶ batches ─▶ commit ─▶ events
//!  findings ─────▶ │   Cluster    │ ── ask hosts (tasks of their own)
//!  ticks ────────▶ └──────────────┘
//! ```
//!
//! Invariants: the state changes by what hosts say and by what the store has acknowledged, nothing
//! else. One batch is on its way at a time, and the loop waits for it. When the outcome of a batch
//! is not known, or the store has refused the term, the loop ends: what it held is dropped and read
//! anew in another term.

mod answers;
mod ending;
mod execute;
mod pace;
mod planning;
mod questions;
mod recovering;

use std::time::{Duration, Instant};

use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use wasmorch_api::messages::{HeardNote, WithdrawnNote};
use wasmorch_api::{ApiError, EventKind, Timestamp};
use wasmorch_planner::{Ask, Cluster, EventDraft, Host, Observation, Write};

use crate::api::{ApiCall, Verb};
use crate::clock::{Clock, Seldom};
use crate::dispatch::{self, Batch};
use crate::ears::Asker;
use crate::events::Events;
use crate::guard::{Concern, Guard};
use crate::inbox::{Heard, Inbox};
use crate::lease::LeaseClock;
use crate::metrics::Metrics;
use crate::store::{Store, StoreError};

pub(crate) use answers::Answers;
pub(crate) use ending::End;
use ending::{ending, in_doubt, listening};
use execute::Pending;
pub use pace::Pace;
pub(crate) use questions::Finding;
pub(crate) use recovering::Recovery;
use recovering::{Recovering, Voices};

/// Time passes for the planner this often.
const TICK: Duration = Duration::from_millis(200);
/// Under a flood of messages it passes all the same after so long; the planner then takes the gap
/// for the leader's own stall.
const TICK_LATE_MAX: Duration = Duration::from_secs(1);
/// A plan that is due waits so long for what hosts have said to be heard.
const PLAN_LATE_MAX: Duration = Duration::from_secs(2);
/// Taken from the queues in one turn: calls, and statuses of replicas in what hosts say (a heartbeat
/// counts as one), some 8 µs each.
const CALLS_A_TURN: usize = 16;
const HEARD_A_TURN: usize = 16_384;
/// A store that is not ready is tried again so often, after so long each time.
const TRIES: u32 = 3;
const TRY_AGAIN: Duration = Duration::from_millis(100);
/// The same alarm is repeated this often.
const ALARM_EVERY: Duration = Duration::from_secs(10);
/// Findings on their way: one question is asked at a time.
pub(crate) const FINDINGS_MAX: usize = 4;

/// The queues that the loop reads.
#[derive(Debug)]
pub(crate) struct Inputs {
    pub(crate) calls: mpsc::Receiver<ApiCall>,
    pub(crate) heard: Inbox,
    pub(crate) findings: mpsc::Receiver<Finding>,
}

/// What a term begins with.
#[derive(Debug)]
pub(crate) struct Begin {
    pub(crate) cluster: Cluster,
    pub(crate) guard: Guard,
    pub(crate) answers: Answers,
    /// The sequence of this term's `term`.
    pub(crate) fence: u64,
    pub(crate) store: Store,
    pub(crate) lease: LeaseClock,
    pub(crate) clock: Clock,
    pub(crate) events: Events,
    pub(crate) asker: Asker,
    pub(crate) findings: mpsc::Sender<Finding>,
    pub(crate) metrics: Metrics,
}

/// How what is stored is folded in: as a user's writes, or as the last plan's.
type Commit = fn(&mut Cluster, Vec<Write>, u64, Timestamp);

/// The loop.
#[derive(Debug)]
pub(crate) struct ControlLoop {
    begin: Begin,
    pace: Pace,
    /// A question to the store is on its way.
    finding: bool,
    /// Everybody who is heard.
    voices: Voices,
    recovering: Recovering,
    frozen_said: bool,
    alarm: Seldom,
    foreign: Seldom,
    next_tick: Instant,
}

impl ControlLoop {
    pub(crate) fn new(begin: Begin) -> Self {
        let now = Instant::now();
        Self {
            begin,
            pace: Pace::new(now),
            finding: false,
            voices: Voices::default(),
            recovering: Recovering::default(),
            frozen_said: false,
            alarm: Seldom::new(ALARM_EVERY),
            foreign: Seldom::new(ALARM_EVERY),
            next_tick: now,
        }
    }

    /// Runs until the term ends: `stop` after what is in hand, `lost` at once.
    pub(crate) async fn run(
        mut self,
        mut inputs: Inputs,
        stop: CancellationToken,
        lost: CancellationToken,
    ) -> End {
        let elected = format!(
            "{} leads term {}",
            self.begin.cluster.leader, self.begin.cluster.term
        );
        self.say(vec![EventDraft::cluster(EventKind::LeaderElected, elected)]);
        loop {
            let turn = tokio::select! {
                biased;
                () = lost.cancelled() => return End::Deposed("the lease has ended".to_owned()),
                turn = self.turn(&mut inputs, &stop) => turn,
            };
            if let Err(end) = turn {
                return end;
            }
        }
    }

    /// Waits for something to do, does some of everything that waits.
    async fn turn(&mut self, inputs: &mut Inputs, stop: &CancellationToken) -> Result<(), End> {
        let wake = self
            .pace
            .due()
            .map_or(self.next_tick, |due| due.min(self.next_tick));
        let (mut call, mut heard) = (None, None);
        tokio::select! {
            () = stop.cancelled() => return Err(End::Stopped),
            one = inputs.calls.recv() => call = one,
            one = inputs.heard.take() => heard = Some(one),
            Some(finding) = inputs.findings.recv() => self.found(finding)?,
            () = tokio::time::sleep_until(wake.into()) => {}
        }
        self.begin.metrics.turned();
        // Hosts first, but no call waits for a flood of them.
        let mut statuses = 0;
        while let Some(one) = heard.take().or_else(|| inputs.heard.take_now()) {
            statuses += one.weight();
            self.hear(one);
            if statuses >= HEARD_A_TURN {
                break;
            }
        }
        let mut calls = 0;
        while let Some(one) = call.take().or_else(|| inputs.calls.try_recv().ok()) {
            self.call(one).await?;
            calls += 1;
            if calls >= CALLS_A_TURN {
                break;
            }
        }
        // Time passes only for a leader that has listened, and could hear: its own stall is not the hosts'
        // silence.
        let now = Instant::now();
        let overdue = now >= self.next_tick + TICK_LATE_MAX;
        if now >= self.next_tick && !self.begin.lease.is_fresh(now) {
            self.next_tick = now + TICK;
        } else if now >= self.next_tick && (inputs.heard.is_empty() || overdue) {
            self.next_tick = now + TICK;
            self.observe(Observation::Tick, self.begin.clock.now());
            self.follow_clock();
            if self.begin.guard.listened(self.begin.clock.now()) {
                self.pace.changed(Instant::now());
            }
            self.settle_doubt()?;
            self.gather_when_due();
        }
        if let Some(due) = self.pace.due() {
            // On all that has been heard: what thousands of hosts say at once is not planned host by host.
            let now = Instant::now();
            if due <= now && (inputs.heard.is_empty() || due + PLAN_LATE_MAX <= now) {
                self.plan().await?;
            }
        }
        self.say_frozen();
        if !inputs.heard.is_empty() {
            // Nothing above waits during a flood: what else is to run on this thread, perhaps the renewal of
            // the lease, runs now.
            tokio::task::yield_now().await;
        }
        Ok(())
    }

    // What hosts say.

    fn hear(&mut self, heard: Heard) {
        if let Observation::Heartbeat(beat) = &heard.what {
            self.voices.heard(beat, heard.at);
            let doubted = self.begin.guard.in_doubt();
            let host = self.begin.cluster.hosts().get(&beat.host);
            let stored = host.and_then(Host::set_stored);
            let concern = self.begin.guard.heard(beat, stored, heard.at);
            if doubted && !self.begin.guard.in_doubt() {
                // What was not planned until now.
                self.pace.changed(Instant::now());
            }
            match concern {
                Concern::Fine => {}
                Concern::Foreign => {
                    if let Some(more) = self.foreign.now() {
                        let (host, cluster) = (&beat.host, &beat.cluster);
                        tracing::warn!(%host, %cluster, more, "a host of another cluster is here");
                    }
                    return;
                }
                Concern::Ask(question) => self.verify_sequence(question),
            }
            // A host that this leader's writes have not touched yet still obeys the one before.
            if beat.term < self.begin.cluster.term {
                let (host, term) = (beat.host.clone(), self.begin.cluster.term);
                self.begin.asker.sync(host, term, 0);
            }
        }
        self.observe(heard.what, heard.at);
    }

    /// Schedules follow a clock that is set forward: read before time was known, or woken from a sleep.
    fn follow_clock(&mut self) {
        let (wall, now) = (self.begin.clock.wall(), self.begin.clock.now());
        if self.begin.cluster.follow_clock(wall, now) {
            let ahead_ms = wall.since(now).as_millis();
            tracing::warn!(ahead_ms, "the clock was set forward: schedules follow it");
            self.pace.changed(Instant::now());
        }
    }

    fn observe(&mut self, what: Observation, at: Timestamp) {
        let observed = self.begin.cluster.observe(what, at);
        for ask in observed.asks {
            match ask {
                Ask::Status(host) => self.begin.asker.status(host),
                Ask::Sync { host, sequence } => {
                    self.begin
                        .asker
                        .sync(host, self.begin.cluster.term, sequence);
                }
                // A deposed leader must not keep alive what another may replace.
                Ask::Heard { .. } if !self.begin.lease.holds(Instant::now()) => {}
                Ask::Heard {
                    host,
                    boot,
                    at,
                    sequence,
                } => {
                    let term = self.begin.cluster.term;
                    let note = HeardNote {
                        term,
                        boot,
                        at,
                        sequence,
                    };
                    self.begin.asker.heard(host, &note);
                }
                Ask::Withdrawn { host, set } => {
                    self.begin.asker.withdrawn(host, &WithdrawnNote { set });
                }
                Ask::NewerTerm(seen) => self.verify_term(seen),
            }
        }
        self.begin
            .events
            .publish(&observed.events, self.begin.clock.now());
        if observed.changed {
            self.pace.changed(Instant::now());
        }
    }

    // What users ask.

    async fn call(&mut self, call: ApiCall) -> Result<(), End> {
        let now = self.begin.clock.now();
        if let Some(first) = self.begin.answers.first(&call, now) {
            send(call, Ok(first));
            return Ok(());
        }
        if call.verb == Verb::Recover {
            self.recover(call);
            return Ok(());
        }
        let frozen = self.begin.guard.frozen();
        let consumers = execute::consumers(&self.begin.cluster, &call);
        let streams = execute::streams(&self.begin.cluster, &call);
        let done = aside(|| execute::execute(&self.begin.cluster, frozen, &call, now));
        let done = match done {
            Ok(done) => done,
            Err(refusal) => {
                send(call, Err(refusal));
                return Ok(());
            }
        };
        if call.verb == Verb::Plan && frozen.is_none() && self.hears_out(now) {
            // Hosts that have not said what they hold take nothing: all would be shown as unplaced.
            send(call, Err(listening()));
            return Ok(());
        }
        let kept = match &done.answer {
            Pending::Ready(reply) => self.begin.answers.to_store(&call, now, reply),
            // Records keep it.
            Pending::Deploy(..) => None,
        };
        // What changes nothing is kept too: a late copy would undo what came after it.
        let wrote = !done.writes.is_empty() || kept.is_some();
        if wrote && self.begin.guard.in_doubt() {
            let listens = !self.begin.guard.compares();
            send(call, Err(if listens { listening() } else { in_doubt() }));
            return Ok(());
        }
        if wrote {
            let batch = dispatch::whole(done.writes).and(kept);
            if let Err(error) = self.store(batch, Cluster::commit).await {
                if let Some(end) = ending(error, |refusal| send(call, Err(refusal))) {
                    return Err(end);
                }
                return Ok(());
            }
        }
        self.say(done.events);
        let mut reply = done.answer.finish(&self.begin.cluster);
        let mut planned = Ok(());
        if wrote {
            // After the removal is stored: only who leads removes data.
            let left = self.begin.store.remove_streams(&streams).await;
            reply = execute::with_kept(reply, left);
            if !consumers.is_empty() {
                // Hosts are told before what they consume from is gone: they would make that anew.
                planned = self.plan().await;
            }
            // Before the answer: whoever deploys it again gets consumers of its own.
            let left = self.begin.store.remove_consumers(&consumers).await;
            if !left.is_empty() {
                tracing::warn!(?left, "consumers of a removed workload may be left");
            }
            self.begin.answers.keep(&call, now, &reply);
            self.pace.urgent(Instant::now());
        }
        send(call, Ok(reply));
        planned
    }

    // What both need.

    /// Stores one batch and folds it in.
    async fn store(&mut self, batch: Batch, commit: Commit) -> Result<(), StoreError> {
        let began = Instant::now();
        let mut tries = 0;
        let ack = loop {
            // The store refuses a deposed leader by itself; this spares it the trouble.
            if !self.begin.lease.holds(Instant::now()) {
                return Err(StoreError::Fenced);
            }
            tries += 1;
            match self
                .begin
                .store
                .batch(self.begin.fence, &batch.entries)
                .await
            {
                Err(StoreError::NotReady(why)) if tries < TRIES => {
                    tracing::debug!(why, tries, "the store is not ready");
                    tokio::time::sleep(TRY_AGAIN).await;
                }
                other => break other,
            }
        };
        match ack {
            Ok(ack) => {
                let now = self.begin.clock.now();
                self.begin
                    .metrics
                    .stored(batch.writes.len(), began.elapsed());
                self.begin.guard.stored(ack.last_sequence);
                let cluster = &mut self.begin.cluster;
                aside(|| commit(cluster, batch.writes, ack.last_sequence, now));
                Ok(())
            }
            Err(error) => {
                self.begin.metrics.store_failed();
                if let StoreError::Full(why) = &error
                    && self.alarm.now().is_some()
                {
                    tracing::error!(why, "the store is full");
                    self.say(vec![EventDraft::cluster(
                        EventKind::AlarmFull,
                        why.as_str(),
                    )]);
                }
                Err(error)
            }
        }
    }

    /// Whether it is too soon to say what a plan would do.
    fn hears_out(&self, now: Timestamp) -> bool {
        self.begin.guard.in_doubt() || self.begin.cluster.listens(now)
    }

    /// Publishes events and remembers them for `why`.
    fn say(&mut self, events: Vec<EventDraft>) {
        let now = self.begin.clock.now();
        self.begin.cluster.remember(&events, now);
        self.begin.events.publish(&events, now);
    }

    fn say_frozen(&mut self) {
        if self.frozen_said {
            return;
        }
        if let Some(why) = self.begin.guard.frozen().map(str::to_owned) {
            self.frozen_said = true;
            tracing::error!(why, "frozen: nothing is changed");
            self.say(vec![EventDraft::cluster(EventKind::AlarmFrozen, why)]);
        }
    }
}

/// Computes for as long as it takes, in a large cluster for seconds. What waits on this thread goes to
/// another meanwhile: a task woken here last can be taken by nobody else, and when that is the
/// renewal of the lease, the lease is lost.
fn aside<T>(work: impl FnOnce() -> T) -> T {
    match Handle::current().runtime_flavor() {
        RuntimeFlavor::MultiThread => tokio::task::block_in_place(work),
        _ => work(),
    }
}

fn send(call: ApiCall, answer: Result<crate::api::Reply, ApiError>) {
    // Who asked may have given up.
    let _ = call.answer.send(answer);
}
