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

#[derive(Clone, Copy)]
struct Scenario {
    name: &'static str,
    hosts: usize,
    workloads: usize,
    replicas: usize,
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
    if args.iter().any(|arg| arg == "--story") {
        let kind = if args.iter().any(|arg| arg == "http") {
            Kind::Http
        } else {
            Kind::Service
        };
        println!(
            "{}",
            story(Scenario {
                kind,
                ..scenarios(share)[0]
            })
        );
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
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.arg(at.to_string());
        command.args(memory.then_some("--memory"));
        command.arg("--share").arg(share.to_string());
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
    println!("\n{LEGEND}");
    for kind in [Kind::Service, Kind::Http] {
        println!(
            "{}",
            story(Scenario {
                kind,
                ..scenarios(share)[0]
            })
        );
    }
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

struct World {
    cluster: Cluster,
    now: Timestamp,
    sequence: u64,
    scenario: Scenario,
    seqs: Vec<u64>,
    /// What each host has told of already.
    told: Vec<BTreeSet<(Name, PlacementNumber)>>,
    dead: BTreeSet<usize>,
}

/// What it costs to place a dead host's replicas anew.
struct Replaced {
    decided: Duration,
    checked: Duration,
    wrote: Duration,
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
    let (writes, wrote) = timed(|| world.cluster.writes(&plan));
    mark("writes");
    drop(plan);
    let ((), committed) = timed(|| world.commit(writes));
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

/// In how many parts all is deployed.
const PARTS: usize = 20;
/// In how many portions hosts report what each part has brought.
const PORTIONS: usize = 4;

/// All of it deployed part by part, while hosts report what is ready: a plan follows on each.
fn story(scenario: Scenario) -> String {
    let mut world = World::new(scenario);
    for host in 0..scenario.hosts {
        world.beat(host);
        world.report(host);
    }
    let mut plans = Vec::new();
    let mut sums = [Duration::ZERO; 5];
    let numbers: Vec<usize> = (0..scenario.workloads).collect();
    let mut round = |world: &mut World, sums: &mut [Duration; 5]| {
        let (plan, planned) = timed(|| world.cluster.plan(world.now));
        let (broken, checked) = timed(|| check::check_touched(&world.cluster, &plan));
        assert!(broken.is_empty(), "{:?}", broken.first());
        let (writes, wrote) = timed(|| world.cluster.writes(&plan));
        drop(plan);
        let ((), committed) = timed(|| world.commit(writes));
        plans.push(planned);
        for (sum, took) in sums.iter_mut().zip([planned, checked, wrote, committed]) {
            *sum += took;
        }
    };
    for part in numbers.chunks(scenario.workloads.div_ceil(PARTS)) {
        world.deploy(part);
        world.now.0 += 500;
        round(&mut world, &mut sums);
        for portion in 0..PORTIONS {
            let some = (0..scenario.hosts).filter(|host| host % PORTIONS == portion);
            let ((), heard) = timed(|| some.for_each(|host| world.report(host)));
            sums[4] += heard;
            world.now.0 += 500;
            round(&mut world, &mut sums);
        }
    }
    for _ in 0..10 {
        world.step();
        round(&mut world, &mut sums);
        round(&mut world, &mut sums);
    }
    let open = |one: &&WorkloadKey| {
        world
            .cluster
            .workload(one)
            .is_some_and(|one| one.record.active_rollout().is_some())
    };
    let open = world.cluster.workloads().keys().filter(open).count();
    assert_eq!(open, 0, "rollouts that have not completed");
    plans.sort();
    let [planned, checked, wrote, committed, heard] = sums.map(|sum| sum.as_secs_f64());
    let ms = |took: Duration| took.as_millis();
    format!(
        "{:?}: {} plans, {planned:.1} s in all, median {} ms, worst {} ms; check {checked:.1} s, writes {wrote:.1} s, commit {committed:.1} s, reports {heard:.1} s; {} MiB",
        scenario.kind,
        plans.len(),
        ms(plans[plans.len() / 2]),
        ms(plans[plans.len() - 1]),
        memory("VmHWM"),
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

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn host(n: usize) -> HostId {
    format!("h{n:05}").parse().unwrap()
}

impl World {
    fn new(scenario: Scenario) -> Self {
        let now = Timestamp(1_000_000_000);
        let leader = LeaderId::from_random([1; 10]);
        Self {
            cluster: Cluster::new(ClusterId::from_random([7; 10]), Term(1), leader, now),
            now,
            sequence: 1,
            scenario,
            seqs: vec![0; scenario.hosts],
            told: vec![BTreeSet::new(); scenario.hosts],
            dead: BTreeSet::new(),
        }
    }

    fn commit(&mut self, writes: Vec<Write>) {
        self.sequence += writes.len() as u64;
        self.cluster.commit(writes, self.sequence, self.now);
    }

    fn plan(&mut self) -> (Plan, Duration) {
        let (plan, took) = timed(|| self.cluster.plan(self.now));
        let writes = self.cluster.writes(&plan);
        self.commit(writes);
        (plan, took)
    }

    fn beat(&mut self, n: usize) {
        let labels = [
            ("zone", format!("z{}", n % 6)),
            ("disk", ["ssd", "hdd"][n / 7 % 2].to_owned()),
        ];
        let labels = labels.map(|(label, value)| (label.to_owned(), value));
        let odd = if self.scenario.distinct { n as u64 } else { 0 };
        let beat = Heartbeat {
            cluster: self.cluster.cluster.clone(),
            host: host(n),
            boot: BootId::from_random([1; 10]),
            term: Term(1),
            sequence: u64::MAX,
            status_seq: self.seqs[n],
            table_seq: 0,
            memory_bytes: 0,
            cpu_millis: 0,
            replicas: 0,
            loads: Vec::new(),
            leaving: false,
            at: None,
            info: HostInfo {
                name: Name::nearest(host(n).as_str()).unwrap(),
                http: "10.0.0.1:8080".into(),
                peer: Some("10.0.0.1:7001".into()),
                labels: BTreeMap::from(labels),
                capacity: Capacity {
                    memory_bytes: (4 << 30) + odd * (1 << 20),
                    cpu_millis: 16_000 + odd,
                    replicas: 2_000 + odd,
                },
                ..HostInfo::default()
            },
        };
        self.cluster
            .observe(Observation::Heartbeat(Box::new(beat)), self.now);
    }

    /// Everything that the host holds is ready; what it has told of is not told again.
    fn report(&mut self, n: usize) {
        self.seqs[n] += 1;
        let told = &mut self.told[n];
        let id = host(n);
        let set = self.cluster.hosts()[&id].set.as_ref();
        let mut replicas = Vec::new();
        for group in set.iter().flat_map(|set| &set.groups) {
            let new = group
                .slots
                .iter()
                .filter(|slot| told.insert((group.workload.clone(), slot.placement)));
            replicas.extend(new.map(|slot| ReplicaStatus {
                namespace: group.namespace.clone(),
                workload: group.workload.clone(),
                replica: ReplicaId {
                    slot: slot.slot,
                    placement: slot.placement,
                    start: 1,
                },
                revision: group.revision,
                state: ReplicaState::Running,
                ready: true,
                since: self.now,
                reason: None,
                exit_code: None,
                given_up: false,
                standby: false,
                memory_bytes: 0,
                cpu_millis: 0,
                in_flight: 0,
                answers: wasmorch_api::Answers::default(),
            }));
        }
        let report = StatusReport {
            cluster: self.cluster.cluster.clone(),
            host: id,
            boot: BootId::from_random([1; 10]),
            status_seq: self.seqs[n],
            full: self.seqs[n] == 1,
            replicas,
            next: None,
        };
        self.cluster.observe(Observation::Status(report), self.now);
    }

    /// A second passes in which all hosts are heard.
    fn step(&mut self) {
        self.now.0 += 1_000;
        for n in 0..self.scenario.hosts {
            if !self.dead.contains(&n) {
                self.beat(n);
            }
        }
        self.cluster.observe(Observation::Tick, self.now);
    }

    fn call(&self) -> Call {
        Call {
            namespace: name("default"),
            now: self.now,
            request_id: None,
            by: "bench".into(),
        }
    }

    fn deploy(&mut self, numbers: &[usize]) {
        for some in numbers.chunks(1_000) {
            let workloads = some
                .iter()
                .map(|n| (self.spec(*n), self.scenario.kind))
                .collect();
            let input = DeployInput {
                workloads,
                if_index: None,
                ..DeployInput::default()
            };
            let outcome = commands::deploy(&self.cluster, &input, &self.call()).unwrap();
            self.commit(outcome.writes);
        }
    }

    fn spec(&self, n: usize) -> WorkloadSpec {
        let each = self.scenario.replicas / self.scenario.workloads;
        let mut spec = WorkloadSpec {
            name: name(&format!("w{n:06}")),
            artifact: Some(Digest::of(b"1")),
            replicas: Some(Replicas::Count(each as u32)),
            ..WorkloadSpec::default()
        };
        if self.scenario.distinct {
            spec.resources.reserve.memory = ByteSize((1 << 20) + (n as u64 % 1_000) * 1_024);
        }
        if n < self.scenario.listening {
            let listen = vec![9_000 + n as u16];
            spec.bindings.sockets = Some(Sockets {
                listen,
                ..Sockets::default()
            });
        }
        if self.scenario.ruled && n.is_multiple_of(3) {
            spec.constraints = vec![
                Constraint::Label {
                    label: "disk".into(),
                    test: LabelTest::Eq("ssd".into()),
                },
                Constraint::Distinct {
                    distinct: "host".into(),
                    max: 1,
                },
            ];
            spec.affinity = vec![Affinity {
                label: "zone".into(),
                weight: -50,
                test: LabelTest::Eq("z3".into()),
            }];
        }
        spec
    }

    /// One workload is scaled by one.
    fn change(&mut self) -> Duration {
        let request = ChangeRequest {
            workload: name("w000000"),
            desired: Some((self.scenario.replicas / self.scenario.workloads) as u32 + 1),
            args: None,
            data: false,
            request_id: None,
            by: None,
        };
        let outcome = commands::scale(&self.cluster, &request, &self.call()).unwrap();
        self.commit(outcome.writes);
        let (plan, took) = self.plan();
        assert_eq!(plan.start.len(), 1);
        let key = WorkloadKey::new(name("default"), name("w000000"));
        assert!(self.cluster.workload(&key).is_some());
        took
    }

    /// One host goes silent; all others speak, and report what replaced it as ready.
    fn kill(&mut self, n: usize) -> Replaced {
        while !self.plan().0.is_empty() {}
        let lost = host(n);
        let held = self.cluster.hosts()[&lost].set.as_ref().unwrap();
        let held: usize = held.groups.iter().map(|group| group.slots.len()).sum();
        self.dead.insert(n);
        for _ in 0..6 {
            self.step();
        }
        let (plan, decided) = timed(|| self.cluster.plan(self.now));
        assert_eq!((plan.start.len(), plan.stop.len()), (held, held));
        let (broken, checked) = timed(|| check::check_touched(&self.cluster, &plan));
        assert!(broken.is_empty(), "{:?}", broken.first());
        let (writes, wrote) = timed(|| self.cluster.writes(&plan));
        let touched: BTreeSet<HostId> = plan.start.iter().map(|one| one.host.clone()).collect();
        self.commit(writes);
        for n in 0..self.scenario.hosts {
            if touched.contains(&host(n)) {
                self.report(n);
            }
        }
        Replaced {
            decided,
            checked,
            wrote,
        }
    }
}
