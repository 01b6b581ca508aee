//! Workloads that must not run twice, on real processes: the server goes away, a host dies.

use std::time::{Duration, Instant};

use wasmorch_tests::daemons::{Daemons, says_hello};
use wasmorch_tests::{guest, wait_for};

/// Deploys `hello` so that it must not run twice.
fn deploy_exclusive(daemons: &Daemons, stop_after: &str, lost_after: &str) {
    let component = guest("hello-http");
    let component = component.to_str().expect("text");
    let manifest = format!(
        "[workload]\nname = \"hello\"\ncomponent = \"{component}\"\n\
         disconnect = {{ stop_after = \"{stop_after}\", lost_after = \"{lost_after}\", exclusive = true }}\n"
    );
    let file = daemons.home.write("wasmorch.toml", manifest);
    daemons.run(&["deploy", file.to_str().expect("text")]).ok();
}

/// Where its replicas run, by host name, as the leader sees it.
fn running_on(daemons: &Daemons) -> Vec<String> {
    let status = daemons.run(&["status", "hello", "--json"]);
    if status.code != 0 {
        return Vec::new();
    }
    let status = status.json();
    let replicas = status["replicas"].as_array().expect("an array");
    let ready = replicas.iter().filter(|one| one["ready"] == true);
    ready
        .filter_map(|one| Some(one["host"].as_str()?.to_owned()))
        .collect()
}

#[test]
fn an_exclusive_workload_ends_by_itself_without_nats_and_comes_back() {
    let mut daemons = Daemons::start(1, 1);
    deploy_exclusive(&daemons, "3s", "12s");
    let gateway = daemons.gateways().remove(0);
    assert!(says_hello(&gateway, "hello"));
    daemons.nats[0].kill();
    let cut = Instant::now();
    wait_for("the host to end it by itself", || {
        (!says_hello(&gateway, "hello")).then_some(())
    });
    let took = cut.elapsed();
    assert!(
        took < Duration::from_secs(12),
        "before it may be replaced: {took:?}"
    );
    // Not even a restart of the host starts it: somebody else may have it by now.
    daemons.hosts[0].take().expect("runs").kill();
    daemons.start_host(0);
    daemons.nats[0].start_again();
    wait_for("it to run again once a leader hears its host", || {
        (running_on(&daemons) == ["host-0"]).then_some(())
    });
}

#[test]
fn an_exclusive_workload_of_a_dead_host_is_replaced_after_lost_after() {
    let mut daemons = Daemons::start(1, 2);
    deploy_exclusive(&daemons, "3s", "6s");
    let at = running_on(&daemons).remove(0);
    let n: usize = if at == "host-0" { 0 } else { 1 };
    daemons.hosts[n].take().expect("runs").kill();
    let killed = Instant::now();
    let other = format!("host-{}", 1 - n);
    wait_for("it to run on the other host", || {
        (running_on(&daemons) == [other.as_str()]).then_some(())
    });
    let took = killed.elapsed();
    // Four seconds of silence at least: its last heartbeat was up to a second old.
    assert!(took >= Duration::from_secs(4 + 6), "too early: {took:?}");
    daemons.start_host(n);
    daemons.wait_for_hosts(2);
    let why = daemons.run(&["why", &at, "--json"]).ok().json();
    assert_eq!(why["left"], 0, "{why}");
}
