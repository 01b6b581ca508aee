//! The public port: who is meant by a request, and what of it is believed.

use std::sync::atomic::Ordering::Relaxed;

use http::{Method, Request, Response, StatusCode, header};
use http_body_util::BodyExt as _;
use wasmorch_gateway::ErrorClass;

use crate::support::*;

#[tokio::test]
async fn routes_by_host_and_path() {
    let host = Host::start("a", 1, tells_headers());
    for name in [
        "web.default.localhost:80",
        "WEB.default.localhost.",
        "shop.example.com",
    ] {
        let answer = ask(host.http, "GET /x?y=1", &[&format!("host: {name}")]).await;
        assert_eq!(status(&answer), 200, "{answer}");
        assert!(
            body(&answer).starts_with("GET /x?y=1 hops=None\n"),
            "{answer}"
        );
        assert!(answer.contains(&format!("host={name}\n")), "{answer}");
    }
    // The authority of the URI wins over `Host`.
    let answer = ask(host.http, "GET http://shop.example.com/x", &["host: other"]).await;
    assert!(body(&answer).starts_with("GET /x hops=None\n"), "{answer}");
    assert!(answer.contains("\nhost=shop.example.com\n"), "{answer}");
    host.stop().await;
}

#[tokio::test]
async fn an_unknown_host_gets_a_hint_in_development_only() {
    let host = Host::start("a", 1, says("hello"));
    let answer = ask(host.http, "GET /", &["host: nothing.localhost:8080"]).await;
    assert_eq!(status(&answer), 404);
    assert!(answer.contains("wasmorch-error: unknown-host"), "{answer}");
    assert!(
        answer.contains("\n  http://web.default.localhost:8080/\n"),
        "{answer}"
    );
    assert!(
        answer.contains("\n  http://shop.example.com:8080/\n"),
        "{answer}"
    );
    host.stop().await;

    let host = Host::start_with("a", 1, says("hello"), |config| config.development = false);
    let answer = ask(host.http, "GET /", &["host: nothing.localhost"]).await;
    assert_eq!(
        (status(&answer), body(&answer).as_str()),
        (404, "not found\n")
    );
    host.stop().await;
}

#[tokio::test]
async fn no_endpoint_is_told_with_a_time_to_come_back() {
    let host = Host::start("a", 0, says("hello"));
    for _ in 0..2 {
        let answer = ask(host.http, "GET /", &["host: web.default.localhost"]).await;
        assert_eq!(status(&answer), 503);
        assert!(answer.contains("retry-after: 1\r\n"), "{answer}");
        assert!(
            answer.contains("wasmorch-error: no-endpoint\r\n"),
            "{answer}"
        );
        assert!(
            body(&answer).contains("no replica of default/web is ready"),
            "{answer}"
        );
        // Its own entry is never dialled.
        host.sees(&[("a", host.peer)]);
    }
    assert_eq!(host.gateway.stats().errors_of(ErrorClass::NoEndpoint), 2);
    assert_eq!(host.gateway.stats().forwarded, 0);
    host.stop().await;
}

#[tokio::test]
async fn what_cannot_be_routed_is_refused() {
    let host = Host::start("a", 1, says("hello"));
    for (line, lines, expected) in [
        ("GET /", &[][..], 400),
        ("GET /", &["host: a", "host: b"], 400),
        ("GET /", &["host: a/b"], 400),
        ("GET /", &["host:"], 400),
        ("OPTIONS *", &["host: web.default.localhost"], 204),
        (
            "CONNECT web.default.localhost:80",
            &["host: web.default.localhost:80"],
            501,
        ),
        (
            "GET /",
            &["host: web.default.localhost", "upgrade: websocket"],
            501,
        ),
        (
            "GET /",
            &["host: web.default.localhost", "upgrade: h2c"],
            200,
        ),
        (
            "POST /",
            &["host: web.default.localhost", "transfer-encoding: gzip"],
            400,
        ),
        (
            "POST /",
            &[
                "host: web.default.localhost",
                "content-length: 1",
                "content-length: 2",
            ],
            400,
        ),
        (
            "POST /",
            &["host: web.default.localhost", "content-length: -1"],
            400,
        ),
        ("GET /", &["host : web.default.localhost"], 400),
    ] {
        let answer = ask(host.http, line, lines).await;
        assert_eq!(status(&answer), expected, "{line} {lines:?}: {answer}");
    }
    assert_eq!(host.calls(), 1);
    host.stop().await;
}

#[tokio::test]
async fn a_chunked_body_hides_no_second_request() {
    // Tells what it was told of the body, and the body.
    let back = Host::start(
        "b",
        1,
        handler(|request| async move {
            let (head, body) = request.into_parts();
            let told = |name| head.headers.get(name).cloned();
            let told = (
                told(header::CONTENT_LENGTH),
                told(header::TRANSFER_ENCODING),
            );
            let body = body.collect().await.unwrap().to_bytes();
            Ok(Response::new(full(format!("{told:?} {body:?}"))))
        }),
    );
    let front = Host::start("a", 0, says("never"));
    front.sees(&[("b", back.peer)]);
    // A server that went by the length would take what follows for a request.
    let (length, chunked) = ("content-length: 4\r\n", "transfer-encoding: chunked\r\n");
    let mut calls = 0;
    for address in [front.http, back.http] {
        for framing in [[length, chunked].concat(), [chunked, length].concat()] {
            let smuggled = format!(
                "POST / HTTP/1.1\r\nhost: web.default.localhost\r\n{framing}\r\n1\r\nx\r\n0\r\n\r\n\
                 GET /evil HTTP/1.1\r\nhost: web.default.localhost\r\n\r\n"
            );
            // It goes by the chunks, tells the guest no length, and closes (RFC 9112, 6.1).
            let answer = raw(address, smuggled.as_bytes()).await;
            assert_eq!(status(&answer), 200, "{framing}: {answer}");
            assert!(answer.contains("connection: close\r\n"), "{answer}");
            assert_eq!(body(&answer), "(None, None) b\"x\"", "{framing}: {answer}");
            calls += 1;
            assert_eq!(back.calls(), calls, "{framing}");
        }
    }
    front.stop().await;
    back.stop().await;
}

#[tokio::test]
async fn nobody_outside_speaks_for_a_gateway() {
    let (front, back) = (
        Host::start("a", 0, says("front")),
        Host::start("b", 1, tells_headers()),
    );
    front.sees(&[("b", back.peer)]);
    let lines = [
        "host: web.default.localhost:1",
        "wasmorch-hops: 99",
        "wasmorch-workload: default/other",
        "forwarded: for=evil",
        "x-forwarded-for: evil",
        "x-forwarded-prefix: evil",
        "x-real-ip: evil",
        "connection: x-private",
        "x-private: evil",
        "keep-alive: evil",
        "proxy-authorization: evil",
        "te: trailers",
        "x-mine: kept",
    ];
    // Over a hop and without one, the guest sees the same but for the hops.
    for (address, hops) in [(front.http, "Some(Hops(1))"), (back.http, "None")] {
        let answer = ask(address, "GET /", &lines).await;
        assert_eq!(status(&answer), 200, "{answer}");
        let mut seen: Vec<_> = body(&answer).lines().map(str::to_owned).collect();
        assert_eq!(seen.remove(0), format!("GET / hops={hops}"));
        seen.sort();
        let expected = [
            "forwarded=for=127.0.0.1;proto=http",
            "host=web.default.localhost:1",
            "te=trailers",
            "x-forwarded-for=127.0.0.1",
            "x-forwarded-host=web.default.localhost:1",
            "x-forwarded-proto=http",
            "x-mine=kept",
        ];
        assert_eq!(seen, expected, "{answer}");
    }
    front.stop().await;
    back.stop().await;
}

#[tokio::test]
async fn dispatch_is_a_request_like_any_other() {
    let (front, back) = (
        Host::start("a", 0, says("")),
        Host::start("b", 1, tells_headers()),
    );
    front.sees(&[("b", back.peer)]);
    let request = |path: &str| {
        Request::builder()
            .method(Method::PUT)
            .uri(path)
            .header("wasmorch-hops", "99")
            .body(full("x"))
            .unwrap()
    };
    let answer = text(front.gateway.dispatch(&web(), request("/p")).await).await;
    assert!(
        answer.starts_with("PUT /p hops=Some(Hops(1))\n"),
        "{answer}"
    );
    assert!(answer.contains("\nhost=web.default.internal\n"), "{answer}");
    let other = wasmorch_api::WorkloadKey::new(web().namespace, "other".parse().unwrap());
    let response = front.gateway.dispatch(&other, request("/")).await;
    assert_eq!(response.status(), StatusCode::NOT_FOUND);
    assert_eq!(front.fake.calls.load(Relaxed), 0);
    front.stop().await;
    back.stop().await;
}
