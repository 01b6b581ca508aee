//! Keeps the host's compiler: gives it what runners ask for, and starts and ends its process.
//!
//! ```text
//!   asked ──> Queue ──> in hand ──done──> answered, to every runner that asked
//!               ^          │ the process ended, or nothing was done for long
//!               └──────────┘ one at a time then: what ends it a second time, alone, is refused
//! ```
//!
//! Owns the process, and not whose turn it is (`queue.rs`): there is one while something is asked for, and a while longer. A digest is compiled once,
//! however many runners ask for it. It waits for nothing but messages. A runner that asks for more than any could
//! run is refused: it may have been taken over.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use tokio_util::task::AbortOnDropHandle;
use wasmorch_api::{Digest, Name};
use wasmorch_runtime::LoadError;

use super::queue::Queue;
use super::shares::RunnerIndex;
use crate::compiler::{Done, Order};
use crate::process::Spawned;

/// The process stays for so long after its last work: a deploy of many components starts one.
const IDLE: Duration = Duration::from_secs(10);
/// Nothing done for so long, and it is ended. The largest components that we know take tens of seconds of a
/// processor, of which a busy machine leaves a tenth to it.
const STUCK: Duration = Duration::from_secs(1800);
/// What one runner may ask for at a time.
const ASKED_MAX: usize = 20_000;
/// For a process that has closed its end to tell how it ended.
const END: Duration = Duration::from_secs(1);

/// The process, its talk driven by a task that ends with it.
pub(crate) type Process = Spawned<Order, Done, AbortOnDropHandle<()>>;
/// Starts the process.
pub(crate) type Start = Box<dyn Fn() -> std::io::Result<Process> + Send + Sync>;

/// What comes of a process.
enum Event {
    Done(Done),
    /// It is gone, and how.
    Ended(String),
    /// Nothing came for as long as it may.
    Quiet,
}

/// One artifact is done, and these asked for it.
#[derive(Debug)]
pub(super) struct Compiled {
    pub(super) digest: Digest,
    pub(super) result: Result<(), LoadError>,
    pub(super) asked: BTreeSet<RunnerIndex>,
}

/// See the module's head.
pub(super) struct Compiling {
    start: Start,
    process: Option<Process>,
    asked: BTreeMap<Digest, BTreeSet<RunnerIndex>>,
    queue: Queue,
    /// A process has ended that had this one alone. It may have been chosen for another's memory.
    alone: Option<Digest>,
    /// To be refused at once.
    refused: VecDeque<Compiled>,
    /// Until when a process that closed its end may tell how it ended.
    closed_until: Option<Instant>,
    /// When the process last got or did something.
    active_at: Instant,
}

impl Compiling {
    pub(super) fn new(start: Start) -> Self {
        Self {
            start,
            process: None,
            asked: BTreeMap::new(),
            queue: Queue::default(),
            alone: None,
            refused: VecDeque::new(),
            closed_until: None,
            active_at: Instant::now(),
        }
    }

    /// A runner asks for the code of an artifact that these namespaces have.
    pub(super) fn ask(&mut self, digest: Digest, runner: RunnerIndex, of: BTreeSet<Name>) {
        let of_it = self.asked.values().filter(|asked| asked.contains(&runner));
        if self.asked.len() >= ASKED_MAX && of_it.count() >= ASKED_MAX {
            let why = format!("its runner waits for {ASKED_MAX} others");
            // Not kept either.
            self.refused.truncate(ASKED_MAX);
            self.refused.push_back(Compiled {
                digest,
                result: Err(LoadError::Compile(why)),
                asked: BTreeSet::from([runner]),
            });
            return;
        }
        self.queue.push(of, &digest);
        self.asked.entry(digest).or_default().insert(runner);
    }

    /// A runner has ended. What it asked for is made all the same: its successor will ask again.
    pub(super) fn forget(&mut self, runner: RunnerIndex) {
        for asked in self.asked.values_mut() {
            asked.remove(&runner);
        }
    }

    /// The next that is done. Safe to cancel.
    pub(super) async fn next(&mut self) -> Compiled {
        loop {
            if let Some(refused) = self.refused.pop_front() {
                return refused;
            }
            if self.process.is_none() {
                let Some(first) = self.queue.first() else {
                    return std::future::pending().await;
                };
                match (self.start)() {
                    Ok(process) => {
                        self.process = Some(process);
                        self.closed_until = None;
                        self.active_at = Instant::now();
                    }
                    Err(error) => {
                        let why = format!("the compiler's process did not start: {error}");
                        let digest = first.clone();
                        return self.done(digest, Err(LoadError::Compile(why)));
                    }
                }
            }
            if let Some(compiled) = self.turn().await {
                return compiled;
            }
        }
    }

    /// One event of the process.
    async fn turn(&mut self) -> Option<Compiled> {
        let has_next = self.queue.has_next();
        let works = !self.asked.is_empty();
        let until = self.active_at + if works { STUCK } else { IDLE };
        let process = self.process.as_mut()?;
        let event = tokio::select! {
            Ok(permit) = process.to.reserve(), if has_next => {
                if self.queue.in_hand().next().is_none() {
                    self.active_at = Instant::now();
                }
                permit.send(Order { digest: self.queue.take()? });
                return None;
            }
            done = process.from.recv() => match done {
                Some(done) => Event::Done(done),
                None => {
                    let until = *self.closed_until.get_or_insert_with(|| Instant::now() + END);
                    let ended = tokio::time::timeout_at(until, process.child.ended()).await;
                    Event::Ended(ended.unwrap_or_else(|_| "it closed its end".into()))
                }
            },
            () = sleep_until(until) => Event::Quiet,
        };
        match event {
            Event::Done(Done { digest, result }) => {
                self.active_at = Instant::now();
                Some(self.done(digest, result))
            }
            Event::Ended(how) => self.lost(&how),
            Event::Quiet if works => {
                self.lost(&format!("nothing was done within {} s", STUCK.as_secs()))
            }
            Event::Quiet => {
                // It has nothing in hand: its end loses nothing.
                self.process = None;
                None
            }
        }
    }

    fn done(&mut self, digest: Digest, result: Result<(), LoadError>) -> Compiled {
        self.queue.done(&digest);
        self.alone.take_if(|alone| *alone == digest);
        let asked = self.asked.remove(&digest).unwrap_or_default();
        Compiled {
            digest,
            result,
            asked,
        }
    }

    /// The process is gone, or has to go. What it had alone was its end.
    fn lost(&mut self, how: &str) -> Option<Compiled> {
        self.process = None;
        let artifacts = self.queue.in_hand().len();
        let alone = self.queue.in_hand().next().cloned();
        let alone = alone.filter(|_| artifacts == 1);
        if let Some(digest) = alone.clone().filter(|_| self.alone == alone) {
            self.alone = None;
            tracing::error!(%digest, how, "the compiler ended over an artifact");
            let why = format!(
                "the compiler's process ended over it ({how}): too large for this machine, perhaps; \
                 `wasmorch compile` makes code elsewhere"
            );
            return Some(self.done(digest, Err(LoadError::Compile(why))));
        }
        tracing::warn!(how, artifacts, "the compiler ended; one at a time now");
        self.alone = alone;
        self.queue.lost();
        None
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::sync::{Arc, Mutex};

    use tokio::sync::mpsc;

    use super::super::queue::IN_HAND;
    use super::*;
    use crate::child::Child;

    /// The other end of a process that was started: a child that does nothing, and the test in its place.
    struct Other {
        orders: mpsc::Receiver<Order>,
        done: mpsc::Sender<Done>,
    }

    impl Other {
        async fn takes(&mut self) -> Digest {
            self.orders.recv().await.expect("it is there").digest
        }

        async fn did(&self, digest: &Digest) {
            let done = Done {
                digest: digest.clone(),
                result: Ok(()),
            };
            self.done.send(done).await.expect("it is heard");
        }
    }

    type Started = Arc<Mutex<Vec<Other>>>;

    fn compiling() -> (Compiling, Started) {
        let started = Started::default();
        let others = started.clone();
        let start: Start = Box::new(move || {
            let mut sleeps = Command::new("sleep");
            sleeps.arg("600");
            let (to, orders) = mpsc::channel(IN_HAND);
            let (done, from) = mpsc::channel(IN_HAND);
            others.lock().unwrap().push(Other { orders, done });
            Ok(Spawned {
                child: Child::spawn(sleeps)?,
                to,
                from,
                talk: AbortOnDropHandle::new(tokio::spawn(async {})),
            })
        });
        (Compiling::new(start), started)
    }

    fn nobody() -> BTreeSet<Name> {
        BTreeSet::new()
    }

    fn digests(count: u8) -> Vec<Digest> {
        (0..count).map(|n| Digest::of(&[n])).collect()
    }

    /// Drives it while the test does its part, which ends first.
    async fn meanwhile<R>(compiling: &mut Compiling, does: impl Future<Output = R>) -> R {
        tokio::select! {
            biased;
            did = does => did,
            compiled = compiling.next() => panic!("{compiled:?} came early"),
        }
    }

    async fn other(started: &Started) -> Other {
        loop {
            if let Some(other) = started.lock().unwrap().pop() {
                return other;
            }
            tokio::task::yield_now().await;
        }
    }

    /// The next process, once it has taken these orders.
    async fn takes(compiling: &mut Compiling, started: &Started, orders: &[Digest]) -> Other {
        meanwhile(compiling, async {
            let mut process = other(started).await;
            for digest in orders {
                assert_eq!(process.takes().await, *digest);
            }
            process
        })
        .await
    }

    #[tokio::test]
    async fn what_several_runners_ask_for_is_made_once() {
        let (mut compiling, started) = compiling();
        let one = &digests(1)[0];
        compiling.ask(one.clone(), 0, nobody());
        compiling.ask(one.clone(), 1, nobody());
        let mut process = takes(&mut compiling, &started, std::slice::from_ref(one)).await;
        process.did(one).await;
        let compiled = compiling.next().await;
        assert_eq!((compiled.digest, compiled.result), (one.clone(), Ok(())));
        assert_eq!(compiled.asked, BTreeSet::from([0, 1]));
        assert!(process.orders.try_recv().is_err(), "asked once");
    }

    #[tokio::test]
    async fn whose_doing_the_end_was_is_refused_and_the_others_are_made() {
        let (mut compiling, started) = compiling();
        let asked = digests(3);
        for digest in &asked {
            compiling.ask(digest.clone(), 0, nobody());
        }
        // It ends over them.
        drop(takes(&mut compiling, &started, &asked).await);
        // Now each alone; the second is the culprit.
        let mut process = takes(&mut compiling, &started, &asked[0..=0]).await;
        process.did(&asked[0]).await;
        assert_eq!(compiling.next().await.digest, asked[0]);
        meanwhile(&mut compiling, async {
            assert_eq!(process.takes().await, asked[1]);
            assert!(process.orders.try_recv().is_err(), "it has that alone");
        })
        .await;
        drop(process);
        // Once more: it may have been ended for what others took.
        let process = takes(&mut compiling, &started, &asked[1..=1]).await;
        drop(process);
        let refused = compiling.next().await;
        assert_eq!(refused.digest, asked[1]);
        assert!(
            matches!(refused.result, Err(LoadError::Compile(why)) if why.contains("ended over it"))
        );
        let mut process = takes(&mut compiling, &started, &asked[2..=2]).await;
        process.did(&asked[2]).await;
        assert_eq!(compiling.next().await.result, Ok(()));
        assert!(process.orders.try_recv().is_err());
    }

    #[tokio::test]
    async fn a_process_that_does_not_start_is_said_to_who_asks() {
        let mut compiling = Compiling::new(Box::new(|| Err(std::io::Error::other("no more"))));
        let [one, two] = &digests(2)[..] else {
            unreachable!()
        };
        compiling.ask(one.clone(), 0, nobody());
        compiling.ask(two.clone(), 1, nobody());
        for digest in [one, two] {
            let compiled = compiling.next().await;
            assert_eq!(compiled.digest, *digest);
            assert!(
                matches!(compiled.result, Err(LoadError::Compile(why)) if why.contains("no more"))
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn it_ends_when_idle_and_when_stuck() {
        let (mut compiling, started) = compiling();
        let one = &digests(1)[0];
        compiling.ask(one.clone(), 0, nobody());
        let process = takes(&mut compiling, &started, std::slice::from_ref(one)).await;
        // Neither answers.
        tokio::time::advance(STUCK).await;
        let process = meanwhile(&mut compiling, async {
            let second = other(&started).await;
            assert!(process.done.is_closed(), "it was ended");
            second
        })
        .await;
        let compiled = compiling.next().await;
        assert!(
            matches!(compiled.result, Err(LoadError::Compile(why)) if why.contains("nothing was done"))
        );
        assert!(process.done.is_closed(), "it was ended");

        compiling.ask(one.clone(), 0, nobody());
        let process = takes(&mut compiling, &started, std::slice::from_ref(one)).await;
        process.did(one).await;
        assert_eq!(compiling.next().await.result, Ok(()));
        meanwhile(&mut compiling, process.done.closed()).await;
    }
}
