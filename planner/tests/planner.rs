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
#[path = "planner/claims.rs"]
mod claims;
#[path = "planner/deps.rs"]
mod deps;
#[path = "planner/disconnect.rs"]
mod disconnect;
#[path = "planner/drain.rs"]
mod drain;
#[path = "planner/heard.rs"]
mod heard;
#[path = "planner/incremental.rs"]
mod incremental;
#[path = "planner/judge.rs"]
mod judge;
#[path = "planner/odd.rs"]
mod odd;
#[path = "planner/per_host.rs"]
mod per_host;
#[path = "planner/preempt.rs"]
mod preempt;
#[path = "planner/quota.rs"]
mod quota;
#[path = "planner/rebalance.rs"]
mod rebalance;
#[path = "planner/runs.rs"]
mod runs;
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
fn a_roll_never_has_fewer_ready_than_wanted() {
    let mut world = World::new(2);
    world.deploy(spec("1", 4), Kind::Http);
    world.run(8);
    world.deploy(spec("2", 4), Kind::Http);
    for _ in 0..40 {
        world.round();
        assert_eq!(world.ready(), 4);
        let placed = world.cluster.workload(&web()).unwrap().placements.len();
        assert!(placed <= 5, "desired + surge");
    }
    assert_eq!(world.rollout(), RolloutState::Completed);
    let workload = world.cluster.workload(&web()).unwrap();
    assert!(
        workload
            .placements
            .values()
            .all(|placed| placed.revision.0 == 2)
    );
}

#[test]
fn a_bad_revision_reverts_and_says_why() {
    for fate in [Fate::GivesUp, Fate::Unready] {
        let mut world = World::new(2);
        world.deploy(spec("1", 2), Kind::Http);
        world.run(8);
        world.fates.insert(2, fate);
        world.deploy(spec("2", 2), Kind::Http);
        for _ in 0..60 {
            world.round();
            assert_eq!(world.ready(), 2, "the old ones serve throughout");
        }
        assert_eq!(world.rollout(), RolloutState::Reverted, "{fate:?}");
        let record = &world.cluster.workload(&web()).unwrap().record;
        assert_eq!((record.revision.0, record.newest.0), (1, 2));
        let reason = record.rollout.as_ref().unwrap().reason.clone().unwrap();
        assert!(reason.contains(&format!("{fate:?}")), "{reason}");
        assert!(world.plan().is_empty());
    }
}

#[test]
fn a_bad_first_revision_stays_failed_until_it_lives() {
    let mut world = World::new(1);
    world.fates.insert(1, Fate::GivesUp);
    world.deploy(spec("1", 1), Kind::Http);
    world.run(4);
    assert_eq!(world.state(), WorkloadState::Failed);
    world.fates.clear();
    world.run(80);
    assert_eq!(
        (world.state(), world.rollout()),
        (WorkloadState::Ready, RolloutState::Completed)
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
fn several_failures_at_once_still_revert() {
    let mut world = World::new(2);
    world.deploy(spec("1", 3), Kind::Http);
    world.run(8);
    world.change(commands::stop, None);
    world.run(2);
    world.fates.insert(2, Fate::GivesUp);
    world.deploy(spec("2", 3), Kind::Http);
    world.run(10);
    assert_eq!(world.rollout(), RolloutState::Reverted);
    assert_eq!(
        world.ready(),
        3,
        "the good revision waits for no crash loop of the bad one"
    );
}

#[test]
fn what_becomes_ready_only_to_fail_is_not_started_without_a_pause() {
    let mut world = World::new(3);
    world.deploy(spec("1", 1), Kind::Http);
    world.run(8);
    let starts = |world: &World| -> usize {
        let plans = world.plans.iter();
        plans.map(|plan| plan.start.len()).sum()
    };
    let before = starts(&world);
    // Two minutes of a second's good service each.
    for _ in 0..60 {
        world.fates.insert(1, Fate::GivesUp);
        world.run(2);
        world.fates.insert(1, Fate::Ready);
        world.run(2);
    }
    let again = starts(&world) - before;
    assert!((3..=6).contains(&again), "{again} starts");
    // After the pause, and a good while, its failures are behind it.
    world.run(400);
    assert_eq!(world.state(), WorkloadState::Ready);
    assert_eq!(
        world.cluster.workload(&web()).unwrap().record.crash_loop,
        []
    );
}

#[test]
fn a_host_dies_while_a_successor_becomes_ready() {
    let mut world = World::new(3);
    world.deploy(spec("1", 3), Kind::Http);
    world.run(8);
    world.deploy(spec("2", 3), Kind::Http);
    world.round();
    world.silent.insert(host(3));
    // Long enough without a plan that both things are found in one.
    world.now.0 += 900;
    for _ in 0..6 {
        for n in 1..=2 {
            world.heartbeat(&host(n));
            world.report(&host(n));
        }
        world.cluster.observe(Observation::Tick, world.now);
        world.now.0 += 900;
    }
    world.run(40);
    assert_eq!(
        (world.rollout(), world.ready()),
        (RolloutState::Completed, 3)
    );
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
fn rollback_goes_to_the_revision_before() {
    let mut world = World::new(1);
    world.deploy(spec("1", 1), Kind::Http);
    world.run(6);
    world.deploy(spec("2", 1), Kind::Http);
    world.run(10);
    let request = rollout_request("web", None);
    let outcome = commands::rollback(&world.cluster, &request, &world.call()).unwrap();
    assert_eq!(outcome.reply.workloads[0].revision.0, 1);
    world.store(outcome.writes);
    world.run(10);
    assert_eq!(world.rollout(), RolloutState::Completed);
    assert_eq!(world.cluster.workload(&web()).unwrap().record.revision.0, 1);
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
fn what_cannot_be_placed_says_why_and_what_helps() {
    let mut world = World::new(2);
    world
        .labels
        .insert(host(1), BTreeMap::from([("zone".into(), "a".into())]));
    world.run(1);
    let mut asked = spec("1", 1);
    asked.constraints = vec![Constraint::Label {
        label: "zone".into(),
        test: LabelTest::Eq("b".into()),
    }];
    world.deploy(asked, Kind::Http);
    world.run(1);
    let status = queries::status(&world.cluster, &web(), false).unwrap();
    let unplaced = status.unplaced.unwrap();
    assert_eq!((unplaced.slots, unplaced.evaluated), (1, 2));
    assert_eq!(
        unplaced.filtered,
        BTreeMap::from([("constraint zone=b".to_owned(), 2)])
    );
    assert!(
        unplaced.fix[0].contains("remove the constraint zone=b"),
        "{:?}",
        unplaced.fix
    );
    let announced = world.plans.iter().flat_map(|plan| &plan.events);
    let announced = announced
        .filter(|event| event.kind == wasmorch_api::EventKind::Unplaced)
        .count();
    world.run(4);
    let again = world.plans.iter().flat_map(|plan| &plan.events);
    let again = again
        .filter(|event| event.kind == wasmorch_api::EventKind::Unplaced)
        .count();
    assert_eq!((announced, again), (1, 1), "announced once");
}

/// `World::plan` holds each plan against one from scratch, so that whoever waits is looked at again
/// when there may be room, and not when something else happens to touch it.
#[test]
fn who_waits_for_room_is_placed_when_a_host_returns() {
    let mut world = World::new(2);
    world.replicas_max = 2;
    world.silent.insert(host(2));
    world.run(14);
    assert_eq!(
        world.cluster.hosts()[&host(2)].state,
        wasmorch_api::status::HostState::Dead
    );
    world.deploy(spec("1", 3), Kind::Http);
    world.run(4);
    assert_eq!((world.on(&host(1)), world.on(&host(2))), (2, 0));
    world.silent.clear();
    world.run(1);
    assert_eq!((world.on(&host(1)), world.on(&host(2))), (2, 1));
}

#[test]
fn who_waits_for_room_is_placed_in_the_plan_that_frees_it() {
    let mut world = World::new(1);
    world.replicas_max = 1;
    world.run(1);
    world.deploy(spec("1", 1), Kind::Http);
    world.run(6);
    let mut later = spec("1", 1);
    later.name = name("zz");
    world.deploy(later, Kind::Http);
    world.run(2);
    world.change(commands::scale, Some(0));
    let plan = world.plan();
    let started: Vec<&str> = plan.start.iter().map(|one| one.key.name.as_str()).collect();
    assert_eq!((plan.stop.len(), started), (1, vec!["zz"]));
}

#[test]
fn an_architecture_is_a_label() {
    let mut world = World::new(6);
    let mut asked = spec("1", 2);
    asked.constraints = vec![Constraint::Label {
        label: "arch".into(),
        test: LabelTest::Eq("aarch64".into()),
    }];
    world.deploy(asked.clone(), Kind::Http);
    world.run(4);
    assert_eq!((world.ready(), world.on(&host(6))), (2, 2));
    // At most one for each architecture: two, of six hosts.
    asked.constraints = vec![Constraint::Distinct {
        distinct: "arch".into(),
        max: 1,
    }];
    asked.replicas = Some(Replicas::Count(3));
    world.deploy(asked, Kind::Http);
    world.run(40);
    let status = queries::status(&world.cluster, &web(), false).unwrap();
    assert_eq!(
        status.unplaced.map(|one| one.filtered["distinct arch"]),
        Some(6)
    );
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
fn the_checker_bites() {
    let mut world = World::new(2);
    world.deploy(spec("1", 2), Kind::Http);
    world.run(6);
    let placed = world.cluster.workload(&web()).unwrap().placements.clone();
    let start = |slot: u64, placement: u64, host_n: usize| wasmorch_planner::Start {
        key: web(),
        slot: wasmorch_api::Slot(slot),
        placement: PlacementNumber(placement),
        revision: wasmorch_api::RevisionNumber(1),
        host: host(host_n),
        standby: false,
        args: None,
    };
    let broken = |plan: &Plan| {
        let whole = check::check(&world.cluster, plan);
        assert_eq!(check::check_touched(&world.cluster, plan), whole);
        whole.len()
    };
    let mut plan = Plan {
        start: vec![start(1, 1, 1)],
        ..Plan::default()
    };
    assert!(broken(&plan) >= 1, "a number given twice");
    plan.start = vec![start(1, 100, 9)];
    assert!(broken(&plan) >= 1, "an unknown host");
    plan.start = vec![start(1, 100, 1), start(1, 101, 1)];
    assert!(broken(&plan) >= 1, "a crowded slot");
    plan.start = vec![start(3, 100, 1), start(4, 101, 1)];
    assert!(broken(&plan) >= 1, "more than desired and surge");
    plan.start.clear();
    plan.stop = placed
        .iter()
        .map(|(number, placed)| wasmorch_planner::Stop {
            key: web(),
            slot: placed.slot,
            placement: *number,
            host: placed.host.clone(),
            why: wasmorch_planner::StopReason::Replaced,
        })
        .collect();
    assert!(broken(&plan) >= 1, "ready replicas taken away");
}

#[derive(Debug, Clone)]
enum Step {
    Deploy(u8, u8),
    Scale(u8),
    Stop,
    Start,
    Restart,
    Rollback,
    Silence(u8),
    Speak(u8),
    NewLeader,
    Fate(u8, u8),
    Rounds(u8),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        (1..5u8, 0..6u8).prop_map(|(v, n)| Step::Deploy(v, n)),
        (0..8u8).prop_map(Step::Scale),
        Just(Step::Stop),
        Just(Step::Start),
        Just(Step::Restart),
        Just(Step::Rollback),
        (1..4u8).prop_map(Step::Silence),
        (1..4u8).prop_map(Step::Speak),
        Just(Step::NewLeader),
        (1..6u8, 0..3u8).prop_map(|(r, f)| Step::Fate(r, f)),
        (1..15u8).prop_map(Step::Rounds),
    ];
    prop::collection::vec(step, 1..25)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    /// Whatever users, hosts and leaders do: every plan passes the checker (`World::plan` asserts
    /// it), and once all is well again the cluster converges to what is wanted.
    #[test]
    fn any_history_is_safe_and_converges(steps in steps()) {
        let mut world = World::new(3);
        world.deploy(spec("0", 2), Kind::Http);
        let ignore_refusal = |world: &mut World, command: fn(&Cluster, &ChangeRequest, &Call) -> _, desired| {
            let request = ChangeRequest { workload: name("web"), desired, args: None, data: false, request_id: None, by: None };
            let outcome: Result<commands::Outcome<wasmorch_api::messages::ChangeReply>, wasmorch_api::ApiError> = command(&world.cluster, &request, &world.call());
            if let Ok(outcome) = outcome { world.store(outcome.writes) }
        };
        for step in steps {
            match step {
                Step::Deploy(version, count) => { world.deploy(spec(&version.to_string(), u32::from(count)), Kind::Http); }
                Step::Scale(count) => ignore_refusal(&mut world, commands::scale, Some(u32::from(count))),
                Step::Stop => ignore_refusal(&mut world, commands::stop, None),
                Step::Start => ignore_refusal(&mut world, commands::start, None),
                Step::Restart => ignore_refusal(&mut world, commands::restart, None),
                Step::Rollback => {
                    let request = RolloutRequest { workload: name("web"), to: None, action: None, request_id: None, by: None };
                    if let Ok(outcome) = commands::rollback(&world.cluster, &request, &world.call()) { world.store(outcome.writes) }
                }
                Step::Silence(n) => { world.silent.insert(host(n as usize)); }
                Step::Speak(n) => { world.silent.remove(&host(n as usize)); }
                Step::NewLeader => world.new_leader(),
                Step::Fate(revision, fate) => {
                    let fate = [Fate::Ready, Fate::Unready, Fate::GivesUp][fate as usize];
                    world.fates.insert(u64::from(revision), fate);
                }
                Step::Rounds(rounds) => world.run(rounds as usize),
            }
        }
        world.silent.clear();
        world.fates.clear();
        // Longest wait: a crash loop's backoff of five minutes.
        world.oracle = false;
        world.run(900);
        let workload = world.cluster.workload(&web()).unwrap();
        let wanted = workload.record.wanted();
        prop_assert_eq!(queries::ready(&world.cluster, workload), wanted);
        prop_assert_eq!(workload.placements.len() as u32, wanted);
        let plan = world.plan();
        prop_assert!(plan.is_empty(), "{:#?}", plan);
    }
}

#[test]
fn one_broken_part_bars_nobody_else() {
    let mut world = World::new(2);
    world.deploy(shaped(0, 1, 2, 0), Kind::Http);
    world.deploy(shaped(1, 1, 2, 0), Kind::Http);
    let mut plan = world.cluster.plan(world.now);
    let wanted = plan.start.len();
    // A mistake of the planner: a number given twice.
    plan.start[1].placement = plan.start[0].placement;
    let broken = check::check_touched(&world.cluster, &plan);
    let out = broken[0].workloads(&plan);
    assert_eq!(out, BTreeSet::from([plan.start[0].key.clone()]));
    let rest = plan.without(&out);
    assert_eq!((rest.start.len(), wanted), (2, 4));
    assert_eq!(check::check_touched(&world.cluster, &rest), vec![]);
    let writes = world.cluster.writes(rest);
    world.store(writes);
    let again = world.cluster.plan(world.now);
    assert_eq!(again.start.len(), 2, "what was left out is planned again");
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

#[test]
fn a_host_that_shrank_bars_only_what_asks_for_more_of_it() {
    let mut world = World::new(1);
    world.deploy(shaped(0, 1, 4, 0), Kind::Http);
    world.run(6);
    let start = wasmorch_planner::Start {
        key: WorkloadKey::new(name("default"), name("w0")),
        slot: wasmorch_api::Slot(4),
        placement: PlacementNumber(100),
        revision: wasmorch_api::RevisionNumber(1),
        host: host(1),
        standby: false,
        args: None,
    };
    let plan = Plan {
        start: vec![start],
        ..Plan::default()
    };
    assert_eq!(check::check_touched(&world.cluster, &plan), vec![]);
    world.replicas_max = 2;
    world.heartbeat(&host(1));
    let broken = check::check_touched(&world.cluster, &plan);
    assert_eq!(broken.len(), 1, "{broken:?}");
    assert_eq!(check::check(&world.cluster, &plan), broken);
}

#[test]
fn a_slot_with_a_volume_stays_with_its_host() {
    let mut world = World::new(3);
    // The ranking of hosts for one more replica knows no slots.
    world.fates.insert(1, Fate::Ready);
    let keeping = |version: &str| {
        let mut spec = spec(version, 2);
        spec.update.order = wasmorch_api::spec::UpdateOrder::StopFirst;
        (spec.update.max_surge, spec.update.max_unavailable) = (0, 1);
        wasmorch_api::manifest::read_grant("volume=data:/data", &mut spec.bindings).unwrap();
        spec
    };
    let where_is = |world: &World| -> BTreeMap<u64, HostId> {
        let placements = &world.cluster.workload(&web()).unwrap().placements;
        let slots = placements.values();
        slots
            .map(|placed| (placed.slot.0, placed.host.clone()))
            .collect()
    };
    world.deploy(keeping("1"), Kind::Http);
    world.run(8);
    let homes = where_is(&world);
    assert_eq!((homes.len(), world.ready()), (2, 2));

    // Its host dies: the slot waits for it, and says so.
    let home = homes[&1].clone();
    world.silent.insert(home.clone());
    world.run(40);
    assert_eq!(where_is(&world), homes);
    let status = queries::status(&world.cluster, &web(), false).unwrap();
    let unplaced = status.unplaced.unwrap();
    assert_eq!(unplaced.slots, 1);
    assert!(unplaced.fix[0].contains("host-rm h"), "{unplaced:?}");
    world.silent.remove(&home);
    world.run(8);

    // A roll, a stop and a start, a new leader, a removal: always the same hosts.
    world.deploy(keeping("2"), Kind::Http);
    world.run(40);
    assert_eq!((where_is(&world), world.ready()), (homes.clone(), 2));
    world.change(commands::stop, None);
    world.run(4);
    world.change(commands::start, None);
    world.new_leader();
    world.run(30);
    assert_eq!((where_is(&world), world.ready()), (homes.clone(), 2));
    world.change(commands::rm, None);
    world.run(4);
    world.deploy(keeping("3"), Kind::Http);
    world.run(8);
    assert_eq!((where_is(&world), world.ready()), (homes.clone(), 2));

    // A host that was removed has given its volumes up.
    world.silent.insert(home.clone());
    world.run(20);
    world.seqs.remove(&home);
    world.store(vec![Write::DeleteHost(home.clone())]);
    world.run(20);
    let moved = where_is(&world);
    assert_ne!(moved[&1], home);
    assert_eq!(moved[&2], homes[&2]);
    assert_eq!(world.ready(), 2);
}
