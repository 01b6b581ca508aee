//! Crash loops: replicas that fail wherever they are placed.
//!
//! Owns `Record::crash_loop`: how often in a row a slot's placements failed, and until when the next
//! one waits. Restarts on one host are the host's; what a failure means for a rollout is `rollout`'s.
//!
//! A record is one message, so no more than [`SLOTS_MAX`] slots are remembered. When more fail, the newest
//! failure takes the place of the one that is tried again first, and goes on from its count: a slot that is
//! not remembered waits until the longest wait is over. So some of them try for all, and once they hold the
//! others follow.

use std::time::Duration;

use wasmorch_api::record::CrashLoop;
use wasmorch_api::{EventKind, Record, ReplicaState, ReplicaStatus, Slot, Timestamp};

use crate::rollout;
use crate::slots::{Pass, Seat, Standing};
use crate::write::EventDraft;

/// The first wait of a crash loop; doubles with each placement that fails.
const BACKOFF_MS: u64 = 30_000;
/// Its longest wait.
const BACKOFF_MAX_MS: u64 = 300_000;
/// So many hosts are tried at once before it counts as one.
const HOSTS_TRIED: usize = 3;
/// So many slots are remembered.
const SLOTS_MAX: usize = 2_000;
/// And of so many of them, the newest, what they said.
const REASONS_MAX: usize = 8;
/// Ready for so long, a replica has left its failures behind; the host counts its starts anew after as
/// much.
const STEADY: Duration = Duration::from_secs(60);

impl Pass<'_> {
    /// A host's starts are used up: the slot moves at once while there is another host to try, and
    /// waits longer each time when all have been tried.
    pub(crate) fn note_failure(&mut self, seat: &Seat) {
        let said = self.workload.reports.get(&seat.number);
        let reason = said.map_or_else(String::new, |known| why_it_ended(&known.status));
        let reason = Some(reason).filter(|reason| !reason.is_empty());
        let reason = reason.unwrap_or_else(|| "no reason given".to_owned());
        let per_host = self.target.spec.per_host();
        let hosts = self.cluster.hosts.values().filter(|host| host.known());
        // There is no other host for the one that each of them shall have.
        let hosts = if per_host { 1 } else { hosts.count().max(1) };
        let tried = hosts.min(HOSTS_TRIED);
        let slot = seat.placed.slot;
        let before = make_room(&mut self.record.crash_loop, slot);
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
        keep_newest_reasons(&mut self.record.crash_loop);
        // A revert may have begun in this very pass: then this seat is no longer the wanted one's.
        // Nor is it the held one's.
        let held = self.record.held().is_some();
        if seat.fresh && seat.placed.revision == self.record.revision && !held {
            rollout::fail(self, &format!("replica failed: {reason}"));
        }
    }

    /// Whether nothing may start in a slot yet, for it has failed too often.
    pub(crate) fn crash_loop_waits(&mut self, slot: Slot) -> bool {
        let until = waits_until(&self.record, slot).filter(|until| *until > self.now);
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

/// In the words of its host, or by how it ended. Nothing goes wrong in a service that comes to its end, and
/// yet it is to run on.
fn why_it_ended(status: &ReplicaStatus) -> String {
    let code = status
        .exit_code
        .map(|code| format!(" with exit code {code}"));
    let code = code.unwrap_or_default();
    match (&status.reason, status.state) {
        (Some(reason), _) => reason.clone(),
        (None, ReplicaState::Completed) => format!(
            "it ended{code}, and a service is to run on: deploy it with --job (kind = \"job\") if it is to end"
        ),
        (None, _) if !code.is_empty() => format!("it ended{code}"),
        _ => String::new(),
    }
}

/// Takes a slot's entry out; where no further one fits, that of another which is tried again first.
fn make_room(entries: &mut Vec<CrashLoop>, slot: Slot) -> Option<CrashLoop> {
    let own = entries.iter().position(|one| one.slot == slot);
    let at = own.or_else(|| {
        let full = entries.len() >= SLOTS_MAX;
        let all = entries.iter().enumerate().filter(|_| full);
        all.min_by_key(|(_, one)| one.until).map(|(at, _)| at)
    });
    at.map(|at| entries.remove(at))
}

/// The newest is the last.
fn keep_newest_reasons(entries: &mut [CrashLoop]) {
    let older = entries.len().saturating_sub(REASONS_MAX);
    for one in &mut entries[..older] {
        one.reason = String::new();
    }
}

/// Until when nothing starts in a slot.
fn waits_until(record: &Record, slot: Slot) -> Option<Timestamp> {
    let all = record.crash_loop.iter();
    let mut of_it = all.clone().filter(|one| one.revision == record.revision);
    if all.len() < SLOTS_MAX || all.clone().any(|one| one.slot == slot) {
        return of_it.find(|one| one.slot == slot).map(|one| one.until);
    }
    of_it.map(|one| one.until).min()
}

#[cfg(test)]
mod tests {
    use wasmorch_api::{Kind, RevisionNumber};

    use super::*;

    fn failed(slot: u64, until: u64) -> CrashLoop {
        CrashLoop {
            slot: Slot(slot),
            revision: RevisionNumber(1),
            placements: 3,
            until: Timestamp(until),
            reason: "x".repeat(1_024),
            host: Some("h".repeat(20).parse().unwrap()),
        }
    }

    fn note(record: &mut Record, slot: u64, until: u64) -> Option<CrashLoop> {
        let before = make_room(&mut record.crash_loop, Slot(slot));
        record.crash_loop.push(failed(slot, until));
        keep_newest_reasons(&mut record.crash_loop);
        before
    }

    #[test]
    fn an_end_without_a_word_is_told_by_its_code() {
        let key = wasmorch_api::WorkloadKey::new("shop".parse().unwrap(), "web".parse().unwrap());
        let replica = "1-1-1".parse().unwrap();
        let ended = |state, exit_code| {
            let at = (state, Timestamp(0));
            let status = ReplicaStatus::new(&key, replica, RevisionNumber(1), at);
            why_it_ended(&ReplicaStatus {
                exit_code,
                ..status
            })
        };
        let well = ended(ReplicaState::Completed, Some(0));
        assert!(well.starts_with("it ended with exit code 0, and a service is to run on"));
        assert!(well.contains("--job"), "{well}");
        assert_eq!(
            ended(ReplicaState::Failed, Some(3)),
            "it ended with exit code 3"
        );
        assert_eq!(ended(ReplicaState::Failed, None), "");
    }

    #[test]
    fn a_record_fits_its_message_however_many_slots_fail() {
        let key = wasmorch_api::WorkloadKey::new("shop".parse().unwrap(), "web".parse().unwrap());
        let mut record = Record::new(&key, Kind::Http, RevisionNumber(1), None, Timestamp(0));
        for slot in 1..=SLOTS_MAX as u64 {
            assert_eq!(note(&mut record, slot, 1_000 + slot), None);
        }
        let until = |record: &Record, slot| waits_until(record, Slot(slot)).map(|at| at.0);
        assert_eq!(until(&record, 7), Some(1_007));
        // The first to be tried again makes room, and its count goes on.
        let before = note(&mut record, 30_000, 9_000);
        assert_eq!(
            before.map(|one| (one.slot, one.placements)),
            Some((Slot(1), 3))
        );
        for unknown in [1, 20_000] {
            assert_eq!(until(&record, unknown), Some(1_002), "slot {unknown}");
        }
        assert_eq!(until(&record, 7), Some(1_007));
        let bytes = serde_json::to_vec(&record).unwrap().len();
        assert!(bytes < 512 << 10, "{bytes}");
        let said = |one: &&CrashLoop| !one.reason.is_empty();
        assert_eq!(record.crash_loop.iter().filter(said).count(), REASONS_MAX);
        assert!(record.crash_loop.last().is_some_and(|one| said(&one)));
        // With room again, only what has failed waits.
        record.crash_loop.retain(|one| one.slot != Slot(9));
        assert_eq!(until(&record, 20_000), None);
    }
}
