//! The parts as daemons: several controllers, several hosts, and the nats-servers that they meet on.
//!
//! Owns which process is which, so that a test can stop, kill and resume them one by one.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::http;
use crate::nats::Nats;
use crate::nats_client::Client;
use crate::process::{Done, Process};
use crate::up::Home;
use crate::{guest, measured, wait_for, wasmorch};

/// A whole cluster of daemons.
pub struct Daemons {
    /// Its servers: one, or a cluster of them.
    pub nats: Vec<Nats>,
    /// Its controllers; `None` while one is down.
    pub controllers: Vec<Option<Process>>,
    /// Its hosts; `None` while one is down.
    pub hosts: Vec<Option<Process>>,
    /// Flags of every controller and every host that is started from now on.
    pub flags: Flags,
    /// What hosts that are started from now on are.
    pub host_program: PathBuf,
    /// Its user; dropped last, after those who write there.
    pub home: Home,
}

/// What daemons are given besides where they are.
#[derive(Debug, Clone, Copy, Default)]
pub struct Flags {
    /// Of controllers.
    pub controller: &'static [&'static str],
    /// Of hosts.
    pub host: &'static [&'static str],
}

impl Daemons {
    /// One server, so many controllers and hosts; waits until all hosts are alive.
    pub fn start(controllers: usize, hosts: usize) -> Self {
        Self::start_with(controllers, hosts, Flags::default())
    }

    /// The same, with these flags.
    pub fn start_with(controllers: usize, hosts: usize, flags: Flags) -> Self {
        let home = Home::new();
        let nats = vec![Nats::start(&home.path().join("nats"))];
        Self::begin(home, nats, flags).and(controllers, hosts)
    }

    /// The same on these servers.
    pub fn start_on(home: Home, nats: Vec<Nats>, controllers: usize, hosts: usize) -> Self {
        Self::begin(home, nats, Flags::default()).and(controllers, hosts)
    }

    fn begin(home: Home, nats: Vec<Nats>, flags: Flags) -> Self {
        Self {
            home,
            nats,
            flags,
            host_program: wasmorch(),
            controllers: Vec::new(),
            hosts: Vec::new(),
        }
    }

    fn and(mut self, controllers: usize, hosts: usize) -> Self {
        (0..controllers).for_each(|n| self.start_controller(n));
        (0..hosts).for_each(|n| self.start_host(n));
        self.wait_for_hosts(hosts);
        self
    }

    /// Waits until so many hosts are alive.
    #[track_caller]
    pub fn wait_for_hosts(&self, count: usize) {
        wait_for("every host to be alive", || {
            let listed = self.run(&["hosts", "--json"]);
            let alive = listed.out.matches("\"alive\"").count();
            (listed.code == 0 && alive == count).then_some(())
        });
    }

    /// Starts controller `n`.
    pub fn start_controller(&mut self, n: usize) {
        let url = self.url();
        let mut command = self.home.command(&["--nats", &url, "controller", "--json"]);
        command.args(self.flags.controller);
        let process = Process::start(command, self.home.path(), &format!("controller-{n}"));
        put(&mut self.controllers, n, process);
    }

    /// Starts host `n`, named `host-<n>`, on its own folder.
    pub fn start_host(&mut self, n: usize) {
        self.start_host_with(n, &[]);
    }

    /// The same with more flags.
    pub fn start_host_with(&mut self, n: usize, flags: &[&str]) {
        let name = format!("host-{n}");
        let data = self.home.path().join(&name);
        let data = data.to_str().expect("text");
        let url = self.url();
        let args = [
            "--nats",
            &url,
            "host",
            "--data",
            data,
            "--http",
            "127.0.0.1:0",
            "--name",
            &name,
        ];
        let args: Vec<&str> = args.into_iter().chain(flags.iter().copied()).collect();
        let mut command = self.home.command_of(&self.host_program, &args);
        command.args(self.flags.host);
        let process = Process::start(command, self.home.path(), &name);
        put(&mut self.hosts, n, process);
    }

    /// Every server's URL, with commas.
    pub fn url(&self) -> String {
        let urls: Vec<String> = self.nats.iter().map(Nats::url).collect();
        urls.join(",")
    }

    /// A connection to the servers.
    pub fn client(&self) -> Client {
        Client::connect(&self.url())
    }

    /// Runs `wasmorch ARGS` against them.
    pub fn run(&self, args: &[&str]) -> Done {
        let url = self.url();
        let args: Vec<&str> = ["--nats", &url]
            .into_iter()
            .chain(args.iter().copied())
            .collect();
        self.home.run(&args)
    }

    /// Deploys a sample and waits until it is ready.
    #[track_caller]
    pub fn deploy(&self, sample: &str, name: &str, flags: &[&str]) -> Done {
        let path = guest(sample);
        let path = path.to_str().expect("the target folder's path is text");
        let args: Vec<&str> = ["deploy", path, "--name", name]
            .into_iter()
            .chain(flags.iter().copied())
            .collect();
        self.run(&args).ok()
    }

    /// The gateways of the live hosts.
    pub fn gateways(&self) -> Vec<String> {
        let listed = self.run(&["hosts", "--json"]);
        if listed.code != 0 {
            return Vec::new();
        }
        let alive = |host: &&Value| host["state"] == "alive";
        let hosts = listed.json();
        let hosts = hosts.as_array().expect("a list is an array");
        hosts
            .iter()
            .filter(alive)
            .filter_map(|host| Some(host["http"].as_str()?.to_owned()))
            .collect()
    }

    /// The id of a host by its name.
    #[track_caller]
    pub fn host_id(&self, name: &str) -> String {
        let hosts = self.run(&["hosts", "--json"]).ok().json();
        let hosts = hosts.as_array().expect("a list is an array");
        let host = hosts.iter().find(|host| host["name"] == name);
        let id = host.and_then(|host| host["id"].as_str());
        id.expect("the host is listed").to_owned()
    }

    /// The id of controller `n`, as it told it.
    #[track_caller]
    pub fn controller_id(&self, n: usize) -> String {
        let process = self.controllers[n].as_ref().expect("it runs");
        wait_for("a controller to tell its id", || {
            let told: Value = serde_json::from_str(process.stdout().lines().next()?).ok()?;
            Some(told["controller"].as_str()?.to_owned())
        })
    }

    /// Which of the running controllers has this id.
    #[track_caller]
    pub fn controller_of(&self, id: &str) -> usize {
        let is = |n: &usize| self.controllers[*n].is_some() && self.controller_id(*n) == id;
        (0..self.controllers.len())
            .find(is)
            .expect("the leader is one of ours")
    }
}

/// The leader and its term, from one question.
pub fn leader(client: &Client) -> Option<(String, u64)> {
    let version = client.ask(
        "wasmorch.v1.api._.version",
        &json!({}),
        Duration::from_millis(250),
    )?;
    Some((
        version["leader"].as_str()?.to_owned(),
        version["term"].as_u64()?,
    ))
}

/// Whether a gateway answers for a workload of the `hello` samples.
pub fn says_hello(gateway: &str, workload: &str) -> bool {
    http::get(gateway, &format!("{workload}.default.localhost"), "/")
        .is_ok_and(|answer| answer.status == 200 && answer.body.contains("Hello"))
}

/// Asks every gateway for a workload, one after the other, as long as `meanwhile` takes: every request must
/// be answered.
#[track_caller]
pub fn serving<T>(gateways: &[String], workload: &str, meanwhile: impl FnOnce() -> T) -> T {
    let (done, asked, failed) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let result = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                for gateway in gateways {
                    asked.fetch_add(1, Ordering::Relaxed);
                    failed.fetch_add(u64::from(!says_hello(gateway, workload)), Ordering::Relaxed);
                }
            }
        });
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(meanwhile));
        done.store(true, Ordering::Relaxed);
        result
    });
    let result = result.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    let (asked, failed) = (asked.into_inner(), failed.into_inner());
    measured(&format!("{asked} requests meanwhile, {failed} failed"));
    assert!(
        asked > 0 && failed == 0,
        "{failed} of {asked} requests failed"
    );
    result
}

/// The same for so long.
#[track_caller]
pub fn serving_for(gateways: &[String], workload: &str, time: Duration) {
    serving(gateways, workload, || {
        let until = Instant::now() + time;
        while Instant::now() < until {
            std::thread::park_timeout(until - Instant::now());
        }
    });
}

fn put(processes: &mut Vec<Option<Process>>, n: usize, process: Process) {
    if processes.len() <= n {
        processes.resize_with(n + 1, || None);
    }
    processes[n] = Some(process);
}
