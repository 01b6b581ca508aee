//! `http`: requests a second, their latency and what they cost, of the same component behind
//! wasmorch's gateway and behind `wasmtime serve`, and of bare hyper, in one run with one load
//! generator.
//!
//! The generator runs on one thread and keeps so many connections busy, each with one request at a
//! time. Every answer is checked: status and length.

mod bare;
mod load;

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use wasmorch_tests::process::Process;
use wasmorch_tests::up::Home;

use crate::cluster::{Cluster, binary};
use crate::{machine, memory};
use load::{Load, Measured};

pub(crate) use bare::serve as serve_bare;

/// Bytes of the echoed body.
const ECHO_BYTES: usize = 64 << 10;
/// A server that does not answer in this time has failed.
const READY_MAX: Duration = Duration::from_secs(30);

/// Flags of `http`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Seconds of each measurement; a fifth of it comes before, unmeasured
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Connections kept busy
    #[arg(long, default_value_t = 32)]
    connections: usize,
}

/// One server under load.
struct Server {
    name: String,
    address: SocketAddr,
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

/// Measures and prints.
pub(crate) fn run(args: &Args) -> Result<()> {
    let wasmorch = binary()?;
    let nats_server = wasmorch_tests::nats::binary();
    let mut out = String::new();
    for (label, fact) in machine::describe(&wasmorch, &nats_server, &std::env::temp_dir()) {
        out += &format!("{label:<13}{fact}\n");
    }
    out += &format!(
        "\n{:<28} {:<10} {:>10} {:>9} {:>9} {:>12} {:>8}\n",
        "server", "request", "requests/s", "p50", "p99", "cpu/request", "memory"
    );
    let mut notes = Vec::new();
    let starts: [fn() -> Result<Option<Server>>; 4] =
        [bare_hyper, wasmtime_serve, wasmorch_run, wasmorch_up];
    for start in starts {
        let Some(server) = start()? else {
            notes.push(
                "no wasmtime: name one with WASMORCH_BENCH_WASMTIME, or `cargo install wasmtime-cli@48.0.8`",
            );
            continue;
        };
        for (what, body) in [("hello", 0), ("echo 64KB", ECHO_BYTES)] {
            let load = Load {
                address: server.address,
                host: server.host,
                path: if body == 0 { "/" } else { "/echo" },
                body,
                connections: args.connections,
            };
            let measured = load
                .run(Duration::from_secs(args.seconds), server.pid)
                .with_context(|| format!("{what} by {}", server.name))?;
            let held = memory::resident(server.pid)?.total;
            out += &row(&server.name, what, &measured, held);
        }
        if let Keep::Cluster(mut cluster) = server.keep {
            cluster.stop()?;
        }
    }
    out.push('\n');
    for note in notes {
        out += &format!("note: {note}\n");
    }
    out += "note: the load generator has a thread of its own on the same machine; memory is Pss after the load, of wasmorch up with nats-server and controller\n";
    Ok(std::io::stdout().write_all(out.as_bytes())?)
}

fn row(server: &str, what: &str, measured: &Measured, held: u64) -> String {
    let micros = |time: Duration| format!("{:.2} ms", time.as_secs_f64() * 1000.0);
    format!(
        "{server:<28} {what:<10} {:>10.0} {:>9} {:>9} {:>9.0} µs {:>5.0} MiB\n",
        measured.per_second,
        micros(measured.p50),
        micros(measured.p99),
        measured.cpu_micros,
        held as f64 / f64::from(1 << 20),
    )
}

/// Starts a program that prints where it listens, and waits until it answers.
fn program(
    name: &str,
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
        name: name.to_owned(),
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

fn bare_hyper() -> Result<Option<Server>> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("serve-bare");
    program("bare hyper", command, listens).map(Some)
}

fn wasmtime_serve() -> Result<Option<Server>> {
    let named = std::env::var_os("WASMORCH_BENCH_WASMTIME").map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|folder| folder.join("wasmtime"));
    let Some(peer) = named.into_iter().chain(found).find(|path| path.is_file()) else {
        return Ok(None);
    };
    let mut command = Command::new(peer);
    command
        .args(["serve", "--addr", "127.0.0.1:0", "-Scli"])
        .arg(wasmorch_tests::guest("hello-http"));
    program("wasmtime serve", command, listens).map(Some)
}

fn wasmorch_run() -> Result<Option<Server>> {
    let mut command = Command::new(binary()?);
    command
        .args(["run", "--http", "127.0.0.1:0"])
        .arg(wasmorch_tests::guest("hello-http"));
    program("wasmorch run --http", command, listens).map(Some)
}

fn wasmorch_up() -> Result<Option<Server>> {
    let mut cluster = Cluster::new(&binary()?);
    cluster.up()?;
    let manifest = format!(
        // All of the machine: by default a replica has one core.
        "[workload]\nname = \"hello\"\ncomponent = \"{}\"\n\
         [workload.resources]\ncpu = \"64000m\"\nmemory = \"1GiB\"\nconcurrency = 1000\n",
        wasmorch_tests::guest("hello-http").display()
    );
    let file = cluster.home().write("hello.toml", manifest);
    cluster.run(&["deploy", file.to_str().context("the temp folder is text")?])?;
    let address = cluster.gateway().parse().context("the gateway's address")?;
    Ok(Some(Server {
        name: "wasmorch up, gateway".to_owned(),
        address,
        host: "hello.default.localhost",
        pid: cluster.id()?,
        keep: Keep::Cluster(Box::new(cluster)),
    }))
}
