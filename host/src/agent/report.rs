//! What the leader is told: changes as they come, everything when it asks, a heartbeat's facts.
//!
//! Owns the numbering of reports and their size. A report that is lost costs time only: the
//! heartbeat carries the last number, and a leader that missed one asks for everything.

use std::collections::BTreeSet;
use std::ops::Bound;
use std::time::Duration;

use wasmorch_api::messages::HeldReply;
use wasmorch_api::status::{Load, WorkloadLoad};
use wasmorch_api::{
    Heartbeat, HostInfo, ReplicaState, ReplicaStatus, StatusReport, Term, Timestamp,
};

use super::placement::Replica;
use super::{Agent, PlacementKey, Timer};
use crate::runner::protocol::ReplicaKey;

/// A message may be 512 KiB by contract; this leaves room for what is round the replicas.
const REPLICAS_BYTES_MAX: usize = 400 * 1024;
/// Of so many starts at once how far each is on its way is told as it comes.
const TOLD_AT_ONCE: usize = 32;
/// Of more it is told after so long (as Nomad's clients do, `allocSyncIntv`): most run or have ended by then, and
/// that is told at once. A leader would hear of each of millions four times more.
const TELL_AFTER: Duration = Duration::from_millis(200);

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
    pub(super) fn reports(&mut self, now: Timestamp) -> Vec<StatusReport> {
        let mut changed = std::mem::take(&mut self.changed);
        if self.identity.cluster.is_none() {
            // Nobody to tell; the leader asks for everything when it first hears of the host.
            return Vec::new();
        }
        self.put_off(&mut changed, now);
        let mut pages: Vec<Vec<ReplicaStatus>> = Vec::new();
        let mut room = 0;
        for key in changed {
            let Some(status) = self.status_of(&key) else {
                continue;
            };
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

    /// Takes out of `changed` what is told later, and puts in what its time has come for.
    fn put_off(&mut self, changed: &mut BTreeSet<ReplicaKey>, now: Timestamp) {
        if self.tell_at.is_some_and(|at| at <= now) {
            self.tell_at = None;
            let mut late = std::mem::take(&mut self.told_late);
            late.retain(|key| self.is_on_its_way(key));
            changed.append(&mut late);
        } else if changed.len() > TOLD_AT_ONCE {
            let late = changed.extract_if(.., |key| self.is_on_its_way(key));
            let mut late: BTreeSet<ReplicaKey> = late.collect();
            self.told_late.append(&mut late);
            if !self.told_late.is_empty() && self.tell_at.is_none() {
                let at = now.after(TELL_AFTER);
                self.tell_at = Some(at);
                self.timers.insert((at, Timer::Report));
            }
        }
    }

    /// Everything the host knows of replicas, a page of it: `cursor` is a page's `next`, nothing
    /// for the first. `None` before the host belongs to a cluster.
    pub fn status_page(&self, cursor: Option<&str>) -> Option<StatusReport> {
        let after = cursor
            .and_then(parse_cursor)
            .map_or(Bound::Unbounded, Bound::Excluded);
        let mut replicas = Vec::new();
        let mut room = REPLICAS_BYTES_MAX;
        for (key, placement) in self.placements.range((after, Bound::Unbounded)) {
            let current = placement
                .current
                .as_ref()
                .map(|replica| placement.status(key, replica));
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

    /// A page of the set that is held, with its revisions: `cursor` is a page's `next`. What a lost
    /// store is rebuilt from. `None` before the host belongs to a cluster.
    pub fn held_page(&self, cursor: Option<&str>) -> Option<HeldReply> {
        let from: usize = cursor.and_then(|at| at.parse().ok()).unwrap_or(0);
        let mut page = HeldReply {
            cluster: self.identity.cluster.clone()?,
            host: self.identity.host.clone(),
            sequence: self.sequence,
            groups: Vec::new(),
            revisions: Vec::new(),
            next: None,
        };
        let groups = self.set.iter().flat_map(|set| &set.groups);
        let mut room = REPLICAS_BYTES_MAX;
        for (at, group) in groups.enumerate().skip(from) {
            let revision = self.fetches.revision(&group.key(), group.revision);
            let bytes = json_bytes(group) + revision.map_or(0, |revision| json_bytes(&**revision));
            if bytes > room && !page.groups.is_empty() {
                page.next = Some(at.to_string());
                break;
            }
            room = room.saturating_sub(bytes);
            page.groups.push(group.clone());
            page.revisions
                .extend(revision.map(|revision| (**revision).clone()));
        }
        Some(page)
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
        for replica in self
            .placements
            .values()
            .filter_map(|placement| placement.live())
        {
            pulse.memory_bytes += replica.usage.memory_bytes;
            pulse.cpu_millis += replica.usage.cpu_millis;
            pulse.replicas += 1;
            pulse.ready += u64::from(replica.ready);
        }
        pulse
    }

    /// A heartbeat; `None` before the host belongs to a cluster.
    pub fn heartbeat(&self, info: &HostInfo, table_seq: u64, now: Timestamp) -> Option<Heartbeat> {
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
            removals: self.removals.left(),
            leaving: self.shutting_down,
            at: self.wants_echo().then_some(now),
            loads: self.loads(),
            stale_sets: self.stale_sets,
            info: info.clone(),
        })
    }

    /// What live replicas of workloads with `scale` have to do, by workload. Those of all its revisions
    /// count, and draining ones too: what they finish is the workload's all the same. As long as the set,
    /// which names each of these workloads with more, fits into a message, so does this.
    fn loads(&self) -> Vec<WorkloadLoad> {
        let mut loads: Vec<WorkloadLoad> = Vec::new();
        for (key, placement) in &self.placements {
            let Some(replica) = placement.live() else {
                continue;
            };
            let revision = self
                .fetches
                .revision(&key.workload, placement.revision)
                .filter(|revision| revision.spec.scale.is_some());
            if revision.is_none() {
                continue;
            }
            let usage = replica.usage;
            let load = Load {
                in_flight: usage.in_flight,
                cpu_millis: usage.cpu_millis,
                request_millis: usage.request_millis,
                pending: usage.pending,
            };
            let (namespace, workload) = (&key.workload.namespace, &key.workload.name);
            match loads.last_mut() {
                Some(last) if (&last.namespace, &last.workload) == (namespace, workload) => {
                    last.load = last.load.plus(load);
                }
                _ => loads.push(WorkloadLoad {
                    namespace: namespace.clone(),
                    workload: workload.clone(),
                    load,
                }),
            }
        }
        loads
    }

    fn status_of(&self, key: &ReplicaKey) -> Option<ReplicaStatus> {
        let placement_key = PlacementKey::of(key);
        let placement = self.placements.get(&placement_key)?;
        match &placement.current {
            Some(current) if current.id == key.id => {
                Some(placement.status(&placement_key, current))
            }
            _ => placement
                .past
                .iter()
                .find(|status| status.replica == key.id)
                .cloned(),
        }
    }

    /// It starts, and there is nothing else to say of it.
    fn is_on_its_way(&self, key: &ReplicaKey) -> bool {
        let placement = self.placements.get(&PlacementKey::of(key));
        placement.is_some_and(|placement| {
            let current = placement.current.as_ref().filter(|one| one.id == key.id);
            let starts = |one: &Replica| one.state < ReplicaState::Running && one.reason.is_none();
            placement.rest.is_none() && current.is_some_and(starts)
        })
    }

    fn note_told(&mut self, key: &ReplicaKey) {
        let placement = self.placements.get_mut(&PlacementKey::of(key));
        if let Some(current) = placement.and_then(|placement| placement.current.as_mut()) {
            current.usage_told = current.usage;
            current.answers_told = current.answers;
        }
    }
}

fn encoded_bytes(status: &ReplicaStatus) -> usize {
    json_bytes(status)
}

fn json_bytes<T: serde::Serialize>(value: &T) -> usize {
    // Plain data always encodes; the fallback only guards the arithmetic.
    serde_json::to_vec(value).map_or(2048, |bytes| bytes.len() + 1)
}

fn cursor_of(status: &ReplicaStatus) -> String {
    format!("{}/{}", status.key(), status.replica)
}

fn parse_cursor(cursor: &str) -> Option<PlacementKey> {
    let mut parts = cursor.splitn(3, '/');
    let namespace = parts.next()?.parse().ok()?;
    let name = parts.next()?.parse().ok()?;
    let id = parts.next()?.parse().ok()?;
    Some(PlacementKey::of(&ReplicaKey::new(
        wasmorch_api::WorkloadKey::new(namespace, name),
        id,
    )))
}

#[cfg(test)]
mod tests;
