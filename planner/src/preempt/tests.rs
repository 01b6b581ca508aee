//! Every choice of who makes room is held against one from a ranking of all hosts, on small random clusters.

use std::cell::Cell;

use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use wasmorch_api::spec::{Affinity, Constraint, LabelTest, Replicas, Sockets};
use wasmorch_api::status::Capacity;
use wasmorch_api::{
    BootId, ByteSize, ClusterId, Digest, Heartbeat, HostId, HostInfo, Kind, LeaderId, Name,
    ReplicaId, ReplicaState, ReplicaStatus, StatusReport, Term, Timestamp, WorkloadSpec,
};

use super::*;
use crate::cluster::Cluster;
use crate::commands::{self, Call, DeployInput};
use crate::observe::Observation;
use crate::place::{self, Standpoint};

thread_local! {
    /// Choices that were compared, and those among them that found somebody.
    static COMPARED: Cell<(u32, u32)> = const { Cell::new((0, 0)) };
}

/// Hosts that only lack room, the best first, from a look at every host there is.
fn by_full_ranking(pass: &Pass<'_>, slot: Slot) -> Vec<Rank> {
    let (ground, goes) = (pass.ground(), pass.goes(slot));
    let on = Standpoint {
        cluster: pass.cluster,
        key: pass.key,
        spec: &pass.target.spec,
        features: &pass.target.features,
        used: &|_, _| Booked::default(),
        count: &|id, host| match pass.pool.rank(id) {
            Some(rank) => ground.count(pass.pool, rank),
            None => host.count_of(pass.key),
        },
        ports: ports::View {
            claims: Some(&pass.pool.ports),
            without: None,
        },
        homes: None,
        goes: goes.as_ref(),
    };
    let fits = place::rank(&on, &[]).fits;
    let ranks = fits.iter().filter_map(|one| pass.pool.rank(&one.host));
    ranks.collect()
}

fn fewest(pass: &mut Pass<'_>, hosts: Vec<Rank>, wants: Booked) -> Option<(Rank, Vec<Victim>)> {
    let mut best: Option<(usize, u32, Rank, Vec<Victim>)> = None;
    for rank in hosts {
        let Some(victims) = pass.victims(rank, wants) else {
            continue;
        };
        let highest = victims.iter().map(|victim| victim.priority).max();
        let worth = (victims.len(), highest.unwrap_or(0));
        if best.as_ref().is_none_or(|best| worth < (best.0, best.1)) {
            best = Some((worth.0, worth.1, rank, victims));
        }
    }
    best.map(|(_, _, rank, victims)| (rank, victims))
}

/// Asked for every choice that tests make.
pub(super) fn compare(
    pass: &mut Pass<'_>,
    (slot, wants, failed): (Slot, Booked, &BTreeSet<Rank>),
    found: Option<&(Rank, Vec<Victim>)>,
) {
    let hosts = by_full_ranking(pass, slot).into_iter();
    let (last, first): (Vec<Rank>, Vec<Rank>) = hosts.partition(|rank| failed.contains(rank));
    let expected = fewest(pass, first, wants);
    let expected = expected.or_else(|| fewest(pass, last, wants));
    let named = |(rank, victims): &(Rank, Vec<Victim>)| {
        let victims = victims.iter().map(|one| (one.key.to_string(), one.number));
        (*rank, victims.collect::<Vec<_>>())
    };
    assert_eq!(
        found.map(named),
        expected.as_ref().map(named),
        "{} slot {slot}",
        pass.key
    );
    let (asked, some) = COMPARED.get();
    COMPARED.set((asked + 1, some + u32::from(found.is_some())));
}

struct World {
    cluster: Cluster,
    now: Timestamp,
    sequence: u64,
    hosts: u8,
    silent: BTreeSet<u8>,
    seqs: u64,
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn host(n: u8) -> HostId {
    HostId::from_random([n; 10])
}

impl World {
    fn new(hosts: u8) -> Self {
        let now = Timestamp(1_000_000_000);
        let leader = LeaderId::from_random([1; 10]);
        let mut world = Self {
            cluster: Cluster::new(ClusterId::from_random([7; 10]), Term(1), leader, now),
            now,
            sequence: 1,
            hosts,
            silent: BTreeSet::new(),
            seqs: 0,
        };
        world.second();
        world
    }

    /// All hosts that are heard say that all they hold is ready, but for what fails, and a plan is carried out.
    fn second(&mut self) {
        self.now.0 += 1_000;
        self.seqs += 1;
        for n in (0..self.hosts)
            .filter(|n| !self.silent.contains(n))
            .collect::<Vec<_>>()
        {
            let held = self.cluster.hosts().get(&host(n));
            let zone = ("zone".to_owned(), format!("z{}", n % 3));
            let mut beat = Heartbeat::new(
                self.cluster.cluster.clone(),
                host(n),
                BootId::from_random([1; 10]),
                Term(1),
            );
            beat.sequence = held.map_or(0, |one| one.set_sequence);
            beat.status_seq = self.seqs;
            beat.info = HostInfo {
                // Not in the order of the ids.
                name: name(&format!("h{}", n.reverse_bits())),
                labels: [zone].into_iter().filter(|_| n != 4).collect(),
                capacity: Capacity {
                    memory_bytes: ByteSize::mib(1_000).0,
                    cpu_millis: if n == 5 { 0 } else { 4_000 },
                    replicas: 6,
                },
                ..HostInfo::default()
            };
            let set = held.and_then(|one| one.set.clone());
            let groups = set.iter().flat_map(|set| &set.groups);
            let replicas = groups.flat_map(|group| {
                group.slots.iter().map(|slot| {
                    let id = ReplicaId {
                        slot: slot.slot,
                        placement: slot.placement,
                        start: 1,
                    };
                    let fails = slot.placement.0 % 11 == 7;
                    let state = match fails {
                        true => ReplicaState::Failed,
                        false => ReplicaState::Running,
                    };
                    ReplicaStatus {
                        ready: !fails,
                        given_up: fails,
                        ..ReplicaStatus::new(&group.key(), id, group.revision, (state, self.now))
                    }
                })
            });
            let report = StatusReport {
                cluster: self.cluster.cluster.clone(),
                host: host(n),
                boot: BootId::from_random([1; 10]),
                status_seq: self.seqs,
                full: true,
                replicas: replicas.collect(),
                next: None,
            };
            let beat = Observation::Heartbeat(Box::new(beat));
            self.cluster.observe(beat, self.now);
            self.cluster.observe(Observation::Status(report), self.now);
        }
        self.cluster.observe(Observation::Tick, self.now);
        let plan = self.cluster.plan(self.now);
        let writes = self.cluster.writes(plan);
        self.sequence += writes.len() as u64;
        self.cluster.commit_planned(writes, self.sequence, self.now);
        self.cluster.carried_out();
        for (id, host) in &self.cluster.hosts {
            let all = host.booked_below(u32::MAX);
            assert_eq!(all, host.booked, "what {id} books by priority");
        }
    }

    fn deploy(&mut self, spec: WorkloadSpec, kind: Kind) {
        let input = DeployInput {
            workloads: vec![(spec, kind)],
            ..DeployInput::default()
        };
        let call = Call {
            namespace: name("default"),
            now: self.now,
            wall: self.now,
            request_id: None,
            by: "test".into(),
        };
        let Ok(outcome) = commands::deploy(&self.cluster, &input, &call) else {
            return;
        };
        self.sequence += outcome.writes.len() as u64;
        self.cluster.commit(outcome.writes, self.sequence, self.now);
    }
}

fn spec((workload, priority, count, shape): (u8, u8, u8, u8), keeps: u8) -> WorkloadSpec {
    let mut spec = WorkloadSpec {
        name: name(&format!("w{workload}")),
        artifact: Some(Digest::of(&[count])),
        replicas: Some(Replicas::Count(u32::from(count))),
        priority: u32::from(priority),
        min_available: u32::from(keeps.min(count)),
        ..WorkloadSpec::default()
    };
    spec.health.ready = None;
    spec.resources.reserve.memory = ByteSize::mib(100 + 170 * u64::from(shape % 5));
    let distinct = |label: &str, max| Constraint::Distinct {
        distinct: label.into(),
        max,
    };
    let wish = |label: &str, test, weight| Affinity {
        label: label.into(),
        weight,
        test: LabelTest::Matches(test),
    };
    match shape / 2 {
        0 => spec.spread = Vec::new(),
        1 => spec.spread = vec!["zone".into()],
        2 => spec.constraints = vec![distinct("host", 1)],
        3 => spec.constraints = vec![distinct("zone", 2)],
        4 => {
            spec.affinity = vec![
                wish("zone", "*1".into(), 60),
                wish("host", "h*2".into(), 150),
            ]
        }
        5 => {
            spec.constraints = vec![Constraint::Label {
                label: "host".into(),
                test: LabelTest::Matches("h*4".into()),
            }];
        }
        6 => {
            spec.bindings.sockets = Some(Sockets {
                listen: vec![9_000 + u16::from(workload % 2)],
                ..Sockets::default()
            });
        }
        _ => {}
    }
    spec
}

#[test]
fn the_choice_is_that_of_a_full_ranking() {
    let step = ((0..9u8, 1..6u8, 1..7u8, 0..18u8), 0..4u8, 0..12u8);
    let steps = (1..8u8, prop::collection::vec(step, 4..24));
    let mut runner = TestRunner::new(ProptestConfig::with_cases(256));
    let tried = runner.run(&steps, |(hosts, steps)| {
        let mut world = World::new(hosts);
        for (what, keeps, then) in steps {
            world.deploy(spec(what, keeps), Kind::Service);
            match then {
                0 => drop(world.silent.insert(what.3 % hosts)),
                1 => world.silent.clear(),
                _ => {}
            }
            for _ in 0..if then == 0 { 8 } else { then % 4 } {
                world.second();
            }
        }
        Ok(())
    });
    tried.unwrap();
    let (asked, some) = COMPARED.get();
    // One that finds nothing to compare shows nothing.
    assert!(
        asked > 2_000 && some > 500,
        "{asked} choices, {some} found somebody"
    );
}
