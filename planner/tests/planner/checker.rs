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
    let rest = plan.without(&out);
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
    plan = plan.without(&BTreeSet::from([web()]));
    assert_eq!(check::check_touched(&world.cluster, &plan), vec![]);
    assert!(!plan.start.is_empty() && plan.start.iter().all(|start| start.key == other));
    // A server that takes more takes it.
    world.cluster.value_bytes_max *= 2;
    world.cluster.mark_all_dirty();
    let plan = world.cluster.plan(world.now);
    assert_eq!(check::check_touched(&world.cluster, &plan), vec![]);
}
