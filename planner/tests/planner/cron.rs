//! Cron: what a schedule begins, leaves out and makes up for.

use std::time::Duration;

use wasmorch_api::EventKind;
use wasmorch_api::spec::Overlap;

use super::runs::{NOON, cron, noon};
use super::*;

#[test]
fn cron_runs_at_its_times_and_at_no_other() {
    let mut world = noon(1);
    world.fates.insert(1, Fate::Completes);
    world.deploy(cron("*/5 * * * *", Overlap::Skip, 60), Kind::Cron);
    world.run(3);
    assert_eq!(
        (world.begun(), world.state()),
        (0, WorkloadState::Idle),
        "12:00 is now"
    );
    let next = queries::status(&world.cluster, &web(), false).unwrap().next;
    assert_eq!(next, Some(Timestamp(NOON.0 + 300_000)));
    world.pass(295);
    assert_eq!(world.begun(), 0);
    world.pass(10);
    assert_eq!((world.begun(), world.starts()), (1, 1));
    assert_eq!(world.run_of().scheduled, Some(Timestamp(NOON.0 + 300_000)));
    world.pass(600);
    assert_eq!((world.begun(), world.starts()), (3, 3));
    assert_eq!(world.told(EventKind::JobCompleted).len(), 3);
    assert_eq!(world.told(EventKind::CronSkipped), [""; 0]);
    // Stopped: nothing. Started again: nothing is made up for.
    world.change(commands::stop, None);
    world.pass(900);
    world.change(commands::start, None);
    world.pass(5);
    assert_eq!(world.begun(), 3);
    world.pass(300);
    assert_eq!(world.begun(), 4);
    // Out of its turn.
    world.change(commands::start, None);
    world.pass(3);
    assert_eq!((world.begun(), world.starts()), (4, 5));
}

#[test]
fn a_clock_that_is_set_forward_is_followed_by_schedules_and_by_nothing_else() {
    let mut world = noon(2);
    world
        .fates
        .extend([(1, Fate::Completes), (2, Fate::Completes)]);
    world.deploy(cron("0 15 * * *", Overlap::Skip, 600), Kind::Cron);
    world.run(3);
    let from = world.now;
    // The time was not known when the term began: it is five to three.
    let ahead = Duration::from_secs(2 * 3_600 + 55 * 60);
    let wall = |now: Timestamp| now.after(ahead);
    assert!(
        !world
            .cluster
            .follow_clock(from.after(Duration::from_millis(900)), from)
    );
    assert!(world.cluster.follow_clock(wall(from), from));
    assert!(!world.cluster.follow_clock(wall(from), from), "once");
    world.pass(290);
    assert_eq!(world.begun(), 0);
    world.pass(15);
    assert_eq!((world.begun(), world.starts()), (1, 1));
    assert_eq!(
        world.run_of().scheduled,
        Some(Timestamp(NOON.0 + 3 * 3_600_000))
    );
    let alive = |host: &wasmorch_planner::Host| host.state == HostState::Alive;
    assert!(
        world.cluster.hosts().values().all(alive),
        "no time has passed"
    );
    // What is deployed, or started, from now on counts by that clock, too.
    world.change(commands::stop, None);
    world.change(commands::start, None);
    world.deploy(cron("*/5 * * * *", Overlap::Skip, 3_600), Kind::Cron);
    world.pass(5);
    assert_eq!(world.begun(), 1, "what the clock has leapt over is no time");
    world.pass(300);
    assert_eq!(world.begun(), 2);
    // Set back: nothing is begun twice.
    assert!(world.cluster.follow_clock(world.now, world.now));
    world.pass(300);
    assert_eq!(world.begun(), 2, "those times have been");
}

#[test]
fn a_deploy_of_what_is_stopped_goes_on_with_no_run_of_before() {
    for spec in ["*/5 * * * *", "*/10 * * * *"] {
        let mut world = noon(1);
        world.fates.insert(1, Fate::Unready);
        world.deploy(cron("*/5 * * * *", Overlap::Skip, 60), Kind::Cron);
        world.pass(302);
        assert_eq!((world.begun(), world.starts()), (1, 1));
        world.change(commands::stop, None);
        world.pass(10);
        world.deploy(cron(spec, Overlap::Skip, 60), Kind::Cron);
        world.pass(30);
        assert_eq!((world.begun(), world.starts()), (1, 1), "{spec}");
    }
}

#[test]
fn another_leader_begins_nothing_twice_and_misses_nothing_within_catch_up() {
    let mut world = noon(1);
    world.fates.insert(1, Fate::Completes);
    world.deploy(cron("*/5 * * * *", Overlap::Skip, 120), Kind::Cron);
    world.pass(302);
    assert_eq!(world.begun(), 1);
    world.interregnum(20);
    assert_eq!((world.begun(), world.starts()), (1, 1), "begun already");
    // 12:10 comes while nobody leads, and is made up for.
    world.pass(270);
    world.interregnum(60);
    world.pass(10);
    assert_eq!((world.begun(), world.starts()), (2, 2));
    assert_eq!(world.told(EventKind::CronSkipped), [""; 0]);
    // 12:15 is two and a half minutes late: left out, and said. 12:20 is not.
    world.pass(200);
    world.interregnum(260);
    let skipped = world.told(EventKind::CronSkipped);
    assert_eq!(skipped.len(), 1, "{skipped:?}");
    assert!(
        skipped[0].contains("missed by more than catch_up (2m)"),
        "{skipped:?}"
    );
    let begun = world.begun();
    world.pass(300);
    assert_eq!(world.begun(), begun + 1);
}

#[test]
fn what_still_runs_is_waited_for_joined_or_replaced() {
    for (overlap, begun, running, skipped) in [
        (Overlap::Skip, 1, 1, 4),
        (Overlap::Allow, 5, 5, 0),
        (Overlap::Replace, 5, 1, 0),
    ] {
        let mut world = noon(1);
        world.fates.insert(1, Fate::Unready);
        world.deploy(cron("* * * * *", overlap, 60), Kind::Cron);
        world.pass(310);
        assert_eq!(
            (world.begun(), world.running()),
            (begun, running),
            "{overlap:?}"
        );
        assert_eq!(
            world.cluster.workload(&web()).unwrap().placements.len(),
            running
        );
        assert_eq!(world.told(EventKind::CronSkipped).len(), skipped);
        assert_eq!(world.desired().1 as usize, running);
        world.fates.insert(1, Fate::Completes);
        world.pass(5);
        assert_eq!((world.running(), world.state()), (0, WorkloadState::Idle));
    }
}

#[test]
fn runs_at_once_are_bounded_and_the_rest_wait_for_their_turn() {
    let mut world = noon(1);
    world.fates.insert(1, Fate::Unready);
    world.deploy(cron("* * * * *", Overlap::Allow, 3_600), Kind::Cron);
    world.pass(20 * 60 + 5);
    assert_eq!((world.begun(), world.running()), (16, 16));
    world.fates.insert(1, Fate::Completes);
    world.pass(5);
    assert_eq!(world.begun(), 20, "all of them in the end");
}
