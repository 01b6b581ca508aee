//! Silent hosts: when a replica is lost, which copy stays, and what never runs twice.

use wasmorch_api::spec::{Disconnect, Reconcile, UpdateOrder};
use wasmorch_api::units::HumanDuration;

use super::*;

fn waiting(replicas: u32, lost_after: u64, reconcile: Reconcile) -> WorkloadSpec {
    let mut wanted = spec("1", replicas);
    wanted.disconnect = Disconnect {
        lost_after: HumanDuration::secs(lost_after),
        reconcile,
        ..Disconnect::default()
    };
    wanted
}

pub(super) fn exclusive() -> WorkloadSpec {
    let mut wanted = waiting(1, 20, Reconcile::KeepOriginal);
    wanted.disconnect.stop_after = Some(HumanDuration::secs(10));
    wanted.disconnect.exclusive = true;
    wanted.update.order = UpdateOrder::StopFirst;
    wanted.update.max_surge = 0;
    wanted.update.max_unavailable = 1;
    wanted
}

impl World {
    /// Runs for so long, and tells on which hosts the workload has placements after each round.
    pub(super) fn watch(&mut self, seconds: u64, each: impl Fn(&Self)) {
        for _ in 0..seconds * 2 {
            self.round();
            each(self);
        }
    }

    pub(super) fn placed(&self) -> Vec<HostId> {
        let placements = &self.cluster.workload(&web()).unwrap().placements;
        placements
            .values()
            .map(|placed| placed.host.clone())
            .collect()
    }

    fn at(&self) -> usize {
        let at = self.placed().remove(0);
        (1..=9).find(|n| host(*n) == at).unwrap()
    }
}

/// One replica whose host was silent until it had been replaced, and has come back.
fn replaced_and_back(reconcile: Reconcile) -> (World, HostId) {
    let mut world = World::new(2);
    world.deploy(waiting(1, 10, reconcile), Kind::Http);
    world.run(6);
    let first = world.placed().remove(0);
    world.silent.insert(first.clone());
    world.watch(14, |world| {
        assert_eq!(world.placed(), vec![first.clone()], "not lost yet");
    });
    assert_eq!(world.ready(), 0, "nobody hears it");
    world.watch(4, |_| {});
    assert_eq!(world.ready(), 1);
    world.silent.remove(&first);
    world.watch(6, |world| assert_eq!(world.ready(), 1));
    (world, first)
}

#[test]
fn lost_after_is_waited_for_and_the_original_stays() {
    let (mut world, first) = replaced_and_back(Reconcile::KeepOriginal);
    assert_eq!(world.placed(), vec![first]);
    assert!(world.plan().is_empty());
}

#[test]
fn the_replacement_stays_when_told_so() {
    let (mut world, first) = replaced_and_back(Reconcile::KeepReplacement);
    assert_ne!(world.placed(), vec![first]);
    assert!(world.plan().is_empty());
}

#[test]
fn the_one_that_has_run_longer_stays() {
    let (world, first) = replaced_and_back(Reconcile::LongestRunning);
    assert_eq!(world.placed(), vec![first]);
}

#[test]
fn the_one_on_the_better_host_stays() {
    let mut world = World::new(2);
    let mut wanted = waiting(1, 10, Reconcile::BestScore);
    wanted.affinity = vec![wasmorch_api::spec::Affinity {
        label: "zone".into(),
        weight: 50,
        test: LabelTest::Eq("a".into()),
    }];
    let zone = |zone: &str| BTreeMap::from([("zone".to_owned(), zone.to_owned())]);
    world.labels.insert(host(1), zone("a"));
    world.labels.insert(host(2), zone("b"));
    world.run(1);
    world.deploy(wanted, Kind::Http);
    world.run(6);
    assert_eq!(world.placed(), vec![host(1)]);
    world.silent.insert(host(1));
    world.watch(20, |_| {});
    // Meanwhile the other host has become the better one.
    world.labels.insert(host(1), zone("b"));
    world.labels.insert(host(2), zone("a"));
    world.silent.remove(&host(1));
    world.watch(4, |world| assert_eq!(world.ready(), 1));
    assert_eq!(world.placed(), vec![host(2)]);
}

#[test]
fn without_replace_it_is_waited_for_for_ever() {
    let mut world = World::new(2);
    let mut wanted = waiting(1, 1, Reconcile::KeepOriginal);
    wanted.disconnect.replace = false;
    world.deploy(wanted, Kind::Http);
    world.run(6);
    let first = world.placed();
    world.silent.insert(first[0].clone());
    world.watch(120, |world| assert_eq!(world.placed(), first));
    world.silent.clear();
    world.watch(3, |_| {});
    assert_eq!((world.placed(), world.ready()), (first, 1));
}

#[test]
fn what_waits_for_its_host_holds_up_no_rollout() {
    let mut world = World::new(3);
    world.deploy(waiting(3, 10, Reconcile::KeepOriginal), Kind::Http);
    world.run(8);
    world.silent.insert(host(2));
    world.watch(20, |_| {});
    assert_eq!(
        (world.ready(), world.on(&host(2))),
        (3, 1),
        "and one is lost"
    );
    world.change(commands::restart, None);
    world.watch(20, |world| assert_eq!(world.ready(), 3));
    assert_eq!(world.rollout(), RolloutState::Completed);
    assert_eq!((world.placed().len(), world.on(&host(2))), (3, 0));
}

#[test]
fn an_exclusive_one_is_replaced_only_when_it_has_ended_for_certain() {
    let mut world = World::new(2);
    world.deploy(exclusive(), Kind::Service);
    world.run(8);
    let first = world.placed();
    world.silent.insert(first[0].clone());
    world.watch(24, |world| assert_eq!(world.placed(), first));
    world.watch(6, |world| assert!(world.placed().len() <= 1));
    assert_ne!(world.placed(), first);
    assert_eq!(world.ready(), 1);
    // Its set no longer holds it: nothing is left to choose.
    world.silent.clear();
    world.watch(6, |world| assert_eq!(world.placed().len(), 1));
    assert!(world.plan().is_empty());
}

#[test]
fn an_exclusive_one_moves_by_ending_first() {
    let mut world = World::new(2);
    world.deploy(exclusive(), Kind::Service);
    world.run(8);
    let at = world.at();
    world.drain(at, None);
    world.watch(5, |world| assert!(world.placed().len() <= 1));
    assert_eq!((world.at(), world.ready()), (3 - at, 1));
}

#[test]
fn a_new_leader_starts_nothing_exclusive_before_every_host_has_spoken() {
    let mut world = World::new(3);
    world.deploy(exclusive(), Kind::Service);
    world.run(8);
    let at = world.at();
    let other = if at == 1 { 2 } else { 1 };
    world.silent.insert(host(other));
    world.run(20);
    world.new_leader();
    world.drain(at, None);
    // What the silent host may have been told by a leader before, nobody knows.
    world.watch(24, |world| {
        assert!(world.placed().is_empty() || world.at() == at)
    });
    let why = why::workload(&world.cluster, &web()).unwrap();
    let fix = why["fix"][0].as_str().unwrap();
    assert!(fix.contains(&format!("host-rm h{other}")), "{why}");
    world.watch(8, |_| {});
    assert_eq!(world.ready(), 1);
    assert!(![at, other].contains(&world.at()));
}

#[test]
fn the_checker_refuses_what_would_run_twice() {
    let mut world = World::new(2);
    world.deploy(exclusive(), Kind::Service);
    world.run(8);
    let at = world.at();
    let start = wasmorch_planner::Start {
        key: web(),
        slot: wasmorch_api::Slot(1),
        placement: PlacementNumber(100),
        revision: wasmorch_api::RevisionNumber(1),
        host: host(3 - at),
        standby: false,
        args: None,
    };
    let plan = Plan {
        start: vec![start],
        ..Plan::default()
    };
    let broken = check::check(&world.cluster, &plan);
    let twice = |rule: &check::BrokenRule| matches!(rule, check::BrokenRule::Twice { .. });
    assert!(broken.iter().any(twice), "{broken:?}");
}

#[test]
fn a_host_that_keeps_a_secret_is_echoed_only_what_it_asked() {
    let mut world = World::new(1);
    world.deploy(exclusive(), Kind::Service);
    world.run(4);
    let id = host(1);
    let mut beat = world.beat(&id);
    let heard = |world: &mut World, beat: &Heartbeat| {
        let what = Observation::Heartbeat(Box::new(beat.clone()));
        let asks = world.cluster.observe(what, world.now).asks;
        asks.into_iter()
            .filter(|ask| matches!(ask, wasmorch_planner::Ask::Heard { .. }))
            .count()
    };
    assert_eq!(heard(&mut world, &beat), 0);
    beat.at = Some(Timestamp(77));
    assert_eq!(heard(&mut world, &beat), 1);
}

/// One replica, with a volume that may begin anew elsewhere.
fn keeps_nothing() -> World {
    let mut world = World::new(2);
    let mut wanted = exclusive();
    wanted.disconnect.exclusive = false;
    wasmorch_api::manifest::read_grant("volume=data:/data", &mut wanted.bindings).unwrap();
    for volume in wanted.bindings.volume.values_mut() {
        volume.on_host_loss = "new".to_owned();
    }
    world.deploy(wanted, Kind::Http);
    world.run(6);
    world
}

#[test]
fn a_volume_that_may_begin_anew_waits_for_its_host_until_that_is_lost() {
    let mut world = keeps_nothing();
    let first = world.placed();
    world.change(commands::stop, None);
    world.run(4);
    // Nothing runs there, and the data are there all the same.
    world.silent.extend(first.clone());
    world.run(16);
    world.change(commands::start, None);
    world.watch(15, |world| assert_eq!(world.placed(), []));
    world.silent.clear();
    world.run(8);
    assert_eq!((world.placed(), world.ready()), (first.clone(), 1));

    world.change(commands::stop, None);
    world.run(4);
    world.silent.extend(first.clone());
    world.change(commands::start, None);
    world.watch(24, |world| {
        assert!(world.placed().is_empty() || world.placed() == first)
    });
    world.run(20);
    assert_ne!(world.placed(), first);
    assert_eq!(world.ready(), 1);
}

#[test]
fn a_volume_that_may_begin_anew_does_so_when_its_host_is_lost() {
    let mut world = keeps_nothing();
    let first = world.placed();
    world.silent.extend(first.clone());
    // Dead after 5 s, and lost 20 s later: until then it may run behind a broken network.
    world.watch(24, |world| assert_eq!(world.placed(), first));
    world.run(16);
    let second = world.placed();
    assert_ne!(second, first);
    assert_eq!(world.ready(), 1);

    // It is at home there: the host that is back gets nothing, whatever happens.
    world.silent.clear();
    world.run(20);
    world.change(commands::restart, None);
    world.run(20);
    assert_eq!((world.placed(), world.ready()), (second, 1));
}
