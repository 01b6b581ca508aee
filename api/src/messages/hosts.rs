//! What hosts are asked, by people's tools and by each other's daemons, and what they are told.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::ids::{BootId, ClusterId, Digest, HostId, Name, ReplicaId, Term};
use crate::placement::PlacementGroup;
use crate::record::Revision;
use crate::time::Timestamp;

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
    /// The sequence of the host's set, as the leader knows it. [`HeardNote::NOTHING_ONCE`] to a start that
    /// may not start what must not run twice.
    pub sequence: u64,
}

impl HeardNote {
    /// Later than any set: by no set that the host can hold does what must not run twice start.
    pub const NOTHING_ONCE: u64 = u64::MAX;
}

/// Beyond its drain deadline a replica gets this long to say that it has stopped; then its host stops it without
/// asking.
pub const STOP_GRACE: Duration = Duration::from_secs(5);

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
