//! Keeps one runner: passes messages both ways without waiting, finds out when it is stuck, and
//! starts another when it ends.
//!
//! Owns the outbox. The daemon never waits for a runner to read; a runner that never reads is
//! found by its pongs. The outbox is bounded by what it carries: a few messages a replica, and
//! tables and certificates, of which a newer full set replaces what waits.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use crate::runner::protocol::{FromRunner, ToRunner};
use crate::runner::{RunnerError, RunnerHandle};

/// A runner is asked for a sign of life that often.
const PING_EVERY: Duration = Duration::from_millis(250);
/// So many pings in a row without an answer, and it counts as stuck: a second. Counted in pings
/// and not in time, so that a stall of the whole machine, this daemon included, is not held
/// against it.
const MISSED_MAX: u32 = 4;
/// The same for the first answer: on a machine that is short of processors a start takes seconds, and to end it
/// then only makes them shorter.
const FIRST_MISSED_MAX: u32 = 40;
/// Before a runner that ended is started again: from the first to the last.
const RESPAWN: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(10));
/// A runner that lived so long ended by an accident: the next is started without a wait.
const LIVED: Duration = Duration::from_secs(10);
/// For a runner to end after its channel was closed.
const END: Duration = Duration::from_secs(5);

/// What comes from a runner.
#[derive(Debug)]
pub(super) enum Said {
    /// It said this.
    Message(FromRunner),
    /// It ended, with everything that it ran.
    Died(String),
    /// Another one is there; it knows nothing yet.
    Back,
}

enum Slot {
    Up(RunnerHandle),
    /// Its channel is closed; why, comes here.
    Ending(JoinHandle<Result<(), RunnerError>>),
    Down {
        again_at: Instant,
    },
}

/// See the module's head.
pub(super) struct Keeper {
    /// For the log.
    number: usize,
    slot: Slot,
    outbox: VecDeque<ToRunner>,
    delay: Duration,
    started_at: Instant,
    pings: Pings,
}

/// Asking for signs of life.
struct Pings {
    next_at: Instant,
    asked: u64,
    answered: u64,
    missed: u32,
}

impl Pings {
    fn new() -> Self {
        Self {
            next_at: Instant::now(),
            asked: 0,
            answered: 0,
            missed: 0,
        }
    }
}

impl Keeper {
    pub(super) fn new(number: usize, runner: RunnerHandle) -> Self {
        Self {
            number,
            slot: Slot::Up(runner),
            outbox: VecDeque::new(),
            delay: RESPAWN.0,
            started_at: Instant::now(),
            pings: Pings::new(),
        }
    }

    /// Sends as soon as the runner reads.
    pub(super) fn send(&mut self, message: ToRunner) {
        // Whoever takes the place of a runner that is gone is given all of these anyway, and it may
        // not come for hours.
        let given_anew = matches!(
            message,
            ToRunner::Tables { .. }
                | ToRunner::Routes { .. }
                | ToRunner::Endpoints { .. }
                | ToRunner::Certificates { .. }
        );
        if given_anew && !self.is_up() {
            return;
        }
        self.drop_older(&message);
        self.outbox.push_back(message);
    }

    /// Sends before everything that waits.
    pub(super) fn send_first(&mut self, message: ToRunner) {
        self.drop_older(&message);
        self.outbox.push_front(message);
    }

    /// A full set is coming: what waits of its kind is older. Of tables deletions too: the set's
    /// `as_of` tells them.
    fn drop_older(&mut self, coming: &ToRunner) {
        let (tables, certificates) = (
            matches!(coming, ToRunner::Tables { .. }),
            matches!(coming, ToRunner::Certificates { .. }),
        );
        if !tables && !certificates {
            return;
        }
        self.outbox.retain(|waiting| match waiting {
            ToRunner::Tables { .. } | ToRunner::Routes { .. } | ToRunner::Endpoints { .. } => {
                !tables
            }
            ToRunner::Certificates { .. } => !certificates,
            _ => true,
        });
    }

    /// Asks what it uses, unless an earlier question still waits.
    pub(super) fn ask(&mut self) {
        let waits = |message: &ToRunner| matches!(message, ToRunner::Usage);
        if self.is_up() && !self.outbox.iter().any(waits) {
            self.send(ToRunner::Usage);
        }
    }

    fn is_up(&self) -> bool {
        matches!(self.slot, Slot::Up(_))
    }

    /// Whether the runner is there and has answered lately.
    pub(super) fn answers(&self) -> bool {
        self.is_up() && self.pings.missed < MISSED_MAX
    }

    fn ping(&mut self) {
        let pings = &mut self.pings;
        pings.next_at = Instant::now() + PING_EVERY;
        if pings.answered == pings.asked {
            pings.missed = 0;
            pings.asked += 1;
            let ping = ToRunner::Ping(pings.asked);
            self.outbox.push_back(ping);
            return;
        }
        pings.missed += 1;
        let most = if pings.answered == 0 {
            FIRST_MISSED_MAX
        } else {
            MISSED_MAX
        };
        if pings.missed == most
            && let Slot::Up(runner) = &self.slot
        {
            tracing::error!(
                runner = self.number,
                pid = runner.pid(),
                "the runner does not answer: it is ended"
            );
            runner.kill();
        }
    }

    /// The next thing from the runner. Safe to cancel.
    pub(super) async fn next(
        &mut self,
        spawn: impl Fn() -> Result<RunnerHandle, RunnerError>,
    ) -> Said {
        loop {
            match &mut self.slot {
                Slot::Up(runner) => {
                    // `None`: a ping is due.
                    let said = tokio::select! {
                        permit = runner.to.reserve(), if !self.outbox.is_empty() => match permit {
                            Ok(permit) => {
                                if let Some(next) = self.outbox.pop_front() {
                                    permit.send(next);
                                }
                                continue;
                            }
                            // It reads no more: it is ending.
                            Err(_) => Some(None),
                        },
                        message = runner.from.recv() => Some(message),
                        () = sleep_until(self.pings.next_at) => None,
                    };
                    match said {
                        Some(Some(FromRunner::Pong(number))) => self.pings.answered = number,
                        Some(Some(message)) => return Said::Message(message),
                        Some(None) => self.channel_closed(),
                        None => self.ping(),
                    }
                }
                Slot::Ending(end) => {
                    let reason = match end.await {
                        Ok(Ok(())) => "it ended by itself".to_owned(),
                        Ok(Err(error)) => error.to_string(),
                        Err(error) => error.to_string(),
                    };
                    if self.started_at.elapsed() >= LIVED {
                        self.delay = RESPAWN.0;
                    }
                    self.down();
                    self.outbox.clear();
                    return Said::Died(reason);
                }
                Slot::Down { again_at } => {
                    sleep_until(*again_at).await;
                    match spawn() {
                        Ok(runner) => {
                            self.slot = Slot::Up(runner);
                            self.started_at = Instant::now();
                            self.pings = Pings::new();
                            return Said::Back;
                        }
                        Err(error) => {
                            tracing::error!(%error, "the runner did not start again");
                            self.down();
                        }
                    }
                }
            }
        }
    }

    /// Waits for the next start, each time longer.
    fn down(&mut self) {
        self.slot = Slot::Down {
            again_at: Instant::now() + self.delay,
        };
        self.delay = (self.delay * 2).min(RESPAWN.1);
    }

    /// What the runner has said already, without waiting.
    pub(super) fn try_next(&mut self) -> Option<Said> {
        let Slot::Up(runner) = &mut self.slot else {
            return None;
        };
        loop {
            match runner.from.try_recv().ok()? {
                FromRunner::Pong(number) => self.pings.answered = number,
                message => return Some(Said::Message(message)),
            }
        }
    }

    fn channel_closed(&mut self) {
        let down = Slot::Down {
            again_at: Instant::now(),
        };
        if let Slot::Up(runner) = std::mem::replace(&mut self.slot, down) {
            self.slot = Slot::Ending(tokio::spawn(runner.shutdown(END)));
        }
    }

    /// Ends the runner; what its gateway has in hand may finish until then.
    pub(super) async fn close(self, until: Instant) {
        let within = until.saturating_duration_since(Instant::now());
        let ended = match self.slot {
            Slot::Up(runner) => runner.leave(within, END).await,
            Slot::Ending(end) => end.await.unwrap_or(Ok(())),
            Slot::Down { .. } => Ok(()),
        };
        if let Err(error) = ended {
            tracing::warn!(%error, "the runner did not end well");
        }
    }
}
