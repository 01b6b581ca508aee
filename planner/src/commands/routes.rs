//! One route belongs to one workload, whether it is deployed or brought back.

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
                return Err(ApiError::new(
                    ErrorCode::Conflict,
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
