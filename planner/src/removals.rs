//! `rm --data` on hosts: what of a removed workload lies there, and who has removed it.
//!
//! Owns the note of that in `Removed`, from which every set that is written names what its host has to
//! remove. A host has done so once it holds that set and says that nothing is left to do: one that is
//! away does it when it comes back. Hosts remove what placements before the removal have left and
//! nothing of a later workload of that name (the agent's own `removals`).
//!
//! Any host that has ever had a set may have had a replica, and with it volumes: all of them are asked.

use std::collections::{BTreeMap, BTreeSet};

use wasmorch_api::record::{PendingRemoval, Removed};
use wasmorch_api::{HostId, Removal, RemovalId, Timestamp, WorkloadKey, stores};

use crate::cluster::{Cluster, Host, Workload};
use crate::write::Write;

/// So many removals of one name are carried on; hosts remember more. What a host has not done by then
/// stays there.
const REMOVALS_MAX: usize = 32;
/// And so many are named by one set at once; the rest when those are done.
const NAMED_MAX: usize = 64;

/// The folders of a workload's containers on disk, below those of its namespace.
pub(crate) fn folders(workload: &Workload, key: &WorkloadKey) -> BTreeSet<String> {
    let revisions = workload.revisions.values();
    let stores = revisions.flat_map(|revision| &revision.spec.bindings.blobstore);
    let disk = stores.filter(|(_, store)| store.backend == "disk");
    disk.map(|(name, store)| stores::on_disk(key, name, store))
        .collect()
}

/// Whether one folder lies in the other, or is the other.
pub(crate) fn overlap(one: &str, other: &str) -> bool {
    let within = |inner: &str, outer: &str| {
        let rest = inner.strip_prefix(outer);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    within(one, other) || within(other, one)
}

/// What its hosts have to remove when a workload goes with its data, after what earlier ones of that
/// name have left there.
pub(crate) fn of_removal(
    cluster: &Cluster,
    workload: &Workload,
    key: &WorkloadKey,
    now: Timestamp,
) -> Vec<PendingRemoval> {
    let mut all = still_to_do(cluster, key);
    let mut revisions = workload.revisions.values();
    // Homes outlive the revisions that had volumes.
    let volumes = !workload.record.homes.is_empty()
        || revisions.any(|one| !one.spec.bindings.volume.is_empty());
    let mut containers: Vec<String> = folders(workload, key).into_iter().collect();
    cluster.spare_used(key, &mut containers);
    if !volumes && containers.is_empty() {
        return all;
    }
    let had_set = cluster.hosts.iter().filter(|(_, host)| host.set.is_some());
    let removal = PendingRemoval {
        before: workload.record.next_placement,
        at: now,
        containers,
        hosts: had_set.map(|(id, _)| id.clone()).collect(),
    };
    // Whoever does this has done those that ask for no more.
    all.retain(|one| one.containers != removal.containers || !one.hosts.is_subset(&removal.hosts));
    all.push(removal);
    let old = all.len().saturating_sub(REMOVALS_MAX);
    all.split_off(old)
}

/// What hosts have still to remove of workloads of this name.
pub(crate) fn still_to_do(cluster: &Cluster, key: &WorkloadKey) -> Vec<PendingRemoval> {
    let removed = cluster.removed.get(key);
    removed.map_or_else(Vec::new, |removed| removed.removals.clone())
}

/// What sets name now, oldest removals first.
pub(crate) struct Removals {
    all: Vec<Removal>,
    /// By their place in `all`.
    of: BTreeMap<HostId, Vec<usize>>,
}

impl Removals {
    /// What a host's set has to name.
    pub(crate) fn of(&self, host: &HostId) -> Vec<Removal> {
        let named = self.of.get(host).into_iter().flatten();
        named.map(|at| self.all[*at].clone()).collect()
    }
}

impl Cluster {
    pub(crate) fn put_removed(&mut self, removed: Removed, sequence: u64) {
        let key = removed.key();
        let counters = |one: &Removed| (one.newest, one.next_placement);
        if self.removed.get(&key).map(counters) != Some(counters(&removed)) {
            // What hosts have done since is no other removal.
            self.removed_at.insert(key.clone(), sequence);
        }
        if removed.removals.is_empty() {
            self.removing.remove(&key);
        } else {
            self.removing.insert(key.clone());
        }
        self.removed.insert(key, removed);
    }

    /// What sets name now. A set names so many removals at once: it has to fit a message; but whatever
    /// may start again is told with its removal.
    pub(crate) fn removals(&self) -> Removals {
        let keys = self.removing.iter();
        let removed = keys.filter_map(|key| self.removed.get_key_value(key));
        let all = removed.flat_map(|(key, one)| one.removals.iter().map(move |one| (key, one)));
        let mut all: Vec<_> = all.collect();
        all.sort_by_key(|(key, one)| (one.at, *key));
        let mut of: BTreeMap<HostId, Vec<usize>> = BTreeMap::new();
        for (at, (key, one)) in all.iter().enumerate() {
            for host in &one.hosts {
                let named = of.entry(host.clone()).or_default();
                if named.len() < NAMED_MAX || self.workloads.contains_key(key) {
                    named.push(at);
                }
            }
        }
        let all = all.into_iter().map(|(key, one)| Removal {
            id: id_of(key, one),
            containers: one.containers.clone(),
        });
        let all = all.collect();
        Removals { all, of }
    }

    /// Without the containers that another workload uses since: those stay.
    pub(crate) fn spared(&self, mut removals: Removals) -> Removals {
        for removal in &mut removals.all {
            self.spare_used(&removal.id.workload, &mut removal.containers);
        }
        removals
    }

    /// Leaves out what other workloads keep there. One of the same name begins with nothing.
    pub(crate) fn spare_used(&self, key: &WorkloadKey, containers: &mut Vec<String>) {
        if containers.is_empty() {
            return;
        }
        for (other, workload) in &self.workloads {
            if other != key && other.namespace == key.namespace {
                let used = folders(workload, other);
                containers.retain(|one| !used.iter().any(|other| overlap(one, other)));
            }
        }
    }

    /// Hosts whose set in the store is not what it is to be, though no placement of theirs changes: the
    /// store keeps none any more, it names what was removed, or not yet what the host has to remove.
    pub(crate) fn stale_sets(&self) -> BTreeSet<HostId> {
        let hosts = self.to_write.iter();
        let hosts = hosts.filter_map(|id| self.hosts.get_key_value(id));
        let stale = hosts.filter(|(_, host)| host.came_back() || host.names_removed);
        let stale = stale.map(|(id, _)| id.clone());
        let Removals { all, of } = self.removals();
        let untold = of.into_iter().filter(|(id, named)| {
            let asked = |host: &Host| named.iter().all(|at| host.is_asked(&all[*at].id));
            self.hosts.get(id).is_some_and(|host| !asked(host))
        });
        stale.chain(untold.map(|(id, _)| id)).collect()
    }

    /// Notes of removals that hosts have carried out since they were written. A host that was removed
    /// has nothing that this cluster could reach.
    pub(crate) fn removals_done(&self) -> Vec<Removed> {
        let mut after = Vec::new();
        for removed in { self.removing.iter() }.filter_map(|key| self.removed.get(key)) {
            let mut removed = removed.clone();
            let key = removed.key();
            let mut changed = false;
            for one in &mut removed.removals {
                let (id, before) = (id_of(&key, one), one.hosts.len());
                one.hosts.retain(|host| {
                    let host = self.hosts.get(host);
                    host.is_some_and(|host| !host.has_removed(&id))
                });
                changed |= one.hosts.len() < before;
            }
            removed.removals.retain(|one| !one.hosts.is_empty());
            after.extend(changed.then_some(removed));
        }
        after
    }

    /// How what is kept of a removed workload is stored: beside a record, only what is still to do.
    pub(crate) fn write_removed(&self, removed: Removed) -> Write {
        let key = removed.key();
        if removed.removals.is_empty() && self.workloads.contains_key(&key) {
            return Write::DeleteRemoved(key);
        }
        Write::Removed(removed)
    }
}

fn id_of(key: &WorkloadKey, pending: &PendingRemoval) -> RemovalId {
    RemovalId {
        workload: key.clone(),
        before: pending.before,
        at: pending.at,
    }
}

impl Host {
    /// Whether its set names the removal.
    fn is_asked(&self, id: &RemovalId) -> bool {
        let named = self.set.iter().flat_map(|set| &set.removals);
        { named }.any(|one| one.id == *id)
    }

    /// Whether it holds its very set (a store that was lost counts anew), which names the removal, and
    /// does not count that among what is still to do.
    fn has_removed(&self, id: &RemovalId) -> bool {
        let says = self.removals.as_ref();
        self.applied == self.set_sequence
            && says.is_some_and(|open| !open.contains(id))
            && self.is_asked(id)
    }

    /// Takes what it says of that; `true` when it may have carried out what is still noted.
    pub(crate) fn note_removals(
        &mut self,
        removals: Option<Vec<RemovalId>>,
        applied_before: u64,
    ) -> bool {
        let same = self.removals == removals && self.applied == applied_before;
        self.removals = removals;
        !same && { self.set.as_ref() }.is_some_and(|set| !set.removals.is_empty())
    }
}
