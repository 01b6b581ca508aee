//! What the replicas of a runner use, and its gateway and its code, in the words of the protocol.

use std::time::Duration;

use tokio::time::Instant;
use wasmorch_runtime::LoadedCode;

use super::answers::Tally;
use super::backlog::Backlog;
use super::protocol::{CodeStats, GatewayStats, ReplicaKey, ReplicaUsage};
use super::replica::{Counts, Guest};

/// When a replica was last looked at, and what it had used by then.
pub(super) struct Measured {
    at: Instant,
    cpu_time: Duration,
    requests: u64,
}

impl Measured {
    /// It starts now.
    pub(super) fn begin() -> Self {
        Self {
            at: Instant::now(),
            cpu_time: Duration::ZERO,
            requests: 0,
        }
    }

    /// What it has used since.
    pub(super) fn take(
        &mut self,
        replica: &ReplicaKey,
        guest: &Guest,
        counts: &Counts,
        now: Instant,
    ) -> ReplicaUsage {
        let used = guest.usage();
        let measured = Self {
            at: now,
            cpu_time: used.cpu_time,
            requests: used.requests_total,
        };
        let before = std::mem::replace(self, measured);
        let elapsed = now - before.at;
        let requests = used.requests_total.saturating_sub(before.requests);
        let cpu_time = used.cpu_time.saturating_sub(before.cpu_time);
        ReplicaUsage {
            replica: replica.clone(),
            memory_bytes: used.memory_bytes,
            cpu_millis: cpu_millis(cpu_time, elapsed),
            in_flight: (used.in_flight + used.queued) as u64,
            request_millis: a_second(requests, elapsed),
            pending: counts.backlog.as_deref().map_or(0, Backlog::messages),
            answers: { counts.tally.as_deref() }
                .map(Tally::so_far)
                .unwrap_or_default(),
        }
    }
}

pub(super) fn gateway(stats: &wasmorch_gateway::Stats) -> GatewayStats {
    let [.., server_errors] = stats.answers;
    GatewayStats {
        requests: stats.requests,
        errors: server_errors,
        forwarded: stats.forwarded,
        in_flight: stats.in_flight,
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
    if elapsed.is_zero() {
        return 0;
    }
    (used.as_secs_f64() / elapsed.as_secs_f64() * 1000.0).round() as u64
}

/// So many in this time: how many in a second, in thousandths.
fn a_second(many: u64, elapsed: Duration) -> u64 {
    if elapsed.is_zero() {
        return 0;
    }
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
        assert_eq!(cpu_millis(second, Duration::ZERO), 0);
    }

    #[test]
    fn requests_are_in_thousandths_of_one_in_a_second() {
        assert_eq!(a_second(3, Duration::from_secs(2)), 1_500);
        assert_eq!(a_second(3, Duration::ZERO), 0);
    }
}
