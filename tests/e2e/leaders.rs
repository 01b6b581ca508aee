//! Leaders that die, freeze, come back and hand over; servers and stores that go.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};
use wasmorch_tests::daemons::{Daemons, leader, says_hello};
use wasmorch_tests::nats::Nats;
use wasmorch_tests::nats_client::Client;
use wasmorch_tests::process::Process;
use wasmorch_tests::up::Home;
use wasmorch_tests::{measured, wait_for};

const ANSWER: Duration = Duration::from_secs(5);

fn api(verb: &str) -> String {
    format!("wasmorch.v1.api.default.{verb}")
}

/// Waits for a leader of a later term; how long that took from `since`.
#[track_caller]
fn next_leader(client: &Client, after: u64, since: Instant) -> (String, u64, Duration) {
    let (id, term) = wait_for("the next leader", || {
        leader(client).filter(|(_, term)| *term > after)
    });
    (id, term, since.elapsed())
}

#[test]
fn a_leader_that_is_killed_or_stopped_is_followed_by_another() {
    let mut daemons = Daemons::start(3, 0);
    let client = daemons.client();
    let (mut id, mut term) = wait_for("a leader", || leader(&client));
    let mut took = Vec::new();
    for _ in 0..5 {
        let n = daemons.controller_of(&id);
        let process = daemons.controllers[n].take().expect("it leads");
        let killed = Instant::now();
        process.kill();
        let next = next_leader(&client, term, killed);
        took.push(next.2);
        (id, term) = (next.0, next.1);
        daemons.start_controller(n);
        daemons.controller_id(n);
    }
    took.sort();
    measured(&format!(
        "from kill -9 of the leader to another's answer: {took:?}"
    ));
    // The aim is 3 s for every one; a machine that is busy with other tests may miss it once.
    assert!(took[took.len() / 2] < Duration::from_secs(3), "{took:?}");

    // One that ends cleanly hands over: nobody waits for the end of its lease.
    let n = daemons.controller_of(&id);
    let mut process = daemons.controllers[n].take().expect("it leads");
    let stopped = Instant::now();
    process.signal(Signal::TERM);
    let next = next_leader(&client, term, stopped);
    measured(&format!(
        "from SIGTERM of the leader to another's answer: {:?}",
        next.2
    ));
    assert!(next.2 < Duration::from_millis(1_500), "{:?}", next.2);
    assert_eq!(process.wait().code(), Some(0), "{}", process.stderr());
}

/// Keys whose sequences show whether anything was decided.
const DECIDED: [&str; 4] = ["term", "workload.", "revision.", "pub.placements."];

#[test]
fn a_resumed_leader_changes_nothing() {
    let mut daemons = Daemons::start(1, 3);
    daemons.deploy("hello-http", "hello", &["--replicas", "3"]);
    let client = daemons.client();
    let (old, old_term) = leader(&client).expect("it has just answered");
    let old_fence = client.kept("term").expect("a term has begun").sequence;
    daemons.start_controller(1);
    daemons.controller_id(1);

    daemons.controllers[0]
        .as_ref()
        .expect("runs")
        .signal(Signal::STOP);
    let stopped = Instant::now();
    // It is still the one that is asked, and reads these when it goes on: its own batches, of a term that is over.
    for (desired, request_id) in [(1, "frozen-1"), (5, "frozen-2")] {
        let scale = json!({"workload": "hello", "desired": desired, "request_id": request_id});
        let answer = client.ask(&api("scale"), &scale, Duration::from_millis(200));
        assert_eq!(answer, None, "nobody leads but one that stands still");
    }
    let (new, new_term, _) = next_leader(&client, old_term, stopped);
    assert_eq!(new, daemons.controller_id(1));
    daemons.deploy("hello-http-v2", "second", &[]);
    let untouched: Vec<String> = (0..3)
        .map(|n| daemons.host_id(&format!("host-{n}")))
        .filter(|host| set_of(&client, host)["term"] == old_term)
        .collect();
    assert_eq!(untouched.len(), 2, "one replica touches one host");
    for host in &untouched {
        knows_term(&client, host, new_term);
    }
    let gateways = daemons.gateways();
    // A deploy returns when all are ready; that a rollout has completed is decided a second later.
    for name in ["hello", "second"] {
        wait_for("the rollout to be over", || {
            let record = client.kept(&format!("workload.default.{name}"))?.value;
            (record["rollout"]["state"] == "completed").then_some(())
        });
    }
    let before = client.keys(&DECIDED);
    let frozen = Duration::from_secs(20);
    wait_for("it to have stood still for long", || {
        (stopped.elapsed() >= frozen).then_some(())
    });
    assert_eq!(client.keys(&DECIDED), before, "nothing moves meanwhile");

    // While it wakes up, every question is answered, by the one that leads.
    let resumed = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| {
            let client = daemons.client();
            let mut after = 0;
            while after < 50 {
                after += u64::from(resumed.load(Ordering::Relaxed));
                let version = client.ask("wasmorch.v1.api._.version", &json!({}), ANSWER);
                let version = version.expect("no request is swallowed");
                assert_eq!(version["leader"], new.as_str(), "{version}");
            }
        });
        daemons.controllers[0]
            .as_ref()
            .expect("runs")
            .signal(Signal::CONT);
        resumed.store(true, Ordering::Relaxed);
        asking.join().expect("every question was answered");
    });
    let resumed = daemons.controllers[0].as_ref().expect("runs");
    wait_for("the resumed one to see that it does not lead", || {
        resumed
            .stderr()
            .contains("no longer the leader")
            .then_some(())
    });

    // What it would have written: the store refuses it, on a host that nobody has touched too.
    let set = stopping(&client, &untouched[0]);
    let refused = client.put(
        &format!("$KV.wasmorch_state.pub.placements.{}", untouched[0]),
        &[
            (
                "Nats-Expected-Last-Subject-Sequence",
                &old_fence.to_string(),
            ),
            (
                "Nats-Expected-Last-Subject-Sequence-Subject",
                "$KV.wasmorch_state.term",
            ),
        ],
        &set,
    );
    let code = refused["error"]["err_code"].as_u64();
    assert!(matches!(code, Some(10071 | 10164)), "{refused}");
    // What it would have sent past the store: hosts refuse its term.
    let last = client.stream("KV_wasmorch_state").expect("it is there")["state"]["last_seq"]
        .as_u64()
        .expect("a number");
    for host in &untouched {
        client.say(
            &format!("wasmorch.v1.placements.{host}"),
            &[("Nats-Sequence", &(last + 1_000).to_string())],
            &stopping(&client, host),
        );
    }
    let refusal = format!("of term {old_term} from leader {old} is refused: term {new_term}");
    for host in &untouched {
        let said = |n: usize| daemons.hosts[n].as_ref().expect("runs").stderr();
        wait_for("the host's refusal", || {
            let one = (0..3).find(|n| said(*n).contains(&format!("host={host}")))?;
            said(one).contains(&refusal).then_some(())
        });
    }
    assert_eq!(client.keys(&DECIDED), before, "nothing was decided");
    for gateway in &gateways {
        assert!(says_hello(gateway, "hello") && says_hello(gateway, "second"));
    }
    assert_eq!(leader(&client), Some((new, new_term)));
}

/// A host's set as stored.
#[track_caller]
fn set_of(client: &Client, host: &str) -> Value {
    let kept = client.kept(&format!("pub.placements.{host}"));
    kept.expect("the host has a set").value
}

/// The same in the old leader's name, with nothing in it: it would stop everything.
fn stopping(client: &Client, host: &str) -> Vec<u8> {
    let mut set = set_of(client, host);
    set["groups"] = json!([]);
    set.to_string().into_bytes()
}

/// Waits until the host says that it knows of a term.
#[track_caller]
fn knows_term(client: &Client, host: &str, term: u64) {
    let mut beats = client.subscribe(&format!("wasmorch.v1.heartbeat.{host}"));
    wait_for("the host to know the term", || {
        (beats.next(Duration::from_secs(2))?["term"] == term).then_some(())
    });
}

#[test]
fn a_repeated_write_is_done_once_over_a_change_of_leader() {
    let mut daemons = Daemons::start(2, 1);
    daemons.deploy("hello-http", "hello", &[]);
    let client = daemons.client();
    let record = |name: &str| Some(client.kept(&format!("workload.default.{name}"))?.value);
    let spec = json!({"name": "again", "artifact": client.kept("revision.default.hello.1")
        .expect("it was deployed").value["artifact"]});
    let deploy = json!({"workloads": [spec], "request_id": "d1"});
    let restart = json!({"workload": "hello", "request_id": "r1"});
    let remove = json!({"workload": "hello", "request_id": "x1"});

    // Each leader dies when the store has the write, and whoever asked hears nothing.
    die_after(&mut daemons, &client, "deploy", &deploy, || {
        record("again").is_some()
    });
    let answer = client.json(&api("deploy"), &deploy);
    assert_eq!(
        answer["workloads"][0]["changed"], true,
        "the first answer: {answer}"
    );
    assert_eq!(record("again").expect("deployed")["newest"], 1);

    wait_for("the end of the first rollout", || {
        (record("hello")?["rollout"]["state"] == "completed").then_some(())
    });
    let fresh = || record("hello").map(|record| record["fresh_from"].clone());
    let before = fresh();
    die_after(&mut daemons, &client, "restart", &restart, || {
        fresh() != before
    });
    let after = fresh();
    let answer = client.json(&api("restart"), &restart);
    assert_eq!(answer["changed"], true, "the first answer: {answer}");
    assert_eq!(fresh(), after, "rolled once");

    die_after(&mut daemons, &client, "rm", &remove, || {
        record("hello").is_none()
    });
    let answer = client.json(&api("rm"), &remove);
    assert_eq!(answer["changed"], true, "the first answer: {answer}");
    let other = json!({"workload": "hello", "request_id": "x2"});
    let refused = client.json(&api("rm"), &other);
    assert_eq!(refused["error"]["code"], "not_found", "{refused}");

    // One that changed nothing, then its opposite, then a late copy of the first.
    let host = daemons.host_id("host-0");
    let asked = |id: &str| json!({"host": host, "request_id": id});
    let cluster = |verb: &str| format!("wasmorch.v1.api._.{verb}");
    // A leader that has just begun refuses writes until it has heard its hosts.
    let ask = |verb: &str, id: &str| {
        let about = format!("{verb} {id}");
        wait_for(&about, || {
            let answer = client.json(&cluster(verb), &asked(id));
            answer["error"].is_null().then_some(answer)
        })
    };
    ask("uncordon", "u1");
    ask("cordon", "c1");
    let late = ask("uncordon", "u1");
    assert_eq!(late["cordoned"], false, "the first answer: {late}");
    let stands = client.kept(&format!("host.{host}")).expect("it joined");
    assert_eq!(stands.value["cordoned"], true, "it stays cordoned");
}

/// Sends a write without waiting for an answer (again, because a new leader refuses writes until a
/// host has spoken), kills the leader as soon as it is stored, and waits for the next.
#[track_caller]
fn die_after(
    daemons: &mut Daemons,
    client: &Client,
    verb: &str,
    request: &Value,
    stored: impl Fn() -> bool,
) {
    let (id, term) = wait_for("a leader", || leader(client));
    let n = daemons.controller_of(&id);
    wait_for("the write to be stored", || {
        client.publish(&api(verb), request.to_string().as_bytes());
        stored().then_some(())
    });
    daemons.controllers[n].take().expect("it leads").kill();
    next_leader(client, term, Instant::now());
    daemons.start_controller(n);
    daemons.controller_id(n);
}

/// Servers that have not chosen their leader yet drop what they are asked: whoever starts with them waits.
#[test]
fn a_controller_waits_for_servers_that_choose_their_leader() {
    let home = Home::new();
    let mut nats = Nats::cluster(&home.path().join("nats"), 3);
    // One of three has no majority.
    nats[1].kill();
    nats[2].kill();
    let url = nats[0].url();
    let command = home.command(&["--nats", &url, "controller", "--admin", "127.0.0.1:0"]);
    let mut controller = Process::start(command, home.path(), "controller");
    wait_for("it to be asked again and again", || {
        assert_eq!(controller.ended(), None, "{}", controller.stderr());
        (controller.stderr().matches("waiting for the store").count() >= 3).then_some(())
    });
    nats[1].start_again();
    nats[2].start_again();
    wait_for("a leader", || {
        assert_eq!(controller.ended(), None, "{}", controller.stderr());
        let asked = home.run(&["--nats", &url, "hosts", "--json"]);
        (asked.code == 0).then_some(())
    });
}

#[test]
fn every_acknowledged_deploy_survives_the_loss_of_a_nats_server() {
    let home = Home::new();
    let nats = Nats::cluster(&home.path().join("nats"), 3);
    let mut daemons = Daemons::start_on(home, nats, 2, 1);
    daemons.deploy("hello-http", "hello", &[]);
    let client = daemons.client();
    let info = client.stream("KV_wasmorch_state").expect("it is there");
    assert_eq!(info["config"]["num_replicas"], 3, "chosen by itself");
    let artifact = client
        .kept("revision.default.hello.1")
        .expect("deployed")
        .value["artifact"]
        .clone();

    let (acknowledged, done) = (std::sync::Mutex::new(Vec::new()), AtomicBool::new(false));
    let count = || acknowledged.lock().expect("unpoisoned").len();
    let url = daemons.url();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let client = Client::connect(&url);
            for n in 0.. {
                if done.load(Ordering::Relaxed) {
                    return;
                }
                let name = format!("w{n}");
                let spec = json!({"name": name, "artifact": artifact, "replicas": 0});
                let request = json!({"workloads": [spec], "request_id": format!("q{n}")});
                let answer = client.ask(&api("deploy"), &request, ANSWER);
                if answer.is_some_and(|answer| answer["workloads"][0]["name"] == name.as_str()) {
                    acknowledged.lock().expect("unpoisoned").push(name);
                }
            }
        });
        let more = |what: &str| {
            let before = count();
            wait_for(what, || (count() >= before + 10).then_some(()));
        };
        more("deploys on three servers");
        for which in ["a server", "the stream's leader"] {
            let lead = wait_for("the stream's leader", || stream_leader(&client));
            let n = if which == "a server" {
                (lead + 1) % 3
            } else {
                lead
            };
            daemons.nats[n].kill();
            more(&format!("deploys without {which}"));
            daemons.nats[n].start_again();
            wait_for("the server to have caught up", || in_step(&client));
            more(&format!("deploys with {which} again"));
        }
        done.store(true, Ordering::Relaxed);
    });
    let acknowledged = acknowledged.into_inner().expect("unpoisoned");
    let known: Vec<String> = client
        .keys(&["workload.default."])
        .into_iter()
        .map(|key| key.0)
        .collect();
    for name in &acknowledged {
        assert!(
            known.contains(&format!("workload.default.{name}")),
            "{name} was acknowledged"
        );
        assert!(
            client.kept(&format!("revision.default.{name}.1")).is_some(),
            "{name}'s revision"
        );
    }
    measured(&format!(
        "{} deploys were acknowledged, all are there",
        acknowledged.len()
    ));
    let gateways = daemons.gateways();
    assert!(gateways.iter().all(|gateway| says_hello(gateway, "hello")));
}

/// The number of the server that leads the state's stream.
fn stream_leader(client: &Client) -> Option<usize> {
    let info = client.stream("KV_wasmorch_state")?;
    info["cluster"]["leader"]
        .as_str()?
        .strip_prefix('n')?
        .parse()
        .ok()
}

fn in_step(client: &Client) -> Option<()> {
    let info = client.stream("KV_wasmorch_state")?;
    let replicas = info["cluster"]["replicas"].as_array()?;
    let current = replicas.iter().filter(|replica| replica["current"] == true);
    (current.count() == 2).then_some(())
}

#[test]
fn a_host_that_shuts_down_is_not_waited_for() {
    let mut daemons = Daemons::start(1, 2);
    daemons.deploy("hello-http", "hello", &["--replicas", "2"]);
    let gateways = daemons.gateways();
    let mut leaving = daemons.hosts[0].take().expect("runs");
    let stopped = Instant::now();
    leaving.signal(Signal::TERM);
    let left = daemons.host_id("host-1");
    let client = daemons.client();
    wait_for("both replicas in the other host's set", || {
        let set = set_of(&client, &left);
        let slots = set["groups"][0]["slots"].as_array()?.len();
        (slots == 2).then_some(())
    });
    let took = stopped.elapsed();
    measured(&format!(
        "from SIGTERM of a host to its replicas' new places: {took:?}"
    ));
    assert!(
        took < Duration::from_secs(3),
        "silence alone takes 5 s: {took:?}"
    );
    assert_eq!(leaving.wait().code(), Some(0), "{}", leaving.stderr());
    wait_for("both replicas ready", || {
        let listed = daemons.run(&["ps", "--json"]);
        (listed.code == 0 && listed.json()[0]["ready"] == 2).then_some(())
    });
    assert!(gateways.iter().any(|gateway| says_hello(gateway, "hello")));
    daemons.start_host(0);
    daemons.wait_for_hosts(2);
}
