//! What a process has used, from /proc.

use std::time::Duration;

use anyhow::{Context as _, Result};

/// What Linux counts processor time in for programs, on every architecture: `USER_HZ`.
const TICKS: u64 = 100;

/// Of one process.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Usage {
    /// Its threads' time on cores, system calls included.
    pub(crate) cpu: Duration,
    /// The most memory it ever had resident.
    pub(crate) peak_bytes: u64,
}

impl Usage {
    pub(crate) fn of(id: u32) -> Result<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{id}/stat"))?;
        let (_, after) = stat.rsplit_once(')').context("/proc/ID/stat has no name")?;
        let number = |at: usize| -> u64 {
            let word = after.split_whitespace().nth(at);
            word.and_then(|word| word.parse().ok()).unwrap_or(0)
        };
        // Fields 14 and 15 of the line; the state is field 3.
        let cpu = Duration::from_millis((number(11) + number(12)) * 1000 / TICKS);
        let status = std::fs::read_to_string(format!("/proc/{id}/status"))?;
        let peak = status
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:"))
            .and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok())
            .context("/proc/ID/status has no VmHWM")?;
        Ok(Self {
            cpu,
            peak_bytes: peak * 1024,
        })
    }
}
