//! Real hosts, real controllers, real processes: one is killed, and how long until that is made good.
//!
//! Nothing is simulated. A host is killed with the only replica of a workload, asked for at a gateway
//! that lives; a leader, with another controller standing by.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use wasmorch_tests::daemons::{Daemons, Flags, leader, says_hello};

use super::{seconds, until};

const QUICK: Flags = Flags {
    controller: &["--dead-after", "1s"],
    host: &["--heartbeat", "250ms"],
};

/// Rows of the table: what, and the times.
pub(super) fn measure(runs: usize) -> Result<Vec<(String, String)>> {
    let mut rows = Vec::new();
    for (words, flags) in [("5 s", Flags::default()), ("1 s", QUICK)] {
        let mut daemons = Daemons::start_with(1, 3, flags);
        daemons.deploy("hello-http", "only", &[]);
        let times = repeated(runs, || lose_host(&mut daemons))?;
        let what = format!("a host dies, its replica serves elsewhere (detection {words})");
        rows.push((what, times));
    }
    let mut daemons = Daemons::start(2, 3);
    daemons.deploy("hello-http", "only", &[]);
    let (mut answers, mut writes) = (Vec::new(), Vec::new());
    for _ in 0..runs {
        let (answer, write) = lose_leader(&mut daemons)?;
        answers.push(answer);
        writes.push(write);
    }
    rows.push(("the leader dies, another answers".into(), spread(answers)));
    rows.push(("and takes a write".into(), spread(writes)));
    Ok(rows)
}

fn repeated(runs: usize, mut once: impl FnMut() -> Result<Duration>) -> Result<String> {
    let times: Result<Vec<Duration>> = (0..runs).map(|_| once()).collect();
    Ok(spread(times?))
}

fn spread(mut times: Vec<Duration>) -> String {
    times.sort();
    let Some(worst) = times.last() else {
        return "no run".into();
    };
    let median = times[times.len() / 2];
    format!(
        "{} median, {} worst of {}",
        seconds(median),
        seconds(*worst),
        times.len()
    )
}

/// Kills the host of the only replica; the time until another host's gateway answers for it again.
fn lose_host(daemons: &mut Daemons) -> Result<Duration> {
    // What a host that came back still ran of before has ended, and one replica alone serves.
    let on = until("one replica alone", || {
        let status = daemons.run(&["status", "only", "--json"]);
        let status = (status.code == 0).then(|| status.json())?;
        match status["replicas"].as_array()?.as_slice() {
            [one] if one["ready"] == true => Some(one.clone()),
            _ => None,
        }
    })?;
    let name = on["host"].as_str().context("no host")?.to_owned();
    let number = name.rsplit('-').next().and_then(|n| n.parse().ok());
    let number: usize = number.with_context(|| format!("{name} is none of ours"))?;
    let hosts = daemons.run(&["hosts", "--json"]).ok().json();
    let others = hosts.as_array().context("no hosts")?.iter();
    let gateway = { others }
        .find(|host| host["name"] != name.as_str() && host["state"] == "alive")
        .and_then(|host| host["http"].as_str())
        .context("no other host lives")?
        .to_owned();
    ensure!(says_hello(&gateway, "only"), "it does not serve before");
    let began = Instant::now();
    let host = daemons.hosts[number].take();
    host.context("it is down already")?.kill();
    until("the replica to serve elsewhere", || {
        says_hello(&gateway, "only").then_some(())
    })?;
    let took = began.elapsed();
    daemons.start_host(number);
    daemons.wait_for_hosts(3);
    Ok(took)
}

/// Kills the leader; the time until another answers, and until a write is done.
fn lose_leader(daemons: &mut Daemons) -> Result<(Duration, Duration)> {
    let client = daemons.client();
    let (id, term) = until("a leader", || leader(&client))?;
    let number = daemons.controller_of(&id);
    let replicas = 1 + term % 2;
    let began = Instant::now();
    let process = daemons.controllers[number].take();
    process.context("it leads")?.kill();
    until("the next leader", || {
        leader(&client).filter(|(_, next)| *next > term)
    })?;
    let answered = began.elapsed();
    let scale = json!({"workload": "only", "desired": replicas});
    until("a write", || {
        let answer = client.try_json("wasmorch.v1.api.default.scale", &scale)?;
        answer["error"].is_null().then_some(())
    })?;
    let wrote = began.elapsed();
    daemons.start_controller(number);
    daemons.controller_id(number);
    daemons.wait_for_hosts(3);
    Ok((answered, wrote))
}
