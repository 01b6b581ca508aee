//! Odd wishes: what no host can do is explained, and never costs the leader its time.

use wasmorch_api::ByteSize;

use super::*;

fn label(label: &str, test: LabelTest) -> Constraint {
    Constraint::Label {
        label: label.to_owned(),
        test,
    }
}

fn eq(zone: &str) -> Constraint {
    label("zone", LabelTest::Eq(zone.to_owned()))
}

impl World {
    /// Deploys what has no place; says what it lacks, and that the next plans are empty.
    fn unplaced(&mut self, wanted: WorkloadSpec) -> wasmorch_api::messages::Unplaced {
        self.deploy(wanted, Kind::Http);
        self.run(8);
        for _ in 0..3 {
            let plan = self.round();
            assert!(plan.is_empty(), "{plan:#?}");
        }
        let status = queries::status(&self.cluster, &web(), false).unwrap();
        status.unplaced.unwrap()
    }
}

#[test]
fn a_label_that_no_host_has() {
    let mut wanted = spec("1", 2);
    wanted.constraints = vec![eq("nowhere")];
    let trouble = World::new(3).unplaced(wanted);
    assert_eq!((trouble.slots, trouble.evaluated), (2, 3));
    assert_eq!(trouble.filtered["constraint zone=nowhere"], 3);
    assert_eq!(
        trouble.fix,
        ["remove the constraint zone=nowhere, or label a host"]
    );
}

#[test]
fn a_replica_larger_than_any_host() {
    let mut wanted = spec("1", 1);
    wanted.resources.memory = ByteSize(4 << 30);
    wanted.resources.reserve.memory = ByteSize((1 << 30) + ByteSize::mib(64).0);
    wanted.resources.reserve.cpu = wasmorch_api::Cpu(5_000);
    let trouble = World::new(2).unplaced(wanted);
    assert_eq!(trouble.lacking["memory"], 64 << 20);
    assert_eq!(trouble.lacking["cpu"], 3_000);
    assert!(
        trouble.fix[0].starts_with("free 64 MiB on h1, or lower resources.reserve"),
        "{:?}",
        trouble.fix
    );
}

#[test]
fn constraints_that_contradict_each_other() {
    let mut world = World::new(2);
    world
        .labels
        .insert(host(1), BTreeMap::from([("zone".into(), "a".into())]));
    world.run(1);
    let mut wanted = spec("1", 1);
    wanted.constraints = vec![eq("a"), eq("b")];
    let trouble = world.unplaced(wanted);
    let fix = "remove the constraint zone=b, or label a host";
    assert_eq!(trouble.fix[0], fix, "h1 fails one of them only");
}

#[test]
fn the_nearest_fix_comes_first() {
    let mut world = World::new(3);
    for n in 1..=2 {
        let outcome = commands::cordon(&world.cluster, host(n).as_str(), world.now).unwrap();
        world.store(outcome.writes);
    }
    let zone = |zone: &str| BTreeMap::from([("zone".to_owned(), zone.to_owned())]);
    world.labels.insert(host(1), zone("b"));
    world.labels.insert(host(2), zone("a"));
    world.labels.insert(host(3), zone("b"));
    world.run(1);
    let mut wanted = spec("1", 1);
    wanted.constraints = vec![eq("a")];
    let trouble = world.unplaced(wanted);
    assert_eq!(
        trouble.fix,
        [
            "uncordon h2",
            "remove the constraint zone=a, or label a host",
            "uncordon h1; and remove the constraint zone=a, or label a host",
        ]
    );
    assert_eq!(trouble.filtered["cordoned"], 2);
}

#[test]
fn a_thousand_constraints() {
    let mut wanted = spec("1", 50);
    let one = |n: u32| label(&format!("label{n}"), LabelTest::Eq("x".into()));
    wanted.constraints = (0..1_000).map(one).collect();
    let mut world = World::new(20);
    let trouble = world.unplaced(wanted.clone());
    assert_eq!((trouble.slots, trouble.filtered.len()), (50, 1));
    assert!(trouble.fix[0].ends_with("; and more"), "{:?}", trouble.fix);
    let one = |n: u32| label(&format!("label{n}"), LabelTest::Ne("x".into()));
    wanted.constraints = (0..1_000).map(one).collect();
    world.deploy(wanted, Kind::Http);
    world.run(4);
    assert_eq!(world.ready(), 50);
}

#[test]
fn the_nearest_fix_is_what_takes_the_smallest_share() {
    let mut world = World::new(3);
    // h1 lacks half of the cpu, h2 a tenth of the memory, h3 hardly any, and is barred besides.
    let fill = |n: usize, mib: u64, cpu: u64| {
        let mut one = shaped(n as u8, 1, 1, 0);
        one.constraints = vec![label("host", LabelTest::Eq(format!("h{n}")))];
        one.resources.reserve.memory = ByteSize::mib(mib);
        one.resources.reserve.cpu = wasmorch_api::Cpu(cpu);
        one
    };
    for (n, mib, cpu) in [(1, 64, 1_500), (2, 574, 0), (3, 525, 0)] {
        world.deploy(fill(n, mib, cpu), Kind::Http);
    }
    world.run(6);
    let mut wanted = spec("1", 1);
    wanted.resources.memory = ByteSize::mib(512);
    wanted.resources.reserve.memory = ByteSize::mib(500);
    wanted.resources.reserve.cpu = wasmorch_api::Cpu(1_000);
    wanted.constraints = vec![label("host", LabelTest::Ne("h3".into()))];
    let trouble = world.unplaced(wanted);
    assert!(
        trouble.fix[0].starts_with("free 50 MiB on h2, ")
            && trouble.fix[1].starts_with("free 500m cpu on h1, "),
        "{:?}",
        trouble.fix
    );
    // 1 MiB on h3 would not help.
    assert_eq!(trouble.lacking["memory"], 50 << 20);
    assert_eq!(trouble.lacking["cpu"], 500);
}

#[test]
fn a_million_replicas_where_three_hundred_fit() {
    let mut world = World::new(3);
    world.oracle = false;
    let trouble = world.unplaced(spec("1", 1_000_000));
    assert_eq!(trouble.slots, 999_700);
    assert_eq!(trouble.lacking["replicas"], 1);
    assert_eq!(world.ready(), 300);
    world.change(commands::scale, Some(3));
    world.run(2);
    assert_eq!((world.ready(), world.placed().len()), (3, 3));
}

#[test]
fn a_replica_tells_its_life_and_its_end() {
    let mut world = World::new(2);
    world.deploy(spec("1", 2), Kind::Http);
    world.run(4);
    let (number, placed) = {
        let placements = &world.cluster.workload(&web()).unwrap().placements;
        let (number, placed) = placements.iter().next().unwrap();
        (*number, placed.clone())
    };
    let id = ReplicaId {
        slot: placed.slot,
        placement: number,
        start: 1,
    };
    let why = why::replica(&world.cluster, &web(), id).unwrap();
    assert_eq!(
        (&why["state"], &why["ready"]),
        (&"running".into(), &true.into())
    );
    let there = why["story"][0].as_str().unwrap();
    assert!(there.contains("number 1 of the 2 hosts"), "{there}");
    world.silent.insert(placed.host.clone());
    world.watch(6, |_| {});
    let why = why::replica(&world.cluster, &web(), id).unwrap();
    assert_eq!(why["state"], "lost", "{why}");
    let none = ReplicaId { start: 9, ..id };
    let none = ReplicaId {
        placement: PlacementNumber(77),
        ..none
    };
    assert_eq!(why::replica(&world.cluster, &web(), none), None);
}

#[test]
fn a_plan_shows_the_rollout_to_its_end() {
    let mut world = World::new(3);
    world.deploy(spec("1", 3), Kind::Http);
    world.run(8);
    let mut wanted = spec("2", 4);
    wanted.bindings.publish = vec!["shop.>".into()];
    let input = DeployInput {
        workloads: vec![(wanted, Kind::Http)],
        if_index: None,
        ..DeployInput::default()
    };
    let before = world.cluster.workload(&web()).unwrap().placements.clone();
    let shown = preview::of_deploy(&world.cluster, &input, &world.call()).unwrap();
    assert_eq!(before, world.cluster.workload(&web()).unwrap().placements);
    let count = |what: &str| shown[what].as_array().unwrap().len();
    assert_eq!(
        (count("start"), count("stop"), count("move")),
        (1, 0, 3),
        "{shown}"
    );
    assert_eq!((&shown["more"], count("unplaced")), (&0.into(), 0));
    assert_eq!(count("granted"), 1);
    // And then it is done as shown.
    let outcome = commands::deploy(&world.cluster, &input, &world.call()).unwrap();
    world.store(outcome.writes);
    world.run(20);
    let after = &world.cluster.workload(&web()).unwrap().placements;
    let by_slot: BTreeMap<u64, &HostId> = after
        .values()
        .map(|placed| (placed.slot.0, &placed.host))
        .collect();
    let lists = ["start", "move"].map(|what| shown[what].as_array().unwrap().clone());
    let told: BTreeMap<u64, String> = { lists.iter().flatten() }
        .map(|step| {
            let host = step["host"].as_str().unwrap().to_owned();
            (step["slot"].as_u64().unwrap(), host)
        })
        .collect();
    assert_eq!(told.len(), 4);
    for (slot, host) in told {
        assert_eq!(by_slot[&slot].as_str(), host, "slot {slot}");
    }
    // What it was based on has changed: it is not done as shown then.
    let stale = DeployInput {
        if_index: shown["index"].as_u64(),
        atomic: false,
        ..input
    };
    let refused = commands::deploy(&world.cluster, &stale, &world.call()).unwrap_err();
    assert_eq!(refused.code, wasmorch_api::ErrorCode::Conflict);
}

#[test]
fn a_removal_is_a_change_since_it_was_shown() {
    let mut world = World::new(2);
    let older = spec("1", 1);
    world.deploy(older.clone(), Kind::Http);
    let newer = shaped(1, 1, 1, 0);
    world.deploy(newer.clone(), Kind::Http);
    world.run(6);
    let mut input = DeployInput {
        workloads: vec![(older, Kind::Http), (newer, Kind::Http)],
        if_index: None,
        ..DeployInput::default()
    };
    let shown = |world: &World, input: &DeployInput| {
        let shown = preview::of_deploy(&world.cluster, input, &world.call()).unwrap();
        shown["index"].as_u64()
    };
    input.if_index = shown(&world, &input);
    commands::deploy(&world.cluster, &input, &world.call()).unwrap();
    // The older one goes: what is left is as it was.
    world.change(commands::rm, None);
    let refused = commands::deploy(&world.cluster, &input, &world.call()).unwrap_err();
    assert_eq!(refused.code, wasmorch_api::ErrorCode::Conflict);
    world.new_leader();
    world.run(6);
    let refused = commands::deploy(&world.cluster, &input, &world.call()).unwrap_err();
    assert_eq!(refused.code, wasmorch_api::ErrorCode::Conflict);
    input.if_index = None;
    input.if_index = shown(&world, &input);
    let outcome = commands::deploy(&world.cluster, &input, &world.call()).unwrap();
    world.store(outcome.writes);
    world.run(6);
    assert_eq!(world.ready(), 1);
}
