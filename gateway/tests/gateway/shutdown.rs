//! The end of a gateway: what is in hand finishes, or is cut off at the deadline.

use std::time::{Duration, Instant};

use http::{Request, Response};
use tokio::net::TcpStream;

use crate::support::*;

#[tokio::test]
async fn a_request_in_hand_finishes() {
    let (release, released) = tokio::sync::watch::channel(false);
    let host = Host::start(
        "a",
        1,
        handler(move |_| {
            let mut released = released.clone();
            async move {
                released.wait_for(|released| *released).await.unwrap();
                Ok(Response::new(full("finished")))
            }
        }),
    );
    let (address, peer) = (host.http, host.peer);
    // One resting connection, one request by each protocol.
    let idle = TcpStream::connect(address).await.unwrap();
    let first = tokio::spawn(async move { get(address).await });
    let mut h2 = H2::connect(address).await;
    let request = Request::get("http://shop.example.com/")
        .body(empty())
        .unwrap();
    let second = tokio::spawn(async move { text(h2.send(request).await.unwrap()).await });
    until("both are in hand", || host.calls() == 2).await;
    let gateway = host.gateway.clone();
    let stopping = tokio::spawn(host.stop());
    until("the port is closed", || {
        std::net::TcpStream::connect(address).is_err()
    })
    .await;
    assert!(TcpStream::connect(peer).await.is_err());
    assert_eq!(gateway.stats().in_flight, 2);
    release.send_replace(true);
    assert_eq!(within(first).await.unwrap(), (200, "finished".to_owned()));
    assert_eq!(within(second).await.unwrap(), "finished");
    within(stopping).await.unwrap();
    drop(idle);
}

#[tokio::test]
async fn the_deadline_cuts_off_what_never_ends() {
    let host = Host::start_with("a", 1, hangs(), |config| {
        config.limits.drain = Duration::from_millis(100)
    });
    let front = Host::start_with("b", 0, says(""), |config| {
        config.limits.drain = Duration::from_millis(100)
    });
    front.sees(&[("a", host.peer)]);
    let request = || {
        Request::get("http://shop.example.com/")
            .body(empty())
            .unwrap()
    };
    let (mut h2, mut forwarded) = (H2::connect(host.http).await, H2::connect(front.http).await);
    let asked = [
        tokio::spawn(async move { h2.send(request()).await.is_err() }),
        tokio::spawn(async move { forwarded.send(request()).await.is_err() }),
        tokio::spawn({
            let address = host.http;
            async move {
                ask(address, "GET /", &["host: shop.example.com"])
                    .await
                    .is_empty()
            }
        }),
    ];
    until("all are in hand", || host.calls() == 3).await;
    let begun = Instant::now();
    let gateways = [host.gateway.clone(), front.gateway.clone()];
    front.stop().await;
    host.stop().await;
    assert!(begun.elapsed() >= Duration::from_millis(100));
    for asked in asked {
        assert!(within(asked).await.unwrap(), "cut off");
    }
    for gateway in gateways {
        let stats = gateway.stats();
        assert_eq!((stats.in_flight, stats.connections_open), (0, 0));
    }
}

#[tokio::test]
async fn a_gateway_that_is_dropped_leaves_nothing() {
    let mut host = Host::start("a", 1, hangs());
    let address = host.http;
    let asked =
        tokio::spawn(async move { ask(address, "GET /", &["host: shop.example.com"]).await });
    until("it is in hand", || host.calls() == 1).await;
    let task = host.task.take().unwrap();
    task.abort();
    assert_eq!(within(asked).await.unwrap(), "");
    until("all has ended", || {
        let stats = host.gateway.stats();
        (stats.in_flight, stats.connections_open) == (0, 0)
    })
    .await;
    until("the port is closed", || {
        std::net::TcpStream::connect(address).is_err()
    })
    .await;
}

#[tokio::test]
async fn a_host_that_ends_hands_over_without_a_lost_request() {
    let front = Host::start("a", 0, says(""));
    let (old, new) = (Host::start("b", 1, echoes()), Host::start("c", 1, echoes()));
    front.sees(&[("b", old.peer)]);
    let address = front.http;
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let clients: Vec<_> = (0..8)
        .map(|_| {
            let stopped = stopped.clone();
            tokio::spawn(async move {
                let mut client = H1::connect(address).await;
                let mut count = 0;
                while !*stopped.borrow() {
                    let post = Request::post("/")
                        .header("host", "shop.example.com")
                        .body(full("x"))
                        .unwrap();
                    let response = client.send(post).await.unwrap();
                    assert_eq!(
                        (response.status().as_u16(), text(response).await.as_str()),
                        (200, "x")
                    );
                    count += 1;
                }
                count
            })
        })
        .collect();
    until("requests flow", || old.calls() > 100).await;
    // Its replica drains while the endpoints still name it; then its gateway ends.
    front.sees(&[("b", old.peer), ("c", new.peer)]);
    old.fake
        .ready
        .store(0, std::sync::atomic::Ordering::Relaxed);
    until("the new host serves", || new.calls() > 100).await;
    old.stop().await;
    let before = new.calls();
    until("it goes on", || new.calls() > before + 100).await;
    stop.send_replace(true);
    for client in clients {
        assert!(within(client).await.unwrap() > 0);
    }
    front.stop().await;
    new.stop().await;
}
