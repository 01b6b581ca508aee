//! Starting again: after failures, after jobs, after the runner, after the daemon.

use std::sync::Arc;
use std::time::Duration;

use wasmorch_api::spec::RestartPolicy;
use wasmorch_api::{Digest, Kind, ReplicaState, RevisionNumber, Term};

use super::tests::{
    Stage, identity, key, persisted, replica, revision, set, status, told, workload,
};
use super::*;
use crate::runner::protocol::{FromRunner, Outcome};

#[test]
fn failures_back_off_then_the_leader_takes_over() {
    let mut stage = Stage::running("web", Kind::Http);
    let effects = stage.fail("web", "1-7-1");
    let failed = status(&effects, "1-7-1");
    assert_eq!(
        (failed.state, failed.given_up, failed.exit_code),
        (ReplicaState::Failed, false, Some(1))
    );
    assert_eq!(
        stage.agent.wake_at(),
        Some(stage.now.after(Duration::from_secs(1)))
    );
    stage.until_due();
    stage.bring_up("web", "1-7-2");
    stage.fail("web", "1-7-2");
    assert_eq!(
        stage.agent.wake_at(),
        Some(stage.now.after(Duration::from_secs(2)))
    );
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
        let health = FromRunner::Health {
            replica: replica("web", &id),
            ready: true,
            reason: None,
        };
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
    let effects = stage.runner(FromRunner::Ended {
        replica: replica("sum", "1-7-1"),
        outcome,
    });
    let done = status(&effects, "1-7-1");
    assert_eq!(
        (done.state, done.given_up, done.exit_code),
        (ReplicaState::Completed, false, Some(0))
    );
    assert!(
        matches!(effects[0], Effect::Persist(_)),
        "the result is on disk before it is told"
    );
    assert_eq!(stage.agent.wake_at(), None);

    // Not even a restart of the daemon runs it again, and its result is still told.
    let mut again = Agent::new(identity(), persisted(&effects));
    assert!(again.handle(Event::Tick, stage.now).is_empty());
    assert_eq!(
        again.status_page(None).unwrap().replicas[0].state,
        ReplicaState::Completed
    );
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
    stage.runner(FromRunner::Ended {
        replica: replica("tick", "1-7-1"),
        outcome,
    });
    assert!(
        stage.agent.wake_at().is_some(),
        "a service that returns is started again"
    );
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
    assert!(
        effects
            .iter()
            .any(|effect| matches!(effect, Effect::FetchArtifact { .. }))
    );
    assert_eq!(
        persisted(&effects).unwrap().placements[0].starts,
        2,
        "no id is made twice"
    );
    // The same set again, read at connect, changes nothing.
    assert!(
        again
            .handle(told(set(3, "l1", &[("web", 1, 7)]), 10), stage.now)
            .is_empty()
    );
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
    assert_eq!(
        waiting.reason.unwrap(),
        "waiting for its artifact: timed out"
    );
    assert!(matches!(
        stage.until_due()[..],
        [Effect::FetchArtifact { .. }]
    ));

    let rejected = status(&stage.event(failed("digest mismatch", false)), "1-7-1");
    assert_eq!(
        (rejected.state, rejected.given_up),
        (ReplicaState::Rejected, false)
    );
    let effects = stage.until_due();
    assert!(
        effects
            .iter()
            .any(|effect| matches!(effect, Effect::FetchArtifact { .. }))
    );
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
    assert!(
        status(&effects, "1-7-1")
            .reason
            .unwrap()
            .contains("no connection")
    );
    let connected = Event::Connected {
        cluster: "c1".parse().unwrap(),
        term: Term(4),
    };
    assert!(matches!(
        stage.event(connected)[..],
        [Effect::FetchRevision { .. }]
    ));
    assert_eq!(stage.agent.term().0, Term(4));
}

#[test]
fn a_dead_runner_is_nobodys_failure() {
    let mut stage = Stage::running("web", Kind::Http);
    for start in 1..=5 {
        let (name, reason) = (format!("1-7-{start}"), "killed".to_owned());
        let outcome = Outcome::Lost {
            reason: reason.clone(),
        };
        // All that ran, as the simulation has it, or this one, as the pool of runners tells it.
        let effects = match start % 2 {
            0 => stage.event(Event::RunnerDied { reason }),
            _ => stage.runner(FromRunner::Ended {
                replica: replica("web", &name),
                outcome,
            }),
        };
        let failed = status(&effects, &format!("1-7-{start}"));
        assert_eq!(
            (failed.state, failed.given_up),
            (ReplicaState::Failed, false)
        );
        stage.until_due();
        stage.bring_up("web", &format!("1-7-{}", start + 1));
    }
    assert_eq!(
        stage.agent.state_of(&key("web", 1, 7)),
        Some(ReplicaState::Running)
    );
    let effects = stage.fail("web", "1-7-6");
    assert!(!status(&effects, "1-7-6").given_up, "its own first failure");
}
