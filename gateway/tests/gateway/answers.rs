//! The public port: what a client is answered, and what HTTP asks for on the way.

use std::time::Duration;

use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, StreamBody};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use wasmorch_gateway::LocalError;

use crate::support::*;

#[tokio::test]
async fn errors_of_replicas_are_told_apart() {
    let host = Host::start(
        "a",
        1,
        handler(|request| async move {
            let reason = "limit so and so".to_owned();
            Err(match request.uri().path() {
                "/busy" => LocalError::Busy {
                    retry_after: Duration::from_millis(1500),
                    reason,
                },
                "/timed-out" => LocalError::TimedOut { reason },
                "/too-large" => LocalError::TooLarge { reason },
                "/bad-request" => LocalError::Broken { reason },
                "/late-request" => LocalError::Late { reason },
                _ => LocalError::Failed { reason },
            })
        }),
    );
    for (class, expected) in [
        ("busy", 503),
        ("timed-out", 504),
        ("too-large", 413),
        ("bad-request", 400),
        ("late-request", 408),
        ("failed", 502),
    ] {
        let answer = ask(
            host.http,
            &format!("GET /{class}"),
            &["host: shop.example.com"],
        )
        .await;
        assert_eq!(status(&answer), expected);
        assert!(
            answer.contains(&format!("wasmorch-error: {class}\r\n")),
            "{answer}"
        );
        assert_eq!(
            answer.contains("retry-after: 2\r\n"),
            class == "busy",
            "{answer}"
        );
        assert_eq!(body(&answer), "limit so and so\n");
    }
    let stats = host.gateway.stats();
    assert_eq!(
        (stats.requests, stats.answers, stats.in_flight),
        (6, [0, 0, 3, 3], 0)
    );
    host.stop().await;
}

#[tokio::test]
async fn a_guest_cannot_answer_what_only_a_gateway_may() {
    let host = Host::start(
        "a",
        1,
        handler(|request| async move {
            let status = if request.uri().path() == "/100" {
                100
            } else {
                200
            };
            let response = Response::builder()
                .status(status)
                .header("wasmorch-refused", "1")
                .header("connection", "x-private")
                .header("x-private", "1")
                .header("x-mine", "kept");
            Ok(response.body(empty()).unwrap())
        }),
    );
    let answer = ask(host.http, "GET /", &["host: shop.example.com"]).await;
    assert!(answer.contains("x-mine: kept"), "{answer}");
    assert!(
        !answer.contains("wasmorch") && !answer.contains("x-private"),
        "{answer}"
    );
    let answer = ask(host.http, "GET /100", &["host: shop.example.com"]).await;
    assert_eq!(status(&answer), 502, "{answer}");
    host.stop().await;
}

#[tokio::test]
async fn head_has_the_length_and_no_body() {
    let (front, back) = (
        Host::start("a", 0, says("")),
        Host::start(
            "b",
            1,
            handler(|_| async {
                let response = Response::builder().header(header::CONTENT_LENGTH, 5);
                Ok(response.body(full("hello")).unwrap())
            }),
        ),
    );
    front.sees(&[("b", back.peer)]);
    for address in [front.http, back.http] {
        let answer = ask(address, "HEAD /", &["host: shop.example.com"]).await;
        assert_eq!((status(&answer), body(&answer).as_str()), (200, ""));
        assert!(answer.contains("content-length: 5\r\n"), "{answer}");
        let request = Request::head("http://shop.example.com/")
            .body(empty())
            .unwrap();
        let response = H2::connect(address).await.send(request).await.unwrap();
        assert_eq!(response.headers()[header::CONTENT_LENGTH], "5");
        assert_eq!(text(response).await, "");
    }
    front.stop().await;
    back.stop().await;
}

#[tokio::test]
async fn trailers_pass_both_ways() {
    // Answers with the request's trailers as a body, and trailers of its own.
    let back = Host::start(
        "b",
        1,
        handler(|request| async move {
            let trailers = request
                .into_body()
                .collect()
                .await
                .unwrap()
                .trailers()
                .cloned();
            let seen = format!("{:?}", trailers.unwrap()["x-sent"]);
            let mut own = http::HeaderMap::new();
            own.insert("x-own", "1".parse().unwrap());
            let frames = [
                http_body::Frame::data(seen.into()),
                http_body::Frame::trailers(own),
            ];
            let body = StreamBody::new(futures::stream::iter(frames.map(Ok))).boxed_unsync();
            Ok(Response::builder()
                .header("trailer", "x-own")
                .body(body)
                .unwrap())
        }),
    );
    let front = Host::start("a", 0, says(""));
    front.sees(&[("b", back.peer)]);
    for address in [front.http, back.http] {
        let chunked = b"POST / HTTP/1.1\r\nhost: shop.example.com\r\nte: trailers\r\nconnection: close, te\r\n\
            transfer-encoding: chunked\r\ntrailer: x-sent\r\n\r\n3\r\nabc\r\n0\r\nx-sent: yes\r\n\r\n";
        let answer = raw(address, chunked).await;
        assert!(
            answer.contains("\"yes\"\r\n0\r\nx-own: 1\r\n\r\n"),
            "{answer}"
        );
    }
    front.stop().await;
    back.stop().await;
}

/// Takes the body, but on `/no`.
fn takes_or_refuses() -> Handle {
    handler(|request| async move {
        if request.uri().path() == "/no" {
            return Ok(Response::builder().status(403).body(empty()).unwrap());
        }
        assert!(!request.headers().contains_key(header::EXPECT));
        let body = request.into_body().collect().await.unwrap().to_bytes();
        Ok(Response::new(full(body)))
    })
}

/// Asks whether it may send a body, and sends it once it is told to; all that it is told.
async fn asks_first(address: std::net::SocketAddr, path: &str) -> Vec<u16> {
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: shop.example.com\r\ncontent-length: 2\r\nexpect: 100-continue\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let (mut told, mut answer) = (Vec::new(), Vec::new());
    while told.last().is_none_or(|status| *status == 100) {
        let read = within(stream.read_buf(&mut answer)).await.unwrap();
        assert!(read > 0, "{told:?}");
        while let Some(end) = answer.windows(4).position(|four| four == b"\r\n\r\n") {
            let head: Vec<u8> = answer.drain(..end + 4).collect();
            told.push(status(&String::from_utf8_lossy(&head)));
            if told.last() == Some(&100) {
                stream.write_all(b"ok").await.unwrap();
            }
        }
    }
    told
}

#[tokio::test]
async fn continue_is_said_when_the_body_is_wanted() {
    let back = Host::start("b", 1, takes_or_refuses());
    let front = Host::start("a", 0, says("never"));
    front.sees(&[("b", back.peer)]);
    assert_eq!(asks_first(back.http, "/").await, [100, 200]);
    assert_eq!(asks_first(back.http, "/no").await, [403]);
    // Over a hop the other host's replica cannot be waited for: HTTP/2 sends a body as it comes, and so
    // the client is told to. It is told right where there is no replica at all.
    assert_eq!(asks_first(front.http, "/").await, [100, 200]);
    let told = asks_first(front.http, "/no").await;
    assert!(told == [100, 403] || told == [403], "{told:?}");
    front.sees(&[]);
    assert_eq!(asks_first(front.http, "/").await, [503]);
    front.stop().await;
    back.stop().await;
}

#[tokio::test]
async fn continue_is_said_before_an_answer_that_begins_before_the_body() {
    // The answer is the body itself: its client and the replica would wait for each other.
    let back = Host::start("b", 1, echoes());
    let front = Host::start("a", 0, says("never"));
    front.sees(&[("b", back.peer)]);
    for address in [back.http, front.http] {
        assert_eq!(asks_first(address, "/").await, [100, 200]);
    }
    // Nobody is going to read it.
    let unread = Host::start("c", 1, says("hello"));
    assert_eq!(asks_first(unread.http, "/").await, [200]);
    for host in [front, back, unread] {
        host.stop().await;
    }
}

#[tokio::test]
async fn http2_with_prior_knowledge() {
    let host = Host::start("a", 1, tells_headers());
    let mut client = H2::connect(host.http).await;
    let asked = (0..50).map(|_| {
        let mut client = client.clone();
        async move {
            let request = Request::get("http://web.default.localhost:9/x")
                .body(empty())
                .unwrap();
            text(client.send(request).await.unwrap()).await
        }
    });
    for answer in futures::future::join_all(asked).await {
        assert!(answer.starts_with("GET /x hops=None\n"), "{answer}");
        assert!(
            answer.contains("\nhost=web.default.localhost:9\n"),
            "{answer}"
        );
    }
    let mut request = Request::get("http://a/").body(empty()).unwrap();
    request
        .headers_mut()
        .insert(header::HOST, "b".parse().unwrap());
    assert_eq!(
        client.send(request).await.unwrap().status(),
        StatusCode::BAD_REQUEST
    );
    drop(client);
    host.stop().await;
}

#[tokio::test]
async fn a_client_that_goes_cancels_its_request() {
    struct Cancelled(tokio_util::sync::CancellationToken);
    impl Drop for Cancelled {
        fn drop(&mut self) {
            self.0.cancel();
        }
    }
    let token = tokio_util::sync::CancellationToken::new();
    let cancelled = token.clone();
    let back = Host::start(
        "b",
        1,
        handler(move |_| {
            let cancelled = Cancelled(cancelled.clone());
            async move {
                let _cancelled = cancelled;
                std::future::pending().await
            }
        }),
    );
    // As if it had waited for longer than one that only closes its half.
    let front = Host::start_with("a", 0, says(""), |config| {
        config.limits.half_close_within = Duration::ZERO;
    });
    front.sees(&[("b", back.peer)]);
    let mut stream = tokio::net::TcpStream::connect(front.http).await.unwrap();
    stream
        .write_all(b"GET / HTTP/1.1\r\nhost: shop.example.com\r\n\r\n")
        .await
        .unwrap();
    until("it is in hand", || back.calls() == 1).await;
    assert_eq!(
        (
            front.gateway.stats().in_flight,
            back.gateway.stats().in_flight
        ),
        (1, 1)
    );
    drop(stream);
    within(token.cancelled()).await;
    until("nothing is in hand", || {
        front.gateway.stats().in_flight + back.gateway.stats().in_flight == 0
    })
    .await;
    front.stop().await;
    back.stop().await;
}
