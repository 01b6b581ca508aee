//! What a replica claims of its host beside room: ports, features, its data, its component; and that each
//! filter and each score says its name.

use wasmorch_api::messages::Unplaced;
use wasmorch_api::spec::Affinity;
use wasmorch_planner::Start;

use super::*;

fn key(text: &str) -> WorkloadKey {
    WorkloadKey::new(name("default"), name(text))
}

/// Listens on a port, stop-first, as a manifest has it that says nothing of `update`.
fn listening(workload: &str, version: &str, replicas: u32, port: u16) -> WorkloadSpec {
    let mut spec = WorkloadSpec {
        name: name(workload),
        ..spec(version, replicas)
    };
    spec.bindings.sockets = Some(Sockets {
        listen: vec![port],
        ..Sockets::default()
    });
    stop_first(&mut spec);
    spec
}

impl World {
    fn sits(&self, workload: &str) -> Vec<String> {
        let placements = &self.cluster.workload(&key(workload)).unwrap().placements;
        let hosts = placements.values().map(|placed| placed.host.to_string());
        let mut hosts: Vec<String> = hosts.collect();
        hosts.sort();
        hosts
    }

    fn trouble(&self, workload: &str) -> Unplaced {
        let status = queries::status(&self.cluster, &key(workload), false).unwrap();
        status.unplaced.unwrap()
    }

    /// Half a second in which hosts live and report nothing.
    fn quiet_round(&mut self) -> Plan {
        let hosts: Vec<HostId> = self.seqs.keys().cloned().collect();
        hosts.iter().for_each(|id| self.heartbeat(id));
        self.cluster.observe(Observation::Tick, self.now);
        let plan = self.plan();
        self.now.0 += 500;
        plan
    }

    fn story(&self, workload: &str) -> String {
        let placements = &self.cluster.workload(&key(workload)).unwrap().placements;
        let (number, placed) = placements.iter().next().unwrap();
        let id = ReplicaId {
            slot: placed.slot,
            placement: *number,
            start: 1,
        };
        let why = why::replica(&self.cluster, &key(workload), id).unwrap();
        why["story"][0].as_str().unwrap().to_owned()
    }
}

#[test]
fn a_port_of_a_host_is_one_replicas() {
    let mut world = World::new(3);
    world.deploy(listening("db", "1", 2, 9_000), Kind::Service);
    world.run(6);
    assert_eq!(world.sits("db"), ["h1", "h2"]);
    world.deploy(listening("web", "1", 2, 9_000), Kind::Service);
    world.run(6);
    assert_eq!(world.sits("web"), ["h3"]);
    let trouble = world.trouble("web");
    assert_eq!((trouble.slots, trouble.evaluated), (1, 3));
    assert_eq!(trouble.filtered["port 9000 taken"], 3);
    assert_eq!(
        trouble.fix[0],
        "port 9000 is taken on h1 by default/db: add a host, or listen on another port"
    );
    // Another port is another matter, and the host's own is nobody's.
    world.deploy(listening("other", "1", 3, 9_001), Kind::Service);
    world.deploy(listening("gate", "1", 1, 8_080), Kind::Service);
    world.run(6);
    assert_eq!(world.sits("other"), ["h1", "h2", "h3"]);
    assert!(world.trouble("gate").fix[0].contains("on h1 by the host itself"));
    // Its own replica is not in its own way.
    let story = world.story("web");
    assert!(
        story.starts_with("on h3: number 1 of the 1 host "),
        "{story}"
    );
    // A preview knows what the others hold.
    let input = DeployInput {
        workloads: vec![(listening("late", "1", 1, 9_000), Kind::Service)],
        ..DeployInput::default()
    };
    let shown = preview::of_deploy(&world.cluster, &input, &world.call()).unwrap();
    assert_eq!(shown["unplaced"][0]["slots"], 1, "{shown}");
}

#[test]
fn a_port_is_free_when_what_had_it_has_ended() {
    let mut world = World::new(1);
    world.deploy(listening("web", "1", 1, 9_000), Kind::Service);
    world.run(6);
    world.deploy(listening("db", "1", 1, 9_000), Kind::Service);
    world.run(6);
    assert_eq!(world.trouble("db").slots, 1);
    world.change(commands::stop, None);
    let plan = world.quiet_round();
    assert_eq!((plan.stop.len(), plan.start.len()), (1, 0), "{plan:#?}");
    for _ in 0..4 {
        assert!(world.quiet_round().start.is_empty(), "it still ends");
    }
    world.run(1);
    assert_eq!(world.sits("db"), ["h1"]);
}

#[test]
fn what_listens_rolls_in_place_and_never_beside_itself() {
    let mut world = World::new(1);
    world.deploy(listening("web", "1", 1, 9_000), Kind::Service);
    world.run(6);
    world.deploy(listening("web", "2", 1, 9_000), Kind::Service);
    world.run(12);
    assert_eq!(
        (world.rollout(), world.ready()),
        (RolloutState::Completed, 1)
    );
    // Told to start first, it needs another host, says so, and goes back in the end.
    let mut wanted = listening("web", "3", 1, 9_000);
    wanted.update = wasmorch_api::spec::Update::default();
    world.deploy(wanted.clone(), Kind::Service);
    world.run(4);
    let trouble = world.trouble("web");
    assert!(trouble.fix[0].contains("by default/web"), "{trouble:?}");
    world.run(260);
    assert_eq!(
        (world.rollout(), world.ready()),
        (RolloutState::Reverted, 1)
    );
    world.seqs.insert(host(2), 0);
    world.run(2);
    wanted.artifact = Some(Digest::of(b"4"));
    world.deploy(wanted, Kind::Service);
    world.run(12);
    assert_eq!(world.rollout(), RolloutState::Completed);
    assert_eq!(world.sits("web"), ["h2"]);
}

#[test]
fn one_on_every_host_waits_for_its_port() {
    let mut world = World::new(2);
    world.deploy(listening("db", "1", 1, 9_000), Kind::Service);
    world.run(6);
    world.deploy(one_per_host(listening("web", "1", 1, 9_000)), Kind::Service);
    world.run(6);
    assert_eq!(world.sits("web"), ["h2"]);
    assert_eq!(world.trouble("web").filtered["port 9000 taken"], 1);
}

#[test]
fn a_host_that_cannot_run_it_is_passed_by() {
    let mut world = World::new(3);
    world.old = BTreeSet::from([host(1), host(2)]);
    world.run(1);
    let mut wanted = spec("1", 2);
    bind(&mut wanted, "redis");
    world.deploy(wanted, Kind::Http);
    world.run(6);
    assert_eq!(world.sits("web"), ["h3", "h3"]);
    let why = why::workload(&world.cluster, &web()).unwrap();
    assert_eq!(why["filtered"]["without keyvalue=redis"], 2, "{why}");
    assert_eq!(why["named"]["without keyvalue=redis"][0], "h1");

    // What its component needs is its revision's.
    world.old.insert(host(3));
    world.run(1);
    let artifact = Digest::of(b"new");
    let wanted = WorkloadSpec {
        name: name("new"),
        ..spec("new", 1)
    };
    let input = DeployInput {
        workloads: vec![(wanted, Kind::Http)],
        features: BTreeMap::from([(artifact, vec![features::WASI_0_3.to_owned()])]),
        ..DeployInput::default()
    };
    let outcome = commands::deploy(&world.cluster, &input, &world.call()).unwrap();
    world.store(outcome.writes);
    world.run(6);
    let trouble = world.trouble("new");
    assert_eq!(trouble.filtered["without wasi@0.3"], 3);
    let fix = "upgrade wasmorch on a host without wasi@0.3, or add one that has it";
    assert_eq!(trouble.fix, [fix]);
    // One of them is upgraded.
    world.old.remove(&host(2));
    world.run(4);
    assert_eq!(world.sits("new"), ["h2"]);
}

#[test]
fn the_checker_knows_ports_and_features() {
    let mut world = World::new(2);
    world.old.insert(host(2));
    world.deploy(listening("web", "1", 1, 9_000), Kind::Service);
    world.run(6);
    let mut other = listening("db", "1", 0, 9_000);
    bind(&mut other, "redis");
    world.deploy(other, Kind::Service);
    let start = |placement: u64, at: usize| Start {
        key: key("db"),
        slot: wasmorch_api::Slot(placement),
        placement: PlacementNumber(placement),
        revision: wasmorch_api::RevisionNumber(1),
        host: host(at),
        standby: false,
        args: None,
    };
    let broken = |start: Vec<Start>| {
        let plan = Plan {
            start,
            ..Plan::default()
        };
        let all = check::check_touched(&world.cluster, &plan);
        let all: Vec<String> = all.iter().map(ToString::to_string).collect();
        all.into_iter()
            .filter(|one| one.contains("port") || one.contains("without"))
            .collect::<Vec<String>>()
    };
    let taken =
        |host: &str| format!("default/db would start on host {host}, where port 9000 is taken");
    assert_eq!(broken(vec![start(1, 1)]), [taken("h1")]);
    let without = "default/db would start on host h2, which is without keyvalue=redis";
    assert_eq!(broken(vec![start(1, 2)]), [without]);
    let both = broken(vec![start(1, 2), start(2, 2)]);
    assert_eq!(both, [without.to_owned(), without.to_owned(), taken("h2")]);
}

#[test]
fn a_slot_goes_back_to_its_blobs_and_on_without_them() {
    let mut world = World::new(3);
    let mut wanted = spec("1", 1);
    bind(&mut wanted, "disk");
    wanted.name = name("web");
    world.deploy(wanted.clone(), Kind::Http);
    world.run(6);
    assert_eq!(world.sits("web"), ["h1"]);
    // Fuller than all others, and still: stop and start, and a roll beside the old one.
    let filler = WorkloadSpec {
        name: name("filler"),
        constraints: vec![Constraint::Label {
            label: "host".into(),
            test: LabelTest::Eq("h1".into()),
        }],
        ..spec("1", 60)
    };
    world.deploy(filler, Kind::Http);
    world.run(4);
    world.change(commands::stop, None);
    world.run(4);
    world.change(commands::start, None);
    world.run(4);
    wanted.artifact = Some(Digest::of(b"2"));
    world.deploy(wanted, Kind::Http);
    world.run(12);
    assert_eq!(
        (world.sits("web"), world.rollout()),
        (vec!["h1".to_owned()], RolloutState::Completed)
    );
    // When its host is lost it goes on elsewhere, and stays there.
    world.silent.insert(host(1));
    world.run(16);
    let now = world.sits("web");
    assert_eq!((now.len(), world.ready()), (1, 1));
    assert_ne!(now, ["h1"]);
    world.silent.clear();
    world.run(6);
    world.change(commands::restart, None);
    world.run(12);
    assert_eq!(world.sits("web"), now);
}

#[test]
fn a_host_that_has_the_component_goes_before_an_equal_one() {
    let mut world = World::new(5);
    let cordon = |world: &mut World, command: fn(&Cluster, &str, Timestamp) -> _| {
        let outcome: Result<commands::Outcome<_>, wasmorch_api::ApiError> =
            command(&world.cluster, host(1).as_str(), world.now);
        let outcome: commands::Outcome<wasmorch_api::messages::HostView> = outcome.unwrap();
        world.store(outcome.writes);
    };
    cordon(&mut world, commands::cordon);
    world.deploy(spec("1", 2), Kind::Http);
    world.run(6);
    assert_eq!(world.sits("web"), ["h2", "h3"]);
    cordon(&mut world, commands::uncordon);
    world.change(commands::scale, Some(1));
    world.run(4);
    let why = why::workload(&world.cluster, &web()).unwrap();
    assert_eq!(why["scores"][0]["host"], "h3", "{why}");
    assert_eq!(why["scores"][0]["parts"]["cached"], 5);
    world.change(commands::scale, Some(2));
    world.run(4);
    assert_eq!(world.sits("web"), ["h2", "h3"]);
    // Two on one host are worse than any fetch.
    world.change(commands::scale, Some(5));
    world.run(4);
    assert_eq!(world.sits("web"), ["h1", "h2", "h3", "h4", "h5"]);
    // Another component is nowhere yet.
    world.change(commands::scale, Some(1));
    world.run(4);
    let mut wanted = spec("2", 1);
    stop_first(&mut wanted);
    world.deploy(wanted, Kind::Http);
    world.run(12);
    assert_eq!(world.sits("web"), ["h1"]);
}

#[test]
fn where_the_slot_failed_is_the_last_choice_and_said() {
    let mut world = World::new(2);
    world.fates.insert(1, Fate::GivesUp);
    world.deploy(spec("1", 1), Kind::Http);
    world.run(1);
    assert_eq!(world.sits("web"), ["h1"]);
    world.run(1);
    assert_eq!(world.sits("web"), ["h2"], "another host is tried");
    let story = world.story("web");
    assert!(!story.contains("failed"), "{story}");
    world.fates.clear();
    world.silent.insert(host(2));
    world.run(90);
    assert_eq!(world.sits("web"), ["h1"], "there is no other");
    let story = world.story("web");
    assert!(story.contains("failed -1000000"), "{story}");
}

#[test]
fn at_most_so_many_for_each_value_of_a_label() {
    let mut world = World::new(5);
    for n in 1..=4 {
        let zone = ["a", "b"][n % 2].to_owned();
        world
            .labels
            .insert(host(n), BTreeMap::from([("zone".to_owned(), zone)]));
    }
    world.run(1);
    let mut wanted = spec("1", 7);
    wanted.constraints = vec![Constraint::Distinct {
        distinct: "zone".into(),
        max: 2,
    }];
    world.deploy(wanted, Kind::Http);
    world.run(6);
    assert_eq!(world.sits("web"), ["h1", "h2", "h3", "h4"]);
    let trouble = world.trouble("web");
    assert_eq!((trouble.slots, trouble.filtered["distinct zone"]), (3, 5));
    assert!(
        trouble
            .fix
            .contains(&"add a host with another zone, or raise max".to_owned())
    );
    assert!(
        trouble.fix.contains(&"label a host with zone".to_owned()),
        "h5 has none"
    );
}

#[test]
fn weights_pull_and_push() {
    let mut world = World::new(4);
    let disk = |disk: &str| BTreeMap::from([("disk".to_owned(), disk.to_owned())]);
    world.labels.insert(host(1), disk("hdd"));
    world.labels.insert(host(4), disk("ssd"));
    world.run(1);
    let wish = |disk: &str, weight| Affinity {
        label: "disk".into(),
        weight,
        test: LabelTest::Eq(disk.into()),
    };
    let mut wanted = spec("1", 3);
    wanted.affinity = vec![wish("ssd", 40), wish("hdd", -40)];
    world.deploy(wanted, Kind::Http);
    world.run(6);
    assert_eq!(world.sits("web"), ["h2", "h3", "h4"]);
    let why = why::workload(&world.cluster, &web()).unwrap();
    let scores = &why["scores"];
    assert_eq!(
        (&scores[0]["host"], &scores[0]["parts"]["affinity"]),
        (&"h1".into(), &(-40).into())
    );
    assert_eq!(
        (&scores[1]["host"], &scores[1]["parts"]["affinity"]),
        (&"h4".into(), &40.into())
    );
}

#[test]
fn a_taint_keeps_away_who_does_not_tolerate_it() {
    let mut world = World::new(2);
    world.taints.insert(host(1), vec!["edge=far".to_owned()]);
    world.run(1);
    let mut wanted = one_per_host(spec("1", 1));
    world.deploy(wanted.clone(), Kind::Http);
    world.run(4);
    assert_eq!(world.sits("web"), ["h2"]);
    world.taints.insert(host(2), vec!["gpu".to_owned()]);
    world.run(1);
    wanted = spec("2", 1);
    wanted.name = name("other");
    world.deploy(wanted.clone(), Kind::Http);
    world.run(4);
    let trouble = world.trouble("other");
    assert_eq!(
        (
            trouble.filtered["taint edge=far"],
            trouble.filtered["taint gpu"]
        ),
        (1, 1)
    );
    assert_eq!(trouble.fix[0], "tolerate = [\"edge=far\"]");
    // By its key, whatever the value.
    wanted.tolerate = vec!["edge".to_owned()];
    world.deploy(wanted, Kind::Http);
    world.run(6);
    assert_eq!(world.sits("other"), ["h1"]);
}

/// Equal hosts go by name, emptier ones first; and the same state gives the same plan.
#[test]
fn ties_break_by_load_then_by_name() {
    let mut world = World::new(3);
    world.deploy(spec("1", 1), Kind::Http);
    let first = world.cluster.clone().plan(world.now);
    assert_eq!(first, world.cluster.clone().plan(world.now));
    world.run(4);
    assert_eq!(world.sits("web"), ["h1"]);
    let mut wanted = spec("1", 1);
    wanted.name = name("other");
    world.deploy(wanted, Kind::Http);
    world.run(4);
    assert_eq!(
        world.sits("other"),
        ["h2"],
        "h1 is fuller, if only by a thousandth"
    );
}
