//! What one workload needs now: which slots are empty, crowded, old, or on a dead host.
//!
//! A slot has one current placement and, only while that is being replaced, one successor. Every
//! pass goes through the same steps in the same order, each of which may only see what the ones
//! before have left:
//!
//! 1. gone and used-up placements end; 2. slots that are not wanted end; 3. a slot keeps its best
//!    placement of the wanted revision and at most one old one, which ends when its successor is
//!    available; 4. empty slots are placed; 5. a rollout replaces old placements within
//!    `max_surge` and `max_unavailable`; 6. the rollout's own state moves (`rollout`).
//!
//! A new leader stops or moves nothing on a host it has not heard from (DESIGN, section 4).

use std::collections::BTreeMap;
use std::sync::Arc;

use wasmorch_api::record::CrashLoop;
use wasmorch_api::spec::UpdateOrder;
use wasmorch_api::status::HostState;
use wasmorch_api::{
    EventKind, HostId, PlacementNumber, Record, ReplicaState, Revision, Slot, Timestamp,
    WorkloadKey,
};

use crate::cluster::{Cluster, Placed, Workload};
use crate::explain;
use crate::place::{self, Books, Ranking};
use crate::plan::{Plan, Start, Stop, StopReason};
use crate::planted::{self, Bug};
use crate::rollout;
use crate::write::EventDraft;

/// How one placement stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Its host is dead or was removed.
    Gone,
    /// Its host will not start it again.
    GivenUp,
    /// It ended well by itself and its policy leaves it so.
    Done,
    /// This leader has not heard from its host yet.
    Unheard,
    /// On its way.
    Starting,
    /// Running, and not ready since this moment (by the leader's clock).
    Unready(Timestamp),
    /// Ready since this moment (by the leader's clock).
    Ready(Timestamp),
}

/// One placement in a pass.
#[derive(Debug, Clone)]
pub(crate) struct Seat {
    pub(crate) number: PlacementNumber,
    pub(crate) placed: Placed,
    pub(crate) standing: Standing,
    /// At the wanted revision, and not told to be replaced by `restart`.
    pub(crate) fresh: bool,
}

/// One workload's pass.
pub(crate) struct Pass<'a> {
    pub(crate) cluster: &'a Cluster,
    pub(crate) books: &'a mut Books,
    pub(crate) plan: &'a mut Plan,
    pub(crate) key: &'a WorkloadKey,
    pub(crate) workload: &'a Workload,
    pub(crate) target: Arc<Revision>,
    pub(crate) record: Record,
    pub(crate) now: Timestamp,
    pub(crate) seats: BTreeMap<Slot, Vec<Seat>>,
    unplaced: Option<(u32, Ranking)>,
}

/// Plans one workload.
pub(crate) fn plan_workload(
    cluster: &Cluster,
    books: &mut Books,
    key: &WorkloadKey,
    now: Timestamp,
    plan: &mut Plan,
) {
    let Some(workload) = cluster.workloads.get(key) else {
        return;
    };
    // Record and revision are written in one batch; without its revision nothing can be decided.
    let Some(target) = workload.target().cloned() else {
        return;
    };
    let mut pass = Pass {
        cluster,
        books,
        plan,
        key,
        workload,
        record: workload.record.clone(),
        target,
        now,
        seats: BTreeMap::new(),
        unplaced: None,
    };
    pass.take_seats();
    if pass.target.kind.ends() {
        pass.job();
    } else {
        pass.serve();
    }
    pass.finish();
}

impl Pass<'_> {
    fn take_seats(&mut self) {
        for (number, placed) in &self.workload.placements {
            let seat = Seat {
                number: *number,
                placed: placed.clone(),
                standing: standing(self.cluster, self.workload, *number, placed, self.now),
                fresh: placed.revision == self.record.revision && *number >= self.record.fresh_from,
            };
            self.seats.entry(placed.slot).or_default().push(seat);
        }
    }

    fn serve(&mut self) {
        self.end_gone_and_used_up();
        if self.record.revision != self.workload.record.revision {
            // A revert began: seats and target belong to the revision just given up. The record is
            // stored first; the next pass sees the other one.
            return;
        }
        self.end_unwanted();
        for slot in self.wanted() {
            self.keep_the_best(slot);
        }
        self.place_empty();
        rollout::replace(self);
        rollout::advance(self);
    }

    /// The slots that shall be filled.
    pub(crate) fn wanted(&self) -> Vec<Slot> {
        (1..=u64::from(self.record.wanted())).map(Slot).collect()
    }

    fn finish(mut self) {
        if let Some((slots, ranking)) = self.unplaced.take() {
            self.plan
                .unplaced
                .push(explain::unplaced(self.key, slots, &ranking));
        }
        if self.record != self.workload.record {
            self.record.updated = self.now;
            self.plan.update.push(self.record);
        }
    }

    fn end_gone_and_used_up(&mut self) {
        let seats: Vec<Seat> = self.seats.values().flatten().cloned().collect();
        for seat in seats {
            match seat.standing {
                // With nowhere else to go, taking it out of its host's set would only stop what may
                // well be running behind a broken network.
                Standing::Gone if self.nowhere_else(&seat) => {}
                Standing::Gone => {
                    self.stop(&seat, StopReason::HostDead);
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
                Standing::GivenUp => {
                    self.stop(&seat, StopReason::GivenUp);
                    self.note_failure(&seat);
                }
                _ => {}
            }
        }
    }

    /// Whether a silent host's wanted seat fits on no other host; it counts as unplaced then.
    pub(crate) fn nowhere_else(&mut self, seat: &Seat) -> bool {
        let slot = seat.placed.slot;
        let others = self.seats.get(&slot).is_some_and(|seats| seats.len() > 1);
        let known = self.cluster.hosts.contains_key(&seat.placed.host);
        if slot.0 > u64::from(self.record.wanted()) || others || !known {
            return false;
        }
        let Some(old) = self.workload.revisions.get(&seat.placed.revision).cloned() else {
            return false;
        };
        self.books.remove(self.key, &seat.placed.host, &old.spec);
        let ranking = place::rank(self.cluster, self.books, self.key, &self.target.spec, &[]);
        self.books.add(self.key, &seat.placed.host, &old.spec);
        if !ranking.fits.is_empty() {
            return false;
        }
        let count = self.unplaced.as_ref().map_or(0, |(count, _)| *count);
        self.unplaced = Some((count + 1, ranking));
        true
    }

    /// A host's starts are used up: the slot moves at once while there is another host to try, and
    /// waits longer each time when all have been tried.
    fn note_failure(&mut self, seat: &Seat) {
        let reason = self
            .workload
            .reports
            .get(&seat.number)
            .and_then(|known| known.status.reason.clone())
            .unwrap_or_else(|| "no reason given".to_owned());
        let hosts = self
            .cluster
            .hosts
            .values()
            .filter(|host| host.known())
            .count()
            .max(1);
        let slot = seat.placed.slot;
        let before = self
            .record
            .crash_loop
            .iter()
            .position(|one| one.slot == slot)
            .map(|at| self.record.crash_loop.remove(at));
        let placements = before
            .filter(|one| one.revision == seat.placed.revision)
            .map_or(0, |one| one.placements)
            + 1;
        let looping = placements as usize >= hosts.min(3);
        let wait = if looping {
            let doublings = placements.saturating_sub(hosts.min(3) as u32).min(8);
            (CRASH_BACKOFF_MS << doublings).min(CRASH_BACKOFF_MAX_MS)
        } else {
            0
        };
        if looping {
            let text = format!("slot {slot} failed on {placements} placements in a row: {reason}");
            self.plan.events.push(
                EventDraft::of(self.key, EventKind::CrashLoop, text).revision(seat.placed.revision),
            );
        }
        self.record.crash_loop.push(CrashLoop {
            slot,
            revision: seat.placed.revision,
            placements,
            until: Timestamp(self.now.0 + wait),
            reason: reason.clone(),
        });
        // A revert may have begun in this very pass: then this seat is no longer the wanted one's.
        if seat.fresh && seat.placed.revision == self.record.revision {
            rollout::fail(self, &format!("replica failed: {reason}"));
        }
    }

    fn end_unwanted(&mut self) {
        let wanted = u64::from(self.record.wanted());
        let extra: Vec<Seat> = self
            .seats
            .range(Slot(wanted + 1)..)
            .flat_map(|(_, seats)| seats)
            .filter(|seat| seat.standing != Standing::Unheard)
            .cloned()
            .collect();
        for seat in extra {
            self.stop(&seat, StopReason::NotWanted);
        }
        let wanted_slot = |one: &CrashLoop| one.slot.0 <= wanted;
        if !self.record.crash_loop.iter().all(wanted_slot) {
            self.record.crash_loop.retain(wanted_slot);
        }
    }

    fn keep_the_best(&mut self, slot: Slot) {
        let seats = self.seats.get(&slot).cloned().unwrap_or_default();
        let best_first = |fresh: bool| {
            let mut seats: Vec<Seat> = seats
                .iter()
                .filter(|seat| seat.fresh == fresh)
                .cloned()
                .collect();
            seats.sort_by_key(|seat| (!matches!(seat.standing, Standing::Ready(_)), seat.number));
            seats
        };
        let (fresh, old) = (best_first(true), best_first(false));
        let available = fresh
            .first()
            .is_some_and(|seat| planted::is(Bug::SuccessorNotAwaited) || self.available(seat));
        for seat in fresh.iter().skip(1) {
            self.stop_if_heard(seat, StopReason::Duplicate);
        }
        for seat in old.iter().skip(usize::from(!available)) {
            self.stop_if_heard(seat, StopReason::Replaced);
        }
        if available {
            self.record.crash_loop.retain(|one| one.slot != slot);
        }
    }

    /// Ready for `min_ready`; asks to be planned again when that is still to come.
    pub(crate) fn available(&mut self, seat: &Seat) -> bool {
        let Standing::Ready(since) = seat.standing else {
            return false;
        };
        if !seat.fresh || self.record.active_rollout().is_none() {
            return true;
        }
        let due = since.after(self.target.spec.update.min_ready.0);
        if self.now < due {
            self.plan.wake(due);
        }
        self.now >= due
    }

    fn place_empty(&mut self) {
        for slot in self.wanted() {
            if self.seats.get(&slot).is_some_and(|seats| !seats.is_empty()) {
                continue;
            }
            let revision = self.record.revision;
            let waits = self
                .record
                .crash_loop
                .iter()
                .find(|one| one.slot == slot && one.revision == revision);
            if let Some(until) = waits.map(|one| one.until).filter(|until| *until > self.now) {
                self.plan.wake(until);
                continue;
            }
            let stop_first = self.target.spec.update.order == UpdateOrder::StopFirst;
            if stop_first && self.still_draining(slot) {
                continue;
            }
            self.start(slot, None);
        }
    }

    /// A replica of this slot that has left its set and has not ended yet.
    fn still_draining(&self, slot: Slot) -> bool {
        self.workload.reports.iter().any(|(number, known)| {
            known.status.replica.slot == slot
                && !known.status.state.ended()
                && !self.workload.placements.contains_key(number)
                && self
                    .cluster
                    .hosts
                    .get(&known.host)
                    .is_some_and(|host| host.state != HostState::Dead)
        })
    }

    /// Places the slot on the best host; counts it as unplaced when none fits.
    pub(crate) fn start(&mut self, slot: Slot, args: Option<Vec<String>>) -> bool {
        let spec = &self.target.spec;
        let failed = self.failed_on(slot);
        let ranking = place::rank(self.cluster, self.books, self.key, spec, &failed);
        let Some(best) = ranking.fits.first() else {
            let count = self.unplaced.as_ref().map_or(0, |(count, _)| *count);
            self.unplaced = Some((count + 1, ranking));
            return false;
        };
        let number = self.record.next_placement;
        self.record.next_placement = number.next();
        self.books.add(self.key, &best.host, spec);
        let placed = Placed {
            slot,
            revision: self.record.revision,
            host: best.host.clone(),
            args: args.clone(),
        };
        self.plan.start.push(Start {
            key: self.key.clone(),
            slot,
            placement: number,
            revision: self.record.revision,
            host: best.host.clone(),
            args,
        });
        let reason = format!("slot {slot} on {}", best.name);
        self.plan.events.push(
            EventDraft::of(self.key, EventKind::Placed, reason)
                .revision(self.record.revision)
                .host(&best.host),
        );
        let seat = Seat {
            number,
            placed,
            standing: Standing::Starting,
            fresh: true,
        };
        self.seats.entry(slot).or_default().push(seat);
        true
    }

    /// Hosts where this slot failed at the wanted revision, as far as is remembered.
    fn failed_on(&self, slot: Slot) -> Vec<HostId> {
        self.workload
            .ended
            .iter()
            .chain(self.workload.reports.values())
            .filter(|known| {
                known.status.replica.slot == slot
                    && known.status.revision == self.record.revision
                    && matches!(
                        known.status.state,
                        ReplicaState::Failed | ReplicaState::Rejected
                    )
            })
            .map(|known| known.host.clone())
            .collect()
    }

    pub(crate) fn stop_if_heard(&mut self, seat: &Seat, why: StopReason) {
        if seat.standing != Standing::Unheard {
            self.stop(seat, why);
        }
    }

    pub(crate) fn stop(&mut self, seat: &Seat, why: StopReason) {
        if let Some(revision) = self.workload.revisions.get(&seat.placed.revision) {
            self.books
                .remove(self.key, &seat.placed.host, &revision.spec);
        }
        if let Some(seats) = self.seats.get_mut(&seat.placed.slot) {
            seats.retain(|other| other.number != seat.number);
        }
        self.plan.stop.push(Stop {
            key: self.key.clone(),
            slot: seat.placed.slot,
            placement: seat.number,
            host: seat.placed.host.clone(),
            why,
        });
    }

    fn host_name(&self, host: &HostId) -> String {
        self.cluster
            .hosts
            .get(host)
            .map_or_else(|| host.to_string(), |h| h.info().name.to_string())
    }
}

/// The first wait of a crash loop; doubles with each placement that fails.
const CRASH_BACKOFF_MS: u64 = 30_000;
/// Its longest wait.
const CRASH_BACKOFF_MAX_MS: u64 = 300_000;

fn standing(
    cluster: &Cluster,
    workload: &Workload,
    number: PlacementNumber,
    placed: &Placed,
    now: Timestamp,
) -> Standing {
    let Some(host) = cluster.hosts.get(&placed.host) else {
        // Removed by `host-rm`, or a leftover: nobody will ever speak for it.
        return if cluster.settled(now) {
            Standing::Gone
        } else {
            Standing::Unheard
        };
    };
    if host.state == HostState::Dead && !planted::is(Bug::DeadHostKept) {
        return Standing::Gone;
    }
    if !host.known() {
        if planted::is(Bug::UnheardTakenAsGone) {
            return Standing::Gone;
        }
        return Standing::Unheard;
    }
    let Some(known) = workload
        .reports
        .get(&number)
        .filter(|known| known.host == placed.host)
    else {
        return Standing::Starting;
    };
    let status = &known.status;
    match status.state {
        _ if status.given_up && !planted::is(Bug::GivenUpIgnored) => Standing::GivenUp,
        ReplicaState::Running if status.ready => Standing::Ready(known.ready_at.unwrap_or(now)),
        ReplicaState::Running => Standing::Unready(known.running_at.unwrap_or(now)),
        ReplicaState::Completed => Standing::Done,
        _ => Standing::Starting,
    }
}
