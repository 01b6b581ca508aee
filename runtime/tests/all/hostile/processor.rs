//! Attacks on the processor and the memory.

use std::sync::Arc;

use wasmorch_runtime::ReplicaConfig;

use super::*;
use crate::support::Lines;

#[tokio::test]
async fn an_infinite_loop_is_timed_out() {
    assert_eq!(attack("/spin", config()).await, Err(timeout()));
}

#[tokio::test]
async fn infinite_recursion_is_a_trap() {
    let ended = attack("/recurse", patient()).await;
    assert_trap(&ended, "more than the 512 KiB of an instance");
}

#[tokio::test]
async fn memory_at_once_and_slowly_ends_at_the_limit() {
    for path in ["/memory-at-once", "/memory-slowly"] {
        assert_memory(&attack(path, with_memory(8 << 20)).await);
    }
}

/// Each of them fills 40 MiB: no tick gets in between.
#[tokio::test]
async fn bulk_memory_operations_are_timed_out() {
    assert_eq!(attack("/fill", config()).await, Err(timeout()));
}

#[tokio::test]
async fn a_storm_of_host_calls_is_timed_out() {
    assert_eq!(attack("/host-calls", config()).await, Err(timeout()));
}

#[tokio::test]
async fn a_list_of_a_million_handles_is_refused() {
    assert_handles(&attack("/poll", patient()).await);
}

#[tokio::test]
async fn a_guest_that_waits_for_ever_is_timed_out() {
    assert_eq!(attack("/wait", config()).await, Err(timeout()));
}

#[tokio::test]
async fn a_flood_of_lines_holds_up_nobody() {
    let lines = Arc::new(Lines::default());
    let config = ReplicaConfig {
        logs: lines.clone(),
        ..patient()
    };
    let written = attack("/lines?100000", config).await;
    assert_eq!(written, Ok((200, "written".into())));
    assert_eq!(lines.all().len(), 100_000);
}

#[tokio::test]
async fn a_line_without_an_end_is_cut() {
    let lines = Arc::new(Lines::default());
    let config = ReplicaConfig {
        logs: lines.clone(),
        ..patient()
    };
    let written = attack("/long-line?67108864", config).await;
    assert_eq!(written, Ok((200, "written".into())));
    let longest = lines.texts().iter().map(String::len).max();
    assert_eq!(longest, Some(16 << 10));
}

#[tokio::test]
async fn panics_in_a_loop_are_traps_each() {
    let attacker = Attacker::new("hostile", patient()).await;
    for _ in 0..100 {
        let ended = fetch(&attacker.replica, "/panic").await;
        assert_trap(&ended, "unreachable");
    }
    attacker.is_contained().await;
    assert_eq!(attacker.replica.usage().failed_total, 100);
}

#[tokio::test]
async fn leaving_ends_the_request_and_not_the_host() {
    let ended = attack("/exit", patient()).await;
    assert_trap(&ended, "exit");
}

#[tokio::test]
async fn too_many_random_bytes_are_refused() {
    let ended = attack("/random", patient()).await;
    assert_trap(&ended, "exceeds limit");
}
