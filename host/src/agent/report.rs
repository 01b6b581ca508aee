//! What the leader is told: changes as they come, everything when it asks, a heartbeat's facts.
//!
//! Owns the numbering of reports and their size. A report that is lost costs time only: the
//! heartbeat carries the last number, and a leader that missed one asks for everything.

use std::ops::Bound;

use wasmorch_api::{
    Heartbeat, HostInfo, ReplicaStatus, StatusReport, Term,
};

use super::{Agent, PlacementKey};
use crate::runner::protocol::ReplicaKey;

/// A message may be 512 KiB by contract; this leaves room for what is round the replicas.
const REPLICAS_BYTES_MAX: usize = 400 * 1024;

/// What a heartbeat says besides what the host is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pulse {
    /// The highest term seen.
    pub term: Term,
    /// The sequence of the set that is held.
    pub sequence: u64,
    /// The last report's number.
    pub status_seq: u64,
    /// Memory of all replicas.
    pub memory_bytes: u64,
    /// Cpu of all replicas.
    pub cpu_millis: u64,
    /// Live replicas.
    pub replicas: u64,
    /// Live and ready.
    pub ready: u64,
}

impl Agent {
    /// The reports of what has changed since the last, each under the size limit.
    pub(super) fn reports(&mut self) -> Vec<StatusReport> {
        let changed = std::mem::take(&mut self.changed);
        if self.identity.cluster.is_none() {
            // Nobody to tell; the leader asks for everything when it first hears of the host.
            return Vec::new();
        }
        let mut pages: Vec<Vec<ReplicaStatus>> = Vec::new();
        let mut room = 0;
        for key in changed {
            let Some(status) = self.status_of(&key) else { continue };
            self.note_told(&key);
            let bytes = encoded_bytes(&status);
            match pages.last_mut() {
                Some(page) if bytes <= room => page.push(status),
                _ => {
                    pages.push(vec![status]);
                    room = REPLICAS_BYTES_MAX;
                }
            }
            room = room.saturating_sub(bytes);
        }
        let reports = pages.into_iter().filter_map(|replicas| {
            self.status_seq += 1;
            self.report(replicas, false, None)
        });
        reports.collect()
    }

    /// Everything the host knows of replicas, a page of it: `cursor` is a page's `next`, nothing
    /// for the first. `None` before the host belongs to a cluster.
    pub fn status_page(&self, cursor: Option<&str>) -> Option<StatusReport> {
        let after = cursor.and_then(parse_cursor).map_or(Bound::Unbounded, Bound::Excluded);
        let mut replicas = Vec::new();
        let mut room = REPLICAS_BYTES_MAX;
        for (key, placement) in self.placements.range((after, Bound::Unbounded)) {
            let current = placement.current.as_ref().map(|replica| placement.status(key, replica));
            let here: Vec<_> = placement.past.iter().cloned().chain(current).collect();
            let bytes = here.iter().map(encoded_bytes).sum::<usize>();
            if bytes > room && !replicas.is_empty() {
                let last = replicas.last().map(cursor_of);
                return self.report(replicas, true, last);
            }
            room = room.saturating_sub(bytes);
            replicas.extend(here);
        }
        self.report(replicas, true, None)
    }

    fn report(
        &self,
        replicas: Vec<ReplicaStatus>,
        full: bool,
        next: Option<String>,
    ) -> Option<StatusReport> {
        Some(StatusReport {
            cluster: self.identity.cluster.clone()?,
            host: self.identity.host.clone(),
            boot: self.identity.boot.clone(),
            status_seq: self.status_seq,
            full,
            replicas,
            next,
        })
    }

    /// The facts of the next heartbeat.
    pub fn pulse(&self) -> Pulse {
        let mut pulse = Pulse {
            term: self.term().0,
            sequence: self.sequence,
            status_seq: self.status_seq,
            ..Pulse::default()
        };
        for replica in self.placements.values().filter_map(|placement| placement.live()) {
            pulse.memory_bytes += replica.usage.memory_bytes;
            pulse.cpu_millis += replica.usage.cpu_millis;
            pulse.replicas += 1;
            pulse.ready += u64::from(replica.ready);
        }
        pulse
    }

    /// A heartbeat; `None` before the host belongs to a cluster.
    pub fn heartbeat(&self, info: &HostInfo, table_seq: u64) -> Option<Heartbeat> {
        let pulse = self.pulse();
        Some(Heartbeat {
            cluster: self.identity.cluster.clone()?,
            host: self.identity.host.clone(),
            boot: self.identity.boot.clone(),
            term: pulse.term,
            sequence: pulse.sequence,
            status_seq: pulse.status_seq,
            table_seq,
            memory_bytes: pulse.memory_bytes,
            cpu_millis: pulse.cpu_millis,
            replicas: pulse.replicas,
            info: info.clone(),
        })
    }

    fn status_of(&self, key: &ReplicaKey) -> Option<ReplicaStatus> {
        let placement_key = PlacementKey::of(key);
        let placement = self.placements.get(&placement_key)?;
        match &placement.current {
            Some(current) if current.id == key.id => Some(placement.status(&placement_key, current)),
            _ => placement.past.iter().find(|status| status.replica == key.id).cloned(),
        }
    }

    fn note_told(&mut self, key: &ReplicaKey) {
        let placement = self.placements.get_mut(&PlacementKey::of(key));
        if let Some(current) = placement.and_then(|placement| placement.current.as_mut()) {
            current.usage_told = current.usage;
        }
    }
}

fn encoded_bytes(status: &ReplicaStatus) -> usize {
    // A status is plain data, which always encodes; the fallback only guards the arithmetic.
    serde_json::to_vec(status).map_or(2048, |bytes| bytes.len() + 1)
}

fn cursor_of(status: &ReplicaStatus) -> String {
    format!("{}/{}", status.key(), status.replica)
}

fn parse_cursor(cursor: &str) -> Option<PlacementKey> {
    let mut parts = cursor.splitn(3, '/');
    let namespace = parts.next()?.parse().ok()?;
    let name = parts.next()?.parse().ok()?;
    let id = parts.next()?.parse().ok()?;
    Some(PlacementKey::of(&ReplicaKey::new(wasmorch_api::WorkloadKey::new(namespace, name), id)))
}
