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
const TOLD_AT_ONCE: usize = if cfg!(test) { 0 } else { 32 };
/// Of more it is told after so long (as Nomad's clients do, `allocSyncIntv`): most run or have ended by then, and
/// that is told at once. A leader would hear of each of millions four times more.
pub(super) const TELL_AFTER: Duration = Duration::from_millis(200);

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
        if self.tell_at.is_some_and(|at| at <= now) {
            self.tell_at = None;
            let mut late = std::mem::take(&mut self.told_late);
            late.retain(|key| self.is_on_its_way(key));
            changed.append(&mut late);
        } else if changed.len() > TOLD_AT_ONCE && !self.tell_after.is_zero() {
            let late = changed.extract_if(.., |key| self.is_on_its_way(key));
            let mut late: BTreeSet<ReplicaKey> = late.collect();
            self.told_late.append(&mut late);
            if !self.told_late.is_empty() && self.tell_at.is_none() {
                let at = now.after(self.tell_after);
                self.tell_at = Some(at);
                self.timers.insert((at, Timer::Report));
            }
        }
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
            leaving: self.shutting_down,
            at: self.wants_echo().then_some(now),
            loads: self.loads(),
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
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use wasmorch_api::spec::{Scale, scale_panic, scale_tolerance, scale_window};
    use wasmorch_api::{Answers, HostInfo, Kind};

    use super::super::Event;
    use super::super::REASON_BYTES_MAX;
    use super::super::tests::{Stage, fetched, replica, reports, revision, set, status, told};
    use super::Load;
    use crate::runner::protocol::{FromRunner, Outcome, ReplicaUsage, Usage};

    #[test]
    fn usage_is_told_when_it_moves_and_not_too_often() {
        let mut stage = Stage::running("web", Kind::Http);
        let used = |memory_bytes| {
            let replica = replica("web", "1-7-1");
            let usage = ReplicaUsage {
                replica,
                memory_bytes,
                cpu_millis: 0,
                in_flight: 0,
                request_millis: 0,
                pending: 0,
                answers: Answers::default(),
            };
            FromRunner::Usage(Usage {
                replicas: vec![usage],
                ..Usage::default()
            })
        };
        stage.now = stage.now.after(Duration::from_secs(60));
        assert_eq!(
            status(&stage.runner(used(8 << 20)), "1-7-1").memory_bytes,
            8 << 20
        );
        assert!(
            stage.runner(used(32 << 20)).is_empty(),
            "five seconds have not passed"
        );
        assert_eq!(stage.agent.pulse().memory_bytes, 32 << 20);
        stage.now = stage.now.after(Duration::from_secs(5));
        assert_eq!(
            status(&stage.runner(used(32 << 20)), "1-7-1").memory_bytes,
            32 << 20
        );
        stage.now = stage.now.after(Duration::from_secs(5));
        assert!(stage.runner(used(33 << 20)).is_empty(), "hardly moved");
    }

    #[test]
    fn a_heartbeat_tells_the_load_of_workloads_with_scale_alone() {
        let used = |id: &str, in_flight| ReplicaUsage {
            replica: replica("web", id),
            memory_bytes: 0,
            cpu_millis: 20,
            in_flight,
            request_millis: 1_500,
            pending: in_flight * 100,
            answers: Answers::default(),
        };
        let loads = |scale: Option<Scale>| {
            let mut revision = revision("web", 1, Kind::Http);
            revision.spec.scale = scale;
            let mut stage = Stage::running_revision(revision);
            stage.event(told(set(1, "l1", &[("web", 1, 7), ("web", 2, 8)]), 11));
            stage.bring_up("web", "2-8-1");
            stage.runner(FromRunner::Usage(Usage {
                replicas: vec![used("1-7-1", 3), used("2-8-1", 4)],
                ..Usage::default()
            }));
            let beat = stage.agent.heartbeat(&HostInfo::default(), 0, stage.now);
            beat.unwrap().loads
        };
        assert_eq!(loads(None), []);
        let scale = Scale {
            min: 1,
            max: 9,
            target: [("concurrency".to_owned(), 5)].into(),
            window: scale_window(),
            panic: scale_panic(),
            tolerance: scale_tolerance(),
        };
        let told = loads(Some(scale));
        let sum = Load {
            in_flight: 7,
            cpu_millis: 40,
            request_millis: 3_000,
            // The same messages, as two replicas saw them.
            pending: 400,
        };
        assert_eq!(told.len(), 1, "one entry for all its replicas: {told:?}");
        assert_eq!((told[0].workload.as_str(), told[0].load), ("web", sum));
    }

    #[test]
    fn answers_are_told_as_they_grow_and_stay_when_a_replica_has_ended() {
        let mut stage = Stage::running("web", Kind::Http);
        let answered = |requests, errors| {
            let usage = ReplicaUsage {
                replica: replica("web", "1-7-1"),
                memory_bytes: 0,
                cpu_millis: 0,
                in_flight: 0,
                request_millis: 0,
                pending: 0,
                answers: Answers {
                    requests,
                    errors,
                    slow: 0,
                },
            };
            FromRunner::Usage(Usage {
                replicas: vec![usage],
                ..Usage::default()
            })
        };
        let told = |effects: &[_]| {
            let answers = status(effects, "1-7-1").answers;
            (answers.requests, answers.errors)
        };
        stage.now = stage.now.after(Duration::from_secs(60));
        assert_eq!(told(&stage.runner(answered(19, 0))), (19, 0));
        assert!(stage.runner(answered(20, 0)).is_empty(), "hardly grown");
        stage.now = stage.now.after(Duration::from_secs(5));
        assert_eq!(told(&stage.runner(answered(20, 0))), (20, 0), "in the end");
        assert_eq!(told(&stage.runner(answered(20, 1))), (20, 1), "at once");
        assert_eq!(told(&stage.runner(answered(30, 1))), (30, 1));
        assert!(stage.runner(answered(10, 0)).is_empty(), "less than before");
        let outcome = Outcome::Failed {
            exit_code: None,
            reason: "it broke".into(),
        };
        let effects = stage.runner(FromRunner::Ended {
            replica: replica("web", "1-7-1"),
            outcome,
        });
        assert_eq!(told(&effects), (30, 1));
    }

    #[test]
    fn reports_are_numbered_and_large_ones_are_split() {
        let mut stage = Stage::new();
        let placements: Vec<_> = (1..=3000).map(|slot| ("web", slot, slot)).collect();
        let effects = stage.event(told(set(1, "l1", &placements), 10));
        let reports = reports(&effects);
        assert!(reports.len() > 1);
        for (report, number) in reports.iter().zip(1..) {
            assert_eq!(report.status_seq, number);
            assert!(serde_json::to_vec(report).unwrap().len() < 512 * 1024);
        }
        let mut cursor = None;
        let mut replicas = 0;
        loop {
            let page = stage.agent.status_page(cursor.as_deref()).unwrap();
            assert!(page.full && serde_json::to_vec(&page).unwrap().len() < 512 * 1024);
            replicas += page.replicas.len();
            cursor = page.next;
            if cursor.is_none() {
                break;
            }
        }
        assert_eq!(replicas, 3000);
    }

    /// Of many starts one that is quick is told of once; a slow one is told of while it lasts.
    #[test]
    fn how_far_a_start_is_on_its_way_is_told_when_it_takes_long() {
        let begun = || {
            let mut stage = Stage::new();
            stage.agent.tell_after = super::TELL_AFTER;
            let effects = stage.event(told(set(1, "l1", &[("web", 1, 7)]), 10));
            assert!(reports(&effects).is_empty(), "{effects:?}");
            stage
        };
        let of = || replica("web", "1-7-1");
        let mut quick = begun();
        quick.event(Event::Revision(Arc::new(revision("web", 1, Kind::Http))));
        quick.event(fetched("web"));
        let (replica, listens) = (of(), true);
        let prepared = FromRunner::Prepared { replica, listens };
        assert!(reports(&quick.runner(prepared)).is_empty());
        let started = FromRunner::Started { replica: of() };
        assert_eq!(reports(&quick.runner(started)).len(), 1, "at once");
        assert_eq!(quick.agent.pulse().status_seq, 1);

        let mut slow = begun();
        slow.now = slow.agent.wake_at().expect("it is to be told");
        let effects = slow.event(Event::Tick);
        assert!(!status(&effects, "1-7-1").state.ended());
        assert!(reports(&slow.event(Event::Tick)).is_empty(), "once");
    }

    #[test]
    fn what_is_held_is_told_in_pages() {
        let mut stage = Stage::running("web", Kind::Http);
        let names: Vec<String> = (0..200)
            .map(|n| format!("w{n}-{}", "x".repeat(50)))
            .collect();
        let placements: Vec<_> = names
            .iter()
            .map(|name| (name.as_str(), 1, 7))
            .chain([("web", 1, 7)])
            .collect();
        let mut large = set(1, "l1", &placements);
        for group in &mut large.groups {
            group.slots[0].args = Some(std::sync::Arc::new(vec!["y".repeat(5_000)]));
        }
        stage.event(told(large.clone(), 11));
        let (mut cursor, mut groups, mut revisions, mut pages) = (None, Vec::new(), 0, 0);
        loop {
            let page = stage.agent.held_page(cursor.as_deref()).unwrap();
            assert!(serde_json::to_vec(&page).unwrap().len() < 512 * 1024);
            assert_eq!(page.sequence, 11);
            groups.extend(page.groups);
            revisions += page.revisions.len();
            pages += 1;
            cursor = page.next;
            if cursor.is_none() {
                break;
            }
        }
        assert_eq!(
            (groups, revisions),
            (large.groups, 1),
            "the others are not fetched yet"
        );
        assert!(pages > 1);
    }

    #[test]
    fn a_very_long_reason_is_cut() {
        let mut stage = Stage::running("web", Kind::Http);
        let outcome = Outcome::Failed {
            exit_code: None,
            reason: "ä".repeat(10_000),
        };
        let effects = stage.runner(FromRunner::Ended {
            replica: replica("web", "1-7-1"),
            outcome,
        });
        assert!(status(&effects, "1-7-1").reason.unwrap().len() <= REASON_BYTES_MAX);
    }
}
