//! When to plan: soon after a change, at once after a user's, and never in a hot loop.
//!
//! Pure: instants are arguments.

use std::time::{Duration, Instant};

/// Changes that come together are planned together.
const DEBOUNCE: Duration = Duration::from_millis(2);
/// Between plans, so that inputs get their turn.
const BREATH_MIN: Duration = Duration::from_millis(5);
const BREATH_MAX: Duration = Duration::from_millis(500);
/// A wish to wake in the past, or at once, waits this long.
const WAKE_MIN: Duration = Duration::from_millis(20);
/// A plan that was refused or not stored is tried again after this.
const HOLD: Duration = Duration::from_secs(1);

/// The next time to plan.
#[derive(Debug)]
pub struct Pace {
    due: Option<Instant>,
    not_before: Instant,
    /// Plans in a row that changed something though nothing had come in.
    restless: u32,
}

impl Pace {
    /// A plan is due at once.
    pub fn new(now: Instant) -> Self {
        Self {
            due: Some(now),
            not_before: now,
            restless: 0,
        }
    }

    /// Something changed that a plan may depend on.
    pub fn changed(&mut self, now: Instant) {
        self.restless = 0;
        self.by((now + DEBOUNCE).max(self.not_before));
    }

    /// A user waits for what follows.
    pub fn urgent(&mut self, now: Instant) {
        self.restless = 0;
        self.by(now);
    }

    /// The planner wants to be asked again then.
    pub fn wake(&mut self, at: Instant, now: Instant) {
        self.by(at.max(now + WAKE_MIN));
    }

    fn by(&mut self, at: Instant) {
        self.due = Some(self.due.map_or(at, |due| due.min(at)));
    }

    /// When the next plan is due.
    pub fn due(&self) -> Option<Instant> {
        self.due
    }

    /// A plan is made now.
    pub fn begin(&mut self) {
        self.due = None;
    }

    /// The plan took so long; `wrote`: it changed something, so what follows from that is planned
    /// too. Planning takes at most a third of the time, and a plan that never comes to rest slows down.
    pub fn done(&mut self, now: Instant, took: Duration, wrote: bool) {
        let breath = (took * 2).clamp(BREATH_MIN, BREATH_MAX);
        self.not_before = now + breath;
        if wrote {
            let slowed = BREATH_MIN * (1 << self.restless.min(7));
            self.restless = self.restless.saturating_add(1);
            self.by(now + breath.max(slowed));
        }
    }

    /// The plan could not be carried out.
    pub fn hold(&mut self, now: Instant) {
        self.not_before = now + HOLD;
        self.due = Some(now + HOLD);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn idle(now: Instant) -> Pace {
        let mut pace = Pace::new(now);
        pace.begin();
        pace
    }

    #[test]
    fn changes_are_gathered_and_users_are_not_kept_waiting() {
        let now = Instant::now();
        let mut pace = idle(now);
        pace.changed(now);
        pace.changed(now + ms(1));
        assert_eq!(pace.due(), Some(now + DEBOUNCE));
        pace.urgent(now + ms(1));
        assert_eq!(pace.due(), Some(now + ms(1)));
    }

    #[test]
    fn planning_leaves_time_for_the_rest() {
        let now = Instant::now();
        let mut pace = idle(now);
        pace.done(now, ms(30), false);
        assert_eq!(pace.due(), None);
        pace.changed(now);
        assert_eq!(pace.due(), Some(now + ms(60)));
        pace.urgent(now + ms(1));
        assert_eq!(
            pace.due(),
            Some(now + ms(1)),
            "a user goes first all the same"
        );
    }

    #[test]
    fn a_plan_that_never_rests_slows_down() {
        let mut now = Instant::now();
        let start = now;
        let mut pace = idle(now);
        for _ in 0..20 {
            pace.begin();
            pace.done(now, ms(0), true);
            now = pace.due().unwrap();
        }
        assert!(now - start > Duration::from_secs(8), "{:?}", now - start);
        pace.changed(now);
        pace.begin();
        pace.done(now, ms(0), true);
        assert_eq!(
            pace.due(),
            Some(now + BREATH_MIN),
            "until something happens"
        );
    }

    #[test]
    fn waking_in_the_past_is_no_hot_loop() {
        let now = Instant::now();
        let mut pace = idle(now);
        pace.wake(now - ms(1), now);
        assert_eq!(pace.due(), Some(now + WAKE_MIN));
        pace.wake(now + ms(5_000), now);
        assert_eq!(pace.due(), Some(now + WAKE_MIN), "the earlier one counts");
    }

    #[test]
    fn what_failed_is_tried_again_later() {
        let now = Instant::now();
        let mut pace = idle(now);
        pace.hold(now);
        pace.changed(now);
        assert_eq!(pace.due(), Some(now + HOLD));
    }
}
