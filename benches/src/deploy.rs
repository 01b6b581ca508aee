//! `deploy`: from nothing to a running app, in milliseconds and mebibytes.
//!
//! Each part has a cluster of its own in a fresh temporary folder, so that no part pays for, or gains
//! from, what another left. Everything that a run needs to have succeeded is checked before it counts.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::cluster::{Cluster, Deployed, binary};
use crate::guest::unseen;
use crate::report::{Report, Series, Unit};
use crate::{machine, memory, neighbour};

/// A median of fewer says little on a shared machine.
const RUNS_MIN: u32 = 20;
/// Workloads deployed at once for the memory figure.
const WORKLOADS: usize = 100;
/// Looks at the memory of one `up`.
const LOOKS: u32 = 20;
/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What hello-http answers.
const HELLO: &str = "Hello from wasmorch";

/// No Kubernetes ran here, and the line says so.
const PEER: &str = "Kubernetes pod startup SLO: 5 s, image pull excluded (kubernetes scalability SLOs; \
    the 99th percentile of stateless pods). An objective and not a measurement: no Kubernetes ran here";

/// Flags of `deploy`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Runs of each part
    #[arg(long, default_value_t = RUNS_MIN, value_parser = clap::value_parser!(u32).range(i64::from(RUNS_MIN)..))]
    runs: u32,
    /// Only these parts
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Part::Up, Part::Deploy, Part::Large, Part::Memory, Part::Neighbour])]
    only: Vec<Part>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    Up,
    Deploy,
    Large,
    Memory,
    Neighbour,
}

/// Measures and prints.
pub(crate) fn run(args: &Args) -> Result<()> {
    let mut bench = Bench::new(args.runs)?;
    for part in &args.only {
        match part {
            Part::Up => bench.up().context("`up` to ready")?,
            Part::Deploy => bench.small().context("deploy of hello-http")?,
            Part::Large => bench.large().context("deploy of the large component")?,
            Part::Memory => bench.memory().context("resident memory")?,
            Part::Neighbour => bench.neighbour().context("bad neighbours")?,
        }
    }
    let report = bench.finish();
    let text = if args.json {
        format!("{:#}\n", report.json())
    } else {
        report.table()
    };
    Ok(std::io::stdout().write_all(text.as_bytes())?)
}

struct Bench {
    binary: PathBuf,
    hello: PathBuf,
    runs: u32,
    machine: Vec<(String, String)>,
    series: Vec<Series>,
    notes: Vec<String>,
}

impl Bench {
    fn new(runs: u32) -> Result<Self> {
        let binary = binary()?;
        let nats_server = wasmorch_tests::nats::binary();
        let machine = machine::describe(&binary, &nats_server, &std::env::temp_dir());
        let hello = wasmorch_tests::guest("hello-http");
        Ok(Self {
            binary,
            hello,
            runs,
            machine,
            series: Vec::new(),
            notes: Vec::new(),
        })
    }

    fn neighbour(&mut self) -> Result<()> {
        let mut cluster = Cluster::new(&self.binary);
        cluster.up()?;
        self.series.extend(neighbour::measure(&cluster)?);
        cluster.stop()
    }

    fn finish(mut self) -> Report {
        self.machine.push(("load after".into(), machine::load()));
        self.notes.insert(
            0,
            "times begin when the CLI is started, no run is left out as a warm-up, and `to the first \
             answer` is the first 200 with the workload's own body through the gateway"
                .into(),
        );
        Report {
            machine: self.machine,
            series: self.series,
            notes: self.notes,
            peer: PEER,
        }
    }

    /// `up` on nothing, and again on what the last one left: one workload, cleanly stopped.
    fn up(&mut self) -> Result<()> {
        let mut fresh = Series::new("up to ready, fresh data folder", Unit::Ms);
        let mut again = Series::new("up to ready, from data, 1 workload", Unit::Ms);
        let mut cluster = Cluster::new(&self.binary);
        for run in 1..=self.runs {
            step("up, fresh", run, self.runs);
            cluster = Cluster::new(&self.binary);
            fresh.push(ms(cluster.up()?));
            if run < self.runs {
                cluster.stop()?;
            }
        }
        cluster.deploy(&self.hello, "hello", HELLO)?;
        for run in 1..=self.runs {
            step("up, from data", run, self.runs);
            cluster.stop()?;
            let took = cluster.up()?;
            cluster.first_answer("hello", HELLO)?;
            again.push(ms(took));
        }
        cluster.stop()?;
        self.series.extend([fresh, again]);
        Ok(())
    }

    /// hello-http: never seen before, and already compiled.
    fn small(&mut self) -> Result<()> {
        let bytes = read(&self.hello)?;
        let what = format!("hello-http ({})", size(&bytes));
        let guest = Guest {
            name: "hello",
            text: HELLO,
            bytes,
        };
        self.deploys(
            &what,
            &guest,
            (self.runs, Some(250.0)),
            (self.runs, Some(50.0)),
        )
    }

    /// A component that carries a whole interpreter.
    fn large(&mut self) -> Result<()> {
        let Some(path) = large_component() else {
            self.notes.push(
                "the large component was left out: make one as docs/languages.md says (Python, 18 MB), \
                 then set WASMORCH_BENCH_LARGE to it or put it into ~/.cache/wasmorch/bench/large.wasm"
                    .into(),
            );
            return Ok(());
        };
        let bytes = read(&path)?;
        let what = format!("a large component ({})", size(&bytes));
        let guest = Guest {
            name: "large",
            text: "",
            bytes,
        };
        self.deploys(&what, &guest, (self.runs, None), (self.runs, None))
    }

    fn deploys(
        &mut self,
        what: &str,
        guest: &Guest,
        (unseen_runs, unseen_aim): (u32, Option<f64>),
        (known_runs, known_aim): (u32, Option<f64>),
    ) -> Result<()> {
        let Guest { name, text, bytes } = guest;
        let mut cluster = Cluster::new(&self.binary);
        cluster.up()?;
        let mut never = Pair::new(what, "never seen", unseen_aim);
        let mut known = Pair::new(what, "already compiled", known_aim);
        let mut file = cluster.home().write("never-seen.wasm", unseen(bytes));
        for run in 1..=unseen_runs {
            step("deploy, never seen", run, unseen_runs);
            // A name of its own: nothing that still drains may answer for it.
            let name = format!("{name}-never-{run}");
            never.push(cluster.deploy(&file, &name, text)?);
            cluster.remove(&name, text)?;
            if run < unseen_runs {
                file = cluster.home().write("never-seen.wasm", unseen(bytes));
            }
        }
        // The last one's bytes are known by now.
        for run in 1..=known_runs {
            step("deploy, already compiled", run, known_runs);
            let name = format!("{name}-known-{run}");
            known.push(cluster.deploy(&file, &name, text)?);
            cluster.remove(&name, text)?;
        }
        cluster.stop()?;
        let rows = [never.answered, never.exited, known.answered, known.exited];
        self.series.extend(rows);
        Ok(())
    }

    /// Pss of `up` and all its children: idle, and with a hundred workloads of one component and of
    /// as many components.
    fn memory(&mut self) -> Result<()> {
        self.notes.push(format!(
            "memory is Pss of `up` and its children, nats-server included: {LOOKS} looks at one `up`, \
             100 ms apart; each workload has one replica and has answered one request"
        ));
        let mut cluster = Cluster::new(&self.binary);
        cluster.up()?;
        self.looks("idle", &cluster)?;
        cluster.stop()?;
        for (what, one_component) in [("of one component", true), ("of as many components", false)]
        {
            let mut cluster = Cluster::new(&self.binary);
            cluster.up()?;
            self.hundred(&cluster, one_component)?;
            self.looks(&format!("{WORKLOADS} workloads {what}"), &cluster)?;
            cluster.stop()?;
        }
        Ok(())
    }

    /// One manifest of a hundred workloads, all of which must answer.
    fn hundred(&mut self, cluster: &Cluster, one_component: bool) -> Result<()> {
        let bytes = read(&self.hello)?;
        let mut manifest = String::new();
        for number in 0..WORKLOADS {
            let file = if one_component {
                "all.wasm".into()
            } else {
                format!("{number}.wasm")
            };
            if !one_component || number == 0 {
                cluster.home().write(&file, unseen(&bytes));
            }
            writeln!(
                manifest,
                "[[workload]]\nname = \"w{number}\"\ncomponent = \"{file}\""
            )?;
        }
        let manifest = cluster.home().write("hundred.toml", manifest);
        step("deploy of a hundred workloads", 1, 1);
        cluster.run(&["deploy".as_ref(), manifest.as_os_str()])?;
        for number in 0..WORKLOADS {
            let name = format!("w{number}");
            ensure!(
                cluster.answers(&name, HELLO),
                "{name} was deployed and does not answer"
            );
        }
        Ok(())
    }

    fn looks(&mut self, what: &str, cluster: &Cluster) -> Result<()> {
        const MIB: f64 = 1024.0 * 1024.0;
        let mut all = Series::new(format!("memory, {what}"), Unit::MiB);
        let mut nats = Series::new("  of it nats-server", Unit::MiB);
        for look in 1..=LOOKS {
            step(&format!("memory, {what}"), look, LOOKS);
            std::thread::park_timeout(LOOK_EVERY);
            let resident = memory::resident(cluster.id()?)?;
            all.push(resident.total as f64 / MIB);
            nats.push(resident.nats as f64 / MIB);
        }
        self.series.extend([all, nats]);
        Ok(())
    }
}

/// What is deployed, and how its answer is known.
struct Guest {
    name: &'static str,
    text: &'static str,
    bytes: Vec<u8>,
}

/// The two ends of a deploy.
struct Pair {
    answered: Series,
    exited: Series,
}

impl Pair {
    fn new(what: &str, how: &str, aim: Option<f64>) -> Self {
        let mut answered = Series::new(
            format!("deploy {what}, {how}: to the first answer"),
            Unit::Ms,
        );
        if let Some(aim) = aim {
            answered = answered.aim(aim);
        }
        Self {
            answered,
            exited: Series::new("  until the CLI has exited 0", Unit::Ms),
        }
    }

    fn push(&mut self, took: Deployed) {
        self.answered.push(ms(took.answered));
        self.exited.push(ms(took.exited));
    }
}

/// A component that carries a whole interpreter, where somebody has made one.
pub(crate) fn large_component() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("WASMORCH_BENCH_LARGE") {
        return Some(path.into());
    }
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| Some(Path::new(&std::env::var_os("HOME")?).join(".cache")))?;
    Some(cache.join("wasmorch/bench/large.wasm")).filter(|path| path.exists())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| path.display().to_string())
}

fn size(bytes: &[u8]) -> String {
    match bytes.len() {
        small @ 0..1_000_000 => format!("{:.0} KB", small as f64 / 1e3),
        large => format!("{:.1} MB", large as f64 / 1e6),
    }
}

fn ms(took: Duration) -> f64 {
    took.as_secs_f64() * 1e3
}

/// Progress, beside the result.
fn step(what: &str, run: u32, runs: u32) {
    // Nobody who cannot be told needs to be.
    let _ = writeln!(std::io::stderr(), "{what}: {run}/{runs}");
}
