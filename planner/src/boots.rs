//! Two daemons that speak as one host: a data folder was copied, or is used twice.
//!
//! A daemon that starts again has another boot id, and the one before is never heard again, but for a
//! heartbeat that was late. Of two that live at once each comes back after the other. Owns when that is said;
//! that nothing new is given to such a host follows from its boot id changing all the time.
//!
//! Owns too which start may start what must not run twice (law 4): one at a time, and the store knows which
//! (`HostRecord::boot`) before it is told so. Another gets that only when no other start of the host has been
//! heard for so long that whatever it ran has ended by itself, or has told that nothing is left of it. Until
//! then nothing that the host says proves that such a replica has ended: it may speak of its own.

use std::collections::VecDeque;
use std::time::Duration;

use wasmorch_api::messages::HeardNote;
use wasmorch_api::{BootId, Heartbeat, HostId, Timestamp, WorkloadSpec};

use crate::alarms::SAY_EVERY;
use crate::cluster::{Cluster, Host};
use crate::observe::Observed;

/// Starts remembered: as many daemons as may share a folder and be seen to.
const LEFT_KEPT: usize = 8;
/// So many returns are no accident: a late heartbeat of a daemon that is gone makes two, its own and that of
/// the one after it.
const RETURNS_MIN: u32 = 3;
/// If each comes so soon after the one before.
const RETURNS_WITHIN: Duration = Duration::from_secs(10);

/// A start that was heard until another one was.
#[derive(Debug, Clone)]
pub(crate) struct Left {
    pub(crate) boot: BootId,
    pub(crate) heard: Timestamp,
    /// It has told that it ends, and that nothing of it runs that must not run twice.
    pub(crate) over: bool,
}

/// The starts that a host has left behind.
#[derive(Debug, Clone, Default)]
pub(crate) struct Boots {
    left: VecDeque<BootId>,
    /// The one heard last beside the current one, while something of it may run, and when that was.
    other: Option<(BootId, Timestamp)>,
    doubled: bool,
    returns: u32,
    returned: Timestamp,
    said: Option<Timestamp>,
}

impl Boots {
    /// The host speaks with another start than before; `true`: that two live at once is to be said.
    pub(crate) fn change(&mut self, from: Left, to: &BootId, now: Timestamp) -> bool {
        let returns = self.left.contains(to);
        self.left.retain(|one| *one != from.boot && one != to);
        if self.left.len() == LEFT_KEPT {
            self.left.pop_front();
        }
        self.left.push_back(from.boot.clone());
        if from.over {
            self.other.take_if(|(other, _)| other == to);
        } else {
            self.other = Some((from.boot, from.heard));
        }
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

    /// The store knows of a start that this leader has not heard.
    fn unheard(&mut self, boot: BootId, since: Timestamp) {
        self.other = Some((boot, since));
    }

    /// What another start ran has ended when that has not been heard for `wait`. `true`: it now has.
    fn settle(&mut self, wait: Duration, now: Timestamp) -> bool {
        let wait = match self.doubled {
            true => wait.max(RETURNS_WITHIN),
            false => wait,
        };
        let ended = { self.other.as_ref() }.is_some_and(|(_, heard)| now >= heard.after(wait));
        if ended {
            (self.other, self.doubled) = (None, false);
        }
        ended
    }

    /// For so long the leader has listened to nobody.
    pub(crate) fn stalled(&mut self, stalled: Duration) {
        if let Some((_, heard)) = &mut self.other {
            *heard = heard.after(stalled);
        }
    }

    /// Nothing of another start runs.
    pub(crate) fn alone(&self) -> bool {
        self.other.is_none()
    }

    /// Two daemons take turns.
    pub(crate) fn doubled(&self) -> bool {
        self.doubled
    }

    /// The start heard last beside the current one.
    pub(crate) fn other(&self) -> Option<&BootId> {
        self.other.as_ref().map(|(boot, _)| boot)
    }
}

/// What must not run twice has ended by itself so long after the last heartbeat of its host that a leader has
/// heard (the agent's `lease`); zero: this may.
pub(crate) fn once_for(spec: &WorkloadSpec) -> Duration {
    if !spec.runs_once() {
        return Duration::ZERO;
    }
    let disconnect = &spec.disconnect;
    let stop_after = { disconnect.stop_after }.map_or(Duration::ZERO, |after| after.0);
    (stop_after + disconnect.lost_after.0.max(stop_after)) / 2
}

impl Host {
    /// What the host is told to be the sequence of its set: what must not run twice starts by it.
    pub(crate) fn echoed_sequence(&self) -> u64 {
        match self.granted.is_some() && self.granted == self.boot {
            true => self.set_sequence,
            false => HeardNote::NOTHING_ONCE,
        }
    }

    /// The host speaks by another start than before.
    pub(crate) fn follow_boot(
        &mut self,
        from: Option<Left>,
        since: Timestamp,
        now: Timestamp,
    ) -> bool {
        let Some(to) = self.boot.clone() else {
            return false;
        };
        if let Some(from) = from {
            return self.boots.change(from, &to, now);
        }
        let stored = self.record.boot.clone();
        if let Some(stored) = stored.filter(|stored| *stored != to) {
            self.boots.unheard(stored, since);
        }
        false
    }
}

impl Cluster {
    /// Whether a start that has said that it ends has told of the end of all that must not run twice.
    pub(crate) fn is_over(&self, id: &HostId) -> bool {
        let Some(host) = self.hosts.get(id).filter(|host| host.leaves && host.synced) else {
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

    /// Which start of the host may start what must not run twice, now that it has spoken.
    pub(crate) fn grant(&mut self, beat: &Heartbeat, now: Timestamp, out: &mut Observed) {
        let Some(host) = self.hosts.get_mut(&beat.host) else {
            return;
        };
        let window = self.detection.dead(host.info());
        host.leaves = beat.leaving;
        let wait = match host.once_for.is_zero() {
            true => Duration::ZERO,
            false => window + host.once_for,
        };
        let settled = host.boots.settle(wait, now);
        let stored = host.record.boot.as_ref();
        let may = stored.is_none() || host.boots.alone();
        if stored != Some(&beat.boot) && may && !beat.leaving {
            host.record.boot = Some(beat.boot.clone());
            host.stored = false;
            self.to_write.insert(beat.host.clone());
            out.changed = true;
        }
        if settled {
            out.changed = true;
            self.host_changed(&beat.host);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn boot(n: u8) -> BootId {
        BootId::from_random([n; 10])
    }

    fn left(n: u8, heard: Timestamp) -> Left {
        let (boot, over) = (boot(n), false);
        Left { boot, heard, over }
    }

    #[test]
    fn a_late_heartbeat_is_no_second_daemon() {
        let mut boots = Boots::default();
        let at = |ms: u64| Timestamp(1_000_000 + ms);
        let mut change = |from, to, ms| boots.change(left(from, at(ms)), &boot(to), at(ms));
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
            if boots.change(left(from, now), &boot(to), now) {
                said.push(beat / 2);
            }
        }
        assert_eq!(said, [1, 61, 121]);
    }

    #[test]
    fn one_is_alone_when_the_other_has_not_been_heard_for_long_enough() {
        let (wait, at) = (Duration::from_secs(3), |ms| Timestamp(1_000_000 + ms));
        let mut boots = Boots::default();
        boots.change(left(1, at(0)), &boot(2), at(900));
        assert_eq!(boots.other(), Some(&boot(1)));
        assert!(!boots.settle(wait, at(2_999)));
        let mut stalled = boots.clone();
        stalled.stalled(Duration::from_secs(2));
        assert!(
            !stalled.settle(wait, at(4_999)),
            "the leader did not listen"
        );
        assert!(boots.settle(wait, at(3_000)), "since it was heard");
        assert!(boots.alone() && !boots.settle(wait, at(3_001)));

        for beat in 4..12 {
            let (from, to) = (2 - beat % 2, 1 + beat % 2);
            let now = at(u64::from(beat) * 1_000);
            boots.change(left(from, now), &boot(to), now);
            assert!(!boots.settle(Duration::ZERO, now) || beat < 8, "{beat}");
        }
        assert!(boots.doubled());
        assert!(!boots.settle(wait, at(20_999)), "they took turns");
        assert!(boots.settle(wait, at(21_000)));
        assert!(boots.alone() && !boots.doubled());
    }

    #[test]
    fn one_that_has_told_its_end_is_not_waited_for() {
        let mut boots = Boots::default();
        let now = Timestamp(1_000_000);
        let over = Left {
            over: true,
            ..left(1, now)
        };
        boots.change(over.clone(), &boot(2), now);
        assert!(boots.alone());
        boots.change(left(2, now), &boot(3), now);
        // Of the second nothing was told.
        boots.change(
            Left {
                boot: boot(3),
                ..over
            },
            &boot(4),
            now,
        );
        assert_eq!(boots.other(), Some(&boot(2)));
    }
}
