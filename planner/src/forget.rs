//! `rm --data` on hosts: what of a removed workload lies there, and who has removed it.
//!
//! Owns the note of that in `Removed`, from which every set that is written names what its host has to
//! remove. A host has done so once it holds that set and says that nothing is left to do: one that is
//! away does it when it comes back. Hosts remove what placements before the removal have left and
//! nothing of a later workload of that name (the host's own `forget`).
//!
//! Any host that has ever had a set may have had a replica, and with it volumes: all of them are asked.

use std::collections::BTreeSet;

use wasmorch_api::record::{Forgetting, Removed};
use wasmorch_api::{Forget, HostId, Timestamp, WorkloadKey, stores};

use crate::cluster::{Cluster, Host, Workload};

/// So many removals of one name are carried on; hosts remember more. What a host has not done by then
/// stays there.
const REMOVALS_MAX: usize = 32;

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
    let revisions = &workload.revisions;
    let volumes = revisions
        .values()
        .any(|one| !one.spec.bindings.volume.is_empty());
    let folders = folders(workload, key);
    if !volumes && folders.is_empty() {
        return all;
    }
    let had_set = cluster.hosts.iter().filter(|(_, host)| host.set.is_some());
    let forgetting = Forgetting {
        before: workload.record.next_placement,
        at: now,
        containers: folders.into_iter().collect(),
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

/// What each set that is written has to name.
pub(crate) struct Forgets(Vec<(Forget, BTreeSet<HostId>)>);

impl Forgets {
    /// Of a host.
    pub(crate) fn of(&self, host: &HostId) -> Vec<Forget> {
        let named = self.0.iter().filter(|(_, hosts)| hosts.contains(host));
        named.map(|(forget, _)| forget.clone()).collect()
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

    fn to_forget(&self) -> impl Iterator<Item = (&WorkloadKey, &Forgetting)> {
        let keys = self.forgetting.iter();
        let removed = keys.filter_map(|key| self.removed.get_key_value(key));
        removed.flat_map(|(key, removed)| removed.forget.iter().map(move |one| (key, one)))
    }

    /// What sets name now. A container that another workload uses since stays.
    pub(crate) fn forgets(&self) -> Forgets {
        let mut forgets = Vec::new();
        for (key, forgetting) in self.to_forget() {
            let mut containers = forgetting.containers.clone();
            if !containers.is_empty() {
                self.spare_used(key, &mut containers);
            }
            let forget = Forget {
                namespace: key.namespace.clone(),
                workload: key.name.clone(),
                before: forgetting.before,
                at: forgetting.at,
                containers,
            };
            forgets.push((forget, forgetting.hosts.clone()));
        }
        Forgets(forgets)
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
    pub(crate) fn stale_sets(&self) -> BTreeSet<&HostId> {
        let forget = self.to_forget().flat_map(|(key, one)| {
            one.hosts.iter().filter(move |id| {
                let host = self.hosts.get(*id);
                host.is_some_and(|host| !host.is_asked(key, one))
            })
        });
        let hosts = self.hosts.iter();
        let stale = hosts.filter(|(_, host)| host.holds_unkept() || host.names_removed);
        stale.map(|(id, _)| id).chain(forget).collect()
    }

    /// Notes of removals that hosts have carried out since they were written. A host that was removed
    /// has nothing that this cluster could reach.
    pub(crate) fn forgotten(&self) -> Vec<Removed> {
        let mut after = Vec::new();
        for removed in { self.forgetting.iter() }.filter_map(|key| self.removed.get(key)) {
            let mut removed = removed.clone();
            let key = removed.key();
            let before = removed.forget.clone();
            for one in &mut removed.forget {
                let open = one.hosts.iter().filter(|id| {
                    let host = self.hosts.get(*id);
                    host.is_some_and(|host| !(host.is_asked(&key, one) && host.has_forgotten()))
                });
                one.hosts = open.cloned().collect();
            }
            removed.forget.retain(|one| !one.hosts.is_empty());
            if removed.forget != before {
                after.push(removed);
            }
        }
        after
    }
}

impl Host {
    /// Whether its set names the removal.
    fn is_asked(&self, key: &WorkloadKey, forgetting: &Forgetting) -> bool {
        let named = self.set.iter().flat_map(|set| &set.forget);
        { named }.any(|one| {
            (one.before, one.at) == (forgetting.before, forgetting.at)
                && one.workload == key.name
                && one.namespace == key.namespace
        })
    }

    /// Whether it holds its very set (a store that was lost counts anew) and has removed what that
    /// names.
    fn has_forgotten(&self) -> bool {
        self.boot.is_some() && self.applied == self.set_sequence && !self.forgetting
    }

    /// Takes what it says of that; `true` when it may have carried out what is still noted.
    pub(crate) fn note_forgetting(&mut self, forgetting: bool, applied_before: u64) -> bool {
        let before = std::mem::replace(&mut self.forgetting, forgetting);
        let asked = self.set.as_ref().is_some_and(|set| !set.forget.is_empty());
        asked && (before, applied_before) != (forgetting, self.applied)
    }
}
