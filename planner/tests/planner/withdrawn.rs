//! What drains is out of the tables first, and its host is told when gateways have heard that.

use wasmorch_planner::Ask;

use super::*;

/// The host's next heartbeat, with what its gateway has applied: which hosts are told then.
fn applied(world: &mut World, n: usize, table_seq: u64) -> Vec<(HostId, Option<u64>)> {
    let beat = Box::new(Heartbeat {
        table_seq,
        ..world.beat(&host(n))
    });
    observed(world, Observation::Heartbeat(beat))
}

/// Which hosts are told as time passes, and by which set what they drain goes.
fn told(world: &mut World) -> Vec<(HostId, Option<u64>)> {
    observed(world, Observation::Tick)
}

fn observed(world: &mut World, what: Observation) -> Vec<(HostId, Option<u64>)> {
    let asks = world.cluster.observe(what, world.now).asks;
    let told = asks.into_iter().filter_map(|ask| match ask {
        Ask::Withdrawn { host, set } => Some((host, set)),
        _ => None,
    });
    told.collect()
}

fn set_of(world: &World, n: usize) -> u64 {
    world.cluster.hosts()[&host(n)].set_sequence
}

/// One replica on each host, then none: the sequence of the table without them.
fn stopped(world: &mut World) -> u64 {
    world.change(commands::stop, None);
    let plan = world.plan();
    assert!(!plan.stop.is_empty());
    world.store["pub.endpoints.default.web"].1
}

fn serving(hosts: usize) -> World {
    let mut world = World::new(hosts);
    world.deploy(spec("1", hosts as u32), Kind::Http);
    world.run(8);
    assert_eq!(world.ready(), hosts as u32);
    world
}

/// Far more than one batch of the store takes: a set must not be stored batches before its table.
#[test]
fn gateways_hear_of_it_before_any_host_does() {
    const HOSTS: usize = 1_100;
    let mut world = World::new(0);
    world.oracle = false;
    world.seqs.extend((1..=HOSTS).map(|n| (host(n), 0)));
    world.deploy(spec("1", HOSTS as u32), Kind::Http);
    world.run(4);
    assert_eq!(world.ready(), HOSTS as u32);
    world.change(commands::stop, None);
    let plan = world.cluster.plan(world.now);
    let writes = world.cluster.writes(plan);
    let sets = |write: &Write| matches!(write, Write::Placements(_));
    let tables = |write: &Write| matches!(write, Write::Endpoints(_));
    assert!(writes.iter().filter(|write| sets(write)).count() > 1_000);
    let (table, set) = (
        writes.iter().rposition(tables),
        writes.iter().position(sets),
    );
    assert!(table.is_some() && table < set, "{table:?} {set:?}");
}

#[test]
fn a_host_is_told_once_all_other_gateways_have_passed_the_table() {
    let mut world = serving(3);
    let table = stopped(&mut world);
    assert!((1..=3).all(|n| table < set_of(&world, n)));
    assert_eq!(told(&mut world), []);
    assert_eq!(applied(&mut world, 1, table), []);
    let third = (host(3), Some(set_of(&world, 3)));
    assert_eq!(applied(&mut world, 2, table + 1), [third], "at once");
    // One that is late.
    assert_eq!(applied(&mut world, 3, table - 1), []);
    let others = [1, 2].map(|n| (host(n), Some(set_of(&world, n))));
    assert_eq!(applied(&mut world, 3, table), others);
    assert_eq!(applied(&mut world, 3, table), [], "once");
    assert_eq!(told(&mut world), []);
}

#[test]
fn nobody_waits_for_a_gateway_that_is_silent_or_deaf() {
    let mut world = serving(3);
    world.silent.insert(host(3));
    world.run(8);
    assert_eq!(world.cluster.hosts()[&host(3)].state, HostState::Suspect);
    let table = stopped(&mut world);
    let first = applied(&mut world, 1, table).len();
    assert_eq!(first + applied(&mut world, 2, table).len(), 3);

    let mut world = serving(2);
    let table = stopped(&mut world);
    world.now.0 += 2_001;
    assert_eq!(told(&mut world), []);
    let late = applied(&mut world, 1, table);
    assert_eq!(late, [], "it has gone on by itself");
}

#[test]
fn one_that_shuts_down_is_told_when_no_table_names_it() {
    let mut world = serving(2);
    applied(&mut world, 1, u64::MAX);
    let leaving = Box::new(Heartbeat {
        leaving: true,
        ..world.beat(&host(2))
    });
    let leaving = Observation::Heartbeat(leaving);
    world.cluster.observe(leaving, world.now);
    assert_eq!(told(&mut world), [], "a table names it still");
    world.plan();
    assert_eq!(told(&mut world), [(host(2), None)]);
}

#[test]
fn what_was_removed_is_let_go_as_well() {
    let mut world = serving(2);
    world.change(commands::rm, None);
    world.plan();
    let newest = world.store.values().map(|(_, sequence)| *sequence).max();
    let newest = newest.expect("something is stored");
    assert_eq!(applied(&mut world, 1, 0), [], "tables named it");
    assert_eq!(applied(&mut world, 1, newest).len(), 1);
    assert_eq!(applied(&mut world, 2, newest).len(), 1);
}
