//! `rm --data` on hosts: what of a removed workload lies there, and who has removed it.
//!
//! Owns the note of that in `Removed`, from which every set that is written names what its host has to
//! remove. A host has done so once it holds that set and says that nothing is left to do: one that is
//! away does it when it comes back. Hosts remove what placements before the removal have left and
//! nothing of a later workload of that name (the host's own `forget`).
//!
//! Any host that has ever had a set may have had a replica, and with it volumes: all of them are asked.

use std::collections::{BTreeMap, BTreeSet};

use wasmorch_api::record::{Forgetting, Removed};
use wasmorch_api::{Forget, ForgetId, HostId, Timestamp, WorkloadKey, stores};

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
) -> Vec<Forgetting> {
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
    let forgetting = Forgetting {
        before: workload.record.next_placement,
        at: now,
        containers,
        hosts: had_set.map(|(id, _)| id.clone()).collect(),
    };
    // Whoever does this has done those that ask for no more.
    all.retain(|one| {
        one.containers != forgetting.containers || !one.hosts.is_subset(&forgetting.hosts)
    });
    all.push(forgetting);
    let old = all.len().saturating_sub(REMOVALS_MAX);
    all.split_off(old)
}

/// What hosts have still to remove of workloads of this name.
pub(crate) fn still_to_do(cluster: &Cluster, key: &WorkloadKey) -> Vec<Forgetting> {
    let removed = cluster.removed.get(key);
    removed.map_or_else(Vec::new, |removed| removed.forget.clone())
}

/// What sets name now, oldest removals first.
#[derive(Default)]
pub(crate) struct Forgets {
    all: Vec<Forget>,
    /// By their place in `all`.
    of: BTreeMap<HostId, Vec<usize>>,
}

impl Forgets {
    /// What a host's set has to name.
    pub(crate) fn of(&self, host: &HostId) -> Vec<Forget> {
        let named = self.of.get(host).into_iter().flatten();
        named.map(|at| self.all[*at].clone()).collect()
    }
}

impl Cluster {
    pub(crate) fn put_removed(&mut self, removed: Removed) {
        let key = removed.key();
        if removed.forget.is_empty() {
            self.forgetting.remove(&key);
        } else {
            self.forgetting.insert(key.clone());
        }
        self.removed.insert(key, removed);
    }

    /// What sets name now. A set names so many removals at once: it has to fit a message; but whatever
    /// may start again is told with its removal. A container that another workload uses since stays.
    pub(crate) fn forgets(&self) -> Forgets {
        let keys = self.forgetting.iter();
        let removed = keys.filter_map(|key| self.removed.get_key_value(key));
        let all =
            removed.flat_map(|(key, removed)| removed.forget.iter().map(move |one| (key, one)));
        let mut all: Vec<_> = all.collect();
        all.sort_by_key(|(key, one)| (one.at, *key));
        let mut forgets = Forgets::default();
        for (key, forgetting) in all {
            for host in &forgetting.hosts {
                let named = forgets.of.entry(host.clone()).or_default();
                if named.len() < NAMED_MAX || self.workloads.contains_key(key) {
                    named.push(forgets.all.len());
                }
            }
            let mut containers = forgetting.containers.clone();
            if !containers.is_empty() {
                self.spare_used(key, &mut containers);
            }
            forgets.all.push(Forget {
                namespace: key.namespace.clone(),
                workload: key.name.clone(),
                before: forgetting.before,
                at: forgetting.at,
                containers,
            });
        }
        forgets
    }

    /// Leaves out what other workloads keep there. One of the same name begins with nothing.
    pub(crate) fn spare_used(&self, key: &WorkloadKey, containers: &mut Vec<String>) {
        for (other, workload) in &self.workloads {
            if other != key && other.namespace == key.namespace {
                let used = folders(workload, other);
                containers.retain(|one| !used.iter().any(|other| overlap(one, other)));
            }
        }
    }

    /// Hosts whose set in the store is not what it is to be, though no placement of theirs changes.
    pub(crate) fn stale_sets(&self, forgets: &Forgets) -> BTreeSet<&HostId> {
        let hosts = self.hosts.iter();
        let stale = hosts.filter(|(_, host)| host.holds_unkept() || host.names_removed);
        let untold = forgets.of.iter().filter_map(|(id, named)| {
            let (id, host) = self.hosts.get_key_value(id)?;
            let told = named.iter().all(|at| host.is_asked(&forgets.all[*at].id()));
            (!told).then_some(id)
        });
        stale.map(|(id, _)| id).chain(untold).collect()
    }

    /// Notes of removals that hosts have carried out since they were written. A host that was removed
    /// has nothing that this cluster could reach.
    pub(crate) fn forgotten(&self) -> Vec<Removed> {
        let mut after = Vec::new();
        for removed in { self.forgetting.iter() }.filter_map(|key| self.removed.get(key)) {
            let mut removed = removed.clone();
            let key = removed.key();
            let mut changed = false;
            for one in &mut removed.forget {
                let id = ForgetId {
                    workload: key.clone(),
                    before: one.before,
                    at: one.at,
                };
                let before = one.hosts.len();
                one.hosts.retain(|host| {
                    let host = self.hosts.get(host);
                    host.is_some_and(|host| !host.has_forgotten(&id))
                });
                changed |= one.hosts.len() < before;
            }
            removed.forget.retain(|one| !one.hosts.is_empty());
            after.extend(changed.then_some(removed));
        }
        after
    }

    /// How what is kept of a removed workload is stored: beside a record, only what is still to do.
    pub(crate) fn write_removed(&self, removed: Removed) -> Write {
        let key = removed.key();
        if removed.forget.is_empty() && self.workloads.contains_key(&key) {
            return Write::DeleteRemoved(key);
        }
        Write::Removed(removed)
    }
}

impl Host {
    /// Whether its set names the removal.
    fn is_asked(&self, id: &ForgetId) -> bool {
        let named = self.set.iter().flat_map(|set| &set.forget);
        { named }.any(|one| {
            (one.before, one.at) == (id.before, id.at)
                && one.workload == id.workload.name
                && one.namespace == id.workload.namespace
        })
    }

    /// Whether it holds its very set (a store that was lost counts anew), which names the removal, and
    /// does not count that among what is still to do.
    fn has_forgotten(&self, id: &ForgetId) -> bool {
        let says = self.forgetting.as_ref();
        self.applied == self.set_sequence
            && says.is_some_and(|open| !open.contains(id))
            && self.is_asked(id)
    }

    /// Takes what it says of that; `true` when it may have carried out what is still noted.
    pub(crate) fn note_forgetting(
        &mut self,
        forgetting: Option<Vec<ForgetId>>,
        applied_before: u64,
    ) -> bool {
        let same = self.forgetting == forgetting && self.applied == applied_before;
        self.forgetting = forgetting;
        !same && self.set.as_ref().is_some_and(|set| !set.forget.is_empty())
    }
}
