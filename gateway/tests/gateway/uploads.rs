//! Bodies of clients: how long they are waited for.

use std::time::Duration;

use futures::SinkExt as _;
use http::Request;
use http_body_util::BodyExt as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::*;

#[tokio::test]
async fn a_body_that_does_not_come_is_not_waited_for() {
    let short = |config: &mut wasmorch_gateway::GatewayConfig| {
        config.limits.body_timeout = Duration::from_millis(200);
    };
    let back = Host::start("b", 1, reads());
    let front = Host::start_with("a", 0, says(""), short);
    let own = Host::start_with("c", 1, reads(), short);
    front.sees(&[("b", back.peer)]);
    for host in [&front, &own] {
        for rest in [
            "content-length: 100\r\n\r\nhalf",
            "content-length: 100\r\n\r\n",
            "content-length: 100\r\nexpect: 100-continue\r\n\r\n",
            "transfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n",
        ] {
            let mut stream = TcpStream::connect(host.http).await.unwrap();
            let head = "POST / HTTP/1.1\r\nhost: shop.example.com\r\n";
            let sent = format!("{head}{rest}");
            stream.write_all(sent.as_bytes()).await.unwrap();
            let mut answer = String::new();
            within(stream.read_to_string(&mut answer)).await.unwrap();
            let answer = answer.trim_start_matches("HTTP/1.1 100 Continue\r\n\r\n");
            assert_eq!(status(answer), 408, "{rest:?}: {answer}");
            assert!(
                answer.contains("wasmorch-error: late-request\r\n"),
                "{answer}"
            );
            assert!(body(answer).contains("came for 200ms"), "{answer}");
        }
    }
    until("no seat is held", || back.gateway.stats().in_flight == 0).await;
    for host in [front, own, back] {
        assert_eq!(host.gateway.stats().ejected, 0, "it is no host's fault");
        host.stop().await;
    }
}

#[tokio::test]
async fn a_body_that_comes_slowly_is_waited_for_and_so_is_one_whose_answer_has_begun() {
    const LIMIT: Duration = Duration::from_millis(1000);
    let host = Host::start_with("a", 1, reads(), |config| config.limits.body_timeout = LIMIT);
    let post = |body| {
        let request = Request::post("/").header("host", "shop.example.com");
        request.body(body).unwrap()
    };
    let (mut pieces, slow) = piped();
    let mut client = H1::connect(host.http).await;
    let sending = async {
        // Longer than the limit in all.
        for _ in 0..12 {
            pieces.send("x").await.unwrap();
            tokio::time::sleep(LIMIT / 10).await;
        }
        drop(pieces);
    };
    let (answer, ()) = futures::future::join(client.send(post(slow)), sending).await;
    assert_eq!(text(answer.unwrap()).await, "x".repeat(12));
    host.stop().await;

    let host = Host::start_with("a", 1, echoes(), |config| {
        config.limits.body_timeout = LIMIT / 5
    });
    let (mut pieces, talk) = piped();
    let mut client = H1::connect(host.http).await;
    let mut answer = client.send(post(talk)).await.unwrap();
    for piece in ["first", "second"] {
        tokio::time::sleep(LIMIT / 2).await;
        pieces.send(piece).await.unwrap();
        let frame = within(answer.frame()).await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), piece);
    }
    drop((pieces, client));
    host.stop().await;
}
