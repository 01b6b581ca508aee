//! Single courses of events, each for one rule of the shares.

use super::*;

/// The world after a replica has started everywhere.
fn started(kind: Kind) -> World {
    let mut world = World::new();
    world.step(&Step::Prepare(1, kind));
    world.settle();
    assert!(world.known[&key(1)].started);
    world
}

#[test]
fn a_death_takes_a_service_and_not_an_http_replica() {
    let mut web = started(Kind::Http);
    web.die(0);
    assert_eq!(web.known[&key(1)].ended, 0);
    assert!(
        !web.shares.caught_up(0),
        "the others serve, and it does not yet"
    );
    web.settle();
    assert!(web.shares.caught_up(0));
    assert_eq!(web.runners[0].replicas[&key(1)], Stage::Running);

    let mut service = started(Kind::Service);
    let runs_in = |world: &World| {
        let has = |runner: &Runner| !runner.replicas.is_empty();
        world.runners.iter().position(has)
    };
    let runner = runs_in(&service).unwrap();
    service.die(runner);
    assert_eq!(
        service.known[&key(1)].ended,
        1,
        "its policy decides what follows"
    );
    service.settle();
    assert_eq!(runs_in(&service), None);
}

#[test]
fn code_is_compiled_by_one_runner_before_the_others_load_it() {
    let mut world = World::new();
    world.step(&Step::Prepare(1, Kind::Http));
    let asked = |world: &World| {
        let waits = |runner: &&Runner| !runner.inbox.is_empty();
        world.runners.iter().filter(waits).count()
    };
    assert_eq!(asked(&world), 1);
    world.read(0);
    world.go_on(0, 0, false);
    assert_eq!(asked(&world), RUNNERS - 1);
}

/// One may rest in some runners already, and have in hand what is to wake it.
#[test]
fn what_has_not_started_is_drained_too() {
    let mut world = World::new();
    world.step(&Step::Prepare(1, Kind::Messages));
    world.read(0);
    world.go_on(0, 0, false);
    world.end(1, true);
    for runner in &world.runners {
        let last = runner.inbox.back();
        assert!(matches!(last, Some(ToRunner::Drain { .. })), "{last:?}");
    }
}

/// A share that has ended, or was never told to end, hears nothing of it.
#[test]
fn every_share_that_drains_is_told_that_gateways_have_heard() {
    let mut world = World::new();
    world.step(&Step::Prepare(1, Kind::Http));
    world.read(0);
    world.go_on(0, 0, false);
    let withdrawn = |replica| ToRunner::Withdrawn { replica };
    assert!(world.shares.order(withdrawn(key(1))).to.is_empty());
    world.end(1, true);
    let moves = world.shares.order(withdrawn(key(1)));
    let told = moves.to.iter().map(|(runner, _)| *runner);
    assert_eq!(told.collect::<Vec<_>>(), (0..RUNNERS).collect::<Vec<_>>());
    assert!(world.shares.order(withdrawn(key(2))).to.is_empty());
}

/// What is prepared everywhere listens when one runner does, and no more when that one is gone.
#[test]
fn it_listens_where_one_runner_does() {
    let mut world = World::new();
    world.step(&Step::Prepare(1, Kind::Messages));
    let listens = |moves: Moves| -> Vec<bool> {
        let said = moves.said.into_iter().map(|said| match said {
            FromRunner::Prepared { listens, .. } => listens,
            other => panic!("{other:?}"),
        });
        said.collect()
    };
    let says = |world: &mut World, runner: usize, yes: bool| {
        let (replica, listens_there) = (key(1), yes);
        let prepared = FromRunner::Prepared {
            replica,
            listens: listens_there,
        };
        listens(world.shares.said(runner, prepared))
    };
    let last = RUNNERS - 1;
    assert_eq!(says(&mut world, 0, true), [false; 0]);
    for runner in 1..last {
        assert_eq!(says(&mut world, runner, false), [false; 0]);
    }
    assert_eq!(says(&mut world, last, false), [true]);
    assert_eq!(listens(world.shares.died(0, "killed")), [false]);
    assert_eq!(says(&mut world, last, false), [false; 0], "once");
    assert_eq!(says(&mut world, last, true), [true]);
}

#[test]
fn services_are_shared_out_evenly() {
    let mut world = World::new();
    for number in 0..6 {
        world.step(&Step::Prepare(number, Kind::Service));
    }
    world.settle();
    for runner in &world.runners {
        assert_eq!(runner.replicas.len(), 2);
    }
}

#[test]
fn whose_preparing_ends_runners_is_rejected_and_not_tried_in_all_of_them() {
    let mut world = World::new();
    world.step(&Step::Prepare(1, Kind::Http));
    world.die(0);
    assert_eq!(world.known[&key(1)].rejected, 0, "it may be an accident");
    assert_eq!(world.runners[1].inbox.len(), 1, "the next is asked");
    world.die(1);
    assert_eq!(world.known[&key(1)].rejected, 1);
    assert!(world.runners[2].inbox.is_empty());

    let mut others = World::new();
    others.step(&Step::Prepare(1, Kind::Http));
    others.die(0);
    others.settle();
    others.die(0);
    others.settle();
    assert!(others.known[&key(1)].started, "one has prepared it between");
    assert_eq!(others.known[&key(1)].rejected, 0);
}
