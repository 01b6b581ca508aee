//! `wasi:blobstore` in JetStream and on disk.

use std::net::SocketAddr;

use tokio::io::AsyncReadExt as _;
use wasmorch_api::spec::StoreBinding;
use wasmorch_api::{Kind, WorkloadSpec};

use crate::support::nats::NatsServer;
use crate::support::{Bench, get, spec};

fn holding(name: &str, backend: &str, settings: &[(&str, &str)]) -> WorkloadSpec {
    let mut spec = spec();
    let settings = settings.iter().map(|(k, v)| ((*k).into(), (*v).into()));
    let binding = StoreBinding {
        backend: backend.into(),
        settings: settings.collect(),
    };
    spec.bindings.blobstore.insert(name.into(), binding);
    spec
}

async fn ask(http: SocketAddr, target: &str) -> (u16, String) {
    let answer = get(http, "blobs", target).await;
    (answer.status, answer.body)
}

fn ok(text: &str) -> (u16, String) {
    (200, text.to_owned())
}

#[tokio::test]
async fn objects_of_any_size_go_into_an_object_store_and_out_of_it() {
    let nats = NatsServer::start_jetstream().await;
    let mut bench = Bench::start(Some(nats.options()));
    let spec = holding("img", "jetstream", &[]);
    bench.serve("blobs", Kind::Http, "blobs-http", spec).await;
    let http = bench.http;
    for bytes in [0, 10, 3_000_000] {
        let put = format!("/put?img/cat%20%D0%BA.png={bytes}");
        assert_eq!(ask(http, &put).await, ok("done"), "{bytes}");
        let sum = ask(http, "/sum?img/cat%20%D0%BA.png").await;
        assert_eq!(sum, ok(&format!("{bytes} of {bytes}")));
    }
    let range = ask(http, "/range?img/cat%20%D0%BA.png=1000000-1999999").await;
    assert_eq!(range, ok("1000000"));
    assert_eq!(ask(http, "/drop?img/never=1000").await, ok("done"));
    assert_eq!(ask(http, "/has?img/never").await, ok("false"));
    assert_eq!(
        ask(http, "/copy?img/cat%20%D0%BA.png=img/b").await,
        ok("done")
    );
    assert_eq!(ask(http, "/move?img/b=img/c/d").await, ok("done"));
    assert_eq!(ask(http, "/list?img").await, ok("c/d\ncat к.png"));
    let info = ask(http, "/info?img/c/d").await;
    assert_eq!(info, ok("img c/d 3000000 true"));

    let js = async_nats::jetstream::new(nats.client().await);
    let store = js.get_object_store("default_blobs_img").await.unwrap();
    let mut bytes = Vec::new();
    let mut object = store.get("c/d").await.unwrap();
    object.read_to_end(&mut bytes).await.unwrap();
    assert_eq!(bytes.len(), 3_000_000);

    assert_eq!(ask(http, "/delete?img/c/d").await, ok("done"));
    assert_eq!(ask(http, "/delete?img/c/d").await, ok("done"), "again");
    assert_eq!(ask(http, "/clear?img").await, ok("done"));
    assert_eq!(ask(http, "/list?img").await, ok(""));
    let (status, why) = ask(http, "/put?other/x=1").await;
    assert!(status == 502 && why.contains("not granted"), "{why}");
    bench.end().await;
}

#[tokio::test]
async fn a_disk_keeps_objects_over_replicas_and_leaves_nothing_half_written() {
    let mut bench = Bench::start(None);
    let spec = holding("img", "disk", &[("path", "pictures")]);
    let first = bench
        .serve("blobs", Kind::Http, "blobs-http", spec.clone())
        .await;
    let http = bench.http;
    assert_eq!(ask(http, "/put?img/a/cat=7000000").await, ok("done"));
    assert_eq!(ask(http, "/drop?img/never=7000000").await, ok("done"));
    bench
        .send(wasmorch_host::runner::protocol::ToRunner::Stop {
            replica: first.clone(),
        })
        .await;
    bench.stopped(&first).await;
    bench.serve("blobs", Kind::Http, "blobs-http", spec).await;
    assert_eq!(ask(http, "/sum?img/a/cat").await, ok("7000000 of 7000000"));
    assert_eq!(ask(http, "/list?img").await, ok("a/cat"));
    let spool = bench.volumes().join("_spool");
    assert_eq!(std::fs::read_dir(spool).unwrap().count(), 0);
    bench.end().await;
}

#[tokio::test]
async fn what_is_the_clusters_or_outside_the_data_is_refused() {
    let mut bench = Bench::start(None);
    for (spec, why) in [
        (
            holding("x", "jetstream", &[("container", "wasmorch_artifacts")]),
            "the cluster's own",
        ),
        (holding("x", "disk", &[("path", "/etc")]), "host's data"),
        (holding("x", "disk", &[("path", "../up")]), "no dot"),
        (holding("x", "ftp", &[]), "no backend ftp"),
    ] {
        let prepared = bench.prepare("blobs", Kind::Http, "blobs-http", spec);
        let refused = prepared.await.unwrap_err();
        assert!(refused.contains(why), "{refused}");
    }
    bench.end().await;
}
