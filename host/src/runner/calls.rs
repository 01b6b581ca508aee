//! Which workloads of this runner are called over NATS: one line for each, for as long as one of its replicas
//! takes calls.
//!
//! ```text
//!   a replica takes calls ──the first──> a line: subscribe ──> confirmed ──> calls
//!   it takes none any more ──the last──> the line takes none, answers what it has, and ends
//! ```
//!
//! Who answers a call is not known here: `invoke` gives it to the gateway. So a line outlives the replicas that
//! it was opened for, until what it took is answered, and nothing that one of them comes to cuts it off. A
//! subscription of each of many replicas would be most of what they take while nobody asks for them.
//!
//! Invariant: the lock is held for a look-up only.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio_util::sync::CancellationToken;
use wasmorch_api::WorkloadKey;

use super::invoke;
use super::replica::Life;
use super::supervisor::Context;

/// The lines of all workloads.
#[derive(Default)]
pub(super) struct Lines(Mutex<Table>);

#[derive(Default)]
struct Table {
    lines: HashMap<WorkloadKey, Line>,
    /// Of all lines, also of those that take none any more and answer what they have.
    tasks: JoinSet<()>,
}

struct Line {
    /// Replicas that take calls.
    takers: usize,
    /// The server has confirmed that calls come.
    listens: watch::Receiver<bool>,
    draining: CancellationToken,
    task: AbortHandle,
}

impl Line {
    fn begin(tasks: &mut JoinSet<()>, calls: &Calls) -> Self {
        let (listening, listens) = watch::channel(false);
        let draining = CancellationToken::new();
        let callee = invoke::Callee::new(calls.workload.clone(), calls.host.clone());
        let context = calls.context.clone();
        let task = tasks.spawn(invoke::serve(context, callee, listening, draining.clone()));
        Self {
            takers: 0,
            listens,
            draining,
            task,
        }
    }
}

impl Lines {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One more takes calls; whether they come.
    fn take(&self, calls: &Calls) -> watch::Receiver<bool> {
        let Table { lines, tasks } = &mut *self.table();
        while tasks.try_join_next().is_some() {}
        let line = lines.entry(calls.workload.clone());
        let line = line.or_insert_with(|| Line::begin(tasks, calls));
        if line.task.is_finished() {
            // It panicked, and whoever joined it would be called by nobody.
            tracing::error!(workload = %calls.workload, "taking calls had ended; begun anew");
            let takers = line.takers;
            *line = Line::begin(tasks, calls);
            line.takers = takers;
        }
        line.takers += 1;
        line.listens.clone()
    }

    /// One takes none any more.
    fn leave(&self, workload: &WorkloadKey) {
        let mut table = self.table();
        if let Entry::Occupied(mut line) = table.lines.entry(workload.clone()) {
            line.get_mut().takers -= 1;
            if line.get().takers == 0 {
                line.remove().draining.cancel();
            }
        }
    }

    /// Returns when all that was taken is answered, once nobody takes any more. Whoever does not wait for that
    /// has the rest dropped.
    pub(super) async fn end(&self) {
        let mut tasks = std::mem::take(&mut self.table().tasks);
        while tasks.join_next().await.is_some() {}
    }
}

/// A replica's part in its line.
pub(super) struct Calls {
    context: Arc<Context>,
    workload: WorkloadKey,
    /// The `Host` of calls that give none.
    host: String,
    /// Whether calls come, while this replica takes them.
    listens: Option<watch::Receiver<bool>>,
}

impl Calls {
    /// It takes none yet.
    pub(super) fn new(life: &Life) -> Self {
        Self {
            context: life.context.clone(),
            workload: life.replica.workload.clone(),
            host: life.host_name(),
            listens: None,
        }
    }

    /// Takes calls, if there is a server from which they could come.
    pub(super) fn open(&mut self) {
        if self.listens.is_none() && self.context.link.is_configured() {
            self.listens = Some(self.context.lines.take(self));
        }
    }

    /// Takes none any more; what was taken is answered, by whoever is there.
    pub(super) fn close(&mut self) {
        if self.listens.take().is_some() {
            self.context.lines.leave(&self.workload);
        }
    }

    /// Whether the server has confirmed that they are taken, once that is `news`; `None`: nobody will say.
    pub(super) async fn listens(&mut self, news: impl Fn(bool) -> bool) -> Option<bool> {
        let Some(listens) = &mut self.listens else {
            return news(false).then_some(false);
        };
        let now = listens.wait_for(|now| news(*now)).await;
        now.ok().map(|now| *now)
    }
}

impl Drop for Calls {
    fn drop(&mut self) {
        self.close();
    }
}
