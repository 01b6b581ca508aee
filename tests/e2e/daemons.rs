//! The parts as daemons: three hosts and a controller on a nats-server of their own; each of them
//! is killed and started again.

use std::time::Duration;

use wasmorch_tests::daemons::serving_for;
use wasmorch_tests::http;
use wasmorch_tests::nats::Nats;
use wasmorch_tests::nats_client::Client;
use wasmorch_tests::process::Process;
use wasmorch_tests::up::Home;
use wasmorch_tests::{guest, wait_for};

struct Daemons {
    home: Home,
    nats: Nats,
    controller: Option<Process>,
    hosts: Vec<Option<Process>>,
}

impl Daemons {
    fn start(hosts: usize) -> Self {
        let home = Home::new();
        let nats = Nats::start(&home.path().join("nats"));
        let mut daemons = Self {
            home,
            nats,
            controller: None,
            hosts: Vec::new(),
        };
        daemons.start_controller();
        for n in 0..hosts {
            daemons.hosts.push(None);
            daemons.start_host(n);
        }
        wait_for("every host to be alive", || {
            let listed = daemons.run(&["hosts", "--json"]);
            let alive = listed.out.matches("\"alive\"").count();
            (listed.code == 0 && alive == hosts).then_some(())
        });
        daemons
    }

    fn start_controller(&mut self) {
        let command = self
            .home
            .command(&["--nats", &self.nats.url(), "controller"]);
        self.controller = Some(Process::start(command, self.home.path(), "controller"));
    }

    fn start_host(&mut self, n: usize) {
        let name = format!("host-{n}");
        let data = self.home.path().join(&name);
        let data = data.to_str().expect("text");
        let url = self.nats.url();
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
        let command = self.home.command(&args);
        self.hosts[n] = Some(Process::start(command, self.home.path(), &name));
    }

    fn run(&self, args: &[&str]) -> wasmorch_tests::process::Done {
        let url = self.nats.url();
        let args: Vec<&str> = ["--nats", &url]
            .into_iter()
            .chain(args.iter().copied())
            .collect();
        self.home.run(&args)
    }

    /// The gateways of the live hosts.
    fn gateways(&self) -> Vec<String> {
        let listed = self.run(&["hosts", "--json"]);
        if listed.code != 0 {
            return Vec::new();
        }
        let alive = |host: &&serde_json::Value| host["state"] == "alive";
        let hosts = listed.json();
        let hosts = hosts.as_array().expect("a list is an array");
        hosts
            .iter()
            .filter(alive)
            .filter_map(|h| Some(h["http"].as_str()?.to_owned()))
            .collect()
    }

    fn answers(&self, gateway: &str) -> bool {
        http::get(gateway, "hello.default.localhost", "/")
            .is_ok_and(|answer| answer.status == 200 && answer.body.contains("Hello"))
    }

    #[track_caller]
    fn serve_everywhere(&self, count: usize) {
        wait_for("an answer from every gateway", || {
            let gateways = self.gateways();
            (gateways.len() == count && gateways.iter().all(|one| self.answers(one))).then_some(())
        });
    }
}

/// What the cluster must be able to do without, and for how long at least.
const NOBODY_LEADS: Duration = Duration::from_secs(8);
const WITHOUT_NATS: Duration = Duration::from_secs(60);

#[test]
fn any_gateway_answers_and_every_part_may_be_killed() {
    let mut daemons = Daemons::start(3);
    let hello = guest("hello-http");
    // One replica on one of three hosts: two gateways have to go to another host.
    daemons
        .run(&["deploy", hello.to_str().expect("text"), "--name", "hello"])
        .ok();
    daemons.serve_everywhere(3);

    // The controller: nothing is disturbed, and a new one takes over.
    let gateways = daemons.gateways();
    daemons.controller.take().expect("runs").kill();
    // Law 3: nobody leads, and every request is served; longer than a lease, and than a host may be silent.
    serving_for(&gateways, "hello", NOBODY_LEADS);
    daemons.start_controller();
    wait_for("a leader", || {
        (daemons.run(&["scale", "hello=3"]).code == 0).then_some(())
    });
    wait_for("three ready replicas", || {
        let listed = daemons.run(&["ps", "--json"]);
        (listed.code == 0 && listed.json()[0]["ready"] == 3).then_some(())
    });

    // The server: every request is answered while it is away.
    daemons.nats.kill();
    serving_for(&gateways, "hello", WITHOUT_NATS);
    // A host that restarts meanwhile starts what it held.
    daemons.hosts[0].take().expect("runs").kill();
    daemons.start_host(0);
    let first = daemons.hosts[0].as_ref().expect("started");
    let addr = wait_for("the host to tell its gateway", || {
        gateway_in_log(&first.stderr())
    });
    wait_for("the host to serve what it held", || {
        daemons.answers(&addr).then_some(())
    });
    daemons.nats.start_again();
    daemons.serve_everywhere(3);
    daemons.run(&["scale", "hello=2"]).ok();

    // Each host in turn.
    for n in 0..3 {
        daemons.hosts[n].take().expect("runs").kill();
        daemons.start_host(n);
        daemons.serve_everywhere(3);
    }
}

/// The address after `http=` in a host's log.
fn gateway_in_log(log: &str) -> Option<String> {
    let rest = log.split("http=").nth(1)?;
    let addr: String = rest
        .chars()
        .take_while(|c| c.is_ascii_digit() || *c == '.' || *c == ':')
        .collect();
    (!addr.is_empty()).then_some(addr)
}

#[test]
fn a_dead_hosts_replicas_are_served_elsewhere() {
    let mut daemons = Daemons::start(2);
    let hello = guest("hello-http");
    let flags = [
        "deploy",
        hello.to_str().expect("text"),
        "--name",
        "hello",
        "--replicas",
        "2",
    ];
    daemons.run(&flags).ok();
    daemons.serve_everywhere(2);
    daemons.hosts[0].take().expect("runs").kill();
    wait_for("both replicas on the host that is left", || {
        let listed = daemons.run(&["ps", "--json"]);
        let hosts = daemons.gateways();
        let there = listed.code == 0 && listed.json()[0]["ready"] == 2;
        (there && hosts.len() == 1 && daemons.answers(&hosts[0])).then_some(())
    });
}

/// Every kind is there again after its host, the controller and the server were killed at once.
#[test]
fn every_kind_comes_back_after_a_power_cut() {
    let mut daemons = Daemons::start(1);
    let sample = |name: &str| guest(name).to_str().expect("text").to_owned();
    let deploy = |daemons: &Daemons, name: &str, flags: &[&str]| {
        let path = sample(name);
        let args = [&["deploy", &path, "--name", name], flags].concat();
        daemons.run(&args).ok();
    };
    deploy(&daemons, "hello-http", &[]);
    deploy(&daemons, "echo-messages", &["--grant", "subscribe=ask.*"]);
    deploy(&daemons, "ticker", &["--", "50"]);
    deploy(&daemons, "command-p3", &["--job"]);
    let finished = daemons.run(&["status", "command-p3", "--json"]).ok().json();

    daemons.hosts[0].take().expect("runs").kill();
    daemons.controller.take().expect("runs").kill();
    daemons.nats.kill();
    daemons.nats.start_again();
    daemons.start_controller();
    daemons.start_host(0);

    wait_for("every long-running kind to be ready again", || {
        let listed = daemons.run(&["ps", "--json"]);
        if listed.code != 0 {
            return None;
        }
        let listed = listed.json();
        let ready = |one: &&serde_json::Value| one["state"] == "ready" && one["ready"] == 1;
        let ready = listed.as_array()?.iter().filter(ready).count();
        (ready == 3).then_some(())
    });
    // Ready means that the subscription is confirmed.
    let nats = Client::connect(&daemons.nats.url());
    assert_eq!(nats.request("ask.one", b"hello"), b"echo: hello");
    let ticker = daemons.run(&["ps", "ticker", "--json"]).ok().json();
    let start = ticker[0]["replica"].as_str().expect("text").to_owned();
    assert!(start.ends_with("-2"), "started a second time: {start}");
    wait_for("the service to tick in this start", || {
        let logs = daemons.run(&["logs", "ticker", "--tail", "5"]);
        let line = format!("ticker/{start}  tick");
        (logs.code == 0 && logs.out.contains(&line)).then_some(())
    });
    let after = daemons.run(&["status", "command-p3", "--json"]).ok().json();
    assert_eq!(after["state"], "completed");
    assert_eq!(
        after["index"], finished["index"],
        "a job that is done is not run again"
    );
}

/// Law 3: endpoints are on the disk of every gateway, those of workloads too that its host does not run.
#[test]
fn a_gateway_that_restarts_without_nats_reaches_the_replica_on_another_host() {
    let mut daemons = Daemons::start(2);
    let hello = guest("hello-http");
    daemons
        .run(&["deploy", hello.to_str().expect("text"), "--name", "hello"])
        .ok();
    daemons.serve_everywhere(2);
    let replicas = daemons.run(&["ps", "hello", "--json"]).ok().json();
    let other = usize::from(replicas[0]["host"] == "host-0");
    let tables = format!("host-{other}/endpoints/tables.json");
    let tables = daemons.home.path().join(tables);
    wait_for("the endpoints on its disk", || {
        let text = std::fs::read(&tables).ok()?;
        let tables: serde_json::Value = serde_json::from_slice(&text).ok()?;
        let names = |one: &serde_json::Value| {
            let hosts = one[0]["hosts"].as_array();
            one[0]["workload"] == "hello" && hosts.is_some_and(|hosts| hosts.len() == 1)
        };
        tables["endpoints"]
            .as_array()?
            .iter()
            .any(names)
            .then_some(())
    });

    daemons.nats.kill();
    daemons.hosts[other].take().expect("runs").kill();
    daemons.start_host(other);
    let started = daemons.hosts[other].as_ref().expect("started");
    let gateway = wait_for("the host to tell its gateway", || {
        gateway_in_log(&started.stderr())
    });
    wait_for("an answer of the replica on the other host", || {
        daemons.answers(&gateway).then_some(())
    });
    let started = daemons.hosts[other].as_ref().expect("started");
    wait_for("the host to say that NATS does not answer", || {
        let url = daemons.nats.url();
        let said = started
            .stderr()
            .contains(&format!("NATS does not answer at {url}"));
        said.then_some(())
    });
}
