//! `wasi:keyvalue` in JetStream.

use std::net::SocketAddr;

use wasmorch_api::spec::StoreBinding;
use wasmorch_api::{Kind, WorkloadSpec};

use crate::support::nats::NatsServer;
use crate::support::{Bench, get, spec};

fn keeping(name: &str, backend: &str, settings: &[(&str, &str)]) -> WorkloadSpec {
    let mut spec = spec();
    let settings = settings.iter().map(|(k, v)| ((*k).into(), (*v).into()));
    let binding = StoreBinding {
        backend: backend.into(),
        settings: settings.collect(),
    };
    spec.bindings.keyvalue.insert(name.into(), binding);
    spec
}

async fn ask(http: SocketAddr, target: &str) -> (u16, String) {
    let answer = get(http, "keeper", target).await;
    (answer.status, answer.body)
}

fn ok(text: &str) -> (u16, String) {
    (200, text.to_owned())
}

#[tokio::test]
async fn a_bucket_holds_what_guests_write_and_every_client_can_read_it() {
    let nats = NatsServer::start_jetstream().await;
    let mut bench = Bench::start(Some(nats.options()));
    let spec = keeping("cart", "jetstream", &[]);
    bench.serve("keeper", Kind::Http, "keeper-http", spec).await;
    let http = bench.http;
    assert_eq!(ask(http, "/get?cart/a").await.0, 404);
    assert_eq!(ask(http, "/set?cart/a=one").await, ok("done"));
    assert_eq!(ask(http, "/get?cart/a").await, ok("one"));
    let odd = ["", "%20", "%D0%BA%0A", "*%3E.%3D", "a/b.c", ".x."];
    for key in odd {
        let set = format!("/set?cart/{key}=odd");
        assert_eq!(ask(http, &set).await, ok("done"), "{key}");
        let get = format!("/get?cart/{key}");
        assert_eq!(ask(http, &get).await, ok("odd"), "{key}");
    }
    let listed = ask(http, "/list?cart").await.1;
    assert_eq!(listed, "\n \n*>.=\n.x.\na\na/b.c\nк\n", "{listed:?}");
    assert_eq!(ask(http, "/delete?cart/a").await, ok("done"));
    assert_eq!(ask(http, "/delete?cart/a").await, ok("done"), "again");
    assert_eq!(ask(http, "/exists?cart/a").await, ok("false"));
    assert_eq!(
        ask(http, "/swap?cart/s").await,
        ok("theirs again then mine")
    );
    assert_eq!(
        ask(http, "/swap?cart/a").await,
        ok("theirs again then mine")
    );
    let batch = ok("a=a none b=b then 0 left");
    assert_eq!(ask(http, "/batch?cart").await, batch);
    assert_eq!(
        ask(http, "/get?other/a").await,
        (404, "no such store\n".into())
    );

    let js = async_nats::jetstream::new(nats.client().await);
    let bucket = js.get_key_value("default_keeper_cart").await.unwrap();
    let theirs = bucket.get("a/b.c").await.unwrap().unwrap();
    assert_eq!(&theirs[..], b"odd");
    bucket.put("from.outside", "hi".into()).await.unwrap();
    assert_eq!(ask(http, "/get?cart/from.outside").await, ok("hi"));
    bench.end().await;
}

#[tokio::test]
async fn values_larger_than_a_message_are_kept_replaced_and_deleted_whole() {
    let nats = NatsServer::start_jetstream().await;
    let mut bench = Bench::start(Some(nats.options()));
    let spec = keeping("default", "jetstream", &[("bucket", "files")]);
    bench.serve("keeper", Kind::Http, "keeper-http", spec).await;
    let http = bench.http;
    for bytes in [1_000_000, 1_048_576, 5_000_001, 3_000_000] {
        assert_eq!(ask(http, &format!("/fill?any/k={bytes}")).await, ok("done"));
        let size = ask(http, "/size?any/k").await;
        assert_eq!(size, ok(&format!("{bytes} true")));
    }
    let js = async_nats::jetstream::new(nats.client().await);
    let mut objects = js.get_stream("OBJ_files_large").await.unwrap();
    let held = async |objects: &mut async_nats::jetstream::stream::Stream| {
        let state = &objects.info().await.unwrap().state;
        state.bytes
    };
    let bytes = held(&mut objects).await;
    assert!(bytes < 3_200_000, "replaced values are gone: {bytes}");
    // A small one in its place.
    assert_eq!(ask(http, "/set?any/k=small").await, ok("done"));
    assert_eq!(ask(http, "/get?any/k").await, ok("small"));
    assert!(held(&mut objects).await < 10_000);
    assert_eq!(ask(http, "/fill?any/k=2000000").await, ok("done"));
    assert_eq!(ask(http, "/delete?any/k").await, ok("done"));
    assert_eq!(ask(http, "/exists?any/k").await, ok("false"));
    assert!(held(&mut objects).await < 10_000);
    bench.end().await;
}

#[tokio::test]
async fn increments_and_listings_hold_over_two_runners() {
    let nats = NatsServer::start_jetstream().await;
    let mut benches = [
        Bench::start(Some(nats.options())),
        Bench::start(Some(nats.options())),
    ];
    for bench in &mut benches {
        let spec = keeping("cart", "jetstream", &[("bucket", "shared")]);
        bench.serve("keeper", Kind::Http, "keeper-http", spec).await;
    }
    let asked: Vec<_> = (0..60)
        .map(|number| {
            let http = benches[number % 2].http;
            tokio::spawn(async move { ask(http, "/increment?cart/visits").await })
        })
        .collect();
    for answer in asked {
        assert_eq!(answer.await.unwrap().0, 200);
    }
    assert_eq!(ask(benches[0].http, "/get?cart/visits").await, ok("60"));

    // More keys than a page, with some deleted and some rewritten.
    let js = async_nats::jetstream::new(nats.client().await);
    let bucket = js.get_key_value("shared").await.unwrap();
    for number in 0..2300 {
        bucket.put(format!("k{number}"), "x".into()).await.unwrap();
    }
    for number in 0..300 {
        bucket.delete(format!("k{number}")).await.unwrap();
    }
    for number in 300..600 {
        bucket.put(format!("k{number}"), "y".into()).await.unwrap();
    }
    let listed = ask(benches[1].http, "/list?cart").await.1;
    assert_eq!(listed.lines().count(), 2001, "2000 and visits");
    assert!(!listed.lines().any(|key| key == "k299"));
    for bench in benches {
        bench.end().await;
    }
}

#[tokio::test]
async fn without_nats_a_call_fails_and_the_replica_goes_on() {
    let mut nats = NatsServer::start_jetstream().await;
    let mut bench = Bench::start(Some(nats.options()));
    let spec = keeping("cart", "jetstream", &[]);
    bench.serve("keeper", Kind::Http, "keeper-http", spec).await;
    let http = bench.http;
    assert_eq!(ask(http, "/set?cart/a=one").await, ok("done"));
    nats.stop();
    let (status, why) = ask(http, "/get?cart/a").await;
    assert_eq!(status, 502, "{why}");
    assert_eq!(ask(http, "/").await.0, 200);
    nats.restart().await;
    let until = tokio::time::Instant::now() + crate::support::DEADLINE;
    while ask(http, "/get?cart/a").await != ok("one") {
        assert!(tokio::time::Instant::now() < until, "it comes back");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    bench.end().await;
}

#[tokio::test]
async fn the_clusters_own_buckets_and_unknown_backends_are_refused() {
    let mut bench = Bench::start(None);
    for (spec, why) in [
        (
            keeping("x", "jetstream", &[("bucket", "wasmorch_state")]),
            "the cluster's own",
        ),
        (keeping("x", "jetstream", &[("bucket", "a.b")]), "dot"),
        (keeping("x", "etcd", &[]), "no backend etcd"),
        (keeping("x", "redis", &[]), "redis://"),
    ] {
        let prepared = bench.prepare("keeper", Kind::Http, "keeper-http", spec);
        let refused = prepared.await.unwrap_err();
        assert!(refused.contains(why), "{refused}");
        assert!(refused.starts_with("bindings.keyvalue.x: "), "{refused}");
    }
    // In memory, and with no NATS at all.
    let spec = keeping("cart", "memory", &[]);
    bench.serve("keeper", Kind::Http, "keeper-http", spec).await;
    assert_eq!(ask(bench.http, "/increment?cart/n").await, ok("1"));
    assert_eq!(ask(bench.http, "/increment?cart/n").await, ok("2"));
    bench.end().await;
}
