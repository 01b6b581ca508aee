//! What goes to the store and what is said aloud: writes, stored entries, event drafts.

use std::io;

use serde::Serialize;
use serde_json::Value;
use wasmorch_api::record::{NamespaceRecord, Removed};
use wasmorch_api::status::HostRecord;
use wasmorch_api::subjects::key;
use wasmorch_api::{
    EndpointTable, EventKind, HostId, Name, PlacementSet, Record, ReplicaId, Revision,
    RevisionNumber, RouteTable, WorkloadKey,
};

use crate::tables::Endpoints;

/// One write to the state bucket.
#[derive(Debug, Clone, PartialEq)]
pub enum Write {
    /// A workload's record.
    Record(Box<Record>),
    /// No such workload any more.
    DeleteRecord(WorkloadKey),
    /// The counters of a workload that is gone.
    Removed(Removed),
    /// Its successor's record carries them on.
    DeleteRemoved(WorkloadKey),
    /// A new revision.
    Revision(Box<Revision>),
    /// A revision that is no longer kept.
    DeleteRevision(WorkloadKey, RevisionNumber),
    /// What a namespace may have.
    Namespace(NamespaceRecord),
    /// Whatever it wants.
    DeleteNamespace(Name),
    /// What is known of a host.
    Host(Box<HostRecord>),
    /// The host is gone for good.
    DeleteHost(HostId),
    /// All that a host shall run.
    Placements(PlacementSet),
    /// A host that is gone for good needs no set.
    DeletePlacements(HostId),
    /// Who serves a workload.
    Endpoints(Endpoints),
    /// Nobody does: the workload is gone.
    DeleteEndpoints(WorkloadKey),
    /// Which requests are a workload's.
    Routes(RouteTable),
    /// None: the workload is gone.
    DeleteRoutes(WorkloadKey),
}

impl Write {
    /// The store key.
    pub fn key(&self) -> String {
        match self {
            Self::Record(record) => key::workload(&record.key()),
            Self::DeleteRecord(workload) => key::workload(workload),
            Self::Removed(removed) => key::removed(&removed.key()),
            Self::DeleteRemoved(workload) => key::removed(workload),
            Self::Revision(revision) => key::revision(&revision.key(), revision.number),
            Self::DeleteRevision(workload, number) => key::revision(workload, *number),
            Self::Namespace(one) => key::namespace(&one.namespace),
            Self::DeleteNamespace(namespace) => key::namespace(namespace),
            Self::Host(host) => key::host(&host.host),
            Self::DeleteHost(host) => key::host(host),
            Self::Placements(set) => key::placements(&set.host),
            Self::DeletePlacements(host) => key::placements(host),
            Self::Endpoints(table) => key::endpoints(&table.key()),
            Self::DeleteEndpoints(workload) => key::endpoints(workload),
            Self::Routes(table) => key::routes(&table.key()),
            Self::DeleteRoutes(workload) => key::routes(workload),
        }
    }

    /// The value as JSON; `None` is a delete marker.
    pub fn body(&self) -> Option<Vec<u8>> {
        match self {
            Self::Record(record) => Some(json(record)),
            Self::Removed(removed) => Some(json(removed)),
            Self::Revision(revision) => Some(json(revision)),
            Self::Namespace(one) => Some(json(one)),
            Self::Host(host) => Some(json(host)),
            Self::Placements(set) => Some(json(set)),
            Self::Endpoints(table) => Some(json(&*table.whole())),
            Self::Routes(table) => Some(json(table)),
            Self::DeleteRecord(_)
            | Self::DeleteRemoved(_)
            | Self::DeleteNamespace(_)
            | Self::DeleteRevision(..)
            | Self::DeleteHost(_)
            | Self::DeletePlacements(_)
            | Self::DeleteEndpoints(_)
            | Self::DeleteRoutes(_) => None,
        }
    }
}

fn json<T: Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).expect("our own types have string keys and serialise")
}

/// How long a value is as JSON.
pub(crate) fn json_bytes(value: &impl Serialize) -> usize {
    let mut count = Count(0);
    serde_json::to_writer(&mut count, value)
        .expect("our own types have string keys and serialise, and a count takes everything");
    count.0
}

/// Counts what is written to it.
struct Count(usize);

impl io::Write for Count {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// One entry of the store, as a new leader reads it.
#[derive(Debug, Clone, PartialEq)]
pub enum Stored {
    /// `workload.<ns>.<name>`.
    Record(Box<Record>),
    /// `removed.<ns>.<name>`.
    Removed(Removed),
    /// `revision.<ns>.<name>.<n>`.
    Revision(Box<Revision>),
    /// `namespace.<ns>`.
    Namespace(NamespaceRecord),
    /// `host.<id>`.
    Host(Box<HostRecord>),
    /// `pub.placements.<host>`.
    Placements(PlacementSet),
    /// `pub.endpoints.<ns>.<name>`.
    Endpoints(EndpointTable),
    /// `pub.routes.<ns>.<name>`.
    Routes(RouteTable),
}

impl Stored {
    /// Reads a value by its key; `Ok(None)` for keys that are not the planner's (`term`, `lease`).
    pub fn parse(key: &str, body: &[u8]) -> Result<Option<Self>, serde_json::Error> {
        let family = key
            .strip_prefix("pub.")
            .unwrap_or(key)
            .split('.')
            .next()
            .unwrap_or_default();
        Ok(Some(match family {
            "workload" => Self::Record(serde_json::from_slice(body)?),
            "removed" => Self::Removed(serde_json::from_slice(body)?),
            "revision" => Self::Revision(serde_json::from_slice(body)?),
            "namespace" => Self::Namespace(serde_json::from_slice(body)?),
            "host" => Self::Host(serde_json::from_slice(body)?),
            "placements" => Self::Placements(serde_json::from_slice(body)?),
            "endpoints" => Self::Endpoints(serde_json::from_slice(body)?),
            "routes" => Self::Routes(serde_json::from_slice(body)?),
            _ => return Ok(None),
        }))
    }
}

/// An event before the shell gives it its id and time.
#[derive(Debug, Clone, PartialEq)]
pub struct EventDraft {
    /// What.
    pub kind: EventKind,
    /// Where; `None` for the whole cluster.
    pub namespace: Option<Name>,
    /// The workload.
    pub workload: Option<Name>,
    /// The replica.
    pub replica: Option<ReplicaId>,
    /// The host.
    pub host: Option<HostId>,
    /// The revision.
    pub revision: Option<RevisionNumber>,
    /// Why, in a few words.
    pub reason: String,
    /// More, for machines.
    pub detail: Value,
}

impl EventDraft {
    /// An event of a workload.
    pub fn of(workload: &WorkloadKey, kind: EventKind, reason: impl Into<String>) -> Self {
        Self {
            namespace: Some(workload.namespace.clone()),
            workload: Some(workload.name.clone()),
            ..Self::cluster(kind, reason)
        }
    }

    /// An event of the whole cluster.
    pub fn cluster(kind: EventKind, reason: impl Into<String>) -> Self {
        Self {
            kind,
            namespace: None,
            workload: None,
            replica: None,
            host: None,
            revision: None,
            reason: reason.into(),
            detail: Value::Null,
        }
    }

    /// With the revision.
    #[must_use]
    pub fn revision(mut self, revision: RevisionNumber) -> Self {
        self.revision = Some(revision);
        self
    }

    /// With the host.
    #[must_use]
    pub fn host(mut self, host: &HostId) -> Self {
        self.host = Some(host.clone());
        self
    }

    /// With the replica.
    #[must_use]
    pub fn replica(mut self, replica: ReplicaId) -> Self {
        self.replica = Some(replica);
        self
    }
}
