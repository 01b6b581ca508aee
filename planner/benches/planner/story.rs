//! All of it deployed part by part, while hosts report what is ready.

use super::*;

/// In how many parts all is deployed.
const PARTS: usize = 20;
/// In how many portions hosts report what each part has brought.
const PORTIONS: usize = 4;

/// Runs it: a plan follows on each part and on each portion of reports.
pub(crate) fn story(scenario: Scenario) -> String {
    let mut world = World::new(scenario);
    for host in 0..scenario.hosts {
        world.beat(host);
        world.report(host);
    }
    let mut plans = Vec::new();
    let mut sums = [Duration::ZERO; 5];
    let numbers: Vec<usize> = (0..scenario.workloads).collect();
    let mut round = |world: &mut World, sums: &mut [Duration; 5]| {
        let (plan, planned) = timed(|| world.cluster.plan(world.now));
        let (broken, checked) = timed(|| check::check_touched(&world.cluster, &plan));
        assert!(broken.is_empty(), "{:?}", broken.first());
        let (writes, wrote) = timed(|| world.cluster.writes(plan));
        let ((), committed) = timed(|| world.carry_out(writes));
        plans.push(planned);
        for (sum, took) in sums.iter_mut().zip([planned, checked, wrote, committed]) {
            *sum += took;
        }
    };
    for part in numbers.chunks(scenario.workloads.div_ceil(PARTS)) {
        world.deploy(part);
        world.now.0 += 500;
        round(&mut world, &mut sums);
        for portion in 0..PORTIONS {
            let some = (0..scenario.hosts).filter(|host| host % PORTIONS == portion);
            let ((), heard) = timed(|| some.for_each(|host| world.report(host)));
            sums[4] += heard;
            world.now.0 += 500;
            round(&mut world, &mut sums);
        }
    }
    for _ in 0..10 {
        world.step();
        round(&mut world, &mut sums);
        round(&mut world, &mut sums);
    }
    let open = |one: &&WorkloadKey| {
        world
            .cluster
            .workload(one)
            .is_some_and(|one| one.record.active_rollout().is_some())
    };
    let open = world.cluster.workloads().keys().filter(open).count();
    assert_eq!(open, 0, "rollouts that have not completed");
    plans.sort();
    let [planned, checked, wrote, committed, heard] = sums.map(|sum| sum.as_secs_f64());
    let ms = |took: Duration| took.as_millis();
    format!(
        "{:?}: {} plans, {planned:.1} s in all, median {} ms, worst {} ms; check {checked:.1} s, writes {wrote:.1} s, commit {committed:.1} s, reports {heard:.1} s; {} MiB",
        scenario.kind,
        plans.len(),
        ms(plans[plans.len() / 2]),
        ms(plans[plans.len() - 1]),
        memory("VmHWM"),
    )
}
