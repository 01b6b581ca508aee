//! What is deployed together completes together, or goes back together.

use wasmorch_api::spec::{Canary, OnFailure, Promote};
use wasmorch_api::{EventKind, HumanDuration};

use super::deps::of;
use super::*;

/// Two that run at revision 1, and revision 2 of both deployed together.
fn together(fate: Fate) -> World {
    let mut world = World::new(3);
    world.http(&[of("web", "1", &[]), of("orders", "1", &[])], false);
    world.run(8);
    world.fate("orders", 2, fate);
    world.http(&[of("web", "2", &[]), of("orders", "2", &[])], true);
    world
}

#[test]
fn what_is_deployed_together_completes_together() {
    let mut world = together(Fate::Unready);
    world.go_until("web waits", |world| !world.waits("web").is_empty());
    assert_eq!(world.runs("web"), [2, 2]);
    assert_eq!(world.stands("web").0, RolloutState::Rolling);
    let (on, why, _) = world.waits("web").remove(0);
    assert_eq!(
        (on.as_str(), why.as_str()),
        ("orders", "deployed together, 0 of 2 ready")
    );
    world.own_fates.clear();
    world.go_until("both", |world| {
        ["web", "orders"].map(|one| world.stands(one)) == [(RolloutState::Completed, 2); 2]
    });
    assert!(world.plan().is_empty());
}

#[test]
fn what_is_deployed_together_goes_back_together() {
    let mut world = together(Fate::Unready);
    world.go_until("web waits", |world| !world.waits("web").is_empty());
    world.go_until("both", |world| {
        ["web", "orders"].map(|one| world.stands(one)) == [(RolloutState::Reverted, 1); 2]
    });
    world.run(4);
    assert_eq!(
        (world.runs("web"), world.runs("orders")),
        (vec![1, 1], vec![1, 1])
    );
    let said = world.told_of("web", EventKind::RolloutReverted).remove(0);
    assert!(said.starts_with("orders failed: "), "{said}");
    assert!(said.ends_with(", deployed together (atomic)"), "{said}");
    assert!(world.plan().is_empty());
}

#[test]
fn what_has_arrived_goes_back_too_when_it_fails_before_the_others_are_there() {
    let mut world = together(Fate::Unready);
    world.go_until("web waits", |world| !world.waits("web").is_empty());
    world.own_fates.clear();
    world.fate("web", 2, Fate::GivesUp);
    world.go_until("both", |world| {
        ["web", "orders"].map(|one| world.stands(one)) == [(RolloutState::Reverted, 1); 2]
    });
}

#[test]
fn a_new_leader_takes_the_rest_back() {
    let mut world = together(Fate::Unready);
    world.go_until("orders failed", |world| {
        world.stands("orders").0 == RolloutState::Reverting
    });
    assert_eq!(
        world.stands("web").0,
        RolloutState::Rolling,
        "the next plan's"
    );
    world.new_leader();
    world.go_until("both", |world| {
        ["web", "orders"].map(|one| world.stands(one)) == [(RolloutState::Reverted, 1); 2]
    });
}

#[test]
fn whoever_takes_the_failed_one_out_takes_the_rest_back() {
    for how in ["deploy", "stop", "rm", "rollback"] {
        let mut world = together(Fate::Unready);
        world.go_until("orders failed", |world| {
            world.stands("orders").0 == RolloutState::Reverting
        });
        match how {
            "deploy" => world.http(&[of("orders", "3", &[])], false),
            "stop" => world.ask_of("orders", commands::stop),
            "rm" => world.ask_of("orders", commands::rm),
            _ => {
                // A rollback waits for the revert to end.
                continue;
            }
        }
        assert_eq!(world.stands("web"), (RolloutState::Reverting, 1), "{how}");
        world.go_until(how, |world| {
            world.stands("web") == (RolloutState::Reverted, 1)
        });
    }
}

#[test]
fn whoever_is_taken_out_in_time_holds_up_nobody() {
    for command in [commands::stop as Command, commands::rm] {
        let mut world = together(Fate::Unready);
        world.go_until("web waits", |world| !world.waits("web").is_empty());
        world.ask_of("orders", command);
        world.go_until("web", |world| {
            world.stands("web") == (RolloutState::Completed, 2)
        });
    }
}

#[test]
fn what_was_new_goes_back_to_nothing_and_can_be_tried_again() {
    let mut world = World::new(3);
    world.http(&[of("orders", "1", &[])], false);
    world.run(8);
    world.fate("orders", 2, Fate::Unready);
    let both = [of("web", "1", &[]), of("orders", "2", &[])];
    world.http(&both, true);
    world.go_until("web ran", |world| world.runs("web").len() == 2);
    world.go_until("orders", |world| {
        world.stands("orders") == (RolloutState::Reverted, 1)
    });
    world.run(4);
    assert_eq!(world.state_of("web"), WorkloadState::Stopped);
    assert_eq!(
        (world.stands("web"), world.runs("web")),
        ((RolloutState::Failed, 1), vec![])
    );
    // The same once more, and once more in vain: what never served is nothing to go back to.
    world.fate("orders", 3, Fate::Unready);
    world.http(&both, true);
    world.go_until("orders again", |world| {
        world.stands("orders") == (RolloutState::Reverted, 1)
            && world.stands("web") == (RolloutState::Failed, 2)
    });
    assert_eq!(world.state_of("web"), WorkloadState::Stopped);
    world.http(&both, true);
    world.go_until("both", |world| {
        world.stands("web") == (RolloutState::Completed, 3)
            && world.stands("orders") == (RolloutState::Completed, 4)
    });
    assert_eq!(world.state_of("web"), WorkloadState::Ready);
}

#[test]
fn abort_of_one_is_abort_of_all() {
    let mut world = together(Fate::Unready);
    world.go_until("web waits", |world| !world.waits("web").is_empty());
    world.rollout_of("web", RolloutAction::Abort).unwrap();
    assert_eq!(world.stands("web"), (RolloutState::Aborted, 1));
    assert_eq!(world.stands("orders"), (RolloutState::Aborted, 1));
    world.run(12);
    assert_eq!(
        (world.runs("web"), world.runs("orders")),
        (vec![1, 1], vec![1, 1])
    );
    let said = world.view("orders").reason.unwrap();
    assert_eq!(said, "web aborted by test, deployed together (atomic)");
}

#[test]
fn what_waits_and_goes_together_does_both() {
    for (fate, ends) in [
        (Fate::Ready, (RolloutState::Completed, 2)),
        (Fate::Unready, (RolloutState::Reverted, 1)),
    ] {
        let mut world = World::new(3);
        world.http(&[of("web", "1", &[]), of("orders", "1", &[])], false);
        world.run(8);
        world.fate("orders", 2, fate);
        world.http(&[of("web", "2", &["orders"]), of("orders", "2", &[])], true);
        world.go_until("both", |world| {
            ["web", "orders"].map(|one| world.stands(one)) == [ends; 2]
        });
        assert!(world.plan().is_empty());
    }
}

#[test]
fn canaries_come_after_the_wait_and_before_the_others_are_waited_for() {
    let mut world = World::new(3);
    world.http(&[of("web", "1", &[]), of("orders", "1", &[])], false);
    world.run(8);
    world.fate("orders", 2, Fate::Unready);
    let mut web = of("web", "2", &["orders"]);
    web.update.canary = Some(Canary {
        replicas: 1,
        bake: HumanDuration::secs(2),
        promote: Promote::Auto,
        ..Canary::default()
    });
    world.http(&[web, of("orders", "2", &[])], true);
    world.run(4);
    assert_eq!(world.stands("web"), (RolloutState::Rolling, 1));
    world.own_fates.clear();
    world.go_until("canaries", |world| {
        world.stands("web") == (RolloutState::Canary, 1)
    });
    world.go_until("both", |world| {
        ["web", "orders"].map(|one| world.stands(one)) == [(RolloutState::Completed, 2); 2]
    });
}

fn nightly(version: &str, schedule: &str, depends_on: &[&str]) -> (WorkloadSpec, Kind) {
    let mut cron = of("nightly", version, depends_on);
    (cron.replicas, cron.schedule) = (None, Some(schedule.into()));
    (cron, Kind::Cron)
}

#[test]
fn a_cron_workload_completes_and_goes_back_with_the_others() {
    let ends = [
        (Fate::Ready, (RolloutState::Completed, 2)),
        (Fate::Unready, (RolloutState::Reverted, 1)),
    ];
    for ((fate, ends), on) in ends
        .into_iter()
        .flat_map(|one| [(one, None), (one, Some("web"))])
    {
        let mut world = World::new(3);
        let first = vec![
            (of("web", "1", &[]), Kind::Http),
            nightly("1", "@daily", &[]),
        ];
        world.deploy_all(first, false).unwrap();
        world.run(8);
        world.fate("web", 2, fate);
        let on: Vec<&str> = on.into_iter().collect();
        let second = nightly("2", "@hourly", &on);
        let both = vec![(of("web", "2", &[]), Kind::Http), second];
        world.deploy_all(both, true).unwrap();
        let waits = world.waits("nightly").remove(0);
        assert_eq!(waits.0, "web");
        if on.is_empty() {
            assert_eq!(world.stands("nightly"), (RolloutState::Rolling, 2));
            assert_eq!(waits.1, "deployed together, 0 of 2 ready");
            // What it runs meanwhile it has run.
            world.ask_of("nightly", commands::start);
        }
        world.go_until("both", |world| {
            ["web", "nightly"].map(|one| world.stands(one)) == [ends; 2]
        });
        let record = world.record("nightly");
        assert_eq!(record.stable.map(|stable| stable.0), Some(ends.1));
        assert_eq!(record.run.is_some(), on.is_empty());
        assert!(!record.stopped);
        world.run(12);
        assert!(world.plan().is_empty());
        assert_eq!(
            world.stands("nightly"),
            ends,
            "how a run ends changes nothing"
        );
    }
}

#[test]
fn a_new_cron_workload_goes_back_to_nothing_and_can_be_tried_again() {
    let mut world = World::new(3);
    world.http(&[of("web", "1", &[])], false);
    world.run(8);
    world.fate("web", 2, Fate::Unready);
    let both = vec![
        (of("web", "2", &[]), Kind::Http),
        nightly("1", "@daily", &[]),
    ];
    world.deploy_all(both.clone(), true).unwrap();
    world.go_until("both", |world| {
        world.stands("web") == (RolloutState::Reverted, 1)
            && world.stands("nightly") == (RolloutState::Failed, 1)
    });
    assert_eq!(world.state_of("nightly"), WorkloadState::Stopped);
    let before = world.cluster.clone();
    world.deploy_all(both, true).unwrap();
    world.go_until("both", |world| {
        world.stands("web") == (RolloutState::Completed, 3)
            && world.stands("nightly") == (RolloutState::Completed, 2)
    });
    // Or a person starts it, as it is.
    world.cluster = before;
    world.ask_of("nightly", commands::start);
    world.run(4);
    let record = world.record("nightly");
    assert!(!record.stopped && record.rollout.is_none());
}

#[test]
fn what_changes_into_a_cron_workload_changes_back() {
    let mut world = World::new(3);
    let first = [of("web", "1", &[]), of("nightly", "1", &[])];
    world.http(&first, false);
    world.run(8);
    world.fate("web", 2, Fate::Unready);
    let both = vec![
        (of("web", "2", &[]), Kind::Http),
        nightly("2", "@daily", &[]),
    ];
    world.deploy_all(both, true).unwrap();
    world.go_until("both", |world| {
        ["web", "nightly"].map(|one| world.stands(one)) == [(RolloutState::Reverted, 1); 2]
    });
    assert_eq!(world.record("nightly").kind, Kind::Http);
    assert_eq!(world.runs("nightly"), [1, 1]);
}

#[test]
fn what_cannot_go_back_is_not_deployed_together() {
    let mut world = World::new(1);
    let mut pauses = of("web", "1", &[]);
    pauses.update.on_failure = OnFailure::Pause;
    let all = vec![(pauses, Kind::Http), (of("report", "1", &[]), Kind::Job)];
    let refused = world.deploy_all(all, true).unwrap_err();
    let at: Vec<&str> = refused.problems.iter().map(|one| one.at.as_str()).collect();
    assert_eq!(at, ["workloads[0].update.on_failure", "workloads[1].kind"]);
}
