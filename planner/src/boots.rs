//! Two daemons that speak as one host: a data folder was copied, or is used twice.
//!
//! A daemon that starts again has another boot id, and the one before is never heard again, but for a
//! heartbeat that was late. Of two that live at once each comes back after the other. Owns when that is said;
//! that nothing new is given to such a host follows from its boot id changing all the time.

use std::collections::VecDeque;
use std::time::Duration;

use wasmorch_api::{BootId, Timestamp};

use crate::alarms::SAY_EVERY;

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
    left: VecDeque<BootId>,
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
        let rested = self.said.is_none_or(|last| now.since(last) >= SAY_EVERY);
        let say = self.returns >= RETURNS_MIN && rested;
        if say {
            self.said = Some(now);
        }
        say
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
        assert!(!boots.change(boot(1), &boot(2), at(0)));
        assert!(!boots.change(boot(2), &boot(1), at(200)), "late");
        assert!(!boots.change(boot(1), &boot(2), at(900)));
        // And again after its next start, an hour later.
        assert!(!boots.change(boot(2), &boot(3), at(3_600_000)));
        assert!(!boots.change(boot(3), &boot(2), at(3_600_200)));
        assert!(!boots.change(boot(2), &boot(3), at(3_600_900)));
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
}
