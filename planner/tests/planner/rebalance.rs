//! Replicas that do better on a host that has joined.

use wasmorch_api::messages::MoveView;
use wasmorch_api::spec::UpdateOrder;

use super::*;

impl World {
    fn rebalance(&mut self, most: u32) -> Vec<MoveView> {
        let outcome = commands::rebalance(&self.cluster, Some(most), None, self.now).unwrap();
        let moves = outcome.reply.moves;
        self.store(outcome.writes);
        moves
    }

    fn join(&mut self, n: usize) {
        self.seqs.insert(host(n), 0);
        self.run(2);
    }

    /// Placements of every workload on a host.
    fn all_on(&self, n: usize) -> usize {
        let placed = self.cluster.workloads().values();
        let placed = placed.flat_map(|workload| workload.placements.values());
        placed.filter(|placed| placed.host == host(n)).count()
    }
}

#[test]
fn a_new_host_takes_its_share_start_first() {
    let mut world = World::new(2);
    world.deploy(spec("1", 6), Kind::Http);
    world.run(8);
    assert_eq!(world.rebalance(10), [], "all is even");
    world.join(3);
    let moves = world.rebalance(10);
    assert_eq!(moves.len(), 2, "{moves:?}");
    for one in &moves {
        assert_eq!(
            (one.workload.as_str(), one.to.as_str()),
            ("default/web", "h3")
        );
        assert!(one.why.starts_with("spread over host"), "{}", one.why);
    }
    for _ in 0..12 {
        world.round();
        assert_eq!(world.ready(), 6);
        let placed = world.cluster.workload(&web()).unwrap().placements.len();
        assert!(placed <= 7, "desired + surge");
    }
    assert_eq!(
        (1..=3).map(|n| world.on(&host(n))).collect::<Vec<_>>(),
        [2, 2, 2]
    );
    assert_eq!(world.cluster.workload(&web()).unwrap().record.moves, []);
    assert_eq!(world.rebalance(10), []);
    assert!(world.plan().is_empty());
}

#[test]
fn load_evens_out_one_replica_of_each_workload() {
    let mut world = World::new(1);
    for n in 0..6 {
        world.deploy(shaped(n, 1, 1, 0), Kind::Http);
    }
    world.run(8);
    world.join(2);
    let moves = world.rebalance(2);
    assert_eq!(moves.len(), 2, "no more than asked for");
    world.run(6);
    assert_eq!((world.all_on(1), world.all_on(2)), (4, 2));
    let moves = world.rebalance(100);
    assert_eq!(moves.len(), 1, "{moves:?}");
    assert!(moves[0].why.starts_with("load: h1 is "), "{}", moves[0].why);
    world.run(6);
    assert_eq!((world.all_on(1), world.all_on(2)), (3, 3));
    assert_eq!(world.rebalance(100), []);
}

#[test]
fn what_must_stop_first_or_moves_already_stays() {
    let mut world = World::new(1);
    let mut wanted = spec("1", 4);
    wanted.update.order = UpdateOrder::StopFirst;
    wanted.update.max_surge = 0;
    wanted.update.max_unavailable = 1;
    world.deploy(wanted, Kind::Http);
    world.run(8);
    world.join(2);
    assert_eq!(world.rebalance(10), []);
    assert_eq!(world.rebalance(0), []);
    let refused = commands::rebalance(&world.cluster, None, None, world.now);
    assert!(refused.is_err());
}

#[test]
fn a_move_that_cannot_be_made_is_given_up() {
    let mut world = World::new(2);
    world.deploy(spec("1", 6), Kind::Http);
    world.run(8);
    world.join(3);
    assert_eq!(world.rebalance(10).len(), 2);
    let outcome = commands::cordon(&world.cluster, "h3", world.now).unwrap();
    world.store(outcome.writes);
    world.run(10);
    assert_eq!(world.cluster.workload(&web()).unwrap().record.moves, []);
    assert_eq!((world.on(&host(3)), world.ready()), (0, 6));

    // A successor that never comes to life: what serves stays.
    let outcome = commands::uncordon(&world.cluster, "h3", world.now).unwrap();
    world.store(outcome.writes);
    assert_eq!(world.rebalance(1).len(), 1);
    world.round();
    world.silent.insert(host(3));
    for _ in 0..40 {
        world.round();
        assert!(world.ready() >= 6);
    }
    assert_eq!(world.cluster.workload(&web()).unwrap().record.moves, []);
    assert_eq!(world.on(&host(1)) + world.on(&host(2)), 6);
}

#[test]
fn what_one_question_does_not_come_to_the_next_one_does() {
    let mut world = World::new(2);
    for n in 1..=4 {
        world.deploy(shaped(n, 1, 4, 0), Kind::Http);
    }
    world.run(8);
    world.join(3);
    // Room for two looks at all hosts.
    let (looks, mut cursor, mut moves, mut asked) = (6, None::<String>, Vec::new(), 0);
    loop {
        let outcome = commands::rebalance_within(
            &world.cluster,
            Some(100),
            cursor.as_deref(),
            looks,
            world.now,
        );
        let outcome = outcome.unwrap();
        world.store(outcome.writes);
        moves.extend(outcome.reply.moves);
        asked += 1;
        let next = outcome.reply.next;
        assert!(next.is_none() || next != cursor || asked == 1, "{next:?}");
        if next.is_none() {
            break;
        }
        cursor = next;
        assert!(asked < 50, "{cursor:?}");
    }
    let of: BTreeSet<&str> = moves.iter().map(|one| one.workload.as_str()).collect();
    assert_eq!(
        of.len(),
        4,
        "all have been looked at, in {asked} questions: {moves:?}"
    );
    assert!(asked > 2, "{asked}");
    // What one question has moved the next one takes for moved, and looks at the others beside it.
    let slots: BTreeSet<_> = moves.iter().map(|one| (&one.workload, one.slot)).collect();
    assert_eq!(slots.len(), moves.len(), "none moves twice: {moves:?}");
    let from_full = |name: &str| moves.iter().filter(|one| one.from.as_str() == name).count();
    assert!(from_full("h1") >= 2 && from_full("h2") >= 2, "{moves:?}");
    world.run(40);
    assert_eq!(world.rebalance(100), [], "the pages together are all");
    let refused = commands::rebalance(&world.cluster, Some(1), Some("spread/h1"), world.now);
    assert_eq!(refused.unwrap_err().code, wasmorch_api::ErrorCode::Invalid);
}
