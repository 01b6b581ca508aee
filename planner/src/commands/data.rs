//! `rm --data`: which stores of a workload go with it, which stay because others use them, and what
//! is refused.
//!
//! Pure as its neighbours: the shell removes the streams, after the removal itself is stored, and
//! hosts what lies there (`removals`).

use std::collections::BTreeSet;

use wasmorch_api::status::HostState;
use wasmorch_api::{ApiError, ErrorCode, HostId, WorkloadKey, stores};

use crate::cluster::{Cluster, Workload};
use crate::removals;

/// A store in JetStream: what it is called, and the streams that it is made of.
struct Kept {
    label: String,
    streams: Vec<String>,
}

/// The stores in JetStream of all revisions of a workload.
fn in_jetstream(workload: &Workload, key: &WorkloadKey) -> Vec<Kept> {
    let mut found = Vec::new();
    for revision in workload.revisions.values() {
        let bindings = &revision.spec.bindings;
        for (name, store) in &bindings.keyvalue {
            let own = stores::own_name(key, name);
            let bucket = store.settings.get("bucket").unwrap_or(&own);
            if store.backend == "jetstream" {
                found.push(Kept {
                    label: format!("bucket {bucket}"),
                    // Values larger than a message lie in a store of their own.
                    streams: vec![format!("KV_{bucket}"), format!("OBJ_{bucket}_large")],
                });
            }
        }
        for (name, store) in &bindings.blobstore {
            let own = stores::own_name(key, name);
            let container = store.settings.get("container").unwrap_or(&own);
            if store.backend == "jetstream" {
                found.push(Kept {
                    label: format!("container {container} (jetstream)"),
                    streams: vec![format!("OBJ_{container}")],
                });
            }
        }
    }
    found
}

/// The streams of every other workload, in all namespaces: a bucket may have several users.
fn of_others<'a>(
    cluster: &'a Cluster,
    key: &WorkloadKey,
) -> impl Iterator<Item = (&'a WorkloadKey, Kept)> {
    let others = cluster
        .workloads()
        .iter()
        .filter(move |(other, _)| *other != key);
    others.flat_map(|(other, workload)| {
        let stores = in_jetstream(workload, other);
        stores.into_iter().map(move |store| (other, store))
    })
}

/// The streams that hold the data of a workload and of no other.
pub fn streams(cluster: &Cluster, key: &WorkloadKey) -> BTreeSet<String> {
    let Some(workload) = cluster.workload(key) else {
        return BTreeSet::new();
    };
    let own = in_jetstream(workload, key).into_iter();
    let mut streams: BTreeSet<String> = own.flat_map(|store| store.streams).collect();
    for (_, store) in of_others(cluster, key) {
        for stream in &store.streams {
            streams.remove(stream);
        }
    }
    streams
}

/// What stays although the data go: what others use, and for now what hosts keep that are away.
pub(super) fn left(cluster: &Cluster, workload: &Workload, key: &WorkloadKey) -> Vec<String> {
    let mut kept = BTreeSet::new();
    for own in in_jetstream(workload, key) {
        for (other, store) in of_others(cluster, key) {
            if store
                .streams
                .iter()
                .any(|stream| own.streams.contains(stream))
            {
                kept.insert(format!("{}, which {other} uses", own.label));
            }
        }
    }
    let all: Vec<String> = removals::folders(workload, key).into_iter().collect();
    let mut own = all.clone();
    cluster.spare_used(key, &mut own);
    let shared = all.into_iter().filter(|folder| !own.contains(folder));
    kept.extend(shared.map(|folder| format!("container {folder} (disk), which others use")));
    let homes: BTreeSet<&HostId> = workload.record.homes.values().collect();
    for (id, host) in cluster.hosts() {
        if homes.contains(id) && host.state == HostState::Dead {
            let name = &host.info().name;
            kept.insert(format!(
                "its data on {name} until that is back: then they go"
            ));
        }
    }
    kept.into_iter().collect()
}

/// Refuses what would be half done: data in systems that are not the cluster's, and data that a
/// replica may still be writing.
pub(super) fn check(
    cluster: &Cluster,
    workload: &Workload,
    key: &WorkloadKey,
) -> Result<(), ApiError> {
    let name = &key.name;
    let bindings = workload
        .revisions
        .values()
        .map(|revision| &revision.spec.bindings);
    for bindings in bindings {
        let stores = bindings.keyvalue.iter().chain(&bindings.blobstore);
        let mut others = stores
            .filter(|(_, store)| ["redis", "s3"].contains(&store.backend.as_str()))
            .map(|(name, store)| format!("{name} ({})", store.backend));
        if let Some(first) = others.next() {
            return Err(ApiError::new(
                ErrorCode::Invalid,
                format!("rm cannot remove all data of {name}"),
                format!(
                    "{first} is a system of its own: only what the cluster keeps can go with it"
                ),
                "leave `--data` out: what is kept is listed, and can be removed by hand",
            ));
        }
    }
    // A host removes what lies there once nothing of it runs there. What is in JetStream is removed now.
    let here_only = in_jetstream(workload, key).is_empty();
    let leaving = workload.reports.iter().filter(|(number, known)| {
        let host = cluster.hosts().get(&known.host);
        let away = host.is_some_and(|host| host.state == HostState::Dead);
        let ended = known.status.state.ended() || (away && here_only);
        !ended && !workload.placements.contains_key(number)
    });
    let running = workload.placements.len() + leaving.count();
    if workload.record.wanted() > 0 || running > 0 {
        return Err(ApiError::new(
            ErrorCode::Conflict,
            format!("{name} still runs"),
            format!("{running} of its replicas have not ended, and may write"),
            format!("`wasmorch stop {name}`, and then remove it with its data"),
        ));
    }
    Ok(())
}
