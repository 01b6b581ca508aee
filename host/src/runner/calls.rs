//! Which workloads of this runner are called over NATS: one line for each, for as long as one of its replicas
//! takes calls.
//!
//! ```text
//!   a replica takes calls ──the first──> a line: subscribe ──> confirmed ──> calls
//!   it takes none any more ──the last──> the line takes none, answers what it has, and ends
//! ```
//!
//! Who answers a call is not known here: `invoke` gives it to the gateway. A subscription of each of many
//! replicas would be most of what they take while nobody asks for them.
//!
//! Invariant: the lock is held for a look-up only.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use wasmorch_api::WorkloadKey;

use super::invoke;
use super::replica::Life;
use super::supervisor::Context;

/// The lines of all workloads.
#[derive(Default)]
pub(super) struct Lines(Mutex<HashMap<WorkloadKey, Line>>);

struct Line {
    /// Replicas that take calls.
    takers: usize,
    /// The server has confirmed that calls come.
    listens: watch::Receiver<bool>,
    draining: CancellationToken,
    task: AbortOnDropHandle<()>,
}

impl Line {
    fn begin(context: &Arc<Context>, workload: &WorkloadKey, host: String) -> Self {
        let (listening, listens) = watch::channel(false);
        let draining = CancellationToken::new();
        let served = invoke::serve(
            context.clone(),
            invoke::Callee::new(workload.clone(), host),
            listening,
            draining.clone(),
        );
        Self {
            takers: 0,
            listens,
            draining,
            task: AbortOnDropHandle::new(tokio::spawn(served)),
        }
    }
}

impl Lines {
    /// One more takes calls; whether they come.
    fn take(&self, calls: &Calls) -> watch::Receiver<bool> {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let line = lines
            .entry(calls.workload.clone())
            .or_insert_with(|| Line::begin(&calls.context, &calls.workload, calls.host.clone()));
        line.takers += 1;
        line.listens.clone()
    }

    /// One takes none any more; the line when it was the last.
    fn leave(&self, workload: &WorkloadKey) -> Option<AbortOnDropHandle<()>> {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Entry::Occupied(mut line) = lines.entry(workload.clone()) else {
            return None;
        };
        line.get_mut().takers -= 1;
        (line.get().takers == 0).then(|| {
            let line = line.remove();
            line.draining.cancel();
            line.task
        })
    }
}

/// A replica's part in its line. Whoever leaves it last has it end.
pub(super) struct Calls {
    context: Arc<Context>,
    workload: WorkloadKey,
    /// The `Host` of calls that give none.
    host: String,
    /// Whether calls come, while this replica takes them.
    listens: Option<watch::Receiver<bool>>,
    /// Lines that it was the last of: they answer what they have.
    ending: Vec<AbortOnDropHandle<()>>,
}

impl Calls {
    /// It takes none yet.
    pub(super) fn new(life: &Life) -> Self {
        Self {
            context: life.context.clone(),
            workload: life.replica.workload.clone(),
            host: life.host_name(),
            listens: None,
            ending: Vec::new(),
        }
    }

    /// Takes calls, if there is a server from which they could come.
    pub(super) fn open(&mut self) {
        if self.listens.is_none() && self.context.link.is_configured() {
            self.listens = Some(self.context.lines.take(self));
        }
    }

    /// Takes none any more; those in hand go on.
    pub(super) fn close(&mut self) {
        if self.listens.take().is_some() {
            self.ending.retain(|line| !line.is_finished());
            self.ending.extend(self.context.lines.leave(&self.workload));
        }
    }

    /// Whether the server has confirmed that they are taken, once that is `news`; `None`: none ever will.
    pub(super) async fn listens(&mut self, news: impl Fn(bool) -> bool) -> Option<bool> {
        let now = self.listens.as_mut()?.wait_for(|now| news(*now)).await;
        now.ok().map(|now| *now)
    }

    /// Takes none any more, and returns when those in hand are answered.
    pub(super) async fn end(&mut self) {
        self.close();
        for line in self.ending.drain(..) {
            // A panic was told where it came.
            drop(line.await);
        }
    }

    /// Takes none any more, and nobody is left to answer what only this replica has in hand.
    pub(super) fn cut_off(&mut self) {
        self.close();
        self.ending.clear();
    }
}

impl Drop for Calls {
    fn drop(&mut self) {
        self.cut_off();
    }
}
