//! What of a workload ends before anything is placed: what is lost or used up, what is not wanted, and
//! what another placement of the same slot stands for.

use std::collections::BTreeSet;

use wasmorch_api::{PlacementNumber, Slot};

use super::{Pass, Seat, Standing};
use crate::booked::Booked;
use crate::plan::StopReason;
use crate::planted::{self, Bug};

impl Pass<'_> {
    pub(super) fn end_gone_and_used_up(&mut self) {
        let seats: Vec<Seat> = self
            .seats
            .values()
            .filter(|seat| matches!(seat.standing, Standing::Gone | Standing::GivenUp))
            .cloned()
            .collect();
        let per_host = self.target.spec.per_host() && !self.record.stopped;
        for seat in seats {
            match seat.standing {
                // Nobody could take its place; `per_host` counts it no more.
                Standing::Gone if per_host && self.host_is_known(&seat) => {}
                // With nowhere else to go, taking it out of its host's set would only stop what may
                // well be running behind a broken network.
                Standing::Gone if self.stays_home(&seat) || self.nowhere_else(&seat) => {}
                Standing::Gone if self.stays_lost(&seat) => {}
                Standing::Gone => {
                    self.stop(&seat, StopReason::HostDead);
                    self.say_lost(&seat);
                }
                Standing::GivenUp => {
                    self.stop(&seat, StopReason::GivenUp);
                    self.note_failure(&seat);
                }
                _ => {}
            }
        }
    }

    fn host_is_known(&self, seat: &Seat) -> bool {
        self.cluster.hosts.contains_key(&seat.placed.host)
    }

    /// Whether a silent host's wanted seat fits on no other host; it counts as unplaced then.
    pub(crate) fn nowhere_else(&mut self, seat: &Seat) -> bool {
        let slot = seat.placed.slot;
        let others = self.seats_of(slot).nth(1).is_some();
        let known = self.host_is_known(seat);
        if !self.wants(slot) || others || !known {
            return false;
        }
        if !self.workload.revisions.contains_key(&seat.placed.revision) {
            return false;
        }
        !self.fits_elsewhere(seat)
    }

    /// Whether there is room for a seat on a host that takes something new. If so the seat no longer
    /// counts, as it is about to be stopped; if not its slot is unplaced.
    pub(crate) fn fits_elsewhere(&mut self, seat: &Seat) -> bool {
        let (slot, lost) = (seat.placed.slot, seat.standing == Standing::Gone);
        self.vacate(seat);
        if self.best(None, &BTreeSet::new(), None).is_some() {
            self.vacated = Some(seat.number);
            return true;
        }
        self.end_fill();
        // A lost one of a higher priority takes the room of what goes later.
        if lost && self.home(slot).is_none() {
            let wants = Booked::of(self.key, &self.target.spec, seat.placed.args.as_deref());
            if self.could_preempt(slot, wants) {
                self.vacated = Some(seat.number);
                return true;
            }
        }
        let class = self.class_of(&seat.placed.host);
        self.delta.add(self.pool, &seat.placed.host, class, 1);
        self.unplaced += 1;
        false
    }

    /// The seat no longer counts for where others go.
    pub(crate) fn vacate(&mut self, seat: &Seat) {
        self.full = false;
        self.end_fill();
        let class = self.class_of(&seat.placed.host);
        self.delta.add(self.pool, &seat.placed.host, class, -1);
    }

    pub(super) fn end_unwanted(&mut self) {
        let wanted = u64::from(self.record.seats(&self.target.spec));
        let extra: Vec<Seat> = self
            .seats
            .range((Slot(wanted + 1), PlacementNumber(0))..)
            .map(|(_, seat)| seat)
            .filter(|seat| seat.standing != Standing::Unheard)
            .cloned()
            .collect();
        for seat in extra {
            self.stop(&seat, StopReason::NotWanted);
        }
        self.forget_crash_loops_beyond(wanted);
    }

    pub(super) fn keep_the_best(&mut self, slot: Slot) {
        let is_there = |seat: &&Seat| seat.standing != Standing::Gone;
        if self.seats_of(slot).filter(is_there).nth(1).is_none() {
            // Nothing to choose, as of nearly all.
            if !self.record.crash_loop.is_empty() {
                let stays = |seat: &&Seat| seat.fresh && seat.leaves.is_none();
                let one = self.seats_of(slot).find(is_there).filter(stays);
                if let Some(seat) = one.cloned() {
                    self.forgive(&seat);
                }
            }
            return;
        }
        let seats: Vec<Seat> = self.seats_of(slot).filter(is_there).cloned().collect();
        let best_first = |fresh: bool| {
            let mut seats: Vec<Seat> = seats
                .iter()
                .filter(|seat| seat.fresh == fresh)
                .cloned()
                .collect();
            // An old one only has to serve, wherever it is, until its successor does.
            seats.sort_by_key(|seat| {
                let leaves = seat.leaves.is_some();
                (fresh && leaves, !seat.serves(), leaves, seat.number)
            });
            seats
        };
        let (fresh, old) = (best_first(true), best_first(false));
        if let ([one, other], []) = (fresh.as_slice(), old.as_slice())
            && self.keeps_originals()
            && one.leaves.is_none()
            && other.leaves.is_none()
        {
            let (first, second) = if one.number < other.number {
                (one, other)
            } else {
                (other, one)
            };
            self.reconcile(first, second);
            return;
        }
        let available = fresh
            .first()
            .is_some_and(|seat| planted::is(Bug::SuccessorNotAwaited) || self.available(seat));
        let mut fresh = fresh.into_iter();
        if let Some(first) = fresh.next() {
            self.forgive(&first);
            // Where one leaves for another it serves until the other does.
            let mut awaited = !available && first.leaves.is_none();
            for seat in fresh {
                if seat.leaves.is_none() {
                    self.stop_if_heard(&seat, StopReason::Duplicate);
                } else if !(awaited && seat.serves()) {
                    self.stop_if_heard(&seat, StopReason::Moved);
                } else {
                    awaited = false;
                }
            }
            if first.leaves.is_some() && !first.serves() && !old.is_empty() {
                self.stop_if_heard(&first, StopReason::Moved);
            }
        }
        for seat in old.iter().skip(usize::from(!available)) {
            self.stop_if_heard(seat, StopReason::Replaced);
        }
    }
}
