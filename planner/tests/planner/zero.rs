//! To zero and back: who rests, what gateways are told of it, and what a request that wakes one changes.

use wasmorch_api::spec::{Subscription, UpdateOrder};
use wasmorch_api::{ByteSize, EventKind, HostEndpoint, HumanDuration, PlacementNumber};
use wasmorch_planner::Placed;

use super::autoscale::scaled;
use super::*;

impl World {
    /// A request for a workload comes to a host on which it rests.
    pub(super) fn wake(&mut self, workload: &Name, host: &HostId) {
        let key = WorkloadKey::new(name("default"), workload.clone());
        let Some(known) = self.cluster.workload(&key) else {
            return;
        };
        let mut placed = known.placements.iter();
        let rests = placed.find(|(_, placed)| placed.standby && placed.host == *host);
        if let Some((number, _)) = rests {
            self.woken.insert((key, *number));
        }
    }

    /// Who rests, and who does not, as `slot@host`.
    fn standing(&self) -> (Vec<String>, Vec<String>) {
        let placements = &self.cluster.workload(&web()).unwrap().placements;
        let say = |rests: bool| {
            let placed = placements.values().filter(move |one| one.standby == rests);
            placed
                .map(|one| format!("{}@{}", one.slot, one.host))
                .collect()
        };
        (say(true), say(false))
    }

    /// How many are ready on each host, and the slot that rests there, the lowest first.
    fn endpoints(&self) -> Vec<(u32, u64)> {
        let table = self.cluster.workload(&web()).unwrap().endpoints.as_ref();
        let table = table.unwrap().whole();
        let hosts = table.hosts.iter();
        let slot = |host: &HostEndpoint| host.standby.map_or(0, |slot| slot.0);
        let mut hosts: Vec<_> = hosts.map(|host| (host.ready, slot(host))).collect();
        hosts.sort_unstable();
        hosts
    }

    fn reasons_of(&mut self, kind: EventKind) -> Vec<String> {
        let plans = std::mem::take(&mut self.plans);
        let events = plans.into_iter().flat_map(|plan| plan.events);
        let said = events.filter(|event| event.kind == kind);
        said.map(|event| event.reason).collect()
    }
}

/// Deployed, proven, and then asked for nothing.
fn at_zero(hosts: usize) -> World {
    let mut world = World::new(hosts);
    world.deploy(scaled("1", 0, 20), Kind::Http);
    world.run(10);
    assert_eq!((world.ready(), world.state()), (1, WorkloadState::Ready));
    world.run(40);
    world
}

#[test]
fn what_nobody_asks_for_rests_on_two_hosts_and_gateways_know_where() {
    let mut world = at_zero(3);
    assert_eq!((world.ready(), world.state()), (0, WorkloadState::Idle));
    let (rest, run) = world.standing();
    assert_eq!((rest.len(), run.len()), (2, 0), "{rest:?} {run:?}");
    assert_eq!(world.endpoints(), [(0, 1), (0, 2)]);
    insta::assert_snapshot!(
        world.reasons_of(EventKind::Scaled).join("\n"),
        @"0 requests in hand per ready replica over 10s, target 10: 1 to 0"
    );
    // Nothing more happens, and a new leader changes nothing.
    let before = world.standing();
    world.run(10);
    world.new_leader();
    world.run(40);
    assert_eq!(world.standing(), before);
    assert!(world.plans.iter().all(|plan| plan.shift.is_empty()));
}

/// Between running and resting nobody is there: what comes on a plain subject then would be lost.
#[test]
fn one_listens_while_another_lies_down() {
    let plain = |max: u32| {
        let mut spec = scaled("1", 0, max);
        spec.bindings.subscribe = vec![Subscription {
            subject: "asks".into(),
            ..Subscription::default()
        }];
        spec
    };
    let mut world = World::new(3);
    world.deploy(plain(20), Kind::Messages);
    let (mut shared, mut proven) = (0, false);
    for _ in 0..50 {
        world.run(1);
        let workload = world.cluster.workload(&web()).unwrap();
        let listens = |number: &PlacementNumber, placed: &Placed| {
            let report = workload.reports.get(number);
            report.is_some_and(|known| {
                let (status, told) = (&known.status, placed.standby);
                if told { status.listens } else { status.ready }
            })
        };
        let placements = &workload.placements;
        let count = placements.iter().filter(|(n, one)| listens(n, one)).count();
        let (rest, run) = world.standing();
        assert!(
            count > 0 || !proven,
            "nobody listens: {rest:?} rest, {run:?} run"
        );
        proven |= count > 0;
        shared += usize::from(!rest.is_empty() && !run.is_empty());
    }
    assert!(shared > 0, "they went one after the other");
    assert_eq!(
        (world.standing().0.len(), world.state()),
        (2, WorkloadState::Idle)
    );

    // Where there is room for one only, it does not lie down: nobody would listen meanwhile.
    let mut large = plain(20);
    large.resources.reserve.memory = ByteSize::mib(700);
    let mut kept = large.clone();
    kept.bindings.subscribe[0].stream = Some("ASKS".into());
    // What a stream keeps waits there.
    for (spec, runs) in [(large, 1), (kept, 0)] {
        let mut world = World::new(1);
        world.deploy(spec, Kind::Messages);
        world.run(60);
        let (rest, run) = world.standing();
        assert_eq!(
            (rest.len(), run.len()),
            (1 - runs, runs),
            "{rest:?} {run:?}"
        );
    }
}

#[test]
fn a_request_wakes_one_and_the_count_follows() {
    let mut world = at_zero(3);
    let (rest, _) = world.standing();
    let first = rest[0].split_once('@').unwrap().1.parse().unwrap();
    world.plans.clear();
    world.wake(&name("web"), &first);
    world.run(6);
    assert_eq!((world.ready(), world.state()), (1, WorkloadState::Ready));
    let (rest, run) = world.standing();
    assert_eq!((rest.len(), run.len()), (0, 1), "{rest:?} {run:?}");
    assert_eq!(world.endpoints(), [(1, 0)]);
    let said = world.reasons_of(EventKind::Scaled);
    assert_eq!(said, [format!("0 to 1: a request woke it on {first}")]);
    // It stays for a window, and goes back to rest with another beside it.
    world.run(10);
    assert_eq!(world.ready(), 1);
    world.woken.clear();
    world.run(40);
    assert_eq!(world.endpoints(), [(0, 1), (0, 2)]);
}

#[test]
fn what_rests_on_a_dead_or_drained_host_rests_elsewhere() {
    let mut world = at_zero(4);
    let on = |world: &World| -> Vec<HostId> {
        let placements = &world.cluster.workload(&web()).unwrap().placements;
        placements
            .values()
            .map(|placed| placed.host.clone())
            .collect()
    };
    let dead = on(&world)[0].clone();
    world.silent.insert(dead.clone());
    world.run(60);
    assert!(!on(&world).contains(&dead));
    assert_eq!(world.endpoints(), [(0, 1), (0, 2)]);
    let drained = on(&world)[0].clone();
    let outcome = commands::drain(&world.cluster, drained.as_str(), None, world.now).unwrap();
    world.store(outcome.writes);
    world.run(20);
    assert!(!on(&world).contains(&drained));
    assert_eq!(world.endpoints(), [(0, 1), (0, 2)]);
}

#[test]
fn a_new_revision_proves_itself_before_it_rests() {
    let mut world = at_zero(3);
    world.fates.insert(2, Fate::GivesUp);
    world.deploy(scaled("2", 0, 20), Kind::Http);
    world.run(60);
    assert_eq!(
        world.rollout(),
        RolloutState::Reverted,
        "a bad one does not come to rest"
    );
    world.deploy(scaled("3", 0, 20), Kind::Http);
    world.run(12);
    assert_eq!(
        (world.ready(), world.rollout()),
        (1, RolloutState::Completed)
    );
    world.run(60);
    assert_eq!((world.ready(), world.state()), (0, WorkloadState::Idle));
    let placements = &world.cluster.workload(&web()).unwrap().placements;
    let mut revisions = placements.values().map(|placed| placed.revision.0);
    assert!(revisions.all(|revision| revision == 3));
}

#[test]
fn work_in_hand_or_lately_done_keeps_it_awake() {
    let mut world = World::new(2);
    world.deploy(scaled("1", 0, 20), Kind::Http);
    world.load.insert(web(), 1);
    world.run(120);
    assert_eq!(world.ready(), 1, "one in hand, of the ten that one carries");
    world.change(commands::stop, None);
    world.run(10);
    assert_eq!(
        world.standing(),
        (vec![], vec![]),
        "held at zero: nothing rests"
    );
}

#[test]
fn what_goes_back_from_zero_or_is_held_there_is_answered() {
    // Back to a revision that counts its replicas.
    let mut world = World::new(3);
    world.deploy(spec("1", 2), Kind::Http);
    world.run(10);
    world.deploy(scaled("2", 0, 20), Kind::Http);
    world.run(80);
    assert_eq!(world.state(), WorkloadState::Idle);
    let request = rollout_request("web", None);
    let back = commands::rollback(&world.cluster, &request, &world.call()).unwrap();
    world.store(back.writes);
    world.run(20);
    assert_eq!(
        (world.ready(), world.rollout()),
        (1, RolloutState::Completed)
    );

    // What waits for another leaves the standbys where they are; a restart wakes it.
    let mut world = at_zero(3);
    let mut waits = scaled("2", 0, 20);
    waits.depends_on = vec![name("other")];
    world
        .own_fates
        .insert(("other".to_owned(), 1), Fate::Unready);
    let mut other = spec("1", 1);
    other.name = name("other");
    world.deploy(other, Kind::Http);
    world.deploy(waits, Kind::Http);
    world.run(4);
    assert_eq!(world.endpoints(), [(0, 1), (0, 2)]);
    let mut world = at_zero(3);
    world.change(commands::restart, None);
    world.run(12);
    assert_eq!(
        (world.ready(), world.rollout()),
        (1, RolloutState::Completed)
    );
}

#[test]
fn one_at_most_means_one_standby_and_nobody_ends_for_it() {
    let mut world = World::new(1);
    world.deploy(scaled("1", 0, 1), Kind::Http);
    world.run(60);
    assert_eq!(world.endpoints(), [(0, 1)]);
    // Room for one of the two: that is no trouble.
    let mut world = World::new(2);
    world.silent.insert(host(2));
    let mut apart = scaled("1", 0, 20);
    apart.constraints = vec![Constraint::Distinct {
        distinct: "host".into(),
        max: 1,
    }];
    world.deploy(apart, Kind::Http);
    world.run(80);
    assert_eq!(world.endpoints(), [(0, 1)]);
    let status = queries::status(&world.cluster, &web(), false).unwrap();
    assert!(status.unplaced.is_none(), "{:?}", status.unplaced);
}

/// A first revision has given up and the next one is held, while one replica of what was before still
/// serves. Then it goes to zero: once another one listens a standby takes its seat, and nothing has to be ready.
#[test]
fn an_old_replica_makes_way_for_a_standby_while_a_rollout_is_held() {
    let mut world = World::new(3);
    let wanted = |version: &str, on: &[&str]| {
        let mut spec = scaled(version, 0, 20);
        spec.depends_on = on.iter().map(|on| name(on)).collect();
        spec.update.order = UpdateOrder::StopFirst;
        (spec.update.max_surge, spec.update.max_unavailable) = (0, 1);
        spec.update.min_ready = HumanDuration::secs(20);
        spec.update.progress_deadline = HumanDuration::secs(30);
        spec
    };
    world.deploy(wanted("1", &[]), Kind::Http);
    world.run(10);
    assert_eq!(world.ready(), 1);
    // One of three is ready when the next comes: the first is nothing to go back to.
    world.load.insert(web(), 30);
    world.change(commands::scale, Some(3));
    world.fates.insert(2, Fate::Unready);
    world.deploy(wanted("2", &[]), Kind::Http);
    world.run(60);
    let record = |world: &World| world.cluster.workload(&web()).unwrap().record.clone();
    let rollout = record(&world).rollout.unwrap();
    assert_eq!(rollout.state, RolloutState::Failed);
    let mut base = spec("1", 1);
    base.name = name("base");
    base.constraints = vec![Constraint::Label {
        label: "zone".into(),
        test: LabelTest::Eq("nowhere".into()),
    }];
    world.deploy(base, Kind::Http);
    world.deploy(wanted("3", &["base"]), Kind::Http);
    assert!(record(&world).held().is_some() && record(&world).revision.0 == 2);
    assert_eq!(world.ready(), 1, "of the first revision");
    world.change(commands::scale, Some(0));
    for _ in 0..2 {
        world.run(1);
        let reports = &world.cluster.workload(&web()).unwrap().reports;
        let mut told = reports.values().map(|known| &known.status);
        let hears = told.any(|status| status.listens || status.ready);
        assert!(hears, "what comes meanwhile");
    }
    let (rest, run) = world.standing();
    assert_eq!((rest.len(), run.len()), (1, 0), "{rest:?} {run:?}");
}
