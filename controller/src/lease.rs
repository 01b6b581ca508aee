//! The lease by the monotonic clock: when to renew it and until when it certainly holds.
//!
//! Pure: instants are arguments. The store ends a lease `ttl` after it has stored the last
//! renewal, which is never before that renewal was sent. So what was sent at `t` certainly holds
//! until `t + ttl`, and this side lets go a margin earlier: it has stopped answering before the
//! store can have given the lease to anyone else.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The lease's times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseTimes {
    /// How long the store keeps it without a renewal. Whole seconds: a message's TTL has no finer
    /// grain.
    pub ttl: Duration,
    /// How often it is renewed.
    pub renew_every: Duration,
    /// How much earlier this side lets go: covers the coarse grain of timers and of expiry.
    pub margin: Duration,
}

impl Default for LeaseTimes {
    /// 3 s, renewed every second: a renewal may be lost, and a dead leader is replaced in about 3 s.
    fn default() -> Self {
        Self {
            ttl: Duration::from_secs(3),
            renew_every: Duration::from_secs(1),
            margin: Duration::from_millis(300),
        }
    }
}

impl LeaseTimes {
    /// The value of the TTL header.
    pub(crate) fn ttl_header(&self) -> String {
        format!("{}s", self.ttl.as_secs().max(1))
    }

    /// Until when a write that was sent then certainly holds.
    fn holds_until(&self, sent: Instant) -> Instant {
        sent + Duration::from_secs(self.ttl.as_secs().max(1)).saturating_sub(self.margin)
    }
}

/// Whether this process leads now; shared by all that must not act without the lease.
#[derive(Debug, Clone)]
pub struct LeaseClock {
    times: LeaseTimes,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Clone, Copy)]
struct State {
    sent: Instant,
    /// Given up early; it never comes back to life.
    dropped: bool,
}

impl LeaseClock {
    /// A lease whose winning write was sent then.
    pub fn won(times: LeaseTimes, sent: Instant) -> Self {
        Self {
            times,
            state: Arc::new(Mutex::new(State {
                sent,
                dropped: false,
            })),
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        // The state is two plain values: it is whole even if a holder panicked.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A renewal that was sent then has been stored. One that ended meanwhile stays ended: others
    /// may have acted since.
    pub fn renewed(&self, sent: Instant, now: Instant) {
        let mut state = self.state();
        if !state.dropped && now < self.times.holds_until(state.sent) && sent > state.sent {
            state.sent = sent;
        }
    }

    /// Gives it up.
    pub fn drop_now(&self) {
        self.state().dropped = true;
    }

    /// Whether it certainly holds.
    pub fn holds(&self, now: Instant) -> bool {
        let state = *self.state();
        !state.dropped && now < self.times.holds_until(state.sent)
    }

    /// Until when it certainly holds without another renewal.
    pub fn holds_until(&self) -> Instant {
        self.times.holds_until(self.state().sent)
    }

    /// When the next renewal is due.
    pub fn renewal_due(&self) -> Instant {
        self.state().sent + self.times.renew_every
    }
}

/// How long a candidate waits before it looks again: a quarter of a second, and up to half as much
/// again so that several candidates do not come at once. `dice` is any random number.
pub(crate) fn look_again(dice: u64) -> Duration {
    Duration::from_millis(250 + dice % 125)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn it_ends_before_the_store_can_have_ended_it() {
        let sent = Instant::now();
        let times = LeaseTimes::default();
        let clock = LeaseClock::won(times, sent);
        assert!(clock.holds(sent));
        assert!(clock.holds(sent + ms(2_699)));
        assert!(!clock.holds(sent + ms(2_700)));
        assert!(clock.holds_until() + times.margin <= sent + times.ttl);
    }

    #[test]
    fn a_renewal_counts_from_when_it_was_sent() {
        let sent = Instant::now();
        let clock = LeaseClock::won(LeaseTimes::default(), sent);
        assert_eq!(clock.renewal_due(), sent + ms(1_000));
        clock.renewed(sent + ms(1_000), sent + ms(1_900));
        assert!(clock.holds(sent + ms(3_699)));
        assert!(!clock.holds(sent + ms(3_700)));
        assert_eq!(clock.renewal_due(), sent + ms(2_000));
    }

    #[test]
    fn what_has_ended_stays_ended() {
        let sent = Instant::now();
        let clock = LeaseClock::won(LeaseTimes::default(), sent);
        // Frozen for 20 s with a renewal on its way: the store may have stored it, and another
        // leader may have come and gone meanwhile.
        clock.renewed(sent + ms(1_000), sent + ms(20_000));
        assert!(!clock.holds(sent + ms(20_000)));

        let clock = LeaseClock::won(LeaseTimes::default(), sent);
        clock.drop_now();
        clock.renewed(sent + ms(10), sent + ms(11));
        assert!(!clock.holds(sent + ms(12)));
    }

    #[test]
    fn an_older_renewal_takes_nothing_back() {
        let sent = Instant::now();
        let clock = LeaseClock::won(LeaseTimes::default(), sent);
        clock.renewed(sent + ms(1_000), sent + ms(1_001));
        clock.renewed(sent + ms(500), sent + ms(1_002));
        assert_eq!(clock.holds_until(), sent + ms(3_700));
    }

    #[test]
    fn times_below_a_second_are_taken_as_one() {
        let times = LeaseTimes {
            ttl: ms(200),
            renew_every: ms(50),
            margin: ms(10),
        };
        assert_eq!(times.ttl_header(), "1s");
        let sent = Instant::now();
        assert!(LeaseClock::won(times, sent).holds(sent + ms(900)));
    }

    #[test]
    fn candidates_do_not_come_at_once() {
        assert_eq!(look_again(0), ms(250));
        assert_eq!(look_again(124), ms(374));
        assert_eq!(look_again(125), ms(250));
    }
}
