//! Requests and replies of the NATS API, and of hosts (docs/reference.md, "NATS API").
//!
//! Requests come from outside: unknown fields are refused. Replies go to newer and older clients:
//! unknown fields are ignored.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::ids::{
    BootId, ClusterId, Digest, HostId, LeaderId, Name, ReplicaId, RequestId, RevisionNumber, Slot,
    Term,
};
use crate::placement::PlacementGroup;
use crate::record::{Revision, RolloutState};
use crate::spec::{Kind, WorkloadSpec};
use crate::status::{Capacity, Drain, HostState, ReplicaState};
use crate::time::Timestamp;

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

/// `status`, `history`, and every verb that only names a workload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkloadRequest {
    /// The workload.
    pub workload: Name,
    /// `status`: ended replicas too. `history`: unused.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub all: bool,
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
    /// Live replicas.
    pub replicas: u64,
    /// Memory in use by replicas.
    pub memory_bytes: u64,
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

/// `host.<host>.logs`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogsRequest {
    /// The namespace.
    pub namespace: Name,
    /// The workload.
    pub workload: Name,
    /// One replica of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replica: Option<ReplicaId>,
    /// The last so many lines.
    pub tail: u32,
}

/// The answer: oldest first, at most what fits the reply.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogsReply {
    /// The lines.
    pub lines: Vec<LogLine>,
}

/// One line of a replica's log; also what `logs.<ns>.<workload>.<replica>` carries live.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    /// When.
    pub at: Timestamp,
    /// Which replica.
    pub replica: ReplicaId,
    /// `stdout`, `stderr`, or a level of `wasi:logging`.
    pub stream: String,
    /// The request it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// The text, without line end.
    pub text: String,
    /// Lines dropped just before this one because the guest wrote faster than the host keeps.
    #[serde(default, skip_serializing_if = "crate::is_default")]
    pub dropped: u64,
}

/// `host.<host>.status`: everything, paged.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HostStatusRequest {
    /// From a page before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
}

/// `host.<host>.held`: what it runs by, paged; for `recover`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HeldRequest {
    /// From a page before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
}

/// The answer: a part of the placement set that it holds, with the revisions that the part names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldReply {
    /// The cluster.
    pub cluster: ClusterId,
    /// The host.
    pub host: HostId,
    /// The sequence of the set; pages of different sequences do not belong together.
    pub sequence: u64,
    /// The part.
    pub groups: Vec<PlacementGroup>,
    /// Its revisions, as far as the host has them.
    pub revisions: Vec<Revision>,
    /// Pass it as `cursor` for more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// `host.<host>.upload`: put an artifact that the host has on its disk back into the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UploadRequest {
    /// Which.
    pub digest: Digest,
}

/// The answer, once it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UploadReply {
    /// Its size.
    pub bytes: u64,
}

/// `host.<host>.sync`: a host that is behind is told to get its set again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncRequest {
    /// The leader's term.
    pub term: Term,
    /// The sequence it should hold.
    pub sequence: u64,
}

/// `host.<host>.heard`: a leader has heard this host. No answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeardNote {
    /// The leader's term.
    pub term: Term,
    /// The start of the host that it heard.
    pub boot: BootId,
    /// The host's own time in what was heard.
    pub at: Timestamp,
    /// The sequence of the host's set, as the leader knows it.
    pub sequence: u64,
}

/// A replica that drains goes on answering for so long at the most, until it is known that gateways
/// route past it.
pub const WITHDRAWN_WITHIN: Duration = Duration::from_secs(2);

/// `host.<host>.withdrawn`: the gateways of all other hosts that live route past what this host drains.
/// No answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WithdrawnNote {
    /// What drains by its set of this sequence, or an earlier one; `None`: all, for it shuts down.
    pub set: Option<u64>,
}

/// A free-form value, for what tools only pass on.
pub type Json = Value;
