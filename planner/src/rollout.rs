//! How a workload moves from one revision to another.
//!
//! Owns `Record::rollout`. A rollout that fails goes back to the last stable
//! revision (or pauses); a revert that fails stops there, so that two bad revisions never alternate.
//!
//! ```text
//!            every slot available                    every slot available at the old one
//!  rolling ───────────────────────▶ completed   ┌──────────────────────────▶ reverted
//!     │  deadline, replica given up, `judge`    │
//!     ├──────────────────────────▶ reverting ───┤ deadline, replica given up
//!     │  on_failure = pause                     └──────────────────────────▶ failed
//!     ├──────────────────────────▶ paused
//!     └─ nothing to go back to ──▶ failed (a first revision; completes if it becomes ready yet)
//! ```
//!
//! What is held until others are ready is `hold`'s, what goes with others is `atomic`'s.

use std::time::Duration;

use wasmorch_api::record::Rollout;
use wasmorch_api::spec::{OnFailure, UpdateOrder};
use wasmorch_api::status::HostState;
use wasmorch_api::{EventKind, ReplicaState, RolloutState, Timestamp};

use crate::atomic;
use crate::hold;
use crate::judge;
use crate::moves::Leaving;
use crate::plan::StopReason;
use crate::planted::{self, Bug};
use crate::slots::{Pass, Seat, Standing};
use crate::stages;
use crate::write::EventDraft;

/// Replaces old placements, as many at once as the update settings allow.
pub(crate) fn replace(pass: &mut Pass<'_>) {
    if pass
        .record
        .rollout
        .as_ref()
        .is_some_and(|rollout| rollout.state == RolloutState::Paused)
        && !planted::is(Bug::PauseIgnored)
    {
        return;
    }
    if pass.seats.values().all(|seat| seat.fresh) {
        return;
    }
    let update = pass.target.spec.update.clone();
    let wanted = u64::from(pass.record.wanted());
    let live = pass.live();
    let mut surge = (wanted + u64::from(update.max_surge)).saturating_sub(live as u64);
    let start_first = update.order == UpdateOrder::StartFirst && update.max_surge > 0;
    let mut available = available_slots(pass);
    let least = wanted.saturating_sub(u64::from(update.max_unavailable));
    let rests = pass.record.rests(&pass.target.spec);
    let listens = rests.then(|| pass.last_to_listen()).flatten();
    let by = update.by.as_deref();
    let stage = by.and_then(|label| stages::current(pass, label));
    let whole = stage.as_ref().map(|stage| stages::narrow(pass, stage));
    for slot in pass.wanted() {
        if stage.as_ref().is_some_and(|stage| !stage.has(slot)) {
            continue;
        }
        let seats: Vec<Seat> = pass.seats_of(slot).cloned().collect();
        let Some(old) = seats.iter().find(|seat| !seat.fresh) else {
            continue;
        };
        // Two old ones, of which one has not been heard of yet, leave no room for a successor.
        if seats.len() > 1 || seats.iter().any(|seat| seat.fresh) {
            continue;
        }
        // It stays because no other host would take it: ending it would only lose what may well be
        // running behind a broken network.
        if old.standing == Standing::Gone {
            continue;
        }
        if pass.crash_loop_waits(slot) || !pass.open(slot) {
            continue;
        }
        let unplaced = pass.unplaced;
        if start_first && surge > 0 && pass.start(slot, None) {
            surge -= 1;
            continue;
        }
        // Its successor comes first, unless there is no place for one.
        let waits = pass.unplaced == unplaced || old.standing == Standing::Away;
        if start_first && waits {
            continue;
        }
        let serves = old.serves();
        if serves && available <= least && !planted::is(Bug::MaxUnavailableIgnored) {
            continue;
        }
        if listens == Some(old.number) {
            continue;
        }
        pass.unplaced = unplaced;
        available = available.saturating_sub(u64::from(serves));
        pass.stop_if_heard(old, StopReason::Replaced);
    }
    if let Some(whole) = whole {
        stages::widen(pass, whole);
    }
}

/// Wanted slots in which something serves.
fn available_slots(pass: &mut Pass<'_>) -> u64 {
    u64::from(count(pass, |_| true).0)
}

/// Wanted slots whose fresh placement is available, and whether an old one is left anywhere.
fn progress(pass: &mut Pass<'_>) -> (u32, bool) {
    if let Some(updated) = pass.count_on() {
        return (updated, false);
    }
    count(pass, |seat| seat.fresh)
}

/// Wanted slots in which one of these is available, and whether an old one is left in any.
fn count(pass: &mut Pass<'_>, counts: impl Fn(&Seat) -> bool) -> (u32, bool) {
    let (mut slots, mut last, mut old_left) = (0, None, false);
    let mut foreseen: Option<Timestamp> = None;
    for seat in pass.seats.values() {
        let slot = seat.placed.slot;
        // What is fresh and does not serve makes no difference.
        if seat.fresh && !seat.serves() || !pass.wants(slot) {
            continue;
        }
        old_left |= !seat.fresh && !pass.passed_over(slot);
        let Some(due) = pass.available_at(seat).filter(|_| counts(seat)) else {
            continue;
        };
        if pass.now < due {
            foreseen = Some(foreseen.map_or(due, |earlier| earlier.min(due)));
        } else if last != Some(slot) {
            // The seats of a slot follow each other.
            last = Some(slot);
            slots += 1;
        }
    }
    if let Some(due) = foreseen {
        pass.foresee(due);
    }
    (slots, old_left)
}

/// Whether a replica of another revision still takes requests: it has been taken out of its host's
/// set, and the host has not said yet that it drains. Whoever is told that a rollout has completed
/// may ask at once, and shall not hear the old revision.
fn old_serves(pass: &Pass<'_>) -> bool {
    pass.workload.reports.values().any(|known| {
        known.status.state == ReplicaState::Running
            && known.status.revision != pass.record.revision
            && !pass.passed_over(known.status.replica.slot)
            && pass
                .cluster
                .hosts
                .get(&known.host)
                .is_some_and(|host| host.state == HostState::Alive)
    })
}

/// With one on every host: old ones that serve on hosts which are drained, since `min_available` holds
/// them back.
fn held_back<'a>(pass: &'a Pass<'_>) -> impl Iterator<Item = &'a Seat> {
    let per_host = pass.seating.is_some();
    let seats = pass.seats.values().filter(move |_| per_host);
    seats.filter(|seat| !seat.fresh && seat.serves() && seat.leaves.is_some())
}

/// What is held back ends at its drain's deadline and not before: until then nothing is late, and from
/// then on the rollout is patient as after any progress.
fn drains_until(pass: &Pass<'_>) -> Option<Timestamp> {
    let ends = held_back(pass).filter_map(|seat| match seat.leaves {
        Some(Leaving::Drain(until)) => until,
        _ => None,
    });
    let patience = pass.target.spec.update.progress_deadline.0;
    Some({ ends }.max()?.after(patience))
}

/// Moves the rollout's own state.
pub(crate) fn advance(pass: &mut Pass<'_>) {
    let Some(rollout) = pass.record.rollout.clone() else {
        return;
    };
    let wanted = rolls(pass);
    if pass.record.stopped || rollout.hold.is_some() {
        return;
    }
    if matches!(
        rollout.state,
        RolloutState::Completed | RolloutState::Reverted | RolloutState::Aborted
    ) {
        return;
    }
    // With the others of its deploy decided nothing sends it back any more.
    let judged = !atomic::decided(pass.cluster, &pass.workload.record);
    if let Some(reason) = judge::verdict(pass).filter(|_| judged) {
        // A first revision that has failed already answers no better yet.
        fail(pass, &reason);
        return;
    }
    let (updated, old_left) = progress(pass);
    let there = updated == wanted && !old_left;
    let drained = drains_until(pass).filter(|_| there);
    let extended = |deadline: Timestamp| drained.map_or(deadline, |until| until.max(deadline));
    // A host that never says that the old one drains holds up nothing beyond the deadline.
    let done = there
        && (pass.now >= extended(rollout.deadline)
            || !old_serves(pass) && held_back(pass).next().is_none());
    match rollout.state {
        RolloutState::Rolling if done || pass.has_arrived() => {
            let all = pass.arrive();
            if all {
                complete(pass, &rollout);
            }
        }
        // A first revision that failed and came to life yet: nobody is served by calling it failed.
        RolloutState::Failed if done && rollout.from.is_none() && wanted > 0 => {
            complete(pass, &rollout);
        }
        RolloutState::Reverting if done => {
            let reason = rollout.reason.clone().unwrap_or_default();
            end(
                pass,
                RolloutState::Reverted,
                EventKind::RolloutReverted,
                &reason,
            );
        }
        RolloutState::Rolling | RolloutState::Reverting => {
            let deadline_after = pass.target.spec.update.progress_deadline.0;
            let now = pass.now;
            if let Some(moving) = pass
                .record
                .rollout
                .as_mut()
                .filter(|_| updated > rollout.best)
            {
                moving.best = updated;
                moving.deadline = now.after(deadline_after);
            }
            let moving = pass.record.rollout.as_mut();
            let deadline = moving.map_or(now, |moving| {
                moving.deadline = match drained {
                    Some(_) => extended(moving.deadline),
                    // A drain that was cancelled gives nobody more time.
                    None => moving.deadline.min(now.after(deadline_after)),
                };
                moving.deadline
            });
            if now >= deadline {
                let reason = why_late(pass, updated, wanted);
                fail(pass, &reason);
            } else {
                pass.foresee(deadline);
                if let Some(reason) = never_ready(pass) {
                    fail(pass, &reason);
                } else {
                    pass.begin_counting();
                }
            }
        }
        _ => {}
    }
}

/// The slots that a rollout has to bring to its revision.
fn rolls(pass: &Pass<'_>) -> u32 {
    let wanted = pass.record.wanted();
    if pass.seating.is_none() {
        return wanted;
    }
    let slots = pass.wanted().into_iter();
    let passed_over = slots.filter(|slot| pass.passed_over(*slot)).count();
    wanted.saturating_sub(u32::try_from(passed_over).unwrap_or(u32::MAX))
}

fn complete(pass: &mut Pass<'_>, rollout: &Rollout) {
    // At zero nothing has been proven: the last good revision stays what a revert goes back to.
    if rolls(pass) > 0 {
        pass.record.stable = Some(rollout.revision);
    }
    let mut reason = format!("every slot runs revision {}", rollout.revision);
    if let Some(seat) = held_back(pass).next() {
        let host = pass.host_name(&seat.placed.host);
        reason.push_str(&format!(
            "; {host}, which is drained, still serves what was before"
        ));
    }
    end(
        pass,
        RolloutState::Completed,
        EventKind::RolloutCompleted,
        &reason,
    );
}

pub(crate) fn end(pass: &mut Pass<'_>, state: RolloutState, kind: EventKind, reason: &str) {
    if let Some(rollout) = pass.record.rollout.as_mut() {
        rollout.state = state;
        if state == RolloutState::Completed {
            rollout.reason = None;
        }
    }
    let revision = pass.record.revision;
    pass.plan
        .events
        .push(EventDraft::of(pass.key, kind, reason).revision(revision));
}

/// What a rollout waited for in vain, in the words of the replicas.
pub(crate) fn why_late(pass: &Pass<'_>, updated: u32, wanted: u32) -> String {
    let deadline = pass.target.spec.update.progress_deadline;
    let said = pass
        .seats
        .values()
        .filter(|seat| seat.fresh)
        .find_map(|seat| {
            pass.workload
                .reports
                .get(&seat.number)?
                .status
                .reason
                .clone()
        });
    let said = said.map(|reason| format!(": {reason}")).unwrap_or_default();
    format!("no progress for {deadline}, {updated} of {wanted} available{said}")
}

/// A fresh replica that runs, says why it is not ready, and has used up its grace: waiting for the
/// deadline would change nothing.
pub(crate) fn never_ready(pass: &mut Pass<'_>) -> Option<String> {
    let patience = patience(pass)?;
    let mut wake = None;
    let mut found = None;
    for seat in pass.seats.values().filter(|seat| seat.fresh) {
        let Standing::Unready(since) = seat.standing else {
            continue;
        };
        let due = since.after(patience);
        if pass.now < due {
            wake = Some(wake.map_or(due, |earlier: wasmorch_api::Timestamp| earlier.min(due)));
            continue;
        }
        let reason = pass
            .workload
            .reports
            .get(&seat.number)?
            .status
            .reason
            .clone();
        let reason = reason.unwrap_or_else(|| "the probe does not pass".to_owned());
        let grace = pass.target.spec.health.start_grace;
        found = Some(format!("not ready within {grace}: {reason}"));
    }
    if let Some(due) = wake {
        pass.foresee(due);
    }
    found
}

/// How long a replica may run without being ready; with no probe nothing tells.
pub(crate) fn patience(pass: &Pass<'_>) -> Option<Duration> {
    let health = &pass.target.spec.health;
    let probe = health.ready.as_ref()?;
    Some(health.start_grace.0 + probe.interval.0 * probe.fail)
}

/// The running rollout cannot succeed.
pub(crate) fn fail(pass: &mut Pass<'_>, reason: &str) {
    let Some(rollout) = pass.record.rollout.clone() else {
        return;
    };
    let back = hold::earlier(&pass.record);
    match rollout.state {
        RolloutState::Rolling | RolloutState::Canary | RolloutState::Baking
            if rollout.together.is_some() =>
        {
            pass.fail_together(reason);
            return;
        }
        RolloutState::Rolling | RolloutState::Canary | RolloutState::Baking => {}
        RolloutState::Reverting => {
            let reason = format!("going back failed too: {reason}");
            set_reason(pass, &reason);
            end(
                pass,
                RolloutState::Failed,
                EventKind::RolloutFailed,
                &reason,
            );
            return;
        }
        _ => return,
    }
    set_reason(pass, reason);
    // While it is held, the target is the one before.
    let asked = pass.workload.revisions.get(&rollout.revision);
    let update = asked.unwrap_or(&pass.target).spec.update.clone();
    match (update.on_failure, back) {
        (OnFailure::Pause, Some(_)) => {
            end(pass, RolloutState::Paused, EventKind::RolloutPaused, reason);
        }
        (OnFailure::Revert, Some(back)) => {
            let deadline = pass.now.after(update.progress_deadline.0);
            pass.record.revision = back;
            if let Some(kind) = pass
                .workload
                .revisions
                .get(&back)
                .map(|revision| revision.kind)
            {
                pass.record.kind = kind;
            }
            if let Some(moving) = pass.record.rollout.as_mut() {
                moving.state = RolloutState::Reverting;
                moving.canary = None;
                moving.hold = None;
                moving.deadline = deadline;
                moving.best = 0;
            }
            // The seats were judged by the revision that has just been given up.
            pass.wake(pass.now);
        }
        (_, None) => end(pass, RolloutState::Failed, EventKind::RolloutFailed, reason),
    }
}

pub(crate) fn set_reason(pass: &mut Pass<'_>, reason: &str) {
    if let Some(rollout) = pass.record.rollout.as_mut() {
        rollout.reason = Some(reason.to_owned());
    }
}
