//! What a heartbeat alone tells, and what is asked of a host because of it.

use std::time::Duration;

use wasmorch_api::EventKind;
use wasmorch_planner::Ask;

use super::*;

/// Of a host's first start.
fn first(world: &World, id: &HostId) -> Heartbeat {
    Heartbeat {
        sequence: 0,
        status_seq: 0,
        boot: BootId::from_random([7; 10]),
        ..world.beat(id)
    }
}

fn hear(world: &mut World, beat: Heartbeat) -> Vec<Ask> {
    let beat = Observation::Heartbeat(Box::new(beat));
    world.cluster.observe(beat, world.now).asks
}

fn asks_status(asks: &[Ask]) -> bool {
    asks.iter().any(|ask| matches!(ask, Ask::Status(_)))
}

fn asks_sync(asks: &[Ask]) -> bool {
    asks.iter().any(|ask| matches!(ask, Ask::Sync { .. }))
}

#[test]
fn a_host_that_holds_nothing_is_placed_on_at_its_first_heartbeat() {
    let mut world = World::new(0);
    world.seqs.insert(host(1), 0);
    let beat = first(&world, &host(1));
    let asks = hear(&mut world, beat);
    assert!(!asks_status(&asks), "{asks:?}");
    world.deploy(spec("1", 2), Kind::Service);
    assert_eq!(world.plan().start.len(), 2);
}

#[test]
fn a_host_that_may_run_something_is_asked_what_before_anything_is_placed_on_it() {
    let tells = [
        |beat: &mut Heartbeat| beat.replicas = 1,
        |beat: &mut Heartbeat| beat.status_seq = 1,
        |beat: &mut Heartbeat| beat.sequence = 1,
    ];
    for tell in tells {
        let mut world = World::new(0);
        world.seqs.insert(host(1), 0);
        let mut beat = first(&world, &host(1));
        tell(&mut beat);
        let asks = hear(&mut world, beat);
        assert!(asks_status(&asks), "{asks:?}");
        world.deploy(spec("1", 2), Kind::Service);
        assert_eq!(world.plan().start.len(), 0);
    }
}

/// Its disk is new, and it knows nothing of its set: what ran there before is not known to be gone until
/// it has said so.
#[test]
fn a_host_that_has_a_set_is_asked_even_if_it_says_nothing_of_one() {
    let mut world = World::new(1);
    world.deploy(spec("1", 2), Kind::Service);
    world.run(3);
    let beat = first(&world, &host(1));
    let asks = hear(&mut world, beat);
    assert!(asks_status(&asks), "{asks:?}");
}

/// When the host is asked to take its set, in tenths of a second from now, while all its heartbeats of a minute
/// say that it has not.
fn asked_to_sync(world: &mut World) -> Vec<u64> {
    let from = world.now;
    let mut asked = Vec::new();
    for tenth in 1..=600 {
        world.now = from.after(Duration::from_millis(tenth * 100));
        let behind = Heartbeat {
            sequence: 1,
            ..world.beat(&host(1))
        };
        if asks_sync(&hear(world, behind)) {
            asked.push(tenth);
        }
    }
    asked
}

#[test]
fn a_host_that_is_behind_is_told_so_after_one_second_and_then_ever_later() {
    let mut world = World::new(1);
    world.deploy(spec("1", 2), Kind::Service);
    world.plan();
    assert_eq!(asked_to_sync(&mut world), [10, 20, 40, 80, 160, 320, 480]);
    let held = world.beat(&host(1));
    assert!(!asks_sync(&hear(&mut world, held)));
}

#[test]
fn a_host_that_comes_back_behind_is_asked_again_after_one_second() {
    let mut world = World::new(1);
    world.deploy(spec("1", 2), Kind::Service);
    world.plan();
    asked_to_sync(&mut world);
    for _ in 0..60 {
        world.now = world.now.after(Duration::from_secs(1));
        world.cluster.observe(Observation::Tick, world.now);
    }
    assert_eq!(world.cluster.hosts()[&host(1)].state, HostState::Dead);
    assert_eq!(asked_to_sync(&mut world)[..4], [1, 11, 31, 71]);
}

/// The host says once more all that it said last; what is made of it.
fn tell_again(world: &mut World) -> Vec<EventKind> {
    let id = host(1);
    *world.seqs.get_mut(&id).unwrap() += 1;
    let report = StatusReport {
        cluster: world.cluster.cluster.clone(),
        host: id.clone(),
        boot: BootId::from_random([1; 10]),
        status_seq: world.seqs[&id],
        full: true,
        replicas: world.said[&id].clone(),
        next: None,
    };
    let heard = world
        .cluster
        .observe(Observation::Status(report), world.now);
    heard.events.into_iter().map(|event| event.kind).collect()
}

#[test]
fn what_was_told_before_says_nothing_new() {
    let mut world = World::new(1);
    world.deploy(spec("1", 2), Kind::Http);
    world.run(4);
    let before = world.cluster.workload(&web()).unwrap().reports.clone();
    assert_eq!(before.len(), 2);
    world.now = world.now.after(Duration::from_secs(1));
    assert_eq!(tell_again(&mut world), []);
    assert_eq!(world.cluster.workload(&web()).unwrap().reports, before);
    assert_eq!(world.plan().size(), 0);
}

/// A host that died with what waits for its return: what it says then is what it said before.
#[test]
fn what_is_told_again_after_a_death_counts() {
    let mut world = World::new(1);
    let mut away = spec("1", 2);
    away.disconnect.replace = false;
    world.deploy(away, Kind::Http);
    world.run(4);
    let ready = |world: &World| {
        let web = world.cluster.workload(&web()).unwrap();
        queries::summary(&world.cluster, &self::web(), web).ready
    };
    assert_eq!(ready(&world), 2);
    for _ in 0..10 {
        world.now = world.now.after(Duration::from_secs(1));
        world.cluster.observe(Observation::Tick, world.now);
    }
    assert_eq!(ready(&world), 0);
    world.heartbeat(&host(1));
    assert_eq!(ready(&world), 0, "not before it has said so");
    tell_again(&mut world);
    assert_eq!(ready(&world), 2);
}

/// What was said about hosts of this kind, by whom it names.
fn said(world: &mut World, beat: Heartbeat, kind: EventKind) -> Vec<(HostId, String)> {
    let beat = Observation::Heartbeat(Box::new(beat));
    let events = world.cluster.observe(beat, world.now).events;
    let events = events.into_iter().filter(|event| event.kind == kind);
    events
        .map(|event| (event.host.unwrap(), event.reason))
        .collect()
}

#[test]
fn two_daemons_with_one_data_folder_are_told_of_and_named_by_why() {
    let mut world = World::new(2);
    let mut told = Vec::new();
    for second in 0..90 {
        for boot in [1, 2] {
            let beat = Heartbeat {
                boot: BootId::from_random([boot; 10]),
                ..world.beat(&host(1))
            };
            let events = said(&mut world, beat, EventKind::AlarmDuplicateHost);
            told.extend(events.into_iter().map(|event| (second, event)));
        }
        world.now = world.now.after(Duration::from_secs(1));
    }
    let [(first, (id, reason)), (again, _)] = told.as_slice() else {
        panic!("{told:?}")
    };
    assert!(*first <= 2 && again - first == 60, "{told:?}");
    assert_eq!(*id, host(1));
    assert!(reason.contains("data folder of its own"), "{reason}");
    let why = why::host(&world.cluster, "h1", world.now).unwrap();
    let story = why["story"].to_string();
    assert!(story.contains("alarm-duplicate-host"), "{why}");
}

#[test]
fn sets_that_a_host_refuses_as_stale_are_told_of() {
    let mut world = World::new(2);
    world.deploy(spec("1", 2), Kind::Service);
    world.run(3);
    let refused = |world: &mut World, stale_sets| {
        let beat = Heartbeat {
            stale_sets,
            ..world.beat(&host(1))
        };
        said(world, beat, EventKind::AlarmStaleTerm)
    };
    assert_eq!(refused(&mut world, 0), []);
    let told = refused(&mut world, 2);
    assert_eq!(told.len(), 1);
    assert_eq!(told[0].0, host(1));
    assert!(told[0].1.contains("refused 2 placement sets"), "{told:?}");
    assert_eq!(refused(&mut world, 5), [], "at most once a minute");
    world.now = world.now.after(Duration::from_secs(60));
    let told = refused(&mut world, 5);
    assert!(told[0].1.contains("refused 3 placement sets"), "{told:?}");
    // What was refused before this leader's time is not news.
    world.new_leader();
    assert_eq!(refused(&mut world, 5), []);
    assert_eq!(refused(&mut world, 6).len(), 1);
}

#[test]
fn a_new_leader_listens_until_all_hosts_have_said_what_they_hold_or_are_given_up() {
    let mut world = World::new(2);
    world.deploy(spec("1", 2), Kind::Service);
    world.run(6);
    assert!(!world.cluster.listens(world.now));
    world.new_leader();
    assert!(world.cluster.listens(world.now));
    let speaks = |world: &mut World, n| {
        world.heartbeat(&host(n));
        world.report(&host(n));
    };
    speaks(&mut world, 1);
    assert!(world.cluster.listens(world.now), "h2 has not spoken");
    let later = world.now.after(Duration::from_secs(5));
    assert!(!world.cluster.listens(later), "not for ever");
    speaks(&mut world, 2);
    assert!(!world.cluster.listens(world.now));
}

#[test]
fn more_hosts_than_can_be_are_not_taken_up_and_bar_nobody_who_is_known() {
    const HOSTS_MAX: usize = 65_536;
    let mut world = World::new(1);
    let speaks = |world: &mut World, n: usize| {
        let beat = Heartbeat {
            host: host(n),
            ..world.beat(&host(1))
        };
        said(world, beat, EventKind::AlarmFull)
    };
    for n in 2..=HOSTS_MAX {
        assert_eq!(speaks(&mut world, n), []);
    }
    assert_eq!(world.cluster.hosts().len(), HOSTS_MAX);
    let told = speaks(&mut world, HOSTS_MAX + 1);
    assert_eq!(told.len(), 1);
    assert!(told[0].1.contains("host-rm"), "{told:?}");
    assert_eq!(speaks(&mut world, HOSTS_MAX + 2), [], "said once a minute");
    assert_eq!(world.cluster.hosts().len(), HOSTS_MAX);
    assert_eq!(speaks(&mut world, HOSTS_MAX), []);
}

#[test]
fn time_in_which_a_new_leader_did_not_listen_is_no_silence() {
    let mut world = World::new(4);
    world.deploy(spec("1", 4), Kind::Service);
    world.run(6);
    let late = Duration::from_secs(9);
    let quiet = |world: &mut World| {
        let observed = world.cluster.observe(Observation::Tick, world.now);
        assert_eq!(observed.events, []);
        assert!(
            world.cluster.listens(world.now),
            "nobody had the time to speak"
        );
        let after = world.now.after(Duration::from_secs(5));
        assert!(!world.cluster.listens(after));
    };
    // It read for so long.
    world.new_leader();
    world.now = world.now.after(late);
    world.cluster.listen_from(world.now);
    quiet(&mut world);
    // Its first plan took so long.
    world.new_leader();
    world.now = world.now.after(late);
    quiet(&mut world);
    assert!(world.plan().is_empty());
}

#[test]
fn a_term_beyond_all_that_can_have_begun_is_not_followed_and_told_of_once_a_minute() {
    let mut world = World::new(1);
    let says = |world: &mut World, term: u64| {
        let beat = Heartbeat {
            term: Term(term),
            ..world.beat(&host(1))
        };
        let beat = Observation::Heartbeat(Box::new(beat));
        let observed = world.cluster.observe(beat, world.now);
        let follows = { observed.asks.iter() }.any(|ask| matches!(ask, Ask::NewerTerm(_)));
        let mut events = observed.events.iter();
        (
            follows,
            events.any(|event| event.kind == EventKind::AlarmStaleTerm),
        )
    };
    assert_eq!(says(&mut world, 5_000), (true, false));
    assert_eq!(says(&mut world, u64::MAX), (false, true));
    assert_eq!(says(&mut world, u64::MAX), (false, false));
    world.now.0 += 60_000;
    assert_eq!(says(&mut world, 1 << 40), (false, true));
}

#[test]
fn a_host_that_says_too_much_of_itself_is_not_taken_up_and_bars_nobody() {
    let mut world = World::new(1);
    let mut beat = world.beat(&host(1));
    beat.host = host(2);
    let label = "x".repeat(world.cluster.value_bytes_max / 2);
    beat.info.labels.insert("large".to_owned(), label);
    let told = said(&mut world, beat, EventKind::AlarmFull);
    assert_eq!(told.len(), 1);
    assert!(told[0].1.contains("says more of itself"), "{told:?}");
    assert_eq!(world.cluster.hosts().len(), 1);
    world.deploy(spec("1", 1), Kind::Http);
    world.run(8);
    assert_eq!(world.ready(), 1);
}
