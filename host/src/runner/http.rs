//! The http replicas of this runner as the gateway sees them, and how one of them is drained.
//!
//! ```text
//!   joined ──ready──> serving ──drain──> leaving ──(grace)──> closed ──(idle)──> gone
//!                     new requests       new requests,        refused: the gateway
//!                                        when no other serves goes elsewhere
//! ```
//!
//! Invariants:
//! - A request that gets [`LocalError::Refused`] or [`LocalError::NotHere`] was not executed, and
//!   is given back whole.
//! - The lock is held for a look-up only, never while a guest runs.
//! - A member leaves the table when its [`Membership`] is dropped, however its task ended.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use async_trait::async_trait;
use http::{Request, Response};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use wasmorch_api::{RevisionNumber, WorkloadKey};
use wasmorch_gateway::{Body, Canary, Deadline, Hops, Local, LocalError};
use wasmorch_runtime::{BodySide, Ended, HttpReplica, Lineage, LogSink};

use super::answers::{Counted, Tally};
use super::probe::{Change, Judge, Prober, Verdict};
use super::protocol::FromRunner;
use super::replica::{End, Life};
use super::{invoke, logs};

/// A draining replica goes on answering for so long, so that other gateways hear first that it is
/// going: a status report, the leader's new table, and its way to them.
pub(super) const LEAVING_GRACE: Duration = Duration::from_millis(300);

/// Where a member stands. Order matters: higher is closer to the end.
const UNREADY: u8 = 0;
const SERVING: u8 = 1;
const LEAVING: u8 = 2;
const CLOSED: u8 = 3;

/// One http replica.
pub(super) struct Member {
    pub(super) guest: Arc<HttpReplica>,
    revision: RevisionNumber,
    logs: Arc<dyn LogSink>,
    tally: Option<Arc<Tally>>,
    stage: AtomicU8,
    /// Requests between being let in and the head of their response.
    entering: AtomicUsize,
    /// Told when `entering` falls to zero.
    emptied: Notify,
}

/// Counts one request as let in.
struct Entered<'a>(&'a Member);

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        if self.0.entering.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.emptied.notify_waiters();
        }
    }
}

impl Member {
    pub(super) fn new(
        guest: Arc<HttpReplica>,
        revision: RevisionNumber,
        logs: Arc<dyn LogSink>,
        tally: Option<Arc<Tally>>,
    ) -> Self {
        Self {
            guest,
            revision,
            logs,
            tally,
            stage: AtomicU8::new(UNREADY),
            entering: AtomicUsize::new(0),
            emptied: Notify::new(),
        }
    }

    fn stage(&self) -> u8 {
        self.stage.load(Ordering::SeqCst)
    }

    /// Readiness, while it has not begun to leave.
    fn set_ready(&self, ready: bool) {
        let (from, to) = if ready {
            (UNREADY, SERVING)
        } else {
            (SERVING, UNREADY)
        };
        // Failing means that it is there already, or on its way out.
        let _ = self
            .stage
            .compare_exchange(from, to, Ordering::SeqCst, Ordering::SeqCst);
    }

    /// Lets a request in unless the member is closed. Counted before it is looked at, so that
    /// whoever closes and then finds no one counted knows that no one comes after.
    fn enter(&self) -> Option<Entered<'_>> {
        self.entering.fetch_add(1, Ordering::SeqCst);
        let entered = Entered(self);
        (self.stage() != CLOSED).then_some(entered)
    }

    fn load(&self) -> usize {
        let usage = self.guest.usage();
        usage.in_flight + usage.queued
    }

    /// Passes a request to the guest.
    pub(super) async fn handle(
        &self,
        request: Request<Body>,
    ) -> Result<Response<Body>, LocalError> {
        let Some(_entered) = self.enter() else {
            return Err(LocalError::Refused(request));
        };
        let mut request = request;
        let lineage = lineage(request.extensions());
        request.extensions_mut().insert(lineage);
        self.guest.count_request();
        let counted = self.tally.clone().map(Counted::begin);
        let mut answered = self.guest.handle(request).await;
        if let Some(counted) = counted {
            answered = counted.answered(answered);
        }
        answered.map_err(|ended| {
            if logs::is_the_guests(&ended) {
                logs::failed(&*self.logs, "a request", &ended);
            }
            local_error(ended)
        })
    }

    /// Takes nothing new after a grace, and returns when nothing is in hand any more.
    pub(super) async fn drain(&self) {
        let was_serving = self.stage.fetch_max(LEAVING, Ordering::SeqCst) == SERVING;
        if was_serving {
            tokio::time::sleep(LEAVING_GRACE).await;
        }
        self.stage.store(CLOSED, Ordering::SeqCst);
        loop {
            let emptied = self.emptied.notified();
            if self.entering.load(Ordering::SeqCst) == 0 {
                break;
            }
            emptied.await;
        }
        self.guest.close();
        self.guest.idle().await;
    }
}

/// What the guest's own requests inherit, as the gateway tells it.
fn lineage(extensions: &http::Extensions) -> Lineage {
    Lineage {
        hops: extensions.get::<Hops>().map_or(0, |hops| hops.0),
        deadline: extensions.get::<Deadline>().map(|deadline| deadline.0),
    }
}

/// What a failure means to the gateway. The reasons are the runtime's: they name the limit.
fn local_error(ended: Ended) -> LocalError {
    let reason = ended.to_string();
    match ended {
        Ended::Busy { retry_after, .. } | Ended::HostFull { retry_after, .. } => LocalError::Busy {
            retry_after,
            reason,
        },
        Ended::Timeout { .. } | Ended::CallerTimeout { .. } => LocalError::TimedOut { reason },
        Ended::BodyTooLarge {
            side: BodySide::Request,
            ..
        } => LocalError::TooLarge { reason },
        _ => LocalError::Failed { reason },
    }
}

/// All http replicas of this runner.
pub(super) struct Locals {
    members: RwLock<HashMap<WorkloadKey, Vec<Arc<Member>>>>,
    /// How many are on their way, from the first word of them to their last: those that rest too.
    coming: Mutex<HashMap<WorkloadKey, Way>>,
    /// Told when a member becomes ready, and when one more is on its way.
    stirred: Notify,
    daemon: mpsc::Sender<FromRunner>,
    /// Breaks ties between equally loaded members.
    turn: AtomicUsize,
}

/// A member's place in the table.
pub(super) struct Membership {
    locals: Arc<Locals>,
    workload: WorkloadKey,
    member: Arc<Member>,
}

impl Drop for Membership {
    fn drop(&mut self) {
        self.member.stage.store(CLOSED, Ordering::SeqCst);
        let mut members = self
            .locals
            .members
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(of_workload) = members.get_mut(&self.workload) {
            of_workload.retain(|held| !Arc::ptr_eq(held, &self.member));
            if of_workload.is_empty() {
                members.remove(&self.workload);
            }
        }
    }
}

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

/// A request that waits for a replica to become ready.
struct Waiting<'a>(&'a Locals, &'a WorkloadKey);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.let_go(self.1, |way| &mut way.waiting);
    }
}

/// One replica that is on its way, or there.
pub(super) struct Coming {
    locals: Arc<Locals>,
    workload: WorkloadKey,
}

impl Drop for Coming {
    fn drop(&mut self) {
        self.locals.let_go(&self.workload, |way| &mut way.replicas);
        // Whoever waits for it may wait in vain now.
        self.locals.stirred.notify_waiters();
    }
}

impl Locals {
    /// None yet; the daemon is told when one is to wake.
    pub(super) fn new(daemon: mpsc::Sender<FromRunner>) -> Self {
        Self {
            members: RwLock::default(),
            coming: Mutex::default(),
            stirred: Notify::new(),
            daemon,
            turn: AtomicUsize::new(0),
        }
    }

    fn coming(&self) -> MutexGuard<'_, HashMap<WorkloadKey, Way>> {
        self.coming.lock().unwrap_or_else(PoisonError::into_inner)
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
    pub(super) fn comes(self: &Arc<Self>, workload: WorkloadKey, most: usize) -> Coming {
        let mut coming = self.coming();
        let way = coming.entry(workload.clone()).or_default();
        way.replicas += 1;
        way.began += 1;
        way.most = most;
        drop(coming);
        self.stirred.notify_waiters();
        Coming {
            locals: self.clone(),
            workload,
        }
    }

    pub(super) fn join(self: &Arc<Self>, workload: WorkloadKey, member: Arc<Member>) -> Membership {
        let mut members = self.members.write().unwrap_or_else(PoisonError::into_inner);
        members
            .entry(workload.clone())
            .or_default()
            .push(member.clone());
        drop(members);
        Membership {
            locals: self.clone(),
            workload,
            member,
        }
    }

    fn look<R>(&self, workload: &WorkloadKey, f: impl FnOnce(&[Arc<Member>]) -> R) -> R {
        // Held for reading by requests and for writing when replicas come and go.
        let members = self.members.read().unwrap_or_else(PoisonError::into_inner);
        f(members.get(workload).map_or(&[], Vec::as_slice))
    }

    /// The member for a request: serving before leaving, of the revision whose turn it is before
    /// others, then the least loaded, in turn.
    fn choose(
        &self,
        workload: &WorkloadKey,
        canary: Option<Canary>,
    ) -> Result<Arc<Member>, Missing> {
        self.look(workload, |members| {
            let at = |stage| members.iter().filter(move |member| member.stage() == stage);
            let turns = |member: &&Arc<Member>| {
                let canary = canary
                    .is_none_or(|canary| (member.revision == canary.revision) == canary.chosen);
                member.stage() == SERVING && canary
            };
            let turn = self.pick(|| members.iter().filter(turns));
            // One that is full gives its turn away: another may have room.
            let turn = turn.filter(|member| member.guest.has_room());
            let any = || self.pick(|| at(SERVING));
            match turn.or_else(any).or_else(|| self.pick(|| at(LEAVING))) {
                Some(member) => Ok(member.clone()),
                None if at(CLOSED).next().is_some() => Err(Missing::Closed),
                None => Err(Missing::NotReady),
            }
        })
    }

    /// The least loaded of some, in turn.
    fn pick<'m, I>(&self, some: impl Fn() -> I) -> Option<&'m Arc<Member>>
    where
        I: Iterator<Item = &'m Arc<Member>>,
    {
        match some().count() {
            0 => None,
            1 => some().next(),
            count => {
                let start = self.turn.fetch_add(1, Ordering::Relaxed) % count;
                let rotated = some().skip(start).chain(some().take(start));
                rotated.min_by_key(|member| member.load())
            }
        }
    }
}

/// Why there is no member for a request.
enum Missing {
    NotReady,
    Closed,
}

#[async_trait]
impl Local for Locals {
    /// Those that take requests: leaving ones count only when no other does.
    fn ready(&self, workload: &WorkloadKey) -> u32 {
        self.look(workload, |members| {
            let count = |stage| {
                members
                    .iter()
                    .filter(|member| member.stage() == stage)
                    .count()
            };
            let serving = count(SERVING);
            let ready = if serving > 0 { serving } else { count(LEAVING) };
            u32::try_from(ready).unwrap_or(u32::MAX)
        })
    }

    fn has_room(&self, workload: &WorkloadKey) -> bool {
        self.look(workload, |members| {
            members.iter().any(|member| {
                matches!(member.stage(), SERVING | LEAVING) && member.guest.has_room()
            })
        })
    }

    fn load(&self, workload: &WorkloadKey) -> u32 {
        let load = self.look(workload, |members| {
            members.iter().map(|member| member.load()).sum::<usize>()
        });
        u32::try_from(load).unwrap_or(u32::MAX)
    }

    async fn wake(&self, workload: &WorkloadKey) -> bool {
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
            if self.ready(workload) > 0 {
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
                let _ = self.daemon.send(FromRunner::Wake { workload }).await;
            }
            let patience = if comes { WAKES_WITHIN } else { COMES_WITHIN };
            if timeout_at(began + patience, stirred).await.is_err() {
                return false;
            }
        }
    }

    async fn handle(
        &self,
        workload: &WorkloadKey,
        request: Request<Body>,
    ) -> Result<Response<Body>, LocalError> {
        let canary = request.extensions().get::<Canary>().copied();
        match self.choose(workload, canary) {
            Ok(member) => member.handle(request).await,
            Err(Missing::NotReady) => Err(LocalError::NotHere(request)),
            Err(Missing::Closed) => Err(LocalError::Refused(request)),
        }
    }
}

/// Calls over NATS: taken while it rests, and while it is ready.
pub(super) struct Calls {
    ready: watch::Sender<bool>,
    /// The server has confirmed that they are taken.
    listens: watch::Receiver<bool>,
    draining: CancellationToken,
    tasks: JoinSet<()>,
}

impl Calls {
    /// Taken from here on, or when it is ready.
    pub(super) fn begin(life: &Life, at_once: bool) -> Self {
        let (ready, readiness) = watch::channel(at_once);
        let (listening, listens) = watch::channel(false);
        let draining = CancellationToken::new();
        let mut tasks = JoinSet::new();
        tasks.spawn(invoke::serve(
            life.context.clone(),
            invoke::Callee::of(life),
            readiness,
            listening,
            draining.clone(),
        ));
        Self {
            ready,
            listens,
            draining,
            tasks,
        }
    }

    /// Takes none any more, and returns when those in hand are answered.
    pub(super) async fn end(&mut self) {
        self.draining.cancel();
        while self.tasks.join_next().await.is_some() {}
    }
}

/// The life of an http replica: probed while it serves, called over NATS while it is ready, and
/// drained when it is told to.
pub(super) async fn live(mut life: Life, guest: Arc<HttpReplica>) -> End {
    let (logs, tally) = (life.logs.clone(), life.counts.tally.clone());
    let member = Arc::new(Member::new(guest, life.launch.revision, logs, tally));
    let _seat = life
        .context
        .locals
        .join(life.replica.workload.clone(), member.clone());
    life.context.tunnels.listen();
    let resting = life.calls.take();
    let mut calls = resting.unwrap_or_else(|| Calls::begin(&life, false));
    let listens = calls.listens.clone();
    let mut orders = life.orders.clone();
    let failed = tokio::select! {
        biased;
        _ = orders.ending() => None,
        reason = watched(&life, &member, &calls.ready, listens) => Some(reason),
    };
    if let Some(reason) = failed {
        // The next attempt starts at once: nothing of this one may run beside it.
        member.stage.store(CLOSED, Ordering::SeqCst);
        calls.tasks.shutdown().await;
        member.guest.stop();
        member.guest.idle().await;
        return End::failed(reason);
    }
    // At once, also while it still leaves.
    calls.draining.cancel();
    let drained = async {
        member.drain().await;
        calls.end().await;
    };
    tokio::select! {
        biased;
        () = life.orders.cut_off() => {}
        () = drained => {}
    }
    // Cuts off what is still in hand; when it was drained there is nothing.
    member.guest.stop();
    End::Stopped
}

/// Readiness waits so long, at the most, for calls over NATS to be taken. Without NATS nobody can
/// call or hear of it anyway, and requests are already served.
const LISTENING_MAX: Duration = Duration::from_secs(2);

/// Waits until the server has confirmed that calls are taken, if calls are taken at all.
async fn until_listening(listens: &mut watch::Receiver<bool>) {
    let confirmed = listens.wait_for(|listening| *listening);
    // Late or never: the replica serves its gateway all the same.
    drop(tokio::time::timeout(LISTENING_MAX, confirmed).await);
}

/// Probes the guest and tells what changes. Returns only when it fails its liveness probe.
async fn watched(
    life: &Life,
    member: &Member,
    ready: &watch::Sender<bool>,
    mut listens: watch::Receiver<bool>,
) -> String {
    let host = life.host_name();
    let spec = &life.launch.spec;
    let readiness = async {
        let Some(probe) = &spec.health.ready else {
            // Prepared is all that is asked for.
            member.set_ready(true);
            life.context.locals.stirred.notify_waiters();
            ready.send_replace(true);
            until_listening(&mut listens).await;
            return life.health(true, None).await;
        };
        let mut prober = Prober::new("health.ready", &member.guest, probe, &host);
        let mut judge = Judge::new(probe);
        loop {
            let (passing, reason) = match judge.take(prober.next().await) {
                None => continue,
                Some(Change::Passing) => (true, None),
                Some(Change::Failing(reason)) => (false, Some(reason)),
            };
            member.set_ready(passing);
            life.context.locals.stirred.notify_waiters();
            ready.send_replace(passing);
            if passing {
                until_listening(&mut listens).await;
            }
            life.health(passing, reason).await;
        }
    };
    let liveness = async {
        let Some(probe) = &spec.health.live else {
            return std::future::pending().await;
        };
        tokio::time::sleep(spec.health.start_grace.0).await;
        let mut prober = Prober::new("health.live", &member.guest, probe, &host);
        let mut judge = Judge::new(probe);
        loop {
            let verdict = prober.next().await;
            let failed = match &verdict {
                Verdict::Fail(why) => Some(why.clone()),
                _ => None,
            };
            judge.take(verdict);
            if let Some(why) = failed.filter(|_| judge.failed() >= probe.fail.max(1)) {
                return format!(
                    "health.live failed {} times in a row (health.live.fail): {why}",
                    judge.failed()
                );
            }
        }
    };
    let mut liveness = std::pin::pin!(liveness);
    tokio::select! {
        reason = &mut liveness => return reason,
        () = readiness => {}
    }
    liveness.await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_what_the_gateway_needs_to_know() {
        let second = Duration::from_secs(1);
        let busy = Ended::Busy {
            concurrency: 1,
            queue: 1,
            retry_after: second,
        };
        assert!(
            matches!(local_error(busy), LocalError::Busy { retry_after, .. } if retry_after == second)
        );
        let late = Ended::Timeout { limit: second };
        assert!(matches!(local_error(late), LocalError::TimedOut { .. }));
        let large = |side| {
            local_error(Ended::BodyTooLarge {
                side,
                limit_bytes: 1,
            })
        };
        assert!(matches!(
            large(BodySide::Request),
            LocalError::TooLarge { .. }
        ));
        assert!(matches!(
            large(BodySide::Response),
            LocalError::Failed { .. }
        ));
        let trap = Ended::Trap {
            message: "unreachable".into(),
            backtrace: String::new(),
        };
        assert!(
            matches!(local_error(trap), LocalError::Failed { reason } if reason.contains("unreachable"))
        );
    }
}
