//! What may run only while a leader hears the host: `lease`.

use std::sync::Arc;
use std::time::Duration;

use wasmorch_api::messages::HeardNote;
use wasmorch_api::units::HumanDuration;
use wasmorch_api::{Kind, ReplicaState, Revision, Term, Timestamp};

use super::tests::{Stage, fetched, identity, persisted, replica, revision, set, status, told};
use super::*;
use crate::runner::protocol::{FromRunner, ToRunner};

/// Ten seconds alone, then ten to end in.
fn leased(exclusive: bool) -> Revision {
    let mut revision = revision("web", 1, Kind::Service);
    let disconnect = &mut revision.spec.disconnect;
    disconnect.stop_after = Some(HumanDuration::secs(10));
    disconnect.lost_after = HumanDuration::secs(20);
    disconnect.exclusive = exclusive;
    revision
}

fn heard(at: Timestamp, sequence: u64) -> Event {
    Event::Heard {
        boot: identity().boot,
        term: Term(1),
        at,
        sequence,
    }
}

fn drains(effects: &[Effect]) -> Option<u64> {
    effects.iter().find_map(|effect| match effect {
        Effect::ToRunner(ToRunner::Drain { deadline_ms, .. }) => Some(*deadline_ms),
        _ => None,
    })
}

fn fetches(effects: &[Effect]) -> bool {
    let fetch = |effect: &Effect| matches!(effect, Effect::FetchArtifact { .. });
    effects.iter().any(fetch)
}

#[test]
fn what_has_stop_after_ends_when_no_leader_hears_the_host() {
    let mut stage = Stage::running_revision(leased(false));
    let info = wasmorch_api::HostInfo::default();
    let beat = stage.agent.heartbeat(&info, 0, stage.now).unwrap();
    assert_eq!(beat.at, Some(stage.now), "asks for an echo");
    // Heard at its time of sending, however late the echo comes.
    let sent = stage.now;
    assert_eq!(drains(&stage.after(Duration::from_secs(6))), None);
    stage.event(heard(sent.after(Duration::from_secs(4)), 10));
    assert_eq!(drains(&stage.after(Duration::from_millis(7_999))), None);
    let effects = stage.after(Duration::from_millis(1));
    assert_eq!(drains(&effects), Some(5_000), "half of what is left");
    let stopped = FromRunner::Stopped {
        replica: replica("web", "1-7-1"),
    };
    let effects = stage.runner(stopped);
    let ended = status(&effects, "1-7-1");
    assert_eq!(ended.state, ReplicaState::Stopped);
    assert!(ended.reason.unwrap().contains("stop_after"));
    let next = status(&effects, "1-7-2");
    assert_eq!(next.state, ReplicaState::Assigned);
    assert!(!fetches(&effects) && stage.agent.settled());
    assert!(next.reason.unwrap().contains("waits until a leader hears"));
    let effects = stage.event(heard(stage.now, 10));
    assert!(fetches(&effects), "and then it goes on");
}

#[test]
fn a_clock_that_jumps_ahead_only_ends_it_early() {
    let mut stage = Stage::running_revision(leased(false));
    stage.event(heard(stage.now, 10));
    assert!(drains(&stage.after(Duration::from_secs(3_600))).is_some());
}

#[test]
fn what_must_not_run_twice_starts_only_by_a_leaders_word() {
    let mut stage = Stage::new();
    stage.event(told(set(1, "l1", &[("web", 1, 7)]), 10));
    let arrived = Event::Revision(Arc::new(leased(true)));
    assert!(!fetches(&stage.event(arrived)));
    let now = stage.now;
    // Not by one to another start of the daemon, of a deposed leader, from the future, or of a newer set.
    let other = Event::Heard {
        boot: "b0".parse().unwrap(),
        term: Term(1),
        at: now,
        sequence: 10,
    };
    assert!(!fetches(&stage.event(other)));
    let deposed = Event::Heard {
        boot: identity().boot,
        term: Term(0),
        at: now,
        sequence: 10,
    };
    assert!(!fetches(&stage.event(deposed)));
    assert!(!fetches(
        &stage.event(heard(now.after(Duration::from_secs(1)), 10))
    ));
    assert!(
        !fetches(&stage.event(heard(now, 11))),
        "a newer set may say otherwise"
    );
    assert!(fetches(&stage.event(heard(now, 10))));
    stage.bring_up("web", "1-7-1");
    assert!(drains(&stage.after(Duration::from_secs(10))).is_some());
}

/// An earlier echo does not tell whose the set is that came since.
#[test]
fn what_must_not_run_twice_starts_only_by_the_set_that_the_leader_named() {
    let mut stage = Stage::new();
    stage.event(told(set(1, "l1", &[]), 10));
    stage.event(heard(stage.now, 10));
    stage.event(told(set(1, "l1", &[("web", 1, 7)]), 11));
    let effects = stage.event(Event::Revision(Arc::new(leased(true))));
    assert!(!fetches(&effects));
    let waits = |effects: &[Effect]| status(effects, "1-7-1").reason.unwrap();
    assert!(waits(&effects).contains("waits until a leader hears"));
    // It is another start's.
    let effects = stage.event(heard(stage.now, HeardNote::NOTHING_ONCE));
    assert!(!fetches(&effects));
    assert!(waits(&effects).contains("an earlier start of this host"));
    assert!(fetches(&stage.event(heard(stage.now, 11))));
}

#[test]
fn a_restarted_host_starts_offline_what_may_run_twice_and_nothing_else() {
    for exclusive in [false, true] {
        let mut stage = Stage::new();
        stage.event(told(set(1, "l1", &[("web", 1, 7)]), 10));
        stage.event(heard(stage.now, 10));
        let effects = stage.event(Event::Revision(Arc::new(leased(exclusive))));
        let held = persisted(&effects);
        let mut again = Agent::new(identity(), held);
        let effects = again.handle(Event::Tick, stage.now);
        assert_eq!(fetches(&effects), !exclusive);
        again.handle(fetched("web"), stage.now);
        let effects = again.handle(heard(stage.now, 10), stage.now);
        assert_eq!(fetches(&effects), exclusive);
    }
}
