//! The planner alone at scale: `cargo xtask bench planner`.
//!
//! Simulated: hosts are heartbeats and status reports made here, the store is the sequence number
//! of a commit. Real: everything the planner does. Every scenario runs in a process of its own, so
//! that its peak of resident memory is its own; a figure counts only after the plan was checked.
//! `--share N` runs all of it with one Nth of the replicas, to see that it runs.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a program that prints figures"
)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use wasmorch_api::messages::ChangeRequest;
use wasmorch_api::spec::{Affinity, Constraint, LabelTest, Replicas, Sockets};
use wasmorch_api::status::Capacity;
use wasmorch_api::{
    BootId, ByteSize, ClusterId, Digest, Heartbeat, HostId, HostInfo, Kind, LeaderId, Name,
    PlacementNumber, ReplicaId, ReplicaState, ReplicaStatus, StatusReport, Term, Timestamp,
    WorkloadKey, WorkloadSpec,
};
use wasmorch_planner::commands::{self, Call, DeployInput};
use wasmorch_planner::{Cluster, Observation, Plan, Write, check};

mod story;
mod waiting;
mod world;

use story::story;
use waiting::waiting;
use world::*;

#[derive(Clone, Copy)]
struct Scenario {
    name: &'static str,
    hosts: usize,
    workloads: usize,
    replicas: usize,
    /// How many replicas a host takes.
    seats: u64,
    /// Zones, label constraints and anti-affinity on a third of the workloads.
    ruled: bool,
    /// No two hosts have the same capacity, no two workloads book the same.
    distinct: bool,
    /// So many workloads listen on a port, each on its own.
    listening: usize,
    kind: Kind,
}

const PLAIN: Scenario = Scenario {
    name: "1,000 workloads",
    hosts: 6_100,
    workloads: 1_000,
    replicas: 2_000_000,
    seats: 2_000,
    ruled: false,
    distinct: false,
    listening: 0,
    kind: Kind::Service,
};

/// Of them 20 die, each 17 after the one before.
const HOSTS_LEAST: usize = 400;

fn scenarios(share: usize) -> Vec<Scenario> {
    let many = Scenario {
        name: "100,000 workloads",
        workloads: 100_000,
        ..PLAIN
    };
    let ruled = Scenario {
        name: "zones, labels, anti-affinity",
        ruled: true,
        ..PLAIN
    };
    let shapes = Scenario {
        name: "all shapes distinct",
        distinct: true,
        ..PLAIN
    };
    let listening = Scenario {
        name: "10 listen on ports",
        listening: 10,
        ..PLAIN
    };
    let tables = Scenario {
        name: "1,000 http workloads",
        kind: Kind::Http,
        ..PLAIN
    };
    let small = [PLAIN, many, ruled, shapes];
    let large = small.map(|one| Scenario {
        hosts: 10_000,
        ..one
    });
    let all = small.into_iter().chain(large).chain([listening, tables]);
    let share = |one: Scenario| Scenario {
        hosts: (one.hosts / share).max(HOSTS_LEAST),
        workloads: one.workloads.min(one.replicas / share),
        replicas: one.replicas / share,
        ..one
    };
    all.map(share).collect()
}

fn main() {
    let args: Vec<String> = std::env::args()
        .skip(1)
        .filter(|arg| arg != "--bench")
        .collect();
    let memory = args.iter().any(|arg| arg == "--memory");
    let share = args.iter().position(|arg| arg == "--share");
    let share = share.and_then(|at| args.get(at + 1)?.parse::<usize>().ok());
    let share = share.unwrap_or(1).max(1);
    if let Some(at) = args.iter().position(|arg| arg == "--story") {
        let tables = args.get(at + 1).is_some_and(|kind| kind == "http");
        let kind = if tables { Kind::Http } else { Kind::Service };
        let scenario = scenarios(share)[0];
        println!("{}", story(Scenario { kind, ..scenario }));
        return;
    }
    if args.iter().any(|arg| arg == "--waiting") {
        println!("{}", waiting(scenarios(share)[0]));
        return;
    }
    if let Some(at) = args.first().and_then(|arg| arg.parse::<usize>().ok()) {
        println!("{}", run(scenarios(share)[at], memory));
        return;
    }
    println!(
        "the planner alone, seconds and milliseconds on one core; hosts, reports and the store are simulated\n"
    );
    println!(
        "| scenario | hosts | workloads | replicas | plan from empty s | replicas/s | check s | writes s | commit s | peak MiB | full, all reported MiB | one changed ms | one dead host: decide ms | worst | check ms | writes ms |"
    );
    println!("| --- |{}", " --: |".repeat(15));
    for at in 0..scenarios(share).len() {
        let memory = memory.then_some("--memory");
        apart(share, [at.to_string().as_str()].into_iter().chain(memory));
    }
    println!("\n{LEGEND}");
    for kind in ["service", "http"] {
        apart(share, ["--story", kind]);
    }
    apart(share, ["--waiting"]);
}

/// Prints what a process of its own measures.
fn apart<'a>(share: usize, args: impl IntoIterator<Item = &'a str>) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(args).arg("--share").arg(share.to_string());
    let out = command.output().unwrap();
    let (said, told) = (out.stdout, out.stderr);
    if !out.status.success() {
        println!("{}", String::from_utf8_lossy(&told));
        std::process::abort();
    }
    print!(
        "{}{}",
        String::from_utf8_lossy(&said),
        String::from_utf8_lossy(&told)
    );
}

const LEGEND: &str = "\
`peak`: of the process, when the plan from empty has been committed. `one changed`: scaled by one, decided.
`one dead host`: all its replicas placed anew; the median and the worst of 20 hosts that die one after the other in the
full cluster, every replica reported ready. Peers, as published, other machines, real clusters round them: HashiCorp C2M:
2,000,000 containers on 6,100 hosts in 1,334 s (1,500/s, scheduling and starting); kube-scheduler's own benchmark floor:
about 700 pods/s.";

/// The heap as the program asked for it, for `--memory`: what the allocator makes of it is in the
/// figures from `/proc`.
struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

#[expect(
    unsafe_code,
    reason = "an allocator cannot be written without; this one only counts"
)]
// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let live = LIVE.fetch_add(layout.size(), Relaxed) + layout.size();
        MOST.fetch_max(live, Relaxed);
        // SAFETY: the caller's promise is the one that is asked for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: it came from `System`, with this layout.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static HEAP: Counting = Counting;

/// With `--memory`: what has been allocated when a step is done, and the most in it.
fn mark(wanted: bool, step: &str) {
    let live = LIVE.load(Relaxed);
    let most = MOST.swap(live, Relaxed);
    if wanted {
        let resident = memory("VmRSS");
        eprintln!(
            "    {step:<12} {:>5} MiB allocated, at most {:>5}; {resident:>5} MiB resident",
            live >> 20,
            most >> 20
        );
    }
}

fn run(scenario: Scenario, memory_told: bool) -> String {
    let mark = |step| mark(memory_told, step);
    let mut world = World::new(scenario);
    for host in 0..scenario.hosts {
        world.beat(host);
        world.report(host);
    }
    mark("hosts");
    world.deploy(&(0..scenario.workloads).collect::<Vec<_>>());
    mark("deployed");
    let (plan, planned) = timed(|| world.cluster.plan(world.now));
    mark("planned");
    let replicas = scenario.workloads * (scenario.replicas / scenario.workloads);
    assert_eq!(plan.start.len(), replicas, "{:?}", plan.unplaced.first());
    let (broken, checked) = timed(|| check::check_touched(&world.cluster, &plan));
    assert!(broken.is_empty(), "{:?}", broken.first());
    mark("checked");
    let (writes, wrote) = timed(|| world.cluster.writes(plan));
    mark("writes");
    let ((), committed) = timed(|| world.carry_out(writes));
    mark("committed");
    let peak = memory("VmHWM");
    world.step();
    for host in 0..scenario.hosts {
        world.report(host);
    }
    world.now.0 += 2_000;
    for _ in 0..3 {
        world.plan();
    }
    mark("reported");
    let full = memory("VmRSS");
    let changed = world.change();
    let mut deaths: Vec<Replaced> = (1..=20).map(|n| world.kill(n * 17)).collect();
    deaths.sort_by_key(|death| death.decided);
    let (middle, worst) = (&deaths[deaths.len() / 2], &deaths[deaths.len() - 1]);
    let ms = |took: Duration| format!("{:.1}", took.as_secs_f64() * 1e3);
    format!(
        "| {} | {} | {} | {} | {:.2} | {:.0} | {:.2} | {:.2} | {:.2} | {peak} | {full} | {} | {} | {} | {} | {} |",
        scenario.name,
        scenario.hosts,
        scenario.workloads,
        replicas,
        planned.as_secs_f64(),
        replicas as f64 / planned.as_secs_f64(),
        checked.as_secs_f64(),
        wrote.as_secs_f64(),
        committed.as_secs_f64(),
        ms(changed),
        ms(middle.decided),
        ms(worst.decided),
        ms(middle.checked),
        ms(middle.wrote),
    )
}

fn timed<T>(what: impl FnOnce() -> T) -> (T, Duration) {
    let began = on_core();
    let out = what();
    (out, on_core().saturating_sub(began))
}

/// Time on a core, so that a busy machine does not count.
fn on_core() -> Duration {
    let at = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(at.tv_sec as u64, at.tv_nsec as u32)
}

/// A line of `/proc/self/status`, in MiB.
fn memory(line: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let found = status.lines().find_map(|one| one.strip_prefix(line));
    let kib = found.and_then(|rest| rest.split_whitespace().nth(1)?.parse::<u64>().ok());
    kib.unwrap_or(0) / 1024
}
