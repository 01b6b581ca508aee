//! Crash loops: replicas that fail wherever they are placed.
//!
//! Owns `Record::crash_loop`: how often in a row a slot's placements failed, and until when the next
//! one waits. Restarts on one host are the host's; what a failure means for a rollout is `rollout`'s.

use std::time::Duration;

use wasmorch_api::record::CrashLoop;
use wasmorch_api::{EventKind, Slot, Timestamp};

use crate::rollout;
use crate::slots::{Pass, Seat, Standing};
use crate::write::EventDraft;

/// The first wait of a crash loop; doubles with each placement that fails.
const BACKOFF_MS: u64 = 30_000;
/// Its longest wait.
const BACKOFF_MAX_MS: u64 = 300_000;
/// So many hosts are tried at once before it counts as one.
const HOSTS_TRIED: usize = 3;
/// Ready for so long, a replica has left its failures behind; the host counts its starts anew after as
/// much.
const STEADY: Duration = Duration::from_secs(60);

impl Pass<'_> {
    /// A host's starts are used up: the slot moves at once while there is another host to try, and
    /// waits longer each time when all have been tried.
    pub(crate) fn note_failure(&mut self, seat: &Seat) {
        let said = self.workload.reports.get(&seat.number);
        let reason = said.and_then(|known| known.status.reason.clone());
        let reason = reason.unwrap_or_else(|| "no reason given".to_owned());
        let per_host = self.target.spec.per_host();
        let hosts = self.cluster.hosts.values().filter(|host| host.known());
        // There is no other host for the one that each of them shall have.
        let hosts = if per_host { 1 } else { hosts.count().max(1) };
        let tried = hosts.min(HOSTS_TRIED);
        let slot = seat.placed.slot;
        let at = self.record.crash_loop.iter();
        let at = { at }.position(|one| one.slot == slot);
        let before = at.map(|at| self.record.crash_loop.remove(at));
        let before = before.filter(|one| one.revision == seat.placed.revision);
        let placements = before.map_or(0, |one| one.placements) + 1;
        let mut wait = 0;
        if placements as usize >= tried {
            let doublings = placements.saturating_sub(tried as u32).min(8);
            wait = (BACKOFF_MS << doublings).min(BACKOFF_MAX_MS);
            let text = format!("slot {slot} failed on {placements} placements in a row: {reason}");
            let event = EventDraft::of(self.key, EventKind::CrashLoop, text);
            { &mut self.plan.events }.push(event.revision(seat.placed.revision));
        }
        self.record.crash_loop.push(CrashLoop {
            slot,
            revision: seat.placed.revision,
            placements,
            until: Timestamp(self.now.0 + wait),
            reason: reason.clone(),
            host: per_host.then(|| seat.placed.host.clone()),
        });
        // A revert may have begun in this very pass: then this seat is no longer the wanted one's.
        // Nor is it the held one's.
        let held = self.record.held().is_some();
        if seat.fresh && seat.placed.revision == self.record.revision && !held {
            rollout::fail(self, &format!("replica failed: {reason}"));
        }
    }

    /// Whether nothing may start in a slot yet, for it has failed too often.
    pub(crate) fn crash_loop_waits(&mut self, slot: Slot) -> bool {
        let (now, revision) = (self.now, self.record.revision);
        let waits = self.record.crash_loop.iter().find(|one| {
            let same = one.slot == slot && one.revision == revision;
            same && one.until > now
        });
        let until = waits.map(|one| one.until);
        if let Some(until) = until {
            self.wake(until);
        }
        until.is_some()
    }

    /// What has been ready for a good while is past its crash loop. What comes up only to fail again
    /// is not: else it would be started without a pause, here and there.
    pub(crate) fn forgive(&mut self, seat: &Seat) {
        let slot = seat.placed.slot;
        let looped = { self.record.crash_loop.iter() }.any(|one| one.slot == slot);
        let Standing::Ready(since) = seat.standing else {
            return;
        };
        let due = since.after(STEADY);
        if looped && self.now < due {
            self.wake(due);
        } else if looped {
            self.record.crash_loop.retain(|one| one.slot != slot);
        }
    }

    /// Only wanted slots are remembered.
    pub(crate) fn forget_crash_loops_beyond(&mut self, wanted: u64) {
        self.record.crash_loop.retain(|one| one.slot.0 <= wanted);
    }
}
