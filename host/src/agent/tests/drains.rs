//! How what runs is let go: drained, cut, and wanted again meanwhile.

use super::*;

#[test]
fn what_is_dropped_is_drained_told_and_forgotten() {
    let mut stage = Stage::running("web", Kind::Http);
    let effects = stage.event(told(set(1, "l1", &[]), 11));
    let [
        ToRunner::Drain {
            deadline_ms: 30_000,
            ..
        },
    ] = to_runner(&effects)[..]
    else {
        panic!("{effects:?}")
    };
    assert_eq!(status(&effects, "1-7-1").state, ReplicaState::Draining);
    let effects = stage.runner(FromRunner::Stopped {
        replica: replica("web", "1-7-1"),
    });
    assert_eq!(status(&effects, "1-7-1").state, ReplicaState::Stopped);
    assert_eq!(stage.agent.status_page(None).unwrap().replicas, []);
    assert!(stage.agent.idle());
    assert_eq!(stage.agent.artifacts_in_use().len(), 0);
}

#[test]
fn what_drains_by_a_set_need_not_answer_once_gateways_have_heard() {
    let mut stage = Stage::running("web", Kind::Http);
    stage.event(told(set(1, "l1", &[]), 11));
    let effects = stage.event(Event::Withdrawn { set: Some(10) });
    assert!(to_runner(&effects).is_empty(), "of an earlier set");
    let effects = stage.event(Event::Withdrawn { set: Some(11) });
    assert!(
        matches!(to_runner(&effects)[..], [ToRunner::Withdrawn { replica: one }] if *one == replica("web", "1-7-1"))
    );
    let effects = stage.event(Event::Withdrawn { set: Some(11) });
    assert!(to_runner(&effects).is_empty(), "once");

    // The word may come before its set; that of another leader says nothing of it.
    for (term, told_too) in [(1, true), (2, false)] {
        let mut stage = Stage::running("web", Kind::Http);
        let effects = stage.event(Event::Withdrawn { set: Some(11) });
        assert!(to_runner(&effects).is_empty(), "nothing drains");
        let effects = stage.event(told(set(term, "l1", &[]), 11));
        let effects = to_runner(&effects);
        let withdrawn = effects
            .iter()
            .filter(|to| matches!(to, ToRunner::Withdrawn { .. }));
        assert_eq!(withdrawn.count() == 1, told_too, "{effects:?}");
        assert!(matches!(effects.first(), Some(ToRunner::Drain { .. })));
    }

    // By the host's own doing: no set says that it has gone.
    let mut stage = Stage::running("web", Kind::Http);
    let deadline = Duration::from_secs(5);
    stage.event(Event::Shutdown { deadline });
    let effects = stage.event(Event::Withdrawn { set: Some(99) });
    assert!(to_runner(&effects).is_empty());
    let effects = stage.event(Event::Withdrawn { set: None });
    assert!(matches!(
        to_runner(&effects)[..],
        [ToRunner::Withdrawn { .. }]
    ));
}

#[test]
fn a_drain_that_takes_too_long_is_cut() {
    let mut stage = Stage::running("web", Kind::Http);
    stage.event(told(set(1, "l1", &[]), 11));
    let effects = stage.after(Duration::from_secs(30));
    assert!(
        to_runner(&effects).is_empty(),
        "the runner has its deadline, and a grace"
    );
    let effects = stage.until_due();
    assert!(matches!(to_runner(&effects)[..], [ToRunner::Stop { .. }]));
}

#[test]
fn wanted_again_while_it_drains() {
    let mut stage = Stage::running("web", Kind::Http);
    stage.event(told(set(1, "l1", &[]), 11));
    let effects = stage.event(told(set(1, "l1", &[("web", 1, 7)]), 12));
    assert!(
        to_runner(&effects).is_empty(),
        "the replica's state only moves forward"
    );
    let effects = stage.runner(FromRunner::Stopped {
        replica: replica("web", "1-7-1"),
    });
    assert_eq!(status(&effects, "1-7-2").state, ReplicaState::Preparing);
}

#[test]
fn shutting_down_drains_all_and_starts_nothing() {
    let mut stage = Stage::running("web", Kind::Http);
    let info = HostInfo::default();
    assert!(!stage.agent.heartbeat(&info, 0, stage.now).unwrap().leaving);
    let effects = stage.event(Event::Shutdown {
        deadline: Duration::from_secs(3),
    });
    assert!(stage.agent.heartbeat(&info, 0, stage.now).unwrap().leaving);
    assert!(matches!(
        to_runner(&effects)[..],
        [ToRunner::Drain {
            deadline_ms: 3_000,
            ..
        }]
    ));
    stage.runner(FromRunner::Stopped {
        replica: replica("web", "1-7-1"),
    });
    assert!(stage.agent.idle());
    assert!(
        to_runner(&stage.event(told(set(1, "l1", &[("web", 1, 7), ("web", 2, 8)]), 12))).is_empty()
    );
    assert!(stage.agent.idle());
}
