//! Which replicas would do better on another host, for `rebalance`.
//!
//! Owns the choice. Carrying it out, start-first, is `moves`'; how hosts score is `place`'s.
//!
//! Rule: a replica that serves moves when another host's score without the free room is higher than
//! its own host's, both as they would be without it (spread and affinity); or when these are equal and the
//! other host is emptier by more than a tenth of what the replica's host carries. Each move is made on a
//! board on which those before are done already, so that together they help too, and none undoes
//! another. Spread goes before load, the workload or host that is worst off first; ties break by name.
//!
//! Known limits: a bound on hosts looked at, so that a question never holds up the leader: in a cluster
//! of thousands of hosts only the first workloads by name are looked at for spread. Only start-first workloads without a rollout under way are looked at.
//! Packed ones (`spread = []`) are left as they are.

use std::collections::{BTreeMap, BTreeSet};

use wasmorch_api::spec::UpdateOrder;
use wasmorch_api::{HostId, Name, PlacementNumber, Slot, WorkloadKey, WorkloadSpec};

use crate::booked::Booked;
use crate::cluster::{Cluster, Host, Placed, Workload};
use crate::place::{self, HOST, Scored, Standpoint};
use crate::ports;

/// Hosts looked at in one question: some 0.3 s of the leader's time.
const LOOKS_MAX: usize = 300_000;
/// Counting what is on a host costs less than scoring it.
const COUNTS_A_LOOK: usize = 16;
/// Of one host, so many replicas are tried when it is full beside others.
const TRIES: usize = 16;

/// A replica that would do better elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Better {
    pub(crate) key: WorkloadKey,
    pub(crate) slot: Slot,
    pub(crate) placement: PlacementNumber,
    pub(crate) from: Name,
    pub(crate) to: (HostId, Name),
    pub(crate) why: String,
}

/// At most so many moves, each better than staying with those before it made.
pub(crate) fn better(cluster: &Cluster, most: usize) -> Vec<Better> {
    let mut board = Board {
        cluster,
        used: cluster.hosts.iter().map(|(id, h)| (id, h.booked)).collect(),
        counts: BTreeMap::new(),
        moved: BTreeSet::new(),
        looks: LOOKS_MAX,
        most,
        found: Vec::new(),
    };
    board.spread();
    board.even_out();
    board.found
}

/// The cluster with the moves found so far made.
struct Board<'a> {
    cluster: &'a Cluster,
    used: BTreeMap<&'a HostId, Booked>,
    /// Replicas that moves add to a host, or take from it.
    counts: BTreeMap<(&'a HostId, &'a WorkloadKey), i64>,
    moved: BTreeSet<(&'a WorkloadKey, Slot)>,
    looks: usize,
    most: usize,
    found: Vec<Better>,
}

/// One replica on the board.
#[derive(Clone, Copy)]
struct Piece<'a> {
    key: &'a WorkloadKey,
    spec: &'a WorkloadSpec,
    number: PlacementNumber,
    placed: &'a Placed,
}

impl<'a> Board<'a> {
    fn over(&self) -> bool {
        self.found.len() >= self.most || self.looks < self.cluster.hosts.len()
    }

    /// Workloads that stand closer together than they have to.
    fn spread(&mut self) {
        let cluster = self.cluster;
        for (key, workload) in &cluster.workloads {
            let Some(spec) = movable(workload).filter(|_| workload.placements.len() > 1) else {
                continue;
            };
            while !self.over() {
                self.looks = self
                    .looks
                    .saturating_sub(cluster.hosts.len() / COUNTS_A_LOOK);
                let crowded = self.most_crowded(key, workload, spec);
                if !crowded.is_some_and(|piece| self.consider(piece)) {
                    break;
                }
            }
        }
    }

    /// The replica with the most company, when a value of one of its labels has two fewer.
    fn most_crowded(
        &self,
        key: &'a WorkloadKey,
        workload: &'a Workload,
        spec: &'a WorkloadSpec,
    ) -> Option<Piece<'a>> {
        let mut under: BTreeMap<(&str, &str), i64> = BTreeMap::new();
        let labels: BTreeSet<&str> = spec.spread.iter().map(String::as_str).collect();
        let mut add = |host: &'a Host, many: i64| {
            for label in &labels {
                if let Some(value) = value_of(host, label) {
                    *under.entry((*label, value)).or_insert(0) += many;
                }
            }
        };
        let hosts = &self.cluster.hosts;
        for (id, host) in hosts {
            let many = self.count(key, id, host);
            if many > 0 || open(host) {
                add(host, i64::from(many));
            }
        }
        let least = |label: &str| {
            let same = under.iter().filter(|((one, _), _)| *one == label);
            same.map(|(_, many)| *many).min().unwrap_or(0)
        };
        let least: BTreeMap<&str, i64> = labels.iter().map(|one| (*one, least(one))).collect();
        let company = |piece: &Piece<'_>| -> i64 {
            let host = hosts.get(&piece.placed.host);
            let more = labels.iter().filter_map(|label| {
                let many = under.get(&(*label, value_of(host?, label)?))?;
                Some((many - least[label] - 1).max(0))
            });
            more.sum()
        };
        let pieces = self.pieces(key, workload, spec);
        let crowded = pieces.map(|piece| (company(&piece), piece));
        let crowded = crowded.filter(|(company, _)| *company > 0);
        crowded
            .max_by_key(|(company, piece)| (*company, std::cmp::Reverse(piece.number)))
            .map(|(_, piece)| piece)
    }

    /// Hosts that carry more than others.
    fn even_out(&mut self) {
        let mut full: BTreeSet<&HostId> = self.cluster.hosts.keys().collect();
        while !self.over() {
            let load = |id: &&HostId| {
                let host = &self.cluster.hosts[*id];
                let name = std::cmp::Reverse(&host.info().name);
                (self.used[*id].load(Booked::of_host(host)), name)
            };
            let Some(id) = full.iter().copied().max_by_key(load) else {
                return;
            };
            if !self.relieve(id) {
                full.remove(id);
            }
        }
    }

    /// Moves one replica off a host, if one of those tried does better elsewhere.
    fn relieve(&mut self, id: &'a HostId) -> bool {
        let cluster = self.cluster;
        let set = cluster.hosts.get(id).and_then(|host| host.set.as_ref());
        let groups = set.into_iter().flat_map(|set| &set.groups);
        let mut tried = 0;
        for group in groups {
            let entry = cluster.workloads.get_key_value(&group.key());
            let Some((key, workload)) = entry else {
                continue;
            };
            let Some(spec) = movable(workload) else {
                continue;
            };
            let here = self.pieces(key, workload, spec);
            let piece = { here }.find(|piece| piece.placed.host == *id);
            let Some(piece) = piece else { continue };
            tried += 1;
            if self.consider(piece) {
                return true;
            }
            if tried >= TRIES || self.over() {
                return false;
            }
        }
        false
    }

    /// The replicas of a workload that serve and have not moved.
    fn pieces(
        &self,
        key: &'a WorkloadKey,
        workload: &'a Workload,
        spec: &'a WorkloadSpec,
    ) -> impl Iterator<Item = Piece<'a>> {
        let pieces = workload.placements.iter().filter(|(number, placed)| {
            placed.slot.0 <= u64::from(workload.record.wanted())
                && placed.revision == workload.record.revision
                && workload.is_ready(**number)
                && workload.numbers_of(placed.slot).nth(1).is_none()
                && !self.moved.contains(&(key, placed.slot))
        });
        pieces.map(move |(number, placed)| Piece {
            key,
            spec,
            number: *number,
            placed,
        })
    }

    fn count(&self, key: &WorkloadKey, id: &HostId, host: &Host) -> u32 {
        let more = self.counts.get(&(id, key)).copied().unwrap_or(0);
        u32::try_from(i64::from(host.count_of(key)) + more).unwrap_or(0)
    }

    /// Moves the replica, if another host is better by the rule.
    fn consider(&mut self, piece: Piece<'a>) -> bool {
        self.looks = self.looks.saturating_sub(self.cluster.hosts.len());
        let (here, there) = self.scores(piece);
        let (Some(here), Some(there)) = (here, there) else {
            return false;
        };
        let Some(why) = self.improves(piece, &here, &there) else {
            return false;
        };
        let booked = Booked::of(piece.key, piece.spec, piece.placed.args.as_deref());
        let hosts = &self.cluster.hosts;
        let Some((to, _)) = hosts.get_key_value(&there.host) else {
            return false;
        };
        let from = &piece.placed.host;
        for (id, by) in [(from, -1), (to, 1)] {
            *self.counts.entry((id, piece.key)).or_default() += by;
            let used = self.used.entry(id).or_default();
            *used = match by {
                1 => used.plus(booked),
                _ => used.minus(booked),
            };
        }
        self.moved.insert((piece.key, piece.placed.slot));
        self.found.push(Better {
            key: piece.key.clone(),
            slot: piece.placed.slot,
            placement: piece.number,
            from: here.name,
            to: (there.host, there.name),
            why,
        });
        true
    }

    /// How the replica's own host and the best other one score without it.
    fn scores(&self, piece: Piece<'_>) -> (Option<Scored>, Option<Scored>) {
        let own = &piece.placed.host;
        let booked = Booked::of(piece.key, piece.spec, piece.placed.args.as_deref());
        let used = |id: &HostId, host: &Host| {
            let used = self.used.get(id).copied().unwrap_or(host.booked);
            if id == own { used.minus(booked) } else { used }
        };
        let count = |id: &HostId, host: &Host| {
            self.count(piece.key, id, host)
                .saturating_sub(u32::from(id == own))
        };
        let target = self.cluster.workload(piece.key).and_then(Workload::target);
        let on = Standpoint {
            cluster: self.cluster,
            key: piece.key,
            spec: piece.spec,
            features: target.map_or(&[], |target| &target.features),
            used: &used,
            count: &count,
            ports: ports::View {
                claims: None,
                without: Some((piece.key, piece.number)),
            },
            homes: None,
        };
        let mut fits = place::rank(&on, &[]).fits;
        let here = fits.iter().position(|one| one.host == *own);
        let here = here.map(|at| fits.remove(at));
        (here, fits.into_iter().next())
    }

    fn improves(&self, piece: Piece<'_>, here: &Scored, there: &Scored) -> Option<String> {
        let wish = |one: &Scored| {
            let part = |name| one.parts.get(name).copied().unwrap_or(0);
            part("spread") + part("affinity")
        };
        let (stay, go) = (wish(here), wish(there));
        let (from, to) = (&here.name, &there.name);
        if go > stay {
            let over = piece.spec.spread.join(" and ");
            return Some(format!(
                "spread over {over}, and affinity: {go} on {to}, {stay} on {from}"
            ));
        }
        let load = |id: &HostId| {
            let host = self.cluster.hosts.get(id);
            let used = self.used.get(id).copied().unwrap_or_default();
            host.map_or(0, |host| used.load(Booked::of_host(host)))
        };
        let (with, less) = (load(&here.host), load(&there.host));
        // Both without the replica: then there and back would each have to be better than the other.
        let (left, taken) = (here.load, there.load);
        let enough = i64::from(left) - i64::from(taken) > i64::from(with / 10);
        (go == stay && left > taken && enough).then(|| {
            let share = |load: u32| format!("{:.1} %", f64::from(load) / 10_000.0);
            format!("load: {from} is {} full, {to} {}", share(with), share(less))
        })
    }
}

fn open(host: &Host) -> bool {
    place::state(host).is_none()
}

fn value_of<'a>(host: &'a Host, label: &str) -> Option<&'a str> {
    if label == HOST {
        return Some(host.info().name.as_str());
    }
    host.info().labels.get(label).map(String::as_str)
}

/// The spec of a workload whose replicas may move: another serves before one ends.
fn movable(workload: &Workload) -> Option<&WorkloadSpec> {
    let target = workload.target()?;
    let update = &target.spec.update;
    let start_first = update.order == UpdateOrder::StartFirst && update.max_surge > 0;
    let still = workload.record.active_rollout().is_none() && workload.record.moves.is_empty();
    let stays = crate::homes::has_data(&target.spec) || target.spec.per_host();
    let moves =
        !target.kind.ends() && start_first && still && !stays && !target.spec.spread.is_empty();
    moves.then_some(&target.spec)
}
