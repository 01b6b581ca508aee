//! What a rollout still waits for, once all of it is placed: slots that are not available yet.
//!
//! Owns that list, and when each slot wants to be looked at again. With it a host's report costs a look
//! at the slots it names; a large workload's rollout would otherwise be counted anew, slot by slot, for
//! every one of them. It decides nothing: whoever is in doubt counts anew.

use std::collections::{BTreeMap, BTreeSet};

use wasmorch_api::{Kind, RolloutState, Slot, Timestamp};

use crate::cluster::Workload;
use crate::judge;
use crate::rollout;
use crate::slots::{Pass, Standing};

/// The slots of a rollout that are not available yet.
#[derive(Debug, Clone, Default)]
pub(crate) struct Awaited {
    /// And when time alone may change that.
    slots: BTreeMap<Slot, Option<Timestamp>>,
    /// The same by time.
    due: BTreeSet<(Timestamp, Slot)>,
}

impl Awaited {
    fn put(&mut self, slot: Slot, due: Option<Timestamp>) {
        self.remove(slot);
        self.slots.insert(slot, due);
        self.due.extend(due.map(|at| (at, slot)));
    }

    fn remove(&mut self, slot: Slot) {
        if let Some(Some(at)) = self.slots.remove(&slot) {
            self.due.remove(&(at, slot));
        }
    }

    /// The slots to look at when these have changed; `None` when that does not do: the rollout may be
    /// through with them, or its time is up.
    pub(crate) fn scope(
        &self,
        workload: &Workload,
        changed: &BTreeSet<Slot>,
        now: Timestamp,
    ) -> Option<BTreeSet<Slot>> {
        let rollout = workload.record.rollout.as_ref()?;
        let due = self.due.iter().take_while(|(at, _)| *at <= now);
        let mut scope = changed.clone();
        scope.extend(due.map(|(_, slot)| *slot));
        let some_stay = self.slots.keys().any(|slot| !scope.contains(slot));
        (now < rollout.deadline && some_stay).then_some(scope)
    }
}

impl Pass<'_> {
    /// How many wanted slots are available, by what was counted before and the slots that are looked
    /// at; `None` when nothing was.
    pub(crate) fn count_on(&mut self) -> Option<u32> {
        let mut awaited = self.awaited.take()?;
        for slot in self.scope.clone().into_iter().flatten() {
            self.look_again(&mut awaited, slot);
        }
        if let Some((at, _)) = awaited.due.first() {
            self.foresee(*at);
        }
        let missing = u32::try_from(awaited.slots.len()).unwrap_or(u32::MAX);
        self.awaited = Some(awaited);
        Some(self.record.wanted().saturating_sub(missing))
    }

    /// From here on only what changes is counted, if nothing but readiness is waited for.
    pub(crate) fn begin_counting(&mut self) {
        if self.scope.is_some() || !self.only_awaits() {
            return;
        }
        let mut awaited = Awaited::default();
        for slot in self.wanted() {
            self.look_again(&mut awaited, slot);
        }
        self.awaited = Some(awaited);
    }

    fn look_again(&mut self, awaited: &mut Awaited, slot: Slot) {
        let (seat, mut foreseen) = (self.seats_of(slot).next(), None);
        let available = seat.is_some_and(|seat| {
            let due = self.available_at(seat);
            foreseen = due.filter(|due| self.now < *due);
            due.is_some() && foreseen.is_none()
        });
        if self.wants(slot) && !available {
            let due = seat.and_then(|seat| match seat.standing {
                Standing::Ready(since) => Some(since.after(judge::ready_for(self))),
                Standing::Unready(since) => {
                    let due = since.after(rollout::patience(self)?);
                    (self.now < due).then_some(due)
                }
                _ => None,
            });
            awaited.put(slot, due);
        } else {
            awaited.remove(slot);
        }
        if let Some(due) = foreseen {
            self.foresee(due);
        }
    }

    /// Whether nothing but the readiness of what is placed moves the rollout, as far as is looked at.
    pub(crate) fn only_awaits(&self) -> bool {
        let rollout = self.record.rollout.as_ref();
        let rolls = rollout.is_some_and(|rollout| {
            let moves = matches!(
                rollout.state,
                RolloutState::Rolling | RolloutState::Reverting
            );
            moves && rollout.hold.is_none() && rollout.together.is_none()
        });
        let mut numbers = self.seats.keys().zip(self.seats.keys().skip(1));
        rolls
            && matches!(
                self.target.kind,
                Kind::Http | Kind::Messages | Kind::Service
            )
            && self.seating.is_none()
            && self.target.spec.scale.is_none()
            && self.record.crash_loop.is_empty()
            && self.record.on_trial().is_none()
            && numbers.all(|((slot, _), (next, _))| slot != next)
    }
}
