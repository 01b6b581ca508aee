//! The controller: the shell round the planner.
//!
//! Owns leadership, the store, the API and the control loop. What should happen is the planner's to
//! decide; hosts are known by their messages alone, and this crate must not know theirs.
//!
//! ```text
//!                     ┌─ leader ── lease, term ──────────────┐
//!  API (micro) ─ api ─┤  control_loop ─ planner ─ dispatch   ├─ store ─ JetStream
//!  hosts ─────── ears ┤                                      │
//!                     └─ events ─────────────────────────────┘      admin: HTTP for watchers
//! ```
//!
//! Any number of controllers may run. One leads, by a lease; the others stand by. Everything a
//! leader writes is fenced by its term in the store itself, so that a leader that was frozen and
//! comes back changes nothing.

mod admin;
mod api;
mod artifacts;
mod clock;
mod control_loop;
mod dispatch;
mod ears;
mod error;
mod events;
mod guard;
mod inbox;
mod leader;
pub mod lease;
pub mod link;
mod metrics;
mod recover;
pub mod store;

/// The pure parts of the shell, for the simulator in `tests/sim`: it drives these very ones.
#[doc(hidden)]
pub mod simulation {
    pub use crate::control_loop::Pace;
    pub use crate::guard::{Concern, Guard, Question};
}

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use wasmorch_api::{LeaderId, NatsOptions};
use wasmorch_planner::Detection;

pub use error::{ControllerError, Source};
pub use wasmorch_planner::DEAD_AFTER;

use admin::Admin;
use artifacts::Artifacts;
use leader::Controller;
use lease::LeaseTimes;
use link::Link;
use metrics::Metrics;
use store::{Store, StoreError};

/// What is still on its way at the end has so long to leave.
const CLOSE: Duration = Duration::from_secs(2);

/// How a controller runs.
#[derive(Debug)]
pub struct ControllerConfig {
    /// Where NATS is.
    pub nats: NatsOptions,
    /// Health and metrics; `None`: no listener.
    pub admin: Option<SocketAddr>,
    /// A host silent for this long is dead.
    pub dead_after: Duration,
    /// Told once it runs: the store is open, and it leads or stands by.
    pub started: Option<oneshot::Sender<ControllerStarted>>,
}

/// A controller that runs.
#[derive(Debug, Clone)]
pub struct ControllerStarted {
    /// Its id.
    pub leader: LeaderId,
    /// Its admin listener, with the port that it got.
    pub admin: Option<SocketAddr>,
}

/// Runs a controller until `shutdown`: connects, opens the store, and leads whenever it can.
pub async fn run(
    config: ControllerConfig,
    shutdown: CancellationToken,
) -> Result<(), ControllerError> {
    let leader = LeaderId::from_random(rand::random());
    let starting = start(&config, &leader);
    // Starting may wait for a server that is slow to answer.
    let parts = tokio::select! {
        () = shutdown.cancelled() => return Ok(()),
        parts = starting => parts?,
    };
    let Parts {
        link,
        store,
        listener,
        metrics,
    } = parts;
    let admin = listener
        .as_ref()
        .and_then(|listener| listener.local_addr().ok());
    let stop_admin = CancellationToken::new();
    let serving = listener.map(|listener| {
        let admin = Admin {
            link: link.clone(),
            metrics: metrics.clone(),
            leader: leader.clone(),
        };
        AbortOnDropHandle::new(tokio::spawn(admin.serve(listener, stop_admin.clone())))
    });
    tracing::info!(%leader, nats = link.url(), "controller started");
    if let Some(started) = config.started {
        // Nobody has to listen.
        let _ = started.send(ControllerStarted {
            leader: leader.clone(),
            admin,
        });
    }
    let controller = Controller {
        link: link.clone(),
        js_domain: config.nats.js_domain.clone(),
        artifacts: Artifacts::new(store.clone()),
        store,
        leader,
        times: LeaseTimes::default(),
        detection: Detection {
            dead_after: config.dead_after,
        },
        metrics,
    };
    // A term's future is large, and callers put this one in theirs.
    Box::pin(controller.run(shutdown)).await;
    stop_admin.cancel();
    if let Some(serving) = serving {
        // A panic there has been reported by the runtime, and nothing is left to save.
        let _ = serving.await;
    }
    if tokio::time::timeout(CLOSE, link.flush()).await.is_err() {
        tracing::debug!("NATS did not take the last messages");
    }
    Ok(())
}

/// A store that does not answer at the start is asked for so long: several of the link's time-outs, for servers
/// that choose their leader meanwhile drop what they are asked.
const SILENT_STORE_MAX: Duration = Duration::from_secs(60);
/// One that refuses may still be finding its peers.
const REFUSED_MAX: Duration = Duration::from_secs(10);
const STORE_AGAIN: Duration = Duration::from_millis(500);

/// Whether it is asked again. A refusal counts from the first in a row on: servers may have been silent before.
fn is_patient(error: &StoreError, began: Instant, refused: &mut Option<Instant>) -> bool {
    match error {
        StoreError::Unavailable(_) | StoreError::NotReady(_) => {
            *refused = None;
            began.elapsed() < SILENT_STORE_MAX
        }
        _ => refused.get_or_insert_with(Instant::now).elapsed() < REFUSED_MAX,
    }
}

struct Parts {
    link: Link,
    store: Store,
    listener: Option<tokio::net::TcpListener>,
    metrics: Metrics,
}

async fn start(config: &ControllerConfig, leader: &LeaderId) -> Result<Parts, ControllerError> {
    let listener = match config.admin {
        Some(addr) => Some(admin::bind(addr).await?),
        None => None,
    };
    let name = format!("wasmorch controller {leader}");
    let link = Link::connect(&config.nats, &name).await?;
    let began = Instant::now();
    let mut refused = None;
    let store = loop {
        match Store::open(&link, config.nats.js_domain.as_deref()).await {
            // Servers that start together with this need a while to choose their leader.
            Err(ControllerError::Store(error)) if is_patient(&error, began, &mut refused) => {
                tracing::info!(%error, "waiting for the store");
                tokio::time::sleep(STORE_AGAIN).await;
            }
            opened => break opened?,
        }
    };
    Ok(Parts {
        link,
        store,
        listener,
        metrics: Metrics::new(),
    })
}
