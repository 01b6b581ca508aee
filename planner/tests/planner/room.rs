//! Where there is room, and what is said where there is none.

use wasmorch_api::EventKind;

use super::*;

fn other(version: &str) -> WorkloadSpec {
    WorkloadSpec {
        name: name("other"),
        ..spec(version, 2)
    }
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
        .filter(|event| event.kind == EventKind::Unplaced)
        .count();
    world.run(4);
    let again = world.plans.iter().flat_map(|plan| &plan.events);
    let again = again
        .filter(|event| event.kind == EventKind::Unplaced)
        .count();
    assert_eq!((announced, again), (1, 1), "announced once");

    // Whoever asks is told how hosts stand now, not how they stood in the last plan.
    world.silent.insert(host(1));
    for _ in 0..4 {
        world.now.0 += 1_000;
        world.heartbeat(&host(2));
        world.cluster.observe(Observation::Tick, world.now);
    }
    let filtered = |status: wasmorch_api::messages::StatusReply| status.unplaced.unwrap().filtered;
    let status = queries::status(&world.cluster, &web(), false).unwrap();
    let now = BTreeMap::from([("constraint zone=b".into(), 1), ("suspect".into(), 1)]);
    assert_eq!(filtered(status), now);
    let why = why::workload(&world.cluster, &web()).unwrap();
    assert_eq!(why["unplaced"]["filtered"], serde_json::json!(now));
}

#[test]
fn of_many_at_once_few_are_told_why_and_all_that_ask() {
    let mut world = World::new(100);
    world.oracle = false;
    let mut asked = spec("1", 1);
    asked.constraints = vec![Constraint::Label {
        label: "zone".into(),
        test: LabelTest::Eq("b".into()),
    }];
    for n in 0..60 {
        asked.name = name(&format!("w{n}"));
        world.deploy(asked.clone(), Kind::Service);
    }
    let plan = world.round();
    assert_eq!(plan.unplaced.len(), 60);
    let said = { plan.events.iter() }.filter(|event| event.kind == EventKind::Unplaced);
    let (whole, brief): (Vec<_>, Vec<_>) = said.partition(|said| said.detail["evaluated"] == 100);
    assert_eq!((whole.len(), brief.len()), (50, 10));
    for event in brief {
        let see = format!("see `wasmorch why {}`", event.workload.as_ref().unwrap());
        assert!(event.reason.ends_with(&see), "{}", event.reason);
        assert_eq!(event.detail["slots"], 1);
        assert_eq!(event.detail["fix"], serde_json::json!([see]));
    }
    for n in 0..60 {
        let key = WorkloadKey::new(name("default"), name(&format!("w{n}")));
        let status = queries::status(&world.cluster, &key, false).unwrap();
        assert_eq!(status.unplaced.unwrap().evaluated, 100);
    }
}

#[test]
fn whatever_makes_room_in_a_full_cluster_is_found() {
    let mut world = World::new(2);
    world.replicas_max = 2;
    world.run(2);
    let waits = |world: &World| {
        let status = queries::status(&world.cluster, &web(), false).unwrap();
        status.unplaced.map(|one| one.slots)
    };
    world.deploy(spec("1", 7), Kind::Service);
    world.run(6);
    assert_eq!((world.ready(), waits(&world)), (4, Some(3)));
    // A host joins, one grows, and another workload goes.
    world.seqs.insert(host(3), 0);
    world.run(6);
    assert_eq!((world.ready(), waits(&world)), (6, Some(1)));
    world.deploy(other("2"), Kind::Service);
    world.replicas_max = 3;
    world.run(6);
    assert_eq!((world.ready(), waits(&world)), (7, None));
    world.change(commands::scale, Some(8));
    world.run(6);
    assert_eq!((world.ready(), waits(&world)), (7, Some(1)));
    world.change_of("other", commands::rm, None);
    world.run(6);
    assert_eq!((world.ready(), waits(&world)), (8, None));
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
    let name = &world.cluster.hosts()[&home].info().name;
    assert_eq!(
        unplaced.fix[0],
        format!("bring {name} back: it has the volumes; `wasmorch host-rm {name}` gives them up")
    );
    let filters = BTreeMap::from([("dead".into(), 1), (format!("volumes are on {name}"), 2)]);
    assert_eq!((unplaced.evaluated, unplaced.filtered), (3, filters));
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
