//! The plan checker: written apart from the planner, so that one mistake is not made twice.
//!
//! It knows the rules and nothing of how a plan came about. Whole in tests; in front of every
//! dispatch it looks at no more than the plan names, but for quotas: of a namespace that has one and
//! in which something starts, it looks at all placements.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use wasmorch_api::status::HostState;
use wasmorch_api::{HostId, Name, PlacementNumber, Record, RevisionNumber, Slot, WorkloadKey};

use crate::booked::Booked;
use crate::cluster::{Cluster, Workload};
use crate::plan::{Plan, Start, StopReason};

mod claims;
mod growth;
mod reasons;
mod rule;
mod sizes;
mod slots;

pub use rule::BrokenRule;

/// Every rule that `plan` breaks; empty when it may be dispatched. Trusts no counter of the state:
/// for tests.
pub fn check(cluster: &Cluster, plan: &Plan) -> Vec<BrokenRule> {
    check_by(cluster, plan, true)
}

/// The same rules, looking only at the workloads and hosts that the plan names, and at what the
/// state has counted of them: in front of every dispatch.
pub fn check_touched(cluster: &Cluster, plan: &Plan) -> Vec<BrokenRule> {
    check_by(cluster, plan, false)
}

fn check_by(cluster: &Cluster, plan: &Plan, whole: bool) -> Vec<BrokenRule> {
    let mut broken = Vec::new();
    let mut hosts: HashMap<&HostId, OnHost> = HashMap::new();
    let records: BTreeMap<WorkloadKey, &Record> = plan
        .update
        .iter()
        .map(|record| (record.key(), record))
        .collect();
    let parts = parts(plan);
    for (key, part) in &parts {
        let workload = cluster.workload(key);
        starts_are_sound(cluster, (key, workload), part, &mut hosts, &mut broken);
        if let Some(workload) = workload {
            let record = records.get(*key).copied().unwrap_or(&workload.record);
            reasons::are_so(cluster, (key, workload), part, record, &mut broken);
            // What is held has nothing that it would have to keep, unless another serves.
            let bare = record.held_bare();
            let target = workload.revisions.get(&record.revision);
            let seats = target.map_or(record.wanted(), |target| record.seats(&target.spec));
            let wanted = u64::from(if bare { 0 } else { seats });
            let record = (record, wanted);
            slots::are_sound(cluster, (key, workload), part, record, whole, &mut broken);
        }
    }
    let hosts: BTreeMap<&HostId, OnHost> = hosts.into_iter().collect();
    quotas_are_kept(cluster, &parts, &mut broken);
    preemption_is_sound(cluster, plan, &mut broken);
    capacity_is_kept(cluster, plan, whole, &hosts, &mut broken);
    claims::are_met(cluster, plan, &mut broken);
    sizes::fit(cluster, plan, &mut broken);
    growth::only_grow(cluster, plan, hosts.keys().copied(), &mut broken);
    broken
}

/// A plan's part of one workload.
#[derive(Default)]
struct Part<'a> {
    starts: Vec<&'a Start>,
    stops: BTreeMap<PlacementNumber, StopReason>,
}

/// What starts on one host.
struct OnHost {
    /// Why nothing may.
    bars: Option<&'static str>,
    adds: Booked,
}

/// By workload. A plan goes through one after the other, so most are found once for many starts.
fn parts(plan: &Plan) -> BTreeMap<&WorkloadKey, Part<'_>> {
    let mut parts: BTreeMap<&WorkloadKey, Part<'_>> = BTreeMap::new();
    for run in plan.start.chunk_by(|a, b| a.key == b.key) {
        parts.entry(&run[0].key).or_default().starts.extend(run);
    }
    for run in plan.stop.chunk_by(|a, b| a.key == b.key) {
        let stops = &mut parts.entry(&run[0].key).or_default().stops;
        stops.extend(run.iter().map(|stop| (stop.placement, stop.why)));
    }
    parts
}

fn bars(cluster: &Cluster, host: &HostId) -> Option<&'static str> {
    match cluster.hosts().get(host) {
        None => Some("unknown"),
        Some(host) if host.state == HostState::Dead => Some("dead"),
        Some(host) if host.state == HostState::Suspect => Some("suspect"),
        Some(host) if host.record.cordoned => Some("cordoned"),
        Some(host) if host.record.drain.is_some() => Some("draining"),
        Some(_) => None,
    }
}

/// What a replica of this revision books; nothing when there is no such revision.
fn reserve(
    key: &WorkloadKey,
    workload: Option<&Workload>,
    revision: RevisionNumber,
    args: Option<&Vec<String>>,
) -> Booked {
    let revision = workload.and_then(|workload| workload.revisions.get(&revision));
    revision.map_or_else(Booked::default, |one| Booked::of(key, &one.spec, args))
}

fn starts_are_sound<'a>(
    cluster: &Cluster,
    (key, workload): (&WorkloadKey, Option<&Workload>),
    part: &Part<'a>,
    hosts: &mut HashMap<&'a HostId, OnHost>,
    broken: &mut Vec<BrokenRule>,
) {
    let mut numbers: Vec<PlacementNumber> = part.starts.iter().map(|one| one.placement).collect();
    numbers.sort_unstable();
    let twice = numbers.windows(2).filter(|pair| pair[0] == pair[1]);
    let next = workload.map(|workload| workload.record.next_placement);
    let old = numbers.iter().filter(|number| Some(**number) < next);
    for number in old.chain(twice.map(|pair| &pair[0])) {
        broken.push(BrokenRule::NumberTwice {
            workload: key.clone(),
            number: *number,
        });
    }
    for run in part.starts.chunk_by(|a, b| a.revision == b.revision) {
        let revision = run[0].revision;
        let spec = workload.and_then(|workload| workload.revisions.get(&revision));
        if workload.is_some() && spec.is_none() {
            broken.push(BrokenRule::NoRevision {
                workload: key.clone(),
                revision,
            });
        }
        let held = workload.and_then(|workload| workload.record.held());
        if held.is_some_and(|(rollout, _)| rollout.revision == revision) {
            broken.push(BrokenRule::Held {
                workload: key.clone(),
                revision,
            });
        }
        let plain = reserve(key, workload, revision, None);
        let homes = spec
            .filter(|one| !one.spec.bindings.volume.is_empty())
            .and(workload)
            .map(|workload| &workload.record.homes);
        let mut volumes = spec
            .into_iter()
            .flat_map(|one| one.spec.bindings.volume.values());
        let begins_anew = volumes.all(|volume| volume.on_host_loss == "new");
        for start in run {
            let home = homes.and_then(|homes| homes.get(&start.slot));
            let waited = |home: &&HostId| {
                let host = cluster.hosts().get(*home);
                // Whether it is lost for good is a matter of time, which the checker does not know.
                let lost = host.is_none_or(|host| host.state == HostState::Dead);
                host.is_some() && !(lost && begins_anew)
            };
            let home = home.filter(waited);
            if home.is_some_and(|home| *home != start.host) {
                broken.push(BrokenRule::BadHost {
                    workload: key.clone(),
                    host: start.host.clone(),
                    why: "not where its volumes are",
                });
            }
            let host = hosts.entry(&start.host).or_insert_with(|| OnHost {
                bars: bars(cluster, &start.host),
                adds: Booked::default(),
            });
            let booked = match start.args.as_deref() {
                None => plain,
                args => reserve(key, workload, revision, args),
            };
            host.adds = host.adds.plus(booked);
            if let Some(why) = host.bars {
                broken.push(BrokenRule::BadHost {
                    workload: key.clone(),
                    host: start.host.clone(),
                    why,
                });
            }
        }
    }
}

/// Where a namespace has a quota and something starts, its slots, each counted once by its newest
/// placement, are within it, or no more than they were.
fn quotas_are_kept(
    cluster: &Cluster,
    parts: &BTreeMap<&WorkloadKey, Part<'_>>,
    broken: &mut Vec<BrokenRule>,
) {
    let starts = parts.iter().filter(|(_, part)| !part.starts.is_empty());
    let namespaces: BTreeSet<&Name> = starts
        .map(|(key, _)| &key.namespace)
        .filter(|namespace| cluster.namespace(namespace).is_some())
        .collect();
    for namespace in namespaces {
        let Some(known) = cluster.namespace(namespace) else {
            continue;
        };
        let mut before: BTreeMap<(&WorkloadKey, Slot), (PlacementNumber, [u64; 3])> =
            BTreeMap::new();
        let mut after = before.clone();
        let all = cluster.workloads().iter();
        for (key, workload) in all.filter(|(key, _)| key.namespace == *namespace) {
            let part = parts.get(key);
            let books = |revision: &RevisionNumber| {
                let spec = &workload.revisions.get(revision)?.spec;
                let reserve = &spec.resources.reserve;
                Some([reserve.memory.0, reserve.cpu.0, 1])
            };
            let newest =
                |slots: &mut BTreeMap<_, (PlacementNumber, [u64; 3])>, slot, number, books| {
                    let known = slots.entry((key, slot)).or_insert((number, books));
                    if known.0 <= number {
                        *known = (number, books);
                    }
                };
            for (number, placed) in &workload.placements {
                let books = books(&placed.revision).unwrap_or_default();
                newest(&mut before, placed.slot, *number, books);
                if part.is_none_or(|part| !part.stops.contains_key(number)) {
                    newest(&mut after, placed.slot, *number, books);
                }
            }
            for start in part.into_iter().flat_map(|part| &part.starts) {
                let books = books(&start.revision).unwrap_or_default();
                newest(&mut after, start.slot, start.placement, books);
            }
        }
        let quota = &known.quota;
        let limits = [
            ("memory", quota.memory_bytes),
            ("cpu", quota.cpu_millis),
            ("replicas", quota.replicas),
        ];
        for (at, (dimension, limit)) in limits.into_iter().enumerate() {
            let sum = |slots: &BTreeMap<_, (PlacementNumber, [u64; 3])>| -> u64 {
                slots.values().map(|(_, books)| books[at]).sum()
            };
            let (before, after) = (sum(&before), sum(&after));
            if after > before && limit.is_some_and(|limit| after > limit) {
                broken.push(BrokenRule::OverQuota {
                    namespace: namespace.clone(),
                    dimension,
                });
            }
        }
    }
}

/// What is pre-empted has a lower priority than something that starts in its place, and its workload
/// keeps `min_available` ready slots.
fn preemption_is_sound(cluster: &Cluster, plan: &Plan, broken: &mut Vec<BrokenRule>) {
    let priority = |key: &WorkloadKey| {
        let target = cluster.workload(key).and_then(Workload::target);
        target.map_or(0, |target| target.spec.priority)
    };
    let stops = plan.stop.iter();
    let preempted = stops.filter(|stop| stop.why == StopReason::Preempted);
    let mut lost: BTreeMap<&WorkloadKey, BTreeSet<PlacementNumber>> = BTreeMap::new();
    for stop in preempted {
        lost.entry(&stop.key).or_default().insert(stop.placement);
        let mut starts = plan.start.iter();
        let first =
            |start: &Start| start.host == stop.host && priority(&start.key) > priority(&stop.key);
        if !starts.any(first) {
            broken.push(BrokenRule::PreemptedByNone {
                workload: stop.key.clone(),
                host: stop.host.clone(),
            });
        }
    }
    for (key, lost) in lost {
        let Some(workload) = cluster.workload(key) else {
            continue;
        };
        let keeps = workload
            .target()
            .map_or(0, |target| target.spec.min_available);
        let serves = |number: &PlacementNumber| {
            let placed = workload.placements.get(number);
            let host = placed.and_then(|placed| cluster.hosts().get(&placed.host));
            host.is_some_and(|host| host.state != HostState::Dead) && workload.is_ready(*number)
        };
        let slots = |without: &BTreeSet<PlacementNumber>| -> u64 {
            let ready = workload.placements.iter();
            let ready = ready.filter(|(number, _)| serves(number) && !without.contains(number));
            let slots: BTreeSet<Slot> = ready.map(|(_, placed)| placed.slot).collect();
            slots.len() as u64
        };
        let (before, ready) = (slots(&BTreeSet::new()), slots(&lost));
        let least = u64::from(keeps).min(before);
        if ready < least && ready < before {
            broken.push(BrokenRule::TooFew {
                workload: key.clone(),
                ready,
                least,
            });
        }
    }
}

/// What starts on a host must fit beside what stays there, in every dimension that it adds to: a
/// host that shrank under what it holds bars nothing that asks for no more of the same.
fn capacity_is_kept(
    cluster: &Cluster,
    plan: &Plan,
    whole: bool,
    hosts: &BTreeMap<&HostId, OnHost>,
    broken: &mut Vec<BrokenRule>,
) {
    let mut used: BTreeMap<&HostId, Booked> = BTreeMap::new();
    if whole {
        for (key, workload) in cluster.workloads() {
            for placed in workload.placements.values() {
                let args = placed.args.as_deref();
                let sum = used.entry(&placed.host).or_default();
                *sum = sum.plus(reserve(key, Some(workload), placed.revision, args));
            }
        }
    } else {
        let known = hosts
            .keys()
            .filter_map(|id| cluster.hosts().get_key_value(*id));
        used.extend(known.map(|(id, host)| (id, host.booked)));
    }
    for stop in &plan.stop {
        // What ends where nothing starts makes room for nobody.
        let Some(sum) = used.get_mut(&stop.host) else {
            continue;
        };
        let workload = cluster.workload(&stop.key);
        let placed = workload.and_then(|workload| workload.placements.get(&stop.placement));
        if let Some(placed) = placed {
            let args = placed.args.as_deref();
            *sum = sum.minus(reserve(&stop.key, workload, placed.revision, args));
        }
    }
    for (id, OnHost { adds, .. }) in hosts {
        let Some(host) = cluster.hosts().get(*id) else {
            continue;
        };
        let used = used.get(*id).copied().unwrap_or_default();
        for (dimension, used, adds, has) in used.dimensions(*adds, Booked::of_host(host)) {
            if adds > 0 && used.saturating_add(adds) > has {
                broken.push(BrokenRule::OverCapacity {
                    host: (*id).clone(),
                    dimension,
                });
            }
        }
    }
}
