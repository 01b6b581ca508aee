//! Attacks by answers, and by not reading what was asked.

use super::*;
use crate::support::full;

#[tokio::test]
async fn an_endless_response_ends_at_its_limit() {
    let (config, ended) = endless();
    assert_eq!(attack("/endless", config).await, Err(ended));
}

#[tokio::test]
async fn a_slow_drip_and_a_loop_in_the_body_are_timed_out() {
    for path in ["/drip", "/spin-in-body"] {
        assert_eq!(attack(path, config()).await, Err(timeout()), "{path}");
    }
}

/// Who takes a promise at its word waits for the rest: it must break off, not end.
#[tokio::test]
async fn a_body_of_another_length_breaks_off() {
    for path in ["/short", "/long"] {
        let ended = attack(path, config()).await;
        assert!(ended.is_err(), "{path}: {ended:?}");
    }
}

/// As `wasmtime serve` has it: it ends with its guest.
#[tokio::test]
async fn a_body_that_is_never_finished_ends_with_its_guest() {
    let ended = attack("/never-finished", config()).await;
    assert_eq!(ended, Ok((200, String::new())));
}

#[tokio::test]
async fn a_request_that_is_not_read_is_let_go() {
    let attacker = Attacker::new("hostile", config()).await;
    let request = http::Request::post("/unread").header("host", "test");
    let request = request.body(full(vec![b'x'; 8 << 20])).unwrap();
    let response = attacker.replica.handle(request).await.unwrap();
    assert_eq!(response.status(), 200);
    drop(response);
    attacker.is_contained().await;
}

#[tokio::test]
async fn trailers_have_an_end() {
    assert_trap(&attack("/trailers", patient()).await, "size of fields");
}

#[tokio::test]
async fn headers_carry_no_control_characters() {
    let (status, report) = attack("/control-characters", patient()).await.unwrap();
    assert_eq!((status, report), (200, "refused ".repeat(6)));
}

#[tokio::test]
async fn a_header_has_a_size() {
    assert_trap(&attack("/large-header", patient()).await, "size of fields");
}
