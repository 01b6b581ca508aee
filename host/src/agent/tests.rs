//! The agent's rules, one test each. A small stage plays the store, the disk and the runner.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use wasmorch_api::spec::RestartPolicy;
use wasmorch_api::{
    Digest, Kind, PlacedSlot, PlacementGroup, PlacementNumber, PlacementSet,
    ReplicaState, ReplicaStatus, Revision, RevisionNumber, Slot, StatusReport, Term, Timestamp,
    WorkloadKey, WorkloadSpec,
};

use super::*;
use crate::runner::protocol::{Outcome, ReplicaUsage, Usage};

pub(super) fn identity() -> Identity {
    Identity {
        host: "h1".parse().unwrap(),
        boot: "b1".parse().unwrap(),
        cluster: Some("c1".parse().unwrap()),
    }
}

pub(super) fn workload(name: &str) -> WorkloadKey {
    WorkloadKey::new("default".parse().unwrap(), name.parse().unwrap())
}

pub(super) fn key(name: &str, slot: u64, placement: u64) -> PlacementKey {
    PlacementKey {
        workload: workload(name),
        slot: Slot(slot),
        placement: PlacementNumber(placement),
    }
}

pub(super) fn revision(name: &str, number: u64, kind: Kind) -> Revision {
    let artifact = Digest::of(name.as_bytes());
    let spec = WorkloadSpec {
        name: name.parse().unwrap(),
        artifact: Some(artifact.clone()),
        kind: Some(kind),
        ..WorkloadSpec::default()
    };
    Revision {
        namespace: "default".parse().unwrap(),
        name: name.parse().unwrap(),
        number: RevisionNumber(number),
        kind,
        artifact,
        spec,
        at: Timestamp(0),
        by: "test".into(),
        changes: Vec::new(),
    }
}

pub(super) fn set(term: u64, leader: &str, placements: &[(&str, u64, u64)]) -> PlacementSet {
    let group = |(name, slot, placement): &(&str, u64, u64)| PlacementGroup {
        namespace: "default".parse().unwrap(),
        workload: name.parse().unwrap(),
        revision: RevisionNumber(1),
        slots: vec![PlacedSlot {
            slot: Slot(*slot),
            placement: PlacementNumber(*placement),
            args: None,
        }],
    };
    PlacementSet {
        cluster: "c1".parse().unwrap(),
        term: Term(term),
        leader: leader.parse().unwrap(),
        host: "h1".parse().unwrap(),
        groups: placements.iter().map(group).collect(),
    }
}

fn told(set: PlacementSet, sequence: u64) -> Event {
    Event::Set { set: Box::new(set), sequence }
}

fn replica(name: &str, id: &str) -> ReplicaKey {
    ReplicaKey::new(workload(name), id.parse().unwrap())
}

fn fetched(name: &str) -> Event {
    Event::Fetched { digest: Digest::of(name.as_bytes()), path: PathBuf::from("artifacts/x") }
}

fn reports(effects: &[Effect]) -> Vec<&StatusReport> {
    let report = |effect| match effect {
        &Effect::Report(ref report) => Some(report),
        _ => None,
    };
    effects.iter().filter_map(report).collect()
}

/// The last that the effects tell of this replica.
fn status(effects: &[Effect], id: &str) -> ReplicaStatus {
    let reports = reports(effects);
    let mut told = reports.iter().flat_map(|report| &report.replicas);
    told.rfind(|status| status.replica.to_string() == id).expect("told").clone()
}

fn to_runner(effects: &[Effect]) -> Vec<&ToRunner> {
    let message = |effect| match effect {
        &Effect::ToRunner(ref message) => Some(message),
        _ => None,
    };
    effects.iter().filter_map(message).collect()
}

fn persisted(effects: &[Effect]) -> Option<Held> {
    effects.iter().rev().find_map(|effect| match effect {
        Effect::Persist(held) => Some((**held).clone()),
        _ => None,
    })
}

/// An agent with its time.
struct Stage {
    agent: Agent,
    now: Timestamp,
}

impl Stage {
    fn new() -> Self {
        Self { agent: Agent::new(identity(), None), now: Timestamp(1_000) }
    }

    fn event(&mut self, event: Event) -> Vec<Effect> {
        self.agent.handle(event, self.now)
    }

    fn runner(&mut self, message: FromRunner) -> Vec<Effect> {
        self.event(Event::Runner(message))
    }

    fn after(&mut self, time: Duration) -> Vec<Effect> {
        self.now = self.now.after(time);
        self.event(Event::Tick)
    }

    /// Time goes on to what the agent waits for.
    fn until_due(&mut self) -> Vec<Effect> {
        self.now = self.now.max(self.agent.wake_at().expect("something is due"));
        self.event(Event::Tick)
    }

    /// A replica of `name` that runs, as `1-<placement>-1`.
    fn running(name: &str, kind: Kind) -> Self {
        Self::running_revision(revision(name, 1, kind))
    }

    fn running_revision(revision: Revision) -> Self {
        let mut stage = Self::new();
        let name = revision.name.to_string();
        stage.event(told(set(1, "l1", &[(&name, 1, 7)]), 10));
        stage.event(Event::Revision(Arc::new(revision)));
        stage.bring_up(&name, "1-7-1");
        stage
    }

    fn bring_up(&mut self, name: &str, id: &str) -> Vec<Effect> {
        self.event(fetched(name));
        self.runner(FromRunner::Prepared { replica: replica(name, id) });
        self.runner(FromRunner::Started { replica: replica(name, id) })
    }

    fn fail(&mut self, name: &str, id: &str) -> Vec<Effect> {
        let outcome = Outcome::Failed { exit_code: Some(1), reason: "trap".into() };
        self.runner(FromRunner::Ended { replica: replica(name, id), outcome })
    }
}

#[test]
fn a_placement_goes_all_the_way_to_ready() {
    let mut stage = Stage::new();
    let effects = stage.event(told(set(1, "l1", &[("web", 1, 7)]), 10));
    assert!(matches!(effects[0], Effect::Persist(_)), "on disk before anything rests on it");
    assert!(matches!(effects[1], Effect::FetchRevision { .. }));
    assert_eq!(status(&effects, "1-7-1").state, ReplicaState::Assigned);

    let effects = stage.event(Event::Revision(Arc::new(revision("web", 1, Kind::Http))));
    assert_eq!(status(&effects, "1-7-1").state, ReplicaState::Preparing);
    assert!(effects.iter().any(|effect| matches!(effect, Effect::FetchArtifact { .. })));

    let effects = stage.event(fetched("web"));
    let [ToRunner::Prepare { replica: named, launch }] = to_runner(&effects)[..] else {
        panic!("{effects:?}")
    };
    assert_eq!((named, launch.kind), (&replica("web", "1-7-1"), Kind::Http));

    let effects = stage.runner(FromRunner::Prepared { replica: replica("web", "1-7-1") });
    assert!(matches!(to_runner(&effects)[..], [ToRunner::Start { .. }]));
    assert_eq!(status(&effects, "1-7-1").state, ReplicaState::Starting);
    let effects = stage.runner(FromRunner::Started { replica: replica("web", "1-7-1") });
    assert!(!status(&effects, "1-7-1").ready);
    let health = |ready| FromRunner::Health { replica: replica("web", "1-7-1"), ready, reason: None };
    let effects = stage.runner(health(true));
    assert!(status(&effects, "1-7-1").ready);
    assert!(reports(&stage.runner(health(true))).is_empty(), "nothing new, nothing told");
}

#[test]
fn one_fetch_serves_every_replica_that_waits_for_it() {
    let mut stage = Stage::new();
    let effects = stage.event(told(set(1, "l1", &[("web", 1, 1), ("web", 2, 2)]), 10));
    let asked = |effects: &[Effect]| {
        effects.iter().filter(|e| matches!(e, Effect::FetchRevision { .. } | Effect::FetchArtifact { .. })).count()
    };
    assert_eq!(asked(&effects), 1);
    assert_eq!(asked(&stage.event(Event::Revision(Arc::new(revision("web", 1, Kind::Http))))), 1);
    assert_eq!(to_runner(&stage.event(fetched("web"))).len(), 2);
}

#[test]
fn what_is_dropped_is_drained_told_and_forgotten() {
    let mut stage = Stage::running("web", Kind::Http);
    let effects = stage.event(told(set(1, "l1", &[]), 11));
    let [ToRunner::Drain { deadline_ms: 30_000, .. }] = to_runner(&effects)[..] else {
        panic!("{effects:?}")
    };
    assert_eq!(status(&effects, "1-7-1").state, ReplicaState::Draining);
    let effects = stage.runner(FromRunner::Stopped { replica: replica("web", "1-7-1") });
    assert_eq!(status(&effects, "1-7-1").state, ReplicaState::Stopped);
    assert_eq!(stage.agent.status_page(None).unwrap().replicas, []);
    assert!(stage.agent.idle());
    assert_eq!(stage.agent.artifacts_in_use().len(), 0);
}

#[test]
fn what_never_reached_the_runner_is_stopped_at_once() {
    let mut stage = Stage::new();
    stage.event(told(set(1, "l1", &[("web", 1, 7)]), 10));
    let effects = stage.event(told(set(1, "l1", &[]), 11));
    assert!(to_runner(&effects).is_empty());
    assert_eq!(status(&effects, "1-7-1").state, ReplicaState::Stopped);
}

#[test]
fn a_drain_that_takes_too_long_is_cut() {
    let mut stage = Stage::running("web", Kind::Http);
    stage.event(told(set(1, "l1", &[]), 11));
    let effects = stage.after(Duration::from_secs(30));
    assert!(to_runner(&effects).is_empty(), "the runner has its deadline, and a grace");
    let effects = stage.until_due();
    assert!(matches!(to_runner(&effects)[..], [ToRunner::Stop { .. }]));
}

#[test]
fn no_set_holds_and_only_an_empty_one_stops() {
    let mut stage = Stage::running("web", Kind::Http);
    assert!(stage.event(Event::NoSet).is_empty());
    assert!(stage.event(Event::Disconnected).is_empty());
    assert_eq!(stage.agent.state_of(&key("web", 1, 7)), Some(ReplicaState::Running));
}

#[test]
fn sets_that_are_not_obeyed() {
    let mut stage = Stage::running("web", Kind::Http);
    stage.event(told(set(5, "l5", &[("web", 1, 7)]), 3));
    let refusal = |effects: Vec<Effect>| match effects.as_slice() {
        [Effect::Refused(refusal)] => refusal.clone(),
        other => panic!("{other:?}"),
    };
    let empty = |term, leader| told(set(term, leader, &[]), 99);
    assert!(matches!(refusal(stage.event(empty(4, "l4"))), Refusal::StaleTerm { .. }));
    assert!(matches!(refusal(stage.event(empty(5, "l6"))), Refusal::OtherLeader { .. }));
    let other = PlacementSet { cluster: "c2".parse().unwrap(), ..set(9, "l9", &[]) };
    assert!(matches!(refusal(stage.event(told(other, 99))), Refusal::OtherCluster { .. }));
    let other = PlacementSet { host: "h2".parse().unwrap(), ..set(9, "l9", &[]) };
    assert!(matches!(refusal(stage.event(told(other, 99))), Refusal::OtherHost { .. }));
    assert!(stage.event(told(set(5, "l5", &[]), 3)).is_empty(), "an older sequence of the same term");
    assert_eq!(stage.agent.state_of(&key("web", 1, 7)), Some(ReplicaState::Running));
    // A higher term counts even at a lower sequence: the store may have been rebuilt.
    assert!(!stage.event(told(set(6, "l6", &[]), 1)).is_empty());
}

#[test]
fn failures_back_off_then_the_leader_takes_over() {
    let mut stage = Stage::running("web", Kind::Http);
    let effects = stage.fail("web", "1-7-1");
    let failed = status(&effects, "1-7-1");
    assert_eq!((failed.state, failed.given_up, failed.exit_code), (ReplicaState::Failed, false, Some(1)));
    assert_eq!(stage.agent.wake_at(), Some(stage.now.after(Duration::from_secs(1))));
    stage.until_due();
    stage.bring_up("web", "1-7-2");
    stage.fail("web", "1-7-2");
    assert_eq!(stage.agent.wake_at(), Some(stage.now.after(Duration::from_secs(2))));
    stage.until_due();
    stage.bring_up("web", "1-7-3");
    let effects = stage.fail("web", "1-7-3");
    assert!(status(&effects, "1-7-3").given_up);
    assert_eq!(stage.agent.wake_at(), None);
    // Ended starts stay until the leader drops the placement.
    assert_eq!(stage.agent.status_page(None).unwrap().replicas.len(), 3);
    stage.event(told(set(1, "l1", &[]), 11));
    assert_eq!(stage.agent.status_page(None).unwrap().replicas, []);
}

#[test]
fn a_good_while_forgives_earlier_failures() {
    let mut stage = Stage::running("web", Kind::Http);
    for start in 1..=5 {
        let id = format!("1-7-{start}");
        let health = FromRunner::Health { replica: replica("web", &id), ready: true, reason: None };
        stage.runner(health);
        stage.after(STEADY);
        let effects = stage.fail("web", &id);
        assert!(!status(&effects, &id).given_up, "start {start}");
        stage.until_due();
        stage.bring_up("web", &format!("1-7-{}", start + 1));
    }
}

#[test]
fn a_job_ends_once() {
    let mut stage = Stage::running("sum", Kind::Job);
    let outcome = Outcome::Completed { exit_code: 0 };
    let effects = stage.runner(FromRunner::Ended { replica: replica("sum", "1-7-1"), outcome });
    let done = status(&effects, "1-7-1");
    assert_eq!((done.state, done.given_up, done.exit_code), (ReplicaState::Completed, false, Some(0)));
    assert!(matches!(effects[0], Effect::Persist(_)), "the result is on disk before it is told");
    assert_eq!(stage.agent.wake_at(), None);

    // Not even a restart of the daemon runs it again, and its result is still told.
    let mut again = Agent::new(identity(), persisted(&effects));
    assert!(again.handle(Event::Tick, stage.now).is_empty());
    assert_eq!(again.status_page(None).unwrap().replicas[0].state, ReplicaState::Completed);
    assert!(again.settled());
}

#[test]
fn a_job_has_its_own_number_of_attempts() {
    let mut job = revision("sum", 1, Kind::Job);
    job.spec.job.attempts = 2;
    let mut stage = Stage::running_revision(job);
    assert!(!status(&stage.fail("sum", "1-7-1"), "1-7-1").given_up);
    stage.until_due();
    stage.bring_up("sum", "1-7-2");
    assert!(status(&stage.fail("sum", "1-7-2"), "1-7-2").given_up);
}

#[test]
fn policies() {
    let mut never = revision("web", 1, Kind::Service);
    never.spec.restart.policy = Some(RestartPolicy::Never);
    let mut stage = Stage::running_revision(never);
    assert!(status(&stage.fail("web", "1-7-1"), "1-7-1").given_up);

    let mut stage = Stage::running("tick", Kind::Service);
    let outcome = Outcome::Completed { exit_code: 0 };
    stage.runner(FromRunner::Ended { replica: replica("tick", "1-7-1"), outcome });
    assert!(stage.agent.wake_at().is_some(), "a service that returns is started again");
}

#[test]
fn a_restarted_host_starts_what_it_held_without_nats() {
    let mut stage = Stage::new();
    stage.event(told(set(3, "l1", &[("web", 1, 7)]), 10));
    let effects = stage.event(Event::Revision(Arc::new(revision("web", 1, Kind::Http))));
    let held = persisted(&effects).unwrap();
    let json = serde_json::to_vec(&held).unwrap();
    let held: Held = serde_json::from_slice(&json).unwrap();

    let mut again = Agent::new(identity(), Some(held));
    assert!(!again.settled());
    let effects = again.handle(Event::Tick, stage.now);
    assert_eq!(status(&effects, "1-7-2").state, ReplicaState::Preparing);
    assert!(effects.iter().any(|effect| matches!(effect, Effect::FetchArtifact { .. })));
    assert_eq!(persisted(&effects).unwrap().placements[0].starts, 2, "no id is made twice");
    // The same set again, read at connect, changes nothing.
    assert!(again.handle(told(set(3, "l1", &[("web", 1, 7)]), 10), stage.now).is_empty());
    assert_eq!(again.sequence(), 10);
}

#[test]
fn a_network_error_waits_and_a_wrong_digest_is_rejected() {
    let mut stage = Stage::new();
    stage.event(told(set(1, "l1", &[("web", 1, 7)]), 10));
    stage.event(Event::Revision(Arc::new(revision("web", 1, Kind::Http))));
    let failed = |reason: &str, retryable| Event::FetchFailed {
        digest: Digest::of(b"web"),
        reason: reason.into(),
        retryable,
    };
    let waiting = status(&stage.event(failed("timed out", true)), "1-7-1");
    assert_eq!(waiting.state, ReplicaState::Preparing);
    assert_eq!(waiting.reason.unwrap(), "waiting for its artifact: timed out");
    assert!(matches!(stage.until_due()[..], [Effect::FetchArtifact { .. }]));

    let rejected = status(&stage.event(failed("digest mismatch", false)), "1-7-1");
    assert_eq!((rejected.state, rejected.given_up), (ReplicaState::Rejected, false));
    let effects = stage.until_due();
    assert!(effects.iter().any(|effect| matches!(effect, Effect::FetchArtifact { .. })));
    assert_eq!(status(&effects, "1-7-2").state, ReplicaState::Preparing);
}

#[test]
fn being_connected_again_retries_at_once() {
    let mut stage = Stage::new();
    stage.event(told(set(1, "l1", &[("web", 1, 7)]), 10));
    let missing = Event::RevisionMissing {
        workload: workload("web"),
        number: RevisionNumber(1),
        reason: "no connection to NATS".into(),
    };
    let effects = stage.event(missing);
    assert!(status(&effects, "1-7-1").reason.unwrap().contains("no connection"));
    let connected = Event::Connected { cluster: "c1".parse().unwrap(), term: Term(4) };
    assert!(matches!(stage.event(connected)[..], [Effect::FetchRevision { .. }]));
    assert_eq!(stage.agent.term().0, Term(4));
}

#[test]
fn a_host_joins_the_first_cluster_that_it_meets_and_no_other() {
    let mut agent = Agent::new(Identity { cluster: None, ..identity() }, None);
    assert!(agent.status_page(None).is_none());
    let connect = |cluster: &str| Event::Connected { cluster: cluster.parse().unwrap(), term: Term(1) };
    assert!(matches!(agent.handle(connect("c9"), Timestamp(1))[..], [Effect::Joined(_)]));
    assert!(agent.handle(connect("c9"), Timestamp(2)).is_empty());
    assert!(matches!(agent.handle(connect("c1"), Timestamp(3))[..], [Effect::Refused(_)]));
}

#[test]
fn a_dead_runner_is_nobodys_failure() {
    let mut stage = Stage::running("web", Kind::Http);
    for start in 1..=5 {
        let effects = stage.event(Event::RunnerDied { reason: "killed".into() });
        let failed = status(&effects, &format!("1-7-{start}"));
        assert_eq!((failed.state, failed.given_up), (ReplicaState::Failed, false));
        stage.until_due();
        stage.bring_up("web", &format!("1-7-{}", start + 1));
    }
    assert_eq!(stage.agent.state_of(&key("web", 1, 7)), Some(ReplicaState::Running));
}

#[test]
fn wanted_again_while_it_drains() {
    let mut stage = Stage::running("web", Kind::Http);
    stage.event(told(set(1, "l1", &[]), 11));
    let effects = stage.event(told(set(1, "l1", &[("web", 1, 7)]), 12));
    assert!(to_runner(&effects).is_empty(), "the replica's state only moves forward");
    let effects = stage.runner(FromRunner::Stopped { replica: replica("web", "1-7-1") });
    assert_eq!(status(&effects, "1-7-2").state, ReplicaState::Preparing);
}

#[test]
fn shutting_down_drains_all_and_starts_nothing() {
    let mut stage = Stage::running("web", Kind::Http);
    let effects = stage.event(Event::Shutdown { deadline: Duration::from_secs(3) });
    assert!(matches!(to_runner(&effects)[..], [ToRunner::Drain { deadline_ms: 3_000, .. }]));
    stage.runner(FromRunner::Stopped { replica: replica("web", "1-7-1") });
    assert!(stage.agent.idle());
    assert!(to_runner(&stage.event(told(set(1, "l1", &[("web", 1, 7), ("web", 2, 8)]), 12))).is_empty());
    assert!(stage.agent.idle());
}

#[test]
fn usage_is_told_when_it_moves_and_not_too_often() {
    let mut stage = Stage::running("web", Kind::Http);
    let used = |memory_bytes| {
        let replica = replica("web", "1-7-1");
        let usage = ReplicaUsage { replica, memory_bytes, cpu_millis: 0, in_flight: 0 };
        FromRunner::Usage(Usage { replicas: vec![usage], ..Usage::default() })
    };
    stage.now = stage.now.after(Duration::from_secs(60));
    assert_eq!(status(&stage.runner(used(8 << 20)), "1-7-1").memory_bytes, 8 << 20);
    assert!(stage.runner(used(32 << 20)).is_empty(), "five seconds have not passed");
    assert_eq!(stage.agent.pulse().memory_bytes, 32 << 20);
    stage.now = stage.now.after(Duration::from_secs(5));
    assert_eq!(status(&stage.runner(used(32 << 20)), "1-7-1").memory_bytes, 32 << 20);
    stage.now = stage.now.after(Duration::from_secs(5));
    assert!(stage.runner(used(33 << 20)).is_empty(), "hardly moved");
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

#[test]
fn a_very_long_reason_is_cut() {
    let mut stage = Stage::running("web", Kind::Http);
    let outcome = Outcome::Failed { exit_code: None, reason: "ä".repeat(10_000) };
    let effects = stage.runner(FromRunner::Ended { replica: replica("web", "1-7-1"), outcome });
    assert!(status(&effects, "1-7-1").reason.unwrap().len() <= REASON_BYTES_MAX);
}
