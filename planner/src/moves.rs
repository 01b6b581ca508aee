//! Replicas that are to run elsewhere: off a host that is drained, or on the one that `rebalance` named.
//!
//! Owns when such a replica's successor starts and when the replica itself may end. Where it starts
//! is `fill`'s choice, that it ends once the successor is available is `slots`'.
//!
//! Rule: one that serves is given its successor first, within `max_surge`. With stop-first it ends
//! first, but only while more serve than `max_unavailable` and `min_available` let be missing, and
//! only when there is room elsewhere. One that serves nobody makes way for its successor at once. At
//! the deadline of a drain whatever is left is stopped. A job runs to its end until then.
//!
//! A move to a named host is given up when it cannot be made there and then: another takes its place in
//! the next `rebalance`.
//!
//! Known limits: replicas of a revision that a rollout replaces are the rollout's; while it is paused
//! they stay until the deadline.

use wasmorch_api::spec::UpdateOrder;
use wasmorch_api::{HostId, PlacementNumber, Record, Slot, Timestamp};

use crate::cluster::Host;
use crate::place;
use crate::plan::StopReason;
use crate::planted::{self, Bug};
use crate::slots::{Pass, Seat, Standing};

/// Why a seat is to run elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Leaving {
    /// Its host is drained, until this moment.
    Drain(Option<Timestamp>),
    /// It does better there.
    To(HostId),
}

/// Whether a placement is to run elsewhere.
pub(crate) fn leaving(
    host: Option<&Host>,
    record: &Record,
    number: PlacementNumber,
) -> Option<Leaving> {
    let drain = host.and_then(|host| host.record.drain);
    let drain = drain.map(|drain| Leaving::Drain(drain.deadline));
    drain.or_else(|| {
        let mut moves = record.moves.iter();
        let to = moves.find(|one| one.placement == number)?;
        Some(Leaving::To(to.to.clone()))
    })
}

/// Forgets moves that are over: made, or no longer to be made.
pub(crate) fn settle(pass: &mut Pass<'_>) {
    if pass.record.moves.is_empty() {
        return;
    }
    let rollout = pass.record.active_rollout().is_some();
    let mut moves = std::mem::take(&mut pass.record.moves);
    moves.retain(|one| {
        let mut seats = pass.seats.values();
        let Some(seat) = seats.find(|seat| seat.number == one.placement) else {
            return false;
        };
        let target = pass.cluster.hosts.get(&one.to);
        let takes = target.is_some_and(|host| place::state(host).is_none());
        let mut others = pass.seats_of(seat.placed.slot);
        match one.successor {
            Some(successor) => others.any(|other| other.number == successor),
            None => takes && seat.fresh && !rollout && seat.standing != Standing::Gone,
        }
    });
    for seat in pass.seats.values_mut() {
        let still = moves.iter().any(|one| one.placement == seat.number);
        if !still && matches!(seat.leaves, Some(Leaving::To(_))) {
            seat.leaves = None;
        }
    }
    pass.record.moves = moves;
}

/// Starts the successor of a seat on the host that it is to move to, or gives the move up.
fn go(pass: &mut Pass<'_>, seat: &Seat, to: &HostId) -> bool {
    let number = pass.record.next_placement;
    let started = seat.serves() && pass.start_on(seat.placed.slot, to);
    let mut moves = pass.record.moves.iter_mut();
    if let Some(one) = moves.find(|one| one.placement == seat.number) {
        one.successor = started.then_some(number);
    }
    if !started {
        pass.record.moves.retain(|one| one.placement != seat.number);
        let key = (seat.placed.slot, seat.number);
        if let Some(seat) = pass.seats.get_mut(&key) {
            seat.leaves = None;
        }
    }
    started
}

/// Whether the seat's time on its host is over. Asks to be planned again when that is still to come.
pub(crate) fn overdue(pass: &mut Pass<'_>, seat: &Seat) -> bool {
    let Some(Leaving::Drain(Some(deadline))) = seat.leaves else {
        return false;
    };
    if pass.now < deadline {
        pass.wake(deadline);
    }
    pass.now >= deadline && !planted::is(Bug::DeadlineForgotten)
}

/// Stops what should have left its host by now.
pub(crate) fn end_overdue(pass: &mut Pass<'_>) {
    let leaving = pass.seats.values().filter(|seat| seat.leaves.is_some());
    let leaving: Vec<Seat> = leaving.cloned().collect();
    for seat in leaving {
        if overdue(pass, &seat) {
            pass.stop_if_heard(&seat, StopReason::Overdue);
        }
    }
}

/// Gives successors to what is to leave, as far as that is allowed now.
pub(crate) fn replace(pass: &mut Pass<'_>) {
    let leaves = |seat: &Seat| seat.leaves.is_some() && seat.fresh;
    let slots: Vec<Slot> = pass
        .wanted()
        .into_iter()
        .filter(|slot| pass.seats_of(*slot).any(leaves))
        .collect();
    if slots.is_empty() {
        return;
    }
    let update = pass.target.spec.update.clone();
    let wanted = u64::from(pass.record.wanted());
    let start_first = update.order == UpdateOrder::StartFirst && update.max_surge > 0;
    let mut surge = (wanted + u64::from(update.max_surge)).saturating_sub(pass.live() as u64);
    let mut serving = serving_slots(pass);
    let least = least_serving(pass);
    for slot in slots {
        let Some(seat) = only_seat(pass, slot) else {
            continue;
        };
        let absent = matches!(
            seat.standing,
            Standing::Gone | Standing::Away | Standing::Unheard
        );
        if !leaves(&seat) || absent {
            continue;
        }
        if pass.home(slot).is_some() {
            // Its volumes are there: it stays until the deadline.
            continue;
        }
        if let Some(Leaving::To(to)) = &seat.leaves {
            if surge > 0 && go(pass, &seat, to) {
                surge -= 1;
            }
            continue;
        }
        if seat.serves() && start_first {
            if surge > 0 && !pass.crash_loop_waits(slot) && pass.start(slot, None) {
                surge -= 1;
            }
            continue;
        }
        let may_lack = !seat.serves() || serving > least;
        let may_lack = may_lack || planted::is(Bug::MinAvailableForgotten);
        if may_lack && pass.fits_elsewhere(&seat) {
            serving = serving.saturating_sub(u64::from(seat.serves()));
            pass.stop(&seat, StopReason::Moved);
        }
    }
}

/// The seat of a slot that has no other.
fn only_seat(pass: &Pass<'_>, slot: Slot) -> Option<Seat> {
    let mut seats = pass.seats_of(slot);
    let first = seats.next().cloned();
    first.filter(|_| seats.next().is_none())
}

/// As many slots must serve while replicas move.
fn least_serving(pass: &Pass<'_>) -> u64 {
    let spec = &pass.target.spec;
    let wanted = u64::from(pass.record.wanted());
    let may_lack = u64::from(spec.update.max_unavailable);
    let least = wanted.saturating_sub(may_lack);
    least.max(u64::from(spec.min_available))
}

/// Wanted slots in which something serves.
fn serving_slots(pass: &Pass<'_>) -> u64 {
    let wanted = u64::from(pass.record.wanted());
    let serving = pass.seats.values().filter(|seat| seat.serves());
    let slots = serving.map(|seat| seat.placed.slot);
    let slots: std::collections::BTreeSet<Slot> = slots.filter(|slot| slot.0 <= wanted).collect();
    slots.len() as u64
}
