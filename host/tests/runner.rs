//! The runner with real guests, driven by nothing but protocol messages, as the daemon does.
//!
//! Needs the sample guests (`cargo xtask setup`; `WASMORCH_GUESTS` names another folder) and, for
//! messages, a nats-server (`WASMORCH_NATS_SERVER`, PATH, or the cache folder).

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod calls;
mod capabilities;
mod health;
mod support;

use std::time::Duration;

use support::nats::NatsServer;
use support::{Bench, get, spec};
use tokio::time::Instant;
use wasmorch_api::{HumanDuration, Kind};
use wasmorch_host::runner::protocol::{FromRunner, Outcome, ReplicaKey, ToRunner};

fn failed(outcome: &Outcome) -> (Option<i32>, &str) {
    match outcome {
        Outcome::Failed { exit_code, reason } => (*exit_code, reason),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn an_http_replica_becomes_ready_serves_and_drains() {
    let mut bench = Bench::start(None);
    let web = bench
        .prepare("web", Kind::Http, "hello-http", spec())
        .await
        .expect("prepared");
    bench.route("web").await;
    let early = get(bench.http, "web", "/").await;
    assert!(early.status >= 500, "not started: {early:?}");

    bench.begin(&web).await;
    assert_eq!(bench.health(&web).await, (true, None));
    let answer = get(bench.http, "web", "/").await;
    assert_eq!(
        (answer.status, answer.body.as_str()),
        (200, "Hello from wasmorch, v1\n")
    );
    let environment = get(bench.http, "web", "/env?WASMORCH_REPLICA").await;
    assert_eq!(environment.body.trim(), web.id.to_string());
    let name = get(bench.http, "web", "/env?WASMORCH_WORKLOAD").await;
    assert_eq!(name.body.trim(), "web");

    // In hand when the drain begins, and finished before `Stopped`.
    let (http, slow) = (bench.http, Instant::now());
    let slow_request = tokio::spawn(async move { get(http, "web", "/sleep?1500").await });
    bench.usage_until(&web, |usage| usage.in_flight > 0).await;
    bench.drain(&web).await;
    assert_eq!(get(bench.http, "web", "/").await.status, 200, "the grace");
    bench.stopped(&web).await;
    assert!(
        slow.elapsed() >= Duration::from_millis(1400),
        "it waited for the slow request"
    );
    assert_eq!(slow_request.await.unwrap().status, 200);
    assert!(get(bench.http, "web", "/").await.status >= 500, "gone");
    bench.end().await;
}

#[tokio::test]
async fn a_drain_is_cut_off_at_its_deadline_and_a_stop_at_once() {
    let mut bench = Bench::start(None);
    let web = bench.serve("web", Kind::Http, "hello-http", spec()).await;
    let http = bench.http;
    let request = tokio::spawn(async move { get(http, "web", "/sleep?25000").await });
    bench.usage_until(&web, |usage| usage.in_flight > 0).await;
    let began = Instant::now();
    bench
        .send(ToRunner::Drain {
            replica: web.clone(),
            deadline_ms: 500,
        })
        .await;
    bench.stopped(&web).await;
    assert!(began.elapsed() < Duration::from_secs(10));
    assert!(request.await.unwrap().status >= 500);

    let again = bench.serve("web", Kind::Http, "hello-http", spec()).await;
    bench
        .send(ToRunner::Stop {
            replica: again.clone(),
        })
        .await;
    bench.stopped(&again).await;
    // Whoever is gone is answered for.
    bench
        .send(ToRunner::Drain {
            replica: again.clone(),
            deadline_ms: 0,
        })
        .await;
    bench.stopped(&again).await;
    bench.end().await;
}

#[tokio::test]
async fn hungry_and_spinning_guests_fail_and_hello_keeps_answering() {
    let mut bench = Bench::start(None);
    let mut greedy = spec();
    greedy.resources.timeout = HumanDuration::secs(2);
    greedy.health.ready.as_mut().expect("a probe").path = "/ok".into();
    bench.serve("hello", Kind::Http, "hello-http", spec()).await;
    let hungry = bench
        .serve("hungry", Kind::Http, "hungry", greedy.clone())
        .await;
    bench.serve("spinner", Kind::Http, "spinner", greedy).await;

    let http = bench.http;
    let spinning: Vec<_> = (0..4)
        .map(|_| tokio::spawn(async move { get(http, "spinner", "/").await }))
        .collect();
    let eating = tokio::spawn(async move { get(http, "hungry", "/").await });
    let mut slowest = Duration::ZERO;
    for _ in 0..50 {
        let began = Instant::now();
        assert_eq!(get(http, "hello", "/").await.status, 200);
        slowest = slowest.max(began.elapsed());
    }
    assert!(
        slowest < Duration::from_secs(1),
        "hello took {slowest:?} beside the others"
    );
    for spinner in spinning {
        let answer = spinner.await.unwrap();
        assert_eq!(answer.status, 504, "{answer:?}");
    }
    let eaten = eating.await.unwrap();
    assert!(eaten.status >= 500 && eaten.status != 504, "{eaten:?}");
    let line = bench
        .line(&hungry, |line| line.text.contains("memory limit"))
        .await;
    assert_eq!(line.stream, "error");
    assert_eq!(
        get(http, "hungry", "/ok").await.status,
        200,
        "a failed request ends no replica"
    );
    bench.end().await;
}

/// A client alone brings no rollout back: what counts for `fail_when` is what the guest does.
#[tokio::test]
async fn a_body_that_its_client_breaks_counts_against_nobody() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut bench = Bench::start(None);
    let mut judged = spec();
    judged.update.fail_when = Some(wasmorch_api::spec::FailWhen::default());
    let web = bench.serve("web", Kind::Http, "hello-http", judged).await;
    let broken = "POST /echo HTTP/1.1\r\nhost: web.default.localhost\r\n\
                  transfer-encoding: chunked\r\n\r\nzz\r\nhello\r\n0\r\n\r\n";
    for _ in 0..10 {
        let mut stream = tokio::net::TcpStream::connect(bench.http).await.unwrap();
        stream.write_all(broken.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let read = stream.read_to_end(&mut answer);
        let read = tokio::time::timeout(support::DEADLINE, read).await;
        read.expect("it is closed").unwrap();
        let answer = String::from_utf8(answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
        assert!(
            answer.contains("wasmorch-error: bad-request\r\n"),
            "{answer}"
        );
    }
    assert_eq!(get(bench.http, "web", "/").await.status, 200);
    let usage = bench
        .usage_until(&web, |usage| usage.answers.requests > 0)
        .await;
    assert_eq!((usage.answers.requests, usage.answers.errors), (1, 0));
    bench.end().await;
}

#[tokio::test]
async fn a_guest_that_traps_is_not_ready_and_says_why() {
    let mut bench = Bench::start(None);
    let crasher = bench
        .prepare("crasher", Kind::Http, "crasher", spec())
        .await
        .expect("prepared");
    bench.begin(&crasher).await;
    let (ready, reason) = bench.health(&crasher).await;
    assert!(!ready);
    assert!(
        reason.as_deref().is_some_and(|why| why.contains("trapped")),
        "{reason:?}"
    );
    // Told only once: the next word is the answer to the stop.
    bench
        .send(ToRunner::Stop {
            replica: crasher.clone(),
        })
        .await;
    bench.stopped(&crasher).await;

    let mut unproven = spec();
    unproven.health.ready = None;
    let crasher = bench
        .prepare("crasher", Kind::Http, "crasher", unproven)
        .await
        .expect("prepared");
    bench.begin(&crasher).await;
    assert_eq!(
        bench.health(&crasher).await,
        (true, None),
        "`ready = false` asks for no answer"
    );
    bench.end().await;
}

#[tokio::test]
async fn what_cannot_start_is_rejected_with_the_reason() {
    let mut bench = Bench::start(None);
    let wrong = bench
        .prepare("web", Kind::Messages, "hello-http", spec())
        .await
        .unwrap_err();
    assert!(wrong.contains("wasmcloud:messaging/handler"), "{wrong}");

    let mut small = spec();
    small.resources.memory = "64KiB".parse().unwrap();
    let reason = bench
        .prepare("web", Kind::Http, "hello-http", small)
        .await
        .unwrap_err();
    assert!(reason.contains("memory"), "{reason}");

    let mut granted = spec();
    granted.bindings.http = vec!["http://x.com".into()];
    let reason = bench
        .prepare("web", Kind::Http, "hello-http", granted)
        .await
        .unwrap_err();
    assert!(reason.contains("bindings.http"), "{reason}");

    let reason = bench
        .prepare_bytes("web", Kind::Http, b"not wasm", spec())
        .await
        .unwrap_err();
    assert!(reason.contains("not WebAssembly"), "{reason}");
    bench.end().await;
}

#[tokio::test]
async fn lines_of_guests_arrive_with_their_stream() {
    let mut bench = Bench::start(None);
    let web = bench.serve("web", Kind::Http, "hello-http", spec()).await;
    assert_eq!(get(bench.http, "web", "/log?hello").await.status, 200);
    let line = bench.line(&web, |line| line.stream == "stdout").await;
    assert_eq!((line.text.as_str(), line.dropped), ("hello", 0));
    assert!(line.request_id.is_some());
    assert_eq!(
        bench.line(&web, |line| line.stream == "stderr").await.text,
        "hello"
    );
    bench.end().await;
}

#[tokio::test]
async fn jobs_end_with_their_exit_code() {
    let mut bench = Bench::start(None);
    let good = bench
        .prepare("count", Kind::Job, "wordcount", spec())
        .await
        .expect("prepared");
    bench.begin(&good).await;
    assert_eq!(
        bench.ended(&good).await,
        Outcome::Completed { exit_code: 0 }
    );
    // Its lines came before its end.
    assert_eq!(bench.lines(&good), ["0 lines, 0 words, 0 bytes"]);

    let core = bench
        .prepare("count", Kind::Job, "wordcount-p1", spec())
        .await
        .expect("prepared");
    bench.begin(&core).await;
    assert_eq!(
        bench.ended(&core).await,
        Outcome::Completed { exit_code: 0 }
    );

    let mut missing = spec();
    missing.args = vec!["/no/such/file".into()];
    let bad = bench
        .prepare("count", Kind::Job, "wordcount", missing)
        .await
        .expect("prepared");
    bench.begin(&bad).await;
    assert_eq!(failed(&bench.ended(&bad).await).0, Some(1));

    let crash = bench
        .prepare("crash", Kind::Job, "crasher-start", spec())
        .await
        .expect("prepared");
    bench.begin(&crash).await;
    let outcome = bench.ended(&crash).await;
    assert!(failed(&outcome).1.contains("trapped"), "{outcome:?}");
    assert!(
        bench
            .lines(&crash)
            .iter()
            .any(|line| line == "about to crash")
    );
    bench.end().await;
}

#[tokio::test]
async fn a_service_is_ready_when_it_has_lived_and_a_drain_ends_it() {
    let mut bench = Bench::start(None);
    let mut quick = spec();
    quick.args = vec!["20".into()];
    quick.update.min_ready = HumanDuration::millis(100);
    // A service's timeout is not the length of its life.
    quick.resources.timeout = HumanDuration::millis(50);
    let ticker = bench
        .prepare("ticker", Kind::Service, "ticker", quick)
        .await
        .expect("prepared");
    bench.begin(&ticker).await;
    assert_eq!(bench.health(&ticker).await, (true, None));
    bench.line(&ticker, |line| line.text == "tick 3").await;
    bench.drain(&ticker).await;
    let began = Instant::now();
    bench.stopped(&ticker).await;
    assert!(
        began.elapsed() < Duration::from_secs(5),
        "it cannot finish by itself"
    );
    bench.end().await;
}

#[tokio::test]
async fn the_runner_answers_pings_and_usage() {
    let mut bench = Bench::start(None);
    let web = bench.serve("web", Kind::Http, "hello-http", spec()).await;
    bench.send(ToRunner::Ping(7)).await;
    bench
        .wait("the pong", |message| {
            matches!(message, FromRunner::Pong(7)).then_some(())
        })
        .await;
    let http = bench.http;
    let spin = tokio::spawn(async move { get(http, "web", "/sleep?2000").await });
    let usage = bench
        .usage_until(&web, |usage| usage.in_flight > 0 && usage.memory_bytes > 0)
        .await;
    assert_eq!(usage.replica, web);
    assert_eq!(spin.await.unwrap().status, 200);
    // Closing the channel ends everything, and the threads with it.
    bench.end().await;
}

#[tokio::test]
async fn two_replicas_share_the_requests() {
    let mut bench = Bench::start(None);
    let one = bench.serve("web", Kind::Http, "hello-http", spec()).await;
    let two = bench.serve("web", Kind::Http, "hello-http", spec()).await;
    let mut answered = std::collections::BTreeSet::new();
    for _ in 0..10 {
        let answer = get(bench.http, "web", "/env?WASMORCH_REPLICA").await;
        answered.insert(answer.body.trim().to_owned());
    }
    assert_eq!(answered, [one.id.to_string(), two.id.to_string()].into());
    // One of them going is not noticed.
    let drain = |replica: &ReplicaKey| ToRunner::Drain {
        replica: replica.clone(),
        deadline_ms: 20_000,
    };
    let began = Instant::now();
    bench.send(drain(&one)).await;
    for _ in 0..20 {
        assert_eq!(get(bench.http, "web", "/").await.status, 200);
    }
    // It does not go before other gateways can have heard of it. One of them is deaf here.
    bench.stopped(&one).await;
    let took = began.elapsed();
    let most = Duration::from_secs(2);
    assert!((most..most * 5).contains(&took), "{took:?}");

    // The last one answers until they have.
    let began = Instant::now();
    bench.send(drain(&two)).await;
    for _ in 0..20 {
        assert_eq!(get(bench.http, "web", "/").await.status, 200);
    }
    let replica = two.clone();
    bench.send(ToRunner::Withdrawn { replica }).await;
    bench.stopped(&two).await;
    let took = began.elapsed();
    assert!(took < most, "{took:?}");
    bench.end().await;
}

#[tokio::test]
async fn messages_are_answered_also_after_the_server_came_back() {
    let mut server = NatsServer::start().await;
    let client = server.client().await;
    let mut bench = Bench::start(Some(server.options()));
    let echo = bench.prepare(
        "echo",
        Kind::Messages,
        "echo-messages",
        support::subscribing("shop.ask"),
    );
    let echo = echo.await.expect("prepared");
    bench.begin(&echo).await;
    assert_eq!(bench.health(&echo).await, (true, None));

    let answer = client.request("shop.ask", "hi".into()).await.unwrap();
    assert_eq!(answer.payload, "echo: hi");
    let called = client
        .request("wasmorch.v1.invoke.default.echo", "you".into())
        .await
        .unwrap();
    assert_eq!(called.payload, "echo: you");

    // A trap fails its message: the sender is told, the log says so, the replica stays.
    let trapped = client.request("shop.ask", "trap".into()).await.unwrap();
    let headers = trapped.headers.expect("headers");
    assert_eq!(
        headers.get("Nats-Service-Error-Code").unwrap().as_str(),
        "500"
    );
    bench
        .line(&echo, |line| line.text.contains("trapped"))
        .await;
    assert_eq!(
        client
            .request("shop.ask", "hi".into())
            .await
            .unwrap()
            .payload,
        "echo: hi"
    );

    // The reply subject is the sender's choice; the cluster's own subjects are out of reach.
    let mut stolen = client.subscribe("wasmorch.v1.placements.*").await.unwrap();
    client
        .publish_with_reply("shop.ask", "wasmorch.v1.placements.h1", "x".into())
        .await
        .unwrap();
    assert_eq!(
        client
            .request("shop.ask", "hi".into())
            .await
            .unwrap()
            .payload,
        "echo: hi"
    );
    client
        .publish("wasmorch.v1.placements.end", "end".into())
        .await
        .unwrap();
    use futures::StreamExt as _;
    assert_eq!(
        stolen.next().await.unwrap().payload,
        "end",
        "nothing came before it"
    );

    server.restart().await;
    let deadline = Instant::now() + support::DEADLINE;
    while client.request("shop.ask", "again".into()).await.is_err() {
        assert!(
            Instant::now() < deadline,
            "the subscription did not come back"
        );
    }
    bench.drain(&echo).await;
    bench.stopped(&echo).await;
    let gone = client.request("shop.ask", "hi".into()).await.unwrap_err();
    assert_eq!(gone.kind(), async_nats::RequestErrorKind::NoResponders);
    bench.end().await;
}

#[tokio::test]
async fn without_nats_a_messages_replica_says_what_it_waits_for() {
    let mut bench = Bench::start(None);
    let spec = support::subscribing("shop.ask");
    let echo = bench
        .prepare("echo", Kind::Messages, "echo-messages", spec)
        .await
        .expect("prepared");
    bench.begin(&echo).await;
    let (ready, reason) = bench.health(&echo).await;
    assert!(!ready && reason.is_some_and(|why| why.contains("NATS")));
    bench
        .send(ToRunner::Stop {
            replica: echo.clone(),
        })
        .await;
    bench.stopped(&echo).await;
    bench.end().await;
}
