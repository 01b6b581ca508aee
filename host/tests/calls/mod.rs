//! Calls of http workloads over NATS.

use async_nats::{HeaderMap, RequestError, RequestErrorKind};
use bytes::Bytes;
use tokio::time::Instant;
use wasmorch_api::Kind;
use wasmorch_api::spec::{Replicas, Scale};
use wasmorch_host::runner::protocol::ToRunner;

use crate::support::nats::NatsServer;
use crate::support::{Bench, DEADLINE, get, spec};

/// Status, code of an error, and body.
type Answered = (Option<String>, Option<String>, Bytes);

async fn call(
    client: &async_nats::Client,
    path: &str,
    body: &'static str,
) -> Result<Answered, RequestError> {
    let mut headers = HeaderMap::new();
    headers.insert("Wasmorch-Path", path);
    headers.insert("X-Mine", "1");
    headers.insert("X-Forwarded-For", "192.0.2.1");
    let subject = "wasmorch.v1.invoke.default.web";
    let answer = client.request_with_headers(subject, headers, body.into());
    let answer = answer.await?;
    let headers = answer.headers.unwrap_or_default();
    let header = |name: &str| headers.get(name).map(|value| value.as_str().to_owned());
    let (status, code) = (header("Wasmorch-Status"), header("Nats-Service-Error-Code"));
    Ok((status, code, answer.payload))
}

#[tokio::test]
async fn an_http_workload_is_called_by_nats() {
    let server = NatsServer::start().await;
    let client = server.client().await;
    let mut bench = Bench::start(Some(server.options()));
    let web = bench.serve("web", Kind::Http, "hello-http", spec()).await;
    let deadline = Instant::now() + DEADLINE;
    let (status, _, body) = loop {
        match call(&client, "/", "").await {
            Ok(answer) => break answer,
            Err(error) => assert!(Instant::now() < deadline, "nobody took the call: {error}"),
        }
    };
    assert_eq!(status.as_deref(), Some("200"));
    assert_eq!(body, "Hello from wasmorch, v1\n");
    assert_eq!(call(&client, "/echo", "ping").await.unwrap().2, "ping");
    let headers =
        String::from_utf8(call(&client, "/headers", "").await.unwrap().2.to_vec()).unwrap();
    for sent in ["x-mine: 1", "x-forwarded-for: 192.0.2.1"] {
        assert!(headers.contains(sent), "{headers}");
    }
    assert_eq!(
        call(&client, "/status?404", "").await.unwrap().0.as_deref(),
        Some("404")
    );

    let (_, code, body) = call(&client, "/bytes?2000000", "").await.unwrap();
    assert_eq!(code.as_deref(), Some("413"));
    let refusal: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(refusal["error"]["code"], "too_large");
    // As by HTTP, and with the code that the API has for it.
    let (status, code, _) = call(&client, "/trap", "").await.unwrap();
    assert_eq!(
        (status.as_deref(), code.as_deref()),
        (Some("502"), Some("500"))
    );
    assert_eq!(get(bench.http, "web", "/trap").await.status, 502);

    bench.drain(&web).await;
    bench.stopped(&web).await;
    let gone = call(&client, "/", "").await.unwrap_err();
    assert_eq!(gone.kind(), async_nats::RequestErrorKind::NoResponders);
    bench.end().await;
}

#[tokio::test]
async fn replicas_share_a_subscription_that_answers_what_it_took_after_the_last_of_them() {
    let server = NatsServer::start().await;
    let client = server.client().await;
    let mut bench = Bench::start(Some(server.options()));
    let serve =
        async |bench: &mut Bench| bench.serve("web", Kind::Http, "hello-http", spec()).await;
    let (one, two) = (serve(&mut bench).await, serve(&mut bench).await);
    let ok = Some("200");
    let answered = async || call(&client, "/", "").await.unwrap().0;
    assert_eq!(answered().await.as_deref(), ok);
    bench.drain(&one).await;
    bench.stopped(&one).await;
    assert_eq!(answered().await.as_deref(), ok, "the other takes calls");
    let asking = client.clone();
    let slow = tokio::spawn(async move { call(&asking, "/sleep?1500", "").await });
    bench.usage_until(&two, |usage| usage.in_flight > 0).await;
    bench.drain(&two).await;
    bench.stopped(&two).await;
    assert_eq!(slow.await.unwrap().unwrap().0.as_deref(), ok);
    let gone = call(&client, "/", "").await.unwrap_err();
    assert_eq!(gone.kind(), RequestErrorKind::NoResponders);
    // One that ends by force takes its calls' answers along, and not their senders' time.
    let three = serve(&mut bench).await;
    assert_eq!(answered().await.as_deref(), ok, "a new one");
    let asking = client.clone();
    let slow = tokio::spawn(async move { call(&asking, "/sleep?60000", "").await });
    bench.usage_until(&three, |usage| usage.in_flight > 0).await;
    let replica = three.clone();
    bench.send(ToRunner::Stop { replica }).await;
    bench.stopped(&three).await;
    assert!(
        slow.await.unwrap().unwrap().1.is_some(),
        "an error, at once"
    );
    bench.end().await;
}

#[tokio::test]
async fn without_nats_one_that_may_rest_is_prepared_all_the_same() {
    let mut bench = Bench::start(None);
    let mut spec = spec();
    spec.replicas = None::<Replicas>;
    spec.scale = Some(Scale {
        min: 0,
        max: 2,
        target: [("concurrency".to_owned(), 10)].into(),
        window: wasmorch_api::spec::scale_window(),
        panic: wasmorch_api::spec::scale_panic(),
        tolerance: wasmorch_api::spec::scale_tolerance(),
    });
    assert!(spec.standbys() > 0);
    let web = bench.serve("web", Kind::Http, "hello-http", spec).await;
    bench.drain(&web).await;
    bench.stopped(&web).await;
    bench.end().await;
}
