//! One replica from `Prepare` to its last word: load, link, wait for the start, live, end.
//!
//! ```text
//!   load > prepare ──> Prepared ──start──> Started ──> (its kind's life) ──> Ended | Stopped
//!        \──> Rejected             \──drain, stop──> Stopped
//! ```
//!
//! Failing before the start is `Rejected`, after it `Ended`.

use std::convert::Infallible;
use std::sync::{Arc, OnceLock};

use wasmorch_api::Kind;
use wasmorch_api::error::chain;
use wasmorch_runtime::{
    Artifact, CommandReplica, HttpReplica, MemoryShare, MessagesReplica, PrepareError,
    ReplicaConfig, Usage,
};

use super::allow::Pattern;
use super::answers::Tally;
use super::backlog::Backlog;
use super::calls::Calls;
use super::consume::StreamSubscription;
use super::grants::{Grants, Storage};
use super::http::Coming;
use super::logs::ReplicaLogs;
use super::messages::{GuestMessaging, Intake};
use super::orders::Orders;
use super::protocol::{FromRunner, Launch, Outcome, ReplicaKey};
use super::supervisor::Context;
use super::{command, http, messages, stores, volumes};

/// What a replica executes.
#[derive(Clone)]
pub(super) enum Guest {
    Http(Arc<HttpReplica>),
    Messages(Arc<MessagesReplica>),
    Command(Arc<CommandReplica>),
}

impl Guest {
    pub(super) fn usage(&self) -> Usage {
        match self {
            Self::Http(guest) => guest.usage(),
            Self::Messages(guest) => guest.usage(),
            Self::Command(guest) => guest.usage(),
        }
    }
}

/// How a started replica came to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum End {
    /// By itself.
    Ended(Outcome),
    /// It was told to.
    Stopped,
}

impl End {
    pub(super) fn failed(reason: impl Into<String>) -> Self {
        Self::Ended(Outcome::Failed {
            exit_code: None,
            reason: reason.into(),
        })
    }
}

/// A started replica, as the lives of the kinds see it.
pub(super) struct Life {
    pub(super) context: Arc<Context>,
    pub(super) replica: ReplicaKey,
    pub(super) launch: Launch,
    pub(super) logs: Arc<ReplicaLogs>,
    pub(super) messaging: Arc<GuestMessaging>,
    /// Subjects that it handles.
    pub(super) subscribe: Vec<Pattern>,
    /// Streams that it takes messages from.
    pub(super) streams: Vec<StreamSubscription>,
    pub(super) orders: Orders,
    pub(super) counts: Counts,
    /// What it has taken in while it rested.
    pub(super) resting: Option<Resting>,
}

/// What takes requests in while a replica rests: they have it woken.
pub(super) enum Resting {
    /// Of http, over NATS; those to a gateway wait in `http::waking`.
    Calls(Calls),
    /// Of messages.
    Intake(Intake),
}

impl Resting {
    /// Begins, if the replica may be told to rest.
    fn begin(life: &Life, guest: &Guest) -> Option<Self> {
        match guest {
            _ if life.launch.revision.spec.standbys() == 0 => None,
            Guest::Http(_) => {
                let mut calls = Calls::new(life);
                calls.open();
                Some(Self::Calls(calls))
            }
            Guest::Messages(guest) => Some(Self::Intake(Intake::begin(life, guest))),
            Guest::Command(_) => None,
        }
    }

    /// Whether the server has confirmed that it listens, once that is not what was told.
    async fn listens(&mut self, told: Option<bool>) -> bool {
        let news = |now: bool| told != Some(now);
        let now = match self {
            Self::Calls(calls) => calls.listens(news).await,
            Self::Intake(intake) => intake.listens(news).await,
        };
        match now {
            Some(now) => now,
            // Whoever could tell is gone.
            None => std::future::pending().await,
        }
    }

    /// Takes none any more, and returns when what it has is done.
    async fn end(&mut self) {
        match self {
            Self::Calls(calls) => calls.close(),
            Self::Intake(intake) => intake.end().await,
        }
    }

    /// Drops what it has.
    async fn cut_off(&mut self) {
        match self {
            Self::Calls(calls) => calls.close(),
            Self::Intake(intake) => intake.cut_off().await,
        }
    }
}

/// What is counted of a replica beside its use, each when that is asked for.
#[derive(Clone)]
pub(super) struct Counts {
    /// Its answers.
    pub(super) tally: Option<Arc<Tally>>,
    /// What waits in its streams.
    pub(super) backlog: Option<Arc<Backlog>>,
}

impl Life {
    /// Tells that it is prepared, and again when it begins to listen.
    async fn tell_prepared(&mut self) -> Infallible {
        let mut told = None;
        loop {
            let listens = match &mut self.resting {
                Some(resting) => resting.listens(told).await,
                None if told.is_none() => true,
                None => std::future::pending().await,
            };
            told = Some(listens);
            let replica = self.replica.clone();
            let prepared = FromRunner::Prepared { replica, listens };
            self.context.tell(prepared).await;
        }
    }

    /// Tells the daemon about its readiness.
    pub(super) async fn health(&self, ready: bool, reason: Option<String>) {
        let replica = self.replica.clone();
        tracing::debug!(%replica, ready, reason, "readiness");
        self.context
            .tell(FromRunner::Health {
                replica,
                ready,
                reason,
            })
            .await;
    }

    /// `<name>.<namespace>.<domain>`.
    pub(super) fn host_name(&self) -> String {
        let workload = &self.replica.workload;
        format!(
            "{}.{}.{}",
            workload.name, workload.namespace, self.context.domain
        )
    }
}

/// The whole life of a replica; returns its last word.
///
/// Its parts are boxed, each as large as it is and no longer than it lasts: replicas that only wait are many.
pub(super) async fn live(
    context: Arc<Context>,
    replica: ReplicaKey,
    launch: Launch,
    (orders, counts): (Orders, Counts),
    known: Arc<OnceLock<Guest>>,
) -> FromRunner {
    let begun = Box::pin(begin(
        context.clone(),
        replica.clone(),
        launch,
        (orders, counts),
    ));
    // On its way, or there, for as long as it lives.
    let (life, guest, _coming) = match begun.await {
        Ok(begun) => begun,
        Err(last) => return last,
    };
    let _ = known.set(guest.clone());
    context
        .tell(FromRunner::Started {
            replica: replica.clone(),
        })
        .await;
    let end = match guest {
        Guest::Http(guest) => Box::pin(http::live(life, guest)).await,
        Guest::Messages(guest) => Box::pin(messages::live(life, guest)).await,
        Guest::Command(guest) => Box::pin(command::live(life, guest)).await,
    };
    // Its last lines before its last word.
    context.logs.flush().await;
    tracing::info!(%replica, ?end, "ended");
    match end {
        End::Stopped => FromRunner::Stopped { replica },
        End::Ended(outcome) => FromRunner::Ended { replica, outcome },
    }
}

/// Until it is started; else its last word.
async fn begin(
    context: Arc<Context>,
    replica: ReplicaKey,
    launch: Launch,
    (orders, counts): (Orders, Counts),
) -> Result<(Life, Guest, Option<Coming>), FromRunner> {
    let stopped = FromRunner::Stopped {
        replica: replica.clone(),
    };
    let logs = context.logs.sink(replica.clone());
    let workload = replica.workload.clone();
    let resources = &launch.revision.spec.resources;
    let most = usize::try_from(resources.concurrency.saturating_add(resources.queue));
    let most = most.unwrap_or(usize::MAX);
    let coming =
        (launch.revision.kind == Kind::Http).then(|| context.locals.waking().comes(workload, most));
    let (mut ending, mut starts) = (orders.clone(), orders.clone());
    let prepared = tokio::select! {
        biased;
        _ = ending.ending() => return Err(stopped),
        prepared = Box::pin(prepare(&context, &replica, &launch, &logs)) => prepared,
    };
    let Prepared {
        guest,
        messaging,
        subscribe,
        streams,
    } = match prepared {
        Ok(prepared) => prepared,
        Err(reason) => {
            tracing::info!(%replica, reason, "rejected");
            return Err(FromRunner::Rejected { replica, reason });
        }
    };
    let mut life = Life {
        context,
        replica,
        launch,
        logs,
        messaging,
        subscribe,
        streams,
        orders,
        counts,
        resting: None,
    };
    life.resting = Resting::begin(&life, &guest);
    let started = tokio::select! {
        biased;
        started = starts.start() => started,
        never = life.tell_prepared() => match never {},
    };
    if started {
        return Ok((life, guest, coming));
    }
    // Nobody waits for it any more.
    drop(coming);
    if let Some(mut resting) = life.resting.take() {
        tokio::select! {
            biased;
            () = life.orders.cut_off() => resting.cut_off().await,
            () = resting.end() => {}
        }
    }
    // Its last lines before its last word.
    life.context.logs.flush().await;
    Err(stopped)
}

struct Prepared {
    guest: Guest,
    messaging: Arc<GuestMessaging>,
    subscribe: Vec<Pattern>,
    streams: Vec<StreamSubscription>,
}

/// Everything up to the start; the refusal is for people.
async fn prepare(
    context: &Arc<Context>,
    replica: &ReplicaKey,
    launch: &Launch,
    logs: &Arc<ReplicaLogs>,
) -> Result<Prepared, String> {
    let mut grants = Grants::of(&replica.workload, &launch.revision.spec)?;
    grants.route(&context.gateway, &replica.workload.namespace);
    // The daemon has hashed the bytes, and the runtime's cache goes by the same digest.
    let load = context
        .engine
        .load_file(&launch.revision.artifact, &launch.artifact_path);
    let artifact = load.await.map_err(|error| chain(&error))?;
    let subscribe = std::mem::take(&mut grants.subscribe);
    let streams = std::mem::take(&mut grants.streams);
    let allowed = std::mem::take(&mut grants.allowed);
    let messaging = Arc::new(GuestMessaging::new(context.clone(), allowed));
    let bindings = &launch.revision.spec.bindings;
    let (link, root) = (&context.link, context.volumes.as_deref());
    let workload = &replica.workload;
    let share = MemoryShare::default();
    let storage = Storage {
        keyvalue: stores::keyvalue(link, workload, &bindings.keyvalue, &share)?,
        blobs: stores::blobstore(link, workload, &bindings.blobstore, root)?,
        preopens: volumes::preopens(root, replica, &bindings.volume, artifact.shape())?,
        share,
    };
    let mut config = grants.replica_config(
        replica,
        launch,
        logs.clone(),
        Some(messaging.clone()),
        storage,
    );
    if let Some((row, ledger)) = launch.row.zip(context.ledger.as_ref()) {
        config.account = ledger.account(row);
    }
    // Opening volumes reads whole trees, and linking takes its time: other guests go on meanwhile.
    // A few at a time: thousands may come at once, and a thread for each would be the most they ever need. One
    // with volumes waits for nobody, and nobody for its disk.
    let _turn = match config.preopens.is_empty() {
        true => context.linking.acquire().await.ok(),
        false => None,
    };
    let (kind, linking) = (launch.revision.kind, context.clone());
    let linked = tokio::task::spawn_blocking(move || linked(&linking, kind, &artifact, config));
    let guest = linked
        .await
        .unwrap_or_else(|lost| std::panic::resume_unwind(lost.into_panic()))
        .map_err(|error| chain(&error))?;
    Ok(Prepared {
        guest,
        messaging,
        subscribe,
        streams,
    })
}

fn linked(
    context: &Context,
    kind: Kind,
    artifact: &Arc<Artifact>,
    config: ReplicaConfig,
) -> Result<Guest, PrepareError> {
    let engine = &context.engine;
    Ok(match kind {
        Kind::Http => Guest::Http(Arc::new(HttpReplica::prepare(engine, artifact, config)?)),
        Kind::Messages => Guest::Messages(Arc::new(MessagesReplica::prepare(
            engine, artifact, config,
        )?)),
        Kind::Service | Kind::Job | Kind::Cron => {
            Guest::Command(Arc::new(CommandReplica::prepare(engine, artifact, config)?))
        }
    })
}
