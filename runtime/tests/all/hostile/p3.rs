//! Attacks by the means of WASI 0.3: tasks, streams, work after the answer.

use wasmorch_runtime::{Limits, ReplicaConfig};

use super::*;
use crate::support::get;

async fn attack(path: &str, config: ReplicaConfig) -> Result<(u16, String), Ended> {
    Attacker::new("hostile-p3", config).await.attack(path).await
}

#[tokio::test]
async fn a_loop_in_an_async_handler_is_timed_out() {
    assert_eq!(attack("/spin", config()).await, Err(timeout()));
}

#[tokio::test]
async fn tasks_and_streams_without_end_have_an_end() {
    for path in ["/tasks", "/streams"] {
        let limits = Limits {
            memory_bytes: 1 << 30,
            ..Limits::default()
        };
        let config = ReplicaConfig {
            limits,
            ..patient()
        };
        assert_handles(&attack(path, config).await);
    }
}

#[tokio::test]
async fn host_calls_dropped_in_the_middle_leave_nothing() {
    let report = attack("/dropped", config()).await;
    assert_eq!(report, Ok((200, "dropped\n".into())));
}

/// Whether the answer came before is the guest's business; it has no more time for that.
#[tokio::test]
async fn work_after_the_answer_is_timed_out() {
    for path in ["/after", "/waits-after"] {
        let attacker = Attacker::new("hostile-p3", config()).await;
        let answered = attacker.attack(path).await;
        let is_whole = answered == Ok((200, "and now\n".into()));
        assert!(
            is_whole || answered == Err(timeout()),
            "{path}: {answered:?}"
        );
        assert_eq!(attacker.replica.usage().failed_total, 1, "{path}");
    }
}

#[tokio::test]
async fn an_endless_stream_ends_at_its_limit() {
    let (config, ended) = endless();
    assert_eq!(attack("/endless", config).await, Err(ended));
}

/// The client has gone, and the guest goes on writing.
#[tokio::test]
async fn a_guest_that_ignores_cancellation_is_dropped() {
    let attacker = Attacker::new("hostile-p3", patient()).await;
    let response = attacker.replica.handle(get("/ignores")).await.unwrap();
    drop(response);
    attacker.is_contained().await;
}

#[tokio::test]
async fn a_panic_in_an_async_handler_is_a_trap() {
    assert_trap(&attack("/panic", config()).await, "unreachable");
}
