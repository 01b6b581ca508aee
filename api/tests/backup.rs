//! Two memories of one cluster become one.

#![allow(clippy::unwrap_used, reason = "a test")]

use serde_json::{Value, json};
use wasmorch_api::backup::{self, Backup};

fn made(cluster: &str, term: u64, keys: Value) -> Backup {
    let text = json!({
        "format": backup::FORMAT, "cluster": cluster, "term": term, "at": "2023-11-14T22:13:20Z",
        "keys": keys,
    });
    Backup::read(text.to_string().as_bytes()).unwrap()
}

fn record(desired: u32, updated: &str) -> Value {
    json!({
        "namespace": "shop", "name": "web", "kind": "http", "revision": 1, "newest": 1,
        "desired": desired, "next_placement": 1, "created": "2023-11-14T22:13:20Z", "updated": updated,
    })
}

#[test]
fn the_later_record_counts_and_nothing_is_left_out() {
    let (old, new) = ("2023-11-14T22:13:20Z", "2023-11-15T22:13:20Z");
    let first = made(
        "c1",
        3,
        json!({"workload.shop.web": record(1, old), "host.h1": {"a": 1}}),
    );
    let second = made(
        "c1",
        5,
        json!({"workload.shop.web": record(2, new), "host.h1": {"a": 2}, "host.h2": {}}),
    );
    for both in [
        first.clone().and(second.clone()),
        second.clone().and(first.clone()),
    ] {
        assert_eq!(both.term.0, 5);
        assert_eq!(both.keys["workload.shop.web"]["desired"], 2);
        assert_eq!(both.keys.len(), 3);
    }
    assert_eq!(first.clone().and(second).keys["host.h1"]["a"], 1);
    let foreign = made("c2", 9, json!({"host.h9": {}}));
    assert_eq!(first.clone().and(foreign), first);
}
