//! Two daemons that speak as one host: what must not run twice starts by one of them at most (law 4).

use std::time::Duration;

use wasmorch_api::EventKind;
use wasmorch_api::messages::HeardNote;
use wasmorch_api::units::HumanDuration;
use wasmorch_planner::Ask;

use super::disconnect::exclusive;
use super::*;

/// The host's daemon runs nothing that must not run twice so long after it was last heard: silence that is
/// death, `stop_after`, a drain of half of what is left until `lost_after`, and the grace of a stop.
const ENDS: Duration = Duration::from_secs(5 + 10 + (20 - 10) / 2 + 5);

impl World {
    /// The host speaks by its start number `boot`. Whether what must not run twice may start there.
    fn speaks(&mut self, id: &HostId, boot: u8, leaving: bool) -> bool {
        self.boots.insert(id.clone(), boot);
        let beat = Heartbeat {
            at: Some(self.now),
            leaving,
            ..self.beat(id)
        };
        let named = beat.boot.clone();
        let observed = (self.cluster).observe(Observation::Heartbeat(Box::new(beat)), self.now);
        let heard = observed.asks.into_iter().find_map(|ask| match ask {
            Ask::Heard { boot, sequence, .. } => Some((boot, sequence)),
            _ => None,
        });
        let (boot, sequence) = heard.expect("an echo");
        assert_eq!(boot, named);
        sequence != HeardNote::NOTHING_ONCE
    }

    /// Another start of it speaks, and says all that it knows.
    fn speaks_anew(&mut self, id: &HostId, boot: u8) -> bool {
        self.seqs.insert(id.clone(), 0);
        self.said.remove(id);
        let may = self.speaks(id, boot, false);
        self.report(id);
        self.plan();
        may
    }
}

/// One exclusive replica, on the host that is told.
fn placed() -> (World, HostId) {
    let mut world = World::new(2);
    world.deploy(exclusive(), Kind::Service);
    world.run(6);
    let id = world.placed().remove(0);
    assert!(world.speaks(&id, 0, false));
    (world, id)
}

#[test]
fn a_copy_starts_nothing_that_must_not_run_twice_while_the_first_speaks() {
    let (mut world, id) = placed();
    for _ in 0..60 {
        assert!(!world.speaks_anew(&id, 1), "the copy");
        world.now = world.now.after(Duration::from_millis(500));
        assert!(world.speaks_anew(&id, 0), "the first goes on");
        world.now = world.now.after(Duration::from_millis(500));
    }
    let why = why::host(&world.cluster, id.as_str(), world.now).unwrap();
    let told = why["story"].to_string();
    assert!(
        told.contains(EventKind::AlarmDuplicateHost.as_str()),
        "{told}"
    );
    for boot in [1, 2] {
        assert!(
            told.contains(BootId::from_random([boot; 10]).as_str()),
            "{told}"
        );
    }
}

#[test]
fn a_daemon_that_broke_off_is_followed_by_another_when_all_of_it_has_ended() {
    let (mut world, id) = placed();
    let heard = world.now;
    world.now = heard.after(Duration::from_secs(1));
    assert!(!world.speaks_anew(&id, 1));
    world.now = Timestamp(heard.after(ENDS).0 - 1);
    assert!(!world.speaks(&id, 1, false));
    world.plan();
    world.now = heard.after(ENDS);
    assert!(
        !world.speaks(&id, 1, false),
        "the store does not know it yet"
    );
    world.plan();
    assert!(world.speaks(&id, 1, false));
    // And by that the first one, should it have been frozen, starts nothing any more.
    assert!(!world.speaks_anew(&id, 0));
}

#[test]
fn a_daemon_that_has_told_its_end_is_followed_at_once() {
    let (mut world, id) = placed();
    world.fates.insert(1, Fate::Completes);
    world.report(&id);
    world.speaks(&id, 0, true);
    world.fates.clear();
    world.speaks_anew(&id, 1);
    assert!(world.speaks(&id, 1, false));
}

#[test]
fn a_new_leader_knows_which_daemon_it_was() {
    let (mut world, id) = placed();
    world.new_leader();
    let since = world.now;
    assert!(!world.speaks_anew(&id, 1));
    world.now = Timestamp(since.after(ENDS).0 - 1);
    assert!(
        !world.speaks(&id, 1, false),
        "the other may not have spoken yet"
    );

    let (mut world, id) = placed();
    world.new_leader();
    assert!(world.speaks(&id, 0, false), "no leader's end ends it");
}

#[test]
fn a_new_leader_that_hears_a_copys_report_first_grants_it_nothing() {
    let (mut world, id) = placed();
    world.new_leader();
    world.boots.insert(id.clone(), 1);
    world.seqs.insert(id.clone(), 0);
    world.said.remove(&id);
    world.report(&id);
    world.now = world.now.after(Duration::from_secs(1));
    for _ in 0..3 {
        assert!(!world.speaks(&id, 1, false));
        world.plan();
    }
    assert!(world.speaks_anew(&id, 0));
}

/// Each of them is too short-lived to be given anything, so none is waited for.
#[test]
fn a_daemon_that_ends_again_and_again_does_not_put_off_the_next() {
    let (mut world, id) = placed();
    let heard = world.now;
    for boot in 1..=12 {
        world.now = heard.after(Duration::from_secs(2 * u64::from(boot)));
        world.speaks_anew(&id, boot);
    }
    world.now = heard.after(ENDS);
    world.speaks(&id, 12, false);
    world.plan();
    assert!(world.speaks(&id, 12, false));
}

/// The second start leaves, and the third comes: the first may still run what it was given.
#[test]
fn the_start_that_was_given_it_is_waited_for_whoever_spoke_since() {
    let (mut world, id) = placed();
    let heard = world.now;
    for (s, boot) in [(2, 1), (4, 2)] {
        world.now = heard.after(Duration::from_secs(s));
        assert!(!world.speaks_anew(&id, boot));
    }
    assert!(!world.speaks(&id, 2, false));
    world.now = heard.after(Duration::from_secs(6));
    assert!(!world.speaks_anew(&id, 1));
    world.plan();
    assert!(!world.speaks(&id, 1, false));
}

#[test]
fn a_clean_end_is_known_to_the_next_leader() {
    let (mut world, id) = placed();
    world.fates.insert(1, Fate::Completes);
    world.report(&id);
    world.speaks(&id, 0, true);
    world.plan();
    world.new_leader();
    world.fates.clear();
    world.speaks_anew(&id, 1);
    assert!(world.speaks(&id, 1, false), "nothing is waited for");
}

#[test]
fn a_slot_is_not_filled_by_the_word_of_a_copy_alone() {
    let (mut world, id) = placed();
    let n = (1..=2).find(|n| host(*n) == id).unwrap();
    // The first daemon is cut off, and its copy says that nothing runs.
    let heard = world.now;
    assert!(!world.speaks_anew(&id, 1));
    world.drain(n, None);
    let other = host(3 - n);
    while world.now < Timestamp(heard.after(ENDS).0 - 500) {
        for id in [&id, &other] {
            world.heartbeat(id);
            world.report(id);
        }
        world.cluster.observe(Observation::Tick, world.now);
        world.plan();
        assert_eq!(world.on(&other), 0, "the first may run it");
        world.now = world.now.after(Duration::from_millis(500));
    }
    let why = why::workload(&world.cluster, &web()).unwrap().to_string();
    let within = format!("{} after that was last heard", HumanDuration(ENDS));
    assert!(
        why.contains("has started anew") && why.contains(&within),
        "{why}"
    );
    assert!(!why.contains("host-rm"), "it is there: {why}");
    world.run(6);
    assert_eq!((world.on(&id), world.on(&other)), (0, 1));
}

/// The leader before it took from the host's set what the first daemon still runs, unheard.
#[test]
fn a_new_leader_waits_for_what_no_set_names_any_more() {
    for first_is_heard in [false, true] {
        let (mut world, id) = placed();
        let n = (1..=2).find(|n| host(*n) == id).unwrap();
        let other = host(3 - n);
        assert!(!world.speaks_anew(&id, 1));
        world.drain(n, None);
        world.run(4);
        assert_eq!(world.placed(), []);
        world.new_leader();
        let since = world.now;
        if first_is_heard {
            assert!(world.speaks(&id, 0, false), "and not what it runs");
            world.boots.insert(id.clone(), 1);
        }
        while world.now < Timestamp(since.after(ENDS).0 - 500) {
            world.round();
            assert!(!world.speaks(&id, 1, false), "nobody heard the first end");
            assert_eq!(world.on(&other), 0);
        }
        world.run(6);
        assert_eq!((world.on(&id), world.on(&other)), (0, 1));
    }
}

#[test]
fn a_host_whose_work_of_that_kind_has_ended_is_not_waited_for() {
    let (mut world, id) = placed();
    world.change(commands::stop, None);
    world.run(6);
    assert_eq!(world.placed(), []);
    world.speaks_anew(&id, 1);
    assert!(world.speaks(&id, 1, false));
}

#[test]
fn nothing_exclusive_is_placed_where_two_daemons_take_turns() {
    let mut world = World::new(1);
    world.run(2);
    let id = host(1);
    for _ in 0..4 {
        for boot in [1, 0] {
            world.seqs.insert(id.clone(), 0);
            world.boots.insert(id.clone(), boot);
            world.heartbeat(&id);
            world.report(&id);
            world.now = world.now.after(Duration::from_millis(500));
        }
    }
    world.deploy(exclusive(), Kind::Service);
    assert_eq!(world.plan().start, []);
    let why = why::workload(&world.cluster, &web()).unwrap().to_string();
    assert!(why.contains("two daemons speak as it"), "{why}");
    // One of them is gone.
    world.run(30);
    assert_eq!(world.ready(), 1);
}
