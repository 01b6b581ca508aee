//! The agent against a world that answers in any order, late, twice, wrongly, or after a restart.
//!
//! The world keeps its own small books and holds the agent to them: what may be said to a runner
//! about a replica, that no id is made twice, that no state moves back, and that everything comes
//! right in the end.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use proptest::prelude::*;
use wasmorch_api::{Kind, ReplicaState};

use super::tests::{identity, key, revision, set};
use super::*;
use crate::runner::protocol::{FromRunner, Outcome, ToRunner};

const WORKLOADS: [(&str, Kind); 3] = [
    ("web", Kind::Http),
    ("tick", Kind::Service),
    ("sum", Kind::Job),
];

#[derive(Debug, Clone)]
enum Step {
    /// A set with the placements whose bit is set; `renewed` gives them new numbers.
    Set {
        slots: u8,
        renewed: bool,
    },
    Stale,
    /// The answer to one thing that is open, good or bad.
    Answer {
        which: usize,
        good: bool,
    },
    /// The runner says something that nobody asked for.
    Noise {
        which: usize,
        what: u8,
    },
    Pass(u32),
    RunnerDied,
    Restart,
    Reconnect,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => (any::<u8>(), any::<bool>()).prop_map(|(slots, renewed)| Step::Set { slots, renewed }),
        1 => Just(Step::Stale),
        12 => (any::<usize>(), prop::bool::weighted(0.8)).prop_map(|(which, good)| Step::Answer { which, good }),
        2 => (any::<usize>(), any::<u8>()).prop_map(|(which, what)| Step::Noise { which, what }),
        4 => (0..90_000u32).prop_map(Step::Pass),
        1 => Just(Step::RunnerDied),
        1 => Just(Step::Restart),
        1 => Just(Step::Reconnect),
    ];
    prop::collection::vec(step, 0..120)
}

/// Where the runner has a replica.
#[derive(Debug, Clone, Copy, PartialEq)]
enum There {
    Preparing,
    Prepared,
    Starting,
    Running,
    Ending,
}

struct World {
    agent: Agent,
    now: Timestamp,
    sequence: u64,
    next_number: u64,
    numbers: BTreeMap<usize, u64>,
    wanted: BTreeSet<PlacementKey>,
    disk: Option<Held>,
    revisions: BTreeSet<(WorkloadKey, RevisionNumber)>,
    artifacts: BTreeSet<Digest>,
    runner: BTreeMap<ReplicaKey, There>,
    /// Every id ever given to the runner.
    given: BTreeSet<ReplicaKey>,
    told: BTreeMap<ReplicaKey, ReplicaState>,
    status_seq: u64,
}

impl World {
    fn new() -> Self {
        Self {
            agent: Agent::new(identity(), None),
            now: Timestamp(1),
            sequence: 0,
            next_number: 1,
            numbers: BTreeMap::new(),
            wanted: BTreeSet::new(),
            disk: None,
            revisions: BTreeSet::new(),
            artifacts: BTreeSet::new(),
            runner: BTreeMap::new(),
            given: BTreeSet::new(),
            told: BTreeMap::new(),
            status_seq: 0,
        }
    }

    fn event(&mut self, event: Event) {
        let effects = self.agent.handle(event, self.now);
        for effect in effects {
            self.check(effect);
        }
    }

    fn check(&mut self, effect: Effect) {
        match effect {
            Effect::Persist(held) => self.disk = Some(*held),
            Effect::FetchRevision { workload, number } => {
                self.revisions.insert((workload, number));
            }
            Effect::FetchArtifact { digest } => {
                assert!(self.artifacts.insert(digest), "asked twice at once");
            }
            Effect::RemoveData(_) => unreachable!("no set here names a removal"),
            Effect::ToRunner(message) => self.check_message(message),
            Effect::Report(report) => {
                assert!(!report.full);
                assert_eq!(report.status_seq, self.status_seq + 1);
                self.status_seq += 1;
                for status in report.replicas {
                    let key = ReplicaKey::new(status.key(), status.replica);
                    let before = self.told.insert(key.clone(), status.state);
                    assert!(
                        before.is_none_or(|before| before <= status.state),
                        "{key}: {before:?} > {}",
                        status.state
                    );
                    assert!(!status.ready || status.state == ReplicaState::Running);
                }
            }
            Effect::Refused(_) | Effect::Joined(_) | Effect::Ended(_) => {}
        }
    }

    fn check_message(&mut self, message: ToRunner) {
        match message {
            ToRunner::Prepare { replica, .. } => {
                let memory = self.disk.as_ref().and_then(|held| {
                    held.placements
                        .iter()
                        .find(|held| held.key == PlacementKey::of(&replica))
                });
                assert!(
                    memory.is_some_and(|memory| memory.starts >= replica.id.start),
                    "{replica} is not on disk"
                );
                assert!(
                    self.given.insert(replica.clone()),
                    "{replica} is made twice"
                );
                self.runner.insert(replica, There::Preparing);
            }
            ToRunner::Start { replica } => {
                let before = self.runner.insert(replica, There::Starting);
                assert_eq!(before, Some(There::Prepared));
            }
            ToRunner::Drain { replica, .. } => {
                let there = self.runner.get_mut(&replica);
                if let Some(there) = there {
                    assert_ne!(*there, There::Ending);
                    *there = There::Ending;
                }
            }
            ToRunner::Stop { replica } => {
                if let Some(there) = self.runner.get_mut(&replica) {
                    *there = There::Ending;
                }
            }
            other => panic!("the agent has no business to say {other:?}"),
        }
    }

    fn tell(&mut self, slots: u8, renewed: bool) {
        let mut placements = Vec::new();
        self.wanted.clear();
        for slot in 0..6 {
            if slots & (1 << slot) == 0 {
                continue;
            }
            let next = &mut self.next_number;
            let mut fresh = || {
                *next += 1;
                *next
            };
            let (name, _) = WORKLOADS[slot % 3];
            let number = self.numbers.entry(slot).or_insert_with(&mut fresh);
            // A leader gives a number out once; one that comes back is back before it was forgotten.
            let forgotten = self
                .agent
                .state_of(&key(name, slot as u64 + 1, *number))
                .is_none();
            if renewed || forgotten {
                *number = fresh();
            }
            placements.push((name, slot as u64 + 1, *number));
            self.wanted.insert(key(name, slot as u64 + 1, *number));
        }
        self.sequence += 1;
        let set = Box::new(set(2, "l2", &placements));
        self.event(Event::Set {
            set,
            sequence: self.sequence,
        });
    }

    /// Everything that waits for an answer, in a stable order.
    fn answer(&mut self, which: usize, good: bool) -> bool {
        let total = self.revisions.len() + self.artifacts.len() + self.runner.len();
        if total == 0 {
            return false;
        }
        let mut which = which % total;
        if let Some((workload, number)) = self.revisions.iter().nth(which).cloned() {
            self.revisions.remove(&(workload.clone(), number));
            let kind = WORKLOADS
                .iter()
                .find(|(name, _)| *name == workload.name.as_str());
            let event = if good {
                let kind = kind.expect("one of ours").1;
                Event::Revision(Arc::new(revision(workload.name.as_str(), number.0, kind)))
            } else {
                Event::RevisionMissing {
                    workload,
                    number,
                    reason: "away".into(),
                }
            };
            self.event(event);
            return true;
        }
        which -= self.revisions.len();
        if let Some(digest) = self.artifacts.iter().nth(which).cloned() {
            self.artifacts.remove(&digest);
            let event = if good {
                Event::Fetched {
                    digest,
                    path: PathBuf::from("x"),
                }
            } else {
                let retryable = self.sequence.is_multiple_of(2);
                Event::FetchFailed {
                    digest,
                    reason: "broken".into(),
                    retryable,
                }
            };
            self.event(event);
            return true;
        }
        which -= self.artifacts.len();
        let (replica, there) = self
            .runner
            .iter()
            .nth(which)
            .map(|(r, t)| (r.clone(), *t))
            .expect("in range");
        self.runner_answer(replica, there, good)
    }

    fn runner_answer(&mut self, replica: ReplicaKey, there: There, good: bool) -> bool {
        let job = replica.workload.name.as_str() == "sum";
        let failed = Outcome::Failed {
            exit_code: None,
            reason: "trap".into(),
        };
        let (message, next) = match (there, good) {
            (There::Preparing, true) => (
                FromRunner::Prepared {
                    replica: replica.clone(),
                    listens: true,
                },
                Some(There::Prepared),
            ),
            (There::Prepared, _) => return false,
            (There::Starting, true) => (
                FromRunner::Started {
                    replica: replica.clone(),
                },
                Some(There::Running),
            ),
            (There::Preparing | There::Starting, false) => (
                FromRunner::Rejected {
                    replica: replica.clone(),
                    reason: "no".into(),
                },
                None,
            ),
            (There::Running, true) if job => {
                let outcome = Outcome::Completed { exit_code: 0 };
                (
                    FromRunner::Ended {
                        replica: replica.clone(),
                        outcome,
                    },
                    None,
                )
            }
            (There::Running, true) => (
                FromRunner::Health {
                    replica: replica.clone(),
                    ready: true,
                    reason: None,
                },
                Some(there),
            ),
            (There::Running, false) => (
                FromRunner::Ended {
                    replica: replica.clone(),
                    outcome: failed,
                },
                None,
            ),
            (There::Ending, true) => (
                FromRunner::Stopped {
                    replica: replica.clone(),
                },
                None,
            ),
            // `Ended` crossed with `Drain`.
            (There::Ending, false) => (
                FromRunner::Ended {
                    replica: replica.clone(),
                    outcome: failed,
                },
                None,
            ),
        };
        match next {
            Some(next) => self.runner.insert(replica, next),
            None => self.runner.remove(&replica),
        };
        self.event(Event::Runner(message));
        true
    }

    /// Late or double answers about ids that were given out and are gone.
    fn noise(&mut self, which: usize, what: u8) {
        let gone: Vec<_> = self
            .given
            .iter()
            .filter(|id| !self.runner.contains_key(id))
            .cloned()
            .collect();
        let Some(replica) = gone.get(which % gone.len().max(1)).cloned() else {
            return;
        };
        let message = match what % 5 {
            0 => FromRunner::Prepared {
                replica,
                listens: true,
            },
            1 => FromRunner::Started { replica },
            2 => FromRunner::Health {
                replica,
                ready: true,
                reason: None,
            },
            3 => FromRunner::Stopped { replica },
            _ => FromRunner::Ended {
                replica,
                outcome: Outcome::Completed { exit_code: 0 },
            },
        };
        self.event(Event::Runner(message));
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Set { slots, renewed } => self.tell(slots, renewed),
            Step::Stale => {
                let set = Box::new(set(1, "l1", &[]));
                self.event(Event::Set {
                    set,
                    sequence: self.sequence + 1000,
                });
                // Before the first set of term 2 it is no stale one, and holds nothing.
            }
            Step::Answer { which, good } => {
                self.answer(which, good);
            }
            Step::Noise { which, what } => self.noise(which, what),
            Step::Pass(ms) => {
                self.now = Timestamp(self.now.0 + u64::from(ms));
                self.event(Event::Tick);
            }
            Step::RunnerDied => {
                self.runner.clear();
                self.event(Event::RunnerDied {
                    reason: "killed".into(),
                });
            }
            Step::Restart => {
                self.runner.clear();
                self.revisions.clear();
                self.artifacts.clear();
                self.status_seq = 0;
                self.agent = Agent::new(identity(), self.disk.clone());
                self.event(Event::Tick);
            }
            Step::Reconnect => {
                self.event(Event::Connected {
                    cluster: identity().cluster.expect("set"),
                    term: Term(2),
                });
            }
        }
    }

    /// Good answers only, until nothing moves any more.
    fn settle(&mut self) {
        for _ in 0..10_000 {
            while let Some(open) = self.open() {
                self.answer(open, true);
            }
            match self.agent.wake_at() {
                Some(at) => {
                    self.now = self.now.max(at);
                    self.event(Event::Tick);
                }
                None => return,
            }
        }
        panic!("it never comes to rest");
    }

    /// Something open whose good answer changes something.
    fn open(&self) -> Option<usize> {
        let fetches = self.revisions.len() + self.artifacts.len();
        if fetches > 0 {
            return Some(0);
        }
        let job = |replica: &ReplicaKey| replica.workload.name.as_str() == "sum";
        self.runner.iter().position(|(replica, there)| match there {
            There::Running => job(replica),
            There::Prepared => false,
            _ => true,
        })
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn every_order_of_events_is_survived_and_comes_right(steps in steps()) {
        let mut world = World::new();
        for step in steps {
            world.step(step);
        }
        world.settle();
        prop_assert!(world.agent.settled());
        let full = world.agent.status_page(None).expect("in a cluster");
        let known: BTreeSet<_> =
            full.replicas.iter().map(|status| PlacementKey::of(&ReplicaKey::new(status.key(), status.replica))).collect();
        if world.sequence > 0 {
            prop_assert_eq!(&known, &world.wanted);
        }
        for wanted in &world.wanted {
            let last = full.replicas.iter().rfind(|status| {
                PlacementKey::of(&ReplicaKey::new(status.key(), status.replica)) == *wanted
            }).expect("known");
            let fine = match last.state {
                ReplicaState::Running => world.runner.get(&ReplicaKey::new(last.key(), last.replica)) == Some(&There::Running),
                ReplicaState::Completed => last.workload.as_str() == "sum",
                ReplicaState::Failed | ReplicaState::Rejected => last.given_up,
                _ => false,
            };
            prop_assert!(fine, "{:?}", last);
        }
        // Nothing runs that is not wanted.
        for replica in world.runner.keys() {
            prop_assert!(world.wanted.contains(&PlacementKey::of(replica)), "{}", replica);
        }
    }
}
