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
//! NATS for what guests send and receive. It has two threads of its own, in a process of its own
//! ([`process`]) or in the daemon's ([`spawn`]): the supervisor's, which answers the daemon
//! whatever guests do, and the guests', where requests are accepted, routed and executed without
//! a hop.
//!
//! Invariants:
//! - It is driven by [`protocol`] messages alone. It knows no
//!   placements, no terms, no restart policy: a replica ends, and the daemon decides what next.
//! - Everything it spawned has ended when its threads have ended.
//! - When the daemon's side of the channel closes, it ends at once, but for what its gateway has in hand.

pub mod protocol;

mod allow;
mod answers;
mod backlog;
mod calls;
mod column;
mod command;
mod consume;
mod elsewhere;
mod grants;
mod guests;
mod http;
mod intake;
mod internal;
mod invoke;
mod link;
mod logs;
mod messages;
mod orders;
mod probe;
pub(crate) mod process;
mod replica;
mod revisions;
mod stores;
mod supervisor;
mod tunnel;
mod usage;
mod volumes;

pub(crate) use stores::BLOBS;

use std::future::Future;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::runtime::{Builder, Handle};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use wasmorch_api::{HostId, NatsOptions};

use crate::child::Child;
pub use crate::sandbox::Paths;
pub use column::ColumnNumber;
use guests::{Beat, Guests};
pub use process::serve as serve_runner;
pub(crate) use process::spawn as spawn_process;
use protocol::{FromRunner, QUEUE, ToRunner};

/// The name of the supervisor's thread.
const THREAD_NAME: &str = "wasmorch-runner";
/// For the log of a process that has ended to be read to its end.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// What a runner is started with. Listeners are handed in, so that a port in use is the daemon's
/// error, with its exit code, and not the runner's.
#[derive(Debug)]
pub struct RunnerConfig {
    /// Plain data.
    pub settings: Settings,
    /// Where the gateway answers clients.
    pub http: TcpListener,
    /// Where the gateway answers other hosts.
    pub peer: Option<TcpListener>,
    /// The ledger of the host's runners; `None`: this one counts alone.
    pub ledger: Option<OwnedFd>,
}

/// The part of a runner's configuration that can be sent.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Settings {
    /// The host it runs on.
    pub host: HostId,
    /// Its label `zone`: requests stay in it while they can.
    pub zone: Option<String>,
    /// Whether the gateway speaks TLS to clients, once it has been told certificates.
    pub tls: bool,
    /// Whether its clients come through a load balancer that says who they are.
    pub proxy_protocol: bool,
    /// The domain of automatic names: `<name>.<namespace>.<domain>`.
    pub domain: String,
    /// Failures are explained in answers, for who develops.
    pub development: bool,
    /// How to reach NATS for messages and calls; `None`: guests have neither.
    pub nats: Option<NatsOptions>,
    /// Where compiled code is kept; `None`: it is compiled at every start.
    pub compiled: Option<PathBuf>,
    /// Who compiles: the daemon has a process for it, or this runner does.
    pub compiled_elsewhere: bool,
    /// Where the operator puts code that was compiled elsewhere.
    pub given: Option<PathBuf>,
    /// Compiled code that it may have in memory, in bytes; runners share most of it.
    pub loaded_max: u64,
    /// What it may open, when it is a process.
    pub paths: Paths,
    /// Its column of the ledger.
    pub column: Option<ColumnNumber>,
    /// Below which volumes lie, as `<namespace>/<workload>/<slot>/<name>/`; `None`: there are none.
    pub volumes: Option<PathBuf>,
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
    /// The process.
    #[error(
        "the runner's process did not start: raise the limits on processes and files \
         (ulimit -u, ulimit -n), or run guests in the daemon with --runners 0"
    )]
    Spawn(#[source] std::io::Error),
    /// A runner's process without a daemon.
    #[error("a runner is started by its host, which hands it what it needs over stdin")]
    Daemon(#[source] std::io::Error),
    /// The gateway gave up.
    #[error("the gateway ended: {0}")]
    Gateway(String),
    /// Its process ended.
    #[error("its process ended: {0}")]
    Exited(String),
    /// It panicked.
    #[error("the runner panicked; this is a bug of ours, its log says where")]
    Panicked,
    /// It did not end in time.
    #[error("the runner did not end within {0:?}")]
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
pub struct RunnerEnd(Body);

#[derive(Debug)]
enum Body {
    Thread {
        thread: std::thread::JoinHandle<()>,
        result: oneshot::Receiver<Result<(), RunnerError>>,
    },
    Process {
        child: Child,
        /// Passes messages until the process closes its end.
        talk: JoinHandle<()>,
    },
}

impl RunnerEnd {
    fn of_process(child: Child, talk: JoinHandle<()>) -> Self {
        Self(Body::Process { child, talk })
    }

    /// Waits until the runner has ended. A process that does not is killed after `deadline`.
    ///
    /// # Errors
    ///
    /// How it failed, or [`RunnerError::Stuck`] after `deadline`.
    pub async fn join(self, deadline: Duration) -> Result<(), RunnerError> {
        match self.0 {
            Body::Thread { thread, result } => {
                match tokio::time::timeout(deadline, result).await {
                    Err(_) => Err(RunnerError::Stuck(deadline)),
                    Ok(Err(_)) => Err(RunnerError::Panicked),
                    // The result is the last thing the thread gives: joining it does not wait.
                    Ok(Ok(result)) => thread.join().map_err(|_| RunnerError::Panicked).and(result),
                }
            }
            Body::Process { mut child, talk } => {
                let ended = tokio::time::timeout(deadline, child.ended()).await;
                let ended = match ended {
                    Ok(how) if how.ends_with(": 0") => Ok(()),
                    Ok(how) => Err(RunnerError::Exited(how)),
                    Err(_) => {
                        child.kill();
                        child.ended().await;
                        Err(RunnerError::Stuck(deadline))
                    }
                };
                // Nobody listens to it any more; it ends with the stream.
                let _ = tokio::time::timeout(LAST_WORDS, talk).await;
                ended
            }
        }
    }
}

impl RunnerHandle {
    /// Its process; `None`: it lives in this one.
    pub fn pid(&self) -> Option<i32> {
        match &self.end.0 {
            Body::Thread { .. } => None,
            Body::Process { child, .. } => Some(child.pid()),
        }
    }

    /// Ends its process now. Threads cannot be ended.
    pub fn kill(&self) {
        if let Body::Process { child, .. } = &self.end.0 {
            child.kill();
        }
    }

    /// Has its gateway finish what it has in hand, for so long; then as [`Self::shutdown`].
    ///
    /// # Errors
    ///
    /// How it failed, or [`RunnerError::Stuck`] after `deadline` on top.
    pub async fn leave(self, within: Duration, deadline: Duration) -> Result<(), RunnerError> {
        let Self { to, mut from, end } = self;
        let within_ms = u64::try_from(within.as_millis()).unwrap_or(u64::MAX);
        let told = async move {
            // One that is ending by itself needs not to be told.
            let _ = to.send(ToRunner::Leave { within_ms }).await;
            drop(to);
            // Nobody wants to know it any more; but a channel that is closed here closes there too.
            while from.recv().await.is_some() {}
        };
        let ended = tokio::time::timeout(within + deadline, told).await;
        // One that has not ended by now is not waited for again.
        let deadline = ended.map_or(Duration::ZERO, |()| deadline);
        end.join(deadline).await
    }

    /// Closes the channel and waits until the runner has ended.
    ///
    /// # Errors
    ///
    /// How it failed, or [`RunnerError::Stuck`] after `deadline`.
    pub async fn shutdown(self, deadline: Duration) -> Result<(), RunnerError> {
        drop((self.to, self.from));
        self.end.join(deadline).await
    }
}

/// Starts a runner on threads of this process: for tests, debuggers and the smallest devices.
///
/// # Errors
///
/// When its thread does not start. What fails later comes from [`RunnerEnd::join`].
pub fn spawn(config: RunnerConfig) -> Result<RunnerHandle, RunnerError> {
    let (to, inbox) = mpsc::channel(QUEUE);
    let (outbox, from) = mpsc::channel(QUEUE);
    let (done, result) = oneshot::channel();
    let thread = std::thread::Builder::new()
        .name(THREAD_NAME.into())
        .spawn(move || {
            let ended = run(|guests| supervisor::run(config, guests, inbox, outbox));
            // Nobody waits any more when the daemon is gone.
            let _ = done.send(ended);
        })
        .map_err(RunnerError::Threads)?;
    Ok(RunnerHandle {
        to,
        from,
        end: RunnerEnd(Body::Thread { thread, result }),
    })
}

/// Runs a supervisor on this thread; guests have another, so no guest holds up a ping.
fn run<L: Future<Output = Result<(), RunnerError>>>(
    supervisor: impl FnOnce((Handle, Beat)) -> L,
) -> Result<(), RunnerError> {
    let executor = Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(RunnerError::Threads)?;
    let guests = Guests::start().map_err(RunnerError::Threads)?;
    let ended = executor.block_on(supervisor((guests.handle().clone(), guests.beat())));
    guests.end();
    ended
}
