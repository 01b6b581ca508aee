//! Hosts that only lack room, as `place` ranks them when nothing is booked.
//!
//! Owns the filters and the scores of one slot as far as room plays no part: those of labels once for each class, and
//! of a host its name, its ports and its replicas. What has to end on a host is no business of it; the tests beside
//! it hold it to `place`.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use wasmorch_api::spec::Constraint;
use wasmorch_api::{HostId, Revision};

use crate::booked::{Booked, FULL};
use crate::cached::CACHED;
use crate::cluster::Cluster;
use crate::fill::Ground;
use crate::place::{self, HOST};
use crate::pool::{Pool, Rank};
use crate::ports;

/// The highest score first, then by load, then by rank.
pub(super) type Order = (Reverse<i64>, i32, Rank);

/// What one slot asks of hosts.
pub(super) struct Ranked<'a> {
    cluster: &'a Cluster,
    target: &'a Revision,
    needs: Vec<String>,
    /// Labels other than the host's name that replicas are spread over.
    spread: BTreeSet<&'a str>,
    /// And those of which each value may have so many.
    distinct: Vec<(&'a str, u32)>,
    /// Replicas under each value of these labels.
    under: BTreeMap<(&'a str, &'a str), u32>,
    over_hosts: bool,
    host_max: u32,
    cached: BTreeSet<Rank>,
    /// The host and the class of what goes when what is being placed is there.
    goes: Option<(Rank, u32)>,
    /// What all hosts of a class score; `None`: they are refused.
    classes: BTreeMap<u32, Option<i64>>,
}

impl<'a> Ranked<'a> {
    pub(super) fn new(
        cluster: &'a Cluster,
        ground: &Ground<'_>,
        pool: &Pool,
        target: &'a Revision,
        goes: Option<&HostId>,
    ) -> Self {
        let spec = &target.spec;
        let mut host_max = if spec.per_host() { 1 } else { u32::MAX };
        let mut distinct = Vec::new();
        for constraint in &spec.constraints {
            match constraint {
                Constraint::Distinct { distinct, max } if distinct == HOST => {
                    host_max = host_max.min(*max);
                }
                Constraint::Distinct {
                    distinct: label,
                    max,
                } => distinct.push((label.as_str(), *max)),
                Constraint::Label { .. } => {}
            }
        }
        let spread = spec.spread.iter().map(String::as_str);
        let spread: BTreeSet<&str> = spread.filter(|label| *label != HOST).collect();
        let labels: BTreeSet<&str> = { distinct.iter() }
            .map(|(label, _)| *label)
            .chain(spread.iter().copied())
            .collect();
        let mut under: BTreeMap<(&str, &str), i64> = BTreeMap::new();
        for (class, count) in ground.of_classes() {
            let class = cluster.classes.get(class);
            for label in &labels {
                if let Some(value) = class.and_then(|class| class.labels.get(*label)) {
                    *under.entry((*label, value.as_str())).or_default() += count;
                }
            }
        }
        let under = under.into_iter();
        let under = under.map(|(label, count)| (label, u32::try_from(count).unwrap_or(0)));
        let goes = goes.and_then(|id| pool.rank(id));
        Self {
            cluster,
            target,
            needs: place::needs(spec, &target.features),
            spread,
            distinct,
            under: under.collect(),
            over_hosts: spec.spread.iter().any(|label| label == HOST),
            host_max,
            cached: ground.cached(pool, spec),
            goes: goes.map(|rank| (rank, pool.class_of(rank))),
            classes: BTreeMap::new(),
        }
    }

    /// Of the usable hosts with this lowest priority those that pass, the best on top.
    pub(super) fn hosts(
        &mut self,
        ground: &Ground<'_>,
        pool: &Pool,
        lowest: u32,
        among: impl Fn(Rank) -> bool,
    ) -> BinaryHeap<Reverse<Order>> {
        let mut near = 0;
        let ranks = pool.with_lowest(lowest).filter(|rank| among(*rank));
        let orders = ranks.filter_map(|rank| self.order(ground, pool, rank, &mut near));
        orders.map(Reverse).collect()
    }

    fn order(
        &mut self,
        ground: &Ground<'_>,
        pool: &Pool,
        rank: Rank,
        near: &mut usize,
    ) -> Option<Order> {
        let spec = &self.target.spec;
        let class = pool.class_of(rank);
        let score = match self.classes.get(&class) {
            Some(score) => *score,
            None => {
                let score = self.class(class);
                self.classes.insert(class, score);
                score
            }
        }?;
        let room = pool.room(rank);
        let name = room.name.as_str();
        let mut constraints = spec.constraints.iter();
        let counts = self.over_hosts || self.host_max < u32::MAX;
        let count = if counts {
            ground.count_near(pool, rank, near)
        } else {
            0
        };
        if spec.runs_once() && room.doubled
            || count >= self.host_max
            || !constraints.all(|one| place::name_passes(one, name))
            || !pool.ports_free(self.cluster, rank, ports::of(spec))
        {
            return None;
        }
        let goes = self.goes.is_some_and(|(goes, _)| goes == rank);
        let crowd = match self.over_hosts {
            true => count.saturating_sub(u32::from(goes)),
            false => 0,
        };
        let cached = if self.cached.contains(&rank) {
            CACHED
        } else {
            0
        };
        // Empty, but for a host that has none of something: that is full.
        let (_, has) = pool.booked(rank);
        let load = Booked::default().load(has);
        let pack = spec.spread.is_empty();
        let share = if pack { load } else { FULL - load };
        let total = score - place::CROWD * i64::from(crowd)
            + place::name_affinity(spec, name)
            + cached
            + i64::from(share / (FULL / 10));
        let load = load as i32;
        Some((Reverse(total), if pack { -load } else { load }, rank))
    }

    fn class(&self, number: u32) -> Option<i64> {
        let spec = &self.target.spec;
        let class = self.cluster.classes.get(number)?;
        let there = |label: &str| {
            let value = class.labels.get(label);
            let count = value.and_then(|value| self.under.get(&(label, value.as_str())));
            count.copied().unwrap_or(0)
        };
        let mut distinct = self.distinct.iter();
        if place::is_against_class(spec, &self.needs, class)
            || distinct.any(|(label, max)| there(label) >= *max)
        {
            return None;
        }
        let goes = { self.goes }.and_then(|(_, goes)| self.cluster.classes.get(goes));
        let crowd = self.spread.iter().map(|label| {
            let value = class.labels.get(*label);
            let goes = goes.is_some_and(|goes| value.is_some() && goes.labels.get(*label) == value);
            i64::from(there(label).saturating_sub(u32::from(goes)))
        });
        let crowd: i64 = crowd.sum();
        Some(place::class_affinity(spec, class) - place::CROWD * crowd)
    }
}
