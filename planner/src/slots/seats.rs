//! The seats of a pass: which placements it looks at, and which slots it is to fill.

use wasmorch_api::{HostId, PlacementNumber, Slot};

use super::Pass;
use super::seat::{Seat, Standing, standing};
use crate::absent;
use crate::cluster::Placed;
use crate::moves;

impl Pass<'_> {
    pub(super) fn take_seats(&mut self) {
        let preempted = self.pool.preempted.of(self.key).cloned();
        for number in preempted.iter().flatten() {
            if let Some(placed) = self.workload.placements.get(number) {
                let class = self.class_of(&placed.host);
                self.delta.add(self.pool, &placed.host, class, -1);
            }
        }
        let gone = |number: &PlacementNumber| {
            let gone = preempted.as_ref();
            gone.is_some_and(|gone| gone.contains(number))
        };
        let Some(scope) = &self.scope else {
            let placements = self.workload.placements.iter();
            for (number, placed) in placements.filter(|(number, _)| !gone(number)) {
                let seat = self.seat(*number, placed);
                self.add_seat(seat);
            }
            return;
        };
        let numbers: Vec<_> = scope
            .iter()
            .flat_map(|slot| self.workload.numbers_of(*slot))
            .collect();
        for number in numbers {
            if let Some(placed) = self.workload.placements.get(&number) {
                let seat = self.seat(number, placed);
                self.add_seat(seat);
            }
        }
    }

    fn seat(&self, number: PlacementNumber, placed: &Placed) -> Seat {
        let on_trial = self.record.on_trial() == Some(placed.revision);
        let fresh = placed.revision == self.record.revision && number >= self.record.fresh_from;
        let host = self.cluster.hosts.get(&placed.host);
        let known = (self.workload, number, placed);
        Seat {
            number,
            placed: placed.clone(),
            standing: standing(self.cluster, host, known, self.now),
            fresh: fresh || on_trial,
            leaves: moves::leaving(host, &self.record, number),
        }
    }

    fn add_seat(&mut self, seat: Seat) {
        if seat.standing == Standing::Unheard && !self.cluster.settled(self.now) {
            // A host that is unknown is given until then to speak.
            let settled = self.cluster.since.after(self.cluster.detection.settle());
            self.wake(settled);
        }
        if seat.standing == Standing::Away
            && let Some(host) = self.cluster.hosts.get(&seat.placed.host)
            && let Some(lost_at) = absent::lost_at(self.workload, &seat.placed, host)
        {
            self.wake(lost_at);
        }
        let on_trial = self.record.on_trial() == Some(seat.placed.revision);
        let seats = if on_trial {
            &mut self.others
        } else {
            &mut self.seats
        };
        seats.insert((seat.placed.slot, seat.number), seat);
    }

    /// The seats of one slot.
    pub(crate) fn seats_of(&self, slot: Slot) -> impl Iterator<Item = &Seat> {
        let (first, last) = (PlacementNumber(0), PlacementNumber(u64::MAX));
        self.seats
            .range((slot, first)..=(slot, last))
            .map(|(_, seat)| seat)
    }

    /// The host of the replica that one which starts in this slot takes the place of. What is lost counts
    /// for nothing already.
    pub(crate) fn goes(&self, slot: Slot) -> Option<HostId> {
        let (first, last) = (PlacementNumber(0), PlacementNumber(u64::MAX));
        // A canary's is of the other revision.
        let others = self.others.range((slot, first)..=(slot, last));
        let mut all = self.seats_of(slot).chain(others.map(|(_, seat)| seat));
        let there = all.find(|seat| seat.standing != Standing::Gone)?;
        Some(there.placed.host.clone())
    }

    /// Placements that may be running: not those whose hosts are dead, nor where one on every host
    /// has no business any more.
    pub(crate) fn live(&self) -> usize {
        let seats = self.seats.values();
        let counts = |seat: &&Seat| {
            seat.standing != Standing::Gone
                && (self.seating.is_none() || self.wants(seat.placed.slot))
        };
        seats.filter(counts).count()
    }

    /// The slots that shall be filled, as far as they are looked at.
    pub(crate) fn wanted(&self) -> Vec<Slot> {
        if let Some(seating) = &self.seating {
            let looked_at = |slot: &Slot| {
                let scope = self.scope.as_ref();
                scope.is_none_or(|slots| slots.contains(slot))
            };
            return seating.slots().filter(looked_at).collect();
        }
        let last = u64::from(self.record.seats(&self.target.spec));
        match &self.scope {
            Some(slots) => slots.range(..=Slot(last)).copied().collect(),
            None => (1..=last).map(Slot).collect(),
        }
    }

    /// Whether a slot shall be filled.
    pub(crate) fn wants(&self, slot: Slot) -> bool {
        match &self.seating {
            Some(seating) => seating.wants(slot),
            None if self.target.kind.ends() => {
                let mut runs = self.record.runs();
                runs.any(|run| run.slots().contains(&slot))
            }
            None => slot.0 <= u64::from(self.record.seats(&self.target.spec)),
        }
    }

    /// Whether something may start in a slot, as far as that is known before its host is chosen.
    pub(crate) fn open(&self, slot: Slot) -> bool {
        let seating = self.seating.as_ref();
        seating.is_none_or(|seating| seating.open(slot).is_some())
    }
}
