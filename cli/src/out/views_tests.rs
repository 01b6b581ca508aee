//! What people see, at 80 columns and without colours.

use serde_json::json;
use wasmorch_api::messages::{
    HistoryItem, HostView, LogLine, RebalanceReply, ReplicaView, StatusReply, Unplaced,
    WorkloadSummary,
};
use wasmorch_api::{Event, Timestamp};

use super::super::rollouts::{canary_waits, history, rollout_or_none};
use super::*;

fn plain(text: &str) -> String {
    anstream::adapter::strip_str(text).to_string()
}

fn now() -> Timestamp {
    "2026-01-01T12:00:00Z".parse().unwrap()
}

fn read<T: serde::de::DeserializeOwned>(value: serde_json::Value) -> T {
    serde_json::from_value(value).unwrap()
}

fn fits(text: &str) {
    for line in text.lines() {
        assert!(
            line.chars().count() <= 80,
            "{} columns: {line}",
            line.chars().count()
        );
    }
}

fn some_workloads() -> Vec<WorkloadSummary> {
    read(json!([
        {"namespace": "default", "name": "hello", "kind": "http", "revision": 2, "desired": 3,
         "ready": 3, "state": "ready", "urls": ["http://hello.default.localhost:8080/"]},
        {"namespace": "shop", "name": "a-name-that-goes-on-and-on-for-a-long-while", "kind": "http",
         "revision": 12, "desired": 20, "ready": 7, "state": "crash-loop",
         "urls": ["http://a-name-that-goes-on-and-on-for-a-long-while.shop.localhost:8080/"]},
        {"namespace": "shop", "name": "echo", "kind": "messages", "revision": 1, "desired": 1,
         "ready": 0, "state": "pending", "urls": []},
    ]))
}

fn some_replicas() -> Vec<ReplicaView> {
    read(json!([
        {"replica": "1-1-1", "slot": 1, "revision": 2, "host": "h1", "host_id": "aa",
         "state": "running", "ready": true, "standby": false, "since": "2026-01-01T11:58:30Z",
         "memory_bytes": 1_500_000, "cpu_millis": 12, "in_flight": 3},
        {"replica": "2-7-3", "slot": 2, "revision": 2, "host": "h2", "host_id": "bb",
         "state": "failed", "ready": false, "standby": false, "since": "2026-01-01T09:00:00Z",
         "reason": "the guest trapped: wasm trap: unreachable\nat 0: boom", "exit_code": 134,
         "memory_bytes": 0, "cpu_millis": 0, "in_flight": 0},
        {"replica": "3-8-1", "slot": 3, "revision": 2, "host": "h2", "host_id": "bb",
         "state": "preparing", "ready": false, "standby": false, "since": "2026-01-01T12:00:00Z",
         "memory_bytes": 0, "cpu_millis": 0, "in_flight": 0},
    ]))
}

fn some_unplaced() -> Unplaced {
    read(json!({
        "workload": "default/hello", "slots": 1, "evaluated": 3,
        "filtered": {"cordoned": 1, "memory": 2}, "lacking": {"memory": 67_108_864},
        "fix": ["add a host with 64 MiB free", "uncordon h2"],
    }))
}

#[test]
fn workloads_fit_80_columns() {
    let text = plain(&workloads(&some_workloads(), true, Some(80)));
    fits(&text);
    insta::assert_snapshot!(text);
}

#[test]
fn workloads_of_one_namespace() {
    insta::assert_snapshot!(plain(&workloads(&some_workloads()[..1], false, Some(80))));
    assert!(plain(&workloads(&[], false, None)).contains("wasmorch deploy"));
}

#[test]
fn workloads_that_follow_their_load_show_their_bounds() {
    let mut summary = json!({
        "namespace": "shop", "name": "web", "kind": "http", "revision": 1, "desired": 7,
        "ready": 5, "state": "degraded", "urls": [], "scale": {"min": 2, "max": 20},
    });
    let listed: WorkloadSummary = read(summary.clone());
    let list = plain(&workloads(&[listed], false, Some(80)));
    summary["spec"] = json!({
        "name": "web", "scale": {"min": 2, "max": 20, "target": {"concurrency": 50}},
    });
    summary["replicas"] = json!([]);
    let status: StatusReply = read(summary);
    let status = plain(&super::status(&status, now(), Some(80)));
    assert!(list.contains("5/7 (2..20)"), "{list}");
    assert!(status.contains("2..20, concurrency 50 each"), "{status}");
}

#[test]
fn replicas_fit_80_columns() {
    let status: StatusReply = read(json!({
        "namespace": "default", "name": "hello", "kind": "http", "revision": 2, "desired": 3,
        "ready": 1, "state": "degraded", "urls": [], "spec": {"name": "hello"},
        "replicas": some_replicas(),
    }));
    let text = plain(&replicas(&[status], now(), Some(80)));
    fits(&text);
    insta::assert_snapshot!(text);
}

#[test]
fn a_status_shows_it_all() {
    let status: StatusReply = read(json!({
        "namespace": "default", "name": "hello", "kind": "http", "revision": 2, "desired": 3,
        "ready": 1, "state": "rolling",
        "urls": ["http://hello.default.localhost:8080/", "http://shop.example.com:8080/"],
        "spec": {"name": "hello", "artifact": format!("sha256:{}", "0".repeat(64)),
                 "bindings": {"http": ["api.example.com"]}},
        "replicas": some_replicas(),
        "rollout": {"revision": 2, "from": 1, "state": "rolling", "updated": 2, "ready": 1,
                    "desired": 3, "deadline": "2026-01-01T12:01:30Z"},
        "unplaced": some_unplaced(),
    }));
    insta::assert_snapshot!(plain(&super::status(&status, now(), Some(80))));
}

#[test]
fn a_rollout_tells_what_it_waits_for() {
    let view = read(json!({
        "revision": 2, "from": 1, "state": "rolling", "updated": 0, "ready": 0, "desired": 3,
        "deadline": "2026-01-01T12:01:30Z", "waits_for": [
            {"workload": "orders", "why": "1 of 2 ready"},
            {"workload": "stock", "why": "its rollout is paused: paused by ada", "for_a_person": true},
        ],
    }));
    insta::assert_snapshot!(plain(&rollouts::rollout(&view, now())));
}

#[test]
fn a_limit_is_that_of_the_replicas_own_revision() {
    let memory = |revision: u64, rollout: serde_json::Value| {
        let status: StatusReply = read(json!({
            "namespace": "default", "name": "hello", "kind": "http", "revision": revision,
            "desired": 1, "ready": 1, "state": "rolling", "urls": [], "spec": {"name": "hello"},
            "replicas": some_replicas()[..1], "rollout": rollout,
        }));
        plain(&replicas(&[status], now(), Some(80))).contains("1.4/64MiB")
    };
    let rollout = |state: &str, revision: u64| {
        json!({"revision": revision, "from": 1, "state": state, "updated": 1, "ready": 1,
               "desired": 1, "deadline": "2026-01-01T12:01:30Z"})
    };
    // The replica is of revision 2.
    assert!(memory(2, rollout("rolling", 2)));
    assert!(memory(1, rollout("canary", 2)), "the spec is what is tried");
    assert!(!memory(2, rollout("canary", 3)));
    assert!(memory(2, rollout("reverted", 3)));
    assert!(!memory(3, rollout("rolling", 3)), "an old one has its own");
}

#[test]
fn no_rollout_and_a_canary_that_waits_say_so() {
    assert_eq!(rollout_or_none(None, now()), "no rollout");
    let view = read(json!({
        "revision": 2, "from": 1, "state": "baking", "updated": 1, "ready": 1, "desired": 4,
        "deadline": "2026-01-01T12:01:30Z", "reason": "waits",
    }));
    assert_eq!(
        canary_waits(&"roll".parse().unwrap(), &view),
        "canary ready: 1 of 4; `wasmorch rollout promote roll` goes on"
    );
}

#[test]
fn an_exit_code_is_said_once() {
    assert_eq!(
        how_it_ended(Some(1), "it ended with exit code 1"),
        "it ended with exit code 1"
    );
    assert_eq!(how_it_ended(Some(3), "no input"), "exit code 3, no input");
    assert_eq!(how_it_ended(Some(3), ""), "exit code 3");
    assert_eq!(how_it_ended(None, "out of time"), "out of time");
}

#[test]
fn a_job_tells_how_it_ended() {
    let status: StatusReply = read(json!({
        "namespace": "default", "name": "report", "kind": "job", "revision": 1, "desired": 1,
        "ready": 0, "state": "failed", "urls": [], "spec": {"name": "report"}, "replicas": [],
        "outcome": {"completed": false, "exit_code": 3, "reason": "no input",
                    "at": "2026-01-01T11:59:00Z"},
    }));
    insta::assert_snapshot!(plain(&super::status(&status, now(), Some(80))));
}

#[test]
fn revisions() {
    let items: Vec<HistoryItem> = read(json!([
        {"revision": 2, "artifact": format!("sha256:{}", "ab".repeat(32)),
         "at": "2026-01-01T11:00:00Z", "by": "ada",
         "changes": ["artifact", "environment.LANG: en -> de"]},
        {"revision": 1, "artifact": format!("sha256:{}", "cd".repeat(32)),
         "at": "2025-12-01T11:00:00Z", "by": "ada", "changes": ["first revision"]},
    ]));
    let text = plain(&history(&items, Some(2), now(), Some(80)));
    fits(&text);
    insta::assert_snapshot!(text);
}

#[test]
fn hosts_fit_80_columns() {
    let items: Vec<HostView> = read(json!([
        {"id": "aa", "name": "h1", "state": "alive", "cordoned": false, "labels": {"zone": "a"},
         "arch": "x86_64", "http": "127.0.0.1:8080", "admin": "127.0.0.1:41234",
         "version": "0.1.0", "capacity": {"memory_bytes": 1_000_000_000u64},
         "used": {"replicas": 12, "memory_bytes": 31_000_000}, "seen_ms": 400},
        {"id": "bb", "name": "h2", "state": "dead", "cordoned": true, "labels": {},
         "taints": ["edge"], "arch": "aarch64", "http": "127.0.0.1:35555",
         "admin": "127.0.0.1:41235", "version": "0.1.0", "capacity": {}, "seen_ms": 400_000},
    ]));
    let text = plain(&hosts(&items, Some(80)));
    fits(&text);
    insta::assert_snapshot!(text);
}

#[test]
fn events_are_one_line_each() {
    let some: Vec<Event> = read(json!([
        {"id": "3-1", "at": "2026-01-01T11:59:59.5Z", "term": 3, "kind": "replica-failed",
         "namespace": "default", "workload": "hello", "replica": "2-7-3", "host": "bb",
         "reason": "the guest trapped\nat 0: boom"},
        {"id": "3-2", "at": "2026-01-01T12:00:00Z", "term": 3, "kind": "leader-elected",
         "namespace": "_", "reason": ""},
        {"id": "3-3", "at": "2026-01-01T12:00:00Z", "term": 3, "kind": "deployed",
         "namespace": "default", "workload": "hello", "revision": 2, "reason": "artifact"},
        {"id": "3-4", "at": "2026-01-01T12:00:00Z", "term": 3, "kind": "host-dead",
         "namespace": "_", "host": "bb", "reason": "silent for 5s"},
        {"id": "3-5", "at": "2026-01-01T12:00:00Z", "term": 3, "kind": "host-joined",
         "namespace": "_", "host": "cc", "reason": ""},
    ]));
    let names = [("bb".parse().unwrap(), "h2".parse().unwrap())].into();
    let lines: Vec<String> = some.iter().map(|one| plain(&event(one, &names))).collect();
    insta::assert_snapshot!(lines.join("\n"));
}

#[test]
fn log_lines_name_their_replica_and_what_was_lost() {
    let line: LogLine = read(json!({
        "at": "2026-01-01T12:00:00Z", "replica": "1-1-1", "stream": "stderr",
        "text": "hello \u{1b}[2J there", "dropped": 7,
    }));
    insta::assert_snapshot!(plain(&log_line(&"hello".parse().unwrap(), &line)));
}

#[test]
fn a_question_that_did_not_come_to_all_says_so() {
    let of = |answer| plain(&moves(&read::<RebalanceReply>(answer), 5));
    assert_eq!(
        of(json!({"moves": []})),
        "0 moves: nothing would be better off on another host\n"
    );
    assert_eq!(
        of(json!({"moves": [], "next": "spread/default/web"})),
        "0 moves: nothing found, but not all of the cluster was looked at\n"
    );
    let one =
        json!({"workload": "default/web", "slot": 1, "from": "h1", "to": "h2", "why": "load"});
    let some = of(json!({"moves": [one], "next": "load/5/h3"}));
    assert!(some.ends_with("ask again once these are made\n"), "{some}");
}
