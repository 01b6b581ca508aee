//! `replicas = "per-host"`: one on every host.

use std::time::Duration;

use wasmorch_api::EventKind;

use super::*;

impl World {
    /// How many replicas each host has of `web`, by the hosts' numbers.
    fn spread(&self) -> Vec<usize> {
        let hosts = 1..=self.seqs.len();
        hosts.map(|n| self.on(&host(n))).collect()
    }

    pub(super) fn desired(&self) -> (u32, u32) {
        let summary = queries::list(&self.cluster, None).remove(0);
        (summary.ready, summary.desired)
    }

    fn cordon(&mut self, n: usize, cordon: bool) {
        self.busy(&Busy::Cordon(n as u8, cordon));
    }
}

#[test]
fn one_on_every_host_follows_the_hosts() {
    let mut world = World::new(3);
    world.deploy(one_per_host(spec("1", 1)), Kind::Http);
    world.run(6);
    assert_eq!(world.spread(), [1, 1, 1]);
    assert_eq!(world.desired(), (3, 3));
    assert_eq!(world.state(), WorkloadState::Ready);
    assert_eq!(world.rollout(), RolloutState::Completed);
    assert!(world.plan().is_empty());

    // One joins.
    world.seqs.insert(host(4), 0);
    world.run(4);
    assert_eq!((world.spread(), world.desired()), (vec![1; 4], (4, 4)));

    // One falls silent: nobody takes its place, and it goes on where it is when it returns.
    let before = world.cluster.workload(&web()).unwrap().placements.clone();
    world.silent.insert(host(2));
    world.run(14);
    assert_eq!(world.cluster.hosts()[&host(2)].state, HostState::Dead);
    assert_eq!((world.spread(), world.desired()), (vec![1; 4], (3, 3)));
    assert!(world.plan().is_empty());
    world.silent.clear();
    world.run(4);
    assert_eq!(world.desired(), (4, 4));
    assert_eq!(world.cluster.workload(&web()).unwrap().placements, before);

    // A cordoned host keeps the one that it has, and one that joins cordoned gets none.
    world.cordon(1, true);
    world.seqs.insert(host(5), 0);
    world.round();
    world.cordon(5, true);
    world.run(4);
    let joined = world.on(&host(5));
    assert_eq!(
        (world.desired(), world.on(&host(1))),
        ((4 + joined as u32, 4 + joined as u32), 1)
    );

    // One is removed for good.
    world.silent.insert(host(3));
    world.run(14);
    world.busy(&Busy::HostRm(3));
    world.seqs.remove(&host(3));
    world.run(4);
    let placements = &world.cluster.workload(&web()).unwrap().placements;
    assert!(placements.values().all(|placed| placed.host != host(3)));

    // One that is labelled away loses its replica.
    world.change(commands::stop, None);
    world.run(3);
    assert!(
        world
            .cluster
            .workload(&web())
            .unwrap()
            .placements
            .is_empty()
    );
    world.change(commands::start, None);
    world.run(6);
    assert_eq!(world.on(&host(1)), 0, "cordoned: nothing new");
    assert_eq!(world.on(&host(2)), 1);
}

#[test]
fn one_on_every_host_is_updated_in_place_and_a_cordoned_host_holds_nothing_up() {
    let mut world = World::new(3);
    world.deploy(one_per_host(spec("1", 1)), Kind::Http);
    world.run(6);
    world.cordon(2, true);
    world.deploy(one_per_host(spec("2", 1)), Kind::Http);
    for _ in 0..30 {
        world.round();
        let there = world.spread();
        assert!(there.iter().all(|count| *count <= 1), "{there:?}");
        assert!(world.ready() >= 2, "max_unavailable is 1");
    }
    assert_eq!(world.rollout(), RolloutState::Completed);
    let revision_on = |world: &World, n: usize| {
        let placements = &world.cluster.workload(&web()).unwrap().placements;
        let mut on = placements.values().filter(|placed| placed.host == host(n));
        on.next().map(|placed| placed.revision.0)
    };
    assert_eq!(
        revision_on(&world, 2),
        Some(1),
        "nothing new on a cordoned host"
    );
    world.cordon(2, false);
    world.run(6);
    assert_eq!(revision_on(&world, 2), Some(2));
    assert_eq!((world.desired(), world.plan().is_empty()), ((3, 3), true));
}

#[test]
fn one_on_every_host_fails_and_reverts_like_any_other() {
    let mut world = World::new(3);
    world.deploy(one_per_host(spec("1", 1)), Kind::Http);
    world.run(6);
    world.fates.insert(2, Fate::GivesUp);
    world.deploy(one_per_host(spec("2", 1)), Kind::Http);
    world.run(40);
    assert_eq!(world.rollout(), RolloutState::Reverted);
    assert_eq!((world.desired(), world.spread()), ((3, 3), vec![1; 3]));
}

#[test]
fn from_so_many_to_one_on_every_host_and_back() {
    let mut world = World::new(3);
    world.deploy(spec("1", 5), Kind::Http);
    world.run(6);
    world.deploy(one_per_host(spec("1", 5)), Kind::Http);
    world.run(20);
    assert_eq!((world.desired(), world.spread()), ((3, 3), vec![1; 3]));
    let request = ChangeRequest {
        workload: name("web"),
        desired: Some(7),
        args: None,
        data: false,
        request_id: None,
        by: None,
    };
    let refusal = commands::scale(&world.cluster, &request, &world.call()).unwrap_err();
    assert!(
        refusal.what.contains("one replica on every host"),
        "{refusal:?}"
    );
    world.deploy(spec("1", 4), Kind::Http);
    world.run(20);
    assert_eq!(world.desired(), (4, 4));
}

#[test]
fn one_on_every_host_says_which_host_has_no_room() {
    let mut world = World::new(2);
    world.replicas_max = 1;
    let mut other = shaped(0, 1, 1, 0);
    other.constraints = vec![Constraint::Label {
        label: "host".into(),
        test: LabelTest::Eq("h1".into()),
    }];
    world.deploy(other, Kind::Http);
    world.run(6);
    world.deploy(one_per_host(spec("1", 1)), Kind::Http);
    world.run(4);
    let status = queries::status(&world.cluster, &web(), false).unwrap();
    assert_eq!((status.summary.ready, status.summary.desired), (1, 2));
    let unplaced = status.unplaced.unwrap();
    assert_eq!(unplaced.slots, 1);
    assert_eq!(unplaced.fix[0], "free 1 replicas on h1, or add a host");
    world.ask(0, None, commands::rm);
    world.run(6);
    assert_eq!((world.ready(), world.state()), (2, WorkloadState::Ready));
}

#[test]
fn a_rollout_waits_for_the_old_one_on_a_drained_host_until_it_ends() {
    let on_drain = |deadline: Option<Duration>| {
        let mut world = World::new(3);
        let of = |version: &str| {
            let mut wanted = one_per_host(spec(version, 1));
            wanted.min_available = 3;
            wanted.update.progress_deadline = wasmorch_api::HumanDuration::secs(10);
            wanted
        };
        world.deploy(of("1"), Kind::Http);
        world.run(8);
        world.drain(1, deadline);
        world.deploy(of("2"), Kind::Http);
        world
    };
    // Far beyond the rollout's own patience it is neither complete nor late.
    let mut world = on_drain(Some(Duration::from_secs(60)));
    for _ in 0..100 {
        world.round();
        // `min_available` holds it back.
        let standing = (world.rollout(), world.on(&host(1)));
        assert_eq!(standing, (RolloutState::Rolling, 1));
    }
    world.run(30);
    assert_eq!(
        (world.rollout(), world.on(&host(1)), world.ready()),
        (RolloutState::Completed, 0, 2)
    );

    // Nothing ends it: the rollout waits its own time for it, and says what it leaves.
    let mut world = on_drain(None);
    world.run(16);
    assert_eq!(world.rollout(), RolloutState::Rolling);
    world.run(30);
    assert_eq!(
        (world.rollout(), world.on(&host(1))),
        (RolloutState::Completed, 1)
    );
    let mut events = world.plans.iter().flat_map(|plan| &plan.events);
    let said = events.rfind(|event| event.kind == EventKind::RolloutCompleted);
    assert_eq!(
        said.unwrap().reason,
        "every slot runs revision 2; h1, which is drained, still serves what was before"
    );
}

/// What is started anew is as old as another revision.
#[test]
fn a_restart_waits_for_what_a_drain_leaves_as_well() {
    let mut world = World::new(3);
    let mut wanted = one_per_host(spec("1", 1));
    wanted.min_available = 3;
    world.deploy(wanted, Kind::Http);
    world.run(8);
    world.drain(1, Some(Duration::from_secs(30)));
    world.change(commands::restart, None);
    world.run(40);
    assert_eq!(
        (world.rollout(), world.on(&host(1))),
        (RolloutState::Rolling, 1)
    );
    world.run(40);
    assert_eq!(
        (world.rollout(), world.on(&host(1))),
        (RolloutState::Completed, 0)
    );
}
