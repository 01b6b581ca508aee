//! Carries the agent's effects out and brings it what happens: the daemon's one loop.
//!
//! ```text
//!  link (NATS) --LinkEvent-->+                 +--> files: persist, before what rests on it
//!  runners -----FromRunner-->|  one task:      +--> fetch tasks (revisions, artifacts) --> events
//!  fetch tasks -----Event--->|  agent.handle   +--> runners (pool)
//!  clock ---------Tick------>+  _all(batch)    +--> link: reports;  heartbeat's facts;  admin's view
//! ```
//!
//! Owns the agent and everything that its effects need. Invariants: the loop awaits nothing but
//! its inputs and the disk (for what must be on it first); a runner that does not read, a server
//! that is away, a slow fetch hold up nothing else; every task it spawns is joined when it ends.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, sleep_until};
use tokio_util::sync::CancellationToken;
use wasmorch_api::{Heartbeat, HostInfo};

use crate::admin::{View, Views};
use crate::agent::{Agent, Effect, Event};
use crate::artifacts::Artifacts;
use crate::certificates::Accepted;
use crate::error::HostError;
use crate::files::{DataDir, HostFile};
use crate::link::{Link, LinkEvent};
use crate::logs::LogStore;
use crate::pool::{Pool, Said};
use crate::remover::Remover;
use crate::runner::protocol::{FromRunner, ToRunner};
use crate::tables::{TableChange, Tables};

mod beside;
mod clock;
mod early_beat;
mod live;

pub use clock::Clock;
use early_beat::EarlyBeat;
use live::LiveLines;

/// Asks for usage, writes what may wait, that often.
const TICK: Duration = Duration::from_secs(1);
/// Events folded in together: one write to disk and one report for all of them.
const BATCH: usize = 256;
/// Questions to the store at once.
const READS_MAX: usize = 32;
/// Artifacts that nobody uses are looked for that often.
const PRUNE_EVERY: Duration = Duration::from_secs(600);
/// For runners to say that replicas have drained.
const DRAIN_GRACE: Duration = Duration::from_secs(1);

/// What the driver works with.
pub(crate) struct Parts {
    pub(crate) agent: Agent,
    pub(crate) data: Arc<DataDir>,
    pub(crate) host: HostFile,
    pub(crate) info: HostInfo,
    pub(crate) link: Link,
    pub(crate) artifacts: Artifacts,
    pub(crate) logs: LogStore,
    pub(crate) tables: Tables,
    pub(crate) certificates: Option<watch::Receiver<Arc<Accepted>>>,
    pub(crate) pool: Pool,
    pub(crate) remover: Remover,
    pub(crate) pulse: watch::Sender<Option<Heartbeat>>,
    pub(crate) views: Views,
    /// A daemon that ends gives what is in hand so long, and a replica no more than its own `update.drain`.
    pub(crate) drain: Duration,
}

/// The loop's state.
pub(crate) struct Driver {
    parts: Parts,
    clock: Clock,
    fetches: JoinSet<Event>,
    /// Writes that nothing waits for: tables, pruning. `false`: the tables were not written.
    chores: JoinSet<bool>,
    reads: Arc<Semaphore>,
    live: LiveLines,
    view: View,
    pruned: Instant,
    /// The store that is connected is another cluster's: its tables are none of ours.
    foreign: bool,
    /// The placements on disk are not those in force: the next tick writes them again.
    unwritten: bool,
    /// The leader is to get the next heartbeat at once: this host leaves, or `early_beat` says so.
    beat_now: bool,
    early_beat: EarlyBeat,
    /// Set while the daemon ends: when it ends at the latest.
    ends_at: Option<Instant>,
}

/// What the loop wakes up for.
enum Input {
    Link(LinkEvent),
    Runner(Said),
    Fetched(Event),
    Due,
    Tick,
    Shutdown,
}

impl Driver {
    pub(crate) fn new(parts: Parts) -> Self {
        Self {
            parts,
            clock: Clock::new(),
            fetches: JoinSet::new(),
            chores: JoinSet::new(),
            reads: Arc::new(Semaphore::new(READS_MAX)),
            live: LiveLines::default(),
            view: View::default(),
            pruned: Instant::now(),
            foreign: false,
            unwritten: false,
            beat_now: false,
            early_beat: EarlyBeat::default(),
            ends_at: None,
        }
    }

    /// Runs until `shutdown`, then until all replicas have drained; gives back what is to be closed, and until
    /// when what is still in hand may finish.
    pub(crate) async fn run(
        mut self,
        mut link_events: mpsc::Receiver<LinkEvent>,
        shutdown: CancellationToken,
    ) -> (Pool, LogStore, Instant) {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let certificates = self.certificates();
        certificates
            .into_iter()
            .for_each(|message| self.parts.pool.send(message));
        let tables = self.parts.tables.message();
        self.parts.pool.send(tables);
        // What was held starts here, before anything is heard from NATS.
        self.turn(vec![Event::Tick]).await;
        while !self.over() {
            let input = self.input(&mut link_events, &mut ticks, &shutdown).await;
            let mut events = Vec::new();
            self.take(input, &mut events);
            self.take_more(&mut link_events, &mut events);
            self.turn(events).await;
        }
        self.close().await
    }

    fn over(&self) -> bool {
        self.ends_at
            .is_some_and(|at| self.parts.agent.idle() || Instant::now() >= at)
    }

    async fn input(
        &mut self,
        link_events: &mut mpsc::Receiver<LinkEvent>,
        ticks: &mut Interval,
        shutdown: &CancellationToken,
    ) -> Input {
        let wake_at = self.parts.agent.wake_at();
        let wake = wake_at.map(|at| Instant::now() + at.since(self.clock.now()));
        let wake = [wake, self.early_beat.wake_at()]
            .into_iter()
            .flatten()
            .min();
        tokio::select! {
            // Fair: no input can starve another.
            Some(event) = link_events.recv() => Input::Link(event),
            said = self.parts.pool.next() => Input::Runner(said),
            Some(done) = self.fetches.join_next(), if !self.fetches.is_empty() => match done {
                Ok(event) => Input::Fetched(event),
                Err(error) => {
                    tracing::error!(%error, "a fetch ended without an answer");
                    Input::Tick
                }
            },
            Some(event) = self.parts.remover.next() => Input::Fetched(event),
            () = sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => Input::Due,
            () = changed(&mut self.parts.certificates) => {
                let certificates = self.certificates();
                certificates.into_iter().for_each(|message| self.parts.pool.send(message));
                Input::Tick
            }
            _ = ticks.tick() => {
                self.tick();
                Input::Tick
            }
            () = shutdown.cancelled(), if self.ends_at.is_none() => Input::Shutdown,
        }
    }

    /// What has arrived besides, as far as it fits the batch.
    fn take_more(&mut self, link_events: &mut mpsc::Receiver<LinkEvent>, events: &mut Vec<Event>) {
        while events.len() < BATCH {
            if let Some(said) = self.parts.pool.try_next() {
                self.take(Input::Runner(said), events);
            } else if let Ok(event) = link_events.try_recv() {
                self.take(Input::Link(event), events);
            } else if let Some(Ok(event)) = self.fetches.try_join_next() {
                events.push(event);
            } else {
                return;
            }
        }
    }

    fn take(&mut self, input: Input, events: &mut Vec<Event>) {
        match input {
            Input::Link(event) => self.link_said(event, events),
            Input::Runner(said) => events.extend(self.runner_said(said)),
            Input::Fetched(event) => events.push(event),
            Input::Due | Input::Tick => events.push(Event::Tick),
            Input::Shutdown => {
                tracing::info!("shutting down: draining");
                self.view.leaving = true;
                self.beat_now = true;
                let deadline = self.parts.drain;
                self.ends_at = Some(Instant::now() + deadline + DRAIN_GRACE);
                events.push(Event::Shutdown { deadline });
            }
        }
    }

    fn link_said(&mut self, event: LinkEvent, events: &mut Vec<Event>) {
        match event {
            LinkEvent::Connected {
                cluster,
                term,
                leader,
                fence,
            } => {
                self.view.nats = true;
                self.view.leader = Some(leader);
                // A host without a cluster takes the first that it meets.
                let ours = self.parts.agent.cluster();
                self.foreign = ours.is_some_and(|ours| *ours != cluster);
                events.push(Event::Connected { cluster, term });
                if !self.foreign {
                    events.push(Event::Term { term, fence });
                }
            }
            // Another cluster's terms are none of this host's.
            LinkEvent::Term { .. } if self.foreign => {}
            LinkEvent::Term {
                term,
                leader,
                fence,
            } => {
                self.view.leader = Some(leader);
                events.push(Event::Term { term, fence });
            }
            LinkEvent::Heard(note) => events.push(Event::Heard {
                boot: note.boot,
                term: note.term,
                at: note.at,
                sequence: note.sequence,
            }),
            LinkEvent::Withdrawn(note) => events.push(Event::Withdrawn { set: note.set }),
            LinkEvent::Disconnected => {
                self.view.nats = false;
                events.push(Event::Disconnected);
            }
            LinkEvent::Set { set, sequence } => events.push(Event::Set { set, sequence }),
            LinkEvent::NoSet => events.push(Event::NoSet),
            // Even a deletion, which names no cluster, and a full reading, which shows none of ours.
            LinkEvent::Table(_) | LinkEvent::Tables { .. } if self.foreign => {}
            LinkEvent::Table(change) => {
                if self.is_ours(&change) {
                    if self.parts.tables.is_withdrawn_by(&change) {
                        self.early_beat.owe(change.sequence());
                    }
                    let news = self.parts.tables.change(change);
                    news.into_iter()
                        .for_each(|message| self.parts.pool.send(message));
                }
            }
            LinkEvent::Tables { read, as_of } => {
                let message = self.parts.tables.replace(read, as_of);
                self.parts.pool.send(message);
                // What was withdrawn while this host was away nobody has told it.
                self.early_beat.owe(as_of.1);
            }
            LinkEvent::Status { cursor, reply } => {
                // Who asked may be gone.
                let _ = reply.send(self.parts.agent.status_page(cursor.as_deref()));
            }
            LinkEvent::Held { cursor, reply } => {
                let _ = reply.send(self.parts.agent.held_page(cursor.as_deref()));
            }
        }
    }

    /// The certificates in force, for a runner.
    fn certificates(&mut self) -> Option<ToRunner> {
        let certificates = self.parts.certificates.as_mut()?;
        let Accepted { pairs, as_of } = (**certificates.borrow_and_update()).clone();
        Some(ToRunner::Certificates { pairs, as_of })
    }

    /// A deletion names no cluster; it can only take away what is there.
    fn is_ours(&self, change: &TableChange) -> bool {
        let cluster = match change {
            TableChange::Routes(table, _) => &table.cluster,
            TableChange::Endpoints(table, _) => &table.cluster,
            TableChange::RoutesGone(..) | TableChange::EndpointsGone(..) => return true,
        };
        self.parts.agent.cluster() == Some(cluster)
    }

    fn runner_said(&mut self, said: Said) -> Option<Event> {
        match said {
            Said::Message(FromRunner::Logs(lines)) => {
                for (replica, line) in &lines {
                    self.live.tell(&self.parts.link, replica, line);
                }
                self.parts.logs.write(lines);
                None
            }
            Said::Message(FromRunner::Usage(usage)) => {
                self.view.gateway = (*usage.gateway).clone();
                self.view.code = usage.code;
                self.view.table_seq = usage.table_seq;
                self.beat_now |= self.early_beat.applied(usage.table_seq, Instant::now());
                Some(Event::Runner(FromRunner::Usage(usage)))
            }
            Said::Message(message) => Some(Event::Runner(message)),
            Said::Died(reason) => {
                tracing::error!(%reason, "a runner ended: what it ran is started again");
                self.view.runner_restarts += 1;
                None
            }
            Said::Back(runner) => {
                // The others have theirs, and clients who resume their sessions by them.
                let certificates = self.certificates();
                let tables = self.parts.tables.message();
                self.parts.pool.catch_up(runner, certificates, tables);
                None
            }
        }
    }

    /// One turn: fold the events in, carry the effects out, leave the facts for those who look.
    async fn turn(&mut self, events: Vec<Event>) {
        if self.early_beat.ask(Instant::now()) {
            self.parts.pool.ask();
        }
        let now = self.clock.now();
        let effects = self.parts.agent.handle_all(events, now);
        for effect in effects {
            self.carry_out(effect).await;
        }
        let agent = &self.parts.agent;
        let heartbeat = agent.heartbeat(&self.parts.info, self.view.table_seq, now);
        if std::mem::take(&mut self.beat_now)
            && let Some(heartbeat) = &heartbeat
        {
            // The next beat may come too late: a host without replicas is gone before it, and what drains
            // elsewhere waits for it.
            self.parts.link.beat_now(heartbeat);
        }
        self.parts.pulse.send_replace(heartbeat);
        let (term, _) = agent.term();
        self.view.term = term;
        self.view.pulse = agent.pulse();
        self.view.settled |= agent.settled();
        self.view.runner = self.parts.pool.answers();
        self.view.turned = std::time::Instant::now();
        let view = View {
            logs_dropped: self.parts.logs.dropped(),
            ..self.view.clone()
        };
        self.parts.views.set(view);
    }

    async fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Persist(held) => {
                let data = self.parts.data.clone();
                self.unwritten = !write("placements.json", move || data.write_held(&held)).await;
            }
            Effect::Joined(cluster) => {
                tracing::info!(%cluster, host = %self.parts.host.host, "belongs to this cluster");
                self.parts.host.cluster = Some(cluster);
                let (data, file) = (self.parts.data.clone(), self.parts.host.clone());
                write("host.json", move || data.write_host(&file)).await;
            }
            Effect::FetchRevision { workload, number } => self.fetch_revision(workload, number),
            Effect::FetchArtifact { digest } => self.fetch_artifact(digest),
            Effect::RemoveData(removal) => self.parts.remover.ask(removal),
            Effect::ToRunner(message) => self.parts.pool.send(message),
            Effect::Report(report) => {
                if !self.parts.link.report(&report) {
                    // The leader sees the gap in the next heartbeat, and asks.
                    self.view.reports_dropped += 1;
                }
            }
            Effect::Refused(refusal) => tracing::error!(%refusal, "refused"),
            Effect::Ended(replica) => {
                self.live.forget(&replica);
                self.parts.logs.ended(replica);
            }
        }
    }

    /// Once a second: ask the runners, write what may wait.
    fn tick(&mut self) {
        self.parts.pool.ask();
        self.live.next_second();
        if std::mem::take(&mut self.unwritten) {
            self.parts.agent.persist_again();
        }
        self.do_chores();
    }

    async fn close(mut self) -> (Pool, LogStore, Instant) {
        if !self.parts.agent.idle() {
            tracing::warn!("not everything had drained in time: it is cut off");
        }
        self.fetches.shutdown().await;
        // First what is under way: it is older than what is written now.
        while let Some(done) = self.chores.join_next().await {
            self.chore_done(done);
        }
        if let Some(tables) = self.parts.tables.take_dirty() {
            let data = self.parts.data.clone();
            write("endpoints/", move || data.write_tables(&tables)).await;
        }
        let until = self.ends_at.unwrap_or_else(Instant::now);
        (self.parts.pool, self.parts.logs, until)
    }
}

/// A disk that fails must not stop what runs: said, and gone on. `false`: not written.
async fn write(what: &str, write: impl FnOnce() -> Result<(), HostError> + Send + 'static) -> bool {
    match tokio::task::spawn_blocking(write).await {
        Ok(Ok(())) => true,
        Ok(Err(error)) => {
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            tracing::error!(%error, cause, "{what} is as before: a restart would start that");
            false
        }
        Err(error) => {
            tracing::error!(%error, "writing {what} was cut off");
            false
        }
    }
}

/// Returns when there are new certificates.
async fn changed(certificates: &mut Option<watch::Receiver<Arc<Accepted>>>) {
    if let Some(certificates) = certificates
        && certificates.changed().await.is_ok()
    {
        return;
    }
    std::future::pending().await
}
