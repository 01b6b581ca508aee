//! One route belongs to one workload, whether it is deployed or brought back; and what is some workload's
//! automatic name is nobody else's.

use std::collections::BTreeSet;

use wasmorch_api::status::HostState;
use wasmorch_api::{ApiError, ErrorCode, Route, WorkloadKey, WorkloadSpec};

use crate::cluster::{Cluster, Workload};

/// Refuses workloads to be as these specs say when a route of theirs is another's.
pub(super) fn refuse_taken(
    cluster: &Cluster,
    specs: &[(WorkloadKey, &WorkloadSpec)],
) -> Result<(), ApiError> {
    let mut taken: Vec<(Route, WorkloadKey)> = Vec::new();
    for (key, workload) in cluster.workloads() {
        if !specs.iter().any(|(one, _)| one == key) {
            let held = held(workload).flat_map(routes);
            taken.extend(held.map(|route| (route, key.clone())));
        }
    }
    for (key, spec) in specs {
        for route in routes(spec) {
            if let Some((_, owner)) = taken
                .iter()
                .find(|(other, owner)| *other == route && owner != key)
            {
                // Trying again would not help.
                return Err(ApiError::new(
                    ErrorCode::Invalid,
                    format!("route {route} of {key} is taken"),
                    format!("{owner} has it"),
                    format!("give one of the two another route, or remove {owner}"),
                ));
            }
            taken.push((route, key.clone()));
        }
    }
    Ok(())
}

/// Refuses routes that could never answer, or only until somebody deploys a workload of that name: gateways
/// look for automatic names first. Not asked when an earlier revision is brought back: that is no time to
/// learn of it.
pub(super) fn refuse_automatic(
    cluster: &Cluster,
    specs: &[(WorkloadKey, &WorkloadSpec)],
) -> Result<(), ApiError> {
    let alive = cluster.hosts().values();
    let alive = alive.filter(|host| host.state != HostState::Dead);
    let domains = alive.map(|host| host.info().domain.trim_matches('.').to_ascii_lowercase());
    let domains: BTreeSet<String> = domains.filter(|domain| !domain.is_empty()).collect();
    for (key, spec) in specs {
        let asked = cluster.workloads().get(key).and_then(Workload::asked);
        let has: Vec<Route> = { asked.into_iter() }
            .flat_map(|asked| routes(&asked.spec))
            .collect();
        // What it has had before a host with such a domain came is no reason to refuse the rest.
        for route in routes(spec).filter(|route| !has.contains(route)) {
            let mut named = domains.iter().filter_map(|domain| route.automatic(domain));
            let own = (key.name.as_str(), key.namespace.as_str());
            let Some((name, namespace)) = named.find(|named| *named != own) else {
                continue;
            };
            let why = match name {
                "*" => format!(
                    "these are the automatic names of the workloads in namespace {namespace}"
                ),
                _ => format!("it is the automatic name of {namespace}/{name}, there or not yet"),
            };
            return Err(ApiError::new(
                ErrorCode::Invalid,
                format!("route {route} of {key} is no workload's to take"),
                why,
                format!("give {key} another route"),
            ));
        }
    }
    Ok(())
}

/// Whose routes are a workload's: those of a revision on trial, or held, are its own as soon as it is
/// promoted, or begins; and those of the last stable one if its rollout goes back.
fn held(workload: &Workload) -> impl Iterator<Item = &WorkloadSpec> {
    let stable = workload.record.stable;
    let stable = stable.and_then(|stable| workload.revisions.get(&stable));
    let stable = stable.map(|one| &one.spec);
    let others = [workload.target(), workload.asked()];
    let others = others.into_iter().flatten().map(|one| &one.spec);
    others.chain(stable)
}

fn routes(spec: &WorkloadSpec) -> impl Iterator<Item = Route> {
    let routes = spec.routes.iter();
    routes.filter_map(|text| Route::parse(text).ok())
}
