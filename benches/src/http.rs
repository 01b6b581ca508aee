//! `http`: requests a second, their latency and what they cost, of the same component behind
//! `wasmtime serve`, `wasmorch run` and wasmorch's gateway, and of bare hyper, in one run with one
//! load generator.
//!
//! The generator runs on one thread and keeps so many connections busy, each with one request at a
//! time. Every answer is checked: status and length. All servers of a case stand side by side, and
//! are measured by turns: a machine that gets slower gets slower for all.

mod bare;
mod load;

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use wasmorch_tests::process::Process;
use wasmorch_tests::up::Home;

use crate::cluster::{Cluster, binary};
use crate::{deploy, machine, memory};
use load::{Load, Measured};

pub(crate) use bare::serve as serve_bare;

/// Bytes of the echoed body.
const ECHO_BYTES: usize = 64 << 10;
/// A server that does not answer in this time has failed.
const READY_MAX: Duration = Duration::from_secs(120);
/// Requests that one instance may serve where it is used again.
const REUSE: u32 = 1000;

/// Flags of `http`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Seconds of each measurement; a fifth of it comes before, unmeasured
    #[arg(long, default_value_t = 3)]
    seconds: u64,
    /// Connections kept busy
    #[arg(long, default_value_t = 32)]
    connections: usize,
    /// How often each server is measured; the table has the medians
    #[arg(long, default_value_t = 3)]
    turns: usize,
    /// Only cases whose name contains this
    #[arg(long, default_value = "")]
    only: String,
}

/// What is served, and whether by instances that are used again.
struct Case {
    name: &'static str,
    component: PathBuf,
    requests_per_instance: u32,
    echoes: bool,
}

/// One server under load.
pub(crate) struct Server {
    name: &'static str,
    pub(crate) address: SocketAddr,
    host: &'static str,
    pid: u32,
    /// Ends it when dropped.
    keep: Keep,
}

/// What keeps a server running.
enum Keep {
    Cluster(Box<Cluster>),
    Process { _process: Process, _home: Home },
}

fn cases() -> Vec<Case> {
    let hello = wasmorch_tests::guest("hello-http");
    let hello_p3 = wasmorch_tests::guest("hello-http-p3");
    let mut cases = Vec::new();
    let mut add = |fresh, reused, component: PathBuf, echoes| {
        for (name, requests_per_instance) in [(fresh, 1), (reused, REUSE)] {
            cases.push(Case {
                name,
                component: component.clone(),
                requests_per_instance,
                echoes,
            });
        }
    };
    add("0.2 fresh", "0.2 reused", hello, true);
    add("0.3 fresh", "0.3 reused", hello_p3, true);
    if let Some(large) = deploy::large_component() {
        add("large fresh", "large reused", large, false);
    }
    cases
}

/// Measures and prints.
pub(crate) fn run(args: &Args) -> Result<()> {
    let wasmorch = binary()?;
    let nats_server = wasmorch_tests::nats::binary();
    let mut out = String::new();
    for (label, fact) in machine::describe(&wasmorch, &nats_server, &std::env::temp_dir()) {
        out += &format!("{label:<13}{fact}\n");
    }
    out += &format!(
        "\n{:<13} {:<10} {:<15} {:>10} {:>6} {:>9} {:>9} {:>11} {:>8}\n",
        "case", "request", "server", "requests/s", "peer", "p50", "p99", "cpu/request", "memory"
    );
    say(&mut out)?;
    if args.only.is_empty() {
        measure(args, "no guest", &[bare_hyper()?], true)?;
    }
    let mut has_peer = true;
    for case in cases().iter().filter(|case| case.name.contains(&args.only)) {
        let is_p3 = case.name.starts_with("0.3");
        let peer = wasmtime_serve("wasmtime serve", case, if is_p3 { "16" } else { "1" })?;
        has_peer = peer.is_some();
        let mut servers: Vec<_> = peer.into_iter().collect();
        if case.name == "0.3 reused" {
            servers.extend(wasmtime_serve("wasmtime, 1", case, "1")?);
        }
        if case.requests_per_instance == 1 {
            servers.push(wasmorch_run(&case.component)?);
        }
        servers.push(wasmorch_up("wasmorch up", case, 1)?);
        if case.name == "0.3 reused" {
            servers.push(wasmorch_up("wasmorch, 16", case, 16)?);
        }
        measure(args, case.name, &servers, case.echoes)?;
        for server in servers {
            if let Keep::Cluster(mut cluster) = server.keep {
                cluster.stop()?;
            }
        }
    }
    out.push('\n');
    if !has_peer {
        out += "note: no wasmtime: name one with WASMORCH_BENCH_WASMTIME, or `cargo install wasmtime-cli@48.0.8`\n";
    }
    out += "note: peer is the part of the first server's requests/s; medians of the turns; fresh: an instance for each request; reused: one for 1000; wasmtime serve takes up to 16 requests of 0.3 at once into one, wasmorch one at a time unless told otherwise\n";
    out += "note: the load generator has a thread of its own on the same machine; memory is Pss after the load, of wasmorch up with nats-server and controller\n";
    say(&mut out)
}

/// All servers of a case, by turns.
fn measure(args: &Args, case: &str, servers: &[Server], echoes: bool) -> Result<()> {
    let requests: &[(&str, usize)] = match echoes {
        true => &[("hello", 0), ("echo 64KB", ECHO_BYTES)],
        false => &[("hello", 0)],
    };
    for (what, body) in requests {
        let mut measured: Vec<Vec<Measured>> = servers.iter().map(|_| Vec::new()).collect();
        for turn in 0..args.turns.max(1) {
            for at in 0..servers.len() {
                let at = (at + turn) % servers.len();
                let (server, measured) = (&servers[at], &mut measured[at]);
                let load = Load {
                    address: server.address,
                    host: server.host,
                    path: if *body == 0 { "/" } else { "/echo" },
                    body: *body,
                    connections: args.connections,
                };
                let one = load.run(Duration::from_secs(args.seconds), server.pid);
                measured.push(one.with_context(|| format!("{case}: {what} by {}", server.name))?);
            }
        }
        let mut first = None;
        let mut out = String::new();
        for (server, measured) in servers.iter().zip(&measured) {
            let median = Measured::median(measured);
            let part = median.per_second / *first.get_or_insert(median.per_second);
            let held = memory::resident(server.pid)?.total;
            out += &row(case, what, server.name, &median, part, held);
        }
        say(&mut out)?;
    }
    Ok(())
}

/// Prints as it comes: a whole run takes minutes.
fn say(out: &mut String) -> Result<()> {
    let mut stdout = std::io::stdout();
    stdout.write_all(std::mem::take(out).as_bytes())?;
    Ok(stdout.flush()?)
}

fn row(case: &str, what: &str, server: &str, median: &Measured, part: f64, held: u64) -> String {
    let millis = |time: Duration| format!("{:.2} ms", time.as_secs_f64() * 1000.0);
    format!(
        "{case:<13} {what:<10} {server:<15} {:>10.0} {part:>6.2} {:>9} {:>9} {:>8.0} µs {:>4.0} MiB\n",
        median.per_second,
        millis(median.p50),
        millis(median.p99),
        median.cpu_micros,
        held as f64 / f64::from(1 << 20),
    )
}

/// Starts a program that prints where it listens, and waits until it answers.
fn program(
    name: &'static str,
    mut command: Command,
    address: impl Fn(&str) -> Option<SocketAddr>,
) -> Result<Server> {
    let home = Home::new();
    command.stdin(Stdio::null());
    let process = Process::start(command, home.path(), "server");
    let until = std::time::Instant::now() + READY_MAX;
    let address = loop {
        let said = process.stdout() + &process.stderr();
        if let Some(address) = said.lines().find_map(&address) {
            break address;
        }
        ensure!(
            std::time::Instant::now() < until,
            "{name} does not tell where it listens: {said}"
        );
        std::thread::park_timeout(Duration::from_millis(10));
    };
    Ok(Server {
        name,
        address,
        host: "localhost",
        pid: process.id(),
        keep: Keep::Process {
            _process: process,
            _home: home,
        },
    })
}

/// The first `http://ADDRESS` of a line.
fn listens(line: &str) -> Option<SocketAddr> {
    let (_, rest) = line.split_once("http://")?;
    rest.split(['/', ' ']).next()?.parse().ok()
}

fn bare_hyper() -> Result<Server> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("serve-bare");
    program("bare hyper", command, listens)
}

/// `None`: there is none. `at_once`: how many requests of 0.3 one instance may have in hand.
fn wasmtime_serve(name: &'static str, case: &Case, at_once: &str) -> Result<Option<Server>> {
    let named = std::env::var_os("WASMORCH_BENCH_WASMTIME").map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|folder| folder.join("wasmtime"));
    let Some(peer) = named.into_iter().chain(found).find(|path| path.is_file()) else {
        return Ok(None);
    };
    let mut command = Command::new(peer);
    command
        .args([
            "serve",
            "--addr",
            "127.0.0.1:0",
            "-Scli",
            "-Wcomponent-model-async",
        ])
        .args(["--max-instance-concurrent-reuse-count", at_once])
        .arg("--max-instance-reuse-count")
        .arg(case.requests_per_instance.to_string())
        .arg(&case.component);
    program(name, command, listens).map(Some)
}

/// The runtime with no gateway before it, one instance for each request.
pub(crate) fn wasmorch_run(component: &Path) -> Result<Server> {
    let mut command = Command::new(binary()?);
    command
        .args(["run", "--http", "127.0.0.1:0"])
        .arg(component);
    program("wasmorch run", command, listens)
}

fn wasmorch_up(name: &'static str, case: &Case, at_once: u32) -> Result<Server> {
    let mut cluster = Cluster::new(&binary()?);
    cluster.up()?;
    let manifest = format!(
        // All of the machine: by default a replica has one core.
        "[workload]\nname = \"hello\"\ncomponent = \"{}\"\n\
         [workload.resources]\ncpu = \"64000m\"\nmemory = \"1GiB\"\nconcurrency = 1000\n\
         [workload.instance]\nreuse = {}\nconcurrency = {at_once}\n",
        case.component.display(),
        case.requests_per_instance,
    );
    let file = cluster.home().write("hello.toml", manifest);
    cluster.run(&["deploy", file.to_str().context("the temp folder is text")?])?;
    let address = cluster.gateway().parse().context("the gateway's address")?;
    Ok(Server {
        name,
        address,
        host: "hello.default.localhost",
        pid: cluster.id()?,
        keep: Keep::Cluster(Box::new(cluster)),
    })
}
