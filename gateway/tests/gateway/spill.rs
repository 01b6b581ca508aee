//! Hosts whose replicas have no room: where their requests go, and where not.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use http::{Request, StatusCode};
use wasmorch_gateway::LocalError;

use crate::support::*;

/// Every seat and every place in the queue is taken.
fn full_up() -> Handle {
    handler(|_| async {
        Err(LocalError::Busy {
            retry_after: Duration::from_secs(7),
            reason: "all seats are taken".into(),
        })
    })
}

/// The answer to a body that some replica is to give back.
async fn echoed(gateway: std::net::SocketAddr) -> (StatusCode, String) {
    let post = Request::post("/").header("host", "shop.example.com");
    let post = post.body(full("hello")).unwrap();
    let response = H1::connect(gateway).await.send(post).await.unwrap();
    (response.status(), text(response).await)
}

/// The replica here has no room, and so much in hand.
fn fills(host: &Host, load: u32) {
    host.fake.has_room.store(false, Relaxed);
    host.fake.load.store(load, Relaxed);
}

#[tokio::test]
async fn what_a_full_host_does_not_take_goes_elsewhere_once() {
    let front = Host::start("a", 0, says(""));
    let (busy, good) = (
        Host::start("b", 1, full_up()),
        Host::start("c", 1, echoes()),
    );
    front.sees(&[("b", busy.peer), ("c", good.peer)]);
    for _ in 0..30 {
        let answer = echoed(front.http).await;
        assert_eq!(answer, (StatusCode::OK, "hello".to_owned()));
    }
    assert!(busy.calls() > 0 && good.calls() == 30);

    // Where no other has room it is said as it was told, at once.
    let names = ["b", "d", "e"];
    let (more, most) = (
        Host::start("d", 1, full_up()),
        Host::start("e", 1, full_up()),
    );
    let all = [&busy, &more, &most];
    let seen: Vec<_> = { names.iter().zip(all) }
        .map(|(name, host)| (*name, host.peer))
        .collect();
    let before: u32 = all.iter().map(|host| host.calls()).sum();
    front.sees(&seen);
    let answer = ask(front.http, "POST /", &["host: shop.example.com"]).await;
    assert_eq!(status(&answer), 503, "{answer}");
    for line in [
        "wasmorch-error: busy\r\n",
        "retry-after: 7\r\n",
        "all seats are taken",
    ] {
        assert!(answer.contains(line), "{answer}");
    }
    assert!(!answer.contains("wasmorch-refused"), "{answer}");
    let asked: u32 = all.iter().map(|host| host.calls()).sum();
    assert_eq!(asked - before, 2, "a third is not asked");
    assert_eq!(front.gateway.stats().ejected, 0, "to be busy is no failure");
    for host in [front, busy, good, more, most] {
        host.stop().await;
    }
}

#[tokio::test]
async fn what_nobody_else_takes_queues_here() {
    let (here, there) = (
        Host::start("a", 1, echoes()),
        Host::start("b", 1, full_up()),
    );
    here.sees(&[("a", here.peer), ("b", there.peer)]);
    fills(&here, 5);
    let answer = echoed(here.http).await;
    assert_eq!(answer, (StatusCode::OK, "hello".to_owned()));
    assert_eq!((here.calls(), there.calls()), (1, 1));
    here.stop().await;
    there.stop().await;
}

#[tokio::test]
async fn overflow_goes_only_where_less_is_in_hand() {
    let (here, there) = (
        Host::start("a", 1, says("here")),
        Host::start("b", 1, hangs()),
    );
    here.sees(&[("a", here.peer), ("b", there.peer)]);
    fills(&here, 3);
    let mut hanging = Vec::new();
    for number in 1..=3 {
        let gateway = here.gateway.clone();
        let request = Request::get("/").body(empty()).unwrap();
        let asked = async move { gateway.dispatch(&web(), request).await.status() };
        hanging.push(tokio::spawn(asked));
        until("it is in hand there", || there.calls() == number).await;
    }
    // As much as here: two that are full do not send each other what they cannot take.
    for _ in 0..5 {
        assert_eq!(get(here.http).await, (200, "here".to_owned()));
    }
    assert_eq!((here.calls(), there.calls()), (5, 3));
    for one in hanging {
        one.abort();
    }
    here.stop().await;
    there.stop().await;
}

#[tokio::test]
async fn overflow_does_not_go_where_the_workload_fails() {
    let fails = handler(|_| async {
        Err(LocalError::Failed {
            reason: "trap".into(),
        })
    });
    let here = Host::start_with("a", 0, says("here"), |config| {
        config.limits.eject_for = Duration::from_secs(600);
    });
    let there = Host::start("b", 1, fails);
    let good = Host::start("c", 1, says("good"));
    here.sees(&[("a", here.peer), ("b", there.peer), ("c", good.peer)]);
    for _ in 0..200 {
        if here.gateway.stats().ejected == 0 {
            get(here.http).await;
        }
    }
    assert_eq!(here.gateway.stats().ejected, 1);
    here.sees(&[("a", here.peer), ("b", there.peer)]);
    here.fake.ready.store(1, Relaxed);
    fills(&here, 100);
    assert_eq!(get(here.http).await, (200, "here".to_owned()));
    assert_eq!(there.calls(), 5);
    for host in [here, there, good] {
        host.stop().await;
    }
}
