//! Keeps a runner: passes messages both ways without waiting, and starts another when it ends.
//!
//! Owns the outbox. The daemon never waits for a runner to read; a runner that never reads is
//! found by its pongs. The outbox is bounded by what it carries: a few messages a replica, and
//! tables, of which a newer full set replaces what waits.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use super::may_wait;
use crate::runner::protocol::{FromRunner, ToRunner};
use crate::runner::{RunnerError, RunnerHandle};

/// A runner that has not answered a ping for so long counts as stuck.
const STUCK: Duration = Duration::from_secs(5);
/// Before a runner that ended is started again, and between tries: from the first to the last.
const RESPAWN: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));
/// For a runner to end after its channel was closed.
const END: Duration = Duration::from_secs(5);

/// Starts a runner.
pub(crate) type Spawn = Box<dyn Fn() -> Result<RunnerHandle, RunnerError> + Send + Sync>;

/// What comes from a runner.
#[derive(Debug)]
pub(crate) enum Said {
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
pub(crate) struct Keeper {
    spawn: Spawn,
    slot: Slot,
    outbox: VecDeque<ToRunner>,
    delay: Duration,
    asked: u64,
    answered: u64,
    answered_at: Instant,
    warned: bool,
}

impl Keeper {
    /// Starts the first runner.
    ///
    /// # Errors
    ///
    /// When it does not start: then none ever would.
    pub(crate) fn start(spawn: Spawn) -> Result<Self, RunnerError> {
        let slot = Slot::Up(spawn()?);
        Ok(Self {
            spawn,
            slot,
            outbox: VecDeque::new(),
            delay: RESPAWN.0,
            asked: 0,
            answered: 0,
            answered_at: Instant::now(),
            warned: false,
        })
    }

    /// Sends as soon as the runner reads.
    pub(crate) fn send(&mut self, message: ToRunner) {
        if matches!(message, ToRunner::Tables { .. }) {
            self.drop_tables();
        }
        self.outbox.push_back(message);
    }

    /// Sends before everything that waits.
    pub(crate) fn send_first(&mut self, message: ToRunner) {
        self.drop_tables();
        self.outbox.push_front(message);
    }

    /// A full set is coming: what waits of tables is older. Deletions too: its `as_of` tells them.
    fn drop_tables(&mut self) {
        self.outbox.retain(|message| {
            !matches!(
                message,
                ToRunner::Tables { .. } | ToRunner::Routes { .. } | ToRunner::Endpoints { .. }
            )
        });
    }

    /// Asks for usage and for a sign of life, unless earlier questions still wait.
    pub(crate) fn ask(&mut self) {
        let waits = self.outbox.iter().any(may_wait);
        if matches!(self.slot, Slot::Up(_)) && !waits && self.asked == self.answered {
            self.asked += 1;
            self.send(ToRunner::Ping(self.asked));
            self.send(ToRunner::Usage);
        }
        let stuck = !self.answers();
        if stuck && !std::mem::replace(&mut self.warned, stuck) {
            tracing::warn!("the runner does not answer");
        }
        self.warned = stuck;
    }

    /// Whether the runner is there and has answered lately.
    pub(crate) fn answers(&self) -> bool {
        let waiting = self.asked > self.answered;
        matches!(self.slot, Slot::Up(_)) && (!waiting || self.answered_at.elapsed() < STUCK)
    }

    /// The next thing from the runner. Safe to cancel.
    pub(crate) async fn next(&mut self) -> Said {
        loop {
            match &mut self.slot {
                Slot::Up(runner) => {
                    let said = tokio::select! {
                        permit = runner.to.reserve(), if !self.outbox.is_empty() => match permit {
                            Ok(permit) => {
                                if let Some(next) = self.outbox.pop_front() {
                                    permit.send(next);
                                }
                                continue;
                            }
                            // It reads no more: it is ending.
                            Err(_) => None,
                        },
                        message = runner.from.recv() => message,
                    };
                    match said {
                        Some(message) => return self.noted(message),
                        None => self.channel_closed(),
                    }
                }
                Slot::Ending(end) => {
                    let reason = match end.await {
                        Ok(Ok(())) => "it ended by itself".to_owned(),
                        Ok(Err(error)) => error.to_string(),
                        Err(error) => error.to_string(),
                    };
                    self.slot = Slot::Down {
                        again_at: Instant::now() + self.delay,
                    };
                    self.outbox.clear();
                    return Said::Died(reason);
                }
                Slot::Down { again_at } => {
                    sleep_until(*again_at).await;
                    match (self.spawn)() {
                        Ok(runner) => {
                            self.slot = Slot::Up(runner);
                            (self.asked, self.answered) = (0, 0);
                            self.answered_at = Instant::now();
                            return Said::Back;
                        }
                        Err(error) => {
                            tracing::error!(%error, "the runner did not start again");
                            self.delay = (self.delay * 2).min(RESPAWN.1);
                            self.slot = Slot::Down {
                                again_at: Instant::now() + self.delay,
                            };
                        }
                    }
                }
            }
        }
    }

    /// What the runner has said already, without waiting.
    pub(crate) fn try_next(&mut self) -> Option<Said> {
        let Slot::Up(runner) = &mut self.slot else {
            return None;
        };
        let message = runner.from.try_recv().ok()?;
        Some(self.noted(message))
    }

    fn noted(&mut self, message: FromRunner) -> Said {
        if let FromRunner::Pong(number) = message {
            self.answered = number;
            self.answered_at = Instant::now();
            self.delay = RESPAWN.0;
        }
        Said::Message(message)
    }

    fn channel_closed(&mut self) {
        let down = Slot::Down {
            again_at: Instant::now(),
        };
        if let Slot::Up(runner) = std::mem::replace(&mut self.slot, down) {
            self.slot = Slot::Ending(tokio::spawn(runner.shutdown(END)));
        }
    }

    /// Ends the runner.
    pub(crate) async fn close(self) {
        let ended = match self.slot {
            Slot::Up(runner) => runner.shutdown(END).await,
            Slot::Ending(end) => end.await.unwrap_or(Ok(())),
            Slot::Down { .. } => Ok(()),
        };
        if let Err(error) = ended {
            tracing::warn!(%error, "the runner did not end well");
        }
    }
}
