//! What a deploy would change, without changing it.

use serde_json::{Value, json};
use wasmorch_api::{HostId, WorkloadKey, WorkloadSpec};

use crate::cluster::{Cluster, Workload};
use crate::commands::{self, Call, DeployInput};
use crate::plan::StopReason;
use crate::queries::{host_name, index};

/// What a deploy would do, without doing it: the same code on a copy of what it concerns. Others
/// that wait for room, and would go first by priority, are not asked.
pub fn of_deploy(
    cluster: &Cluster,
    input: &DeployInput,
    call: &Call,
) -> Result<Value, wasmorch_api::ApiError> {
    let outcome = commands::deploy(cluster, input, call)?;
    let keys = input.workloads.iter();
    let keys: Vec<WorkloadKey> = keys.map(|(spec, _)| call.key_of(&spec.name)).collect();
    let mut after = cluster.excerpt(&keys);
    // Sequences only have to be new; the copy is thrown away.
    let last = u64::MAX / 2;
    after.commit(&outcome.writes, last, call.now);
    let plan = after.plan(call.now);
    let mine = |key: &WorkloadKey| {
        input
            .workloads
            .iter()
            .any(|(spec, _)| call.key_of(&spec.name) == *key)
    };
    let mut changes = Vec::new();
    let (mut granted, mut revoked) = (Vec::new(), Vec::new());
    for (spec, _) in &input.workloads {
        let key = call.key_of(&spec.name);
        let before = cluster
            .workload(&key)
            .and_then(Workload::target)
            .map(|target| &target.spec);
        changes.extend(changes_of(cluster, &key, before, spec));
        let had = before.map(|spec| grants(&key, spec)).unwrap_or_default();
        let has = grants(&key, spec);
        granted.extend(has.iter().filter(|grant| !had.contains(grant)).cloned());
        revoked.extend(had.into_iter().filter(|grant| !has.contains(grant)));
    }
    let view = |key: &WorkloadKey, slot: u64, host: &HostId| json!({"workload": key.to_string(), "slot": slot, "host": host_name(&after, host)});
    let starts: Vec<Value> = plan
        .start
        .iter()
        .filter(|start| mine(&start.key))
        .map(|start| view(&start.key, start.slot.0, &start.host))
        .collect();
    let stops: Vec<Value> = plan
        .stop
        .iter()
        .filter(|stop| mine(&stop.key) && stop.why != StopReason::HostDead)
        .map(|stop| view(&stop.key, stop.slot.0, &stop.host))
        .collect();
    let unplaced: Vec<_> = plan
        .unplaced
        .iter()
        .filter(|one| {
            input
                .workloads
                .iter()
                .any(|(spec, _)| call.key_of(&spec.name).to_string() == one.workload)
        })
        .collect();
    let index = index(
        cluster,
        input
            .workloads
            .iter()
            .map(|(spec, _)| call.key_of(&spec.name)),
    );
    Ok(json!({
        "index": index, "changes": changes, "start": starts, "stop": stops, "move": [],
        "unplaced": unplaced, "granted": granted, "revoked": revoked,
    }))
}

fn changes_of(
    cluster: &Cluster,
    key: &WorkloadKey,
    before: Option<&WorkloadSpec>,
    after: &WorkloadSpec,
) -> Vec<Value> {
    let Some(before) = before else {
        return vec![json!({"op": "add", "path": key.to_string(), "from": null, "to": after})];
    };
    let mut lines: Vec<Value> = commands::spec_changes(before, after)
        .into_iter()
        .map(|(path, from, to)| {
            let op = match (&from, &to) {
                (Value::Null, _) => "add",
                (_, Value::Null) => "remove",
                _ => "change",
            };
            json!({"op": op, "path": format!("{key}.{path}"), "from": from, "to": to})
        })
        .collect();
    let desired = cluster
        .workload(key)
        .map(|workload| workload.record.desired);
    if let (Some(from), Some(to)) = (desired, after.replicas_named())
        && from != to
    {
        let path = format!("{key}.replicas");
        lines.push(json!({"op": "change", "path": path, "from": from, "to": to}));
    }
    lines
}

/// A spec's capabilities as `--grant` lines, with the workload in front.
fn grants(key: &WorkloadKey, spec: &WorkloadSpec) -> Vec<String> {
    wasmorch_api::manifest::grant_flags(&spec.bindings)
        .into_iter()
        .map(|flag| format!("{key}: {flag}"))
        .collect()
}
