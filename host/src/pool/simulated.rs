//! Shares under random orders, deaths and answers: runners that keep their protocol, and a daemon
//! that must see one runner that keeps it too.

mod cases;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use proptest::prelude::*;
use wasmorch_api::{Digest, Kind, Revision, RevisionNumber, Timestamp, WorkloadKey, WorkloadSpec};

use super::shares::{Moves, RunnerIndex, Shares};
use crate::runner::protocol::{FromRunner, Launch, Outcome, ReplicaKey, ToRunner};

const RUNNERS: usize = 3;

fn key(number: u64) -> ReplicaKey {
    let id = format!("{number}-1-1").parse().unwrap();
    ReplicaKey::new(
        WorkloadKey::new("shop".parse().unwrap(), "web".parse().unwrap()),
        id,
    )
}

fn prepare(number: u64, kind: Kind) -> ToRunner {
    let revision = Revision {
        namespace: "shop".parse().unwrap(),
        name: "web".parse().unwrap(),
        number: RevisionNumber(1),
        kind,
        artifact: Digest::of(b""),
        features: Vec::new(),
        spec: WorkloadSpec::default(),
        at: Timestamp(0),
        by: String::new(),
        changes: Vec::new(),
    };
    let launch = Launch {
        revision: Arc::new(revision),
        artifact_path: "x".into(),
        args: None,
        row: None,
    };
    ToRunner::Prepare {
        replica: key(number),
        launch: Box::new(launch),
    }
}

/// What one simulated runner has of one replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Preparing,
    Prepared,
    Starting,
    Running,
    Ending { started: bool },
}

/// Runners as the protocol has them.
#[derive(Debug, Default)]
struct Runner {
    down: bool,
    inbox: VecDeque<ToRunner>,
    replicas: BTreeMap<ReplicaKey, Stage>,
    /// Keys that it has had: none may come twice.
    had: BTreeSet<ReplicaKey>,
}

impl Runner {
    /// Reads one message; its answer, when that comes at once.
    fn read(&mut self) -> Option<FromRunner> {
        match self.inbox.pop_front()? {
            ToRunner::Prepare { replica, .. } => {
                assert!(self.had.insert(replica.clone()), "{replica} comes twice");
                self.replicas.insert(replica, Stage::Preparing);
                None
            }
            ToRunner::Start { replica } => {
                if let Some(stage) = self.replicas.get_mut(&replica) {
                    assert_eq!(*stage, Stage::Prepared, "started before it was prepared");
                    *stage = Stage::Starting;
                }
                None
            }
            ToRunner::Drain { replica, .. } | ToRunner::Stop { replica } => {
                match self.replicas.get_mut(&replica) {
                    Some(stage) => {
                        let started = matches!(stage, Stage::Starting | Stage::Running);
                        *stage = Stage::Ending { started };
                        None
                    }
                    None => Some(FromRunner::Stopped { replica }),
                }
            }
            _ => None,
        }
    }

    /// One replica goes on; `bad`: it fails.
    fn go_on(&mut self, choice: usize, bad: bool) -> Vec<FromRunner> {
        let count = self.replicas.len().max(1);
        let Some((replica, stage)) = self.replicas.iter_mut().nth(choice % count) else {
            return Vec::new();
        };
        let (replica, reason) = (replica.clone(), "it is bad".to_owned());
        let ended = |replica| FromRunner::Ended {
            replica,
            outcome: Outcome::Completed { exit_code: 0 },
        };
        match (*stage, bad) {
            (Stage::Preparing, false) => {
                *stage = Stage::Prepared;
                vec![FromRunner::Prepared {
                    replica,
                    listens: true,
                }]
            }
            (Stage::Preparing, true) => {
                self.replicas.remove(&replica);
                vec![FromRunner::Rejected { replica, reason }]
            }
            (Stage::Prepared, _) => Vec::new(),
            (Stage::Starting, _) => {
                *stage = Stage::Running;
                vec![FromRunner::Started { replica }]
            }
            (Stage::Running, false) => vec![FromRunner::Health {
                replica,
                ready: true,
                reason: None,
            }],
            (Stage::Running, true) => {
                self.replicas.remove(&replica);
                vec![ended(replica)]
            }
            (Stage::Ending { .. }, false) => {
                self.replicas.remove(&replica);
                vec![FromRunner::Stopped { replica }]
            }
            // It ended by itself just before it was told to.
            (Stage::Ending { started }, true) => {
                self.replicas.remove(&replica);
                let last = if started {
                    ended(replica.clone())
                } else {
                    let replica = replica.clone();
                    FromRunner::Rejected { replica, reason }
                };
                vec![last, FromRunner::Stopped { replica }]
            }
        }
    }
}

/// What the daemon knows of one replica.
#[derive(Debug, Default)]
struct Known {
    prepared: bool,
    start_sent: bool,
    started: bool,
    end_sent: bool,
    /// `Ended`, `Rejected`, `Stopped`, so many of each.
    ended: u32,
    rejected: u32,
    stopped: u32,
}

struct World {
    shares: Shares,
    runners: Vec<Runner>,
    known: BTreeMap<ReplicaKey, Known>,
}

impl World {
    fn new() -> Self {
        Self {
            shares: Shares::new(RUNNERS, 1..10),
            runners: std::iter::repeat_with(Runner::default)
                .take(RUNNERS)
                .collect(),
            known: BTreeMap::new(),
        }
    }

    fn carry_out(&mut self, moves: Moves) {
        for (runner, message) in moves.to {
            assert!(!self.runners[runner].down, "a message to who is gone");
            self.runners[runner].inbox.push_back(message);
        }
        for message in moves.said {
            self.hear(message);
        }
    }

    /// Checks what the daemon is told, and orders the start as the agent does.
    fn hear(&mut self, message: FromRunner) {
        let over = |known: &Known| known.ended + known.rejected > 0 || known.stopped > 0;
        match message {
            FromRunner::Prepared { replica, .. } => {
                let known = self.known.get_mut(&replica).unwrap();
                assert!(!known.prepared && !over(known), "{known:?}");
                (known.prepared, known.start_sent) = (true, !known.end_sent);
                if known.start_sent {
                    let moves = self.shares.order(ToRunner::Start { replica });
                    self.carry_out(moves);
                }
            }
            FromRunner::Started { replica } => {
                let known = self.known.get_mut(&replica).unwrap();
                assert!(
                    known.start_sent && !known.started && !over(known),
                    "{known:?}"
                );
                known.started = true;
            }
            FromRunner::Health { replica, .. } => {
                let known = &self.known[&replica];
                assert!(known.started && !over(known), "{known:?}");
            }
            FromRunner::Rejected { replica, .. } => {
                let known = self.known.get_mut(&replica).unwrap();
                assert!(!known.started && !over(known), "{known:?}");
                known.rejected += 1;
            }
            FromRunner::Ended { replica, .. } => {
                let known = self.known.get_mut(&replica).unwrap();
                assert!(known.start_sent && !over(known), "{known:?}");
                known.ended += 1;
            }
            FromRunner::Stopped { replica } => {
                let known = self.known.get_mut(&replica).unwrap();
                assert!(known.end_sent, "{known:?}");
                known.stopped += 1;
            }
            _ => {}
        }
    }

    fn order(&mut self, message: ToRunner) {
        let moves = self.shares.order(message);
        self.carry_out(moves);
    }

    fn end(&mut self, number: u64, drain: bool) {
        let replica = key(number);
        let Some(known) = self.known.get_mut(&replica) else {
            return;
        };
        known.end_sent = true;
        self.order(if drain {
            ToRunner::Drain {
                replica,
                deadline_ms: 1,
            }
        } else {
            ToRunner::Stop { replica }
        });
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Prepare(number, kind) => {
                let known = self.known.len();
                self.known.entry(key(number)).or_default();
                if self.known.len() > known {
                    self.order(prepare(number, kind));
                }
            }
            Step::End(number, drain) => self.end(number, drain),
            Step::Read(runner) => self.read(runner),
            Step::GoOn(runner, choice, bad) => self.go_on(runner, choice, bad),
            Step::Die(runner) => self.die(runner),
            Step::Back(runner) => self.back(runner),
        }
    }

    fn read(&mut self, runner: RunnerIndex) {
        if let Some(message) = self.runners[runner].read() {
            let moves = self.shares.said(runner, message);
            self.carry_out(moves);
        }
    }

    fn go_on(&mut self, runner: RunnerIndex, choice: usize, bad: bool) {
        for message in self.runners[runner].go_on(choice, bad) {
            let moves = self.shares.said(runner, message);
            self.carry_out(moves);
        }
    }

    fn die(&mut self, runner: RunnerIndex) {
        if !self.runners[runner].down {
            self.runners[runner] = Runner {
                down: true,
                ..Runner::default()
            };
            let moves = self.shares.died(runner, "killed");
            self.carry_out(moves);
        }
    }

    fn back(&mut self, runner: RunnerIndex) {
        if std::mem::replace(&mut self.runners[runner].down, false) {
            let moves = self.shares.back(runner);
            self.carry_out(moves);
        }
    }

    /// Every runner is there and does all that it is told.
    fn settle(&mut self) {
        (0..RUNNERS).for_each(|runner| self.back(runner));
        for round in 0..200 {
            for runner in 0..RUNNERS {
                while !self.runners[runner].inbox.is_empty() {
                    self.read(runner);
                }
                self.go_on(runner, round, false);
            }
        }
    }
}

#[derive(Debug, Clone)]
enum Step {
    Prepare(u64, Kind),
    End(u64, bool),
    Read(RunnerIndex),
    GoOn(RunnerIndex, usize, bool),
    Die(RunnerIndex),
    Back(RunnerIndex),
}

fn step() -> impl Strategy<Value = Step> {
    let kind = prop_oneof![Just(Kind::Http), Just(Kind::Service)];
    prop_oneof![
        2 => (0..6_u64, kind).prop_map(|(number, kind)| Step::Prepare(number, kind)),
        1 => (0..6_u64, any::<bool>()).prop_map(|(number, drain)| Step::End(number, drain)),
        8 => (0..RUNNERS).prop_map(Step::Read),
        8 => (0..RUNNERS, 0..6_usize, prop::bool::weighted(0.1))
            .prop_map(|(runner, choice, bad)| Step::GoOn(runner, choice, bad)),
        1 => (0..RUNNERS).prop_map(Step::Die),
        2 => (0..RUNNERS).prop_map(Step::Back),
    ]
}

proptest! {
    #[test]
    fn the_daemon_sees_one_runner(steps in prop::collection::vec(step(), 1..200)) {
        let mut world = World::new();
        steps.iter().for_each(|step| world.step(step));
        world.settle();
        // What was not told to end and has not ended runs; what was, is gone.
        for (replica, known) in &world.known {
            let ended = known.ended + known.rejected;
            prop_assert!(ended <= 1, "{replica}: {known:?}");
            prop_assert_eq!(known.stopped > 0, known.end_sent, "{}: {:?}", replica, known);
            if ended == 0 && !known.end_sent {
                prop_assert!(known.started, "{replica}: {known:?}");
            }
        }
        for runner in 0..RUNNERS {
            prop_assert!(world.shares.caught_up(runner));
        }
        for number in 0..6 {
            world.end(number, false);
        }
        world.settle();
        for runner in &world.runners {
            prop_assert!(runner.replicas.is_empty(), "{:?}", runner.replicas);
        }
    }
}
