//! `wasmcloud:secrets`: allowed, not granted, denied; and what is to be seen of a value.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::Mutex;

use async_trait::async_trait;
use wasmorch_runtime::{
    HttpReplica, ReplicaConfig, SECRET_BYTES_MAX, SecretError, SecretStore, SecretValue, Secrets,
};

use crate::support::{fetch, http};

/// Keeps secrets in memory, and the names that it was asked for.
#[derive(Default)]
struct InMemory {
    kept: BTreeMap<&'static str, SecretValue>,
    asked: Mutex<Vec<String>>,
}

#[async_trait]
impl SecretStore for InMemory {
    async fn get(&self, name: &str) -> Result<Option<SecretValue>, SecretError> {
        self.asked.lock().unwrap().push(name.to_owned());
        match name {
            "sealed" => Err(SecretError::Store("the store is sealed".into())),
            "far" => Err(SecretError::Unreachable("no answer".into())),
            _ => Ok(self.kept.get(name).cloned()),
        }
    }
}

fn store() -> Arc<InMemory> {
    let text = |text: &str| SecretValue::text(text.to_owned());
    let kept = [
        ("db", text("hunter2 ünd mehr")),
        ("empty", text("")),
        ("key", SecretValue::bytes(vec![0, 255, 10])),
        ("other", text("another workload's")),
        ("huge", SecretValue::bytes(vec![7; SECRET_BYTES_MAX + 1])),
    ];
    Arc::new(InMemory {
        kept: kept.into(),
        ..InMemory::default()
    })
}

async fn replica(secrets: Secrets) -> HttpReplica {
    let config = ReplicaConfig {
        secrets,
        ..ReplicaConfig::new("test")
    };
    http("secrets-http", config).await
}

async fn ask(replica: &HttpReplica, target: &str) -> (u16, String) {
    fetch(replica, target).await.unwrap()
}

#[tokio::test]
async fn a_granted_secret_is_held_and_shown() {
    let store = store();
    let granted = ["db", "empty", "key", "gone", "huge", "sealed", "far"];
    let replica = replica(Secrets::granted(store.clone(), granted)).await;
    let ok = |text: &str| (200, text.to_owned());
    assert_eq!(ask(&replica, "/hold?db").await, ok("held"));
    assert_eq!(ask(&replica, "/reveal?db").await, ok("hunter2 ünd mehr"));
    assert_eq!(ask(&replica, "/keep?db").await, ok("hunter2 ünd mehr"));
    assert_eq!(ask(&replica, "/reveal?empty").await, ok(""));
    assert_eq!(ask(&replica, "/reveal?key").await, ok("0 255 10"));
    // Showing it leaves it as it was.
    assert_eq!(ask(&replica, "/reveal?db").await, ok("hunter2 ünd mehr"));
    // What is granted may not be there, or not to be had.
    assert_eq!(ask(&replica, "/hold?gone").await.0, 404);
    let failed = |why: &str| (502, why.to_owned());
    let huge = ask(&replica, "/hold?huge").await;
    assert_eq!(huge, failed("the secret is larger than 64 KiB"));
    let sealed = ask(&replica, "/hold?sealed").await;
    assert_eq!(sealed, failed("the store is sealed"));
    assert_eq!(ask(&replica, "/hold?far").await, failed("io: no answer"));
}

#[tokio::test]
async fn a_secret_that_is_not_granted_is_denied_and_not_looked_for() {
    let store = store();
    let replica = replica(Secrets::granted(store.clone(), ["db"])).await;
    let why = "not granted: this workload has no secret of this name";
    for name in ["other", "DB", "db%20", "", "gone"] {
        for act in ["hold", "reveal"] {
            let answer = ask(&replica, &format!("/{act}?{name}")).await;
            assert_eq!(answer, (502, why.to_owned()), "{act} {name}");
        }
    }
    assert!(store.asked.lock().unwrap().is_empty(), "nobody was asked");
    assert_eq!(ask(&replica, "/hold?db").await.0, 200);
    assert_eq!(*store.asked.lock().unwrap(), ["db"]);
}

#[tokio::test]
async fn without_a_store_every_question_is_answered_with_why() {
    let replica = replica(Secrets::default()).await;
    for target in ["/hold?db", "/reveal?db", "/keep?"] {
        let why = "not granted: this host has no store of secrets";
        assert_eq!(ask(&replica, target).await, (502, why.to_owned()));
    }
}

/// What is logged of a replica's configuration shows names at most.
#[tokio::test]
async fn a_value_is_not_printed() {
    let store = store();
    let value = store.get("db").await.unwrap().unwrap();
    let secrets = Secrets::granted(store, ["db"]);
    let shown = format!("{value:?} {:?} {secrets:?} {secrets:#?}", [&value]);
    assert!(!shown.contains("hunter2"), "{shown}");
    assert!(shown.contains("db"), "the name is no secret: {shown}");
}
