//! To zero and back, with real processes: who rests, and whatever asks wakes it.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use wasmorch_tests::daemons::{Daemons, says_hello};
use wasmorch_tests::process::Done;
use wasmorch_tests::{guest, measured, wait_for};

/// A workload that may go to zero two seconds after it was last asked.
fn manifest(name: &str) -> String {
    format!(
        "[workload]\nname = \"{name}\"\ncomponent = \"{}\"\nscale = {{ min = 0, max = 4, \
         target = {{ concurrency = 50 }}, window = \"2s\", panic = \"1s\" }}\n",
        guest("hello-http").display()
    )
}

fn deploy(daemons: &Daemons, name: &str) -> Done {
    let file = daemons.home.write(&format!("{name}.toml"), manifest(name));
    daemons.run(&["deploy", file.to_str().expect("text")]).ok()
}

fn status(daemons: &Daemons, name: &str) -> Value {
    daemons.run(&["status", name, "--json"]).ok().json()
}

/// Waits until it is idle and both of its standbys are prepared.
#[track_caller]
fn at_rest(daemons: &Daemons, name: &str) {
    wait_for("two standbys", || {
        let status = status(daemons, name);
        let replicas = status["replicas"].as_array()?;
        let rest = |one: &&Value| one["standby"] == true && one["state"] == "preparing";
        let idle = status["state"] == "idle" && status["desired"] == 0;
        (idle && replicas.iter().filter(rest).count() == 2).then_some(())
    });
}

#[test]
fn whatever_asks_wakes_it_and_it_goes_back_to_rest() {
    let daemons = Daemons::start(1, 3);
    let gateways = daemons.gateways();
    deploy(&daemons, "web");
    let mut took = Vec::new();
    for gateway in &gateways {
        at_rest(&daemons, "web");
        let asked = Instant::now();
        assert!(says_hello(gateway, "web"), "from zero, at {gateway}");
        took.push(asked.elapsed());
        let adopted = wait_for("the leader to adopt it", || {
            let status = status(&daemons, "web");
            (status["ready"].as_u64()? > 0).then_some(status)
        });
        assert_ne!(adopted["desired"], 0, "{adopted}");
    }
    took.sort();
    measured(&format!("from zero to the answer: {took:?}"));

    // Called over NATS.
    at_rest(&daemons, "web");
    let answer = daemons
        .client()
        .request("wasmorch.v1.invoke.default.web", b"");
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.contains("Hello"), "{answer}");

    // The leader hears of the last one after its answer.
    let reasons = wait_for("four events of a waking", || {
        let events = daemons.run(&["events", "--json"]).ok().json();
        let events = events.as_array()?.iter();
        let scaled = events.filter(|event| event["kind"] == "scaled");
        let reasons = scaled.filter_map(|event| event["reason"].as_str().map(str::to_owned));
        let reasons: Vec<String> = reasons.collect();
        let woken = reasons.iter();
        let woken = woken.filter(|reason| reason.contains("a request woke it on"));
        (woken.count() >= 4).then_some(reasons)
    });
    assert!(
        reasons.iter().any(|reason| reason.contains("1 to 0")),
        "{reasons:?}"
    );
}

#[test]
fn no_leader_is_needed_to_wake_it() {
    let mut daemons = Daemons::start(1, 2);
    deploy(&daemons, "web");
    at_rest(&daemons, "web");
    let gateways = daemons.gateways();
    daemons.controllers[0].take().expect("it leads").kill();
    for gateway in &gateways {
        assert!(says_hello(gateway, "web"), "with no leader, at {gateway}");
    }
    daemons.start_controller(0);
    wait_for("the next leader to adopt it", || {
        let status = daemons.run(&["status", "web", "--json"]);
        let status = (status.code == 0).then(|| status.json())?;
        (status["ready"].as_u64()? > 0 && status["desired"].as_u64()? > 0).then_some(())
    });
    at_rest(&daemons, "web");
}

#[test]
fn a_crowd_that_finds_it_at_rest_is_answered_whole() {
    let daemons = Daemons::start(1, 2);
    deploy(&daemons, "web");
    let gateways = daemons.gateways();
    for _ in 0..3 {
        at_rest(&daemons, "web");
        let crowd = (0..40).map(|n| {
            let gateway = gateways[n % gateways.len()].clone();
            std::thread::spawn(move || says_hello(&gateway, "web"))
        });
        let crowd: Vec<_> = crowd.collect();
        let answered = crowd.into_iter().filter_map(|one| one.join().ok());
        assert_eq!(answered.filter(|hello| *hello).count(), 40);
    }
}

#[test]
fn the_other_standby_answers_when_the_first_is_gone_and_nobody_leads() {
    let mut daemons = Daemons::start(1, 2);
    deploy(&daemons, "web");
    at_rest(&daemons, "web");
    let replicas = status(&daemons, "web")["replicas"].clone();
    let replicas = replicas.as_array().expect("a list");
    let first = replicas.iter().find(|one| one["slot"] == 1);
    let first = first
        .and_then(|one| one["host"].as_str())
        .expect("it has a host")
        .to_owned();
    let hosts = daemons.run(&["hosts", "--json"]).ok().json();
    let hosts = hosts.as_array().expect("a list").clone();
    let other = hosts.iter().find(|host| host["name"] != first.as_str());
    let other = other
        .and_then(|host| host["http"].as_str())
        .expect("it has a gateway");
    let n: usize = first
        .strip_prefix("host-")
        .and_then(|n| n.parse().ok())
        .expect("its number");
    daemons.controllers[0].take().expect("it leads").kill();
    daemons.hosts[n].take().expect("it runs").kill();
    assert!(says_hello(other, "web"), "it woke its own");
}

/// With one attempt each, what is taken and not handled would be gone. What rests listens: a call and what is kept in a stream each have one started, and nothing is lost, on
/// one host with both standbys.
#[test]
fn messages_wake_it_and_none_is_lost() {
    let daemons = Daemons::start(1, 1);
    let client = daemons.client();
    let stream = json!({"name": "SHOP", "subjects": ["shop.orders.*"]});
    client.json("$JS.API.STREAM.CREATE.SHOP", &stream);
    let text = format!(
        "[workload]\nname = \"worker\"\ncomponent = \"{}\"\nscale = {{ min = 0, max = 4, \
         target = {{ concurrency = 50 }}, window = \"2s\", panic = \"1s\" }}\n\
         [workload.bindings]\npublish = [\"shop.seen\"]\nsubscribe = [ \
         {{ subject = \"shop.orders.*\", stream = \"SHOP\", attempts = 1 }}]\n",
        guest("echo-messages").display()
    );
    let file = daemons.home.write("worker.toml", text);
    daemons.run(&["deploy", file.to_str().expect("text")]).ok();

    at_rest(&daemons, "worker");
    // It lies down, prepared; a moment later it is subscribed.
    let called = wait_for("a call to be answered", || {
        client.try_request("wasmorch.v1.invoke.default.worker", b"you")
    });
    assert_eq!(called, b"echo: you");
    wait_for("the leader to adopt it", || {
        (status(&daemons, "worker")["desired"].as_u64()? > 0).then_some(())
    });

    let mut seen = client.subscribe("shop.seen");
    for _ in 0..3 {
        at_rest(&daemons, "worker");
        let (began, mut took) = (Instant::now(), None);
        for n in 0..20 {
            let stored = client.request("shop.orders.new", format!("tell {n}").as_bytes());
            assert!(stored.starts_with(b"{\"stream\""), "{stored:?}");
        }
        let mut told = BTreeSet::new();
        wait_for("all twenty to be handled", || {
            told.insert(seen.next_body(Duration::from_secs(1))?);
            took.get_or_insert(began.elapsed());
            (told.len() == 20).then_some(())
        });
        measured(&format!("a message from zero: {took:?}"));
    }
    at_rest(&daemons, "worker");
}

/// A subject that no stream keeps: whoever asks while it lies down is answered too.
#[test]
fn a_plain_subject_is_never_without_a_listener() {
    let daemons = Daemons::start(1, 1);
    let client = daemons.client();
    let text = format!(
        "[workload]\nname = \"worker\"\ncomponent = \"{}\"\nscale = {{ min = 0, max = 4, \
         target = {{ concurrency = 50 }}, window = \"1s\", panic = \"1s\" }}\n\
         [workload.bindings]\nsubscribe = [{{ subject = \"shop.asks\" }}]\n",
        guest("echo-messages").display()
    );
    let file = daemons.home.write("worker.toml", text);
    daemons.run(&["deploy", file.to_str().expect("text")]).ok();
    let asks = |n: usize| {
        let answer = client.try_request("shop.asks", format!("{n}").as_bytes());
        let text = answer.map(|answer| String::from_utf8_lossy(&answer).into_owned());
        assert_eq!(text, Some(format!("echo: {n}")), "asked while it lies down");
    };
    for round in 0..3 {
        wait_for("one that lies down", || {
            let status = status(&daemons, "worker");
            (status["desired"] == 0).then_some(())
        });
        let until = Instant::now() + Duration::from_secs(1);
        let mut n = round * 1000;
        while Instant::now() < until {
            asks(n);
            n += 1;
        }
        at_rest(&daemons, "worker");
        asks(n);
    }
}
