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
//! Which hosts could make room is known without a look at them: each host's lowest priority (`pool`), and what
//! each priority books there (`holdings`). What a host holds is read once in a plan for each priority.
//!
//! Known limits: for one slot [`HOSTS_LOOKED`] hosts are looked into, those with the lowest priorities first, and of
//! these the best; and [`SLOTS_EACH`] slots of a workload are helped in one pass; the next pass goes on.

mod ranked;
#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use wasmorch_api::{EventKind, PlacementNumber, Slot, WorkloadKey};

use crate::booked::Booked;
use crate::cluster::Workload;
use crate::plan::{Stop, StopReason};
use crate::planted::{self, Bug};
use crate::pool::Rank;
use crate::ports;
use crate::queries;
use crate::slots::Pass;
use crate::write::EventDraft;

use ranked::{Order, Ranked};

const HOSTS_LOOKED: usize = 256;
const SLOTS_EACH: u32 = 64;
/// So many replicas that were read are kept until the plan is made; then they are read anew.
const READ_KEPT: usize = 1 << 17;

/// What pre-emption has done in one plan.
#[derive(Debug, Clone, Default)]
pub(crate) struct Preempted {
    /// Placements that have been ended, until their workload's turn comes.
    ended: BTreeMap<WorkloadKey, BTreeSet<PlacementNumber>>,
    /// Ready slots that a workload has left.
    ready: BTreeMap<WorkloadKey, u32>,
    /// What is lower than a priority on hosts that were looked into, the lowest first, the newest first.
    looked: HashMap<(u32, Rank), Vec<Victim>>,
    /// How many these are.
    read: usize,
}

impl Preempted {
    /// What has been ended of a workload.
    pub(crate) fn of(&self, key: &WorkloadKey) -> Option<&BTreeSet<PlacementNumber>> {
        self.ended.get(key)
    }

    fn recall(&mut self, key: (u32, Rank)) -> Option<Vec<Victim>> {
        let lower = self.looked.remove(&key)?;
        self.read -= lower.len();
        Some(lower)
    }

    fn remember(&mut self, key: (u32, Rank), lower: Vec<Victim>) {
        self.read += lower.len();
        if self.read > READ_KEPT {
            self.looked.clear();
            self.read = lower.len();
        }
        self.looked.insert(key, lower);
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
    /// Nothing else holds its slot.
    alone: bool,
    priority: u32,
    /// So many ready slots its workload must keep.
    keeps: u32,
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

    /// Whether a usable host holds anything of a lower priority, and this pass may go on.
    fn helps_itself(&self) -> bool {
        if self.record.on_trial() == Some(self.record.revision) {
            // A canary is one more than there must be: nobody ends for it.
            return false;
        }
        if self.record.rests(&self.target.spec) {
            // Nor for one that only waits to be asked.
            return false;
        }
        let lower = self.pool.lowest_from(0);
        lower.is_some_and(|lowest| lowest < self.below()) && self.helped < SLOTS_EACH
    }

    /// The host on which the fewest have to make room, and who they are.
    /// As for any placement, where the slot failed only when there is nowhere else.
    fn room_to_take(
        &mut self,
        slot: Slot,
        wants: Booked,
        failed: &BTreeSet<Rank>,
    ) -> Option<(Rank, Vec<Victim>)> {
        if let Some(seating) = &self.seating {
            let rank = self.pool.rank(seating.open(slot)?)?;
            return Some((rank, self.victims(rank, wants)?));
        }
        let mut found = self.fewest_victims(slot, wants, |rank| !failed.contains(&rank));
        if found.is_none() && !failed.is_empty() {
            found = self.fewest_victims(slot, wants, |rank| failed.contains(&rank));
        }
        #[cfg(test)]
        tests::compare(self, (slot, wants, failed), found.as_ref());
        found
    }

    /// Hosts go by the lowest priority that they hold, then by score: no host can do with fewer than one
    /// victim, nor with lower ones than it has, and so most need not be looked at.
    fn fewest_victims(
        &mut self,
        slot: Slot,
        wants: Booked,
        among: impl Fn(Rank) -> bool,
    ) -> Option<(Rank, Vec<Victim>)> {
        let target = self.target.clone();
        let goes = self.goes(slot);
        let mut ranked = Ranked::new(
            self.cluster,
            &self.ground(),
            self.pool,
            &target,
            goes.as_ref(),
        );
        let mut best: Option<((usize, u32, Order), Vec<Victim>)> = None;
        let (mut from, mut looks) = (0, HOSTS_LOOKED);
        while let Some(lowest) = self.pool.lowest_from(from)
            && lowest < self.below()
            && best
                .as_ref()
                .is_none_or(|(best, _)| best.1 >= lowest || best.0 > 1)
        {
            from = lowest + 1;
            let mut hosts = ranked.hosts(&self.ground(), self.pool, lowest, &among);
            while looks > 0
                && let Some(Reverse(order)) = hosts.pop()
            {
                if { best.as_ref() }.is_some_and(|(best, _)| *best < (1, lowest, order)) {
                    break;
                }
                let rank = order.2;
                if !self.may_suffice(rank, wants) {
                    continue;
                }
                looks -= 1;
                let Some(victims) = self.victims(rank, wants) else {
                    continue;
                };
                let highest = victims.iter().map(|victim| victim.priority).max();
                let worth = (victims.len(), highest.unwrap_or(0), order);
                if best.as_ref().is_none_or(|(best, _)| worth < *best) {
                    best = Some((worth, victims));
                }
            }
        }
        best.map(|((_, _, order), victims)| (order.2, victims))
    }

    /// What has a lower priority than this may have to make room.
    fn below(&self) -> u32 {
        let mine = self.target.spec.priority;
        mine.saturating_add(u32::from(planted::is(Bug::EqualPreempted)))
    }

    /// Whether there would be room on a host without all that is lower.
    fn may_suffice(&self, rank: Rank, wants: Booked) -> bool {
        let (used, has) = self.pool.booked(rank);
        let host = self.cluster.hosts.get(&self.pool.room(rank).id);
        let lower = host.map_or_else(Booked::default, |host| host.booked_below(self.below()));
        used.minus(lower).fits(wants, has)
    }

    /// The victims that make room on a host; `None`: there are not enough.
    fn victims(&mut self, rank: Rank, wants: Booked) -> Option<Vec<Victim>> {
        let all = self.lower_on(rank);
        let chosen = self.choose(&all, rank, wants);
        let key = (self.below(), rank);
        self.pool.preempted.remember(key, all);
        chosen
    }

    fn choose(&mut self, all: &[Victim], rank: Rank, wants: Booked) -> Option<Vec<Victim>> {
        let (used, has) = self.pool.booked(rank);
        let fits = |without: &[&Victim]| {
            let used = { without.iter() }.fold(used, |used, one| used.minus(one.booked));
            used.fits(wants, has)
        };
        // The lowest priority comes first, and of that the newest.
        if let Some(single) = all.iter().find(|one| fits(&[one])) {
            return Some(vec![single.clone()]);
        }
        let lacks = used.lacks(wants, has);
        let mut left: Vec<&Victim> = all.iter().collect();
        // What frees most of what is lacking first.
        left.sort_by_cached_key(|one| {
            let freed = one.booked.share_of(lacks);
            (freed, Reverse((one.priority, one.key.clone())), one.number)
        });
        let mut chosen: Vec<&Victim> = Vec::new();
        while !fits(&chosen) {
            let next = left.pop().filter(|one| one.booked.share_of(lacks) > 0)?;
            if self.may_lose(next, &chosen) {
                chosen.push(next);
            }
        }
        // None that is not needed, the highest priority first.
        chosen.sort_by_key(|one| (Reverse(one.priority), one.number));
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
    fn lower_on(&mut self, rank: Rank) -> Vec<Victim> {
        let looked = self.pool.preempted.recall((self.below(), rank));
        let mut all = looked.unwrap_or_else(|| self.read_lower(rank));
        // Within one plan what is ended stays so, and nobody can spare more than before.
        all.retain(|victim| {
            let gone = self.pool.preempted.of(&victim.key);
            !gone.is_some_and(|gone| gone.contains(&victim.number)) && self.may_lose(victim, &[])
        });
        all
    }

    fn read_lower(&self, rank: Rank) -> Vec<Victim> {
        let host = self.cluster.hosts.get(&self.pool.room(rank).id);
        let set = host.and_then(|host| host.set.as_ref());
        let mut lower = Vec::new();
        for group in set.iter().flat_map(|set| &set.groups) {
            let key = group.key();
            let Some(workload) = self.cluster.workloads.get(&key) else {
                continue;
            };
            let revision = workload.revisions.get(&group.revision);
            let (Some(target), Some(revision)) = (workload.target(), revision) else {
                continue;
            };
            if target.spec.priority >= self.below() || key == *self.key {
                continue;
            }
            lower.extend(group.slots.iter().map(|slot| Victim {
                slot: slot.slot,
                number: slot.placement,
                booked: Booked::of(&key, &revision.spec, slot.args.as_deref()),
                alone: workload.numbers_of(slot.slot).nth(1).is_none(),
                priority: target.spec.priority,
                keeps: target.spec.min_available,
                ready: workload.is_ready(slot.placement),
                key: key.clone(),
            }));
        }
        lower.sort_by_key(|one| (one.priority, Reverse(one.number)));
        lower
    }

    /// Whether a workload keeps its `min_available` without this one and those that are chosen.
    fn may_lose(&mut self, victim: &Victim, chosen: &[&Victim]) -> bool {
        if victim.keeps == 0 || !victim.ready || planted::is(Bug::MinAvailableIgnored) {
            return true;
        }
        let ready = self.ready_left(&victim.key);
        let lost = chosen
            .iter()
            .filter(|one| one.ready && one.key == victim.key);
        u64::from(*ready) > u64::from(victim.keeps) + lost.count() as u64
    }

    /// How many ready slots a workload has left.
    fn ready_left(&mut self, key: &WorkloadKey) -> &mut u32 {
        let workload = self.cluster.workloads.get(key);
        let ready = || workload.map_or(0, |one| queries::ready(self.cluster, one));
        let known = self.pool.preempted.ready.entry(key.clone());
        known.or_insert_with(ready)
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
            let ready = self.ready_left(&victim.key);
            *ready = ready.saturating_sub(u32::from(victim.ready));
            let ended = self.pool.preempted.ended.entry(victim.key.clone());
            ended.or_default().insert(victim.number);
            self.pool.free(&host, victim.booked);
            if let Some(held) = self.pool.held.get_mut(&victim.key.namespace) {
                // While another holds its slot, its quota counts on.
                let counted = if victim.alone {
                    victim.booked
                } else {
                    Booked::default()
                };
                *held = held.minus(counted);
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
