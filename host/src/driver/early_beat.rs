//! When a heartbeat is sent before its time, to say that this host's gateways have passed a table.
//!
//! Pure. A host that drains goes on answering until it hears that no gateway sends there any more
//! (`planner`, "withdrawals"): the beat of every second would be the longest part of each step of a rollout.
//! So the runners are asked as soon as a table withdraws something, and what they say is told at once. But
//! however fast tables change, so many hosts that all do this add no more than two beats a second each.

use std::time::Duration;

use tokio::time::Instant;

/// From one early heartbeat to the next.
const EVERY: Duration = Duration::from_millis(500);
/// From one question that came too early to the next.
const AGAIN: Duration = Duration::from_millis(50);

/// The newest table of which the leader is to hear.
#[derive(Debug, Default)]
pub(super) struct EarlyBeat {
    owed: Option<u64>,
    /// The runners are asked.
    asked: bool,
    not_before: Option<Instant>,
}

impl EarlyBeat {
    /// A table that withdraws something went to the runners.
    pub(super) fn owe(&mut self, sequence: u64) {
        self.owed = self.owed.max(Some(sequence));
    }

    /// Whether the runners are to be asked now; `true` once.
    pub(super) fn ask(&mut self, now: Instant) -> bool {
        let due = self.owed.is_some() && self.not_before.is_none_or(|at| at <= now);
        due && !std::mem::replace(&mut self.asked, true)
    }

    /// When to look again, if nothing happens before.
    pub(super) fn wake_at(&self) -> Option<Instant> {
        self.not_before
            .filter(|_| self.owed.is_some() && !self.asked)
    }

    /// What the runners have applied; whether to tell it at once.
    pub(super) fn applied(&mut self, sequence: u64, now: Instant) -> bool {
        let asked = std::mem::take(&mut self.asked);
        let Some(owed) = self.owed else { return false };
        if sequence < owed {
            // The answer to a question from before, perhaps.
            if asked {
                self.not_before = Some(now + AGAIN);
            }
            return false;
        }
        if self.not_before.is_some_and(|at| now < at) {
            return false;
        }
        self.owed = None;
        self.not_before = Some(now + EVERY);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_is_sent_at_once_and_the_next_after_a_while() {
        let mut beat = EarlyBeat::default();
        let start = Instant::now();
        assert!(!beat.ask(start) && !beat.applied(5, start));
        beat.owe(7);
        assert!(beat.ask(start) && !beat.ask(start), "once");
        assert!(beat.applied(7, start));
        // Many at once are one beat.
        (8..100).for_each(|sequence| beat.owe(sequence));
        assert!(!beat.ask(start));
        assert_eq!(beat.wake_at(), Some(start + EVERY));
        assert!(beat.ask(start + EVERY) && beat.wake_at().is_none());
        assert!(beat.applied(99, start + EVERY));
        assert!(!beat.ask(start + 9 * EVERY), "nothing is owed");
    }

    #[test]
    fn an_answer_from_before_says_nothing_yet() {
        let mut beat = EarlyBeat::default();
        let start = Instant::now();
        beat.owe(7);
        assert!(beat.ask(start));
        assert!(!beat.applied(6, start), "the second's own question");
        assert!(!beat.ask(start) && beat.ask(start + AGAIN));
        assert!(beat.applied(8, start + AGAIN));
        // What the runners say by themselves will do as well.
        beat.owe(9);
        assert!(!beat.applied(9, start), "too soon after the last one");
        assert!(beat.applied(9, start + 2 * EVERY));
    }
}
