//! Runners are processes: what the death of one takes, and that nothing of them is left behind.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use wasmorch_tests::daemons::Daemons;
use wasmorch_tests::http;
use wasmorch_tests::process::{children, has_ended, is_zombie};
use wasmorch_tests::up::Up;
use wasmorch_tests::wait_for;

/// Requests under way at once.
const LOAD: usize = 4;
/// A request that began so long after a runner froze or died was in no danger: what is left is the
/// time between the clock and the signal.
const AT_ONCE: Duration = Duration::from_millis(100);

fn is_a(pid: i32, what: &str) -> bool {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    line.split(|byte| *byte == 0)
        .any(|arg| arg == what.as_bytes())
}

/// The children of a process that are runners, zombies too.
pub(super) fn runners(host: u32) -> Vec<i32> {
    let is_runner = |pid: &i32| is_zombie(*pid) == Some(true) || is_a(*pid, "runner");
    children(host).into_iter().filter(is_runner).collect()
}

/// The process that compiles for them, while there is one.
fn compiler(host: u32) -> Option<i32> {
    let mut children = children(host).into_iter();
    children.find(|pid| is_zombie(*pid) == Some(false) && is_a(*pid, "compiler"))
}

fn signal(pid: i32, signal: Signal) {
    let pid = Pid::from_raw(pid).expect("a process has a number");
    kill_process(pid, signal).expect("it is ours");
}

pub(super) fn descriptors(pid: u32) -> Option<usize> {
    let open = std::fs::read_dir(format!("/proc/{pid}/fd"));
    Some(open.ok()?.count())
}

fn id(up: &Up) -> u32 {
    up.process.as_ref().expect("it runs").id()
}

/// Waits until a runner is gone and the host has as many as before.
fn wait_for_successor(host: u32, gone: i32, count: usize) -> Duration {
    let began = Instant::now();
    wait_for("another runner in the place of one", || {
        let now = runners(host);
        (now.len() == count && !now.contains(&gone)).then_some(())
    });
    began.elapsed()
}

/// When requests failed.
struct Failures(Mutex<Vec<(Instant, Instant)>>);

#[test]
fn a_runner_that_freezes_or_dies_takes_only_its_own_requests() {
    let mut daemons = Daemons::start(1, 0);
    daemons.start_host_with(0, &["--runners", "2"]);
    daemons.wait_for_hosts(1);
    daemons.deploy("hello-http", "web", &[]);
    let gateway = daemons.gateways().remove(0);
    let host = daemons.hosts[0].as_ref().expect("it runs").id();
    assert_eq!(runners(host).len(), 2);
    let open = descriptors(host).expect("the process is ours");

    let (over, failures) = (AtomicBool::new(false), Failures(Mutex::default()));
    let mut events = Vec::new();
    let answered: usize = std::thread::scope(|scope| {
        let load: Vec<_> = (0..LOAD)
            .map(|_| {
                scope.spawn(|| {
                    let mut answered = 0;
                    while !over.load(Ordering::Relaxed) {
                        let began = Instant::now();
                        let answer = http::get(&gateway, "web.default.localhost", "/");
                        if answer.is_ok_and(|answer| answer.status == 200) {
                            answered += 1;
                        } else {
                            let failed = (began, Instant::now());
                            failures.0.lock().expect("no one panics").push(failed);
                        }
                    }
                    answered
                })
            })
            .collect();
        // Whatever fails here must not leave the load going.
        let tried = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for bad in [Signal::STOP, Signal::KILL] {
                for runner in runners(host) {
                    events.push(Instant::now());
                    signal(runner, bad);
                    wait_for_successor(host, runner, 2);
                    // The next may go once this one's place serves again: other than that there
                    // would be nobody left.
                    let until = Instant::now() + Duration::from_secs(1);
                    while Instant::now() < until {
                        let answer = http::get(&gateway, "web.default.localhost", "/");
                        assert_eq!(answer.expect("the other serves").status, 200);
                    }
                }
            }
        }));
        over.store(true, Ordering::Relaxed);
        let answered = load
            .into_iter()
            .map(|one| one.join().expect("joined"))
            .sum();
        tried.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        answered
    });
    assert_eq!(events.len(), 4);
    assert!(answered > 100, "{answered}");
    // A request fails only when it was in hand while a runner froze or died.
    let failures = failures.0.into_inner().expect("no one panicked");
    let hit = |event: &Instant, (began, ended): &(Instant, Instant)| {
        *began <= *event + AT_ONCE && ended >= event
    };
    for failure in &failures {
        let explained = events.iter().any(|event| hit(event, failure));
        assert!(explained, "a request failed while nothing happened");
    }
    for event in &events {
        let count = failures
            .iter()
            .filter(|failure| hit(event, failure))
            .count();
        assert!(count <= LOAD, "{count} failed where {LOAD} were in hand");
    }
    wait_for("the workload to be ready", || {
        let listed = daemons.run(&["ps", "web", "--json"]).json();
        (listed[0]["ready"] == true).then_some(())
    });
    let zombies = runners(host)
        .into_iter()
        .filter(|pid| is_zombie(*pid) == Some(true));
    assert_eq!(zombies.count(), 0);
    wait_for("what the dead had open to be closed", || {
        (descriptors(host)? <= open).then_some(())
    });
}

#[test]
fn a_service_moves_on_when_its_runner_dies() {
    let mut daemons = Daemons::start(1, 0);
    daemons.start_host_with(0, &["--runners", "2"]);
    daemons.wait_for_hosts(1);
    daemons.deploy("ticker", "tick", &[]);
    let host = daemons.hosts[0].as_ref().expect("it runs").id();
    for runner in runners(host) {
        signal(runner, Signal::KILL);
    }
    wait_for("another start of the service", || {
        let listed = daemons.run(&["ps", "tick", "--json"]).json();
        let started_again = listed[0]["replica"].as_str()?.ends_with("-2");
        (started_again && listed[0]["ready"] == true).then_some(())
    });
}

#[test]
fn runners_die_with_a_killed_up_and_end_with_a_stopped_one() {
    let mut up = Up::start(1);
    let host = id(&up);
    let before = runners(host);
    assert!(!before.is_empty());
    // Not even one that cannot run is left behind.
    signal(before[0], Signal::STOP);
    up.kill();
    wait_for("the runners to be gone", || {
        before.iter().all(|pid| has_ended(*pid)).then_some(())
    });
    up.start_again();
    let again = runners(id(&up));
    assert!(!again.is_empty());
    drop(up);
    wait_for("the runners to have ended", || {
        again.iter().all(|pid| has_ended(*pid)).then_some(())
    });
}

#[test]
fn guests_run_in_the_daemon_when_that_is_asked_for() {
    let mut daemons = Daemons::start(1, 0);
    daemons.start_host_with(0, &["--runners", "0"]);
    daemons.wait_for_hosts(1);
    daemons.deploy("hello-http", "web", &[]);
    let host = daemons.hosts[0].as_ref().expect("it runs").id();
    assert!(runners(host).is_empty());
    let gateway = daemons.gateways().remove(0);
    assert_eq!(
        http::get(&gateway, "web.default.localhost", "/")
            .expect("an answer")
            .status,
        200
    );
}

/// A line of the status of each of its threads.
fn statuses(pid: i32, key: &str) -> Vec<String> {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).expect("it runs");
    let status = |thread: std::io::Result<std::fs::DirEntry>| {
        // One may just have ended.
        let status = std::fs::read_to_string(thread.ok()?.path().join("status")).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix(key));
        Some(line.expect("the kernel tells").trim().to_owned())
    };
    threads.filter_map(status).collect()
}

#[test]
fn runners_have_given_up_what_they_do_not_need() {
    let mut daemons = Daemons::start(1, 0);
    daemons.start_host_with(0, &["--runners", "1"]);
    daemons.wait_for_hosts(1);
    // It has run a guest, so it has set itself up.
    daemons.deploy("hello-http", "web", &[]);
    let host = daemons.hosts[0].as_ref().expect("it runs");
    let runner = runners(host.id()).remove(0);
    for (key, confined) in [("NoNewPrivs:", "1"), ("Seccomp:", "2")] {
        let said = statuses(runner, key);
        // Also what a library has begun before `main`.
        assert!(
            said.len() > 1 && said.iter().all(|said| said == confined),
            "{key} {said:?}"
        );
    }
    // So has who compiled it, which stays for a while.
    let compiler = compiler(host.id()).expect("it compiled a moment ago");
    let said = statuses(compiler, "Seccomp:");
    assert!(
        said.len() > 1 && said.iter().all(|said| said == "2"),
        "{said:?}"
    );
    let host = i32::try_from(host.id()).expect("a process has a number");
    let said = statuses(host, "Seccomp:");
    assert!(
        said.iter().all(|said| said == "0"),
        "the daemon starts others: {said:?}"
    );
}

#[test]
fn a_compiler_that_is_killed_over_an_artifact_has_a_successor() {
    let mut daemons = Daemons::start(1, 0);
    daemons.start_host_with(0, &["--runners", "2"]);
    daemons.wait_for_hosts(1);
    let host = daemons.hosts[0].as_ref().expect("it runs").id();
    assert_eq!(compiler(host), None, "nothing is to be compiled yet");
    daemons.deploy("hello-http", "web", &[]);
    let first = compiler(host).expect("it compiled for the runners");
    signal(first, Signal::STOP);
    daemons.deploy("hello-http-v2", "later", &["--detach"]);
    wait_for("the runners to wait for it", || {
        let listed = daemons.run(&["ps", "later", "--json"]).json();
        (listed[0]["state"] == "preparing").then_some(())
    });
    signal(first, Signal::KILL);
    wait_for("another compiler to have made it", || {
        let listed = daemons.run(&["ps", "later", "--json"]).json();
        (listed[0]["ready"] == true).then_some(())
    });
    assert_ne!(compiler(host), Some(first));
}
