//! A host is emptied under load, stays so over its own restart, and takes work again when told.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::process::Signal;
use wasmorch_tests::daemons::{Daemons, says_hello};
use wasmorch_tests::{http, wait_for};

/// How `hosts --json` lists a host.
fn listed(daemons: &Daemons, name: &str) -> serde_json::Value {
    let hosts = daemons.run(&["hosts", "--json"]).ok().json();
    let hosts = hosts.as_array().expect("a list is an array");
    let host = hosts.iter().find(|host| host["name"] == name);
    host.expect("the host is listed").clone()
}

/// So many replicas of `hello` are ready on a host.
fn ready_on(daemons: &Daemons, name: &str) -> usize {
    let status = daemons.run(&["status", "hello", "--json"]).ok().json();
    let replicas = status["replicas"].as_array().expect("an array");
    let there = replicas.iter().filter(|one| one["host"] == name);
    there.filter(|one| one["ready"] == true).count()
}

#[test]
fn a_drained_host_is_empty_without_a_lost_request_and_stays_so() {
    let mut daemons = Daemons::start(1, 2);
    daemons.deploy("hello-http", "hello", &["--replicas", "2"]);
    let other = listed(&daemons, "host-1")["http"].clone();
    let other = other.as_str().expect("http is text");
    wait_for("the other gateway to know the workload", || {
        says_hello(other, "hello").then_some(())
    });

    let over = AtomicBool::new(false);
    let (good, bad) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                let counted = if says_hello(other, "hello") {
                    &good
                } else {
                    &bad
                };
                counted.fetch_add(1, Ordering::Relaxed);
            }
        });
        let drained = daemons.run(&["drain", "host-0"]);
        over.store(true, Ordering::Relaxed);
        let drained = drained.ok();
        assert!(
            drained.out.contains("nothing runs there"),
            "{}",
            drained.out
        );
    });
    assert!(good.into_inner() > 0);
    assert_eq!(bad.into_inner(), 0, "requests that failed during the drain");
    assert_eq!(ready_on(&daemons, "host-1"), 2);
    assert_eq!(listed(&daemons, "host-0")["drain"]["drained"], true);

    // Its own restart changes nothing.
    daemons.hosts[0].take().expect("runs").kill();
    daemons.start_host(0);
    daemons.wait_for_hosts(2);
    daemons.run(&["scale", "hello=4"]).ok();
    wait_for("four replicas on the other host", || {
        (ready_on(&daemons, "host-1") == 4).then_some(())
    });
    let why = daemons.run(&["why", "host-0", "--json"]).ok().json();
    assert_eq!(
        (&why["state"], &why["left"]),
        (&"drained".into(), &0.into())
    );

    daemons.run(&["uncordon", "host-0"]).ok();
    daemons.run(&["scale", "hello=6"]).ok();
    wait_for("the host to take work again", || {
        (ready_on(&daemons, "host-0") == 2).then_some(())
    });
}

#[test]
fn what_cannot_go_is_said_and_the_deadline_ends_it() {
    let daemons = Daemons::start(1, 1);
    daemons.deploy("hello-http", "hello", &[]);
    let drained = daemons.run(&["drain", "host-0", "--deadline", "2s"]).ok();
    assert!(
        drained.err.contains("stays: default/hello") && drained.err.contains("draining"),
        "{}",
        drained.err
    );
    assert_eq!(ready_on(&daemons, "host-0"), 0);
    let none = daemons.run(&["drain", "host-7"]);
    assert_eq!(none.code, 66, "{}", none.err);
    let both = daemons.run(&["drain", "host-0", "--cancel", "--deadline", "2s"]);
    assert_eq!(both.code, 64, "{}", both.err);
    daemons.run(&["drain", "host-0", "--cancel"]).ok();
    wait_for("the replica to be back", || {
        (ready_on(&daemons, "host-0") == 1).then_some(())
    });
}

#[test]
fn a_host_that_is_told_to_end_answers_what_it_has_in_hand() {
    let mut daemons = Daemons::start(1, 2);
    daemons.run(&["cordon", "host-0"]).ok();
    daemons.deploy("hello-http", "hello", &[]);
    // The first only forwards, the second has the replica.
    for (n, path) in [(0, "/sleep?6000"), (1, "/sleep?10000")] {
        let host = listed(&daemons, &format!("host-{n}"));
        let text = |key: &str| host[key].as_str().expect("an address is text").to_owned();
        let (gateway, admin) = (text("http"), text("admin"));
        wait_for("the gateway to know the workload", || {
            says_hello(&gateway, "hello").then_some(())
        });
        let page = |path: &str| http::get(&admin, "localhost", path).ok();
        let ready = page("/readyz").expect("the admin port answers");
        assert_eq!(ready.status, 200, "{}", ready.body);
        let mut ending = daemons.hosts[n].take().expect("it runs");
        std::thread::scope(|scope| {
            let asked = scope.spawn(|| http::get(&gateway, "hello.default.localhost", path));
            wait_for("the request to be in hand", || {
                let metrics = page("/metrics")?.body;
                metrics
                    .contains("\nwasmorch_host_gateway_in_flight 1\n")
                    .then_some(())
            });
            ending.signal(Signal::TERM);
            wait_for("the host to say that it leaves", || {
                let ready = page("/readyz")?;
                (ready.status == 503 && ready.body.contains("\"leaving\":true")).then_some(())
            });
            let answer = asked.join().expect("no panic").expect("an answer");
            assert_eq!((answer.status, answer.body.as_str()), (200, "slept\n"));
        });
        assert!(ending.wait().success(), "{}", ending.stderr());
    }
}
