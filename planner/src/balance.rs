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
//! A question looks at so many hosts and no more, so that it never holds up the leader. What it did not come
//! to is named by a [`Cursor`]: the next question goes on there. What is already told to move counts as moved.
//!
//! Known limits: on hosts that are no fuller than others, wishes (affinity) are looked at only as far as one
//! question goes. Only start-first workloads without a rollout under way are looked at.
//! Packed ones (`spread = []`) are left as they are.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Bound;

use wasmorch_api::spec::UpdateOrder;
use wasmorch_api::{HostId, Name, PlacementNumber, Slot, WorkloadKey, WorkloadSpec};

use crate::booked::Booked;
use crate::cluster::{Cluster, Host, Placed, Workload};
use crate::place::{self, HOST, Scored, Standpoint};
use crate::ports;

/// Hosts looked at in one question: some 0.3 s of the leader's time.
pub(crate) const LOOKS_MAX: usize = 300_000;
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

/// What a question has not come to: the next one begins there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Cursor {
    /// This workload and those after it, for spread; then all hosts, for load.
    Spread(WorkloadKey),
    /// The host with this load and this name, and those after it.
    Load(u32, Name),
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Spread(key) => write!(f, "spread/{key}"),
            Self::Load(load, name) => write!(f, "load/{load}/{name}"),
        }
    }
}

impl Cursor {
    /// Reads what an answer has given; `None`: no answer has.
    pub(crate) fn read(text: &str) -> Option<Self> {
        let (kind, rest) = text.split_once('/')?;
        let (first, name) = rest.split_once('/')?;
        let name = name.parse().ok()?;
        match kind {
            "spread" => Some(Self::Spread(WorkloadKey::new(first.parse().ok()?, name))),
            "load" => Some(Self::Load(first.parse().ok()?, name)),
            _ => None,
        }
    }
}

/// At most so many moves, each better than staying with those before it made; and where to go on when
/// not all has been looked at.
pub(crate) fn better(
    cluster: &Cluster,
    most: usize,
    from: Option<Cursor>,
    looks: usize,
) -> (Vec<Better>, Option<Cursor>) {
    let mut board = Board {
        cluster,
        used: cluster.hosts.iter().map(|(id, h)| (id, h.booked)).collect(),
        counts: BTreeMap::new(),
        moved: BTreeSet::new(),
        whole: looks,
        looks,
        most,
        found: Vec::new(),
    };
    board.set_up();
    let next = match from {
        Some(Cursor::Load(load, name)) => board.even_out(Some((load, name))),
        Some(Cursor::Spread(key)) => board.spread(Some(&key)),
        None => board.spread(None),
    };
    (board.found, next)
}

/// The cluster with the moves found so far made.
struct Board<'a> {
    cluster: &'a Cluster,
    used: BTreeMap<&'a HostId, Booked>,
    /// Replicas that moves add to a host, or take from it.
    counts: BTreeMap<(&'a HostId, &'a WorkloadKey), i64>,
    moved: BTreeSet<(&'a WorkloadKey, Slot)>,
    /// Hosts that may be looked at in this question, and those of them that are left.
    whole: usize,
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
    /// All the moves that were allowed are found.
    fn full(&self) -> bool {
        self.found.len() >= self.most
    }

    /// No further host is looked at.
    fn spent(&self) -> bool {
        self.looks < self.cluster.hosts.len()
    }

    /// What has been told to move, and has not moved yet.
    fn set_up(&mut self) {
        let cluster = self.cluster;
        for (key, workload) in &cluster.workloads {
            for one in &workload.record.moves {
                let placed = workload.placements.get(&one.placement);
                let revision = placed.and_then(|placed| workload.revisions.get(&placed.revision));
                let (Some(placed), Some(revision)) = (placed, revision) else {
                    continue;
                };
                self.moved.insert((key, placed.slot));
                let booked = Booked::of(key, &revision.spec, placed.args.as_deref());
                self.shift(key, &placed.host, booked, -1);
                // Its successor is booked there already.
                let to = cluster.hosts.get_key_value(&one.to);
                if let Some((to, _)) = to.filter(|_| one.successor.is_none()) {
                    self.shift(key, to, booked, 1);
                }
            }
        }
    }

    /// One replica more on a host, or one less.
    fn shift(&mut self, key: &'a WorkloadKey, id: &'a HostId, booked: Booked, by: i64) {
        *self.counts.entry((id, key)).or_default() += by;
        let used = self.used.entry(id).or_default();
        *used = match by {
            1 => used.plus(booked),
            _ => used.minus(booked),
        };
    }

    /// Workloads that stand closer together than they have to, then hosts that carry more than others.
    fn spread(&mut self, from: Option<&WorkloadKey>) -> Option<Cursor> {
        let cluster = self.cluster;
        let from = from.map_or(Bound::Unbounded, Bound::Included);
        let workloads = cluster.workloads.range((from, Bound::Unbounded));
        for (key, workload) in workloads {
            let Some(spec) = movable(workload).filter(|_| workload.placements.len() > 1) else {
                continue;
            };
            while !self.full() {
                if self.spent() {
                    return Some(Cursor::Spread(key.clone()));
                }
                self.looks = self
                    .looks
                    .saturating_sub(cluster.hosts.len() / COUNTS_A_LOOK);
                let crowded = self.most_crowded(key, workload, spec);
                if !crowded.is_some_and(|piece| self.consider(piece)) {
                    break;
                }
            }
        }
        self.even_out(None)
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
            .max_by_key(|(company, piece)| (*company, Reverse(piece.number)))
            .map(|(_, piece)| piece)
    }

    /// Hosts that carry more than others, the fullest first; from a load and a name on.
    fn even_out(&mut self, from: Option<(u32, Name)>) -> Option<Cursor> {
        let cluster = self.cluster;
        let name = |id: &HostId| Reverse(&cluster.hosts[id].info().name);
        let from = from.as_ref().map(|(load, name)| (*load, Reverse(name)));
        let at = |id: &HostId| (self.load(id), name(id));
        let all = cluster.hosts.keys();
        let mut full: BTreeSet<&HostId> = all
            .filter(|id| from.is_none_or(|from| at(id) <= from))
            .collect();
        while !self.full() {
            let fullest = full.iter().copied();
            let id = fullest.max_by_key(|id| (self.load(id), name(id)))?;
            if self.spent() {
                let cursor = Cursor::Load(self.load(id), name(id).0.clone());
                return self.carries_more(id).then_some(cursor);
            }
            let began = self.looks;
            // One that was left off in the middle is gone on with, unless no question comes further.
            if !self.relieve(id) && (!self.spent() || began == self.whole) {
                full.remove(id);
            }
        }
        None
    }

    fn load(&self, id: &HostId) -> u32 {
        let host = self.cluster.hosts.get(id);
        let used = self.used.get(id).copied().unwrap_or_default();
        host.map_or(0, |host| used.load(Booked::of_host(host)))
    }

    /// Whether a host carries more than some other by as much as a move for load takes.
    fn carries_more(&self, id: &HostId) -> bool {
        let hosts = self.cluster.hosts.iter().filter(|(_, host)| open(host));
        let least = hosts.map(|(id, _)| self.load(id)).min();
        let load = self.load(id);
        least.is_some_and(|least| load.saturating_sub(least) > load / 10)
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
            if tried >= TRIES || self.spent() {
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
        self.shift(piece.key, from, booked, -1);
        self.shift(piece.key, to, booked, 1);
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
            goes: None,
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
        let (with, less) = (self.load(&here.host), self.load(&there.host));
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
    let still = workload.record.active_rollout().is_none();
    let stays = crate::homes::has_data(&target.spec) || target.spec.per_host();
    let moves =
        !target.kind.ends() && start_first && still && !stays && !target.spec.spread.is_empty();
    moves.then_some(&target.spec)
}
