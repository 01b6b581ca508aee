//! Looks which slots have a ready replica: on the hosts themselves, for what runs there does not change with who
//! leads, while a new leader knows it only once they have told it.
//!
//! One host is asked after the other, and a slot may go from one to another meanwhile. So all are asked twice, and
//! a slot counts that is ready in either round: whoever had ended in the first had a successor that was ready
//! before, and is so in the second.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::thread::park_timeout;
use std::time::Duration;

use serde_json::{Value, json};

use super::{NAME, Shared};
use crate::nats_client::Client;

/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// For a host's answer.
const PATIENCE: Duration = Duration::from_millis(500);

/// Looks all the while at the slots from 1 to `replicas`.
pub(super) fn look(shared: &Shared, hosts: &[String], replicas: u64, url: &str) {
    let client = Client::connect(url);
    while !shared.is_over() {
        park_timeout(LOOK_EVERY);
        let leaderless = shared.leaderless.load(Ordering::Relaxed);
        let before = shared.excused();
        let there = hosts.iter().zip(&shared.gateways);
        let there = there.filter(|(_, gateway)| !gateway.away.load(Ordering::SeqCst));
        let there: Vec<&str> = there.map(|(host, _)| host.as_str()).collect();
        let twice = there.iter().chain(&there);
        let ready: Option<Vec<_>> = twice
            .map(|host| slots(&client, host, |one| one["ready"] == true))
            .collect();
        // One that does not answer may have just been killed, and is known to be by the next look.
        let Some(ready) = ready else { continue };
        let after = shared.excused();
        let fine = |slot: &u64| {
            let ready = ready.iter().any(|slots| slots.contains(slot));
            ready || before.contains(slot) || after.contains(slot)
        };
        let short: BTreeSet<u64> = (1..=replicas).filter(|slot| !fine(slot)).collect();
        if !short.is_empty() {
            let mut all = shared.short.lock().expect("nobody panicked");
            all.push((shared.roll(), short));
        }
        shared.looks.fetch_add(1, Ordering::Relaxed);
        let so_many = u64::from(leaderless);
        shared
            .leaderless_looks
            .fetch_add(so_many, Ordering::Relaxed);
    }
}

/// The slots that have something on a host which serves or is to serve; `None`: it does not answer.
pub(super) fn placed_on(client: &Client, host: &str) -> Option<BTreeSet<u64>> {
    let comes = ["assigned", "preparing", "starting", "running"];
    slots(client, host, |one| {
        one["state"]
            .as_str()
            .is_some_and(|state| comes.contains(&state))
    })
}

fn slots(client: &Client, host: &str, wanted: impl Fn(&Value) -> bool) -> Option<BTreeSet<u64>> {
    let subject = format!("wasmorch.v1.host.{host}.status");
    let told = client.ask(&subject, &json!({}), PATIENCE)?;
    let replicas = told["replicas"].as_array()?.iter();
    let of_it = replicas.filter(|one| one["workload"] == NAME && wanted(one));
    let slot = |one: &Value| {
        one["replica"]
            .as_str()?
            .split('-')
            .next()?
            .parse::<u64>()
            .ok()
    };
    Some(of_it.filter_map(slot).collect())
}
