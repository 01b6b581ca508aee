//! The gateway itself: a request comes in, is routed, and is answered.
//!
//! ```text
//!   public ── route ──> serve ──> serve_here ──> Local
//!   dispatch ─────────> serve ──> forward ──> another host's peer port
//!   peer ── unwrap_peer ────────> serve_here ──> Local        (see peer_port)
//! ```
//!
//! Invariant: the peer port serves what is here or refuses, and never forwards.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use http::header::{self, HeaderValue};
use http::{HeaderMap, Method, Request, Response, StatusCode, Version};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::time::timeout_at;
use tokio_util::task::TaskTracker;
use wasmorch_api::{HostId, RevisionNumber, WorkloadKey};

use crate::Body;
use crate::answer::{Answer, Held, Outgoing, empty};
use crate::config::{GatewayConfig, Limits};
use crate::connections::Watch;
use crate::expect::{self, Invitation};
use crate::forward::Onward;
use crate::headers::{self, BadCoding, BadHost, Client};
use crate::index::Target;
use crate::local::{Local, LocalError};
use crate::peers::Peers;
use crate::stats::{Counters, ErrorClass, Stats};
use crate::tables::Tables;
use crate::timeout_body::{BodyTimeout, TimeoutBody};
use crate::trace::Trace;

/// When nothing says better: a replica may be ready by then.
pub(crate) const RETRY_AFTER: Duration = Duration::from_secs(1);

/// How many gateways a request, and what caused it, has passed; absent: none. An extension of
/// requests. Whoever makes a request on behalf of a guest gives it one more than the request that
/// the guest is serving has, so that workloads that call each other in a circle come to an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hops(pub u32);

/// When whoever asked stops waiting; absent: its connection says so. An extension of requests.
/// Requests on behalf of a guest carry that of the request that the guest is serving.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadline(pub Instant);

/// Which of this host's replicas had better serve a request, so that a canary has its share where it
/// stands beside others too. An extension of requests; absent: any.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Canary {
    /// The revision on trial.
    pub revision: RevisionNumber,
    /// One of it, or one of another.
    pub chosen: bool,
}

/// A running gateway's handle; clones share it.
#[derive(Clone)]
pub struct Gateway {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) tables: Tables,
    pub(crate) local: Arc<dyn Local>,
    pub(crate) host: HostId,
    /// The label `zone` of this host.
    pub(crate) zone: Option<String>,
    /// Lower case, no dots around it.
    pub(crate) domain: String,
    pub(crate) development: bool,
    pub(crate) limits: Limits,
    pub(crate) counters: Arc<Counters>,
    pub(crate) peers: Peers,
    /// Requests that came in over no port, as long as they need this gateway.
    called: TaskTracker,
}

/// A request of the public port, and whom it is for.
struct Routed {
    target: Arc<Target>,
    request: Request<Body>,
    /// For a client that waits to be told to send its body.
    invitation: Option<Invitation>,
    /// Of its body.
    body_timeout: BodyTimeout,
}

/// A replica here has answered, or gives the request back.
pub(crate) enum Here {
    Answer(Answer),
    Back(Request<Body>),
}

impl std::fmt::Debug for Gateway {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gateway")
            .field("host", &self.inner.host)
            .finish_non_exhaustive()
    }
}

impl Gateway {
    pub(crate) fn new(tables: Tables, local: Arc<dyn Local>, config: &GatewayConfig) -> Self {
        let counters = Arc::<Counters>::default();
        let inner = Inner {
            tables,
            local,
            host: config.host.clone(),
            zone: config.zone.clone(),
            domain: config.domain.trim_matches('.').to_ascii_lowercase(),
            development: config.development,
            peers: Peers::new(&config.limits, config.tunnel.clone(), counters.clone()),
            limits: config.limits.clone(),
            counters,
            called: TaskTracker::new(),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// Counters since the start.
    pub fn stats(&self) -> Stats {
        self.inner.counters.snapshot()
    }

    /// Sends a request to a workload by its full name, as if it had come in for one of its routes.
    /// Headers that only a gateway may write are removed. Always answers.
    pub async fn dispatch(&self, workload: &WorkloadKey, request: Request<Body>) -> Response<Body> {
        let scrub = headers::scrub_public_request;
        self.dispatch_scrubbed(workload, request, scrub).await
    }

    /// The same for one that did not come over HTTP, and whose forwarding headers its sender has written.
    pub async fn call(&self, workload: &WorkloadKey, request: Request<Body>) -> Response<Body> {
        let scrub = headers::scrub_peer_request;
        self.dispatch_scrubbed(workload, request, scrub).await
    }

    async fn dispatch_scrubbed(
        &self,
        workload: &WorkloadKey,
        mut request: Request<Body>,
        scrub: fn(&mut HeaderMap),
    ) -> Response<Body> {
        let inner = &*self.inner;
        let mut held = inner.hold(None);
        let _called = inner.called.token();
        let method = request.method().clone();
        let trace = Trace::begin(&request);
        let normal = match headers::normalise(&mut request) {
            Err(BadHost::Missing) => {
                let host = format!("{}.{}.internal", workload.name, workload.namespace);
                let host = HeaderValue::try_from(host).expect("names are DNS labels");
                request.headers_mut().insert(header::HOST, host);
                Ok(())
            }
            normal => normal,
        };
        scrub(request.headers_mut());
        let target = inner.tables.target(workload);
        let target = target.unwrap_or_else(|| Arc::new(Target::new(workload.clone(), None)));
        let answer = match (inner.overloaded(), normal) {
            (Some(text), _) => Answer::later(ErrorClass::Overloaded, RETRY_AFTER, text),
            (_, Err(bad)) => Answer::error(ErrorClass::BadRequest, bad.to_string()),
            _ => inner.serve(&target, request, &mut held).await,
        };
        let passed = |body| {
            let limit = inner.limits.stall_timeout;
            inner.peers.passed(body, limit, &inner.called)
        };
        let answer = answer.passed(passed);
        let response = inner.finish(answer, &method, held, Some(workload), trace);
        response.map(Outgoing::into_body)
    }

    /// A request on the public port.
    pub(crate) async fn public(
        &self,
        request: Request<Incoming>,
        client: &Client,
        connection: &Arc<Watch>,
    ) -> Response<Outgoing> {
        let inner = &*self.inner;
        let (method, version) = (request.method().clone(), request.version());
        let mut held = inner.hold(Some((connection, version)));
        let unanswered = connection.asks();
        let trace = Trace::begin(&request);
        let (target, answer) = match inner.route(request, client) {
            Err(answer) => (None, answer),
            Ok(routed) => {
                let Routed {
                    target,
                    request,
                    invitation,
                    body_timeout,
                } = routed;
                let answer = inner.serve(&target, request, &mut held).await;
                let answer = body_timeout.answered(answer, inner.limits.body_timeout);
                if let Some(invitation) = invitation {
                    invitation.extend(answer.status()).await;
                }
                (Some(target), answer)
            }
        };
        unanswered.answered();
        held.is_to_be_read();
        let key = target.as_ref().map(|target| &target.key);
        let mut response = inner.finish(answer, &method, held, key, trace);
        connection.part(version, &mut response);
        response
    }

    /// Waits until nothing is in hand that came in over no port.
    pub(crate) async fn called(&self) {
        self.inner.called.close();
        self.inner.called.wait().await;
    }

    /// Ends what connects this gateway to others.
    pub(crate) async fn end(&self) {
        self.inner.peers.end().await;
    }

    pub(crate) fn inner(&self) -> &Inner {
        &self.inner
    }

    pub(crate) fn counters(&self) -> &Arc<Counters> {
        &self.inner.counters
    }
}

impl Inner {
    pub(crate) fn hold(&self, connection: Option<(&Arc<Watch>, Version)>) -> Held {
        self.counters.requests.fetch_add(1, Relaxed);
        Held::new(&self.counters, connection)
    }

    pub(crate) fn finish(
        &self,
        answer: Answer,
        method: &Method,
        held: Held,
        workload: Option<&WorkloadKey>,
        trace: Option<Trace>,
    ) -> Response<Outgoing> {
        self.counters.answered(answer.status());
        if let Some(class) = answer.class() {
            self.counters.failed(class);
        }
        if let Some(trace) = trace {
            trace.end(workload, &answer);
        }
        answer.finish(method, held)
    }

    /// Why no more requests are taken, when that is so.
    pub(crate) fn overloaded(&self) -> Option<String> {
        let max = self.limits.requests_max;
        (self.counters.in_flight.load(Relaxed) > max).then(|| {
            format!("this gateway has {max} requests in hand and takes no more; try again")
        })
    }

    /// From a request of the public port to the workload and what it is told.
    #[expect(
        clippy::result_large_err,
        reason = "an answer is the size of a response, as is the other side"
    )]
    fn route(&self, mut request: Request<Incoming>, client: &Client) -> Result<Routed, Answer> {
        if let Some(text) = self.overloaded() {
            return Err(Answer::later(ErrorClass::Overloaded, RETRY_AFTER, text));
        }
        if request.method() == Method::CONNECT {
            return Err(Answer::error(
                ErrorClass::NotCarried,
                "CONNECT is not served",
            ));
        }
        if headers::wants_websocket(request.headers()) {
            // `wasi:http` gives a guest no way to take a connection over.
            let text = "a WebSocket cannot be carried to a component; use server-sent events, or plain requests";
            return Err(Answer::error(ErrorClass::NotCarried, text));
        }
        headers::check_codings(request.headers()).map_err(|bad| {
            let class = match bad {
                BadCoding::Doubled => ErrorClass::BadRequest,
                BadCoding::Unknown => ErrorClass::NotCarried,
            };
            Answer::error(class, bad.to_string()).closing()
        })?;
        let bad = |bad: BadHost| Answer::error(ErrorClass::BadRequest, bad.to_string());
        headers::normalise(&mut request).map_err(bad)?;
        let path = request.uri().path();
        if path == "*" {
            // About the server itself (RFC 9110, 9.3.7), and it has nothing to say.
            return Err(Answer::empty(StatusCode::NO_CONTENT));
        }
        let host = headers::host_name(&request.headers()[header::HOST]).map_err(bad)?;
        let Some(target) = self.tables.find(&host, path, &self.domain) else {
            return Err(self.unknown(&request.headers()[header::HOST], path));
        };
        let (mut head, body) = request.into_parts();
        let is_expected = expect::is_expected(head.version, &head.headers, &body);
        headers::scrub_public_request(&mut head.headers);
        client.tell(&mut head.headers);
        let (body_timeout, limit) = (BodyTimeout::default(), self.limits.body_timeout);
        let (body, invitation) = match is_expected {
            _ if body.is_end_stream() => (empty(), None),
            false => {
                let body = TimeoutBody::new(body, limit, body_timeout.clone());
                (body.boxed_unsync(), None)
            }
            true => {
                let (body, invitation) = expect::expected(body);
                let body = TimeoutBody::new(body, limit, body_timeout.clone());
                (body.boxed_unsync(), Some(invitation))
            }
        };
        Ok(Routed {
            target,
            request: Request::from_parts(head, body),
            invitation,
            body_timeout,
        })
    }

    /// Here if it can be, else elsewhere.
    async fn serve(&self, target: &Target, request: Request<Body>, held: &mut Held) -> Answer {
        let began = Instant::now();
        let Some(Deadline(deadline)) = request.extensions().get::<Deadline>().copied() else {
            return self.serve_somewhere(target, request, held, began).await;
        };
        let served = self.serve_somewhere(target, request, held, began);
        match timeout_at(deadline.into(), served).await {
            Ok(answer) => answer,
            Err(_) => self.late(&target.key),
        }
    }

    async fn serve_somewhere(
        &self,
        target: &Target,
        request: Request<Body>,
        held: &mut Held,
        began: Instant,
    ) -> Answer {
        let hops = request.extensions().get::<Hops>().map_or(0, |hops| hops.0);
        if hops >= self.limits.hops_max {
            return self.looped(&target.key);
        }
        let key = &target.key;
        let awake = self.local.ready(key) > 0 || self.rests_here(key) && self.local.wake(key).await;
        let first = awake.then(|| self.spill(key, &[])).flatten();
        let stays = awake && first.is_none();
        let mut onward = Onward {
            hops,
            began,
            first,
            lost: false,
        };
        let mut request = request;
        if stays {
            let again = self.again(key, &request);
            request = match (self.serve_here(key, request).await, again) {
                (Here::Back(request), _) => request,
                (Here::Answer(answer), Some(again)) if answer.class() == Some(ErrorClass::Lost) => {
                    onward.lost = true;
                    again
                }
                (Here::Answer(answer), _) => return answer,
            };
        }
        self.forward(target, request, onward, held).await
    }

    /// The same request again, in case that the replica here is ended while it has it: where that is the
    /// same, and somebody else could answer.
    ///
    /// The guest is given the head, so what is to be sent again has to be kept before: names and values are shared,
    /// and what the further try does not go by is left out.
    fn again(&self, workload: &WorkloadKey, request: &Request<Body>) -> Option<Request<Body>> {
        let repeats = request.method().is_idempotent() && request.body().is_end_stream();
        if !repeats || self.tables.endpoints(workload)?.is_alone() {
            return None;
        }
        let mut again = Request::new(empty());
        again.method_mut().clone_from(request.method());
        again.uri_mut().clone_from(request.uri());
        again.headers_mut().clone_from(request.headers());
        // Other extensions are those of the client's connection. Requests of clients carry none of these two.
        let (from, to) = (request.extensions(), again.extensions_mut());
        if let Some(hops) = from.get::<Hops>() {
            to.insert(*hops);
        }
        if let Some(deadline) = from.get::<Deadline>() {
            to.insert(*deadline);
        }
        Some(again)
    }

    pub(crate) async fn serve_here(
        &self,
        workload: &WorkloadKey,
        mut request: Request<Body>,
    ) -> Here {
        self.counters.local.fetch_add(1, Relaxed);
        if let Some(endpoints) = self.tables.endpoints(workload)
            && let Some(canary) = endpoints.canary_at(&mut rand::rng(), &self.host)
        {
            request.extensions_mut().insert(canary);
        }
        let patient = request.extensions().get::<Deadline>().is_none();
        let class = match self.local.handle(workload, request).await {
            Ok(response) if response.status().is_informational() => {
                let text = format!(
                    "the guest answered {}, which ends no request",
                    response.status()
                );
                return Here::Answer(Answer::error(ErrorClass::Failed, text));
            }
            Ok(response) => {
                self.fared_here(workload, false);
                return Here::Answer(Answer::local(response));
            }
            Err(LocalError::NotHere(request) | LocalError::Refused(request)) => {
                self.counters.local.fetch_sub(1, Relaxed);
                return Here::Back(request);
            }
            Err(LocalError::Busy {
                retry_after,
                reason,
            }) => {
                return Here::Answer(Answer::later(ErrorClass::Busy, retry_after, reason));
            }
            Err(LocalError::Stopped) => {
                // By the host, which blames nobody.
                let text = self.lost(workload, "the replica was ended");
                return Here::Answer(Answer::error(ErrorClass::Lost, text));
            }
            Err(LocalError::TimedOut { reason }) => (ErrorClass::TimedOut, reason),
            Err(LocalError::TooLarge { reason }) => (ErrorClass::TooLarge, reason),
            Err(LocalError::Broken { reason }) => (ErrorClass::BadRequest, reason),
            Err(LocalError::Late { reason }) => (ErrorClass::LateRequest, reason),
            Err(LocalError::Failed { reason }) => {
                (ErrorClass::Failed, self.failed(workload, reason))
            }
        };
        if !class.0.is_the_clients() {
            self.fared_here(workload, class.0.blames_replica(patient));
        }
        Here::Answer(Answer::error(class.0, class.1))
    }

    fn fared_here(&self, workload: &WorkloadKey, failed: bool) {
        if let Some(endpoints) = self.tables.endpoints(workload)
            && let Some(here) = endpoints.candidate(&self.host)
        {
            self.fared(workload, &self.host, &here.health, failed);
        }
    }
}
