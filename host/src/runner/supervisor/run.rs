//! What a runner is made of, and in which order it ends.
//!
//! Owns the order: what serves ends last. What it does meanwhile is the supervisor's.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use wasmorch_api::error::chain;
use wasmorch_gateway::{Crowd, GatewayConfig, Limits, Server, Tables, Tunnel};
use wasmorch_runtime::{Compiler, Runtime, RuntimeConfig};

use super::{Context, Supervisor};
use crate::descriptors;
use crate::runner::calls::Subscriptions;
use crate::runner::column::Column;
use crate::runner::elsewhere::Elsewhere;
use crate::runner::guests::Beat;
use crate::runner::http::Locals;
use crate::runner::link::Link;
use crate::runner::logs::LogQueue;
use crate::runner::protocol::{FromRunner, ToRunner};
use crate::runner::revisions::Revisions;
use crate::runner::tunnel::Tunnels;
use crate::runner::{RunnerConfig, RunnerError, Settings};

/// What the gateway has in hand may take so long when the daemon is gone without a word (`Leave`).
const IN_HAND: Duration = Duration::from_secs(1);
/// Tunnels that the gateway has not taken up yet; it does so at once.
const TUNNELS_WAITING: usize = 16;
/// Replicas without volumes that are linked at the same time.
const LINKED_AT_ONCE: usize = 4;
/// Between two looks at code that nobody uses.
const UNLOAD_EVERY: Duration = Duration::from_secs(10);
/// On the way out nothing is waited for longer than this.
const END_WITHIN: Duration = Duration::from_secs(2);

/// Runs until the daemon's side closes. Nothing here waits for a guest: they run on `guests`.
pub(in crate::runner) async fn run(
    config: RunnerConfig,
    (guests, beat): (Handle, Beat),
    inbox: mpsc::Receiver<ToRunner>,
    out: mpsc::Sender<FromRunner>,
) -> Result<(), RunnerError> {
    let RunnerConfig {
        settings,
        http,
        peer,
        ledger,
    } = config;
    let Settings {
        host,
        zone,
        tls,
        proxy_protocol,
        domain,
        development,
        nats,
        compiled,
        compiled_elsewhere,
        given,
        volumes,
        column,
        loaded_max,
        paths: _,
    } = settings;
    let ledger = ledger.and_then(|file| Column::open(&file, column?));
    let gateways = ledger.as_ref().map(Column::gateways);
    let elsewhere = compiled_elsewhere.then(|| Elsewhere::new(out.clone()));
    let engine = Runtime::new(RuntimeConfig {
        compiled_dir: compiled,
        given_dir: given,
        guest_threads: 1,
        loaded_max,
        compiler: elsewhere
            .clone()
            .map(|elsewhere| elsewhere as Arc<dyn Compiler>),
        ..RuntimeConfig::default()
    })
    .map_err(RunnerError::Engine)?;
    let (logs, deliver) = LogQueue::new(out.clone());
    let delivery = tokio::spawn(deliver);
    let locals = Arc::new(Locals::new(out.clone()));
    let tables = Tables::new();
    let (context_domain, link) = (domain.clone(), Arc::new(Link::new(nats, &host)));
    let (accepted, tunnelled) = mpsc::channel(TUNNELS_WAITING);
    let tunnels = Tunnels::new(link.clone(), host.clone(), accepted);
    let (certificates, shown) = watch::channel(None);
    let gateway = GatewayConfig {
        development,
        zone,
        proxy_protocol,
        tls: tls.then_some(shown),
        tunnel: link
            .is_configured()
            .then(|| tunnels.clone() as Arc<dyn Tunnel>),
        tunnelled: Some(tunnelled),
        crowd: gateways
            .clone()
            .map(|gateways| Arc::new(gateways) as Arc<dyn Crowd>),
        limits: Limits {
            drain: Duration::MAX,
            connections_max: descriptors::for_connections(
                descriptors::limit(),
                Limits::default().connections_max,
            ),
            ..Limits::default()
        },
        ..GatewayConfig::new(http, peer, host, domain)
    };
    let server = {
        // Its sockets are looked after where its requests run.
        let _guests = guests.enter();
        Server::new(gateway, tables.clone(), locals.clone())
            .map_err(|error| RunnerError::Gateway(chain(&error)))?
    };
    let context = Arc::new(Context {
        engine,
        link,
        tunnels: tunnels.clone(),
        gateway: server.gateway(),
        locals,
        calls: Subscriptions::default(),
        linking: Semaphore::new(LINKED_AT_ONCE),
        logs,
        domain: context_domain,
        ledger,
        volumes,
        out: out.clone(),
    });
    let mut supervisor = Supervisor {
        guests: guests.clone(),
        beat,
        pinged: None,
        context,
        elsewhere,
        tables,
        certificates,
        closed: Some(server),
        serving: JoinSet::new(),
        gateways,
        shutdown: CancellationToken::new(),
        leaves_within: IN_HAND,
        replicas: HashMap::new(),
        revisions: Revisions::default(),
        tasks: JoinSet::new(),
        waiting: VecDeque::new(),
    };
    let unloading = guests.spawn(unload(supervisor.context.engine.clone()));
    let _unloading = AbortOnDropHandle::new(unloading);
    let ended = supervisor.supervise(inbox, &out).await;
    supervisor.shutdown.cancel();
    if let Some(gateways) = &supervisor.gateways {
        gateways.accepts(false);
    }
    // Aborts every replica and waits until each is dropped. Guests yield, so this is soon.
    if timeout(END_WITHIN, supervisor.tasks.shutdown())
        .await
        .is_err()
    {
        tracing::warn!("replicas did not end in time");
    }
    // Calls have no takers any more, and the gateway waits for them too.
    let (calls, serving) = (&supervisor.context.calls, &mut supervisor.serving);
    let served = async { while serving.join_next().await.is_some() {} };
    let in_hand = async { tokio::join!(calls.end(), served) };
    if timeout(supervisor.leaves_within, in_hand).await.is_err() {
        tracing::warn!("not everything in hand was answered in time");
    }
    if timeout(END_WITHIN, supervisor.serving.shutdown())
        .await
        .is_err()
    {
        tracing::warn!("the gateway did not end in time");
    }
    if timeout(END_WITHIN, tunnels.end()).await.is_err() {
        tracing::warn!("tunnels did not end in time");
    }
    delivery.abort();
    ended
}

/// Unloads code that was not used for long, until it is dropped.
async fn unload(engine: Runtime) {
    loop {
        tokio::time::sleep(UNLOAD_EVERY).await;
        let engine = engine.clone();
        // Unmapping takes its time.
        let unloaded = tokio::task::spawn_blocking(move || engine.unload_unused());
        if let Err(error) = unloaded.await {
            tracing::error!(%error, "unused code was not unloaded");
        }
    }
}
