//! `density`: how much one host holds. Many replicas of many components, all ready; and more workloads than
//! are loaded at a time, of which any answers.
//!
//! Real: the host with its two runners, the controller, nats-server, each component a file of its own with a
//! digest of its own. Not measured: compiling. One sample is compiled once, and its code is given to the host
//! under every digest (`--compiled`), which copies it: nothing of the files is shared.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use wasmorch_api::Digest;
use wasmorch_tests::daemons::{Daemons, says_hello};
use wasmorch_tests::nats::{Nats, binary as nats_server};
use wasmorch_tests::up::Home;
use wasmorch_tests::{guest, wasmorch};

use crate::guest::unseen;
use crate::report::percentile;
use crate::{machine, memory};

/// Workloads in one manifest.
const AT_ONCE: usize = 250;
/// Whatever takes longer than this has failed.
const PATIENCE: Duration = Duration::from_secs(900);
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// So long the host is watched while nobody asks.
const AT_REST: Duration = Duration::from_secs(90);
const MIB: f64 = 1024.0 * 1024.0;

/// Flags of `density`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Components held ready
    #[arg(long, default_value_t = 1_000)]
    components: usize,
    /// Replicas of each
    #[arg(long, default_value_t = 10)]
    replicas: usize,
    /// Workloads of a component each, of which any answers
    #[arg(long, default_value_t = 10_000)]
    workloads: usize,
    /// How many of them are asked, one after the other
    #[arg(long, default_value_t = 2_000)]
    asks: usize,
    /// Only these parts
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Part::Held, Part::Demand])]
    only: Vec<Part>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Parts of `density`.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// Replicas held ready
    Held,
    /// Workloads loaded on demand
    Demand,
}

/// A figure, and what it should stay under.
struct Row {
    what: String,
    value: f64,
    unit: &'static str,
    aim: Option<f64>,
}

impl Row {
    fn new(what: impl Into<String>, value: f64, unit: &'static str) -> Self {
        Self {
            what: what.into(),
            value,
            unit,
            aim: None,
        }
    }

    fn aim(self, aim: f64) -> Self {
        Self {
            aim: Some(aim),
            ..self
        }
    }
}

/// Measures and prints.
pub(crate) fn run(args: &Args) -> Result<()> {
    let machine = machine::describe(&wasmorch(), &nats_server(), &std::env::temp_dir());
    let mut rows = Vec::new();
    for part in &args.only {
        rows.extend(match part {
            Part::Held => held(args).context("replicas held ready")?,
            Part::Demand => demand(args).context("workloads on demand")?,
        });
    }
    let text = match args.json {
        true => format!("{:#}\n", as_json(&machine, &rows)),
        false => table(&machine, &rows),
    };
    Ok(std::io::stdout().write_all(text.as_bytes())?)
}

fn held(args: &Args) -> Result<Vec<Row>> {
    let all = args.components * args.replicas;
    let dense = Dense::start(args.components)?;
    let idle = dense.memory()?;
    let took = dense.deploy(args.components, args.replicas)?;
    let names: Vec<usize> = (0..args.components).collect();
    let answers = dense.ask(&names)?;
    let what = format!("{all} replicas of {} components", args.components);
    let full = dense.memory()?;
    let at_rest = dense.cpu_at_rest()?;
    let rested = dense.memory()?;
    Ok(vec![
        Row::new("an idle host: daemon and runners", idle / MIB, "MiB"),
        Row::new(format!("{what}: host"), full / MIB, "MiB").aim(300.0),
        Row::new(
            "  of it for each replica",
            (full - idle) / 1024.0 / all as f64,
            "KiB",
        ),
        Row::new(
            format!("  after {} s without a request", AT_REST.as_secs()),
            rested / MIB,
            "MiB",
        )
        .aim(300.0),
        Row::new("  its processor time at rest, of one core", at_rest, "%"),
        Row::new("  until all were ready", took.as_secs_f64(), "s"),
        Row::new(
            "  a request to each component: p50",
            percentile(&answers, 50),
            "ms",
        ),
        Row::new("  p99", percentile(&answers, 99), "ms"),
    ])
}

fn demand(args: &Args) -> Result<Vec<Row>> {
    let dense = Dense::start(args.workloads)?;
    let took = dense.deploy(args.workloads, 1)?;
    let before = dense.memory()?;
    // Far from each other, and none twice: what was loaded last is not what is asked next.
    let step = (args.workloads / args.asks.max(1)).max(1);
    let names: Vec<usize> = (0..args.workloads).step_by(step).take(args.asks).collect();
    let cold = dense.ask(&names)?;
    let after = dense.memory()?;
    let again = vec![names[names.len() - 1]; names.len().min(500)];
    let warm = dense.ask(&again)?;
    let what = format!("{} workloads of a component each", args.workloads);
    Ok(vec![
        Row::new(format!("{what}: host, none asked"), before / MIB, "MiB"),
        Row::new(
            format!("  after {} were asked", names.len()),
            after / MIB,
            "MiB",
        )
        .aim(1024.0),
        Row::new("  until all were ready", took.as_secs_f64(), "s"),
        Row::new(
            "  the first request to one: p50",
            percentile(&cold, 50),
            "ms",
        ),
        Row::new("  p99", percentile(&cold, 99), "ms").aim(20.0),
        Row::new("  slowest", percentile(&cold, 100), "ms"),
        Row::new(
            "  one asked again and again: p50",
            percentile(&warm, 50),
            "ms",
        ),
        Row::new("  p99", percentile(&warm, 99), "ms"),
    ])
}

/// One host that has been given code for so many components.
struct Dense {
    cluster: Daemons,
    gateway: String,
}

impl Dense {
    fn start(components: usize) -> Result<Self> {
        let home = Home::new();
        let nats = vec![Nats::start(&home.path().join("nats"))];
        let mut cluster = Daemons::start_on(home, nats, 1, 0);
        let given = make_components(&cluster, components)?;
        let given = given.to_str().context("the temp folder is text")?;
        cluster.start_host_with(0, &["--compiled", given]);
        cluster.wait_for_hosts(1);
        let gateway = cluster.gateways().pop().context("the host has a gateway")?;
        Ok(Self { cluster, gateway })
    }

    /// Of the host, its runners included.
    fn memory(&self) -> Result<f64> {
        let host = self.cluster.hosts[0].as_ref().context("the host runs")?;
        Ok(memory::resident(host.id())?.total as f64)
    }

    /// While nobody asks for anything: percent of one core.
    fn cpu_at_rest(&self) -> Result<f64> {
        let host = self.cluster.hosts[0].as_ref().context("the host runs")?;
        let (began, before) = (Instant::now(), memory::cpu(host.id())?);
        while began.elapsed() < AT_REST {
            std::thread::park_timeout(AT_REST.saturating_sub(began.elapsed()));
        }
        let used = memory::cpu(host.id())?.saturating_sub(before);
        Ok(used.as_secs_f64() / began.elapsed().as_secs_f64() * 100.0)
    }

    /// Deploys so many workloads; how long until all of their replicas are ready.
    fn deploy(&self, workloads: usize, replicas: usize) -> Result<Duration> {
        let began = Instant::now();
        let all: Vec<usize> = (0..workloads).collect();
        for some in all.chunks(AT_ONCE) {
            let mut manifest = String::new();
            for n in some {
                writeln!(
                    manifest,
                    "[[workload]]\nname = \"w{n}\"\ncomponent = \"w{n}.wasm\"\nreplicas = {replicas}\n\
                     resources = {{ reserve = {{ memory = \"16KiB\" }} }}\nhealth = {{ ready = false }}"
                )?;
            }
            let file = self.cluster.home.write("some.toml", manifest);
            let file = file.to_str().context("the temp folder is text")?;
            self.cluster
                .run(&["deploy", file, "--detach", "--timeout", "120s"])
                .ok();
            step(&format!(
                "deployed {} of {workloads}",
                some[some.len() - 1] + 1
            ));
        }
        loop {
            let ready = self.ready()?;
            if ready == workloads * replicas {
                return Ok(began.elapsed());
            }
            step(&format!("ready {ready} of {}", workloads * replicas));
            ensure!(
                began.elapsed() < PATIENCE,
                "only {ready} replicas are ready"
            );
            std::thread::park_timeout(LOOK_EVERY.max(began.elapsed() / 50));
        }
    }

    fn ready(&self) -> Result<usize> {
        let listed = self
            .cluster
            .run(&["ps", "--json", "--timeout", "60s"])
            .ok()
            .json();
        let listed = listed.as_array().context("`ps --json` is no array")?;
        let ready = |one: &Value| one["ready"].as_u64().unwrap_or(0);
        Ok(usize::try_from(listed.iter().map(ready).sum::<u64>())?)
    }

    /// Asks each of them once, over a connection of its own: sorted times, ms.
    fn ask(&self, workloads: &[usize]) -> Result<Vec<f64>> {
        let mut times = Vec::with_capacity(workloads.len());
        for n in workloads {
            let name = format!("w{n}");
            let asked = Instant::now();
            ensure!(says_hello(&self.gateway, &name), "{name} does not answer");
            times.push(asked.elapsed().as_secs_f64() * 1e3);
        }
        times.sort_by(f64::total_cmp);
        Ok(times)
    }
}

/// Components with a digest each, and the folder with code for all of them.
fn make_components(cluster: &Daemons, components: usize) -> Result<PathBuf> {
    let sample = guest("hello-http");
    let text = |path: &Path| path.to_str().map(str::to_owned).context("text");
    let given = cluster.home.path().join("given");
    cluster
        .run(&["compile", "--out", &text(&given)?, &text(&sample)?])
        .ok();
    let bytes = std::fs::read(&sample)?;
    let folder = only(&only(&given)?)?;
    let code = only(&folder)?;
    for n in 0..components {
        let component = unseen(&bytes);
        let name = format!("{}.cwasm", Digest::of(&component).hex());
        cluster.home.write(&format!("w{n}.wasm"), component);
        std::fs::hard_link(&code, folder.join(name))?;
    }
    Ok(given)
}

/// What alone lies in a folder.
fn only(folder: &Path) -> Result<PathBuf> {
    let mut entries = std::fs::read_dir(folder)?;
    let first = entries
        .next()
        .with_context(|| format!("{} is empty", folder.display()))??;
    ensure!(entries.next().is_none(), "{} holds more", folder.display());
    Ok(first.path())
}

fn table(machine: &[(String, String)], rows: &[Row]) -> String {
    let mut text = String::new();
    for (label, fact) in machine {
        text.push_str(format!("{label:<13}{fact}").trim_end());
        text.push('\n');
    }
    text.push('\n');
    let width = rows.iter().map(|row| row.what.len()).max().unwrap_or(0);
    for row in rows {
        let aim = row.aim.map_or(String::new(), |aim| {
            let met = if row.value < aim { "met" } else { "missed" };
            format!("  < {aim} {}: {met}", row.unit)
        });
        text.push_str(&format!(
            "{:<width$}  {:>9.1} {}{aim}\n",
            row.what, row.value, row.unit
        ));
    }
    text.push_str("\nmemory is Pss of the daemon and its runners; the sample is hello-http, its code compiled ahead\n");
    text
}

fn as_json(machine: &[(String, String)], rows: &[Row]) -> Value {
    let row = |row: &Row| json!({ "what": row.what.trim(), "value": row.value, "unit": row.unit, "aim": row.aim });
    json!({
        "machine": machine::json(machine),
        "rows": rows.iter().map(row).collect::<Vec<_>>(),
    })
}

/// Progress, beside the result.
fn step(text: &str) {
    // Nobody who cannot be told needs to be.
    let _ = writeln!(std::io::stderr(), "{text}");
}
