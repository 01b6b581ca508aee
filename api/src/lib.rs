//! The vocabulary of wasmorch: ids, units, specs, revisions, placements, status, subjects,
//! messages, errors, and the inspection of components.
//!
//! Every other crate speaks in these types, so that one word means one thing everywhere
//! (ARCHITECTURE.md, "Words"). Parsing happens once, at the edge, into validated types; what has
//! been parsed needs no second check.
//!
//! Invariant: no I/O, no tokio, no clock, no randomness. Time and fresh ids are passed in.

pub mod backup;
pub mod component;
pub mod document;
pub mod error;
pub mod event;
pub mod features;
pub mod ids;
pub mod manifest;
pub mod messages;
pub mod nats;
pub mod placement;
pub mod record;
pub mod schedule;
pub mod spec;
pub mod status;
pub mod stores;
pub mod subjects;
pub mod table;
pub mod time;
pub mod units;

pub use component::{ComponentProblem, Inspection};
pub use error::{ApiError, ErrorCode, Problem};
pub use event::{Event, EventKind};
pub use ids::{
    BootId, ClusterId, Digest, HostId, IdError, LeaderId, Name, PlacementNumber, ReplicaId,
    RequestId, RevisionNumber, Slot, Term, WorkloadKey,
};
pub use manifest::Manifest;
pub use nats::NatsOptions;
pub use placement::{PlacedSlot, PlacementGroup, PlacementSet, Removal, RemovalId};
pub use record::{Record, Revision, Rollout, RolloutState};
pub use schedule::Schedule;
pub use spec::{Kind, WorkloadSpec};
pub use status::{Answers, Heartbeat, HostInfo, ReplicaState, ReplicaStatus, StatusReport};
pub use table::{EndpointTable, HostEndpoint, Route, RouteTable};
pub use time::Timestamp;
pub use units::{ByteSize, Cpu, HumanDuration, Share};

/// The version of this build, as every part reports it.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// An artifact may be this large unless the cluster says otherwise: 256 MiB.
///
/// It bounds what one deploy can cost a host in memory while it compiles.
pub const ARTIFACT_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// For `skip_serializing_if`: what a reader fills in by itself.
fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}
