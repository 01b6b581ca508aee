//! Bodies in both directions: streamed, bounded, and tied to the guest that reads or writes them.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll};

use bytes::{Buf as _, Bytes};
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::combinators::UnsyncBoxBody;
use tokio::task::AbortHandle;
use wasmtime_wasi_http::{Error, WasiBody};

use crate::ended::{BodySide, Ended};
use crate::guest::Watch;

/// Why a body broke off. That of a response is an [`Ended`] when the guest is the reason.
pub type BodyError = Box<dyn std::error::Error + Send + Sync>;

/// A streamed body, as requests come in and responses go out.
pub type Body = UnsyncBoxBody<Bytes, BodyError>;

/// A request body that ends with an error beyond its limit.
pub(crate) struct RequestBody {
    body: Body,
    left: u64,
    exceeded: Arc<AtomicBool>,
}

impl RequestBody {
    /// `exceeded` is set when the limit is passed, so that the request can be answered with that.
    pub(crate) fn new(body: Body, limit: u64, exceeded: Arc<AtomicBool>) -> Self {
        Self {
            body,
            left: limit,
            exceeded,
        }
    }
}

impl http_body::Body for RequestBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let frame = match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(None) => return Poll::Ready(None),
            Poll::Ready(Some(Err(error))) => {
                return Poll::Ready(Some(Err(Error::InternalError(Some(error.to_string())))));
            }
            Poll::Ready(Some(Ok(frame))) => frame,
        };
        let length = frame.data_ref().map_or(0, |data| data.remaining() as u64);
        match self.left.checked_sub(length) {
            Some(left) => {
                self.left = left;
                Poll::Ready(Some(Ok(frame)))
            }
            None => {
                self.exceeded.store(true, Relaxed);
                Poll::Ready(Some(Err(Error::HttpRequestBodySize(None))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A response body. While it is read, its guest may still be writing it: dropping it before its
/// end stops the guest; after its end the guest may finish what it does, within its timeout.
pub(crate) struct ResponseBody {
    body: WasiBody,
    watch: Arc<Watch>,
    guest: Option<AbortHandle>,
    limit: u64,
    delivered: u64,
    /// The content length, when the guest gave one.
    expected: Option<u64>,
    finished: bool,
}

impl ResponseBody {
    pub(crate) fn new(
        body: WasiBody,
        expected: Option<u64>,
        limit: u64,
        watch: Arc<Watch>,
        guest: Option<AbortHandle>,
    ) -> Self {
        let finished = expected == Some(0) || body.is_end_stream();
        Self {
            body,
            watch,
            guest,
            limit,
            delivered: 0,
            expected,
            finished,
        }
    }

    fn stop_guest(&mut self) {
        if let Some(guest) = self.guest.take() {
            guest.abort();
        }
    }

    fn fail(&mut self, ended: Ended) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.stop_guest();
        Poll::Ready(Some(Err(Box::new(ended))))
    }
}

impl http_body::Body for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Some(Ok(frame))) => {
                self.delivered += frame.data_ref().map_or(0, |data| data.len() as u64);
                if self.delivered > self.limit {
                    let limit_bytes = self.limit;
                    let side = BodySide::Response;
                    let ended = self.watch.end(Ended::BodyTooLarge { side, limit_bytes });
                    return self.fail(ended);
                }
                self.finished |= self.expected == Some(self.delivered) || frame.is_trailers();
                Poll::Ready(Some(Ok(frame)))
            }
            // A guest that ended early looks like the end of the body: ask how it ended.
            Poll::Ready(None) => match self.watch.ended().cloned() {
                Some(ended) if !self.finished => self.fail(ended),
                _ => {
                    self.finished = true;
                    Poll::Ready(None)
                }
            },
            Poll::Ready(Some(Err(error))) => {
                let ended = self.watch.ended().cloned();
                self.fail(ended.unwrap_or_else(|| Ended::Guest(error.to_string())))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        // Not before it is known how the guest ended.
        self.finished && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        match self.expected {
            Some(expected) => SizeHint::with_exact(expected.saturating_sub(self.delivered)),
            None => SizeHint::default(),
        }
    }
}

impl Drop for ResponseBody {
    fn drop(&mut self) {
        if !self.finished {
            self.stop_guest();
        }
    }
}
