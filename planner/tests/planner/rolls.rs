//! Rollouts: what serves meanwhile, and what becomes of a bad revision.

use super::*;
use wasmorch_api::HumanDuration;

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

/// Where the replicas are, host by host.
fn spread(world: &World, hosts: usize) -> Vec<usize> {
    (1..=hosts).map(|n| world.on(&host(n))).collect()
}

#[test]
fn a_roll_leaves_replicas_spread() {
    for (hosts, replicas, surge) in [(3, 3, 1), (3, 3, 3), (4, 3, 1), (3, 7, 2)] {
        let mut world = World::new(hosts);
        for version in ["1", "2", "3", "4"] {
            let mut spec = spec(version, replicas);
            spec.update.max_surge = surge;
            world.deploy(spec, Kind::Http);
            world.run(40);
            assert_eq!(world.rollout(), RolloutState::Completed);
            let on = spread(&world, hosts);
            let (least, most) = (on.iter().min().unwrap(), on.iter().max().unwrap());
            assert!(most - least <= 1, "{hosts} {replicas} {surge}: {on:?}");
            let moves = commands::rebalance(&world.cluster, Some(10), None, world.now).unwrap();
            let for_spread = |one: &wasmorch_api::messages::MoveView| one.why.contains("spread");
            assert!(
                !moves.reply.moves.iter().any(for_spread),
                "{:?}",
                moves.reply
            );
        }
        world.change(commands::restart, None);
        world.run(60);
        let on = spread(&world, hosts);
        assert!(on.iter().max().unwrap() - on.iter().min().unwrap() <= 1);
    }
}

#[test]
fn a_roll_uses_hosts_that_have_joined_and_keeps_zones_apart() {
    let mut world = World::new(2);
    world.deploy(spec("1", 2), Kind::Http);
    world.run(10);
    world.seqs.insert(host(3), 0);
    world.seqs.insert(host(4), 0);
    for n in 1..=4 {
        let zone = if n % 2 == 1 { "a" } else { "b" };
        let labels = [("zone".to_owned(), zone.to_owned())];
        world.labels.insert(host(n), labels.into());
    }
    world.run(2);
    for version in ["2", "3"] {
        world.deploy(spec(version, 2), Kind::Http);
        world.run(30);
        assert_eq!(world.rollout(), RolloutState::Completed);
        let on = spread(&world, 4);
        assert_eq!((on[0] + on[2], on[1] + on[3]), (1, 1), "{on:?}");
    }
    // What leaves a host goes where its zone still has a host.
    let holder = (1..=4).find(|n| world.on(&host(*n)) > 0).unwrap();
    let drained = commands::drain(&world.cluster, &format!("h{holder}"), None, world.now).unwrap();
    world.store(drained.writes);
    world.run(20);
    let on = spread(&world, 4);
    assert_eq!((on[0] + on[2], on[1] + on[3]), (1, 1), "{on:?}");
    assert_eq!(on[holder - 1], 0);
}

#[test]
fn gateways_are_told_of_a_new_time_out() {
    let mut world = World::new(1);
    let told = |world: &World| {
        let workload = world.cluster.workload(&web()).unwrap();
        workload.routes.as_ref().and_then(|table| table.timeout)
    };
    for (version, timeout) in [
        ("1", HumanDuration::secs(30)),
        ("2", HumanDuration::secs(5)),
    ] {
        let mut spec = spec(version, 1);
        spec.resources.timeout = timeout;
        world.deploy(spec, Kind::Http);
        world.run(40);
        assert_eq!(world.rollout(), RolloutState::Completed);
        assert_eq!(told(&world), Some(timeout));
    }
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

/// Hosts with room for one replica each, and none to spare.
fn full(hosts: usize) -> World {
    let mut world = World::new(hosts);
    world.replicas_max = 1;
    world.run(1);
    world
}

#[test]
fn where_there_is_no_room_for_a_successor_the_old_one_ends_first_if_it_may_be_missing() {
    let rolled = |max_unavailable: u32| {
        let mut world = full(3);
        let spec = |version| {
            let mut spec = spec(version, 3);
            (spec.update.max_surge, spec.update.max_unavailable) = (1, max_unavailable);
            spec
        };
        world.deploy(spec("1"), Kind::Http);
        world.run(8);
        assert_eq!(world.ready(), 3);
        world.deploy(spec("2"), Kind::Http);
        let least = (0..40).map(|_| {
            world.round();
            world.ready()
        });
        (least.min(), world.rollout())
    };
    assert_eq!(rolled(1), (Some(2), RolloutState::Completed));
    assert_eq!(rolled(0), (Some(3), RolloutState::Rolling), "none may be");
}

#[test]
fn on_a_full_device_what_serves_nobody_makes_way_for_its_fix() {
    let mut world = full(1);
    world.fates.insert(1, Fate::Unready);
    world.deploy(spec("1", 1), Kind::Http);
    world.run(8);
    assert_eq!((world.on(&host(1)), world.ready()), (1, 0));
    world.deploy(spec("2", 1), Kind::Http);
    world.run(12);
    assert_eq!(
        (world.rollout(), world.ready()),
        (RolloutState::Completed, 1)
    );
}

#[test]
fn a_rollout_without_anything_to_go_back_to_says_what_it_is() {
    let mut world = World::new(2);
    world.deploy(spec("1", 2), Kind::Http);
    let abort = |world: &World| {
        let abort = rollout_request("web", Some(RolloutAction::Abort));
        commands::rollout(&world.cluster, &abort, &world.call()).unwrap_err()
    };
    assert_eq!(abort(&world).why, "this is its first");
    world.run(12);
    world.change(commands::restart, None);
    let error = abort(&world);
    assert_eq!(error.why, "revision 1 is restarted, and is what serves");
    assert!(error.fix.contains("ends by itself"), "{}", error.fix);
}
