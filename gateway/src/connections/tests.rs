//! Connections as the sweep sees them, tick by tick.

use super::*;

fn limits(connections_max: usize) -> Limits {
    Limits {
        connections_max,
        header_timeout: Duration::from_secs(4),
        idle_timeout: Duration::from_secs(10),
        resets_max: 3,
        ..Limits::default()
    }
}

fn connections() -> Arc<Connections> {
    // Ticks of a second: 5 for a head, 11 for a rest (each one more than the time-out).
    Arc::new(Connections::new(&limits(2)))
}

fn sweep(connections: &Connections, place: &Place, times: u32) -> u8 {
    (0..times).for_each(|_| connections.sweep());
    place.watch.order.load(Ordering::Relaxed)
}

#[test]
fn a_connection_without_a_request_goes() {
    let connections = connections();
    let place = connections.enter().unwrap();
    assert_eq!(sweep(&connections, &place, 4), STAY);
    assert_eq!(sweep(&connections, &place, 1), DROP);
}

#[test]
fn a_request_may_take_its_time_and_a_rest_may_not() {
    let connections = connections();
    let place = connections.enter().unwrap();
    place.watch.request_began(Version::HTTP_11);
    assert_eq!(sweep(&connections, &place, 100), STAY);
    place.watch.request_ended();
    assert_eq!(sweep(&connections, &place, 10), STAY);
    assert_eq!(sweep(&connections, &place, 1), CLOSE);
    assert_eq!(sweep(&connections, &place, 5), DROP);
}

#[test]
fn a_further_head_has_as_long_as_the_first() {
    let connections = connections();
    let place = connections.enter().unwrap();
    for _ in 0..3 {
        place.watch.request_began(Version::HTTP_11);
        // Of a body, or of a head that waits its turn.
        place.watch.bytes_came();
        place.watch.request_ended();
        assert_eq!(sweep(&connections, &place, 4), STAY);
        place.watch.bytes_came();
        assert_eq!(sweep(&connections, &place, 4), STAY);
        // One byte more is no new head.
        place.watch.bytes_came();
    }
    assert_eq!(sweep(&connections, &place, 1), DROP);

    let place = connections.enter().unwrap();
    place.watch.request_began(Version::HTTP_2);
    place.watch.request_ended();
    place.watch.bytes_came();
    assert_eq!(sweep(&connections, &place, 10), STAY, "a ping is no head");
}

#[test]
fn who_gives_too_much_up_is_asked_to_go_and_goes() {
    let connections = connections();
    let place = connections.enter().unwrap();
    let watch = place.watch();
    let order = || watch.order.load(Ordering::Relaxed);
    let give_up = || drop(watch.asks());
    // Three, and a tenth of the answered ones; after a while again.
    for _ in 0..3 {
        (0..20).for_each(|_| watch.asks().answered());
        (0..5).for_each(|_| give_up());
        assert_eq!(order(), STAY);
        watch.request_began(Version::HTTP_11);
        assert_eq!(sweep(&connections, &place, 11), STAY);
        watch.request_ended();
    }
    (0..4).for_each(|_| give_up());
    assert_eq!(order(), CLOSE);
    (0..3).for_each(|_| give_up());
    assert_eq!(order(), DROP);
}

/// Another process that has none.
#[derive(Debug, Default)]
struct Half(std::sync::atomic::AtomicUsize);

impl Crowd for Half {
    fn tell(&self, open: usize) {
        self.0.store(open, Ordering::Relaxed);
    }

    fn share(&self) -> usize {
        self.0.load(Ordering::Relaxed).div_ceil(2)
    }
}

#[test]
fn what_is_over_its_share_goes_and_those_at_work_first() {
    let crowd = Arc::new(Half::default());
    let connections = Connections::new(&limits(100));
    let connections = Arc::new(connections.among(Some(crowd.clone())));
    let mut places: Vec<_> = (0..20).map(|_| connections.enter().unwrap()).collect();
    assert!(connections.is_over());
    let (working, resting) = places.split_at(5);
    working
        .iter()
        .for_each(|place| place.watch.request_began(Version::HTTP_11));
    for place in resting {
        place.watch.request_began(Version::HTTP_11);
        place.watch.request_ended();
    }
    let leaves = |place: &Place| place.watch.order.load(Ordering::Relaxed) == LEAVE;
    // Nobody else is asked while these are still there.
    for _ in 0..3 {
        connections.sweep();
        assert!(working.iter().all(leaves));
        assert_eq!(places.iter().filter(|place| leaves(place)).count(), 10);
    }
    places.truncate(2);
    assert!(!connections.is_over());
    assert_eq!(crowd.0.load(Ordering::Relaxed), 2);
}

#[test]
fn who_leaves_is_told_with_an_answer() {
    let connections = connections();
    let place = connections.enter().unwrap();
    let (watch, mut answer) = (place.watch(), Response::new(()));
    watch.part(Version::HTTP_11, &mut answer);
    assert!(answer.headers().is_empty(), "it stays");
    watch.order(LEAVE);
    let mut upgraded = Response::new(());
    *upgraded.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    watch.part(Version::HTTP_11, &mut upgraded);
    assert!(
        upgraded.headers().is_empty(),
        "it is no connection of requests any more"
    );
    watch.part(Version::HTTP_11, &mut answer);
    assert_eq!(answer.headers()[header::CONNECTION], "close");
    assert_eq!(watch.order.load(Ordering::Relaxed), LEAVE);
    let mut second = Response::new(());
    watch.part(Version::HTTP_2, &mut second);
    assert!(second.headers().is_empty());
    assert_eq!(watch.order.load(Ordering::Relaxed), CLOSE);
}

#[test]
fn places_are_limited() {
    let connections = connections();
    let (first, _second) = (connections.enter().unwrap(), connections.enter().unwrap());
    assert!(connections.enter().is_none());
    drop(first);
    assert!(connections.enter().is_some());
}

#[test]
fn that_connections_are_refused_is_news_again_after_a_quiet_minute() {
    let connections = connections();
    let refused_after = |ticks: u32| {
        (0..ticks).for_each(|_| connections.sweep());
        connections.refuses()
    };
    let news = [0, 0, 30, 60, 61].map(refused_after);
    assert_eq!(news, [true, false, false, false, true]);
}

#[test]
fn who_rests_longest_makes_room_and_nobody_else() {
    let connections = connections();
    let served = || {
        let place = connections.enter().unwrap();
        place.watch.request_began(Version::HTTP_11);
        place.watch.request_ended();
        connections.sweep();
        place
    };
    let order = |place: &Place| place.watch.order.load(Ordering::Relaxed);
    let (first, second) = (served(), served());
    let third = connections.enter().unwrap();
    assert_eq!((order(&first), order(&second)), (DROP, STAY));
    // Before the first is gone.
    let fourth = connections.enter().unwrap();
    assert_eq!(order(&second), DROP);
    drop((first, second));
    assert!(connections.enter().is_none(), "who has not asked yet stays");
    third.watch.request_began(Version::HTTP_11);
    fourth.watch.request_began(Version::HTTP_11);
    assert!(connections.enter().is_none(), "and so does who is served");
    third.watch.request_ended();
    third.watch.bytes_came();
    assert!(connections.enter().is_none(), "and who begins to ask");
    fourth.watch.request_ended();
    assert!(connections.enter().is_some());
    assert_eq!((order(&third), order(&fourth)), (STAY, DROP));
}

#[test]
fn when_a_port_closes_only_what_is_in_hand_is_waited_for() {
    let connections = connections();
    let places = [(), ()].map(|()| connections.enter().unwrap());
    for place in &places {
        place.watch.request_began(Version::HTTP_2);
    }
    let [rests, works] = places;
    rests.watch.request_ended();
    connections.close();
    assert_eq!(sweep(&connections, &rests, 1), CLOSE);
    assert_eq!(sweep(&connections, &rests, 1), DROP);
    assert_eq!(sweep(&connections, &works, 100), CLOSE);
    works.watch.request_ended();
    assert_eq!(sweep(&connections, &works, 1), CLOSE);
    assert_eq!(sweep(&connections, &works, 1), DROP);
}
