//! The host's compiler: a process that makes code of artifacts, for all runners.
//!
//! ```text
//!   runner ── Compile ──> pool ── Order ──> `wasmorch compiler` ── writes ──> compiled/
//!          <─ Compiled ──      <─ Done ───                                        │
//!          reads <────────────────────────────────────────────────────────────────┘
//! ```
//!
//! Owns what is said to it, and its main loop. It executes no guest. Of all processes of a host it alone writes
//! to the folder of compiled code: what broke out of a guest cannot leave code there for others. Compiling takes
//! memory and time as a component wishes, so it may be killed for either, and no guest is lost.

use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use wasmorch_api::Digest;
use wasmorch_runtime::{LoadError, Runtime, RuntimeConfig};

use crate::process;
use crate::runner::RunnerError;
use crate::sandbox::{self, Paths};

/// What it is started with.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Settings {
    /// Where the host keeps artifacts, each by its digest.
    pub(crate) artifacts: PathBuf,
    /// Where compiled code is kept.
    pub(crate) compiled: PathBuf,
    /// Where the operator puts code that was compiled elsewhere.
    pub(crate) given: Option<PathBuf>,
    /// What it may open.
    pub(crate) paths: Paths,
}

/// Daemon to compiler: make code of this artifact.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Order {
    pub(crate) digest: Digest,
}

/// Compiler to daemon, once for each order.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Done {
    pub(crate) digest: Digest,
    /// The code lies in the folder, or could not be kept there; or why there is none.
    pub(crate) result: Result<(), LoadError>,
}

/// The whole of the compiler's process, until its daemon closes the socket. `confined` is called once it has
/// given up what it does not need.
///
/// # Errors
///
/// When it was started by anything but a daemon, or cannot run.
pub fn serve(confined: impl FnOnce()) -> Result<(), RunnerError> {
    let mut socket = process::begin().map_err(RunnerError::Daemon)?;
    let settings: Option<Settings> = process::settings(&mut socket).map_err(RunnerError::Daemon)?;
    let Some(settings) = settings else {
        return Ok(());
    };
    goes_first();
    // Before there are threads: they inherit it.
    sandbox::enter(&settings.paths);
    confined();
    let executor = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(RunnerError::Threads)?;
    executor.block_on(async {
        let engine = Runtime::new(RuntimeConfig {
            compiled_dir: Some(settings.compiled),
            given_dir: settings.given,
            guest_threads: 1,
            // It executes nothing.
            instances_max: 1,
            pooling: false,
            ..RuntimeConfig::default()
        })
        .map_err(RunnerError::Engine)?;
        let (orders, done, talk) = process::converse(socket).map_err(RunnerError::Daemon)?;
        tokio::select! {
            () = work(engine, settings.artifacts.into(), orders, done) => Ok(()),
            never = talk => match never {},
        }
    })
}

/// Each order is a task; how many there are is the daemon's to bound, and how many threads compile the
/// runtime's.
async fn work(
    engine: Runtime,
    artifacts: Arc<std::path::Path>,
    mut orders: mpsc::Receiver<Order>,
    done: mpsc::Sender<Done>,
) {
    let mut tasks = JoinSet::new();
    loop {
        let order = tokio::select! {
            order = orders.recv() => order,
            // A panic is that of the compiler's pool, which is told as an error; here there is none.
            Some(_) = tasks.join_next() => continue,
        };
        let Some(Order { digest }) = order else {
            return;
        };
        let (engine, artifacts, done) = (engine.clone(), artifacts.clone(), done.clone());
        tasks.spawn(async move {
            let loaded = engine
                .load_file(&digest, &artifacts.join(digest.hex()))
                .await;
            // Its code is of use to others, not here.
            let result = loaded.map(drop);
            // A daemon that is gone needs no answer.
            let _ = done.send(Done { digest, result }).await;
        });
    }
}

/// When memory is short, the kernel ends this process before any that serves.
fn goes_first() {
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", "800") {
        tracing::debug!(%error, "the kernel was not told whom to end first");
    }
}
