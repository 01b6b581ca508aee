//! What gateways must know: endpoints from what hosts report, routes from specs.

use std::collections::{BTreeMap, BTreeSet};

use wasmorch_api::status::HostState;
use wasmorch_api::{
    EndpointTable, HostEndpoint, HostId, Kind, PlacementNumber, Route, RouteTable, WorkloadKey,
};

use crate::cluster::{Cluster, Workload};
use crate::plan::Plan;

/// Adds the tables that differ from what is stored once `plan` is carried out.
pub(crate) fn plan_tables(cluster: &Cluster, plan: &mut Plan) {
    let mut stopped: BTreeMap<&WorkloadKey, BTreeSet<PlacementNumber>> = BTreeMap::new();
    for stop in &plan.stop {
        stopped.entry(&stop.key).or_default().insert(stop.placement);
    }
    let none = BTreeSet::new();
    let mut endpoints = Vec::new();
    let mut routes = Vec::new();
    for (key, workload) in &cluster.workloads {
        if !matches!(workload.record.kind, Kind::Http | Kind::Messages) {
            continue;
        }
        let wanted = endpoint_table(cluster, key, workload, stopped.get(key).unwrap_or(&none));
        if workload.endpoints.as_ref().map(|table| &table.hosts) != Some(&wanted.hosts) {
            endpoints.push(wanted);
        }
        let wanted = route_table(cluster, key, workload);
        let stored = workload.routes.as_ref();
        if stored.map(|table| (&table.routes, table.kind)) != Some((&wanted.routes, wanted.kind)) {
            routes.push(wanted);
        }
    }
    plan.endpoints.extend(endpoints);
    plan.routes.extend(routes);
}

fn endpoint_table(
    cluster: &Cluster,
    key: &WorkloadKey,
    workload: &Workload,
    stopped: &BTreeSet<PlacementNumber>,
) -> EndpointTable {
    let mut ready: BTreeMap<&HostId, u32> = BTreeMap::new();
    for (number, placed) in &workload.placements {
        let host_lives = cluster
            .hosts
            .get(&placed.host)
            .is_some_and(|host| host.state != HostState::Dead);
        if host_lives && !stopped.contains(number) && workload.is_ready(*number) {
            *ready.entry(&placed.host).or_default() += 1;
        }
    }
    // A new leader knows nothing of a host until it has spoken: what gateways were told before
    // stays true until then, or until the host counts as dead.
    let unheard: Vec<&HostEndpoint> = workload
        .endpoints
        .iter()
        .flat_map(|table| &table.hosts)
        .filter(|endpoint| {
            cluster
                .hosts
                .get(&endpoint.host)
                .is_some_and(|host| !host.known() && host.state != HostState::Dead)
        })
        .collect();
    let mut hosts: Vec<HostEndpoint> = ready
        .into_iter()
        .filter(|(host, _)| !unheard.iter().any(|endpoint| endpoint.host == **host))
        .map(|(host, count)| HostEndpoint {
            host: host.clone(),
            peer: cluster
                .hosts
                .get(host)
                .and_then(|host| host.info().peer.clone()),
            ready: count,
            weight: count,
        })
        .collect();
    hosts.extend(unheard.into_iter().cloned());
    hosts.sort_by(|a, b| a.host.cmp(&b.host));
    EndpointTable {
        cluster: cluster.cluster.clone(),
        term: cluster.term,
        namespace: key.namespace.clone(),
        workload: key.name.clone(),
        hosts,
    }
}

fn route_table(cluster: &Cluster, key: &WorkloadKey, workload: &Workload) -> RouteTable {
    // A route that does not parse was refused at deploy; one from an older version is left out.
    let routes = workload
        .target()
        .map(|target| {
            target
                .spec
                .routes
                .iter()
                .filter_map(|text| Route::parse(text).ok())
                .collect()
        })
        .unwrap_or_default();
    RouteTable {
        cluster: cluster.cluster.clone(),
        term: cluster.term,
        namespace: key.namespace.clone(),
        workload: key.name.clone(),
        kind: workload.record.kind,
        routes,
    }
}
