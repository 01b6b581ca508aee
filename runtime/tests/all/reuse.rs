//! Instances that serve several requests: how many, when they are dropped, and what they hold.

use std::sync::Arc;
use std::time::Duration;

use wasmorch_runtime::{Ended, HttpReplica, Limits, ReplicaConfig, RequestId, Reuse};

use crate::support::{Lines, answer, eventually, fetch, get, http};

const LONG: Duration = Duration::from_secs(600);

fn config(requests: u32, idle: Duration) -> ReplicaConfig {
    let limits = Limits {
        timeout: Some(Duration::from_millis(300)),
        ..Limits::default()
    };
    ReplicaConfig {
        reuse: Reuse {
            requests,
            concurrency: 1,
            idle,
        },
        limits,
        ..ReplicaConfig::new("test")
    }
}

async fn count(replica: &HttpReplica) -> u64 {
    let (status, count) = fetch(replica, "/count").await.unwrap();
    assert_eq!(status, 200);
    count.parse().unwrap()
}

#[tokio::test]
async fn an_instance_serves_so_many_requests_and_no_more() {
    for name in ["hostile", "hostile-p3"] {
        let replica = http(name, config(3, LONG)).await;
        let mut counts = Vec::new();
        for _ in 0..7 {
            counts.push(count(&replica).await);
        }
        assert_eq!(counts, [1, 2, 3, 1, 2, 3, 1], "{name}");
        assert_eq!(replica.usage().started_total, 3, "{name}");
        let replica = http(name, config(1, LONG)).await;
        assert_eq!([count(&replica).await, count(&replica).await], [1, 1]);
        assert_eq!(replica.usage().memory_bytes, 0);
    }
}

/// A trap, a timeout, a limit that was met, though the guest made the best of it.
#[tokio::test]
async fn one_that_failed_serves_no_more() {
    let replica = http("hostile", config(100, LONG)).await;
    for path in [
        "/panic",
        "/spin",
        "/panic-after",
        "/memory-at-once",
        "/denied",
    ] {
        assert_eq!(count(&replica).await, 1, "before {path}");
        assert_eq!(count(&replica).await, 2, "before {path}");
        let answered = fetch(&replica, path).await;
        let is_answer = matches!(path, "/denied" | "/panic-after");
        assert!(is_answer || answered.is_err(), "{path}: {answered:?}");
    }
    assert_eq!(count(&replica).await, 1);
}

#[tokio::test]
async fn one_whose_request_was_dropped_serves_no_more() {
    let replica = http("hostile", config(100, LONG)).await;
    assert_eq!(count(&replica).await, 1);
    let response = replica.handle(get("/endless")).await.unwrap();
    drop(response);
    eventually("the memory is back", || replica.usage().memory_bytes == 0).await;
    assert_eq!(count(&replica).await, 1);
}

/// What is left of the answer would keep its client waiting for as long as the instance lives.
#[tokio::test]
async fn one_that_leaves_something_of_its_request_serves_no_more() {
    let replica = http("hostile", config(100, LONG)).await;
    for path in ["/never-finished", "/unread"] {
        assert_eq!(count(&replica).await, 1, "before {path}");
        assert_eq!(fetch(&replica, path).await.unwrap().0, 200);
        assert_eq!(replica.usage().memory_bytes, 0, "after {path}");
    }
}

#[tokio::test]
async fn what_waits_is_counted_until_it_is_idle_for_too_long_or_the_replica_closes() {
    let replica = http("hostile", config(100, Duration::from_millis(50))).await;
    assert_eq!(count(&replica).await, 1);
    assert!(replica.usage().memory_bytes > 0);
    assert_eq!(replica.usage().in_flight, 0);
    eventually("it is dropped", || replica.usage().memory_bytes == 0).await;
    assert_eq!(count(&replica).await, 1);

    let replica = http("hostile", config(100, LONG)).await;
    assert_eq!(count(&replica).await, 1);
    replica.close();
    assert_eq!(replica.usage().memory_bytes, 0);
    replica.idle().await;
}

/// Three at once are three instances, and they do not fit beside one that grows: it goes first.
#[tokio::test]
async fn what_waits_gives_way_to_what_runs() {
    let mut config = config(100, LONG);
    config.limits.memory_bytes = 32 << 20;
    let replica = http("hostile", config).await;
    let held = (0..3).map(|_| fetch(&replica, "/hold?8"));
    for answered in futures::future::join_all(held).await {
        assert_eq!(answered, Ok((200, "held".into())));
    }
    assert_eq!(replica.usage().started_total, 3);
    let all = replica.usage().memory_bytes;
    assert!(all > 24 << 20, "{all}");
    assert_eq!(fetch(&replica, "/hold?16").await, Ok((200, "held".into())));
    let left = replica.usage().memory_bytes;
    assert!(left > 24 << 20 && left <= 32 << 20, "{left}");
    // What cannot be had with all of them gone is still denied.
    let ended = fetch(&replica, "/hold?40").await;
    assert!(matches!(ended, Err(Ended::MemoryLimit { .. })), "{ended:?}");
    assert_eq!(replica.usage().memory_bytes, 0);
}

#[tokio::test]
async fn lines_belong_to_the_request_that_they_were_said_in() {
    let lines = Arc::new(Lines::default());
    let config = ReplicaConfig {
        logs: lines.clone(),
        ..config(100, LONG)
    };
    let replica = http("hostile", config).await;
    // The second one ends no line of its own.
    for (path, id) in [
        ("/lines?1", "a"),
        ("/long-line?65536", "b"),
        ("/lines?1", "c"),
    ] {
        let mut request = get(path);
        request.extensions_mut().insert(RequestId(id.into()));
        assert_eq!(answer(&replica, request).await.unwrap().0, 200);
    }
    assert_eq!(replica.usage().started_total, 1);
    let said: Vec<_> = lines
        .all()
        .iter()
        .map(|line| line.request_id.as_deref().unwrap_or("none").to_owned())
        .collect();
    assert_eq!(said.first().map(String::as_str), Some("a"));
    assert_eq!(said.last().map(String::as_str), Some("c"));
    assert!(
        said[1..said.len() - 1].iter().all(|id| id == "b"),
        "{said:?}"
    );
}
