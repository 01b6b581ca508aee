//! Components of other hosts, written with those hosts' own SDKs: they run as they are.

use std::sync::Arc;

use bytes::Bytes;
use http::Method;
use http_body_util::BodyExt as _;
use wasmorch_api::component::{check, inspect};
use wasmorch_api::spec::StoreBinding;
use wasmorch_api::{Kind, WorkloadSpec};
use wasmorch_runtime::{
    BlobContainer as _, BlobContainers, HttpReplica, KeyValueStore as _, KeyValueStores, LogLevel,
    LogStream, MemoryContainer, MemoryStore, ReplicaConfig,
};

use crate::messages::Broker;
use crate::support::{self, Lines, full, get, guest};

/// Larger than what any stream on its way takes at once.
const BODY_BYTES: usize = 3 << 20;

fn greeting() -> Vec<(String, String)> {
    vec![("greeting".into(), "hello".into())]
}

/// Both samples answer with a greeting, a count, and the body of the request.
async fn visit_twice(replica: &HttpReplica) {
    let sent = Bytes::from(vec![b'x'; BODY_BYTES]);
    for count in ["1", "2"] {
        let mut request = get("/cat");
        *request.method_mut() = Method::POST;
        *request.body_mut() = full(sent.clone());
        let response = replica.handle(request).await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["greeting"], "hello");
        assert_eq!(response.headers()["count"], count);
        let back = response.into_body().collect().await.unwrap().to_bytes();
        assert!(back == sent, "{} bytes came back", back.len());
    }
}

#[tokio::test]
async fn a_component_of_wasmcloud_finds_all_that_it_asks_for() {
    let (store, objects) = (MemoryStore::default(), MemoryContainer::default());
    let (store, objects) = (Arc::new(store), Arc::new(objects));
    let (broker, lines) = (Arc::new(Broker::default()), Arc::new(Lines::default()));
    let (mut keyvalue, mut blobs) = (KeyValueStores::default(), BlobContainers::default());
    keyvalue.grant("visits", store.clone());
    blobs.grant("bodies", objects.clone());
    let config = ReplicaConfig {
        config: greeting(),
        logs: lines.clone(),
        messaging: Some(broker.clone()),
        keyvalue,
        blobs,
        ..ReplicaConfig::new("test")
    };
    let replica = support::http("wasmcloud-http", config).await;
    visit_twice(&replica).await;

    assert_eq!(store.get("cat").await.unwrap().unwrap(), "2");
    let kept = objects.object("cat").await.unwrap().unwrap();
    assert_eq!(kept.size, BODY_BYTES as u64);
    let told = broker.0.lock().unwrap().clone();
    let told: Vec<_> = told.iter().map(|m| (&*m.subject, &m.body[..])).collect();
    assert_eq!(told, [("visits.cat", &b"1"[..]), ("visits.cat", b"2")]);
    let said = lines.all().pop().unwrap();
    assert_eq!(said.stream, LogStream::Wasi(LogLevel::Info));
    assert_eq!(said.text, "visits: cat was here 2 times");
}

#[tokio::test]
async fn a_component_of_spin_finds_all_that_it_asks_for() {
    let store = Arc::new(MemoryStore::default());
    let mut keyvalue = KeyValueStores::default();
    keyvalue.grant("default", store.clone());
    let config = ReplicaConfig {
        config: greeting(),
        keyvalue,
        ..ReplicaConfig::new("test")
    };
    let replica = support::http("spin-http", config).await;
    visit_twice(&replica).await;
    assert_eq!(store.get("/cat").await.unwrap().unwrap(), "2");
}

/// A deploy refuses what no host provides, and what is not granted.
#[test]
fn a_deploy_takes_them_with_their_grants() {
    let mut spec = WorkloadSpec::default();
    let bindings = &mut spec.bindings;
    bindings
        .keyvalue
        .insert("visits".into(), StoreBinding::default());
    bindings
        .blobstore
        .insert("bodies".into(), StoreBinding::default());
    bindings.publish.push("visits.*".into());
    for sample in ["wasmcloud-http", "spin-http"] {
        let found = check(&inspect(&guest(sample)).unwrap(), &spec);
        assert_eq!(found.kind, Ok(Kind::Http), "{sample}");
        assert_eq!(found.unknown, [""; 0], "{sample}");
        assert_eq!(found.missing, [], "{sample}");
    }
}
