//! Clients that send too much, too slowly, or nonsense.

use std::time::Duration;

use http::{Request, StatusCode};
use rand::{Rng as _, SeedableRng as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use wasmorch_gateway::ErrorClass;

use crate::support::*;

#[tokio::test]
async fn a_slow_head_is_cut_off() {
    let host = Host::start_with("a", 1, says("hello"), |config| {
        config.limits.header_timeout = Duration::from_millis(100);
        config.limits.idle_timeout = Duration::from_millis(200);
    });
    let first = "GET / HTTP/1.1\r\nhost: shop.example.com\r\n";
    let preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let whole = format!("{first}\r\n");
    let second = format!("{whole}{first}x-slow: ");
    for sent in ["", "G", "PRI * HT", preface, first, &whole, &second] {
        let mut stream = TcpStream::connect(host.http).await.unwrap();
        stream.write_all(sent.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let _ = within(stream.read_to_end(&mut answer)).await;
        let answered = String::from_utf8_lossy(&answer).matches("hello").count();
        assert_eq!(answered, usize::from(sent.starts_with(&whole)), "{sent:?}");
    }
    until("all are gone", || {
        host.gateway.stats().connections_open == 0
    })
    .await;
    host.stop().await;
}

#[tokio::test]
async fn a_request_may_take_longer_than_a_head() {
    let host = Host::start_with(
        "a",
        1,
        handler(|request| async {
            tokio::time::sleep(Duration::from_millis(500)).await;
            Ok(http::Response::new(request.into_body()))
        }),
        |config| {
            config.limits.header_timeout = Duration::from_millis(50);
            config.limits.idle_timeout = Duration::from_millis(50);
        },
    );
    assert_eq!(get(host.http).await.0, 200);
    host.stop().await;
}

#[tokio::test]
async fn a_large_head_is_refused() {
    let host = Host::start_with("a", 1, says("hello"), |config| {
        config.limits.header_bytes_max = 16 << 10
    });
    let large = format!("x-large: {}", "x".repeat(20 << 10));
    let answer = ask(host.http, "GET /", &["host: shop.example.com", &large]).await;
    assert_eq!(status(&answer), 431, "{answer}");
    let many = vec!["x-many: x"; 200];
    assert_eq!(status(&ask(host.http, "GET /", &many).await), 431);
    let mut client = H2::connect(host.http).await;
    let request = Request::get("http://shop.example.com/").header("x-large", &large[9..]);
    // Told by a status or by a reset, as the library has it.
    if let Ok(response) = client.send(request.body(empty()).unwrap()).await {
        assert_eq!(
            response.status(),
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE
        );
    }
    assert_eq!(host.calls(), 0);
    drop(client);
    host.stop().await;
}

#[tokio::test]
async fn garbage_harms_nobody() {
    let host = Host::start("a", 1, says("hello"));
    let mut rng = rand::rngs::StdRng::seed_from_u64(1);
    let openings: [&[u8]; 6] = [
        b"",
        b"GET / HTTP/1.1\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
        b"\x16\x03\x01\x02\0\x01\0",
        b"POST / HTTP/1.1\r\nhost: shop.example.com\r\ntransfer-encoding: chunked\r\n\r\n",
    ];
    for round in 0..150 {
        let mut bytes = openings[round % openings.len()].to_vec();
        bytes.extend((0..rng.random_range(1..300)).map(|_| rng.random::<u8>()));
        for address in [host.http, host.peer] {
            let mut stream = TcpStream::connect(address).await.unwrap();
            let _ = stream.write_all(&bytes).await;
            let _ = stream.shutdown().await;
            let _ = within(stream.read_to_end(&mut Vec::new())).await;
        }
    }
    assert_eq!(get(host.http).await, (200, "hello".to_owned()));
    until("all are gone", || {
        host.gateway.stats().connections_open == 0
    })
    .await;
    host.stop().await;
}

#[tokio::test]
async fn one_connection_too_many_is_told_so() {
    let host = Host::start_with("a", 1, says("hello"), |config| {
        config.limits.connections_max = 2
    });
    let held = (
        TcpStream::connect(host.http).await.unwrap(),
        TcpStream::connect(host.http).await.unwrap(),
    );
    until("both are accepted", || {
        host.gateway.stats().connections_open == 2
    })
    .await;
    let (answer, text) = get(host.http).await;
    assert_eq!((answer, text.len()), (503, 50));
    assert_eq!(host.gateway.stats().connections_refused, 1);
    drop(held);
    until("they are gone", || {
        host.gateway.stats().connections_open == 0
    })
    .await;
    assert_eq!(get(host.http).await.0, 200);
    host.stop().await;
}

#[tokio::test]
async fn one_request_too_many_is_told_so() {
    let host = Host::start_with("a", 1, hangs(), |config| {
        config.limits.requests_max = 1;
        config.limits.drain = Duration::ZERO;
    });
    let mut held = TcpStream::connect(host.http).await.unwrap();
    held.write_all(b"GET / HTTP/1.1\r\nhost: shop.example.com\r\n\r\n")
        .await
        .unwrap();
    until("it is in hand", || host.calls() == 1).await;
    let answer = ask(host.http, "GET /", &["host: shop.example.com"]).await;
    assert_eq!(status(&answer), 503, "{answer}");
    assert!(
        answer.contains("wasmorch-error: overloaded\r\n") && answer.contains("retry-after: 1\r\n"),
        "{answer}"
    );
    assert_eq!(host.gateway.stats().errors_of(ErrorClass::Overloaded), 1);
    host.stop().await;
}

#[tokio::test]
async fn rapid_resets_end_the_connection_and_nothing_else() {
    let host = Host::start_with("a", 1, hangs(), |config| {
        config.limits.drain = Duration::ZERO
    });
    let mut stream = TcpStream::connect(host.http).await.unwrap();
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
    for stream_id in (1_u32..4000).step_by(2) {
        // GET, http, /, and an authority that is routed; then its reset.
        let block = b"\x82\x86\x84\x41\x10shop.example.com";
        bytes.extend([0, 0, block.len() as u8, 1, 5]);
        bytes.extend(stream_id.to_be_bytes());
        bytes.extend(block);
        bytes.extend([0, 0, 4, 3, 0]);
        bytes.extend(stream_id.to_be_bytes());
        bytes.extend([0, 0, 0, 8]);
    }
    let _ = stream.write_all(&bytes).await;
    let mut answer = Vec::new();
    let _ = within(stream.read_to_end(&mut answer)).await;
    until("nothing is in hand", || {
        let stats = host.gateway.stats();
        stats.in_flight == 0 && stats.connections_open == 0
    })
    .await;
    assert!(host.calls() < 2000, "{}", host.calls());
    host.stop().await;
}
