//! What the runners of a host use, as one runner's answer.
//!
//! Pure. Sums are over the runners that are there; counters of the gateway, and of the answers of a
//! replica, never fall: those of a runner that ended are kept.

use std::collections::BTreeMap;

use wasmorch_api::Answers;
use wasmorch_gateway::Stats;

use super::shares::RunnerIndex;
use crate::runner::protocol::{CodeStats, FromRunner, ReplicaKey, ReplicaUsage, Usage};

/// The answers of one round of questions.
#[derive(Debug)]
pub(crate) struct Usages {
    runners: Vec<Answer>,
    /// How many questions all have answered, and been summed up.
    summed: u64,
    /// Counters of runners that have ended.
    ended: Stats,
    /// What replicas that live on answered in them.
    answered: BTreeMap<ReplicaKey, Answers>,
}

#[derive(Debug, Default)]
struct Answer {
    /// It is there, so its answer is waited for.
    up: bool,
    /// How many questions it has answered: those that were under way together are not mixed up.
    answered: u64,
    usage: Usage,
}

impl Usages {
    /// Every runner is up.
    pub(crate) fn new(runners: usize) -> Self {
        let up = || Answer {
            up: true,
            ..Answer::default()
        };
        Self {
            runners: std::iter::repeat_with(up).take(runners).collect(),
            summed: 0,
            ended: Stats::default(),
            answered: BTreeMap::new(),
        }
    }

    /// Takes one runner's answer; gives that of all once the last has come.
    pub(crate) fn answer(&mut self, runner: RunnerIndex, usage: Usage) -> Option<Usage> {
        let answer = self.runners.get_mut(runner)?;
        (answer.answered, answer.usage) = (answer.answered + 1, usage);
        self.all()
    }

    /// A runner ended; perhaps the others only waited for its answer.
    pub(crate) fn died(&mut self, runner: RunnerIndex) -> Option<Usage> {
        let answer = std::mem::take(self.runners.get_mut(runner)?);
        self.ended.add(&answer.usage.gateway.counters());
        for share in answer.usage.replicas {
            if !share.answers.is_empty() {
                let answered = self.answered.entry(share.replica).or_default();
                *answered = answered.plus(share.answers);
            }
        }
        self.all()
    }

    /// The daemon's last word about a replica: nothing of it is summed any more.
    pub(crate) fn forget(&mut self, said: &FromRunner) {
        if let FromRunner::Ended { replica, .. }
        | FromRunner::Stopped { replica }
        | FromRunner::Rejected { replica, .. } = said
        {
            self.answered.remove(replica);
            // A runner that dies before its next answer would bring it back.
            for answer in &mut self.runners {
                let shares = &mut answer.usage.replicas;
                shares.retain(|share| share.replica != *replica);
            }
        }
    }

    pub(crate) fn back(&mut self, runner: RunnerIndex) {
        if let Some(answer) = self.runners.get_mut(runner) {
            (answer.up, answer.answered) = (true, self.summed);
        }
    }

    fn all(&mut self) -> Option<Usage> {
        let up = self.runners.iter().filter(|answer| answer.up);
        let answered = up.map(|answer| answer.answered).min()?;
        if answered <= self.summed {
            return None;
        }
        self.summed = answered;
        let mut replicas: BTreeMap<ReplicaKey, ReplicaUsage> = BTreeMap::new();
        let mut all = Usage {
            gateway: Box::new(self.ended.clone()),
            table_seq: u64::MAX,
            ..Usage::default()
        };
        for answer in self.runners.iter().filter(|answer| answer.up) {
            all.gateway.add(&answer.usage.gateway);
            all.code = sum_code(all.code, answer.usage.code);
            all.table_seq = all.table_seq.min(answer.usage.table_seq);
            for share in &answer.usage.replicas {
                match replicas.get_mut(&share.replica) {
                    Some(replica) => {
                        replica.memory_bytes += share.memory_bytes;
                        replica.cpu_millis += share.cpu_millis;
                        replica.in_flight += share.in_flight;
                        replica.request_millis += share.request_millis;
                        replica.pending = replica.pending.max(share.pending);
                        replica.answers = replica.answers.plus(share.answers);
                    }
                    None => {
                        replicas.insert(share.replica.clone(), share.clone());
                    }
                }
            }
        }
        for (replica, answered) in &self.answered {
            if let Some(replica) = replicas.get_mut(replica) {
                replica.answers = replica.answers.plus(*answered);
            }
        }
        all.replicas = replicas.into_values().collect();
        Some(all)
    }
}

/// A counter falls when a runner ends: its code is gone, and is loaded again by the next.
fn sum_code(one: CodeStats, other: CodeStats) -> CodeStats {
    CodeStats {
        artifacts: one.artifacts + other.artifacts,
        bytes: one.bytes + other.bytes,
        loads: one.loads + other.loads,
        unloads: one.unloads + other.unloads,
    }
}

#[cfg(test)]
mod tests {
    use wasmorch_api::{Name, WorkloadKey};

    use super::*;

    fn usage(requests: u64, table_seq: u64, memory_bytes: u64) -> Usage {
        let id = "1-1-1".parse().unwrap();
        let replica = ReplicaKey::new(WorkloadKey::new(Name::default(), Name::default()), id);
        Usage {
            replicas: vec![ReplicaUsage {
                replica,
                memory_bytes,
                cpu_millis: 10,
                in_flight: 1,
                request_millis: 500,
                pending: requests,
                answers: Answers {
                    requests: memory_bytes,
                    errors: 1,
                    slow: requests,
                },
            }],
            gateway: Box::new(Stats {
                requests,
                in_flight: 1,
                ..Stats::default()
            }),
            code: CodeStats::default(),
            table_seq,
        }
    }

    #[test]
    fn answers_are_summed_once_all_are_there() {
        let mut usages = Usages::new(2);
        assert_eq!(usages.answer(0, usage(5, 7, 100)), None);
        let all = usages.answer(1, usage(3, 6, 50)).unwrap();
        assert_eq!((all.gateway.requests, all.gateway.in_flight), (8, 2));
        assert_eq!(all.table_seq, 6, "what every runner has applied");
        assert_eq!(all.replicas.len(), 1);
        let replica = &all.replicas[0];
        let summed = (replica.memory_bytes, replica.cpu_millis, replica.in_flight);
        assert_eq!(summed, (150, 20, 2));
        assert_eq!(replica.request_millis, 1_000);
        assert_eq!(replica.pending, 5, "both see the same messages");
        let answers = Answers {
            requests: 150,
            errors: 2,
            slow: 8,
        };
        assert_eq!(replica.answers, answers);
        assert_eq!(usages.answer(1, usage(4, 7, 0)), None, "a new round");
    }

    #[test]
    fn a_runner_that_ended_is_not_waited_for_and_its_counters_stay() {
        let mut usages = Usages::new(2);
        usages.answer(0, usage(5, 7, 100));
        usages.answer(1, usage(3, 6, 50)).unwrap();
        usages.answer(0, usage(6, 8, 100));
        let all = usages.died(1).expect("the other has answered");
        assert_eq!((all.gateway.requests, all.gateway.in_flight), (9, 1));
        assert_eq!(all.table_seq, 8);
        assert_eq!(
            all.replicas[0].answers.requests, 150,
            "what it answered there"
        );
        usages.back(1);
        assert_eq!(usages.answer(0, usage(6, 8, 100)), None);
        let all = usages.answer(1, usage(1, 8, 1)).unwrap();
        assert_eq!(all.gateway.requests, 10);
        assert_eq!(all.replicas[0].answers.requests, 151);
        let replica = all.replicas[0].replica.clone();
        usages.forget(&FromRunner::Stopped { replica });
        usages.answer(0, usage(6, 8, 100));
        let all = usages.answer(1, usage(1, 8, 1)).unwrap();
        assert_eq!(all.replicas[0].answers.requests, 101);
        assert_eq!(usages.died(0), None);
        assert_eq!(usages.died(1), None, "no one is left to answer");
    }
}
