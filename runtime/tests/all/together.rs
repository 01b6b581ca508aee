//! Requests side by side in one instance of 0.3: who shares it, and what ends them together.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::join_all;
use http_body_util::BodyExt as _;
use wasmorch_runtime::{
    Body, Ended, HttpReplica, InternalRoute, Limits, Lineage, OutboundHttp, ReplicaConfig, Reuse,
    RouteError,
};

use crate::support::{Lines, eventually, fetch, full, get, http};

fn config() -> ReplicaConfig {
    let limits = Limits {
        timeout: Some(Duration::from_secs(2)),
        ..Limits::default()
    };
    let reuse = Reuse {
        requests: 1000,
        concurrency: 16,
        idle: Duration::from_secs(600),
    };
    ReplicaConfig {
        reuse,
        limits,
        ..ReplicaConfig::new("test")
    }
}

async fn hostile() -> HttpReplica {
    http("hostile-p3", config()).await
}

/// Which request of its instance each was.
fn numbers(answers: Vec<Result<(u16, String), Ended>>) -> Vec<u64> {
    let number = |answer: Result<(u16, String), Ended>| answer.unwrap().1.parse().unwrap();
    let mut numbers: Vec<u64> = answers.into_iter().map(number).collect();
    numbers.sort_unstable();
    numbers
}

/// On a busy machine an instance may be about to give way just when another request comes, which then has
/// one of its own: what is to be shown is that they share it, so it is tried until they do.
async fn until_shared<T>(try_once: impl AsyncFn(&HttpReplica) -> T, config: ReplicaConfig) -> T {
    for _ in 0..20 {
        let replica = http("hostile-p3", config.clone()).await;
        let outcome = try_once(&replica).await;
        if replica.usage().started_total == 1 {
            return outcome;
        }
    }
    panic!("they never shared an instance");
}

async fn count(replica: &HttpReplica) -> String {
    fetch(replica, "/count").await.unwrap().1
}

#[tokio::test]
async fn requests_that_wait_share_an_instance_up_to_its_bound() {
    let replica = hostile().await;
    let answers = join_all((0..16).map(|_| fetch(&replica, "/wait"))).await;
    assert_eq!(numbers(answers), (1..=16).collect::<Vec<_>>());
    assert_eq!(replica.usage().started_total, 1);
    // A new one takes what comes at once, up to its bound, and leaves the rest to another.
    let replica = hostile().await;
    let answers = join_all((0..20).map(|_| fetch(&replica, "/wait"))).await;
    let expected: Vec<u64> = (1..=4).flat_map(|n| [n, n]).chain(5..=16).collect();
    assert_eq!(numbers(answers), expected);
    assert_eq!(replica.usage().started_total, 2);
    eventually("both rest", || replica.usage().in_flight == 0).await;
}

/// Later ones join those that wait already.
#[tokio::test]
async fn a_request_joins_others_that_came_before() {
    let share = async |replica: &HttpReplica| {
        let first = fetch(replica, "/wait");
        let second = async {
            // The first is in its wait.
            tokio::time::sleep(Duration::from_millis(50)).await;
            count(replica).await
        };
        futures::join!(first, second)
    };
    let (first, second) = until_shared(share, config()).await;
    assert_eq!((first.unwrap().1.as_str(), second.as_str()), ("1", "2"));
}

#[tokio::test]
async fn requests_in_threads_of_their_own_share_instances_too() {
    let runtime = tokio::runtime::Handle::current();
    let replica = Arc::new(hostile().await);
    let threads = (0..8).map(|_| {
        let (replica, runtime) = (replica.clone(), runtime.clone());
        tokio::task::spawn_blocking(move || {
            for round in 0..25 {
                let path = if round % 5 == 0 { "/wait" } else { "/count" };
                runtime.block_on(fetch(&replica, path)).unwrap();
            }
        })
    });
    for thread in join_all(threads).await {
        thread.unwrap();
    }
    let usage = replica.usage();
    assert!(usage.started_total <= 8, "{usage:?}");
    assert_eq!(usage.failed_total, 0);
    eventually("the last of them rests", || replica.usage().in_flight == 0).await;
}

#[tokio::test]
async fn bodies_of_many_at_once_stay_apart() {
    let replica = http("hello-http-p3", config()).await;
    let echo = |n: u8| {
        let replica = &replica;
        async move {
            let bytes = Bytes::from(vec![n; 300_000 + usize::from(n)]);
            let request = http::Request::post("/echo").header("host", "test");
            let request = request.body(full(bytes.clone())).unwrap();
            let response = replica.handle(request).await.unwrap();
            let body = response.into_body().collect().await.unwrap().to_bytes();
            assert!(body == bytes, "{n}: {} of {}", body.len(), bytes.len());
        }
    };
    join_all((0..32).map(echo)).await;
    assert_eq!(replica.usage().failed_total, 0);
}

#[tokio::test]
async fn a_trap_ends_all_that_are_in_the_instance() {
    let replica = hostile().await;
    let (waits, also, panics) = futures::join!(
        fetch(&replica, "/wait"),
        fetch(&replica, "/wait"),
        fetch(&replica, "/panic")
    );
    for ended in [waits, also, panics] {
        assert!(matches!(ended, Err(Ended::Trap { .. })), "{ended:?}");
    }
    assert_eq!(replica.usage().failed_total, 3);
    assert_eq!(count(&replica).await, "1");
}

#[tokio::test]
async fn one_that_spins_takes_the_others_along_when_its_time_is_over_and_they_are_told() {
    let mut config = config();
    config.limits.timeout = Some(Duration::from_millis(400));
    let share = async |replica: &HttpReplica| {
        let waits = fetch(replica, "/wait-long");
        let spins = async {
            // Into the instance of the one that waits; its own time is over first.
            tokio::task::yield_now().await;
            handle_within(replica, "/spin", Duration::from_millis(100)).await
        };
        let both = futures::join!(waits, spins);
        eventually("the memory is back", || replica.usage().memory_bytes == 0).await;
        both
    };
    let (waits, spins) = until_shared(share, config).await;
    assert!(
        matches!(spins, Err(Ended::CallerTimeout { .. })),
        "{spins:?}"
    );
    let Err(Ended::Trap { message, .. }) = waits else {
        panic!("it went on beside one that spins: {waits:?}");
    };
    assert!(message.contains("another request"), "{message}");
}

/// Handles a request whose caller waits for so long.
async fn handle_within(
    replica: &HttpReplica,
    path: &str,
    within: Duration,
) -> Result<http::Response<Body>, Ended> {
    let mut request = get(path);
    request.extensions_mut().insert(Lineage {
        hops: 0,
        deadline: Some(std::time::Instant::now() + within),
    });
    replica.handle(request).await
}

#[tokio::test]
async fn one_that_waits_for_too_long_leaves_the_others_alone() {
    let share = async |replica: &HttpReplica| {
        let stays = fetch(replica, "/wait");
        let late = async {
            tokio::task::yield_now().await;
            handle_within(replica, "/wait", Duration::from_millis(50)).await
        };
        let (stays, late) = futures::join!(stays, late);
        assert!(matches!(late, Err(Ended::CallerTimeout { .. })), "{late:?}");
        stays
    };
    let stays = until_shared(share, config()).await;
    assert_eq!(stays.unwrap().1, "1");
    let replica = hostile().await;
    handle_within(&replica, "/wait", Duration::from_millis(50))
        .await
        .unwrap_err();
    // It could not be taken out of there.
    assert_eq!(count(&replica).await, "1");
    assert_eq!(replica.usage().started_total, 2);
}

/// Its body ends too, though the instance goes on for another.
#[tokio::test]
async fn the_time_of_a_request_covers_its_body_beside_others() {
    let share = async |replica: &HttpReplica| {
        let stays = async {
            tokio::task::yield_now().await;
            fetch(replica, "/wait").await
        };
        let endless = async {
            let response = handle_within(replica, "/endless", Duration::from_millis(50)).await?;
            let body = response.into_body().collect().await;
            body.map_err(|error| error.downcast_ref::<Ended>().unwrap().clone())
                .map(drop)
        };
        futures::join!(stays, endless)
    };
    let mut config = config();
    config.limits.body_bytes = 1 << 40;
    let (stays, endless) = until_shared(share, config).await;
    assert!(
        matches!(endless, Err(Ended::CallerTimeout { .. })),
        "{endless:?}"
    );
    assert_eq!(stays.unwrap().1, "2");
}

#[tokio::test]
async fn answers_that_are_not_read_past_their_end_are_no_failures() {
    let replica = hostile().await;
    for round in 0..3 {
        let response = replica.handle(get("/in-two-pieces")).await.unwrap();
        let mut body = response.into_body();
        // As hyper does it: it knows the length, and does not ask for more.
        for piece in ["four", "more"] {
            let frame = body.frame().await.unwrap().unwrap();
            assert_eq!(frame.into_data().unwrap(), piece, "{round}");
        }
        drop(body);
        let mut head = get("/in-two-pieces");
        *head.method_mut() = http::Method::HEAD;
        assert_eq!(replica.handle(head).await.unwrap().status(), 200);
    }
    assert_eq!(count(&replica).await, "7");
    let usage = replica.usage();
    assert_eq!((usage.started_total, usage.failed_total), (1, 0));
}

/// What both say they are over in is the same moment for all that wait for that.
#[tokio::test]
async fn an_instance_rests_once_however_many_wait_for_that() {
    let replica = hostile().await;
    for _ in 0..20 {
        join_all((0..4).map(|_| fetch(&replica, "/works-after"))).await;
    }
    // One that traps: if the same instance were there a second time, the next would be in it.
    assert!(fetch(&replica, "/panic").await.is_err());
    let answers = join_all((0..4).map(|_| fetch(&replica, "/count"))).await;
    assert!(answers.iter().all(Result::is_ok), "{answers:?}");
    assert_eq!(replica.usage().failed_total, 1);
}

/// The route of a cluster that leads back to the replica that asks.
struct Back(std::sync::OnceLock<std::sync::Weak<HttpReplica>>);

#[async_trait::async_trait]
impl InternalRoute for Back {
    async fn send(
        &self,
        request: http::Request<Body>,
        lineage: Lineage,
    ) -> Result<http::Response<Body>, RouteError> {
        let replica = self.0.get().unwrap().upgrade().unwrap();
        let mut inner = get(request.uri().path());
        inner.extensions_mut().insert(Lineage {
            hops: lineage.hops + 1,
            ..lineage
        });
        Ok(replica.handle(inner).await.unwrap())
    }
}

#[tokio::test]
async fn a_guest_that_calls_its_own_workload_may_be_answered_by_its_own_instance() {
    let back = Arc::new(Back(std::sync::OnceLock::new()));
    let mut config = config();
    config.outbound = OutboundHttp::denied().with_internal(back.clone());
    let replica = Arc::new(http("hostile-p3", config).await);
    back.0.set(Arc::downgrade(&replica)).unwrap();
    let mut answers = Vec::new();
    for _ in 0..20 {
        answers.push(fetch(&replica, "/call-self").await.unwrap().1);
    }
    // Two requests of the same instance in turn: the one that calls, and the one that it calls.
    assert!(answers.contains(&"2".to_owned()), "{answers:?}");
}

#[tokio::test]
async fn nobody_joins_an_instance_with_a_request_that_was_dropped() {
    let replica = hostile().await;
    assert_eq!(count(&replica).await, "1");
    let stays = fetch(&replica, "/wait");
    let dropped = async {
        let mut request = Box::pin(fetch(&replica, "/wait"));
        // It has begun.
        assert!(request.as_mut().now_or_never().is_none());
        drop(request);
        count(&replica).await
    };
    let (stays, next) = futures::join!(stays, dropped);
    // The first of its instance, or the second after the one that was dropped.
    assert_eq!(stays.unwrap().1, "2");
    assert_eq!(next, "1");
}

/// At each point where a request may be given up, nothing of it is left.
#[tokio::test]
async fn a_request_that_is_dropped_anywhere_leaves_nothing() {
    let mut config = config();
    config.reuse.idle = Duration::ZERO;
    let replica = http("hostile-p3", config).await;
    for path in ["/count", "/wait", "/endless", "/waits-after"] {
        for polls in 0..200 {
            let mut request = Box::pin(async {
                let response = replica.handle(get(path)).await.unwrap();
                response.into_body().collect().await.map(drop)
            });
            for _ in 0..polls {
                if request.as_mut().now_or_never().is_some() {
                    break;
                }
                tokio::task::yield_now().await;
            }
        }
        eventually("everything is dropped", || {
            let usage = replica.usage();
            (usage.memory_bytes, usage.in_flight) == (0, 0)
        })
        .await;
    }
}

#[tokio::test]
async fn what_goes_on_after_its_answer_has_the_time_of_its_request() {
    let mut config = config();
    config.limits.timeout = Some(Duration::from_millis(200));
    let replica = http("hostile-p3", config).await;
    assert_eq!(fetch(&replica, "/waits-after").await.unwrap().0, 200);
    assert!(replica.usage().memory_bytes > 0, "it goes on");
    eventually("it is ended", || replica.usage().memory_bytes == 0).await;
    assert_eq!(replica.usage().in_flight, 0);
    assert_eq!(count(&replica).await, "1");
}

#[tokio::test]
async fn a_replica_that_stops_ends_what_waits_and_one_that_closes_lets_it_finish() {
    let replica = hostile().await;
    let (answer, ()) = futures::join!(fetch(&replica, "/wait"), async {
        tokio::task::yield_now().await;
        replica.close();
        replica.idle().await;
    });
    assert_eq!(answer.unwrap().1, "1");
    assert_eq!(replica.usage().memory_bytes, 0);

    let replica = hostile().await;
    let (answer, ()) = futures::join!(fetch(&replica, "/wait"), async {
        tokio::task::yield_now().await;
        replica.stop();
    });
    assert_eq!(answer, Err(Ended::Stopped));
    assert_eq!(replica.usage().memory_bytes, 0);
}

#[tokio::test]
async fn lines_name_their_request_only_while_there_is_one() {
    let lines = Arc::new(Lines::default());
    let config = ReplicaConfig {
        logs: lines.clone(),
        ..config()
    };
    let replica = http("hostile-p3", config).await;
    fetch(&replica, "/line-and-wait").await.unwrap();
    join_all((0..2).map(|_| fetch(&replica, "/line-and-wait"))).await;
    fetch(&replica, "/line-and-wait").await.unwrap();
    let said: Vec<_> = lines
        .all()
        .into_iter()
        .map(|line| (line.text, line.request_id.map(|id| id.to_string())))
        .collect();
    let line = |text: &str, id: Option<&str>| (text.to_owned(), id.map(str::to_owned));
    let (first, last) = (said[0].1.as_deref(), said[3].1.as_deref());
    assert!(
        first.is_some() && last.is_some() && first != last,
        "{said:?}"
    );
    let expected = [
        line("1 came", first),
        // Both came at once.
        line("2 came", None),
        line("3 came", None),
        line("4 came", last),
    ];
    assert_eq!(said, expected);
}
