//! To another host: which one, and whether to try one more.
//!
//! Invariant: a request goes elsewhere only if it was certainly not executed where it was.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use http::header::HeaderValue;
use http::{Request, Response, StatusCode, Version};
use hyper::body::Incoming;

use crate::Body;
use crate::answer::{Answer, Held};
use crate::balance::{Candidate, Endpoints};
use crate::gateway::{Inner, RETRY_AFTER};
use crate::headers;
use crate::index::Target;
use crate::peers::{Peer, SendError};
use crate::replay::Replay;
use crate::stats::ErrorClass;

impl Inner {
    /// To another host, and to one more if that one certainly did not execute it.
    pub(crate) async fn forward(
        &self,
        target: &Target,
        request: Request<Body>,
        hops: u32,
        held: &mut Held,
    ) -> Answer {
        let endpoints = self.tables.endpoints(&target.key);
        let first = endpoints
            .as_ref()
            .and_then(|all| self.pick(all, &[]).map(|peer| (all, peer)));
        let Some((endpoints, mut peer)) = first else {
            return self.no_endpoint(&target.key, endpoints.as_deref());
        };
        let (mut parts, body) = request.into_parts();
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
        let replay = Replay::new(body);
        let attempts_max = self
            .limits
            .attempts_max
            .clamp(1, endpoints.candidates().len());
        let mut tried: Vec<Arc<Peer>> = Vec::new();
        loop {
            let last = tried.len() + 1 >= attempts_max;
            let head = if last {
                std::mem::replace(&mut parts, Request::new(()).into_parts().0)
            } else {
                parts.clone()
            };
            held.at(Some(peer.clone()));
            self.counters.forwarded.fetch_add(1, Relaxed);
            let attempt = Request::from_parts(head, replay.attempt(last));
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
                    return Answer::error(ErrorClass::Lost, self.lost(&target.key, &reason));
                }
            };
            tracing::debug!(workload = %target.key, reason, "not executed there");
            tried.push(peer);
            let next = if !last && replay.is_whole() {
                self.pick(endpoints, &tried)
            } else {
                None
            };
            let Some(next) = next else {
                let text = self.nowhere(&target.key, tried.len(), &reason);
                return Answer::later(class, RETRY_AFTER, text);
            };
            self.counters.retried.fetch_add(1, Relaxed);
            peer = next;
        }
    }

    /// A host to send to, of those not tried yet. Ejected ones only if there is no other: better
    /// a try than a certain error.
    pub(crate) fn pick(&self, endpoints: &Endpoints, tried: &[Arc<Peer>]) -> Option<Arc<Peer>> {
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

fn is_refused(response: &Response<Incoming>) -> bool {
    response.status() == StatusCode::SERVICE_UNAVAILABLE
        && response.headers().contains_key(headers::REFUSED)
}
