//! The http kind: `wasi:http` 0.2 (`incoming-handler`) and 0.3 (`handler`).
//!
//! ```text
//!   handle ── a seat ──> guest future, polled by the caller until the head of the response is set
//!                          |                     |
//!                          | done by then        | polled once more: what it writes without
//!                          |                     | waiting goes along with the head
//!                          |<──── done by then ──|
//!                          v                     v
//!                        response             spawned, owned by the response body if there is one
//! ```
//!
//! Where several requests share an instance of 0.3 (`together.rs`), the guest future only waits for the answer
//! of an instance that has a task of its own. Else:
//!
//! Polling the guest in the caller's own task saves a task and two wake-ups for every small
//! response, and calls of the system. Whoever drops the future of `handle`, or the body before its
//! end, drops the store.
//!
//! Invariant: a guest future holds its seat for as long as it lives, so seats bound instances. Only
//! probes have none: whoever probes asks one at a time.

mod call;

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::Poll;
use std::time::Duration;

use futures::FutureExt as _;
use http::header;
use http_body_util::BodyExt as _;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use wasmtime_wasi_http::WasiBody;

pub(crate) use self::call::{Head, HeadSender, HttpPre, RequestIo, has_body};
use self::call::{instantiate, run};
use crate::artifact::{Artifact, Code};
use crate::body::{Awaited, Body, RequestBody, ResponseBody};
use crate::config::ReplicaConfig;
use crate::ended::{BodySide, Ended, PrepareError};
use crate::gate::{Gate, Seat};
use crate::guest::{Deadline, Metered, Watch, bounded};
use crate::limits::Usage;
use crate::link;
use crate::logs::{RequestId, RequestTag};
use crate::outbound::Lineage;
use crate::pace::Pace;
use crate::reuse::{Idle, Pool, Running};
use crate::runtime::Runtime;
use crate::state::ReplicaShared;
use crate::together::{Crew, Job, Terms};

/// What exports neither version.
pub(crate) const WRONG: PrepareError = PrepareError::WrongShape {
    kind: "an http workload",
    expected: "wasi:http/incoming-handler@0.2 and no wasi:http/handler@0.3",
};

type Guest = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What a request says of its answer.
struct Asked {
    is_head: bool,
    deadline: Option<Deadline>,
}

/// A request's seat, and when its time is over.
pub struct Admission {
    deadline: Option<Deadline>,
    seat: Seat,
}

/// A replica that answers HTTP requests, each in a fresh instance, unless [`crate::Reuse`] says
/// otherwise.
pub struct HttpReplica {
    shared: Arc<ReplicaShared>,
    artifact: Arc<Artifact>,
    gate: Gate,
    /// Guests that outlive the head of their response.
    tasks: TaskTracker,
    /// Instances that wait for another request.
    waiting: Arc<Pool>,
    /// Instances with several requests each, where that was asked for.
    crew: Option<Arc<Crew>>,
    stop: CancellationToken,
}

impl HttpReplica {
    /// Links the component, once for all requests. A component that exports both versions of
    /// `wasi:http` is served by 0.3.
    ///
    /// # Errors
    ///
    /// When it exports neither, imports what is not provided, or fits in no instance.
    pub fn prepare(
        runtime: &Runtime,
        artifact: &Arc<Artifact>,
        config: ReplicaConfig,
    ) -> Result<Self, PrepareError> {
        let code = link::code(runtime, artifact, &config)?;
        let component = code.component().ok_or(WRONG)?;
        let concurrency = link::concurrency(runtime, component, &config.limits)?;
        let gate = Gate::new(config.account.clone(), concurrency, config.limits.queue);
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let reuse = config.reuse;
        let waiting = Pool::new(reuse, runtime);
        let shared = ReplicaShared::new(runtime, artifact.engine(), config)?;
        let is_p3 = matches!(code.http(&shared)?, HttpPre::P3(_));
        let together = is_p3 && reuse.requests > 1 && reuse.concurrency > 1;
        let crew = together.then(|| Crew::new(&shared, &waiting, (&tasks, &stop)));
        Ok(Self {
            shared,
            artifact: artifact.clone(),
            gate,
            tasks,
            waiting,
            crew,
            stop,
        })
    }

    /// Answers a request from an instance of its own, waiting for a seat if need be. Must be called
    /// in a tokio runtime.
    ///
    /// The body of the response may still be written when this returns; the timeout covers it.
    ///
    /// # Errors
    ///
    /// Why there is no response.
    pub async fn handle(
        &self,
        request: http::Request<Body>,
    ) -> Result<http::Response<Body>, Ended> {
        let entering = self.enter(&request);
        let admission = entering.await?;
        self.serve(request, admission).await
    }

    /// The first half of [`Self::handle`]: a seat, waited for if need be. Without one nothing of the request
    /// was executed, and whoever has it may take it elsewhere.
    ///
    /// # Errors
    ///
    /// Why there is none.
    pub fn enter<'r>(
        &'r self,
        request: &http::Request<Body>,
    ) -> impl Future<Output = Result<Admission, Ended>> + Send + use<'r> {
        let limits = &self.shared.config.limits;
        let lineage = request.extensions().get::<Lineage>();
        let callers = lineage.and_then(|lineage| lineage.deadline);
        let deadline = Deadline::earlier(Deadline::after(limits.timeout), callers);
        let fits = refuse_large(request.headers(), BodySide::Request, limits.body_bytes);
        async move {
            fits?;
            let entering = self.gate.enter(deadline.map(|deadline| deadline.at));
            let seat = entering
                .await
                .inspect_err(|_| _ = self.shared.meter.refused.fetch_add(1, Relaxed))?;
            Ok(Admission { deadline, seat })
        }
    }

    /// The second half: answers the request that the seat is for.
    ///
    /// # Errors
    ///
    /// Why there is no response.
    pub async fn serve(
        &self,
        request: http::Request<Body>,
        Admission { deadline, seat }: Admission,
    ) -> Result<http::Response<Body>, Ended> {
        self.answer(request, deadline, Some(seat)).await
    }

    /// Answers a request that takes no seat and so waits for none: whether every seat is taken says
    /// nothing of whether the guest lives.
    ///
    /// # Errors
    ///
    /// Why there is no response.
    pub async fn probe(
        &self,
        request: http::Request<Body>,
        within: Duration,
    ) -> Result<http::Response<Body>, Ended> {
        let limit = self.shared.config.limits.timeout;
        let limit = limit.map_or(within, |limit| limit.min(within));
        let deadline = Deadline::after(Some(limit));
        self.answer(request, deadline, None).await
    }

    async fn answer(
        &self,
        request: http::Request<Body>,
        deadline: Option<Deadline>,
        seat: Option<Seat>,
    ) -> Result<http::Response<Body>, Ended> {
        let watch = self.shared.watch();
        let code = tokio::select! {
            biased;
            code = self.shared.code(&self.artifact, deadline) => code,
            () = self.stop.cancelled() => Err(Ended::Stopped),
        };
        let code = code.map_err(|ended| watch.end(ended))?;
        let is_head = request.method() == http::Method::HEAD;
        let (tx, rx) = oneshot::channel();
        let inherited = request.extensions().get::<Lineage>().copied();
        let terms = Terms {
            watch: watch.clone(),
            lineage: Lineage {
                deadline: deadline.map(|deadline| deadline.at.into_std()),
                ..inherited.unwrap_or_default()
            },
            deadline,
            seat,
        };
        let guest = self
            .guest(code, request, tx, terms)
            .map_err(|error| watch.end(Ended::Internal(format!("{error:#}"))))?;
        let (head, guest) = tokio::select! {
            // Stopping comes first, so that a guest that is always ready cannot outrun it.
            biased;
            () = self.stop.cancelled() => return Err(watch.end(Ended::Stopped)),
            head = head_of(guest, rx) => head,
        };
        if let Some(ended) = watch.request_failure() {
            // Whatever the guest made of it: the client is told the cause.
            return Err(watch.end(ended.clone()));
        }
        match head {
            Some(Ok(response)) => {
                let asked = Asked { is_head, deadline };
                self.respond(response, asked, guest, watch).await
            }
            Some(Err(code)) => Err(watch.end(Ended::Guest(code))),
            None => Err(watch.end(Ended::NoResponse)),
        }
    }

    async fn respond(
        &self,
        response: http::Response<WasiBody>,
        Asked { is_head, deadline }: Asked,
        guest: Option<Guest>,
        watch: Arc<Watch>,
    ) -> Result<http::Response<Body>, Ended> {
        let has_body = has_body(is_head, response.status());
        let limit = self.shared.config.limits.body_bytes;
        let expected = match has_body {
            true => refuse_large(response.headers(), BodySide::Response, limit)
                .map_err(|ended| watch.end(ended))?,
            // Its length is that of an answer that is not given.
            false => None,
        };
        let (head, body) = response.into_parts();
        let mut body = ResponseBody::new(body, expected, limit, watch.clone()).due(deadline);
        let guest = match has_body {
            true => write_ahead(guest, &mut body, watch.pace()).await,
            false => Ok(guest),
        };
        if let Some(guest) = guest? {
            let stop = self.stop.clone();
            let task = async move {
                tokio::select! {
                    biased;
                    () = stop.cancelled() => drop(watch.end(Ended::Stopped)),
                    () = guest => {}
                }
            };
            let task = self.tasks.spawn(task);
            // A body that nobody reads is dropped at once, which says nothing of who waits for the guest: it
            // works on within its time.
            if has_body {
                body.written_by(task.abort_handle());
            }
        }
        Ok(http::Response::from_parts(head, body.boxed_unsync()))
    }

    /// One request in one instance. Everything it needs moves into it, so that dropping it leaves
    /// nothing behind.
    fn guest(
        &self,
        code: Arc<Code>,
        request: http::Request<Body>,
        head: HeadSender,
        terms: Terms,
    ) -> wasmtime::Result<Guest> {
        let shared = &self.shared;
        let tag = RequestTag::new(request.extensions().get::<RequestId>());
        let limit = shared.config.limits.body_bytes;
        let awaited = request.extensions().get::<Awaited>().cloned();
        let watch = terms.watch.clone();
        let request = request.map(|body| RequestBody::new(body, limit, watch).told(awaited));
        if let Some(crew) = &self.crew {
            let job = Job { request, tag, head };
            return Ok(Box::pin(crew.run(code, job, terms)?));
        }
        let Terms {
            watch,
            lineage,
            deadline,
            seat,
        } = terms;
        let mut running = self.instance(code, tag, &watch)?;
        running.store.data_mut().hooks.inherit(lineage);
        let meter = shared.meter.clone();
        let waiting = self.waiting.clone();
        Ok(Box::pin(Metered::new(meter, async move {
            let run = run(&mut running, request, head);
            // How it failed is in the watch; the head and the body look there.
            let is_well = bounded(&watch, deadline, run).await.is_ok();
            if is_well && watch.request_failure().is_none() {
                waiting.keep(running);
            } else {
                drop(running);
            }
            drop(seat);
        })))
    }

    /// One that waits, or a new one.
    fn instance(
        &self,
        code: Arc<Code>,
        tag: RequestTag,
        watch: &Arc<Watch>,
    ) -> wasmtime::Result<Running> {
        if let Some(Idle::Alone(mut running)) = self.waiting.take() {
            running.store.data_mut().begin(tag, watch);
            return Ok(running);
        }
        let shared = &self.shared;
        let mut wasi = shared.wasi()?;
        let lines = shared.log_streams(&mut wasi, &tag);
        let mut store = shared.store(wasi.build(), tag, watch);
        if shared.config.reuse.requests > 1 {
            let waiting = Arc::downgrade(&self.waiting);
            store.data_mut().may_be_kept(lines, waiting);
        }
        Ok(Running {
            instance: None,
            store,
            code,
            served: 0,
        })
    }

    /// Makes an instance as a request gets it, and drops it: what a request costs before its guest begins.
    /// For measurements. Takes no seat; must be called in a tokio runtime.
    ///
    /// # Errors
    ///
    /// Why there is no instance.
    pub async fn instantiate(&self) -> Result<(), Ended> {
        let code = self.shared.code(&self.artifact, None).await?;
        let watch = self.shared.watch();
        let made = async {
            let mut running = self.instance(code, RequestTag::new(None), &watch)?;
            instantiate(&mut running).await.map(drop)
        };
        bounded(&watch, None, made).await
    }

    /// Counts a request that comes from outside, before it is handled: a probe is handled and not counted.
    pub fn count_request(&self) {
        self.shared.meter.came.fetch_add(1, Relaxed);
    }

    /// What it uses.
    pub fn usage(&self) -> Usage {
        self.shared
            .meter
            .usage(self.gate.in_flight(), self.gate.queued())
    }

    /// Requests that run or wait, in all runners.
    pub fn load(&self) -> usize {
        self.gate.load()
    }

    /// Whether a request would be run at once.
    pub fn has_room(&self) -> bool {
        self.gate.has_room()
    }

    /// Refuses every request from now on, those that wait too. What runs goes on: see
    /// [`Self::idle`].
    pub fn close(&self) {
        self.gate.close();
        self.tasks.close();
        self.waiting.close();
        self.crew.as_ref().inspect(|crew| crew.close());
    }

    /// Waits until no instance is left, after [`Self::close`].
    pub async fn idle(&self) {
        self.gate.idle().await;
        self.tasks.wait().await;
    }

    /// Refuses every request from now on, and ends what runs.
    pub fn stop(&self) {
        self.close();
        self.stop.cancel();
    }
}

impl Drop for HttpReplica {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Polls the guest until it has set the head of its response or is done. Gives the guest back when
/// it is not done.
async fn head_of(
    mut guest: Guest,
    mut rx: oneshot::Receiver<Head>,
) -> (Option<Head>, Option<Guest>) {
    let mut done = false;
    let head = std::future::poll_fn(|cx| {
        done = guest.poll_unpin(cx).is_ready();
        if done {
            // Not polled: tokio's budget may make a channel look empty that is not.
            return Poll::Ready(rx.try_recv().ok());
        }
        rx.poll_unpin(cx).map(Result::ok)
    })
    .await;
    (head, (!done).then_some(guest))
}

/// Lets a guest write on after the head of its response, for as long as it waits for nothing, and takes
/// that over: it leaves together with the head, in one call of the system, and a guest that is done by
/// then needs no task. Gives the guest back when it is not done. Never waits, and lets a guest wait that
/// is to wait for its turn.
async fn write_ahead(
    mut guest: Option<Guest>,
    body: &mut ResponseBody,
    pace: &Pace,
) -> Result<Option<Guest>, Ended> {
    std::future::poll_fn(|cx| {
        let mut ahead = body.take_ahead(cx);
        while let Some(writer) = &mut guest
            && ahead.is_ok()
            && !pace.is_queued()
        {
            if writer.poll_unpin(cx).is_ready() {
                guest = None;
            }
            ahead = body.take_ahead(cx);
            if !matches!(ahead, Ok(true)) {
                break;
            }
        }
        Poll::Ready(ahead.map(|_| guest.take()))
    })
    .await
}

/// The content length of a message, refused when it is over the limit.
fn refuse_large(
    headers: &http::HeaderMap,
    side: BodySide,
    limit_bytes: u64,
) -> Result<Option<u64>, Ended> {
    let length = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.parse().ok());
    match length {
        Some(length) if length > limit_bytes => Err(Ended::BodyTooLarge { side, limit_bytes }),
        length => Ok(length),
    }
}
