//! Tests of `removals`: nothing that may write into the data lives while they go, nothing of that name
//! starts before they are gone, and no removal is asked for twice.

use wasmorch_api::{Kind, PlacementNumber, PlacementSet, Removal, RemovalId, Timestamp};

use super::tests::*;
use super::*;

fn removal(before: u64) -> Removal {
    Removal {
        id: RemovalId {
            workload: workload("db"),
            before: PlacementNumber(before),
            at: Timestamp(before * 1_000),
        },
        containers: Vec::new(),
    }
}

fn without_data(placements: &[(&str, u64, u64)], before: &[u64]) -> PlacementSet {
    PlacementSet {
        removals: before.iter().copied().map(removal).collect(),
        ..set(1, "l1", placements)
    }
}

fn asked(effects: &[Effect]) -> Vec<u64> {
    let asked = effects.iter().filter_map(|effect| match effect {
        Effect::RemoveData(removal) => Some(removal.id.before.0),
        _ => None,
    });
    asked.collect()
}

fn removed(before: u64, failed: Option<&str>) -> Event {
    Event::DataRemoved {
        removal: removal(before),
        failed: failed.map(str::to_owned),
    }
}

fn starts(effects: &[Effect]) -> bool {
    let mut reports = reports(effects).into_iter();
    reports.any(|report| !report.replicas.is_empty())
}

fn says_so(stage: &Stage) -> bool {
    let beat = stage.agent.heartbeat(&Default::default(), 0, stage.now);
    !beat.unwrap().removals.unwrap().is_empty()
}

#[test]
fn one_of_the_same_name_starts_once_the_data_are_gone() {
    let mut stage = Stage::new();
    let effects = stage.event(told(without_data(&[("db", 1, 9), ("web", 1, 1)], &[9]), 10));
    assert_eq!(asked(&effects), [9]);
    assert_eq!(stage.agent.state_of(&key("db", 1, 9)), None);
    assert!(
        stage.agent.state_of(&key("web", 1, 1)).is_some(),
        "others do"
    );
    assert!(says_so(&stage));
    let effects = stage.event(removed(9, None));
    assert!(starts(&effects));
    assert!(stage.agent.state_of(&key("db", 1, 9)).is_some());
    assert!(!says_so(&stage));
    // The set goes on naming it, and it is done.
    let effects = stage.event(told(without_data(&[("db", 1, 9)], &[9]), 11));
    assert_eq!(asked(&effects), [0_u64; 0]);
    let effects = stage.event(told(without_data(&[("db", 1, 9)], &[9, 12]), 12));
    assert_eq!(
        asked(&effects),
        [0_u64; 0],
        "what it runs is older than that"
    );
}

#[test]
fn what_may_write_into_the_data_ends_first() {
    let mut stage = Stage::running("db", Kind::Service);
    let effects = stage.event(told(without_data(&[], &[8]), 11));
    assert_eq!(asked(&effects), [0_u64; 0]);
    assert!(says_so(&stage));
    let effects = stage.fail("db", "1-7-1");
    assert_eq!(asked(&effects), [8]);
}

#[test]
fn what_fails_is_tried_again_and_holds_starts_back() {
    let mut stage = Stage::new();
    stage.event(told(without_data(&[("db", 1, 9)], &[9]), 10));
    stage.event(removed(9, Some("the disk fails")));
    assert!(says_so(&stage));
    // Another set does not hurry it, and one that names it no more does not undo it.
    let effects = stage.event(told(set(1, "l1", &[("db", 1, 9)]), 11));
    assert_eq!(asked(&effects), [0_u64; 0]);
    assert_eq!(stage.agent.state_of(&key("db", 1, 9)), None);
    let effects = stage.until_due();
    assert_eq!(asked(&effects), [9]);
    stage.event(removed(9, None));
    assert!(stage.agent.state_of(&key("db", 1, 9)).is_some());
}

#[test]
fn removals_of_one_name_go_one_after_the_other() {
    let mut stage = Stage::new();
    let effects = stage.event(told(without_data(&[("db", 1, 12)], &[9, 12]), 10));
    assert_eq!(asked(&effects), [9]);
    let effects = stage.event(removed(9, None));
    assert_eq!(asked(&effects), [12]);
    assert_eq!(stage.agent.state_of(&key("db", 1, 12)), None);
    stage.event(removed(12, None));
    assert!(stage.agent.state_of(&key("db", 1, 12)).is_some());
}

#[test]
fn after_a_restart_the_disk_is_asked_again_before_anything_starts() {
    let mut stage = Stage::new();
    let effects = stage.event(told(without_data(&[("db", 1, 9)], &[9]), 10));
    let held = persisted(&effects).unwrap();
    let mut stage = Stage {
        agent: Agent::new(identity(), Some(held)),
        now: Timestamp(50_000),
    };
    let effects = stage.event(Event::Tick);
    assert_eq!(asked(&effects), [9]);
    assert_eq!(stage.agent.state_of(&key("db", 1, 9)), None);
    let effects = stage.event(removed(9, None));
    assert!(starts(&effects));
}

#[test]
fn what_only_waits_is_not_done_once_no_set_names_it() {
    let mut stage = Stage::running("db", Kind::Service);
    stage.event(told(without_data(&[("db", 1, 7)], &[8]), 11));
    stage.event(told(set(1, "l1", &[("db", 1, 7)]), 12));
    let beat = stage.agent.heartbeat(&Default::default(), 0, stage.now);
    assert_eq!(beat.unwrap().removals, None);
    assert_eq!(asked(&stage.fail("db", "1-7-1")), [0_u64; 0]);
}

#[test]
fn nothing_near_starts_while_a_container_goes_that_it_might_use() {
    let mut both = without_data(&[("web", 1, 1)], &[9]);
    both.removals[0].containers = vec!["box".to_owned()];
    let removal = both.removals[0].clone();
    let mut stage = Stage::new();
    stage.event(told(both.clone(), 10));
    both.groups = set(1, "l1", &[("web", 1, 1), ("api", 1, 2)]).groups;
    stage.event(told(both, 11));
    assert_eq!(stage.agent.state_of(&key("api", 1, 2)), None);
    let failed = None;
    stage.event(Event::DataRemoved { removal, failed });
    assert!(stage.agent.state_of(&key("api", 1, 2)).is_some());
}
