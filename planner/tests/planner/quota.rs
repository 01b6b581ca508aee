//! Quotas: what is refused, what waits, and what counts.

use wasmorch_api::ErrorCode;
use wasmorch_api::messages::QuotaRequest;

use super::*;

impl World {
    /// Sets these limits alone.
    pub(super) fn limit(&mut self, memory: Option<u64>, replicas: Option<u64>) {
        let request = QuotaRequest {
            memory_bytes: memory,
            replicas,
            clear: true,
            ..QuotaRequest::default()
        };
        let outcome = commands::quota(&self.cluster, &request, &self.call()).unwrap();
        self.store(outcome.writes);
    }

    fn used(&self) -> (u64, u64) {
        let shown = commands::quota(&self.cluster, &QuotaRequest::default(), &self.call()).unwrap();
        assert!(shown.writes.is_empty(), "only shown");
        let used = shown.reply.used;
        (used.memory_bytes.unwrap(), used.replicas.unwrap())
    }

    fn refused(&self, spec: WorkloadSpec, kind: Kind) -> Option<wasmorch_api::ApiError> {
        let input = DeployInput {
            workloads: vec![(spec, kind)],
            if_index: None,
            ..DeployInput::default()
        };
        commands::deploy(&self.cluster, &input, &self.call()).err()
    }
}

#[test]
fn what_asks_for_more_is_refused_with_what_would_pass() {
    let mut world = World::new(2);
    world.limit(Some(5 << 20), None);
    world.deploy(spec("1", 3), Kind::Http);
    world.run(6);
    assert_eq!((world.ready(), world.used()), (3, (3 << 20, 3)));
    let refusal = commands::scale(
        &world.cluster,
        &ChangeRequest {
            workload: name("web"),
            desired: Some(9),
            args: None,
            data: false,
            request_id: None,
            by: None,
        },
        &world.call(),
    )
    .unwrap_err();
    assert_eq!(refusal.code, ErrorCode::Denied);
    assert_eq!(refusal.what, "namespace default would go beyond its quota");
    assert_eq!(
        refusal.why,
        "9.0 MiB would be asked for in all, 5.0 MiB are allowed"
    );
    assert!(
        refusal
            .fix
            .contains("`wasmorch quota -n default --memory 9MiB`"),
        "{}",
        refusal.fix
    );
    let mut other = spec("1", 3);
    other.name = name("other");
    assert!(world.refused(other.clone(), Kind::Http).is_some());
    other.replicas = Some(Replicas::Count(2));
    assert!(world.deploy(other, Kind::Http));
    world.run(6);
    assert_eq!(world.used(), (5 << 20, 5));
    // Another namespace has its own.
    let key = wasmorch_api::subjects::key::namespace(&name("default"));
    assert!(world.store.contains_key(&key));
    world.limit(None, None);
    assert!(!world.store.contains_key(&key), "no limit is no record");
}

#[test]
fn a_roll_within_a_full_quota_goes_on() {
    let mut world = World::new(2);
    world.limit(None, Some(3));
    world.deploy(spec("1", 3), Kind::Http);
    world.run(6);
    world.deploy(spec("2", 3), Kind::Http);
    for _ in 0..30 {
        world.round();
        assert_eq!(world.ready(), 3);
    }
    assert_eq!(world.rollout(), RolloutState::Completed);
}

#[test]
fn what_grows_by_itself_waits_for_room() {
    let mut world = World::new(2);
    world.limit(None, Some(2));
    world.deploy(one_per_host(spec("1", 1)), Kind::Http);
    world.run(6);
    assert_eq!(world.ready(), 2);
    world.seqs.insert(host(3), 0);
    world.run(4);
    let status = queries::status(&world.cluster, &web(), false).unwrap();
    assert_eq!((status.summary.ready, status.summary.desired), (2, 3));
    let unplaced = status.unplaced.unwrap();
    assert_eq!((unplaced.slots, unplaced.lacking["replicas"]), (1, 1));
    assert!(
        unplaced
            .filtered
            .contains_key("quota of namespace default (replicas)"),
        "{unplaced:?}"
    );
    assert!(
        unplaced.fix[0].contains("wasmorch quota -n default --replicas 3"),
        "{unplaced:?}"
    );
    world.limit(None, Some(3));
    world.run(4);
    assert_eq!(world.ready(), 3);
}

#[test]
fn a_lowered_quota_stops_nothing_and_places_nothing_again() {
    let mut world = World::new(2);
    world.deploy(spec("1", 4), Kind::Http);
    world.run(6);
    world.limit(None, Some(3));
    world.run(4);
    assert_eq!(world.ready(), 4);
    // Fewer is always possible.
    world.change(commands::scale, Some(4));
    world.silent.insert(host(2));
    world.run(16);
    // Two of four are lost. One of them is placed again; with the other it would be more than three.
    assert_eq!(world.ready(), 3);
    world.limit(None, None);
    world.run(6);
    assert_eq!(world.ready(), 4);
}

#[test]
fn the_checker_keeps_quotas() {
    let mut world = World::new(2);
    world.deploy(spec("1", 2), Kind::Http);
    world.run(6);
    world.limit(Some(2 << 20), None);
    let start = |slot: u64| wasmorch_planner::Start {
        key: web(),
        slot: wasmorch_api::Slot(slot),
        placement: PlacementNumber(100),
        revision: wasmorch_api::RevisionNumber(1),
        host: host(1),
        standby: false,
        args: None,
    };
    let broken = |slot: u64| {
        let plan = Plan {
            start: vec![start(slot)],
            ..Plan::default()
        };
        let broken = check::check(&world.cluster, &plan);
        assert_eq!(check::check_touched(&world.cluster, &plan), broken);
        let over = broken
            .iter()
            .filter(|rule| matches!(rule, check::BrokenRule::OverQuota { .. }));
        over.count()
    };
    assert_eq!(
        (broken(1), broken(3)),
        (0, 1),
        "a successor passes, another slot does not"
    );
}
