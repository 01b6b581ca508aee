//! The hostile corpus (`workloads/hostile`): each attack is ended for the right reason, a neighbour on
//! the same thread answers all the while, and nothing is left of it.

mod handles;
mod modules;
mod p3;
mod processor;
mod reach;
mod responses;

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use wasmorch_runtime::{Account, BodySide, Ended, Field, HttpReplica, Limits, ReplicaConfig};

use crate::support::{eventually, fetch, http};

/// What an attack that does not end by itself is given.
const PATIENCE: Duration = Duration::from_millis(300);
/// The slowest answer of a neighbour: many times what it takes, for a machine that does other things.
const SLOWEST: Duration = Duration::from_secs(1);

fn config() -> ReplicaConfig {
    let limits = Limits {
        timeout: Some(PATIENCE),
        ..Limits::default()
    };
    ReplicaConfig {
        limits,
        ..ReplicaConfig::new("hostile")
    }
}

/// For what ends at another limit: the time is not to be what ends it.
fn patient() -> ReplicaConfig {
    ReplicaConfig {
        limits: Limits::default(),
        ..config()
    }
}

fn limited(limits: Limits) -> ReplicaConfig {
    ReplicaConfig {
        limits,
        ..patient()
    }
}

fn with_memory(memory_bytes: u64) -> ReplicaConfig {
    limited(Limits {
        memory_bytes,
        ..Limits::default()
    })
}

/// For an answer without end: what it may have, and how it is ended.
fn endless() -> (ReplicaConfig, Ended) {
    let body_bytes = 1 << 20;
    let config = limited(Limits {
        body_bytes,
        ..Limits::default()
    });
    let ended = Ended::BodyTooLarge {
        side: BodySide::Response,
        limit_bytes: body_bytes,
    };
    (config, ended)
}

fn timeout() -> Ended {
    Ended::Timeout {
        limit: PATIENCE,
        throttled: Duration::ZERO,
    }
}

/// Runs an attack beside a neighbour that has to answer, on one thread with it.
async fn beside<T: Send + 'static>(attack: impl Future<Output = T> + Send + 'static) -> T {
    let neighbour = http("hello-http", ReplicaConfig::new("neighbour")).await;
    let attack = tokio::spawn(attack);
    loop {
        // Requests come over sockets, so whoever serves them waits now and then.
        tokio::task::yield_now().await;
        let over = attack.is_finished();
        let asked = Instant::now();
        assert_eq!(fetch(&neighbour, "/").await.unwrap().0, 200);
        assert!(asked.elapsed() < SLOWEST, "{:?}", asked.elapsed());
        if over {
            return attack.await.unwrap();
        }
    }
}

/// An attacker, and where what it has is counted.
struct Attacker {
    replica: Arc<HttpReplica>,
    account: Account,
}

impl Attacker {
    async fn new(name: &str, config: ReplicaConfig) -> Self {
        let account = config.account.clone();
        let replica = Arc::new(http(name, config).await);
        Self { replica, account }
    }

    /// Attacks once, and looks that it is over.
    async fn attack(&self, path: &str) -> Result<(u16, String), Ended> {
        let (replica, path) = (self.replica.clone(), path.to_owned());
        let ended = beside(async move { fetch(&replica, &path).await }).await;
        self.is_contained().await;
        ended
    }

    /// Nothing is left of it, and it goes on serving.
    async fn is_contained(&self) {
        for field in [
            Field::Memory,
            Field::Handles,
            Field::InFlight,
            Field::Queued,
        ] {
            eventually(&format!("{field:?} is back"), || {
                self.account.own(field) == 0
            })
            .await;
        }
        let ok = fetch(&self.replica, "/ok").await;
        assert_eq!(ok, Ok((200, "ok\n".into())));
    }
}

/// One attack by `wasi:http` 0.2.
async fn attack(path: &str, config: ReplicaConfig) -> Result<(u16, String), Ended> {
    Attacker::new("hostile", config).await.attack(path).await
}

#[track_caller]
fn assert_memory<T: std::fmt::Debug>(ended: &Result<T, Ended>) {
    assert!(matches!(ended, Err(Ended::MemoryLimit { .. })), "{ended:?}");
}

#[track_caller]
fn assert_handles<T: std::fmt::Debug>(ended: &Result<T, Ended>) {
    assert!(matches!(ended, Err(Ended::Handles { .. })), "{ended:?}");
}

/// The limit on files, sockets and streams, and not that on all handles.
#[track_caller]
fn assert_open<T: std::fmt::Debug>(ended: &Result<T, Ended>) {
    let is_it = matches!(ended, Err(Ended::Handles { limit: 2048 }));
    assert!(is_it, "{ended:?}");
}

#[track_caller]
fn assert_trap<T: std::fmt::Debug>(ended: &Result<T, Ended>, why: &str) {
    let is_it = matches!(ended, Err(Ended::Trap { message, .. }) if message.contains(why));
    assert!(is_it, "{ended:?}");
}
