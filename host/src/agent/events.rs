//! The agent's words: what happens to it, what it wants done, what it wants kept.
//!
//! Owns the types at its border, so that the driver and the simulator need nothing else of it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use wasmorch_api::{
    BootId, ClusterId, Digest, HostId, LeaderId, PlacementNumber, PlacementSet, Removal,
    ReplicaStatus, Revision, RevisionNumber, Slot, StatusReport, Term, Timestamp, WorkloadKey,
};

use crate::runner::protocol::{FromRunner, ReplicaKey, ToRunner};

/// What happened.
#[derive(Debug, Clone)]
pub enum Event {
    /// A placement set, live or read, with its store sequence.
    Set {
        /// The set.
        set: Box<PlacementSet>,
        /// Its sequence in the store.
        sequence: u64,
    },
    /// The store has no set for this host, or it was deleted: hold.
    NoSet,
    /// A revision that was asked for.
    Revision(Arc<Revision>),
    /// A revision could not be had; it is asked for again after a while.
    RevisionMissing {
        /// Whose.
        workload: WorkloadKey,
        /// Which.
        number: RevisionNumber,
        /// Why.
        reason: String,
    },
    /// An artifact lies on disk and its bytes have just been hashed.
    Fetched {
        /// Which.
        digest: Digest,
        /// Where.
        path: PathBuf,
    },
    /// An artifact could not be had.
    FetchFailed {
        /// Which.
        digest: Digest,
        /// Why, for people.
        reason: String,
        /// Only a matter of time (the network): replicas go on waiting. Otherwise (wrong digest,
        /// not in the store, disk full) they are rejected, and started again by policy.
        retryable: bool,
    },
    /// What a removed workload left is gone from the disk, or why it is not.
    DataRemoved {
        /// What was asked for.
        removal: Removal,
        /// Why it is still there.
        failed: Option<String>,
    },
    /// The runner said something.
    Runner(FromRunner),
    /// The runner is gone, with everything it ran.
    RunnerDied {
        /// Why.
        reason: String,
    },
    /// NATS is there, and the store named its cluster.
    Connected {
        /// The store's cluster.
        cluster: ClusterId,
        /// The term in force.
        term: Term,
    },
    /// A term of this host's cluster is known, with the store sequence at which it began: a set of an
    /// earlier term that claims a later sequence is a deposed leader's.
    Term {
        /// The term.
        term: Term,
        /// Its sequence.
        fence: u64,
    },
    /// A leader has heard this host: see `lease`.
    Heard {
        /// The start of the host that it heard.
        boot: BootId,
        /// The leader's term.
        term: Term,
        /// The host's own time in what was heard.
        at: Timestamp,
        /// The sequence of the host's set, as the leader knows it.
        sequence: u64,
    },
    /// The gateways of other hosts send nothing to what drains here any more.
    Withdrawn {
        /// What drains by the set of this sequence, or an earlier one; `None`: all.
        set: Option<u64>,
    },
    /// NATS is gone: hold.
    Disconnected,
    /// The daemon ends: drain everything, start nothing.
    Shutdown {
        /// Work in hand is cut off after this.
        deadline: Duration,
    },
    /// Time passed; see [`Agent::wake_at`].
    Tick,
}

/// What shall be done. The driver carries effects out in their order.
#[derive(Debug, Clone)]
pub enum Effect {
    /// Write this to disk before anything after it.
    Persist(Box<Held>),
    /// The host belongs to this cluster from now on.
    Joined(ClusterId),
    /// Read a revision from the store.
    FetchRevision {
        /// Whose.
        workload: WorkloadKey,
        /// Which.
        number: RevisionNumber,
    },
    /// Have the artifact on disk and hash it. Never asked twice at once for one digest.
    FetchArtifact {
        /// Which.
        digest: Digest,
    },
    /// Remove what a removed workload left, unless that was done before. Never asked twice at once.
    RemoveData(Removal),
    /// Tell the runner.
    ToRunner(ToRunner),
    /// Tell the leader.
    Report(StatusReport),
    /// A set was refused: an alarm for people.
    Refused(Refusal),
    /// The replica has ended and will never be heard of again by this id.
    Ended(ReplicaKey),
}

/// Why a placement set (or a store) was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Two clusters on one NATS account, or a data folder moved between clusters.
    #[error(
        "this host belongs to cluster {ours} and the store to cluster {theirs}: point --nats at its \
         own cluster, or give the host a fresh --data folder"
    )]
    OtherCluster {
        /// The host's.
        ours: ClusterId,
        /// The store's.
        theirs: ClusterId,
    },
    /// A set for another host under this host's key.
    #[error("a placement set for host {theirs} arrived at host {ours}")]
    OtherHost {
        /// This host.
        ours: HostId,
        /// The set's.
        theirs: HostId,
    },
    /// From a deposed leader.
    #[error(
        "a placement set of term {theirs} from leader {leader} is refused: term {ours} is in force"
    )]
    StaleTerm {
        /// The highest obeyed.
        ours: Term,
        /// The set's.
        theirs: Term,
        /// Who wrote it.
        leader: LeaderId,
    },
    /// Two leaders claim one term.
    #[error(
        "leader {theirs} claims term {term}, which is leader {ours}'s: its placement set is refused"
    )]
    OtherLeader {
        /// The term.
        term: Term,
        /// Whom the host obeys.
        ours: LeaderId,
        /// The other.
        theirs: LeaderId,
    },
}

/// What a host keeps on disk to start again without NATS.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Held {
    /// The set as it came.
    pub set: PlacementSet,
    /// Its sequence in the store.
    pub sequence: u64,
    /// The revisions it refers to, as far as they have been fetched.
    pub revisions: Vec<Arc<Revision>>,
    /// What the host itself numbers and remembers.
    pub placements: Vec<HeldPlacement>,
}

/// The host's own memory of one placement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldPlacement {
    /// Which.
    #[serde(flatten)]
    pub key: PlacementKey,
    /// So many start numbers have been given out.
    pub starts: u32,
    /// How it ended for good: it isn't started again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<ReplicaStatus>,
}

/// One placement of a host.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PlacementKey {
    /// Whose.
    pub workload: WorkloadKey,
    /// The seat.
    pub slot: Slot,
    /// The leader's number.
    pub placement: PlacementNumber,
}

impl PlacementKey {
    pub(super) fn of(replica: &ReplicaKey) -> Self {
        Self {
            workload: replica.workload.clone(),
            slot: replica.id.slot,
            placement: replica.id.placement,
        }
    }
}
