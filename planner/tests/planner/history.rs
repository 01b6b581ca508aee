//! Whatever users, hosts and leaders do.

use super::*;

#[derive(Debug, Clone)]
enum Step {
    Deploy(u8, u8),
    Scale(u8),
    Stop,
    Start,
    Restart,
    Rollback,
    Silence(u8),
    Speak(u8),
    NewLeader,
    Fate(u8, u8),
    Rounds(u8),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        (1..5u8, 0..6u8).prop_map(|(v, n)| Step::Deploy(v, n)),
        (0..8u8).prop_map(Step::Scale),
        Just(Step::Stop),
        Just(Step::Start),
        Just(Step::Restart),
        Just(Step::Rollback),
        (1..4u8).prop_map(Step::Silence),
        (1..4u8).prop_map(Step::Speak),
        Just(Step::NewLeader),
        (1..6u8, 0..3u8).prop_map(|(r, f)| Step::Fate(r, f)),
        (1..15u8).prop_map(Step::Rounds),
    ];
    prop::collection::vec(step, 1..25)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    /// Whatever users, hosts and leaders do: every plan passes the checker (`World::plan` asserts
    /// it), and once all is well again the cluster converges to what is wanted.
    #[test]
    fn any_history_is_safe_and_converges(steps in steps()) {
        let mut world = World::new(3);
        world.deploy(spec("0", 2), Kind::Http);
        let ignore_refusal = |world: &mut World, command: fn(&Cluster, &ChangeRequest, &Call) -> _, desired| {
            let request = ChangeRequest { workload: name("web"), desired, args: None, data: false, request_id: None, by: None };
            let outcome: Result<commands::Outcome<wasmorch_api::messages::ChangeReply>, wasmorch_api::ApiError> = command(&world.cluster, &request, &world.call());
            if let Ok(outcome) = outcome { world.store(outcome.writes) }
        };
        for step in steps {
            match step {
                Step::Deploy(version, count) => { world.deploy(spec(&version.to_string(), u32::from(count)), Kind::Http); }
                Step::Scale(count) => ignore_refusal(&mut world, commands::scale, Some(u32::from(count))),
                Step::Stop => ignore_refusal(&mut world, commands::stop, None),
                Step::Start => ignore_refusal(&mut world, commands::start, None),
                Step::Restart => ignore_refusal(&mut world, commands::restart, None),
                Step::Rollback => {
                    let request = RolloutRequest { workload: name("web"), to: None, action: None, request_id: None, by: None };
                    if let Ok(outcome) = commands::rollback(&world.cluster, &request, &world.call()) { world.store(outcome.writes) }
                }
                Step::Silence(n) => { world.silent.insert(host(n as usize)); }
                Step::Speak(n) => { world.silent.remove(&host(n as usize)); }
                Step::NewLeader => world.new_leader(),
                Step::Fate(revision, fate) => {
                    let fate = [Fate::Ready, Fate::Unready, Fate::GivesUp][fate as usize];
                    world.fates.insert(u64::from(revision), fate);
                }
                Step::Rounds(rounds) => world.run(rounds as usize),
            }
        }
        world.silent.clear();
        world.fates.clear();
        // Longest wait: a crash loop's backoff of five minutes.
        world.oracle = false;
        world.run(900);
        let workload = world.cluster.workload(&web()).unwrap();
        let wanted = workload.record.wanted();
        prop_assert_eq!(queries::ready(&world.cluster, workload), wanted);
        prop_assert_eq!(workload.placements.len() as u32, wanted);
        let plan = world.plan();
        prop_assert!(plan.is_empty(), "{:#?}", plan);
    }
}
