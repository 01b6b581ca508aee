//! One instance: what it and its requests tell each other, and what its task does.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::Poll;
use std::time::Duration;

use futures::stream::{FuturesUnordered, StreamExt as _};
use futures::task::AtomicWaker;
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use wasmtime::Store;
use wasmtime::component::Accessor;
use wasmtime_wasi_http::WasiHttpView as _;
use wasmtime_wasi_http::p3::Request as RequestP3;
use wasmtime_wasi_http::p3::bindings::Service;

use super::{Crew, Job, Together};
use crate::ended::Ended;
use crate::gate::Seat;
use crate::guest::{Deadline, Watch};
use crate::http::RequestIo;
use crate::logs::RequestTag;
use crate::outbound::Lineages;
use crate::state::GuestState;

/// A guest in which a request is out of time has so long to wait for something: then the others go on.
const LETS_GO: Duration = Duration::from_millis(100);

/// What an instance and its requests tell each other.
pub(super) struct State {
    pub(super) watch: Arc<Watch>,
    pub(super) lineages: Arc<Lineages>,
    inbox: Mutex<VecDeque<Job>>,
    /// Wakes its task to look into the inbox.
    pub(super) came: AtomicWaker,
    /// Requests in it.
    pub(super) inside: AtomicUsize,
    /// Requests that ever were.
    pub(super) joined: AtomicU32,
    /// It may serve more.
    open: AtomicBool,
    /// A request in it was given up before its end.
    pub(super) abandoned: AtomicBool,
    /// The guest ran when it was last looked at, or made a call that lets no other run.
    held: AtomicBool,
    /// A request in it is out of time, and the guest has not let go since.
    pub(super) overdue: AtomicBool,
    /// Nothing runs in it.
    quiet: AtomicBool,
    pub(super) over: AtomicBool,
    /// What it goes on with has this.
    after: Mutex<Option<After>>,
    crew: Weak<Crew>,
    pub(super) stop: CancellationToken,
}

/// What the last request leaves to what goes on after it.
pub(super) struct After {
    /// Nobody else may know it any more.
    pub(super) instance: Arc<Together>,
    pub(super) deadline: Option<Deadline>,
    pub(super) _seat: Option<Seat>,
}

fn neighbour(did: &str) -> Ended {
    Ended::Trap {
        message: format!("the instance was ended, because another request in it {did}"),
        backtrace: String::new(),
    }
}

impl State {
    pub(super) fn new(watch: Arc<Watch>, crew: Weak<Crew>) -> Self {
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
            overdue: AtomicBool::new(false),
            quiet: AtomicBool::new(false),
            over: AtomicBool::new(false),
            after: Mutex::default(),
            crew,
            stop: CancellationToken::new(),
        }
    }

    pub(super) fn inbox(&self) -> MutexGuard<'_, VecDeque<Job>> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_open(&self) -> bool {
        self.open.load(SeqCst)
    }

    pub(super) fn close(&self) {
        self.open.store(false, SeqCst);
    }

    pub(super) fn is_used(&self) -> bool {
        self.inside.load(SeqCst) > 0
    }

    pub(super) fn is_settled(&self) -> bool {
        self.over.load(SeqCst) || (self.quiet.load(SeqCst) && self.inbox().is_empty())
    }

    pub(super) fn after(&self) -> MutexGuard<'_, Option<After>> {
        self.after.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nothing runs in it any more: the seat is free, and it rests.
    pub(super) fn settled(&self) {
        let after = self.after().take();
        if let Some((after, crew)) = after.zip(self.crew.upgrade()) {
            crew.rest(after.instance);
        }
    }

    /// When to end it, and why: a request is out of time and the guest does not let go; something goes on
    /// for too long after the last request.
    fn end_at(&self, overdue: Option<Instant>) -> Option<(Instant, &'static str)> {
        if let Some(since) = overdue {
            return Some((since + LETS_GO, "is out of time and does not let go"));
        }
        let after = self.after();
        let at = after.as_ref()?.deadline?.at;
        (!self.is_used()).then_some((at, "went on for too long after its answer"))
    }

    /// One that met a limit, is to give way, or whose guest holds on to it, is left to those who are in it.
    pub(super) fn may_be_joined(&self, most: usize) -> bool {
        self.is_open()
            && self.inside.load(SeqCst) < most
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

    /// Polls `serving`, which says when the guest has let go of the store, and ends it in time.
    pub(super) async fn watched<R>(&self, serving: impl Future<Output = R>) -> R {
        tokio::pin!(serving);
        let mut timer: Option<Pin<Box<Sleep>>> = None;
        let mut overdue = None;
        std::future::poll_fn(|cx| {
            self.held.store(true, SeqCst);
            let polled = serving.as_mut().poll(cx);
            if polled.is_ready() {
                return polled;
            }
            overdue = match self.overdue.load(SeqCst) {
                true => overdue.or_else(|| Some(Instant::now())),
                false => None,
            };
            let Some((at, why)) = self.end_at(overdue) else {
                timer = None;
                return Poll::Pending;
            };
            let timer = timer.get_or_insert_with(|| Box::pin(sleep_until(at)));
            if timer.deadline() != at {
                timer.as_mut().reset(at);
            }
            if timer.as_mut().poll(cx).is_ready() {
                self.end(neighbour(why));
            }
            Poll::Pending
        })
        .await
    }
}

/// Takes requests from the inbox for as long as the instance is open or has some.
pub(super) async fn serve(
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
                    state.overdue.store(false, SeqCst);
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
