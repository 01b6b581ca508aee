//! Water-filling: the replicas of one workload poured over classes of hosts.
//!
//! Owns the choice of the next host within one pass. It carries out the rule that `place` writes
//! down, but on counts: every class of hosts that passes the filters is one *cell* with a score of
//! its own (labels are equal within it) and hands out its best host from an order by load. A
//! replica costs one look at each cell and a few steps in that order, never a look at every host.
//!
//! Hosts that have the component already (`cached`) are a few, and a cell of their own beside their
//! class's; with its first replica one goes over to that.
//!
//! Known limits: the cost of a replica grows with the number of classes; hosts that are emptier
//! than the rest but too small are passed over once in every pass.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use wasmorch_api::spec::Constraint;
use wasmorch_api::{HostId, Revision, WorkloadSpec};

use crate::booked::{Booked, FULL};
use crate::cached::CACHED;
use crate::place::{self, HOST};
use crate::pool::{Pool, Rank};
use crate::ports;

mod ground;
mod heads;

pub(crate) use ground::{Delta, Ground};

/// The score of free room has ten steps.
const TENTH: i32 = FULL as i32 / 10;

/// Replicas under one value of one label.
#[derive(Debug)]
struct Group {
    label: String,
    value: String,
    count: u32,
    /// One of them goes when what is being placed is there.
    goes: bool,
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
    /// Hosts taken out of the pool's order: replicas there (if they count), load, rank.
    seen: BTreeSet<Key>,
    /// Hosts taken out, without room for one more.
    full: Vec<Rank>,
    /// All hosts were taken out of the pool's order: their scores differ by name, or none is left
    /// without a replica.
    own: bool,
    /// Those without a replica that have the component; none of them is in the pool's order.
    cached: bool,
    /// Up to here the pool's order has been looked at: what was passed over has no room, or has a
    /// replica already.
    cursor: Option<(u32, Rank)>,
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
    wants: Booked,
    ports: Vec<u16>,
    /// It must not run twice.
    once: bool,
    /// Hosts without a replica that have the component, and take something new.
    cached: BTreeSet<Rank>,
    per_host: bool,
    host_max: u32,
    /// Without anything to spread over, hosts are filled one after the other, the fullest first.
    pack: bool,
    by_name: Vec<Constraint>,
    /// Cells whose heads are not known, by the most that they can score. Kept for its room.
    turns: Vec<(Reverse<i64>, usize)>,
}

fn better(best: &mut Option<(Reverse<i64>, i32, Rank)>, order: (Reverse<i64>, i32, Rank)) {
    if best.is_none_or(|known| order < known) {
        *best = Some(order);
    }
}

impl Fill {
    pub(crate) fn new(
        ground: &Ground<'_>,
        pool: &mut Pool,
        target: &Revision,
        args: Option<&Vec<String>>,
    ) -> Self {
        let spec = &target.spec;
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
            wants: Booked::of(ground.key, spec, args),
            ports: ports::of(spec).to_vec(),
            once: spec.runs_once(),
            cached: ground.cached(pool, spec),
            per_host: spec.spread.iter().any(|label| label == HOST),
            host_max,
            pack: spec.spread.is_empty(),
            by_name: by_name.cloned().collect(),
            turns: Vec::new(),
        };
        let mut numbers: BTreeMap<(&str, &str), usize> = BTreeMap::new();
        let classes: Vec<u32> = pool.classes().collect();
        fill.cells.reserve(classes.len());
        let known = &ground.cluster.classes;
        let needs = place::needs(spec, &target.features);
        for number in classes {
            let Some(class) = known.get(number) else {
                continue;
            };
            if place::is_against_class(spec, &needs, class) {
                continue;
            }
            let mut groups = Vec::new();
            for (label, (spread, max)) in &labels {
                let Some(value) = class.labels.get(*label) else {
                    continue;
                };
                let group = *numbers.entry((*label, value.as_str())).or_insert_with(|| {
                    fill.groups.push(Group {
                        label: (*label).to_owned(),
                        value: value.clone(),
                        count: 0,
                        goes: false,
                        spread: *spread,
                        max: *max,
                    });
                    fill.groups.len() - 1
                });
                groups.push(group);
            }
            fill.add_cells(
                pool,
                spec,
                number,
                place::class_affinity(spec, class),
                groups,
            );
        }
        let mut counts: BTreeMap<usize, i64> = BTreeMap::new();
        for (class, count) in ground.of_classes() {
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

    /// One cell for the class; more when hosts differ in affinity by their names, or have the component.
    fn add_cells(
        &mut self,
        pool: &mut Pool,
        spec: &WorkloadSpec,
        class: u32,
        affinity: i64,
        groups: Vec<usize>,
    ) {
        let cell = |affinity: i64, own: bool, cached: bool| Cell {
            class,
            affinity,
            groups: groups.clone(),
            seen: BTreeSet::new(),
            full: Vec::new(),
            own,
            cached,
            cursor: None,
            head: None,
        };
        // By affinity, and whether they have the component.
        let mut apart: BTreeMap<(i64, bool), Vec<Rank>> = BTreeMap::new();
        if spec.affinity.iter().any(|wish| wish.label == HOST) {
            for rank in pool.all(class) {
                let more = place::name_affinity(spec, pool.room(rank).name.as_str());
                let plain = apart.entry((affinity + more, false)).or_default();
                if !self.cached.contains(&rank) {
                    plain.push(rank);
                    continue;
                }
                let cached = apart.entry((affinity + more, true)).or_default();
                cached.push(rank);
            }
        } else {
            self.cells.push(cell(affinity, false, false));
            for rank in self.cached.iter().copied() {
                if pool.class_of(rank) == class {
                    apart.entry((affinity, true)).or_default().push(rank);
                }
            }
        }
        for ((affinity, cached), ranks) in apart {
            let more = if cached { CACHED } else { 0 };
            let mut cell = cell(affinity + more, true, cached);
            for rank in ranks {
                // Not looked at yet: its count is found when it comes first.
                if pool.take(rank) {
                    cell.seen.insert((0, self.load_key(pool, rank), rank));
                }
            }
            self.cells.push(cell);
        }
    }

    fn load_key(&self, pool: &Pool, rank: Rank) -> i32 {
        let load = pool.load(rank) as i32;
        if self.pack { -load } else { load }
    }

    /// The best host for one more replica; hosts of `failed` only when no other has room. The one on
    /// `goes` ends when this one is there.
    pub(crate) fn best(
        &mut self,
        ground: &Ground<'_>,
        pool: &mut Pool,
        failed: &BTreeSet<Rank>,
        goes: Option<&HostId>,
    ) -> Option<Rank> {
        let own = goes.and_then(|goes| self.without(ground, pool, goes));
        let best = self.best_but(ground, pool, failed, own);
        for group in &mut self.groups {
            group.goes = false;
        }
        best
    }

    fn best_but(
        &mut self,
        ground: &Ground<'_>,
        pool: &mut Pool,
        failed: &BTreeSet<Rank>,
        own: Option<(usize, Key)>,
    ) -> Option<Rank> {
        if failed.is_empty() {
            return self.best_of_all(ground, pool, own);
        }
        let hidden = self.hide(pool, failed);
        let others = own.filter(|(_, key)| !failed.contains(&key.2));
        let best = self.best_of_all(ground, pool, others);
        self.show(pool, hidden);
        best.or_else(|| self.best_of_all(ground, pool, own))
    }

    /// A cell's head may cost a walk past every host that holds the workload already: cells go by the
    /// most that their heads can score, and those that cannot win are not asked. `own` is a host that
    /// scores better than it does in its cell.
    fn best_of_all(
        &mut self,
        ground: &Ground<'_>,
        pool: &mut Pool,
        own: Option<(usize, Key)>,
    ) -> Option<Rank> {
        let mut best = own.map(|(at, key)| self.order(at, key));
        let mut turns = std::mem::take(&mut self.turns);
        turns.clear();
        for at in 0..self.cells.len() {
            if self.barred(at) {
                continue;
            }
            match self.cells[at].head {
                Some(Some(key)) => better(&mut best, self.order(at, key)),
                Some(None) => {}
                None => turns.push((Reverse(self.most(at)), at)),
            }
        }
        turns.sort_unstable();
        for (Reverse(most), at) in &turns {
            if best.is_some_and(|(Reverse(total), ..)| total > *most) {
                break;
            }
            if let Some(key) = self.head(ground, pool, *at) {
                better(&mut best, self.order(*at, key));
            }
        }
        self.turns = turns;
        best.map(|(_, _, rank)| rank)
    }

    fn order(&self, at: usize, key: Key) -> (Reverse<i64>, i32, Rank) {
        (Reverse(self.total(at, key)), key.1, key.2)
    }

    /// Takes hosts out of every order for a while: where they were seen, or that they were not.
    fn hide(
        &mut self,
        pool: &mut Pool,
        ranks: &BTreeSet<Rank>,
    ) -> Vec<(Rank, Option<(usize, Key)>)> {
        let mut hidden = Vec::new();
        for rank in ranks {
            let cells = self.cells.iter().enumerate();
            let seen = cells.filter_map(|(at, cell)| {
                let key = cell.seen.iter().find(|key| key.2 == *rank)?;
                Some((at, *key))
            });
            let seen = { seen }.next();
            if let Some((at, key)) = seen {
                self.cells[at].seen.remove(&key);
                hidden.push((*rank, seen));
            } else if pool.take(*rank) {
                hidden.push((*rank, None));
            }
        }
        self.look_again();
        hidden
    }

    fn show(&mut self, pool: &mut Pool, hidden: Vec<(Rank, Option<(usize, Key)>)>) {
        for (rank, seen) in hidden {
            match seen {
                Some((at, key)) => drop(self.cells[at].seen.insert(key)),
                None => {
                    // Its class may have been emptied meanwhile.
                    let class = pool.class_of(rank);
                    let key = (0, self.load_key(pool, rank), rank);
                    let mut cells = self.cells.iter_mut();
                    match cells.find(|cell| cell.class == class && cell.own && !cell.cached) {
                        Some(cell) => drop(cell.seen.insert(key)),
                        None => pool.put(rank),
                    }
                }
            }
        }
        self.look_again();
    }

    fn look_again(&mut self) {
        for cell in &mut self.cells {
            cell.head = None;
            cell.cursor = None;
        }
    }

    /// Whether a label's value has as many as it may.
    fn barred(&self, at: usize) -> bool {
        let groups = self.cells[at].groups.iter();
        groups
            .map(|group| &self.groups[*group])
            .any(|group| group.count >= group.max)
    }

    fn total(&self, at: usize, (count, load, _): Key) -> i64 {
        let free = if self.pack { -load } else { FULL as i32 - load };
        self.base(at) - place::CROWD * i64::from(count) + i64::from(free / TENTH)
    }

    /// The most that a host of the cell can score: without a replica, and empty (or full).
    fn most(&self, at: usize) -> i64 {
        self.base(at) + i64::from(FULL as i32 / TENTH)
    }

    /// What all hosts of a cell have in common.
    fn base(&self, at: usize) -> i64 {
        let cell = &self.cells[at];
        let spread = cell.groups.iter().map(|group| &self.groups[*group]);
        let crowd: i64 = spread
            .filter(|group| group.spread)
            .map(|group| i64::from(group.count) - i64::from(group.goes))
            .sum();
        cell.affinity - place::CROWD * crowd
    }

    /// Books a replica on a host that `best` has named.
    pub(crate) fn take(&mut self, ground: &Ground<'_>, pool: &mut Pool, rank: Rank) {
        let key = |fill: &Self, pool: &Pool, count: u32| {
            let count = if fill.per_host { count } else { 0 };
            (count, fill.load_key(pool, rank), rank)
        };
        let class = pool.class_of(rank);
        let count = ground.count(pool, rank);
        // As it was seen, or not looked at yet.
        let (before, unseen) = (key(self, pool, count), key(self, pool, 0));
        let of_class = |cell: &&mut Cell| cell.class == class;
        let mut cells = self.cells.iter_mut().filter(of_class);
        let holder = cells.find_map(|cell| {
            cell.head = None;
            let seen = cell.seen.remove(&before) || unseen != before && cell.seen.remove(&unseen);
            seen.then_some((cell.affinity, cell.cached))
        });
        // Still in the pool's order: then but for what is cached the class is one cell.
        let plain = match holder {
            Some((affinity, true)) => Some(affinity - CACHED),
            Some((affinity, false)) => Some(affinity),
            None => None,
        };
        let at = self.cells.iter().position(|cell| {
            let same = plain.map_or(!cell.own, |affinity| cell.affinity == affinity);
            cell.class == class && !cell.cached && same
        });
        let Some(at) = at else { return };
        if holder.is_none() {
            pool.take(rank);
        }
        pool.book(rank, self.wants);
        pool.claim(rank, &self.ports, ground.key);
        let after = key(self, pool, count + 1);
        let cell = &mut self.cells[at];
        cell.seen.insert(after);
        cell.head = None;
        for group in &cell.groups {
            self.groups[*group].count += 1;
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
