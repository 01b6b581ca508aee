//! A small world of hosts that do as they are told, and what drives it.

use super::*;

pub(crate) fn name(text: &str) -> Name {
    text.parse().unwrap()
}

pub(crate) fn web() -> WorkloadKey {
    WorkloadKey::new(name("default"), name("web"))
}

/// How hosts treat a revision in this world.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Ready,
    Unready,
    GivesUp,
    Completes,
}

pub(crate) struct World {
    pub(crate) cluster: Cluster,
    pub(crate) now: Timestamp,
    pub(crate) sequence: u64,
    pub(crate) store: BTreeMap<String, (Write, u64)>,
    pub(crate) seqs: BTreeMap<HostId, u64>,
    pub(crate) silent: BTreeSet<HostId>,
    /// Hosts that no newer set has reached, and the sequence of the one they hold.
    pub(crate) lagging: BTreeMap<HostId, u64>,
    /// Hosts that have not removed yet what their set names.
    pub(crate) removing: BTreeSet<HostId>,
    /// How often each host has started again.
    pub(crate) boots: BTreeMap<HostId, u8>,
    pub(crate) fates: BTreeMap<u64, Fate>,
    /// Of one workload's revision; goes before `fates`.
    pub(crate) own_fates: BTreeMap<(String, u64), Fate>,
    pub(crate) replicas_max: u64,
    pub(crate) labels: BTreeMap<HostId, BTreeMap<String, String>>,
    /// Hosts of an earlier version.
    pub(crate) old: BTreeSet<HostId>,
    pub(crate) taints: BTreeMap<HostId, Vec<String>>,
    pub(crate) plans: Vec<Plan>,
    /// Hold every plan against one made from scratch.
    pub(crate) oracle: bool,
    /// How every replica of a revision has answered.
    pub(crate) answers: BTreeMap<u64, Answers>,
    /// What each host has last reported: it speaks when something is different.
    pub(crate) said: BTreeMap<HostId, Vec<ReplicaStatus>>,
    /// What all ready replicas of a workload have in hand together.
    pub(crate) load: BTreeMap<WorkloadKey, u64>,
    /// Hosts that tell no load.
    pub(crate) untold: BTreeSet<HostId>,
    /// Standbys that a request has woken.
    pub(crate) woken: BTreeSet<(WorkloadKey, PlacementNumber)>,
    /// Whether it rested when it was last told of, and which start that was.
    pub(crate) starts: BTreeMap<(WorkloadKey, PlacementNumber), (bool, u32)>,
}

impl World {
    pub(crate) fn new(hosts: usize) -> Self {
        let mut world = Self {
            cluster: new_cluster(1, Timestamp(1_000_000)),
            now: Timestamp(1_000_000),
            sequence: 1,
            store: BTreeMap::new(),
            seqs: BTreeMap::new(),
            silent: BTreeSet::new(),
            lagging: BTreeMap::new(),
            removing: BTreeSet::new(),
            boots: BTreeMap::new(),
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

    pub(crate) fn store(&mut self, writes: Vec<Write>) {
        self.keep(&writes);
        self.cluster.commit(writes, self.sequence, self.now);
    }

    /// Those of the last plan, or the first of them.
    pub(crate) fn store_planned(&mut self, writes: Vec<Write>) {
        self.keep(&writes);
        self.cluster.commit_planned(writes, self.sequence, self.now);
    }

    fn keep(&mut self, writes: &[Write]) {
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
    }

    pub(crate) fn plan(&mut self) -> Plan {
        let before = self.oracle.then(|| self.cluster.clone());
        let plan = self.cluster.plan(self.now);
        assert_eq!(check::check(&self.cluster, &plan), vec![], "{plan:#?}");
        assert_eq!(check::check_touched(&self.cluster, &plan), vec![]);
        if let Some(mut whole) = before {
            whole.mark_all_dirty();
            let scratch = whole.plan(self.now);
            self.same_as_from_scratch(&plan, scratch, &whole);
            self.as_ranked(&plan);
            self.as_told(&plan);
        }
        let writes = self.cluster.writes(plan.clone());
        self.cluster.remember(&plan.events, self.now);
        self.store_planned(writes);
        self.cluster.carried_out();
        self.plans.push(plan.clone());
        plan
    }

    pub(crate) fn heartbeat(&mut self, id: &HostId) {
        let beat = Box::new(self.beat(id));
        self.cluster.observe(Observation::Heartbeat(beat), self.now);
    }

    pub(crate) fn beat(&self, id: &HostId) -> Heartbeat {
        let held = self.lagging.get(id).copied();
        Heartbeat {
            sequence: held.unwrap_or_else(|| self.held(id)),
            removals: self.still_removing(id),
            status_seq: self.seqs[id],
            loads: self.loads_of(id),
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
            ..Heartbeat::new(
                self.cluster.cluster.clone(),
                id.clone(),
                self.boot(id),
                Term(1),
            )
        }
    }

    /// The sequence of a host's set; of one without, that of something older than whatever it is told next.
    pub(crate) fn held(&self, id: &HostId) -> u64 {
        let known = self.cluster.hosts().get(id);
        let stored = known.filter(|host| host.set.is_some());
        stored.map_or(1, |host| host.set_sequence)
    }

    fn boot(&self, id: &HostId) -> BootId {
        BootId::from_random([1 + self.boots.get(id).copied().unwrap_or(0); 10])
    }

    /// The host starts again with its disk: it counts anew, and everything on it has another start.
    pub(crate) fn reboot(&mut self, id: &HostId) {
        if let Some(seq) = self.seqs.get_mut(id) {
            *seq = 0;
            *self.boots.entry(id.clone()).or_default() += 1;
            for said in self.said.remove(id).into_iter().flatten() {
                let key = WorkloadKey::new(said.namespace, said.workload);
                let started = self.starts.get_mut(&(key, said.replica.placement));
                started.into_iter().for_each(|(_, start)| *start += 1);
            }
        }
    }

    /// The host says all it knows, which is what its fates make of its set.
    pub(crate) fn report(&mut self, id: &HostId) {
        if let Some(said) = self.said.get(id).filter(|_| self.lagging.contains_key(id)) {
            // What it holds has not changed: it says that to a leader who does not know it.
            return match self.cluster.hosts()[id].synced {
                true => {}
                false => self.tell(id, said.clone()),
            };
        }
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
                    ready: fate == Fate::Ready && !rests,
                    reason: (fate != Fate::Ready && !rests).then(|| format!("{fate:?}")),
                    given_up: fate == Fate::GivesUp && !rests,
                    standby: placed.standby,
                    listens: rests,
                    answers: self
                        .answers
                        .get(&placed.revision.0)
                        .copied()
                        .unwrap_or_default(),
                    ..ReplicaStatus::new(
                        key,
                        ReplicaId {
                            slot: placed.slot,
                            placement: *number,
                            start: *start,
                        },
                        placed.revision,
                        (
                            match fate {
                                _ if rests => ReplicaState::Preparing,
                                Fate::GivesUp => ReplicaState::Failed,
                                Fate::Completes => ReplicaState::Completed,
                                _ => ReplicaState::Running,
                            },
                            self.now,
                        ),
                    )
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
        self.tell(id, replicas);
    }

    fn tell(&mut self, id: &HostId, replicas: Vec<ReplicaStatus>) {
        let seq = self.seqs.get_mut(id).unwrap();
        *seq += 1;
        let status_seq = *seq;
        let report = StatusReport {
            cluster: self.cluster.cluster.clone(),
            host: id.clone(),
            boot: self.boot(id),
            status_seq,
            full: true,
            replicas,
            next: None,
        };
        self.cluster.observe(Observation::Status(report), self.now);
    }

    /// One round: hosts speak, a tick, a plan, half a second.
    pub(crate) fn round(&mut self) -> Plan {
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

    pub(crate) fn run(&mut self, rounds: usize) {
        for _ in 0..rounds {
            self.round();
        }
    }

    pub(crate) fn call(&self) -> Call {
        Call {
            namespace: name("default"),
            now: self.now,
            wall: self.cluster.wall(self.now),
            request_id: None,
            by: "test".into(),
        }
    }

    pub(crate) fn deploy(&mut self, spec: WorkloadSpec, kind: Kind) -> bool {
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

    pub(crate) fn change(&mut self, command: Command, desired: Option<u32>) {
        self.change_of("web", command, desired);
    }

    pub(crate) fn change_of(&mut self, workload: &str, command: Command, desired: Option<u32>) {
        let request = ChangeRequest {
            workload: name(workload),
            desired,
            args: None,
            data: false,
            request_id: None,
            by: None,
        };
        let outcome = command(&self.cluster, &request, &self.call()).unwrap();
        self.store(outcome.writes);
    }

    pub(crate) fn state(&self) -> WorkloadState {
        queries::state(&self.cluster, self.cluster.workload(&web()).unwrap())
    }

    pub(crate) fn rollout(&self) -> RolloutState {
        self.cluster
            .workload(&web())
            .unwrap()
            .record
            .rollout
            .as_ref()
            .unwrap()
            .state
    }

    pub(crate) fn ready(&self) -> u32 {
        queries::ready(&self.cluster, self.cluster.workload(&web()).unwrap())
    }

    pub(crate) fn on(&self, id: &HostId) -> usize {
        let placements = &self.cluster.workload(&web()).unwrap().placements;
        placements
            .values()
            .filter(|placed| placed.host == *id)
            .count()
    }

    /// A new leader that reads the store.
    pub(crate) fn new_leader(&mut self) {
        let mut cluster = new_cluster(self.cluster.term.0 + 1, self.now);
        let mut entries: Vec<_> = self.store.values().cloned().collect();
        // Records first, then revisions.
        entries.sort_by_key(|(write, _)| match write {
            Write::Record(_) => 0,
            Write::Revision(_) => 1,
            _ => 2,
        });
        for (write, sequence) in entries {
            let entry = Stored::parse(&write.key(), &write.body().unwrap())
                .unwrap()
                .unwrap();
            cluster.load(entry, sequence);
        }
        self.cluster = cluster;
        self.cluster.observe(Observation::Tick, self.now);
    }

    pub(crate) fn ask(&mut self, workload: u8, desired: Option<u32>, command: Command) {
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
}

pub(crate) fn new_cluster(term: u64, now: Timestamp) -> Cluster {
    Cluster::new(
        ClusterId::from_random([7; 10]),
        Term(term),
        LeaderId::from_random([term as u8; 10]),
        now,
    )
}

pub(crate) fn host(n: usize) -> HostId {
    format!("h{n}").parse().unwrap()
}

pub(crate) fn spec(version: &str, replicas: u32) -> WorkloadSpec {
    WorkloadSpec {
        name: name("web"),
        artifact: Some(Digest::of(version.as_bytes())),
        replicas: Some(Replicas::Count(replicas)),
        ..WorkloadSpec::default()
    }
}

pub(crate) fn one_per_host(spec: WorkloadSpec) -> WorkloadSpec {
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

pub(crate) fn stop_first(spec: &mut WorkloadSpec) {
    spec.update.canary = None;
    spec.update.order = wasmorch_api::spec::UpdateOrder::StopFirst;
    spec.update.max_surge = 0;
    spec.update.max_unavailable = 1;
}

/// A store: blobs on disk, or keys in Redis.
pub(crate) fn bind(spec: &mut WorkloadSpec, backend: &str) {
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

pub(crate) type Command =
    fn(
        &Cluster,
        &ChangeRequest,
        &Call,
    )
        -> Result<commands::Outcome<wasmorch_api::messages::ChangeReply>, wasmorch_api::ApiError>;

pub(crate) fn rollout_request(workload: &str, action: Option<RolloutAction>) -> RolloutRequest {
    RolloutRequest {
        workload: name(workload),
        to: None,
        action,
        request_id: None,
        by: None,
    }
}
