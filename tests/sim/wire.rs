//! What travels in the simulated cluster, and what happens at a moment.
//!
//! Owns the shapes only: requests to the store and their answers, messages, and the events of the
//! queue.

use std::sync::Arc;

use wasmorch_api::messages::HeardNote;
use wasmorch_api::record::TermRecord;
use wasmorch_api::{
    ApiError, ClusterId, Digest, HostId, LeaderId, PlacementSet, Removal, Revision, RevisionNumber,
    Term, WorkloadKey,
};
use wasmorch_host::runner::protocol::ReplicaKey;
use wasmorch_planner::{Observation, Write};

use super::client::UserCall;

/// Who has a line to NATS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Node {
    Host(usize),
    Controller(usize),
    Store,
    User,
}

impl std::fmt::Display for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Host(n) => write!(f, "host{n}"),
            Self::Controller(n) => write!(f, "ctl{n}"),
            Self::Store => f.write_str("store"),
            Self::User => f.write_str("user"),
        }
    }
}

/// A question to the store.
#[derive(Debug, Clone)]
pub(crate) enum Op {
    ReadLease,
    WriteLease {
        leader: LeaderId,
        expect: u64,
    },
    ReadTerm,
    WriteTerm {
        record: TermRecord,
        expect: u64,
    },
    Load {
        fence: u64,
    },
    Batch {
        fence: u64,
        writes: Arc<Vec<Write>>,
        /// What a request was answered, in the batch of what it writes.
        answer: Option<(u64, serde_json::Value)>,
        by: (Term, LeaderId),
    },
    LastSequence,
    /// The sequence of a host's set.
    SetSequence {
        host: HostId,
    },
    /// A host that connects: the term, then its set.
    Connect {
        host: HostId,
    },
    Set {
        host: HostId,
    },
    Revision {
        workload: WorkloadKey,
        number: RevisionNumber,
    },
    Artifact,
}

/// What comes back.
#[derive(Debug, Clone)]
pub(crate) enum Answer {
    /// The holder, if any, and what a write must expect.
    Lease(Option<LeaderId>, u64),
    /// Written, the last at this sequence.
    Stored(u64),
    Fenced,
    NotReady,
    /// Nothing came: what was asked may have happened or not.
    Timeout,
    Term(Option<TermRecord>, u64),
    Loaded {
        entries: Vec<(String, Vec<u8>, u64)>,
        last: u64,
    },
    Last(u64),
    Connected {
        cluster: ClusterId,
        term: Term,
        set: Option<(Box<PlacementSet>, u64)>,
    },
    Set(Option<(Box<PlacementSet>, u64)>),
    Revision(Option<Arc<Revision>>),
    Artifact,
}

/// A message to a host.
#[derive(Debug, Clone)]
pub(crate) enum HostMessage {
    /// Republished by the store.
    Set(Box<PlacementSet>, u64),
    /// A leader wants to know everything.
    Status { controller: usize, inc: u64 },
    /// Get your set again, at least of this sequence.
    Sync(u64),
    /// A leader has heard it.
    Heard(HeardNote),
    /// Gateways route past what drains there.
    Withdrawn(Option<u64>),
}

/// What a controller wakes up for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wake {
    /// A candidate looks at the lease.
    Look,
    /// The lease is to be renewed, or is over.
    Lease,
    /// The loop: time passes, or a plan is due. Only the newest of these counts.
    Loop(u64),
    /// A batch that was not taken is sent again.
    Again,
}

/// What a host wakes up for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum HostWake {
    Beat,
    /// The disk has removed this, or has failed to.
    Remove(Removal),
    /// A timer of the agent.
    Agent,
    /// Try to connect.
    Connect,
}

/// What a runner does next with a replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    Prepared,
    Started,
    Ready,
    Unready,
    /// Requests come, and it answers.
    Answers,
    Rejected(&'static str),
    Failed(&'static str),
    Completed,
    Stopped,
}

/// What a question of a host was about.
#[derive(Debug, Clone)]
pub(crate) enum HostAsked {
    Connect,
    Sync { wanted: u64, tries: u32 },
    Revision(WorkloadKey, RevisionNumber),
    Artifact(Digest),
}

/// One thing that happens. `inc` is the incarnation that it was meant for: what is for one that has
/// crashed meanwhile is lost.
#[derive(Debug, Clone)]
pub(crate) enum Event {
    AtStore {
        from: Node,
        inc: u64,
        rpc: u64,
        op: Op,
    },
    ControllerAnswer {
        at: usize,
        inc: u64,
        rpc: u64,
        answer: Answer,
    },
    ControllerWake {
        at: usize,
        inc: u64,
        wake: Wake,
    },
    Heard {
        at: usize,
        inc: u64,
        what: Observation,
    },
    Call {
        at: usize,
        inc: u64,
        call: UserCall,
    },
    HostAnswer {
        at: usize,
        inc: u64,
        rpc: u64,
        answer: Answer,
    },
    HostMessage {
        at: usize,
        inc: u64,
        message: HostMessage,
    },
    HostWake {
        at: usize,
        inc: u64,
        wake: HostWake,
    },
    /// `runner` is the runner's own incarnation.
    Runner {
        at: usize,
        inc: u64,
        runner: u64,
        replica: ReplicaKey,
        step: Step,
    },
    UserNext,
    UserAnswer {
        call: u64,
        answer: Result<serde_json::Value, ApiError>,
    },
    UserTimeout {
        call: u64,
        attempt: u32,
    },
    /// The next fault is due.
    Fault,
    /// What a fault took away comes back.
    Mend(Mend),
}

/// The end of a fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Mend {
    Line(Node),
    Host(usize),
    TwinEnds(usize),
    Controller(usize),
    Thaw(usize),
    Store,
}
