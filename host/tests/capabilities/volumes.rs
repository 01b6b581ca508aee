//! Volumes in the data folder of a host.

use wasmorch_api::spec::Volume;
use wasmorch_api::{ByteSize, Kind};

use crate::support::{Bench, get, spec};

#[tokio::test]
async fn a_volume_is_its_slots_and_outlives_its_replicas() {
    let mut bench = Bench::start(None);
    let mut spec = spec();
    let volume = Volume {
        path: "/data".into(),
        size: Some(ByteSize(1 << 20)),
        mode: "rw".into(),
        on_host_loss: "wait".into(),
    };
    spec.bindings.volume.insert("data".into(), volume);
    let replica = bench
        .serve("files", Kind::Http, "files-http", spec.clone())
        .await;
    let http = bench.http;
    let answer = get(http, "files", "/write?/data/file=1000").await;
    assert_eq!((answer.status, answer.body.as_str()), (200, "done"));
    let answer = get(http, "files", "/write?/data/much=2000000").await;
    assert_eq!(answer.status, 507, "{answer:?}");
    let slot = replica.id.slot.to_string();
    let folder = bench.volumes().join("default/files").join(slot);
    let written = std::fs::metadata(folder.join("data/file")).unwrap();
    assert_eq!(written.len(), 1000);
    bench.end().await;
}
