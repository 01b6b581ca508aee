//! Workloads as they are listed and shown.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::ids::{HostId, Name, ReplicaId, RevisionNumber, Slot};
use crate::record::RolloutState;
use crate::spec::{Kind, WorkloadSpec};
use crate::status::ReplicaState;
use crate::time::Timestamp;

/// `list`, `hosts`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ListRequest {
    /// At most so many.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    /// From a page before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
}

/// One workload in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkloadSummary {
    /// The namespace.
    pub namespace: Name,
    /// The name.
    pub name: Name,
    /// What it does.
    pub kind: Kind,
    /// The revision that is wanted.
    pub revision: RevisionNumber,
    /// How many are wanted.
    pub desired: u32,
    /// How many are ready.
    pub ready: u32,
    /// How it stands.
    pub state: WorkloadState,
    /// Between which counts its load moves it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale: Option<ScaleView>,
    /// Where it answers.
    #[serde(default)]
    pub urls: Vec<String>,
}

/// The bounds of a workload with `scale`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScaleView {
    /// Never fewer.
    pub min: u32,
    /// Never more.
    pub max: u32,
}

/// How a workload stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WorkloadState {
    /// Not yet ready for the first time.
    Pending,
    /// As wanted.
    Ready,
    /// A rollout moves.
    Rolling,
    /// Fewer ready than wanted.
    Degraded,
    /// Its replicas keep failing.
    CrashLoop,
    /// At zero, ready to wake.
    Idle,
    /// Held at zero.
    Stopped,
    /// A job that ended well.
    Completed,
    /// A job or a first revision that failed.
    Failed,
}

impl WorkloadState {
    /// The word in JSON and listings.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Ready => "ready",
            Self::Rolling => "rolling",
            Self::Degraded => "degraded",
            Self::CrashLoop => "crash-loop",
            Self::Idle => "idle",
            Self::Stopped => "stopped",
            Self::Completed => "completed",
            Self::Failed => "failed",
        }
    }
}

impl std::fmt::Display for WorkloadState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

/// `status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkloadRequest {
    /// The workload.
    pub workload: Name,
    /// Ended replicas too.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub all: bool,
}

/// `history`: a list of one workload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HistoryRequest {
    /// The workload.
    pub workload: Name,
    /// At most so many.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    /// From a page before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
}

/// The answer to `status`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StatusReply {
    /// As in a list.
    #[serde(flatten)]
    pub summary: WorkloadSummary,
    /// The spec of the wanted revision.
    pub spec: WorkloadSpec,
    /// Its replicas.
    pub replicas: Vec<ReplicaView>,
    /// The rollout that runs, or how the last one ended.
    #[serde(default)]
    pub rollout: Option<RolloutView>,
    /// What could not be placed, and why.
    #[serde(default)]
    pub unplaced: Option<Unplaced>,
    /// Jobs: how the last run ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<crate::record::RunOutcome>,
    /// Jobs and cron: the newest run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<RunView>,
    /// Cron: when the next run is due.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<Timestamp>,
    /// The store sequence of its record.
    #[serde(default)]
    pub index: u64,
}

/// One run of a job or a cron workload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunView {
    /// Counts the runs of the workload, from 1.
    pub number: u64,
    /// The time of the schedule that it was begun for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheduled: Option<Timestamp>,
    /// Good ends so far.
    pub completed: u32,
    /// Good ends wanted.
    pub completions: u32,
}

/// One replica as people and tools see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaView {
    /// Slot, placement, start.
    pub replica: ReplicaId,
    /// The seat.
    pub slot: Slot,
    /// What it runs.
    pub revision: RevisionNumber,
    /// The host's name.
    pub host: Name,
    /// The host's id: where to ask for its logs.
    pub host_id: HostId,
    /// Where it stands.
    pub state: ReplicaState,
    /// Whether it serves.
    pub ready: bool,
    /// Prepared, not started.
    pub standby: bool,
    /// Since when.
    pub since: Timestamp,
    /// Why it failed or waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The guest's exit code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// Memory of its instances.
    pub memory_bytes: u64,
    /// Cpu lately.
    pub cpu_millis: u64,
    /// Requests in hand.
    pub in_flight: u64,
}

/// A rollout as people and tools see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RolloutView {
    /// Where to.
    pub revision: RevisionNumber,
    /// Where from.
    #[serde(default)]
    pub from: Option<RevisionNumber>,
    /// Where it stands.
    pub state: RolloutState,
    /// Slots at the new revision.
    pub updated: u32,
    /// Ready at the new revision.
    pub ready: u32,
    /// How many are wanted.
    pub desired: u32,
    /// Without progress until then, it fails.
    pub deadline: Timestamp,
    /// Why it paused, reverted or failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What it waits for: workloads that it depends on, or those deployed with it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub waits_for: Vec<WaitsFor>,
    /// Those that complete or go back together with it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub with: Vec<Name>,
}

/// One workload that a rollout waits for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaitsFor {
    /// Its name.
    pub workload: Name,
    /// How it stands: `1 of 2 ready`.
    pub why: String,
    /// Only a person can end this: no deadline runs.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub for_a_person: bool,
}

/// What could not be placed, and what would fix it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unplaced {
    /// `namespace/name`.
    pub workload: String,
    /// So many slots.
    pub slots: u32,
    /// So many hosts looked at.
    pub evaluated: u32,
    /// How many each filter removed.
    #[serde(default)]
    pub filtered: BTreeMap<String, u32>,
    /// What the nearest host lacks.
    #[serde(default)]
    pub lacking: BTreeMap<String, u64>,
    /// What would help.
    #[serde(default)]
    pub fix: Vec<String>,
}
