//! Three partial memories, and what becomes of them.

use serde_json::{Value, json};
use wasmorch_api::{HostInfo, PlacementSet};
use wasmorch_planner::Stored;

use super::*;

fn by() -> Rebuilder {
    Rebuilder {
        cluster: "fresh".parse().unwrap(),
        term: Term(1),
        leader: "l9".parse().unwrap(),
        now: Timestamp(1_700_000_000_000),
    }
}

fn revision(name: &str, number: u64) -> Value {
    let digest = wasmorch_api::Digest::of(name.as_bytes());
    json!({"namespace": "shop", "name": name, "number": number, "kind": "http", "artifact": digest,
        "spec": {"name": name, "artifact": digest}, "at": "2023-11-14T22:13:20Z", "by": "me"})
}

fn record(name: &str, revision: u64, desired: u32, next_placement: u64) -> Value {
    json!({"namespace": "shop", "name": name, "kind": "http", "revision": revision, "newest": revision,
        "stable": revision, "desired": desired, "next_placement": next_placement,
        "created": "2023-11-14T22:13:20Z", "updated": "2023-11-14T22:13:20Z"})
}

/// A host that holds `(workload, revision, slot, placement)`.
fn host(id: &str, cluster: &str, placed: &[(&str, u64, u64, u64)]) -> Told {
    let host: wasmorch_api::HostId = id.parse().unwrap();
    let cluster: ClusterId = cluster.parse().unwrap();
    let groups = placed.iter().map(|(name, number, slot, placement)| {
        json!({"workload": format!("shop/{name}"), "revision": number, "slots": [[slot, placement]]})
    });
    let replicas = placed.iter().map(|(name, number, slot, placement)| {
        json!({"namespace": "shop", "workload": name, "replica": format!("{slot}-{placement}-1"),
            "revision": number, "state": "running", "ready": true, "since": "2023-11-14T22:13:20Z"})
    });
    let revisions = placed
        .iter()
        .map(|(name, number, ..)| revision(name, *number));
    Told {
        beat: Heartbeat {
            sequence: 400,
            status_seq: 1,
            table_seq: 500,
            info: HostInfo {
                name: id.parse().unwrap(),
                peer: Some(format!("{id}:1").into()),
                ..HostInfo::default()
            },
            ..Heartbeat::new(
                cluster.clone(),
                host.clone(),
                "b1".parse().unwrap(),
                Term(7),
            )
        },
        held: serde_json::from_value(json!({"cluster": cluster, "host": host, "sequence": 400,
            "groups": groups.collect::<Vec<_>>(), "revisions": revisions.collect::<Vec<_>>()}))
        .unwrap(),
        status: serde_json::from_value(json!({"cluster": cluster, "host": host, "boot": "b1",
            "status_seq": 1, "full": true, "replicas": replicas.collect::<Vec<_>>()}))
        .unwrap(),
    }
}

fn backup(keys: &[(&str, Value)]) -> Option<Backup> {
    Some(Backup {
        format: wasmorch_api::backup::FORMAT.to_owned(),
        cluster: "old".parse().unwrap(),
        term: Term(6),
        at: Timestamp(0),
        keys: keys
            .iter()
            .map(|(key, value)| ((*key).to_owned(), value.clone()))
            .collect(),
    })
}

fn value(rebuilt: &Rebuilt, key: &str) -> Option<Value> {
    let entry = rebuilt.entries.iter().find(|entry| entry.key == key)?;
    Some(serde_json::from_slice(entry.value.as_ref()?).unwrap())
}

fn sources(hosts: Vec<Told>) -> Sources {
    Sources {
        hosts,
        last_sequence: 3,
        ..Sources::default()
    }
}

#[test]
fn hosts_alone_are_enough() {
    let hosts = vec![
        host("h1", "old", &[("web", 2, 1, 5), ("api", 1, 1, 1)]),
        host("h2", "old", &[("web", 2, 3, 6)]),
        host("h3", "other", &[]),
    ];
    let rebuilt = rebuild(sources(hosts), &by()).unwrap();
    assert_eq!((rebuilt.cluster.as_str(), rebuilt.term), ("old", Term(8)));
    assert!(rebuilt.next_sequence > 500, "beyond everything seen");
    let web = value(&rebuilt, "workload.shop.web").unwrap();
    assert_eq!((&web["revision"], &web["desired"]), (&json!(2), &json!(3)));
    assert!(
        web["next_placement"].as_u64().unwrap() > 1_000,
        "no number twice"
    );
    assert!(value(&rebuilt, "revision.shop.web.2").is_some());
    let set: PlacementSet =
        serde_json::from_value(value(&rebuilt, "pub.placements.h1").unwrap()).unwrap();
    assert_eq!(
        (set.cluster.as_str(), set.term, set.groups.len()),
        ("old", Term(8), 2)
    );
    // Gateways route on: every table is there.
    let endpoints = value(&rebuilt, "pub.endpoints.shop.web").unwrap();
    let serving: Vec<&Value> = endpoints["hosts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|h| &h["peer"])
        .collect();
    assert_eq!(serving, ["h1:1", "h2:1"]);
    assert!(value(&rebuilt, "pub.routes.shop.api").is_some());
    assert_eq!((rebuilt.reply.workloads, rebuilt.reply.placements), (2, 3));
    assert!(
        rebuilt.reply.lost[0].contains("h3"),
        "{:?}",
        rebuilt.reply.lost
    );
    for entry in &rebuilt.entries {
        Stored::parse(&entry.key, entry.value.as_ref().unwrap())
            .unwrap()
            .unwrap();
    }
}

#[test]
fn sequences_end_at_the_last_that_there_can_be() {
    let mut told = host("h1", "old", &[("web", 2, 1, 5)]);
    told.beat.table_seq = u64::MAX - 1;
    let rebuilt = rebuild(sources(vec![told]), &by()).unwrap();
    assert_eq!(
        rebuilt.next_sequence,
        u64::MAX,
        "and not from the beginning"
    );
    assert!(value(&rebuilt, "workload.shop.web").is_some());
}

#[test]
fn a_backup_brings_history_and_what_was_not_placed() {
    let told = vec![host("h1", "old", &[("web", 3, 1, 9)])];
    let limited = json!({
        "namespace": "shop", "quota": {"replicas": 9}, "updated": "2023-11-14T22:13:20.000Z", "by": "ann"
    });
    let kept = [
        ("workload.shop.web", record("web", 2, 4, 5)),
        ("revision.shop.web.1", revision("web", 1)),
        ("revision.shop.web.2", revision("web", 2)),
        ("workload.shop.idle", record("idle", 1, 0, 2)),
        ("revision.shop.idle.1", revision("idle", 1)),
        ("workload.shop.gone", record("gone", 9, 1, 2)),
        ("namespace.shop", limited.clone()),
    ];
    let sources = Sources {
        backup: backup(&kept),
        ..sources(told)
    };
    let rebuilt = rebuild(sources, &by()).unwrap();
    let web = value(&rebuilt, "workload.shop.web").unwrap();
    // The host holds something later than the backup knows.
    assert_eq!((&web["revision"], &web["desired"]), (&json!(3), &json!(1)));
    assert!(value(&rebuilt, "revision.shop.web.1").is_some(), "history");
    let idle = value(&rebuilt, "workload.shop.idle").unwrap();
    assert_eq!(idle["desired"], 0);
    assert!(value(&rebuilt, "workload.shop.gone").is_none());
    assert!(rebuilt.reply.lost[0].contains("shop/gone: its revision 9 is lost"));
    assert_eq!(value(&rebuilt, "namespace.shop"), Some(limited));
    assert_eq!((rebuilt.reply.workloads, rebuilt.reply.from_backup), (2, 1));
}

#[test]
fn a_record_that_knows_more_than_hosts_is_kept() {
    let told = vec![host("h1", "old", &[("web", 2, 1, 4)])];
    let kept = [
        ("workload.shop.web", record("web", 2, 4, 5)),
        ("revision.shop.web.2", revision("web", 2)),
    ];
    let rebuilt = rebuild(
        Sources {
            backup: backup(&kept),
            ..sources(told)
        },
        &by(),
    )
    .unwrap();
    assert_eq!(
        value(&rebuilt, "workload.shop.web").unwrap()["desired"],
        4,
        "three were not placed"
    );
}

/// Deployed anew while a host has still to remove what the one before left.
#[test]
fn a_removal_that_goes_on_is_kept_beside_the_record() {
    let removal = |name: &str| {
        json!({
            "namespace": "shop", "name": name, "newest": 1, "next_placement": 4,
            "removals": [{"before": 4, "at": "2023-11-14T22:13:20.000Z", "hosts": ["h9"]}],
        })
    };
    let kept = [
        ("removed.shop.idle", removal("idle")),
        ("workload.shop.idle", record("idle", 2, 0, 5)),
        ("revision.shop.idle.2", revision("idle", 2)),
        ("removed.shop.web", removal("web")),
        // Older than its removal.
        ("removed.shop.gone", removal("gone")),
        ("workload.shop.gone", record("gone", 1, 1, 3)),
        ("revision.shop.gone.1", revision("gone", 1)),
    ];
    let sources = Sources {
        backup: backup(&kept),
        ..sources(vec![host("h1", "old", &[("web", 2, 1, 4)])])
    };
    let rebuilt = rebuild(sources, &by()).unwrap();
    for workload in ["idle", "web", "gone"] {
        let removed = value(&rebuilt, &format!("removed.shop.{workload}"));
        assert_eq!(removed.unwrap()["removals"][0]["hosts"], json!(["h9"]));
    }
    assert!(value(&rebuilt, "workload.shop.idle").is_some());
    assert!(value(&rebuilt, "workload.shop.web").is_some());
    assert!(value(&rebuilt, "workload.shop.gone").is_none());
}

#[test]
fn two_revisions_at_once_are_a_rollout() {
    let told = vec![host("h1", "old", &[("web", 1, 1, 4), ("web", 2, 1, 5)])];
    let rebuilt = rebuild(sources(told), &by()).unwrap();
    let web = value(&rebuilt, "workload.shop.web").unwrap();
    assert_eq!((&web["revision"], &web["stable"]), (&json!(2), &json!(1)));
    assert_eq!(web["rollout"]["state"], "rolling");
}

#[test]
fn what_cannot_be_decided_or_found_is_refused() {
    let two = vec![
        host("h1", "a", &[("web", 1, 1, 1)]),
        host("h2", "b", &[("web", 1, 1, 1)]),
    ];
    assert_eq!(
        rebuild(sources(two), &by()).unwrap_err().code,
        ErrorCode::Conflict
    );
    let idle = vec![host("h1", "a", &[])];
    assert_eq!(
        rebuild(sources(idle), &by()).unwrap_err().code,
        ErrorCode::NotFound
    );
}

#[test]
fn a_revision_that_nobody_has_is_named_and_its_slots_are_left_out() {
    let mut told = host("h1", "old", &[("web", 1, 1, 1), ("api", 1, 1, 1)]);
    told.held
        .revisions
        .retain(|revision| revision.name.as_str() == "api");
    let rebuilt = rebuild(sources(vec![told]), &by()).unwrap();
    assert!(value(&rebuilt, "workload.shop.web").is_none());
    let set = value(&rebuilt, "pub.placements.h1").unwrap();
    assert_eq!(set["groups"].as_array().unwrap().len(), 1);
    assert!(rebuilt.reply.lost[0].contains("shop/web: no host has its revision 1"));
}
