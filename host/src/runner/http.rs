//! The http replicas of this runner as the gateway sees them, and how one of them is drained.
//!
//! ```text
//!   joined ──ready──> serving ──drain──> leaving ──withdrawn──> closed ──(idle)──> gone
//!                     new requests       new requests,          refused: the gateway
//!                                        when no other serves   goes elsewhere
//! ```
//!
//! Invariants:
//! - A request that gets [`LocalError::Refused`] or [`LocalError::NotHere`] was not executed, and
//!   is given back whole.
//! - The lock is held for a look-up only, never while a guest runs.
//! - A member leaves the table when its [`Membership`] is dropped, however its task ended.

mod choice;
mod member;
mod waking;

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use async_trait::async_trait;
use http::{Request, Response};
use tokio::sync::mpsc;
use wasmorch_api::WorkloadKey;
use wasmorch_gateway::{Body, Canary, Local, LocalError};
use wasmorch_runtime::HttpReplica;

use super::calls::Calls;
use super::probe::{Change, Judge, Prober, Verdict};
use super::protocol::FromRunner;
use super::replica::{End, Life, Resting};
use choice::{Candidate as _, Choice, Missing};
use member::{LEAVING, Member, SERVING};
pub(super) use waking::Coming;
use waking::Waking;

/// All http replicas of this runner.
pub(super) struct Locals {
    members: RwLock<HashMap<WorkloadKey, Vec<Arc<Member>>>>,
    waking: Arc<Waking>,
    choice: Choice,
}

/// A member's place in the table.
pub(super) struct Membership {
    locals: Arc<Locals>,
    workload: WorkloadKey,
    member: Arc<Member>,
}

impl Drop for Membership {
    fn drop(&mut self) {
        self.member.close();
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

impl Locals {
    /// None yet; the daemon is told when one is to wake.
    pub(super) fn new(daemon: mpsc::Sender<FromRunner>) -> Self {
        Self {
            members: RwLock::default(),
            waking: Arc::new(Waking::new(daemon)),
            choice: Choice::default(),
        }
    }

    pub(super) fn waking(&self) -> &Arc<Waking> {
        &self.waking
    }

    /// None is ready, and one is on its way, or rests.
    pub(super) fn awaits(&self, workload: &WorkloadKey) -> bool {
        self.ready(workload) == 0 && self.waking.comes_one(workload)
    }

    fn join(self: &Arc<Self>, workload: WorkloadKey, member: Arc<Member>) -> Membership {
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

    /// Takes down that a member failed a request by its own fault.
    fn failed(&self, workload: &WorkloadKey, member: &Member) {
        if self.look(workload, |members| Choice::failed(members, member)) {
            let revision = member.revision;
            tracing::warn!(%workload, %revision, "replica ejected: it failed many times in a row");
        }
    }
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
        self.waking
            .wake(workload, || self.ready(workload) > 0)
            .await
    }

    async fn handle(
        &self,
        workload: &WorkloadKey,
        request: Request<Body>,
    ) -> Result<Response<Body>, LocalError> {
        let canary = request.extensions().get::<Canary>().copied();
        let chosen = self.look(workload, |members| {
            self.choice.choose(members, canary).cloned()
        });
        match chosen {
            Ok(member) => match member.handle(request).await {
                Ok(response) => {
                    member.health.succeeded();
                    Ok(response)
                }
                Err((error, blamed)) => {
                    if blamed {
                        self.failed(workload, &member);
                    }
                    Err(error)
                }
            },
            Err(Missing::NotReady) => Err(LocalError::NotHere(request)),
            Err(Missing::Closed) => Err(LocalError::Refused(request)),
        }
    }
}

/// The life of an http replica: probed while it serves, called over NATS while it is ready, and
/// drained when it is told to.
pub(super) async fn live(mut life: Life, guest: Arc<HttpReplica>) -> End {
    let (logs, tally) = (life.logs.clone(), life.counts.tally.clone());
    let member = Arc::new(Member::new(guest, life.launch.revision.number, logs, tally));
    let _seat = life
        .context
        .locals
        .join(life.replica.workload.clone(), member.clone());
    life.context.tunnels.listen();
    let rested = match life.resting.take() {
        Some(Resting::Calls(calls)) => Some(calls),
        _ => None,
    };
    let mut calls = rested.unwrap_or_else(|| Calls::new(&life));
    let mut orders = life.orders.clone();
    let failed = tokio::select! {
        biased;
        _ = orders.ending() => None,
        reason = watched(&life, &member, &mut calls) => Some(reason),
    };
    if let Some(reason) = failed {
        // The next attempt starts at once: nothing of this one may run beside it.
        member.close();
        calls.close();
        member.guest.stop();
        member.guest.idle().await;
        return End::failed(reason);
    }
    // At once, also while it still leaves.
    calls.close();
    let mut leaving = life.orders.clone();
    tokio::select! {
        biased;
        () = life.orders.cut_off() => {}
        () = member.drain(leaving.withdrawn()) => {}
    }
    // Cuts off what is still in hand; when it was drained there is nothing.
    member.guest.stop();
    End::Stopped
}

/// Readiness waits so long, at the most, for calls over NATS to be taken. Without NATS nobody can
/// call or hear of it anyway, and requests are already served.
const LISTENING_MAX: Duration = Duration::from_secs(2);

/// Waits until the server has confirmed that calls are taken, if calls are taken at all.
async fn until_listening(calls: &mut Calls) {
    let confirmed = calls.listens(|listening| listening);
    // Late or never: the replica serves its gateway all the same.
    drop(tokio::time::timeout(LISTENING_MAX, confirmed).await);
}

/// Probes the guest and tells what changes. Returns only when it fails its liveness probe.
async fn watched(life: &Life, member: &Member, calls: &mut Calls) -> String {
    let host = life.host_name();
    let spec = &life.launch.revision.spec;
    let readiness = async {
        let Some(probe) = &spec.health.ready else {
            // Prepared is all that is asked for.
            member.set_ready(true);
            life.context.locals.waking.stir();
            calls.open();
            until_listening(calls).await;
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
            life.context.locals.waking.stir();
            if passing {
                calls.open();
                until_listening(calls).await;
            } else {
                calls.close();
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
