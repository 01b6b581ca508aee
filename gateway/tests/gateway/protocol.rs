//! What HTTP may carry, over one gateway and over two: events, ranges, bodies that lie about their
//! length, halves of connections.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use futures::StreamExt as _;
use http::{Request, Response, header};
use http_body_util::{BodyExt as _, StreamBody};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use wasmorch_gateway::{GatewayConfig, LocalError};

use crate::support::*;

/// Two hosts, one with the replica; requests to either reach it.
fn two(handle: Handle) -> (Host, Host) {
    let back = Host::start("b", 1, handle);
    let front = Host::start("a", 0, says(""));
    front.sees(&[("b", back.peer)]);
    (front, back)
}

#[tokio::test]
async fn events_arrive_one_by_one_while_the_response_goes_on() {
    let (sender, receiver) = futures::channel::mpsc::unbounded::<String>();
    let receivers = Arc::new(std::sync::Mutex::new(vec![receiver]));
    let (front, back) = two(handler(move |_| {
        let receiver = receivers.lock().unwrap().pop().unwrap();
        async move {
            let frames = receiver.map(|event| Ok(http_body::Frame::data(event.into())));
            let response = Response::builder().header(header::CONTENT_TYPE, "text/event-stream");
            Ok(response
                .body(StreamBody::new(frames).boxed_unsync())
                .unwrap())
        }
    }));
    let mut client = H1::connect(front.http).await;
    let request = Request::get("/").header("host", "shop.example.com");
    let request = request.header("accept", "text/event-stream").body(empty());
    let mut response = client.send(request.unwrap()).await.unwrap();
    assert_eq!(
        response.headers()[header::CONTENT_TYPE],
        "text/event-stream"
    );
    for number in 0..3 {
        // The next one is written only after this one has come.
        sender
            .unbounded_send(format!("data: {number}\n\n"))
            .unwrap();
        let frame = within(response.body_mut().frame()).await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), format!("data: {number}\n\n"));
    }
    drop(sender);
    assert!(within(response.body_mut().frame()).await.is_none());
    drop(client);
    front.stop().await;
    back.stop().await;
}

#[tokio::test]
async fn a_range_is_between_the_client_and_the_replica() {
    let (front, back) = two(handler(|request| async move {
        assert_eq!(request.headers()[header::RANGE], "bytes=1-3");
        assert_eq!(request.headers()[header::IF_RANGE], "\"tag\"");
        let response = Response::builder()
            .status(206)
            .header(header::CONTENT_RANGE, "bytes 1-3/10")
            .header(header::ACCEPT_RANGES, "bytes");
        Ok(response.body(full("bcd")).unwrap())
    }));
    for address in [front.http, back.http] {
        let lines = [
            "host: shop.example.com",
            "range: bytes=1-3",
            "if-range: \"tag\"",
        ];
        let answer = ask(address, "GET /", &lines).await;
        assert_eq!((status(&answer), body(&answer).as_str()), (206, "bcd"));
        assert!(
            answer.contains("content-range: bytes 1-3/10\r\n"),
            "{answer}"
        );
    }
    front.stop().await;
    back.stop().await;
}

#[tokio::test]
async fn a_request_that_could_be_read_two_ways_is_refused() {
    let host = Host::start("a", 1, echoes());
    let smuggled = "GET /evil HTTP/1.1\r\nhost: shop.example.com\r\n\r\n";
    for head in [
        "transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n",
        "transfer-encoding: identity, chunked, identity\r\n",
        "transfer-encoding: xchunked\r\n",
        "transfer-encoding: chunked, gzip\r\n",
        "transfer-encoding : chunked\r\n",
        "transfer-encoding:\x0bchunked\r\n",
        "content-length: 1\r\ncontent-length: 50\r\n",
        "content-length: +5\r\n",
        "content-length: 0x5\r\n",
        "content-length: 5, 6\r\n",
        "content-length : 5\r\n",
        " folded: 1\r\n",
        "bad name: 1\r\n",
        "x: a\rb\r\n",
        "x: a\0b\r\n",
    ] {
        let request =
            format!("POST / HTTP/1.1\r\nhost: shop.example.com\r\n{head}\r\n0\r\n\r\n{smuggled}");
        let answer = raw(host.http, request.as_bytes()).await;
        assert_eq!(status(&answer), 400, "{head:?}: {answer}");
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{head:?}: {answer}");
    }
    // Chunks in chunks, and what a component is not told of and could not undo.
    for (head, expected) in [
        ("transfer-encoding: chunked, chunked\r\n", 400),
        (
            "transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n",
            400,
        ),
        ("transfer-encoding: gzip, chunked\r\n", 501),
        (
            "transfer-encoding: identity\r\ntransfer-encoding: chunked\r\n",
            501,
        ),
    ] {
        let request =
            format!("POST / HTTP/1.1\r\nhost: shop.example.com\r\n{head}\r\n0\r\n\r\n{smuggled}");
        let answer = raw(host.http, request.as_bytes()).await;
        assert_eq!(status(&answer), expected, "{head:?}: {answer}");
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{head:?}: {answer}");
    }
    // A target that is no path and no URL, whatever `Host` says.
    for target in ["foo", "shop.example.com", "shop.example.com:80"] {
        let head =
            format!("GET {target} HTTP/1.1\r\nhost: shop.example.com\r\nconnection: close\r\n\r\n");
        assert_eq!(
            status(&raw(host.http, head.as_bytes()).await),
            400,
            "{target}"
        );
    }
    assert_eq!(host.calls(), 0);
    // HTTP/1.0 knows no chunks.
    let old =
        "POST / HTTP/1.0\r\nhost: shop.example.com\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n";
    assert_eq!(status(&raw(host.http, old.as_bytes()).await), 400);
    for line in [
        "GET / HTTP/1.1 x",
        "GET  / HTTP/1.1",
        "G\u{e9}T / HTTP/1.1",
        "GET / HTTP/9.9",
    ] {
        let answer = raw(
            host.http,
            format!("{line}\r\nhost: shop.example.com\r\n\r\n").as_bytes(),
        )
        .await;
        assert!(!answer.contains(" 200 "), "{line}: {answer}");
    }
    // Chunks whose length lies.
    for chunks in [
        "ffffffffffffffffff\r\nx",
        "-1\r\nx\r\n0\r\n\r\n",
        "1\r\nxyz\r\n0\r\n\r\n",
        "zz\r\n",
    ] {
        let head =
            "POST / HTTP/1.1\r\nhost: shop.example.com\r\ntransfer-encoding: chunked\r\n\r\n";
        let answer = raw(host.http, format!("{head}{chunks}{smuggled}").as_bytes()).await;
        assert!(
            answer.matches("HTTP/1.1 ").count() <= 1,
            "{chunks:?}: {answer}"
        );
    }
    until("nothing is in hand", || {
        let stats = host.gateway.stats();
        stats.in_flight == 0 && stats.connections_open == 0
    })
    .await;
    host.stop().await;
}

#[tokio::test]
async fn a_second_request_in_a_body_stays_a_body() {
    let (front, back) = two(echoes());
    let inner = "GET /evil HTTP/1.1\r\nhost: shop.example.com\r\n\r\n";
    let length = inner.len();
    for address in [front.http, back.http] {
        let request = format!(
            "POST / HTTP/1.1\r\nhost: shop.example.com\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{inner}"
        );
        let answer = raw(address, request.as_bytes()).await;
        assert_eq!((status(&answer), body(&answer).as_str()), (200, inner));
    }
    // By HTTP/2, headers of HTTP/1.1's connections are no way in either: hop to hop they are gone.
    let mut client = H2::connect(front.http).await;
    let request = Request::post("http://shop.example.com/").header("te", "trailers");
    let answer = client
        .send(request.body(full(inner)).unwrap())
        .await
        .unwrap();
    assert_eq!(text(answer).await, inner);
    assert_eq!(back.calls(), 3);
    drop(client);
    front.stop().await;
    back.stop().await;
}

#[tokio::test]
async fn a_body_shorter_than_it_says_ends_in_an_error() {
    let broken = Arc::new(AtomicU32::new(0));
    let counted = broken.clone();
    let (front, back) = two(handler(move |request| {
        let counted = counted.clone();
        async move {
            let whole = request.into_body().collect().await;
            counted.fetch_add(u32::from(whole.is_err()), Relaxed);
            Ok(Response::new(empty()))
        }
    }));
    for (number, address) in [front.http, back.http].into_iter().enumerate() {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request =
            "POST / HTTP/1.1\r\nhost: shop.example.com\r\ncontent-length: 100\r\n\r\nhalf";
        stream.write_all(request.as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
        let _ = within(stream.read_to_end(&mut Vec::new())).await;
        until("the replica is told", || {
            let told = broken.load(Relaxed);
            told == number as u32 + 1 && front.gateway.stats().in_flight == 0
        })
        .await;
    }
    front.stop().await;
    back.stop().await;
}

/// Counts those that are alive.
struct Alive(Arc<AtomicU32>);

impl Alive {
    fn new(count: &Arc<AtomicU32>) -> Self {
        count.fetch_add(1, Relaxed);
        Self(count.clone())
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

#[tokio::test]
async fn who_closes_its_half_is_answered() {
    let (front, back) = two(handler(|request| async move {
        let body = request.into_body().collect().await.unwrap().to_bytes();
        tokio::time::sleep(Duration::from_millis(300)).await;
        Ok(Response::new(full([&b"slept "[..], &*body].concat())))
    }));
    let head = "HTTP/1.1\r\nhost: shop.example.com\r\n";
    for (request, expected) in [
        (format!("GET / {head}\r\n"), "slept "),
        (
            format!("POST / {head}content-length: 2\r\n\r\nok"),
            "slept ok",
        ),
    ] {
        for address in [front.http, back.http] {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(request.as_bytes()).await.unwrap();
            stream.shutdown().await.unwrap();
            let mut answer = String::new();
            within(stream.read_to_string(&mut answer)).await.unwrap();
            assert_eq!((status(&answer), &*body(&answer)), (200, expected));
        }
    }
    until("nothing is left", || {
        front.gateway.stats().connections_open == 0
    })
    .await;
    front.stop().await;
    back.stop().await;
}

/// A replica that never answers and counts how many requests it has, on the second of two hosts; both with these
/// time-outs for clients that close their half.
fn two_that_wait(within: Duration, timeout: Duration) -> (Host, Host, Arc<AtomicU32>) {
    let alive = Arc::new(AtomicU32::new(0));
    let counted = alive.clone();
    let waits = handler(move |_| {
        let alive = Alive::new(&counted);
        async move {
            let _alive = alive;
            std::future::pending().await
        }
    });
    let change = |config: &mut wasmorch_gateway::GatewayConfig| {
        config.limits.half_close_within = within;
        config.limits.half_closed_timeout = timeout;
    };
    let back = Host::start_with("b", 1, waits, change);
    let front = Host::start_with("a", 0, says(""), change);
    front.sees(&[("b", back.peer)]);
    (front, back, alive)
}

/// Asks both hosts, does something with each connection, and looks that nobody works for it any more.
async fn is_given_up(
    (front, back, alive): (Host, Host, Arc<AtomicU32>),
    leave: impl AsyncFn(TcpStream),
) {
    for (number, address) in [front.http, back.http].into_iter().enumerate() {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = b"GET / HTTP/1.1\r\nhost: shop.example.com\r\n\r\n";
        stream.write_all(request).await.unwrap();
        until("it is in hand", || back.calls() == number as u32 + 1).await;
        assert_eq!(alive.load(Relaxed), 1);
        leave(stream).await;
        until("the replica is told", || alive.load(Relaxed) == 0).await;
    }
    until("nothing is left", || {
        front.gateway.stats().connections_open + back.gateway.stats().in_flight == 0
    })
    .await;
    front.stop().await;
    back.stop().await;
}

const LONG: Duration = Duration::from_secs(600);

#[tokio::test]
async fn who_resets_its_connection_is_gone() {
    is_given_up(two_that_wait(LONG, LONG), async |stream| {
        let linger = socket2::SockRef::from(&stream);
        linger.set_linger(Some(Duration::ZERO)).unwrap();
    })
    .await;
}

#[tokio::test]
async fn who_closes_long_after_its_request_is_gone() {
    is_given_up(two_that_wait(Duration::ZERO, LONG), async |mut stream| {
        stream.shutdown().await.unwrap();
        assert_eq!(within(stream.read(&mut [0; 64])).await.unwrap_or(0), 0);
    })
    .await;
}

#[tokio::test]
async fn who_has_closed_its_half_is_not_waited_for_without_end() {
    let short = Duration::from_millis(100);
    is_given_up(two_that_wait(LONG, short), async |mut stream| {
        stream.shutdown().await.unwrap();
        assert_eq!(within(stream.read(&mut [0; 64])).await.unwrap_or(0), 0);
    })
    .await;
}

#[tokio::test]
async fn what_wasi_cannot_carry_is_told() {
    let host = Host::start("a", 1, says("hello"));
    let lines = [
        "host: shop.example.com",
        "connection: upgrade",
        "upgrade: websocket",
        "sec-websocket-version: 13",
        "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==",
    ];
    let answer = ask(host.http, "GET /", &lines).await;
    assert_eq!(status(&answer), 501, "{answer}");
    assert!(
        answer.contains("wasmorch-error: not-carried\r\n"),
        "{answer}"
    );
    assert!(body(&answer).contains("server-sent events"), "{answer}");
    assert_eq!(host.calls(), 0);
    host.stop().await;
}

#[tokio::test]
async fn on_the_internet_nobody_is_told_how_a_guest_failed() {
    for (development, text) in [
        (true, "the guest trapped\n"),
        (false, "default/web failed; its log says why\n"),
    ] {
        let fails = handler(|_| async {
            let reason = "the guest trapped".into();
            Err(LocalError::Failed { reason })
        });
        let change = |config: &mut GatewayConfig| config.development = development;
        let host = Host::start_with("a", 1, fails, change);
        assert_eq!(get(host.http).await, (502, text.to_owned()));
        host.stop().await;
    }
}
