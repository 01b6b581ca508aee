//! What follows from how a revision answers: a sick replica, and a bad new version.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use wasmorch_tests::up::Up;
use wasmorch_tests::{guest, http, wait_for};

/// `hello-http` with more of a manifest.
fn deploy(up: &Up, more: &str) -> wasmorch_tests::process::Done {
    let component = guest("hello-http");
    let text = format!(
        "[workload]\nname = \"web\"\ncomponent = \"{}\"\n{more}",
        component.display()
    );
    let file = up.home.write("web.toml", text);
    up.run(&["deploy", file.to_str().expect("text")])
}

#[test]
fn a_replica_that_turns_sick_is_started_again() {
    let up = Up::start(1);
    // An instance that serves again can be sick for whoever comes after.
    deploy(
        &up,
        "instance = { reuse = 1000, idle = \"1m\" }\nrestart = { backoff = \"100ms\" }\n\
         [workload.health]\nstart_grace = \"0s\"\n\
         live = { path = \"/health\", status = \"200\", interval = \"100ms\", fail = 3 }\n",
    )
    .ok();
    assert_eq!(up.get("web", "/sick").status, 200);
    let replica = wait_for("its second start is ready", || {
        let replicas = up.status("web")["replicas"].clone();
        let mut replicas = replicas.as_array().expect("a list").iter();
        let again = replicas.find(|one| {
            let id = one["replica"].as_str().unwrap_or_default();
            id.ends_with("-2") && one["ready"] == true
        });
        again.cloned()
    });
    assert_eq!(up.get("web", "/health").status, 200, "{replica}");
    let why = "health.live failed 3 times in a row (health.live.fail): GET /health: status 500, and \
               200 is wanted (health.live.status)";
    wait_for("the reason among the events", || {
        up.run(&["events"]).ok().out.contains(why).then_some(())
    });
}

const HOST: &str = "web.default.localhost";
/// Of a client that gives up: longer than one that only closes its half.
const PATIENCE: Duration = Duration::from_millis(500);

/// Deploys a second version while clients ask at a gateway; how its deploy ended.
fn deploy_under_load(
    up: &Up,
    more: &str,
    ask: impl Fn(&str) + Sync,
) -> wasmorch_tests::process::Done {
    wait_for("a revision to go back to", || {
        (up.status("web")["rollout"]["state"] == "completed").then_some(())
    });
    let (gateway, over) = (up.gateways().remove(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    ask(&gateway);
                }
            });
        }
        let done = deploy(up, more);
        over.store(true, Ordering::Relaxed);
        done
    })
}

/// Asks for what is never answered in time, and goes away.
fn gives_up(gateway: &str) {
    let mut stream = TcpStream::connect(gateway).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a time");
    let request = format!("GET /sleep?600000 HTTP/1.1\r\nhost: {HOST}\r\n\r\n");
    let sent = stream.write_all(request.as_bytes());
    let waited = sent.and_then(|()| stream.read(&mut [0; 64]));
    // No answer is what is expected, and one would be no reason to stay.
    drop(waited);
}

/// Everything that is asked tells these words.
fn told_why(up: &Up, words: &[&str]) {
    let told = |out: &str| words.iter().all(|word| out.contains(word));
    wait_for("the events tell", || {
        let events = up.run(&["events"]).ok().out;
        (events.contains("rollout-reverted") && told(&events)).then_some(())
    });
    assert!(told(&up.run(&["why", "web"]).ok().out), "why tells");
    assert!(told(&up.run(&["rollout", "status", "web"]).ok().out));
}

#[test]
fn a_revision_that_answers_badly_goes_back_by_itself() {
    let up = Up::start(1);
    let version = |fails: u32| {
        format!(
            "environment = {{ FAILS = \"{fails}\" }}\n[workload.update]\n\
             fail_when = {{ errors = \"10%\", min_requests = 20 }}\n"
        )
    };
    deploy(&up, &version(0)).ok();
    let done = deploy_under_load(&up, &version(60), |gateway| {
        let _ = http::get(gateway, HOST, "/some");
    });
    let words = ["requests failed since ready", "fail_when allows 10%"];
    done.refused(1, &words);
    assert_eq!(up.status("web")["revision"], 1);
    for _ in 0..20 {
        assert_eq!(
            up.get("web", "/some").status,
            200,
            "the first revision serves"
        );
    }
    told_why(&up, &words);
}

#[test]
fn a_revision_that_answers_slowly_goes_back_by_itself() {
    let up = Up::start(1);
    deploy(&up, "").ok();
    // What was never judged before takes longer than the second version allows.
    let slow = "[workload.update]\nmin_ready = \"3s\"\n\
                fail_when = { p99 = \"100ms\", min_requests = 5 }\n";
    let done = deploy_under_load(&up, slow, |gateway| {
        let _ = http::get(gateway, HOST, "/sleep?300");
    });
    let words = ["took longer than 100ms"];
    done.refused(1, &words);
    assert_eq!(up.status("web")["revision"], 1);
    told_why(&up, &words);
}

/// Nobody waits for `resources.timeout`, so no request of it ever fails.
#[test]
fn a_revision_that_hangs_goes_back_though_its_clients_give_up_first() {
    let up = Up::start(1);
    deploy(&up, "").ok();
    let hangs = "[workload.update]\nmin_ready = \"5s\"\n\
                 fail_when = { p99 = \"200ms\", min_requests = 5 }\n";
    let done = deploy_under_load(&up, hangs, gives_up);
    let words = ["took longer than 200ms"];
    done.refused(1, &words);
    assert_eq!(up.status("web")["revision"], 1);
    told_why(&up, &words);
}
