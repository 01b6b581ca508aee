//! A cluster of hosts that are messages made here, and a store that is a number.

use super::*;

pub(crate) struct World {
    pub(crate) cluster: Cluster,
    pub(crate) now: Timestamp,
    pub(crate) sequence: u64,
    pub(crate) scenario: Scenario,
    pub(crate) seqs: Vec<u64>,
    /// What each host has told of already.
    pub(crate) told: Vec<BTreeSet<(Name, PlacementNumber)>>,
    pub(crate) dead: BTreeSet<usize>,
}

/// What it costs to place a dead host's replicas anew.
pub(crate) struct Replaced {
    pub(crate) decided: Duration,
    pub(crate) checked: Duration,
    pub(crate) wrote: Duration,
}

pub(crate) fn name(text: &str) -> Name {
    text.parse().unwrap()
}

pub(crate) fn host(n: usize) -> HostId {
    format!("h{n:05}").parse().unwrap()
}

impl World {
    pub(crate) fn new(scenario: Scenario) -> Self {
        let now = Timestamp(1_000_000_000);
        let leader = LeaderId::from_random([1; 10]);
        Self {
            cluster: Cluster::new(ClusterId::from_random([7; 10]), Term(1), leader, now),
            now,
            sequence: 1,
            scenario,
            seqs: vec![0; scenario.hosts],
            told: vec![BTreeSet::new(); scenario.hosts],
            dead: BTreeSet::new(),
        }
    }

    pub(crate) fn commit(&mut self, writes: Vec<Write>) {
        self.sequence += writes.len() as u64;
        self.cluster.commit(writes, self.sequence, self.now);
    }

    /// The same with those of the last plan, all of them.
    pub(crate) fn carry_out(&mut self, writes: Vec<Write>) {
        self.sequence += writes.len() as u64;
        self.cluster.commit_planned(writes, self.sequence, self.now);
        self.cluster.carried_out();
    }

    pub(crate) fn plan(&mut self) -> (Plan, Duration) {
        let (plan, took) = timed(|| self.cluster.plan(self.now));
        let writes = self.cluster.writes(plan.clone());
        self.carry_out(writes);
        (plan, took)
    }

    pub(crate) fn beat(&mut self, n: usize) {
        let labels = [
            ("zone", format!("z{}", n % 6)),
            ("disk", ["ssd", "hdd"][n / 7 % 2].to_owned()),
        ];
        let labels = labels.map(|(label, value)| (label.to_owned(), value));
        let odd = if self.scenario.distinct { n as u64 } else { 0 };
        let held = self.cluster.hosts().get(&host(n));
        let beat = Heartbeat {
            sequence: held.map_or(0, |one| one.set_sequence),
            status_seq: self.seqs[n],
            info: HostInfo {
                name: Name::nearest(host(n).as_str()).unwrap(),
                http: "10.0.0.1:8080".into(),
                peer: Some("10.0.0.1:7001".into()),
                labels: BTreeMap::from(labels),
                capacity: Capacity {
                    memory_bytes: (4 << 30) + odd * (1 << 20),
                    cpu_millis: 16_000 + odd,
                    replicas: self.scenario.seats + odd,
                },
                ..HostInfo::default()
            },
            ..Heartbeat::new(
                self.cluster.cluster.clone(),
                host(n),
                BootId::from_random([1; 10]),
                Term(1),
            )
        };
        self.cluster
            .observe(Observation::Heartbeat(Box::new(beat)), self.now);
    }

    /// Everything that the host holds is ready; what it has told of is not told again.
    pub(crate) fn report(&mut self, n: usize) {
        self.seqs[n] += 1;
        let told = &mut self.told[n];
        let id = host(n);
        let set = self.cluster.hosts()[&id].set.as_ref();
        let mut replicas = Vec::new();
        for group in set.iter().flat_map(|set| &set.groups) {
            let new = group
                .slots
                .iter()
                .filter(|slot| told.insert((group.workload.clone(), slot.placement)));
            replicas.extend(new.map(|slot| ReplicaStatus {
                ready: true,
                ..ReplicaStatus::new(
                    &group.key(),
                    ReplicaId {
                        slot: slot.slot,
                        placement: slot.placement,
                        start: 1,
                    },
                    group.revision,
                    (ReplicaState::Running, self.now),
                )
            }));
        }
        let report = StatusReport {
            cluster: self.cluster.cluster.clone(),
            host: id,
            boot: BootId::from_random([1; 10]),
            status_seq: self.seqs[n],
            full: self.seqs[n] == 1,
            replicas,
            next: None,
        };
        self.cluster.observe(Observation::Status(report), self.now);
    }

    /// A second passes in which all hosts are heard.
    pub(crate) fn step(&mut self) {
        self.now.0 += 1_000;
        for n in 0..self.scenario.hosts {
            if !self.dead.contains(&n) {
                self.beat(n);
            }
        }
        self.cluster.observe(Observation::Tick, self.now);
    }

    pub(crate) fn call(&self) -> Call {
        Call {
            namespace: name("default"),
            now: self.now,
            wall: self.cluster.wall(self.now),
            request_id: None,
            by: "bench".into(),
        }
    }

    pub(crate) fn deploy(&mut self, numbers: &[usize]) {
        for some in numbers.chunks(1_000) {
            let workloads = some
                .iter()
                .map(|n| (self.spec(*n), self.scenario.kind))
                .collect();
            let input = DeployInput {
                workloads,
                if_index: None,
                ..DeployInput::default()
            };
            let outcome = commands::deploy(&self.cluster, &input, &self.call()).unwrap();
            self.commit(outcome.writes);
        }
    }

    pub(crate) fn spec(&self, n: usize) -> WorkloadSpec {
        let each = match n < self.scenario.workloads {
            true => self.each(),
            // Those that come when all is full.
            false => 1,
        };
        let mut spec = WorkloadSpec {
            name: name(&format!("w{n:06}")),
            artifact: Some(Digest::of(b"1")),
            replicas: Some(Replicas::Count(each as u32)),
            ..WorkloadSpec::default()
        };
        match n.checked_sub(self.scenario.workloads + waiting::WAITING) {
            Some(0) => spec.priority = 1,
            Some(_) => spec.priority += 1,
            None => {}
        }
        if self.scenario.distinct {
            spec.resources.reserve.memory = ByteSize((1 << 20) + (n as u64 % 1_000) * 1_024);
        }
        if n < self.scenario.listening {
            let listen = vec![9_000 + n as u16];
            spec.bindings.sockets = Some(Sockets {
                listen,
                ..Sockets::default()
            });
        }
        if self.scenario.ruled && n.is_multiple_of(3) {
            spec.constraints = vec![
                Constraint::Label {
                    label: "disk".into(),
                    test: LabelTest::Eq("ssd".into()),
                },
                Constraint::Distinct {
                    distinct: "host".into(),
                    max: 1,
                },
            ];
            spec.affinity = vec![Affinity {
                label: "zone".into(),
                weight: -50,
                test: LabelTest::Eq("z3".into()),
            }];
        }
        spec
    }

    /// How many replicas each workload has.
    pub(crate) fn each(&self) -> usize {
        self.scenario.replicas / self.scenario.workloads
    }

    pub(crate) fn scale(&mut self, n: usize, replicas: usize) {
        let request = ChangeRequest {
            workload: name(&format!("w{n:06}")),
            desired: Some(replicas as u32),
            args: None,
            data: false,
            request_id: None,
            by: None,
        };
        let outcome = commands::scale(&self.cluster, &request, &self.call()).unwrap();
        self.commit(outcome.writes);
    }

    /// One workload is scaled by one.
    pub(crate) fn change(&mut self) -> Duration {
        self.scale(0, self.each() + 1);
        let (plan, took) = self.plan();
        assert_eq!(plan.start.len(), 1);
        took
    }

    /// All is reported, and planned until there is nothing more to do.
    pub(crate) fn settle(&mut self) {
        for _ in 0..2 {
            while !self.plan().0.is_empty() {}
            self.step();
            for n in (0..self.scenario.hosts)
                .filter(|n| !self.dead.contains(n))
                .collect::<Vec<_>>()
            {
                self.report(n);
            }
        }
        while !self.plan().0.is_empty() {}
    }

    /// These hosts are not heard until they count as dead.
    pub(crate) fn silence(&mut self, hosts: impl IntoIterator<Item = usize>) {
        self.dead.extend(hosts);
        for _ in 0..6 {
            self.step();
        }
    }

    /// One host goes silent; all others speak, and report what replaced it as ready.
    pub(crate) fn kill(&mut self, n: usize) -> Replaced {
        while !self.plan().0.is_empty() {}
        let lost = host(n);
        let held = self.cluster.hosts()[&lost].set.as_ref().unwrap();
        let held: usize = held.groups.iter().map(|group| group.slots.len()).sum();
        self.silence([n]);
        let (plan, decided) = timed(|| self.cluster.plan(self.now));
        assert_eq!((plan.start.len(), plan.stop.len()), (held, held));
        let (broken, checked) = timed(|| check::check_touched(&self.cluster, &plan));
        assert!(broken.is_empty(), "{:?}", broken.first());
        let touched: BTreeSet<HostId> = plan.start.iter().map(|one| one.host.clone()).collect();
        let (writes, wrote) = timed(|| self.cluster.writes(plan));
        self.carry_out(writes);
        for n in 0..self.scenario.hosts {
            if touched.contains(&host(n)) {
                self.report(n);
            }
        }
        Replaced {
            decided,
            checked,
            wrote,
        }
    }
}
