//! The lease by the monotonic clock: until when it certainly holds, and from when on it certainly
//! does not.
//!
//! Pure: instants are arguments. Why no two controllers believe to lead at once:
//!
//! - The holder counts from when it *sent* its last renewal, and lets go at `sent + ttl - margin`.
//! - A candidate counts from when it first *read* the lease at a sequence. What it read had been
//!   stored, so it had been sent before. When the sequence is still the same at `read + ttl`, the
//!   holder has let go at least a margin ago, whatever became of it, and the candidate may take the
//!   lease: by a write that expects that very sequence, so that a renewal on its way, or another
//!   candidate, makes it fail. The margin covers clocks that run at different speeds (15 %).
//! - The store's own TTL ends a lease that nobody watched. It counts from when the renewal was
//!   stored, which is after it was sent, and never ends it early. It alone would do; but the server
//!   looks for what has expired once a second, so it would cost up to a second more.
//!
//! None of this keeps state safe (a process may be frozen between a look at its clock and its next
//! step): that is the fence in every write. The lease keeps answers to one leader, and changes of
//! leader few.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use wasmorch_api::LeaderId;

use crate::store::LeaseView;

/// The lease's times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseTimes {
    /// How long it lasts without a renewal. The store's TTL is this in whole seconds, rounded up: a
    /// message's TTL has no finer grain.
    pub ttl: Duration,
    /// How often it is renewed.
    pub renew_every: Duration,
    /// How much earlier this side lets go: covers the coarse grain of timers and of expiry.
    pub margin: Duration,
}

impl Default for LeaseTimes {
    /// 2 s, renewed every half: two renewals may be lost, and a dead leader is replaced between 1.5 s
    /// and 2.1 s after its death, however soon before it has renewed.
    fn default() -> Self {
        Self {
            ttl: Duration::from_secs(2),
            renew_every: Duration::from_millis(500),
            margin: Duration::from_millis(300),
        }
    }
}

impl LeaseTimes {
    /// The value of the TTL header.
    pub(crate) fn ttl_header(&self) -> String {
        format!("{}s", self.ttl.as_millis().div_ceil(1_000).max(1))
    }

    /// Until when a write that was sent then certainly holds.
    fn holds_until(&self, sent: Instant) -> Instant {
        sent + self.ttl.saturating_sub(self.margin)
    }
}

/// What a candidate has seen of another's lease.
#[derive(Debug, Default)]
pub struct Watch {
    /// The last sequence, and when it was first read.
    seen: Option<(u64, Instant)>,
}

impl Watch {
    /// The lease was read at `now`. `Some`: it may be taken, by a write that expects this sequence. It is
    /// free, or still in our own name (an earlier write whose answer was lost), or has not been renewed
    /// for as long as it lasts.
    pub fn may_take(
        &mut self,
        lease: &LeaseView,
        own: &LeaderId,
        now: Instant,
        times: &LeaseTimes,
    ) -> Option<u64> {
        match lease {
            LeaseView::Free { sequence } => Some(*sequence),
            LeaseView::Held { lease, sequence } => {
                let may = lease.leader == *own || self.over(*sequence, now, times);
                may.then_some(*sequence)
            }
        }
    }

    /// The lease has been read, held by another, at `now`. `true`: it is over.
    fn over(&mut self, sequence: u64, now: Instant, times: &LeaseTimes) -> bool {
        match self.seen {
            Some((seen, at)) if seen == sequence => now >= at + times.ttl,
            _ => {
                self.seen = Some((sequence, now));
                false
            }
        }
    }

    /// When to look again: at the end of what is watched, or after `at_most`.
    pub fn look_at(&self, now: Instant, at_most: Duration, times: &LeaseTimes) -> Instant {
        let latest = now + at_most;
        self.seen
            .map_or(latest, |(_, at)| latest.min((at + times.ttl).max(now)))
    }

    /// The store did not say.
    pub fn forget(&mut self) {
        self.seen = None;
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
    /// When the store's answer to that was there.
    answered: Instant,
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
                answered: sent,
                dropped: false,
            })),
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        // The state is plain values: it is whole even if a holder panicked.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A renewal that was sent then has been stored. One that ended meanwhile stays ended: others
    /// may have acted since.
    pub fn renewed(&self, sent: Instant, now: Instant) {
        let mut state = self.state();
        if !state.dropped && now < self.times.holds_until(state.sent) && sent > state.sent {
            (state.sent, state.answered) = (sent, now);
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

    /// Whether the store has acknowledged renewals as one does that is reached: who has lost the connection
    /// hears no host either, and finds it by this before the lease is over.
    pub fn is_fresh(&self, now: Instant) -> bool {
        let state = *self.state();
        // From the answer on: a slow store is reached all the same.
        !state.dropped && now < state.answered + self.times.renew_every + self.times.margin / 2
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
pub fn look_again(dice: u64) -> Duration {
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
        assert!(clock.holds(sent + ms(1_699)));
        assert!(!clock.holds(sent + ms(1_700)));
        assert!(clock.holds_until() + times.margin <= sent + times.ttl);
    }

    #[test]
    fn a_renewal_counts_from_when_it_was_sent() {
        let sent = Instant::now();
        let clock = LeaseClock::won(LeaseTimes::default(), sent);
        assert_eq!(clock.renewal_due(), sent + ms(500));
        clock.renewed(sent + ms(500), sent + ms(1_400));
        assert!(clock.holds(sent + ms(2_199)));
        assert!(!clock.holds(sent + ms(2_200)));
        assert_eq!(clock.renewal_due(), sent + ms(1_000));
    }

    #[test]
    fn a_leader_that_is_cut_off_knows_it_before_it_takes_that_for_silence() {
        let sent = Instant::now();
        let clock = LeaseClock::won(LeaseTimes::default(), sent);
        // With heartbeats four times a second and a second of silence for death, the last of them came a
        // quarter of a second before the cut at the most.
        assert!(clock.is_fresh(sent + ms(649)));
        assert!(!clock.is_fresh(sent + ms(650)));
        assert!(clock.holds(sent + ms(650)), "and it leads still");
        clock.renewed(sent + ms(1_200), sent + ms(1_210));
        assert!(clock.is_fresh(sent + ms(1_210)));
        // Each renewal is answered after 400 ms: the next one comes in time.
        clock.renewed(sent + ms(1_700), sent + ms(2_100));
        assert!(clock.is_fresh(sent + ms(2_600)));
        clock.drop_now();
        assert!(!clock.is_fresh(sent + ms(2_600)));
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
        assert_eq!(clock.holds_until(), sent + ms(2_700));
    }

    #[test]
    fn the_store_never_ends_it_before_its_holder_does() {
        for (ttl, header) in [(200, "1s"), (1_000, "1s"), (1_200, "2s"), (2_000, "2s")] {
            let times = LeaseTimes {
                ttl: ms(ttl),
                renew_every: ms(50),
                margin: ms(10),
            };
            assert_eq!(times.ttl_header(), header);
            let sent = Instant::now();
            assert!(!LeaseClock::won(times, sent).holds(sent + ms(ttl)));
        }
    }

    #[test]
    fn a_candidate_takes_only_what_its_holder_has_let_go() {
        let times = LeaseTimes::default();
        let sent = Instant::now();
        let holder = LeaseClock::won(times, sent);
        let mut watch = Watch::default();
        // Read long after it was stored: only what was seen counts.
        let read = sent + ms(400);
        assert!(!watch.over(7, read, &times));
        assert!(!watch.over(7, read + ms(1_999), &times));
        assert!(watch.over(7, read + ms(2_000), &times));
        assert!(!holder.holds(read + ms(2_000) - times.margin));
        // A renewal begins it anew.
        assert!(!watch.over(8, read + ms(2_100), &times));
        assert!(!watch.over(8, read + ms(4_000), &times));
        assert!(watch.over(8, read + ms(4_100), &times));
        watch.forget();
        assert!(!watch.over(8, read + ms(4_200), &times));
    }

    #[test]
    fn what_is_free_or_ones_own_is_taken_at_once() {
        let times = LeaseTimes::default();
        let now = Instant::now();
        let own: LeaderId = "c1".parse().unwrap();
        let held = |by: &str| LeaseView::Held {
            lease: wasmorch_api::record::Lease {
                leader: by.parse().unwrap(),
                term: wasmorch_api::Term(3),
            },
            sequence: 7,
        };
        let mut watch = Watch::default();
        let mut may = |lease: &LeaseView, now| watch.may_take(lease, &own, now, &times);
        assert_eq!(may(&LeaseView::Free { sequence: 5 }, now), Some(5));
        assert_eq!(may(&held("c1"), now), Some(7));
        assert_eq!(may(&held("c2"), now), None);
        assert_eq!(may(&held("c2"), now + ms(1_999)), None);
        assert_eq!(may(&held("c2"), now + ms(2_000)), Some(7));
    }

    #[test]
    fn a_candidate_looks_again_when_the_lease_would_be_over() {
        let times = LeaseTimes::default();
        let now = Instant::now();
        let mut watch = Watch::default();
        assert_eq!(watch.look_at(now, ms(300), &times), now + ms(300));
        watch.over(7, now, &times);
        let later = now + ms(1_900);
        assert_eq!(watch.look_at(later, ms(300), &times), now + ms(2_000));
        assert_eq!(
            watch.look_at(now + ms(3_000), ms(300), &times),
            now + ms(3_000)
        );
    }

    #[test]
    fn candidates_do_not_come_at_once() {
        assert_eq!(look_again(0), ms(250));
        assert_eq!(look_again(124), ms(374));
        assert_eq!(look_again(125), ms(250));
    }
}
