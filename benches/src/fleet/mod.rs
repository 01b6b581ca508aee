//! `cluster`: a real controller and a real nats-server with thousands of simulated hosts.
//!
//! What is real and what is simulated stands in [`hosts`] and is printed with the figures.

mod faults;
mod hosts;
mod procfs;

use std::io::Write as _;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};
use wasmorch_tests::nats::Nats;
use wasmorch_tests::nats_client::Client;
use wasmorch_tests::process::Process;
use wasmorch_tests::up::Home;

use crate::cluster::binary;
use crate::machine;
use hosts::{Fleet, Order, Seen, look};
use procfs::Usage;

/// Whatever takes longer than this has failed.
const PATIENCE: Duration = Duration::from_secs(900);
/// How long the steady state is watched.
const STEADY: Duration = Duration::from_secs(20);
/// Workloads in one request.
const AT_ONCE: u64 = 250;

/// Flags of `cluster`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Simulated hosts
    #[arg(long, default_value_t = 6_100)]
    hosts: usize,
    /// Workloads
    #[arg(long, default_value_t = 1_000)]
    workloads: u64,
    /// Replicas of all workloads together
    #[arg(long, default_value_t = 2_000_000)]
    replicas: u64,
    /// Leave out the death of a tenth of the hosts
    #[arg(long)]
    no_loss: bool,
    /// Print what the controller says of each plan, on stderr
    #[arg(long)]
    plans: bool,
    /// Only these parts
    #[arg(long, value_delimiter = ',', value_name = "PART")]
    only: Vec<Part>,
    /// How often a real host and a real leader are killed
    #[arg(long, default_value_t = 5)]
    runs: usize,
}

/// The filter that lets the controller tell of its plans.
const PLANS: &str = "warn,wasmorch_controller::control_loop=debug";

/// Parts of `cluster`.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// Thousands of simulated hosts
    Fleet,
    /// Three real hosts, two real controllers: one dies
    Faults,
}

/// What the controller counts of itself.
#[derive(Clone, Copy)]
struct Counted {
    deciding: Duration,
    storing: Duration,
    plans: u64,
    batches: u64,
    dropped: u64,
}

struct Bench {
    controller: Process,
    admin: String,
    nats: Nats,
    client: Client,
    seen: Arc<Mutex<Seen>>,
    rows: Vec<(String, String)>,
}

/// Measures and prints.
pub(crate) fn run(args: &Args) -> Result<()> {
    let asked = |part: Part| args.only.is_empty() || args.only.contains(&part);
    if asked(Part::Fleet) {
        fleet(args)?;
    }
    if asked(Part::Faults) {
        let mut facts = machine::describe(
            &binary()?,
            &wasmorch_tests::nats::binary(),
            &std::env::temp_dir(),
        );
        facts.retain(|(label, _)| label != "simulated");
        facts.push(("simulated".into(), "nothing".into()));
        facts.extend(faults::measure(args.runs)?);
        facts.push(("load after".into(), machine::load()));
        print(&facts)?;
    }
    Ok(())
}

fn print(rows: &[(String, String)]) -> Result<()> {
    let mut text = String::new();
    for (label, fact) in rows {
        text.push_str(&format!("{label:<64}{fact}\n"));
    }
    Ok(std::io::stdout().write_all(text.as_bytes())?)
}

fn fleet(args: &Args) -> Result<()> {
    ensure!(
        args.workloads > 0 && args.hosts > 9,
        "at least one workload and ten hosts"
    );
    let home = Home::new();
    let nats = Nats::start(&home.path().join("nats"));
    let program = binary()?;
    let mut facts = machine::describe(
        &program,
        &wasmorch_tests::nats::binary(),
        &std::env::temp_dir(),
    );
    let mut command = std::process::Command::new(&program);
    command
        .args(["--nats", &nats.url(), "controller", "--json"])
        .args(["--admin", "127.0.0.1:0"])
        .env("WASMORCH_LOG", if args.plans { PLANS } else { "warn" });
    let controller = Process::start(command, home.path(), "controller");
    let client = Client::connect(&nats.url());
    until("a leader", || {
        client
            .try_json("wasmorch.v1.api._.version", &json!({}))
            .map(|_| ())
    })?;

    let admin = until("the controller's admin address", || {
        let said: Value = serde_json::from_str(controller.stdout().lines().next()?).ok()?;
        Some(said["admin"].as_str()?.to_owned())
    })?;
    let seen = Arc::new(Mutex::new(Seen::default()));
    let (orders, inbox) = mpsc::channel(4);
    let room = args.replicas * 2 / args.hosts as u64 + 50;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let (url, count, shared) = (nats.url(), args.hosts, seen.clone());
    let fleet = std::thread::spawn(move || {
        runtime.block_on(async move {
            Fleet::connect(&url, count, room, shared, inbox)
                .await?
                .run()
                .await
        })
    });
    let mut bench = Bench {
        controller,
        admin,
        nats,
        client,
        seen,
        rows: Vec::new(),
    };
    let measured = bench.measure(args, &orders);
    drop(orders);
    let ended = fleet.join();
    measured?;
    ended.map_err(|_| anyhow::anyhow!("the fleet panicked"))??;
    facts.retain(|(label, _)| label != "simulated");
    facts.push(("load after".into(), machine::load()));
    facts.push((
        "simulated".into(),
        format!(
            "{} hosts in one process: the real agent and its messages; no Wasm, no disk, no fetch",
            args.hosts
        ),
    ));
    facts.extend(bench.rows);
    let plans = bench.controller.stderr();
    std::io::stderr().write_all(plans.as_bytes())?;
    print(&facts)
}

impl Bench {
    fn row(&mut self, what: &str, value: String) {
        self.rows.push((what.to_owned(), value));
    }

    fn usage(&self) -> Result<(Usage, Usage)> {
        Ok((
            Usage::of(self.controller.id())?,
            Usage::of(self.nats.process().id())?,
        ))
    }

    fn counted(&self) -> Result<Counted> {
        let answer = wasmorch_tests::http::get(&self.admin, "admin", "/metrics")?;
        let count = |name: &str| -> Result<u64> {
            let name = format!("wasmorch_controller_{name} ");
            let value = answer
                .body
                .lines()
                .find_map(|line| line.strip_prefix(&name)?.parse().ok());
            value.with_context(|| format!("the controller does not count {name}"))
        };
        Ok(Counted {
            deciding: Duration::from_micros(count("plan_microseconds_total")?),
            storing: Duration::from_micros(count("batch_microseconds_total")?),
            plans: count("plans_total")?,
            batches: count("batches_total")?,
            dropped: count("observations_dropped_total")?,
        })
    }

    /// What the leader did since.
    fn work(&mut self, before: Counted) -> Result<()> {
        let now = self.counted()?;
        let plans = now.plans - before.plans;
        let deciding = seconds(now.deciding - before.deciding);
        self.row(
            "  of it deciding, all plans",
            format!("{deciding}, {plans} plans"),
        );
        let batches = now.batches - before.batches;
        let storing = seconds(now.storing - before.storing);
        self.row(
            "  of it waiting for the store",
            format!("{storing}, {batches} batches"),
        );
        let dropped = now.dropped - before.dropped;
        self.row("  messages of hosts dropped", dropped.to_string());
        Ok(())
    }

    fn measure(&mut self, args: &Args, orders: &mpsc::Sender<Order>) -> Result<()> {
        let began = Instant::now();
        let client = &self.client;
        until("every host to be known", || {
            let hosts = client.try_json("wasmorch.v1.api._.hosts", &json!({"limit": 1000}))?;
            // A full first page and a cursor, or all of them: the last page is asked for below.
            let listed = hosts["items"].as_array()?.len();
            (listed >= args.hosts.min(1000)).then_some(())
        })?;
        self.row("hosts joined", seconds(began.elapsed()));
        self.deploy(args)?;
        self.steady()?;
        if !args.no_loss {
            self.lose(args, orders)?;
        }
        let (controller, nats) = self.usage()?;
        self.row("controller, most memory", mib(controller.peak_bytes));
        self.row("nats-server, most memory", mib(nats.peak_bytes));
        Ok(())
    }

    /// Asks as the command line does: what was not answered in time is asked again, and done once.
    fn told(&self, subject: &str, request: &Value) -> Value {
        let began = Instant::now();
        loop {
            let answer = self.client.json(subject, request);
            let late = answer["error"]["code"] == "unavailable";
            if !late || began.elapsed() > PATIENCE {
                return answer;
            }
        }
    }

    fn deploy(&mut self, args: &Args) -> Result<()> {
        let bytes = std::fs::read(wasmorch_tests::guest("hello-http"))?;
        let digest = wasmorch_api::Digest::of(&bytes);
        self.client
            .put_object("wasmorch_artifacts", digest.as_str(), &bytes);
        let each = args.replicas / args.workloads;
        let total = each * args.workloads;
        let before = self.counted()?;
        let began = Instant::now();
        let mut first = 0;
        while first < args.workloads {
            let last = (first + AT_ONCE).min(args.workloads);
            let workloads: Vec<Value> = (first..last)
                .map(|n| json!({"name": format!("w{n}"), "artifact": digest, "replicas": each}))
                .collect();
            let subject = "wasmorch.v1.api.default.deploy";
            let request = json!({"workloads": workloads, "request_id": format!("deploy-{first}")});
            let answer = self.told(subject, &request);
            ensure!(answer["error"].is_null(), "refused: {answer}");
            first = last;
        }
        self.row(
            &format!("{} workloads accepted and stored", args.workloads),
            seconds(began.elapsed()),
        );
        let seen = self.seen.clone();
        let held = until("every set to be delivered", || {
            let now = look(&seen);
            (now.held >= total).then_some(now)
        })?;
        let delivered = held.last_set.unwrap_or(began);
        self.row(
            &format!("{total} replicas decided, stored, delivered"),
            seconds(delivered - began),
        );
        let ready = until("every replica to run", || {
            let now = look(&seen);
            (now.ready >= total).then_some(now)
        })?;
        let reported = ready.last_report.unwrap_or(began);
        self.row("and reported running by hosts", seconds(reported - began));
        self.ready(args, each)?;
        self.row(
            "and known to be ready by the leader",
            seconds(began.elapsed()),
        );
        let rate = total as f64 / began.elapsed().as_secs_f64();
        self.row("rate, all in all", format!("{rate:.0} replicas/s"));
        self.row("sets delivered", look(&self.seen).sets.to_string());
        self.work(before)?;
        let (controller, nats) = self.usage()?;
        self.row("controller, memory so far", mib(controller.peak_bytes));
        self.row("nats-server, memory so far", mib(nats.peak_bytes));
        Ok(())
    }

    /// Until the leader's list says of every workload that it is ready. It is asked twice a second: each list
    /// has the leader count all replicas.
    fn ready(&self, args: &Args, each: u64) -> Result<()> {
        until("the leader to know", || {
            let (mut ready, mut cursor) = (0, serde_json::Value::Null);
            loop {
                let asked = json!({"limit": 1000, "cursor": cursor});
                let page = { &self.client }.try_json("wasmorch.v1.api.default.list", &asked);
                let Some(page) = page else { break };
                let items = page["items"].as_array().into_iter().flatten();
                ready += items.filter(|one| one["ready"] == each).count() as u64;
                cursor = page["next"].clone();
                if cursor.is_null() {
                    break;
                }
            }
            if ready < args.workloads {
                std::thread::park_timeout(Duration::from_millis(500));
            }
            (ready >= args.workloads).then_some(())
        })
    }

    fn steady(&mut self) -> Result<()> {
        let before = self.usage()?;
        std::thread::park_timeout(STEADY);
        let after = self.usage()?;
        let share = |before: Usage, after: Usage| {
            let cpu = (after.cpu - before.cpu).as_secs_f64() / STEADY.as_secs_f64();
            format!("{:.1} % of a core", cpu * 100.0)
        };
        self.row("steady: controller", share(before.0, after.0));
        self.row("steady: nats-server", share(before.1, after.1));
        Ok(())
    }

    fn lose(&mut self, args: &Args, orders: &mpsc::Sender<Order>) -> Result<()> {
        let total = args.replicas / args.workloads * args.workloads;
        let (answer, told) = oneshot::channel();
        let count = args.hosts / 10;
        let before = self.counted()?;
        let began = Instant::now();
        orders
            .blocking_send(Order::Kill(count, answer))
            .context("the fleet has ended")?;
        let lost = told.blocking_recv().context("the fleet has ended")?;
        let seen = self.seen.clone();
        until("what was lost to run elsewhere", || {
            (look(&seen).ready >= total).then_some(())
        })?;
        self.row(
            &format!("{count} hosts with {lost} replicas die: all run again"),
            format!("{} (5 s of it detection)", seconds(began.elapsed())),
        );
        self.work(before)
    }
}

fn seconds(time: Duration) -> String {
    format!("{:.2} s", time.as_secs_f64())
}

fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}

fn until<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> Result<T> {
    let began = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return Ok(answer);
        }
        ensure!(
            began.elapsed() < PATIENCE,
            "waited {PATIENCE:?} in vain for {what}"
        );
        std::thread::park_timeout(Duration::from_millis(20));
    }
}
