//! The agent's time: the wall clock's words at a monotonic clock's pace.
//!
//! Owns the rule that it never goes backward: a wall clock that is set forward is followed (its
//! words are what people read), one that is set back is not (timers would stand still).

use std::time::{Instant, SystemTime};

use wasmorch_api::Timestamp;

/// Forward steps of the wall clock smaller than this are drift, and not worth a jump.
const STEP_MS: u64 = 1_000;

/// See the module's head.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    wall: Timestamp,
    at: Instant,
}

impl Clock {
    pub(crate) fn new() -> Self {
        Self::set(SystemTime::now().into(), Instant::now())
    }

    /// It begins at what the wall clock shows.
    pub fn set(wall: Timestamp, at: Instant) -> Self {
        Self { wall, at }
    }

    pub(crate) fn now(&mut self) -> Timestamp {
        self.follow(SystemTime::now().into(), Instant::now())
    }

    /// The time at an instant at which the wall clock shows `wall`.
    pub fn follow(&mut self, wall: Timestamp, at: Instant) -> Timestamp {
        let now = self.wall.after(at.saturating_duration_since(self.at));
        if wall.0 > now.0.saturating_add(STEP_MS) {
            (self.wall, self.at) = (wall, at);
            return wall;
        }
        now
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn follows_forward_and_never_back() {
        let start = Instant::now();
        let mut clock = Clock::set(Timestamp(10_000), start);
        let after = |ms| start + Duration::from_millis(ms);
        assert_eq!(
            clock.follow(Timestamp(10_100), after(100)),
            Timestamp(10_100)
        );
        assert_eq!(
            clock.follow(Timestamp(5_000), after(200)),
            Timestamp(10_200),
            "set back"
        );
        assert_eq!(
            clock.follow(Timestamp(90_000), after(300)),
            Timestamp(90_000),
            "set forward"
        );
        assert_eq!(
            clock.follow(Timestamp(10_400), after(400)),
            Timestamp(90_100)
        );
    }
}
