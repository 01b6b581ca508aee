//! What comes in on the peer port: requests of other gateways, and the question who is here.
//!
//! Owns what is believed of another gateway. Invariant: it serves what is here or refuses, and never
//! forwards.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use http::header::HeaderValue;
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use wasmorch_api::WorkloadKey;

use crate::Body;
use crate::answer::{Answer, Held, Outgoing, incoming};
use crate::connections::Watch;
use crate::gateway::{Deadline, Gateway, Here, Hops, Inner};
use crate::headers;
use crate::stats::ErrorClass;
use crate::trace::Trace;

/// A request of another gateway that may wake what rests here. An extension of requests.
#[derive(Debug, Clone, Copy)]
struct Wake;

impl Gateway {
    /// A request on the peer port.
    pub(crate) async fn peer(
        &self,
        request: Request<Incoming>,
        connection: &Arc<Watch>,
    ) -> Response<Outgoing> {
        let inner = self.inner();
        let connection = Some((connection, request.version()));
        if let Some(meant) = request.headers().get(headers::HOST) {
            let held = Held::new(&inner.counters, connection);
            return inner.who_is_here(meant).finish(request.method(), held);
        }
        let held = inner.hold(connection);
        inner.counters.from_peers.fetch_add(1, Relaxed);
        let method = request.method().clone();
        let trace = Trace::begin(&request);
        let (workload, answer) = match inner.unwrap_peer(request) {
            Err(answer) => (None, answer),
            Ok((workload, request)) => {
                let mut answer = inner.serve_peer(&workload, request).await;
                answer.tell_load(inner.local.load(&workload));
                (Some(workload), answer)
            }
        };
        inner.finish(answer, &method, held, workload.as_ref(), trace)
    }
}

impl Inner {
    /// Whoever dialled this port asks whether it has come to the host that it means.
    fn who_is_here(&self, meant: &HeaderValue) -> Answer {
        if meant == self.host.as_str() {
            return Answer::host(meant);
        }
        Answer::empty(StatusCode::MISDIRECTED_REQUEST)
    }

    /// From a request of the peer port to the workload and the request as the guest sees it.
    #[expect(
        clippy::result_large_err,
        reason = "an answer is the size of a response, as is the other side"
    )]
    fn unwrap_peer(
        &self,
        mut request: Request<Incoming>,
    ) -> Result<(WorkloadKey, Request<Body>), Answer> {
        if let Some(text) = self.overloaded() {
            // Another host may have room.
            return Err(Answer::refused(text));
        }
        let bad = |text: &str| Answer::error(ErrorClass::BadRequest, text);
        let text = |name| {
            request
                .headers()
                .get(name)
                .and_then(|value| value.to_str().ok())
        };
        let workload = text(headers::WORKLOAD).and_then(|text| text.split_once('/'));
        let workload = workload.and_then(|(namespace, name)| {
            Some(WorkloadKey::new(
                namespace.parse().ok()?,
                name.parse().ok()?,
            ))
        });
        let workload = workload.ok_or_else(|| {
            bad("this port serves other gateways: header wasmorch-workload is missing or malformed")
        })?;
        let hops = text(headers::HOPS).and_then(|text| text.parse().ok());
        let hops = hops.ok_or_else(|| bad("header wasmorch-hops is missing or malformed"))?;
        if hops > self.limits.hops_max {
            return Err(self.looped(&workload));
        }
        headers::normalise(&mut request).map_err(|error| bad(&error.to_string()))?;
        let left = request.headers().get(headers::DEADLINE);
        let left = left.and_then(|left| left.to_str().ok()?.parse().ok());
        let deadline =
            left.and_then(|left| Instant::now().checked_add(Duration::from_millis(left)));
        let wake = request.headers().contains_key(headers::WAKE);
        headers::scrub_peer_request(request.headers_mut());
        request.extensions_mut().insert(Hops(hops));
        if wake {
            request.extensions_mut().insert(Wake);
        }
        if let Some(deadline) = deadline {
            request.extensions_mut().insert(Deadline(deadline));
        }
        Ok((workload, request.map(incoming)))
    }

    async fn serve_peer(&self, workload: &WorkloadKey, request: Request<Body>) -> Answer {
        let not_here =
            || Answer::refused(format!("no replica of {workload} is ready on this host"));
        let wake = request.extensions().get::<Wake>().is_some();
        if self.local.ready(workload) == 0 && !(wake && self.local.wake(workload).await) {
            return not_here();
        }
        match self.serve_here(workload, request).await {
            // It had no room, so another host may have some.
            Here::Answer(answer) if answer.class() == Some(ErrorClass::Busy) => {
                answer.not_executed()
            }
            Here::Answer(answer) => answer,
            Here::Back(_) => not_here(),
        }
    }
}
