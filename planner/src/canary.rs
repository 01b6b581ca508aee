//! A revision that proves itself on a few replicas first.
//!
//! Owns where canaries stand, and how a rollout moves over `canary` and `baking`. While a revision is
//! on trial the record's own revision stays the one from which it came: every slot keeps its replica,
//! and whatever is lost, moved or scaled meanwhile is of the revision that has proven itself. A
//! canary stands beside the replica of its slot, as its successor, over and above `max_surge`; when
//! the canaries are promoted the record takes their revision, and the rollout goes on as any other:
//! their slots are done already.
//!
//! ```text
//!            all available          for `bake`, or `promote`
//!   canary ───────────────▶ baking ─────────────────────────▶ rolling
//!     ▲  │ deadline,          │ one is not available
//!     │  │ replica given up,  │
//!     │  │ `judge`            │
//!     │  └──────▶ reverting   │        (on_failure = pause: paused)
//!     └───────────────────────┘
//! ```
//!
//! A slot takes a canary while nothing else happens to it: never one whose replica is to leave its
//! host, and never as a third; nobody is pre-empted for one. With `promote = "manual"` baking has no end but a person's.

use std::collections::BTreeSet;

use wasmorch_api::record::Rollout;
use wasmorch_api::spec::{Promote, UpdateOrder, WorkloadSpec};
use wasmorch_api::{EventKind, Kind, Record, RevisionNumber, RolloutState, Slot, Timestamp};

use crate::cluster::Workload;
use crate::judge;
use crate::plan::StopReason;
use crate::planted::{self, Bug};
use crate::rollout;
use crate::slots::{Pass, Seat, Standing};
use crate::write::EventDraft;

/// The revision that stays while another is on trial; `None`: the rollout goes without canaries.
/// They need something proven to stand beside, and must not meet what may not run twice.
pub(crate) fn base(
    known: Option<&Workload>,
    stable: Option<RevisionNumber>,
    spec: &WorkloadSpec,
    kind: Kind,
) -> Option<RevisionNumber> {
    spec.update.canary.as_ref()?;
    let (workload, stable) = known.zip(stable)?;
    let before = workload.revisions.get(&stable)?;
    let runs = workload.record.wanted() > 0 && before.kind == kind;
    (runs && may_stand_beside(&before.spec, spec)).then_some(stable)
}

/// Whether a replica of a revision may run beside those of the one before.
#[must_use]
pub fn may_stand_beside(before: &WorkloadSpec, spec: &WorkloadSpec) -> bool {
    let several = |spec: &WorkloadSpec| !spec.per_host() && !spec.runs_once();
    let starts_first = spec.update.order == UpdateOrder::StartFirst;
    several(spec) && several(before) && starts_first
}

/// Ends a trial well: the record's revision is the canaries' from here on.
pub(crate) fn promote(record: &mut Record, workload: &Workload, now: Timestamp) {
    let Some(rollout) = record.rollout.as_mut() else {
        return;
    };
    let target = workload.revisions.get(&rollout.revision);
    let patience = target.map(|target| target.spec.update.progress_deadline.0);
    rollout.canary = None;
    rollout.state = RolloutState::Rolling;
    rollout.deadline = now.after(patience.unwrap_or_default());
    rollout.best = 0;
    rollout.reason = None;
    record.revision = rollout.revision;
    record.kind = target.map_or(record.kind, |target| target.kind);
}

/// What has become of the trial in this pass.
enum Verdict {
    Goes(Rollout),
    Promoted(String),
}

/// Places canaries, ends those that are in the way, and moves the rollout's state.
pub(crate) fn step(pass: &mut Pass<'_>) {
    let Some(revision) = pass.record.on_trial() else {
        return;
    };
    let Some(target) = pass.workload.revisions.get(&revision).cloned() else {
        return;
    };
    let wishes = target.spec.update.canary.clone().unwrap_or_default();
    let count = wishes.replicas.min(pass.record.wanted());
    let slots = slots(pass, count as usize);
    let base = (pass.target.clone(), pass.record.revision);
    pass.exchange(target, revision);
    place(pass, &slots);
    let verdict = advance(pass, count);
    pass.exchange(base.0, base.1);
    match verdict {
        Some(Verdict::Promoted(reason)) => {
            let (workload, now) = (pass.workload, pass.now);
            promote(&mut pass.record, workload, now);
            let event = EventDraft::of(pass.key, EventKind::RolloutPromoted, reason);
            pass.plan.events.push(event.revision(revision));
            // Seats and target belong to the revision that has just been left.
            pass.wake(pass.now);
        }
        Some(Verdict::Goes(rollout)) => pass.record.rollout = Some(rollout),
        None => {}
    }
}

/// The slots that take a canary: those that have one keep it, the lowest others come next.
fn slots(pass: &Pass<'_>, count: usize) -> BTreeSet<Slot> {
    let quiet = |slot: &Slot| {
        let mut seats = pass.seats_of(*slot);
        let first = seats.next();
        seats.next().is_none() && first.is_none_or(|seat| seat.leaves.is_none())
    };
    let mut wanted: Vec<Slot> = pass.wanted().into_iter().filter(quiet).collect();
    let held: BTreeSet<Slot> = pass.others.keys().map(|(slot, _)| *slot).collect();
    wanted.sort_by_key(|slot| (!held.contains(slot), *slot));
    wanted.into_iter().take(count).collect()
}

/// With the canaries as the pass's seats: ends and starts them.
fn place(pass: &mut Pass<'_>, slots: &BTreeSet<Slot>) {
    let seats: Vec<Seat> = pass.seats.values().cloned().collect();
    let mut taken = BTreeSet::new();
    for seat in seats {
        match seat.standing {
            Standing::Gone => {
                pass.stop(&seat, StopReason::HostDead);
                pass.say_lost(&seat);
            }
            Standing::GivenUp => {
                pass.stop(&seat, StopReason::GivenUp);
                pass.note_failure(&seat);
            }
            _ if !slots.contains(&seat.placed.slot)
                || seat.leaves.is_some()
                || !taken.insert(seat.placed.slot) =>
            {
                pass.stop_if_heard(&seat, StopReason::Canary);
            }
            _ => {}
        }
    }
    let moves = pass.record.rollout.as_ref().is_some_and(|rollout| {
        matches!(rollout.state, RolloutState::Canary | RolloutState::Baking)
    });
    for slot in slots.iter().filter(|_| moves) {
        let free = pass.seats_of(*slot).next().is_none();
        if free && !pass.crash_loop_waits(*slot) {
            pass.start(*slot, None);
        }
    }
}

/// How the trial goes on; `None`: as it is.
fn advance(pass: &mut Pass<'_>, count: u32) -> Option<Verdict> {
    if let Some(reason) = judge::verdict(pass) {
        rollout::fail(pass, &format!("canary: {reason}"));
        return None;
    }
    let mut rollout = pass.record.rollout.clone()?;
    let update = pass.target.spec.update.clone();
    let wishes = update.canary.unwrap_or_default();
    let seats: Vec<Seat> = pass.seats.values().cloned().collect();
    let unheard = seats.iter().any(|seat| seat.standing == Standing::Unheard);
    if count == 0 || unheard {
        // At zero nothing is proven, and a new leader judges nothing that it has not heard of.
        return None;
    }
    // What bakes has been available already; since when is what a new leader does not know.
    let bakes = rollout.state == RolloutState::Baking;
    let stands = |seat: &&Seat| bakes && seat.serves() || pass.available(seat);
    let available = seats.iter().filter(stands).count() as u32;
    let now = pass.now;
    match rollout.state {
        RolloutState::Canary if available >= count => {
            let mut baking = rollout.canary.take().unwrap_or_default();
            baking.baking_since = Some(now);
            rollout.state = RolloutState::Baking;
            // What is lost while it bakes has until then to be back.
            rollout.deadline = now.after(wishes.bake.0 + update.progress_deadline.0);
            rollout.canary = Some(baking);
            rollout.reason = None;
            pass.wake(now.after(wishes.bake.0));
        }
        RolloutState::Canary => {
            if available > rollout.best && rollout.canary.as_ref()?.baking_since.is_none() {
                rollout.best = available;
                rollout.deadline = now.after(update.progress_deadline.0);
            }
            pass.record.rollout = Some(rollout.clone());
            if now >= rollout.deadline {
                let reason = rollout::why_late(pass, available, count);
                rollout::fail(pass, &format!("canary: {reason}"));
            } else {
                pass.wake(rollout.deadline);
                if let Some(reason) = rollout::never_ready(pass) {
                    rollout::fail(pass, &format!("canary: {reason}"));
                }
            }
            return None;
        }
        RolloutState::Baking if available < count && !planted::is(Bug::CanaryNotWatched) => {
            if rollout.canary.as_ref().is_some_and(|step| step.baked) {
                // It has waited for a person, for who knows how long.
                rollout.deadline = rollout.deadline.max(now.after(update.progress_deadline.0));
            }
            rollout.state = RolloutState::Canary;
            pass.wake(rollout.deadline);
        }
        RolloutState::Baking => {
            let step = rollout.canary.as_mut()?;
            let due = step.baking_since.unwrap_or(now).after(wishes.bake.0);
            if now < due {
                pass.wake(due);
                return None;
            }
            if wishes.promote == Promote::Auto {
                let said = format!("{count} for {}: no complaint", wishes.bake);
                return Some(Verdict::Promoted(said));
            }
            if step.baked && rollout.reason.is_some() {
                return None;
            }
            step.baked = true;
            let name = &pass.key.name;
            rollout.reason = Some(format!("waits for `wasmorch rollout promote {name}`"));
        }
        _ => return None,
    }
    Some(Verdict::Goes(rollout))
}
