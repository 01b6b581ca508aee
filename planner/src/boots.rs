//! Two daemons that speak as one host: a data folder was copied, or is used twice.
//!
//! A daemon that starts again has another boot id, and the one before is never heard again, but for a
//! heartbeat that was late. Of two that live at once each comes back after the other. Owns when that is said;
//! that nothing new is given to such a host follows from its boot id changing all the time.
//!
//! Owns too which start may start what must not run twice (law 4): one at a time, and the store knows which
//! (`HostRecord::boot`) before it is told so. Another gets that only when the one that has it has told that
//! nothing is left of it, or was not heard for so long that whatever it ran has ended by itself. A start that
//! never had it has nothing that anybody would wait for. Until then nothing that another says proves that
//! such a replica has ended: it may speak of its own.

use std::collections::VecDeque;
use std::time::Duration;

use wasmorch_api::messages::HeardNote;
use wasmorch_api::{BootId, Heartbeat, HostId, Timestamp};

use crate::alarms::SAY_EVERY;
use crate::cluster::{Cluster, Host};
use crate::observe::Observed;
use crate::planted::{self, Bug};

/// Starts remembered: as many daemons as may share a folder and be seen to.
const LEFT_KEPT: usize = 8;
/// So many returns are no accident: a late heartbeat of a daemon that is gone makes two, its own and that of
/// the one after it.
const RETURNS_MIN: u32 = 3;
/// If each comes so soon after the one before.
const RETURNS_WITHIN: Duration = Duration::from_secs(10);

/// The starts that a host has left behind.
#[derive(Debug, Clone, Default)]
pub(crate) struct Boots {
    /// The last one last.
    left: VecDeque<BootId>,
    /// When this leader last heard the start that has the grant.
    holder_heard: Option<Timestamp>,
    doubled: bool,
    returns: u32,
    returned: Timestamp,
    said: Option<Timestamp>,
}

impl Boots {
    /// The host speaks with another start than before; `true`: that two live at once is to be said.
    pub(crate) fn change(&mut self, from: BootId, to: &BootId, now: Timestamp) -> bool {
        let returns = self.left.contains(to);
        self.left.retain(|one| *one != from && one != to);
        if self.left.len() == LEFT_KEPT {
            self.left.pop_front();
        }
        self.left.push_back(from);
        if !returns {
            return false;
        }
        if now.since(self.returned) > RETURNS_WITHIN {
            self.returns = 0;
        }
        self.returns += 1;
        self.returned = now;
        self.doubled |= self.returns >= RETURNS_MIN;
        let rested = self.said.is_none_or(|last| now.since(last) >= SAY_EVERY);
        let say = self.returns >= RETURNS_MIN && rested;
        if say {
            self.said = Some(now);
        }
        say
    }

    /// Those that took turns do so no more.
    fn calm(&mut self, now: Timestamp) -> bool {
        let over = self.doubled && now.since(self.returned) > RETURNS_WITHIN;
        self.doubled &= !over;
        over
    }

    /// For so long the leader has listened to nobody.
    pub(crate) fn stalled(&mut self, stalled: Duration) {
        if let Some(heard) = &mut self.holder_heard {
            *heard = heard.after(stalled);
        }
    }

    /// Two daemons take turns.
    pub(crate) fn doubled(&self) -> bool {
        self.doubled
    }

    /// The start that spoke before the current one.
    pub(crate) fn before(&self) -> Option<&BootId> {
        self.left.back()
    }
}

impl Host {
    /// Nothing that must not run twice may run by another start of the host than the one that speaks.
    pub(crate) fn alone(&self) -> bool {
        self.record.boot.is_none() || self.record.boot == self.boot
    }

    /// What the host is told to be the sequence of its set: what must not run twice starts by it.
    pub(crate) fn echoed_sequence(&self) -> u64 {
        let stored = self.granted.is_some() && self.granted == self.boot;
        // Another may have been chosen, which is on its way to the store.
        let granted = stored && self.record.boot == self.boot;
        match granted || planted::is(Bug::GrantIgnored) {
            true => self.set_sequence,
            false => HeardNote::NOTHING_ONCE,
        }
    }

    /// It has told that it runs its set and nothing else.
    fn holds_its_set_alone(&self, beat: &Heartbeat) -> bool {
        let told = self.synced && self.status_seq >= beat.status_seq;
        let ended = self.unsure.is_empty() && self.leaving.is_empty();
        told && ended && beat.sequence >= self.set_sequence
    }

    fn grant_to(&mut self, boot: Option<BootId>) {
        self.record.boot = boot;
        self.stored = false;
    }
}

impl Cluster {
    /// Whether a start that has said that it ends has told of the end of all that must not run twice.
    fn is_over(&self, id: &HostId) -> bool {
        let ends = |host: &&Host| {
            let told = host.leaves.is_some_and(|seq| host.status_seq >= seq);
            told && host.synced && host.alone()
        };
        let Some(host) = self.hosts.get(id).filter(ends) else {
            return false;
        };
        let held = host.set.iter().flat_map(|set| &set.groups);
        let held = held.flat_map(|group| {
            let key = group.key();
            let slots = group.slots.iter();
            slots.map(move |slot| (key.clone(), slot.placement))
        });
        let mut all = held.chain(host.leaving.iter().cloned());
        host.unsure.is_empty()
            && all.all(|(key, number)| {
                let workload = self.workloads.get(&key);
                let known = workload.and_then(|one| Some((one, one.reports.get(&number)?)));
                let Some((workload, known)) = known.filter(|(_, known)| known.host == *id) else {
                    // Not even begun.
                    return true;
                };
                let revision = workload.revisions.get(&known.status.revision);
                let once = revision.is_none_or(|revision| revision.spec.runs_once());
                !once || known.status.state.ended()
            })
    }

    /// The start that has the grant ends, and has told all: the next one may have it at once, whoever leads.
    pub(crate) fn note_over(&mut self, id: &HostId, out: &mut Observed) {
        if self.is_over(id)
            && let Some(host) = self.hosts.get_mut(id)
            && host.record.boot.is_some()
        {
            host.grant_to(None);
            self.to_write.insert(id.clone());
            out.changed = true;
        }
    }

    /// Which start of the host may start what must not run twice, now that it has spoken.
    pub(crate) fn grant(&mut self, beat: &Heartbeat, now: Timestamp, out: &mut Observed) {
        let Some(host) = self.hosts.get(&beat.host) else {
            return;
        };
        let holds = host.record.boot.as_ref() == Some(&beat.boot);
        let heard = host.boots.holder_heard.unwrap_or(self.since);
        let free = host.record.boot.is_none() || now >= heard.after(self.ended_within(host));
        let moves = !holds && free && !beat.leaving;
        let less = moves || holds && host.once_less && host.holds_its_set_alone(beat);
        // Of what it names and is no more nothing is known.
        let less = less && !host.names_removed;
        let once_for = less.then(|| self.longest_once(host));
        let Some(host) = self.hosts.get_mut(&beat.host) else {
            return;
        };
        if let Some(once_for) = once_for {
            (host.once_for, host.once_less) = (once_for, false);
        } else if (holds || moves) && host.boots.holder_heard.is_none() {
            (host.once_for, host.once_less) = (host.once_for.max(self.once_for), true);
        }
        host.leaves = beat.leaving.then_some(beat.status_seq);
        let calm = host.boots.calm(now);
        if moves {
            host.grant_to(Some(beat.boot.clone()));
            self.to_write.insert(beat.host.clone());
        }
        if holds || moves {
            host.boots.holder_heard = Some(now);
        }
        self.note_over(&beat.host, out);
        if moves || calm {
            out.changed = true;
            self.host_changed(&beat.host);
        }
    }

    /// So long after the start that has the grant was last heard all has surely ended that it ran.
    pub(crate) fn ended_within(&self, host: &Host) -> Duration {
        let once_for = match host.boots.holder_heard {
            Some(_) => host.once_for,
            None => host.once_for.max(self.once_for),
        };
        let wait = match once_for.is_zero() {
            true => Duration::ZERO,
            false => self.detection.dead(host.info()) + once_for,
        };
        match host.boots.doubled {
            true => wait.max(RETURNS_WITHIN),
            false => wait,
        }
    }

    /// The longest of what the host's set names.
    fn longest_once(&self, host: &Host) -> Duration {
        let groups = host.set.iter().flat_map(|set| &set.groups);
        let times = groups.filter_map(|group| {
            let workload = self.workloads.get(&group.key())?;
            Some(workload.revisions.get(&group.revision)?.spec.ended_alone())
        });
        times.max().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn boot(n: u8) -> BootId {
        BootId::from_random([n; 10])
    }

    #[test]
    fn a_late_heartbeat_is_no_second_daemon() {
        let mut boots = Boots::default();
        let at = |ms: u64| Timestamp(1_000_000 + ms);
        let mut change = |from, to, ms| boots.change(boot(from), &boot(to), at(ms));
        assert!(!change(1, 2, 0));
        assert!(!change(2, 1, 200), "late");
        assert!(!change(1, 2, 900));
        // And again after its next start, an hour later.
        assert!(!change(2, 3, 3_600_000));
        assert!(!change(3, 2, 3_600_200));
        assert!(!change(2, 3, 3_600_900));
        assert!(!boots.doubled());
    }

    #[test]
    fn two_that_take_turns_are_said_once_a_minute() {
        let mut boots = Boots::default();
        let mut said = Vec::new();
        for beat in 0..260_u64 {
            let (from, to) = match beat % 2 {
                0 => (1, 2),
                _ => (2, 1),
            };
            let now = Timestamp(1_000_000 + beat * 500);
            if boots.change(boot(from), &boot(to), now) {
                said.push(beat / 2);
            }
        }
        assert_eq!(said, [1, 61, 121]);
    }

    #[test]
    fn those_that_took_turns_are_two_until_one_has_been_quiet() {
        let at = |s: u8| Timestamp(1_000_000 + u64::from(s) * 1_000);
        let mut boots = Boots::default();
        for beat in 1..9 {
            let (from, to) = (2 - beat % 2, 1 + beat % 2);
            boots.change(boot(from), &boot(to), at(beat));
        }
        assert!(boots.doubled());
        assert!(!boots.calm(at(18)) && boots.doubled());
        assert!(boots.calm(at(19)) && !boots.doubled());
        assert!(!boots.calm(at(20)), "it is said once");
    }
}
