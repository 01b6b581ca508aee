//! Counts that follow the load, from heartbeats to the plan.

use wasmorch_api::EventKind;
use wasmorch_api::messages::QuotaRequest;
use wasmorch_api::spec::{Replicas, Scale};
use wasmorch_api::status::{Load, WorkloadLoad};
use wasmorch_api::{HumanDuration, Share};

use super::*;

pub(super) fn scale(min: u32, max: u32) -> Scale {
    Scale {
        min,
        max,
        target: [("concurrency".to_owned(), 10)].into(),
        window: HumanDuration::secs(10),
        panic: HumanDuration::secs(3),
        tolerance: Share(10_000),
    }
}

pub(super) fn scaled(version: &str, min: u32, max: u32) -> WorkloadSpec {
    WorkloadSpec {
        replicas: None,
        scale: Some(scale(min, max)),
        ..spec(version, 1)
    }
}

impl World {
    /// What a host has in hand: its part of what all that are ready have.
    pub(super) fn loads_of(&self, id: &HostId) -> Vec<WorkloadLoad> {
        let held = self.cluster.workloads().iter().filter(|(_, workload)| {
            let mut placements = workload.placements.values();
            let scaled = workload
                .target()
                .is_some_and(|one| one.spec.scale.is_some());
            scaled && placements.any(|placed| placed.host == *id)
        });
        let loads = held.map(|(key, workload)| {
            let ready = workload.placements.iter();
            let ready = ready.filter(|(number, _)| workload.is_ready(**number));
            let hosts: Vec<&HostId> = ready.map(|(_, placed)| &placed.host).collect();
            let here = hosts.iter().filter(|host| **host == id).count() as u64;
            let all = self.load.get(key).copied().unwrap_or(0);
            WorkloadLoad {
                namespace: key.namespace.clone(),
                workload: key.name.clone(),
                load: Load {
                    in_flight: all * here / (hosts.len().max(1) as u64),
                    ..Load::default()
                },
            }
        });
        loads.filter(|_| !self.untold.contains(id)).collect()
    }

    fn count(&self) -> u32 {
        self.cluster.workload(&web()).unwrap().record.desired
    }

    /// The reasons of the changes so far, and forgets them.
    fn scaled(&mut self) -> Vec<String> {
        let plans = std::mem::take(&mut self.plans);
        let events = plans.into_iter().flat_map(|plan| plan.events);
        let scaled = events.filter(|event| event.kind == EventKind::Scaled);
        scaled.map(|event| event.reason).collect()
    }

    fn carries(&mut self, load: u64) {
        self.load.insert(web(), load);
    }
}

fn following(hosts: usize, load: u64) -> World {
    let mut world = World::new(hosts);
    world.deploy(scaled("1", 1, 20), Kind::Http);
    world.carries(load);
    world.run(60);
    world
}

#[test]
fn replicas_follow_the_load_and_say_why() {
    let mut world = following(3, 0);
    assert_eq!((world.count(), world.ready()), (1, 1));
    assert_eq!(world.scaled(), Vec::<String>::new());
    world.carries(70);
    world.run(30);
    assert_eq!((world.count(), world.ready()), (7, 7));
    let said = world.scaled();
    assert!(said.len() <= 3, "{said:?}");
    assert!(said[0].contains("requests in hand per ready replica over 3s, target 10: 1 to "));
    assert!(said[0].contains("panic"), "{said:?}");
    world.carries(15);
    world.run(80);
    assert_eq!((world.count(), world.ready()), (2, 2));
    world.run(40);
    world.scaled();
    world.run(200);
    assert_eq!(world.scaled(), Vec::<String>::new(), "it rests");
    let why = why::workload(&world.cluster, &web()).unwrap();
    let load = why["scale"].as_str().unwrap();
    assert!(load.contains("target 10: 2 wanted"), "{load}");
}

/// What the ended one told last is told by the other too: both together would ask for two again.
#[test]
fn a_load_that_is_exactly_one_replicas_keeps_one() {
    let mut world = following(3, 20);
    assert_eq!(world.count(), 2);
    world.carries(10);
    world.run(80);
    assert_eq!((world.count(), world.ready()), (1, 1));
    world.scaled();
    world.run(120);
    assert_eq!(world.scaled(), Vec::<String>::new());
}

#[test]
fn a_new_leader_lowers_nothing_before_it_has_heard_a_window() {
    let mut world = following(3, 100);
    assert_eq!(world.count(), 10);
    world.carries(0);
    world.new_leader();
    world.run(20);
    assert_eq!(world.count(), 10, "ten seconds are not over");
    world.run(60);
    assert_eq!(world.count(), 1);
}

#[test]
fn a_host_that_does_not_tell_its_load_is_not_idle() {
    let mut world = following(3, 100);
    // An earlier version: its heartbeats know no load.
    world.untold.insert(host(1));
    world.carries(0);
    world.run(100);
    assert_eq!(world.count(), 10);
    world.untold.clear();
    world.run(60);
    assert_eq!(world.count(), 1);
}

#[test]
fn what_a_host_said_before_it_fell_silent_is_no_load_for_ever() {
    let mut world = following(3, 100);
    world.carries(0);
    for n in 2..=3 {
        world.heartbeat(&host(n));
    }
    world.silent.insert(host(1));
    world.run(100);
    assert_eq!(world.count(), 1);
    // Nor of a replica that has left its host.
    let mut world = following(1, 100);
    world.carries(0);
    world.change(commands::stop, None);
    world.run(4);
    world.change(commands::start, None);
    world.run(10);
    assert_eq!(
        world.count(),
        10,
        "no load while it was stopped says nothing"
    );
    world.run(80);
    assert_eq!(world.count(), 1);
}

#[test]
fn a_persons_count_is_kept_within_the_bounds_and_goes_on_from_there() {
    let mut world = following(3, 20);
    assert_eq!(world.count(), 2);
    let request = |desired| ChangeRequest {
        workload: name("web"),
        desired: Some(desired),
        args: None,
        data: false,
        request_id: None,
        by: None,
    };
    let done = commands::scale(&world.cluster, &request(50), &world.call()).unwrap();
    assert_eq!(done.reply.desired, 20);
    let note = done.reply.note.unwrap();
    assert!(
        note.starts_with("50 is beyond 1 to 20, and its load moves it on"),
        "{note}"
    );
    world.store(done.writes);
    world.run(10);
    assert_eq!((world.count(), world.ready()), (20, 20));
    world.run(80);
    assert_eq!(world.count(), 2);
    let done = commands::scale(&world.cluster, &request(0), &world.call()).unwrap();
    assert_eq!(done.reply.desired, 1, "`stop` holds it at zero");
}

#[test]
fn a_deploy_keeps_the_count_and_other_settings_what_is_known() {
    let mut world = following(3, 100);
    assert_eq!(world.count(), 10);
    world.deploy(scaled("2", 2, 20), Kind::Http);
    world.run(60);
    assert_eq!((world.count(), world.ready()), (10, 10));
    world.deploy(scaled("3", 12, 20), Kind::Http);
    assert_eq!(world.count(), 12);
    world.run(60);
    world.deploy(scaled("4", 1, 4), Kind::Http);
    assert_eq!(world.count(), 4);
    world.run(60);
    // Raised again, it goes up at once: its load is known.
    world.deploy(scaled("5", 1, 20), Kind::Http);
    assert_eq!(world.count(), 4);
    world.run(6);
    assert!(world.count() >= 8, "{}", world.count());
    world.run(60);
    // And without `scale` it stays where it is.
    let plain = WorkloadSpec {
        scale: None,
        ..scaled("6", 1, 20)
    };
    world.deploy(plain, Kind::Http);
    world.carries(0);
    world.run(100);
    assert_eq!(world.count(), 10);
    // Back to one with bounds: within these.
    let request = RolloutRequest {
        to: Some(wasmorch_api::RevisionNumber(4)),
        ..rollout_request("web", None)
    };
    let done = commands::rollback(&world.cluster, &request, &world.call()).unwrap();
    world.store(done.writes);
    world.scaled();
    world.run(1);
    assert_eq!(world.count(), 4);
    assert_eq!(world.scaled(), ["10 to 4: scale allows 1 to 4"]);
    world.deploy(spec("7", 3), Kind::Http);
    assert_eq!(world.count(), 3, "what names `replicas` sets it");
}

#[test]
fn other_settings_wipe_nothing_that_is_known() {
    let mut world = following(3, 100);
    world.carries(50);
    world.deploy(scaled("2", 1, 19), Kind::Http);
    // Not a window has passed since, and yet a whole one is known.
    world.run(18);
    assert!(world.count() < 10, "{}", world.count());
    // Nor the panic.
    world.carries(190);
    world.run(12);
    assert_eq!(world.count(), 19);
    world.carries(20);
    world.deploy(scaled("3", 1, 20), Kind::Http);
    world.run(8);
    assert_eq!(world.count(), 19);
}

#[test]
fn what_has_no_place_is_not_driven_up() {
    let mut world = World::new(1);
    world.replicas_max = 6;
    world.deploy(scaled("1", 1, 1_000), Kind::Http);
    world.carries(100_000);
    world.run(200);
    assert_eq!(world.ready(), 6);
    assert!(world.count() <= 12, "{}", world.count());
    let before = world.count();
    world.run(100);
    assert_eq!(world.count(), before);
}

#[test]
fn a_load_that_grows_does_not_keep_a_bad_revision_alive() {
    let mut world = following(3, 50);
    world.fates.insert(2, Fate::Unready);
    world.deploy(scaled("2", 1, 40), Kind::Http);
    for more in 0..80 {
        world.carries(50 + 3 * more);
        world.run(4);
    }
    assert_eq!(world.rollout(), RolloutState::Reverted);
    assert_eq!(world.count(), 20, "the most that the one before allows");
}

#[test]
fn a_quota_holds_as_for_a_person() {
    let mut world = World::new(3);
    world.limit(None, Some(9));
    let mut other = scaled("1", 1, 20);
    other.name = name("other");
    let other_key = WorkloadKey::new(name("default"), name("other"));
    world.deploy(scaled("1", 1, 20), Kind::Http);
    world.deploy(other, Kind::Http);
    world.carries(200);
    world.load.insert(other_key.clone(), 200);
    world.run(60);
    let others = world.cluster.workload(&other_key).unwrap().record.desired;
    assert_eq!(world.count() + others, 9, "{} and {others}", world.count());
    let status = queries::status(&world.cluster, &web(), false).unwrap();
    assert!(status.unplaced.is_none(), "{:?}", status.unplaced);
    assert!(world.scaled().iter().any(|said| said.contains("quota")));
    let shown = commands::quota(&world.cluster, &QuotaRequest::default(), &world.call()).unwrap();
    assert_eq!(shown.reply.used.replicas, Some(9));
}

#[test]
fn a_count_moves_at_most_once_in_two_seconds() {
    let mut world = following(3, 0);
    world.carries(200);
    world.scaled();
    // Four rounds of half a second, and the tick that ends them.
    world.run(4);
    assert_eq!(world.scaled().len(), 1);
    world.run(60);
    assert_eq!(world.count(), 20);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    /// Whatever the load and the hosts do: within the bounds, and at rest as many as needed. Each plan
    /// is the one made from scratch (`World::plan` asserts it).
    #[test]
    fn any_load_is_followed_within_the_bounds(
        steps in prop::collection::vec((0u64..400, 1usize..30, 0u8..8), 1..8),
    ) {
        let mut world = World::new(4);
        world.deploy(scaled("1", 2, 15), Kind::Http);
        for (load, rounds, what) in steps {
            world.carries(load);
            match what {
                0 => { world.silent.insert(host(1)); }
                1 => world.silent.clear(),
                2 => world.new_leader(),
                3 => { world.deploy(scaled(&load.to_string(), 2, 15), Kind::Http); }
                4 => world.change(commands::scale, Some(load as u32)),
                _ => {}
            }
            for _ in 0..rounds {
                world.round();
                prop_assert!((2..=15).contains(&world.count()), "{}", world.count());
            }
        }
        world.silent.clear();
        world.run(160);
        let load = world.load[&web()];
        let needed = load.div_ceil(10).clamp(2, 15) as u32;
        let desired = world.count();
        // Each of the four hosts rounds its part down.
        let bears = u64::from(desired) * 11 + 3 >= load;
        prop_assert!(desired == needed || desired < needed && bears, "{desired} for {load}");
        prop_assert_eq!(world.ready(), desired);
        world.scaled();
        world.run(60);
        prop_assert_eq!(world.scaled(), Vec::<String>::new());
    }
}

#[test]
fn a_spec_that_names_no_count_starts_at_the_least() {
    let mut world = World::new(2);
    world.deploy(scaled("1", 3, 9), Kind::Http);
    assert_eq!(world.count(), 3);
    // A workload that was there goes on from its count.
    let mut world = World::new(2);
    let mut plain = spec("1", 5);
    plain.replicas = Some(Replicas::Count(5));
    world.deploy(plain, Kind::Http);
    world.run(6);
    world.deploy(scaled("1", 3, 9), Kind::Http);
    assert_eq!(world.count(), 5);
}
