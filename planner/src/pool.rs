//! Room: the hosts of each class in the order of their load.
//!
//! Owns the pool, which is made from the hosts and can be thrown
//! away at any time: a plan books in it what it decides, and whatever it has touched is read from
//! the hosts again before the next one, whether or not the plan was carried out.
//!
//! A *class* is all hosts with the same labels, taints, architecture and features: filters on these, and the
//! scores of labels, are evaluated once for each. Capacity is no part of it.

mod holders;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;
use std::sync::Arc;

use wasmorch_api::status::HostState;
use wasmorch_api::{HostId, HostInfo, Name, WorkloadKey};

use crate::booked::Booked;
use crate::cluster::{Cluster, Host};
use crate::planted::{self, Bug};
use crate::ports::{self, Claims};
use crate::preempt::Preempted;

pub(crate) use holders::Holders;

/// The label that every host has by what it is, unless it is given another.
pub(crate) const ARCH: &str = "arch";

/// What makes hosts alike.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Class {
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) taints: Vec<String>,
    pub(crate) arch: String,
    pub(crate) features: Vec<String>,
}

/// Every class that a host has ever been in, so that a class keeps its number.
#[derive(Debug, Clone, Default)]
pub(crate) struct Classes {
    numbers: BTreeMap<Arc<Class>, u32>,
    all: Vec<Arc<Class>>,
}

impl Classes {
    pub(crate) fn of(&mut self, info: &HostInfo) -> u32 {
        let mut labels = info.labels.clone();
        // What a host is, as a label that constraints and affinities can name.
        if !info.arch.is_empty() {
            let arch = labels.entry(ARCH.to_owned());
            arch.or_insert_with(|| info.arch.clone());
        }
        let class = Arc::new(Class {
            labels,
            taints: info.taints.clone(),
            arch: info.arch.clone(),
            features: info.features.clone(),
        });
        if let Some(number) = self.numbers.get(&class) {
            return *number;
        }
        let number = self.all.len() as u32;
        self.all.push(class.clone());
        self.numbers.insert(class, number);
        number
    }

    pub(crate) fn get(&self, number: u32) -> Option<&Arc<Class>> {
        self.all.get(number as usize)
    }
}

/// One host in the pool.
#[derive(Debug, Clone)]
pub(crate) struct Room {
    pub(crate) id: HostId,
    pub(crate) name: Name,
    /// The state's number for it.
    pub(crate) number: u32,
    class: u32,
    /// Something may be placed there.
    usable: bool,
    /// Two daemons speak as it: what must not run twice is not placed there.
    pub(crate) doubled: bool,
    used: Booked,
    has: Booked,
    load: u32,
    /// The lowest priority of what it holds.
    lowest: Option<u32>,
    /// To be read again before the next plan.
    touched: bool,
}

/// A host's number in the pool: its rank by name, then by id, which is how ties break.
pub(crate) type Rank = u32;

/// Where there is room.
#[derive(Debug, Clone, Default)]
pub(crate) struct Pool {
    rooms: Vec<Room>,
    ranks: HashMap<HostId, Rank>,
    by_number: HashMap<u32, Rank>,
    /// Usable hosts of each class, the emptiest first.
    by_class: BTreeMap<u32, BTreeSet<(u32, Rank)>>,
    /// Usable hosts by the lowest priority of what they hold.
    by_lowest: BTreeSet<(u32, Rank)>,
    touched: Vec<Rank>,
    fresh: bool,
    /// No usable host has more left than this, in any dimension.
    most_left: Booked,
    /// As it is now: nothing has changed since it was looked up.
    left_known: bool,
    /// What has been ended in this plan to make room.
    pub(crate) preempted: Preempted,
    /// What has been decided about ports.
    pub(crate) ports: Claims,
    /// What namespaces with a quota hold, as far as this plan has come.
    pub(crate) held: BTreeMap<Name, Booked>,
    /// How many hosts this plan has looked at to tell why something could not be placed.
    pub(crate) explained: usize,
}

impl Pool {
    /// Make it anew: hosts came, went, or are something else now.
    pub(crate) fn rebuild(&mut self) {
        self.fresh = false;
    }

    /// Read this host again.
    pub(crate) fn touch(&mut self, id: &HostId) {
        if self.fresh
            && let Some(rank) = self.rank(id)
        {
            self.touch_rank(rank);
        }
    }

    fn touch_rank(&mut self, rank: Rank) {
        let room = &mut self.rooms[rank as usize];
        if !room.touched {
            room.touched = true;
            self.touched.push(rank);
        }
    }

    /// Brings it in line with the hosts.
    pub(crate) fn refresh(&mut self, hosts: &BTreeMap<HostId, Host>) {
        self.preempted = Preempted::default();
        self.held.clear();
        self.explained = 0;
        self.ports.clear();
        let touched = std::mem::take(&mut self.touched);
        if self.fresh {
            for rank in touched {
                self.take(rank);
                let room = &mut self.rooms[rank as usize];
                let before = room.lowest;
                if let Some(host) = hosts.get(&room.id) {
                    *room = Room::of(&room.id, host);
                }
                let (left, lowest) = (room.left(), room.lowest);
                if before != lowest {
                    before.map(|lowest| self.by_lowest.remove(&(lowest, rank)));
                    self.by_lowest.extend(lowest.map(|lowest| (lowest, rank)));
                }
                self.may_have(left);
                self.put(rank);
            }
            return;
        }
        self.fresh = true;
        self.rooms = hosts.iter().map(|(id, host)| Room::of(id, host)).collect();
        self.rooms
            .sort_by(|a, b| a.name.cmp(&b.name).then_with(|| a.id.cmp(&b.id)));
        let rooms = self.rooms.iter().enumerate();
        self.ranks = rooms
            .map(|(rank, room)| (room.id.clone(), rank as Rank))
            .collect();
        let rooms = self.rooms.iter().enumerate();
        self.by_number = rooms
            .map(|(rank, room)| (room.number, rank as Rank))
            .collect();
        let rooms = self.rooms.iter().zip(0..);
        self.by_lowest = rooms
            .filter_map(|(room, rank)| Some((room.lowest?, rank)))
            .collect();
        self.by_class.clear();
        self.left_known = false;
        self.note_left();
        for rank in 0..self.rooms.len() {
            self.put(rank as Rank);
        }
    }

    pub(crate) fn rank(&self, id: &HostId) -> Option<Rank> {
        self.ranks.get(id).copied()
    }

    /// The rank of a host by the state's number for it.
    pub(crate) fn numbered(&self, number: u32) -> Option<Rank> {
        self.by_number.get(&number).copied()
    }

    /// The rank of a host that something may be placed on now.
    pub(crate) fn usable(&self, id: &HostId) -> Option<Rank> {
        self.rank(id).filter(|rank| self.is_usable(*rank))
    }

    pub(crate) fn is_usable(&self, rank: Rank) -> bool {
        self.rooms[rank as usize].usable
    }

    pub(crate) fn room(&self, rank: Rank) -> &Room {
        &self.rooms[rank as usize]
    }

    pub(crate) fn load(&self, rank: Rank) -> u32 {
        self.rooms[rank as usize].load
    }

    pub(crate) fn used(&self, id: &HostId) -> Booked {
        self.rank(id)
            .map_or_else(Booked::default, |rank| self.rooms[rank as usize].used)
    }

    /// What is booked on a host, and what it has.
    pub(crate) fn booked(&self, rank: Rank) -> (Booked, Booked) {
        let room = &self.rooms[rank as usize];
        (room.used, room.has)
    }

    pub(crate) fn fits(&self, rank: Rank, wants: Booked) -> bool {
        let room = &self.rooms[rank as usize];
        room.used.fits(wants, room.has)
    }

    /// Something that listens on these ports starts on a host.
    pub(crate) fn claim(&mut self, rank: Rank, ports: &[u16], key: &WorkloadKey) {
        if !ports.is_empty() {
            self.ports.take(&self.rooms[rank as usize].id, ports, key);
        }
    }

    /// Whether all of these ports are free on a host.
    pub(crate) fn ports_free(&self, cluster: &Cluster, rank: Rank, ports: &[u16]) -> bool {
        let view = ports::View {
            claims: Some(&self.ports),
            without: None,
        };
        ports::free(cluster, view, &self.room(rank).id, ports)
    }

    /// The classes with a usable host.
    pub(crate) fn classes(&self) -> impl Iterator<Item = u32> + '_ {
        let some = self.by_class.iter().filter(|(_, hosts)| !hosts.is_empty());
        some.map(|(class, _)| *class)
    }

    /// The hosts of a class that come after `after`: the emptiest first (`full`: the fullest), by
    /// name where they are equal.
    pub(crate) fn after(
        &self,
        class: u32,
        full: bool,
        after: Option<(u32, Rank)>,
    ) -> impl Iterator<Item = (u32, Rank)> + '_ {
        let hosts = self.by_class.get(&class);
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut up = hosts.map(|hosts| hosts.range((from, Bound::Unbounded)));
        let mut at = after;
        std::iter::from_fn(move || {
            if !full {
                return up.as_mut()?.next().copied();
            }
            at = fuller(hosts?, at);
            at
        })
    }

    /// The lowest priority, from one on, that is the lowest on a usable host.
    pub(crate) fn lowest_from(&self, priority: u32) -> Option<u32> {
        let mut from = self.by_lowest.range((priority, 0)..);
        from.next().map(|(lowest, _)| *lowest)
    }

    /// The usable hosts whose lowest priority this is.
    pub(crate) fn with_lowest(&self, priority: u32) -> impl Iterator<Item = Rank> + '_ {
        let hosts = self.by_lowest.range((priority, 0)..=(priority, Rank::MAX));
        hosts.map(|(_, rank)| *rank)
    }

    /// All hosts of a class.
    pub(crate) fn all(&self, class: u32) -> Vec<Rank> {
        let hosts = self.by_class.get(&class).into_iter().flatten();
        hosts.map(|(_, rank)| *rank).collect()
    }

    /// Takes a host out of its class's order; whether it was there.
    pub(crate) fn take(&mut self, rank: Rank) -> bool {
        let room = &self.rooms[rank as usize];
        let hosts = self.by_class.get_mut(&room.class);
        hosts.is_some_and(|hosts| hosts.remove(&(room.load, rank)))
    }

    /// Puts it back, where it belongs now.
    pub(crate) fn put(&mut self, rank: Rank) {
        let room = &self.rooms[rank as usize];
        if room.usable {
            let hosts = self.by_class.entry(room.class).or_default();
            hosts.insert((room.load, rank));
        }
    }

    /// Books on a host that has been taken out.
    pub(crate) fn book(&mut self, rank: Rank, wants: Booked) {
        let room = &mut self.rooms[rank as usize];
        room.used = room.used.plus(wants);
        room.load = room.used.load(room.has);
        self.left_known = false;
        self.touch_rank(rank);
    }

    /// Frees what a placement has booked. The host must not be taken out.
    pub(crate) fn free(&mut self, id: &HostId, booked: Booked) {
        let Some(rank) = self.rank(id) else { return };
        self.take(rank);
        let room = &mut self.rooms[rank as usize];
        room.used = room.used.minus(booked);
        room.load = room.used.load(room.has);
        let left = room.left();
        self.may_have(left);
        self.put(rank);
        self.touch_rank(rank);
    }

    fn may_have(&mut self, left: Booked) {
        self.most_left = self.most_left.max(left);
        self.left_known = false;
    }

    /// Whether certainly no host has room for this, found without a look at any: where all are full, each of
    /// those that wait would go through all of them.
    pub(crate) fn is_full_for(&self, wants: Booked) -> bool {
        !Booked::default().fits(wants, self.most_left)
    }

    /// No host was found for something: what the emptiest have left is looked up again.
    pub(crate) fn note_left(&mut self) {
        if !std::mem::replace(&mut self.left_known, true) {
            let left = self.rooms.iter().map(Room::left);
            self.most_left = left.fold(Booked::default(), Booked::max);
        }
    }

    pub(crate) fn class_of(&self, rank: Rank) -> u32 {
        self.rooms[rank as usize].class
    }
}

/// From the fullest down, and up by rank within one load.
fn fuller(hosts: &BTreeSet<(u32, Rank)>, after: Option<(u32, Rank)>) -> Option<(u32, Rank)> {
    if let Some(at) = after {
        let same = hosts.range((Bound::Excluded(at), Bound::Included((at.0, Rank::MAX))));
        if let Some(next) = { same }.next() {
            return Some(*next);
        }
    }
    let below = after.map_or(Bound::Unbounded, |(load, _)| Bound::Excluded((load, 0)));
    let mut below = hosts.range((Bound::Unbounded, below));
    let (load, _) = below.next_back()?;
    hosts.range((*load, 0)..).next().copied()
}

impl Room {
    fn of(id: &HostId, host: &Host) -> Self {
        let (used, has) = (host.booked, Booked::of_host(host));
        let usable = host.state == HostState::Alive
            && host.known()
            && (host.takes_new() || planted::is(Bug::CordonIgnored));
        let lowest = host.by_priority.keys().next().copied();
        Self {
            id: id.clone(),
            name: host.info().name.clone(),
            number: host.number,
            class: host.class,
            usable,
            doubled: host.boots.doubled(),
            used,
            has,
            load: used.load(has),
            lowest: lowest.filter(|_| usable),
            touched: false,
        }
    }

    /// What may still be booked there.
    fn left(&self) -> Booked {
        match self.usable {
            true => self.has.minus(self.used),
            false => Booked::default(),
        }
    }
}
