//! From zero: how long the first request of a workload at rest takes, its replica woken on the way.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use wasmorch_tests::daemons::{Daemons, says_hello};
use wasmorch_tests::guest;

/// Each gateway's own workload, so that both can rest at once.
const NAMES: [&str; 2] = ["rests-near", "rests-far"];
/// What is measured, in this order.
pub(super) const NAMED: [&str; 3] = [
    "a request through its own host's gateway",
    "a request through another host's gateway",
    "a message on a plain subject",
];
const LOOK_EVERY: Duration = Duration::from_millis(50);
const LOOK_MAX: Duration = Duration::from_secs(60);

/// Times in ms, sorted: through the gateway of the host where it rests, and through another's.
pub(super) fn measure(
    cluster: &Daemons,
    (own, other): (&str, &str),
    place: &str,
    turns: usize,
) -> Result<[Vec<f64>; 2]> {
    for name in NAMES {
        let text = format!(
            "[workload]\nname = \"{name}\"\ncomponent = \"{}\"\n\
             constraints = [{{ label = \"place\", eq = \"{place}\" }}]\n\
             scale = {{ min = 0, max = 2, target = {{ concurrency = 50 }}, window = \"1s\", panic = \"1s\" }}\n",
            guest("hello-http").display()
        );
        let file = cluster.home.write(&format!("{name}.toml"), text);
        let file = file.to_str().context("the temp folder is text")?;
        cluster.run(&["deploy", file]).ok();
    }
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..turns {
        for name in NAMES {
            until_at_rest(cluster, name)?;
        }
        for ((name, gateway), times) in NAMES.iter().zip([own, other]).zip(&mut times) {
            let asked = Instant::now();
            ensure!(says_hello(gateway, name), "{name} did not answer from zero");
            times.push(asked.elapsed().as_secs_f64() * 1_000.0);
        }
    }
    for times in &mut times {
        times.sort_by(f64::total_cmp);
    }
    Ok(times)
}

/// Times in ms, sorted, from a message that finds its workload at rest to the answer.
pub(super) fn measure_messages(cluster: &Daemons, place: &str, turns: usize) -> Result<Vec<f64>> {
    let (name, subject) = ("rests-and-listens", "bench.asks");
    let text = format!(
        "[workload]\nname = \"{name}\"\ncomponent = \"{}\"\n\
         constraints = [{{ label = \"place\", eq = \"{place}\" }}]\n\
         scale = {{ min = 0, max = 2, target = {{ concurrency = 50 }}, window = \"1s\", panic = \"1s\" }}\n\
         [workload.bindings]\nsubscribe = [{{ subject = \"{subject}\" }}]\n",
        guest("echo-messages").display()
    );
    let file = cluster.home.write(&format!("{name}.toml"), text);
    let file = file.to_str().context("the temp folder is text")?;
    cluster.run(&["deploy", file]).ok();
    let client = cluster.client();
    let mut times = Vec::new();
    for _ in 0..turns {
        until_at_rest(cluster, name)?;
        let asked = Instant::now();
        let answer = client.try_request(subject, b"you");
        ensure!(
            answer.as_deref() == Some(b"echo: you"),
            "{name} did not answer from zero: {answer:?}"
        );
        times.push(asked.elapsed().as_secs_f64() * 1_000.0);
    }
    times.sort_by(f64::total_cmp);
    Ok(times)
}

fn until_at_rest(cluster: &Daemons, name: &str) -> Result<()> {
    let began = Instant::now();
    loop {
        let status = cluster.run(&["status", name, "--json"]).ok().json();
        let replicas = status["replicas"].as_array().cloned().unwrap_or_default();
        let rests = |one: &serde_json::Value| one["standby"] == true && one["state"] == "preparing";
        if status["desired"] == 0 && replicas.iter().filter(|one| rests(one)).count() == 2 {
            return Ok(());
        }
        ensure!(
            began.elapsed() < LOOK_MAX,
            "{name} does not come to rest: {status}"
        );
        std::thread::park_timeout(LOOK_EVERY);
    }
}
