//! Which runner has which share of which replica: what is told to runners, and what of their
//! answers the daemon hears.
//!
//! ```text
//!   order of the daemon:   prepare ──> start ──> drain | stop
//!   share in one runner:   none > preparing > prepared > starting > started > gone
//!   told to the daemon:    Prepared, Started once all that can have; Health of all together;
//!                          Ended | Rejected | Stopped once every share is gone
//! ```
//!
//! Pure, and level-triggered: after every change the replica concerned is looked at as a whole
//! ([`Shares::settle`]), so a runner that comes back catches up by the same rules by which the
//! first ones started.
//!
//! Owns the table of replicas. Rules:
//! - An http or messages replica has a share in every runner; of a service or a job one runner has
//!   all, the one with the fewest of them.
//! - The first share is prepared alone, so that code is compiled once and mapped by the others.
//! - A runner's death takes its shares. What is spread lives on in the others and is prepared
//!   again in the next; what lived there alone is lost, or has not started yet and moves.
//! - Whose preparing has ended several runners is rejected: it would end every other one in turn.
//! - The daemon hears of one replica what it would hear of one runner: see
//!   [`protocol`](crate::runner::protocol).

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;

use wasmorch_api::{Digest, Name};

use crate::runner::protocol::{FromRunner, Outcome, ReplicaKey, ToRunner};

mod replica;

use replica::{Order, Replica, Share, ended};

/// A runner's number in its host, for as long as the host runs: whoever takes the place of one that
/// died takes its number.
pub(crate) type RunnerIndex = usize;

/// What follows from a change.
#[derive(Debug, Default)]
pub(crate) struct Moves {
    /// To runners, in order.
    pub(crate) to: Vec<(RunnerIndex, ToRunner)>,
    /// To the daemon, in order.
    pub(crate) said: Vec<FromRunner>,
}

/// See the module's head.
#[derive(Debug)]
pub(crate) struct Shares {
    up: Vec<bool>,
    replicas: BTreeMap<ReplicaKey, Replica>,
    /// Rows of the ledger that no replica has; the one that was given back last comes last, for a
    /// runner may still be about to count there.
    free_rows: VecDeque<usize>,
}

impl Shares {
    /// Every runner is up and knows nothing. Replicas count in these rows of the ledger.
    pub(crate) fn new(runners: usize, rows: Range<usize>) -> Self {
        Self {
            up: vec![true; runners],
            replicas: BTreeMap::new(),
            free_rows: rows.collect(),
        }
    }

    /// The daemon's orders about one replica. Other messages are for every runner and none of this
    /// module's business.
    pub(crate) fn order(&mut self, message: ToRunner) -> Moves {
        let mut moves = Moves::default();
        let (replica, order) = match message {
            ToRunner::Prepare {
                replica,
                mut launch,
            } => {
                if self.replicas.contains_key(&replica) {
                    tracing::error!(%replica, "prepare of a replica that is here already");
                    return moves;
                }
                launch.row = self.free_rows.pop_front();
                let shares = vec![Share::None; self.up.len()];
                let held = Replica {
                    launch,
                    order: Order::Prepare,
                    shares,
                    alone_in: None,
                    prepared_told: None,
                    started_told: false,
                    health_told: None,
                    ended_preparing: 0,
                    last: None,
                };
                self.replicas.insert(replica.clone(), held);
                self.settle(&replica, &mut moves);
                return moves;
            }
            ToRunner::Start { replica } => (replica, Order::Start),
            ToRunner::Drain {
                replica,
                deadline_ms,
            } => (replica, Order::Drain { deadline_ms }),
            ToRunner::Stop { replica } => (replica, Order::Stop),
            ToRunner::Withdrawn { replica } => {
                let held = self.replicas.get(&replica);
                let shares = held
                    .into_iter()
                    .flat_map(|held| held.shares.iter().enumerate());
                let draining = shares.filter(|(_, share)| **share == Share::Ending);
                for (runner, _) in draining {
                    let replica = replica.clone();
                    moves.to.push((runner, ToRunner::Withdrawn { replica }));
                }
                return moves;
            }
            _ => return moves,
        };
        match self.replicas.get_mut(&replica) {
            Some(held) => {
                if order > held.order {
                    let stops = order == Order::Stop && held.ends();
                    held.order = order;
                    if stops {
                        // Those that drain are to end now.
                        for (runner, share) in held.shares.iter().enumerate() {
                            if *share == Share::Ending {
                                let replica = replica.clone();
                                moves.to.push((runner, ToRunner::Stop { replica }));
                            }
                        }
                    }
                }
                self.settle(&replica, &mut moves);
            }
            None if order > Order::Start => moves.said.push(FromRunner::Stopped { replica }),
            None => tracing::debug!(%replica, "start of an unknown replica"),
        }
        moves
    }

    /// A runner's word about one replica. Other messages change nothing here.
    pub(crate) fn said(&mut self, runner: RunnerIndex, message: FromRunner) -> Moves {
        let mut moves = Moves::default();
        let replica = match &message {
            FromRunner::Prepared { replica, .. }
            | FromRunner::Rejected { replica, .. }
            | FromRunner::Started { replica }
            | FromRunner::Health { replica, .. }
            | FromRunner::Ended { replica, .. }
            | FromRunner::Stopped { replica } => replica.clone(),
            FromRunner::Logs(_)
            | FromRunner::Wake { .. }
            | FromRunner::Compile { .. }
            | FromRunner::Usage(_)
            | FromRunner::Pong(_) => return moves,
        };
        let Some(held) = self.replicas.get_mut(&replica) else {
            // It answers for a replica that it was told to end after that had ended.
            return moves;
        };
        let started_told = held.started_told;
        let Some(share) = held.share(runner) else {
            return moves;
        };
        match message {
            FromRunner::Prepared { listens, .. }
                if matches!(share, Share::Preparing | Share::Prepared { .. }) =>
            {
                *share = Share::Prepared { listens };
                held.ended_preparing = 0;
            }
            FromRunner::Started { .. } if *share == Share::Starting => *share = Share::Started,
            FromRunner::Health { ready, reason, .. } if share.started() => {
                *share = Share::Known { ready, reason };
            }
            FromRunner::Rejected { replica, reason } => {
                *share = Share::Gone;
                held.end(if started_told {
                    ended(replica, reason)
                } else {
                    FromRunner::Rejected { replica, reason }
                });
            }
            FromRunner::Ended { .. } => {
                *share = Share::Gone;
                held.end(message);
            }
            FromRunner::Stopped { .. } => *share = Share::Gone,
            // Said before it heard that it shall end.
            _ => {}
        }
        self.settle(&replica, &mut moves);
        moves
    }

    /// A runner ended, with every share that it had.
    pub(crate) fn died(&mut self, runner: RunnerIndex, reason: &str) -> Moves {
        let mut moves = Moves::default();
        if let Some(up) = self.up.get_mut(runner) {
            *up = false;
        }
        let keys: Vec<_> = self.replicas.keys().cloned().collect();
        for replica in keys {
            let Some(held) = self.replicas.get_mut(&replica) else {
                continue;
            };
            let (spread, ends) = (held.is_spread(), held.ends());
            let Some(share) = held.share(runner) else {
                continue;
            };
            let had = !matches!(share, Share::None | Share::Gone);
            if had && ends {
                *share = Share::Gone;
            } else if had {
                let started = matches!(share, Share::Starting) || share.started();
                let preparing = *share == Share::Preparing;
                *share = Share::None;
                if preparing {
                    held.died_preparing(&replica, reason);
                }
                if !spread {
                    held.alone_in = None;
                    if started {
                        held.end(FromRunner::Ended {
                            replica: replica.clone(),
                            outcome: Outcome::Lost {
                                reason: reason.to_owned(),
                            },
                        });
                    }
                }
            }
            self.settle(&replica, &mut moves);
        }
        moves
    }

    /// A runner is there again and knows nothing.
    pub(crate) fn back(&mut self, runner: RunnerIndex) -> Moves {
        let mut moves = Moves::default();
        if let Some(up) = self.up.get_mut(runner) {
            *up = true;
        }
        let keys: Vec<_> = self.replicas.keys().cloned().collect();
        for replica in keys {
            self.settle(&replica, &mut moves);
        }
        moves
    }

    /// Whether a runner has and serves all that it shall: requests that it accepts find what they
    /// would find in the others.
    pub(crate) fn caught_up(&self, runner: RunnerIndex) -> bool {
        let behind = |held: &Replica| {
            let serves = |share: &Share| matches!(share, Share::Known { ready: true, .. });
            !held.ends()
                && held.is_spread()
                && held.shares.iter().any(serves)
                && !held.shares.get(runner).is_some_and(serves)
        };
        !self.replicas.values().any(behind)
    }

    /// Who has replicas of an artifact.
    pub(crate) fn namespaces_of(&self, artifact: &Digest) -> BTreeSet<Name> {
        let replicas = self.replicas.iter();
        replicas
            .filter(|(_, held)| held.launch.revision.artifact == *artifact)
            .map(|(replica, _)| replica.workload.namespace.clone())
            .collect()
    }

    /// Does what is left to do for one replica.
    fn settle(&mut self, replica: &ReplicaKey, moves: &mut Moves) {
        self.choose(replica);
        let Some(held) = self.replicas.get_mut(replica) else {
            return;
        };
        if held.ends() {
            held.end_shares(replica, moves);
            let left = |share: &Share| !matches!(share, Share::None | Share::Gone);
            if !held.shares.iter().any(left) {
                let told_to_end = held.told_to_end();
                moves.said.extend(held.last.take());
                if told_to_end {
                    moves.said.push(FromRunner::Stopped {
                        replica: replica.clone(),
                    });
                }
                let row = self
                    .replicas
                    .remove(replica)
                    .and_then(|held| held.launch.row);
                self.free_rows.extend(row);
            }
            return;
        }
        held.advance(replica, &self.up, moves);
        held.tell(replica, &self.up, &mut moves.said);
    }

    /// Gives a replica that lives in one runner its runner: the one with the fewest of them.
    fn choose(&mut self, replica: &ReplicaKey) {
        let wants = |held: &Replica| !held.is_spread() && held.alone_in.is_none() && !held.ends();
        if !self.replicas.get(replica).is_some_and(wants) {
            return;
        }
        let mut counts = vec![0_usize; self.up.len()];
        for runner in self.replicas.values().filter_map(|held| held.alone_in) {
            if let Some(count) = counts.get_mut(runner) {
                *count += 1;
            }
        }
        let up = |runner: &RunnerIndex| self.up.get(*runner).is_some_and(|up| *up);
        let least = (0..counts.len())
            .filter(up)
            .min_by_key(|runner| counts.get(*runner).copied());
        if let Some(held) = self.replicas.get_mut(replica) {
            held.alone_in = least;
        }
    }
}
