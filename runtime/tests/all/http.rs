//! The http kind: fresh instances, streaming, 0.2 and 0.3, configuration, logs.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::SinkExt as _;
use futures::channel::mpsc;
use http_body::{Body as _, Frame};
use http_body_util::{BodyExt as _, StreamBody};
use wasmorch_runtime::{
    BodyError, Ended, HttpReplica, LogStream, PrepareError, ReplicaConfig, RequestId,
};

use crate::support::{Lines, answer, artifact, eventually, fetch, get, http, runtime};

fn config() -> ReplicaConfig {
    ReplicaConfig::new("test")
}

#[tokio::test]
async fn every_request_gets_a_fresh_instance() {
    let replica = http("hello-http", config()).await;
    for _ in 0..3 {
        assert_eq!(
            fetch(&replica, "/instance").await.unwrap(),
            (200, "1\n".into())
        );
    }
    assert_eq!(
        fetch(&replica, "/").await.unwrap(),
        (200, "Hello from wasmorch, v1\n".into())
    );
    let usage = replica.usage();
    assert_eq!(
        (usage.started_total, usage.failed_total, usage.in_flight),
        (4, 0, 0)
    );
    assert!(usage.cpu_time > Duration::ZERO && usage.memory_bytes_peak >= 1 << 20);
}

/// Tokio gives a task a budget; what is ready beyond it looks as if it were not.
#[tokio::test]
async fn a_caller_that_never_waits_gets_every_answer() {
    for name in ["hello-http", "hello-http-p3"] {
        let replica = http(name, config()).await;
        for _ in 0..500 {
            assert_eq!(fetch(&replica, "/").await.unwrap().0, 200, "{name}");
        }
    }
}

/// It leaves with the head in one piece, its length known, and the guest needs no task.
#[tokio::test]
async fn what_is_written_without_waiting_comes_with_the_head() {
    for name in ["hello-http", "hello-http-p3"] {
        let replica = http(name, config()).await;
        let response = replica.handle(get("/")).await.unwrap();
        let known = response.body().size_hint().exact();
        assert_eq!(replica.usage().in_flight, 0, "{name} is done");
        let body = response.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(known, Some(body.len() as u64), "{name}");
    }
    // More than may lie ahead is streamed, and arrives whole.
    let replica = http("hello-http", config()).await;
    let response = replica.handle(get("/bytes?1000000")).await.unwrap();
    assert_eq!(response.body().size_hint().exact(), None);
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body.len(), 1_000_000);
}

/// Nobody reads a body, so nobody's going says that nobody waits for the guest.
#[tokio::test]
async fn work_after_an_answer_without_a_body_is_done() {
    for name in ["hostile", "hostile-p3"] {
        for method in [http::Method::GET, http::Method::HEAD] {
            let status = if method == http::Method::HEAD {
                200
            } else {
                204
            };
            let lines = Arc::new(Lines::default());
            let config = ReplicaConfig {
                logs: lines.clone(),
                ..config()
            };
            let replica = http(name, config).await;
            let mut request = get(&format!("/works-after?{status}"));
            *request.method_mut() = method;
            let response = replica.handle(request).await.unwrap();
            assert_eq!(response.status(), status);
            // As hyper does it.
            drop(response);
            let worked = || lines.texts() == ["worked"];
            eventually(&format!("{name} {status}: it works on"), worked).await;
            eventually("nothing is left", || replica.usage().memory_bytes == 0).await;
            assert_eq!(replica.usage().failed_total, 0, "{name} {status}");
        }
    }
}

/// To HEAD a guest says how long its answer would be, and writes nothing of it.
#[tokio::test]
async fn a_length_without_a_body_answers_head_and_nothing_else() {
    let replica = http("hello-http", config()).await;
    let mut head = get("/none?5");
    *head.method_mut() = http::Method::HEAD;
    let response = replica.handle(head).await.unwrap();
    assert_eq!(response.headers()["content-length"], "5");
    drop(response);
    assert_eq!(replica.usage().failed_total, 0);
    // However long that would be.
    let mut head = get("/none?99999999");
    *head.method_mut() = http::Method::HEAD;
    let response = replica.handle(head).await.unwrap();
    assert_eq!(response.headers()["content-length"], "99999999");
    let ended = replica.handle(get("/none?5")).await.map(drop).unwrap_err();
    assert!(matches!(ended, Ended::Guest(_)), "{ended}");
}

#[tokio::test]
async fn a_p3_component_answers() {
    let replica = http("hello-http-p3", config()).await;
    assert_eq!(
        fetch(&replica, "/").await.unwrap(),
        (200, "Hello from wasmorch, p3\n".into())
    );
    assert_eq!(
        fetch(&replica, "/sleep?20").await.unwrap(),
        (200, "slept\n".into())
    );
    eventually("nothing is left", || replica.usage().memory_bytes == 0).await;
    assert_eq!(replica.usage().failed_total, 0);
}

/// Sends one chunk, expects it back while the request is still open, then another.
async fn streams_both_ways(name: &str) {
    let replica = http(name, config()).await;
    let (mut tx, rx) = mpsc::channel::<Result<Frame<Bytes>, BodyError>>(1);
    let request = http::Request::post("/echo").header("host", "test");
    let request = request.body(StreamBody::new(rx).boxed_unsync()).unwrap();
    tx.send(Ok(Frame::data("one".into()))).await.unwrap();
    let mut body = replica.handle(request).await.unwrap().into_body();
    for chunk in ["one", "two"] {
        let frame = body.frame().await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), chunk);
        // Still open: only now does the second chunk exist.
        if chunk == "one" {
            tx.send(Ok(Frame::data("two".into()))).await.unwrap();
        }
    }
    drop(tx);
    assert!(body.frame().await.is_none());
    eventually("the guest is gone", || replica.usage().memory_bytes == 0).await;
    assert_eq!(replica.usage().failed_total, 0);
}

#[tokio::test]
async fn bodies_stream_both_ways() {
    streams_both_ways("hello-http").await;
}

#[tokio::test]
async fn bodies_stream_both_ways_in_p3() {
    streams_both_ways("hello-http-p3").await;
}

/// How a request to `/echo` with this body ended, whether an answer had begun or not.
async fn echoed(
    replica: &HttpReplica,
    frames: Vec<Result<&'static str, BodyError>>,
) -> Result<(u16, String), Ended> {
    let (mut tx, rx) = mpsc::channel::<Result<Frame<Bytes>, BodyError>>(8);
    for frame in frames {
        let frame = frame.map(|text| Frame::data(text.into()));
        tx.send(frame).await.unwrap();
    }
    let request = http::Request::post("/echo").header("host", "test");
    let request = request.body(StreamBody::new(rx).boxed_unsync()).unwrap();
    // The sender lives on: what has not come yet may still come.
    let ended = answer(replica, request).await;
    drop(tx);
    ended
}

#[tokio::test]
async fn a_body_that_its_client_breaks_off_is_no_failure_of_the_guest() {
    for name in ["hello-http", "hello-http-p3"] {
        for concurrency in [1, 4] {
            let reuse = wasmorch_runtime::Reuse {
                requests: 100,
                concurrency,
                idle: Duration::from_secs(10),
            };
            let replica = http(name, ReplicaConfig { reuse, ..config() }).await;
            for before in [vec![], vec!["one"], vec!["one", "two"]] {
                let mut frames: Vec<_> = before.into_iter().map(Ok).collect();
                frames.push(Err("invalid chunk size".into()));
                let ended = echoed(&replica, frames).await;
                let broken = Err(Ended::RequestBroken("invalid chunk size".into()));
                assert_eq!(ended, broken, "{name} {concurrency}");
            }
            assert_eq!(replica.usage().failed_total, 0, "{name} {concurrency}");
            assert_eq!(fetch(&replica, "/").await.unwrap().0, 200, "{name}");
        }
    }
}

#[tokio::test]
async fn a_body_that_does_not_come_in_time_is_its_clients_doing() {
    let limit = Duration::from_millis(300);
    let limits = wasmorch_runtime::Limits {
        timeout: Some(limit),
        ..Default::default()
    };
    // 0.3 only passes it on, and has long ended.
    for name in ["hello-http", "hello-http-p3"] {
        let limits = limits.clone();
        let replica = http(name, ReplicaConfig { limits, ..config() }).await;
        for before in [vec![], vec![Ok("one")]] {
            let ended = echoed(&replica, before).await;
            assert_eq!(ended, Err(Ended::RequestTimeout { limit }), "{name}");
        }
        assert_eq!(replica.usage().failed_total, 0, "{name}");
        // One that it does not wait for is none.
        let ended = fetch(&replica, "/sleep?60000").await.unwrap_err();
        assert_eq!(
            ended,
            Ended::Timeout {
                limit,
                throttled: Duration::ZERO
            },
            "{name}"
        );
        assert_eq!(replica.usage().failed_total, 1, "{name}");
    }
}

#[tokio::test]
async fn a_large_body_arrives_whole() {
    let replica = http("hello-http", config()).await;
    let (status, body) = fetch(&replica, "/bytes?8000000").await.unwrap();
    assert_eq!((status, body.len()), (200, 8_000_000));
}

#[tokio::test]
async fn environment_and_logs_reach_where_they_should() {
    let lines = Arc::new(Lines::default());
    let env = vec![("CURRENCY".to_owned(), "EUR".to_owned())];
    let replica = http(
        "hello-http",
        ReplicaConfig {
            env,
            logs: lines.clone(),
            ..config()
        },
    )
    .await;
    assert_eq!(
        fetch(&replica, "/env?CURRENCY").await.unwrap(),
        (200, "EUR\n".into())
    );
    assert_eq!(fetch(&replica, "/env?PATH").await.unwrap().0, 404);

    let mut request = get("/log?said");
    request.extensions_mut().insert(RequestId("r-7".into()));
    replica
        .handle(request)
        .await
        .unwrap()
        .into_body()
        .collect()
        .await
        .unwrap();
    eventually("both lines are there", || lines.all().len() == 2).await;
    let said: Vec<_> = lines
        .all()
        .into_iter()
        .map(|line| (line.stream, line.request_id.unwrap().to_string(), line.text))
        .collect();
    let expected = |stream| (stream, "r-7".to_owned(), "said".to_owned());
    assert_eq!(
        said,
        [expected(LogStream::Stdout), expected(LogStream::Stderr)]
    );
}

#[tokio::test]
async fn what_is_no_http_workload_is_refused() {
    let wordcount = artifact("wordcount").await;
    let refused = HttpReplica::prepare(&runtime(), &wordcount, config())
        .err()
        .unwrap();
    assert!(
        matches!(refused, PrepareError::WrongShape { .. }),
        "{refused}"
    );
}

#[tokio::test]
async fn stopping_ends_what_runs_and_refuses_the_rest() {
    let replica = Arc::new(http("hello-http", config()).await);
    let running = tokio::spawn({
        let replica = replica.clone();
        async move { fetch(&replica, "/sleep?60000").await }
    });
    eventually("it runs", || replica.usage().in_flight == 1).await;
    replica.stop();
    assert_eq!(running.await.unwrap(), Err(Ended::Stopped));
    assert_eq!(fetch(&replica, "/").await, Err(Ended::Stopped));
    replica.idle().await;
    assert_eq!(replica.usage().memory_bytes, 0);
}

#[tokio::test]
async fn closing_lets_what_runs_finish() {
    let replica = Arc::new(http("hello-http", config()).await);
    let running = tokio::spawn({
        let replica = replica.clone();
        async move { fetch(&replica, "/sleep?200").await }
    });
    eventually("it runs", || replica.usage().in_flight == 1).await;
    replica.close();
    let started = Instant::now();
    replica.idle().await;
    assert!(started.elapsed() > Duration::from_millis(50));
    assert_eq!(running.await.unwrap().unwrap(), (200, "slept\n".into()));
}
