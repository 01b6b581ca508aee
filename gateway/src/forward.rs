//! To another host: which one, and whether to try one more.
//!
//! Invariant: a request goes elsewhere only if it was certainly not executed where it was.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use http::header::HeaderValue;
use http::request::Parts;
use http::{Request, Response, StatusCode, Version};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use wasmorch_api::WorkloadKey;

use crate::Body;
use crate::answer::{Answer, Held};
use crate::balance::{Candidate, Endpoints};
use crate::gateway::{Here, Inner, RETRY_AFTER};
use crate::headers;
use crate::index::Target;
use crate::peers::{Peer, SendError};
use crate::replay::Replay;
use crate::stats::ErrorClass;

impl Inner {
    /// To another host, and to one more if that one certainly did not execute it.
    ///
    /// The tables are read again for each try: a host that refuses has often just lost its
    /// replica, and what replaces it is news.
    pub(crate) async fn forward(
        &self,
        target: &Target,
        request: Request<Body>,
        hops: u32,
        held: &mut Held,
    ) -> Answer {
        let key = &target.key;
        let Some(mut peer) = self.elsewhere(key, &[]) else {
            return self.no_endpoint(key);
        };
        let (parts, body) = request.into_parts();
        let replay = Replay::new(body);
        let mut tried: Vec<Arc<Peer>> = Vec::new();
        loop {
            let last = tried.len() + 1 >= self.limits.attempts_max;
            held.at(Some(peer.clone()));
            self.counters.forwarded.fetch_add(1, Relaxed);
            let attempt = Request::from_parts(wrapped(&parts, target, hops), replay.attempt(last));
            let (class, reason) = match self.peers.send(&peer, attempt).await {
                Ok(response) if is_refused(&response) => {
                    (ErrorClass::Refused, format!("{}: refused", peer.address()))
                }
                Ok(response) => {
                    replay.settle();
                    return Answer::peer(response);
                }
                Err(SendError::NotSent(reason)) => (ErrorClass::Unreachable, reason),
                Err(SendError::Lost(reason)) => {
                    return Answer::error(ErrorClass::Lost, self.lost(key, &reason));
                }
            };
            tracing::debug!(workload = %key, reason, "not executed there");
            tried.push(peer);
            let again = !last && replay.is_whole();
            if let Some(next) = again.then(|| self.elsewhere(key, &tried)).flatten() {
                self.counters.retried.fetch_add(1, Relaxed);
                peer = next;
                continue;
            }
            held.at(None);
            if again && self.local.ready(key) > 0 {
                self.counters.retried.fetch_add(1, Relaxed);
                let request = Request::from_parts(parts, replay.attempt(true).boxed_unsync());
                if let Here::Answer(answer) = self.serve_here(key, request).await {
                    return answer;
                }
            }
            let text = self.nowhere(key, tried.len(), &reason);
            return Answer::later(class, RETRY_AFTER, text);
        }
    }

    /// A host to send to, of those not tried yet, by what the tables say now.
    pub(crate) fn elsewhere(&self, key: &WorkloadKey, tried: &[Arc<Peer>]) -> Option<Arc<Peer>> {
        self.tables
            .endpoints(key)
            .and_then(|endpoints| self.pick(&endpoints, tried))
    }

    /// One of the hosts not tried yet. Ejected ones only if there is no other: better
    /// a try than a certain error.
    fn pick(&self, endpoints: &Endpoints, tried: &[Arc<Peer>]) -> Option<Arc<Peer>> {
        let untried = |candidate: &Candidate| {
            candidate.host != self.host
                && tried
                    .iter()
                    .all(|peer| *peer.address() != *candidate.address)
        };
        let known = |candidate: &Candidate| self.peers.get(&candidate.address);
        let usable = |candidate: &Candidate| {
            untried(candidate) && known(candidate).is_none_or(|peer| !self.peers.is_ejected(&peer))
        };
        let load = |candidate: &Candidate| known(candidate).map_or(0, |peer| peer.in_flight());
        let rng = &mut rand::rng();
        let candidate = endpoints.pick(rng, usable, load);
        let candidate = candidate.or_else(|| endpoints.pick(rng, untried, load))?;
        Some(self.peers.at(&candidate.address))
    }
}

/// A request's head as the peer port wants it.
fn wrapped(parts: &Parts, target: &Target, hops: u32) -> Parts {
    let mut parts = parts.clone();
    // With a relative URI, HTTP/2 wants to be told that the request came in as HTTP/1.1. The
    // original `Host` goes along.
    parts.version = Version::HTTP_11;
    parts.extensions.clear();
    parts
        .headers
        .insert(headers::WORKLOAD, target.header.clone());
    parts
        .headers
        .insert(headers::HOPS, HeaderValue::from(hops + 1));
    parts
}

fn is_refused(response: &Response<Incoming>) -> bool {
    response.status() == StatusCode::SERVICE_UNAVAILABLE
        && response.headers().contains_key(headers::REFUSED)
}
