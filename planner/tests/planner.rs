//! The planner driven through its public face: a small world of hosts that do as they are told.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use wasmorch_api::messages::{ChangeRequest, RolloutAction, RolloutRequest, WorkloadState};
use wasmorch_api::spec::{Constraint, LabelTest, Replicas, Sockets, StoreBinding};
use wasmorch_api::status::{Capacity, HostState};
use wasmorch_api::{
    Answers, BootId, ClusterId, Digest, Heartbeat, HostId, HostInfo, Kind, LeaderId, Name,
    PlacementNumber, ReplicaId, ReplicaState, ReplicaStatus, RolloutState, StatusReport, Term,
    Timestamp, WorkloadKey, WorkloadSpec, features,
};
use wasmorch_planner::commands::{self, Call, DeployInput};
use wasmorch_planner::{Cluster, Observation, Plan, Stored, Write, check, preview, queries, why};

#[path = "planner/autoscale.rs"]
mod autoscale;
#[path = "planner/canary.rs"]
mod canary;
#[path = "planner/claims.rs"]
mod claims;
#[path = "planner/deps.rs"]
mod deps;
#[path = "planner/disconnect.rs"]
mod disconnect;
#[path = "planner/drain.rs"]
mod drain;
#[path = "planner/judge.rs"]
mod judge;
#[path = "planner/odd.rs"]
mod odd;
#[path = "planner/rebalance.rs"]
mod rebalance;
#[path = "planner/zero.rs"]
mod zero;

#[path = "planner/per_host.rs"]
mod per_host;
#[path = "planner/preempt.rs"]
mod preempt;
#[path = "planner/quota.rs"]
mod quota;
#[path = "planner/runs.rs"]
mod runs;

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn web() -> WorkloadKey {
    WorkloadKey::new(name("default"), name("web"))
}

/// How hosts treat a revision in this world.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Ready,
    Unready,
    GivesUp,
    Completes,
}

struct World {
    cluster: Cluster,
    now: Timestamp,
    sequence: u64,
    store: BTreeMap<String, (Write, u64)>,
    seqs: BTreeMap<HostId, u64>,
    silent: BTreeSet<HostId>,
    fates: BTreeMap<u64, Fate>,
    /// Of one workload's revision; goes before `fates`.
    own_fates: BTreeMap<(String, u64), Fate>,
    replicas_max: u64,
    labels: BTreeMap<HostId, BTreeMap<String, String>>,
    /// Hosts of an earlier version.
    old: BTreeSet<HostId>,
    taints: BTreeMap<HostId, Vec<String>>,
    plans: Vec<Plan>,
    /// Hold every plan against one made from scratch.
    oracle: bool,
    /// How every replica of a revision has answered.
    answers: BTreeMap<u64, Answers>,
    /// What each host has last reported: it speaks when something is different.
    said: BTreeMap<HostId, Vec<ReplicaStatus>>,
    /// What all ready replicas of a workload have in hand together.
    load: BTreeMap<WorkloadKey, u64>,
    /// Hosts that tell no load.
    untold: BTreeSet<HostId>,
    /// Standbys that a request has woken.
    woken: BTreeSet<(WorkloadKey, PlacementNumber)>,
    /// Whether it rested when it was last told of, and which start that was.
    starts: BTreeMap<(WorkloadKey, PlacementNumber), (bool, u32)>,
}

impl World {
    fn new(hosts: usize) -> Self {
        let mut world = Self {
            cluster: new_cluster(1, Timestamp(1_000_000)),
            now: Timestamp(1_000_000),
            sequence: 1,
            store: BTreeMap::new(),
            seqs: BTreeMap::new(),
            silent: BTreeSet::new(),
            fates: BTreeMap::new(),
            own_fates: BTreeMap::new(),
            replicas_max: 100,
            labels: BTreeMap::new(),
            old: BTreeSet::new(),
            taints: BTreeMap::new(),
            plans: Vec::new(),
            oracle: true,
            answers: BTreeMap::new(),
            said: BTreeMap::new(),
            load: BTreeMap::new(),
            untold: BTreeSet::new(),
            woken: BTreeSet::new(),
            starts: BTreeMap::new(),
        };
        for n in 1..=hosts {
            world.seqs.insert(host(n), 0);
        }
        world.run(1);
        world
    }

    fn store(&mut self, writes: Vec<Write>) {
        self.sequence += writes.len() as u64;
        let first = self.sequence + 1 - writes.len() as u64;
        for (write, sequence) in writes.iter().zip(first..) {
            // What is stored must read back.
            if let Some(body) = write.body() {
                assert!(Stored::parse(&write.key(), &body).unwrap().is_some());
                self.store.insert(write.key(), (write.clone(), sequence));
            } else {
                self.store.remove(&write.key());
            }
        }
        self.cluster.commit(writes, self.sequence, self.now);
    }

    fn plan(&mut self) -> Plan {
        let before = self.oracle.then(|| self.cluster.clone());
        let plan = self.cluster.plan(self.now);
        assert_eq!(check::check(&self.cluster, &plan), vec![], "{plan:#?}");
        assert_eq!(check::check_touched(&self.cluster, &plan), vec![]);
        if let Some(mut whole) = before {
            whole.mark_all_dirty();
            let scratch = whole.plan(self.now);
            self.same_as_from_scratch(&plan, scratch, &whole);
            self.as_ranked(&plan);
        }
        let writes = self.cluster.writes(&plan);
        self.cluster.remember(&plan.events, self.now);
        self.store(writes);
        self.plans.push(plan.clone());
        plan
    }

    /// What is placed on counts goes where the ranking of single hosts says, and what the ranking
    /// has a host for is not left unplaced.
    fn as_ranked(&self, plan: &Plan) {
        let keys: BTreeSet<&WorkloadKey> = plan.start.iter().map(|start| &start.key).collect();
        // A move goes where it was told to, one on every host has no choice, and a canary is of
        // another revision, as a rollout by zones has one constraint more. A slot with a store on disk
        // goes back to it, and one that has just been given such a store stays where it is.
        let told = |key: &WorkloadKey| {
            self.cluster.workload(key).is_some_and(|one| {
                let target = one.target();
                let by = target.is_some_and(|target| target.spec.update.by.is_some());
                // Going back goes by zones as well, also when a person has ended the rollout.
                let record = &one.record;
                let mut old = one.placements.iter().filter(|(number, placed)| {
                    placed.revision != record.revision || **number < record.fresh_from
                });
                let rolls = record.on_trial().is_some() || by && old.next().is_some();
                let mut stores = target
                    .iter()
                    .flat_map(|target| target.spec.bindings.blobstore.values());
                let adopts = stores.any(|store| store.backend == "disk");
                one.per_host()
                    || adopts && !one.placements.is_empty()
                    || !record.moves.is_empty()
                    || !record.homes.is_empty()
                    || rolls
            })
        };
        let any_told = keys.iter().any(|key| told(key));
        if any_told || !plan.stop.is_empty() || !self.fates.is_empty() || keys.len() > 1 {
            return;
        }
        let best = |key: &WorkloadKey| {
            let why = why::workload(&self.cluster, key).unwrap();
            why["scores"][0]["host"].as_str().map(str::to_owned)
        };
        if let Some(first) = plan.start.first() {
            let name = self.cluster.hosts()[&first.host].info().name.to_string();
            assert_eq!(best(&first.key), Some(name), "{plan:#?}");
        } else {
            // Neither the ranking nor the filters know these two.
            let held_up = |filter: &String| {
                filter.starts_with("may still run") || filter.starts_with("quota")
            };
            let unplaced = plan.unplaced.iter();
            for one in unplaced.filter(|one| !one.filtered.keys().any(held_up)) {
                let (namespace, workload) = one.workload.split_once('/').unwrap();
                let key = WorkloadKey::new(name(namespace), name(workload));
                if told(&key) {
                    continue;
                }
                // What is on a silent host counts there until it has somewhere to go.
                let silent = self.cluster.workload(&key).unwrap().placements.values();
                if { silent }.all(|placed| !self.silent.contains(&placed.host)) {
                    assert_eq!(best(&key), None, "{plan:#?}");
                }
            }
        }
    }

    /// Every incremental plan equals one that looks at everything and trusts no counter. Standing
    /// trouble is state, and told in a plan only where it was looked at.
    fn same_as_from_scratch(&self, plan: &Plan, scratch: Plan, whole: &Cluster) {
        let trouble = |cluster: &Cluster| -> Vec<(String, u32)> {
            let keys = cluster.workloads().keys();
            let status = keys.filter_map(|key| queries::status(cluster, key, false)?.unplaced);
            status.map(|one| (one.workload, one.slots)).collect()
        };
        assert_eq!(trouble(&self.cluster), trouble(whole));
        let scratch = Plan {
            unplaced: plan.unplaced.clone(),
            ..scratch
        };
        assert_eq!(*plan, scratch, "incremental (left) and from scratch");
    }

    fn heartbeat(&mut self, id: &HostId) {
        let beat = Box::new(self.beat(id));
        self.cluster.observe(Observation::Heartbeat(beat), self.now);
    }

    fn beat(&self, id: &HostId) -> Heartbeat {
        Heartbeat {
            cluster: self.cluster.cluster.clone(),
            host: id.clone(),
            boot: BootId::from_random([1; 10]),
            term: Term(1),
            sequence: u64::MAX,
            status_seq: self.seqs[id],
            table_seq: 0,
            memory_bytes: 0,
            cpu_millis: 0,
            replicas: 0,
            loads: self.loads_of(id),
            leaving: false,
            at: None,
            info: HostInfo {
                name: Name::nearest(id.as_str()).unwrap(),
                http: "127.0.0.1:8080".into(),
                domain: "localhost".into(),
                arch: if id.as_str() == "h6" {
                    "aarch64"
                } else {
                    "x86_64"
                }
                .into(),
                labels: self.labels.get(id).cloned().unwrap_or_default(),
                taints: self.taints.get(id).cloned().unwrap_or_default(),
                features: match self.old.contains(id) {
                    true => Vec::new(),
                    false => features::ALL.iter().map(|&one| one.to_owned()).collect(),
                },
                capacity: Capacity {
                    memory_bytes: 1 << 30,
                    cpu_millis: 2000,
                    replicas: self.replicas_max,
                },
                ..HostInfo::default()
            },
        }
    }

    /// The host says all it knows, which is what its fates make of its set.
    fn report(&mut self, id: &HostId) {
        let mut replicas = Vec::new();
        for (key, workload) in self.cluster.workloads() {
            for (number, placed) in workload.placements.iter().filter(|(_, p)| p.host == *id) {
                let own = (key.name.to_string(), placed.revision.0);
                let own = self.own_fates.get(&own);
                let which = (key.clone(), *number);
                let rests = placed.standby && !self.woken.contains(&which);
                // What is told to rest ends, and is prepared anew.
                let (rested, start) = self.starts.entry(which).or_insert((rests, 1));
                *start += u32::from(rests && !*rested);
                *rested = rests;
                let fate = own
                    .or(self.fates.get(&placed.revision.0))
                    .copied()
                    .unwrap_or(Fate::Ready);
                replicas.push(ReplicaStatus {
                    namespace: key.namespace.clone(),
                    workload: key.name.clone(),
                    replica: ReplicaId {
                        slot: placed.slot,
                        placement: *number,
                        start: *start,
                    },
                    revision: placed.revision,
                    state: match fate {
                        _ if rests => ReplicaState::Preparing,
                        Fate::GivesUp => ReplicaState::Failed,
                        Fate::Completes => ReplicaState::Completed,
                        _ => ReplicaState::Running,
                    },
                    ready: fate == Fate::Ready && !rests,
                    since: self.now,
                    reason: (fate != Fate::Ready && !rests).then(|| format!("{fate:?}")),
                    exit_code: None,
                    given_up: fate == Fate::GivesUp && !rests,
                    standby: placed.standby,
                    memory_bytes: 0,
                    cpu_millis: 0,
                    in_flight: 0,
                    answers: self
                        .answers
                        .get(&placed.revision.0)
                        .copied()
                        .unwrap_or_default(),
                });
            }
        }
        for status in &mut replicas {
            let known = self.said.get(id).into_iter().flatten();
            let since = known.filter(|known| known.replica == status.replica);
            status.since = { since }.next().map_or(self.now, |known| known.since);
        }
        if self.said.get(id) == Some(&replicas) && self.cluster.hosts()[id].synced {
            return;
        }
        self.said.insert(id.clone(), replicas.clone());
        let seq = self.seqs.get_mut(id).unwrap();
        *seq += 1;
        let status_seq = *seq;
        let report = StatusReport {
            cluster: self.cluster.cluster.clone(),
            host: id.clone(),
            boot: BootId::from_random([1; 10]),
            status_seq,
            full: true,
            replicas,
            next: None,
        };
        self.cluster.observe(Observation::Status(report), self.now);
    }

    /// One round: hosts speak, a tick, a plan, half a second.
    fn round(&mut self) -> Plan {
        let hosts: Vec<HostId> = self.seqs.keys().cloned().collect();
        for id in hosts
            .iter()
            .filter(|id| !self.silent.contains(id))
            .collect::<Vec<_>>()
        {
            self.heartbeat(id);
            self.report(id);
        }
        self.cluster.observe(Observation::Tick, self.now);
        let plan = self.plan();
        self.now.0 += 500;
        plan
    }

    fn run(&mut self, rounds: usize) {
        for _ in 0..rounds {
            self.round();
        }
    }

    fn call(&self) -> Call {
        Call {
            namespace: name("default"),
            now: self.now,
            request_id: None,
            by: "test".into(),
        }
    }

    fn deploy(&mut self, spec: WorkloadSpec, kind: Kind) -> bool {
        let input = DeployInput {
            workloads: vec![(spec, kind)],
            if_index: None,
            ..DeployInput::default()
        };
        // Beyond its namespace's quota.
        let Ok(outcome) = commands::deploy(&self.cluster, &input, &self.call()) else {
            return false;
        };
        let changed = outcome.reply.workloads[0].changed;
        assert_eq!(changed, !outcome.writes.is_empty());
        self.store(outcome.writes);
        changed
    }

    fn change(
        &mut self,
        command: fn(
            &Cluster,
            &ChangeRequest,
            &Call,
        ) -> Result<
            commands::Outcome<wasmorch_api::messages::ChangeReply>,
            wasmorch_api::ApiError,
        >,
        desired: Option<u32>,
    ) {
        let request = ChangeRequest {
            workload: name("web"),
            desired,
            args: None,
            data: false,
            request_id: None,
            by: None,
        };
        let outcome = command(&self.cluster, &request, &self.call()).unwrap();
        self.store(outcome.writes);
    }

    fn state(&self) -> WorkloadState {
        queries::state(&self.cluster, self.cluster.workload(&web()).unwrap())
    }

    fn rollout(&self) -> RolloutState {
        self.cluster
            .workload(&web())
            .unwrap()
            .record
            .rollout
            .as_ref()
            .unwrap()
            .state
    }

    fn ready(&self) -> u32 {
        queries::ready(&self.cluster, self.cluster.workload(&web()).unwrap())
    }

    fn on(&self, id: &HostId) -> usize {
        let placements = &self.cluster.workload(&web()).unwrap().placements;
        placements
            .values()
            .filter(|placed| placed.host == *id)
            .count()
    }

    /// A new leader that reads the store.
    fn new_leader(&mut self) {
        let mut cluster = new_cluster(self.cluster.term.0 + 1, self.now);
        let mut entries: Vec<_> = self.store.values().cloned().collect();
        // Records first.
        entries.sort_by_key(|(write, _)| !matches!(write, Write::Record(_)));
        for (write, sequence) in entries {
            let entry = Stored::parse(&write.key(), &write.body().unwrap())
                .unwrap()
                .unwrap();
            cluster.load(entry, sequence);
        }
        self.cluster = cluster;
        self.cluster.observe(Observation::Tick, self.now);
    }
}

fn new_cluster(term: u64, now: Timestamp) -> Cluster {
    Cluster::new(
        ClusterId::from_random([7; 10]),
        Term(term),
        LeaderId::from_random([term as u8; 10]),
        now,
    )
}

fn host(n: usize) -> HostId {
    format!("h{n}").parse().unwrap()
}

fn spec(version: &str, replicas: u32) -> WorkloadSpec {
    WorkloadSpec {
        name: name("web"),
        artifact: Some(Digest::of(version.as_bytes())),
        replicas: Some(Replicas::Count(replicas)),
        ..WorkloadSpec::default()
    }
}

fn one_per_host(spec: WorkloadSpec) -> WorkloadSpec {
    let mut spec = WorkloadSpec {
        replicas: Some(Replicas::PerHost(wasmorch_api::spec::PerHost::PerHost)),
        ..spec
    };
    spec.update.order = wasmorch_api::spec::UpdateOrder::StopFirst;
    spec.update.canary = None;
    spec.update.max_surge = 0;
    spec.update.max_unavailable = 1;
    spec
}

#[test]
fn a_first_deploy_spreads_and_becomes_ready() {
    let mut world = World::new(3);
    assert!(world.deploy(spec("1", 3), Kind::Http));
    assert_eq!(world.state(), WorkloadState::Pending);
    world.run(5);
    assert_eq!((world.state(), world.ready()), (WorkloadState::Ready, 3));
    assert_eq!(
        (1..=3).map(|n| world.on(&host(n))).collect::<Vec<_>>(),
        [1, 1, 1]
    );
    assert_eq!(world.rollout(), RolloutState::Completed);
    assert!(world.plan().is_empty(), "converged");
    assert!(
        !world.deploy(spec("1", 3), Kind::Http),
        "the same again changes nothing"
    );
}

#[test]
fn a_roll_never_has_fewer_ready_than_wanted() {
    let mut world = World::new(2);
    world.deploy(spec("1", 4), Kind::Http);
    world.run(8);
    world.deploy(spec("2", 4), Kind::Http);
    for _ in 0..40 {
        world.round();
        assert_eq!(world.ready(), 4);
        let placed = world.cluster.workload(&web()).unwrap().placements.len();
        assert!(placed <= 5, "desired + surge");
    }
    assert_eq!(world.rollout(), RolloutState::Completed);
    let workload = world.cluster.workload(&web()).unwrap();
    assert!(
        workload
            .placements
            .values()
            .all(|placed| placed.revision.0 == 2)
    );
}

#[test]
fn a_bad_revision_reverts_and_says_why() {
    for fate in [Fate::GivesUp, Fate::Unready] {
        let mut world = World::new(2);
        world.deploy(spec("1", 2), Kind::Http);
        world.run(8);
        world.fates.insert(2, fate);
        world.deploy(spec("2", 2), Kind::Http);
        for _ in 0..60 {
            world.round();
            assert_eq!(world.ready(), 2, "the old ones serve throughout");
        }
        assert_eq!(world.rollout(), RolloutState::Reverted, "{fate:?}");
        let record = &world.cluster.workload(&web()).unwrap().record;
        assert_eq!((record.revision.0, record.newest.0), (1, 2));
        let reason = record.rollout.as_ref().unwrap().reason.clone().unwrap();
        assert!(reason.contains(&format!("{fate:?}")), "{reason}");
        assert!(world.plan().is_empty());
    }
}

#[test]
fn a_bad_first_revision_stays_failed_until_it_lives() {
    let mut world = World::new(1);
    world.fates.insert(1, Fate::GivesUp);
    world.deploy(spec("1", 1), Kind::Http);
    world.run(4);
    assert_eq!(world.state(), WorkloadState::Failed);
    world.fates.clear();
    world.run(80);
    assert_eq!(
        (world.state(), world.rollout()),
        (WorkloadState::Ready, RolloutState::Completed)
    );
}

#[test]
fn a_dead_host_is_replaced_and_a_suspect_one_is_not() {
    let mut world = World::new(3);
    world.deploy(spec("1", 3), Kind::Http);
    world.run(8);
    world.silent.insert(host(2));
    world.run(8); // 4 s: suspect
    assert_eq!(world.cluster.hosts()[&host(2)].state, HostState::Suspect);
    assert_eq!(world.on(&host(2)), 1);
    world.run(8);
    assert_eq!(world.cluster.hosts()[&host(2)].state, HostState::Dead);
    assert_eq!((world.on(&host(2)), world.ready()), (0, 3));
    world.silent.clear();
    world.run(4);
    assert!(
        world.plan().is_empty(),
        "a returned host moves nothing by itself"
    );
}

#[test]
fn with_nowhere_else_to_go_a_silent_host_keeps_its_set() {
    let mut world = World::new(2);
    world.deploy(spec("1", 2), Kind::Http);
    world.run(8);
    world.silent.extend([host(1), host(2)]);
    world.run(16);
    assert_eq!(world.cluster.hosts()[&host(1)].state, HostState::Dead);
    assert_eq!(world.cluster.workload(&web()).unwrap().placements.len(), 2);
    let status = queries::status(&world.cluster, &web(), false).unwrap();
    assert_eq!(status.unplaced.unwrap().slots, 2, "and says so");
    world.silent.clear();
    world.run(3);
    assert_eq!(world.ready(), 2, "nothing was stopped");
}

#[test]
fn several_failures_at_once_still_revert() {
    let mut world = World::new(2);
    world.deploy(spec("1", 3), Kind::Http);
    world.run(8);
    world.change(commands::stop, None);
    world.run(2);
    world.fates.insert(2, Fate::GivesUp);
    world.deploy(spec("2", 3), Kind::Http);
    world.run(10);
    assert_eq!(world.rollout(), RolloutState::Reverted);
    assert_eq!(
        world.ready(),
        3,
        "the good revision waits for no crash loop of the bad one"
    );
}

#[test]
fn what_becomes_ready_only_to_fail_is_not_started_without_a_pause() {
    let mut world = World::new(3);
    world.deploy(spec("1", 1), Kind::Http);
    world.run(8);
    let starts = |world: &World| -> usize {
        let plans = world.plans.iter();
        plans.map(|plan| plan.start.len()).sum()
    };
    let before = starts(&world);
    // Two minutes of a second's good service each.
    for _ in 0..60 {
        world.fates.insert(1, Fate::GivesUp);
        world.run(2);
        world.fates.insert(1, Fate::Ready);
        world.run(2);
    }
    let again = starts(&world) - before;
    assert!((3..=6).contains(&again), "{again} starts");
    // After the pause, and a good while, its failures are behind it.
    world.run(400);
    assert_eq!(world.state(), WorkloadState::Ready);
    assert_eq!(
        world.cluster.workload(&web()).unwrap().record.crash_loop,
        []
    );
}

#[test]
fn a_host_dies_while_a_successor_becomes_ready() {
    let mut world = World::new(3);
    world.deploy(spec("1", 3), Kind::Http);
    world.run(8);
    world.deploy(spec("2", 3), Kind::Http);
    world.round();
    world.silent.insert(host(3));
    // Long enough without a plan that both things are found in one.
    world.now.0 += 900;
    for _ in 0..6 {
        for n in 1..=2 {
            world.heartbeat(&host(n));
            world.report(&host(n));
        }
        world.cluster.observe(Observation::Tick, world.now);
        world.now.0 += 900;
    }
    world.run(40);
    assert_eq!(
        (world.rollout(), world.ready()),
        (RolloutState::Completed, 3)
    );
}

#[test]
fn a_new_leader_moves_nothing_before_hosts_have_spoken() {
    let mut world = World::new(3);
    world.deploy(spec("1", 3), Kind::Http);
    world.run(8);
    let before = world.cluster.workload(&web()).unwrap().placements.clone();
    world.new_leader();
    for _ in 0..9 {
        let plan = world.plan();
        assert!(
            plan.start.is_empty() && plan.stop.is_empty() && plan.endpoints.is_empty(),
            "{plan:#?}"
        );
        world.now.0 += 500;
        world.cluster.observe(Observation::Tick, world.now);
    }
    world.run(6);
    assert_eq!(world.cluster.workload(&web()).unwrap().placements, before);
    assert_eq!(world.ready(), 3);
}

#[test]
fn scale_stop_start_restart() {
    let mut world = World::new(2);
    world.deploy(spec("1", 1), Kind::Http);
    world.run(6);
    world.change(commands::scale, Some(5));
    world.run(4);
    assert_eq!(world.ready(), 5);
    world.change(commands::scale, Some(2));
    world.run(2);
    assert_eq!((world.ready(), world.state()), (2, WorkloadState::Ready));
    world.change(commands::stop, None);
    world.run(2);
    assert_eq!(world.state(), WorkloadState::Stopped);
    assert!(
        world
            .cluster
            .workload(&web())
            .unwrap()
            .placements
            .is_empty()
    );
    world.change(commands::start, None);
    world.run(4);
    assert_eq!((world.ready(), world.state()), (2, WorkloadState::Ready));
    let before = world
        .cluster
        .workload(&web())
        .unwrap()
        .record
        .next_placement;
    world.change(commands::restart, None);
    for _ in 0..20 {
        world.round();
        assert_eq!(world.ready(), 2);
    }
    let workload = world.cluster.workload(&web()).unwrap();
    assert!(workload.placements.keys().all(|number| *number >= before));
    assert_eq!(workload.record.revision.0, 1);
    world.change(commands::rm, None);
    world.run(1);
    assert!(world.cluster.workloads().is_empty());
    assert!(
        world
            .store
            .keys()
            .all(|key| !key.contains("web") || key.starts_with("removed.")),
        "{:?}",
        world.store.keys()
    );
    // A workload of the same name begins where the old one ended: hosts may still hold its numbers.
    let next = world.now;
    world.new_leader();
    world.now = next;
    world.run(2);
    world.deploy(spec("9", 1), Kind::Http);
    world.run(2);
    let workload = world.cluster.workload(&web()).unwrap();
    assert_eq!(workload.record.revision.0, 2);
    assert!(workload.placements.keys().all(|number| *number > before));
}

#[test]
fn rollback_goes_to_the_revision_before() {
    let mut world = World::new(1);
    world.deploy(spec("1", 1), Kind::Http);
    world.run(6);
    world.deploy(spec("2", 1), Kind::Http);
    world.run(10);
    let request = RolloutRequest {
        workload: name("web"),
        to: None,
        action: None,
        request_id: None,
        by: None,
    };
    let outcome = commands::rollback(&world.cluster, &request, &world.call()).unwrap();
    assert_eq!(outcome.reply.workloads[0].revision.0, 1);
    world.store(outcome.writes);
    world.run(10);
    assert_eq!(world.rollout(), RolloutState::Completed);
    assert_eq!(world.cluster.workload(&web()).unwrap().record.revision.0, 1);
}

#[test]
fn a_job_completes_once_and_runs_again_when_started() {
    let mut world = World::new(1);
    world.fates.insert(1, Fate::Completes);
    world.deploy(spec("1", 1), Kind::Job);
    world.run(6);
    assert_eq!(world.state(), WorkloadState::Completed);
    let runs = |world: &World| {
        world
            .plans
            .iter()
            .map(|plan| plan.start.len())
            .sum::<usize>()
    };
    assert_eq!(runs(&world), 1);
    world.change(commands::start, None);
    world.run(6);
    assert_eq!((world.state(), runs(&world)), (WorkloadState::Completed, 2));
}

#[test]
fn what_cannot_be_placed_says_why_and_what_helps() {
    let mut world = World::new(2);
    world
        .labels
        .insert(host(1), BTreeMap::from([("zone".into(), "a".into())]));
    world.run(1);
    let mut asked = spec("1", 1);
    asked.constraints = vec![Constraint::Label {
        label: "zone".into(),
        test: LabelTest::Eq("b".into()),
    }];
    world.deploy(asked, Kind::Http);
    world.run(1);
    let status = queries::status(&world.cluster, &web(), false).unwrap();
    let unplaced = status.unplaced.unwrap();
    assert_eq!((unplaced.slots, unplaced.evaluated), (1, 2));
    assert_eq!(
        unplaced.filtered,
        BTreeMap::from([("constraint zone=b".to_owned(), 2)])
    );
    assert!(
        unplaced.fix[0].contains("remove the constraint zone=b"),
        "{:?}",
        unplaced.fix
    );
    let announced = world.plans.iter().flat_map(|plan| &plan.events);
    let announced = announced
        .filter(|event| event.kind == wasmorch_api::EventKind::Unplaced)
        .count();
    world.run(4);
    let again = world.plans.iter().flat_map(|plan| &plan.events);
    let again = again
        .filter(|event| event.kind == wasmorch_api::EventKind::Unplaced)
        .count();
    assert_eq!((announced, again), (1, 1), "announced once");
}

/// `World::plan` holds each plan against one from scratch, so that whoever waits is looked at again
/// when there may be room, and not when something else happens to touch it.
#[test]
fn who_waits_for_room_is_placed_when_a_host_returns() {
    let mut world = World::new(2);
    world.replicas_max = 2;
    world.silent.insert(host(2));
    world.run(14);
    assert_eq!(
        world.cluster.hosts()[&host(2)].state,
        wasmorch_api::status::HostState::Dead
    );
    world.deploy(spec("1", 3), Kind::Http);
    world.run(4);
    assert_eq!((world.on(&host(1)), world.on(&host(2))), (2, 0));
    world.silent.clear();
    world.run(1);
    assert_eq!((world.on(&host(1)), world.on(&host(2))), (2, 1));
}

#[test]
fn who_waits_for_room_is_placed_in_the_plan_that_frees_it() {
    let mut world = World::new(1);
    world.replicas_max = 1;
    world.run(1);
    world.deploy(spec("1", 1), Kind::Http);
    world.run(6);
    let mut later = spec("1", 1);
    later.name = name("zz");
    world.deploy(later, Kind::Http);
    world.run(2);
    world.change(commands::scale, Some(0));
    let plan = world.plan();
    let started: Vec<&str> = plan.start.iter().map(|one| one.key.name.as_str()).collect();
    assert_eq!((plan.stop.len(), started), (1, vec!["zz"]));
}

#[test]
fn an_architecture_is_a_label() {
    let mut world = World::new(6);
    let mut asked = spec("1", 2);
    asked.constraints = vec![Constraint::Label {
        label: "arch".into(),
        test: LabelTest::Eq("aarch64".into()),
    }];
    world.deploy(asked.clone(), Kind::Http);
    world.run(4);
    assert_eq!((world.ready(), world.on(&host(6))), (2, 2));
    // At most one for each architecture: two, of six hosts.
    asked.constraints = vec![Constraint::Distinct {
        distinct: "arch".into(),
        max: 1,
    }];
    asked.replicas = Some(Replicas::Count(3));
    world.deploy(asked, Kind::Http);
    world.run(40);
    let status = queries::status(&world.cluster, &web(), false).unwrap();
    assert_eq!(
        status.unplaced.map(|one| one.filtered["distinct arch"]),
        Some(6)
    );
}

#[test]
fn a_repeated_request_gets_the_first_answer() {
    let mut world = World::new(1);
    world.deploy(spec("1", 1), Kind::Http);
    let mut call = world.call();
    call.request_id = Some("r1".parse().unwrap());
    let request = ChangeRequest {
        workload: name("web"),
        desired: Some(3),
        args: None,
        data: false,
        request_id: call.request_id.clone(),
        by: None,
    };
    let outcome = commands::scale(&world.cluster, &request, &call).unwrap();
    let first = serde_json::to_value(&outcome.reply).unwrap();
    world.store(outcome.writes);
    assert_eq!(
        commands::answered(&world.cluster, &web(), "scale", &call),
        Some(first)
    );
    call.now.0 += 11 * 60 * 1000;
    assert_eq!(
        commands::answered(&world.cluster, &web(), "scale", &call),
        None
    );
    // One that changes nothing is remembered too: its copy may come after another change.
    call.request_id = Some("r2".parse().unwrap());
    let idle = commands::scale(&world.cluster, &request, &call).unwrap();
    assert!(!idle.reply.changed && idle.events.is_empty());
    world.store(idle.writes);
    assert!(commands::answered(&world.cluster, &web(), "scale", &call).is_some());
    call.request_id = Some("r3".parse().unwrap());
    let same = DeployInput {
        workloads: vec![(spec("1", 3), Kind::Http)],
        if_index: None,
        ..DeployInput::default()
    };
    let idle = commands::deploy(&world.cluster, &same, &call).unwrap();
    assert!(!idle.reply.workloads[0].changed && idle.events.is_empty());
    world.store(idle.writes);
    assert!(commands::answered(&world.cluster, &web(), "deploy", &call).is_some());
}

#[test]
fn the_checker_bites() {
    let mut world = World::new(2);
    world.deploy(spec("1", 2), Kind::Http);
    world.run(6);
    let placed = world.cluster.workload(&web()).unwrap().placements.clone();
    let start = |slot: u64, placement: u64, host_n: usize| wasmorch_planner::Start {
        key: web(),
        slot: wasmorch_api::Slot(slot),
        placement: PlacementNumber(placement),
        revision: wasmorch_api::RevisionNumber(1),
        host: host(host_n),
        standby: false,
        args: None,
    };
    let broken = |plan: &Plan| {
        let whole = check::check(&world.cluster, plan);
        assert_eq!(check::check_touched(&world.cluster, plan), whole);
        whole.len()
    };
    let mut plan = Plan {
        start: vec![start(1, 1, 1)],
        ..Plan::default()
    };
    assert!(broken(&plan) >= 1, "a number given twice");
    plan.start = vec![start(1, 100, 9)];
    assert!(broken(&plan) >= 1, "an unknown host");
    plan.start = vec![start(1, 100, 1), start(1, 101, 1)];
    assert!(broken(&plan) >= 1, "a crowded slot");
    plan.start = vec![start(3, 100, 1), start(4, 101, 1)];
    assert!(broken(&plan) >= 1, "more than desired and surge");
    plan.start.clear();
    plan.stop = placed
        .iter()
        .map(|(number, placed)| wasmorch_planner::Stop {
            key: web(),
            slot: placed.slot,
            placement: *number,
            host: placed.host.clone(),
            why: wasmorch_planner::StopReason::Replaced,
        })
        .collect();
    assert!(broken(&plan) >= 1, "ready replicas taken away");
}

#[derive(Debug, Clone)]
enum Step {
    Deploy(u8, u8),
    Scale(u8),
    Stop,
    Start,
    Restart,
    Rollback,
    Silence(u8),
    Speak(u8),
    NewLeader,
    Fate(u8, u8),
    Rounds(u8),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        (1..5u8, 0..6u8).prop_map(|(v, n)| Step::Deploy(v, n)),
        (0..8u8).prop_map(Step::Scale),
        Just(Step::Stop),
        Just(Step::Start),
        Just(Step::Restart),
        Just(Step::Rollback),
        (1..4u8).prop_map(Step::Silence),
        (1..4u8).prop_map(Step::Speak),
        Just(Step::NewLeader),
        (1..6u8, 0..3u8).prop_map(|(r, f)| Step::Fate(r, f)),
        (1..15u8).prop_map(Step::Rounds),
    ];
    prop::collection::vec(step, 1..25)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    /// Whatever users, hosts and leaders do: every plan passes the checker (`World::plan` asserts
    /// it), and once all is well again the cluster converges to what is wanted.
    #[test]
    fn any_history_is_safe_and_converges(steps in steps()) {
        let mut world = World::new(3);
        world.deploy(spec("0", 2), Kind::Http);
        let ignore_refusal = |world: &mut World, command: fn(&Cluster, &ChangeRequest, &Call) -> _, desired| {
            let request = ChangeRequest { workload: name("web"), desired, args: None, data: false, request_id: None, by: None };
            let outcome: Result<commands::Outcome<wasmorch_api::messages::ChangeReply>, wasmorch_api::ApiError> = command(&world.cluster, &request, &world.call());
            if let Ok(outcome) = outcome { world.store(outcome.writes) }
        };
        for step in steps {
            match step {
                Step::Deploy(version, count) => { world.deploy(spec(&version.to_string(), u32::from(count)), Kind::Http); }
                Step::Scale(count) => ignore_refusal(&mut world, commands::scale, Some(u32::from(count))),
                Step::Stop => ignore_refusal(&mut world, commands::stop, None),
                Step::Start => ignore_refusal(&mut world, commands::start, None),
                Step::Restart => ignore_refusal(&mut world, commands::restart, None),
                Step::Rollback => {
                    let request = RolloutRequest { workload: name("web"), to: None, action: None, request_id: None, by: None };
                    if let Ok(outcome) = commands::rollback(&world.cluster, &request, &world.call()) { world.store(outcome.writes) }
                }
                Step::Silence(n) => { world.silent.insert(host(n as usize)); }
                Step::Speak(n) => { world.silent.remove(&host(n as usize)); }
                Step::NewLeader => world.new_leader(),
                Step::Fate(revision, fate) => {
                    let fate = [Fate::Ready, Fate::Unready, Fate::GivesUp][fate as usize];
                    world.fates.insert(u64::from(revision), fate);
                }
                Step::Rounds(rounds) => world.run(rounds as usize),
            }
        }
        world.silent.clear();
        world.fates.clear();
        // Longest wait: a crash loop's backoff of five minutes.
        world.oracle = false;
        world.run(900);
        let workload = world.cluster.workload(&web()).unwrap();
        let wanted = workload.record.wanted();
        prop_assert_eq!(queries::ready(&world.cluster, workload), wanted);
        prop_assert_eq!(workload.placements.len() as u32, wanted);
        let plan = world.plan();
        prop_assert!(plan.is_empty(), "{:#?}", plan);
    }
}

#[test]
fn one_broken_part_bars_nobody_else() {
    let mut world = World::new(2);
    world.deploy(shaped(0, 1, 2, 0), Kind::Http);
    world.deploy(shaped(1, 1, 2, 0), Kind::Http);
    let mut plan = world.cluster.plan(world.now);
    let wanted = plan.start.len();
    // A mistake of the planner: a number given twice.
    plan.start[1].placement = plan.start[0].placement;
    let broken = check::check_touched(&world.cluster, &plan);
    let out = broken[0].workloads(&plan);
    assert_eq!(out, BTreeSet::from([plan.start[0].key.clone()]));
    let rest = plan.without(&out);
    assert_eq!((rest.start.len(), wanted), (2, 4));
    assert_eq!(check::check_touched(&world.cluster, &rest), vec![]);
    let writes = world.cluster.writes(&rest);
    world.store(writes);
    let again = world.cluster.plan(world.now);
    assert_eq!(again.start.len(), 2, "what was left out is planned again");
}

#[test]
fn a_preview_shows_what_a_deploy_then_does() {
    let mut world = World::new(3);
    world.replicas_max = 4;
    world.deploy(shaped(0, 1, 5, 0), Kind::Http);
    world.deploy(shaped(3, 1, 2, 0), Kind::Http);
    world.run(6);
    for count in [4, 9] {
        let input = DeployInput {
            workloads: vec![(shaped(3, 1, count, 0), Kind::Http)],
            if_index: None,
            ..DeployInput::default()
        };
        let shown = preview::of_deploy(&world.cluster, &input, &world.call()).unwrap();
        let shown: BTreeSet<String> = shown["start"]
            .as_array()
            .unwrap()
            .iter()
            .map(|start| format!("{} {}", start["slot"], start["host"].as_str().unwrap()))
            .collect();
        let mut real = world.cluster.clone();
        let outcome = commands::deploy(&real, &input, &world.call()).unwrap();
        real.commit(outcome.writes, world.sequence + 10, world.now);
        let plan = real.plan(world.now);
        let done: BTreeSet<String> = plan
            .start
            .iter()
            .map(|start| format!("{} {}", start.slot, start.host))
            .collect();
        assert_eq!(shown, done);
        assert_eq!(
            shown.len(),
            if count == 4 { 2 } else { 5 },
            "12 places, 7 are taken"
        );
    }
}

#[test]
fn a_host_that_shrank_bars_only_what_asks_for_more_of_it() {
    let mut world = World::new(1);
    world.deploy(shaped(0, 1, 4, 0), Kind::Http);
    world.run(6);
    let start = wasmorch_planner::Start {
        key: WorkloadKey::new(name("default"), name("w0")),
        slot: wasmorch_api::Slot(4),
        placement: PlacementNumber(100),
        revision: wasmorch_api::RevisionNumber(1),
        host: host(1),
        standby: false,
        args: None,
    };
    let plan = Plan {
        start: vec![start],
        ..Plan::default()
    };
    assert_eq!(check::check_touched(&world.cluster, &plan), vec![]);
    world.replicas_max = 2;
    world.heartbeat(&host(1));
    let broken = check::check_touched(&world.cluster, &plan);
    assert_eq!(broken.len(), 1, "{broken:?}");
    assert_eq!(check::check(&world.cluster, &plan), broken);
}

#[derive(Debug, Clone)]
enum Busy {
    Deploy(u8, u8, u8, u8),
    Scale(u8, u8),
    Remove(u8),
    Restart(u8),
    /// Two in one manifest: the first may depend on the second, and they may be atomic.
    Together(u8, u8, u8, u8),
    Rollout(u8, u8),
    Silence(u8),
    Speak(u8),
    HostRm(u8),
    Cordon(u8, bool),
    Drain(u8, u8),
    Rebalance(u8),
    Shrink(u8),
    Label(u8, u8),
    Quota(u8),
    NewLeader,
    Lose,
    Fate(u8, u8),
    /// A request for a workload wakes what rests on a host.
    Wake(u8, u8),
    Rounds(u8),
}

fn busy() -> impl Strategy<Value = Vec<Busy>> {
    let step = prop_oneof![
        4 => (0..5u8, 1..4u8, 0..9u8, 0..17u8).prop_map(|(w, v, n, k)| Busy::Deploy(w, v, n, k)),
        2 => (0..5u8, 0..9u8).prop_map(|(w, n)| Busy::Scale(w, n)),
        1 => (0..5u8).prop_map(Busy::Remove),
        1 => (0..5u8).prop_map(Busy::Restart),
        3 => (0..5u8, 1..5u8, 1..4u8, 0..8u8).prop_map(|(w, o, v, k)| Busy::Together(w, o, v, k)),
        2 => (0..5u8, 0..3u8).prop_map(|(w, a)| Busy::Rollout(w, a)),
        2 => (1..7u8).prop_map(Busy::Silence),
        2 => (1..7u8).prop_map(Busy::Speak),
        1 => (1..7u8).prop_map(Busy::HostRm),
        2 => (1..7u8, any::<bool>()).prop_map(|(h, c)| Busy::Cordon(h, c)),
        2 => (1..7u8, 0..12u8).prop_map(|(h, d)| Busy::Drain(h, d)),
        2 => (0..9u8).prop_map(Busy::Rebalance),
        1 => (1..9u8).prop_map(Busy::Shrink),
        1 => (1..7u8, 0..3u8).prop_map(|(h, z)| Busy::Label(h, z)),
        1 => (0..12u8).prop_map(Busy::Quota),
        1 => Just(Busy::NewLeader),
        2 => Just(Busy::Lose),
        1 => (1..6u8, 0..3u8).prop_map(|(r, f)| Busy::Fate(r, f)),
        2 => (0..5u8, 1..7u8).prop_map(|(w, h)| Busy::Wake(w, h)),
        6 => (1..12u8).prop_map(Busy::Rounds),
    ];
    prop::collection::vec(step, 5..40)
}

/// A spec of one of seventeen shapes: priorities, constraints, affinities, packing, stop-first, silent
/// hosts, per-host, ports, stores that not every host has, and from zero.
fn shaped(workload: u8, version: u8, count: u8, shape: u8) -> WorkloadSpec {
    let mut spec = WorkloadSpec {
        name: name(&format!("w{workload}")),
        ..spec(&version.to_string(), u32::from(count))
    };
    spec.priority = 50 + u32::from(workload % 3);
    spec.min_available = u32::from(version % 2);
    if version == 3 && spec.update.order == wasmorch_api::spec::UpdateOrder::StartFirst {
        spec.update.canary = Some(wasmorch_api::spec::Canary {
            replicas: 1 + u32::from(workload % 2),
            percent: Some(10),
            bake: wasmorch_api::HumanDuration::secs(2),
            promote: wasmorch_api::spec::Promote::Auto,
        });
    }
    if version == 2 {
        spec.update.by = Some("zone".into());
    }
    match shape {
        1 => {
            spec.constraints = vec![Constraint::Label {
                label: "zone".into(),
                test: LabelTest::In(vec!["z0".into(), "z1".into()]),
            }];
        }
        2 => {
            spec.constraints = vec![Constraint::Distinct {
                distinct: "host".into(),
                max: 1,
            }];
        }
        3 => {
            spec.constraints = vec![Constraint::Distinct {
                distinct: "zone".into(),
                max: 2,
            }];
        }
        4 => spec.spread = Vec::new(),
        5 => {
            spec.affinity = ["zone", "host"]
                .map(|label| wasmorch_api::spec::Affinity {
                    label: label.into(),
                    weight: 70,
                    test: LabelTest::Matches("*1".into()),
                })
                .to_vec();
        }
        6 => stop_first(&mut spec),
        7 => spec.resources.reserve.memory = wasmorch_api::ByteSize::mib(300),
        8 => spec.disconnect.lost_after = wasmorch_api::HumanDuration::secs(2),
        9 => {
            spec.disconnect.lost_after = wasmorch_api::HumanDuration::secs(3);
            spec.disconnect.stop_after = Some(wasmorch_api::HumanDuration::secs(1));
            spec.disconnect.exclusive = true;
            spec.update.canary = None;
            spec.update.order = wasmorch_api::spec::UpdateOrder::StopFirst;
            spec.update.max_surge = 0;
            spec.update.max_unavailable = 1;
        }
        12 | 13 => {
            // Two ports for three workloads; now and then the successor comes first.
            let listen = vec![9_000 + u16::from(workload % 2)];
            spec.bindings.sockets = Some(Sockets {
                listen,
                ..Sockets::default()
            });
            if shape == 12 {
                stop_first(&mut spec);
                if version == 3 {
                    spec = one_per_host(spec);
                }
            }
        }
        14 => bind(&mut spec, "redis"),
        15 => bind(&mut spec, "disk"),
        16 => {
            spec.replicas = None;
            spec.scale = Some(autoscale::scale(0, u32::from(count.max(1))));
        }
        10 | 11 => {
            spec = one_per_host(spec);
            if shape == 11 {
                spec.resources.reserve.memory = wasmorch_api::ByteSize::mib(300);
                spec.constraints = vec![Constraint::Label {
                    label: "zone".into(),
                    test: LabelTest::In(vec!["z0".into(), "z1".into()]),
                }];
            }
        }
        _ => {}
    }
    spec
}

fn stop_first(spec: &mut WorkloadSpec) {
    spec.update.canary = None;
    spec.update.order = wasmorch_api::spec::UpdateOrder::StopFirst;
    spec.update.max_surge = 0;
    spec.update.max_unavailable = 1;
}

/// A store: blobs on disk, or keys in Redis.
fn bind(spec: &mut WorkloadSpec, backend: &str) {
    let store = StoreBinding {
        backend: backend.to_owned(),
        ..StoreBinding::default()
    };
    let bindings = &mut spec.bindings;
    let stores = match backend {
        "disk" => &mut bindings.blobstore,
        _ => &mut bindings.keyvalue,
    };
    stores.insert("a".to_owned(), store);
}

impl World {
    fn ask(&mut self, workload: u8, desired: Option<u32>, command: Command) {
        let request = ChangeRequest {
            workload: name(&format!("w{workload}")),
            desired,
            args: None,
            data: false,
            request_id: None,
            by: None,
        };
        if let Ok(outcome) = command(&self.cluster, &request, &self.call()) {
            self.store(outcome.writes);
        }
    }

    fn busy(&mut self, step: &Busy) {
        match *step {
            Busy::Deploy(w, v, n, shape) => {
                self.deploy(shaped(w, v, n, shape), Kind::Http);
            }
            Busy::Scale(w, n) => self.ask(w, Some(u32::from(n)), commands::scale),
            Busy::Remove(w) => self.ask(w, None, commands::rm),
            Busy::Restart(w) => self.ask(w, None, commands::restart),
            Busy::Together(w, other, v, how) => {
                let mut first = shaped(w, v, 2, 0);
                let second = shaped((w + other) % 5, v, 2, if how & 4 > 0 { 6 } else { 0 });
                if how & 1 > 0 {
                    first.depends_on = vec![second.name.clone()];
                }
                let both = vec![(first, Kind::Http), (second, Kind::Http)];
                let _ = self.deploy_all(both, how & 2 > 0);
            }
            Busy::Rollout(w, action) => {
                let action = [
                    RolloutAction::Pause,
                    RolloutAction::Resume,
                    RolloutAction::Abort,
                ][action as usize];
                let _ = self.rollout_of(&format!("w{w}"), action);
            }
            Busy::Silence(n) => drop(self.silent.insert(host(n as usize))),
            Busy::Speak(n) => drop(self.silent.remove(&host(n as usize))),
            Busy::HostRm(n) => {
                let outcome = commands::host_rm(&self.cluster, host(n as usize).as_str(), self.now);
                if let Ok(outcome) = outcome {
                    self.store(outcome.writes);
                }
            }
            Busy::Cordon(n, cordon) => {
                let command = if cordon {
                    commands::cordon
                } else {
                    commands::uncordon
                };
                let outcome = command(&self.cluster, host(n as usize).as_str(), self.now);
                if let Ok(outcome) = outcome {
                    self.store(outcome.writes);
                }
            }
            Busy::Drain(n, seconds) => {
                let deadline = std::time::Duration::from_secs(u64::from(seconds));
                let deadline = (seconds > 0).then_some(deadline);
                let outcome =
                    commands::drain(&self.cluster, host(n as usize).as_str(), deadline, self.now);
                if let Ok(outcome) = outcome {
                    self.store(outcome.writes);
                }
            }
            Busy::Rebalance(most) => {
                let outcome = commands::rebalance(&self.cluster, Some(most.into()), self.now);
                let outcome = outcome.unwrap();
                assert!(outcome.reply.moves.len() <= usize::from(most));
                self.store(outcome.writes);
            }
            Busy::Shrink(n) => self.replicas_max = u64::from(n),
            Busy::Label(n, zone) => {
                let labels = BTreeMap::from([("zone".to_owned(), format!("z{zone}"))]);
                self.labels.insert(host(n as usize), labels);
            }
            Busy::Quota(many) => self.limit(None, Some(u64::from(many)).filter(|many| *many > 0)),
            Busy::NewLeader => self.new_leader(),
            // A plan that is made and never stored.
            Busy::Lose => drop(self.cluster.plan(self.now)),
            Busy::Fate(revision, fate) => {
                let fate = [Fate::Ready, Fate::Unready, Fate::GivesUp][fate as usize];
                self.fates.insert(u64::from(revision), fate);
            }
            Busy::Wake(w, n) => self.wake(&name(&format!("w{w}")), &host(n as usize)),
            Busy::Rounds(rounds) => self.run(rounds as usize),
        }
    }
}

type Command =
    fn(
        &Cluster,
        &ChangeRequest,
        &Call,
    )
        -> Result<commands::Outcome<wasmorch_api::messages::ChangeReply>, wasmorch_api::ApiError>;

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// Several workloads in want of the same room, on hosts that come, go and change: at every step
    /// the incremental plan is the one made from scratch (`World::plan` asserts it).
    #[test]
    fn every_incremental_plan_equals_one_from_scratch(steps in busy()) {
        let mut world = World::new(6);
        for n in 1..=5 {
            let labels = BTreeMap::from([("zone".to_owned(), format!("z{}", n % 3))]);
            world.labels.insert(host(n), labels);
        }
        world.old.insert(host(2));
        for step in &steps {
            world.busy(step);
        }
        world.run(30);
    }
}

#[test]
fn a_slot_with_a_volume_stays_with_its_host() {
    let mut world = World::new(3);
    // The ranking of hosts for one more replica knows no slots.
    world.fates.insert(1, Fate::Ready);
    let keeping = |version: &str| {
        let mut spec = spec(version, 2);
        spec.update.order = wasmorch_api::spec::UpdateOrder::StopFirst;
        (spec.update.max_surge, spec.update.max_unavailable) = (0, 1);
        wasmorch_api::manifest::read_grant("volume=data:/data", &mut spec.bindings).unwrap();
        spec
    };
    let where_is = |world: &World| -> BTreeMap<u64, HostId> {
        let placements = &world.cluster.workload(&web()).unwrap().placements;
        let slots = placements.values();
        slots
            .map(|placed| (placed.slot.0, placed.host.clone()))
            .collect()
    };
    world.deploy(keeping("1"), Kind::Http);
    world.run(8);
    let homes = where_is(&world);
    assert_eq!((homes.len(), world.ready()), (2, 2));

    // Its host dies: the slot waits for it, and says so.
    let home = homes[&1].clone();
    world.silent.insert(home.clone());
    world.run(40);
    assert_eq!(where_is(&world), homes);
    let status = queries::status(&world.cluster, &web(), false).unwrap();
    let unplaced = status.unplaced.unwrap();
    assert_eq!(unplaced.slots, 1);
    assert!(unplaced.fix[0].contains("host-rm h"), "{unplaced:?}");
    world.silent.remove(&home);
    world.run(8);

    // A roll, a stop and a start, a new leader, a removal: always the same hosts.
    world.deploy(keeping("2"), Kind::Http);
    world.run(40);
    assert_eq!((where_is(&world), world.ready()), (homes.clone(), 2));
    world.change(commands::stop, None);
    world.run(4);
    world.change(commands::start, None);
    world.new_leader();
    world.run(30);
    assert_eq!((where_is(&world), world.ready()), (homes.clone(), 2));
    world.change(commands::rm, None);
    world.run(4);
    world.deploy(keeping("3"), Kind::Http);
    world.run(8);
    assert_eq!((where_is(&world), world.ready()), (homes.clone(), 2));

    // A host that was removed has given its volumes up.
    world.silent.insert(home.clone());
    world.run(20);
    world.seqs.remove(&home);
    world.store(vec![Write::DeleteHost(home.clone())]);
    world.run(20);
    let moved = where_is(&world);
    assert_ne!(moved[&1], home);
    assert_eq!(moved[&2], homes[&2]);
    assert_eq!(world.ready(), 2);
}
