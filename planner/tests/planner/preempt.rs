//! Pre-emption: who makes room for whom, and who never does.

use std::time::Duration;

use wasmorch_api::{ByteSize, EventKind, HumanDuration};
use wasmorch_planner::StopReason;

use super::*;

fn of(n: u8, count: u8, priority: u32, mib: u64) -> WorkloadSpec {
    let mut spec = WorkloadSpec {
        name: name(&format!("w{n}")),
        ..spec("1", u32::from(count))
    };
    spec.priority = priority;
    spec.resources.reserve.memory = ByteSize::mib(mib);
    spec.health.ready = None;
    spec.update.min_ready = HumanDuration(Duration::ZERO);
    spec
}

impl World {
    fn hosts_of(&self, n: u8) -> Vec<String> {
        let key = WorkloadKey::new(name("default"), name(&format!("w{n}")));
        let placements = self.cluster.workload(&key).unwrap().placements.values();
        let mut hosts: Vec<String> = placements.map(|placed| placed.host.to_string()).collect();
        hosts.sort();
        hosts
    }

    fn preempted(&self) -> Vec<String> {
        let stops = self.plans.iter().flat_map(|plan| &plan.stop);
        let stops = stops.filter(|stop| stop.why == StopReason::Preempted);
        stops
            .map(|stop| format!("{} {}", stop.key.name, stop.host))
            .collect()
    }

    fn lowered(&self, n: u8) -> Option<u32> {
        let key = WorkloadKey::new(name("default"), name(&format!("w{n}")));
        queries::status(&self.cluster, &key, false)
            .unwrap()
            .unplaced
            .map(|one| one.slots)
    }
}

#[test]
fn an_equal_or_higher_priority_is_never_pre_empted() {
    let mut world = World::new(1);
    world.deploy(of(1, 1, 50, 600), Kind::Http);
    world.run(4);
    for priority in [50, 49, 0] {
        world.deploy(of(2, 1, priority, 600), Kind::Http);
        world.run(4);
        assert_eq!(
            (world.hosts_of(1).len(), world.hosts_of(2).len()),
            (1, 0),
            "{priority}"
        );
    }
    world.deploy(of(2, 1, 51, 600), Kind::Http);
    world.run(4);
    assert_eq!((world.hosts_of(1).len(), world.hosts_of(2).len()), (0, 1));
    assert_eq!(world.lowered(1), Some(1), "it waits, and says so");
    // Room again: it comes back by itself.
    world.ask(2, None, commands::rm);
    world.run(4);
    assert_eq!(world.hosts_of(1).len(), 1);
}

#[test]
fn a_lost_replica_takes_the_room_of_what_goes_later() {
    let mut world = World::new(2);
    world.deploy(of(1, 2, 10, 600), Kind::Http);
    world.run(4);
    world.deploy(of(2, 1, 90, 600), Kind::Http);
    world.run(4);
    let [lost] = &world.hosts_of(2)[..] else {
        panic!("one is placed, in the place of another");
    };
    let (lost, stays) = match lost.as_str() {
        "h1" => (1, "h2"),
        _ => (2, "h1"),
    };
    world.silent.insert(host(lost));
    world.run(16);
    assert_eq!(world.hosts_of(2), [stays]);
    let said = world.preempted();
    assert!(said.contains(&format!("w1 {stays}")), "{said:?}");
}

#[test]
fn both_sides_are_told_why() {
    let mut world = World::new(1);
    world.deploy(of(1, 1, 10, 600), Kind::Http);
    world.run(4);
    world.deploy(of(2, 1, 80, 600), Kind::Http);
    world.run(4);
    let why = |n: u8| {
        let key = WorkloadKey::new(name("default"), name(&format!("w{n}")));
        why::workload(&world.cluster, &key).unwrap()["story"].to_string()
    };
    let victim =
        "replica-preempted: made room on h1 for slot 1 of default/w2 (priority 80; its own is 10)";
    assert!(why(1).contains(victim), "{}", why(1));
    let winner = "placed: slot 1 on h1, in place of default/w1 (priority 10)";
    assert!(why(2).contains(winner), "{}", why(2));
    let events = world.plans.iter().flat_map(|plan| &plan.events);
    let told = events.filter(|event| event.kind == EventKind::ReplicaPreempted);
    assert_eq!(told.filter(|event| event.replica.is_some()).count(), 1);
}

#[test]
fn the_fewest_and_the_lowest_make_room() {
    // h1: two small ones of priority 5. h2: a large one of 20. h3: a large one of 10.
    let on = |mut spec: WorkloadSpec, n: usize| {
        spec.constraints = vec![Constraint::Label {
            label: "host".into(),
            test: LabelTest::Eq(format!("h{n}")),
        }];
        spec
    };
    let mut world = World::new(3);
    world.deploy(on(of(1, 2, 5, 400), 1), Kind::Http);
    world.deploy(on(of(2, 1, 20, 900), 2), Kind::Http);
    world.deploy(on(of(3, 1, 10, 900), 3), Kind::Http);
    world.run(4);
    world.deploy(of(4, 1, 50, 900), Kind::Http);
    world.run(4);
    assert_eq!(world.preempted(), ["w3 h3"], "one, and the lowest of those");
    world.deploy(of(5, 1, 50, 900), Kind::Http);
    world.run(4);
    assert_eq!(world.preempted(), ["w3 h3", "w2 h2"]);
    world.deploy(of(6, 1, 50, 900), Kind::Http);
    world.run(4);
    assert_eq!(world.preempted().len(), 4, "both small ones");
    // Only what is needed: a small one more fits beside nothing and needs one of two.
    let mut world = World::new(1);
    world.deploy(of(1, 2, 5, 500), Kind::Http);
    world.run(4);
    world.deploy(of(2, 1, 50, 400), Kind::Http);
    world.run(4);
    assert_eq!((world.hosts_of(1).len(), world.preempted().len()), (1, 1));
}

#[test]
fn a_victim_goes_elsewhere_at_once_when_there_is_room() {
    let mut world = World::new(2);
    world.deploy(of(1, 1, 10, 600), Kind::Http);
    world.run(4);
    let mut picky = of(2, 1, 50, 600);
    picky.constraints = vec![Constraint::Label {
        label: "host".into(),
        test: LabelTest::Eq(world.hosts_of(1)[0].clone()),
    }];
    world.deploy(picky, Kind::Http);
    let plan = world.round();
    assert_eq!((plan.start.len(), plan.stop.len()), (2, 1), "{plan:#?}");
    world.run(4);
    assert_eq!((world.hosts_of(1).len(), world.lowered(1)), (1, None));
    assert_ne!(world.hosts_of(1), world.hosts_of(2));
}

#[test]
fn min_available_is_kept() {
    let mut world = World::new(1);
    let mut keeps = of(1, 3, 10, 300);
    keeps.min_available = 2;
    world.deploy(keeps, Kind::Http);
    world.run(6);
    world.deploy(of(2, 2, 50, 300), Kind::Http);
    world.run(6);
    assert_eq!((world.hosts_of(1).len(), world.hosts_of(2).len()), (2, 1));
    assert_eq!(world.lowered(2), Some(1));
}

#[test]
fn a_preview_shows_who_would_make_room() {
    let mut world = World::new(1);
    world.deploy(of(1, 1, 10, 600), Kind::Http);
    world.run(4);
    let input = DeployInput {
        workloads: vec![(of(2, 1, 50, 600), Kind::Http)],
        if_index: None,
        ..DeployInput::default()
    };
    let shown = preview::of_deploy(&world.cluster, &input, &world.call()).unwrap();
    let why = StopReason::Preempted.words();
    let list = |shown: &serde_json::Value, which: &str| shown[which].as_array().unwrap().clone();
    assert_eq!(list(&shown, "move").len(), 0);
    let [ref stop] = list(&shown, "stop")[..] else {
        panic!("{shown}");
    };
    assert_eq!(
        (&stop["workload"], &stop["why"]),
        (&"default/w1".into(), &why.into())
    );
    // It fits nowhere else.
    let [ref left] = list(&shown, "unplaced")[..] else {
        panic!("{shown}");
    };
    assert_eq!(
        (&left["workload"], &left["slots"]),
        (&"default/w1".into(), &1.into())
    );
    assert_eq!(world.hosts_of(1).len(), 1, "nothing has changed");

    // With another host it goes there.
    let mut world = World::new(2);
    world.deploy(of(1, 1, 10, 600), Kind::Http);
    world.deploy(of(3, 1, 10, 300), Kind::Http);
    world.run(4);
    let (from, mut picky) = (world.hosts_of(1), of(2, 1, 50, 600));
    picky.constraints = vec![Constraint::Label {
        label: "host".into(),
        test: LabelTest::Eq(from[0].clone()),
    }];
    let input = DeployInput {
        workloads: vec![(picky, Kind::Http)],
        if_index: None,
        ..DeployInput::default()
    };
    let shown = preview::of_deploy(&world.cluster, &input, &world.call()).unwrap();
    let [ref step] = list(&shown, "move")[..] else {
        panic!("{shown}");
    };
    assert_eq!(
        (&step["from"], &step["why"]),
        (&from[0].clone().into(), &why.into())
    );
    assert_ne!(step["from"], step["to"]);
    assert_eq!(
        (list(&shown, "stop"), list(&shown, "unplaced")),
        (vec![], vec![])
    );
}

#[test]
fn the_checker_sees_pre_emption_that_nothing_calls_for() {
    let mut world = World::new(2);
    let mut keeps = of(1, 2, 50, 300);
    keeps.min_available = 2;
    world.deploy(keeps, Kind::Http);
    world.deploy(of(2, 1, 50, 300), Kind::Http);
    world.run(6);
    let key = WorkloadKey::new(name("default"), name("w1"));
    let (number, placed) = world
        .cluster
        .workload(&key)
        .unwrap()
        .placements
        .iter()
        .next()
        .unwrap();
    let plan = Plan {
        stop: vec![wasmorch_planner::Stop {
            key: key.clone(),
            slot: placed.slot,
            placement: *number,
            host: placed.host.clone(),
            why: StopReason::Preempted,
        }],
        ..Plan::default()
    };
    let broken = check::check(&world.cluster, &plan);
    assert_eq!(
        broken.len(),
        2,
        "nothing starts there, and too few are left: {broken:?}"
    );
    assert_eq!(check::check_touched(&world.cluster, &plan), broken);
}
