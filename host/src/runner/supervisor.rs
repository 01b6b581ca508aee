//! The runner's main loop: one task owns the replica table and answers the daemon.
//!
//! Invariants:
//! - It waits for nothing but messages and ended tasks: a ping is answered whatever guests do.
//! - Each replica is one task. What a task returns is the last that is said of its replica, and is
//!   said after the replica was forgotten, so that a crossing `Drain` or `Stop` gets its answer.
//! - What waits for the daemon is bounded: while it does not read, nothing more is read from it.

mod run;

use std::any::Any;
use std::collections::{HashMap, VecDeque};
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use futures::FutureExt as _;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use wasmorch_gateway::{Certificates, Gateway, PemPair, Server, Tables};
use wasmorch_runtime::Runtime;

use super::RunnerError;
use super::answers::Tally;
use super::backlog::Backlog;
use super::calls::Subscriptions;
use super::column::{Column, Gateways};
use super::elsewhere::Elsewhere;
use super::guests::Beat;
use super::http::Locals;
use super::link::Link;
use super::logs::LogQueue;
use super::orders::{Order, Orderer, orders};
use super::protocol::{FromRunner, Launch, Outcome, QUEUE, ReplicaKey, ToRunner, Usage};
use super::replica::{self, Counts, Guest};
use super::revisions::Revisions;
use super::tunnel::Tunnels;
use super::usage::{self, Measured};

pub(super) use run::run;

/// What all replicas of this runner share.
pub(super) struct Context {
    pub(super) engine: Runtime,
    pub(super) link: Arc<Link>,
    /// The way of other hosts to this one's replicas, where they cannot dial it.
    pub(super) tunnels: Arc<Tunnels>,
    /// Carries what guests ask of other workloads.
    pub(super) gateway: Gateway,
    pub(super) locals: Arc<Locals>,
    /// What is called over NATS.
    pub(super) calls: Subscriptions,
    /// Turns of replicas that are linked, off the guests' thread.
    pub(super) linking: Semaphore,
    pub(super) logs: LogQueue,
    pub(super) domain: String,
    /// Where all runners count; `None`: this one counts alone.
    pub(super) ledger: Option<Column>,
    pub(super) volumes: Option<PathBuf>,
    out: mpsc::Sender<FromRunner>,
}

impl Context {
    /// Tells the daemon. Waits while its queue is full; a daemon that is gone is told nothing.
    pub(super) async fn tell(&self, message: FromRunner) {
        let _ = self.out.send(message).await;
    }
}

/// One replica, as the table has it.
struct Entry {
    orders: Orderer,
    /// Set when it starts.
    guest: Arc<OnceLock<Guest>>,
    counts: Counts,
    measured: Measured,
}

struct Supervisor {
    /// Where replicas run.
    guests: Handle,
    beat: Beat,
    /// A ping without an answer yet.
    pinged: Option<u64>,
    context: Arc<Context>,
    /// Who has asked for what is compiled; `None`: it is compiled here.
    elsewhere: Option<Arc<Elsewhere>>,
    tables: Tables,
    /// What the gateway shows its clients.
    certificates: watch::Sender<Option<Certificates>>,
    /// Bound, and not serving yet.
    closed: Option<Server>,
    /// The gateway, once it serves.
    serving: JoinSet<()>,
    shutdown: CancellationToken,
    /// What the gateway has in hand at the end may take so long.
    leaves_within: Duration,
    /// Its gateway among the others.
    gateways: Option<Gateways>,
    replicas: HashMap<ReplicaKey, Entry>,
    revisions: Revisions,
    tasks: JoinSet<(ReplicaKey, FromRunner)>,
    /// What waits for room in the daemon's queue.
    waiting: VecDeque<FromRunner>,
}

/// While the guests' thread is stuck, it is looked at so often.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

impl Supervisor {
    async fn supervise(
        &mut self,
        mut inbox: mpsc::Receiver<ToRunner>,
        out: &mpsc::Sender<FromRunner>,
    ) -> Result<(), RunnerError> {
        loop {
            self.answer_ping();
            tokio::select! {
                // Looks again whether the thread turns.
                () = tokio::time::sleep(LOOK_AGAIN), if self.pinged.is_some() => {}
                room = out.reserve(), if !self.waiting.is_empty() => match room {
                    Ok(room) => {
                        if let Some(message) = self.waiting.pop_front() {
                            room.send(message);
                        }
                    }
                    Err(_) => return Ok(()),
                },
                Some(ended) = self.tasks.join_next() => match ended {
                    Ok((replica, last)) => self.forget(&replica, last),
                    // Panics are caught inside the task.
                    Err(error) => tracing::error!(%error, "a replica's task was lost"),
                },
                Some(ended) = self.serving.join_next() => {
                    return Err(RunnerError::Gateway(match ended {
                        Ok(()) => "it ended without being asked to".into(),
                        Err(error) => error.to_string(),
                    }));
                }
                message = inbox.recv(), if self.waiting.len() < QUEUE => match message {
                    Some(message) => self.take(message),
                    None => return Ok(()),
                },
            }
        }
    }

    /// Silence is how a stuck runner is found and ended: see the pool's keeper.
    fn answer_ping(&mut self) {
        if !self.beat.is_stuck() {
            self.waiting
                .extend(self.pinged.take().map(FromRunner::Pong));
        }
    }

    fn take(&mut self, message: ToRunner) {
        match message {
            ToRunner::Prepare { replica, launch } => self.prepare(replica, launch),
            ToRunner::Start { replica } => match self.replicas.get_mut(&replica) {
                Some(entry) => {
                    entry.measured = Measured::begin();
                    entry.orders.give(Order::Start);
                }
                None => tracing::debug!(%replica, "start of an unknown replica"),
            },
            ToRunner::Drain {
                replica,
                deadline_ms,
            } => {
                self.end(replica, Order::drain(Duration::from_millis(deadline_ms)));
            }
            ToRunner::Withdrawn { replica } => {
                if let Some(entry) = self.replicas.get(&replica) {
                    entry.orders.withdrawn();
                }
            }
            ToRunner::Stop { replica } => self.end(replica, Order::Stop),
            ToRunner::Routes { changed, removed } => {
                for (table, sequence) in changed {
                    self.tables.apply_routes(table, sequence);
                }
                for (workload, sequence) in removed {
                    self.tables.remove_routes(&workload, sequence);
                }
            }
            ToRunner::Endpoints { changed, removed } => {
                for (table, sequence) in changed {
                    self.tables.apply_endpoints(table, sequence);
                }
                for (workload, sequence) in removed {
                    self.tables.remove_endpoints(&workload, sequence);
                }
            }
            ToRunner::Tables {
                routes,
                endpoints,
                as_of,
            } => self.tables.replace_all_as_of(routes, endpoints, as_of),
            ToRunner::Certificates { pairs, as_of } => self.certify(&pairs, as_of),
            ToRunner::Compiled { digest, result } => {
                if let Some(elsewhere) = &self.elsewhere {
                    elsewhere.compiled(&digest, &result);
                }
            }
            ToRunner::Usage => {
                let usage = self.usage();
                self.waiting.push_back(FromRunner::Usage(usage));
            }
            ToRunner::Open => self.open(),
            ToRunner::Leave { within_ms } => {
                self.leaves_within = Duration::from_millis(within_ms);
            }
            ToRunner::Ping(number) => self.pinged = Some(number),
        }
    }

    /// Accepts connections from here on.
    fn open(&mut self) {
        if let Some(server) = self.closed.take() {
            let serving = server.run(self.shutdown.clone());
            self.serving.spawn_on(serving, &self.guests);
            if let Some(gateways) = &self.gateways {
                gateways.accepts(true);
            }
        }
    }

    /// As the daemon found them: one that has ended since would take all others with it.
    fn certify(&self, pairs: &[PemPair], as_of: SystemTime) {
        match Certificates::read(pairs, as_of) {
            Ok(certificates) => drop(self.certificates.send_replace(Some(certificates))),
            Err(bad) => {
                for bad in bad {
                    tracing::error!(%bad, "certificates are not taken up");
                }
            }
        }
    }

    fn prepare(&mut self, mut replica: ReplicaKey, mut launch: Box<Launch>) {
        if self.replicas.contains_key(&replica) {
            tracing::error!(%replica, "prepare of a replica that is here already");
            return;
        }
        launch.revision = self.revisions.shared(launch.revision);
        // And its names.
        replica.workload = launch.revision.key();
        let (orderer, orders) = orders();
        let guest = Arc::new(OnceLock::new());
        let counts = Counts {
            tally: Tally::of(&launch.revision.spec, launch.revision.kind),
            backlog: Backlog::of(&launch.revision.spec),
        };
        let entry = Entry {
            orders: orderer,
            guest: guest.clone(),
            counts: counts.clone(),
            measured: Measured::begin(),
        };
        let context = self.context.clone();
        let key = replica.clone();
        let task = async move {
            let life = replica::live(
                context,
                key.clone(),
                *launch,
                (orders, counts),
                guest.clone(),
            );
            let last = AssertUnwindSafe(life).catch_unwind().await;
            let last = last.unwrap_or_else(|panic| panicked(&key, &*panic, guest.get().is_some()));
            (key, last)
        };
        self.tasks.spawn_on(task, &self.guests);
        self.replicas.insert(replica, entry);
    }

    fn end(&mut self, replica: ReplicaKey, order: Order) {
        match self.replicas.get(&replica) {
            Some(entry) => entry.orders.give(order),
            None => self.waiting.push_back(FromRunner::Stopped { replica }),
        }
    }

    fn forget(&mut self, replica: &ReplicaKey, last: FromRunner) {
        let was_told_to_end = self
            .replicas
            .remove(replica)
            .is_some_and(|entry| entry.orders.latest().ends());
        let by_itself = !matches!(last, FromRunner::Stopped { .. });
        self.waiting.push_back(last);
        if was_told_to_end && by_itself {
            // They crossed: the order finds a replica that is gone.
            self.waiting.push_back(FromRunner::Stopped {
                replica: replica.clone(),
            });
        }
    }

    fn usage(&mut self) -> Usage {
        let now = Instant::now();
        let replicas = self.replicas.iter_mut().filter_map(|(replica, entry)| {
            let guest = entry.guest.get()?;
            Some(entry.measured.take(replica, guest, &entry.counts, now))
        });
        Usage {
            replicas: replicas.collect(),
            gateway: Box::new(self.context.gateway.stats()),
            code: usage::code(self.context.engine.loaded()),
            table_seq: self.tables.sequence(),
        }
    }
}

/// The last word of a replica whose task panicked: a bug of ours, and the end of that replica only.
fn panicked(replica: &ReplicaKey, panic: &(dyn Any + Send), started: bool) -> FromRunner {
    let text = panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_default();
    tracing::error!(%replica, panic = text, "a replica's task panicked");
    let reason = format!("internal error (a bug of wasmorch): {text}");
    let replica = replica.clone();
    if started {
        FromRunner::Ended {
            replica,
            outcome: Outcome::Failed {
                exit_code: None,
                reason,
            },
        }
    } else {
        FromRunner::Rejected { replica, reason }
    }
}
