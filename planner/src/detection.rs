//! How long a host may be silent.
//!
//! Owns the windows: one setting of the controller, and what follows from it for each host. What a
//! silence means is `observe`'s and `silence`'s.

use std::time::Duration;

use wasmorch_api::HostInfo;

use crate::DEAD_AFTER;

/// So many heartbeats must be missing, however short the window is set: one may be lost, and the next
/// late.
const BEATS_MIN: u32 = 3;
/// A new leader waits at least so long for hosts to speak: it does not know yet how often they do.
const SETTLE_MIN: Duration = Duration::from_secs(3);
/// The leader ticks five times a second; a gap beyond these is its own stall, not the hosts' silence.
const STALL_MIN: Duration = Duration::from_millis(400);
const STALL_MAX: Duration = Duration::from_secs(1);

/// When silence counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Detection {
    /// A host silent for this long is dead: its replicas are replaced. One whose heartbeats are rarer
    /// than a third of it is given three of them.
    pub dead_after: Duration,
}

impl Default for Detection {
    fn default() -> Self {
        Self {
            dead_after: DEAD_AFTER,
        }
    }
}

impl Detection {
    /// A host silent for this long is dead.
    pub(crate) fn dead(self, info: &HostInfo) -> Duration {
        self.dead_after.max(info.heartbeat_every() * BEATS_MIN)
    }

    /// A host silent for this long is suspect: nothing new is placed there. 3 s where 5 s are death.
    pub(crate) fn suspect(self, info: &HostInfo) -> Duration {
        self.dead(info) * 3 / 5
    }

    /// A new leader has given every host the time to speak.
    pub(crate) fn settle(self) -> Duration {
        self.dead_after.max(SETTLE_MIN)
    }

    /// A gap between two ticks beyond this is the leader's own stall.
    pub(crate) fn stall(self) -> Duration {
        (self.dead_after / 5).clamp(STALL_MIN, STALL_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_follow_the_setting_and_the_heartbeats() {
        let seconds = Duration::from_secs;
        let beats = |heartbeat_ms| HostInfo {
            heartbeat_ms,
            ..HostInfo::default()
        };
        let usual = Detection::default();
        assert_eq!(usual.dead(&beats(0)), seconds(5));
        assert_eq!(usual.suspect(&beats(1_000)), seconds(3));
        assert_eq!((usual.settle(), usual.stall()), (seconds(5), seconds(1)));
        let quick = Detection {
            dead_after: seconds(1),
        };
        assert_eq!(quick.dead(&beats(250)), seconds(1));
        assert_eq!(quick.suspect(&beats(250)), Duration::from_millis(600));
        assert_eq!(quick.dead(&beats(0)), seconds(3), "it speaks too seldom");
        assert_eq!(quick.settle(), seconds(3));
        assert_eq!(quick.stall(), Duration::from_millis(400));
    }
}
