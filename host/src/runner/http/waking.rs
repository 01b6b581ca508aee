//! Replicas on their way, the requests that wait for them, and the word to the daemon that one is to
//! wake. Who is ready is not known here: the table of members tells.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, timeout_at};
use wasmorch_api::WorkloadKey;

use crate::runner::protocol::FromRunner;

/// What a request waits for when nothing rests here yet: a replica that has just been told to rest is
/// drained and prepared first.
const COMES_WITHIN: Duration = Duration::from_secs(1);
/// So many may wait also before it is known how many the workload takes.
const WAIT_AT_LEAST: usize = 16;
/// What it waits for at most: a start, and the first probe.
const WAKES_WITHIN: Duration = Duration::from_secs(10);

/// What is on its way of one workload, and who waits for it.
#[derive(Default)]
struct Way {
    replicas: usize,
    /// How many there have been: one that came later has to be woken too.
    began: u64,
    waiting: usize,
    /// Waiting at once: what one replica would take, and queue.
    most: usize,
}

/// What is on its way of all workloads.
pub(in crate::runner) struct Waking {
    /// How many are on their way, from the first word of them to their last: those that rest too.
    coming: Mutex<HashMap<WorkloadKey, Way>>,
    /// Told when a member becomes ready, and when one more is on its way.
    stirred: Notify,
    daemon: mpsc::Sender<FromRunner>,
}

/// A request that waits for a replica to become ready.
struct Waiting<'a>(&'a Waking, &'a WorkloadKey);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.let_go(self.1, |way| &mut way.waiting);
    }
}

/// One replica that is on its way, or there.
pub(in crate::runner) struct Coming {
    waking: Arc<Waking>,
    workload: WorkloadKey,
}

impl Drop for Coming {
    fn drop(&mut self) {
        self.waking.let_go(&self.workload, |way| &mut way.replicas);
        // Whoever waits for it may wait in vain now.
        self.waking.stirred.notify_waiters();
    }
}

impl Waking {
    /// None yet; the daemon is told when one is to wake.
    pub(super) fn new(daemon: mpsc::Sender<FromRunner>) -> Self {
        Self {
            coming: Mutex::default(),
            stirred: Notify::new(),
            daemon,
        }
    }

    /// Something may be ready that was not.
    pub(super) fn stir(&self) {
        self.stirred.notify_waiters();
    }

    fn coming(&self) -> MutexGuard<'_, HashMap<WorkloadKey, Way>> {
        self.coming.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether one is on its way, or there.
    pub(super) fn comes_one(&self, workload: &WorkloadKey) -> bool {
        self.coming()
            .get(workload)
            .is_some_and(|way| way.replicas > 0)
    }

    fn let_go(&self, workload: &WorkloadKey, which: impl Fn(&mut Way) -> &mut usize) {
        let mut coming = self.coming();
        if let Some(way) = coming.get_mut(workload) {
            *which(way) -= 1;
            if way.replicas == 0 && way.waiting == 0 {
                coming.remove(workload);
            }
        }
    }

    /// A replica is on its way as long as this lives; `most` requests wait for it.
    pub(in crate::runner) fn comes(self: &Arc<Self>, workload: WorkloadKey, most: usize) -> Coming {
        let mut coming = self.coming();
        let way = coming.entry(workload.clone()).or_default();
        way.replicas += 1;
        way.began += 1;
        way.most = most;
        drop(coming);
        self.stirred.notify_waiters();
        Coming {
            waking: self.clone(),
            workload,
        }
    }

    /// Has a replica woken and waits until one is ready, as `ready` tells; `false`: none came in time,
    /// or too many wait.
    pub(super) async fn wake(&self, workload: &WorkloadKey, ready: impl Fn() -> bool) -> bool {
        let began = Instant::now();
        let mut told = 0;
        let too_many = {
            let mut coming = self.coming();
            let way = coming.entry(workload.clone()).or_default();
            way.waiting += 1;
            way.waiting > way.most.max(WAIT_AT_LEAST)
        };
        let _waiting = Waiting(self, workload);
        if too_many {
            return false;
        }
        loop {
            let mut stirred = pin!(self.stirred.notified());
            // From here on nothing is missed.
            stirred.as_mut().enable();
            if ready() {
                return true;
            }
            let (comes, newest) = {
                let coming = self.coming();
                let way = coming.get(workload);
                way.map_or((false, 0), |way| (way.replicas > 0, way.began))
            };
            if comes && told != newest {
                told = newest;
                let workload = workload.clone();
                let _ = self
                    .daemon
                    .send(FromRunner::Wake {
                        workload,
                        holder: None,
                    })
                    .await;
            }
            let patience = if comes { WAKES_WITHIN } else { COMES_WITHIN };
            if timeout_at(began + patience, stirred).await.is_err() {
                return false;
            }
        }
    }
}
