//! Live log lines on their subjects.
//!
//! Owns the bound: lines share the connection with heartbeats, which may be a slow one, so only so
//! many lines and bytes a second leave. What is left out is counted and said by the replica's next
//! line; all lines are in the log store.

use std::collections::BTreeMap;

use wasmorch_api::messages::LogLine;
use wasmorch_api::subjects;

use crate::link::Link;
use crate::runner::protocol::ReplicaKey;

/// Lines of all replicas a second.
const LINES_MAX: u32 = 1_000;
/// Bytes of their text a second: a slow line takes that too beside heartbeats.
const BYTES_MAX: usize = 256 << 10;

/// See the module's head.
#[derive(Debug, Default)]
pub(super) struct LiveLines {
    told: u32,
    told_bytes: usize,
    left_out: BTreeMap<ReplicaKey, u64>,
}

impl LiveLines {
    pub(super) fn next_second(&mut self) {
        (self.told, self.told_bytes) = (0, 0);
    }

    pub(super) fn tell(&mut self, link: &Link, replica: &ReplicaKey, line: &LogLine) {
        let Some(line) = self.admit(replica, line) else {
            return;
        };
        let subject = subjects::logs(&replica.workload, replica.id);
        if let Ok(body) = serde_json::to_vec(&line) {
            // Nobody keeps live lines; what does not leave is in the log store.
            link.tell(subject, body);
        }
    }

    /// The line as it leaves, or nothing when this second is used up.
    fn admit(&mut self, replica: &ReplicaKey, line: &LogLine) -> Option<LogLine> {
        let bytes = self.told_bytes + line.text.len();
        if self.told >= LINES_MAX || bytes > BYTES_MAX {
            *self.left_out.entry(replica.clone()).or_default() += 1 + line.dropped;
            return None;
        }
        self.told += 1;
        self.told_bytes = bytes;
        let left_out = self.left_out.remove(replica).unwrap_or_default();
        Some(LogLine {
            dropped: line.dropped + left_out,
            ..line.clone()
        })
    }

    pub(super) fn forget(&mut self, replica: &ReplicaKey) {
        self.left_out.remove(replica);
    }
}

#[cfg(test)]
mod tests {
    use wasmorch_api::{Name, Timestamp, WorkloadKey};

    use super::*;

    #[test]
    fn a_flood_is_cut_and_says_so() {
        let id = "1-1-1".parse().unwrap();
        let replica = ReplicaKey::new(WorkloadKey::new(Name::default(), Name::default()), id);
        let line = LogLine {
            at: Timestamp(0),
            replica: id,
            stream: "stdout".into(),
            request_id: None,
            text: "x".into(),
            dropped: 0,
        };
        let mut live = LiveLines::default();
        let admitted = (0..LINES_MAX + 5)
            .filter(|_| live.admit(&replica, &line).is_some())
            .count();
        assert_eq!(admitted, LINES_MAX as usize);
        live.next_second();
        assert_eq!(live.admit(&replica, &line).unwrap().dropped, 5);
        assert_eq!(live.admit(&replica, &line).unwrap().dropped, 0);
    }

    #[test]
    fn long_lines_are_bounded_in_bytes() {
        let id = "1-1-1".parse().unwrap();
        let replica = ReplicaKey::new(WorkloadKey::new(Name::default(), Name::default()), id);
        let line = LogLine {
            at: Timestamp(0),
            replica: id,
            stream: "stdout".into(),
            request_id: None,
            text: "x".repeat(16 << 10),
            dropped: 0,
        };
        let mut live = LiveLines::default();
        let admitted = (0..100)
            .filter(|_| live.admit(&replica, &line).is_some())
            .count();
        assert_eq!(admitted, BYTES_MAX / (16 << 10));
        live.next_second();
        assert_eq!(live.admit(&replica, &line).unwrap().dropped, 84);
    }
}
