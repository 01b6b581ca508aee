//! What hosts tell: heartbeats, and the states of their replicas.
//!
//! Owns the shapes of `heartbeat.<host>` and `status.<host>`, and the order in which a replica's
//! state may move.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::ids::{BootId, ClusterId, HostId, Name, ReplicaId, RevisionNumber, Term, WorkloadKey};
use crate::placement::RemovalId;
use crate::time::Timestamp;

/// Where a replica stands. It only moves forward.
///
/// ```text
/// assigned > preparing > starting > running > draining > stopped
///     any before running > rejected          (it never started)
///     running > completed | failed           (it ended by itself)
///     any > lost                             (its host is gone; the leader's word, not the host's)
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReplicaState {
    /// Placed; the host has not begun.
    Assigned,
    /// Fetching, verifying, compiling.
    Preparing,
    /// Being started.
    Starting,
    /// Started; `ready` tells whether it serves.
    Running,
    /// Takes nothing new, finishes what it has.
    Draining,
    /// Ended because it was told to.
    Stopped,
    /// A job that ended well.
    Completed,
    /// Ended badly after its start.
    Failed,
    /// Could not be started.
    Rejected,
    /// Its host is gone.
    Lost,
}

impl ReplicaState {
    /// Whether it has ended.
    pub const fn ended(self) -> bool {
        matches!(
            self,
            Self::Stopped | Self::Completed | Self::Failed | Self::Rejected | Self::Lost
        )
    }

    /// Whether a replica in `self` may move to `next`.
    pub fn may_become(self, next: Self) -> bool {
        !self.ended() && next > self
    }

    /// The word in JSON and listings.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Assigned => "assigned",
            Self::Preparing => "preparing",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Draining => "draining",
            Self::Stopped => "stopped",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Rejected => "rejected",
            Self::Lost => "lost",
        }
    }
}

impl std::fmt::Display for ReplicaState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

/// One replica as its host sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaStatus {
    /// The namespace.
    pub namespace: Name,
    /// The workload.
    pub workload: Name,
    /// Slot, placement and start.
    pub replica: ReplicaId,
    /// What it runs.
    pub revision: RevisionNumber,
    /// Where it stands.
    pub state: ReplicaState,
    /// Proven to serve; only ever true while running.
    #[serde(default)]
    pub ready: bool,
    /// Since when it is in this state and readiness, by the host's clock.
    pub since: Timestamp,
    /// Why it failed, was rejected, or is not ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The guest's exit code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// The host will not start this placement again: the leader's turn.
    #[serde(default)]
    pub given_up: bool,
    /// Its placement is told to rest: what starts or runs in spite of that was woken by a request.
    #[serde(default, skip_serializing_if = "crate::is_default")]
    pub standby: bool,
    /// It rests, and hears what comes for it.
    #[serde(default, skip_serializing_if = "crate::is_default")]
    pub listens: bool,
    /// Memory of its instances now.
    #[serde(default)]
    pub memory_bytes: u64,
    /// Cpu it used lately, thousandths of a core.
    #[serde(default)]
    pub cpu_millis: u64,
    /// Requests or messages in hand.
    #[serde(default)]
    pub in_flight: u64,
    /// How it has answered; http alone.
    #[serde(default, skip_serializing_if = "Answers::is_empty")]
    pub answers: Answers,
}

/// What a replica has made of its requests since it was ready: what `update.fail_when` is held
/// against. Counts only grow, and those of several replicas add up to those of their revision.
///
/// A request counts when its guest has answered or failed. What was refused because the replica or
/// its host was full, what was cut off by a stop, and what we broke do not count: no guest answered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Answers {
    /// Requests.
    pub requests: u64,
    /// Of them, those that the guest failed: a status of 500 and above, a trap, a limit that it broke
    /// (its timeout too), an answer that broke off.
    pub errors: u64,
    /// Of them, those whose answer began later than `fail_when.p99`, the wait for a seat included: more
    /// than one in a hundred means that the 99th percentile is beyond it, exactly.
    pub slow: u64,
}

impl Answers {
    /// Nothing was asked yet.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Those of both.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            requests: self.requests.saturating_add(other.requests),
            errors: self.errors.saturating_add(other.errors),
            slow: self.slow.saturating_add(other.slow),
        }
    }

    /// What came after `before`.
    #[must_use]
    pub fn since(self, before: Self) -> Self {
        Self {
            requests: self.requests.saturating_sub(before.requests),
            errors: self.errors.saturating_sub(before.errors),
            slow: self.slow.saturating_sub(before.slow),
        }
    }
}

impl ReplicaStatus {
    /// One in this state, of which nothing else is known: not ready, nothing used.
    pub fn new(
        workload: &WorkloadKey,
        replica: ReplicaId,
        revision: RevisionNumber,
        (state, since): (ReplicaState, Timestamp),
    ) -> Self {
        Self {
            namespace: workload.namespace.clone(),
            workload: workload.name.clone(),
            replica,
            revision,
            state,
            ready: false,
            since,
            reason: None,
            exit_code: None,
            given_up: false,
            standby: false,
            listens: false,
            memory_bytes: 0,
            cpu_millis: 0,
            in_flight: 0,
            answers: Answers::default(),
        }
    }

    /// The workload's full name.
    pub fn key(&self) -> WorkloadKey {
        WorkloadKey::new(self.namespace.clone(), self.workload.clone())
    }
}

/// Changes of replicas, numbered: a gap in `status_seq` makes the leader ask for all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusReport {
    /// The cluster.
    pub cluster: ClusterId,
    /// The host.
    pub host: HostId,
    /// Its start.
    pub boot: BootId,
    /// The report's number within the boot, from 1; in a full report the last one given out.
    pub status_seq: u64,
    /// `replicas` is everything the host knows, not what changed.
    #[serde(default)]
    pub full: bool,
    /// The replicas.
    pub replicas: Vec<ReplicaStatus>,
    /// A full report's next page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// What a host is, told with every heartbeat: a leader that missed the first knows it a second later.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HostInfo {
    /// Its name: the hostname unless given.
    pub name: Name,
    /// Labels that constraints look at.
    pub labels: BTreeMap<String, String>,
    /// Taints that workloads must tolerate, `key` or `key=value`.
    pub taints: Vec<String>,
    /// `x86_64`, `aarch64`, ...
    pub arch: String,
    /// What it can run beyond what every host can (`features`).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub features: Vec<String>,
    /// wasmorch's version.
    pub version: String,
    /// The public gateway's address.
    pub http: String,
    /// Whether it speaks TLS there.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub tls: bool,
    /// Where other hosts reach its gateway; `None`: it cannot be dialled.
    pub peer: Option<Arc<str>>,
    /// Health and metrics.
    pub admin: String,
    /// The domain of automatic names: `<name>.<namespace>.<domain>`.
    pub domain: String,
    /// Between two of its heartbeats; 0 (a host of an earlier version): a second.
    pub heartbeat_ms: u64,
    /// What may be booked.
    pub capacity: Capacity,
}

impl HostInfo {
    /// Between two of its heartbeats.
    pub fn heartbeat_every(&self) -> Duration {
        match self.heartbeat_ms {
            0 => Duration::from_secs(1),
            ms => Duration::from_millis(ms),
        }
    }
}

/// What a host has for replicas.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Capacity {
    /// Memory.
    pub memory_bytes: u64,
    /// Cpu, thousandths of a core.
    pub cpu_millis: u64,
    /// Replicas.
    pub replicas: u64,
}

/// What replicas have to do: what the autoscaler goes by.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Load {
    /// Requests or messages in hand, those that wait for a seat included.
    #[serde(skip_serializing_if = "crate::is_default")]
    pub in_flight: u64,
    /// Cpu lately, thousandths of a core.
    #[serde(skip_serializing_if = "crate::is_default")]
    pub cpu_millis: u64,
    /// Requests lately, thousandths of one in a second.
    #[serde(skip_serializing_if = "crate::is_default")]
    pub request_millis: u64,
    /// Messages that wait in its streams for the workload as a whole: every replica tells the same.
    #[serde(skip_serializing_if = "crate::is_default")]
    pub pending: u64,
}

impl Load {
    /// Both together: sums, but of what waits for all of them, as one of them saw it last.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self {
            in_flight: self.in_flight.saturating_add(other.in_flight),
            cpu_millis: self.cpu_millis.saturating_add(other.cpu_millis),
            request_millis: self.request_millis.saturating_add(other.request_millis),
            pending: if self.pending > other.pending {
                self.pending
            } else {
                other.pending
            },
        }
    }
}

/// What all live replicas of one workload on one host have to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkloadLoad {
    /// The namespace.
    pub namespace: Name,
    /// The workload.
    pub workload: Name,
    /// Their sum.
    #[serde(flatten)]
    pub load: Load,
}

/// Sent every second.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// The cluster.
    pub cluster: ClusterId,
    /// The host.
    pub host: HostId,
    /// Its start.
    pub boot: BootId,
    /// The highest term it has seen.
    pub term: Term,
    /// The store's sequence of the placement set it holds; 0 when it holds none.
    pub sequence: u64,
    /// The number of its last status report.
    pub status_seq: u64,
    /// The highest store sequence its gateway has applied.
    pub table_seq: u64,
    /// Memory of all replicas now.
    pub memory_bytes: u64,
    /// Cpu of all replicas lately, thousandths of a core.
    pub cpu_millis: u64,
    /// Live replicas.
    pub replicas: u64,
    /// Of the removals that its set names, those that it has still to carry out. Left out when its set
    /// names none, and by hosts that know of none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub removals: Option<Vec<RemovalId>>,
    /// Its daemon is shutting down: nobody has to wait until its silence tells.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub leaving: bool,
    /// Its own time, when it holds something that it may run only while a leader hears it: the leader
    /// echoes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Timestamp>,
    /// The load of each workload with `scale` that has a live replica here, idle ones included: one
    /// that is left out says nothing, which is not the same as no load.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub loads: Vec<WorkloadLoad>,
    /// Placement sets that it has refused since its start because the term of their leader was over.
    #[serde(default, skip_serializing_if = "none")]
    pub stale_sets: u64,
    /// What it is.
    pub info: HostInfo,
}

/// As serde asks.
fn none(count: &u64) -> bool {
    *count == 0
}

impl Heartbeat {
    /// Of a host that holds nothing and has nothing to say but that it lives.
    pub fn new(cluster: ClusterId, host: HostId, boot: BootId, term: Term) -> Self {
        Self {
            cluster,
            host,
            boot,
            term,
            sequence: 0,
            status_seq: 0,
            table_seq: 0,
            memory_bytes: 0,
            cpu_millis: 0,
            replicas: 0,
            removals: None,
            leaving: false,
            at: None,
            loads: Vec::new(),
            stale_sets: 0,
            info: HostInfo::default(),
        }
    }
}

/// Whether the leader believes a host lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HostState {
    /// Heard from lately.
    Alive,
    /// Silent; nothing is moved yet, nothing new is placed.
    Suspect,
    /// Silent for long: its replicas are replaced.
    Dead,
}

impl HostState {
    /// The word in JSON and listings.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Alive => "alive",
            Self::Suspect => "suspect",
            Self::Dead => "dead",
        }
    }
}

impl std::fmt::Display for HostState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

/// The value of the key `host.<id>`: what the leader remembers of a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostRecord {
    /// The host.
    pub host: HostId,
    /// As it last described itself.
    pub info: HostInfo,
    /// Nothing new is placed.
    #[serde(default)]
    pub cordoned: bool,
    /// What it runs moves elsewhere, and nothing new is placed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain: Option<Drain>,
    /// When it was first heard.
    pub joined: Timestamp,
    /// Since when it counts as dead; `None`: it lives, as far as was known when this was written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dead_since: Option<Timestamp>,
    /// The one start of its daemon that may start what must not run twice: a copy of its data folder
    /// speaks by another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot: Option<BootId>,
}

/// A host that is emptied. It stays so until someone undoes it, over restarts of host and leader.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drain {
    /// Since when.
    pub since: Timestamp,
    /// What has not moved by then is stopped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Timestamp>,
    /// It runs nothing any more.
    #[serde(default)]
    pub drained: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_only_move_forward() {
        use ReplicaState::*;
        assert!(Assigned.may_become(Preparing));
        assert!(Preparing.may_become(Rejected));
        assert!(Running.may_become(Failed));
        assert!(!Running.may_become(Starting));
        assert!(!Stopped.may_become(Failed));
        assert!(!Running.may_become(Running));
    }
}
