//! Requests of one 0.3 component side by side in one instance (`instance.concurrency` above 1).
//!
//! ```text
//!   request ── joins ──> an instance that rests, or one that waits for its host; else a new one
//!                        a task of its own drives it on, for all that are in it
//!   answered, and nothing runs any more ──> rests, or is dropped when it has served enough
//! ```
//!
//! While a guest waits (for a time, another host, its client), others use its instance: fewer instances,
//! less memory.
//!
//! Invariants:
//! - Requests of one instance share its fate: a trap, a limit, a request that is out of time while the guest
//!   runs and does not let go, ends all.
//! - A request that was given up cannot be taken out of its instance: nobody joins that any more, and it goes
//!   with the last of the others.
//! - Which request a line or a call of the guest belongs to is known only while there is one: beside others
//!   lines name none, and calls inherit the most hops and the latest deadline of those in it.
//! - Nobody polls an instance but its task: a guest may call its own workload, and so its own instance.

mod instance;
mod told;

use std::pin::Pin;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::Poll;

use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use self::instance::{After, State, serve};
use self::told::until_its_end;
use crate::artifact::Code;
use crate::body::RequestBody;
use crate::ended::Ended;
use crate::gate::Seat;
use crate::guest::{Deadline, Metered, Watch, bounded};
use crate::http::{Head, HeadSender, HttpPre, has_body};
use crate::logs::RequestTag;
use crate::outbound::Lineage;
use crate::reuse::{Idle, Pool};
use crate::state::ReplicaShared;

/// One request, on its way into an instance.
pub(crate) struct Job {
    pub(crate) request: http::Request<RequestBody>,
    pub(crate) tag: RequestTag,
    pub(crate) head: HeadSender,
}

/// What a request brings besides.
pub(crate) struct Terms {
    /// The request's own.
    pub(crate) watch: Arc<Watch>,
    pub(crate) lineage: Lineage,
    pub(crate) deadline: Option<Deadline>,
    pub(crate) seat: Option<Seat>,
}

/// The instances of one replica that may take more requests.
pub(crate) struct Crew {
    shared: Arc<ReplicaShared>,
    resting: Arc<Pool>,
    /// Those with requests in them, or with work that goes on after these.
    busy: Mutex<Vec<Arc<Together>>>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

/// One instance. Dropped with the last who knows it: its requests, `busy`, the pool of those that rest.
pub(crate) struct Together {
    state: Arc<State>,
    guest: Arc<Mutex<Option<Guest>>>,
    _task: AbortOnDropHandle<()>,
}

/// What its task polls.
type Guest = Pin<Box<dyn Future<Output = ()> + Send>>;

impl Crew {
    pub(crate) fn new(
        shared: &Arc<ReplicaShared>,
        resting: &Arc<Pool>,
        (tasks, stop): (&TaskTracker, &CancellationToken),
    ) -> Arc<Self> {
        Arc::new(Self {
            shared: shared.clone(),
            resting: resting.clone(),
            busy: Mutex::default(),
            tasks: tasks.clone(),
            stop: stop.clone(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Together>>> {
        // A panic while it was held leaves a list that is usable.
        self.busy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets all: who is in them goes on.
    pub(crate) fn close(&self) {
        let busy = std::mem::take(&mut *self.lock());
        drop(busy);
    }

    /// Runs a request in an instance, until its answer was read or given up. Must be called in a tokio
    /// runtime.
    pub(crate) fn run(
        self: &Arc<Self>,
        code: Arc<Code>,
        job: Job,
        terms: Terms,
    ) -> wasmtime::Result<impl Future<Output = ()> + Send + use<>> {
        let mut member = self.join(code, terms.lineage)?;
        terms.watch.joined(&member.instance.state.watch);
        let Job { request, tag, head } = job;
        let is_head = request.method() == http::Method::HEAD;
        let (tx, rx) = oneshot::channel();
        let state = member.instance.state.clone();
        let job = Job {
            request,
            tag,
            head: tx,
        };
        state.inbox().push_back(job);
        state.came.wake();
        if state.over.load(SeqCst) {
            // It ended meanwhile, and nobody will look.
            state.inbox().clear();
        }
        let crew = self.clone();
        Ok(async move {
            let answered = deliver(rx, head, is_head);
            let answered = match terms.deadline {
                Some(limit) => tokio::time::timeout_at(limit.at, answered).await,
                None => Ok(answered.await),
            };
            match answered {
                // The end of a body that broke off is an end, too.
                Ok(answered) => member.is_well = answered && state.watch.ended().is_none(),
                Err(_) => {
                    terms.deadline.map(|limit| terms.watch.end_late(limit));
                    state.overdue.store(true, SeqCst);
                    state.came.wake();
                }
            }
            if !member.is_well {
                let why = terms.watch.ended().cloned();
                terms.watch.end(why.unwrap_or(Ended::NoResponse));
            }
            if terms.watch.request_failure().is_some() {
                state.close();
            }
            crew.left(member, terms.deadline, terms.seat);
        })
    }

    /// One that rests; the one with the fewest requests of those that wait for their host; a new one.
    fn join(self: &Arc<Self>, code: Arc<Code>, lineage: Lineage) -> wasmtime::Result<Member> {
        let mut busy = self.lock();
        let mut resting = std::iter::from_fn(|| match self.resting.take()? {
            Idle::Together(resting) => Some(resting),
            Idle::Alone(_) => None,
        });
        let instance = if let Some(resting) = resting.find(|one| one.state.is_open()) {
            busy.push(resting.clone());
            resting
        } else {
            let inside = |one: &&Arc<Together>| one.state.inside.load(SeqCst);
            let most = self.shared.config.reuse.concurrency as usize;
            let found = busy.iter().filter(|one| one.state.may_be_joined(most));
            if let Some(found) = found.min_by_key(inside) {
                found.clone()
            } else {
                let made = Arc::new(self.make(code)?);
                busy.push(made.clone());
                made
            }
        };
        // Before the lock is let go: whoever sends it to rest looks whether anybody is in it.
        Ok(Member::new(instance, self, lineage))
    }

    /// An instance, started by its task.
    fn make(self: &Arc<Self>, code: Arc<Code>) -> wasmtime::Result<Together> {
        let shared = &self.shared;
        let tag = RequestTag::none();
        let state = State::new(shared.watch_of_several(), Arc::downgrade(self));
        let state = Arc::new(state);
        let mut wasi = shared.wasi()?;
        let lines = shared.log_streams(&mut wasi, &tag);
        let mut store = shared.store(wasi.build(), tag, &state.watch);
        let data = store.data_mut();
        data.may_be_kept(lines, Arc::downgrade(&self.resting));
        data.hooks.inherit_of_all(state.lineages.clone());
        let (own, stop) = (state.clone(), self.stop.clone());
        let guest = async move {
            let serving = async {
                let HttpPre::P3(pre) = code.http(&store.data().shared)? else {
                    wasmtime::bail!("it is of 0.2: that serves one request at a time");
                };
                let service = pre.instantiate_async(&mut store).await?;
                serve(&own, &service, &mut store).await
            };
            tokio::select! {
                biased;
                () = stop.cancelled() => drop(own.watch.end(Ended::Stopped)),
                () = own.stop.cancelled() => {}
                // How it failed is in its watch.
                _ = bounded(&own.watch, None, own.watched(serving)) => {}
            }
            own.close();
            own.over.store(true, SeqCst);
            // What its requests wait for breaks off with the store, and they look for the reason then.
            drop(store);
            own.inbox().clear();
            own.settled();
        };
        let guest: Guest = Box::pin(Metered::new(shared.meter.clone(), guest));
        let guest = Arc::new(Mutex::new(Some(guest)));
        let polled = guest.clone();
        let task = self.tasks.spawn(std::future::poll_fn(move |cx| {
            let mut guest = polled.lock().unwrap_or_else(PoisonError::into_inner);
            match guest.as_mut() {
                Some(guest) => guest.as_mut().poll(cx),
                None => Poll::Ready(()),
            }
        }));
        Ok(Together {
            state,
            guest,
            _task: AbortOnDropHandle::new(task),
        })
    }

    /// A request is over. Its instance rests when nothing runs in it any more; what still does keeps the
    /// seat and the time of the last request.
    fn left(&self, member: Member, deadline: Option<Deadline>, seat: Option<Seat>) {
        let (instance, is_well) = (member.instance.clone(), member.is_well);
        drop(member);
        let state = instance.state.clone();
        let after = After {
            instance,
            deadline,
            _seat: seat,
        };
        {
            // Nobody joins meanwhile.
            let _busy = self.lock();
            if is_well && !state.is_used() && !state.abandoned.load(SeqCst) {
                *state.after() = Some(after);
            }
        }
        if state.is_settled() {
            state.settled();
        } else {
            // Its task has a time to look at.
            state.came.wake();
        }
    }

    /// From those that are busy to those that rest, unless somebody has joined meanwhile, or was first.
    fn rest(&self, instance: Arc<Together>) {
        let state = &instance.state;
        let mut busy = self.lock();
        let at = busy.iter().position(|one| Arc::ptr_eq(one, &instance));
        let Some(at) = at.filter(|_| !state.is_used() && state.is_settled()) else {
            return;
        };
        busy.swap_remove(at);
        drop(busy);
        if state.is_open() {
            self.resting.rest(Idle::Together(instance));
        }
    }
}

impl Drop for Together {
    fn drop(&mut self) {
        // Its memory is wanted now, not when its task comes to its end; unless that is what drops it.
        let guest = self
            .guest
            .try_lock()
            .ok()
            .and_then(|mut guest| guest.take());
        drop(guest);
    }
}

/// A request's place in an instance.
struct Member {
    instance: Arc<Together>,
    crew: Weak<Crew>,
    lineage: Lineage,
    is_well: bool,
}

impl Member {
    fn new(instance: Arc<Together>, crew: &Arc<Crew>, lineage: Lineage) -> Self {
        let state = &instance.state;
        state.inside.fetch_add(1, SeqCst);
        // What went on has the time of this one, now.
        let before = state.after().take();
        drop(before);
        state.lineages.add(lineage);
        if state.joined.fetch_add(1, SeqCst) + 1 >= crew.shared.config.reuse.requests {
            state.close();
        }
        Self {
            instance,
            crew: Arc::downgrade(crew),
            lineage,
            is_well: false,
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let state = &self.instance.state;
        if !self.is_well {
            state.abandoned.store(true, SeqCst);
            state.close();
        }
        state.lineages.remove(self.lineage);
        state.inside.fetch_sub(1, SeqCst);
        if !state.is_open()
            && let Some(crew) = self.crew.upgrade()
        {
            // Nothing is dropped under the lock: this one still has it.
            crew.lock().retain(|one| !Arc::ptr_eq(one, &self.instance));
        }
    }
}

/// Hands the answer over, and waits until it was read to its end; whether it was. When this is dropped, so is
/// what is left of the body.
async fn deliver(head: oneshot::Receiver<Head>, answer: HeadSender, is_head: bool) -> bool {
    match head.await {
        Ok(Ok(response)) => {
            let has_body = has_body(is_head, response.status());
            let (response, ended, _cut) = until_its_end(response);
            _ = answer.send(Ok(response));
            // Nobody reads what is no body.
            !has_body || ended.await.is_ok()
        }
        Ok(Err(code)) => {
            _ = answer.send(Err(code));
            true
        }
        Err(_) => false,
    }
}
