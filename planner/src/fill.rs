//! Water-filling: the replicas of one workload poured over classes of hosts.
//!
//! Owns the choice of the next host within one pass. It carries out the rule that `place` writes
//! down, but on counts: every class of hosts that passes the filters is one *cell* with a score of
//! its own (labels are equal within it) and hands out its best host from an order by load. A
//! replica costs one look at each cell and a few steps in that order, never a look at every host.
//!
//! Known limits: the cost of a replica grows with the number of classes; hosts that are emptier
//! than the rest but too small are passed over once in every pass.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use wasmorch_api::spec::Constraint;
use wasmorch_api::{HostId, WorkloadKey, WorkloadSpec};

use crate::cluster::{Cluster, Workload};
use crate::place::{self, HOST};
use crate::pool::{Booked, Pool, Rank};

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

/// Replicas under one value of one label.
#[derive(Debug)]
struct Group {
    count: u32,
    /// Spread over: each one weighs.
    spread: bool,
    /// At most so many.
    max: u32,
}

/// The hosts of one class that pass the filters.
#[derive(Debug)]
struct Cell {
    class: u32,
    affinity: i64,
    groups: Vec<usize>,
    /// Hosts that have been looked at: replicas there (if they count), load, rank.
    seen: BTreeSet<Key>,
    /// Hosts without room for one more.
    full: Vec<Rank>,
    /// The hosts were all taken out of the pool's order: their scores differ by name.
    own: bool,
    /// The best one, when it is known.
    head: Option<Option<Key>>,
}

/// Fewest replicas first, then by load, then by rank.
type Key = (u32, i32, Rank);

/// One workload's filling.
#[derive(Debug)]
pub(crate) struct Fill {
    cells: Vec<Cell>,
    groups: Vec<Group>,
    counts: BTreeMap<Rank, u32>,
    wants: Booked,
    per_host: bool,
    host_max: u32,
    /// Without anything to spread over, hosts are filled one after the other, the fullest first.
    pack: bool,
    by_name: Vec<Constraint>,
}

/// Where and how to look a count up.
pub(crate) struct Ground<'a> {
    pub(crate) cluster: &'a Cluster,
    pub(crate) key: &'a WorkloadKey,
    pub(crate) workload: &'a Workload,
    pub(crate) delta: &'a Delta,
}

impl Ground<'_> {
    pub(crate) fn count(&self, pool: &Pool, rank: Rank) -> u32 {
        let base = if self.workload.placements.is_empty() {
            0
        } else {
            let host = self.cluster.hosts.get(&pool.room(rank).id);
            host.map_or(0, |host| host.count_of(self.key))
        };
        let delta = self.delta.hosts.get(&rank).copied().unwrap_or(0);
        u32::try_from(i64::from(base) + delta).unwrap_or(0)
    }
}

impl Fill {
    pub(crate) fn new(
        ground: &Ground<'_>,
        pool: &mut Pool,
        spec: &WorkloadSpec,
        args: Option<&Vec<String>>,
    ) -> Self {
        let mut host_max = u32::MAX;
        let mut labels: BTreeMap<&str, (bool, u32)> = BTreeMap::new();
        for label in spec.spread.iter().filter(|label| *label != HOST) {
            labels.entry(label).or_insert((true, u32::MAX)).0 = true;
        }
        for constraint in &spec.constraints {
            if let Constraint::Distinct { distinct, max } = constraint {
                if distinct == HOST {
                    host_max = host_max.min(*max);
                } else {
                    let label = labels.entry(distinct).or_insert((false, u32::MAX));
                    label.1 = label.1.min(*max);
                }
            }
        }
        let by_name = spec.constraints.iter().filter(
            |constraint| matches!(constraint, Constraint::Label { label, .. } if label == HOST),
        );
        let mut fill = Self {
            cells: Vec::new(),
            groups: Vec::new(),
            counts: BTreeMap::new(),
            wants: Booked::of(ground.key, spec, args),
            per_host: spec.spread.iter().any(|label| label == HOST),
            host_max,
            pack: spec.spread.is_empty(),
            by_name: by_name.cloned().collect(),
        };
        let mut numbers: BTreeMap<(&str, &str), usize> = BTreeMap::new();
        let classes: Vec<u32> = pool.classes().collect();
        let known = &ground.cluster.classes;
        for number in classes {
            let Some(class) = known.get(number) else {
                continue;
            };
            if place::against_class(spec, class).is_some() {
                continue;
            }
            let mut groups = Vec::new();
            for (label, (spread, max)) in &labels {
                let Some(value) = class.labels.get(*label) else {
                    continue;
                };
                let group = *numbers.entry((*label, value.as_str())).or_insert_with(|| {
                    fill.groups.push(Group {
                        count: 0,
                        spread: *spread,
                        max: *max,
                    });
                    fill.groups.len() - 1
                });
                groups.push(group);
            }
            fill.add_cells(pool, spec, number, place::class_affinity(spec, class), groups);
        }
        // Replicas on any host count, usable or not.
        let bases = ground.workload.per_class.iter();
        let bases = bases.map(|(class, count)| (*class, i64::from(*count)));
        let deltas = ground.delta.classes.iter().map(|(class, by)| (*class, *by));
        let mut counts: BTreeMap<usize, i64> = BTreeMap::new();
        for (class, count) in bases.chain(deltas) {
            let Some(class) = known.get(class) else {
                continue;
            };
            for label in labels.keys() {
                let value = class.labels.get(*label);
                let group = value.and_then(|value| numbers.get(&(*label, value.as_str())));
                if let Some(group) = group {
                    *counts.entry(*group).or_default() += count;
                }
            }
        }
        for (group, count) in counts {
            fill.groups[group].count = u32::try_from(count).unwrap_or(0);
        }
        fill
    }

    /// One cell for the class; more when hosts differ in affinity by their names.
    fn add_cells(
        &mut self,
        pool: &mut Pool,
        spec: &WorkloadSpec,
        class: u32,
        affinity: i64,
        groups: Vec<usize>,
    ) {
        let cell = |affinity: i64, own: bool| Cell {
            class,
            affinity,
            groups: groups.clone(),
            seen: BTreeSet::new(),
            full: Vec::new(),
            own,
            head: None,
        };
        if !spec.affinity.iter().any(|wish| wish.label == HOST) {
            self.cells.push(cell(affinity, false));
            return;
        }
        let mut named: BTreeMap<i64, Vec<Rank>> = BTreeMap::new();
        for rank in pool.all(class) {
            let more = place::name_affinity(spec, pool.room(rank).name.as_str());
            named.entry(affinity + more).or_default().push(rank);
        }
        for (affinity, ranks) in named {
            let mut cell = cell(affinity, true);
            for rank in ranks {
                pool.take(rank);
                // Not looked at yet: its count is found when it comes first.
                cell.seen.insert((0, self.load_key(pool, rank), rank));
            }
            self.cells.push(cell);
        }
    }

    fn load_key(&self, pool: &Pool, rank: Rank) -> i32 {
        let load = i32::from(pool.load(rank));
        if self.pack { -load } else { load }
    }

    /// The best host for one more replica; hosts of `failed` only when no other has room.
    pub(crate) fn best(
        &mut self,
        ground: &Ground<'_>,
        pool: &mut Pool,
        failed: &BTreeSet<Rank>,
    ) -> Option<Rank> {
        let mut best: Option<((Reverse<i64>, i32, Rank), usize)> = None;
        for at in 0..self.cells.len() {
            if self.barred(at) {
                continue;
            }
            let Some(key) = self.head(ground, pool, at, failed) else {
                continue;
            };
            let order = (Reverse(self.total(at, key)), key.1, key.2);
            if best.is_none_or(|(known, _)| order < known) {
                best = Some((order, at));
            }
        }
        if let Some(((_, _, rank), _)) = best {
            return Some(rank);
        }
        if failed.is_empty() {
            return None;
        }
        self.best(ground, pool, &BTreeSet::new())
    }

    /// Whether a label's value has as many as it may.
    fn barred(&self, at: usize) -> bool {
        let groups = self.cells[at].groups.iter();
        groups
            .map(|group| &self.groups[*group])
            .any(|group| group.count >= group.max)
    }

    fn total(&self, at: usize, (count, load, _): Key) -> i64 {
        let cell = &self.cells[at];
        let spread = cell.groups.iter().map(|group| &self.groups[*group]);
        let crowd: i64 = spread
            .filter(|group| group.spread)
            .map(|group| i64::from(group.count))
            .sum();
        let free = if self.pack { -load } else { 1000 - load };
        cell.affinity - place::CROWD * (crowd + i64::from(count)) + i64::from(free / 100)
    }

    /// The best host of a cell that has room.
    fn head(
        &mut self,
        ground: &Ground<'_>,
        pool: &mut Pool,
        at: usize,
        failed: &BTreeSet<Rank>,
    ) -> Option<Key> {
        if failed.is_empty()
            && let Some(head) = self.cells[at].head
        {
            return head;
        }
        let mut set_aside = Vec::new();
        let head = loop {
            let seen = self.cells[at].seen.first().copied();
            let first = if self.cells[at].own {
                None
            } else {
                pool.first(self.cells[at].class, self.pack)
            };
            let waiting = first.map(|(_, rank)| (0, self.load_key(pool, rank), rank));
            let (key, from_pool) = match (seen, waiting) {
                (None, None) => break None,
                (Some(seen), Some(waiting)) if seen < waiting => (seen, false),
                (Some(seen), None) => (seen, false),
                (_, Some(waiting)) => (waiting, true),
            };
            let rank = key.2;
            let count = match self.counts.get(&rank) {
                Some(count) => *count,
                None => {
                    let count = ground.count(pool, rank);
                    self.counts.insert(rank, count);
                    count
                }
            };
            let now = (if self.per_host { count } else { 0 }, key.1, rank);
            if from_pool {
                pool.take(rank);
            } else {
                self.cells[at].seen.remove(&key);
            }
            if count >= self.host_max || !pool.fits(rank, self.wants) || !self.named(pool, rank) {
                self.cells[at].full.push(rank);
            } else if failed.contains(&rank) {
                set_aside.push(now);
            } else {
                self.cells[at].seen.insert(now);
                if now <= key {
                    break Some(now);
                }
            }
        };
        let cell = &mut self.cells[at];
        cell.seen.extend(set_aside);
        cell.head = failed.is_empty().then_some(head);
        head
    }

    fn named(&self, pool: &Pool, rank: Rank) -> bool {
        self.by_name.is_empty()
            || self
                .by_name
                .iter()
                .all(|constraint| place::name_passes(constraint, pool.room(rank).name.as_str()))
    }

    /// Books a replica on a host that `best` has named.
    pub(crate) fn take(&mut self, pool: &mut Pool, rank: Rank) {
        let (class, load) = (pool.class_of(rank), self.load_key(pool, rank));
        let count = self.counts.entry(rank).or_default();
        let before = (if self.per_host { *count } else { 0 }, load, rank);
        *count += 1;
        let after = if self.per_host { *count } else { 0 };
        pool.book(rank, self.wants);
        let after = (after, self.load_key(pool, rank), rank);
        let cells = self.cells.iter_mut();
        let holder = cells
            .filter(|cell| cell.class == class)
            .find(|cell| cell.seen.contains(&before));
        if let Some(cell) = holder {
            cell.seen.remove(&before);
            cell.seen.insert(after);
            cell.head = None;
            for group in &cell.groups {
                self.groups[*group].count += 1;
            }
        }
    }

    /// Gives every host back to the pool's order.
    pub(crate) fn end(self, pool: &mut Pool) {
        for cell in self.cells {
            for rank in cell.seen.into_iter().map(|key| key.2).chain(cell.full) {
                pool.put(rank);
            }
        }
    }
}
