//! Time for the planner: milliseconds that only go forward within a term.
//!
//! Wall time is read once, when the clock is made; from there the monotonic clock counts. A step of
//! the wall clock then neither kills hosts nor raises the dead. What is meant by people's clocks (the times
//! of a schedule) follows it through `Cluster::follow_clock`.

use std::time::{Duration, Instant, SystemTime};

use wasmorch_api::Timestamp;

/// A clock, free to copy.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    base: Timestamp,
    start: Instant,
}

impl Clock {
    /// Reads the wall clock.
    pub(crate) fn new() -> Self {
        Self {
            base: Timestamp::from(SystemTime::now()),
            start: Instant::now(),
        }
    }

    /// Now.
    pub(crate) fn now(&self) -> Timestamp {
        self.base.after(self.start.elapsed())
    }

    /// What the machine's clock shows, which may have been set since.
    pub(crate) fn wall(&self) -> Timestamp {
        Timestamp::from(SystemTime::now())
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
        let clock = Clock::new();
        let later = clock.now().after(Duration::from_secs(2));
        let distance = clock.instant(later).duration_since(Instant::now());
        assert!(distance <= Duration::from_secs(2) && distance > Duration::from_millis(1_900));
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
