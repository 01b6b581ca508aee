//! What the fuzz target `plan` does with its bytes: every deploy that is accepted is planned on a small cluster.
//! Also read by the planner's tests, which give it every file of the corpus.
//!
//! Owns the properties: no panic, no plan that the checker refuses, an end to planning, and an answer for whoever
//! asks why something is not placed.

use std::time::Duration;

use wasmorch_api::manifest::{check_kind, not_yet, read_deploy};
use wasmorch_api::messages::DeployRequest;
use wasmorch_api::status::Capacity;
use wasmorch_api::{
    BootId, ClusterId, Heartbeat, HostId, HostInfo, Kind, LeaderId, Name, Term, Timestamp,
    WorkloadKey, features,
};
use wasmorch_planner::commands::{self, Call, DeployInput};
use wasmorch_planner::{Cluster, Observation, check, queries, why};

const NOW: Timestamp = Timestamp(1_700_000_000_000);
/// Plans until nothing more may come of a deploy while no host answers.
const PLANS: u32 = 8;

/// The body of `deploy`. A kind that it does not name is tried with each.
pub(crate) fn plan(bytes: &[u8]) {
    let Ok(request) = read_deploy(bytes) else {
        return;
    };
    for kind in Kind::ALL {
        deploy(&request, kind);
    }
}

fn deploy(request: &DeployRequest, kind: Kind) {
    let mut workloads = Vec::new();
    for spec in &request.workloads {
        let kind = spec.kind.unwrap_or(kind);
        if !check_kind(spec, kind).is_empty() || !not_yet(spec, kind).is_empty() {
            return;
        }
        workloads.push((spec.clone(), kind));
    }
    let mut cluster = three_hosts();
    let call = Call {
        namespace: Name::default(),
        now: NOW,
        wall: NOW,
        request_id: None,
        by: "fuzz".to_owned(),
    };
    let input = DeployInput {
        workloads,
        atomic: request.atomic,
        ..DeployInput::default()
    };
    let outcome = match commands::deploy(&cluster, &input, &call) {
        Ok(outcome) => outcome,
        Err(refusal) => {
            let helps = !refusal.fix.is_empty() || !refusal.problems.is_empty();
            assert!(!refusal.what.is_empty() && helps, "{refusal:?}");
            return;
        }
    };
    let mut sequence = outcome.writes.len() as u64;
    cluster.commit(outcome.writes, sequence, NOW);
    come_to_rest(&mut cluster, &mut sequence);
    for (spec, _) in &input.workloads {
        let key = WorkloadKey::new(call.namespace.clone(), spec.name.clone());
        assert!(queries::status(&cluster, &key, true).is_some(), "{key}");
        assert!(why::workload(&cluster, &key).is_some(), "{key}");
    }
}

/// Plans, checks and carries out, until nothing is left to do.
fn come_to_rest(cluster: &mut Cluster, sequence: &mut u64) {
    for round in 0..PLANS {
        let now = NOW.after(Duration::from_millis(u64::from(round)));
        let plan = cluster.plan(now);
        if plan.is_empty() {
            return;
        }
        assert_eq!(check::check(cluster, &plan), [], "the checker refuses it");
        assert_eq!(check::check_touched(cluster, &plan), []);
        let writes = cluster.writes(plan);
        *sequence += writes.len() as u64;
        cluster.commit_planned(writes, *sequence, now);
        cluster.carried_out();
    }
    panic!("planning does not come to rest");
}

/// Three hosts in two zones that hold nothing.
fn three_hosts() -> Cluster {
    let name = |n: u8| -> Name { Name::nearest(&format!("h{n}")).expect("a letter and a digit") };
    let id = ClusterId::from_random([1; 10]);
    let mut cluster = Cluster::new(id.clone(), Term(1), LeaderId::from_random([1; 10]), NOW);
    for n in 1..=3_u8 {
        let zone = if n == 1 { "a" } else { "b" };
        let host = HostId::from_random([n; 10]);
        let boot = BootId::from_random([n; 10]);
        let info = HostInfo {
            name: name(n),
            arch: "x86_64".into(),
            labels: [("zone".to_owned(), zone.to_owned())].into(),
            features: features::ALL.iter().map(|&one| one.to_owned()).collect(),
            capacity: Capacity {
                memory_bytes: 1 << 30,
                cpu_millis: 2_000,
                replicas: 100,
            },
            ..HostInfo::default()
        };
        let beat = Heartbeat {
            info,
            ..Heartbeat::new(id.clone(), host, boot, Term(1))
        };
        cluster.observe(Observation::Heartbeat(Box::new(beat)), NOW);
    }
    cluster
}
