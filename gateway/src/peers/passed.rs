//! The body of another host's answer.
//!
//! What is not read stands in the connection between the two hosts, and its stream takes a place there. For
//! a client `stall` sees to it, where its connection is driven. A guest, or a call over NATS, is driven by
//! nobody here, and may never ask again; so a task of its own passes on what comes:
//!
//! ```text
//!   the host ── a frame ──> task ── one frame at a time ──> whoever asked
//!                            └── it is not taken for too long: the stream is reset
//! ```

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::peer::Stream;
use crate::{Body, BoxError};

type Next = Option<Result<Frame<Bytes>, BoxError>>;

/// As it comes.
#[derive(Debug)]
pub(crate) struct FromPeer {
    body: Incoming,
    _stream: Stream,
}

impl FromPeer {
    pub(super) fn new(body: Incoming, stream: Stream) -> Self {
        Self {
            body,
            _stream: stream,
        }
    }
}

impl http_body::Body for FromPeer {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Next> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        Poll::Ready(frame.map(|frame| frame.map_err(BoxError::from)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Passed on by a task.
struct Passed {
    /// `None` in it: that was all.
    frames: mpsc::Receiver<Next>,
    ended: bool,
}

impl http_body::Body for Passed {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Next> {
        if self.ended {
            return Poll::Ready(None);
        }
        let next = ready!(self.frames.poll_recv(cx));
        self.ended = !matches!(next, Some(Some(Ok(_))));
        Poll::Ready(next.unwrap_or_else(|| {
            let why = "the rest of the response was let go: it was not read for too long";
            Some(Err(why.into()))
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }
}

/// What passes a body on, and the body.
pub(super) fn pass(body: FromPeer, limit: Duration) -> (impl Future<Output = ()>, Body) {
    let (taker, frames) = mpsc::channel(1);
    let passed = Passed {
        frames,
        ended: false,
    };
    let passing = async move {
        let mut body = body;
        loop {
            let next = tokio::select! {
                next = body.frame() => next,
                // Nobody wants it any more.
                () = taker.closed() => return,
            };
            let last = !matches!(next, Some(Ok(_)));
            let sent = timeout(limit, taker.send(next)).await;
            if last || !matches!(sent, Ok(Ok(()))) {
                return;
            }
        }
    };
    (passing, passed.boxed_unsync())
}
