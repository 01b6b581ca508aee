//! To another host: which one, and whether to try one more.
//!
//! Invariant: a request goes elsewhere only if it was certainly not executed where it was; or,
//! once, if executing it twice is the same as once and no byte of its response has been seen. Neither
//! goes on for ever: so many tries in all, and further ones get what the first has left of the time.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use http::header::HeaderValue;
use http::request::Parts;
use http::{Request, Response, StatusCode, Version};
use http_body_util::BodyExt as _;
use tokio::time::timeout_at;
use wasmorch_api::{HostId, WorkloadKey};

use crate::Body;
use crate::answer::{Answer, Held};
use crate::balance::{Candidate, Endpoints};
use crate::gateway::{Deadline, Here, Inner, RETRY_AFTER};
use crate::headers;
use crate::health::Health;
use crate::index::Target;
use crate::peers::{FromPeer, Peer, SendError};
use crate::replay::{Attempt, Replay};
use crate::stats::ErrorClass;

/// A host to send to, and what was seen of it as a server of the workload.
pub(crate) struct Choice {
    peer: Arc<Peer>,
    host: HostId,
    health: Arc<Health>,
    /// A replica may have to be waited for there.
    wakes: bool,
}

/// A request on its way to another host.
pub(crate) struct Onward {
    /// Gateways that it has passed before this one.
    pub(crate) hops: u32,
    pub(crate) began: Instant,
    /// The host that had better take it than the replica here.
    pub(crate) first: Option<Choice>,
    /// The replica here was ended while it had it: it is tried once more.
    pub(crate) lost: bool,
}

/// Why an attempt brought no response.
struct Miss {
    class: ErrorClass,
    reason: String,
    /// What a host says that has no room.
    busy: Option<Box<Response<FromPeer>>>,
    /// It speaks against the host.
    blames: bool,
}

impl Miss {
    fn new(class: ErrorClass, reason: String) -> Self {
        Self {
            class,
            reason,
            busy: None,
            blames: false,
        }
    }
}

impl Inner {
    /// To another host, and to further ones while that is safe.
    ///
    /// The tables are read again for each try: a host that refuses has often just lost its
    /// replica, and what replaces it is news.
    pub(crate) async fn forward(
        &self,
        target: &Target,
        request: Request<Body>,
        onward: Onward,
        held: &mut Held,
    ) -> Answer {
        let key = &target.key;
        let Onward {
            hops,
            began,
            first,
            lost: mut repeated,
        } = onward;
        let spills = first.is_some();
        let Some(mut choice) = first.or_else(|| self.elsewhere_or_woken(key, &[])) else {
            return match repeated {
                true => Answer::error(ErrorClass::Lost, self.lost(key, "no other host serves it")),
                false => self.no_endpoint(key),
            };
        };
        let (parts, body) = request.into_parts();
        let callers = parts.extensions.get::<Deadline>().map(|callers| callers.0);
        // The first try has a whole time-out, which its replica keeps and tells of; whatever follows has
        // what is left of it.
        let all_tries = target.timeout.and_then(|all| began.checked_add(all));
        let mut deadline = match repeated {
            true => [callers, all_tries].into_iter().flatten().min(),
            false => callers,
        };
        let replay = Replay::new(body);
        let mut tried: Vec<HostId> = Vec::new();
        let mut busy = false;
        loop {
            let last = tried.len() + 1 >= self.limits.attempts_max || repeated;
            held.at(Some(choice.health.clone()));
            self.counters.forwarded.fetch_add(1, Relaxed);
            let mut head = wrapped(&parts, target, hops, deadline);
            if choice.wakes {
                head.headers
                    .insert(headers::WAKE, HeaderValue::from_static("1"));
            }
            let attempt = Request::from_parts(head, replay.attempt(last));
            let until = deadline.filter(|_| repeated || !tried.is_empty());
            let attempt = self.attempt(key, &choice, attempt, (callers, until));
            let miss = match attempt.await {
                Ok(response) => {
                    replay.settle();
                    return Answer::peer(response);
                }
                Err(miss) => miss,
            };
            if let Some(why) = replay.broken() {
                return self.broken(&why);
            }
            if miss.blames {
                self.fared(key, &choice.host, &choice.health, true);
            }
            tracing::debug!(workload = %key, reason = miss.reason, "no response from there");
            tried.push(choice.host);
            let lost = miss.class == ErrorClass::Lost;
            deadline = [callers, all_tries].into_iter().flatten().min();
            let in_time = deadline.is_none_or(|deadline| Instant::now() < deadline);
            let safe = replay.is_whole() && (!lost || parts.method.is_idempotent());
            let again = !last && in_time && safe;
            repeated |= lost;
            // Where two have no room a third is not asked.
            let two = busy && miss.busy.is_some();
            busy |= miss.busy.is_some();
            let next = match again && !two {
                false => None,
                true if spills => self.spill(key, &tried),
                true => self.elsewhere_or_woken(key, &tried),
            };
            if let Some(next) = next {
                self.counters.retried.fetch_add(1, Relaxed);
                choice = next;
                continue;
            }
            held.at(None);
            if again && let Some(answer) = self.after_all(key, parts, &replay, deadline).await {
                return answer;
            }
            return self.in_vain(key, tried.len(), repeated, miss);
        }
    }

    /// Here, where others were tried in vain: by a replica that is ready, or is woken now.
    async fn after_all(
        &self,
        key: &WorkloadKey,
        parts: Parts,
        replay: &Replay,
        deadline: Option<Instant>,
    ) -> Option<Answer> {
        let rests = || self.rests_at(key, &self.host);
        if self.local.ready(key) == 0 && !(rests() && self.local.wake(key).await) {
            return None;
        }
        self.counters.retried.fetch_add(1, Relaxed);
        let body = replay.attempt(true).boxed_unsync();
        let mut request = Request::from_parts(parts, body);
        if let Some(deadline) = deadline {
            request.extensions_mut().insert(Deadline(deadline));
        }
        match self.serve_here(key, request).await {
            Here::Answer(answer) => Some(answer),
            Here::Back(_) => None,
        }
    }

    /// What is answered when no try brought a response.
    fn in_vain(&self, key: &WorkloadKey, tries: usize, repeated: bool, miss: Miss) -> Answer {
        if let Some(busy) = miss.busy.filter(|_| !repeated) {
            return Answer::peer(*busy);
        }
        match miss.class {
            // It may have been executed: whatever came after does not undo that.
            _ if repeated => Answer::error(ErrorClass::Lost, self.lost(key, &miss.reason)),
            ErrorClass::TimedOut => self.late(key),
            class => {
                let text = self.nowhere(key, tries, &miss.reason);
                Answer::later(class, RETRY_AFTER, text)
            }
        }
    }

    /// One try on one host, and what it tells of that host. `until`: what is left for it, when that is not a
    /// whole time-out.
    async fn attempt(
        &self,
        key: &WorkloadKey,
        choice: &Choice,
        attempt: Request<Attempt>,
        (callers, until): (Option<Instant>, Option<Instant>),
    ) -> Result<Response<FromPeer>, Miss> {
        let address = choice.peer.name();
        let patient = callers.is_none() && until.is_none();
        let sending = self.peers.send(&choice.peer, attempt);
        let sent = match until {
            None => sending.await,
            Some(until) => timeout_at(until.into(), sending).await.map_err(|_| {
                let reason = format!("{address}: the time was over");
                Miss::new(ErrorClass::TimedOut, reason)
            })?,
        };
        // A host that refuses tells it too, and is the less likely to be asked next.
        let load = sent.as_ref().ok().map(Response::headers);
        if let Some(load) = load.and_then(headers::load) {
            choice.health.reports(load);
        }
        match sent {
            Ok(response) if is_refused(&response) => {
                let refused = Miss::new(ErrorClass::Refused, format!("{address}: refused"));
                let busy = ErrorClass::of(response.headers()) == Some(ErrorClass::Busy);
                Err(Miss {
                    busy: busy.then(|| Box::new(response)),
                    ..refused
                })
            }
            Ok(response) if ErrorClass::of(response.headers()) == Some(ErrorClass::Lost) => {
                // Ended by its host, which blames nobody.
                let reason = format!("{address}: the replica was ended");
                Err(Miss::new(ErrorClass::Lost, reason))
            }
            Ok(response) => {
                let error = ErrorClass::of(response.headers());
                if !error.is_some_and(ErrorClass::is_the_clients) {
                    let failed = error.is_some_and(|class| class.blames_replica(patient));
                    self.fared(key, &choice.host, &choice.health, failed);
                }
                Ok(response)
            }
            // Whoever cannot be reached at all is ejected for every workload: see `peers`.
            Err(SendError::NotSent(reason)) => Err(Miss::new(ErrorClass::Unreachable, reason)),
            Err(SendError::Full(reason)) => Err(Miss::new(ErrorClass::Overloaded, reason)),
            // Unless it is the request that broke, which its caller knows.
            Err(SendError::Lost(reason)) => Err(Miss {
                blames: true,
                ..Miss::new(ErrorClass::Lost, reason)
            }),
        }
    }

    /// Takes down how a host has served a workload; ejects it when it fails all the time.
    pub(crate) fn fared(&self, key: &WorkloadKey, host: &HostId, health: &Health, failed: bool) {
        if !failed {
            return health.succeeded();
        }
        let too_often = health.failed() && !health.is_ejected();
        let eject = |all: Arc<Endpoints>| health.eject_among(all.healths(), self.limits.eject_for);
        if too_often && self.tables.endpoints(key).is_some_and(eject) {
            self.counters.ejected.fetch_add(1, Relaxed);
            tracing::warn!(workload = %key, %host, "ejected: it failed many times in a row");
        }
    }

    /// A host to send to, of those not tried yet, by what the tables say now.
    pub(crate) fn elsewhere(&self, key: &WorkloadKey, tried: &[HostId]) -> Option<Choice> {
        let endpoints = self.tables.endpoints(key)?;
        let untried =
            |candidate: &Candidate| self.reaches(candidate) && !tried.contains(&candidate.host);
        // Ejected ones only if there is no other: better a try than a certain error.
        let fit = |candidate: &Candidate| untried(candidate) && self.is_fit(candidate);
        let candidate = self.pick(key, &endpoints, fit);
        let candidate = candidate.or_else(|| self.pick(key, &endpoints, untried))?;
        Some(self.choice(candidate))
    }

    /// The same; at zero, a host where a replica rests.
    fn elsewhere_or_woken(&self, key: &WorkloadKey, tried: &[HostId]) -> Option<Choice> {
        let ready = self.elsewhere(key, tried);
        ready.or_else(|| {
            let endpoints = self.tables.endpoints(key)?;
            let untried = |one: &Candidate| self.reaches(one) && !tried.contains(&one.host);
            let fit = endpoints.standby(|one| untried(one) && self.is_fit(one));
            let standby = fit.or_else(|| endpoints.standby(untried))?;
            Some(self.choice(standby))
        })
    }

    fn rests_at(&self, key: &WorkloadKey, host: &HostId) -> bool {
        let endpoints = self.tables.endpoints(key);
        let standby = |all: Arc<Endpoints>| all.standby(|one| one.host == *host).is_some();
        endpoints.is_some_and(standby)
    }

    /// Whether the workload is at zero, and it is this host's turn to wake it.
    pub(crate) fn rests_here(&self, key: &WorkloadKey) -> bool {
        let Some(endpoints) = self.tables.endpoints(key) else {
            return false;
        };
        let usable = |one: &Candidate| self.reaches(one) && self.is_fit(one);
        let first = endpoints.standby(|one| one.host == self.host || usable(one));
        first.is_some_and(|one| one.host == self.host) && self.elsewhere(key, &[]).is_none()
    }

    fn choice(&self, candidate: &Candidate) -> Choice {
        Choice {
            peer: self.peers.at(candidate),
            host: candidate.host.clone(),
            health: candidate.health.clone(),
            wakes: candidate.standby,
        }
    }

    /// Another host that had better take a request, though a replica is here: one that is not `tried`.
    pub(crate) fn spill(&self, key: &WorkloadKey, tried: &[HostId]) -> Option<Choice> {
        let endpoints = self.tables.endpoints(key)?;
        let better = self.better(key, &endpoints, tried)?;
        Some(self.choice(better))
    }

    /// Where the replica here has no room, a host that has less in hand for its weight: were it any other,
    /// two that are full would send each other what they cannot take.
    fn better<'e>(
        &self,
        key: &WorkloadKey,
        endpoints: &'e Endpoints,
        tried: &[HostId],
    ) -> Option<&'e Candidate> {
        let fit = |candidate: &Candidate| {
            self.reaches(candidate) && self.is_fit(candidate) && !tried.contains(&candidate.host)
        };
        let here = endpoints.candidate(&self.host);
        if !self.local.has_room(key) {
            let load = u64::from(self.local.load(key));
            let weight = here.map_or_else(|| self.local.ready(key).into(), |here| here.weight);
            let below =
                |other: &Candidate| u64::from(other.health.load()) * weight < load * other.weight;
            return self.pick(key, endpoints, |other| fit(other) && below(other));
        }
        if endpoints.is_weighted() {
            let is_here = |candidate: &Candidate| candidate.host == self.host;
            let chosen = self.pick(key, endpoints, |other| is_here(other) || fit(other));
            return chosen.filter(|chosen| !is_here(chosen));
        }
        let ejected = here.is_some_and(|here| here.health.is_ejected());
        ejected.then(|| self.pick(key, endpoints, fit)).flatten()
    }

    /// Whether it is another host, and there is a way to it.
    fn reaches(&self, candidate: &Candidate) -> bool {
        let way = candidate.address.is_some() || self.peers.has_tunnel();
        way && candidate.host != self.host
    }

    fn is_fit(&self, candidate: &Candidate) -> bool {
        let known = self.peers.get(&candidate.way);
        !candidate.health.is_ejected() && known.is_none_or(|peer| !self.peers.is_ejected(&peer))
    }

    fn pick<'e>(
        &self,
        key: &WorkloadKey,
        endpoints: &'e Endpoints,
        usable: impl Fn(&Candidate) -> bool,
    ) -> Option<&'e Candidate> {
        let load = |candidate: &Candidate| {
            // This host is never sent to, so it says nothing of itself.
            if candidate.host == self.host {
                return self.local.load(key);
            }
            candidate.health.load()
        };
        endpoints.pick(&mut rand::rng(), self.zone.as_deref(), usable, load)
    }
}

/// A request's head as the peer port wants it.
fn wrapped(parts: &Parts, target: &Target, hops: u32, deadline: Option<Instant>) -> Parts {
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
    if let Some(deadline) = deadline {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
        parts
            .headers
            .insert(headers::DEADLINE, HeaderValue::from(left));
    }
    parts
}

fn is_refused<B>(response: &Response<B>) -> bool {
    response.status() == StatusCode::SERVICE_UNAVAILABLE
        && response.headers().contains_key(headers::REFUSED)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::sync::atomic::AtomicU32;

    use wasmorch_api::{ClusterId, EndpointTable, HostEndpoint, Name, Term};

    use super::*;
    use crate::config::GatewayConfig;
    use crate::gateway::Gateway;
    use crate::local::{Local, LocalError};
    use crate::tables::Tables;

    /// A replica that only says what it has in hand.
    #[derive(Default)]
    struct Loaded(AtomicU32);

    #[async_trait::async_trait]
    impl Local for Loaded {
        fn ready(&self, _: &WorkloadKey) -> u32 {
            1
        }

        fn load(&self, _: &WorkloadKey) -> u32 {
            self.0.load(Relaxed)
        }

        async fn handle(
            &self,
            _: &WorkloadKey,
            request: Request<Body>,
        ) -> Result<Response<Body>, LocalError> {
            Err(LocalError::NotHere(request))
        }
    }

    /// Of 10,000 requests that come in at host `a`, how many leave it for host `b`.
    async fn leaving((here, there): (u32, u32), (in_hand, told): (u32, u32)) -> usize {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let config = GatewayConfig::new(listener, None, "a".parse().unwrap(), "localhost");
        let local = Arc::new(Loaded::default());
        local.0.store(in_hand, Relaxed);
        let gateway = Gateway::new(Tables::new(), local, &config);
        let name = |text: &str| text.parse::<Name>().unwrap();
        let host = |host: &str, weight| HostEndpoint {
            host: host.parse().unwrap(),
            peer: Some(format!("{host}:1").into()),
            ready: 1,
            standby: None,
            weight,
            canary: 0,
            zone: None,
        };
        let table = EndpointTable {
            cluster: ClusterId::from_random([0; 10]),
            term: Term(1),
            namespace: name("shop"),
            workload: name("web"),
            hosts: vec![host("a", here), host("b", there)],
            canary: None,
        };
        let key = WorkloadKey::new(name("shop"), name("web"));
        let endpoints = Endpoints::new(table, None);
        let other = endpoints.candidate(&"b".parse().unwrap()).unwrap();
        let leaves = (0..10_000).filter(|_| {
            other.health.reports(told);
            gateway.inner().better(&key, &endpoints, &[]).is_some()
        });
        leaves.count()
    }

    #[tokio::test]
    async fn what_is_in_hand_here_counts_like_what_others_have() {
        // Busy as their weights say: the canary here has its share and no more.
        let stay = 10_000 - leaving((10, 90), (1, 9)).await;
        assert!((800..1200).contains(&stay), "{stay}");
        assert_eq!(leaving((2, 2), (5, 1)).await, 10_000);
        assert_eq!(leaving((2, 2), (1, 5)).await, 0);
    }
}
