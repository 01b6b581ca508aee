//! Every attack of `workloads/hostile` in a real runner, confined as it is on a host, beside a neighbour there.

use std::time::{Duration, Instant};

use wasmorch_tests::daemons::Daemons;
use wasmorch_tests::hostile::{ATTACKS, SAMPLES, manifest};
use wasmorch_tests::{http, wait_for};

use super::runners::{descriptors, runners};

/// Requests of one attack at a time.
const AT_ONCE: usize = 2;
/// What ends an attack that no other limit ends.
const TIMEOUT: &str = "500ms";
/// The slowest answer of the neighbour: many times what it takes, for a machine that does other things.
const SLOWEST: Duration = Duration::from_secs(5);
/// What may stay of all attacks on a runner: allocators and the pool of instances keep some pages, and what is first
/// needed during one is opened then.
const KEPT_BYTES: u64 = 64 << 20;
const KEPT_OPEN: usize = 4;

/// The only runner, once there is one.
fn the_runner(host: u32) -> i32 {
    wait_for("a runner", || match runners(host)[..] {
        [one] => Some(one),
        _ => None,
    })
}

/// A line of what the kernel tells of a process.
fn told(pid: i32, line: &str) -> Option<String> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let found = status.lines().find_map(|found| found.strip_prefix(line))?;
    Some(found.trim().to_owned())
}

/// Memory that it has, in bytes.
fn resident(pid: i32) -> Option<u64> {
    let kib = told(pid, "VmRSS:")?;
    let kib: u64 = kib.split(' ').next()?.parse().ok()?;
    Some(kib << 10)
}

/// Asks the neighbour as long as an attack goes on. The first failure, if there was one.
fn beside(gateway: &str, attacked: &str, path: &str) -> Result<(), String> {
    std::thread::scope(|scope| {
        let attack = || {
            // That and why it is ended is what others test; a body that breaks off is no answer.
            let _ended = http::get(gateway, attacked, path);
        };
        let attacks: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(attack)).collect();
        loop {
            let over = attacks.iter().all(|attack| attack.is_finished());
            let asked = Instant::now();
            let answer = http::get(gateway, "hello.default.localhost", "/");
            match answer {
                Ok(answer) if answer.status == 200 && asked.elapsed() < SLOWEST => {}
                other => return Err(format!("{other:?} after {:?}", asked.elapsed())),
            }
            if over {
                return Ok(());
            }
        }
    })
}

#[test]
fn attacks_stay_in_a_confined_runner_and_leave_nothing_there() {
    let mut daemons = Daemons::start(1, 0);
    daemons.start_host_with(0, &["--runners", "1"]);
    daemons.wait_for_hosts(1);
    daemons.deploy("hello-http", "hello", &[]);
    for sample in SAMPLES {
        let file = format!("{sample}.toml");
        let file = daemons.home.write(&file, manifest(sample, sample, TIMEOUT));
        daemons.run(&["deploy", file.to_str().expect("text")]).ok();
    }
    let gateway = daemons.gateways().remove(0);
    let host = daemons.hosts[0].as_ref().expect("it runs").id();
    let first = the_runner(host);
    assert_eq!(told(first, "NoNewPrivs:").as_deref(), Some("1"));
    assert_eq!(told(first, "Seccomp:").as_deref(), Some("2"), "a filter");
    let open_daemon = descriptors(host).expect("it runs");
    let had = |runner: i32| {
        let memory = resident(runner).expect("it runs");
        let open = descriptors(runner.unsigned_abs());
        (runner, open.expect("it runs"), memory)
    };
    let (mut runner, mut open, mut memory) = had(first);
    for (sample, path) in ATTACKS {
        let name = format!("{sample}.default.localhost");
        let served = beside(&gateway, &name, path);
        let now = the_runner(host);
        if now != runner {
            // It was replaced: its neighbour serves again, and it begins with nothing.
            wait_for("the neighbour in the next runner", || {
                let answer = http::get(&gateway, "hello.default.localhost", "/").ok()?;
                (answer.status == 200).then_some(())
            });
            (runner, open, memory) = had(now);
            continue;
        }
        served.unwrap_or_else(|why| panic!("the neighbour beside {sample}{path}: {why}"));
        // One that is replaced only now has left nothing either.
        let replaced = || runners(host)[..] != [runner];
        wait_for(
            &format!("what {sample}{path} had open to be closed"),
            || {
                let left = descriptors(runner.unsigned_abs()).map(|now| now <= open + KEPT_OPEN);
                (left == Some(true) || replaced()).then_some(())
            },
        );
        wait_for(&format!("the memory of {sample}{path} to be back"), || {
            let left = resident(runner).map(|now| now <= memory + KEPT_BYTES);
            (left == Some(true) || replaced()).then_some(())
        });
        wait_for(&format!("{sample} to serve after {path}"), || {
            let answer = http::get(&gateway, &name, "/ok").ok()?;
            (answer.status == 200).then_some(())
        });
    }
    wait_for("the daemon to have no more open than before", || {
        (descriptors(host)? <= open_daemon + KEPT_OPEN).then_some(())
    });
}
