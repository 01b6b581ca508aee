//! Time for the planner: milliseconds that only go forward within a term.
//!
//! It begins with the store's own time and not with this machine's: what one leader has stored (until when a
//! rollout may take, when it may go on) the next one reads, and clocks of two controllers may be minutes apart.
//! From there the monotonic clock counts: a step of the wall clock neither kills hosts nor raises the dead.
//! What is meant by people's clocks (the times of a schedule) follows this machine's clock where that is set
//! while the term lasts, through `Cluster::follow_clock`.

use std::time::{Duration, Instant, SystemTime};

use wasmorch_api::Timestamp;

/// A clock, free to copy.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    base: Timestamp,
    start: Instant,
    /// What the machine's clock showed at the start.
    shown: Timestamp,
}

impl Clock {
    /// It is now that time, by the store.
    pub(crate) fn at(store: Timestamp) -> Self {
        Self {
            base: store,
            start: Instant::now(),
            shown: Timestamp::from(SystemTime::now()),
        }
    }

    /// Now.
    pub(crate) fn now(&self) -> Timestamp {
        self.base.after(self.start.elapsed())
    }

    /// What people's clocks show: this time, set as the machine's clock has been since.
    pub(crate) fn wall(&self) -> Timestamp {
        self.wall_when(Timestamp::from(SystemTime::now()), self.now())
    }

    /// One that was as wrong as the store's is set like that. One that was wrong alone is right once it has been
    /// set, and what it shows is nearer then than what it has leapt by.
    fn wall_when(&self, shown: Timestamp, now: Timestamp) -> Timestamp {
        let sum = shown.0.saturating_add(self.base.0);
        let leapt = sum.saturating_sub(self.shown.0);
        match shown.0.abs_diff(now.0) < leapt.abs_diff(now.0) {
            true => shown,
            false => Timestamp(leapt),
        }
    }

    /// The instant at which this clock shows `time`, for timers.
    pub(crate) fn instant(&self, time: Timestamp) -> Instant {
        self.start + time.since(self.base)
    }
}

/// Lets one of many like warnings through.
#[derive(Debug)]
pub(crate) struct Seldom {
    every: Duration,
    last: Option<Instant>,
    held_back: u64,
}

impl Seldom {
    pub(crate) fn new(every: Duration) -> Self {
        Self {
            every,
            last: None,
            held_back: 0,
        }
    }

    /// `Some(held back since the last)` when it is time to speak again.
    pub(crate) fn now(&mut self) -> Option<u64> {
        if self.last.is_some_and(|last| last.elapsed() < self.every) {
            self.held_back += 1;
            return None;
        }
        self.last = Some(Instant::now());
        Some(std::mem::take(&mut self.held_back))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instants_and_timestamps_agree() {
        let clock = Clock::at(Timestamp(1_000_000));
        let later = clock.now().after(Duration::from_secs(2));
        let distance = clock.instant(later).duration_since(Instant::now());
        assert!(distance <= Duration::from_secs(2) && distance > Duration::from_millis(1_900));
    }

    #[test]
    fn a_leader_whose_clock_is_ahead_counts_by_the_stores_time() {
        let minutes = |minutes: u64| Duration::from_secs(minutes * 60);
        let store = Timestamp(1_700_000_000_000);
        let now = store.after(minutes(30));
        let clock = |shown| Clock {
            shown,
            ..Clock::at(store)
        };
        assert!(Clock::at(store).now().since(store) < minutes(1));

        let ahead = clock(store.after(minutes(5)));
        assert_eq!(ahead.wall_when(now.after(minutes(5)), now), now);
        assert_eq!(ahead.wall_when(now, now), now, "it has been set right");
        let behind = clock(Timestamp(store.0 - 300_000));
        assert_eq!(behind.wall_when(Timestamp(now.0 - 300_000), now), now);
        assert_eq!(behind.wall_when(now, now), now, "it has been set right");

        // On the store's machine: time was not known yet, or the machine was suspended.
        let same = clock(store);
        assert_eq!(same.wall_when(now, now), now);
        let later = now.after(minutes(60));
        assert_eq!(same.wall_when(later, now), later);
        // And suspended, with a clock of its own.
        let later_there = later.after(minutes(5));
        assert_eq!(ahead.wall_when(later_there, now), later);
    }

    #[test]
    fn one_of_many_warnings_is_let_through() {
        let mut seldom = Seldom::new(Duration::from_secs(3600));
        assert_eq!(seldom.now(), Some(0));
        assert_eq!((seldom.now(), seldom.now()), (None, None));
        let mut often = Seldom::new(Duration::ZERO);
        assert_eq!((often.now(), often.now()), (Some(0), Some(0)));
    }
}
