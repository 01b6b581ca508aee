//! A host: the real agent, its disk, its line to NATS; as `host/src/driver` and `host/src/link` do it.
//!
//! Owns carrying effects out, in their order, with a crash possible between any two. What becomes of
//! a replica once the runner has it is `runner`'s.

use std::collections::BTreeMap;
use std::path::PathBuf;

use wasmorch_api::status::Capacity;
use wasmorch_api::{BootId, ClusterId, HostId, HostInfo, Name, Timestamp, features};
use wasmorch_host::agent::{Agent, Effect, Event as AgentEvent, Held, Identity};
use wasmorch_host::runner::protocol::{FromRunner, ReplicaKey};
use wasmorch_host::simulation::Clock;
use wasmorch_planner::Observation;

use super::data::Data;
use super::laws::HostLaw;
use super::runner::Run;
use super::wire::{Answer, Event, HostAsked, HostMessage, HostWake, Node, Op};
use super::world::World;

const BEAT: u64 = 1_000;
const PATIENCE: u64 = 2_000;
const LAG_TRIES: u32 = 5;

/// What survives a crash.
#[derive(Debug, Clone, Default)]
pub(crate) struct Disk {
    pub(crate) held: Option<Box<Held>>,
    pub(crate) cluster: Option<ClusterId>,
    pub(crate) data: Data,
}

/// A machine with a data folder.
pub(crate) struct HostNode {
    pub(crate) inc: u64,
    pub(crate) id: HostId,
    pub(crate) disk: Disk,
    /// What the laws know of this data folder; a copy of the folder has its own.
    pub(crate) law: HostLaw,
    pub(crate) up: Option<Up>,
    /// Its wall clock is so far ahead of the true time, or behind it.
    pub(crate) ahead: i64,
    pub(crate) slow: bool,
    /// It never comes back.
    pub(crate) gone: bool,
    pub(crate) twin: bool,
    pub(crate) info: HostInfo,
}

/// A running daemon.
pub(crate) struct Up {
    pub(crate) agent: Agent,
    /// The daemon's own, by the rule of the real one: set forward it follows, set back it does not.
    pub(crate) clock: Clock,
    pub(crate) runner_inc: u64,
    pub(crate) runner: BTreeMap<ReplicaKey, Run>,
    rpc: u64,
    pending: BTreeMap<u64, HostAsked>,
    agent_wake: Option<u64>,
}

impl World {
    /// A new machine with an empty disk; it is not started yet.
    pub(crate) fn new_host(&mut self) -> usize {
        let at = self.hosts.len();
        let id = HostId::from_random(self.rng.id_bytes());
        let zone = format!("z{}", at % 3);
        let mut info = HostInfo {
            name: Name::nearest(&format!("h{at}")).expect("a name"),
            labels: BTreeMap::from([("zone".to_owned(), zone)]),
            // One of an earlier version.
            features: if self.rng.one_in(5) {
                Vec::new()
            } else {
                features::ALL.iter().map(|&one| one.to_owned()).collect()
            },
            http: "127.0.0.1:80".into(),
            capacity: Capacity {
                memory_bytes: 1 << 34,
                cpu_millis: 8_000,
                replicas: self.weather.room,
            },
            ..HostInfo::default()
        };
        self.rules.outfit(at, &mut info);
        let slow = self.weather.slow_hosts > 0 && self.rng.one_in(self.weather.slow_hosts);
        self.hosts.push(HostNode {
            inc: 0,
            id,
            disk: Disk::default(),
            law: HostLaw::default(),
            up: None,
            ahead: 0,
            slow,
            gone: false,
            twin: false,
            info,
        });
        at
    }

    /// Every machine that listens to a host's subjects: two, when a data folder was copied.
    pub(crate) fn actors_of(&self, host: &HostId) -> Vec<usize> {
        (0..self.hosts.len())
            .filter(|at| self.hosts[*at].id == *host)
            .collect()
    }

    pub(crate) fn say_host(&mut self, at: usize, what: impl FnOnce() -> String) {
        if self.told() {
            let who = if self.hosts[at].twin {
                format!("host{at}'")
            } else {
                format!("host{at}")
            };
            self.say(&who, what);
        }
    }

    pub(crate) fn host_clock(&self, at: usize) -> Timestamp {
        let wall = self.wall_clock(at);
        let up = self.hosts[at].up.as_ref();
        up.map_or(wall, |up| {
            let mut clock = up.clock;
            clock.follow(wall, self.instant(self.now))
        })
    }

    fn wall_clock(&self, at: usize) -> Timestamp {
        Timestamp(self.now.saturating_add_signed(self.hosts[at].ahead))
    }

    /// Somebody sets a machine's clock.
    pub(crate) fn clock_set(&mut self, at: usize, by: i64) {
        self.hosts[at].ahead += by;
        let (wall, now) = (self.wall_clock(at), self.instant(self.now));
        if let Some(up) = &mut self.hosts[at].up {
            up.clock.follow(wall, now);
        }
    }

    pub(crate) fn host_starts(&mut self, at: usize) {
        if self.hosts[at].gone || self.hosts[at].up.is_some() {
            return;
        }
        let boot = BootId::from_random(self.rng.id_bytes());
        let clock = Clock::set(self.wall_clock(at), self.instant(self.now));
        let born = self.wall_clock(at).0;
        let host = &mut self.hosts[at];
        host.inc += 1;
        // Through the form in which it lies on the disk.
        let held: Option<Held> = host.disk.held.as_ref().map(|held| {
            let bytes = serde_json::to_vec(held).expect("what is held is plain data");
            serde_json::from_slice(&bytes).expect("what was written reads back")
        });
        host.law.started(held.as_ref());
        host.law.born = born;
        host.law.boot = Some(boot.clone());
        let identity = Identity {
            host: host.id.clone(),
            boot,
            cluster: host.disk.cluster.clone(),
        };
        host.up = Some(Up {
            agent: Agent::new(identity, held),
            clock,
            runner_inc: 0,
            runner: BTreeMap::new(),
            rpc: 0,
            pending: BTreeMap::new(),
            agent_wake: None,
        });
        let with = host.law.sequence;
        self.say_host(at, || format!("starts, holding {with}"));
        self.agent_event(at, AgentEvent::Tick);
        let beat = self.rng.between(0, BEAT);
        self.wake_host(at, beat, HostWake::Beat);
        self.wake_host(at, 5, HostWake::Connect);
    }

    pub(crate) fn host_crashes(&mut self, at: usize) {
        self.say_host(at, || "crashes".into());
        self.hosts[at].inc += 1;
        self.hosts[at].up = None;
    }

    pub(crate) fn host_wakes(&mut self, at: usize, inc: u64, wake: HostWake) {
        if self.hosts[at].inc != inc {
            return;
        }
        let Some(up) = &mut self.hosts[at].up else {
            return;
        };
        match wake {
            HostWake::Beat => {
                self.beat(at);
                let wait = if self.hosts[at].slow {
                    self.rng.between(800, 2_500)
                } else {
                    BEAT
                };
                self.wake_host(at, wait, HostWake::Beat);
            }
            HostWake::Remove(removal) => self.host_removes(at, removal),
            HostWake::Agent => {
                up.agent_wake = None;
                self.agent_event(at, AgentEvent::Tick);
            }
            HostWake::Connect => {
                let host = self.hosts[at].id.clone();
                self.host_asks(at, HostAsked::Connect, Op::Connect { host });
            }
        }
    }

    fn beat(&mut self, at: usize) {
        self.runner_tells_usage(at);
        self.law_of_silence(at);
        let now = self.host_clock(at);
        let host = &self.hosts[at];
        // Its gateway has heard of every table that is stored: how tables travel is not simulated.
        let tables = self.store.bucket.newest_table();
        let Some(beat) = host
            .up
            .as_ref()
            .and_then(|up| up.agent.heartbeat(&host.info, tables, now))
        else {
            return;
        };
        self.tell_leaders(at, &Observation::Heartbeat(Box::new(beat)));
    }

    fn tell_leaders(&mut self, from: usize, what: &Observation) {
        for at in 0..self.controllers.len() {
            if self.controllers[at].leads().is_some() {
                let inc = self.controllers[at].inc;
                let what = what.clone();
                let event = Event::Heard { at, inc, what };
                self.send(Node::Host(from), Node::Controller(at), event);
            }
        }
    }

    // Questions to the store.

    fn host_asks(&mut self, at: usize, asked: HostAsked, op: Op) {
        let inc = self.hosts[at].inc;
        let Some(up) = &mut self.hosts[at].up else {
            return;
        };
        up.rpc += 1;
        let rpc = up.rpc;
        up.pending.insert(rpc, asked);
        let from = Node::Host(at);
        self.send_once(from, Node::Store, Event::AtStore { from, inc, rpc, op });
        let answer = Answer::Timeout;
        let event = Event::HostAnswer {
            at,
            inc,
            rpc,
            answer,
        };
        self.after(PATIENCE, event);
    }

    fn host_syncs(&mut self, at: usize, wanted: u64, tries: u32) {
        let host = self.hosts[at].id.clone();
        self.host_asks(at, HostAsked::Sync { wanted, tries }, Op::Set { host });
    }

    pub(crate) fn host_answered(&mut self, at: usize, inc: u64, rpc: u64, answer: Answer) {
        if self.hosts[at].inc != inc {
            return;
        }
        let Some(up) = &mut self.hosts[at].up else {
            return;
        };
        let Some(asked) = up.pending.remove(&rpc) else {
            return;
        };
        match (asked, answer) {
            (HostAsked::Connect, Answer::Connected { cluster, term, set }) => {
                self.agent_event(at, AgentEvent::Connected { cluster, term });
                self.set_read(at, set);
            }
            (HostAsked::Connect, _) => self.wake_host(at, 1_000, HostWake::Connect),
            (HostAsked::Sync { wanted, tries }, Answer::Set(set)) => {
                let sequence = set.as_ref().map_or(0, |(_, sequence)| *sequence);
                if sequence < wanted && tries + 1 < LAG_TRIES {
                    self.host_syncs(at, wanted, tries + 1);
                } else {
                    self.set_read(at, set);
                }
            }
            (HostAsked::Sync { .. }, _) => {}
            (HostAsked::Revision(..), Answer::Revision(Some(revision))) => {
                self.agent_event(at, AgentEvent::Revision(revision));
            }
            (HostAsked::Revision(workload, number), _) => {
                let reason = "no answer".to_owned();
                let event = AgentEvent::RevisionMissing {
                    workload,
                    number,
                    reason,
                };
                self.agent_event(at, event);
            }
            (HostAsked::Artifact(digest), Answer::Artifact) => {
                let event = if self.rng.per_mille(self.weather.flaky / 4) {
                    let reason = "the disk is full".to_owned();
                    AgentEvent::FetchFailed {
                        digest,
                        reason,
                        retryable: false,
                    }
                } else {
                    let path = PathBuf::from("artifact");
                    AgentEvent::Fetched { digest, path }
                };
                self.agent_event(at, event);
            }
            (HostAsked::Artifact(digest), _) => {
                let reason = "no answer".to_owned();
                let event = AgentEvent::FetchFailed {
                    digest,
                    reason,
                    retryable: true,
                };
                self.agent_event(at, event);
            }
        }
    }

    fn set_read(&mut self, at: usize, set: Option<(Box<wasmorch_api::PlacementSet>, u64)>) {
        let event = match set {
            Some((set, sequence)) => AgentEvent::Set { set, sequence },
            None => AgentEvent::NoSet,
        };
        self.agent_event(at, event);
    }

    pub(crate) fn host_told(&mut self, at: usize, inc: u64, message: HostMessage) {
        if self.hosts[at].inc != inc || self.hosts[at].up.is_none() {
            return;
        }
        match message {
            HostMessage::Set(set, sequence) => {
                self.agent_event(at, AgentEvent::Set { set, sequence });
            }
            HostMessage::Heard(note) => {
                self.law_hears(at, &note);
                let event = AgentEvent::Heard {
                    boot: note.boot,
                    term: note.term,
                    at: note.at,
                    sequence: note.sequence,
                };
                self.agent_event(at, event);
            }
            HostMessage::Withdrawn(set) => self.agent_event(at, AgentEvent::Withdrawn { set }),
            HostMessage::Sync(wanted) => self.host_syncs(at, wanted, 0),
            HostMessage::Status { controller, inc } => {
                let up = self.hosts[at].up.as_ref();
                if let Some(report) = up.and_then(|up| up.agent.status_page(None)) {
                    self.status_answer(at, controller, inc, report);
                }
            }
        }
    }

    // The agent.

    /// Folds one event into the agent and carries out what follows.
    pub(crate) fn agent_event(&mut self, at: usize, event: AgentEvent) {
        let now = self.host_clock(at);
        let before = self.law_before(at, &event);
        self.tell_agent_event(at, &event);
        let Some(up) = self.hosts[at].up.as_mut() else {
            return;
        };
        let effects = up.agent.handle(event, now);
        self.law_after(at, &before, &effects);
        let inc = self.hosts[at].inc;
        for effect in effects {
            if self.rng.per_mille(self.weather.crash_in_effects) {
                self.say_host(at, || "between two effects".into());
                self.host_crashes(at);
                let wait = self.rng.between(500, 4_000);
                self.after(wait, Event::Mend(super::wire::Mend::Host(at)));
                return;
            }
            self.carry_out(at, effect);
            // An effect may have led to the next event of the same host already.
            if self.hosts[at].inc != inc {
                return;
            }
        }
        self.law_on_disk(at);
        self.schedule_agent(at);
    }

    fn tell_agent_event(&mut self, at: usize, event: &AgentEvent) {
        if self.told() && !matches!(event, AgentEvent::Tick) {
            let words = match event {
                AgentEvent::Set { set, sequence } => {
                    format!(
                        "<- set {sequence} of {} by {}: {}",
                        set.term,
                        set.leader,
                        placed(set)
                    )
                }
                AgentEvent::Runner(said) => format!("<- runner {}", said_in_short(said)),
                AgentEvent::Revision(revision) => {
                    format!("<- revision {} of {}", revision.number, revision.name)
                }
                other => format!("<- {other:?}"),
            };
            self.say_host(at, || words);
        }
    }

    pub(crate) fn schedule_agent(&mut self, at: usize) {
        let clock = self.host_clock(at);
        let now = self.now;
        let Some(up) = &mut self.hosts[at].up else {
            return;
        };
        let Some(wake) = up.agent.wake_at() else {
            return;
        };
        let time = now + u64::try_from(wake.since(clock).as_millis()).unwrap_or(u64::MAX);
        if up
            .agent_wake
            .is_some_and(|planned| planned <= time && planned >= now)
        {
            return;
        }
        up.agent_wake = Some(time);
        self.wake_host(at, time - now, HostWake::Agent);
    }

    fn carry_out(&mut self, at: usize, effect: Effect) {
        match effect {
            Effect::Persist(held) => self.hosts[at].disk.held = Some(held),
            Effect::Joined(cluster) => self.hosts[at].disk.cluster = Some(cluster),
            Effect::FetchRevision { workload, number } => {
                let asked = HostAsked::Revision(workload.clone(), number);
                self.host_asks(at, asked, Op::Revision { workload, number });
            }
            Effect::FetchArtifact { digest } => {
                self.host_asks(at, HostAsked::Artifact(digest), Op::Artifact);
            }
            Effect::RemoveData(removal) => self.remove_later(at, removal),
            Effect::ToRunner(message) => self.runner_told(at, message),
            Effect::Report(report) => self.tell_leaders(at, &Observation::Status(report)),
            Effect::Refused(refusal) => self.say_host(at, || format!("refuses: {refusal}")),
            Effect::Ended(_) => {}
        }
    }
}

fn placed(set: &wasmorch_api::PlacementSet) -> String {
    let mut words = Vec::new();
    for group in &set.groups {
        for slot in &group.slots {
            words.push(format!(
                "{}@{} {}-{}",
                group.workload, group.revision, slot.slot, slot.placement
            ));
        }
    }
    words.join(", ")
}

fn said_in_short(said: &FromRunner) -> String {
    match said {
        FromRunner::Prepared { replica, .. } => format!("prepared {replica}"),
        FromRunner::Rejected { replica, reason } => format!("rejected {replica}: {reason}"),
        FromRunner::Started { replica } => format!("started {replica}"),
        FromRunner::Health { replica, ready, .. } => format!("{replica} ready: {ready}"),
        FromRunner::Ended { replica, outcome } => format!("ended {replica}: {outcome:?}"),
        FromRunner::Stopped { replica } => format!("stopped {replica}"),
        other => format!("{other:?}"),
    }
}
