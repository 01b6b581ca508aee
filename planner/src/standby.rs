//! Standbys: what is left of a workload at zero, and what follows when a request wakes one.
//!
//! Owns which placements are told to rest. At zero a workload with `scale.min = 0` keeps a few seats;
//! whatever is placed there is prepared by its host and not started. A host that is asked for it starts
//! one without anybody's leave, and says so: the count follows that, so that its slot is wanted, and
//! from then on it is a replica like any other. How many the load asks for is `scaler`'s.

use wasmorch_api::{EventKind, PlacementNumber, ReplicaState};

use crate::plan::Shift;
use crate::slots::{Pass, Seat, Standing};
use crate::write::EventDraft;

impl Pass<'_> {
    /// The count follows what requests have woken; `true`: it was raised.
    pub(crate) fn follow_woken(&mut self) -> bool {
        let woken = |seat: &&Seat| seat.placed.standby && self.is_woken(seat);
        let last = self.seats.values().rfind(woken);
        let Some(seat) = last.filter(|seat| seat.placed.slot.0 > u64::from(self.record.desired))
        else {
            return false;
        };
        let (from, host) = (self.record.desired, seat.placed.host.clone());
        let to = u32::try_from(seat.placed.slot.0).unwrap_or(u32::MAX);
        self.record.desired = to;
        let reason = format!(
            "{from} to {to}: a request woke it on {}",
            self.host_name(&host)
        );
        let mut event = EventDraft::of(self.key, EventKind::Scaled, reason).host(&host);
        event.detail = serde_json::json!({"from": from, "to": to});
        self.plan.events.push(event);
        true
    }

    /// Who serves until another one listens at rest: between running and resting nobody is there, and a
    /// message to a plain subject would be lost. Alone it goes all the same when nothing can be lost, for a
    /// gateway holds a request and a stream a message.
    pub(crate) fn last_to_listen(&self) -> Option<PlacementNumber> {
        let mut fresh = self.seats.values().filter(|seat| seat.fresh);
        let listens = |seat: &Seat| seat.placed.standby && self.listens_at_rest(seat);
        if fresh.clone().any(listens) {
            return None;
        }
        // Of whichever revision: one that is held leaves what it found.
        let mut all = self.seats.values();
        let last = all.find(|seat| !seat.placed.standby && seat.serves())?;
        let lives = |seat: &Seat| seat.is_there() && seat.leaves.is_none();
        let comes = |seat: &Seat| seat.number != last.number && lives(seat);
        (fresh.any(comes) || self.target.spec.bindings.hears_plain_subjects())
            .then_some(last.number)
    }

    /// It rests, has said that it hears what comes, and stays where it is.
    pub(crate) fn listens_at_rest(&self, seat: &Seat) -> bool {
        let report = self.workload.reports.get(&seat.number);
        let report = report.filter(|known| known.host == seat.placed.host);
        let stays = seat.is_there() && seat.leaves.is_none();
        stays && report.is_some_and(|known| known.status.listens)
    }

    /// Its host knows that it is to rest, and has started it.
    fn is_woken(&self, seat: &Seat) -> bool {
        let report = self.workload.reports.get(&seat.number);
        let report = report.filter(|known| known.host == seat.placed.host);
        report.is_some_and(|known| {
            let state = known.status.state;
            known.status.standby && matches!(state, ReplicaState::Starting | ReplicaState::Running)
        })
    }

    /// At zero what stays is told to rest, one after the other; otherwise nothing of the wanted revision
    /// rests. What another revision has left resting ends when its successor is there.
    pub(crate) fn shift_standbys(&mut self) {
        let rests = self.record.rests(&self.target.spec);
        let other = |seat: &&Seat| seat.placed.standby != rests && seat.fresh;
        let told = self.seats.values().filter(other).filter(|seat| {
            let heard = !matches!(seat.standing, Standing::Unheard | Standing::Gone);
            heard && self.wants(seat.placed.slot)
        });
        let last = rests.then(|| self.last_to_listen()).flatten();
        let told = told.filter(|seat| last != Some(seat.number));
        let shifts = told.map(|seat| Shift {
            key: self.key.clone(),
            placement: seat.number,
            host: seat.placed.host.clone(),
            standby: rests,
        });
        let shifts: Vec<Shift> = shifts.collect();
        self.plan.shift.extend(shifts);
    }
}
