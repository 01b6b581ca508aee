//! Placement rules: what specs ask of hosts' labels, taints and room, and a second reading of where a
//! replica may go.
//!
//! Owns which worlds have them. All of it comes from the seed by numbers of its own, so that a world
//! without is the same with and without this file.

use std::collections::BTreeSet;

use wasmorch_api::spec::{Affinity, Constraint, LabelTest};
use wasmorch_api::status::HostState;
use wasmorch_api::units::{ByteSize, Cpu};
use wasmorch_api::{HostId, HostInfo, Slot, WorkloadKey, WorkloadSpec};

use super::claims;
use super::rng::Rng;
use super::world::World;

const ZONES: [&str; 3] = ["z0", "z1", "z2"];
const DISKS: [&str; 2] = ["ssd", "hdd"];

/// Rules of one world.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rules {
    seed: u64,
}

impl Rules {
    pub(crate) const fn new(seed: u64) -> Self {
        Self { seed }
    }

    pub(crate) const fn are_there(self) -> bool {
        self.seed % 6 == 1
    }

    /// A quota stays when all is well again, and keeps from running what it must.
    pub(crate) const fn keep_quota(self) -> bool {
        self.seed % 8 == 1
    }

    fn rng(self, what: u64) -> Rng {
        Rng::new(self.seed.rotate_left(16) ^ what)
    }

    /// What a new machine has beside its zone.
    pub(crate) fn outfit(self, at: usize, info: &mut HostInfo) {
        if !self.are_there() {
            return;
        }
        let mut rng = self.rng((at as u64) << 8);
        if !rng.one_in(4) {
            let disk = (*rng.pick(&DISKS)).to_owned();
            info.labels.insert("disk".to_owned(), disk);
        }
        if rng.one_in(4) {
            let taint = *rng.pick(&["edge", "pool=a"]);
            info.taints.push(taint.to_owned());
        }
    }

    /// Gives the n-th spec its rules. What has one on every host has none that counts replicas.
    pub(crate) fn bind(self, nth: u64, spec: &mut WorkloadSpec) {
        if !self.are_there() {
            return;
        }
        let mut rng = self.rng(nth << 8 | 1);
        for one_in in [2, 5] {
            if rng.one_in(one_in) {
                let (label, test) = label_test(&mut rng);
                spec.constraints.push(Constraint::Label { label, test });
            }
        }
        if rng.one_in(4) && !spec.per_host() {
            spec.constraints.push(Constraint::Distinct {
                distinct: (*rng.pick(&["host", "zone", "disk"])).to_owned(),
                max: rng.between(1, 2) as u32,
            });
        }
        for taint in ["edge", "pool"] {
            if rng.one_in(2) {
                spec.tolerate.push(taint.to_owned());
            }
        }
        if rng.one_in(3) {
            let (label, test) = label_test(&mut rng);
            let weight = rng.between(1, 200) as i32 - 100;
            let affinity = Affinity {
                label,
                weight,
                test,
            };
            spec.affinity.push(affinity);
        }
        let spreads: [&[&str]; 4] = [&[], &["host"], &["zone", "host"], &["disk"]];
        let spread = rng.pick(&spreads).iter();
        spec.spread = spread.map(|label| (*label).to_owned()).collect();
        if rng.one_in(3) {
            spec.resources.reserve.memory = ByteSize::mib(rng.between(1, 6) << 10);
            spec.resources.reserve.cpu = Cpu(rng.between(0, 3) * 1_000);
        }
    }
}

/// One of the six operators, on one of the labels.
fn label_test(rng: &mut Rng) -> (String, LabelTest) {
    let (label, values): (_, &[&str]) = match rng.one_in(2) {
        true => ("zone", &ZONES),
        false => ("disk", &DISKS),
    };
    let value = (*rng.pick(values)).to_owned();
    let other = (*rng.pick(values)).to_owned();
    let test = match rng.below(6) {
        0 => LabelTest::Eq(value),
        1 => LabelTest::Ne(value),
        2 => LabelTest::In(vec![value, other]),
        3 => LabelTest::NotIn(vec![value]),
        4 => LabelTest::Matches(format!("{}*", &value[..1])),
        _ => LabelTest::Exists(!rng.one_in(4)),
    };
    (label.to_owned(), test)
}

fn value<'a>(info: &'a HostInfo, label: &str) -> Option<&'a str> {
    match label {
        "host" => Some(info.name.as_str()),
        _ => info.labels.get(label).map(String::as_str),
    }
}

fn meets(test: &LabelTest, value: Option<&str>) -> bool {
    let any = |set: &[String]| set.iter().any(|one| Some(one.as_str()) == value);
    match test {
        LabelTest::Eq(one) => any(std::slice::from_ref(one)),
        LabelTest::Ne(one) => !any(std::slice::from_ref(one)),
        LabelTest::In(set) => any(set),
        LabelTest::NotIn(set) => !any(set),
        // All of these end with their only star.
        LabelTest::Matches(pattern) => {
            let begin = pattern.trim_end_matches('*');
            value.is_some_and(|value| value.starts_with(begin))
        }
        LabelTest::Exists(there) => *there == value.is_some(),
    }
}

/// A taint that the spec does not tolerate.
pub(crate) fn taint<'a>(info: &'a HostInfo, spec: &WorkloadSpec) -> Option<&'a String> {
    let tolerated = |taint: &String| {
        let key = taint.split_once('=').map(|(key, _)| key);
        let mut all = spec.tolerate.iter();
        all.any(|one| one == taint || Some(one.as_str()) == key)
    };
    info.taints.iter().find(|taint| !tolerated(taint))
}

/// Whether a host has the labels that the spec asks for.
pub(crate) fn has_labels(info: &HostInfo, spec: &WorkloadSpec) -> bool {
    spec.constraints.iter().all(|one| match one {
        Constraint::Label { label, test } => meets(test, value(info, label)),
        Constraint::Distinct { distinct, .. } => value(info, distinct).is_some(),
    })
}

/// What a host has left in a dimension, and what one more replica takes of it.
pub(crate) struct Room {
    pub(crate) dimension: &'static str,
    left: u64,
    takes: u64,
}

impl Room {
    pub(crate) const fn lacks(&self) -> bool {
        self.left < self.takes
    }
}

impl World {
    /// The slots that a workload has, by the sets as stored.
    pub(crate) fn slots_placed(&self, key: &WorkloadKey) -> BTreeSet<Slot> {
        let sets = self.laws.sets().values();
        let groups = sets.flat_map(|set| &set.groups);
        let groups = groups.filter(|group| group.key() == *key);
        groups
            .flat_map(|group| group.slots.iter().map(|one| one.slot))
            .collect()
    }

    /// A host that has a place for one more of a workload, as far as is certain.
    pub(crate) fn who_could_take(&self, key: &WorkloadKey) -> Option<usize> {
        let spec = self.laws.spec(key)?;
        // Where its data are, or where another may still run, is a matter of its own.
        if spec.runs_once() || !spec.bindings.volume.is_empty() {
            return None;
        }
        let leading = self.controllers.iter().find_map(|one| one.leads())?;
        (0..self.hosts.len()).find(|at| {
            let host = &self.hosts[*at];
            let known = leading.cluster.hosts().get(&host.id);
            known.is_some_and(|known| known.state == HostState::Alive)
                && host.up.is_some()
                && self.takes_new(&host.id)
                && self.suits(&host.id, spec)
                && !self.room(&host.id, spec).iter().any(Room::lacks)
                && !self.listens_there(&host.id, spec)
                && self.crowd(&host.info, key, spec).is_none()
        })
    }

    /// Whether a host has no room for one more of a workload, by its set or by what it runs.
    pub(crate) fn is_full(&self, at: usize, key: &WorkloadKey) -> bool {
        let host = &self.hosts[at];
        let runs = host.up.as_ref().map_or(0, |up| up.runner.len() as u64);
        let spec = self.laws.spec(key);
        let lacks = |spec| self.room(&host.id, spec).iter().any(Room::lacks);
        runs >= self.weather.room || spec.is_some_and(lacks)
    }

    /// A label of whose value the workload has as many as it may.
    pub(crate) fn crowd(
        &self,
        info: &HostInfo,
        key: &WorkloadKey,
        spec: &WorkloadSpec,
    ) -> Option<String> {
        spec.constraints.iter().find_map(|one| {
            let Constraint::Distinct { distinct, max } = one else {
                return None;
            };
            let mine = value(info, distinct);
            let there = self.laws.sets().iter().filter(|(id, _)| {
                let mut hosts = self.hosts.iter().filter(|host| host.id == **id);
                hosts.any(|host| value(&host.info, distinct) == mine)
            });
            let groups = there.flat_map(|(_, set)| &set.groups);
            let groups = groups.filter(|group| group.key() == *key);
            let count: usize = groups.map(|group| group.slots.len()).sum();
            (count >= *max as usize).then(|| distinct.clone())
        })
    }

    /// Whether something of the host's set listens where the spec would.
    pub(crate) fn listens_there(&self, host: &HostId, spec: &WorkloadSpec) -> bool {
        let groups = self.laws.sets().get(host).into_iter();
        let groups = groups.flat_map(|set| &set.groups);
        let mut specs = groups.filter_map(|group| self.laws.spec_of(&group.key(), group.revision));
        specs.any(|other| {
            let mut ports = claims::ports(other).iter();
            ports.any(|port| claims::ports(spec).contains(port))
        })
    }

    /// What is left on a host by its set as stored.
    pub(crate) fn room(&self, host: &HostId, spec: &WorkloadSpec) -> [Room; 3] {
        let mut hosts = self.hosts.iter().filter(|one| one.id == *host);
        let has = hosts.next().map(|one| one.info.capacity);
        let has = has.unwrap_or_default();
        let mut left = [has.memory_bytes, has.cpu_millis, has.replicas];
        let groups = self.laws.sets().get(host).into_iter();
        for group in groups.flat_map(|set| &set.groups) {
            let spec = self.laws.spec_of(&group.key(), group.revision);
            let books = spec.map_or([0, 0, 1], books);
            for (left, books) in left.iter_mut().zip(books) {
                *left = left.saturating_sub(books * group.slots.len() as u64);
            }
        }
        let takes = books(spec);
        let room = |dimension, at: usize| Room {
            dimension,
            left: left[at],
            takes: takes[at],
        };
        [room("memory", 0), room("cpu", 1), room("replicas", 2)]
    }
}

fn books(spec: &WorkloadSpec) -> [u64; 3] {
    let reserve = &spec.resources.reserve;
    [reserve.memory.0, reserve.cpu.0, 1]
}
