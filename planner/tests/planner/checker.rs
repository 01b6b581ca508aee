//! The checker bites, and bars nobody else.

use super::*;

#[test]
fn the_checker_bites() {
    let mut world = World::new(2);
    world.deploy(spec("1", 2), Kind::Http);
    world.run(6);
    let placed = world.cluster.workload(&web()).unwrap().placements.clone();
    let start = |slot: u64, placement: u64, host_n: usize| wasmorch_planner::Start {
        key: web(),
        slot: wasmorch_api::Slot(slot),
        placement: PlacementNumber(placement),
        revision: wasmorch_api::RevisionNumber(1),
        host: host(host_n),
        standby: false,
        args: None,
    };
    let broken = |plan: &Plan| {
        let whole = check::check(&world.cluster, plan);
        assert_eq!(check::check_touched(&world.cluster, plan), whole);
        whole.len()
    };
    let mut plan = Plan {
        start: vec![start(1, 1, 1)],
        ..Plan::default()
    };
    assert!(broken(&plan) >= 1, "a number given twice");
    plan.start = vec![start(1, 100, 9)];
    assert!(broken(&plan) >= 1, "an unknown host");
    plan.start = vec![start(1, 100, 1), start(1, 101, 1)];
    assert!(broken(&plan) >= 1, "a crowded slot");
    plan.start = vec![start(3, 100, 1), start(4, 101, 1)];
    assert!(broken(&plan) >= 1, "more than desired and surge");
    plan.start.clear();
    plan.stop = placed
        .iter()
        .map(|(number, placed)| wasmorch_planner::Stop {
            key: web(),
            slot: placed.slot,
            placement: *number,
            host: placed.host.clone(),
            why: wasmorch_planner::StopReason::Replaced,
        })
        .collect();
    assert!(broken(&plan) >= 1, "ready replicas taken away");
}

#[test]
fn one_broken_part_bars_nobody_else() {
    let mut world = World::new(2);
    world.deploy(shaped(0, 1, 2, 0), Kind::Http);
    world.deploy(shaped(1, 1, 2, 0), Kind::Http);
    let mut plan = world.cluster.plan(world.now);
    let wanted = plan.start.len();
    // A mistake of the planner: a number given twice.
    plan.start[1].placement = plan.start[0].placement;
    let broken = check::check_touched(&world.cluster, &plan);
    let out = broken[0].workloads(&plan);
    assert_eq!(out, BTreeSet::from([plan.start[0].key.clone()]));
    let rest = plan.without(&broken);
    assert_eq!((rest.start.len(), wanted), (2, 4));
    assert_eq!(check::check_touched(&world.cluster, &rest), vec![]);
    let writes = world.cluster.writes(rest);
    world.store(writes);
    let again = world.cluster.plan(world.now);
    assert_eq!(again.start.len(), 2, "what was left out is planned again");
}

#[test]
fn a_record_that_no_message_takes_is_named_and_bars_nobody_else() {
    let mut world = World::new(2);
    world.deploy(spec("1", 1), Kind::Http);
    world.deploy(shaped(1, 1, 1, 0), Kind::Http);
    world.run(6);
    let other = WorkloadKey::new(name("default"), shaped(1, 1, 1, 0).name);
    for key in [web(), other.clone()] {
        let mut record = world.cluster.workload(&key).unwrap().record.clone();
        record.desired = 3;
        if key == web() {
            // The answer to a deploy of many workloads.
            let named = vec![serde_json::json!({"name": "web", "revision": 1}); 40_000];
            record.answered.push(wasmorch_api::record::Answered {
                request_id: "r1".parse().unwrap(),
                verb: "deploy".to_owned(),
                at: world.now,
                reply: serde_json::json!({"workloads": named}),
            });
        }
        world.store(vec![Write::Record(Box::new(record))]);
    }
    let mut plan = world.cluster.plan(world.now);
    let touched = check::check_touched(&world.cluster, &plan);
    assert_eq!(touched, check::check(&world.cluster, &plan));
    let [rule @ check::BrokenRule::TooLarge { bytes, most, .. }] = touched.as_slice() else {
        panic!("{touched:?}");
    };
    assert!(bytes > most);
    let said = rule.to_string();
    assert!(
        said.starts_with("the record of default/web would have "),
        "{said}"
    );
    assert_eq!(rule.workloads(&plan), BTreeSet::from([web()]));
    plan = plan.without(&touched);
    assert_eq!(check::check_touched(&world.cluster, &plan), vec![]);
    assert!(!plan.start.is_empty() && plan.start.iter().all(|start| start.key == other));
    // A server that takes more takes it.
    world.cluster.value_bytes_max *= 2;
    world.cluster.mark_all_dirty();
    let plan = world.cluster.plan(world.now);
    assert_eq!(check::check_touched(&world.cluster, &plan), vec![]);
}

/// One that starts with a plan of ours.
fn begins(slot: u64, placement: u64, host_n: usize) -> wasmorch_planner::Start {
    wasmorch_planner::Start {
        key: web(),
        slot: wasmorch_api::Slot(slot),
        placement: PlacementNumber(placement),
        revision: wasmorch_api::RevisionNumber(1),
        host: host(host_n),
        standby: false,
        args: None,
    }
}

fn starting(start: Vec<wasmorch_planner::Start>) -> Plan {
    Plan {
        start,
        ..Plan::default()
    }
}

/// What the checker says of a plan, looking at everything and at what it touches.
fn said(world: &World, plan: &Plan) -> Vec<String> {
    let whole = check::check(&world.cluster, plan);
    assert_eq!(check::check_touched(&world.cluster, plan), whole);
    whole.iter().map(ToString::to_string).collect()
}

/// So many hosts, and a workload of which nothing is placed yet.
fn unplaced(hosts: usize, spec: WorkloadSpec, kind: Kind) -> World {
    let mut world = World::new(hosts);
    assert!(world.deploy(spec, kind));
    world
}

#[test]
fn nothing_starts_where_nothing_may() {
    let mut world = World::new(5);
    world.silent.insert(host(3));
    world.run(8);
    world.silent.insert(host(2));
    world.run(7);
    let now = world.now;
    let cordon = commands::cordon(&world.cluster, "h4", now).unwrap();
    world.store(cordon.writes);
    let drain = commands::drain(&world.cluster, "h5", None, now).unwrap();
    // Whoever drains a host cordons it: this rule is to stand alone.
    let drained = drain.writes.into_iter().map(|write| match write {
        Write::Host(mut record) => {
            record.cordoned = false;
            Write::Host(record)
        }
        other => other,
    });
    let drained = drained.collect();
    world.store(drained);
    let states = [2, 3].map(|n| world.cluster.hosts()[&host(n)].state);
    assert_eq!(states, [HostState::Suspect, HostState::Dead]);
    world.deploy(spec("1", 2), Kind::Http);
    let on = |n| said(&world, &starting(vec![begins(1, 1, n)]));
    assert_eq!(on(1), Vec::<String>::new());
    let bars = [
        (2, "suspect"),
        (3, "dead"),
        (4, "cordoned"),
        (5, "draining"),
        (6, "unknown"),
    ];
    for (n, why) in bars {
        let rule = format!("default/web would start on host h{n}, which is {why}");
        assert_eq!(on(n), [rule]);
    }
}

#[test]
fn nothing_is_booked_over_what_a_host_has() {
    let shaped = |memory: u64, cpu: u64| {
        let mut spec = spec("1", 2);
        spec.resources.reserve.memory = wasmorch_api::ByteSize(memory << 20);
        spec.resources.reserve.cpu = wasmorch_api::Cpu(cpu);
        spec
    };
    let both = || starting(vec![begins(1, 1, 1), begins(2, 2, 1)]);
    let one = || starting(vec![begins(1, 1, 1), begins(2, 2, 2)]);
    for (memory, cpu, dimension) in [(600, 0, "memory"), (0, 1_200, "cpu")] {
        let world = unplaced(2, shaped(memory, cpu), Kind::Http);
        assert_eq!(said(&world, &one()), Vec::<String>::new());
        let rule = format!("host h1 would be booked over its {dimension}");
        assert_eq!(said(&world, &both()), [rule]);
    }
    let mut world = unplaced(2, spec("1", 2), Kind::Http);
    let mut long = one();
    long.start[0].args = Some(vec!["x".repeat(1 << 20)].into());
    let rule = "host h1 would be booked over its set size";
    assert_eq!(said(&world, &long), [rule]);
    world.replicas_max = 1;
    world.run(1);
    let mut world = unplaced(1, spec("1", 2), Kind::Http);
    world.replicas_max = 1;
    world.heartbeat(&host(1));
    let rule = "host h1 would be booked over its replicas";
    assert_eq!(said(&world, &both()), [rule]);
}

#[test]
fn what_starts_belongs_where_it_starts() {
    let world = unplaced(2, one_per_host(spec("1", 1)), Kind::Http);
    let two = starting(vec![begins(1, 1, 1), begins(2, 2, 1)]);
    let rule = "host h1 would have 2 placements of default/web, which has one on every host";
    assert_eq!(said(&world, &two), [rule]);

    let world = unplaced(2, spec("1", 2), Kind::Http);
    let mut other = starting(vec![begins(1, 1, 1)]);
    other.start[0].revision = wasmorch_api::RevisionNumber(9);
    let rule = "default/web would run revision 9, which does not exist";
    assert_eq!(said(&world, &other), [rule]);

    let mut keeps = spec("1", 1);
    stop_first(&mut keeps);
    wasmorch_api::manifest::read_grant("volume=data:/data", &mut keeps.bindings).unwrap();
    let mut world = unplaced(2, keeps, Kind::Http);
    let mut record = world.cluster.workload(&web()).unwrap().record.clone();
    record.homes.insert(wasmorch_api::Slot(1), host(1));
    world.store(vec![Write::Record(Box::new(record))]);
    let at = |n| said(&world, &starting(vec![begins(1, 1, n)]));
    assert_eq!(at(1), Vec::<String>::new());
    let rule = "default/web would start on host h2, which is not where its volumes are";
    assert_eq!(at(2), [rule]);
}

#[test]
fn no_more_starts_than_a_run_or_a_trial_asks_for() {
    let world = unplaced(2, spec("1", 1), Kind::Job);
    let run = world.cluster.workload(&web()).unwrap().record.run.clone();
    assert!(run.is_some(), "a job's first run begins with its deploy");
    let two = starting(vec![begins(1, 1, 1), begins(1, 2, 2)]);
    assert_eq!(
        said(&world, &two),
        ["default/web would have 2 placements, more than 1"]
    );
    let mut over = world.cluster.workload(&web()).unwrap().record.clone();
    over.run = None;
    let mut stray = starting(vec![begins(1, 1, 1)]);
    stray.update = vec![over];
    assert_eq!(
        said(&world, &stray),
        ["default/web would have 1 placements, more than 0"]
    );

    let mut world = World::new(3);
    world.deploy(spec("1", 2), Kind::Http);
    world.run(8);
    let mut tried = spec("2", 2);
    tried.update.canary = Some(wasmorch_api::spec::Canary {
        replicas: 1,
        percent: None,
        bake: wasmorch_api::HumanDuration::secs(60),
        promote: wasmorch_api::spec::Promote::Manual,
    });
    world.deploy(tried, Kind::Http);
    let canary = |slot, placement, n| wasmorch_planner::Start {
        revision: wasmorch_api::RevisionNumber(2),
        ..begins(slot, placement, n)
    };
    let one = starting(vec![canary(1, 100, 3)]);
    assert_eq!(said(&world, &one), Vec::<String>::new());
    let two = starting(vec![canary(1, 100, 3), canary(2, 101, 3)]);
    assert_eq!(
        said(&world, &two),
        ["default/web would have 2 placements, more than 1"]
    );
}

#[test]
fn terms_sequences_and_numbers_only_grow() {
    let mut world = World::new(2);
    world.deploy(spec("1", 3), Kind::Http);
    world.run(8);
    let next = |world: &World| {
        let workload = world.cluster.workload(&web()).unwrap();
        begins(3, workload.record.next_placement.0, 1)
    };
    let plan = starting(vec![next(&world)]);
    assert_eq!(said(&world, &plan), Vec::<String>::new());
    let stale = Plan {
        stale_sets: BTreeSet::from([host(1)]),
        ..Plan::default()
    };

    // A record that counts back.
    let before = world.cluster.workload(&web()).unwrap().record.clone();
    let mut back = before.clone();
    back.next_placement.0 -= 1;
    back.newest.0 -= 1;
    let counts_back = Plan {
        update: vec![back],
        ..Plan::default()
    };
    assert_eq!(
        said(&world, &counts_back),
        [
            "the next placement of default/web would fall from 4 to 3",
            "the newest revision of default/web would fall from 1 to 0",
        ]
    );

    // A host that holds a later set than this state knows of.
    let held = world.held(&host(1));
    world.lagging.insert(host(1), held + 5);
    world.heartbeat(&host(1));
    let later = format!(
        "host h1 holds set {}, and the last one stored for it is {held}",
        held + 5
    );
    assert_eq!(said(&world, &plan), [later.as_str()]);
    assert_eq!(said(&world, &stale), [later.as_str()]);
    world.lagging.clear();
    world.heartbeat(&host(1));

    // A set that a later leader has written.
    let mut set = world.cluster.hosts()[&host(1)].set.clone().unwrap();
    set.term = Term(9);
    world.store(vec![Write::Placements(set)]);
    world.heartbeat(&host(1));
    let rule = "the set of host h1 is of term 9, and this leader's is 1";
    assert_eq!(said(&world, &plan), [rule]);
    assert_eq!(said(&world, &stale), [rule]);

    // It bars that host alone.
    let mut both = plan.clone();
    both.start.push(begins(2, 9, 2));
    both.start[1].key = WorkloadKey::new(name("default"), name("other"));
    both.stale_sets = BTreeSet::from([host(1), host(2)]);
    let broken = check::check_touched(&world.cluster, &both);
    let rest = both.without(&broken);
    assert_eq!(rest.start.len(), 1);
    assert_eq!(rest.stale_sets, BTreeSet::from([host(2)]));
}
