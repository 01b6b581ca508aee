//! One replica: its share in each runner, what it was ordered to do, and what the daemon has been told of it.
//!
//! Knows no other replica, and does not choose where it goes.

use wasmorch_api::Kind;

use super::{Moves, RunnerIndex};
use crate::runner::protocol::{FromRunner, Launch, Outcome, ReplicaKey, ToRunner};

/// So many runners may end while they prepare one replica.
const ENDED_PREPARING_MAX: u32 = 2;

/// One replica's part in one runner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Share {
    /// The runner knows nothing of it.
    None,
    Preparing,
    Prepared {
        listens: bool,
    },
    Starting,
    Started,
    /// It has said whether it is ready.
    Known {
        ready: bool,
        reason: Option<String>,
    },
    /// It was told to end.
    Ending,
    /// It has ended, and will not be prepared there again.
    Gone,
}

impl Share {
    /// The runner has it, and has not been told to end it.
    pub(super) fn lives(&self) -> bool {
        !matches!(self, Self::None | Self::Ending | Self::Gone)
    }

    pub(super) fn prepared(&self) -> bool {
        self.lives() && *self != Self::Preparing
    }

    pub(super) fn listens(&self) -> bool {
        self.prepared() && *self != Self::Prepared { listens: false }
    }

    pub(super) fn started(&self) -> bool {
        matches!(self, Self::Started | Self::Known { .. })
    }
}

/// What the daemon asked for last; only forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Order {
    Prepare,
    Start,
    Drain { deadline_ms: u64 },
    Stop,
}

#[derive(Debug)]
pub(super) struct Replica {
    pub(super) launch: Box<Launch>,
    pub(super) order: Order,
    /// One for each runner.
    pub(super) shares: Vec<Share>,
    /// The only runner that has it; `None`: every runner has a share, or none was chosen yet.
    pub(super) alone_in: Option<RunnerIndex>,
    /// And whether it listens.
    pub(super) prepared_told: Option<bool>,
    pub(super) started_told: bool,
    pub(super) health_told: Option<(bool, Option<String>)>,
    /// Runners that ended while they prepared it, since one has prepared it.
    pub(super) ended_preparing: u32,
    /// How it ended by itself; told once every share is gone.
    pub(super) last: Option<FromRunner>,
}

impl Replica {
    pub(super) fn is_spread(&self) -> bool {
        matches!(self.launch.revision.kind, Kind::Http | Kind::Messages)
    }

    /// The daemon has told it to end.
    pub(super) fn told_to_end(&self) -> bool {
        self.order > Order::Start
    }

    pub(super) fn ends(&self) -> bool {
        self.told_to_end() || self.last.is_some()
    }

    pub(super) fn share(&mut self, runner: RunnerIndex) -> Option<&mut Share> {
        self.shares.get_mut(runner)
    }

    /// A runner ended while it prepared this one: perhaps by its doing.
    pub(super) fn died_preparing(&mut self, replica: &ReplicaKey, reason: &str) {
        self.ended_preparing += 1;
        if self.ended_preparing < ENDED_PREPARING_MAX {
            return;
        }
        let reason = format!(
            "{} runners in a row ended while they prepared it: {reason}",
            self.ended_preparing
        );
        let replica = replica.clone();
        self.end(if self.started_told {
            ended(replica, reason)
        } else {
            FromRunner::Rejected { replica, reason }
        });
    }

    /// It ends by itself, unless it has already.
    pub(super) fn end(&mut self, last: FromRunner) {
        self.last.get_or_insert(last);
    }

    /// Whether it has, or shall have, a share there.
    pub(super) fn belongs(&self, runner: RunnerIndex) -> bool {
        self.is_spread() || self.alone_in == Some(runner)
    }

    /// Tells every share that lives to end.
    pub(super) fn end_shares(&mut self, replica: &ReplicaKey, moves: &mut Moves) {
        let order = self.order;
        for (runner, share) in self.shares.iter_mut().enumerate() {
            if !share.lives() {
                continue;
            }
            *share = Share::Ending;
            let replica = replica.clone();
            let message = match order {
                // Also one that has not started: it may rest, and have in hand what is to wake it.
                Order::Drain { deadline_ms } => ToRunner::Drain {
                    replica,
                    deadline_ms,
                },
                // One that ended elsewhere by itself has failed, and is started anew by policy.
                _ => ToRunner::Stop { replica },
            };
            moves.to.push((runner, message));
        }
    }

    /// Brings shares forward as far as they are ordered to.
    pub(super) fn advance(&mut self, replica: &ReplicaKey, up: &[bool], moves: &mut Moves) {
        let compiled = self.shares.iter().any(Share::prepared);
        let mut preparing = self.shares.contains(&Share::Preparing);
        for runner in 0..self.shares.len() {
            if !self.belongs(runner) || !up.get(runner).is_some_and(|up| *up) {
                continue;
            }
            let starts = self.order == Order::Start;
            let Some(share) = self.shares.get_mut(runner) else {
                continue;
            };
            let replica = replica.clone();
            match share {
                Share::None if compiled || !preparing => {
                    *share = Share::Preparing;
                    preparing = true;
                    let launch = self.launch.clone();
                    moves
                        .to
                        .push((runner, ToRunner::Prepare { replica, launch }));
                }
                Share::Prepared { .. } if starts => {
                    *share = Share::Starting;
                    moves.to.push((runner, ToRunner::Start { replica }));
                }
                _ => {}
            }
        }
    }

    /// Tells the daemon what holds for all shares together.
    pub(super) fn tell(&mut self, replica: &ReplicaKey, up: &[bool], said: &mut Vec<FromRunner>) {
        let counts = |runner: usize| self.belongs(runner) && up.get(runner).is_some_and(|up| *up);
        let all = |has: fn(&Share) -> bool| {
            let mut mine = (0..self.shares.len())
                .filter(|runner| counts(*runner))
                .filter_map(|runner| self.shares.get(runner))
                .peekable();
            mine.peek().is_some() && mine.all(has)
        };
        let (prepared, started) = (all(Share::prepared), all(Share::started));
        let replica = || replica.clone();
        // One is enough: what comes goes to whoever listens.
        let listens = self.shares.iter().any(Share::listens);
        let news = match self.prepared_told {
            None => prepared,
            // Nobody asks any more once it is told to start or to end.
            Some(told) => told != listens && self.order == Order::Prepare,
        };
        if news {
            self.prepared_told = Some(listens);
            let replica = replica();
            said.push(FromRunner::Prepared { replica, listens });
        }
        if started && !self.started_told {
            self.started_told = true;
            said.push(FromRunner::Started { replica: replica() });
        }
        if !self.started_told {
            return;
        }
        let health = self.health();
        if let Some((ready, reason)) = &health
            && health != self.health_told
        {
            said.push(FromRunner::Health {
                replica: replica(),
                ready: *ready,
                reason: reason.clone(),
            });
            self.health_told = health;
        }
    }

    /// Ready is who is ready in every runner; `None` while that is not known. A share that catches
    /// up counts once it has said something.
    pub(super) fn health(&self) -> Option<(bool, Option<String>)> {
        let known = self.shares.iter().filter_map(|share| match share {
            Share::Known { ready, reason } => Some((*ready, reason)),
            _ => None,
        });
        if let Some((_, reason)) = known.clone().find(|(ready, _)| !ready) {
            return Some((false, reason.clone()));
        }
        let told_ready = matches!(self.health_told, Some((true, _)));
        let waits = |share: &Share| *share == Share::Started;
        match known.count() {
            0 if told_ready => Some((false, Some("its runner ended".into()))),
            0 => None,
            _ if !told_ready && self.shares.iter().any(waits) => None,
            _ => Some((true, None)),
        }
    }
}

pub(super) fn ended(replica: ReplicaKey, reason: String) -> FromRunner {
    FromRunner::Ended {
        replica,
        outcome: Outcome::Failed {
            exit_code: None,
            reason,
        },
    }
}
