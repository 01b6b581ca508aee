//! Limits that hold: memory, time, concurrency, bodies; and that nothing is left behind.

use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use http_body_util::BodyExt as _;
use wasmorch_runtime::{
    Account, BodySide, Ended, HttpReplica, Ledger, Limits, PrepareError, ReplicaConfig,
};

use crate::support::{artifact, eventually, fetch, full, get, http, runtime};

fn limited(limits: Limits) -> ReplicaConfig {
    ReplicaConfig {
        limits,
        ..ReplicaConfig::new("test")
    }
}

fn within(timeout: Duration) -> ReplicaConfig {
    limited(Limits {
        timeout: Some(timeout),
        ..Limits::default()
    })
}

#[tokio::test]
async fn hungry_ends_at_its_memory_limit() {
    let replica = http("hungry", limited(Limits::default())).await;
    let ended = fetch(&replica, "/").await.unwrap_err();
    let Ended::MemoryLimit {
        limit_bytes,
        wanted_bytes,
    } = ended
    else {
        panic!("{ended:?}")
    };
    assert_eq!(limit_bytes, 64 << 20);
    assert!(wanted_bytes > limit_bytes);
    let usage = replica.usage();
    assert_eq!((usage.memory_bytes, usage.failed_total), (0, 1));
    assert!(usage.memory_bytes_peak <= limit_bytes);
    assert_eq!(fetch(&replica, "/ok").await.unwrap().0, 200);
}

#[tokio::test]
async fn memory_is_summed_over_instances() {
    let memory_bytes = 16 << 20;
    let replica = Arc::new(
        http(
            "hello-http",
            limited(Limits {
                memory_bytes,
                ..Limits::default()
            }),
        )
        .await,
    );
    assert_eq!(fetch(&replica, "/grow?8").await.unwrap().0, 200);
    // Eight instances that sleep hold more than half of it.
    let sleeping: Vec<_> = (0..8)
        .map(|_| {
            let replica = replica.clone();
            tokio::spawn(async move { fetch(&replica, "/sleep?400").await })
        })
        .collect();
    eventually("they run", || replica.usage().in_flight == 8).await;
    let ended = fetch(&replica, "/grow?8").await.unwrap_err();
    assert!(matches!(ended, Ended::MemoryLimit { .. }), "{ended:?}");
    for sleeper in sleeping {
        assert_eq!(sleeper.await.unwrap().unwrap().0, 200);
    }
    assert_eq!(fetch(&replica, "/grow?8").await.unwrap().0, 200);
}

#[tokio::test]
async fn more_instances_than_fit_wait_instead_of_failing() {
    let memory_bytes = 4 << 20;
    let replica = Arc::new(
        http(
            "hello-http",
            limited(Limits {
                memory_bytes,
                ..Limits::default()
            }),
        )
        .await,
    );
    let all = (0..20).map(|_| fetch(&replica, "/sleep?10"));
    for answered in futures::future::join_all(all).await {
        assert_eq!(answered.unwrap().0, 200);
    }
    assert!(replica.usage().memory_bytes_peak <= memory_bytes);
}

#[tokio::test]
async fn too_little_memory_for_one_instance_is_refused() {
    let config = limited(Limits {
        memory_bytes: 64 << 10,
        ..Limits::default()
    });
    let hello = artifact("hello-http").await;
    let refused = HttpReplica::prepare(&runtime(), &hello, config)
        .err()
        .unwrap();
    assert!(matches!(refused, PrepareError::Memory { .. }), "{refused}");
}

/// On one thread: the spinner and its neighbour have to share it.
#[tokio::test]
async fn spinner_times_out_while_a_neighbour_answers() {
    let spinner = Arc::new(http("spinner", within(Duration::from_millis(600))).await);
    let hello = http("hello-http", limited(Limits::default())).await;
    let spinning = tokio::spawn({
        let spinner = spinner.clone();
        async move { fetch(&spinner, "/").await }
    });
    eventually("it spins", || {
        spinner.usage().cpu_time > Duration::from_millis(20)
    })
    .await;
    let mut answered = 0;
    while !spinning.is_finished() {
        let started = Instant::now();
        assert_eq!(fetch(&hello, "/").await.unwrap().0, 200);
        assert!(
            started.elapsed() < Duration::from_millis(250),
            "{:?}",
            started.elapsed()
        );
        answered += 1;
        // Requests come over sockets, so whoever serves them waits now and then.
        tokio::task::yield_now().await;
    }
    assert!(answered >= 3, "{answered}");
    let limit = Duration::from_millis(600);
    assert_eq!(
        spinning.await.unwrap(),
        Err(Ended::Timeout {
            limit,
            throttled: Duration::ZERO
        })
    );
    assert_eq!(spinner.usage().memory_bytes, 0);
    assert!(spinner.usage().cpu_time > Duration::from_millis(100));
}

#[tokio::test]
async fn a_guest_that_waits_times_out() {
    for name in ["hello-http", "hello-http-p3"] {
        let replica = http(name, within(Duration::from_millis(50))).await;
        let ended = fetch(&replica, "/sleep?60000").await.unwrap_err();
        assert_eq!(
            ended,
            Ended::Timeout {
                limit: Duration::from_millis(50),
                throttled: Duration::ZERO,
            },
            "{name}"
        );
        assert_eq!(replica.usage().memory_bytes, 0);
    }
}

#[tokio::test]
async fn the_timeout_covers_the_body() {
    let replica = http("hello-http", within(Duration::from_millis(200))).await;
    // More than the pipe between guest and client holds, and no one reads.
    let response = replica.handle(get("/bytes?10000000")).await.unwrap();
    assert_eq!(response.status(), 200);
    eventually("the guest is ended", || replica.usage().memory_bytes == 0).await;
    let error = response.into_body().collect().await.unwrap_err();
    let ended = error.downcast_ref::<Ended>().unwrap();
    assert!(matches!(ended, Ended::Timeout { .. }), "{ended:?}");
}

#[tokio::test]
async fn a_crash_is_a_trap_and_no_more() {
    let replica = http("crasher", limited(Limits::default())).await;
    let ended = fetch(&replica, "/").await.unwrap_err();
    let Ended::Trap { message, backtrace } = ended else {
        panic!("{ended:?}")
    };
    assert!(message.contains("unreachable"), "{message}");
    assert!(backtrace.contains("wasm function"), "{backtrace}");
    assert_eq!(fetch(&replica, "/ok").await.unwrap(), (200, "ok\n".into()));
}

#[tokio::test]
async fn beyond_seats_and_queue_it_is_busy() {
    let config = limited(Limits {
        concurrency: 1,
        queue: 1,
        ..Limits::default()
    });
    let replica = http("hello-http", config).await;
    let mut first = std::pin::pin!(fetch(&replica, "/sleep?100"));
    let mut second = std::pin::pin!(fetch(&replica, "/"));
    futures::future::poll_fn(|cx| {
        assert!(first.poll_unpin(cx).is_pending() && second.poll_unpin(cx).is_pending());
        Poll::Ready(())
    })
    .await;
    assert_eq!((replica.usage().in_flight, replica.usage().queued), (1, 1));
    let ended = fetch(&replica, "/").await.unwrap_err();
    assert!(
        matches!(
            ended,
            Ended::Busy {
                concurrency: 1,
                queue: 1,
                ..
            }
        ),
        "{ended:?}"
    );
    let (first, second) = futures::join!(first, second);
    assert_eq!((first.unwrap().0, second.unwrap().0), (200, 200));
    let usage = replica.usage();
    assert_eq!(
        (usage.refused_total, usage.started_total, usage.queued),
        (1, 2, 0)
    );
}

#[tokio::test]
async fn dropping_a_request_drops_its_store_at_any_await_point() {
    // One that spins is ready to be polled again at every tick: a few of its points stand for all.
    for (path, step) in [("/sleep?50", 1), ("/bytes?100000", 1), ("/spin", 20)] {
        let replica = http("hello-http", limited(Limits::default())).await;
        for polls in (0..200).step_by(step) {
            let mut request = Box::pin(replica.handle(get(path)));
            for _ in 0..polls {
                if futures::poll!(request.as_mut()).is_ready() {
                    break;
                }
                tokio::task::yield_now().await;
            }
            drop(request);
            eventually("the memory is back", || replica.usage().memory_bytes == 0).await;
            assert_eq!(replica.usage().in_flight, 0, "{path} after {polls} polls");
        }
    }
}

#[tokio::test]
async fn dropping_the_body_drops_the_store() {
    let replica = http("hello-http", limited(Limits::default())).await;
    let response = replica.handle(get("/bytes?10000000")).await.unwrap();
    assert!(replica.usage().memory_bytes > 0);
    drop(response);
    eventually("the memory is back", || replica.usage().memory_bytes == 0).await;
}

#[tokio::test]
async fn bodies_have_a_limit() {
    let config = limited(Limits {
        body_bytes: 1000,
        ..Limits::default()
    });
    let replica = http("hello-http", config).await;
    let post = |length: usize, declared: bool| {
        let mut request = http::Request::post("/echo").header("host", "test");
        if declared {
            request = request.header("content-length", length);
        }
        replica.handle(request.body(full(vec![b'x'; length])).unwrap())
    };
    assert_eq!(post(1000, true).await.unwrap().status(), 200);
    let refused = Ended::BodyTooLarge {
        side: BodySide::Request,
        limit_bytes: 1000,
    };
    assert_eq!(post(1001, true).await.err().unwrap(), refused);
    // Undeclared: the guest has set its head before it meets the end, or not.
    let ended = match post(1001, false).await {
        Ok(response) => {
            let error = response.into_body().collect().await.unwrap_err();
            error.downcast_ref::<Ended>().unwrap().clone()
        }
        Err(ended) => ended,
    };
    assert_eq!(ended, refused);
    let refused = Ended::BodyTooLarge {
        side: BodySide::Response,
        limit_bytes: 1000,
    };
    assert_eq!(fetch(&replica, "/bytes?1001").await, Err(refused));
    eventually("nothing is left", || replica.usage().memory_bytes == 0).await;
}

#[tokio::test]
async fn a_share_of_the_processor_is_enforced() {
    let limit = Duration::from_secs(1);
    let limits = Limits {
        timeout: Some(limit),
        cpu_millis: Some(200),
        ..Limits::default()
    };
    let spinner = http("spinner", limited(limits)).await;
    let ended = fetch(&spinner, "/").await.unwrap_err();
    assert!(matches!(ended, Ended::Timeout { .. }), "{ended}");
    // What would have helped is the other limit.
    assert!(ended.to_string().contains("resources.cpu"), "{ended}");
    // A fifth of ten windows; what a busy machine leaves of it may be less.
    let used = spinner.usage().cpu_time;
    assert!(used < Duration::from_millis(400), "{used:?}");
    assert!(used > Duration::from_millis(20), "{used:?}");
}

/// Two shares of one replica, as two runners have them.
async fn shares(name: &str, limits: Limits) -> [Arc<HttpReplica>; 2] {
    let (ledger, _file) = Ledger::create(2, 2).unwrap();
    let share = |column| ReplicaConfig {
        account: Account::new(ledger.clone(), column, 1),
        ..limited(limits.clone())
    };
    let (here, there) = (share(0), share(1));
    [
        Arc::new(http(name, here).await),
        Arc::new(http(name, there).await),
    ]
}

#[tokio::test]
async fn seats_and_the_queue_are_shared_by_runners() {
    let limits = Limits {
        concurrency: 1,
        queue: 1,
        ..Limits::default()
    };
    let [here, there] = shares("hello-http", limits).await;
    let ask = |replica: &Arc<HttpReplica>, path: &'static str| {
        let replica = replica.clone();
        tokio::spawn(async move { fetch(&replica, path).await })
    };
    let slow = ask(&here, "/sleep?400");
    eventually("it runs", || here.usage().in_flight == 1).await;
    assert!(!there.has_room(), "the seat is taken elsewhere");
    let waiting = ask(&there, "/");
    eventually("it waits", || there.usage().queued == 1).await;
    let busy = fetch(&here, "/").await;
    assert!(matches!(busy, Err(Ended::Busy { .. })), "{busy:?}");
    assert_eq!(slow.await.unwrap().unwrap().0, 200);
    assert_eq!(waiting.await.unwrap().unwrap().0, 200);
    assert_eq!((here.usage().in_flight, there.usage().queued), (0, 0));
}

#[tokio::test]
async fn memory_is_shared_by_runners() {
    let [here, there] = shares("hungry", Limits::default()).await;
    let (one, other) = tokio::join!(fetch(&here, "/"), fetch(&there, "/"));
    for ended in [one, other] {
        let is_limit =
            matches!(ended, Err(Ended::MemoryLimit { limit_bytes, .. }) if limit_bytes == 64 << 20);
        assert!(is_limit, "{ended:?}");
    }
    let peaks = here.usage().memory_bytes_peak + there.usage().memory_bytes_peak;
    // Both grow at the same time on one thread, so neither had it all to itself.
    assert!(peaks < 2 * (64 << 20), "{peaks}");
    assert_eq!(here.usage().memory_bytes + there.usage().memory_bytes, 0);
}
