//! `hostile`: what a workload notices of the attacks of `workloads/hostile`, in the same runner and in
//! another one: the latency of requests to it, quiet and during each attack; and whether the memory
//! comes back: that of all processes but the NATS server, before each attack and once it has settled after it.
//!
//! An `up` of two hosts; the neighbour is on the first, and an attacker on each. `up` gives each host
//! the cores divided by the hosts: on two cores one runner each.

use std::io::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use wasmorch_tests::hostile::{ATTACKS, SAMPLES, manifest};
use wasmorch_tests::http;
use wasmorch_tests::up::Up;

use crate::cluster::binary;
use crate::{machine, memory};

/// Bad requests under way at once: more than one for each core of a small machine.
const AT_ONCE: usize = 4;
/// An attack that is not ended by another limit is ended by this one, and comes again.
const TIMEOUT: &str = "1s";
/// What each attack is given before the first request is timed.
const WARM: Duration = Duration::from_millis(300);
/// So long memory may take to come back, and how often it is looked at.
const SETTLE: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// What is back within so much of where it was has come back: allocators keep some pages, and the pools of
/// instances keep what they hand out again.
const BACK_MIB: f64 = 4.0;

/// Flags of `hostile`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Requests to the neighbour for each row
    #[arg(long, default_value_t = 300)]
    requests: usize,
}

/// Milliseconds at the 50th and the 99th percentile.
type Figures = (f64, f64);

/// Mebibytes of all processes but the NATS server, before an attack and after it.
#[derive(Clone, Copy)]
struct Memory {
    before: f64,
    after: f64,
}

impl Memory {
    fn is_back(self) -> bool {
        self.after <= self.before + BACK_MIB
    }
}

/// Measures and prints.
pub(crate) fn run(args: &Args) -> Result<()> {
    let mut out = String::new();
    let facts = machine::describe(
        &binary()?,
        &wasmorch_tests::nats::binary(),
        &std::env::temp_dir(),
    );
    for (label, fact) in facts {
        out += &format!("{label:<13}{fact}\n");
    }
    let up = Up::start(2);
    let gateways = up.gateways();
    let [here, there] = gateways.as_slice() else {
        anyhow::bail!("`up` has {} hosts, not two", gateways.len());
    };
    let names = hosts(&up)?;
    up.run(&["cordon", &names[1]]).ok();
    up.deploy("hello-http", "hello", &[]);
    up.run(&["uncordon", &names[1]]).ok();
    for sample in SAMPLES {
        deploy(&up, &names[1], sample, &format!("{sample}-same"))?;
        deploy(&up, &names[0], sample, &format!("{sample}-other"))?;
    }
    let id = up.process.as_ref().context("`up` does not run")?.id();
    let quiet = ask(here, args.requests)?;
    out += &head();
    let start = hosts_memory(id)?;
    let still = Memory {
        before: start,
        after: start,
    };
    out += &row("none", quiet, quiet, still);
    let mut stayed = Vec::new();
    let mut last = start;
    for (sample, path) in ATTACKS {
        let before = hosts_memory(id)?;
        let same = beside(here, here, &format!("{sample}-same"), path, args.requests)?;
        let other = beside(here, there, &format!("{sample}-other"), path, args.requests)?;
        last = settled(id, before)?;
        let memory = Memory {
            before,
            after: last,
        };
        out += &row(&format!("{sample} {path}"), same, other, memory);
        if !memory.is_back() {
            stayed.push(path);
        }
    }
    out += &format!(
        "\nmemory of all but the NATS server: {start:.0} MiB before the first attack, {last:.0} MiB after the last\n"
    );
    out += &match stayed.is_empty() {
        true => format!("after every attack it was back within {BACK_MIB} MiB\n"),
        false => format!(
            "not back within {BACK_MIB} MiB after: {}\n",
            stayed.join(", ")
        ),
    };
    std::io::stdout()
        .write_all(out.as_bytes())
        .context("stdout is closed")
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// Of controller, daemons and runners, but not of the server that they talk to.
fn hosts_memory(up: u32) -> Result<f64> {
    let resident = memory::resident(up)?;
    Ok(mib(resident.total - resident.nats))
}

/// The same once it is back where it was, or the least that it came down to in the time that it has for it.
fn settled(up: u32, before: f64) -> Result<f64> {
    let began = Instant::now();
    let mut after = hosts_memory(up)?;
    while after > before + BACK_MIB && began.elapsed() < SETTLE {
        std::thread::park_timeout(LOOK_EVERY);
        after = after.min(hosts_memory(up)?);
    }
    Ok(after)
}

fn line(cells: [&str; 7]) -> String {
    let [what, a, b, c, d, e, f] = cells;
    format!("{what:<26} {a:>9} {b:>9} {c:>9} {d:>9} {e:>11} {f:>11}\n")
}

fn head() -> String {
    let over = [
        "", "same", "runner", "another", "runner", "memory", "memory",
    ];
    let heads = ["attack", "p50", "p99", "p50", "p99", "before", "after"];
    format!("\n{}{}", line(over), line(heads))
}

fn row(what: &str, same: Figures, other: Figures, memory: Memory) -> String {
    let ms = |value: f64| format!("{value:.1} ms");
    let mib = |value: f64| format!("{value:.1} MiB");
    line([
        what,
        &ms(same.0),
        &ms(same.1),
        &ms(other.0),
        &ms(other.1),
        &mib(memory.before),
        &mib(memory.after),
    ])
}

fn hosts(up: &Up) -> Result<[String; 2]> {
    let listed = up.run(&["hosts", "--json"]).ok().json();
    let items = listed.as_array().context("`hosts --json` is no array")?;
    let mut names: Vec<_> = items
        .iter()
        .filter_map(|host| host["name"].as_str().map(str::to_owned))
        .collect();
    // In the order of `up`: h1 has the first gateway.
    names.sort();
    names.try_into().ok().context("not two hosts")
}

/// Deploys to the only host that is not cordoned.
fn deploy(up: &Up, cordoned: &str, sample: &str, name: &str) -> Result<()> {
    let text = manifest(sample, name, TIMEOUT);
    let file = up.home.write(&format!("{name}.toml"), text);
    let file = file.to_str().context("the temp folder is text")?;
    up.run(&["cordon", cordoned]).ok();
    up.run(&["deploy", file]).ok();
    up.run(&["uncordon", cordoned]).ok();
    Ok(())
}

/// Requests in a row to the neighbour, each over a connection of its own.
fn ask(gateway: &str, requests: usize) -> Result<Figures> {
    let mut times = Vec::with_capacity(requests);
    for _ in 0..requests.max(1) {
        let began = Instant::now();
        let answer = http::get(gateway, "hello.default.localhost", "/")?;
        ensure!(answer.status == 200, "the neighbour: {answer:?}");
        times.push(began.elapsed().as_secs_f64() * 1000.0);
    }
    times.sort_by(f64::total_cmp);
    // Nearest rank: always a value that was measured.
    let at = |percent: usize| times[(times.len() * percent).div_ceil(100).max(1) - 1];
    Ok((at(50), at(99)))
}

/// The same while attacks are under way all the time.
fn beside(
    gateway: &str,
    attacked: &str,
    name: &str,
    path: &str,
    requests: usize,
) -> Result<Figures> {
    let over = AtomicBool::new(false);
    let host = format!("{name}.default.localhost");
    std::thread::scope(|scope| {
        let attackers: Vec<_> = (0..AT_ONCE)
            .map(|_| {
                scope.spawn(|| {
                    let mut sent = 0;
                    while !over.load(Ordering::Relaxed) {
                        // That and why they are ended is what the tests show; a body that breaks
                        // off is no answer.
                        let _ended = http::get(attacked, &host, path);
                        sent += 1;
                    }
                    sent
                })
            })
            .collect();
        std::thread::park_timeout(WARM);
        let found = ask(gateway, requests);
        over.store(true, Ordering::Relaxed);
        let sent: u32 = attackers
            .into_iter()
            .map(|one| one.join().unwrap_or_default())
            .sum();
        ensure!(sent > 0, "no attack was sent");
        found.with_context(|| format!("beside {name}{path}"))
    })
}
