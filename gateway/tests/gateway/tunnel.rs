//! Hosts that cannot be dialled, reached through a tunnel made of memory.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::mpsc;
use wasmorch_api::{HostEndpoint, HostId};
use wasmorch_gateway::{Pipe, Tunnel};

use crate::support::*;

/// Joins hosts by pipes, by their ids.
#[derive(Debug, Default)]
struct Mesh {
    hosts: Mutex<HashMap<HostId, mpsc::Sender<Pipe>>>,
    opened: AtomicU32,
}

#[async_trait::async_trait]
impl Tunnel for Mesh {
    async fn open(&self, host: &HostId) -> Result<Pipe, String> {
        let sender = self.hosts.lock().unwrap().get(host).cloned();
        let sender = sender.ok_or("nobody listens")?;
        let (here, there) = tokio::io::duplex(64 << 10);
        sender
            .send(Pipe::new(there))
            .await
            .map_err(|_| "it is gone")?;
        self.opened.fetch_add(1, Relaxed);
        Ok(Pipe::new(here))
    }
}

impl Mesh {
    fn host(self: &Arc<Self>, name: &'static str, ready: u32, answer: &'static str) -> Host {
        let (sender, receiver) = mpsc::channel(4);
        let id = name.parse().unwrap();
        self.hosts.lock().unwrap().insert(id, sender);
        Host::start_with(name, ready, says(answer), |config| {
            config.tunnel = Some(self.clone());
            config.tunnelled = Some(receiver);
            config.limits.dial_again = (Duration::from_millis(20), Duration::from_millis(50));
        })
    }
}

fn undialled(host: &str) -> HostEndpoint {
    HostEndpoint {
        peer: None,
        ..endpoint(host, nowhere())
    }
}

#[tokio::test]
async fn a_host_that_nobody_can_dial_is_reached_through_the_tunnel() {
    let mesh = Arc::new(Mesh::default());
    let (front, edge) = (mesh.host("a", 0, ""), mesh.host("b", 1, "edge"));
    front
        .tables
        .apply_endpoints(endpoints(vec![undialled("b")]), 10);
    for _ in 0..20 {
        assert_eq!(get(front.http).await, (200, "edge".to_owned()));
    }
    let stats = front.gateway.stats();
    assert_eq!((stats.tunnelled, stats.retried), (2, 0), "{stats:?}");
    assert_eq!(edge.gateway.stats().from_peers, 20);

    // A replica there that has gone refuses, as on the direct way: not executed.
    edge.fake.ready.store(0, Relaxed);
    assert_eq!(get(front.http).await.0, 503);
    assert_eq!(edge.calls(), 20);

    // Nobody at the other end: told like any host that cannot be reached.
    front
        .tables
        .apply_endpoints(endpoints(vec![undialled("z")]), 11);
    let answer = ask(front.http, "GET /", &["host: shop.example.com"]).await;
    assert_eq!(status(&answer), 503, "{answer}");
    assert!(answer.contains("wasmorch-error: unreachable"), "{answer}");
    front.stop().await;
    edge.stop().await;
}

#[tokio::test]
async fn the_direct_way_is_found_to_fail_and_taken_again_when_it_works() {
    let mesh = Arc::new(Mesh::default());
    let (front, edge) = (mesh.host("a", 0, ""), mesh.host("b", 1, "edge"));
    // It says that it can be dialled here, and nobody answers.
    let address = nowhere();
    front.sees(&[("b", address)]);
    for _ in 0..10 {
        assert_eq!(get(front.http).await, (200, "edge".to_owned()));
    }
    let stats = front.gateway.stats();
    assert_eq!(
        (stats.tunnelled, stats.retried, stats.ejected),
        (2, 0, 0),
        "{stats:?}"
    );

    // Now someone does: another instance of the host, so that it can be told apart.
    let direct = Host::start_at("b", 1, says("direct"), address, |_| {});
    let moved = async {
        while get(front.http).await.1 != "direct" {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    within(moved).await;
    // Both connections move, without a request lost on the way.
    let opened = mesh.opened.load(Relaxed);
    until("the tunnels are given up", || {
        edge.gateway.stats().connections_open == 0
    })
    .await;
    for _ in 0..10 {
        assert_eq!(get(front.http).await, (200, "direct".to_owned()));
    }
    assert_eq!(
        mesh.opened.load(Relaxed),
        opened,
        "no tunnel was opened again"
    );
    for host in [front, edge, direct] {
        host.stop().await;
    }
}

#[tokio::test]
async fn another_host_at_the_same_private_address_is_not_the_one_that_is_meant() {
    let mesh = Arc::new(Mesh::default());
    let (front, edge) = (mesh.host("a", 0, ""), mesh.host("b", 1, "edge"));
    // The edge tells an address of its own network, which means another machine in this one; that
    // one serves the same workload.
    let wrong = Host::start("x", 1, says("wrong"));
    front.sees(&[("b", wrong.peer)]);
    for _ in 0..10 {
        assert_eq!(get(front.http).await, (200, "edge".to_owned()));
    }
    // It is dialled again and again, and that the wrong one answers changes nothing.
    let dialled = wrong.gateway.stats().connections;
    until("it is dialled again", || {
        wrong.gateway.stats().connections > dialled + 3
    })
    .await;
    for _ in 0..10 {
        assert_eq!(get(front.http).await, (200, "edge".to_owned()));
    }
    let stats = front.gateway.stats();
    assert_eq!(
        (stats.tunnelled, stats.retried, stats.ejected),
        (2, 0, 0),
        "{stats:?}"
    );
    assert_eq!((wrong.calls(), edge.calls()), (0, 20));
    for host in [front, edge, wrong] {
        host.stop().await;
    }
}

#[tokio::test]
async fn a_host_that_answers_nothing_is_reached_through_the_tunnel() {
    let mesh = Arc::new(Mesh::default());
    let (front, edge) = (mesh.host("a", 0, ""), mesh.host("b", 1, "edge"));
    // It accepts connections, and that is all.
    let mute = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    front.sees(&[("b", mute.local_addr().unwrap())]);
    assert_eq!(get(front.http).await, (200, "edge".to_owned()));
    front.stop().await;
    edge.stop().await;
}

#[tokio::test]
async fn a_host_that_is_silent_is_not_waited_for() {
    let mesh = Arc::new(Mesh::default());
    let front = Host::start_with("a", 0, says(""), |config| {
        config.tunnel = Some(mesh.clone());
        config.limits.tunnel_after = Duration::from_millis(50);
        config.limits.connect_timeout = Duration::from_secs(60);
    });
    let edge = mesh.host("b", 1, "edge");
    // An address of documentation: packets go nowhere, or are refused by a router.
    front.sees(&[("b", "192.0.2.1:9".parse().unwrap())]);
    let began = std::time::Instant::now();
    assert_eq!(get(front.http).await, (200, "edge".to_owned()));
    assert!(
        began.elapsed() < Duration::from_secs(10),
        "{:?}",
        began.elapsed()
    );
    front.stop().await;
    edge.stop().await;
}
