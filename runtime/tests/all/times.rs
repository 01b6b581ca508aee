//! Outbound HTTP in time: connecting, the first byte, the bytes after it; and connections that are kept.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Barrier;
use wasmorch_runtime::{HttpReplica, OutboundHttp, ReplicaConfig};

use crate::support::{fetch, http};

/// So much is given to what never comes, in milliseconds.
const SHORT: &str = "50";
/// And to what comes at once.
const LONG: &str = "20000";
/// Whoever waits for `SHORT` has given up by then, and whoever waits for `LONG` has not.
const BETWEEN: Duration = Duration::from_secs(10);

async fn fetcher(port: u16) -> HttpReplica {
    let pattern = format!("127.0.0.1:{port}").parse().unwrap();
    let config = ReplicaConfig {
        outbound: OutboundHttp::allow([pattern]),
        ..ReplicaConfig::new("test")
    };
    http("fetcher-http", config).await
}

/// A server that says this to a request, and then nothing more; it keeps the connection.
async fn says(words: &'static str) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let mut kept: Vec<TcpStream> = Vec::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut buffer = [0; 4096];
            let _ = stream.read(&mut buffer).await;
            let _ = stream.write_all(words.as_bytes()).await;
            kept.push(stream);
        }
    });
    port
}

/// What the guest makes of it, which gives up in time and not before the wait that is meant.
async fn within(times: [&str; 3], url: String) -> (u16, String) {
    let port = url.split(':').nth(2).unwrap().trim_end_matches('/');
    let replica = fetcher(port.parse().unwrap()).await;
    let began = Instant::now();
    let [connect, first, between] = times;
    let target = format!("/within?{connect},{first},{between},{url}");
    let answer = fetch(&replica, &target).await.unwrap();
    assert!(began.elapsed() < BETWEEN, "{target}: {:?}", began.elapsed());
    answer
}

fn error(name: &str) -> (u16, String) {
    (502, format!("ErrorCode::{name}\n"))
}

#[tokio::test]
async fn a_connection_that_is_not_made_in_time_is_given_up() {
    // Connected, and nobody there who speaks TLS: the wait is for a connection, whatever there is time for after it.
    let port = says("").await;
    let url = format!("https://127.0.0.1:{port}/");
    let answer = within([SHORT, LONG, LONG], url).await;
    assert_eq!(answer, error("ConnectionTimeout"));
    // Where there is one at once that time is not waited out, nor is it taken from the answer's.
    let port = says("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
    let url = format!("http://127.0.0.1:{port}/");
    assert_eq!(within([LONG, LONG, LONG], url).await, (200, "ok".into()));
}

#[tokio::test]
async fn an_answer_that_does_not_begin_in_time_is_given_up() {
    for begun in ["", "HTTP/1.1 200 OK\r\ncontent-le"] {
        let port = says(begun).await;
        for connect in [LONG, "none"] {
            let url = format!("http://127.0.0.1:{port}/");
            let answer = within([connect, SHORT, LONG], url).await;
            assert_eq!(answer, error("ConnectionReadTimeout"), "{begun:?}");
        }
    }
}

#[tokio::test]
async fn an_answer_that_stops_in_the_middle_is_given_up() {
    let port = says("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf").await;
    let url = format!("http://127.0.0.1:{port}/");
    // wasmtime-wasi-http tells a guest of 0.2 in words only why a body breaks off.
    let (status, why) = within([LONG, LONG, SHORT], url).await;
    assert_eq!(status, 502);
    assert!(why.contains("connection read timeout"), "{why}");
}

#[tokio::test]
async fn connections_are_kept_for_the_next_requests_of_the_replica_and_for_no_other() {
    const AT_ONCE: usize = 4;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let connections = Arc::new(AtomicUsize::new(0));
    // Nobody is answered before all have asked, so each has a connection of its own.
    let all = Arc::new(Barrier::new(AT_ONCE));
    let counted = connections.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            counted.fetch_add(1, Ordering::SeqCst);
            let all = all.clone();
            tokio::spawn(async move {
                let mut buffer = [0; 4096];
                while stream.read(&mut buffer).await.is_ok_and(|n| n > 0) {
                    all.wait().await;
                    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
                    let _ = stream.write_all(answer).await;
                }
            });
        }
    });
    let target = format!("/fetch?http://127.0.0.1:{port}/");
    let round = async |replica: &HttpReplica| {
        let asked = (0..AT_ONCE).map(|_| fetch(replica, &target));
        for answer in futures::future::join_all(asked).await {
            assert_eq!(answer.unwrap(), (200, "ok".into()));
        }
    };
    let replica = fetcher(port).await;
    for _ in 0..20 {
        round(&replica).await;
    }
    assert_eq!(connections.load(Ordering::SeqCst), AT_ONCE);
    let other = fetcher(port).await;
    round(&other).await;
    assert_eq!(connections.load(Ordering::SeqCst), 2 * AT_ONCE);
}
