//! Where a workload's component lies already.
//!
//! Owns the memory of hosts that a workload has left. No message tells it: a host that has started a
//! replica has fetched, checked and compiled its component, keeps both for a while (a gigabyte of what is
//! unused), and reports the start anyway.
//!
//! Rule: a host that holds no replica of the workload, and has started one of the wanted artifact before,
//! scores [`CACHED`] more. Where replicas are, spread speaks.
//!
//! Known limits: [`LEFT_KEPT`] hosts are remembered for a workload, the last it has left; a new leader
//! remembers none; what a host has deleted meanwhile is fetched again.

use std::collections::VecDeque;

use wasmorch_api::{
    HostId, PlacementNumber, ReplicaState, RevisionNumber, WorkloadKey, WorkloadSpec,
};

use crate::cluster::{Cluster, Workload};

/// Less than all the difference that free room can make, and far less than a replica more.
pub(crate) const CACHED: i64 = 5;
const LEFT_KEPT: usize = 32;

/// Hosts that a workload has left, by their numbers, with what they ran; the last one last.
#[derive(Debug, Clone, Default)]
pub(crate) struct Left(VecDeque<(u32, RevisionNumber)>);

impl Workload {
    /// A placement is taken out of a host's set.
    pub(crate) fn leaves(&mut self, id: &HostId, number: u32, placement: PlacementNumber) {
        let report = self.reports.get(&placement);
        let report = report.filter(|known| known.host == *id);
        let Some(status) = report.map(|known| &known.status) else {
            return;
        };
        // Before that it may not have been fetched, and what was rejected could not be loaded.
        if status.state < ReplicaState::Starting || status.state == ReplicaState::Rejected {
            return;
        }
        let left = &mut self.left.0;
        left.retain(|(known, _)| *known != number);
        if left.len() == LEFT_KEPT {
            left.pop_front();
        }
        left.push_back((number, status.revision));
    }

    /// The numbers of hosts that have this spec's artifact from before.
    pub(crate) fn has_left<'a>(&'a self, spec: &'a WorkloadSpec) -> impl Iterator<Item = u32> + 'a {
        let left = self.left.0.iter();
        left.filter_map(|(number, revision)| {
            let artifact = &self.revisions.get(revision)?.artifact;
            (Some(artifact) == spec.artifact.as_ref()).then_some(*number)
        })
    }
}

/// Whether a host has the artifact from before.
pub(crate) fn lies_on(
    cluster: &Cluster,
    (key, spec): (&WorkloadKey, &WorkloadSpec),
    number: u32,
) -> bool {
    let workload = cluster.workloads.get(key);
    workload.is_some_and(|one| one.has_left(spec).any(|left| left == number))
}
