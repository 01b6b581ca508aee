//! The runner: what executes guests and hosts the gateway.
//!
//! ```text
//!   daemon ── ToRunner ──> Supervisor (one task owns the replica table)
//!          <─ FromRunner ─     |  orders (watch)
//!                              v
//!                          one task per replica: prepare > start > serve or run > drain > end
//!                              |               |                |
//!                          Locals <── gateway  Link (NATS)      LogQueue
//! ```
//!
//! Owns: the replicas of this runner, the routing tables that it was told, its own connection to
//! NATS for what guests send and receive. It runs on threads of its own, so that guests never hold
//! up the daemon.
//!
//! Invariants:
//! - It is driven by [`protocol`] messages alone, so that it can become a process. It knows no
//!   placements, no terms, no restart policy: a replica ends, and the daemon decides what next.
//! - Everything it spawned has ended when its thread has ended.
//! - When the daemon's side of the channel closes, it ends at once.

pub mod protocol;

mod allow;
mod command;
mod grants;
mod http;
mod intake;
mod invoke;
mod link;
mod logs;
mod messages;
mod orders;
mod probe;
mod replica;
mod supervisor;

use std::net::TcpListener;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use wasmorch_api::{HostId, NatsOptions};
use wasmorch_runtime::{Runtime, RuntimeConfig};

use protocol::{FromRunner, QUEUE, ToRunner};

/// The name of the runner's threads.
const THREAD_NAME: &str = "wasmorch-runner";
/// Tasks that are run between two looks at sockets and timers. Short guests take tens of
/// microseconds each, and tokio's 61 of them would hold up whoever comes by milliseconds.
const EVENT_INTERVAL: u32 = 8;
/// How long tasks that were told to end may take before the runner's threads are left behind.
const ABANDON_AFTER: Duration = Duration::from_secs(2);

/// What a runner is started with. Listeners are handed in, so that a port in use is the daemon's
/// error, with its exit code, and not the runner's.
#[derive(Debug)]
pub struct RunnerConfig {
    /// The host it runs on.
    pub host: HostId,
    /// The domain of automatic names: `<name>.<namespace>.<domain>`.
    pub domain: String,
    /// Failures are explained in answers, for who develops.
    pub development: bool,
    /// Where the gateway answers clients.
    pub http: TcpListener,
    /// Where the gateway answers other hosts.
    pub peer: Option<TcpListener>,
    /// How to reach NATS for messages and calls; `None`: guests have neither.
    pub nats: Option<NatsOptions>,
    /// Where compiled code is kept; `None`: it is compiled at every start.
    pub compiled: Option<PathBuf>,
    /// Threads that run guests; `None`: one for each core.
    pub threads: Option<NonZeroUsize>,
}

/// Why a runner could not be started, or how it came to its end.
#[derive(Debug, thiserror::Error)]
pub enum RunnerError {
    /// The WebAssembly engine.
    #[error("the WebAssembly engine did not start")]
    Engine(#[source] wasmorch_runtime::RuntimeError),
    /// Threads.
    #[error("the runner's threads did not start: raise the limit on threads (ulimit -u)")]
    Threads(#[source] std::io::Error),
    /// The gateway gave up.
    #[error("the gateway ended: {0}")]
    Gateway(String),
    /// It panicked.
    #[error("the runner panicked; this is a bug of ours, its log says where")]
    Panicked,
    /// It did not end in time.
    #[error("the runner did not end within {0:?}: its threads are left behind")]
    Stuck(Duration),
}

/// A running runner, as its daemon holds it. Dropping `to` ends it.
#[derive(Debug)]
pub struct RunnerHandle {
    /// Daemon to runner.
    pub to: mpsc::Sender<ToRunner>,
    /// Runner to daemon; `None` once the runner has ended.
    pub from: mpsc::Receiver<FromRunner>,
    /// Its end.
    pub end: RunnerEnd,
}

/// The end of a runner, to be waited for after its channel was closed.
#[derive(Debug)]
pub struct RunnerEnd {
    thread: std::thread::JoinHandle<()>,
    result: oneshot::Receiver<Result<(), RunnerError>>,
}

impl RunnerEnd {
    /// Waits until the runner's threads have ended.
    ///
    /// # Errors
    ///
    /// How it failed, or [`RunnerError::Stuck`] after `deadline`.
    pub async fn join(self, deadline: Duration) -> Result<(), RunnerError> {
        match tokio::time::timeout(deadline, self.result).await {
            Err(_) => Err(RunnerError::Stuck(deadline)),
            Ok(Err(_)) => Err(RunnerError::Panicked),
            // The result is the last thing the thread gives: joining it does not wait.
            Ok(Ok(result)) => self
                .thread
                .join()
                .map_err(|_| RunnerError::Panicked)
                .and(result),
        }
    }
}

impl RunnerHandle {
    /// Closes the channel and waits until the runner's threads have ended.
    ///
    /// # Errors
    ///
    /// How it failed, or [`RunnerError::Stuck`] after `deadline`.
    pub async fn shutdown(self, deadline: Duration) -> Result<(), RunnerError> {
        drop((self.to, self.from));
        self.end.join(deadline).await
    }
}

/// Starts a runner on threads of its own.
///
/// # Errors
///
/// When the engine or its thread does not start. What fails later comes from [`RunnerEnd::join`].
pub fn spawn(config: RunnerConfig) -> Result<RunnerHandle, RunnerError> {
    let cores = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    let threads = config.threads.unwrap_or(cores).get();
    let engine = Runtime::new(RuntimeConfig {
        compiled_dir: config.compiled.clone(),
        guest_threads: threads,
        ..RuntimeConfig::default()
    })
    .map_err(RunnerError::Engine)?;
    let (to, inbox) = mpsc::channel(QUEUE);
    let (outbox, from) = mpsc::channel(QUEUE);
    let (done, result) = oneshot::channel();
    let thread = std::thread::Builder::new()
        .name(THREAD_NAME.into())
        .spawn(move || {
            // Nobody waits any more when the daemon is gone.
            let _ = done.send(run(config, engine, threads, inbox, outbox));
        })
        .map_err(RunnerError::Threads)?;
    Ok(RunnerHandle {
        to,
        from,
        end: RunnerEnd { thread, result },
    })
}

/// The runner's thread. The supervisor runs on it alone: guests have the worker threads, so no
/// guest holds up a ping.
fn run(
    config: RunnerConfig,
    engine: Runtime,
    threads: usize,
    inbox: mpsc::Receiver<ToRunner>,
    outbox: mpsc::Sender<FromRunner>,
) -> Result<(), RunnerError> {
    let executor = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .event_interval(EVENT_INTERVAL)
        .thread_name(THREAD_NAME)
        .enable_all()
        .build()
        .map_err(RunnerError::Threads)?;
    let result = executor.block_on(supervisor::run(config, engine, inbox, outbox));
    executor.shutdown_timeout(ABANDON_AFTER);
    result
}
