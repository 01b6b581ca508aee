//! What waits for others serves on meanwhile, and can be ended.

use wasmorch_api::messages::RolloutAction;
use wasmorch_api::spec::{Replicas, Scale};
use wasmorch_api::{HumanDuration, Kind, RolloutState};
use wasmorch_planner::{check, commands, queries};

use super::deps::{key, of};
use super::{Fate, World, rollout_request};

#[test]
fn the_old_revision_serves_on_and_is_mended_while_the_new_one_is_held() {
    let mut world = World::new(3);
    world.http(&[of("web", "1", &[]), of("orders", "1", &[])], false);
    world.run(8);
    world.fate("orders", 2, Fate::Unready);
    let mut web = of("web", "2", &["orders"]);
    web.replicas = Some(Replicas::Count(3));
    let mut orders = of("orders", "2", &[]);
    orders.update.progress_deadline = HumanDuration::secs(600);
    orders.health.start_grace = HumanDuration::secs(600);
    world.http(&[web, orders], false);
    // A replica of the old one fails meanwhile: that is not the new one's fault.
    world.fate("web", 1, Fate::GivesUp);
    world.run(1);
    world.own_fates.remove(&("web".to_owned(), 1));
    // It loses a host too: the old revision takes its place.
    let placements = &world.cluster.workload(&key("web")).unwrap().placements;
    let host = placements.values().next().unwrap().host.clone();
    world.silent.insert(host);
    for _ in 0..90 {
        world.round();
        assert_eq!(world.stands("web"), (RolloutState::Rolling, 1));
        assert!(world.runs("web").iter().all(|revision| *revision == 1));
    }
    let web = world.cluster.workload(&key("web")).unwrap();
    assert_eq!(
        (queries::ready(&world.cluster, web), web.record.desired),
        (3, 3)
    );
    world.own_fates.clear();
    world.go_until("web", |world| {
        world.stands("web") == (RolloutState::Completed, 2)
    });
    assert_eq!(world.runs("web"), [2, 2, 2]);
}

#[test]
fn the_load_is_followed_while_the_new_revision_is_held() {
    let scaled = |version, on: &[&str], min, max| {
        let mut spec = of("web", version, on);
        let target = [("concurrency".to_owned(), 10)].into();
        let (window, panic) = (HumanDuration::secs(10), HumanDuration::secs(3));
        let tolerance = wasmorch_api::Share(10_000);
        spec.replicas = None;
        spec.scale = Some(Scale {
            min,
            max,
            target,
            window,
            panic,
            tolerance,
        });
        spec
    };
    let desired = |world: &World| world.record("web").desired;
    // Where both follow it the new one goes on from there; one that names a count has that.
    for (counts, ends) in [(None, 7), (Some(3), 3)] {
        let mut world = World::new(4);
        world.http(&[scaled("1", &[], 2, 12), of("orders", "1", &[])], false);
        world.run(8);
        world.fate("orders", 2, Fate::Unready);
        let mut orders = of("orders", "2", &[]);
        orders.update.progress_deadline = HumanDuration::secs(600);
        orders.health.start_grace = HumanDuration::secs(600);
        let mut web = scaled("2", &["orders"], 1, 7);
        if let Some(counts) = counts {
            (web.scale, web.replicas) = (None, Some(Replicas::Count(counts)));
        }
        world.http(&[web, orders], false);
        world.load.insert(key("web"), 100);
        world.run(40);
        assert_eq!(world.stands("web"), (RolloutState::Rolling, 1));
        assert_eq!(desired(&world), 10);
        world.own_fates.clear();
        world.go_until("web", |world| {
            world.stands("web") == (RolloutState::Completed, 2)
        });
        assert_eq!(desired(&world), ends);
        assert_eq!(world.runs("web").len() as u32, ends);
    }
    // A first one has no load while it is held, and nothing moves it.
    let mut world = World::new(2);
    world.fate("orders", 1, Fate::Unready);
    world.http(
        &[scaled("1", &["orders"], 3, 7), of("orders", "1", &[])],
        false,
    );
    world.run(12);
    assert_eq!((desired(&world), world.runs("web")), (3, vec![]));
}

#[test]
fn the_run_of_a_held_jobs_old_revision_goes_on_and_ends() {
    let mut world = World::new(2);
    let job = |version: &str, on: &[&str]| {
        let mut job = of("migrate", version, on);
        job.replicas = None;
        vec![(job, Kind::Job)]
    };
    world.deploy_all(job("1", &[]), false).unwrap();
    world.fate("orders", 1, Fate::Unready);
    world.http(&[of("orders", "1", &[])], false);
    world.run(3);
    world.deploy_all(job("2", &["orders"]), false).unwrap();
    world.run(2);
    world.fate("migrate", 1, Fate::Completes);
    world.run(4);
    assert_eq!(world.stands("migrate"), (RolloutState::Rolling, 1));
    assert_eq!(world.record("migrate").run.as_ref().unwrap().completed, 1);
    world.fate("migrate", 2, Fate::Completes);
    world.own_fates.remove(&("orders".to_owned(), 1));
    world.go_until("the new one", |world| {
        world.stands("migrate") == (RolloutState::Completed, 2)
    });
}

#[test]
fn a_held_rollout_can_be_aborted_rolled_back_and_followed_by_another() {
    let mut world = World::new(2);
    world.http(&[of("web", "1", &[]), of("orders", "1", &[])], false);
    world.run(8);
    world.fate("orders", 2, Fate::Unready);
    let held = |world: &mut World, version: &str| {
        world.http(&[of("web", version, &["orders"])], false);
        world.run(1);
    };
    world.http(&[of("orders", "2", &[])], false);
    held(&mut world, "2");
    world.rollout_of("web", RolloutAction::Abort).unwrap();
    world.run(2);
    assert_eq!(world.stands("web"), (RolloutState::Aborted, 1));
    held(&mut world, "3");
    let request = rollout_request("web", None);
    let outcome = commands::rollback(&world.cluster, &request, &world.call()).unwrap();
    assert_eq!(outcome.reply.workloads[0].revision.0, 1);
    world.store(outcome.writes);
    world.run(2);
    assert_eq!(world.stands("web"), (RolloutState::Completed, 1));
    held(&mut world, "4");
    held(&mut world, "5");
    assert_eq!(world.stands("web"), (RolloutState::Rolling, 1));
    world.own_fates.clear();
    world.go_until("web", |world| {
        world.stands("web") == (RolloutState::Completed, 5)
    });
    assert_eq!(world.runs("web"), [5, 5]);
}

/// Seed 756 of the simulator.
#[test]
fn what_was_aborted_is_not_ready_while_it_serves_on() {
    let mut world = World::new(2);
    world.http(&[of("orders", "1", &[])], false);
    world.run(8);
    let mut orders = of("orders", "2", &[]);
    (orders.update.max_surge, orders.update.max_unavailable) = (0, 2);
    orders.update.min_ready = HumanDuration::secs(600);
    orders.update.progress_deadline = HumanDuration::secs(3600);
    world.http(&[orders], false);
    world.go_until("the second", |world| world.runs("orders") == [2, 2]);
    world.run(4);
    world.fate("orders", 1, Fate::Unready);
    world.rollout_of("orders", RolloutAction::Abort).unwrap();
    assert_eq!(world.stands("orders"), (RolloutState::Aborted, 1));
    world.http(&[of("web", "1", &["orders"])], false);
    world.run(3);
    let waits = ("orders".to_owned(), "0 of 2 ready".to_owned(), false);
    assert_eq!(world.waits("web"), [waits]);
    world.own_fates.clear();
    world.go_until("both", |world| {
        world.stands("web") == (RolloutState::Completed, 1) && world.runs("orders") == [1, 1]
    });
}

#[test]
fn the_checker_refuses_what_is_held() {
    let mut world = World::new(1);
    world.fate("orders", 1, Fate::Unready);
    world.http(
        &[of("web", "1", &["orders"]), of("orders", "1", &[])],
        false,
    );
    world.run(3);
    let start = wasmorch_planner::Start {
        key: key("web"),
        slot: wasmorch_api::Slot(1),
        placement: wasmorch_api::PlacementNumber(100),
        revision: wasmorch_api::RevisionNumber(1),
        host: super::host(1),
        standby: false,
        args: None,
    };
    let plan = wasmorch_planner::Plan {
        start: vec![start],
        ..wasmorch_planner::Plan::default()
    };
    let broken = check::check(&world.cluster, &plan);
    assert!(
        broken.iter().any(|rule| rule.to_string().contains("held")),
        "{broken:?}"
    );
    assert_eq!(check::check_touched(&world.cluster, &plan), broken);
}
