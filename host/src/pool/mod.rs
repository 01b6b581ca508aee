//! The runners of a host, which the driver sees as one.
//!
//! ```text
//!   driver ── ToRunner ──> Pool ──> Shares (pure): whose share is where
//!          <─ Said ───────  |       Usages (pure): sums
//!                           ├─ one Keeper a runner: outbox, pings, respawn ──> runner
//!                           └─ Compiling: what runners ask to be compiled ───> compiler
//!                              (Queue, pure: whose turn it is)
//! ```
//!
//! Owns the runners: how many there are, their start, their end, which of them takes requests. A
//! runner that was started again takes none before it has what the others have, so that nobody
//! finds a workload missing there.

mod books;
mod compiling;
mod keeper;
mod queue;
mod shares;
#[cfg(test)]
mod simulated;
mod usage;

use std::collections::VecDeque;
use std::io;
use std::num::NonZeroUsize;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::{join_all, select_all};
use tokio::time::{Instant, sleep_until};

use crate::runner::protocol::{FromRunner, ToRunner};
use crate::runner::{RunnerError, RunnerHandle};
use books::{Books, Column};
pub(crate) use compiling::Start as StartCompiler;
use compiling::{Compiled, Compiling};
use keeper::Keeper;
use shares::{Moves, RunnerIndex, Shares};
use usage::Usages;

/// A runner that does not catch up takes requests all the same after so long: what is missing may
/// never come (a workload that fails its probe there).
const CATCH_UP_MAX: Duration = Duration::from_secs(1);

/// Starts a runner with its column of the ledger, the first and every one after it.
pub(crate) type Spawn =
    Box<dyn Fn(io::Result<Option<Column>>) -> Result<RunnerHandle, RunnerError> + Send + Sync>;

/// What comes from the runners.
#[derive(Debug)]
pub(crate) enum Said {
    /// All of them together, as one would.
    Message(FromRunner),
    /// One ended; what follows for replicas comes as messages.
    Died(String),
    /// Its successor wants certificates and all tables: see [`Pool::catch_up`].
    Back(RunnerIndex),
}

/// See the module's head.
pub(crate) struct Pool {
    spawn: Spawn,
    books: Option<Books>,
    keepers: Vec<Keeper>,
    /// `None`: runners compile themselves, and never ask.
    compiling: Option<Compiling>,
    shares: Shares,
    usages: Usages,
    said: VecDeque<Said>,
    /// Runners that catch up, and until when they are waited for.
    catching_up: Vec<(RunnerIndex, Instant)>,
}

impl Pool {
    /// Starts the runners.
    ///
    /// # Errors
    ///
    /// When one does not start: then none ever would.
    pub(crate) fn start(
        spawn: Spawn,
        compiler: Option<StartCompiler>,
        runners: NonZeroUsize,
        replicas_max: usize,
    ) -> Result<Self, RunnerError> {
        let runners = runners.get();
        // Those that leave still count while those that follow come.
        let rows = 2 * replicas_max;
        let books = Books::open(runners, rows);
        let mut keepers = Vec::with_capacity(runners);
        for number in 0..runners {
            let mut keeper = Keeper::new(number, spawn(column(books.as_ref(), number))?);
            keeper.send(ToRunner::Open);
            keepers.push(keeper);
        }
        Ok(Self {
            spawn,
            shares: Shares::new(runners, 1..books.as_ref().map_or(1, |_| rows)),
            books,
            keepers,
            compiling: compiler.map(Compiling::new),
            usages: Usages::new(runners),
            said: VecDeque::new(),
            catching_up: Vec::new(),
        })
    }

    /// Sends as soon as the runners read: orders about a replica to those that shall have it, all
    /// else to every one.
    pub(crate) fn send(&mut self, message: ToRunner) {
        if let ToRunner::Prepare { .. }
        | ToRunner::Start { .. }
        | ToRunner::Drain { .. }
        | ToRunner::Withdrawn { .. }
        | ToRunner::Stop { .. } = message
        {
            let moves = self.shares.order(message);
            self.carry_out(moves);
            return;
        }
        if let Some((last, others)) = self.keepers.split_last_mut() {
            others
                .iter_mut()
                .for_each(|keeper| keeper.send(message.clone()));
            last.send(message);
        }
    }

    /// Gives a runner that is back the certificates and all tables, before everything else.
    pub(crate) fn catch_up(
        &mut self,
        runner: RunnerIndex,
        certificates: Option<ToRunner>,
        tables: ToRunner,
    ) {
        if let Some(keeper) = self.keepers.get_mut(runner) {
            certificates
                .into_iter()
                .chain([tables])
                .for_each(|message| keeper.send_first(message));
        }
    }

    /// Asks what they use.
    pub(crate) fn ask(&mut self) {
        self.keepers.iter_mut().for_each(Keeper::ask);
    }

    /// Whether any of them answers: then what is spread is served.
    pub(crate) fn answers(&self) -> bool {
        self.keepers.iter().any(Keeper::answers)
    }

    /// The next thing from the runners. Safe to cancel.
    pub(crate) async fn next(&mut self) -> Said {
        loop {
            if let Some(said) = self.said.pop_front() {
                return said;
            }
            let overdue = self.catching_up.iter().map(|(_, until)| *until).min();
            let (spawn, books) = (&self.spawn, self.books.as_ref());
            let nexts = self.keepers.iter_mut().enumerate().map(|(runner, keeper)| {
                let next = keeper.next(move || spawn(column(books, runner)));
                async move { (runner, next.await) }.boxed()
            });
            let next = async {
                let (heard, ..) = select_all(nexts).await;
                heard
            };
            let compiled = async {
                match &mut self.compiling {
                    Some(compiling) => compiling.next().await,
                    None => std::future::pending().await,
                }
            };
            let heard = tokio::select! {
                heard = next => Some(heard),
                compiled = compiled => {
                    self.tell_compiled(&compiled);
                    continue;
                }
                () = sleep_until(overdue.unwrap_or_else(Instant::now)), if overdue.is_some() => {
                    None
                }
            };
            match heard {
                Some((runner, said)) => self.heard(runner, said),
                None => self.open_who_caught_up(),
            }
        }
    }

    /// What the runners have said already, without waiting.
    pub(crate) fn try_next(&mut self) -> Option<Said> {
        loop {
            if let Some(said) = self.said.pop_front() {
                return Some(said);
            }
            let mut keepers = self.keepers.iter_mut().enumerate();
            let (runner, said) =
                keepers.find_map(|(runner, keeper)| Some((runner, keeper.try_next()?)))?;
            self.heard(runner, said);
        }
    }

    fn heard(&mut self, runner: RunnerIndex, said: keeper::Said) {
        match said {
            keeper::Said::Message(FromRunner::Usage(usage)) => {
                let all = self.usages.answer(runner, usage);
                self.say(all.map(FromRunner::Usage));
            }
            keeper::Said::Message(message @ (FromRunner::Logs(_) | FromRunner::Wake { .. })) => {
                self.say(Some(message));
            }
            keeper::Said::Message(FromRunner::Compile { digest }) => match &mut self.compiling {
                Some(compiling) => {
                    let of = self.shares.namespaces_of(&digest);
                    compiling.ask(digest, runner, of);
                }
                None => tracing::error!(%digest, "a runner that compiles asks for a compiler"),
            },
            keeper::Said::Message(message) => {
                let moves = self.shares.said(runner, message);
                self.carry_out(moves);
                self.open_who_caught_up();
            }
            keeper::Said::Died(reason) => {
                self.said.push_back(Said::Died(reason.clone()));
                self.catching_up.retain(|(of, _)| *of != runner);
                if let Some(compiling) = &mut self.compiling {
                    compiling.forget(runner);
                }
                let all = self.usages.died(runner);
                self.say(all.map(FromRunner::Usage));
                if let Some(books) = &self.books {
                    books.wipe(runner);
                }
                let moves = self.shares.died(runner, &reason);
                self.carry_out(moves);
            }
            keeper::Said::Back => {
                self.usages.back(runner);
                let moves = self.shares.back(runner);
                self.carry_out(moves);
                self.catching_up
                    .push((runner, Instant::now() + CATCH_UP_MAX));
                self.said.push_back(Said::Back(runner));
                self.open_who_caught_up();
            }
        }
    }

    fn open_who_caught_up(&mut self) {
        let (shares, keepers, now) = (&self.shares, &mut self.keepers, Instant::now());
        self.catching_up.retain(|(runner, until)| {
            let open = shares.caught_up(*runner) || now >= *until;
            if open && let Some(keeper) = keepers.get_mut(*runner) {
                keeper.send(ToRunner::Open);
            }
            !open
        });
    }

    fn tell_compiled(&mut self, compiled: &Compiled) {
        for runner in &compiled.asked {
            if let Some(keeper) = self.keepers.get_mut(*runner) {
                keeper.send(ToRunner::Compiled {
                    digest: compiled.digest.clone(),
                    result: compiled.result.clone(),
                });
            }
        }
    }

    fn say(&mut self, messages: impl IntoIterator<Item = FromRunner>) {
        self.said.extend(messages.into_iter().map(Said::Message));
    }

    fn carry_out(&mut self, moves: Moves) {
        for (runner, message) in moves.to {
            if let Some(keeper) = self.keepers.get_mut(runner) {
                keeper.send(message);
            }
        }
        moves.said.iter().for_each(|said| self.usages.forget(said));
        self.say(moves.said);
    }

    /// Ends the runners, and with the pool the compiler. What gateways have in hand may finish until then.
    pub(crate) async fn close(self, until: Instant) {
        let keepers = self.keepers.into_iter();
        join_all(keepers.map(|keeper| keeper.close(until))).await;
    }
}

fn column(books: Option<&Books>, runner: RunnerIndex) -> io::Result<Option<Column>> {
    books.map(|books| books.column(runner)).transpose()
}
