//! A replica's share of the processor: `cpu = "500m"` is half of every window of 100 ms.
//!
//! Counted over all runners, in the replica's row of the ledger: each runner keeps its own time in
//! the current window. Whoever finds the window used up waits for the next. What was overrun (a
//! guest holds its thread until the next tick, and longer in a bulk operation) is taken from the
//! windows after.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use crate::ledger::{Account, Field};

/// Short, so that a throttled request is late by little; long beside the tick that guests overrun.
const WINDOW: Duration = Duration::from_millis(100);
const WINDOW_MICROS: u64 = 100_000;

/// See the module's head.
#[derive(Debug)]
pub(crate) struct CpuShare {
    account: Account,
    /// Microseconds in a window; `None`: all it can get.
    quota: Option<u64>,
}

impl CpuShare {
    /// A share of so many thousandths of a core.
    pub(crate) fn new(account: Account, millis: Option<u64>) -> Self {
        let quota = millis.map(|millis| millis.saturating_mul(WINDOW_MICROS / 1000).max(1));
        Self { account, quota }
    }

    /// What is left of this window, or how long it is until the next.
    pub(crate) fn left(&self) -> Result<Duration, Duration> {
        match self.quota {
            None => Ok(WINDOW),
            Some(quota) => self.left_at(now(), quota),
        }
    }

    /// Counts what ran until now.
    pub(crate) fn spend(&self, ran: Duration) {
        if let Some(quota) = self.quota {
            self.spend_at(now(), quota, ran);
        }
    }

    fn left_at(&self, now: u64, quota: u64) -> Result<Duration, Duration> {
        let window = now / WINDOW_MICROS;
        let each = self.account.each(Field::CpuWindow);
        let used: u64 = each.map(|held| carried(held, window, quota)).sum();
        if used < quota {
            return Ok(Duration::from_micros(quota - used));
        }
        let next = (window + 1) * WINDOW_MICROS;
        Err(Duration::from_micros(next - now))
    }

    fn spend_at(&self, now: u64, quota: u64, ran: Duration) {
        let window = now / WINDOW_MICROS;
        let used = carried(self.account.own(Field::CpuWindow), window, quota);
        let ran = u64::try_from(ran.as_micros()).unwrap_or(u64::MAX);
        let used = used.saturating_add(ran).min(u64::from(u32::MAX));
        self.account.set(Field::CpuWindow, pack(window, used));
    }
}

/// A window's number, cut to what fits, and the time in it.
fn pack(window: u64, used: u64) -> u64 {
    (window << 32) | used
}

/// What counts in `window` of what was counted in an earlier one: the overrun.
fn carried(held: u64, window: u64, quota: u64) -> u64 {
    let (then, used) = (held >> 32, held & u64::from(u32::MAX));
    let passed = (window & u64::from(u32::MAX)).wrapping_sub(then) & u64::from(u32::MAX);
    used.saturating_sub(quota.saturating_mul(passed))
}

/// Microseconds of the clock that all processes of this machine share.
fn now() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    let seconds = u64::try_from(now.tv_sec).unwrap_or_default();
    let nanos = u64::try_from(now.tv_nsec).unwrap_or_default();
    seconds * 1_000_000 + nanos / 1000
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::Ledger;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn runners_share_a_window_and_pay_for_what_they_overran() {
        let (ledger, _file) = Ledger::create(2, 2).unwrap();
        let share = |column| CpuShare::new(Account::new(ledger.clone(), column, 1), Some(500));
        let (one, other) = (share(0), share(1));
        let quota = one.quota.unwrap();
        let start = 7 * WINDOW_MICROS;
        one.spend_at(start, quota, 30 * MS);
        assert_eq!(other.left_at(start + 1, quota), Ok(20 * MS));
        other.spend_at(start + 20_000, quota, 20 * MS);
        assert_eq!(one.left_at(start + 60_000, quota), Err(40 * MS));
        let next = start + WINDOW_MICROS;
        assert_eq!(one.left_at(next, quota), Ok(50 * MS));
        one.spend_at(next, quota, 120 * MS);
        assert_eq!(one.left_at(next + 1000, quota), Err(99 * MS));
        assert_eq!(
            one.left_at(next + WINDOW_MICROS, quota),
            Err(100 * MS),
            "70 to pay"
        );
        assert_eq!(one.left_at(next + 2 * WINDOW_MICROS, quota), Ok(30 * MS));
        assert_eq!(one.left_at(next + 3 * WINDOW_MICROS, quota), Ok(50 * MS));
    }

    #[test]
    fn without_a_limit_there_is_always_time() {
        let share = CpuShare::new(Account::alone(), None);
        share.spend(Duration::from_secs(1000));
        assert_eq!(share.left(), Ok(WINDOW));
    }
}
