//! Requests of one 0.3 component side by side in one instance (`instance.reuse` above 1).
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

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::stream::{FuturesUnordered, StreamExt as _};
use futures::task::AtomicWaker;
use http_body_util::BodyExt as _;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};
use wasmtime::Store;
use wasmtime::component::Accessor;
use wasmtime_wasi_http::p3::Request as RequestP3;
use wasmtime_wasi_http::p3::bindings::{Service, ServicePre};
use wasmtime_wasi_http::{WasiBody, WasiHttpView as _};

use crate::body::RequestBody;
use crate::ended::Ended;
use crate::gate::Seat;
use crate::guest::{Deadline, Metered, Watch, bounded};
use crate::http::{Head, HeadSender, RequestIo};
use crate::logs::RequestTag;
use crate::outbound::{Lineage, Lineages};
use crate::reuse::{Idle, Pool};
use crate::state::{GuestState, ReplicaShared};

/// Requests in one instance at the same time, as in `wasmtime serve`.
const AT_ONCE: usize = 16;

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
    /// Its body was too large.
    pub(crate) exceeded: Arc<AtomicBool>,
}

/// The instances of one replica that may take more requests.
pub(crate) struct Crew {
    shared: Arc<ReplicaShared>,
    pre: ServicePre<GuestState>,
    resting: Arc<Pool>,
    /// Those with requests in them, or with work that goes on after these.
    busy: Mutex<Vec<Arc<Together>>>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

/// One instance. Dropped with the last who knows it: its requests, `busy`, the pool of those that rest.
pub(crate) struct Together {
    state: Arc<State>,
    _task: AbortOnDropHandle<()>,
}

/// What an instance and its requests tell each other.
struct State {
    watch: Arc<Watch>,
    lineages: Arc<Lineages>,
    inbox: Mutex<VecDeque<Job>>,
    /// Wakes its task to look into the inbox.
    came: AtomicWaker,
    /// Requests in it.
    inside: AtomicUsize,
    /// Requests that ever were.
    joined: AtomicU32,
    /// It may serve more.
    open: AtomicBool,
    /// A request in it was given up before its end.
    abandoned: AtomicBool,
    /// The guest ran when it was last looked at, or made a call that lets no other run.
    held: AtomicBool,
    /// Nothing runs in it.
    quiet: AtomicBool,
    over: AtomicBool,
    /// What it goes on with has this.
    after: Mutex<Option<After>>,
    crew: Weak<Crew>,
    stop: CancellationToken,
}

/// What the last request leaves to what goes on after it.
struct After {
    /// Nobody else may know it any more.
    instance: Arc<Together>,
    deadline: Option<Deadline>,
    _seat: Option<Seat>,
}

impl Crew {
    pub(crate) fn new(
        shared: &Arc<ReplicaShared>,
        pre: ServicePre<GuestState>,
        resting: &Arc<Pool>,
        (tasks, stop): (&TaskTracker, &CancellationToken),
    ) -> Arc<Self> {
        Arc::new(Self {
            shared: shared.clone(),
            pre,
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
        job: Job,
        terms: Terms,
    ) -> wasmtime::Result<impl Future<Output = ()> + Send + use<>> {
        let mut member = self.join(terms.lineage)?;
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
                    terms.deadline.map(|limit| terms.watch.end(limit.passed()));
                    if state.held.load(SeqCst) {
                        state.end(neighbour("is out of time and does not let go"));
                    }
                }
            }
            if !member.is_well {
                let why = state.watch.ended().cloned();
                terms.watch.end(why.unwrap_or(Ended::NoResponse));
            }
            if terms.exceeded.load(SeqCst) {
                state.close();
            }
            crew.left(member, terms.deadline, terms.seat);
        })
    }

    /// One that rests; the one with the fewest requests of those that wait for their host; a new one.
    fn join(self: &Arc<Self>, lineage: Lineage) -> wasmtime::Result<Member> {
        let mut busy = self.lock();
        let instance = if let Some(Idle::Together(resting)) = self.resting.take() {
            busy.push(resting.clone());
            resting
        } else {
            let inside = |one: &&Arc<Together>| one.state.inside.load(SeqCst);
            let found = busy.iter().filter(|one| one.state.may_be_joined());
            if let Some(found) = found.min_by_key(inside) {
                found.clone()
            } else {
                let made = Arc::new(self.make()?);
                busy.push(made.clone());
                made
            }
        };
        // Before the lock is let go: whoever sends it to rest looks whether anybody is in it.
        Ok(Member::new(instance, self, lineage))
    }

    /// An instance, started by its task.
    fn make(self: &Arc<Self>) -> wasmtime::Result<Together> {
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
        let (pre, own, stop) = (self.pre.clone(), state.clone(), self.stop.clone());
        let guest = async move {
            let serving = async {
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
        let task = self.tasks.spawn(Metered::new(shared.meter.clone(), guest));
        Ok(Together {
            state,
            _task: AbortOnDropHandle::new(task),
        })
    }

    /// A request is over. Its instance rests when nothing runs in it any more; what still does keeps the
    /// seat and the time of the last request.
    fn left(&self, member: Member, deadline: Option<Deadline>, seat: Option<Seat>) {
        let (instance, is_well) = (member.instance.clone(), member.is_well);
        drop(member);
        let state = instance.state.clone();
        if !is_well || state.is_used() || state.abandoned.load(SeqCst) {
            return;
        }
        let after = After {
            instance,
            deadline,
            _seat: seat,
        };
        *state.after() = Some(after);
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
        let Some(at) = at.filter(|_| state.is_open() && !state.is_used() && state.is_settled())
        else {
            return;
        };
        busy.swap_remove(at);
        drop(busy);
        self.resting.rest(Idle::Together(instance));
    }
}

fn neighbour(did: &str) -> Ended {
    Ended::Trap {
        message: format!("the instance was ended, because another request in it {did}"),
        backtrace: String::new(),
    }
}

impl State {
    fn new(watch: Arc<Watch>, crew: Weak<Crew>) -> Self {
        Self {
            watch,
            lineages: Arc::default(),
            inbox: Mutex::default(),
            came: AtomicWaker::new(),
            inside: AtomicUsize::new(0),
            joined: AtomicU32::new(0),
            open: AtomicBool::new(true),
            abandoned: AtomicBool::new(false),
            held: AtomicBool::new(false),
            quiet: AtomicBool::new(false),
            over: AtomicBool::new(false),
            after: Mutex::default(),
            crew,
            stop: CancellationToken::new(),
        }
    }

    fn inbox(&self) -> MutexGuard<'_, VecDeque<Job>> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_open(&self) -> bool {
        self.open.load(SeqCst)
    }

    fn close(&self) {
        self.open.store(false, SeqCst);
    }

    fn is_used(&self) -> bool {
        self.inside.load(SeqCst) > 0
    }

    fn is_settled(&self) -> bool {
        self.over.load(SeqCst) || (self.quiet.load(SeqCst) && self.inbox().is_empty())
    }

    fn after(&self) -> MutexGuard<'_, Option<After>> {
        self.after.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nothing runs in it any more: the seat is free, and it rests.
    fn settled(&self) {
        let after = self.after().take();
        if let Some((after, crew)) = after.zip(self.crew.upgrade()) {
            crew.rest(after.instance);
        }
    }

    /// Until when what goes on after the last request may do so.
    fn until(&self) -> Option<tokio::time::Instant> {
        let after = self.after();
        Some(after.as_ref()?.deadline?.at)
    }

    /// One that met a limit, is to give way, or whose guest holds on to it, is left to those who are in it.
    fn may_be_joined(&self) -> bool {
        self.is_open()
            && self.inside.load(SeqCst) < AT_ONCE
            && !self.held.load(SeqCst)
            && !self.watch.pace().is_queued()
            && !self.watch.was_denied()
    }

    /// Ends it, with all that is in it.
    fn end(&self, why: Ended) {
        self.watch.end(why);
        self.close();
        self.stop.cancel();
    }

    /// Polls `serving`, which says when the guest has let go of the store, and ends what goes on for too
    /// long after the last request.
    async fn watched<R>(&self, serving: impl Future<Output = R>) -> R {
        tokio::pin!(serving);
        let mut timer: Option<Pin<Box<tokio::time::Sleep>>> = None;
        std::future::poll_fn(|cx| {
            self.held.store(true, SeqCst);
            let polled = serving.as_mut().poll(cx);
            if polled.is_pending() {
                timer = self.until().map(|at| match timer.take() {
                    Some(timer) if timer.deadline() == at => timer,
                    _ => Box::pin(tokio::time::sleep_until(at)),
                });
                if let Some(timer) = &mut timer
                    && timer.as_mut().poll(cx).is_ready()
                {
                    self.end(neighbour("went on for too long after its answer"));
                }
            }
            polled
        })
        .await
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

/// Hands the answer over, and waits until it was read to its end; whether it was. Nobody reads the body of
/// an answer to HEAD.
async fn deliver(head: oneshot::Receiver<Head>, answer: HeadSender, is_head: bool) -> bool {
    match head.await {
        Ok(Ok(response)) => {
            let (response, ended) = until_its_end(response);
            _ = answer.send(Ok(response));
            ended.await.is_ok() || is_head
        }
        Ok(Err(code)) => {
            _ = answer.send(Err(code));
            true
        }
        Err(_) => false,
    }
}

/// Takes requests from the inbox for as long as the instance is open or has some.
async fn serve(
    state: &State,
    service: &Service,
    store: &mut Store<GuestState>,
) -> wasmtime::Result<()> {
    store
        .run_concurrent(async |accessor| {
            let mut running = FuturesUnordered::new();
            std::future::poll_fn(|cx| {
                loop {
                    match running.poll_next_unpin(cx) {
                        Poll::Ready(Some(Ok(()))) => continue,
                        Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(error)),
                        Poll::Ready(None) | Poll::Pending => {}
                    }
                    // Before it looks: nothing that is put in meanwhile is missed.
                    state.came.register(cx.waker());
                    let next = state.inbox().pop_front();
                    let is_empty =
                        running.is_empty() && accessor.poll_no_interesting_tasks(cx).is_ready();
                    if let Some(job) = next {
                        state.quiet.store(false, SeqCst);
                        running.push(answer(accessor, service, job, is_empty));
                        continue;
                    }
                    state.held.store(false, SeqCst);
                    if !is_empty {
                        return Poll::Pending;
                    }
                    if !accessor.with(|mut access| access.data_mut().is_between_requests()) {
                        state.close();
                    }
                    if !state.is_open() && !state.is_used() {
                        return Poll::Ready(Ok(()));
                    }
                    state.quiet.store(true, SeqCst);
                    if !state.is_used() {
                        state.settled();
                    }
                    return Poll::Pending;
                }
            })
            .await
        })
        .await?
}

/// One request, until the head of its answer. What is left of it then is the guest's own task.
async fn answer(
    accessor: &Accessor<GuestState>,
    service: &Service,
    job: Job,
    alone: bool,
) -> wasmtime::Result<()> {
    let Job { request, tag, head } = job;
    if head.is_closed() {
        return Ok(());
    }
    let (request, io) = accessor.with(|mut access| {
        let data = access.data_mut();
        data.serve(if alone { tag } else { RequestTag::none() });
        let (request, io) = RequestP3::from_http(data.http().hooks, request);
        // Boxed, since the opaque type would borrow from the store.
        (request, Box::pin(io) as RequestIo)
    });
    _ = match service.handle(accessor, request).await? {
        Ok(response) => head.send(Ok(accessor.with(|access| response.into_http(access, io))?)),
        Err(code) => head.send(Err(format!("{code:?}"))),
    };
    Ok(())
}

/// Tells when a body was read to its end; breaks off when it broke off, or was given up.
fn until_its_end(
    response: http::Response<WasiBody>,
) -> (http::Response<WasiBody>, oneshot::Receiver<()>) {
    let (ended, told) = oneshot::channel();
    let response = response.map(|inner| {
        let body = Told {
            inner,
            ended: Some(ended),
        };
        body.boxed_unsync()
    });
    (response, told)
}

/// A body whose end is told.
struct Told {
    inner: WasiBody,
    ended: Option<oneshot::Sender<()>>,
}

impl Told {
    fn tell(&mut self) {
        self.ended.take().map(|ended| ended.send(()));
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        // Whoever knows that nothing comes any more does not ask.
        if http_body::Body::is_end_stream(&self.inner) {
            self.tell();
        }
    }
}

impl http_body::Body for Told {
    type Data = Bytes;
    type Error = <WasiBody as http_body::Body>::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Self::Error>>> {
        let frame = Pin::new(&mut self.inner).poll_frame(cx);
        match frame {
            Poll::Ready(None) => self.tell(),
            Poll::Ready(Some(Err(_))) => self.ended = None,
            _ => {}
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.inner.size_hint()
    }
}
