//! The checker believes no reason that is not so.

use wasmorch_planner::{StopReason, check::BrokenRule};

use super::*;

/// What is said of a plan that ends these for this reason.
fn wrong(world: &World, ends: &[u64], why: StopReason) -> Vec<PlacementNumber> {
    let placements = &world.cluster.workload(&web()).unwrap().placements;
    let stop = |number: &u64| {
        let placed = &placements[&PlacementNumber(*number)];
        wasmorch_planner::Stop {
            key: web(),
            slot: placed.slot,
            placement: PlacementNumber(*number),
            host: placed.host.clone(),
            why,
        }
    };
    let plan = Plan {
        stop: ends.iter().map(stop).collect(),
        ..Plan::default()
    };
    let whole = check::check(&world.cluster, &plan);
    assert_eq!(check::check_touched(&world.cluster, &plan), whole);
    let reasons = whole.into_iter().map(|rule| match rule {
        BrokenRule::WrongReason {
            number, why: said, ..
        } if said == why => number,
        other => panic!("{other}"),
    });
    reasons.collect()
}

fn numbers(all: &[u64]) -> Vec<PlacementNumber> {
    all.iter().map(|number| PlacementNumber(*number)).collect()
}

/// Two that serve, on two hosts.
fn two() -> World {
    let mut world = World::new(2);
    world.deploy(spec("1", 2), Kind::Http);
    world.run(8);
    assert_eq!(world.ready(), 2);
    world
}

#[test]
fn what_serves_and_is_wanted_ends_for_no_reason_of_its_own() {
    let world = two();
    for why in [
        StopReason::NotWanted,
        StopReason::HostDead,
        StopReason::Duplicate,
        StopReason::GivenUp,
        StopReason::Ended,
        StopReason::Canary,
        StopReason::Overdue,
        StopReason::Drained,
    ] {
        assert_eq!(wrong(&world, &[1, 2], why), numbers(&[1, 2]), "{why:?}");
    }
}

#[test]
fn what_is_beyond_what_is_wanted_ends_and_no_other() {
    let mut world = two();
    world.change(commands::scale, Some(1));
    let kept = { world.cluster.workload(&web()).unwrap().placements.iter() }
        .find(|(_, placed)| placed.slot.0 == 1)
        .map(|(number, _)| number.0)
        .unwrap();
    assert_eq!(
        wrong(&world, &[1, 2], StopReason::NotWanted),
        numbers(&[kept])
    );
    world.change(commands::stop, None);
    assert_eq!(wrong(&world, &[1, 2], StopReason::NotWanted), []);
}

#[test]
fn what_is_on_a_dead_host_or_a_drained_one_ends_for_that_and_no_other() {
    let mut world = two();
    world.replicas_max = 1;
    let on = |world: &World, id: &HostId| {
        let placements = &world.cluster.workload(&web()).unwrap().placements;
        let there = placements.iter().find(|(_, placed)| placed.host == *id);
        there.unwrap().0.0
    };
    let (first, second) = (on(&world, &host(1)), on(&world, &host(2)));
    world.silent.insert(host(1));
    world.run(14);
    assert_eq!(world.on(&host(1)), 1, "there is nowhere else");
    let dead = wrong(&world, &[first, second], StopReason::HostDead);
    assert_eq!(dead, numbers(&[second]));

    let drain = commands::drain(&world.cluster, "h2", None, world.now).unwrap();
    world.store(drain.writes);
    let overdue = |world: &World| wrong(world, &[second], StopReason::Overdue);
    assert_eq!(overdue(&world), numbers(&[second]), "it has no deadline");
    let at_once = Some(std::time::Duration::ZERO);
    let drain = commands::drain(&world.cluster, "h2", at_once, world.now).unwrap();
    world.store(drain.writes);
    assert_eq!(overdue(&world), []);
}

#[test]
fn what_was_given_up_ends_for_that_and_no_other() {
    let mut world = World::new(1);
    world.own_fates.insert(("web".to_owned(), 1), Fate::GivesUp);
    world.deploy(spec("1", 1), Kind::Http);
    world.round();
    world.heartbeat(&host(1));
    assert_eq!(wrong(&world, &[1], StopReason::GivenUp), numbers(&[1]));
    world.report(&host(1));
    assert_eq!(wrong(&world, &[1], StopReason::GivenUp), []);
}

#[test]
fn of_two_in_a_slot_one_stays_that_serves_if_the_other_does() {
    let mut world = World::new(2);
    world.deploy(spec("1", 1), Kind::Http);
    world.run(8);
    world.fates.insert(2, Fate::Unready);
    world.deploy(spec("2", 1), Kind::Http);
    world.run(2);
    let duplicate = |ends: &[u64]| wrong(&world, ends, StopReason::Duplicate);
    assert_eq!(duplicate(&[1]), numbers(&[1]), "the other does not serve");
    assert_eq!(duplicate(&[2]), []);
    assert_eq!(duplicate(&[1, 2]), numbers(&[1, 2]));
}

#[test]
fn a_job_ends_with_its_run_and_a_canary_with_its_trial() {
    let mut world = World::new(1);
    world.deploy(spec("1", 1), Kind::Job);
    world.run(2);
    assert_eq!(wrong(&world, &[1], StopReason::NotWanted), numbers(&[1]));
    assert_eq!(wrong(&world, &[1], StopReason::Ended), []);

    let mut world = World::new(2);
    let canary = |version| {
        let mut spec = spec(version, 1);
        spec.update.canary = Some(wasmorch_api::spec::Canary::default());
        spec
    };
    world.deploy(canary("1"), Kind::Http);
    world.run(8);
    world.deploy(canary("2"), Kind::Http);
    world.run(3);
    let canaries = wrong(&world, &[1, 2], StopReason::Canary);
    assert_eq!(canaries, numbers(&[1]), "the second is the canary");
}

#[test]
fn with_one_on_every_host_it_ends_where_it_is_barred_or_has_another() {
    let mut world = World::new(2);
    world.deploy(one_per_host(spec("1", 0)), Kind::Http);
    world.run(8);
    assert_eq!(world.ready(), 2);
    let unwanted = |world: &World| wrong(world, &[1, 2], StopReason::NotWanted);
    assert_eq!(unwanted(&world), numbers(&[1, 2]));
    let first = world.cluster.workload(&web()).unwrap().placements[&PlacementNumber(1)]
        .host
        .clone();
    world
        .taints
        .insert(first.clone(), vec!["dedicated".to_owned()]);
    world.heartbeat(&first);
    assert_eq!(unwanted(&world), numbers(&[2]));
}
