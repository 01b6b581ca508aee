//! What gateways must know: endpoints from what hosts report, routes from specs.

use std::collections::{BTreeMap, BTreeSet};

use wasmorch_api::status::HostState;
use wasmorch_api::{
    EndpointTable, HostEndpoint, HostId, Kind, PlacedSlot, PlacementNumber, RevisionNumber, Route,
    RouteTable, Slot, WorkloadKey,
};

use crate::agenda::Dirt;
use crate::cluster::{Cluster, Workload};
use crate::plan::{Plan, Shift, Stop};

mod endpoints;

pub use endpoints::Endpoints;

/// Adds a workload's tables if they differ from what is stored once `plan` is carried out. Tells
/// whether its endpoints name a host that has not spoken and holds nothing of it.
pub(crate) fn plan_tables(
    cluster: &Cluster,
    (key, dirt): (&WorkloadKey, &Dirt),
    partly: bool,
    stops_from: usize,
    plan: &mut Plan,
) -> bool {
    let Some(workload) = cluster.workloads.get(key) else {
        return false;
    };
    let routed = takes_requests(workload.record.kind);
    if !routed && workload.routes.is_none() && workload.endpoints.is_none() {
        return false;
    }
    let stops = &plan.stop[stops_from..];
    // This workload's are the last, for it has just been planned.
    let shifted = plan.shift.iter().rev();
    let shifted = shifted.take_while(|shift| shift.key == *key);
    let standbys = Standbys::of(workload, shifted.clone());
    let mut awaits = false;
    let changed = match (dirt, &workload.endpoints) {
        (Dirt::Part { hosts, .. }, Some(stored)) if partly => {
            let stopped = stops.iter().map(|stop| &stop.host);
            let shifted = shifted.map(|shift| &shift.host);
            let hosts: BTreeSet<&HostId> = hosts.iter().chain(stopped).chain(shifted).collect();
            patched(cluster, (key, workload), (stops, &standbys), stored, &hosts)
        }
        (_, stored) => {
            let changes = (stops, &standbys);
            let wanted = endpoint_table(cluster, (key, workload), changes, &mut awaits);
            let stored = stored.as_ref().map(Endpoints::whole);
            let before = stored.as_ref().map(|table| (&table.hosts, table.canary));
            (before != Some((&wanted.hosts, wanted.canary))).then(|| wanted.into())
        }
    };
    plan.endpoints.extend(changed);
    let stored = workload.routes.as_ref();
    let leads_here = stored.is_some_and(|told| takes_requests(told.kind));
    if !routed && leads_here && still_serves(workload, stops) {
        return awaits;
    }
    let wanted = route_table(cluster, key, workload);
    let is_told = |told: &RouteTable| {
        (&told.routes, told.kind, told.timeout) == (&wanted.routes, wanted.kind, wanted.timeout)
    };
    if !stored.is_some_and(is_told) {
        plan.routes.push(wanted);
    }
    awaits
}

/// Whether gateways send anything to workloads of a kind.
const fn takes_requests(kind: Kind) -> bool {
    matches!(kind, Kind::Http | Kind::Messages)
}

/// Revisions to which gateways send nothing, of a workload that was, or becomes, something else: nearly
/// always none.
fn apart(workload: &Workload) -> Vec<RevisionNumber> {
    let revisions = workload.revisions.values();
    let apart = revisions.filter(|revision| !takes_requests(revision.kind));
    apart.map(|revision| revision.number).collect()
}

/// Whether anything is left to which gateways send, of a workload that is something else now.
fn still_serves(workload: &Workload, stops: &[Stop]) -> bool {
    let apart = apart(workload);
    let stopped: BTreeSet<PlacementNumber> = stops.iter().map(|stop| stop.placement).collect();
    let mut placed = workload.placements.iter();
    placed.any(|(number, one)| !stopped.contains(number) && !apart.contains(&one.revision))
}

/// The stored table with these hosts' entries as they are now; `None` when they are so already.
fn patched(
    cluster: &Cluster,
    (key, workload): (&WorkloadKey, &Workload),
    (stops, standbys): (&[Stop], &Standbys<'_>),
    stored: &Endpoints,
    hosts: &BTreeSet<&HostId>,
) -> Option<Endpoints> {
    let mut changes = Vec::new();
    let apart = apart(workload);
    for id in hosts {
        let before = stored.entry(id);
        let host = cluster.hosts.get(*id);
        let unheard = host.is_some_and(|host| !host.known() && host.state != HostState::Dead);
        if unheard && before.is_some() {
            continue;
        }
        let lives = host.filter(|host| host.state != HostState::Dead);
        // Looked for once: a host may hold hundreds of workloads.
        let groups = lives.map_or(&[][..], |host| host.groups_of(key)).iter();
        let groups = groups.filter(|group| !apart.contains(&group.revision));
        let slots = groups.flat_map(|group| &group.slots);
        let rests = |slot: &&PlacedSlot| standbys.rests(slot.placement, slot.standby);
        let standby = slots.clone().filter(rests).map(|slot| slot.slot).min();
        let ready = slots.filter(|slot| {
            workload.is_ready(slot.placement)
                && !stops.iter().any(|stop| stop.placement == slot.placement)
        });
        let ready = ready.count() as u32;
        let after = lives
            .filter(|_| ready > 0 || standby.is_some())
            .map(|host| HostEndpoint {
                host: (*id).clone(),
                peer: host.info().peer.clone(),
                ready,
                standby,
                weight: ready,
                canary: 0,
                zone: host.zone.clone(),
            });
        if before != after.as_ref() {
            changes.push(((*id).clone(), after));
        }
    }
    let by = (&cluster.cluster, cluster.term);
    (!changes.is_empty()).then(|| stored.changed(by, changes))
}

fn endpoint_table(
    cluster: &Cluster,
    (key, workload): (&WorkloadKey, &Workload),
    (stops, standbys): (&[Stop], &Standbys<'_>),
    awaits: &mut bool,
) -> EndpointTable {
    let stopped: BTreeSet<PlacementNumber> = stops.iter().map(|stop| stop.placement).collect();
    let trial = workload.record.on_trial();
    let apart = apart(workload);
    // Those of the revision in force, and of the one on trial.
    let mut ready: BTreeMap<&HostId, (u32, u32)> = BTreeMap::new();
    for number in workload.reports.keys() {
        if !workload.is_ready(*number) || stopped.contains(number) {
            continue;
        }
        let placed = workload.placements.get(number);
        if let Some(placed) = placed.filter(|placed| !apart.contains(&placed.revision)) {
            let (proven, canaries) = ready.entry(&placed.host).or_default();
            *if trial == Some(placed.revision) {
                canaries
            } else {
                proven
            } += 1;
        }
    }
    // A new leader knows nothing of a host until it has spoken: what gateways were told before
    // stays true until then, or until the host counts as dead.
    let stored = workload.endpoints.as_ref().map(Endpoints::whole);
    let unheard: BTreeMap<&HostId, &HostEndpoint> = { stored.iter() }
        .flat_map(|table| &table.hosts)
        .filter(|endpoint| {
            cluster
                .hosts
                .get(&endpoint.host)
                .is_some_and(|host| !host.known() && host.state != HostState::Dead)
        })
        .map(|endpoint| (&endpoint.host, endpoint))
        .collect();
    *awaits = unheard.keys().any(|host| {
        let host = cluster.hosts.get(*host);
        host.is_some_and(|host| host.groups_of(key).is_empty())
    });
    ready.retain(|id, _| {
        let host = cluster.hosts.get(*id);
        host.is_some_and(|host| host.state != HostState::Dead) && !unheard.contains_key(*id)
    });
    // Shares are of all: what is unheard weighs by the same measure.
    let placed = workload.placements.values();
    let mut on_trial: BTreeMap<&HostId, u32> = BTreeMap::new();
    for placed in placed.filter(|placed| trial == Some(placed.revision)) {
        *on_trial.entry(&placed.host).or_default() += 1;
    }
    for (id, endpoint) in &unheard {
        let canaries = on_trial.get(id).copied().unwrap_or_default();
        let canaries = canaries.min(endpoint.ready);
        ready.insert(*id, (endpoint.ready - canaries, canaries));
    }
    let shares = Shares::of(workload, &ready);
    let standbys = standbys.by_host(cluster, &apart);
    for id in standbys.keys().filter(|id| !unheard.contains_key(*id)) {
        ready.entry(id).or_default();
    }
    let hosts = ready.into_iter().filter_map(|(id, ready)| {
        let (weight, canary) = shares.weigh(ready);
        if let Some(endpoint) = unheard.get(id) {
            return Some(HostEndpoint {
                weight,
                canary,
                ..(*endpoint).clone()
            });
        }
        let host = cluster.hosts.get(id)?;
        Some(HostEndpoint {
            host: id.clone(),
            peer: host.info().peer.clone(),
            ready: ready.0 + ready.1,
            standby: standbys.get(id).copied(),
            weight,
            canary,
            zone: host.zone.clone(),
        })
    });
    let mut hosts: Vec<HostEndpoint> = hosts.collect();
    hosts.sort_by(|a, b| a.host.cmp(&b.host));
    EndpointTable {
        cluster: cluster.cluster.clone(),
        term: cluster.term,
        namespace: key.namespace.clone(),
        workload: key.name.clone(),
        hosts,
        canary: shares.revision,
    }
}

/// What a request may wake or wait for while nothing is ready.
struct Standbys<'a> {
    /// `None`: nothing of it ever rests, and millions of placements are not looked through.
    workload: Option<&'a Workload>,
    /// Told to rest by this very plan.
    told: BTreeSet<PlacementNumber>,
}

impl<'a> Standbys<'a> {
    fn of<'p>(workload: &'a Workload, shifted: impl Iterator<Item = &'p Shift>) -> Self {
        let rests = workload.may_rest();
        let told = shifted.filter(|shift| rests && shift.standby);
        Self {
            workload: Some(workload).filter(|_| rests),
            told: told.map(|shift| shift.placement).collect(),
        }
    }

    /// It is told to rest, or not ready yet, or no more: whoever asks there waits for it.
    fn rests(&self, number: PlacementNumber, standby: bool) -> bool {
        let Some(workload) = self.workload else {
            return false;
        };
        let report = workload.reports.get(&number);
        let given_up = report.is_some_and(|known| known.status.given_up);
        standby || self.told.contains(&number) || !workload.is_ready(number) && !given_up
    }

    /// The lowest such slot on each host that lives.
    fn by_host(&self, cluster: &Cluster, apart: &[RevisionNumber]) -> BTreeMap<&'a HostId, Slot> {
        let mut slots: BTreeMap<&HostId, Slot> = BTreeMap::new();
        let Some(workload) = self.workload else {
            return slots;
        };
        let lives = |id: &HostId| {
            let host = cluster.hosts.get(id);
            host.is_some_and(|host| host.state != HostState::Dead)
        };
        let placements = workload.placements.iter();
        for (number, placed) in placements.filter(|(_, one)| !apart.contains(&one.revision)) {
            if self.rests(*number, placed.standby) && lives(&placed.host) {
                let slot = slots.entry(&placed.host).or_insert(placed.slot);
                *slot = placed.slot.min(*slot);
            }
        }
        slots
    }
}

/// What one replica weighs.
struct Shares {
    proven: u64,
    canary: u64,
    /// What makes all weights together fit.
    divisor: u64,
    /// The canaries' revision, when they have a share of their own.
    revision: Option<RevisionNumber>,
}

/// The most that all weights of a table come to.
const WEIGHT_MOST: u64 = 1 << 30;

impl Shares {
    /// `percent` of the requests for the canaries together, the rest for all others.
    fn of(workload: &Workload, ready: &BTreeMap<&HostId, (u32, u32)>) -> Self {
        let even = Self {
            proven: 1,
            canary: 1,
            divisor: 1,
            revision: None,
        };
        let Some(trial) = workload.record.on_trial() else {
            return even;
        };
        let target = workload.revisions.get(&trial);
        let canary = target.and_then(|target| target.spec.update.canary.as_ref());
        let Some(percent) = canary.and_then(|canary| canary.percent) else {
            return even;
        };
        let (proven, canaries) = ready.values().fold((0, 0), |sum, one| {
            (sum.0 + u64::from(one.0), sum.1 + u64::from(one.1))
        });
        if proven == 0 || canaries == 0 {
            return even;
        }
        let percent = u64::from(percent.min(100));
        let weights = (canaries * (100 - percent), proven * percent);
        let common = common_divisor(weights.0, weights.1).max(1);
        let weights = (weights.0 / common, weights.1 / common);
        let all = proven * weights.0 + canaries * weights.1;
        Self {
            proven: weights.0,
            canary: weights.1,
            divisor: all.div_ceil(WEIGHT_MOST).max(1),
            revision: Some(trial),
        }
    }

    /// A host's weight, and how much of it is its canaries': never nothing of a share that there is.
    fn weigh(&self, (proven, canaries): (u32, u32)) -> (u32, u32) {
        let part = |count: u32, each: u64| {
            let part = (u64::from(count) * each).div_ceil(self.divisor);
            u32::try_from(part).unwrap_or(u32::MAX)
        };
        let canary = part(canaries, self.canary);
        let weight = part(proven, self.proven).saturating_add(canary);
        (weight, if self.revision.is_some() { canary } else { 0 })
    }
}

const fn common_divisor(mut a: u64, mut b: u64) -> u64 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

fn route_table(cluster: &Cluster, key: &WorkloadKey, workload: &Workload) -> RouteTable {
    // A route that does not parse was refused at deploy; one from an older version is left out. What takes
    // no requests has none, and gateways forget those that it had.
    let target = workload.target();
    let target = target.filter(|_| takes_requests(workload.record.kind));
    let spec = target.map(|target| &target.spec);
    let routes = spec.map_or(&[][..], |spec| &spec.routes).iter();
    let routes = routes.filter_map(|text| Route::parse(text).ok()).collect();
    RouteTable {
        cluster: cluster.cluster.clone(),
        term: cluster.term,
        namespace: key.namespace.clone(),
        workload: key.name.clone(),
        kind: workload.record.kind,
        routes,
        timeout: spec.map(|spec| spec.resources.timeout),
    }
}
