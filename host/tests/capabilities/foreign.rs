//! A component of wasmCloud, on what a cluster has for it.

use futures::StreamExt as _;
use tokio::io::AsyncReadExt as _;
use wasmorch_api::Kind;
use wasmorch_api::spec::StoreBinding;

use crate::support::nats::NatsServer;
use crate::support::{Bench, get, spec};

#[tokio::test]
async fn a_component_of_wasmcloud_counts_keeps_and_tells_in_nats() {
    let nats = NatsServer::start_jetstream().await;
    let client = nats.client().await;
    let mut told = client.subscribe("visits.cat").await.unwrap();
    client.flush().await.unwrap();
    let mut bench = Bench::start(Some(nats.options()));
    let mut spec = spec();
    let jetstream = StoreBinding {
        backend: "jetstream".into(),
        ..StoreBinding::default()
    };
    let bindings = &mut spec.bindings;
    bindings.keyvalue.insert("visits".into(), jetstream.clone());
    bindings.blobstore.insert("bodies".into(), jetstream);
    bindings.publish.push("visits.*".into());
    let replica = bench.prepare("visits", Kind::Http, "wasmcloud-http", spec);
    let replica = replica.await.expect("prepared");
    bench.route("visits").await;
    bench.begin(&replica).await;
    // What it answers a probe with it has from NATS, to which the runner connects meanwhile.
    while !bench.health(&replica).await.0 {}
    let answer = get(bench.http, "visits", "/cat").await;
    assert_eq!((answer.status, answer.body.as_str()), (200, ""));

    assert_eq!(told.next().await.unwrap().payload, "1");
    let js = async_nats::jetstream::new(client);
    let bucket = js.get_key_value("default_visits_visits").await.unwrap();
    assert_eq!(bucket.get("cat").await.unwrap().unwrap(), "1");
    let store = js.get_object_store("default_visits_bodies").await.unwrap();
    let mut kept = Vec::new();
    let mut object = store.get("cat").await.unwrap();
    object.read_to_end(&mut kept).await.unwrap();
    assert_eq!(kept, b"");
    let line = bench.line(&replica, |line| line.text.contains("cat was here"));
    assert_eq!(line.await.text, "visits: cat was here 1 times");
    bench.end().await;
}
