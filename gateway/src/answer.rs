//! Responses on their way out: where their bytes come from, and what ends with them.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Method, Response, Version};
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;

use crate::connections::Watch;
use crate::headers;
use crate::health::Health;
use crate::peers::FromPeer;
use crate::stall::Turn;
use crate::stats::{CounterGauge, Counters, ErrorClass, Gauge};
use crate::{Body, BoxError};

/// The body of a response, and all that is held until its last byte.
#[derive(Debug)]
pub(crate) struct Outgoing {
    source: Source,
    /// Dropped with the body: at its last byte, or when the client goes.
    held: Held,
}

#[derive(Debug)]
enum Source {
    Nothing,
    Text(Option<Bytes>),
    Local(Body),
    Peer(FromPeer),
}

/// What a request counts as while it is in hand. Dropped with its future when the client goes
/// before there is a response, with the response's body otherwise.
#[derive(Debug)]
pub(crate) struct Held {
    _in_flight: CounterGauge,
    connection: Option<Arc<Watch>>,
    /// Whose it is, when that is another host's.
    there: Option<Arc<Health>>,
    /// While a client reads the response: whose turn it is.
    turn: Option<Turn>,
}

impl Held {
    pub(crate) fn new(
        counters: &Arc<Counters>,
        connection: Option<(&Arc<Watch>, Version)>,
    ) -> Self {
        if let Some((connection, version)) = connection {
            connection.request_began(version);
        }
        Self {
            _in_flight: Gauge::new(counters.clone(), |counters| &counters.in_flight),
            connection: connection.map(|(connection, _)| connection.clone()),
            there: None,
            turn: None,
        }
    }

    /// The response is there, and a client of the public port is to read it.
    pub(crate) fn is_to_be_read(&mut self) {
        let connection = self.connection.as_ref();
        self.turn = connection.and_then(|connection| Turn::begin(connection.went_on()));
    }

    /// Counts the request as this host's, instead of the one before.
    pub(crate) fn at(&mut self, there: Option<Arc<Health>>) {
        there.iter().for_each(|there| there.request_began());
        let before = std::mem::replace(&mut self.there, there);
        before.iter().for_each(|before| before.request_ended());
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.at(None);
        if let Some(connection) = &self.connection {
            connection.request_ended();
        }
    }
}

/// A response before it is known what is held for it.
#[derive(Debug)]
pub(crate) struct Answer {
    response: Response<Source>,
    /// When it is an error of this gateway's own.
    class: Option<ErrorClass>,
}

impl Answer {
    /// An error of this gateway's own, for people.
    pub(crate) fn error(class: ErrorClass, text: impl Into<String>) -> Self {
        let mut text = text.into();
        text.push('\n');
        let mut response = Response::new(Source::Text(Some(Bytes::from(text))));
        *response.status_mut() = class.status();
        let map = response.headers_mut();
        map.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("text/plain; charset=utf-8"),
        );
        map.insert(headers::ERROR, class.header());
        Self {
            response,
            class: Some(class),
        }
    }

    /// One that may pass if it is tried again.
    pub(crate) fn later(class: ErrorClass, retry_after: Duration, text: impl Into<String>) -> Self {
        let mut answer = Self::error(class, text);
        // Whole seconds: rounded up, so that nobody comes too early.
        let seconds = retry_after.as_secs() + u64::from(retry_after.subsec_nanos() > 0);
        let value = HeaderValue::from(seconds.clamp(1, 3600));
        answer
            .response
            .headers_mut()
            .insert(header::RETRY_AFTER, value);
        answer
    }

    /// What follows on its connection is not read: where it begins is in doubt.
    pub(crate) fn closing(mut self) -> Self {
        let headers = self.response.headers_mut();
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        self
    }

    /// On the peer port: the request was not executed.
    pub(crate) fn refused(text: impl Into<String>) -> Self {
        Self::later(ErrorClass::Refused, Duration::ZERO, text).not_executed()
    }

    /// On the peer port: whatever it says, it may be asked for elsewhere.
    pub(crate) fn not_executed(mut self) -> Self {
        let headers = self.response.headers_mut();
        headers.insert(headers::REFUSED, HeaderValue::from_static("1"));
        self
    }

    pub(crate) fn empty(status: http::StatusCode) -> Self {
        let mut response = Response::new(Source::Nothing);
        *response.status_mut() = status;
        Self {
            response,
            class: None,
        }
    }

    /// On the peer port: it is this host that is meant.
    pub(crate) fn host(host: &HeaderValue) -> Self {
        let mut answer = Self::empty(http::StatusCode::NO_CONTENT);
        let headers = answer.response.headers_mut();
        headers.insert(headers::HOST, host.clone());
        answer
    }

    /// A replica's response.
    pub(crate) fn local(response: Response<Body>) -> Self {
        let mut response = response.map(Source::Local);
        headers::scrub_local_response(response.headers_mut());
        Self {
            response,
            class: None,
        }
    }

    /// Another host's response.
    pub(crate) fn peer(response: Response<FromPeer>) -> Self {
        let mut response = response.map(Source::Peer);
        headers::scrub_peer_response(response.headers_mut());
        *response.version_mut() = http::Version::HTTP_11;
        Self {
            response,
            class: None,
        }
    }

    /// For whoever may stop to read it, and is no connection of ours.
    pub(crate) fn passed(mut self, passed: impl FnOnce(FromPeer) -> Body) -> Self {
        self.response = self.response.map(|source| match source {
            Source::Peer(body) if !body.is_end_stream() => Source::Local(passed(body)),
            source => source,
        });
        self
    }

    /// On the peer port: what this host has in hand for the workload.
    pub(crate) fn tell_load(&mut self, load: u32) {
        let headers = self.response.headers_mut();
        headers.insert(headers::LOAD, HeaderValue::from(load));
    }

    pub(crate) fn status(&self) -> http::StatusCode {
        self.response.status()
    }

    /// The kind of error, when it is one of this gateway's own.
    pub(crate) fn class(&self) -> Option<ErrorClass> {
        self.class
    }

    /// Fits it to the request's method and binds it to what is held.
    pub(crate) fn finish(self, method: &Method, held: Held) -> Response<Outgoing> {
        let head_only = *method == Method::HEAD;
        self.response.map(|source| {
            let source = if head_only { Source::Nothing } else { source };
            Outgoing { source, held }
        })
    }
}

impl Outgoing {
    /// For callers that are no connection of ours.
    pub(crate) fn into_body(self) -> Body {
        self.boxed_unsync()
    }
}

impl Source {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self {
            Self::Nothing => Poll::Ready(None),
            Self::Text(text) => Poll::Ready(text.take().map(|text| Ok(Frame::data(text)))),
            Self::Local(body) => Pin::new(body).poll_frame(cx),
            Self::Peer(body) => Pin::new(body).poll_frame(cx),
        }
    }
}

impl http_body::Body for Outgoing {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if let Some(turn) = &self.held.turn {
            turn.goes_on();
        }
        let polled = self.source.poll(cx);
        if let Some(turn) = &self.held.turn {
            turn.is_the_clients(matches!(polled, Poll::Ready(Some(Ok(_)))));
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Nothing => true,
            Source::Text(text) => text.is_none(),
            Source::Local(body) => body.is_end_stream(),
            Source::Peer(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            // No claim: a response to HEAD has the length that a response to GET would have.
            Source::Nothing => SizeHint::default(),
            Source::Text(text) => SizeHint::with_exact(text.as_ref().map_or(0, Bytes::len) as u64),
            Source::Local(body) => body.size_hint(),
            Source::Peer(body) => body.size_hint(),
        }
    }
}

/// No body.
pub(crate) fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// A request's body as replicas read it. No body costs no allocation.
pub(crate) fn incoming(body: Incoming) -> Body {
    if http_body::Body::is_end_stream(&body) {
        empty()
    } else {
        body.map_err(BoxError::from).boxed_unsync()
    }
}
