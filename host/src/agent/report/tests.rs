//! Reports: what is told, when, and how large it may be.

use std::sync::Arc;
use std::time::Duration;

use wasmorch_api::spec::{Scale, scale_panic, scale_tolerance, scale_window};
use wasmorch_api::{Answers, HostInfo, Kind};

use super::super::Event;
use super::super::tests::{Stage, fetched, replica, reports, revision, set, status, told};
use super::Load;
use crate::agent::REASON_BYTES_MAX;
use crate::runner::protocol::{FromRunner, Outcome, ReplicaUsage, Usage};

#[test]
fn usage_is_told_when_it_moves_and_not_too_often() {
    let mut stage = Stage::running("web", Kind::Http);
    let used = |memory_bytes| {
        let replica = replica("web", "1-7-1");
        let usage = ReplicaUsage {
            replica,
            memory_bytes,
            cpu_millis: 0,
            in_flight: 0,
            request_millis: 0,
            pending: 0,
            answers: Answers::default(),
        };
        FromRunner::Usage(Usage {
            replicas: vec![usage],
            ..Usage::default()
        })
    };
    stage.now = stage.now.after(Duration::from_secs(60));
    assert_eq!(
        status(&stage.runner(used(8 << 20)), "1-7-1").memory_bytes,
        8 << 20
    );
    assert!(
        stage.runner(used(32 << 20)).is_empty(),
        "five seconds have not passed"
    );
    assert_eq!(stage.agent.pulse().memory_bytes, 32 << 20);
    stage.now = stage.now.after(Duration::from_secs(5));
    assert_eq!(
        status(&stage.runner(used(32 << 20)), "1-7-1").memory_bytes,
        32 << 20
    );
    stage.now = stage.now.after(Duration::from_secs(5));
    assert!(stage.runner(used(33 << 20)).is_empty(), "hardly moved");
}

#[test]
fn a_heartbeat_tells_the_load_of_workloads_with_scale_alone() {
    let used = |id: &str, in_flight| ReplicaUsage {
        replica: replica("web", id),
        memory_bytes: 0,
        cpu_millis: 20,
        in_flight,
        request_millis: 1_500,
        pending: in_flight * 100,
        answers: Answers::default(),
    };
    let loads = |scale: Option<Scale>| {
        let mut revision = revision("web", 1, Kind::Http);
        revision.spec.scale = scale;
        let mut stage = Stage::running_revision(revision);
        stage.event(told(set(1, "l1", &[("web", 1, 7), ("web", 2, 8)]), 11));
        stage.bring_up("web", "2-8-1");
        stage.runner(FromRunner::Usage(Usage {
            replicas: vec![used("1-7-1", 3), used("2-8-1", 4)],
            ..Usage::default()
        }));
        let beat = stage.agent.heartbeat(&HostInfo::default(), 0, stage.now);
        beat.unwrap().loads
    };
    assert_eq!(loads(None), []);
    let scale = Scale {
        min: 1,
        max: 9,
        target: [("concurrency".to_owned(), 5)].into(),
        window: scale_window(),
        panic: scale_panic(),
        tolerance: scale_tolerance(),
    };
    let told = loads(Some(scale));
    let sum = Load {
        in_flight: 7,
        cpu_millis: 40,
        request_millis: 3_000,
        // The same messages, as two replicas saw them.
        pending: 400,
    };
    assert_eq!(told.len(), 1, "one entry for all its replicas: {told:?}");
    assert_eq!((told[0].workload.as_str(), told[0].load), ("web", sum));
}

#[test]
fn answers_are_told_as_they_grow_and_stay_when_a_replica_has_ended() {
    let mut stage = Stage::running("web", Kind::Http);
    let answered = |requests, errors| {
        let usage = ReplicaUsage {
            replica: replica("web", "1-7-1"),
            memory_bytes: 0,
            cpu_millis: 0,
            in_flight: 0,
            request_millis: 0,
            pending: 0,
            answers: Answers {
                requests,
                errors,
                slow: 0,
            },
        };
        FromRunner::Usage(Usage {
            replicas: vec![usage],
            ..Usage::default()
        })
    };
    let told = |effects: &[_]| {
        let answers = status(effects, "1-7-1").answers;
        (answers.requests, answers.errors)
    };
    stage.now = stage.now.after(Duration::from_secs(60));
    assert_eq!(told(&stage.runner(answered(19, 0))), (19, 0));
    assert!(stage.runner(answered(20, 0)).is_empty(), "hardly grown");
    stage.now = stage.now.after(Duration::from_secs(5));
    assert_eq!(told(&stage.runner(answered(20, 0))), (20, 0), "in the end");
    assert_eq!(told(&stage.runner(answered(20, 1))), (20, 1), "at once");
    assert_eq!(told(&stage.runner(answered(30, 1))), (30, 1));
    assert!(stage.runner(answered(10, 0)).is_empty(), "less than before");
    let outcome = Outcome::Failed {
        exit_code: None,
        reason: "it broke".into(),
    };
    let effects = stage.runner(FromRunner::Ended {
        replica: replica("web", "1-7-1"),
        outcome,
    });
    assert_eq!(told(&effects), (30, 1));
}

#[test]
fn reports_are_numbered_and_large_ones_are_split() {
    let mut stage = Stage::new();
    let placements: Vec<_> = (1..=3000).map(|slot| ("web", slot, slot)).collect();
    stage.event(told(set(1, "l1", &placements), 10));
    stage.now = stage.agent.wake_at().expect("they are to be told");
    let effects = stage.event(Event::Tick);
    let reports = reports(&effects);
    assert!(reports.len() > 1);
    for (report, number) in reports.iter().zip(1..) {
        assert_eq!(report.status_seq, number);
        assert!(serde_json::to_vec(report).unwrap().len() < 512 * 1024);
    }
    let mut cursor = None;
    let mut replicas = 0;
    loop {
        let page = stage.agent.status_page(cursor.as_deref()).unwrap();
        assert!(page.full && serde_json::to_vec(&page).unwrap().len() < 512 * 1024);
        replicas += page.replicas.len();
        cursor = page.next;
        if cursor.is_none() {
            break;
        }
    }
    assert_eq!(replicas, 3000);
}

/// Of many starts one that is quick is told of once; a slow one is told of while it lasts.
#[test]
fn how_far_each_of_many_starts_is_on_its_way_is_told_when_it_takes_long() {
    let mut stage = Stage::new();
    let many = u64::try_from(super::TOLD_AT_ONCE).unwrap() + 1;
    let placements: Vec<_> = (1..=many).map(|slot| ("web", slot, slot)).collect();
    let effects = stage.event(told(set(1, "l1", &placements), 10));
    assert!(reports(&effects).is_empty(), "{effects:?}");
    let due = stage.agent.wake_at().expect("they are to be told");
    stage.event(Event::Revision(Arc::new(revision("web", 1, Kind::Http))));
    stage.event(fetched("web"));
    let quick = || replica("web", "1-1-1");
    let (replica, listens) = (quick(), true);
    stage.runner(FromRunner::Prepared { replica, listens });
    let effects = stage.runner(FromRunner::Started { replica: quick() });
    let at_once = reports(&effects);
    assert_eq!((at_once.len(), at_once[0].replicas.len()), (1, 1));

    stage.now = due;
    let effects = stage.event(Event::Tick);
    let late: Vec<_> = reports(&effects);
    let late = late.iter().flat_map(|report| &report.replicas);
    assert_eq!(late.clone().count() as u64, many - 1);
    assert!({ late }.all(|one| one.replica != quick().id));
    assert!(reports(&stage.event(Event::Tick)).is_empty(), "once");
}

#[test]
fn what_is_held_is_told_in_pages() {
    let mut stage = Stage::running("web", Kind::Http);
    let names: Vec<String> = (0..200)
        .map(|n| format!("w{n}-{}", "x".repeat(50)))
        .collect();
    let placements: Vec<_> = names
        .iter()
        .map(|name| (name.as_str(), 1, 7))
        .chain([("web", 1, 7)])
        .collect();
    let mut large = set(1, "l1", &placements);
    for group in &mut large.groups {
        group.slots[0].args = Some(std::sync::Arc::new(vec!["y".repeat(5_000)]));
    }
    stage.event(told(large.clone(), 11));
    let (mut cursor, mut groups, mut revisions, mut pages) = (None, Vec::new(), 0, 0);
    loop {
        let page = stage.agent.held_page(cursor.as_deref()).unwrap();
        assert!(serde_json::to_vec(&page).unwrap().len() < 512 * 1024);
        assert_eq!(page.sequence, 11);
        groups.extend(page.groups);
        revisions += page.revisions.len();
        pages += 1;
        cursor = page.next;
        if cursor.is_none() {
            break;
        }
    }
    assert_eq!(
        (groups, revisions),
        (large.groups, 1),
        "the others are not fetched yet"
    );
    assert!(pages > 1);
}

#[test]
fn a_very_long_reason_is_cut() {
    let mut stage = Stage::running("web", Kind::Http);
    let outcome = Outcome::Failed {
        exit_code: None,
        reason: "ä".repeat(10_000),
    };
    let effects = stage.runner(FromRunner::Ended {
        replica: replica("web", "1-7-1"),
        outcome,
    });
    assert!(status(&effects, "1-7-1").reason.unwrap().len() <= REASON_BYTES_MAX);
}
