//! The body of an answer to a guest's own request: its frames are not too far apart, they are not more
//! than the guest may take, and the request has its place until the body is dropped.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, Sleep, sleep};
use wasmtime_wasi_http::{Error, WasiBody};

/// The bounds of one body.
pub(super) struct Bounds {
    /// Bytes that it may still have.
    pub(super) left: u64,
    /// The longest time without a frame.
    pub(super) between: Duration,
    /// Its request's place among those in hand.
    pub(super) room: OwnedSemaphorePermit,
}

/// A body within its bounds.
pub(super) struct Bounded {
    body: WasiBody,
    limit: u64,
    left: u64,
    between: Duration,
    sleep: Pin<Box<Sleep>>,
    _room: OwnedSemaphorePermit,
}

impl Bounded {
    pub(super) fn new(body: WasiBody, bounds: Bounds) -> Self {
        Self {
            body,
            limit: bounds.left,
            left: bounds.left,
            between: bounds.between,
            sleep: Box::pin(sleep(bounds.between)),
            _room: bounds.room,
        }
    }

    fn take(&mut self, frame: Frame<Bytes>) -> Result<Frame<Bytes>, Error> {
        let bytes = frame.data_ref().map_or(0, |data| data.len() as u64);
        match self.left.checked_sub(bytes) {
            Some(left) => {
                self.left = left;
                Ok(frame)
            }
            None => {
                let so_far = self.limit - self.left + bytes;
                Err(Error::HttpResponseBodySize(Some(so_far)))
            }
        }
    }
}

impl http_body::Body for Bounded {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Ready(frame) => {
                let next = Instant::now() + self.between;
                self.sleep.as_mut().reset(next);
                Poll::Ready(frame.map(|frame| frame.and_then(|frame| self.take(frame))))
            }
            Poll::Pending => match self.sleep.as_mut().poll(cx) {
                Poll::Ready(()) => Poll::Ready(Some(Err(Error::ConnectionReadTimeout))),
                Poll::Pending => Poll::Pending,
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
