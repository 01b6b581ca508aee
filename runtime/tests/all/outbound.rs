//! Outbound HTTP: allowed, not granted, denied; private addresses; routes inside the cluster.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use http_body_util::BodyExt as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use wasmorch_runtime::{
    Body, Ended, InternalRoute, Lineage, OutboundHttp, ReplicaConfig, RouteError,
};

use crate::support::{eventually, fetch, full, http};

/// A server that answers `served` to every request; counts connections.
async fn serve() -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = connections.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            counted.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(async move {
                let mut buffer = [0; 4096];
                while stream.read(&mut buffer).await.is_ok_and(|n| n > 0) {
                    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nserved";
                    stream.write_all(answer).await.unwrap();
                }
            });
        }
    });
    (port, connections)
}

async fn fetch_by(outbound: OutboundHttp, url: &str) -> (u16, String) {
    let config = ReplicaConfig {
        outbound,
        ..ReplicaConfig::new("test")
    };
    let replica = http("fetcher-http", config).await;
    fetch(&replica, &format!("/fetch?{url}")).await.unwrap()
}

fn allow(pattern: &str) -> OutboundHttp {
    OutboundHttp::allow([pattern.parse().unwrap()])
}

#[tokio::test]
async fn nothing_is_granted_by_default() {
    let (port, connections) = serve().await;
    let (status, body) =
        fetch_by(OutboundHttp::denied(), &format!("http://127.0.0.1:{port}/")).await;
    assert_eq!(
        (status, body.as_str()),
        (502, "ErrorCode::HttpRequestDenied\n")
    );
    assert_eq!(connections.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn an_address_named_literally_is_reached_and_its_connection_reused() {
    let (port, connections) = serve().await;
    let outbound = allow(&format!("127.0.0.1:{port}"));
    let config = ReplicaConfig {
        outbound,
        ..ReplicaConfig::new("test")
    };
    let replica = http("fetcher-http", config).await;
    for _ in 0..3 {
        let answer = fetch(&replica, &format!("/fetch?http://127.0.0.1:{port}/")).await;
        assert_eq!(answer.unwrap(), (200, "served".into()));
    }
    assert_eq!(connections.load(Ordering::SeqCst), 1);
    let (status, _) = fetch_by(
        allow(&format!("localhost:{port}")),
        &format!("http://localhost:{port}/x"),
    )
    .await;
    assert_eq!(status, 200);
}

#[tokio::test]
async fn another_host_or_port_is_denied() {
    let (port, connections) = serve().await;
    let url = format!("http://127.0.0.1:{port}/");
    for pattern in ["127.0.0.1", "127.0.0.1:1", "localhost", "api.example.com"] {
        let (status, body) = fetch_by(allow(pattern), &url).await;
        assert_eq!(
            (status, body.as_str()),
            (502, "ErrorCode::HttpRequestDenied\n"),
            "{pattern}"
        );
    }
    assert_eq!(connections.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_wildcard_reaches_no_private_address() {
    let (port, connections) = serve().await;
    for host in ["127.0.0.1", "localhost", "[::1]", "2130706433", "0x7f.1"] {
        let (status, body) = fetch_by(
            allow(&format!("*:{port}")),
            &format!("http://{host}:{port}/"),
        )
        .await;
        assert_eq!(status, 502, "{host}");
        assert!(
            body.contains("DestinationIpProhibited") || body.contains("DnsError"),
            "{host}: {body}"
        );
    }
    assert_eq!(connections.load(Ordering::SeqCst), 0);
}

/// Answers in the name of the cluster, with the hops of whoever asks.
struct Inside;

#[async_trait::async_trait]
impl InternalRoute for Inside {
    async fn send(
        &self,
        request: http::Request<Body>,
        lineage: Lineage,
    ) -> Result<http::Response<Body>, RouteError> {
        match request.uri().host() {
            Some("orders.shop.internal") => {
                let left = lineage.deadline.map(|at| at > Instant::now());
                let text = format!("hops {} in time {left:?}", lineage.hops);
                Ok(http::Response::new(full(text)))
            }
            Some("silent.shop.internal") => std::future::pending().await,
            Some("secret.shop.internal") => Err(RouteError::NotGranted),
            _ => Err(RouteError::Invalid("a test")),
        }
    }
}

fn inside() -> OutboundHttp {
    OutboundHttp::denied().with_internal(Arc::new(Inside))
}

#[tokio::test]
async fn internal_hosts_take_their_own_route() {
    let answer = fetch_by(inside(), "http://orders.shop.internal/").await;
    assert_eq!(answer, (200, "hops 0 in time Some(true)".into()));
    let answer = fetch_by(inside(), "http://secret.shop.internal/").await;
    assert_eq!(answer, (502, "ErrorCode::HttpRequestDenied\n".into()));
    let answer = fetch_by(inside(), "http://odd.shop.internal/").await;
    assert_eq!(answer, (502, "ErrorCode::HttpRequestUriInvalid\n".into()));
}

#[tokio::test]
async fn what_a_guest_asks_for_inherits_hops_and_deadline() {
    let config = ReplicaConfig {
        outbound: inside(),
        ..ReplicaConfig::new("test")
    };
    let replica = http("fetcher-http", config).await;
    let ask = async |host: &str, lineage: Lineage| {
        let uri = format!("/fetch?http://{host}.shop.internal/");
        let mut request = http::Request::get(uri).body(full("")).unwrap();
        request
            .headers_mut()
            .insert("host", "test".parse().unwrap());
        request.extensions_mut().insert(lineage);
        replica.handle(request).await
    };
    let lineage = Lineage {
        hops: 7,
        deadline: None,
    };
    let response = ask("orders", lineage).await.unwrap();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body, "hops 7 in time Some(true)");
    // The caller's patience ends long before the replica's own 30 s.
    let lineage = Lineage {
        hops: 0,
        deadline: Some(Instant::now() + Duration::from_millis(50)),
    };
    let ended = ask("silent", lineage).await.unwrap_err();
    assert!(matches!(ended, Ended::CallerTimeout { .. }), "{ended}");
}

#[tokio::test]
async fn an_answer_has_a_limit_that_is_said_and_one_that_is_counted() {
    let sized = |head: &'static str, body: usize| async move {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut buffer = [0; 4096];
                let _ = stream.read(&mut buffer).await;
                let _ = stream.write_all(head.as_bytes()).await;
                let _ = stream.write_all(&vec![b'x'; body]).await;
            }
        });
        let mut config = ReplicaConfig {
            outbound: allow(&format!("127.0.0.1:{port}")),
            ..ReplicaConfig::new("test")
        };
        config.limits.body_bytes = 1000;
        let replica = http("fetcher-http", config).await;
        fetch(&replica, &format!("/fetch?http://127.0.0.1:{port}/")).await
    };
    let (status, body) = sized("HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n", 1000)
        .await
        .unwrap();
    assert_eq!((status, body.len()), (200, 1000));
    let refused = "ErrorCode::HttpResponseBodySize(Some(1001))\n";
    let said = sized("HTTP/1.1 200 OK\r\ncontent-length: 1001\r\n\r\n", 1001).await;
    assert_eq!(said.unwrap(), (502, refused.to_owned()));
    // Without a length it ends with the connection. What the guest makes of an answer that breaks off
    // is its own affair; it is not the whole of it.
    let counted = sized("HTTP/1.1 200 OK\r\n\r\n", 1_000_000).await;
    assert!(
        !matches!(&counted, Ok((200, body)) if body.len() > 1000),
        "{counted:?}"
    );
}

/// At each point where a request may be given up, nothing of it and of its own request is left.
#[tokio::test]
async fn a_request_that_is_dropped_while_it_asks_leaves_nothing() {
    let (port, _) = serve().await;
    let config = ReplicaConfig {
        outbound: allow(&format!("127.0.0.1:{port}")).with_internal(Arc::new(Inside)),
        ..ReplicaConfig::new("test")
    };
    let replica = http("fetcher-http", config).await;
    let outside = format!("/fetch?http://127.0.0.1:{port}/");
    for path in [&outside, "/fetch?http://silent.shop.internal/"] {
        for polls in 0..200 {
            let mut request = Box::pin(fetch(&replica, path));
            for _ in 0..polls {
                if futures::poll!(request.as_mut()).is_ready() {
                    break;
                }
                tokio::task::yield_now().await;
            }
        }
        eventually("nothing is left", || {
            let usage = replica.usage();
            (usage.memory_bytes, usage.in_flight) == (0, 0)
        })
        .await;
    }
    let answer = fetch(&replica, &outside).await;
    assert_eq!(answer.unwrap(), (200, "served".into()));
}
