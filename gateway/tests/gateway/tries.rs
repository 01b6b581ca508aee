//! A request that no host has answered: what is tried again, where, and for how long.

use std::net::SocketAddr;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use http::{Request, Response, StatusCode};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinHandle;
use wasmorch_gateway::{Deadline, Hops, LocalError};

use crate::support::*;

/// Drains, and takes nothing.
fn refuses() -> Handle {
    handler(|request| async { Err(LocalError::Refused(request)) })
}

/// The answer to a body that some replica is to give back.
async fn echoed(gateway: SocketAddr) -> (StatusCode, String) {
    let post = Request::post("/").header("host", "shop.example.com");
    let post = post.body(full("hello")).unwrap();
    let response = H1::connect(gateway).await.send(post).await.unwrap();
    (response.status(), text(response).await)
}

#[tokio::test]
async fn a_refused_request_goes_elsewhere_body_and_all() {
    let front = Host::start("a", 0, says(""));
    // One says so before it looks, one when the replica drains.
    let gone = Host::start("b", 0, says("never"));
    let draining = Host::start("c", 1, refuses());
    let good = Host::start("d", 1, echoes());
    front.sees(&[("b", gone.peer), ("c", draining.peer), ("d", good.peer)]);
    for _ in 0..30 {
        assert_eq!(
            echoed(front.http).await,
            (StatusCode::OK, "hello".to_owned())
        );
    }
    assert_eq!((good.calls(), gone.calls()), (30, 0));
    assert!(front.gateway.stats().retried > 0 && draining.calls() > 0);

    front.sees(&[("b", gone.peer), ("c", draining.peer)]);
    let answer = ask(front.http, "GET /", &["host: shop.example.com"]).await;
    assert_eq!(status(&answer), 503, "{answer}");
    assert!(
        answer.contains("wasmorch-error: refused\r\n") && answer.contains("retry-after: 1\r\n"),
        "{answer}"
    );
    assert!(!answer.contains("wasmorch-refused"), "{answer}");
    for host in [front, gone, draining, good] {
        host.stop().await;
    }
}

#[tokio::test]
async fn a_replica_here_that_drains_gives_its_request_to_another_host() {
    let front = Host::start(
        "a",
        1,
        handler(|request| async { Err(LocalError::NotHere(request)) }),
    );
    let back = Host::start("b", 1, echoes());
    front.sees(&[("a", front.peer), ("b", back.peer)]);
    assert_eq!(
        echoed(front.http).await,
        (StatusCode::OK, "hello".to_owned())
    );
    front.stop().await;
    back.stop().await;
}

#[tokio::test]
async fn what_became_ready_meanwhile_takes_a_refused_request() {
    // By the time that the host refuses, its replica's successor is ready: here, or elsewhere.
    for successor_is_here in [true, false] {
        let front = Host::start("a", 0, echoes());
        let next = Host::start("c", 1, echoes());
        let (fake, tables) = (front.fake.clone(), front.tables.clone());
        let news = endpoint("c", next.peer);
        let back = Host::start(
            "b",
            1,
            handler(move |request| {
                if successor_is_here {
                    fake.ready.store(1, Relaxed);
                } else {
                    tables.apply_endpoints(endpoints(vec![news.clone()]), 100);
                }
                async { Err(LocalError::Refused(request)) }
            }),
        );
        front.sees(&[("b", back.peer)]);
        assert_eq!(
            echoed(front.http).await,
            (StatusCode::OK, "hello".to_owned())
        );
        assert_eq!(
            (front.calls(), next.calls()),
            if successor_is_here { (1, 0) } else { (0, 1) }
        );
        assert_eq!(front.gateway.stats().retried, 1);
        for host in [front, next, back] {
            host.stop().await;
        }
    }
}

#[tokio::test]
async fn a_host_that_cannot_be_reached_is_tried_once_and_left_alone() {
    let (front, good) = (
        Host::start("a", 0, says("")),
        Host::start("c", 1, says("good")),
    );
    front.sees(&[("b", nowhere()), ("c", good.peer)]);
    for _ in 0..40 {
        assert_eq!(get(front.http).await, (200, "good".to_owned()));
    }
    let stats = front.gateway.stats();
    // Two failures eject it, and the test is faster than the ejection is long.
    assert_eq!((stats.retried, stats.ejected), (2, 1), "{stats:?}");

    // Ejected, and still tried when there is no other.
    let back = Host::start("b", 1, says("back"));
    front.sees(&[("b", nowhere())]);
    let answer = ask(front.http, "GET /", &["host: shop.example.com"]).await;
    assert_eq!(status(&answer), 503, "{answer}");
    assert!(
        answer.contains("wasmorch-error: unreachable\r\n"),
        "{answer}"
    );
    front.sees(&[("b", back.peer)]);
    assert_eq!(get(front.http).await.1, "back");
    for host in [front, good, back] {
        host.stop().await;
    }
}

/// Says that it is whoever is meant, takes requests, and breaks off before it answers.
async fn breaker(after: Duration) -> (SocketAddr, JoinHandle<()>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let breaking = tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(stream).await.unwrap();
                while let Some(Ok((request, mut answer))) = connection.accept().await {
                    let Some(meant) = request.headers().get("wasmorch-host") else {
                        return tokio::time::sleep(after).await;
                    };
                    let here = Response::builder().status(204);
                    let here = here.header("wasmorch-host", meant).body(()).unwrap();
                    answer.send_response(here, true).unwrap();
                }
            });
        }
    });
    (address, breaking)
}

#[tokio::test]
async fn what_may_have_been_executed_is_repeated_only_if_that_is_the_same() {
    let (front, good) = (
        Host::start("a", 0, says("")),
        Host::start("c", 1, says("good")),
    );
    let (address, breaking) = breaker(Duration::ZERO).await;
    let (also, breaking_too) = breaker(Duration::ZERO).await;
    let post = async || ask(front.http, "POST /", &["host: shop.example.com"]).await;
    front.sees(&[("b", address)]);
    let answer = post().await;
    assert_eq!(status(&answer), 502, "{answer}");
    assert!(answer.contains("wasmorch-error: lost\r\n"), "{answer}");
    // A GET is repeated elsewhere, once.
    front.sees(&[("b", address), ("d", also)]);
    assert_eq!(get(front.http).await.0, 502);
    let stats = front.gateway.stats();
    assert_eq!((stats.forwarded, stats.retried), (3, 1), "{stats:?}");
    front.sees(&[("b", address), ("c", good.peer)]);
    for _ in 0..20 {
        assert_eq!(get(front.http).await, (200, "good".to_owned()));
    }
    assert_eq!(good.calls(), 20);

    // A POST is not, whether there is another host or not.
    let other = Host::start("f", 1, says("good"));
    front.sees(&[("e", address), ("f", other.peer)]);
    let before = front.gateway.stats();
    let mut lost = 0;
    for _ in 0..20 {
        lost += u64::from(status(&post().await) == 502);
    }
    let stats = front.gateway.stats();
    assert_eq!(stats.retried, before.retried);
    assert_eq!(u64::from(other.calls()), 20 - lost);
    assert!(lost > 0, "the breaker was never asked");
    breaking.abort();
    breaking_too.abort();
    for host in [front, good, other] {
        host.stop().await;
    }
}

/// Lets one request take so long, tries on several hosts together.
fn gives(host: &Host, timeout: Duration) {
    let table = wasmorch_api::RouteTable {
        timeout: Some(wasmorch_api::HumanDuration(timeout)),
        ..routes(&["shop.example.com/"])
    };
    host.tables.apply_routes(table, host.tables.sequence() + 1);
}

#[tokio::test]
async fn a_further_try_gets_what_the_first_has_left_of_the_time() {
    let front = Host::start("a", 0, says(""));
    // Answers with what it is given, in milliseconds.
    let told = Host::start(
        "c",
        1,
        handler(|request| async move {
            let left = request.extensions().get::<Deadline>().map(|Deadline(at)| {
                let left = at.saturating_duration_since(Instant::now());
                left.as_millis()
            });
            Ok(Response::new(full(format!("{left:?}"))))
        }),
    );
    const HELD: Duration = Duration::from_millis(300);
    let (address, breaking) = breaker(HELD).await;
    gives(&front, Duration::from_secs(60));
    // A first try has all of it: its replica keeps its own time-out.
    front.sees(&[("c", told.peer)]);
    assert_eq!(get(front.http).await, (200, "None".to_owned()));
    front.sees(&[("b", address), ("c", told.peer)]);
    let mut left = "None".to_owned();
    // Which of the two is asked first is chance.
    for _ in 0..100 {
        if left == "None" {
            left = get(front.http).await.1;
        }
    }
    let left: u64 = left[5..left.len() - 1].parse().unwrap();
    assert!((30_000..=59_700).contains(&left), "{left} ms");

    // Nothing is left: no further try. Something is, and the other host takes longer.
    let silent = Host::start("d", 1, hangs());
    for (timeout, further) in [(HELD / 2, 0), (HELD * 2, 1)] {
        let front = Host::start("a", 0, says(""));
        gives(&front, timeout);
        front.sees(&[("b", address)]);
        let mut late = H1::connect(front.http).await;
        let request = Request::get("/").header("host", "shop.example.com");
        let asked = late.send(request.body(empty()).unwrap());
        let (tables, other) = (front.tables.clone(), endpoint("d", silent.peer));
        let news = async {
            until("it is under way", || front.gateway.stats().forwarded == 1).await;
            tables.apply_endpoints(endpoints(vec![other]), 100);
        };
        let began = Instant::now();
        let (answer, ()) = futures::future::join(asked, news).await;
        assert_eq!(answer.unwrap().status(), 502);
        assert!(began.elapsed() < timeout.max(HELD) + Duration::from_secs(5));
        assert_eq!(front.gateway.stats().retried, further);
        front.stop().await;
    }
    breaking.abort();
    for host in [front, told, silent] {
        host.stop().await;
    }
}

#[tokio::test]
async fn what_is_never_executed_goes_on_to_three_hosts_and_no_further() {
    let front = Host::start("a", 0, says(""));
    let names = ["b", "c", "d", "e"];
    let hosts = names.map(|name| Host::start(name, 1, refuses()));
    let seen: Vec<_> = { names.iter().zip(&hosts) }
        .map(|(name, host)| (*name, host.peer))
        .collect();
    let post = async || ask(front.http, "POST /", &["host: shop.example.com"]).await;
    front.sees(&seen);
    let answer = post().await;
    assert_eq!(status(&answer), 503, "{answer}");
    assert!(answer.contains("wasmorch-error: refused\r\n"), "{answer}");
    let asked: u32 = hosts.iter().map(Host::calls).sum();
    assert_eq!((asked, front.gateway.stats().retried), (3, 2));
    for host in hosts {
        host.stop().await;
    }
    front.stop().await;
}

#[tokio::test]
async fn what_a_host_ends_is_tried_once_elsewhere_and_blames_nobody() {
    let ends = || handler(|_| async { Err(LocalError::Stopped) });
    let (ended, good) = (
        Host::start("b", 1, ends()),
        Host::start("c", 1, says("good")),
    );
    // On the host that was asked.
    let own = Host::start("a", 1, ends());
    own.sees(&[("a", own.peer), ("c", good.peer)]);
    for _ in 0..12 {
        assert_eq!(get(own.http).await, (200, "good".to_owned()));
        let answer = ask(own.http, "POST /", &["host: shop.example.com"]).await;
        assert_eq!(status(&answer), 502, "{answer}");
        assert!(answer.contains("wasmorch-error: lost\r\n"), "{answer}");
    }
    // It is still the first that is asked.
    assert_eq!((own.calls(), good.calls()), (24, 12));
    own.sees(&[("a", own.peer), ("b", ended.peer)]);
    assert_eq!(get(own.http).await.0, 502);
    assert_eq!(ended.calls(), 1);

    // Over a hop.
    let front = Host::start("d", 0, says(""));
    front.sees(&[("b", ended.peer), ("c", good.peer)]);
    for _ in 0..40 {
        assert_eq!(get(front.http).await, (200, "good".to_owned()));
    }
    let retried = front.gateway.stats().retried;
    assert!(retried > 5, "{retried}");
    assert_eq!(u64::from(ended.calls()), 1 + retried);
    for host in [own, front, ended, good] {
        assert_eq!(host.gateway.stats().ejected, 0);
        host.stop().await;
    }
}

#[tokio::test]
async fn what_is_tried_again_has_its_hops_and_its_deadline_still() {
    let other = Host::start(
        "c",
        1,
        handler(|request| async move {
            let hops = request.extensions().get::<Hops>().copied();
            let limited = request.extensions().get::<Deadline>().is_some();
            Ok(Response::new(full(format!("{hops:?} {limited}"))))
        }),
    );
    let own = Host::start("a", 1, handler(|_| async { Err(LocalError::Stopped) }));
    own.sees(&[("a", own.peer), ("c", other.peer)]);
    let mut request = Request::get("/").body(empty()).unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    request.extensions_mut().insert(Hops(3));
    request.extensions_mut().insert(Deadline(deadline));
    let answer = text(own.gateway.dispatch(&web(), request).await).await;
    assert_eq!(answer, "Some(Hops(4)) true");
    assert_eq!((own.calls(), other.calls()), (1, 1));
    own.stop().await;
    other.stop().await;
}

#[tokio::test]
async fn a_body_that_its_client_breaks_is_no_hosts_fault() {
    let front = Host::start("a", 0, says(""));
    let (one, other) = (Host::start("b", 1, reads()), Host::start("c", 1, reads()));
    let seen = [("b", one.peer), ("c", other.peer)];
    front.sees(&seen);
    one.sees(&seen);
    let head = "POST / HTTP/1.1\r\nhost: shop.example.com\r\n";
    // No chunk, and not all of what was announced.
    for broken in [
        format!("{head}transfer-encoding: chunked\r\n\r\nzz\r\nhello\r\n0\r\n\r\n"),
        format!("{head}transfer-encoding: chunked\r\n\r\n5\r\nhello\r\nzz\r\n"),
        format!("{head}content-length: 100\r\n\r\nhalf"),
    ] {
        for address in [front.http, one.http] {
            for _ in 0..10 {
                let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
                stream.write_all(broken.as_bytes()).await.unwrap();
                stream.shutdown().await.unwrap();
                let mut answer = Vec::new();
                within(stream.read_to_end(&mut answer)).await.unwrap();
                let answer = String::from_utf8(answer).unwrap();
                assert_eq!(status(&answer), 400, "{broken:?}: {answer}");
                let class = "wasmorch-error: bad-request\r\n";
                assert!(answer.contains(class), "{answer}");
            }
        }
    }
    for host in [&front, &one] {
        let stats = host.gateway.stats();
        assert_eq!((stats.ejected, stats.retried), (0, 0), "{stats:?}");
    }
    assert_eq!(echoed(front.http).await.0, StatusCode::OK);
    for host in [front, one, other] {
        host.stop().await;
    }
}
