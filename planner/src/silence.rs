//! Mass silence (DESIGN, law 6): when many hosts fall silent together, it is more likely the network
//! than the hosts, and replacing them all would only load those that are left.
//!
//! Owns when a silent host may be called dead. It knows heartbeats' times and nothing of what hosts
//! run. The leader's own stall never gets here: `observe` moves the times by it first.

use std::time::Duration;

use wasmorch_api::{HostId, Timestamp};

use crate::planted::{self, Bug};

/// Hosts that fall silent within this of each other do so together.
const TOGETHER: Duration = Duration::from_secs(10);
/// Fewer are never a mass.
const HOSTS_MIN: usize = 3;
/// More than this share of the hosts that lived is one, in hundredths.
const SHARE: usize = 30;
/// While it lasts, one host is replaced this often.
const REPLACE_EVERY: Duration = Duration::from_secs(60);

/// A host that is silent, though not called dead yet.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Silent {
    pub(crate) heard: Timestamp,
    pub(crate) host: HostId,
    /// Silent for as long as a dead one.
    pub(crate) due: bool,
}

/// What is remembered of silences.
#[derive(Debug, Clone, Default)]
pub(crate) struct Silence {
    /// When hosts that were called dead lately had last been heard.
    lately: Vec<(Timestamp, HostId)>,
    mass: bool,
    replaced: Option<Timestamp>,
}

/// What a look has found.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// These are dead.
    pub(crate) dead: Vec<HostId>,
    /// A mass silence begins: so many of so many.
    pub(crate) alarm: Option<(usize, usize)>,
}

impl Silence {
    /// `silent` are all that are silent, `living` counts all hosts not called dead, silent ones
    /// included.
    pub(crate) fn look(
        &mut self,
        mut silent: Vec<Silent>,
        living: usize,
        now: Timestamp,
    ) -> Verdict {
        silent.sort();
        let mut verdict = Verdict::default();
        let Some(first) = silent.iter().find(|one| one.due) else {
            self.mass = false;
            return verdict;
        };
        let from = first.heard;
        let until = from.after(TOGETHER);
        self.lately
            .retain(|(heard, _)| from.since(*heard) <= TOGETHER || *heard > from);
        if !self.mass {
            let together = silent.iter().filter(|one| one.heard <= until).count();
            let (many, of) = (together + self.lately.len(), living + self.lately.len());
            self.mass = many >= HOSTS_MIN && many * 100 > of * SHARE;
            self.mass &= !planted::is(Bug::MassSilenceIgnored);
            verdict.alarm = self.mass.then_some((many, of));
        }
        let due = silent.into_iter().filter(|one| one.due);
        let rested = self
            .replaced
            .is_none_or(|last| now.since(last) >= REPLACE_EVERY);
        let allowed = match (self.mass, rested) {
            (false, _) => usize::MAX,
            (true, true) => 1,
            (true, false) => 0,
        };
        for one in due.take(allowed) {
            self.lately.push((one.heard, one.host.clone()));
            self.replaced = Some(now);
            verdict.dead.push(one.host);
        }
        verdict
    }

    /// The host has been started anew: its silence was its own and not the network's.
    pub(crate) fn restarted(&mut self, host: &HostId) {
        self.lately.retain(|(_, one)| one != host);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(n: u8) -> HostId {
        HostId::from_random([n; 10])
    }

    fn silent(hosts: impl IntoIterator<Item = (u8, u64)>, now: u64) -> Vec<Silent> {
        let one = |(n, heard): (u8, u64)| Silent {
            heard: Timestamp(heard),
            host: host(n),
            due: now - heard >= 5_000,
        };
        hosts.into_iter().map(one).collect()
    }

    #[test]
    fn one_by_one_they_die_at_once() {
        let mut silence = Silence::default();
        for (n, heard) in [(1, 0), (2, 20_000), (3, 40_000), (4, 60_000)] {
            let now = heard + 5_000;
            let verdict = silence.look(silent([(n, heard)], now), 9, Timestamp(now));
            assert_eq!(verdict.dead, vec![host(n)]);
            assert_eq!(verdict.alarm, None);
        }
    }

    #[test]
    fn together_they_die_one_a_minute_and_it_is_said_once() {
        let mut silence = Silence::default();
        let all = [(1, 100), (2, 90), (3, 2_000), (4, 1_000)];
        let verdict = silence.look(silent(all, 5_200), 10, Timestamp(5_200));
        assert_eq!(verdict.alarm, Some((4, 10)));
        assert_eq!(verdict.dead, vec![host(2)], "the one silent for longest");
        let rest = [(1, 100), (3, 2_000), (4, 1_000)];
        let verdict = silence.look(silent(rest, 60_000), 9, Timestamp(60_000));
        assert_eq!(verdict, Verdict::default());
        let verdict = silence.look(silent(rest, 65_200), 9, Timestamp(65_200));
        assert_eq!((verdict.dead, verdict.alarm), (vec![host(1)], None));
    }

    #[test]
    fn a_few_or_a_small_share_are_no_mass() {
        let two = Silence::default().look(silent([(1, 0), (2, 0)], 5_000), 2, Timestamp(5_000));
        assert_eq!(two.dead.len(), 2, "fewer than three");
        let three = silent([(1, 0), (2, 0), (3, 0)], 5_000);
        let small = Silence::default().look(three.clone(), 10, Timestamp(5_000));
        assert_eq!(
            (small.dead.len(), small.alarm),
            (3, None),
            "30 % and no more"
        );
        let large = Silence::default().look(three, 9, Timestamp(5_000));
        assert_eq!(large.dead.len(), 1);
    }

    #[test]
    fn those_that_fell_silent_a_little_earlier_count() {
        let mut silence = Silence::default();
        for n in 1..=2 {
            let heard = u64::from(n) * 4_000;
            let now = Timestamp(heard + 5_000);
            assert_eq!(
                silence.look(silent([(n, heard)], now.0), 9, now).dead.len(),
                1
            );
        }
        let mut restarted = silence.clone();
        let third = silent([(3, 12_000)], 17_000);
        let verdict = silence.look(third.clone(), 7, Timestamp(17_000));
        assert_eq!(verdict.alarm, Some((3, 9)));
        assert_eq!(verdict.dead, vec![], "one was replaced seconds ago");
        // Unless one of them has come back since, with a start of its own.
        restarted.restarted(&host(1));
        let verdict = restarted.look(third, 8, Timestamp(17_000));
        assert_eq!((verdict.dead, verdict.alarm), (vec![host(3)], None));
    }
}
