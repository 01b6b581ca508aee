//! What the daemon and a runner say to each other: plain data, one message type per direction.
//!
//! They travel over a socket pair to a process, or over bounded channels within this one. That is
//! why everything here is serde data, why nothing here is a handle, and why neither side may reach
//! the other in any other way.
//!
//! Rules that both sides keep:
//! - The daemon names replicas; a runner never makes one up. A [`ReplicaKey`] is used once:
//!   a restart is a new key.
//! - Per replica the daemon sends `Prepare`, then `Start`, then at most one `Drain`, perhaps
//!   `Withdrawn` after it, and may send `Stop` at any time. A message about a replica that the runner does not know is answered with
//!   `Stopped` when it was `Drain` or `Stop`, and otherwise ignored.
//! - Per replica the runner answers `Prepared` or `Rejected`; after `Start` it answers `Started`
//!   (or `Rejected`), then any number of `Health`, then exactly one of `Ended` and `Stopped`.
//!   After that (and after `Rejected`) it has forgotten the replica.
//! - `Wake` names a replica only where one has the request in hand; else which one starts is the
//!   daemon's to say.
//! - `Ended` may cross with `Drain`: the runner then answers `Ended` first, and `Stopped` to the
//!   `Drain` that named a replica it no longer knows.
//! - `Compile` is answered by one `Compiled` of the same digest, whatever else comes between.
//! - When the daemon's side closes, the runner ends every replica at once, and itself; after `Leave` once
//!   its gateway has answered what it has in hand.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use wasmorch_api::messages::LogLine;
use wasmorch_api::{Answers, Digest, EndpointTable, ReplicaId, Revision, RouteTable, WorkloadKey};
use wasmorch_gateway::{PemPair, Stats};
use wasmorch_runtime::LoadError;

pub use crate::process::QUEUE;

/// One replica of one workload: unique within a host for ever.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ReplicaKey {
    /// Whose replica.
    pub workload: WorkloadKey,
    /// Slot, placement and start.
    pub id: ReplicaId,
}

impl ReplicaKey {
    /// Puts a key together.
    pub fn new(workload: WorkloadKey, id: ReplicaId) -> Self {
        Self { workload, id }
    }
}

impl std::fmt::Display for ReplicaKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.workload, self.id)
    }
}

/// All that a runner needs to run one replica.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Launch {
    /// What it is one of. All replicas of a revision share it, in the daemon and in each runner: a host may
    /// have thousands.
    pub revision: Arc<Revision>,
    /// The component's bytes, hashed by the daemon just before this message.
    pub artifact_path: PathBuf,
    /// Arguments in place of the spec's (a job's run).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub args: Option<Vec<String>>,
    /// Where all runners together count what it uses; chosen by the pool. `None`: this runner
    /// counts alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub row: Option<usize>,
}

/// Daemon to runner.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum ToRunner {
    /// Load, check and compile; ends in `Prepared` or `Rejected`.
    Prepare {
        /// Which replica.
        replica: ReplicaKey,
        /// What it is.
        launch: Box<Launch>,
    },
    /// Start a prepared replica: it may serve from here on.
    Start {
        /// Which replica.
        replica: ReplicaKey,
    },
    /// Take nothing new, finish what is in hand, then `Stopped`.
    Drain {
        /// Which replica.
        replica: ReplicaKey,
        /// Work in hand is cut off after this long.
        deadline_ms: u64,
    },
    /// The gateways of other hosts send nothing more to one that drains.
    Withdrawn {
        /// Which replica.
        replica: ReplicaKey,
    },
    /// End it now, whatever it does; then `Stopped`.
    Stop {
        /// Which replica.
        replica: ReplicaKey,
    },
    /// Routes that changed.
    Routes {
        /// New tables, each with its store sequence.
        changed: Vec<(RouteTable, u64)>,
        /// Workloads that have none any more, with the sequence of the deletion.
        removed: Vec<(WorkloadKey, u64)>,
    },
    /// Endpoints that changed.
    Endpoints {
        /// New tables, each with its store sequence.
        changed: Vec<(EndpointTable, u64)>,
        /// Workloads that have none any more, with the sequence of the deletion.
        removed: Vec<(WorkloadKey, u64)>,
    },
    /// Everything there is to route by: replaces all tables. A key for which the runner holds a
    /// newer sequence keeps it.
    Tables {
        /// Every route table.
        routes: Vec<(RouteTable, u64)>,
        /// Every endpoint table.
        endpoints: Vec<(EndpointTable, u64)>,
        /// The newest change that is in them, deletions included: what the runner holds up to
        /// here and is not listed is gone.
        #[serde(default)]
        as_of: u64,
    },
    /// Accept connections from here on: the runner has what it needs to answer them.
    Open,
    /// Certificates of the public port, checked by the daemon: they replace all others.
    Certificates {
        /// All of them.
        pairs: Vec<PemPair>,
        /// When they were found good. What has ended since is no reason to refuse the others.
        as_of: SystemTime,
    },
    /// The answer to `Compile`: the code is in the folder of compiled code, unless it could not be kept.
    Compiled {
        /// Of which artifact.
        digest: Digest,
        /// Why there is none.
        result: Result<(), LoadError>,
    },
    /// The daemon ends, and closes its side next: what the gateway has in hand may finish.
    Leave {
        /// It is cut off after this long.
        within_ms: u64,
    },
    /// Answer with `Usage`.
    Usage,
    /// Answer with `Pong` and the same number. Never waits behind guest work.
    Ping(u64),
}

/// How a replica ended by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// The guest returned well.
    Completed {
        /// Its exit code.
        exit_code: i32,
    },
    /// It failed: a trap, a limit, a bad exit code, a failed liveness probe.
    Failed {
        /// Its exit code, when it had one.
        exit_code: Option<i32>,
        /// What happened, for people.
        reason: String,
    },
    /// Its runner ended with it, through nobody's known fault. Said by the pool, never by a runner.
    Lost {
        /// How the runner ended.
        reason: String,
    },
}

/// What one replica uses now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaUsage {
    /// Which replica.
    pub replica: ReplicaKey,
    /// Memory of its instances.
    pub memory_bytes: u64,
    /// Cpu since the last `Usage`, thousandths of a core.
    pub cpu_millis: u64,
    /// Requests or messages in hand.
    pub in_flight: u64,
    /// Requests since the last `Usage`, thousandths of one in a second; probes are none.
    #[serde(default)]
    pub request_millis: u64,
    /// Messages that wait in its streams, for any replica; counted when the spec's `scale` goes by it.
    #[serde(default)]
    pub pending: u64,
    /// How it has answered so far; http alone.
    #[serde(default)]
    pub answers: Answers,
}

/// Compiled code in a runner's memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CodeStats {
    /// Artifacts whose code is loaded.
    pub artifacts: u64,
    /// What that takes.
    pub bytes: u64,
    /// Times that code was loaded, since it started.
    pub loads: u64,
    /// Times that unused code was unloaded.
    pub unloads: u64,
}

/// A runner's usage.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Usage {
    /// Each replica that is started.
    pub replicas: Vec<ReplicaUsage>,
    /// The gateway's counters.
    pub gateway: Box<Stats>,
    /// The code that it has loaded.
    pub code: CodeStats,
    /// The highest store sequence that its tables have applied.
    pub table_seq: u64,
}

/// Runner to daemon.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum FromRunner {
    /// Ready to be started; told again when `listens` changes.
    Prepared {
        /// Which replica.
        replica: ReplicaKey,
        /// What comes for it would find it, and wake it if it is to rest.
        listens: bool,
    },
    /// It could not be started. What would make it pass, in words.
    Rejected {
        /// Which replica.
        replica: ReplicaKey,
        /// Why.
        reason: String,
    },
    /// It runs.
    Started {
        /// Which replica.
        replica: ReplicaKey,
    },
    /// Its readiness changed.
    Health {
        /// Which replica.
        replica: ReplicaKey,
        /// Proven to serve.
        ready: bool,
        /// Why not.
        reason: Option<String>,
    },
    /// It ended by itself.
    Ended {
        /// Which replica.
        replica: ReplicaKey,
        /// How.
        outcome: Outcome,
    },
    /// It ended because it was told to: work in hand is finished, or its deadline is over.
    Stopped {
        /// Which replica.
        replica: ReplicaKey,
    },
    /// A request has come for a workload of which this host has a standby and nothing that runs.
    Wake {
        /// Which workload.
        workload: WorkloadKey,
        /// The standby that has the request in hand, where that is so: no other will do.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        holder: Option<ReplicaId>,
    },
    /// An artifact that this host has is to be compiled: runners do not.
    Compile {
        /// Which artifact.
        digest: Digest,
    },
    /// What guests wrote, in the order of each replica. A line says how many were lost before it.
    Logs(Vec<(ReplicaKey, LogLine)>),
    /// The answer to `Usage`.
    Usage(Usage),
    /// The answer to `Ping`.
    Pong(u64),
}
