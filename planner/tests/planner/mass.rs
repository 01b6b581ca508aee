//! Many hosts fall silent at once, one alone, or the leader itself stands still (DESIGN, law 6).

use wasmorch_api::EventKind;

use super::*;

/// Ten hosts, each with one replica.
fn ten() -> World {
    let mut world = World::new(10);
    world.oracle = false;
    world.deploy(spec("1", 10), Kind::Http);
    world.run(8);
    let each: Vec<usize> = (1..=10).map(|n| world.on(&host(n))).collect();
    assert_eq!(each, [1; 10]);
    world
}

impl World {
    fn dead(&self) -> usize {
        let hosts = self.cluster.hosts().values();
        hosts.filter(|host| host.state == HostState::Dead).count()
    }

    /// When hosts were called dead, in seconds from now, while so many pass.
    fn deaths(&mut self, seconds: usize) -> Vec<u64> {
        let (from, mut deaths, mut before) = (self.now, Vec::new(), self.dead());
        for _ in 0..seconds * 2 {
            let at = self.now.since(from).as_secs();
            self.round();
            let dead = self.dead();
            deaths.extend(std::iter::repeat_n(at, dead - before));
            before = dead;
        }
        deaths
    }
}

#[test]
fn of_hosts_that_fall_silent_together_one_a_minute_is_replaced() {
    let mut world = ten();
    world.silent.extend((1..=4).map(host));
    let mut alarms = Vec::new();
    for _ in 0..14 {
        let told = world.cluster.observe(Observation::Tick, world.now).events;
        let told = { told.into_iter() }.filter(|one| one.kind == EventKind::AlarmMassSilence);
        alarms.extend(told.map(|event| event.reason));
        world.round();
    }
    assert!(
        alarms.len() == 1 && alarms[0].starts_with("4 of 10 hosts"),
        "{alarms:?}"
    );
    assert_eq!(world.dead(), 1);
    let gone: usize = (1..=4).map(|n| 1 - world.on(&host(n))).sum();
    assert_eq!(gone, 1, "what one of them ran is elsewhere");
    assert_eq!(world.deaths(50), [0_u64; 0]);
    assert_eq!(world.deaths(100), [7, 67], "one a minute");
    // The network is back: the rest goes on where it is.
    world.silent.clear();
    world.run(4);
    assert_eq!((world.dead(), world.ready()), (0, 10));
    assert!(world.cluster.hosts().len() == 10 && world.on(&host(4)) <= 1);
}

#[test]
fn a_host_that_falls_silent_alone_is_replaced_at_once() {
    let mut world = ten();
    world.silent.insert(host(3));
    assert_eq!(world.deaths(7).len(), 1);
    assert_eq!((world.on(&host(3)), world.ready()), (0, 10));
    // Another one later is alone too.
    world.run(30);
    world.silent.insert(host(5));
    assert_eq!(world.deaths(7).len(), 1);
    assert_eq!((world.on(&host(5)), world.ready()), (0, 10));
}

#[test]
fn hosts_that_are_long_dead_are_no_mass_silence_to_a_new_leader() {
    let mut world = World::new(9);
    world.oracle = false;
    world.deploy(spec("1", 9), Kind::Http);
    world.run(8);
    for n in 7..=9 {
        world.silent.insert(host(n));
        assert_eq!(world.deaths(20).len(), 1);
    }
    assert_eq!((world.dead(), world.ready()), (3, 9));
    world.new_leader();
    world.silent.insert(host(1));
    assert_eq!(world.dead(), 3);
    assert_eq!(world.deaths(7).len(), 1);
    assert_eq!((world.on(&host(1)), world.ready()), (0, 9));
    // One that is back is alive to the next one, whether or not it has spoken to it.
    world.silent.remove(&host(7));
    world.run(2);
    world.new_leader();
    assert_eq!(world.cluster.hosts()[&host(7)].state, HostState::Alive);
    assert_eq!(world.dead(), 3);
}

#[test]
fn a_new_leader_gives_a_host_that_was_dead_the_time_to_say_that_it_is_back() {
    let mut world = World::new(1);
    world.deploy(spec("1", 1), Kind::Http);
    world.run(8);
    world.silent.insert(host(1));
    assert_eq!(world.deaths(7).len(), 1);
    assert_eq!(world.on(&host(1)), 1, "there is nowhere else");
    world.seqs.insert(host(2), 0);
    world.new_leader();
    world.run(6);
    assert_eq!((world.dead(), world.on(&host(1))), (1, 1));
    world.silent.clear();
    world.run(12);
    assert_eq!((world.dead(), world.on(&host(1)), world.ready()), (0, 1, 1));
}

#[test]
fn a_leader_that_stood_still_calls_nobody_dead() {
    let mut world = ten();
    for stall in [4_000, 30_000, 3_600_000] {
        // It ticks again before it reads what has come meanwhile.
        world.now.0 += stall;
        let observed = world.cluster.observe(Observation::Tick, world.now);
        assert_eq!(observed.events, vec![], "after {stall} ms");
        let alive = |host: &wasmorch_planner::Host| host.state == HostState::Alive;
        assert!(world.cluster.hosts().values().all(alive));
        assert!(world.plan().stop.is_empty());
        world.run(4);
    }
    // A silence that began before it is none the shorter for that, and none the longer.
    world.silent.insert(host(1));
    world.run(4);
    world.now.0 += 60_000;
    world.cluster.observe(Observation::Tick, world.now);
    assert_eq!(world.dead(), 0);
    assert_eq!(world.deaths(7).len(), 1);
}
