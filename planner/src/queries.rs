//! What the state says, in the shapes of the API. Nothing here decides.

use wasmorch_api::messages::{
    HistoryItem, HostView, ReplicaView, RolloutView, RunView, ScaleView, StatusReply,
    WorkloadState, WorkloadSummary,
};
use wasmorch_api::record::Run;
use wasmorch_api::status::HostState;
use wasmorch_api::{
    HostId, Kind, PlacementNumber, Record, ReplicaId, ReplicaState, RolloutState, Slot, Timestamp,
    WorkloadKey, WorkloadSpec,
};

use crate::cluster::{Cluster, Host, Placed, Reported, Workload};
use crate::{cron, explain, hold};

/// The highest store sequence among the records named, and the removals of those that are gone: the
/// `index` of `--if-index`.
pub fn index(cluster: &Cluster, keys: impl IntoIterator<Item = WorkloadKey>) -> u64 {
    let index = |key: WorkloadKey| {
        let there = cluster.workload(&key).map(|workload| workload.index);
        there.or_else(|| cluster.removed_at.get(&key).copied())
    };
    keys.into_iter().filter_map(index).max().unwrap_or(0)
}

/// How many slots within what is wanted have a ready replica.
pub fn ready(cluster: &Cluster, workload: &Workload) -> u32 {
    ready_of(cluster, workload, workload.record.wanted())
}

fn ready_of(cluster: &Cluster, workload: &Workload, wanted: u32) -> u32 {
    // With one on every host slots go by hosts, and several runs at once have slots of their own.
    let last = match wanted {
        0 => 0,
        _ if workload.per_host() || workload.record.kind.ends() => u64::MAX,
        wanted => u64::from(wanted),
    };
    let lives = |host: &HostId| {
        let host = cluster.hosts().get(host);
        host.is_some_and(|host| host.state != HostState::Dead)
    };
    let (mut count, mut counted) = (0, None);
    let to = (Slot(last), PlacementNumber(u64::MAX));
    for (slot, number) in workload.slots.range(..=to) {
        // The placements of a slot follow each other.
        if counted == Some(*slot) || !workload.is_ready(*number) {
            continue;
        }
        let placed = workload.placements.get(number);
        if placed.is_some_and(|placed| lives(&placed.host)) {
            (count, counted) = (count + 1, Some(*slot));
        }
    }
    count
}

/// How a workload stands.
pub fn state(cluster: &Cluster, workload: &Workload) -> WorkloadState {
    state_of(cluster, workload, &workload.record)
}

/// How it would stand with this record.
pub(crate) fn state_of(cluster: &Cluster, workload: &Workload, record: &Record) -> WorkloadState {
    let ready = ready_of(cluster, workload, record.wanted());
    state_with(cluster, record, ready)
}

/// The same when it has been counted how many slots are ready.
fn state_with(cluster: &Cluster, record: &Record, ready: u32) -> WorkloadState {
    if record.stopped {
        return WorkloadState::Stopped;
    }
    let rollout = record.rollout.as_ref();
    if record.kind.ends() && record.held_bare() {
        return WorkloadState::Pending;
    }
    if record.kind.ends() {
        let cron = record.kind == Kind::Cron;
        return match record.run.as_ref().and_then(|run| run.outcome.as_ref()) {
            _ if record.runs().next().is_some() => match ready {
                0 => WorkloadState::Pending,
                _ => WorkloadState::Ready,
            },
            Some(outcome) if !outcome.completed => WorkloadState::Failed,
            Some(_) if !cron => WorkloadState::Completed,
            _ if cron => WorkloadState::Idle,
            _ => WorkloadState::Pending,
        };
    }
    let failed_first =
        rollout.is_some_and(|one| one.state == RolloutState::Failed && one.from.is_none());
    let looping = |one: &wasmorch_api::record::CrashLoop| one.until > cluster.ticked;
    match rollout {
        // Until it completes yet: all of it may be ready, and answer badly.
        _ if failed_first && record.desired > 0 => WorkloadState::Failed,
        Some(moving) if !moving.state.ended() && moving.from.is_some() => WorkloadState::Rolling,
        Some(moving) if !moving.state.ended() && ready < record.desired => WorkloadState::Pending,
        _ if record.desired == 0 => WorkloadState::Idle,
        _ if record.crash_loop.iter().any(looping) => WorkloadState::CrashLoop,
        _ if ready < record.desired => WorkloadState::Degraded,
        _ => WorkloadState::Ready,
    }
}

/// Where an http workload answers: its automatic name at the first live gateway, then its routes.
pub fn urls(cluster: &Cluster, key: &WorkloadKey, kind: Kind, spec: &WorkloadSpec) -> Vec<String> {
    if kind != Kind::Http {
        return Vec::new();
    }
    let infos = { cluster.hosts().values() }
        .filter(|host| host.state == HostState::Alive && !host.info().http.is_empty())
        .map(Host::info);
    let Some(info) = infos.min_by(|a, b| a.name.cmp(&b.name)) else {
        return Vec::new();
    };
    let (scheme, usual) = if info.tls {
        ("https", "443")
    } else {
        ("http", "80")
    };
    let port = match info.http.rsplit_once(':') {
        None => String::new(),
        Some((_, port)) if port == usual => String::new(),
        Some((_, port)) => format!(":{port}"),
    };
    let mut urls = vec![format!(
        "{scheme}://{}.{}.{}{port}/",
        key.name, key.namespace, info.domain
    )];
    for route in spec
        .routes
        .iter()
        .filter_map(|text| wasmorch_api::Route::parse(text).ok())
    {
        urls.push(format!("{scheme}://{}{port}{}", route.host, route.path));
    }
    urls
}

/// One workload of a list.
pub fn summary(cluster: &Cluster, key: &WorkloadKey, workload: &Workload) -> WorkloadSummary {
    let record = &workload.record;
    // Counted once: a list looks at every replica there is.
    let ready = ready(cluster, workload);
    let urls = workload
        .target()
        .map(|target| urls(cluster, key, record.kind, &target.spec))
        .unwrap_or_default();
    WorkloadSummary {
        namespace: key.namespace.clone(),
        name: key.name.clone(),
        kind: record.kind,
        revision: record.revision,
        desired: match record.kind {
            Kind::Cron => record.runs().map(Run::wanted).sum(),
            _ => record.wanted(),
        },
        ready,
        state: state_with(cluster, record, ready),
        scale: workload.target().and_then(|target| {
            let scale = target.spec.scale.as_ref()?;
            let (min, max) = (scale.min, scale.max);
            Some(ScaleView { min, max })
        }),
        urls,
    }
}

/// The workloads of a namespace (`None`: of all), by name.
pub fn list(cluster: &Cluster, namespace: Option<&wasmorch_api::Name>) -> Vec<WorkloadSummary> {
    cluster
        .workloads()
        .iter()
        .filter(|(key, _)| namespace.is_none_or(|namespace| key.namespace == *namespace))
        .map(|(key, workload)| summary(cluster, key, workload))
        .collect()
}

/// Everything about one workload; `all`: ended replicas too.
pub fn status(cluster: &Cluster, key: &WorkloadKey, all: bool) -> Option<StatusReply> {
    let workload = cluster.workload(key)?;
    let target = workload.asked()?;
    let mut replicas: Vec<ReplicaView> = workload
        .placements
        .iter()
        .map(|(number, placed)| placed_view(cluster, workload, *number, placed))
        .collect();
    let leaving = workload.reports.iter().filter(|(number, known)| {
        !workload.placements.contains_key(number) && !known.status.state.ended()
    });
    replicas.extend(leaving.map(|(_, known)| reported_view(cluster, known)));
    if all {
        let shown: Vec<ReplicaId> = replicas.iter().map(|view| view.replica).collect();
        let ended = workload
            .ended
            .iter()
            .filter(|known| !shown.contains(&known.status.replica));
        replicas.extend(ended.map(|known| reported_view(cluster, known)));
    }
    replicas.sort_by_key(|view| view.replica);
    Some(StatusReply {
        summary: summary(cluster, key, workload),
        spec: wasmorch_api::WorkloadSpec {
            artifact: Some(target.artifact.clone()),
            ..target.spec.clone()
        },
        replicas,
        rollout: rollout_view(cluster, workload),
        unplaced: explain::unplaced(cluster, key),
        outcome: { workload.record.run.as_ref() }
            .filter(|_| !workload.record.held_bare())
            .and_then(|run| run.outcome.clone()),
        run: workload.record.run.as_ref().map(|run| RunView {
            number: run.number,
            scheduled: run.scheduled,
            completed: run.completed,
            completions: run.completions,
        }),
        next: cron::next(&workload.record, target),
        index: workload.index,
    })
}

fn placed_view(
    cluster: &Cluster,
    workload: &Workload,
    number: PlacementNumber,
    placed: &Placed,
) -> ReplicaView {
    if let Some(known) = workload
        .reports
        .get(&number)
        .filter(|known| known.host == placed.host)
    {
        return reported_view(cluster, known);
    }
    ReplicaView {
        replica: ReplicaId {
            slot: placed.slot,
            placement: number,
            start: 1,
        },
        slot: placed.slot,
        revision: placed.revision,
        host: host_name(cluster, &placed.host),
        host_id: placed.host.clone(),
        state: ReplicaState::Assigned,
        ready: false,
        standby: placed.standby,
        since: cluster
            .hosts()
            .get(&placed.host)
            .map_or(cluster.since, |host| host.set_at),
        reason: None,
        exit_code: None,
        memory_bytes: 0,
        cpu_millis: 0,
        in_flight: 0,
    }
}

fn reported_view(cluster: &Cluster, known: &Reported) -> ReplicaView {
    let status = &known.status;
    let host_dead = cluster
        .hosts()
        .get(&known.host)
        .is_none_or(|host| host.state == HostState::Dead);
    let lost = host_dead && !status.state.ended();
    ReplicaView {
        replica: status.replica,
        slot: status.replica.slot,
        revision: status.revision,
        host: host_name(cluster, &known.host),
        host_id: known.host.clone(),
        state: if lost {
            ReplicaState::Lost
        } else {
            status.state
        },
        ready: status.ready && !lost,
        standby: status.standby && status.state <= ReplicaState::Preparing,
        since: status.since,
        reason: status.reason.clone(),
        exit_code: status.exit_code,
        memory_bytes: status.memory_bytes,
        cpu_millis: status.cpu_millis,
        in_flight: status.in_flight,
    }
}

pub(crate) fn host_name(cluster: &Cluster, host: &HostId) -> wasmorch_api::Name {
    cluster.hosts().get(host).map_or_else(
        || wasmorch_api::Name::nearest(host.as_str()).unwrap_or_default(),
        |known| known.info().name.clone(),
    )
}

/// The rollout that runs, or how the last one ended.
pub fn rollout_view(cluster: &Cluster, workload: &Workload) -> Option<RolloutView> {
    rollout_view_of(cluster, workload, &workload.record)
}

/// The same with this record.
pub(crate) fn rollout_view_of(
    cluster: &Cluster,
    workload: &Workload,
    record: &Record,
) -> Option<RolloutView> {
    let mut view = rollout_of_record(record)?;
    view.waits_for = hold::waits_for(cluster, workload, record);
    if record.held().is_some() {
        // Nothing of its revision runs.
        return Some(view);
    }
    (view.updated, view.ready) = fresh(workload, record);
    Some(view)
}

/// How many placements a rollout has brought, and how many of these are ready.
pub(crate) fn fresh(workload: &Workload, record: &Record) -> (u32, u32) {
    let fresh = |number: &PlacementNumber, placed: &Placed| {
        placed.revision == record.asked() && *number >= record.fresh_from
    };
    let fresh_placed = workload
        .placements
        .iter()
        .filter(|(number, placed)| fresh(number, placed));
    let (mut updated, mut ready) = (0, 0);
    for (number, _) in fresh_placed {
        updated += 1;
        ready += u32::from(workload.is_ready(*number));
    }
    (updated, ready)
}

/// What the record alone says of its rollout.
pub fn rollout_of_record(record: &Record) -> Option<RolloutView> {
    let rollout = record.rollout.as_ref()?;
    Some(RolloutView {
        revision: rollout.revision,
        from: rollout.from,
        state: rollout.state,
        updated: 0,
        ready: 0,
        desired: if record.stopped {
            0
        } else {
            record.desired_asked()
        },
        deadline: { rollout.hold.as_ref() }
            .and_then(|hold| hold.until)
            .unwrap_or(rollout.deadline),
        reason: rollout.reason.clone(),
        waits_for: Vec::new(),
        with: { rollout.together.as_ref() }
            .map(|together| together.with.keys().cloned().collect())
            .unwrap_or_default(),
    })
}

/// The revisions of a workload, newest first.
pub fn history(cluster: &Cluster, key: &WorkloadKey) -> Option<Vec<HistoryItem>> {
    let workload = cluster.workload(key)?;
    Some(
        workload
            .revisions
            .values()
            .rev()
            .map(|revision| HistoryItem {
                revision: revision.number,
                artifact: revision.artifact.clone(),
                at: revision.at,
                by: revision.by.clone(),
                changes: revision.changes.clone(),
            })
            .collect(),
    )
}

/// Every host, by name.
pub fn hosts(cluster: &Cluster, now: Timestamp) -> Vec<HostView> {
    let mut views: Vec<HostView> = cluster
        .hosts()
        .iter()
        .map(|(id, host)| host_view(id, host, now))
        .collect();
    views.sort_by(|a, b| a.name.cmp(&b.name).then_with(|| a.id.cmp(&b.id)));
    views
}

/// One host.
pub fn host_view(id: &HostId, host: &Host, now: Timestamp) -> HostView {
    let info = host.info();
    HostView {
        id: id.clone(),
        name: info.name.clone(),
        state: host.state,
        cordoned: host.record.cordoned,
        drain: host.record.drain,
        labels: info.labels.clone(),
        taints: info.taints.clone(),
        arch: info.arch.clone(),
        features: info.features.clone(),
        http: info.http.clone(),
        admin: info.admin.clone(),
        version: info.version.clone(),
        capacity: info.capacity,
        used: host.used,
        seen_ms: u64::try_from(now.since(host.heard).as_millis()).unwrap_or(u64::MAX),
    }
}
