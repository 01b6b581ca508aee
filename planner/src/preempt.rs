//! Pre-emption: what goes first takes the room of what goes later.
//!
//! Owns the choice of the victims. Asked only when a slot fits nowhere.
//!
//! Rule: a host that passes every filter but has no room can be made room on by ending replicas of
//! workloads of a *lower* priority; an equal or higher one is never touched, and no workload falls
//! below its `min_available` ready slots by it. Of all such hosts the one with the fewest victims is
//! taken, then the one whose victims' highest priority is lowest, then the one with the better
//! score, then by name. On a host one victim that is enough is taken if there is one (the lowest
//! priority, then the newest); else those that free most of what is lacking, and of these none that
//! is not needed.
//!
//! Both sides are told why. A victim is placed elsewhere in the same plan where there is room, and
//! waits otherwise; that is no failure of it.
//!
//! Known limits: the [`HOSTS_LOOKED`] best hosts are looked into for one slot, and
//! [`SLOTS_EACH`] slots of a workload are helped in one pass; the next pass goes on.

use std::collections::{BTreeMap, BTreeSet};

use wasmorch_api::{EventKind, HostId, PlacementNumber, Slot, WorkloadKey};

use crate::booked::Booked;
use crate::cluster::Workload;
use crate::place::{self, Standpoint};
use crate::plan::{Stop, StopReason};
use crate::planted::{self, Bug};
use crate::pool::Rank;
use crate::ports;
use crate::queries;
use crate::slots::Pass;
use crate::write::EventDraft;

const HOSTS_LOOKED: usize = 256;
const SLOTS_EACH: u32 = 64;

/// What pre-emption has done in one plan.
#[derive(Debug, Clone, Default)]
pub(crate) struct Preempted {
    /// Placements that have been ended, until their workload's turn comes.
    ended: BTreeMap<WorkloadKey, BTreeSet<PlacementNumber>>,
    /// Ready slots that a workload has left.
    ready: BTreeMap<WorkloadKey, u32>,
}

impl Preempted {
    /// What has been ended of a workload.
    pub(crate) fn of(&self, key: &WorkloadKey) -> Option<&BTreeSet<PlacementNumber>> {
        self.ended.get(key)
    }

    /// The workloads that have lost something.
    pub(crate) fn workloads(&self) -> impl Iterator<Item = &WorkloadKey> {
        self.ended.keys()
    }
}

/// A replica that could make room.
#[derive(Debug, Clone)]
struct Victim {
    key: WorkloadKey,
    slot: Slot,
    number: PlacementNumber,
    booked: Booked,
    /// What a quota of its namespace no longer counts: nothing, while another holds its slot.
    counts: Booked,
    priority: u32,
    ready: bool,
}

impl Workload {
    /// What it goes by where room is scarce.
    pub(crate) fn priority(&self) -> u32 {
        self.target().map_or(0, |target| target.spec.priority)
    }
}

impl Pass<'_> {
    /// Makes room for one more replica and books it; the host.
    pub(crate) fn preempt(
        &mut self,
        slot: Slot,
        wants: Booked,
        failed: &BTreeSet<Rank>,
    ) -> Option<Rank> {
        if !self.helps_itself() {
            return None;
        }
        self.end_fill();
        let Some((rank, victims)) = self.room_to_take(slot, wants, failed) else {
            if self.seating.is_none() {
                // The next slot would look at the same hosts in vain.
                self.helped = SLOTS_EACH;
            }
            return None;
        };
        self.helped += 1;
        self.end_victims(slot, rank, victims);
        self.pool.take(rank);
        self.pool.book(rank, wants);
        self.pool.put(rank);
        let ports = ports::of(&self.target.spec);
        self.pool.claim(rank, ports, self.key);
        Some(rank)
    }

    /// Whether room could be made for one more replica. It takes nobody's yet, so no more are told so
    /// in one pass than one pass helps.
    pub(crate) fn could_preempt(&mut self, slot: Slot, wants: Booked) -> bool {
        if !self.helps_itself() || self.promised >= SLOTS_EACH {
            return false;
        }
        self.end_fill();
        let could = self.room_to_take(slot, wants, &BTreeSet::new()).is_some();
        if could {
            self.promised += 1;
        } else if self.seating.is_none() {
            self.promised = SLOTS_EACH;
        }
        could
    }

    /// Whether there is anything of a lower priority, and this pass may go on.
    fn helps_itself(&self) -> bool {
        if self.record.on_trial() == Some(self.record.revision) {
            // A canary is one more than there must be: nobody ends for it.
            return false;
        }
        if self.record.rests(&self.target.spec) {
            // Nor for one that only waits to be asked.
            return false;
        }
        let mine = self.target.spec.priority;
        let lower = { &self.cluster.priorities }.range(..mine).next().is_some();
        (lower || planted::is(Bug::EqualPreempted)) && self.helped < SLOTS_EACH
    }

    /// The host on which the fewest have to make room, and who they are.
    /// As for any placement, where the slot failed only when there is nowhere else.
    fn room_to_take(
        &mut self,
        slot: Slot,
        wants: Booked,
        failed: &BTreeSet<Rank>,
    ) -> Option<(Rank, Vec<Victim>)> {
        let hosts = self.hosts_to_preempt(slot).into_iter();
        let (last, first) = hosts.partition(|(_, rank)| failed.contains(rank));
        self.fewest_victims(first, wants)
            .or_else(|| self.fewest_victims(last, wants))
    }

    fn fewest_victims(
        &mut self,
        hosts: Vec<(HostId, Rank)>,
        wants: Booked,
    ) -> Option<(Rank, Vec<Victim>)> {
        let mut best: Option<(usize, u32, Rank, Vec<Victim>)> = None;
        for (id, rank) in hosts.into_iter().take(HOSTS_LOOKED) {
            let Some(victims) = self.victims(&id, rank, wants) else {
                continue;
            };
            let highest = victims.iter().map(|victim| victim.priority).max();
            let worth = (victims.len(), highest.unwrap_or(0));
            if best.as_ref().is_none_or(|best| worth < (best.0, best.1)) {
                best = Some((worth.0, worth.1, rank, victims));
            }
        }
        best.map(|(_, _, rank, victims)| (rank, victims))
    }

    /// Hosts that only lack room, the best first; with one on every host, the slot's own.
    fn hosts_to_preempt(&self, slot: Slot) -> Vec<(HostId, Rank)> {
        if let Some(seating) = &self.seating {
            let own = seating.open(slot);
            let own = own.and_then(|id| Some((id.clone(), self.pool.rank(id)?)));
            return own.into_iter().collect();
        }
        let (ground, goes) = (self.ground(), self.goes(slot));
        let on = Standpoint {
            cluster: self.cluster,
            key: self.key,
            spec: &self.target.spec,
            features: &self.target.features,
            used: &|_, _| Booked::default(),
            count: &|id, host| match self.pool.rank(id) {
                Some(rank) => ground.count(self.pool, rank),
                None => host.count_of(self.key),
            },
            ports: ports::View {
                claims: Some(&self.pool.ports),
                without: None,
            },
            homes: None,
            goes: goes.as_ref(),
        };
        let fits = place::rank(&on, &[]).fits.into_iter();
        fits.filter_map(|one| Some((one.host.clone(), self.pool.rank(&one.host)?)))
            .collect()
    }

    /// The victims that make room on a host; `None`: there are not enough.
    fn victims(&mut self, id: &HostId, rank: Rank, wants: Booked) -> Option<Vec<Victim>> {
        let (used, has) = self.pool.booked(rank);
        let fits = |without: &[&Victim]| {
            let used = { without.iter() }.fold(used, |used, one| used.minus(one.booked));
            used.fits(wants, has)
        };
        let all = self.lower_on(id);
        let single = { all.iter() }
            .filter(|one| fits(&[one]))
            .min_by_key(|one| (one.priority, std::cmp::Reverse(one.number)));
        if let Some(single) = single {
            return Some(vec![single.clone()]);
        }
        let lacks = used.lacks(wants, has);
        let mut left: Vec<&Victim> = all.iter().collect();
        // What frees most of what is lacking first.
        left.sort_by_cached_key(|one| {
            let freed = one.booked.share_of(lacks);
            (
                freed,
                std::cmp::Reverse((one.priority, one.key.clone())),
                one.number,
            )
        });
        let mut chosen: Vec<&Victim> = Vec::new();
        while !fits(&chosen) {
            let next = left.pop().filter(|one| one.booked.share_of(lacks) > 0)?;
            if self.may_lose(next, &chosen) {
                chosen.push(next);
            }
        }
        // None that is not needed, the highest priority first.
        chosen.sort_by_key(|one| (std::cmp::Reverse(one.priority), one.number));
        let mut at = 0;
        while at < chosen.len() {
            let one = chosen.remove(at);
            if !fits(&chosen) {
                chosen.insert(at, one);
                at += 1;
            }
        }
        Some(chosen.into_iter().cloned().collect())
    }

    /// Replicas of a lower priority on a host, as far as their workloads can spare one.
    fn lower_on(&mut self, id: &HostId) -> Vec<Victim> {
        let mine = self.target.spec.priority;
        let cluster = self.cluster;
        let set = cluster.hosts.get(id).and_then(|host| host.set.as_ref());
        let mut lower = Vec::new();
        for group in set.iter().flat_map(|set| &set.groups) {
            let key = group.key();
            let Some(workload) = self.cluster.workloads.get(&key) else {
                continue;
            };
            let priority = workload.priority();
            let equal = planted::is(Bug::EqualPreempted) && priority == mine && key != *self.key;
            let Some(revision) = workload.revisions.get(&group.revision) else {
                continue;
            };
            if priority >= mine && !equal {
                continue;
            }
            let gone = self.pool.preempted.of(&key).cloned();
            for slot in &group.slots {
                if gone
                    .as_ref()
                    .is_some_and(|gone| gone.contains(&slot.placement))
                {
                    continue;
                }
                let booked = Booked::of(&key, &revision.spec, slot.args.as_deref());
                let alone = workload.numbers_of(slot.slot).nth(1).is_none();
                let victim = Victim {
                    slot: slot.slot,
                    number: slot.placement,
                    booked,
                    counts: if alone { booked } else { Booked::default() },
                    priority,
                    ready: workload.is_ready(slot.placement),
                    key: key.clone(),
                };
                if self.may_lose(&victim, &[]) {
                    lower.push(victim);
                }
            }
        }
        lower
    }

    /// Whether a workload keeps its `min_available` without this one and those that are chosen.
    fn may_lose(&mut self, victim: &Victim, chosen: &[&Victim]) -> bool {
        let workload = self.cluster.workloads.get(&victim.key);
        let Some((workload, target)) = workload.and_then(|one| Some((one, one.target()?))) else {
            return false;
        };
        let keeps = target.spec.min_available;
        if keeps == 0 || !victim.ready || planted::is(Bug::MinAvailableIgnored) {
            return true;
        }
        let ready = self.pool.preempted.ready.entry(victim.key.clone());
        let ready = *ready.or_insert_with(|| queries::ready(self.cluster, workload));
        let lost = chosen
            .iter()
            .filter(|one| one.ready && one.key == victim.key);
        u64::from(ready) > u64::from(keeps) + lost.count() as u64
    }

    fn end_victims(&mut self, slot: Slot, rank: Rank, victims: Vec<Victim>) {
        let (host, name) = (
            self.pool.room(rank).id.clone(),
            self.pool.room(rank).name.clone(),
        );
        for victim in victims {
            let Some(workload) = self.cluster.workloads.get(&victim.key) else {
                continue;
            };
            let ready = self.pool.preempted.ready.entry(victim.key.clone());
            let ready = ready.or_insert_with(|| queries::ready(self.cluster, workload));
            *ready = ready.saturating_sub(u32::from(victim.ready));
            let ended = self.pool.preempted.ended.entry(victim.key.clone());
            ended.or_default().insert(victim.number);
            self.pool.free(&host, victim.booked);
            if let Some(held) = self.pool.held.get_mut(&victim.key.namespace) {
                *held = held.minus(victim.counts);
            }
            self.displaced
                .push(format!("{} (priority {})", victim.key, victim.priority));
            let reason = format!(
                "made room on {name} for slot {slot} of {} (priority {}; its own is {})",
                self.key, self.target.spec.priority, victim.priority
            );
            let report = workload.reports.get(&victim.number);
            let mut event = EventDraft::of(&victim.key, EventKind::ReplicaPreempted, reason);
            event.replica = report.map(|known| known.status.replica);
            self.plan.events.push(event.host(&host));
            self.plan.stop.push(Stop {
                key: victim.key,
                slot: victim.slot,
                placement: victim.number,
                host: host.clone(),
                why: StopReason::Preempted,
            });
        }
    }
}
