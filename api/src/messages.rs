//! Requests and replies of the NATS API, and of hosts (docs/reference.md, "NATS API").
//!
//! Requests come from outside: unknown fields are refused. Replies go to newer and older clients:
//! unknown fields are ignored.

mod hosts;
mod views;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::ids::{
    ClusterId, Digest, HostId, LeaderId, Name, RequestId, RevisionNumber, Slot, Term,
};
use crate::spec::WorkloadSpec;
use crate::status::{Capacity, Drain, HostState};
use crate::time::Timestamp;

pub use hosts::*;
pub use views::*;

/// Who asks, and the id under which a repeat gets the first answer. Part of every write.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Caller {
    /// The write's id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_id: Option<RequestId>,
    /// Who, for `history` and events.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
}

/// `deploy` and `plan`. Read by [`crate::manifest::read_deploy`], which reports every mistake.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct DeployRequest {
    /// What shall be.
    pub workloads: Vec<WorkloadSpec>,
    /// They revert together.
    pub atomic: bool,
    /// Only if nothing named has changed since.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub if_index: Option<u64>,
    /// The write's id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_id: Option<RequestId>,
    /// Who asks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
}

/// The answer to `deploy` and `rollback`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeployReply {
    /// The highest store sequence among the records named.
    pub index: u64,
    /// Each workload, in the order asked.
    pub workloads: Vec<Deployed>,
}

/// One deployed workload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deployed {
    /// Its name.
    pub name: Name,
    /// The revision that is wanted now.
    pub revision: RevisionNumber,
    /// Whether anything changed.
    pub changed: bool,
    /// The rollout that began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<RolloutView>,
    /// Where it answers.
    #[serde(default)]
    pub urls: Vec<String>,
}

/// A page of a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page<T> {
    /// The items.
    pub items: Vec<T>,
    /// Pass it as `cursor` for more.
    #[serde(default)]
    pub next: Option<String>,
}

/// `scale`, `stop`, `start`, `restart`, `rm`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChangeRequest {
    /// The workload.
    pub workload: Name,
    /// `scale`: how many.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub desired: Option<u32>,
    /// `start` of a job: arguments for this run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub args: Option<Vec<String>>,
    /// `rm`: buckets and volumes too.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub data: bool,
    /// The write's id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<RequestId>,
    /// Who asks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
}

/// `quota`: what is named is set; nothing named: it is shown.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QuotaRequest {
    /// Memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// Cpu, thousandths of a core.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_millis: Option<u64>,
    /// Replicas.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replicas: Option<u64>,
    /// First lift every limit.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub clear: bool,
    /// The write's id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<RequestId>,
    /// Who asks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuotaReply {
    /// The namespace.
    pub namespace: Name,
    /// What it may have.
    pub quota: crate::record::Quota,
    /// What its placed replicas have.
    pub used: crate::record::Quota,
    /// Whether anything was changed.
    pub changed: bool,
}

/// The answer to those.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeReply {
    /// The workload.
    pub workload: Name,
    /// How many are wanted now.
    pub desired: u32,
    /// How it stands.
    pub state: WorkloadState,
    /// Whether anything changed.
    #[serde(default)]
    pub changed: bool,
    /// `scale`: why it is not what was asked for, or not for long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// `rm`: data that was kept.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kept: Vec<String>,
}

/// `rollback` and `rollout`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RolloutRequest {
    /// The workload.
    pub workload: Name,
    /// `rollback`: to this revision; without it, to the last stable one before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<RevisionNumber>,
    /// `rollout`: `status`, `pause`, `resume`, `promote`, `abort`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub action: Option<RolloutAction>,
    /// The write's id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<RequestId>,
    /// Who asks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
}

/// What a person does to a rollout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RolloutAction {
    /// Only look.
    Status,
    /// Hold.
    Pause,
    /// Go on.
    Resume,
    /// End the canary well.
    Promote,
    /// Back to the old revision.
    Abort,
}

/// One line of `history`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryItem {
    /// The revision.
    pub revision: RevisionNumber,
    /// Its component.
    pub artifact: Digest,
    /// When.
    pub at: Timestamp,
    /// Who.
    pub by: String,
    /// What was different, a line each.
    pub changes: Vec<String>,
}

/// One host in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostView {
    /// Its id.
    pub id: HostId,
    /// Its name.
    pub name: Name,
    /// Whether it lives.
    pub state: HostState,
    /// Nothing new is placed.
    pub cordoned: bool,
    /// It is emptied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain: Option<Drain>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// What a workload has to tolerate to be placed there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub taints: Vec<String>,
    /// Its architecture.
    pub arch: String,
    /// What it can run beyond what every host can.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub features: Vec<String>,
    /// Its gateway.
    pub http: String,
    /// Its admin listener.
    pub admin: String,
    /// Its version.
    pub version: String,
    /// What may be booked.
    pub capacity: Capacity,
    /// What its live replicas use, as it was last heard.
    #[serde(default)]
    pub used: Capacity,
    /// Last heard so long ago.
    pub seen_ms: u64,
}

/// `why`: one of them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WhyRequest {
    /// A workload of the namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workload: Option<Name>,
    /// A host, by name or id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// `<workload>/<replica>`, or a replica of `workload`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replica: Option<String>,
}

/// `cordon`, `uncordon`, `drain`, `host-rm`, `rebalance`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HostRequest {
    /// The host, by name or id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// `drain`: at most this long.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deadline_ms: Option<u64>,
    /// `drain`: undo it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub cancel: bool,
    /// `rebalance`: at most so many.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_moves: Option<u32>,
    /// `rebalance`: what the last answer left off at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
    /// The write's id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_id: Option<RequestId>,
    /// Who asks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
}

/// The answer to `rebalance`: what moves, and why each.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RebalanceReply {
    /// The moves, the most useful first.
    pub moves: Vec<MoveView>,
    /// Not all has been looked at: the cursor to go on with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// One replica that moves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MoveView {
    /// `namespace/name`.
    pub workload: String,
    /// The seat.
    pub slot: Slot,
    /// The host it leaves.
    pub from: Name,
    /// The host it goes to.
    pub to: Name,
    /// Why it is better off there.
    pub why: String,
}

/// `recover`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RecoverRequest {
    /// A backup, put into the object store of artifacts under its digest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backup: Option<Digest>,
    /// The write's id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_id: Option<RequestId>,
    /// Who asks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
}

/// The answer: what the state was rebuilt from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecoverReply {
    /// The cluster: as the hosts know it.
    pub cluster: ClusterId,
    /// Hosts that told what they hold.
    pub hosts: Vec<Name>,
    /// Hosts that are known of and did not.
    #[serde(default)]
    pub silent: Vec<Name>,
    /// So many workloads are there now.
    pub workloads: u64,
    /// So many of them no host holds: they are as the backup has them.
    #[serde(default)]
    pub from_backup: u64,
    /// So many revisions.
    pub revisions: u64,
    /// So many placements go on.
    pub placements: u64,
    /// What could not be rebuilt, a line each (the first of them).
    #[serde(default)]
    pub lost: Vec<String>,
}

/// The answer to `version`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionReply {
    /// wasmorch's version.
    pub version: String,
    /// The leader's term.
    pub term: Term,
    /// The leader.
    pub leader: LeaderId,
}

/// A request with nothing in it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Empty {}
