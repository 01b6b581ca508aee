//! From host to host: which one, what streams, what is tried again.

use std::net::SocketAddr;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use futures::SinkExt as _;
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use tokio::task::JoinHandle;
use wasmorch_gateway::{Deadline, Hops, LocalError};

use crate::support::*;

#[tokio::test]
async fn a_replica_here_is_preferred_while_it_has_room() {
    let (here, there) = (
        Host::start("a", 1, says("here")),
        Host::start("b", 1, says("there")),
    );
    here.sees(&[("a", here.peer), ("b", there.peer)]);
    for _ in 0..10 {
        assert_eq!(get(here.http).await, (200, "here".to_owned()));
    }
    here.fake.has_room.store(false, Relaxed);
    assert_eq!(get(here.http).await.1, "there");
    // With nowhere else to go it queues here.
    here.sees(&[("a", here.peer)]);
    assert_eq!(get(here.http).await.1, "here");
    let stats = here.gateway.stats();
    assert_eq!((stats.local, stats.forwarded, there.calls()), (11, 1, 1));
    here.stop().await;
    there.stop().await;
}

#[tokio::test]
async fn bodies_stream_both_ways_over_a_hop() {
    let (front, back) = (Host::start("a", 0, says("")), Host::start("b", 1, echoes()));
    front.sees(&[("b", back.peer)]);
    let (mut pieces, body) = piped();
    let request = Request::post("/")
        .header("host", "shop.example.com")
        .body(body)
        .unwrap();
    pieces.send("first").await.unwrap();
    let mut client = H1::connect(front.http).await;
    let mut response = client.send(request).await.unwrap();
    for (given, next) in [("first", Some("second")), ("second", None)] {
        // Each piece comes back before the next is sent.
        let frame = within(response.frame()).await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), given);
        if let Some(next) = next {
            pieces.send(next).await.unwrap();
        }
    }
    drop(pieces);
    assert!(within(response.frame()).await.is_none());
    assert_eq!(back.calls(), 1);
    drop(client);
    front.stop().await;
    back.stop().await;
}

#[tokio::test]
async fn a_large_body_passes_a_slow_reader_does_not_stop_others() {
    const LARGE: usize = 8 << 20;
    let (front, back) = (Host::start("a", 0, says("")), Host::start("b", 1, echoes()));
    front.sees(&[("b", back.peer)]);
    let post = || {
        let request = Request::post("/").header("host", "shop.example.com");
        request.body(full(vec![7_u8; LARGE])).unwrap()
    };
    let mut slow = Vec::new();
    for _ in 0..4 {
        let mut client = H1::connect(front.http).await;
        slow.push((client.send(post()).await.unwrap(), client));
    }
    let mut client = H1::connect(front.http).await;
    let response = client.send(post()).await.unwrap();
    assert_eq!(
        within(response.into_body().collect())
            .await
            .unwrap()
            .to_bytes()
            .len(),
        LARGE
    );
    for (response, _client) in slow {
        assert_eq!(
            within(response.into_body().collect())
                .await
                .unwrap()
                .to_bytes()
                .len(),
            LARGE
        );
    }
    drop(client);
    front.stop().await;
    back.stop().await;
}

#[tokio::test]
async fn a_refused_request_goes_elsewhere_body_and_all() {
    let front = Host::start("a", 0, says(""));
    // One says so before it looks, one when the replica drains.
    let gone = Host::start("b", 0, says("never"));
    let draining = Host::start(
        "c",
        1,
        handler(|request| async { Err(LocalError::Refused(request)) }),
    );
    let good = Host::start("d", 1, echoes());
    front.sees(&[("b", gone.peer), ("c", draining.peer), ("d", good.peer)]);
    for _ in 0..30 {
        let post = Request::post("/")
            .header("host", "shop.example.com")
            .body(full("hello"))
            .unwrap();
        let response = H1::connect(front.http).await.send(post).await.unwrap();
        assert_eq!(
            (response.status(), text(response).await.as_str()),
            (StatusCode::OK, "hello")
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
    let post = Request::post("/")
        .header("host", "shop.example.com")
        .body(full("hello"))
        .unwrap();
    let response = H1::connect(front.http).await.send(post).await.unwrap();
    assert_eq!(
        (response.status(), text(response).await.as_str()),
        (StatusCode::OK, "hello")
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
        let post = Request::post("/")
            .header("host", "shop.example.com")
            .body(full("hello"))
            .unwrap();
        let response = H1::connect(front.http).await.send(post).await.unwrap();
        assert_eq!(
            (response.status(), text(response).await.as_str()),
            (StatusCode::OK, "hello")
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
    let refuses = || handler(|request| async { Err(LocalError::Refused(request)) });
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
async fn a_host_whose_replica_fails_all_the_time_is_left_alone_and_half_stay() {
    let fails = || {
        handler(|_| async {
            Err(LocalError::Failed {
                reason: "trap".into(),
            })
        })
    };
    let (front, good) = (
        Host::start("a", 0, says("")),
        Host::start("c", 1, says("good")),
    );
    let bad = Host::start("b", 1, fails());
    front.sees(&[("b", bad.peer), ("c", good.peer)]);
    let mut failed = 0;
    for _ in 0..100 {
        failed += u32::from(get(front.http).await.0 == 502);
    }
    // Five in a row eject it, for longer than this test takes.
    assert_eq!((failed, bad.calls()), (5, 5));
    assert_eq!(front.gateway.stats().ejected, 1);

    // Both fail: at most half are left alone, so the other goes on being asked.
    let worse = Host::start("d", 1, fails());
    front.sees(&[("b", bad.peer), ("d", worse.peer)]);
    for _ in 0..20 {
        assert_eq!(get(front.http).await.0, 502);
    }
    assert_eq!((bad.calls(), worse.calls()), (5, 20));

    // The replica here is no better than others: it is left alone too.
    let here = Host::start("h", 1, fails());
    here.sees(&[("h", here.peer), ("c", good.peer)]);
    let mut answers = Vec::new();
    for _ in 0..10 {
        answers.push(get(here.http).await.0);
    }
    assert_eq!(answers, [502, 502, 502, 502, 502, 200, 200, 200, 200, 200]);
    for host in [front, good, bad, worse, here] {
        host.stop().await;
    }
}

#[tokio::test]
async fn a_callers_impatience_ejects_nobody() {
    let late = || {
        handler(|_| async {
            Err(LocalError::TimedOut {
                reason: "late".into(),
            })
        })
    };
    let (front, back) = (Host::start("a", 0, says("")), Host::start("b", 1, late()));
    let other = Host::start("c", 1, late());
    front.sees(&[("b", back.peer), ("c", other.peer)]);
    for impatient in [true, false] {
        for _ in 0..12 {
            let mut request = Request::get("/").body(empty()).unwrap();
            if impatient {
                let until = Instant::now() + Duration::from_secs(60);
                request.extensions_mut().insert(Deadline(until));
            }
            let answer = within(front.gateway.dispatch(&web(), request)).await;
            assert_eq!(answer.status(), 504);
        }
        assert_eq!(front.gateway.stats().ejected, u64::from(!impatient));
    }
    for host in [front, back, other] {
        host.stop().await;
    }
}

#[tokio::test]
async fn a_canarys_share_holds_where_its_replica_is_too() {
    let (canary, old) = (
        Host::start("a", 1, says("canary")),
        Host::start("b", 1, says("old")),
    );
    let mut hosts = vec![endpoint("a", canary.peer), endpoint("b", old.peer)];
    // Counts alone: a replica here is preferred.
    canary.tables.apply_endpoints(endpoints(hosts.clone()), 10);
    for _ in 0..20 {
        assert_eq!(get(canary.http).await.1, "canary");
    }
    (hosts[0].weight, hosts[1].weight) = (10, 90);
    canary.tables.apply_endpoints(endpoints(hosts), 11);
    for _ in 0..200 {
        assert_eq!(get(canary.http).await.0, 200);
    }
    let share = canary.calls() - 20;
    assert!(
        (5..50).contains(&share),
        "{share} of 200 is not about a tenth"
    );
    canary.stop().await;
    old.stop().await;
}

#[tokio::test]
async fn the_host_that_says_it_has_less_in_hand_is_taken() {
    let (front, busy) = (
        Host::start("a", 0, says("")),
        Host::start("b", 1, says("busy")),
    );
    let free = Host::start("c", 1, says("free"));
    front.sees(&[("b", busy.peer), ("c", free.peer)]);
    // Requests that other gateways have sent there.
    busy.fake.load.store(50, Relaxed);
    for _ in 0..40 {
        get(front.http).await;
    }
    assert!(
        busy.calls() <= 3,
        "{} of 40 went to the busy one",
        busy.calls()
    );
    for host in [front, busy, free] {
        host.stop().await;
    }
}

#[tokio::test]
async fn a_guest_cannot_have_its_request_repeated() {
    let front = Host::start("a", 0, says(""));
    let liar = || {
        handler(|_| async {
            let response = Response::builder()
                .status(503)
                .header("wasmorch-refused", "1");
            Ok(response.body(full("mine")).unwrap())
        })
    };
    let (one, two) = (Host::start("b", 1, liar()), Host::start("c", 1, liar()));
    front.sees(&[("b", one.peer), ("c", two.peer)]);
    assert_eq!(get(front.http).await, (503, "mine".to_owned()));
    assert_eq!(one.calls() + two.calls(), 1);
    for host in [front, one, two] {
        host.stop().await;
    }
}

#[tokio::test]
async fn the_peer_port_serves_what_is_here_and_nothing_else() {
    let (here, there) = (
        Host::start("a", 0, tells_headers()),
        Host::start("b", 1, says("there")),
    );
    here.sees(&[("b", there.peer)]);
    let mut client = H2::connect(here.peer).await;
    let request = |workload: &str, hops: &str| {
        Request::get("http://shop.example.com/")
            .header("wasmorch-workload", workload)
            .header("wasmorch-hops", hops)
            .header("forwarded", "for=1.2.3.4")
            .body(empty())
            .unwrap()
    };
    let response = client.send(request("default/web", "1")).await.unwrap();
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(response.headers()["wasmorch-refused"], "1");
    assert_eq!(there.calls(), 0, "never forwarded");

    here.fake.ready.store(1, Relaxed);
    let answer = text(client.send(request("default/web", "3")).await.unwrap()).await;
    assert!(
        answer.contains("hops=Some(Hops(3))") && answer.contains("forwarded=for=1.2.3.4"),
        "{answer}"
    );
    assert!(!answer.contains("wasmorch"), "{answer}");
    for (workload, hops, expected) in [
        ("default/web", "17", StatusCode::LOOP_DETECTED),
        ("default/web", "x", StatusCode::BAD_REQUEST),
        ("default.web", "1", StatusCode::BAD_REQUEST),
        ("Default/web", "1", StatusCode::BAD_REQUEST),
    ] {
        let response = client.send(request(workload, hops)).await.unwrap();
        assert_eq!(response.status(), expected, "{workload} {hops}");
    }
    // It says who it is to whoever means it, and nothing to others.
    for (meant, expected) in [
        ("a", StatusCode::NO_CONTENT),
        ("b", StatusCode::MISDIRECTED_REQUEST),
    ] {
        let asked = Request::get("http://a/").header("wasmorch-host", meant);
        let response = client.send(asked.body(empty()).unwrap()).await.unwrap();
        let said = response.headers().get("wasmorch-host");
        assert_eq!(
            (response.status(), said.is_some()),
            (expected, meant == "a")
        );
    }
    // No HTTP/1.1 there.
    assert_eq!(
        ask(here.peer, "GET /", &["host: shop.example.com"])
            .await
            .find("HTTP/1.1"),
        None
    );
    drop(client);
    here.stop().await;
    there.stop().await;
}

#[tokio::test]
async fn a_circle_of_workloads_comes_to_an_end() {
    let (front, back) = (
        Host::start("a", 1, says("here")),
        Host::start("b", 1, tells_headers()),
    );
    front.sees(&[("b", back.peer)]);
    let request = |hops| {
        Request::get("/")
            .extension(Hops(hops))
            .body(empty())
            .unwrap()
    };
    let response = front.gateway.dispatch(&web(), request(15)).await;
    assert_eq!(text(response).await, "here");
    let response = front.gateway.dispatch(&web(), request(16)).await;
    assert_eq!(response.status(), StatusCode::LOOP_DETECTED);
    front.fake.ready.store(0, Relaxed);
    let answer = text(front.gateway.dispatch(&web(), request(15)).await).await;
    assert!(answer.contains("hops=Some(Hops(16))"), "{answer}");
    front.stop().await;
    back.stop().await;
}

#[tokio::test]
async fn who_answers_at_a_hosts_address_and_is_another_gets_nothing() {
    let front = Host::start("a", 0, says(""));
    let (wrong, good) = (
        Host::start("x", 1, says("wrong")),
        Host::start("c", 1, says("good")),
    );
    // One that speaks HTTP, and answers whatever it is asked.
    let foreign = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let foreign_at = foreign.local_addr().unwrap();
    let foreign = tokio::spawn(async move {
        loop {
            let (stream, _) = foreign.accept().await.unwrap();
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(stream).await.unwrap();
                while let Some(Ok((_, mut answer))) = connection.accept().await {
                    let all_well = Response::builder().status(200).body(()).unwrap();
                    answer.send_response(all_well, true).unwrap();
                }
            });
        }
    });
    for address in [wrong.peer, foreign_at] {
        front.sees(&[("b", address)]);
        let answer = ask(front.http, "POST /", &["host: shop.example.com"]).await;
        assert_eq!(status(&answer), 503, "{answer}");
        assert!(
            answer.contains("wasmorch-error: unreachable\r\n"),
            "{answer}"
        );
        assert!(answer.contains("who answers there is not b"), "{answer}");
        // Nothing was executed, so even a POST goes elsewhere.
        front.sees(&[("b", address), ("c", good.peer)]);
        for _ in 0..20 {
            let answer = ask(front.http, "POST /", &["host: shop.example.com"]).await;
            assert_eq!((status(&answer), body(&answer).as_str()), (200, "good"));
        }
    }
    assert_eq!(wrong.calls(), 0);
    foreign.abort();
    for host in [front, wrong, good] {
        host.stop().await;
    }
}

#[tokio::test]
async fn unused_connections_to_other_hosts_close() {
    let (front, back) = (
        Host::start_with("a", 0, says(""), |config| {
            config.limits.peer_idle = std::time::Duration::from_millis(50);
        }),
        Host::start("b", 1, says("back")),
    );
    front.sees(&[("b", back.peer)]);
    for _ in 0..2 {
        assert_eq!(get(front.http).await.1, "back");
        assert!(back.gateway.stats().connections > 0);
        until("they close", || back.gateway.stats().connections_open == 0).await;
    }
    front.stop().await;
    back.stop().await;
}

#[tokio::test]
async fn a_host_that_comes_back_is_reached_again() {
    let front = Host::start("a", 0, says(""));
    let mut back = Host::start("b", 1, says("back"));
    let address = back.peer;
    front.sees(&[("b", address)]);
    for _ in 0..5 {
        for _ in 0..4 {
            assert_eq!(get(front.http).await, (200, "back".to_owned()));
        }
        back.stop().await;
        back = Host::start_at("b", 1, says("back"), address, |_| {});
    }
    back.stop().await;
    front.stop().await;
}

#[tokio::test]
async fn a_deadline_travels_and_ends_the_request() {
    let there = Host::start(
        "there",
        1,
        handler(|request| async move {
            let Deadline(at) = *request.extensions().get::<Deadline>().unwrap();
            let left = at.saturating_duration_since(Instant::now());
            Ok(Response::new(full(left.as_millis().to_string())))
        }),
    );
    let here = Host::start("here", 0, says("never"));
    here.sees(&[("there", there.peer)]);
    let ask = |left: Duration| {
        let mut request = Request::get("/").body(empty()).unwrap();
        request
            .extensions_mut()
            .insert(Deadline(Instant::now() + left));
        request
    };
    let answer = within(here.gateway.dispatch(&web(), ask(Duration::from_secs(60)))).await;
    let left: u64 = text(answer).await.parse().unwrap();
    assert!((40_000..=60_000).contains(&left), "{left} ms");

    let silent = Host::start("silent", 1, hangs());
    here.sees(&[("silent", silent.peer)]);
    let answer = within(
        here.gateway
            .dispatch(&web(), ask(Duration::from_millis(100))),
    )
    .await;
    assert_eq!(answer.status(), 504);
    assert_eq!(answer.headers()["wasmorch-error"], "timed-out");
}
