//! Replicas on silent hosts: when one counts as lost, what stays when its host comes back, and what
//! must never run twice.
//!
//! Owns `disconnect`. Whether a host is silent is `observe`'s and `silence`'s.
//!
//! Rule: a replica on a dead host is *away* until its host has been dead for `lost_after`, and for ever
//! with `replace = false`: it keeps its slot. Then it is *gone* and its slot is filled again. With a
//! `lost_after`, and but for `keep_replacement`, the original stays in its host's set beside the
//! replacement; when the host has come back, `reconcile` says which of both stays once it serves, and
//! after `progress_deadline` the one that does. Without a `lost_after` nothing waits for the
//! host, and the replacement stays.
//!
//! What must not run twice (`runs_once`) is never beside another: its slot is filled in a plan of its
//! own, and only when no host can still run it: every host has told this leader, with all reports
//! heard, that it has its set (one of which nothing is stored, that it holds none); nothing reported is still
//! ending; and what was taken out of a set unheard
//! has been left behind by a later set. A host that cannot be asked counts as silent for certain when
//! it has been dead for `lost_after`: by then it has ended everything by itself (`stop_after`, the
//! agent's `lease`). A host that was removed (`host-rm`) is its remover's promise. While two daemons may speak
//! as one host (`boots`) none of its words counts for that.
//!
//! Known limit: a lost replica that may come back counts for the spread of none.

use std::time::Duration;

use wasmorch_api::spec::{Disconnect, Reconcile};
use wasmorch_api::status::HostState;
use wasmorch_api::{EventKind, HostId, PlacementNumber, ReplicaId, Slot, Timestamp, WorkloadKey};

use crate::cluster::{Cluster, Host, Placed, Workload};
use crate::explain::HeldUp;
use crate::place;
use crate::plan::StopReason;
use crate::planted::{self, Bug};
use crate::slots::{Pass, Seat, Standing};
use crate::write::EventDraft;

/// In place of a sequence: no set leaves it behind, only its host's word does.
const UNTIL_TOLD: u64 = u64::MAX;
/// In place of the sequence of a set: the one that is stored next.
const NEXT_SET: u64 = u64::MAX - 1;

impl Host {
    /// Nothing runs there any more that must end by itself when nobody hears its host.
    pub(crate) fn surely_silent(&self, lost_after: Duration, now: Timestamp) -> bool {
        self.dead_since
            .is_some_and(|since| now >= since.after(lost_after))
    }

    /// It has told this leader, with all its reports heard, that it holds its set.
    pub(crate) fn note_settled(&mut self, applied: u64, status_seq: u64) -> bool {
        if !self.synced || self.status_seq < status_seq || !self.alone() {
            return false;
        }
        let before = (self.caught_up, self.unsure.len());
        let behind = self.set.is_some() && applied < self.set_sequence;
        self.caught_up |= !behind && !self.holds_unkept() && !self.names_removed;
        self.unsure.retain(|_, (_, sequence)| *sequence > applied);
        before != (self.caught_up, self.unsure.len())
    }

    /// A replica of a workload that is no more goes on ending here: one of the same name must know.
    pub(crate) fn still_ends(&mut self, key: &WorkloadKey, replica: ReplicaId) {
        let one = (key.clone(), replica.placement);
        self.unsure.insert(one, (replica.slot, UNTIL_TOLD));
    }

    /// What must not run twice and has not been heard may run until the host holds its next set.
    pub(crate) fn may_run(&mut self, key: &WorkloadKey, number: PlacementNumber, slot: Slot) {
        self.unsure.insert((key.clone(), number), (slot, NEXT_SET));
    }

    /// That set is stored.
    pub(crate) fn note_set(&mut self, stored: u64) {
        for (_, sequence) in self.unsure.values_mut() {
            if *sequence == NEXT_SET {
                *sequence = stored;
            }
        }
    }

    /// Such replicas have ended. Tells whether there were any.
    pub(crate) fn forget_ending(
        &mut self,
        ended: impl Fn(&WorkloadKey, PlacementNumber) -> bool,
    ) -> bool {
        let before = self.unsure.len();
        // Until it has heard of the removal it starts such a one again.
        let until = match (self.names_removed, self.set.is_some()) {
            (true, _) => NEXT_SET,
            (false, true) => self.set_sequence,
            (false, false) => 0,
        };
        // Where two may speak, one has not told of the other's.
        let (applied, alone) = (self.applied, self.alone());
        self.unsure.retain(|(key, number), (_, sequence)| {
            if *sequence == UNTIL_TOLD && ended(key, *number) {
                *sequence = until;
            }
            !alone || *sequence == UNTIL_TOLD || *sequence > applied
        });
        before != self.unsure.len()
    }
}

impl Cluster {
    /// The host counts as dead from now on, as if silent since then: one that says that it leaves has
    /// work to end yet. What waits for its return is not known to serve until it has said so again.
    pub(crate) fn host_died(&mut self, id: &HostId, since: Timestamp) {
        let Some(host) = self.hosts.get_mut(id) else {
            return;
        };
        host.dead_since = host.dead_since.max(Some(since));
        // One that leaves says so with every heartbeat.
        if std::mem::replace(&mut host.state, HostState::Dead) == HostState::Dead {
            return;
        }
        // For the next leader, to whom its silence shall be no news.
        host.record.dead_since = Some(since);
        host.stored = false;
        self.to_write.insert(id.clone());
        let held = host.set.iter().flat_map(|set| &set.groups);
        for group in held {
            let Some(workload) = self.workloads.get_mut(&group.key()) else {
                continue;
            };
            let revision = workload.revisions.get(&group.revision);
            if revision.is_none_or(|revision| revision.spec.disconnect == Disconnect::default()) {
                continue;
            }
            host.forgotten = true;
            for slot in &group.slots {
                let report = workload.reports.get_mut(&slot.placement);
                if let Some(report) = report.filter(|report| report.host == *id) {
                    report.status.ready = false;
                    report.ready_at = None;
                }
            }
        }
    }

    /// A dead host is heard again. What it runs is asked for when something of it may be unknown.
    pub(crate) fn host_is_back(&mut self, id: &HostId, status_seq: u64, now: Timestamp) {
        let Some(host) = self.hosts.get_mut(id) else {
            return;
        };
        host.dead_since = None;
        host.back_since = Some(now);
        if host.record.dead_since.take().is_some() {
            host.stored = false;
            self.to_write.insert(id.clone());
        }
        if std::mem::take(&mut host.forgotten) || status_seq != host.status_seq {
            host.synced = false;
        }
    }
}

/// Whether the placement on a dead host still keeps its slot.
pub(crate) fn is_away(workload: &Workload, placed: &Placed, host: &Host, now: Timestamp) -> bool {
    let revision = workload.revisions.get(&placed.revision);
    let Some(disconnect) = revision.map(|revision| &revision.spec.disconnect) else {
        return false;
    };
    if planted::is(Bug::LostAfterIgnored) {
        return false;
    }
    if disconnect.replace && disconnect.lost_after.0.is_zero() {
        // Nothing waits for its host, not even until what it ends in good order has ended.
        return false;
    }
    !disconnect.replace || !host.surely_silent(disconnect.lost_after.0, now)
}

/// When a placement that is away is lost.
pub(crate) fn lost_at(workload: &Workload, placed: &Placed, host: &Host) -> Option<Timestamp> {
    let revision = workload.revisions.get(&placed.revision)?;
    let disconnect = &revision.spec.disconnect;
    let since = host.dead_since.filter(|_| disconnect.replace)?;
    Some(since.after(disconnect.lost_after.0))
}

impl Pass<'_> {
    /// Whether a lost replica of this workload stays beside its replacement.
    pub(crate) fn keeps_originals(&self) -> bool {
        let spec = &self.target.spec;
        let disconnect = &spec.disconnect;
        let waits = disconnect.replace && !disconnect.lost_after.0.is_zero();
        waits
            && disconnect.reconcile != Reconcile::KeepReplacement
            && !spec.runs_once()
            && !self.target.kind.ends()
    }

    /// A seat that is gone stays in its host's set until the host is back: then its slot is to be filled
    /// beside it. `false`: it ends.
    pub(crate) fn stays_lost(&mut self, seat: &Seat) -> bool {
        let slot = seat.placed.slot;
        let wanted = self.wants(slot);
        let host = self.cluster.hosts.get(&seat.placed.host);
        let returns = host.is_some_and(|host| host.record.drain.is_none());
        if !(self.keeps_originals() && seat.fresh && wanted && returns) {
            return false;
        }
        let later =
            |other: &Seat| other.fresh && other.leaves.is_none() && other.number > seat.number;
        let others: Vec<&Seat> = self
            .seats_of(slot)
            .filter(|other| other.number != seat.number)
            .collect();
        if !others.iter().copied().all(later) {
            return false;
        }
        let alone = others.iter().all(|one| one.standing == Standing::Gone);
        let first_time = others.is_empty();
        // It counts for nothing while it is lost.
        if self.vacated.take() != Some(seat.number) {
            self.vacate(seat);
        }
        if alone {
            // Told once the slot is filled again, and so told once.
            self.refill.insert(slot, first_time.then(|| seat.clone()));
        }
        true
    }

    /// Of an original and its replacement the one that `reconcile` says stays, once it serves.
    pub(crate) fn reconcile(&mut self, original: &Seat, replacement: &Seat) {
        let away = |seat: &Seat| matches!(seat.standing, Standing::Away | Standing::Unheard);
        if away(original) || replacement.standing == Standing::Unheard {
            return;
        }
        if planted::is(Bug::ReconcileKeepsBoth) {
            return;
        }
        let first = match self.target.spec.disconnect.reconcile {
            Reconcile::KeepOriginal => true,
            Reconcile::KeepReplacement => false,
            Reconcile::LongestRunning => self.since(original) <= self.since(replacement),
            Reconcile::BestScore => self.score(original) >= self.score(replacement),
        };
        let (winner, loser) = if first {
            (original, replacement)
        } else {
            (replacement, original)
        };
        // At zero one that listens is as good as can be.
        let stands =
            |seat: &Seat| seat.serves() || seat.placed.standby && self.listens_at_rest(seat);
        let (winner_stands, loser_stands) = (stands(winner), stands(loser));
        if winner_stands {
            self.stop(loser, StopReason::Duplicate);
            return;
        }
        let host = self.cluster.hosts.get(&original.placed.host);
        let back = host.and_then(|host| host.back_since);
        let back = back.unwrap_or(self.cluster.since);
        let due = back.after(self.target.spec.update.progress_deadline.0);
        if self.now < due {
            self.wake(due);
        } else if loser_stands {
            self.stop(winner, StopReason::Duplicate);
        }
    }

    fn since(&self, seat: &Seat) -> Timestamp {
        let report = self.workload.reports.get(&seat.number);
        let since = report.and_then(|known| known.running_at);
        since.unwrap_or(Timestamp(u64::MAX))
    }

    fn score(&self, seat: &Seat) -> Option<i64> {
        self.with_standpoint(None, |on| place::score_on(on, &seat.placed.host))
    }

    /// Whether a replica of this slot may be started: always, but for what must not run twice.
    pub(crate) fn may_start(&mut self, slot: Slot) -> bool {
        let others = (slot, PlacementNumber(0))..=(slot, PlacementNumber(u64::MAX));
        let mut others = self.others.range(others);
        let stuck = others.any(|(_, seat)| seat.standing == Standing::Unheard);
        if stuck && self.seats_of(slot).next().is_some() {
            // A canary that cannot be told to go: one more would be a third.
            self.waits = true;
            return false;
        }
        if !self.target.spec.runs_once() || planted::is(Bug::ExclusiveNotAwaited) {
            return true;
        }
        if self.workload.numbers_of(slot).next().is_some() {
            self.waits = true;
            return false;
        }
        let Some(id) = self.may_still_run(slot) else {
            return true;
        };
        let (since, host, anew) = match self.cluster.hosts.get(&id) {
            Some(host) => {
                let anew = host.state == HostState::Alive && host.boot.is_some() && !host.alone();
                let within = anew.then(|| self.cluster.ended_within(host));
                (host.dead_since, host.info().name.to_string(), within)
            }
            None => (None, id.to_string(), None),
        };
        if let Some(since) = since {
            let lost_after = self.lost_after();
            self.wake(since.after(lost_after));
        }
        self.waits = true;
        self.held_up = Some(HeldUp { host, anew });
        false
    }

    /// What is not heard of for so long after its host was found dead is lost, whichever revision it is of.
    pub(crate) fn lost_after(&self) -> Duration {
        let revisions = self.workload.revisions.values();
        let after = revisions.map(|revision| revision.spec.disconnect.lost_after.0);
        after.max().unwrap_or_default()
    }

    /// A host that may still run a replica of this slot, as far as this leader can know.
    fn may_still_run(&self, slot: Slot) -> Option<HostId> {
        let (lost_after, now) = (self.lost_after(), self.now);
        let hosts = &self.cluster.hosts;
        let silent = |host: &Host| host.surely_silent(lost_after, now);
        let leaving = self.workload.leaving.iter();
        let mut leaving = leaving.filter_map(|number| self.workload.reports.get(number));
        let ending = leaving.find(|known| {
            let host = hosts.get(&known.host);
            known.status.replica.slot == slot
                && !known.status.state.ended()
                && host.is_some_and(|host| !silent(host))
        });
        if let Some(known) = ending {
            return Some(known.host.clone());
        }
        let never = self.workload.record.next_placement.0 <= 1;
        let mut hosts = hosts.iter().filter(|(_, host)| !silent(host));
        let unsure = |host: &Host| {
            let mut unsure = host.unsure.iter();
            unsure.any(|((key, _), (one, _))| key == self.key && *one == slot)
        };
        hosts
            .find(|(_, host)| unsure(host) || !never && !host.caught_up)
            .map(|(id, _)| id.clone())
    }

    /// Tells that a replica is lost.
    pub(crate) fn say_lost(&mut self, seat: &Seat) {
        if self.said_lost >= crate::slots::SAID_EACH {
            self.lost += 1;
            return;
        }
        self.said_lost += 1;
        let reason = format!("its host {} is dead", self.host_name(&seat.placed.host));
        let mut event = EventDraft::of(self.key, EventKind::ReplicaLost, reason)
            .revision(seat.placed.revision)
            .host(&seat.placed.host);
        event.replica = self
            .workload
            .reports
            .get(&seat.number)
            .map(|known| known.status.replica);
        self.plan.events.push(event);
    }
}
