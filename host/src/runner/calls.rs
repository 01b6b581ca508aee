//! Which workloads of this runner are called over NATS: one subscription for each, for as long as one of its
//! replicas takes calls.
//!
//! ```text
//!   a replica takes calls ──the first──> subscribe ──> confirmed ──> calls
//!   it takes none any more ──the last──> drain it: what it took is answered
//! ```
//!
//! Who answers a call is not known here: `invoke` gives it to the gateway. So it outlives the replicas that
//! it was made for, until what it took is answered, and nothing that one of them comes to cuts it off. A
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

/// The subscriptions to the calls of all workloads.
#[derive(Default)]
pub(super) struct Subscriptions(Mutex<Table>);

#[derive(Default)]
struct Table {
    of: HashMap<WorkloadKey, Subscription>,
    /// Of all of them, also of those that take none any more and answer what they have.
    tasks: JoinSet<()>,
}

struct Subscription {
    /// Replicas that take calls.
    takers: usize,
    /// The server has confirmed that calls come.
    listens: watch::Receiver<bool>,
    draining: CancellationToken,
    task: AbortHandle,
}

impl Subscription {
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

impl Subscriptions {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One more takes calls; whether they come.
    fn take(&self, calls: &Calls) -> watch::Receiver<bool> {
        let Table { of, tasks } = &mut *self.table();
        while tasks.try_join_next().is_some() {}
        let one = of.entry(calls.workload.clone());
        let one = one.or_insert_with(|| Subscription::begin(tasks, calls));
        if one.task.is_finished() {
            // It panicked, and whoever joined it would be called by nobody.
            tracing::error!(workload = %calls.workload, "taking calls had ended; begun anew");
            let takers = one.takers;
            *one = Subscription::begin(tasks, calls);
            one.takers = takers;
        }
        one.takers += 1;
        one.listens.clone()
    }

    /// One takes none any more.
    fn leave(&self, workload: &WorkloadKey) {
        let mut table = self.table();
        if let Entry::Occupied(mut one) = table.of.entry(workload.clone()) {
            one.get_mut().takers -= 1;
            if one.get().takers == 0 {
                one.remove().draining.cancel();
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

/// A replica's part in the subscription of its workload.
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
            self.listens = Some(self.context.calls.take(self));
        }
    }

    /// Takes none any more; what was taken is answered, by whoever is there.
    pub(super) fn close(&mut self) {
        if self.listens.take().is_some() {
            self.context.calls.leave(&self.workload);
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
