//! Simulated hosts: the real host agent, many in one process, over one real NATS connection.
//!
//! Real: the agent and all its messages. Simulated: the runner (every order is carried out at once),
//! the disk (nothing is written) and the artifact (nothing is fetched).

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use async_nats::jetstream::kv;
use async_nats::{Client, Message, jetstream};
use futures::StreamExt as _;
use tokio::sync::{mpsc, oneshot};
use wasmorch_api::messages::HostStatusRequest;
use wasmorch_api::record::TermRecord;
use wasmorch_api::status::Capacity;
use wasmorch_api::subjects::{self, STATE_BUCKET, key};
use wasmorch_api::{
    BootId, Heartbeat, HostId, HostInfo, Name, PlacementSet, Revision, RevisionNumber, Timestamp,
    WorkloadKey,
};
use wasmorch_host::agent::{Agent, Effect, Event, Identity};
use wasmorch_host::runner::protocol::{FromRunner, ToRunner};

/// Heartbeats leave in so many portions a second.
const PORTIONS: usize = 20;
/// Labels `zone` that hosts have.
const ZONES: usize = 3;

/// What the fleet has seen, read by whoever measures.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Seen {
    /// Sets delivered.
    pub(crate) sets: u64,
    /// Placements in the sets that hosts hold now.
    pub(crate) held: u64,
    /// Replicas reported running and ready now, by hosts that live.
    pub(crate) ready: u64,
    /// When a set last came.
    pub(crate) last_set: Option<Instant>,
    /// When a report last left.
    pub(crate) last_report: Option<Instant>,
}

/// To the fleet.
#[derive(Debug)]
pub(crate) enum Order {
    /// These many hosts fall silent at once; answers how many replicas they held.
    Kill(usize, oneshot::Sender<u64>),
}

struct Host {
    agent: Agent,
    boot: BootId,
    id: HostId,
    info: HostInfo,
    held: u64,
    ready: u64,
    dead: bool,
}

/// All hosts. One task owns them.
pub(crate) struct Fleet {
    client: Client,
    state: kv::Store,
    term: TermRecord,
    hosts: Vec<Host>,
    by_id: HashMap<String, usize>,
    revisions: HashMap<(WorkloadKey, RevisionNumber), Arc<Revision>>,
    seen: Arc<Mutex<Seen>>,
    orders: mpsc::Receiver<Order>,
    began: Instant,
}

/// What is known of the fleet from outside.
pub(crate) fn look(seen: &Mutex<Seen>) -> Seen {
    *seen.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Fleet {
    /// Connects; nothing is said before [`Self::run`].
    pub(crate) async fn connect(
        url: &str,
        count: usize,
        room: u64,
        seen: Arc<Mutex<Seen>>,
        orders: mpsc::Receiver<Order>,
    ) -> Result<Self> {
        let client = async_nats::ConnectOptions::new()
            .subscription_capacity(65_536)
            .connect(url)
            .await
            .context("the fleet cannot connect")?;
        let state = jetstream::new(client.clone())
            .get_key_value(STATE_BUCKET)
            .await?;
        let term = state.get(key::TERM).await?.context("no term is stored")?;
        let term: TermRecord = serde_json::from_slice(&term)?;
        let hosts: Vec<Host> = (0..count).map(|n| host(n, room)).collect();
        let by_id = hosts
            .iter()
            .enumerate()
            .map(|(at, host)| (host.id.to_string(), at))
            .collect();
        Ok(Self {
            client,
            state,
            term,
            hosts,
            by_id,
            revisions: HashMap::new(),
            seen,
            orders,
            began: Instant::now(),
        })
    }

    /// Lives until the orders end.
    pub(crate) async fn run(mut self) -> Result<()> {
        let mut sets = self.client.subscribe("wasmorch.v1.placements.*").await?;
        let mut asked = self.client.subscribe("wasmorch.v1.host.*.*").await?;
        self.client.flush().await?;
        for at in 0..self.hosts.len() {
            let connected = Event::Connected {
                cluster: self.term.cluster.clone(),
                term: self.term.term,
            };
            self.fold(at, vec![connected, Event::NoSet]).await?;
        }
        let mut portion = 0;
        let mut beats = tokio::time::interval(Duration::from_secs(1) / PORTIONS as u32);
        beats.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                // First: a host's heartbeat never waits behind its work (law 7).
                _ = beats.tick() => {
                    self.beat(portion).await?;
                    portion = (portion + 1) % PORTIONS;
                }
                order = self.orders.recv() => match order {
                    Some(Order::Kill(count, answer)) => {
                        let lost = self.kill(count);
                        // Whoever asked waits for it.
                        let _ = answer.send(lost);
                    }
                    None => return Ok(()),
                },
                Some(message) = asked.next() => self.asked(&message).await?,
                Some(message) = sets.next() => self.delivered(&message).await?,
            }
        }
    }

    fn now(&self) -> Timestamp {
        Timestamp(1 + u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX - 1))
    }

    fn note(&self, change: impl FnOnce(&mut Seen)) {
        change(&mut self.seen.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn kill(&mut self, count: usize) -> u64 {
        let mut lost = 0;
        for host in self.hosts.iter_mut().filter(|host| !host.dead).take(count) {
            host.dead = true;
            lost += host.ready;
        }
        self.note(|seen| seen.ready -= lost);
        lost
    }

    async fn beat(&mut self, portion: usize) -> Result<()> {
        for host in self.hosts.iter().skip(portion).step_by(PORTIONS) {
            if host.dead {
                continue;
            }
            let pulse = host.agent.pulse();
            let beat = Heartbeat {
                sequence: pulse.sequence,
                status_seq: pulse.status_seq,
                replicas: pulse.replicas,
                info: host.info.clone(),
                ..Heartbeat::new(
                    self.term.cluster.clone(),
                    host.id.clone(),
                    host.boot.clone(),
                    pulse.term,
                )
            };
            let body = serde_json::to_vec(&beat)?;
            self.client
                .publish(subjects::heartbeat(&host.id), body.into())
                .await?;
        }
        Ok(())
    }

    async fn delivered(&mut self, message: &Message) -> Result<()> {
        let Some(at) = last_token(&message.subject).and_then(|id| self.by_id.get(id).copied())
        else {
            return Ok(());
        };
        let sequence = message
            .headers
            .as_ref()
            .and_then(|headers| headers.get(async_nats::header::NATS_SEQUENCE))
            .and_then(|sequence| sequence.as_str().parse().ok())
            .context("a republished message has no sequence")?;
        self.take(at, &message.payload, sequence).await
    }

    async fn take(&mut self, at: usize, body: &[u8], sequence: u64) -> Result<()> {
        if self.hosts[at].dead || body.is_empty() {
            return Ok(());
        }
        let set: PlacementSet = serde_json::from_slice(body)?;
        let held: usize = set.groups.iter().map(|group| group.slots.len()).sum();
        let before = std::mem::replace(&mut self.hosts[at].held, held as u64);
        self.note(|seen| {
            seen.sets += 1;
            seen.held = seen.held + held as u64 - before;
            seen.last_set = Some(Instant::now());
        });
        let set = Box::new(set);
        self.fold(at, vec![Event::Set { set, sequence }]).await
    }

    /// `sync`: read the set again. `status`: everything, by pages.
    async fn asked(&mut self, message: &Message) -> Result<()> {
        let mut tokens = message.subject.rsplit('.');
        let (verb, id) = (tokens.next().unwrap_or_default(), tokens.next());
        let Some(at) = id.and_then(|id| self.by_id.get(id).copied()) else {
            return Ok(());
        };
        if self.hosts[at].dead {
            return Ok(());
        }
        match (verb, &message.reply) {
            ("status", Some(reply)) => {
                let request: HostStatusRequest =
                    serde_json::from_slice(&message.payload).unwrap_or_default();
                let page = self.hosts[at].agent.status_page(request.cursor.as_deref());
                let body = serde_json::to_vec(&page)?;
                self.client.publish(reply.clone(), body.into()).await?;
            }
            ("sync", reply) => {
                if let Some(reply) = reply {
                    self.client.publish(reply.clone(), "{}".into()).await?;
                }
                let stored = self
                    .state
                    .entry(key::placements(&self.hosts[at].id))
                    .await?;
                if let Some(entry) = stored {
                    self.take(at, &entry.value, entry.revision).await?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Gives events to an agent, and does at once what it asks for, until it asks for nothing more.
    async fn fold(&mut self, at: usize, events: Vec<Event>) -> Result<()> {
        let now = self.now();
        let mut events = events;
        while !events.is_empty() {
            let effects = self.hosts[at]
                .agent
                .handle_all(std::mem::take(&mut events), now);
            for effect in effects {
                self.carry_out(at, effect, &mut events).await?;
            }
        }
        Ok(())
    }

    async fn carry_out(
        &mut self,
        at: usize,
        effect: Effect,
        events: &mut Vec<Event>,
    ) -> Result<()> {
        match effect {
            Effect::FetchRevision { workload, number } => {
                events.push(Event::Revision(self.revision(workload, number).await?));
            }
            Effect::FetchArtifact { digest } => events.push(Event::Fetched {
                digest,
                path: PathBuf::new(),
            }),
            Effect::RemoveData(removal) => events.push(Event::DataRemoved {
                removal,
                failed: None,
            }),
            Effect::ToRunner(order) => self.obey(at, order, events),
            Effect::Report(report) => {
                let body = serde_json::to_vec(&report)?;
                let subject = subjects::status(&self.hosts[at].id);
                self.client.publish(subject, body.into()).await?;
                self.note(|seen| seen.last_report = Some(Instant::now()));
            }
            Effect::Persist(_) | Effect::Joined(_) | Effect::Refused(_) | Effect::Ended(_) => {}
        }
        Ok(())
    }

    fn obey(&mut self, at: usize, order: ToRunner, events: &mut Vec<Event>) {
        let host = &mut self.hosts[at];
        match order {
            ToRunner::Prepare { replica, .. } => {
                events.push(Event::Runner(FromRunner::Prepared {
                    replica,
                    listens: true,
                }));
            }
            ToRunner::Start { replica } => {
                host.ready += 1;
                let started = FromRunner::Started {
                    replica: replica.clone(),
                };
                let healthy = FromRunner::Health {
                    replica,
                    ready: true,
                    reason: None,
                };
                events.extend([started, healthy].map(Event::Runner));
                self.note(|seen| seen.ready += 1);
            }
            ToRunner::Drain { replica, .. } | ToRunner::Stop { replica } => {
                host.ready = host.ready.saturating_sub(1);
                events.push(Event::Runner(FromRunner::Stopped { replica }));
                self.note(|seen| seen.ready = seen.ready.saturating_sub(1));
            }
            _ => {}
        }
    }

    async fn revision(
        &mut self,
        workload: WorkloadKey,
        number: RevisionNumber,
    ) -> Result<Arc<Revision>> {
        let wanted = (workload, number);
        if let Some(known) = self.revisions.get(&wanted) {
            return Ok(known.clone());
        }
        let stored = self.state.get(key::revision(&wanted.0, number)).await?;
        let stored = stored.context("a set names a revision that is not stored")?;
        let revision: Arc<Revision> = Arc::new(serde_json::from_slice(&stored)?);
        self.revisions.insert(wanted, revision.clone());
        Ok(revision)
    }
}

fn host(number: usize, room: u64) -> Host {
    let mut bytes = [0; 10];
    bytes[..8].copy_from_slice(&(number as u64 + 1).to_be_bytes());
    let (id, boot) = (HostId::from_random(bytes), BootId::from_random(bytes));
    let info = HostInfo {
        name: Name::nearest(&format!("sim-{number}")).unwrap_or_default(),
        labels: [("zone".to_owned(), format!("z{}", number % ZONES))].into(),
        arch: "x86_64".into(),
        http: "127.0.0.1:9".into(),
        domain: "localhost".into(),
        capacity: Capacity {
            memory_bytes: 64 << 30,
            cpu_millis: 64_000,
            replicas: room,
        },
        ..HostInfo::default()
    };
    let identity = Identity {
        host: id.clone(),
        boot: boot.clone(),
        cluster: None,
    };
    Host {
        agent: Agent::new(identity, None),
        boot,
        id,
        info,
        held: 0,
        ready: 0,
        dead: false,
    }
}

fn last_token(subject: &str) -> Option<&str> {
    subject.rsplit('.').next()
}
