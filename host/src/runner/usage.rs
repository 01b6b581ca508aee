//! What the replicas of a runner use, and its code, in the words of the protocol.

use std::time::Duration;

use tokio::time::Instant;
use wasmorch_runtime::LoadedCode;

use super::answers::Tally;
use super::backlog::Backlog;
use super::protocol::{CodeStats, ReplicaKey, ReplicaUsage};
use super::replica::{Counts, Guest};

/// Rates are of at least so long: one request in a millisecond is no thousand a second.
const WINDOW_LEAST: Duration = Duration::from_millis(500);

/// When a replica was last looked at, and what it had used by then.
pub(super) struct Measured {
    at: Instant,
    cpu_time: Duration,
    requests: u64,
    /// What it used in the window before that, in thousandths: cpu and requests.
    rates: (u64, u64),
}

impl Measured {
    /// It starts now.
    pub(super) fn begin() -> Self {
        Self {
            at: Instant::now(),
            cpu_time: Duration::ZERO,
            requests: 0,
            rates: (0, 0),
        }
    }

    /// What it had used by now; the rates since it was looked at last. Asked again too soon, they are as
    /// they were.
    fn rates(&mut self, cpu_time: Duration, requests: u64, now: Instant) -> (u64, u64) {
        let elapsed = now - self.at;
        if elapsed >= WINDOW_LEAST {
            let cpu = cpu_millis(cpu_time.saturating_sub(self.cpu_time), elapsed);
            let asked = a_second(requests.saturating_sub(self.requests), elapsed);
            *self = Self {
                at: now,
                cpu_time,
                requests,
                rates: (cpu, asked),
            };
        }
        self.rates
    }

    /// What it uses.
    pub(super) fn take(
        &mut self,
        replica: &ReplicaKey,
        guest: &Guest,
        counts: &Counts,
        now: Instant,
    ) -> ReplicaUsage {
        let used = guest.usage();
        let (cpu_millis, request_millis) = self.rates(used.cpu_time, used.requests_total, now);
        ReplicaUsage {
            replica: replica.clone(),
            memory_bytes: used.memory_bytes,
            cpu_millis,
            in_flight: (used.in_flight + used.queued) as u64,
            request_millis,
            pending: counts.backlog.as_deref().map_or(0, Backlog::messages),
            answers: { counts.tally.as_deref() }
                .map(Tally::so_far)
                .unwrap_or_default(),
        }
    }
}

pub(super) fn code(loaded: LoadedCode) -> CodeStats {
    let LoadedCode {
        artifacts,
        bytes,
        loads,
        unloads,
    } = loaded;
    CodeStats {
        artifacts,
        bytes,
        loads,
        unloads,
    }
}

/// Processor time per wall time, in thousandths.
fn cpu_millis(used: Duration, elapsed: Duration) -> u64 {
    (used.as_secs_f64() / elapsed.as_secs_f64() * 1000.0).round() as u64
}

/// So many in this time: how many in a second, in thousandths.
fn a_second(many: u64, elapsed: Duration) -> u64 {
    (many as f64 / elapsed.as_secs_f64() * 1000.0).round() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_is_in_thousandths_of_a_core() {
        let second = Duration::from_secs(1);
        assert_eq!(cpu_millis(second / 2, second), 500);
        assert_eq!(cpu_millis(second * 2, second), 2000);
    }

    #[test]
    fn requests_are_in_thousandths_of_one_in_a_second() {
        assert_eq!(a_second(3, Duration::from_secs(2)), 1_500);
    }

    #[test]
    fn who_asks_twice_in_a_moment_hears_the_same_twice() {
        let mut measured = Measured::begin();
        let (start, ms) = (measured.at, Duration::from_millis);
        assert_eq!(measured.rates(ms(1), 1, start), (0, 0));
        assert_eq!(measured.rates(ms(1), 1, start + ms(1)), (0, 0));
        assert_eq!(
            measured.rates(ms(500), 100, start + ms(1000)),
            (500, 100_000)
        );
        assert_eq!(
            measured.rates(ms(501), 101, start + ms(1001)),
            (500, 100_000)
        );
        // What came in that moment counts in the next window.
        assert_eq!(
            measured.rates(ms(600), 150, start + ms(2000)),
            (100, 50_000)
        );
    }
}
