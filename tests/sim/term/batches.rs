//! Batches of a leader on their way to the store, one after the other, and what their answers mean.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use wasmorch_planner::{Cluster, Plan, Write};

use super::super::bent::Bent;
use super::super::client::UserCall;
use super::super::controller::{BATCH_TIMEOUT, Phase, Purpose};
use super::super::law::Law;
use super::super::wire::{Answer, Op, Wake};
use super::World;

const TRY_AGAIN: u64 = 100;
const TRIES: u32 = 3;

/// What waits for the batch that is on its way.
#[derive(Debug)]
pub(super) enum InHand {
    Plan(Plan),
    Call(UserCall, serde_json::Value),
}

/// Batches on their way, one after the other.
#[derive(Debug)]
pub(super) struct Busy {
    now: Arc<Vec<Write>>,
    rest: VecDeque<Vec<Write>>,
    tries: u32,
    what: InHand,
}

impl World {
    pub(super) fn begin_batches(
        &mut self,
        at: usize,
        mut batches: VecDeque<Vec<Write>>,
        what: InHand,
    ) {
        let Some(first) = batches.pop_front() else {
            return;
        };
        leading!(self, at).busy = Some(Busy {
            now: Arc::new(first),
            rest: batches,
            tries: 0,
            what,
        });
        self.send_batch(at);
    }

    pub(crate) fn send_batch(&mut self, at: usize) {
        if !self.lease_holds(at) {
            self.step_down(at, "the lease is over");
            return;
        }
        let leading = leading!(self, at);
        if leading.loss {
            let how = "a leader that has heard what the store lost sends a batch";
            self.broken(Law::FreezesOnLoss, how);
            return;
        }
        if leading.guard.frozen().is_some() {
            self.broken(Law::FrozenIsStill, "a frozen leader sends a batch");
            return;
        }
        let (fence, by) = (
            leading.fence,
            (leading.cluster.term, leading.cluster.leader.clone()),
        );
        let Some(busy) = &mut leading.busy else {
            return;
        };
        busy.tries += 1;
        let writes = busy.now.clone();
        let answer = match &busy.what {
            InHand::Call(call, reply) if call.leaves_no_record() => Some((call.id, reply.clone())),
            _ => None,
        };
        let batch = Op::Batch {
            fence,
            writes,
            answer,
            by,
        };
        self.ask_store(at, Purpose::Batch, batch, BATCH_TIMEOUT);
    }

    pub(crate) fn batch_answered(&mut self, at: usize, answer: &Answer) {
        let (now, instant) = (self.controller_clock(at), self.instant(self.now));
        let leading = leading!(self, at);
        let Some(busy) = &mut leading.busy else {
            return;
        };
        match answer {
            Answer::Stored(last) => {
                leading.guard.stored(*last);
                leading.batches += 1;
                let commit = match busy.what {
                    InHand::Plan(_) => Cluster::commit_planned,
                    InHand::Call(..) => Cluster::commit,
                };
                commit(&mut leading.cluster, busy.now.to_vec(), *last, now);
                let frozen = leading.guard.frozen().is_some();
                if frozen {
                    busy.rest.clear();
                }
                if let Some(next) = busy.rest.pop_front() {
                    busy.now = Arc::new(next);
                    busy.tries = 0;
                    self.send_batch(at);
                    return;
                }
                let Some(done) = leading.busy.take() else {
                    return;
                };
                match done.what {
                    InHand::Plan(plan) => {
                        if !frozen {
                            leading.cluster.carried_out();
                        }
                        leading.cluster.remember(&plan.events, now);
                        leading.pace.done(instant, Duration::ZERO, true);
                    }
                    InHand::Call(call, reply) => {
                        leading.answers.insert(call.id, reply.clone());
                        leading.pace.urgent(instant);
                        if self.bent != Some(Bent::AckBeforeStored) {
                            self.answer_user(at, &call, Ok(reply));
                        }
                    }
                }
                self.loop_turns(at);
            }
            Answer::NotReady if busy.tries < TRIES => {
                self.wake_controller(at, self.now + TRY_AGAIN, Wake::Again);
            }
            Answer::NotReady => {
                leading.busy = None;
                leading.pace.hold(instant);
                self.loop_turns(at);
            }
            Answer::Timeout if self.bent == Some(Bent::UnknownTakenAsNotStored) => {
                leading.busy = None;
                leading.pace.hold(instant);
                self.loop_turns(at);
            }
            Answer::Fenced => self.step_down(at, "the store refused this term"),
            _ => self.step_down(at, "the outcome of a batch is unknown"),
        }
    }
}
