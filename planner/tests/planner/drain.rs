//! Hosts that are drained: what moves, when, and what holds it up.

use std::time::Duration;

use wasmorch_api::EventKind;
use wasmorch_api::spec::UpdateOrder;
use wasmorch_planner::{Stop, StopReason};

use super::*;

impl World {
    pub(super) fn drain(&mut self, n: usize, deadline: Option<Duration>) {
        let outcome = commands::drain(&self.cluster, host(n).as_str(), deadline, self.now);
        self.store(outcome.unwrap().writes);
    }

    fn drained(&self, n: usize) -> Option<bool> {
        let record = &self.cluster.hosts()[&host(n)].record;
        record.drain.map(|drain| drain.drained)
    }

    fn said(&self, kind: EventKind) -> usize {
        let events = self.plans.iter().flat_map(|plan| &plan.events);
        events.filter(|event| event.kind == kind).count()
    }

    fn stops(&self, why: StopReason) -> usize {
        let stops = self.plans.iter().flat_map(|plan| &plan.stop);
        stops.filter(|stop| stop.why == why).count()
    }
}

#[test]
fn a_drain_moves_start_first_and_stays_over_leaders() {
    let mut world = World::new(3);
    world.deploy(spec("1", 6), Kind::Http);
    world.run(8);
    world.drain(2, None);
    for _ in 0..20 {
        world.round();
        assert_eq!(world.ready(), 6);
        let placed = world.cluster.workload(&web()).unwrap().placements.len();
        assert!(placed <= 7, "desired + surge");
    }
    assert_eq!((world.on(&host(2)), world.drained(2)), (0, Some(true)));
    assert_eq!(world.said(EventKind::HostDrained), 1);
    assert_eq!(world.stops(StopReason::Moved), 2);
    world.new_leader();
    world.run(30);
    world.change(commands::scale, Some(9));
    world.run(10);
    assert_eq!((world.on(&host(2)), world.ready()), (0, 9));
    assert_eq!(world.said(EventKind::HostDrained), 1, "said once");
    let outcome = commands::uncordon(&world.cluster, "h2", world.now).unwrap();
    world.store(outcome.writes);
    world.change(commands::scale, Some(12));
    world.run(10);
    assert_eq!((world.drained(2), world.on(&host(2))), (None, 3));
}

#[test]
fn stop_first_keeps_min_available() {
    let mut world = World::new(2);
    let mut wanted = spec("1", 3);
    wanted.update.order = UpdateOrder::StopFirst;
    wanted.update.max_surge = 0;
    wanted.update.max_unavailable = 3;
    wanted.min_available = 2;
    world.deploy(wanted, Kind::Http);
    world.run(8);
    world.drain(1, None);
    for _ in 0..20 {
        world.round();
        assert!(world.ready() >= 2, "{}", world.ready());
    }
    assert_eq!((world.on(&host(1)), world.drained(1)), (0, Some(true)));

    // With as many as there are, nothing may go, until the deadline.
    let mut wanted = spec("2", 3);
    wanted.update.order = UpdateOrder::StopFirst;
    wanted.update.max_surge = 0;
    wanted.update.max_unavailable = 3;
    wanted.min_available = 3;
    world.deploy(wanted, Kind::Http);
    world.run(10);
    let outcome = commands::uncordon(&world.cluster, "h1", world.now).unwrap();
    world.store(outcome.writes);
    world.drain(2, Some(Duration::from_secs(20)));
    world.run(30);
    assert_eq!((world.on(&host(2)), world.ready()), (3, 3));
    world.run(30);
    assert_eq!((world.on(&host(2)), world.on(&host(1))), (0, 3));
    assert_eq!(world.stops(StopReason::Overdue), 3);
}

#[test]
fn with_nowhere_to_go_it_stays_and_says_why_until_the_deadline() {
    let mut world = World::new(1);
    world.deploy(spec("1", 2), Kind::Http);
    world.run(8);
    world.drain(1, Some(Duration::from_secs(60)));
    world.run(20);
    assert_eq!((world.on(&host(1)), world.ready()), (2, 2));
    let why = why::host(&world.cluster, "h1", world.now).unwrap();
    assert_eq!(why["state"], "draining");
    let stays = why["runs"][0]["stays"].as_str().unwrap();
    assert!(stays.contains("1 draining"), "{stays}");
    let why = why::workload(&world.cluster, &web()).unwrap();
    assert_eq!(why["fix"][0], "uncordon h1");
    world.run(110);
    assert_eq!((world.on(&host(1)), world.drained(1)), (0, Some(true)));
    assert_eq!(world.state(), WorkloadState::Degraded);
}

#[test]
fn a_cancelled_drain_leaves_what_is_there() {
    let mut world = World::new(3);
    world.deploy(spec("1", 6), Kind::Http);
    world.run(8);
    world.drain(2, None);
    world.round();
    let outcome = commands::cancel_drain(&world.cluster, "h2", world.now).unwrap();
    world.store(outcome.writes);
    world.run(10);
    assert_eq!((world.drained(2), world.ready()), (None, 6));
    let placed = world.cluster.workload(&web()).unwrap().placements.len();
    assert_eq!((placed, world.on(&host(2))), (6, 2));
    assert!(world.plan().is_empty());
}

#[test]
fn a_replica_that_serves_nobody_makes_way_at_once() {
    let mut world = World::new(2);
    world.fates.insert(1, Fate::Unready);
    let mut wanted = spec("1", 1);
    wanted.health.ready = None;
    world.deploy(wanted, Kind::Http);
    world.run(2);
    let at = (1..=2).find(|n| world.on(&host(*n)) == 1).unwrap();
    world.drain(at, None);
    world.run(4);
    assert_eq!((world.on(&host(at)), world.on(&host(3 - at))), (0, 1));
    assert_eq!(world.drained(at), Some(true));
}

#[test]
fn a_job_runs_to_its_end_until_the_deadline() {
    let mut world = World::new(2);
    world.fates.insert(1, Fate::Unready);
    world.deploy(spec("1", 1), Kind::Job);
    world.run(2);
    let at = (1..=2).find(|n| world.on(&host(*n)) == 1).unwrap();
    world.drain(at, Some(Duration::from_secs(10)));
    world.run(18);
    assert_eq!(world.on(&host(at)), 1);
    world.run(10);
    assert_eq!((world.on(&host(at)), world.on(&host(3 - at))), (0, 1));
}

#[test]
fn the_checker_refuses_a_drain_that_takes_too_many() {
    let mut world = World::new(2);
    let mut wanted = spec("1", 2);
    wanted.update.max_unavailable = 2;
    wanted.min_available = 1;
    world.deploy(wanted, Kind::Http);
    world.run(8);
    let placements = &world.cluster.workload(&web()).unwrap().placements;
    let stop: Vec<Stop> = placements
        .iter()
        .map(|(number, placed)| Stop {
            key: web(),
            slot: placed.slot,
            placement: *number,
            host: placed.host.clone(),
            why: StopReason::Moved,
        })
        .collect();
    let some = |count: usize| Plan {
        stop: stop[..count].to_vec(),
        ..Plan::default()
    };
    assert_eq!(check::check(&world.cluster, &some(1)), vec![]);
    let broken = check::check(&world.cluster, &some(2));
    assert!(
        matches!(
            broken[..],
            [check::BrokenRule::TooFew {
                ready: 0,
                least: 1,
                ..
            }]
        ),
        "{broken:?}"
    );
}

#[test]
fn a_slot_with_a_volume_says_that_it_stays_with_it() {
    let mut world = World::new(2);
    let mut wanted = spec("1", 1);
    wanted.update.order = UpdateOrder::StopFirst;
    (wanted.update.max_surge, wanted.update.max_unavailable) = (0, 1);
    wasmorch_api::manifest::read_grant("volume=data:/data", &mut wanted.bindings).unwrap();
    world.deploy(wanted, Kind::Http);
    world.run(8);
    let at = (1..=2).find(|n| world.on(&host(*n)) == 1).unwrap();
    let stays = |world: &World| {
        let why = why::host(&world.cluster, host(at).as_str(), world.now).unwrap();
        why["runs"][0]["stays"].as_str().map(str::to_owned)
    };
    assert_eq!(stays(&world), None);
    world.drain(at, None);
    world.run(10);
    assert_eq!(world.on(&host(at)), 1);
    let said = stays(&world).unwrap();
    assert_eq!(
        said,
        "its volumes are here: it stays, as no deadline is given (drain --deadline D)"
    );
    world.drain(at, Some(Duration::from_secs(10)));
    world.run(4);
    let said = stays(&world).unwrap();
    assert!(
        said.contains("until the deadline, then it waits for this host"),
        "{said}"
    );
    world.run(30);
    assert_eq!((world.on(&host(1)), world.on(&host(2))), (0, 0));

    // It waits for its host alone: nothing that another has matters, and no other scores.
    let why = why::workload(&world.cluster, &web()).unwrap();
    let (home, other) = (format!("h{at}"), format!("volumes are on h{at}"));
    assert_eq!(
        why["filtered"],
        serde_json::json!({"draining": 1, (other.as_str()): 1})
    );
    assert_eq!(
        (why["evaluated"].as_u64(), &why["scores"]),
        (Some(2), &serde_json::json!([]))
    );
    assert_eq!(
        why["fix"][0],
        format!("uncordon {home}: it has the volumes")
    );
    let elsewhere = why::host(&world.cluster, host(3 - at).as_str(), world.now).unwrap();
    assert_eq!(elsewhere["refuses"][0], format!("default/web: {other}"));
}

#[test]
fn one_on_every_host_keeps_min_available_until_the_deadline() {
    let mut world = World::new(3);
    let mut wanted = one_per_host(spec("1", 1));
    wanted.min_available = 2;
    world.deploy(wanted, Kind::Http);
    world.run(8);
    assert_eq!(world.ready(), 3);
    world.drain(1, Some(Duration::from_secs(20)));
    world.drain(2, Some(Duration::from_secs(20)));
    for _ in 0..30 {
        world.round();
        assert_eq!(
            world.ready(),
            2,
            "one of them goes at once, and the other stays"
        );
    }
    let held = (1..=2).find(|n| world.on(&host(*n)) == 1).unwrap();
    let why = why::host(&world.cluster, host(held).as_str(), world.now).unwrap();
    assert_eq!(
        why["runs"][0]["stays"],
        "2 are ready, and min_available is 2"
    );
    assert_eq!(
        (world.stops(StopReason::Drained), world.desired().1),
        (1, 1)
    );
    world.run(20);
    assert_eq!((world.on(&host(held)), world.ready()), (0, 1));
    assert_eq!(
        (world.drained(1), world.drained(2)),
        (Some(true), Some(true))
    );
    assert_eq!(world.stops(StopReason::Overdue), 1);

    // Once another serves in its stead it goes before the deadline.
    let mut world = World::new(2);
    let mut wanted = one_per_host(spec("1", 1));
    wanted.min_available = 2;
    world.deploy(wanted, Kind::Http);
    world.run(8);
    world.drain(1, None);
    world.run(10);
    assert_eq!((world.on(&host(1)), world.ready()), (1, 2));
    world.seqs.insert(host(3), 0);
    world.run(8);
    assert_eq!((world.on(&host(1)), world.ready()), (0, 2));
    assert_eq!(world.stops(StopReason::Overdue), 0);
}

#[test]
fn the_checker_keeps_min_available_of_one_on_every_host() {
    let mut world = World::new(3);
    let mut wanted = one_per_host(spec("1", 1));
    wanted.min_available = 2;
    world.deploy(wanted, Kind::Http);
    world.run(8);
    for name in ["h1", "h2", "h3"] {
        let drain = commands::drain(&world.cluster, name, None, world.now).unwrap();
        world.store(drain.writes);
    }
    let placements = &world.cluster.workload(&web()).unwrap().placements;
    let stop: Vec<Stop> = { placements.iter().take(2) }
        .map(|(number, placed)| Stop {
            key: web(),
            slot: placed.slot,
            placement: *number,
            host: placed.host.clone(),
            why: StopReason::Drained,
        })
        .collect();
    let some = |count: usize| Plan {
        stop: stop[..count].to_vec(),
        ..Plan::default()
    };
    assert_eq!(check::check(&world.cluster, &some(1)), vec![]);
    let broken = check::check(&world.cluster, &some(2));
    let [
        check::BrokenRule::TooFew {
            ready: 1, least: 2, ..
        },
    ] = broken[..]
    else {
        panic!("{broken:?}");
    };
}
