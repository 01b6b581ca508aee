//! A full cluster in which workloads wait for room: what a change costs then.

use wasmorch_api::EventKind;

use super::*;

/// So many replicas fill a host, by so many workloads in all, and so many of one replica wait.
const SEATS: usize = 320;
const WORKLOADS: usize = 1_600;
pub(crate) const WAITING: usize = 1_000;
/// After those comes one of the lowest priority, and so many of a higher one than all others.
const URGENT: usize = 100;
/// Each of those workloads has one Nth of the hosts' number as replicas.
const SHARES: usize = WORKLOADS / SEATS;

/// Runs it: they come, one workload is removed, one host dies, and then a tenth of all. At last some make room
/// for themselves, and something comes that all could take the room of, if it had any.
pub(crate) fn waiting(scenario: Scenario) -> String {
    let hosts = scenario.hosts / SHARES * SHARES;
    let scenario = Scenario {
        hosts,
        workloads: WORKLOADS,
        replicas: hosts * SEATS,
        seats: SEATS as u64,
        ..scenario
    };
    let mut world = World::new(scenario);
    for host in 0..scenario.hosts {
        world.beat(host);
        world.report(host);
    }
    world.deploy(&(0..WORKLOADS).collect::<Vec<_>>());
    world.settle();
    world.deploy(&(WORKLOADS..WORKLOADS + WAITING).collect::<Vec<_>>());
    let told_of = |world: &mut World, starts: usize| {
        let (plan, took) = world.plan();
        assert_eq!(plan.start.len(), starts);
        let said = { plan.events.iter() }.filter(|event| event.kind == EventKind::Unplaced);
        (took, plan.stop.len(), said.count())
    };
    let round = |world: &mut World, changes: usize| {
        let (took, stops, said) = told_of(world, changes);
        assert_eq!(stops, changes);
        (took, said)
    };
    let came = round(&mut world, 0);
    assert_eq!(came.1, WAITING);
    world.settle();
    world.scale(0, world.each() - 1);
    let freed = round(&mut world, 1);
    world.settle();
    world.silence([7]);
    let died = round(&mut world, 0);
    assert!(died.1 > 0);
    world.settle();
    world.silence(100..100 + scenario.hosts / 10);
    let tenth = round(&mut world, 0);
    world.settle();
    let lowest = WORKLOADS + WAITING;
    world.deploy(&(lowest + 1..=lowest + URGENT).collect::<Vec<_>>());
    let urgent = round(&mut world, URGENT);
    world.settle();
    world.deploy(&[lowest]);
    world.scale(1, world.each() - 1);
    // What is lost ends with it: it is asked for one by one whether there is a place.
    let (took, _, said) = told_of(&mut world, 1);
    let lower = (took, said);
    let told = |(took, said): (Duration, usize)| {
        let ms = took.as_secs_f64() * 1e3;
        format!("{ms:.1} ms ({said} told of)")
    };
    format!(
        "{} hosts full with {} replicas, {WAITING} workloads wait: when they come {}; one place is freed {}; a host dies {}; a tenth dies {}; {URGENT} make room for themselves {}; one place is freed, and something is lower {}; {} MiB",
        scenario.hosts,
        scenario.replicas,
        told(came),
        told(freed),
        told(died),
        told(tenth),
        told(urgent),
        told(lower),
        memory("VmHWM"),
    )
}
