//! What a workload notices of neighbours that spin or allocate without end: the latency of requests
//! to it alone and beside them, on one host.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use wasmorch_tests::{guest, http};

use crate::cluster::Cluster;
use crate::report::{Series, Unit};

/// Requests in a row to the workload that is measured, each over a connection of its own.
const REQUESTS: u32 = 500;
/// Bad requests under way at once: more than one for each core of this machine.
const AT_ONCE: usize = 4;
/// The neighbours' wall clock per request, so that a spinner is ended and comes again.
const TIMEOUT: &str = "1s";

/// Three series on a running cluster: alone, beside a spinner, beside one that eats memory.
pub(crate) fn measure(cluster: &Cluster) -> Result<Vec<Series>> {
    cluster.deploy(&guest("hello-http"), "hello", "Hello from wasmorch")?;
    for sample in ["spinner", "hungry"] {
        let manifest = format!(
            "[workload]\nname = \"{sample}\"\ncomponent = \"{}\"\n\
             [workload.health]\nready = {{ path = \"/ok\" }}\n\
             [workload.resources]\ntimeout = \"{TIMEOUT}\"\n",
            guest(sample).display()
        );
        let file = cluster.home().write(&format!("{sample}.toml"), manifest);
        cluster.run(&["deploy", file.to_str().context("the temp folder is text")?])?;
    }
    let mut found = vec![requests(cluster, "a request to hello-http, alone")?];
    for sample in ["spinner", "hungry"] {
        let what = format!("the same beside {AT_ONCE} requests to {sample} at a time");
        found.push(beside(cluster, sample, &what)?);
    }
    Ok(found)
}

fn requests(cluster: &Cluster, what: &str) -> Result<Series> {
    let mut series = Series::new(what, Unit::Ms);
    for _ in 0..REQUESTS {
        let began = Instant::now();
        let answer = http::get(cluster.gateway(), "hello.default.localhost", "/")?;
        ensure!(answer.status == 200, "{what}: {answer:?}");
        series.push(began.elapsed().as_secs_f64() * 1000.0);
    }
    Ok(series)
}

/// The same while bad requests are under way all the time.
fn beside(cluster: &Cluster, sample: &str, what: &str) -> Result<Series> {
    let over = AtomicBool::new(false);
    let host = format!("{sample}.default.localhost");
    std::thread::scope(|scope| {
        let bad: Vec<_> = (0..AT_ONCE)
            .map(|_| {
                scope.spawn(|| {
                    let mut ended = 0;
                    while !over.load(Ordering::Relaxed) {
                        // Any answer will do: that they are ended is what the tests show.
                        ended += u32::from(http::get(cluster.gateway(), &host, "/").is_ok());
                    }
                    ended
                })
            })
            .collect();
        // They must be at it before the first request is timed.
        std::thread::park_timeout(Duration::from_millis(200));
        let found = requests(cluster, what);
        over.store(true, Ordering::Relaxed);
        let ended: u32 = bad
            .into_iter()
            .map(|one| one.join().unwrap_or_default())
            .sum();
        ensure!(ended > 0, "no request to {sample} was answered");
        found
    })
}
