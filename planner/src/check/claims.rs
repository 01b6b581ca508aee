//! What a start claims of its host beside room: ports that are free, and features that are there.
//!
//! Looks at what listens or needs something, and at the hosts where that starts: at their sets, and at
//! what has left them and still ends.

use std::collections::{BTreeMap, BTreeSet};

use wasmorch_api::{HostId, PlacementNumber, RevisionNumber, WorkloadKey, features};

use super::BrokenRule;
use crate::cluster::{Cluster, Workload};
use crate::plan::{Plan, Start};

/// One that starts finds its ports taken by nothing that the plan has not seen end, and by nothing else
/// that starts.
pub(super) fn are_met(cluster: &Cluster, plan: &Plan, broken: &mut Vec<BrokenRule>) {
    let mut listening: BTreeMap<(&HostId, u16), Vec<&Start>> = BTreeMap::new();
    for run in plan
        .start
        .chunk_by(|a, b| (&a.key, a.revision) == (&b.key, b.revision))
    {
        let workload = cluster.workload(&run[0].key);
        let revision = workload.and_then(|one| one.revisions.get(&run[0].revision));
        let Some(revision) = revision else { continue };
        let mut needs = features::of_spec(&revision.spec);
        needs.extend(revision.features.iter().cloned());
        let ports = workload.map(|one| listens(one, run[0].revision));
        let ports = ports.unwrap_or_default();
        if needs.is_empty() && ports.is_empty() {
            continue;
        }
        for start in run {
            for port in ports {
                listening
                    .entry((&start.host, *port))
                    .or_default()
                    .push(start);
            }
            let has = cluster
                .hosts()
                .get(&start.host)
                .map(|host| &host.info().features);
            let has = has.into_iter().flatten().collect::<BTreeSet<_>>();
            let lacks = needs.iter().filter(|feature| !has.contains(feature));
            broken.extend(lacks.map(|feature| BrokenRule::WithoutFeature {
                workload: start.key.clone(),
                host: start.host.clone(),
                feature: feature.clone(),
            }));
        }
    }
    let mut holders: BTreeMap<&HostId, BTreeSet<u16>> = BTreeMap::new();
    for ((host, port), starts) in listening {
        let held = holders
            .entry(host)
            .or_insert_with(|| held(cluster, plan, host));
        let free = usize::from(!held.contains(&port));
        broken.extend(starts.iter().skip(free).map(|start| BrokenRule::PortTaken {
            workload: start.key.clone(),
            host: host.clone(),
            port,
        }));
    }
}

fn listens(workload: &Workload, revision: RevisionNumber) -> &[u16] {
    let revision = workload.revisions.get(&revision);
    let sockets = revision.and_then(|one| one.spec.bindings.sockets.as_ref());
    sockets.map_or(&[], |sockets| &sockets.listen)
}

/// The ports that are taken on a host, but by what the plan stops after it has ended.
fn held(cluster: &Cluster, plan: &Plan, id: &HostId) -> BTreeSet<u16> {
    let mut held = BTreeSet::new();
    let Some(host) = cluster.hosts().get(id) else {
        return held;
    };
    let ended = |key: &WorkloadKey, workload: &Workload, number: PlacementNumber| {
        let known = workload.reports.get(&number);
        let ended = known.is_some_and(|one| one.host == *id && one.status.state.ended());
        let mut stops = plan.stop.iter();
        ended && stops.any(|stop| (&stop.key, stop.placement) == (key, number))
    };
    for group in host.set.iter().flat_map(|set| &set.groups) {
        let key = group.key();
        let Some(workload) = cluster.workload(&key) else {
            continue;
        };
        let ports = listens(workload, group.revision);
        let mut slots = group.slots.iter();
        if !ports.is_empty() && slots.any(|slot| !ended(&key, workload, slot.placement)) {
            held.extend(ports);
        }
    }
    for (key, number) in &host.leaving {
        let Some(workload) = cluster.workload(key) else {
            continue;
        };
        let known = workload.reports.get(number).map(|known| &known.status);
        if let Some(status) = known.filter(|status| !status.state.ended()) {
            held.extend(listens(workload, status.revision));
        }
    }
    held
}
