//! Counts that follow the load, with real processes and real requests.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread::JoinHandle;

use serde_json::{Value, json};
use wasmorch_tests::nats_client::Client;
use wasmorch_tests::up::Up;
use wasmorch_tests::{guest, http, wait_for};

/// Clients, each with one request in hand at any time, until dropped.
struct Clients {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Clients {
    fn start(up: &Up, many: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let gateways = up.gateways();
        let client = |n: usize| {
            let (gateway, stop) = (gateways[n % gateways.len()].clone(), stop.clone());
            std::thread::spawn(move || {
                while !stop.load(SeqCst) {
                    // One that is refused while replicas come and go tries again.
                    let _ = http::get(&gateway, "web.default.localhost", "/sleep?400");
                }
            })
        };
        let threads = (0..many).map(client).collect();
        Self { stop, threads }
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        self.stop.store(true, SeqCst);
        for thread in self.threads.drain(..) {
            // A client that panicked has made its load.
            let _ = thread.join();
        }
    }
}

fn scaled(up: &Up) -> Vec<Value> {
    let events = up.run(&["events", "--json"]).ok().json();
    let events = events.as_array().cloned().unwrap_or_default();
    let scaled = events.into_iter().filter(|event| event["kind"] == "scaled");
    scaled.collect()
}

#[test]
fn replicas_follow_the_load_up_and_down_and_events_say_why() {
    let up = Up::start(2);
    let text = format!(
        "[workload]\nname = \"web\"\ncomponent = \"{}\"\nscale = {{ min = 1, max = 5, \
         target = {{ concurrency = 2 }}, window = \"6s\", panic = \"2s\" }}\n",
        guest("hello-http").display()
    );
    let file = up.home.write("web.toml", text);
    up.run(&["deploy", file.to_str().expect("text")]).ok();
    let shown = up.run(&["ps"]).ok().out;
    assert!(shown.contains("1/1 (1..5)"), "{shown}");

    // Eight in hand, two for each.
    let clients = Clients::start(&up, 8);
    wait_for("replicas for the load", || {
        (up.status("web")["ready"].as_u64()? >= 4).then_some(())
    });
    let raised = scaled(&up);
    let first = raised.first().expect("it was raised");
    let reason = first["reason"].as_str().expect("text");
    assert!(
        reason.contains("requests in hand per ready replica"),
        "{reason}"
    );
    assert!(reason.contains("target 2: 1 to "), "{reason}");
    assert!(first["detail"]["load"].as_f64() > Some(2.0), "{first}");
    assert_eq!(first["detail"]["from"], 1);
    wait_for("why to tell what was last found", || {
        let why = up.run(&["why", "web"]).ok().out;
        (why.contains("load: ") && why.contains("scaled: ")).then_some(())
    });

    // A person's count is kept within the bounds.
    let asked = up.run(&["scale", "web=50"]).ok().out;
    assert!(asked.contains("50 is beyond 1 to 5"), "{asked}");
    assert!(up.status("web")["desired"].as_u64() <= Some(5));

    drop(clients);
    wait_for("as few as before", || {
        let status = up.status("web");
        (status["desired"] == 1 && status["ready"] == 1).then_some(())
    });
    let last = scaled(&up).pop().expect("it was lowered");
    assert_eq!(last["detail"]["to"], 1, "{last}");
}

#[test]
fn replicas_follow_what_waits_in_a_stream() {
    let up = Up::start(1);
    let nats = Client::connect(&up.nats_url());
    let stream = json!({"name": "JOBS", "subjects": ["jobs.*"]});
    nats.json("$JS.API.STREAM.CREATE.JOBS", &stream);
    let text = format!(
        "[workload]\nname = \"worker\"\ncomponent = \"{}\"\nresources = {{ concurrency = 1 }}\n\
         scale = {{ min = 1, max = 3, target = {{ pending = 4 }}, window = \"6s\", panic = \"2s\" }}\n\
         bindings = {{ subscribe = [{{ subject = \"jobs.*\", stream = \"JOBS\" }}] }}\n",
        guest("echo-messages").display()
    );
    let file = up.home.write("worker.toml", text);
    up.run(&["deploy", file.to_str().expect("text")]).ok();
    // Each takes a minute, and a replica takes one at a time.
    for _ in 0..12 {
        let stored = nats.request("jobs.one", b"sleep");
        assert!(stored.starts_with(b"{\"stream\""), "{stored:?}");
    }
    wait_for("replicas for what waits", || {
        (up.status("worker")["ready"] == 3).then_some(())
    });
    let raised = scaled(&up);
    let reason = raised.first().expect("it was raised")["reason"].as_str();
    let reason = reason.expect("text");
    assert!(
        reason.contains("messages waiting per ready replica"),
        "{reason}"
    );
    assert!(reason.contains("target 4: 1 to "), "{reason}");
}
