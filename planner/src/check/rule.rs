//! The rules that a plan may break, in words, and whose part of the plan that is.

use std::collections::BTreeSet;

use wasmorch_api::{HostId, Name, PlacementNumber, RevisionNumber, Slot, Term, WorkloadKey};

use crate::plan::{Plan, StopReason};

/// A rule that a plan breaks. Such a plan is not dispatched.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BrokenRule {
    /// More booked than there is.
    #[error("host {host} would be booked over its {dimension}")]
    OverCapacity {
        /// The host.
        host: HostId,
        /// What is short.
        dimension: &'static str,
    },
    /// A placement where none may be made.
    #[error("{workload} would start on host {host}, which is {why}")]
    BadHost {
        /// The workload.
        workload: WorkloadKey,
        /// The host.
        host: HostId,
        /// `dead`, `suspect`, `cordoned`, `draining`, `unknown`, `not where its volumes are`.
        why: &'static str,
    },
    /// More live placements than wanted plus surge.
    #[error("{workload} would have {live} placements, more than {most}")]
    TooMany {
        /// The workload.
        workload: WorkloadKey,
        /// So many.
        live: u64,
        /// At most so many.
        most: u64,
    },
    /// A rollout would take more ready replicas away than promised.
    #[error("{workload} would keep {ready} ready slots, fewer than {least}")]
    TooFew {
        /// The workload.
        workload: WorkloadKey,
        /// So many.
        ready: u64,
        /// At least so many.
        least: u64,
    },
    /// A replica that would end for a reason that is not so.
    #[error("placement {number} of {workload} would end as one of which it is not true: {}", .why.words())]
    WrongReason {
        /// The workload.
        workload: WorkloadKey,
        /// Its number.
        number: PlacementNumber,
        /// What was said.
        why: StopReason,
    },
    /// A namespace beyond what it may have.
    #[error("namespace {namespace} would hold more {dimension} than its quota")]
    OverQuota {
        /// The namespace.
        namespace: Name,
        /// What is short.
        dimension: &'static str,
    },
    /// A replica that makes room for nothing of a higher priority.
    #[error("{workload} would be pre-empted on host {host} by nothing that goes first")]
    PreemptedByNone {
        /// The workload.
        workload: WorkloadKey,
        /// The host.
        host: HostId,
    },
    /// A slot with more than a current placement and a successor.
    #[error("slot {slot} of {workload} would have {count} placements")]
    CrowdedSlot {
        /// The workload.
        workload: WorkloadKey,
        /// The seat.
        slot: Slot,
        /// So many.
        count: usize,
    },
    /// What must not run twice would start beside another.
    #[error("slot {slot} of {workload} must not run twice, and a set still holds it")]
    Twice {
        /// The workload.
        workload: WorkloadKey,
        /// The seat.
        slot: Slot,
    },
    /// A host with more of what it shall have one of.
    #[error("host {host} would have {count} placements of {workload}, which has one on every host")]
    CrowdedHost {
        /// The workload.
        workload: WorkloadKey,
        /// The host.
        host: HostId,
        /// So many.
        count: usize,
    },
    /// Two that listen on one port of a host.
    #[error("{workload} would start on host {host}, where port {port} is taken")]
    PortTaken {
        /// The workload.
        workload: WorkloadKey,
        /// The host.
        host: HostId,
        /// The port.
        port: u16,
    },
    /// A host that cannot run it.
    #[error("{workload} would start on host {host}, which is without {feature}")]
    WithoutFeature {
        /// The workload.
        workload: WorkloadKey,
        /// The host.
        host: HostId,
        /// What it lacks.
        feature: String,
    },
    /// A placement number given twice.
    #[error("placement {number} of {workload} would be given twice")]
    NumberTwice {
        /// The workload.
        workload: WorkloadKey,
        /// The number.
        number: PlacementNumber,
    },
    /// A placement of a revision that waits for others.
    #[error("{workload} would run revision {revision}, which is held")]
    Held {
        /// The workload.
        workload: WorkloadKey,
        /// The revision.
        revision: RevisionNumber,
    },
    /// A placement of a revision that does not exist.
    #[error("{workload} would run revision {revision}, which does not exist")]
    NoRevision {
        /// The workload.
        workload: WorkloadKey,
        /// The revision.
        revision: RevisionNumber,
    },
    /// A value that the store does not take: whatever is dispatched with it would not be stored either.
    #[error(
        "the {what} of {workload} would have {bytes} bytes, and the store takes {most}: scale it down, split it, \
         or raise the server's max_payload"
    )]
    TooLarge {
        /// The workload.
        workload: WorkloadKey,
        /// `record`, `endpoint table`.
        what: &'static str,
        /// So many.
        bytes: usize,
        /// At most so many.
        most: usize,
    },
    /// A set that a later leader has written.
    #[error("the set of host {host} is of term {stored}, and this leader's is {ours}")]
    LaterTerm {
        /// The host.
        host: HostId,
        /// The set's term.
        stored: Term,
        /// The leader's.
        ours: Term,
    },
    /// A host that holds what this state does not know.
    #[error("host {host} holds set {applied}, and the last one stored for it is {stored}")]
    HoldsLater {
        /// The host.
        host: HostId,
        /// The sequence it says it holds.
        applied: u64,
        /// The sequence of its set.
        stored: u64,
    },
    /// A record that would give numbers away again.
    #[error("the {what} of {workload} would fall from {from} to {to}")]
    Falls {
        /// The workload.
        workload: WorkloadKey,
        /// `next placement`, `newest revision`.
        what: &'static str,
        /// What it is.
        from: u64,
        /// What it would be.
        to: u64,
    },
}

impl BrokenRule {
    /// The host whose set may not be written at all.
    pub fn host(&self) -> Option<&HostId> {
        match self {
            Self::LaterTerm { host, .. } | Self::HoldsLater { host, .. } => Some(host),
            _ => None,
        }
    }

    /// The workloads whose part of `plan` breaks the rule: without theirs the rest may go on.
    pub fn workloads(&self, plan: &Plan) -> BTreeSet<WorkloadKey> {
        match self {
            Self::LaterTerm { host, .. } | Self::HoldsLater { host, .. } => {
                let starts = plan.start.iter().map(|one| (&one.key, &one.host));
                let stops = plan.stop.iter().map(|one| (&one.key, &one.host));
                let shifts = plan.shift.iter().map(|one| (&one.key, &one.host));
                let there = starts.chain(stops).chain(shifts);
                let there = there.filter(|(_, at)| *at == host);
                there.map(|(key, _)| key.clone()).collect()
            }
            Self::OverCapacity { host, .. } => {
                let starts = plan.start.iter().filter(|start| start.host == *host);
                starts.map(|start| start.key.clone()).collect()
            }
            Self::OverQuota { namespace, .. } => {
                let starts = plan.start.iter();
                let starts = starts.filter(|start| start.key.namespace == *namespace);
                starts.map(|start| start.key.clone()).collect()
            }
            Self::BadHost { workload, .. }
            | Self::TooMany { workload, .. }
            | Self::TooFew { workload, .. }
            | Self::WrongReason { workload, .. }
            | Self::PreemptedByNone { workload, .. }
            | Self::CrowdedSlot { workload, .. }
            | Self::Twice { workload, .. }
            | Self::CrowdedHost { workload, .. }
            | Self::PortTaken { workload, .. }
            | Self::WithoutFeature { workload, .. }
            | Self::NumberTwice { workload, .. }
            | Self::Held { workload, .. }
            | Self::NoRevision { workload, .. }
            | Self::TooLarge { workload, .. }
            | Self::Falls { workload, .. } => BTreeSet::from([workload.clone()]),
        }
    }
}
