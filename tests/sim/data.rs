//! What replicas with volumes leave on their hosts, and what of it goes with their workload.
//!
//! Owns the simulated disk's data and two laws: a removal takes nothing that a later workload of the
//! name has written, and once all is calm nothing is left that was to go.

use std::collections::{BTreeMap, BTreeSet};

use wasmorch_api::record::Removed;
use wasmorch_api::{HostId, PlacementNumber, Removal, RemovalId, WorkloadKey};
use wasmorch_host::agent::Event as AgentEvent;
use wasmorch_host::runner::protocol::{Launch, ReplicaKey};

use super::law::Law;
use super::wire::HostWake;
use super::world::World;

/// The data on one disk.
#[derive(Debug, Clone, Default)]
pub(crate) struct Data {
    /// The placements that have written, by workload.
    wrote: BTreeMap<WorkloadKey, BTreeSet<PlacementNumber>>,
    /// The removals that have been carried out.
    removed: BTreeSet<RemovalId>,
}

impl World {
    pub(crate) fn data_written(&mut self, at: usize, replica: &ReplicaKey, launch: &Launch) {
        let bindings = &launch.revision.spec.bindings;
        if bindings.volume.is_empty() && bindings.blobstore.is_empty() {
            return;
        }
        let wrote = &mut self.hosts[at].disk.data.wrote;
        let wrote = wrote.entry(replica.workload.clone()).or_default();
        wrote.insert(replica.id.placement);
    }

    pub(crate) fn remove_later(&mut self, at: usize, removal: Removal) {
        // A large volume takes its time.
        let longest = if self.rng.one_in(2) { 400 } else { 20_000 };
        let wait = self.rng.between(1, longest);
        self.wake_host(at, wait, HostWake::Remove(removal));
    }

    pub(crate) fn host_removes(&mut self, at: usize, removal: Removal) {
        if self.rng.per_mille(self.weather.flaky) {
            let failed = Some("the disk fails".to_owned());
            self.agent_event(at, AgentEvent::DataRemoved { removal, failed });
            return;
        }
        let key = removal.id.workload.clone();
        let data = &mut self.hosts[at].disk.data;
        if data.removed.insert(removal.id.clone()) {
            let wrote = data.wrote.remove(&key).unwrap_or_default();
            if let Some(later) = wrote.range(removal.id.before..).next() {
                let before = removal.id.before;
                let how = format!(
                    "host{at} removes what placement {later} of {key} has written, not only what those before {before} have"
                );
                self.broken(Law::DataKept, how);
                return;
            }
        }
        let failed = None;
        self.agent_event(at, AgentEvent::DataRemoved { removal, failed });
    }

    /// What a removal with its data says is to go.
    pub(crate) fn note_removal(&mut self, removed: &Removed) {
        if let Some(last) = removed.removals.last() {
            self.laws.data_gone.insert(removed.key(), last.before);
        }
    }

    /// Whoever removes a host gives up what lies there.
    pub(crate) fn data_given_up(&mut self, id: &HostId) {
        for host in self.hosts.iter_mut().filter(|host| host.id == *id) {
            host.disk.data.wrote.clear();
        }
    }

    /// What should be gone and is not. Of two hosts with one id either may have answered.
    pub(crate) fn data_left(&self) -> Option<String> {
        for (at, host) in self.hosts.iter().enumerate() {
            let twins = { self.hosts.iter() }.filter(|other| other.id == host.id);
            if host.up.is_none() || host.gone || twins.count() > 1 {
                continue;
            }
            for (key, wrote) in &host.disk.data.wrote {
                let gone = self.laws.data_gone.get(key);
                if let Some(number) = wrote
                    .first()
                    .filter(|number| gone.is_some_and(|gone| number < &gone))
                {
                    return Some(format!(
                        "host{at} has data of placement {number} of {key}, which was removed"
                    ));
                }
            }
        }
        None
    }
}
