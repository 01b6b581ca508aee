//! A host dies: how long requests through the gateway of another fail, and how slow they get.
//!
//! One workload with a replica on each of two hosts, asked through a third one's gateway. Killed: its sockets
//! are closed by the kernel. Frozen: they take what is sent and answer nothing, as a machine without power
//! looks from afar until something gives up waiting.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use wasmorch_tests::daemons::Daemons;
use wasmorch_tests::{guest, http};

use crate::report::percentile;

const NAME: &str = "mourned";
const HOST: &str = "mourned.default.localhost";
/// Where its replicas may be; the second one dies.
const FLAGS: [&str; 2] = ["--label", "place=pair"];
const CLIENTS: usize = 8;
/// Between two requests of one client.
const PACE: Duration = Duration::from_millis(5);
/// So many answers of both first.
const BEFORE: usize = 500;
/// After the death it is asked for so long: the planner replaces what was there after 5 s.
const AFTER: Duration = Duration::from_secs(8);
const LOOK_EVERY: Duration = Duration::from_millis(50);
const LOOK_MAX: Duration = Duration::from_secs(60);

/// How a host dies.
#[derive(Clone, Copy, PartialEq, Eq)]
enum How {
    Killed,
    Frozen,
}

impl How {
    fn name(self) -> &'static str {
        match self {
            Self::Killed => "killed",
            Self::Frozen => "frozen",
        }
    }
}

/// What one way to die does to requests.
pub(super) struct Deaths {
    how: How,
    /// From each death to the end of the last request that failed, in ms; 0 when none did.
    last_failed: Vec<f64>,
    /// The slowest answer of each, in ms.
    slowest: Vec<f64>,
    failed: usize,
    asked: usize,
}

impl Deaths {
    fn of(how: How) -> Self {
        Self {
            how,
            last_failed: Vec::new(),
            slowest: Vec::new(),
            failed: 0,
            asked: 0,
        }
    }

    /// For people; `None` when no host has died.
    pub(super) fn line(&self) -> Option<String> {
        let [last, most] = [50, 100].map(|percent| percentile(&self.last_failed, percent));
        let [slow, slowest] = [50, 100].map(|percent| percentile(&self.slowest, percent));
        (self.asked > 0).then(|| {
            format!(
                "a host is {}, of {} times: last failed request median {last:.0} ms after, at most {most:.0} ms; \
                 {} of {}\n  failed; slowest answer median {slow:.0} ms, at most {slowest:.0} ms",
                self.how.name(),
                self.slowest.len(),
                self.failed,
                self.asked
            )
        })
    }

    pub(super) fn json(&self) -> Value {
        json!({
            "how": self.how.name(), "deaths": self.last_failed.len(), "asked": self.asked, "failed": self.failed,
            "last_failed_ms": self.last_failed, "slowest_ms": self.slowest,
        })
    }
}

/// Hosts `first` and `first + 1` are started for it. Times are sorted.
pub(super) fn measure(
    cluster: &mut Daemons,
    gateway: &str,
    first: usize,
    turns: usize,
) -> Result<[Deaths; 2]> {
    let doomed = first + 1;
    cluster.start_host_with(first, &FLAGS);
    cluster.start_host_with(doomed, &FLAGS);
    cluster.wait_for_hosts(doomed + 1);
    let text = format!(
        "[workload]\nname = \"{NAME}\"\ncomponent = \"{}\"\nreplicas = 2\n\
         constraints = [{{ label = \"place\", eq = \"pair\" }}, {{ distinct = \"host\" }}]\n",
        guest("hello-http").display()
    );
    let file = cluster.home.write("mourned.toml", text);
    let file = file.to_str().context("the temp folder is text")?.to_owned();
    cluster.run(&["deploy", &file]).ok();
    let mut both = [How::Killed, How::Frozen].map(Deaths::of);
    for _ in 0..turns {
        for deaths in &mut both {
            until_ready(cluster, 2)?;
            one(cluster, gateway, doomed, deaths)?;
            cluster.start_host_with(doomed, &FLAGS);
        }
    }
    cluster.run(&["rm", NAME]).ok();
    for deaths in &mut both {
        deaths.last_failed.sort_by(f64::total_cmp);
        deaths.slowest.sort_by(f64::total_cmp);
    }
    Ok(both)
}

/// So many of its replicas are ready, each on a host of its own.
fn until_ready(cluster: &Daemons, count: u64) -> Result<()> {
    let began = Instant::now();
    loop {
        let status = cluster.run(&["status", NAME, "--json"]).ok().json();
        if status["ready"] == count {
            return Ok(());
        }
        ensure!(
            began.elapsed() < LOOK_MAX,
            "{NAME} is not ready on {count} hosts: {status}"
        );
        std::thread::park_timeout(LOOK_EVERY);
    }
}

/// When a request began and ended, and whether it was answered.
type Asked = (Instant, Instant, bool);

fn one(cluster: &mut Daemons, gateway: &str, doomed: usize, deaths: &mut Deaths) -> Result<()> {
    let host = cluster.hosts[doomed].take().context("it runs")?;
    let (asked, enough) = (Mutex::new(Vec::<Asked>::new()), AtomicBool::new(false));
    let (died, frozen) = std::thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                while !enough.load(Ordering::Relaxed) {
                    let began = Instant::now();
                    let answer = http::get(gateway, HOST, "/");
                    let good = answer.is_ok_and(|answer| answer.status == 200);
                    let one = (began, Instant::now(), good);
                    if let Ok(mut asked) = asked.lock() {
                        asked.push(one);
                    }
                    std::thread::park_timeout(PACE);
                }
            });
        }
        let count = || asked.lock().map_or(0, |asked| asked.len());
        while count() < BEFORE {
            std::thread::park_timeout(PACE);
        }
        let died = Instant::now();
        // One that is frozen is kept, for to drop it kills it.
        let frozen = match deaths.how {
            How::Killed => {
                host.kill();
                None
            }
            How::Frozen => {
                host.freeze();
                Some(host)
            }
        };
        while died.elapsed() < AFTER {
            std::thread::park_timeout(AFTER.saturating_sub(died.elapsed()));
        }
        enough.store(true, Ordering::Relaxed);
        (died, frozen)
    });
    drop(frozen);
    let asked = asked.into_inner().unwrap_or_default();
    let ms = |time: Duration| time.as_secs_f64() * 1000.0;
    let after: Vec<Asked> = asked.into_iter().filter(|one| one.1 > died).collect();
    let failed = after.iter().filter(|(_, _, good)| !good);
    let last = failed.clone().map(|(_, ended, _)| *ended).max();
    deaths
        .last_failed
        .push(last.map_or(0.0, |last| ms(last.saturating_duration_since(died))));
    let good = after.iter().filter(|(_, _, good)| *good);
    let slowest = good.map(|(began, ended, _)| *ended - *began).max();
    deaths.slowest.push(slowest.map_or(0.0, ms));
    deaths.failed += failed.count();
    deaths.asked += after.len();
    until_ready(cluster, 1)
}
