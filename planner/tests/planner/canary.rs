//! Canaries, and a rollout that goes zone by zone.

use wasmorch_api::messages::RolloutAction;
use wasmorch_api::spec::{Canary, Promote};
use wasmorch_api::{EventKind, HumanDuration, Slot};

use super::*;

fn with_canary(version: &str, replicas: u32, promote: Promote) -> WorkloadSpec {
    let mut spec = spec(version, replicas);
    spec.update.canary = Some(Canary {
        replicas: 1,
        percent: Some(10),
        bake: HumanDuration::secs(5),
        promote,
    });
    spec
}

/// A first revision that has proven itself, and a second one on trial.
fn on_trial(hosts: usize, replicas: u32, promote: Promote) -> World {
    let mut world = World::new(hosts);
    world.deploy(spec("1", replicas), Kind::Http);
    world.run(8);
    world.deploy(with_canary("2", replicas, promote), Kind::Http);
    world
}

impl World {
    fn of_revision(&self, revision: u64) -> Vec<Slot> {
        let placements = self.cluster.workload(&web()).unwrap().placements.values();
        let mine = placements.filter(|placed| placed.revision.0 == revision);
        let mut slots: Vec<Slot> = mine.map(|placed| placed.slot).collect();
        slots.sort();
        slots
    }

    fn rollout_call(&mut self, action: RolloutAction) -> Result<(), wasmorch_api::ApiError> {
        let request = rollout_request("web", Some(action));
        let outcome = commands::rollout(&self.cluster, &request, &self.call())?;
        self.store(outcome.writes);
        Ok(())
    }

    fn revision(&self) -> u64 {
        self.cluster.workload(&web()).unwrap().record.revision.0
    }

    fn until(&mut self, state: RolloutState) {
        for _ in 0..100 {
            if self.rollout() == state {
                return;
            }
            self.round();
        }
        panic!("{} and never {state}", self.rollout());
    }

    fn last_said(&self, kind: EventKind) -> Option<String> {
        let events = self.plans.iter().flat_map(|plan| &plan.events);
        let mut said = events.filter(|event| event.kind == kind);
        said.next_back().map(|event| event.reason.clone())
    }
}

#[test]
fn a_canary_bakes_and_is_promoted() {
    let mut world = on_trial(3, 3, Promote::Auto);
    world.until(RolloutState::Baking);
    let baking = world.now;
    assert_eq!((world.revision(), world.ready()), (1, 3));
    assert_eq!(world.of_revision(1).len(), 3, "nobody made room for it");
    assert_eq!(world.of_revision(2), [Slot(1)]);
    world.until(RolloutState::Rolling);
    let baked = world.now.since(baking).as_millis();
    assert!((4_500..=6_500).contains(&baked), "{baked} ms");
    for _ in 0..40 {
        assert!(world.ready() >= 3);
        world.round();
    }
    assert_eq!(world.rollout(), RolloutState::Completed);
    assert_eq!((world.revision(), world.of_revision(1).len()), (2, 0));
    let said = world.last_said(EventKind::RolloutPromoted).unwrap();
    assert!(said.contains("5s"), "{said}");
    assert!(world.plan().is_empty());
}

#[test]
fn a_manual_canary_waits_for_a_person() {
    let mut world = on_trial(3, 3, Promote::Manual);
    world.run(600);
    assert_eq!(world.rollout(), RolloutState::Baking);
    assert!(world.plan().is_empty(), "nothing is left to do meanwhile");
    let view =
        queries::rollout_view(&world.cluster, world.cluster.workload(&web()).unwrap()).unwrap();
    assert_eq!((view.updated, view.ready), (1, 1));
    assert!(view.reason.unwrap().contains("rollout promote web"));
    // Lost after all that time, it is given time again.
    let at = world.cluster.workload(&web()).unwrap().placements.values();
    let at = at.filter(|placed| placed.revision.0 == 2);
    let at: Vec<HostId> = at.map(|placed| placed.host.clone()).collect();
    world.silent.insert(at[0].clone());
    world.run(30);
    assert_eq!(world.rollout(), RolloutState::Baking);
    assert_eq!(world.of_revision(2).len(), 1);
    world.rollout_call(RolloutAction::Promote).unwrap();
    world.until(RolloutState::Completed);
    assert_eq!(world.revision(), 2);
    let refused = world.rollout_call(RolloutAction::Promote).unwrap_err();
    assert!(refused.to_string().contains("no rollout"), "{refused}");
}

#[test]
fn a_bad_canary_goes_and_costs_nobody_a_replica() {
    for fate in [Fate::GivesUp, Fate::Unready] {
        let mut world = World::new(3);
        world.deploy(spec("1", 3), Kind::Http);
        world.run(8);
        world.fates.insert(2, fate);
        world.deploy(with_canary("2", 3, Promote::Auto), Kind::Http);
        for _ in 0..100 {
            world.round();
            assert_eq!((world.ready(), world.of_revision(1).len()), (3, 3));
        }
        assert_eq!(world.rollout(), RolloutState::Reverted, "{fate:?}");
        assert_eq!((world.revision(), world.of_revision(2).len()), (1, 0));
        let said = world.last_said(EventKind::RolloutReverted).unwrap();
        assert!(said.contains(&format!("{fate:?}")), "{said}");
        assert!(world.plan().is_empty());
    }
}

#[test]
fn a_canary_that_fails_while_it_bakes_is_not_promoted() {
    let mut world = on_trial(3, 2, Promote::Auto);
    world.until(RolloutState::Baking);
    world.fates.insert(2, Fate::Unready);
    world.until(RolloutState::Canary);
    world.run(300);
    assert_eq!(world.rollout(), RolloutState::Reverted);
    assert_eq!((world.revision(), world.ready()), (1, 2));
}

#[test]
fn what_is_lost_meanwhile_comes_back_as_what_was_proven() {
    let mut world = on_trial(3, 3, Promote::Manual);
    world.until(RolloutState::Baking);
    world.silent.insert(host(2));
    world.run(30);
    assert_eq!(world.of_revision(1), [Slot(1), Slot(2), Slot(3)]);
    assert_eq!(world.of_revision(2).len(), 1);
    world.change(commands::scale, Some(5));
    world.run(10);
    assert_eq!(world.of_revision(1).len(), 5);
    // Its host is emptied: the canary goes elsewhere, and so does what it stands beside.
    world.silent.clear();
    world.run(10);
    let drained = commands::drain(&world.cluster, "h1", None, world.now).unwrap();
    world.store(drained.writes);
    world.run(60);
    assert_eq!((world.on(&host(1)), world.ready()), (0, 5));
    assert_eq!(world.of_revision(2).len(), 1);
}

#[test]
fn the_one_replica_there_is_stays_beside_its_canary() {
    let mut world = on_trial(2, 1, Promote::Auto);
    world.until(RolloutState::Baking);
    assert_eq!(
        (world.of_revision(1).len(), world.of_revision(2).len()),
        (1, 1)
    );
    world.until(RolloutState::Completed);
    assert_eq!(world.of_revision(2), [Slot(1)]);
}

#[test]
fn a_person_pauses_resumes_and_aborts_a_trial() {
    let mut world = on_trial(3, 3, Promote::Auto);
    world.until(RolloutState::Baking);
    world.rollout_call(RolloutAction::Pause).unwrap();
    world.run(60);
    assert_eq!(
        (world.rollout(), world.revision()),
        (RolloutState::Paused, 1)
    );
    world.rollout_call(RolloutAction::Resume).unwrap();
    world.until(RolloutState::Baking);
    world.rollout_call(RolloutAction::Abort).unwrap();
    world.run(10);
    assert_eq!(world.rollout(), RolloutState::Aborted);
    assert_eq!(
        (world.of_revision(1).len(), world.of_revision(2).len()),
        (3, 0)
    );
}

#[test]
fn a_trial_is_gone_back_from_and_stopped() {
    let mut world = on_trial(3, 3, Promote::Manual);
    world.until(RolloutState::Baking);
    world.change(commands::stop, None);
    world.run(4);
    assert!(
        world
            .cluster
            .workload(&web())
            .unwrap()
            .placements
            .is_empty()
    );
    world.change(commands::start, None);
    world.until(RolloutState::Baking);
    let back = rollout_request("web", None);
    let outcome = commands::rollback(&world.cluster, &back, &world.call()).unwrap();
    assert_eq!(outcome.reply.workloads[0].revision.0, 1);
    world.store(outcome.writes);
    world.until(RolloutState::Completed);
    assert_eq!(
        (world.of_revision(1).len(), world.of_revision(2).len()),
        (3, 0)
    );
}

#[test]
fn the_same_deploy_again_changes_nothing_and_a_third_takes_the_trial_over() {
    let mut world = on_trial(3, 3, Promote::Manual);
    world.until(RolloutState::Baking);
    assert!(!world.deploy(with_canary("2", 3, Promote::Manual), Kind::Http));
    assert!(world.deploy(with_canary("3", 3, Promote::Auto), Kind::Http));
    world.until(RolloutState::Completed);
    assert_eq!((world.revision(), world.of_revision(3).len()), (3, 3));
}

#[test]
fn a_new_leader_goes_on_with_a_trial() {
    let mut world = on_trial(3, 3, Promote::Auto);
    world.until(RolloutState::Baking);
    let step = |world: &World| {
        let record = &world.cluster.workload(&web()).unwrap().record;
        record.rollout.clone().unwrap().canary.unwrap()
    };
    let before = step(&world);
    world.new_leader();
    world.run(4);
    assert_eq!(
        (world.rollout(), step(&world)),
        (RolloutState::Baking, before),
        "what it has not heard of does not end the bake"
    );
    world.until(RolloutState::Completed);
    assert_eq!(world.revision(), 2);
}

#[test]
fn at_zero_nothing_is_promoted_and_a_count_takes_no_time_from_a_bake() {
    let mut world = on_trial(3, 3, Promote::Auto);
    world.until(RolloutState::Baking);
    let deadline = |world: &World| {
        let record = &world.cluster.workload(&web()).unwrap().record;
        record.rollout.clone().unwrap().deadline
    };
    let before = deadline(&world);
    world.change(commands::scale, Some(2));
    assert_eq!(deadline(&world), before);
    world.change(commands::scale, Some(0));
    world.run(20);
    assert!(
        world
            .cluster
            .workload(&web())
            .unwrap()
            .placements
            .is_empty()
    );
    assert_eq!(world.revision(), 1);
    world.change(commands::scale, Some(3));
    world.until(RolloutState::Completed);
    assert_eq!((world.revision(), world.of_revision(2).len()), (2, 3));
}

#[test]
fn a_rollout_goes_host_by_host() {
    let mut world = World::new(3);
    world.deploy(spec("1", 3), Kind::Http);
    world.run(8);
    let mut next = spec("2", 3);
    next.update.by = Some("host".into());
    world.deploy(next, Kind::Http);
    world.until(RolloutState::Completed);
    assert_eq!(world.of_revision(2).len(), 3);
}

#[test]
fn gateways_are_told_the_canarys_share() {
    let mut world = on_trial(3, 3, Promote::Manual);
    world.until(RolloutState::Baking);
    world.run(2);
    let table = world
        .cluster
        .workload(&web())
        .unwrap()
        .endpoints
        .clone()
        .unwrap();
    let table = table.whole();
    assert_eq!(table.canary.unwrap().0, 2);
    let sum = |of: fn(&wasmorch_api::HostEndpoint) -> u32| table.hosts.iter().map(of).sum::<u32>();
    let (all, canary) = (sum(|host| host.weight), sum(|host| host.canary));
    assert_eq!(canary * 10, all, "a tenth");
    world.rollout_call(RolloutAction::Promote).unwrap();
    world.until(RolloutState::Completed);
    let table = world
        .cluster
        .workload(&web())
        .unwrap()
        .endpoints
        .clone()
        .unwrap();
    let table = table.whole();
    assert!(table.canary.is_none());
    assert!(
        table
            .hosts
            .iter()
            .all(|host| host.weight == host.ready && host.canary == 0)
    );
}

#[test]
fn a_rollout_goes_zone_by_zone() {
    let mut world = World::new(4);
    for n in 1..=4 {
        let zone = if n <= 2 { "a" } else { "b" };
        let labels = BTreeMap::from([("zone".to_owned(), zone.to_owned())]);
        world.labels.insert(host(n), labels);
    }
    world.run(2);
    world.deploy(spec("1", 4), Kind::Http);
    world.run(8);
    let mut next = spec("2", 4);
    next.update.by = Some("zone".into());
    world.deploy(next, Kind::Http);
    for _ in 0..60 {
        world.round();
        let placements = &world.cluster.workload(&web()).unwrap().placements;
        let on = |zone: [usize; 2], revision: u64| {
            let there = placements.values();
            let there = there.filter(|placed| placed.revision.0 == revision);
            there
                .filter(|placed| zone.map(host).contains(&placed.host))
                .count()
        };
        assert!(
            on([1, 2], 1) == 0 || on([3, 4], 2) == 0,
            "both zones at once"
        );
        assert_eq!(world.ready(), 4);
    }
    assert_eq!(world.rollout(), RolloutState::Completed);
    assert_eq!(world.of_revision(2).len(), 4);
}

#[test]
fn a_zone_without_room_is_named() {
    let mut world = World::new(2);
    for n in 1..=2 {
        let zone = if n == 1 { "a" } else { "b" };
        let labels = BTreeMap::from([("zone".to_owned(), zone.to_owned())]);
        world.labels.insert(host(n), labels);
    }
    world.run(2);
    world.deploy(spec("1", 2), Kind::Http);
    world.run(8);
    let cordoned = commands::cordon(&world.cluster, "h1", world.now).unwrap();
    world.store(cordoned.writes);
    let mut next = spec("2", 2);
    next.update.by = Some("zone".into());
    world.deploy(next, Kind::Http);
    world.run(4);
    let status = queries::status(&world.cluster, &web(), false).unwrap();
    let unplaced = status.unplaced.unwrap();
    assert!(
        unplaced
            .filtered
            .keys()
            .any(|filter| filter.contains("zone")),
        "{unplaced:?}"
    );
    world.run(300);
    assert_eq!(world.rollout(), RolloutState::Reverted);
}

#[test]
fn a_first_revision_that_serves_is_what_to_go_back_to() {
    let mut world = World::new(2);
    world.deploy(spec("1", 2), Kind::Http);
    while world.ready() < 2 {
        world.round();
    }
    assert_eq!(
        world.rollout(),
        RolloutState::Rolling,
        "not for min_ready yet"
    );
    world.fates.insert(2, Fate::GivesUp);
    world.deploy(spec("2", 2), Kind::Http);
    world.run(60);
    assert_eq!(
        (world.rollout(), world.revision()),
        (RolloutState::Reverted, 1)
    );
}

#[test]
fn no_zone_waits_for_a_host_that_takes_nothing() {
    let mut world = World::new(3);
    for n in 1..=3 {
        let labels = BTreeMap::from([("zone".to_owned(), format!("z{n}"))]);
        world.labels.insert(host(n), labels);
    }
    world.run(2);
    world.deploy(one_per_host(spec("1", 1)), Kind::Http);
    world.run(12);
    let cordoned = commands::cordon(&world.cluster, "h1", world.now).unwrap();
    world.store(cordoned.writes);
    let mut next = one_per_host(spec("2", 1));
    next.update.by = Some("zone".into());
    world.deploy(next, Kind::Http);
    world.run(40);
    assert_eq!(world.of_revision(2).len(), 2);
    assert_eq!(world.rollout(), RolloutState::Completed);
}
