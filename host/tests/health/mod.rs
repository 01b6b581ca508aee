//! Probes beside requests: what ends a replica, and what does not.

use std::time::Duration;

use tokio::time::Instant;
use wasmorch_api::spec::Probe;
use wasmorch_api::{HumanDuration, Kind, WorkloadSpec};
use wasmorch_host::runner::protocol::{FromRunner, Outcome};

use crate::support::{Bench, get, spec};

fn asked_for_life(path: &str, fail: u32) -> WorkloadSpec {
    let mut spec = spec();
    spec.health.start_grace = HumanDuration::secs(0);
    spec.health.live = Some(Probe {
        path: path.into(),
        interval: HumanDuration::millis(100),
        timeout: HumanDuration::millis(500),
        fail,
        ..Probe::default()
    });
    spec
}

#[tokio::test]
async fn what_fails_its_live_probe_in_a_row_ends_after_its_grace_and_says_why() {
    let mut bench = Bench::start(None);
    let mut sick = asked_for_life("/status?500", 4);
    sick.health.start_grace = HumanDuration::secs(2);
    let began = Instant::now();
    let web = bench.serve("web", Kind::Http, "hello-http", sick).await;
    let outcome = bench.ended(&web).await;
    // Its grace, and four probes a tenth of a second apart.
    let least = Duration::from_millis(2_300);
    assert!(began.elapsed() >= least, "{:?}", began.elapsed());
    let reason = "health.live failed 4 times in a row (health.live.fail): GET /status?500: status \
                  500, and 100-499 is wanted (health.live.status)";
    let expected = Outcome::Failed {
        exit_code: None,
        reason: reason.into(),
    };
    assert_eq!(outcome, expected);
    bench.end().await;
}

#[tokio::test]
async fn a_probe_path_that_redirects_never_makes_a_replica_ready() {
    let mut bench = Bench::start(None);
    let mut moved = spec();
    moved.health.ready = Some(Probe {
        path: "/status?307".into(),
        ..Probe::default()
    });
    let web = bench.prepare("web", Kind::Http, "hello-http", moved).await;
    let web = web.expect("prepared");
    bench.begin(&web).await;
    let (ready, why) = bench.health(&web).await;
    assert!(!ready);
    let why = why.expect("a reason");
    assert!(
        why.contains("redirects") && why.contains("health.ready.path"),
        "{why}"
    );
    bench.end().await;
}

#[tokio::test]
async fn a_replica_at_its_limit_is_neither_unready_nor_ended() {
    let mut bench = Bench::start(None);
    let mut busy = asked_for_life("/", 2);
    busy.resources.concurrency = 1;
    busy.resources.queue = 1;
    let ready = busy.health.ready.as_mut().expect("a probe");
    (ready.interval, ready.fail) = (HumanDuration::millis(100), 2);
    ready.timeout = HumanDuration::millis(500);
    let web = bench.serve("web", Kind::Http, "hello-http", busy).await;
    let http = bench.http;
    // One has the only seat for longer than any number of probes needs to fail; one waits for it.
    let requests: Vec<_> = (0..2)
        .map(|_| tokio::spawn(async move { get(http, "web", "/sleep?2000").await }))
        .collect();
    bench.usage_until(&web, |usage| usage.in_flight == 2).await;
    for request in requests {
        assert_eq!(request.await.unwrap().status, 200);
    }
    // Had it ended or lost its readiness, that would have been said before the answer to this.
    bench.usage_until(&web, |usage| usage.in_flight == 0).await;
    let about = |message: &FromRunner| {
        matches!(
            message,
            FromRunner::Ended { .. } | FromRunner::Health { .. }
        )
    };
    assert!(!bench.has_said(about), "busy is not sick");
    bench.end().await;
}

#[tokio::test]
async fn a_draining_replica_is_not_probed() {
    let mut bench = Bench::start(None);
    let mut sick = asked_for_life("/status?500", 1);
    sick.health.start_grace = HumanDuration::secs(1);
    let web = bench.serve("web", Kind::Http, "hello-http", sick).await;
    let http = bench.http;
    let request = tokio::spawn(async move { get(http, "web", "/sleep?2500").await });
    bench.usage_until(&web, |usage| usage.in_flight > 0).await;
    bench.drain(&web).await;
    assert_eq!(request.await.unwrap().status, 200, "it may finish");
    bench.stopped(&web).await;
    bench.end().await;
}

#[tokio::test]
async fn what_waits_when_its_replica_is_ended_was_not_executed() {
    let mut bench = Bench::start(None);
    let mut sick = asked_for_life("/status?500", 1);
    sick.health.start_grace = HumanDuration::secs(2);
    sick.resources.concurrency = 1;
    sick.resources.queue = 1;
    let web = bench.serve("web", Kind::Http, "hello-http", sick).await;
    let http = bench.http;
    let requests: Vec<_> = (0..2)
        .map(|_| tokio::spawn(async move { get(http, "web", "/sleep?20000").await }))
        .collect();
    bench.usage_until(&web, |usage| usage.in_flight == 2).await;
    bench.ended(&web).await;
    let mut answers = Vec::new();
    for request in requests {
        let answer = request.await.unwrap();
        answers.push((answer.status, answer.body));
    }
    answers.sort();
    // One may have been executed; the other would have gone elsewhere, if there were another host.
    assert_eq!((answers[0].0, answers[1].0), (502, 503), "{answers:?}");
    assert!(
        answers[0].1.contains("whether it was executed is unknown"),
        "{answers:?}"
    );
    assert!(answers[1].1.contains("no replica"), "{answers:?}");
    bench.end().await;
}
