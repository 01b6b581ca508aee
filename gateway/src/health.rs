//! How one host fares with one workload, as this gateway has seen it: failures in a row, whether it
//! is left alone for that, and what it last said of its load.
//!
//! A host is ejected after [`FAILURES_MAX`] failures in a row, for a while; one failure after that
//! ejects it again, one success forgets them all. The floor: never more than half of a workload's
//! hosts, so that a request that makes every replica fail does not take them all away.
//!
//! A host does the same with several replicas of its own: it chooses among them by itself.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// So many failures in a row are no accident of one request.
pub(crate) const FAILURES_MAX: u32 = 5;
/// What a host said of its load counts for so long: beyond it, other gateways' requests have
/// come and gone.
const LOAD_FRESH: Duration = Duration::from_millis(500);

static EPOCH: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Milliseconds since this process first asked; from 1 on, so that 0 can mean "never".
pub(crate) fn now_ms() -> u64 {
    ms(EPOCH.elapsed()).saturating_add(1)
}

pub(crate) fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// One host's fare with one workload, or one replica's.
#[derive(Debug, Default)]
pub struct Health {
    failures: AtomicU32,
    ejected_until: AtomicU64,
    /// The floor keeps it: until when nobody looks again.
    kept_until: AtomicU64,
    /// This gateway's own requests of the workload there.
    in_hand: AtomicU32,
    /// What the host said last, and when.
    load: AtomicU32,
    load_at: AtomicU64,
}

impl Health {
    /// Whether it is left alone for now.
    pub fn is_ejected(&self) -> bool {
        let until = self.ejected_until.load(Relaxed);
        // Most hosts never were: no look at the clock.
        until > 0 && now_ms() < until
    }

    /// A request was answered.
    pub fn succeeded(&self) {
        // A store only when there is something to forget: the line stays shared.
        if self.failures.load(Relaxed) > 0 {
            self.failures.store(0, Relaxed);
            self.ejected_until.store(0, Relaxed);
        }
    }

    /// A request failed. Whether it has now failed too often.
    pub fn failed(&self) -> bool {
        self.failures.fetch_add(1, Relaxed).saturating_add(1) >= FAILURES_MAX
    }

    /// Leaves it alone for a while, unless that would be more than half of those `alike`, of which it is
    /// one. Whether it does.
    pub fn eject_among<'h>(&self, alike: impl Iterator<Item = &'h Self>, length: Duration) -> bool {
        if now_ms() < self.kept_until.load(Relaxed) {
            return false;
        }
        // One at a time: two could go together below the floor.
        static EJECTING: Mutex<()> = Mutex::new(());
        let _alone = EJECTING.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut count, mut ejected) = (0, 0);
        for one in alike {
            count += 1;
            ejected += usize::from(one.is_ejected());
        }
        let may = (ejected + 1) * 2 <= count;
        if may {
            self.eject(length);
        } else {
            // It fails on, and to look at all of them for each failure would take longer than the request.
            let until = now_ms().saturating_add(ms(length));
            self.kept_until.store(until, Relaxed);
        }
        may
    }

    /// Leaves it alone for a while.
    pub fn eject(&self, length: Duration) {
        let until = now_ms().saturating_add(ms(length));
        self.ejected_until.store(until, Relaxed);
    }

    /// What the host says that it has in hand for this workload.
    pub(crate) fn reports(&self, load: u32) {
        self.load.store(load, Relaxed);
        self.load_at.store(now_ms(), Relaxed);
    }

    pub(crate) fn request_began(&self) {
        self.in_hand.fetch_add(1, Relaxed);
    }

    pub(crate) fn request_ended(&self) {
        self.in_hand.fetch_sub(1, Relaxed);
    }

    /// What it has in hand: what was sent there, or what it last said, while that is worth something.
    pub(crate) fn load(&self) -> u32 {
        self.in_hand.load(Relaxed).max(self.load_as_of(now_ms()))
    }

    fn load_as_of(&self, now: u64) -> u32 {
        let at = self.load_at.load(Relaxed);
        let fresh = at > 0 && now.saturating_sub(at) <= ms(LOAD_FRESH);
        if fresh { self.load.load(Relaxed) } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_in_a_row_count_and_a_success_forgets_them() {
        let health = Health::default();
        for _ in 1..FAILURES_MAX {
            assert!(!health.failed());
        }
        health.succeeded();
        for _ in 1..FAILURES_MAX {
            assert!(!health.failed());
        }
        assert!(health.failed());
        assert!(!health.is_ejected());
        health.eject(Duration::from_secs(60));
        assert!(health.is_ejected());
        // It comes back, and is gone at its next failure.
        health.eject(Duration::ZERO);
        assert!(!health.is_ejected());
        assert!(health.failed());
        health.succeeded();
        assert!(!health.failed());
    }

    #[test]
    fn whom_the_floor_keeps_is_not_looked_at_again_at_once() {
        let (one, looks) = (Health::default(), std::cell::Cell::new(0));
        let alone = || std::iter::once(&one).inspect(|_| looks.set(looks.get() + 1));
        for _ in 0..3 {
            assert!(!one.eject_among(alone(), Duration::from_secs(60)));
        }
        assert_eq!(looks.get(), 1);
        one.kept_until.store(0, Relaxed);
        assert!(!one.eject_among(alone(), Duration::ZERO));
        assert!(!one.eject_among(alone(), Duration::ZERO));
        assert_eq!(looks.get(), 3);
    }

    #[test]
    fn what_a_host_says_of_its_load_grows_old() {
        let health = Health::default();
        assert_eq!(health.load(), 0);
        health.reports(7);
        assert_eq!(health.load(), 7);
        assert_eq!(
            health.load_as_of(health.load_at.load(Relaxed) + ms(LOAD_FRESH)),
            7
        );
        assert_eq!(health.load_as_of(now_ms() + ms(LOAD_FRESH) + 1000), 0);
    }
}
