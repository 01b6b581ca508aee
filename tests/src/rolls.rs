//! Rolls in a row under constant load, some of them while a host or the leader is killed.
//!
//! Owns what counts as a failed request. One that was under way when its gateway, or the host of its
//! replica, was killed may fail, and nothing else may. Whoever asks a gateway that is gone goes on when it is back.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{Scope, park_timeout};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::daemons::{Daemons, leader};
use crate::{guest, http, wait_for};

/// The workload that is rolled.
const NAME: &str = "rolled";
const HOST: &str = "rolled.default.localhost";
/// Its versions, by turns.
const VERSIONS: [&str; 2] = ["hello-http", "hello-http-v2"];
const HOSTS: usize = 3;
const CONTROLLERS: usize = 2;
/// Between two requests of one client.
const PACE: Duration = Duration::from_millis(20);
/// For the answer to a call over NATS: one that its host took with it has none.
const CALL_PATIENCE: Duration = Duration::from_secs(10);
/// Between two looks at how many are ready.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// What is killed in the middle of a roll.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// A host, with its gateway.
    Host,
    /// The controller that leads.
    Leader,
}

impl Fault {
    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "undisturbed",
            Self::Host => "a host killed",
            Self::Leader => "the leader killed",
        }
    }
}

/// How it is done.
#[derive(Debug, Clone)]
pub struct Plan {
    /// One roll for each.
    pub faults: Vec<Fault>,
    /// Replicas; as many are promised to be ready (`max_unavailable = 0`).
    pub replicas: u64,
    /// Clients of each gateway, one request at a time each.
    pub clients: usize,
}

/// A request without its answer.
#[derive(Debug, Clone)]
pub struct Failed {
    /// Whose gateway was asked; one more than there are: by a call over NATS.
    pub gateway: usize,
    /// The roll in which it was asked, from 0.
    pub roll: usize,
    /// Milliseconds that it took.
    pub took_ms: u128,
    /// What came instead.
    pub what: String,
    began: Instant,
    ended: Instant,
}

/// One roll.
#[derive(Debug, Clone, Copy)]
pub struct Roll {
    /// What was killed.
    pub fault: Fault,
    /// From `deploy` to its end.
    pub took: Duration,
}

/// What has come of it.
#[derive(Debug)]
pub struct Told {
    /// Each roll.
    pub rolls: Vec<Roll>,
    /// Requests that were answered by the workload.
    pub answered: u64,
    /// Requests that failed, and were under way when a host was killed.
    pub under_way: Vec<Failed>,
    /// All others that failed: there should be none.
    pub lost: Vec<Failed>,
    /// The fewest ready replicas that were seen, but while a host was gone or a leader new.
    pub fewest_ready: u64,
    /// How often that was looked at.
    pub looks: u64,
}

/// A gateway as its clients see it.
struct Gateway {
    address: Mutex<String>,
    away: AtomicBool,
}

#[derive(Default)]
struct Shared {
    gateways: Vec<Gateway>,
    answered: AtomicU64,
    roll: AtomicU64,
    failed: Mutex<Vec<Failed>>,
    /// Readiness promises nothing now.
    excused: AtomicBool,
    fewest: AtomicU64,
    looks: AtomicU64,
    over: AtomicBool,
}

/// Rolls as planned.
#[track_caller]
pub fn roll(plan: &Plan) -> Told {
    let mut daemons = Daemons::start(CONTROLLERS, HOSTS);
    deploy(&daemons, plan, 0);
    let gateway = |n| Gateway {
        address: Mutex::new(until_back(&daemons, n)),
        away: AtomicBool::new(false),
    };
    let shared = Shared {
        gateways: (0..HOSTS).map(gateway).collect(),
        fewest: AtomicU64::new(u64::MAX),
        ..Shared::default()
    };
    let mut rolls = Vec::new();
    let mut kills = Vec::new();
    std::thread::scope(|scope| {
        let over = Over(&shared);
        for gateway in 0..HOSTS {
            for _ in 0..plan.clients {
                let shared = &shared;
                scope.spawn(move || ask(shared, gateway));
            }
        }
        look(scope, &shared, daemons.url());
        call(scope, &shared, daemons.url());
        for (n, fault) in plan.faults.iter().enumerate() {
            shared.roll.store(n as u64, Ordering::Relaxed);
            let took = one(&mut daemons, plan, (n, *fault), &shared, &mut kills);
            let fault = *fault;
            rolls.push(Roll { fault, took });
        }
        drop(over);
    });
    let failed = shared.failed.into_inner().expect("no client panicked");
    let during = |one: &Failed| {
        let mut kills = kills.iter();
        kills.any(|(from, to)| one.began <= *to && one.ended >= *from)
    };
    let (under_way, lost) = failed.into_iter().partition(during);
    Told {
        rolls,
        answered: shared.answered.into_inner(),
        under_way,
        lost,
        fewest_ready: shared.fewest.into_inner(),
        looks: shared.looks.into_inner(),
    }
}

/// Ends the clients, also when a roll has panicked: the scope waits for them.
struct Over<'a>(&'a Shared);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.over.store(true, Ordering::Relaxed);
    }
}

/// One deploy, and what is killed meanwhile; how long it took.
fn one(
    daemons: &mut Daemons,
    plan: &Plan,
    (n, fault): (usize, Fault),
    shared: &Shared,
    kills: &mut Vec<(Instant, Instant)>,
) -> Duration {
    let began = Instant::now();
    let before = revision(daemons);
    let mut command = command(daemons, plan, n + 1);
    let mut deploying = command.spawn().expect("`wasmorch` starts");
    if fault != Fault::None {
        wait_for("the roll to have begun", || {
            let status = status(daemons)?;
            let replicas = status["replicas"].as_array()?;
            let new = replicas
                .iter()
                .filter(|one| one["revision"].as_u64() > before);
            { new }.any(|one| one["ready"] == true).then_some(())
        });
    }
    let killed = (n + 1) % HOSTS;
    match fault {
        Fault::None => {}
        Fault::Host => {
            shared.excused.store(true, Ordering::Relaxed);
            shared.gateways[killed].away.store(true, Ordering::SeqCst);
            let from = Instant::now();
            let id = daemons.host_id(&format!("host-{killed}"));
            let server = &daemons.nats[0];
            assert!(server.connections(&id) > 0, "it is known by this name");
            daemons.hosts[killed].take().expect("it runs").kill();
            // Until the server has seen that they are gone, its runners are called over NATS.
            wait_for("the server to have seen its end", || {
                (server.connections(&id) == 0).then_some(())
            });
            kills.push((from, Instant::now()));
        }
        Fault::Leader => {
            shared.excused.store(true, Ordering::Relaxed);
            let client = daemons.client();
            let (id, _) = wait_for("a leader", || leader(&client));
            let leads = daemons.controller_of(&id);
            daemons.controllers[leads].take().expect("it runs").kill();
            daemons.start_controller(leads);
        }
    }
    let ended = deploying.wait().expect("`deploy` can be waited for");
    assert!(ended.success(), "roll {n}, {}: {ended}", fault.name());
    let took = began.elapsed();
    if fault == Fault::Host {
        daemons.start_host(killed);
        let gateway = &shared.gateways[killed];
        *gateway.address.lock().expect("no client panicked") = until_back(daemons, killed);
        gateway.away.store(false, Ordering::SeqCst);
    }
    if fault != Fault::None {
        wait_for("every replica to be ready", || {
            let status = status(daemons)?;
            (status["ready"] == plan.replicas).then_some(())
        });
        // The leader has heard of them all: from here on it would know of one that is missing.
        shared.excused.store(false, Ordering::Relaxed);
    }
    took
}

fn command(daemons: &Daemons, plan: &Plan, n: usize) -> std::process::Command {
    let component = guest(VERSIONS[n % VERSIONS.len()]);
    let text = format!(
        "[workload]\nname = \"{NAME}\"\ncomponent = \"{}\"\nreplicas = {}\n\
         update = {{ max_surge = 2, max_unavailable = 0, min_ready = \"500ms\" }}\n",
        component.display(),
        plan.replicas
    );
    let file = daemons.home.write(&format!("roll-{}.toml", n % 2), text);
    let file = file.to_str().expect("the temp folder is text").to_owned();
    let mut command = daemons
        .home
        .command(&["--nats", &daemons.url(), "deploy", &file]);
    let log = std::fs::File::create(daemons.home.path().join("deploy.log")).expect("a log");
    command.stdout(std::process::Stdio::null()).stderr(log);
    command
}

fn deploy(daemons: &Daemons, plan: &Plan, n: usize) {
    let ended = command(daemons, plan, n).status().expect("`wasmorch` runs");
    assert!(ended.success(), "the first deploy: {ended}");
}

fn status(daemons: &Daemons) -> Option<Value> {
    let done = daemons.run(&["status", NAME, "--json"]);
    (done.code == 0).then(|| done.json())
}

fn revision(daemons: &Daemons) -> Option<u64> {
    wait_for("its status", || status(daemons))["revision"].as_u64()
}

/// The address of a host's gateway, once it serves.
fn until_back(daemons: &Daemons, n: usize) -> String {
    let name = format!("host-{n}");
    wait_for("a gateway to serve", || {
        let listed = daemons.run(&["hosts", "--json"]);
        let hosts = (listed.code == 0).then(|| listed.json())?;
        let host = hosts
            .as_array()?
            .iter()
            .find(|host| host["name"] == name.as_str())?;
        let address = host["http"].as_str()?.to_owned();
        says(&address).is_ok().then_some(address)
    })
}

/// Asks the workload once.
fn says(address: &str) -> Result<(), String> {
    match http::get(address, HOST, "/") {
        Ok(answer) if answer.status == 200 && answer.body.contains("Hello") => Ok(()),
        Ok(answer) => Err(format!("{}: {}", answer.status, answer.body.trim())),
        Err(error) => Err(error.to_string()),
    }
}

fn ask(shared: &Shared, gateway: usize) {
    let asked = &shared.gateways[gateway];
    while !shared.over.load(Ordering::Relaxed) {
        park_timeout(PACE);
        let address = asked.address.lock().expect("nobody panicked").clone();
        let began = Instant::now();
        if asked.away.load(Ordering::SeqCst) {
            continue;
        }
        match says(&address) {
            Ok(()) => drop(shared.answered.fetch_add(1, Ordering::Relaxed)),
            Err(what) => {
                let failed = Failed {
                    gateway,
                    roll: shared.roll.load(Ordering::Relaxed) as usize,
                    took_ms: began.elapsed().as_millis(),
                    what,
                    began,
                    ended: Instant::now(),
                };
                shared.failed.lock().expect("nobody panicked").push(failed);
            }
        }
    }
}

/// Calls the workload over NATS, all the while: whoever is called there drains too.
fn call<'scope>(scope: &'scope Scope<'scope, '_>, shared: &'scope Shared, url: String) {
    scope.spawn(move || {
        let client = crate::nats_client::Client::connect(&url);
        let subject = format!("wasmorch.v1.invoke.default.{NAME}");
        while !shared.over.load(Ordering::Relaxed) {
            park_timeout(PACE);
            let began = Instant::now();
            let what = match client.try_invoke(&subject, CALL_PATIENCE) {
                Ok((status, body)) if status.as_deref() == Some("200") => {
                    let hello = String::from_utf8_lossy(&body).contains("Hello");
                    if hello {
                        shared.answered.fetch_add(1, Ordering::Relaxed);
                        continue;
                    }
                    format!("a call was answered: {body:?}")
                }
                Ok((status, body)) => {
                    format!("a call: {status:?}: {}", String::from_utf8_lossy(&body))
                }
                Err(error) => format!("a call: {error}"),
            };
            let failed = Failed {
                gateway: HOSTS,
                roll: shared.roll.load(Ordering::Relaxed) as usize,
                took_ms: began.elapsed().as_millis(),
                what,
                began,
                ended: Instant::now(),
            };
            shared.failed.lock().expect("nobody panicked").push(failed);
        }
    });
}

/// Looks how many are ready, as the leader tells it.
fn look<'scope>(scope: &'scope Scope<'scope, '_>, shared: &'scope Shared, url: String) {
    scope.spawn(move || {
        let client = crate::nats_client::Client::connect(&url);
        while !shared.over.load(Ordering::Relaxed) {
            park_timeout(LOOK_EVERY);
            let before = shared.excused.load(Ordering::Relaxed);
            let subject = "wasmorch.v1.api.default.status";
            let status = client.ask(subject, &json!({ "workload": NAME }), LOOK_EVERY * 10);
            let excused = before || shared.excused.load(Ordering::Relaxed);
            let ready = status.and_then(|status| status["ready"].as_u64());
            if let Some(ready) = ready.filter(|_| !excused) {
                shared.fewest.fetch_min(ready, Ordering::Relaxed);
                shared.looks.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
}
