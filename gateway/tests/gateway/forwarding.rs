//! From host to host: which one, and what streams.

use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use futures::SinkExt as _;
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt as _;
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
    here.fake.load.store(1, Relaxed);
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
async fn a_host_of_the_same_zone_comes_first_while_it_is_there() {
    let front = Host::start_with("a", 0, says(""), |config| config.zone = Some("east".into()));
    let (near, far) = (
        Host::start("b", 1, says("near")),
        Host::start("c", 1, says("far")),
    );
    let zoned = |host: &str, peer, zone: &str| wasmorch_api::HostEndpoint {
        zone: Some(zone.into()),
        ..endpoint(host, peer)
    };
    let far_one = zoned("c", far.peer, "west");
    let both = endpoints(vec![zoned("b", near.peer, "east"), far_one.clone()]);
    front.tables.apply_endpoints(both, 10);
    for _ in 0..40 {
        assert_eq!(get(front.http).await, (200, "near".to_owned()));
    }
    front.tables.apply_endpoints(endpoints(vec![far_one]), 11);
    assert_eq!(get(front.http).await, (200, "far".to_owned()));
    assert_eq!((near.calls(), far.calls()), (40, 1));
    for host in [front, near, far] {
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
