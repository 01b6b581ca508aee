//! Why a workload, a host or a replica is as it is. Nothing here decides.
//!
//! Owns the accounts that `wasmorch why` gives: what happened (as far as this leader's term goes
//! back), what stands in the way, how hosts score, and what would help. The filters and scores are
//! `place`'s own.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use wasmorch_api::status::{Drain, HostState};
use wasmorch_api::{
    ApiError, HostId, Name, PlacementNumber, ReplicaId, ReplicaState, RolloutState, Slot,
    Timestamp, WorkloadKey,
};

use crate::cluster::{Cluster, Host, Line, Placed, Reported, Workload};
use crate::commands::{self, find_host};
use crate::explain::{self, For};
use crate::homes;
use crate::place::{self, Ranking, Standpoint};
use crate::queries::{host_name, host_view, state};

/// So many hosts are scored, so many are named for a filter, so many workloads for a host.
const SCORES: usize = 5;
const NAMED: usize = 3;
const RUNS: usize = 100;

/// Why a workload stands as it does: what happened, what is missing, how hosts score for one replica
/// more.
pub fn workload(cluster: &Cluster, key: &WorkloadKey) -> Option<Value> {
    let workload = cluster.workload(key)?;
    let ranking = ranking(cluster, key, For::OneMore(next_replaced(workload)))?;
    let mut story = told(&workload.story);
    for known in workload.reports.values() {
        if let Some(reason) = &known.status.reason {
            let status = &known.status;
            story.push(format!("{} {}: {reason}", status.replica, status.state));
        }
    }
    let waits = crate::hold::waits_for(cluster, workload, &workload.record);
    let said = waits.iter();
    story.extend(said.map(|one| format!("waits for {}: {}", one.workload, one.why)));
    let unplaced = explain::unplaced(cluster, key);
    let mut fix = { unplaced.as_ref() }.map_or_else(Vec::new, |one| one.fix.clone());
    for one in &waits {
        fix.push(format!("see `wasmorch why {}`", one.workload));
        if one.for_a_person {
            let name = &one.workload;
            let other = cluster.workload(&WorkloadKey::new(key.namespace.clone(), name.clone()));
            let ends = other.and_then(|other| commands::ends(&other.record));
            let ends = ends.map_or_else(String::new, |ends| format!(" or {ends}"));
            fix.push(format!("`wasmorch rollout resume {name}`{ends}"));
        }
    }
    fix.extend(keeps_failing(key, workload));
    let trouble = explain::summed_up(key, 0, &ranking);
    Some(json!({
        "state": state(cluster, workload),
        "story": story,
        "scale": cluster.scaling_words(key),
        "unplaced": unplaced,
        "evaluated": trouble.evaluated,
        "filtered": trouble.filtered,
        "named": named(&ranking),
        "lacking": trouble.lacking,
        "scores": scores(&ranking),
        "fix": fix,
    }))
}

/// What failed last, and how many slots wait after failures.
fn keeps_failing(key: &WorkloadKey, workload: &Workload) -> Option<String> {
    let failing = &workload.record.crash_loop;
    let (last, others) = failing.split_last()?;
    let more = match others.len() {
        0 => String::new(),
        1 => " and 1 more slot".to_owned(),
        many => format!(" and {many} more slots"),
    };
    let verb = if others.is_empty() { "keeps" } else { "keep" };
    Some(format!(
        "slot {}{more} {verb} failing ({}): see `wasmorch logs {}`",
        last.slot, last.reason, key.name
    ))
}

/// The slot whose replica a rollout replaces next, as far as counts tell.
fn next_replaced(workload: &Workload) -> Option<Slot> {
    let record = &workload.record;
    let rollout = record.rollout.as_ref()?;
    if matches!(
        rollout.state,
        RolloutState::Completed | RolloutState::Reverted
    ) {
        return None;
    }
    let old = |number: &PlacementNumber| {
        let placed = workload.placements.get(number);
        let fresh = placed.is_some_and(|placed| placed.revision == record.revision);
        !fresh || *number < record.fresh_from
    };
    let mut slots = (1..=u64::from(record.wanted())).map(Slot);
    let next = slots.find(|slot| workload.numbers_of(*slot).all(|number| old(&number)))?;
    // An empty one takes nobody's place.
    workload.numbers_of(next).next().map(|_| next)
}

/// The host that the rule names for the next replica of a slot, found host by host: what is placed on
/// counts is held against it.
pub fn best_for(cluster: &Cluster, key: &WorkloadKey, slot: Slot) -> Option<Name> {
    let ranking = ranking(cluster, key, For::OneMore(Some(slot)))?;
    ranking.fits.into_iter().next().map(|best| best.name)
}

fn ranking(cluster: &Cluster, key: &WorkloadKey, wanted: For<'_>) -> Option<Ranking> {
    explain::look(cluster, key, wanted, place::rank)
}

fn scores(ranking: &Ranking) -> Vec<Value> {
    let fits = ranking.fits.iter().take(SCORES);
    fits.map(|one| json!({"host": one.name, "total": one.total, "parts": one.parts}))
        .collect()
}

/// A few of the hosts that each filter removed.
fn named(ranking: &Ranking) -> BTreeMap<&str, Vec<&Name>> {
    let mut named: BTreeMap<&str, Vec<&Name>> = BTreeMap::new();
    for (name, removed) in &ranking.removed {
        if let Some(first) = removed.first() {
            let hosts = named.entry(&first.filter).or_default();
            if hosts.len() < NAMED {
                hosts.push(name);
            }
        }
    }
    named
}

fn told<'a>(story: impl IntoIterator<Item = &'a Line>) -> Vec<String> {
    let story = story.into_iter();
    story
        .map(|line| format!("{} {}: {}", line.at, line.kind.as_str(), line.reason))
        .collect()
}

/// What a host has of one workload.
#[derive(Default)]
struct Runs {
    replicas: u32,
    ready: u32,
    /// As of a dead host: nobody knows whether they run.
    lost: u32,
}

/// Why a host is as it is: what it runs, whether it gets something new and why not.
pub fn host(cluster: &Cluster, host: &str, now: Timestamp) -> Result<Value, ApiError> {
    let (id, host) = find_host(cluster, host)?;
    let mut runs: BTreeMap<WorkloadKey, Runs> = BTreeMap::new();
    let dead = host.state == HostState::Dead;
    for group in host.set.iter().flat_map(|set| &set.groups) {
        let key = group.key();
        let workload = cluster.workload(&key);
        let sum = runs.entry(key).or_default();
        for slot in &group.slots {
            let report = workload.and_then(|workload| workload.reports.get(&slot.placement));
            let report = report.filter(|known| known.host == *id);
            let ended = report.is_some_and(|known| known.status.state.ended());
            sum.replicas += 1;
            sum.lost += u32::from(dead && !ended);
            // What it last said of itself is no longer so.
            sum.ready += u32::from(!dead && report.is_some_and(|known| known.status.ready));
        }
    }
    let ending = host.leaving.len();
    let left: u32 = runs.values().map(|one| one.replicas).sum();
    let more = runs.len().saturating_sub(RUNS);
    let runs: Vec<Value> = runs
        .iter()
        .take(RUNS)
        .map(|(key, one)| {
            let drain = host.record.drain;
            let stays = drain.and_then(|drain| why_it_stays(cluster, key, (id, host), drain));
            let Runs {
                replicas,
                ready,
                lost,
            } = one;
            json!({
                "workload": key.to_string(), "replicas": replicas, "ready": ready, "lost": lost,
                "stays": stays,
            })
        })
        .collect();
    let (refuses, fix) = refuses(cluster, id, host);
    Ok(json!({
        "state": word(host),
        "story": told(&host.story),
        "host": host_view(id, host, now),
        "runs": runs,
        "more": more,
        "left": left as usize + ending,
        "refuses": refuses,
        "fix": fix,
    }))
}

fn word(host: &Host) -> &'static str {
    match host.state {
        HostState::Alive => match host.record.drain {
            Some(drain) if drain.drained => "drained",
            Some(_) => "draining",
            None if host.record.cordoned => "cordoned",
            None => "alive",
        },
        other => other.as_str(),
    }
}

/// Why something new does not go there: for every workload, then for those that look for a place.
fn refuses(cluster: &Cluster, id: &HostId, host: &Host) -> (Vec<String>, Vec<String>) {
    let (mut refuses, mut fix) = (Vec::new(), Vec::new());
    let mut note = |what: String, how: String| {
        if !refuses.contains(&what) && refuses.len() < SCORES {
            refuses.push(what);
        }
        if !how.is_empty() && !fix.contains(&how) && fix.len() < SCORES {
            fix.push(how);
        }
    };
    if let Some(removed) = place::state(host) {
        note(format!("anything: {}", removed.filter), removed.fix);
    }
    for taint in &host.info().taints {
        let what = format!("what does not tolerate {taint}: taint {taint}");
        note(what, format!("tolerate = [\"{taint}\"]"));
    }
    for key in cluster.agenda.waiting().iter().take(RUNS) {
        let look = |on: &Standpoint<'_>, _: &[HostId]| place::against(on, id);
        let removed = explain::look(cluster, key, For::OneMore(None), look);
        if let Some(first) = removed.iter().flatten().next() {
            note(format!("{key}: {}", first.filter), first.fix.clone());
        }
    }
    (refuses, fix)
}

/// What holds up the replicas of a workload on a host that is drained.
fn why_it_stays(
    cluster: &Cluster,
    key: &WorkloadKey,
    (id, host): (&HostId, &Host),
    drain: Drain,
) -> Option<String> {
    let workload = cluster.workload(key)?;
    let target = workload.target()?;
    if target.kind.ends() {
        return Some("it runs to its end".to_owned());
    }
    let mut here = host.groups_of(key).iter().flat_map(|group| &group.slots);
    let at_home = |slot: Slot| homes::home(cluster, workload, slot) == Some(id);
    if !workload.per_host() && here.any(|slot| at_home(slot.slot)) {
        return Some(match drain.deadline {
            Some(_) => {
                "its volumes are here: it stays until the deadline, then it waits for this host"
                    .into()
            }
            None => "its volumes are here: it stays, as no deadline is given (drain --deadline D)"
                .into(),
        });
    }
    if let Some(unplaced) = explain::unplaced(cluster, key) {
        return Some(explain::one_line(&unplaced));
    }
    let rollout = workload.record.active_rollout();
    if rollout.is_some_and(|rollout| rollout.state == RolloutState::Paused) {
        return Some("its rollout is paused".to_owned());
    }
    if workload.record.on_trial().is_some() {
        return Some("its slot has a canary".to_owned());
    }
    let ready = crate::queries::ready(cluster, workload);
    let least = target.spec.min_available;
    (ready <= least).then(|| format!("{ready} are ready, and min_available is {least}"))
}

/// Why a replica is there, how it fared, and why it ended.
pub fn replica(cluster: &Cluster, key: &WorkloadKey, replica: ReplicaId) -> Option<Value> {
    let workload = cluster.workload(key)?;
    let number = replica.placement;
    let known = workload.reports.get(&number).map(Box::as_ref).into_iter();
    let known = { known.chain(&workload.ended) }.find(|known| known.status.replica == replica);
    let placed = workload.placements.get(&number);
    let placed = placed.filter(|placed| placed.slot == replica.slot);
    if known.is_none() && placed.is_none() {
        return None;
    }
    let mut story: Vec<String> = Vec::new();
    if let Some(placed) = placed {
        story.push(why_there(cluster, key, number, placed));
    }
    let mine = workload.story.iter().filter(|line| {
        let same = |one: ReplicaId| one.slot == replica.slot && one.placement == number;
        line.replica.is_some_and(same)
    });
    story.extend(told(mine));
    let host = known.map(|known| &known.host);
    let host = host.or(placed.map(|placed| &placed.host));
    let fix = known.map(|known| what_helps(cluster, key, known));
    Some(json!({
        "state": known.map_or(ReplicaState::Assigned, |known| state_of(cluster, known)),
        "ready": known.is_some_and(|known| known.status.ready),
        "workload": key.to_string(),
        "slot": replica.slot,
        "revision": known.map(|known| known.status.revision).or(placed.map(|one| one.revision)),
        "host": host.map(|id| host_name(cluster, id)),
        "story": story,
        "reason": why_so(workload, number, placed, known),
        "exit_code": known.and_then(|known| known.status.exit_code),
        "fix": fix.unwrap_or_default(),
    }))
}

fn state_of(cluster: &Cluster, known: &Reported) -> ReplicaState {
    let host = cluster.hosts().get(&known.host);
    let dead = host.is_none_or(|host| host.state == HostState::Dead);
    if dead && !known.status.state.ended() {
        ReplicaState::Lost
    } else {
        known.status.state
    }
}

/// How its host scores among those that would have it now.
fn why_there(
    cluster: &Cluster,
    key: &WorkloadKey,
    number: PlacementNumber,
    placed: &Placed,
) -> String {
    let name = host_name(cluster, &placed.host);
    let ranking = ranking(cluster, key, For::Placed(number)).unwrap_or_default();
    let fits = ranking.fits.len();
    let hosts = if fits == 1 { "host" } else { "hosts" };
    match ranking.fits.iter().position(|one| one.host == placed.host) {
        Some(at) => {
            let one = &ranking.fits[at];
            let parts: Vec<String> = { one.parts.iter() }
                .map(|(part, points)| format!("{part} {points}"))
                .collect();
            let (total, parts) = (one.total, parts.join(", "));
            format!(
                "on {name}: number {} of the {fits} {hosts} that would have it now, with {total} ({parts})",
                at + 1
            )
        }
        None => format!("on {name}, which would not have it now; {fits} {hosts} would"),
    }
}

/// Why it ended, or is not ready.
fn why_so(
    workload: &Workload,
    number: PlacementNumber,
    placed: Option<&Placed>,
    known: Option<&Reported>,
) -> Option<String> {
    let said = known.and_then(|known| known.status.reason.clone());
    let ending = placed.is_none().then(|| workload.told.get(&number));
    said.or_else(|| ending.flatten().map(|why| why.words().to_owned()))
}

fn what_helps(cluster: &Cluster, key: &WorkloadKey, known: &Reported) -> Vec<String> {
    let replica = format!("{}/{}", key.name, known.status.replica);
    match state_of(cluster, known) {
        ReplicaState::Failed | ReplicaState::Rejected => {
            vec![format!("see `wasmorch logs {replica}`")]
        }
        ReplicaState::Running if !known.status.ready => {
            vec![format!("see health.ready and `wasmorch logs {replica}`")]
        }
        ReplicaState::Lost => {
            let name = host_name(cluster, &known.host);
            vec![format!(
                "bring {name} back, or forget it with `wasmorch host-rm {name}`"
            )]
        }
        _ => Vec::new(),
    }
}
