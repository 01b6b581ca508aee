//! How many replicas of the workload are where, as this pass has come.
//!
//! Owns what the pass has changed beside what the sets say, and the counts of both together.

use std::collections::{BTreeMap, BTreeSet};

use wasmorch_api::{HostId, WorkloadKey, WorkloadSpec};

use crate::cluster::{Cluster, Workload};
use crate::pool::{Pool, Rank};

/// What this pass has placed and stopped so far, beyond what the sets say.
#[derive(Debug, Default)]
pub(crate) struct Delta {
    hosts: BTreeMap<Rank, i64>,
    classes: BTreeMap<u32, i64>,
}

impl Delta {
    pub(crate) fn add(&mut self, pool: &Pool, id: &HostId, class: Option<u32>, by: i64) {
        if let Some(rank) = pool.rank(id) {
            *self.hosts.entry(rank).or_default() += by;
        }
        if let Some(class) = class {
            *self.classes.entry(class).or_default() += by;
        }
    }
}

/// Where and how to look a count up.
pub(crate) struct Ground<'a> {
    pub(crate) cluster: &'a Cluster,
    pub(crate) key: &'a WorkloadKey,
    pub(crate) workload: &'a Workload,
    pub(crate) delta: &'a Delta,
}

impl Ground<'_> {
    /// How many are in each class, on any host, usable or not; a class may come twice.
    pub(crate) fn of_classes(&self) -> impl Iterator<Item = (u32, i64)> + '_ {
        let bases = self.workload.per_class.iter();
        let bases = bases.map(|(class, count)| (*class, i64::from(*count)));
        let deltas = self.delta.classes.iter().map(|(class, by)| (*class, *by));
        bases.chain(deltas)
    }

    /// Usable hosts without a replica that have the component already.
    pub(crate) fn cached(&self, pool: &Pool, spec: &WorkloadSpec) -> BTreeSet<Rank> {
        let left = self.workload.has_left(spec);
        let ranks = left.filter_map(|number| pool.numbered(number));
        let ranks = ranks.filter(|rank| pool.is_usable(*rank));
        ranks.filter(|rank| self.count(pool, *rank) == 0).collect()
    }

    pub(crate) fn count(&self, pool: &Pool, rank: Rank) -> u32 {
        let base = self.workload.holders.get(pool.room(rank).number);
        self.changed(rank, base)
    }

    /// The same for one of many that are gone through.
    pub(crate) fn count_near(&self, pool: &Pool, rank: Rank, near: &mut usize) -> u32 {
        let number = pool.room(rank).number;
        let base = self.workload.holders.get_near(number, near);
        self.changed(rank, base)
    }

    fn changed(&self, rank: Rank, base: u32) -> u32 {
        let delta = self.delta.hosts.get(&rank).copied().unwrap_or(0);
        u32::try_from(i64::from(base) + delta).unwrap_or(0)
    }
}
