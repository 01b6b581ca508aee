//! Placement sets: all that one host shall run, complete every time.
//!
//! Owns the shape of `pub.placements.<host>`. A set refers to revisions by number (the host fetches
//! each once) so that its size grows with slots, not with specs.
//!
//! A missing or deleted set means hold; only an explicit empty set stops.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::ids::{
    ClusterId, HostId, LeaderId, Name, PlacementNumber, RevisionNumber, Slot, Term, WorkloadKey,
};
use crate::time::Timestamp;

/// All of a host's placements.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlacementSet {
    /// The cluster it belongs to; a host of another cluster ignores it.
    pub cluster: ClusterId,
    /// The writer's term; a host obeys the highest and refuses a lower one.
    pub term: Term,
    /// The writer; a host refuses an equal term from another leader.
    pub leader: LeaderId,
    /// The host it is for.
    pub host: HostId,
    /// Slots by revision.
    pub groups: Vec<PlacementGroup>,
    /// Data of removed workloads that go from this host (`rm --data`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub removals: Vec<Removal>,
}

/// What a removed workload kept on a host, which removes it once: it remembers how far it has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removal {
    /// Which.
    #[serde(flatten)]
    pub id: RemovalId,
    /// Its containers on disk, as [`crate::stores::on_disk`] names them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub containers: Vec<String>,
}

/// What tells one removal from another.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RemovalId {
    /// Whose data.
    pub workload: WorkloadKey,
    /// What placements below this number have left. Later ones are a new workload's of that name, and
    /// start after it is gone.
    pub before: PlacementNumber,
    /// When the workload was removed. Numbers alone begin anew in a store that was lost.
    pub at: Timestamp,
}

/// The slots of one revision on a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlacementGroup {
    /// The namespace.
    pub namespace: Name,
    /// The workload.
    pub workload: Name,
    /// The revision they run.
    pub revision: RevisionNumber,
    /// The slots.
    pub slots: Vec<PlacedSlot>,
}

impl PlacementGroup {
    /// The workload's full name.
    pub fn key(&self) -> WorkloadKey {
        WorkloadKey::new(self.namespace.clone(), self.workload.clone())
    }
}

/// One placement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlacedSlot {
    /// The seat.
    pub slot: Slot,
    /// The leader's number for this placement.
    pub placement: PlacementNumber,
    /// It is told to rest: to be prepared, and started only when a request wakes it.
    #[serde(default, skip_serializing_if = "crate::is_default")]
    pub standby: bool,
    /// Arguments in place of the spec's (a job's run). Shared: a leader holds millions of slots, nearly
    /// all without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub args: Option<Arc<Vec<String>>>,
}
