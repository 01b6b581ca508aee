//! Rolls in a row under constant load, some of them while a host or the leader is killed.
//!
//! Owns what counts as a failed request. One that was under way when its gateway, or the host of its
//! replica, was killed may fail, and nothing else may: a POST, which nobody may repeat, only if it was on that
//! very host. Whoever asks a gateway that is gone goes on when it is back. Every slot that has nothing on a host
//! that is killed keeps a ready replica all the while, whoever leads.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::daemons::{Daemons, leader};
use crate::nats_client::Client;
use crate::{guest, wait_for};

mod clients;
mod slots;

/// The workload that is rolled.
const NAME: &str = "rolled";
const HOST: &str = "rolled.default.localhost";
/// Its versions, by turns.
const VERSIONS: [&str; 2] = ["hello-http", "hello-http-v2"];
const HOSTS: usize = 3;
const CONTROLLERS: usize = 2;
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

/// What was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// By a connection of its own.
    Get,
    /// With a body that is said back, over a connection that is kept.
    Post,
    /// Over NATS.
    Call,
}

/// A request without its answer.
#[derive(Debug, Clone)]
pub struct Failed {
    /// How it was asked.
    pub asked: Asked,
    /// Whose gateway was asked; one more than there are: by a call over NATS.
    pub gateway: usize,
    /// The roll in which it was asked, from 0.
    pub roll: usize,
    /// Milliseconds that it took.
    pub took_ms: u128,
    /// What came instead.
    pub what: String,
    /// The right answer had begun.
    broke_off: bool,
    began: Instant,
    ended: Instant,
}

/// A host that was killed.
struct Kill {
    host: usize,
    /// Where other gateways reach it.
    peer: String,
    from: Instant,
    /// Nothing of it is left.
    to: Instant,
}

impl Kill {
    /// Whether it has taken this request with it. A POST was there if its gateway was, if its answer was on
    /// its way (who sends it nobody tells), or if another gateway says that it was lost there.
    fn took(&self, one: &Failed) -> bool {
        let meanwhile = one.began <= self.to && one.ended >= self.from;
        let there = || {
            let lost = one.what.starts_with("502 lost: ");
            one.gateway == self.host || one.broke_off || lost && one.what.contains(&self.peer)
        };
        meanwhile && (one.asked != Asked::Post || there())
    }
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
    /// Of these, POSTs whose bodies were said back.
    pub posts: u64,
    /// Requests that failed, and were under way when a host was killed.
    pub under_way: Vec<Failed>,
    /// All others that failed: there should be none.
    pub lost: Vec<Failed>,
    /// Slots without a ready replica, and the roll in which that was seen: there should be none, but for
    /// those that had something on a host that was killed.
    pub short: Vec<(usize, BTreeSet<u64>)>,
    /// How often that was looked at.
    pub looks: u64,
    /// Of these, while the leader was dead or new.
    pub leaderless_looks: u64,
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
    posts: AtomicU64,
    roll: AtomicU64,
    failed: Mutex<Vec<Failed>>,
    /// Slots that a killed host may have left without a ready replica.
    excused: Mutex<BTreeSet<u64>>,
    short: Mutex<Vec<(usize, BTreeSet<u64>)>>,
    looks: AtomicU64,
    /// The leader was killed, and the roll is not over.
    leaderless: AtomicBool,
    leaderless_looks: AtomicU64,
    over: AtomicBool,
}

impl Shared {
    fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    fn roll(&self) -> usize {
        self.roll.load(Ordering::Relaxed) as usize
    }

    fn excused(&self) -> BTreeSet<u64> {
        self.excused.lock().expect("nobody panicked").clone()
    }

    fn excuse(&self, slots: BTreeSet<u64>) {
        *self.excused.lock().expect("nobody panicked") = slots;
    }
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
        ..Shared::default()
    };
    let name = |n: usize| format!("host-{n}");
    let hosts: Vec<String> = (0..HOSTS).map(|n| daemons.host_id(&name(n))).collect();
    let mut rolls = Vec::new();
    let mut kills = Vec::new();
    std::thread::scope(|scope| {
        let over = Over(&shared);
        for gateway in 0..HOSTS {
            for client in 0..plan.clients {
                let shared = &shared;
                scope.spawn(move || clients::get(shared, gateway));
                scope.spawn(move || clients::post(shared, gateway, client));
            }
        }
        let (shared, url) = (&shared, daemons.url());
        let (looking, called) = (url.clone(), url);
        let (hosts, replicas) = (hosts.as_slice(), plan.replicas);
        scope.spawn(move || slots::look(shared, hosts, replicas, &looking));
        scope.spawn(move || clients::call(shared, &called));
        for (n, fault) in plan.faults.iter().enumerate() {
            shared.roll.store(n as u64, Ordering::Relaxed);
            let took = one(&mut daemons, plan, (n, *fault), shared, &mut kills);
            let fault = *fault;
            rolls.push(Roll { fault, took });
        }
        drop(over);
    });
    let failed = shared.failed.into_inner().expect("no client panicked");
    let taken = |one: &Failed| kills.iter().any(|kill| kill.took(one));
    let (under_way, lost) = failed.into_iter().partition(taken);
    Told {
        rolls,
        answered: shared.answered.into_inner(),
        posts: shared.posts.into_inner(),
        under_way,
        lost,
        short: shared.short.into_inner().expect("no look panicked"),
        looks: shared.looks.into_inner(),
        leaderless_looks: shared.leaderless_looks.into_inner(),
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
    kills: &mut Vec<Kill>,
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
        Fault::Host => kills.push(kill_host(daemons, killed, shared)),
        Fault::Leader => {
            shared.leaderless.store(true, Ordering::Relaxed);
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
        shared.excuse(BTreeSet::new());
        shared.leaderless.store(false, Ordering::Relaxed);
    }
    took
}

/// Kills a host, and waits until nothing of it is left.
fn kill_host(daemons: &mut Daemons, killed: usize, shared: &Shared) -> Kill {
    let id = daemons.host_id(&format!("host-{killed}"));
    let client = daemons.client();
    let peer = peer_of(&client, &id);
    let process = daemons.hosts[killed].take().expect("it runs");
    let server = &daemons.nats[0];
    assert!(server.connections(&id) > 0, "it is known by this name");
    // What is there goes with it, or was to take over: asked last, since a rollout moves meanwhile.
    let slots = wait_for("what it has", || slots::placed_on(&client, &id));
    shared.excuse(slots);
    shared.gateways[killed].away.store(true, Ordering::SeqCst);
    let from = Instant::now();
    process.kill();
    // Until the server has seen that they are gone, its runners are called over NATS.
    wait_for("the server to have seen its end", || {
        (server.connections(&id) == 0).then_some(())
    });
    Kill {
        host: killed,
        peer,
        from,
        to: Instant::now(),
    }
}

/// Where a host's gateway is reached by others, as their errors name it.
fn peer_of(client: &Client, id: &str) -> String {
    wait_for("where it is reached", || {
        let record = client.kept(&format!("host.{id}"))?.value;
        Some(format!("{}: ", record["info"]["peer"].as_str()?))
    })
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
        clients::says(&address).is_ok().then_some(address)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_post_is_excused_only_by_the_host_that_had_it() {
        let now = Instant::now();
        let after = |ms| now + Duration::from_millis(ms);
        let kill = Kill {
            host: 1,
            peer: "127.0.0.1:70: ".into(),
            from: after(100),
            to: after(200),
        };
        let failed = |gateway, what: &str| Failed {
            asked: Asked::Post,
            gateway,
            roll: 0,
            took_ms: 0,
            what: what.into(),
            broke_off: false,
            began: after(90),
            ended: after(110),
        };
        let lost = failed(0, "502 lost: what served it was lost: 127.0.0.1:70: reset");
        assert!(kill.took(&lost));
        assert!(kill.took(&failed(1, "reset")), "by its own gateway");
        let broke_off = Failed {
            broke_off: true,
            ..failed(0, "reset")
        };
        assert!(kill.took(&broke_off));
        for what in [
            "reset",
            "503 refused: 127.0.0.1:70: refused",
            "502 lost: 127.0.0.1:701: reset",
        ] {
            assert!(!kill.took(&failed(0, what)), "{what}");
            let get = Failed {
                asked: Asked::Get,
                ..failed(0, what)
            };
            assert!(kill.took(&get), "{what}");
        }
        let late = Failed {
            began: after(201),
            ended: after(202),
            ..lost
        };
        assert!(!kill.took(&late));
    }
}
