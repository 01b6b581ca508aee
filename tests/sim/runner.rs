//! The runner of a host: keeps the protocol's rules, and lets replicas fare as their artifact does.
//!
//! Owns the truth of what runs. Answers come later, and a replica that was told to end meanwhile
//! says nothing but that.

use wasmorch_api::Kind;
use wasmorch_host::agent::Event as AgentEvent;
use wasmorch_host::runner::protocol::{FromRunner, Launch, Outcome, ReplicaKey, ToRunner};

use super::claims;
use super::wire::{Event, Step};
use super::world::{Fate, World};

/// Where the runner has a replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum There {
    Preparing,
    Prepared,
    Starting,
    Running,
    Ending,
}

/// One replica.
#[derive(Debug, Clone)]
pub(crate) struct Run {
    pub(crate) there: There,
    pub(crate) ready: bool,
    pub(crate) revision: wasmorch_api::RevisionNumber,
    /// It ends by itself when no leader hears its host, and it must not run twice.
    pub(crate) stop_after: Option<u64>,
    pub(crate) once: bool,
    /// Its workload's count follows the load.
    pub(crate) follows: bool,
    /// It listens there from its start to its end.
    pub(crate) ports: Vec<u16>,
    kind: Kind,
    pub(crate) fate: Fate,
    /// Its answers are counted.
    judged: bool,
    pub(crate) asked: super::answers::Asked,
}

impl World {
    pub(crate) fn runner_told(&mut self, at: usize, message: ToRunner) {
        match message {
            ToRunner::Prepare { replica, launch } => self.runner_prepares(at, replica, &launch),
            ToRunner::Start { replica } => {
                let step = if self.rng.per_mille(self.weather.flaky) {
                    Step::Rejected("no room")
                } else {
                    Step::Started
                };
                if self.runner_moves(at, &replica, There::Prepared, There::Starting) {
                    self.law_of_one(at, &replica);
                    let wait = self.work(at, 10, 200);
                    self.runner_later(at, &replica, wait, step);
                }
            }
            ToRunner::Drain {
                replica,
                deadline_ms,
            } => {
                let up = self.hosts[at].up.as_ref();
                let run = up.and_then(|up| up.runner.get(&replica));
                let waits = |run: &Run| matches!(run.there, There::Preparing | There::Prepared);
                // What has not started has next to nothing in hand.
                let wait = if run.is_some_and(waits) {
                    5
                } else {
                    self.rng.between(0, deadline_ms.min(3_000))
                };
                self.runner_ends(at, &replica, wait);
            }
            ToRunner::Stop { replica } => self.runner_ends(at, &replica, 5),
            _ => {}
        }
    }

    fn runner_prepares(&mut self, at: usize, replica: ReplicaKey, launch: &Launch) {
        self.law_of_a_start(at, &replica, launch);
        self.data_written(at, &replica, launch);
        let fate = self
            .fates
            .get(&launch.revision.artifact)
            .copied()
            .unwrap_or(Fate::Good);
        let run = Run {
            there: There::Preparing,
            ready: false,
            revision: launch.revision.number,
            stop_after: launch
                .revision
                .spec
                .disconnect
                .stop_after
                .map(|after| after.0.as_millis() as u64),
            once: launch.revision.spec.runs_once(),
            follows: launch.revision.spec.scale.is_some(),
            ports: claims::ports(&launch.revision.spec).to_vec(),
            kind: launch.revision.kind,
            fate,
            judged: launch.revision.kind == Kind::Http,
            asked: super::answers::Asked::default(),
        };
        let Some(up) = &mut self.hosts[at].up else {
            return;
        };
        up.runner.insert(replica.clone(), run);
        let step = if fate == Fate::Rejected {
            Step::Rejected("not a component")
        } else {
            Step::Prepared
        };
        let wait = self.work(at, 10, 300);
        self.runner_later(at, &replica, wait, step);
    }

    /// How long work takes on this host.
    fn work(&mut self, at: usize, low: u64, high: u64) -> u64 {
        let slowly = if self.hosts[at].slow { 8 } else { 1 };
        self.rng.between(low, high) * slowly
    }

    fn runner_moves(&mut self, at: usize, replica: &ReplicaKey, from: There, to: There) -> bool {
        let up = self.hosts[at].up.as_mut();
        let run = up.and_then(|up| up.runner.get_mut(replica));
        match run.filter(|run| run.there == from) {
            Some(run) => {
                run.there = to;
                true
            }
            None => false,
        }
    }

    fn runner_ends(&mut self, at: usize, replica: &ReplicaKey, wait: u64) {
        if let Some(up) = &mut self.hosts[at].up
            && let Some(run) = up.runner.get_mut(replica)
        {
            run.there = There::Ending;
            run.ready = false;
        }
        self.runner_later(at, replica, wait, Step::Stopped);
        self.law_of_readiness(at);
    }

    pub(crate) fn runner_later(&mut self, at: usize, replica: &ReplicaKey, wait: u64, step: Step) {
        let inc = self.hosts[at].inc;
        let Some(up) = &self.hosts[at].up else {
            return;
        };
        let (runner, replica) = (up.runner_inc, replica.clone());
        self.after(
            wait,
            Event::Runner {
                at,
                inc,
                runner,
                replica,
                step,
            },
        );
    }

    pub(crate) fn runner_steps(
        &mut self,
        at: usize,
        inc: u64,
        runner: u64,
        replica: ReplicaKey,
        step: Step,
    ) {
        if self.hosts[at].inc != inc {
            return;
        }
        let Some(up) = &mut self.hosts[at].up else {
            return;
        };
        if up.runner_inc != runner {
            return;
        }
        let in_use = claims::address_in_use(up, &replica);
        let Some(run) = up.runner.get_mut(&replica) else {
            if step == Step::Stopped {
                // It was told to end one that it does not know.
                self.agent_event(at, AgentEvent::Runner(FromRunner::Stopped { replica }));
            }
            return;
        };
        let fits = match step {
            Step::Prepared => run.there == There::Preparing,
            Step::Rejected(_) => matches!(run.there, There::Preparing | There::Starting),
            Step::Started => run.there == There::Starting,
            Step::Ready | Step::Unready | Step::Answers | Step::Failed(_) | Step::Completed => {
                run.there == There::Running
            }
            Step::Stopped => run.there == There::Ending,
        };
        if !fits {
            return;
        }
        let said = match step {
            Step::Answers => return self.runner_answers(at, replica),
            Step::Prepared => {
                run.there = There::Prepared;
                FromRunner::Prepared {
                    replica,
                    listens: true,
                }
            }
            Step::Started => {
                run.there = There::Running;
                let (kind, fate) = (run.kind, run.fate);
                if in_use {
                    self.runner_later(at, &replica, 5, Step::Failed("address in use"));
                } else {
                    self.runner_lets_run(at, &replica, kind, fate);
                }
                FromRunner::Started { replica }
            }
            Step::Ready | Step::Unready => {
                let ready = step == Step::Ready;
                run.ready = ready;
                let judged = run.judged;
                if ready {
                    let one = (replica.workload.clone(), run.revision);
                    self.laws.once_ready.insert(one);
                }
                if ready && judged {
                    // Within the time that the planner gives them. Where nothing else goes wrong, late in it: who
                    // does not wait for them is seen.
                    let late = if self.weather.calm { 800 } else { 0 };
                    let soon = self.rng.between(10, 1_000) + late;
                    self.runner_later(at, &replica, soon, Step::Answers);
                }
                let reason = (!ready).then(|| "status 500".to_owned());
                FromRunner::Health {
                    replica,
                    ready,
                    reason,
                }
            }
            Step::Rejected(reason) => {
                up.runner.remove(&replica);
                let reason = reason.to_owned();
                FromRunner::Rejected { replica, reason }
            }
            Step::Failed(reason) => {
                up.runner.remove(&replica);
                let outcome = Outcome::Failed {
                    exit_code: Some(1),
                    reason: reason.to_owned(),
                };
                FromRunner::Ended { replica, outcome }
            }
            Step::Completed => {
                up.runner.remove(&replica);
                self.laws.runs.completed(&replica);
                let outcome = Outcome::Completed { exit_code: 0 };
                FromRunner::Ended { replica, outcome }
            }
            Step::Stopped => {
                up.runner.remove(&replica);
                FromRunner::Stopped { replica }
            }
        };
        self.law_of_readiness(at);
        self.agent_event(at, AgentEvent::Runner(said));
    }

    /// What becomes of a replica that has just been started.
    fn runner_lets_run(&mut self, at: usize, replica: &ReplicaKey, kind: Kind, fate: Fate) {
        let flaky = self.rng.per_mille(self.weather.flaky);
        let soon = self.work(at, 20, 800);
        if kind.ends() {
            let fails = flaky || fate == Fate::Crashes;
            let step = if fails {
                Step::Failed("exit code 1")
            } else {
                Step::Completed
            };
            let wait = self.work(at, 100, 3_000);
            self.runner_later(at, replica, wait, step);
            return;
        }
        match fate {
            Fate::NeverReady => self.runner_later(at, replica, soon, Step::Unready),
            Fate::Crashes => {
                if self.rng.one_in(2) {
                    self.runner_later(at, replica, 10, Step::Ready);
                }
                self.runner_later(at, replica, soon + 20, Step::Failed("unreachable"));
            }
            Fate::Good | Fate::Errs | Fate::Rejected => {
                self.runner_later(at, replica, soon, Step::Ready);
                if flaky {
                    let wait = soon + self.rng.between(0, 5_000);
                    self.runner_later(at, replica, wait, Step::Failed("out of memory"));
                }
            }
        }
    }

    /// The runner dies with all that it ran; another takes its place.
    pub(crate) fn runner_crashes(&mut self, at: usize) {
        let Some(up) = &mut self.hosts[at].up else {
            return;
        };
        up.runner.clear();
        up.runner_inc += 1;
        self.hosts[at].law.runner_died();
        let reason = "killed".to_owned();
        self.agent_event(at, AgentEvent::RunnerDied { reason });
    }
}
