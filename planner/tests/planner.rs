//! The planner driven through its public face: a small world of hosts that do as they are told.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use wasmorch_api::messages::{ChangeRequest, RolloutAction, RolloutRequest, WorkloadState};
use wasmorch_api::spec::{Constraint, LabelTest, Replicas, Sockets, StoreBinding};
use wasmorch_api::status::{Capacity, HostState};
use wasmorch_api::{
    Answers, BootId, ClusterId, Digest, Heartbeat, HostId, HostInfo, Kind, LeaderId, Name,
    PlacementNumber, ReplicaId, ReplicaState, ReplicaStatus, RolloutState, StatusReport, Term,
    Timestamp, WorkloadKey, WorkloadSpec, features,
};
use wasmorch_planner::commands::{self, Call, DeployInput};
use wasmorch_planner::{Cluster, Observation, Plan, Stored, Write, check, preview, queries, why};

#[path = "planner/atomic.rs"]
mod atomic;
#[path = "planner/autoscale.rs"]
mod autoscale;
#[path = "planner/canary.rs"]
mod canary;
#[path = "planner/checker.rs"]
mod checker;
#[path = "planner/claims.rs"]
mod claims;
#[path = "planner/cron.rs"]
mod cron;
#[path = "planner/deps.rs"]
mod deps;
#[path = "planner/disconnect.rs"]
mod disconnect;
#[path = "planner/drain.rs"]
mod drain;
#[path = "planner/heard.rs"]
mod heard;
#[path = "planner/held.rs"]
mod held;
#[path = "planner/history.rs"]
mod history;
#[path = "planner/incremental.rs"]
mod incremental;
#[path = "planner/judge.rs"]
mod judge;
#[path = "planner/kept.rs"]
mod kept;
#[path = "planner/mass.rs"]
mod mass;
#[path = "planner/odd.rs"]
mod odd;
#[path = "planner/oracle.rs"]
mod oracle;
#[path = "planner/per_host.rs"]
mod per_host;
#[path = "planner/preempt.rs"]
mod preempt;
#[path = "planner/quota.rs"]
mod quota;
#[path = "planner/reasons.rs"]
mod reasons;
#[path = "planner/rebalance.rs"]
mod rebalance;
#[path = "planner/removals.rs"]
mod removals;
#[path = "planner/rolls.rs"]
mod rolls;
#[path = "planner/room.rs"]
mod room;
#[path = "planner/routes.rs"]
mod routes;
#[path = "planner/runs.rs"]
mod runs;
#[path = "planner/stopped.rs"]
mod stopped;
#[path = "planner/twins.rs"]
mod twins;
#[path = "planner/withdrawn.rs"]
mod withdrawn;
#[path = "planner/world.rs"]
mod world;
#[path = "planner/zero.rs"]
mod zero;

use incremental::{Busy, shaped};
use world::*;

#[test]
fn a_first_deploy_spreads_and_becomes_ready() {
    let mut world = World::new(3);
    assert!(world.deploy(spec("1", 3), Kind::Http));
    assert_eq!(world.state(), WorkloadState::Pending);
    world.run(5);
    assert_eq!((world.state(), world.ready()), (WorkloadState::Ready, 3));
    assert_eq!(
        (1..=3).map(|n| world.on(&host(n))).collect::<Vec<_>>(),
        [1, 1, 1]
    );
    assert_eq!(world.rollout(), RolloutState::Completed);
    assert!(world.plan().is_empty(), "converged");
    assert!(
        !world.deploy(spec("1", 3), Kind::Http),
        "the same again changes nothing"
    );
}

#[test]
fn a_dead_host_is_replaced_and_a_suspect_one_is_not() {
    let mut world = World::new(3);
    world.deploy(spec("1", 3), Kind::Http);
    world.run(8);
    world.silent.insert(host(2));
    world.run(8); // 4 s: suspect
    assert_eq!(world.cluster.hosts()[&host(2)].state, HostState::Suspect);
    assert_eq!(world.on(&host(2)), 1);
    world.run(8);
    assert_eq!(world.cluster.hosts()[&host(2)].state, HostState::Dead);
    assert_eq!((world.on(&host(2)), world.ready()), (0, 3));
    world.silent.clear();
    world.run(4);
    assert!(
        world.plan().is_empty(),
        "a returned host moves nothing by itself"
    );
}

#[test]
fn with_nowhere_else_to_go_a_silent_host_keeps_its_set() {
    let mut world = World::new(2);
    world.deploy(spec("1", 2), Kind::Http);
    world.run(8);
    world.silent.extend([host(1), host(2)]);
    world.run(16);
    assert_eq!(world.cluster.hosts()[&host(1)].state, HostState::Dead);
    assert_eq!(world.cluster.workload(&web()).unwrap().placements.len(), 2);
    let status = queries::status(&world.cluster, &web(), false).unwrap();
    assert_eq!(status.unplaced.unwrap().slots, 2, "and says so");
    world.silent.clear();
    world.run(3);
    assert_eq!(world.ready(), 2, "nothing was stopped");
}

#[test]
fn a_new_leader_moves_nothing_before_hosts_have_spoken() {
    let mut world = World::new(3);
    world.deploy(spec("1", 3), Kind::Http);
    world.run(8);
    let before = world.cluster.workload(&web()).unwrap().placements.clone();
    world.new_leader();
    for _ in 0..9 {
        let plan = world.plan();
        assert!(
            plan.start.is_empty() && plan.stop.is_empty() && plan.endpoints.is_empty(),
            "{plan:#?}"
        );
        world.now.0 += 500;
        world.cluster.observe(Observation::Tick, world.now);
    }
    world.run(6);
    assert_eq!(world.cluster.workload(&web()).unwrap().placements, before);
    assert_eq!(world.ready(), 3);
}

#[test]
fn scale_stop_start_restart() {
    let mut world = World::new(2);
    world.deploy(spec("1", 1), Kind::Http);
    world.run(6);
    world.change(commands::scale, Some(5));
    world.run(4);
    assert_eq!(world.ready(), 5);
    world.change(commands::scale, Some(2));
    world.run(2);
    assert_eq!((world.ready(), world.state()), (2, WorkloadState::Ready));
    world.change(commands::stop, None);
    world.run(2);
    assert_eq!(world.state(), WorkloadState::Stopped);
    assert!(
        world
            .cluster
            .workload(&web())
            .unwrap()
            .placements
            .is_empty()
    );
    world.change(commands::start, None);
    world.run(4);
    assert_eq!((world.ready(), world.state()), (2, WorkloadState::Ready));
    let before = world
        .cluster
        .workload(&web())
        .unwrap()
        .record
        .next_placement;
    world.change(commands::restart, None);
    for _ in 0..20 {
        world.round();
        assert_eq!(world.ready(), 2);
    }
    let workload = world.cluster.workload(&web()).unwrap();
    assert!(workload.placements.keys().all(|number| *number >= before));
    assert_eq!(workload.record.revision.0, 1);
    world.change(commands::rm, None);
    world.run(1);
    assert!(world.cluster.workloads().is_empty());
    assert!(
        world
            .store
            .keys()
            .all(|key| !key.contains("web") || key.starts_with("removed.")),
        "{:?}",
        world.store.keys()
    );
    // A workload of the same name begins where the old one ended: hosts may still hold its numbers.
    let next = world.now;
    world.new_leader();
    world.now = next;
    world.run(2);
    world.deploy(spec("9", 1), Kind::Http);
    world.run(2);
    let workload = world.cluster.workload(&web()).unwrap();
    assert_eq!(workload.record.revision.0, 2);
    assert!(workload.placements.keys().all(|number| *number > before));
}

#[test]
fn a_job_completes_once_and_runs_again_when_started() {
    let mut world = World::new(1);
    world.fates.insert(1, Fate::Completes);
    world.deploy(spec("1", 1), Kind::Job);
    world.run(6);
    assert_eq!(world.state(), WorkloadState::Completed);
    let runs = |world: &World| {
        world
            .plans
            .iter()
            .map(|plan| plan.start.len())
            .sum::<usize>()
    };
    assert_eq!(runs(&world), 1);
    world.change(commands::start, None);
    world.run(6);
    assert_eq!((world.state(), runs(&world)), (WorkloadState::Completed, 2));
}

#[test]
fn a_repeated_request_gets_the_first_answer() {
    let mut world = World::new(1);
    world.deploy(spec("1", 1), Kind::Http);
    let mut call = world.call();
    call.request_id = Some("r1".parse().unwrap());
    let request = ChangeRequest {
        workload: name("web"),
        desired: Some(3),
        args: None,
        data: false,
        request_id: call.request_id.clone(),
        by: None,
    };
    let outcome = commands::scale(&world.cluster, &request, &call).unwrap();
    let first = serde_json::to_value(&outcome.reply).unwrap();
    world.store(outcome.writes);
    assert_eq!(
        commands::answered(&world.cluster, &web(), "scale", &call),
        Some(first)
    );
    call.now.0 += 11 * 60 * 1000;
    assert_eq!(
        commands::answered(&world.cluster, &web(), "scale", &call),
        None
    );
    // One that changes nothing is remembered too: its copy may come after another change.
    call.request_id = Some("r2".parse().unwrap());
    let idle = commands::scale(&world.cluster, &request, &call).unwrap();
    assert!(!idle.reply.changed && idle.events.is_empty());
    world.store(idle.writes);
    assert!(commands::answered(&world.cluster, &web(), "scale", &call).is_some());
    call.request_id = Some("r3".parse().unwrap());
    let same = DeployInput {
        workloads: vec![(spec("1", 3), Kind::Http)],
        if_index: None,
        ..DeployInput::default()
    };
    let idle = commands::deploy(&world.cluster, &same, &call).unwrap();
    assert!(!idle.reply.workloads[0].changed && idle.events.is_empty());
    world.store(idle.writes);
    assert!(commands::answered(&world.cluster, &web(), "deploy", &call).is_some());
}

#[test]
fn a_preview_shows_what_a_deploy_then_does() {
    let mut world = World::new(3);
    world.replicas_max = 4;
    world.deploy(shaped(0, 1, 5, 0), Kind::Http);
    world.deploy(shaped(3, 1, 2, 0), Kind::Http);
    world.run(6);
    for count in [4, 9] {
        let input = DeployInput {
            workloads: vec![(shaped(3, 1, count, 0), Kind::Http)],
            if_index: None,
            ..DeployInput::default()
        };
        let shown = preview::of_deploy(&world.cluster, &input, &world.call()).unwrap();
        let shown: BTreeSet<String> = shown["start"]
            .as_array()
            .unwrap()
            .iter()
            .map(|start| format!("{} {}", start["slot"], start["host"].as_str().unwrap()))
            .collect();
        let mut real = world.cluster.clone();
        let outcome = commands::deploy(&real, &input, &world.call()).unwrap();
        real.commit(outcome.writes, world.sequence + 10, world.now);
        let plan = real.plan(world.now);
        let done: BTreeSet<String> = plan
            .start
            .iter()
            .map(|start| format!("{} {}", start.slot, start.host))
            .collect();
        assert_eq!(shown, done);
        assert_eq!(
            shown.len(),
            if count == 4 { 2 } else { 5 },
            "12 places, 7 are taken"
        );
    }
}
