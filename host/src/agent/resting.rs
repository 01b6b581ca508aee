//! Standbys: what rests, what wakes it, and what a new set makes of that.

use std::sync::Arc;

use wasmorch_api::{Kind, PlacementSet, ReplicaState};

use super::tests::{Stage, identity, persisted, replica, revision, set, status, told, workload};
use super::*;
use crate::runner::protocol::{FromRunner, ToRunner};

fn rests() -> PlacementSet {
    let mut set = set(1, "l1", &[("web", 1, 7)]);
    set.groups[0].slots[0].standby = true;
    set
}

fn runs() -> PlacementSet {
    set(1, "l1", &[("web", 1, 7)])
}

fn prepared(id: &str) -> FromRunner {
    FromRunner::Prepared {
        replica: replica("web", id),
        listens: true,
    }
}

fn wake() -> FromRunner {
    FromRunner::Wake {
        workload: workload("web"),
        holder: None,
    }
}

fn holds(id: &str) -> FromRunner {
    FromRunner::Wake {
        workload: workload("web"),
        holder: Some(id.parse().unwrap()),
    }
}

/// What the runner is told, without what it is told to prepare.
fn orders(effects: &[Effect]) -> Vec<String> {
    let orders = effects.iter().filter_map(|effect| match effect {
        Effect::ToRunner(ToRunner::Start { replica }) => Some(format!("start {}", replica.id)),
        Effect::ToRunner(ToRunner::Drain { replica, .. }) => Some(format!("drain {}", replica.id)),
        _ => None,
    });
    orders.collect()
}

fn resting() -> Stage {
    let mut stage = Stage::new();
    stage.event(told(rests(), 10));
    stage.event(Event::Revision(Arc::new(revision("web", 1, Kind::Http))));
    stage.event(super::tests::fetched("web"));
    let effects = stage.runner(prepared("1-7-1"));
    assert_eq!(orders(&effects), [""; 0], "it rests");
    stage
}

#[test]
fn a_request_starts_what_rests_and_the_leader_hears_of_it() {
    let mut stage = resting();
    let effects = stage.runner(wake());
    assert_eq!(orders(&effects), ["start 1-7-1"]);
    let woken = status(&effects, "1-7-1");
    assert_eq!((woken.state, woken.standby), (ReplicaState::Starting, true));
    assert_eq!(orders(&stage.runner(wake())), [""; 0], "once");
    // The same set again changes nothing; the leader that has adopted it neither.
    assert_eq!(orders(&stage.event(told(rests(), 11))), [""; 0]);
    let effects = stage.event(told(runs(), 12));
    assert_eq!(orders(&effects), [""; 0]);
    assert!(!status(&effects, "1-7-1").standby);
}

#[test]
fn the_leader_hears_when_what_rests_begins_to_listen() {
    let mut stage = Stage::new();
    stage.event(told(rests(), 10));
    stage.event(Event::Revision(Arc::new(revision(
        "web",
        1,
        Kind::Messages,
    ))));
    stage.event(super::tests::fetched("web"));
    let prepared = |listens: bool| FromRunner::Prepared {
        replica: replica("web", "1-7-1"),
        listens,
    };
    stage.runner(prepared(false));
    let effects = stage.runner(prepared(true));
    assert_eq!(orders(&effects), [""; 0], "it rests");
    let says = status(&effects, "1-7-1");
    assert_eq!((says.state, says.listens), (ReplicaState::Preparing, true));
    let effects = stage.runner(prepared(false));
    assert!(!status(&effects, "1-7-1").listens, "it listens no more");
    stage.runner(prepared(true));
    let effects = stage.runner(wake());
    assert!(!status(&effects, "1-7-1").listens, "it starts");
}

#[test]
fn what_runs_and_is_told_to_rest_drains_and_is_prepared_anew() {
    let mut stage = Stage::running("web", Kind::Http);
    assert_eq!(orders(&stage.runner(wake())), [""; 0], "it runs");
    assert_eq!(orders(&stage.event(told(rests(), 11))), ["drain 1-7-1"]);
    let stopped = FromRunner::Stopped {
        replica: replica("web", "1-7-1"),
    };
    stage.runner(stopped);
    stage.until_due();
    stage.event(super::tests::fetched("web"));
    assert_eq!(orders(&stage.runner(prepared("1-7-2"))), [""; 0]);
    assert_eq!(orders(&stage.runner(wake())), ["start 1-7-2"]);
}

#[test]
fn a_request_that_comes_while_it_drains_is_not_forgotten() {
    let mut stage = Stage::running("web", Kind::Http);
    stage.event(told(rests(), 11));
    stage.runner(wake());
    let stopped = FromRunner::Stopped {
        replica: replica("web", "1-7-1"),
    };
    stage.runner(stopped);
    stage.until_due();
    stage.event(super::tests::fetched("web"));
    assert_eq!(orders(&stage.runner(prepared("1-7-2"))), ["start 1-7-2"]);
}

#[test]
fn a_leader_wakes_it_too_and_a_restart_of_the_daemon_does_not() {
    let mut stage = resting();
    let effects = stage.event(told(runs(), 11));
    assert_eq!(orders(&effects), ["start 1-7-1"]);
    let mut stage = Stage::new();
    let effects = stage.event(told(rests(), 10));
    let held = persisted(&effects).expect("the set is kept");
    let mut again = Agent::new(identity(), Some(held));
    again.handle(Event::Tick, stage.now);
    let web = Arc::new(revision("web", 1, Kind::Http));
    again.handle(Event::Revision(web), stage.now);
    again.handle(super::tests::fetched("web"), stage.now);
    let start = again.status_page(None).expect("a page").replicas[0].replica;
    let effects = again.handle(Event::Runner(prepared(&start.to_string())), stage.now);
    assert_eq!(orders(&effects), [""; 0]);
}

/// Two standbys on one host: what one of them holds, no other can answer.
#[test]
fn the_one_that_holds_the_request_starts_whatever_else_runs() {
    let mut stage = Stage::new();
    let mut two = set(1, "l1", &[("web", 1, 7), ("web", 2, 8)]);
    for group in &mut two.groups {
        for slot in &mut group.slots {
            slot.standby = true;
        }
    }
    stage.event(told(two, 10));
    stage.event(Event::Revision(Arc::new(revision(
        "web",
        1,
        Kind::Messages,
    ))));
    stage.event(super::tests::fetched("web"));
    stage.runner(prepared("1-7-1"));
    stage.runner(prepared("2-8-1"));
    assert_eq!(orders(&stage.runner(holds("2-8-1"))), ["start 2-8-1"]);
    assert_eq!(orders(&stage.runner(holds("2-8-1"))), [""; 0], "once");
    assert_eq!(orders(&stage.runner(wake())), [""; 0], "one runs");
    let other = orders(&stage.runner(holds("1-7-9")));
    assert_eq!(other, [""; 0], "no such start");
    assert_eq!(orders(&stage.runner(holds("1-7-1"))), ["start 1-7-1"]);
}

/// What has just come to it is done before it ends.
#[test]
fn one_that_ends_at_rest_is_drained() {
    let mut stage = resting();
    let effects = stage.event(told(set(1, "l1", &[]), 11));
    assert_eq!(orders(&effects), ["drain 1-7-1"]);
}
