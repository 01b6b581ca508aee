//! The agent's rules, one test each. A small stage plays the store, the disk and the runner.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use wasmorch_api::{
    Digest, HostInfo, Kind, PlacedSlot, PlacementGroup, PlacementNumber, PlacementSet,
    ReplicaState, ReplicaStatus, Revision, RevisionNumber, Slot, StatusReport, Term, Timestamp,
    WorkloadKey, WorkloadSpec,
};

use super::*;
use crate::runner::protocol::{FromRunner, Outcome, ToRunner};

mod drains;

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
        features: Vec::new(),
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
            standby: false,
        }],
    };
    PlacementSet {
        cluster: "c1".parse().unwrap(),
        term: Term(term),
        leader: leader.parse().unwrap(),
        host: "h1".parse().unwrap(),
        groups: placements.iter().map(group).collect(),
        removals: Vec::new(),
    }
}

pub(super) fn told(set: PlacementSet, sequence: u64) -> Event {
    Event::Set {
        set: Box::new(set),
        sequence,
    }
}

pub(super) fn replica(name: &str, id: &str) -> ReplicaKey {
    ReplicaKey::new(workload(name), id.parse().unwrap())
}

pub(super) fn fetched(name: &str) -> Event {
    Event::Fetched {
        digest: Digest::of(name.as_bytes()),
        path: PathBuf::from("artifacts/x"),
    }
}

pub(super) fn reports(effects: &[Effect]) -> Vec<&StatusReport> {
    let mut reports = Vec::new();
    for effect in effects {
        if let Effect::Report(report) = effect {
            reports.push(report);
        }
    }
    reports
}

/// The last that the effects tell of this replica.
pub(super) fn status(effects: &[Effect], id: &str) -> ReplicaStatus {
    let reports = reports(effects);
    let mut told = reports.iter().flat_map(|report| &report.replicas);
    told.rfind(|status| status.replica.to_string() == id)
        .expect("told")
        .clone()
}

fn to_runner(effects: &[Effect]) -> Vec<&ToRunner> {
    let mut messages = Vec::new();
    for effect in effects {
        if let Effect::ToRunner(message) = effect {
            messages.push(message);
        }
    }
    messages
}

pub(super) fn persisted(effects: &[Effect]) -> Option<Held> {
    effects.iter().rev().find_map(|effect| match effect {
        Effect::Persist(held) => Some((**held).clone()),
        _ => None,
    })
}

/// An agent with its time.
pub(super) struct Stage {
    pub(super) agent: Agent,
    pub(super) now: Timestamp,
}

impl Stage {
    pub(super) fn new() -> Self {
        Self {
            agent: Agent::new(identity(), None),
            now: Timestamp(1_000),
        }
    }

    pub(super) fn event(&mut self, event: Event) -> Vec<Effect> {
        self.agent.handle(event, self.now)
    }

    pub(super) fn runner(&mut self, message: FromRunner) -> Vec<Effect> {
        self.event(Event::Runner(message))
    }

    pub(super) fn after(&mut self, time: Duration) -> Vec<Effect> {
        self.now = self.now.after(time);
        self.event(Event::Tick)
    }

    /// Time goes on to what the agent waits for.
    pub(super) fn until_due(&mut self) -> Vec<Effect> {
        self.now = self
            .now
            .max(self.agent.wake_at().expect("something is due"));
        self.event(Event::Tick)
    }

    /// A replica of `name` that runs, as `1-<placement>-1`.
    pub(super) fn running(name: &str, kind: Kind) -> Self {
        Self::running_revision(revision(name, 1, kind))
    }

    pub(super) fn running_revision(revision: Revision) -> Self {
        let mut stage = Self::new();
        let name = revision.name.to_string();
        stage.event(told(set(1, "l1", &[(&name, 1, 7)]), 10));
        stage.event(Event::Revision(Arc::new(revision)));
        stage.bring_up(&name, "1-7-1");
        stage
    }

    pub(super) fn bring_up(&mut self, name: &str, id: &str) -> Vec<Effect> {
        self.event(fetched(name));
        self.runner(FromRunner::Prepared {
            replica: replica(name, id),
            listens: true,
        });
        self.runner(FromRunner::Started {
            replica: replica(name, id),
        })
    }

    pub(super) fn fail(&mut self, name: &str, id: &str) -> Vec<Effect> {
        let outcome = Outcome::Failed {
            exit_code: Some(1),
            reason: "trap".into(),
        };
        self.runner(FromRunner::Ended {
            replica: replica(name, id),
            outcome,
        })
    }
}

#[test]
fn a_placement_goes_all_the_way_to_ready() {
    let mut stage = Stage::new();
    let effects = stage.event(told(set(1, "l1", &[("web", 1, 7)]), 10));
    assert!(
        matches!(effects[0], Effect::Persist(_)),
        "on disk before anything rests on it"
    );
    assert!(matches!(effects[1], Effect::FetchRevision { .. }));
    assert_eq!(status(&effects, "1-7-1").state, ReplicaState::Assigned);

    let effects = stage.event(Event::Revision(Arc::new(revision("web", 1, Kind::Http))));
    assert_eq!(status(&effects, "1-7-1").state, ReplicaState::Preparing);
    assert!(
        effects
            .iter()
            .any(|effect| matches!(effect, Effect::FetchArtifact { .. }))
    );

    let effects = stage.event(fetched("web"));
    let [
        ToRunner::Prepare {
            replica: named,
            launch,
        },
    ] = to_runner(&effects)[..]
    else {
        panic!("{effects:?}")
    };
    assert_eq!(
        (named, launch.revision.kind),
        (&replica("web", "1-7-1"), Kind::Http)
    );

    let effects = stage.runner(FromRunner::Prepared {
        replica: replica("web", "1-7-1"),
        listens: true,
    });
    assert!(matches!(to_runner(&effects)[..], [ToRunner::Start { .. }]));
    assert_eq!(status(&effects, "1-7-1").state, ReplicaState::Starting);
    let effects = stage.runner(FromRunner::Started {
        replica: replica("web", "1-7-1"),
    });
    assert!(!status(&effects, "1-7-1").ready);
    let health = |ready| FromRunner::Health {
        replica: replica("web", "1-7-1"),
        ready,
        reason: None,
    };
    let effects = stage.runner(health(true));
    assert!(status(&effects, "1-7-1").ready);
    assert!(
        reports(&stage.runner(health(true))).is_empty(),
        "nothing new, nothing told"
    );
}

#[test]
fn one_fetch_serves_every_replica_that_waits_for_it() {
    let mut stage = Stage::new();
    let effects = stage.event(told(set(1, "l1", &[("web", 1, 1), ("web", 2, 2)]), 10));
    let asked = |effects: &[Effect]| {
        effects
            .iter()
            .filter(|e| {
                matches!(
                    e,
                    Effect::FetchRevision { .. } | Effect::FetchArtifact { .. }
                )
            })
            .count()
    };
    assert_eq!(asked(&effects), 1);
    assert_eq!(
        asked(&stage.event(Event::Revision(Arc::new(revision("web", 1, Kind::Http))))),
        1
    );
    assert_eq!(to_runner(&stage.event(fetched("web"))).len(), 2);
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
fn no_set_holds_and_only_an_empty_one_stops() {
    let mut stage = Stage::running("web", Kind::Http);
    assert!(stage.event(Event::NoSet).is_empty());
    assert!(stage.event(Event::Disconnected).is_empty());
    assert_eq!(
        stage.agent.state_of(&key("web", 1, 7)),
        Some(ReplicaState::Running)
    );
}

#[test]
fn a_deposed_leader_is_refused_before_the_new_one_has_written() {
    let mut stage = Stage::running("web", Kind::Http);
    // Term 2 began at sequence 20, and its leader has not touched this host.
    let term = (Term(2), 20);
    let told_term = Event::Term {
        term: term.0,
        fence: term.1,
    };
    assert!(stage.event(told_term).is_empty());
    assert_eq!(stage.agent.term().0, Term(2));
    let effects = stage.event(told(set(1, "l1", &[]), 21));
    assert!(
        matches!(effects[..], [Effect::Refused(Refusal::StaleTerm { .. })]),
        "{effects:?}"
    );
    let info = HostInfo::default();
    let beat = stage.agent.heartbeat(&info, 0, Timestamp(1)).unwrap();
    assert_eq!(beat.stale_sets, 1, "the leader hears of it");
    // What the first leader had stored before that is in force all the same.
    let both = [("web", 1, 7), ("web", 2, 8)];
    stage.event(told(set(1, "l1", &both), 19));
    assert!(stage.agent.state_of(&key("web", 2, 8)).is_some());
    assert_eq!(stage.agent.sequence(), 19);
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
    assert!(matches!(
        refusal(stage.event(empty(4, "l4"))),
        Refusal::StaleTerm { .. }
    ));
    assert!(matches!(
        refusal(stage.event(empty(5, "l6"))),
        Refusal::OtherLeader { .. }
    ));
    let other = PlacementSet {
        cluster: "c2".parse().unwrap(),
        ..set(9, "l9", &[])
    };
    assert!(matches!(
        refusal(stage.event(told(other, 99))),
        Refusal::OtherCluster { .. }
    ));
    let other = PlacementSet {
        host: "h2".parse().unwrap(),
        ..set(9, "l9", &[])
    };
    assert!(matches!(
        refusal(stage.event(told(other, 99))),
        Refusal::OtherHost { .. }
    ));
    assert!(
        stage.event(told(set(5, "l5", &[]), 3)).is_empty(),
        "an older sequence of the same term"
    );
    assert_eq!(
        stage.agent.state_of(&key("web", 1, 7)),
        Some(ReplicaState::Running)
    );
    // A higher term counts even at a lower sequence: the store may have been rebuilt.
    assert!(!stage.event(told(set(6, "l6", &[]), 1)).is_empty());
}

#[test]
fn a_host_joins_the_first_cluster_that_it_meets_and_no_other() {
    let mut agent = Agent::new(
        Identity {
            cluster: None,
            ..identity()
        },
        None,
    );
    assert!(agent.status_page(None).is_none());
    let connect = |cluster: &str| Event::Connected {
        cluster: cluster.parse().unwrap(),
        term: Term(1),
    };
    assert!(matches!(
        agent.handle(connect("c9"), Timestamp(1))[..],
        [Effect::Joined(_)]
    ));
    assert!(agent.handle(connect("c9"), Timestamp(2)).is_empty());
    assert!(matches!(
        agent.handle(connect("c1"), Timestamp(3))[..],
        [Effect::Refused(_)]
    ));
}

#[test]
fn what_did_not_reach_the_disk_is_persisted_again() {
    let mut stage = Stage::new();
    let first = persisted(&stage.event(told(set(1, "l1", &[("web", 1, 7)]), 10)));
    assert!(persisted(&stage.event(Event::Tick)).is_none());
    stage.agent.persist_again();
    assert_eq!(persisted(&stage.event(Event::Tick)), first);
    assert!(persisted(&stage.event(Event::Tick)).is_none());
}
