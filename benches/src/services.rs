//! `services`: what a gateway costs. One replica on one of three hosts, asked through its own host's
//! gateway, through another host's, through the tunnel over NATS, and through nginx as a plain
//! proxy in front of its own host's gateway: the same backend behind each, the same load, in turns; and, with
//! no gateway at all, the same component in the bare runtime (`wasmorch run --http`).
//!
//! Then: how long after a replica answers on its own host every other gateway routes to it, and some hundreds
//! of simulated ones know of it; how long the first request takes that finds a workload at zero; and how long
//! requests fail after a host has died.

mod death;
mod gateways;
mod load;
mod show;
mod zero;

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;
use wasmorch_tests::daemons::{Daemons, says_hello};
use wasmorch_tests::nats::{Nats, binary as nats_server};
use wasmorch_tests::process::Process;
use wasmorch_tests::up::Home;
use wasmorch_tests::{guest, http, ports, wasmorch};

use crate::{http as serve, machine};
use death::Deaths;
use gateways::Gateways;
use load::Found;

/// Each host's name, and what is special about it. The last one says that it can be dialled at a
/// port where nobody listens: gateways find out, and go through NATS.
const HOSTS: [(&str, &[&str]); 3] = [
    ("front", &["--label", "place=front"]),
    ("back", &["--label", "place=back"]),
    (
        "edge",
        &["--label", "place=edge", "--advertise", "127.0.0.1:9"],
    ),
];
/// Looked at so often while a new workload gets routed.
const LOOK_EVERY: Duration = Duration::from_millis(1);
const LOOK_MAX: Duration = Duration::from_secs(30);

/// Flags of `services`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// How long each way is measured, in each of its turns
    #[arg(long, value_name = "SECONDS", default_value_t = 3)]
    seconds: u64,
    /// Turns of all ways: the machine is not the same from one second to the next
    #[arg(long, default_value_t = 5)]
    turns: usize,
    /// Connections of the client, each with one request at a time
    #[arg(long, default_value_t = 8)]
    connections: usize,
    /// And once more at so many requests a second, the same for all ways; 0: not
    #[arg(long, default_value_t = 2_000)]
    rate: u32,
    /// Deploys whose way to every gateway is timed
    #[arg(long, default_value_t = 20)]
    deploys: usize,
    /// Simulated gateways that learn of deploys beside the real ones
    #[arg(long, default_value_t = 500)]
    gateways: usize,
    /// How often a workload at zero is woken
    #[arg(long, default_value_t = 20)]
    wakes: usize,
    /// How often a host is killed, and how often one is frozen
    #[arg(long, default_value_t = 5)]
    deaths: usize,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// One way to a replica.
struct Way {
    what: &'static str,
    address: String,
    workload: &'static str,
    found: Found,
    /// At the rate that is the same for all.
    paced: Found,
}

/// Measures and prints.
pub(crate) fn run(args: &Args) -> Result<()> {
    let home = Home::new();
    let nats = vec![Nats::start(&home.path().join("nats"))];
    let mut cluster = Daemons::start_on(home, nats, 1, 0);
    for (n, (_, flags)) in HOSTS.iter().enumerate() {
        cluster.start_host_with(n, flags);
    }
    cluster.wait_for_hosts(HOSTS.len());
    let gateways = gateways(&cluster)?;
    for (name, place) in [("near", "back"), ("far", "edge")] {
        deploy(&cluster, name, place)?;
    }
    let nginx = Nginx::start(cluster.home.path(), &gateways[1])?;
    let bare = serve::wasmorch_run(&guest("hello-http"))?;
    let mut ways = vec![
        way(
            "no gateway: the bare runtime",
            &bare.address.to_string(),
            "near",
        ),
        way("its own host's gateway", &gateways[1], "near"),
        way("another host's gateway", &gateways[0], "near"),
        way("the tunnel over NATS", &gateways[0], "far"),
    ];
    ways.extend(nginx.as_ref().map(|nginx| {
        let what = "nginx in front of its own host's gateway";
        way(what, &nginx.address, "near")
    }));
    for way in &ways {
        until_routed(&way.address, way.workload)?;
    }
    for _ in 0..args.turns {
        for way in &mut ways {
            let host = format!("{}.default.localhost", way.workload);
            let length = Duration::from_secs(args.seconds);
            let measure = |rate| {
                let found = load::measure(&way.address, &host, args.connections, (length, rate));
                found.with_context(|| way.what.to_owned())
            };
            way.found.add(measure(None)?);
            if args.rate > 0 {
                way.paced.add(measure(Some(args.rate))?);
            }
        }
    }
    let mut routed = Vec::new();
    for n in 0..args.deploys {
        routed.push(routed_everywhere(&cluster, &gateways, n, None)?.0);
    }
    let mut known = Vec::new();
    if args.gateways > 0 {
        let many = Gateways::start(&cluster.url(), args.gateways)?;
        for n in args.deploys..2 * args.deploys {
            known.extend(routed_everywhere(&cluster, &gateways, n, Some(&many))?.1);
        }
    }
    let routed = Routed {
        everywhere: routed,
        simulated: args.gateways,
        known,
    };
    let gates = (gateways[1].as_str(), gateways[0].as_str());
    let woken = zero::measure(&cluster, gates, "back", args.wakes)?;
    let messages = zero::measure_messages(&cluster, "back", args.wakes)?;
    let deaths = death::measure(&mut cluster, &gateways[0], HOSTS.len(), args.deaths)?;
    let mut notes = vec![format!(
        "{} connections, one request at a time each, {} turns of {} s, client and cluster on one machine",
        args.connections, args.turns, args.seconds
    )];
    if nginx.is_none() {
        notes.push(
            "nginx was left out: it is not on PATH (Debian: apt-get install nginx-light)".into(),
        );
    }
    let mut facts = machine::describe(&wasmorch(), &nats_server(), cluster.home.path());
    if args.gateways > 0 {
        facts.retain(|(label, _)| label != "simulated");
        let said = format!(
            "{} gateways, for one figure: real connections, no requests; else real processes, sockets and files",
            args.gateways
        );
        facts.push(("simulated".into(), said));
    }
    let measured = Measured {
        ways,
        rate: args.rate,
        routed,
        from_zero: zero::NAMED
            .into_iter()
            .zip(woken.into_iter().chain([messages]))
            .collect(),
        deaths,
    };
    show::show(args.json, &facts, measured, &notes)
}

fn way(what: &'static str, address: &str, workload: &'static str) -> Way {
    Way {
        what,
        address: address.to_owned(),
        workload,
        found: Found::default(),
        paced: Found::default(),
    }
}

/// Where each host's gateway listens, in the order of [`HOSTS`].
fn gateways(cluster: &Daemons) -> Result<Vec<String>> {
    let hosts = cluster.run(&["hosts", "--json"]).ok().json();
    let hosts = hosts.as_array().context("a list is an array")?.clone();
    let gateway = |n: usize| {
        let name = format!("host-{n}");
        let host = hosts.iter().find(|host| host["name"] == name);
        let http = host.and_then(|host| host["http"].as_str());
        Ok(http
            .with_context(|| format!("{name} is not listed"))?
            .to_owned())
    };
    (0..HOSTS.len()).map(gateway).collect()
}

fn deploy(cluster: &Daemons, name: &str, place: &str) -> Result<()> {
    let text = format!(
        "[workload]\nname = \"{name}\"\ncomponent = \"{}\"\n\
         constraints = [{{ label = \"place\", eq = \"{place}\" }}]\n",
        guest("hello-http").display()
    );
    let file = cluster.home.write(&format!("{name}.toml"), text);
    let file = file.to_str().context("the temp folder is text")?;
    cluster.run(&["deploy", file]).ok();
    Ok(())
}

fn until_routed(gateway: &str, workload: &str) -> Result<Instant> {
    let began = Instant::now();
    while !says_hello(gateway, workload) {
        ensure!(
            began.elapsed() < LOOK_MAX,
            "{gateway} does not route {workload}"
        );
        std::thread::park_timeout(LOOK_EVERY);
    }
    Ok(Instant::now())
}

/// All that was found.
struct Measured {
    ways: Vec<Way>,
    /// Requests a second of what is paced; 0: nothing is.
    rate: u32,
    routed: Routed,
    /// What found a workload at rest, and the sorted times to its answers, in ms.
    from_zero: Vec<(&'static str, Vec<f64>)>,
    deaths: [Deaths; 2],
}

/// From the first answer of the replica's own host on, in ms.
struct Routed {
    /// To the first of the last gateway.
    everywhere: Vec<f64>,
    simulated: usize,
    /// Until the last of the simulated ones knew of it.
    known: Vec<f64>,
}

/// From the first answer of the replica's own host to the first of the last gateway, in ms; and until all
/// of the simulated ones knew.
fn routed_everywhere(
    cluster: &Daemons,
    gateways: &[String],
    n: usize,
    many: Option<&Gateways>,
) -> Result<(f64, Option<f64>)> {
    let name = format!("new-{n}");
    std::thread::scope(|scope| {
        let watching: Vec<_> = gateways
            .iter()
            .map(|gateway| scope.spawn(|| until_routed(gateway, &name)))
            .collect();
        deploy(cluster, &name, "back")?;
        let mut times = Vec::new();
        for watching in watching {
            let time = watching
                .join()
                .map_err(|_| anyhow::anyhow!("a watcher panicked"))?;
            times.push(time?);
        }
        let known = many.map(|many| many.all_know(&name)).transpose()?;
        cluster.run(&["rm", &name]).ok();
        let last = times.iter().max().context("three gateways")?;
        let after = |at: Instant| at.saturating_duration_since(times[1]).as_secs_f64() * 1000.0;
        Ok((after(*last), known.map(after)))
    })
}

/// nginx as a plain proxy with kept connections, in a folder of its own.
struct Nginx {
    address: String,
    process: Process,
}

impl Drop for Nginx {
    /// Its workers outlive a master that is killed: it is asked, and waited for.
    fn drop(&mut self) {
        self.process.signal(Signal::TERM);
        self.process.wait();
    }
}

impl Nginx {
    /// `None`: it is not here.
    fn start(folder: &Path, backend: &str) -> Result<Option<Self>> {
        let paths = std::env::var_os("PATH").unwrap_or_default();
        let places = std::env::split_paths(&paths).chain(["/usr/sbin".into()]);
        let Some(program) = places
            .map(|place| place.join("nginx"))
            .find(|at| at.exists())
        else {
            return Ok(None);
        };
        let folder = folder.join("nginx");
        std::fs::create_dir_all(folder.join("logs"))?;
        let port = ports::free();
        let config = format!(
            "daemon off; worker_processes auto; pid nginx.pid; error_log stderr warn;\n\
             events {{ worker_connections 1024; }}\n\
             http {{\n access_log off; client_body_temp_path t1; proxy_temp_path t2; fastcgi_temp_path t3;\n \
             uwsgi_temp_path t4; scgi_temp_path t5;\n keepalive_requests 100000000;\n \
             upstream back {{ server {backend}; keepalive 64; keepalive_requests 100000000; }}\n \
             server {{ listen 127.0.0.1:{port};\n location / {{ proxy_pass http://back; proxy_http_version 1.1;\n \
             proxy_set_header Connection \"\"; proxy_set_header Host $host; }} }}\n}}\n"
        );
        let file = folder.join("nginx.conf");
        std::fs::write(&file, config)?;
        let mut command = std::process::Command::new(program);
        command.arg("-p").arg(&folder).arg("-c").arg(&file);
        let process = Process::start(command, &folder, "nginx");
        let address = format!("127.0.0.1:{port}");
        let began = Instant::now();
        while http::get(&address, "near.default.localhost", "/").is_err() {
            let told = process.stderr();
            ensure!(began.elapsed() < LOOK_MAX, "nginx does not answer: {told}");
            std::thread::park_timeout(LOOK_EVERY);
        }
        Ok(Some(Self { address, process }))
    }
}
