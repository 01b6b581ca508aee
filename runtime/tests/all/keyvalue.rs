//! `wasi:keyvalue`, in both drafts: allowed, not granted, denied; in memory and in Redis.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use wasmorch_runtime::{
    HttpReplica, KeyValueStore, KeyValueStores, MemoryShare, MemoryStore, RedisStore, ReplicaConfig,
};

use crate::support::{PATIENCE, eventually, fetch, http};

async fn keeper(name: &str, store: Arc<dyn KeyValueStore>) -> HttpReplica {
    let mut keyvalue = KeyValueStores::default();
    keyvalue.grant(name, store);
    let config = ReplicaConfig {
        keyvalue,
        ..ReplicaConfig::new("test")
    };
    http("keeper-http", config).await
}

async fn ask(replica: &HttpReplica, target: &str) -> (u16, String) {
    fetch(replica, target).await.unwrap()
}

/// What every backend must do.
async fn exercise(store: Arc<dyn KeyValueStore>) {
    let replica = keeper("cart", store).await;
    let ok = |text: &str| (200, text.to_owned());
    assert_eq!(ask(&replica, "/get?cart/a").await.0, 404);
    assert_eq!(ask(&replica, "/set?cart/a=one").await, ok("done"));
    assert_eq!(ask(&replica, "/get?cart/a").await, ok("one"));
    assert_eq!(ask(&replica, "/exists?cart/a").await, ok("true"));
    for key in ["", "%20", "%D0%BA%0A", "*%3E.%3D", "a/b.c"] {
        let set = format!("/set?cart/{key}=odd");
        assert_eq!(ask(&replica, &set).await, ok("done"), "{key}");
        let get = format!("/get?cart/{key}");
        assert_eq!(ask(&replica, &get).await, ok("odd"), "{key}");
    }
    let listed = ask(&replica, "/list?cart").await.1;
    assert_eq!(listed, "\n \n*>.=\na\na/b.c\nк\n", "{listed:?}");
    assert_eq!(ask(&replica, "/delete?cart/a").await, ok("done"));
    assert_eq!(ask(&replica, "/delete?cart/a").await, ok("done"), "again");
    assert_eq!(ask(&replica, "/exists?cart/a").await, ok("false"));
    for sum in 1..=3 {
        let (status, body) = ask(&replica, "/increment?cart/n").await;
        assert_eq!((status, body), (200, sum.to_string()));
    }
    let (status, body) = ask(&replica, "/increment?cart/a/b.c").await;
    assert_eq!(status, 502, "no number: {body}");
    assert_eq!(
        ask(&replica, "/swap?cart/s").await,
        ok("theirs again then mine")
    );
    assert_eq!(
        ask(&replica, "/swap?cart/s").await,
        ok("theirs again then mine")
    );
    let batch = ok("a=a none b=b then 0 left");
    assert_eq!(ask(&replica, "/batch?cart").await, batch);
    let large = 3 << 20;
    let fill = format!("/fill?cart/large={large}");
    assert_eq!(ask(&replica, &fill).await, ok("done"));
    let size = format!("{large} true");
    assert_eq!(ask(&replica, "/size?cart/large").await, ok(&size));
}

#[tokio::test]
async fn a_granted_store_in_memory_does_it_all() {
    exercise(Arc::new(MemoryStore::default())).await;
}

#[tokio::test]
async fn without_a_grant_every_store_is_denied() {
    let replica = http("keeper-http", ReplicaConfig::new("test")).await;
    for target in ["/get?cart/a", "/set?cart/a=1", "/swap?cart/a"] {
        let answer = ask(&replica, target).await;
        assert_eq!(answer, (403, "access denied\n".into()), "{target}");
    }
}

#[tokio::test]
async fn another_name_is_no_store_unless_default_serves_it() {
    let replica = keeper("cart", Arc::new(MemoryStore::default())).await;
    for target in ["/get?other/a", "/set?/a=1", "/swap?default/a"] {
        let answer = ask(&replica, target).await;
        assert_eq!(answer, (404, "no such store\n".into()), "{target}");
    }
    let replica = keeper("default", Arc::new(MemoryStore::default())).await;
    assert_eq!(ask(&replica, "/set?other/a=1").await.0, 200);
    assert_eq!(ask(&replica, "/get?/a").await, (200, "1".into()));
}

#[tokio::test]
async fn keys_and_values_are_bounded() {
    let replica = keeper("cart", Arc::new(MemoryStore::default())).await;
    let long = "k".repeat(2049);
    for target in [
        format!("/get?cart/{long}"),
        format!("/set?cart/{long}=1"),
        format!("/swap?cart/{long}"),
        "/fill?cart/a=33554433".into(),
    ] {
        let (status, body) = ask(&replica, &target).await;
        assert!(status == 502 && body.contains("at most"), "{body}");
    }
}

/// A redis-server of a test's own, ended when dropped.
struct Redis {
    child: Child,
    url: String,
}

impl Redis {
    /// `None` where there is no redis-server on PATH.
    async fn start() -> Option<Self> {
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr();
        let port = free.unwrap().port();
        let child = Command::new("redis-server")
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1"])
            .args(["--save", "", "--appendonly", "no"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        let redis = Self {
            child,
            url: format!("redis://127.0.0.1:{port}/0"),
        };
        let up = async {
            while tokio::net::TcpStream::connect(("127.0.0.1", port))
                .await
                .is_err()
            {
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
        };
        let up = tokio::time::timeout(PATIENCE, up).await;
        up.expect("redis-server listens");
        Some(redis)
    }

    fn store(&self, prefix: &str) -> RedisStore {
        RedisStore::new(&self.url, prefix, MemoryShare::default()).unwrap()
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[expect(
    clippy::print_stderr,
    reason = "whoever reads the test's output shall know"
)]
#[tokio::test]
async fn redis_does_it_all_and_prefixes_do_not_meet() {
    let Some(redis) = Redis::start().await else {
        eprintln!("no redis-server on PATH: its backend is not tested here");
        return;
    };
    // One that a pattern of SCAN would take for a wildcard, beside one that it would match.
    redis.store("shXp:").set("k", "x".into()).await.unwrap();
    exercise(Arc::new(redis.store("sh?p:"))).await;
    let theirs = redis.store("shXp:").keys(None).await.unwrap();
    assert_eq!(theirs.keys, ["k"]);

    let store = redis.store("pages:");
    for number in 0..2500 {
        store.set(&number.to_string(), "x".into()).await.unwrap();
    }
    let (mut keys, mut cursor) = (Vec::new(), None);
    loop {
        let page = store.keys(cursor).await.unwrap();
        keys.extend(page.keys);
        cursor = page.cursor;
        if cursor.is_none() {
            break;
        }
    }
    keys.sort();
    keys.dedup();
    assert_eq!(keys.len(), 2500);
}

#[tokio::test]
async fn a_redis_that_is_not_there_is_an_error_of_the_guest() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr();
    let url = format!("redis://127.0.0.1:{}", free.unwrap().port());
    let store = RedisStore::new(&url, "", MemoryShare::default()).unwrap();
    let replica = keeper("cart", Arc::new(store)).await;
    let (status, body) = ask(&replica, "/get?cart/a").await;
    assert!(status == 502 && body.starts_with("redis: "), "{body}");
}

/// At each point where a request may be given up, nothing of it is left.
#[tokio::test]
async fn a_request_that_is_dropped_while_it_writes_leaves_nothing() {
    let replica = keeper("cart", Arc::new(MemoryStore::default())).await;
    for polls in 0..200 {
        let mut request = Box::pin(fetch(&replica, "/batch?cart"));
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
