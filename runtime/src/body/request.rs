//! What a guest reads: within its limit, and what becomes of it is its sender's doing.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use bytes::{Buf as _, Bytes};
use http_body::{Frame, SizeHint};
use wasmorch_api::error::chain;
use wasmtime_wasi_http::Error;

use super::Body;
use crate::ended::{BodySide, Ended};
use crate::guest::Watch;

/// How long a guest waits for its request's body: told to whoever puts one among the request's extensions.
#[derive(Debug, Clone, Default)]
pub struct Awaited(Arc<Mutex<(Duration, Option<Instant>)>>);

impl Awaited {
    /// Until now.
    pub fn so_far(&self) -> Duration {
        let (before, since) = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        before + since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    fn waits(&self, waits: bool) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match (state.1, waits) {
            (None, true) => state.1 = Some(Instant::now()),
            (Some(since), false) => *state = (state.0 + since.elapsed(), None),
            _ => {}
        }
    }
}

/// A request body that ends with an error beyond its limit. Its request's watch is told what its client
/// does: how the guest ends is put down to that, and it is answered with it.
pub(crate) struct RequestBody {
    body: Body,
    limit: u64,
    left: u64,
    watch: Arc<Watch>,
    awaited: Option<Awaited>,
}

impl RequestBody {
    pub(crate) fn new(body: Body, limit: u64, watch: Arc<Watch>) -> Self {
        Self {
            body,
            limit,
            left: limit,
            watch,
            awaited: None,
        }
    }

    /// Tells how long it is waited for.
    pub(crate) fn told(mut self, awaited: Option<Awaited>) -> Self {
        self.awaited = awaited;
        self
    }

    fn awaits(&self, awaits: bool) {
        self.watch.awaits_client(awaits);
        self.awaited.iter().for_each(|told| told.waits(awaits));
    }
}

/// Something has come of a body that was waited for.
struct Arrives {
    guest: Waker,
    watch: Arc<Watch>,
    awaited: Option<Awaited>,
}

impl Wake for Arrives {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.watch.awaits_client(false);
        self.awaited.iter().for_each(|told| told.waits(false));
        self.guest.wake_by_ref();
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        // Nobody waits for more of it.
        self.awaits(false);
    }
}

impl http_body::Body for RequestBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let mut polled = Pin::new(&mut self.body).poll_frame(cx);
        if polled.is_pending() {
            self.awaits(true);
            // What comes ends the wait, whether the guest asks again or not: from then on it is its turn.
            let arrives = Arc::new(Arrives {
                guest: cx.waker().clone(),
                watch: self.watch.clone(),
                awaited: self.awaited.clone(),
            });
            let waker = Waker::from(arrives);
            polled = Pin::new(&mut self.body).poll_frame(&mut Context::from_waker(&waker));
        }
        if polled.is_ready() {
            self.awaits(false);
        }
        let frame = match polled {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(None) => return Poll::Ready(None),
            Poll::Ready(Some(Err(error))) => {
                let why = chain(&*error);
                self.watch.request_failed(Ended::RequestBroken(why.clone()));
                return Poll::Ready(Some(Err(Error::InternalError(Some(why)))));
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
                let (side, limit_bytes) = (BodySide::Request, self.limit);
                let ended = Ended::BodyTooLarge { side, limit_bytes };
                self.watch.request_failed(ended);
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

#[cfg(test)]
mod tests {
    use futures::{FutureExt as _, stream};
    use http_body_util::{BodyExt as _, StreamBody};

    use super::super::BodyError;
    use super::super::tests::watch;
    use super::*;

    fn trap() -> Ended {
        Ended::Trap {
            message: "unreachable".into(),
            backtrace: String::new(),
        }
    }

    /// What its client did, whatever the guest made of it: it may unwrap an error, or swallow it and answer 500.
    #[tokio::test]
    async fn how_a_guest_ends_is_put_down_to_a_client_that_breaks_off() {
        let late = Ended::Timeout {
            limit: Duration::from_secs(1),
            throttled: Duration::ZERO,
        };
        for ended in [trap(), Ended::NoResponse, late.clone()] {
            let watch = watch();
            let frames: [Result<_, BodyError>; 2] = [
                Ok(Frame::data(Bytes::from_static(b"half"))),
                Err("invalid chunk size".into()),
            ];
            let body = StreamBody::new(stream::iter(frames)).boxed_unsync();
            let mut body = RequestBody::new(body, 100, watch.clone());
            assert!(body.frame().await.unwrap().is_ok());
            assert_eq!(watch.request_failure(), None);
            assert!(body.frame().await.unwrap().is_err());
            let told = watch.end(ended);
            assert_eq!(told, Ended::RequestBroken("invalid chunk size".into()));
        }
        let alone = watch();
        assert_eq!(alone.end(trap()), trap(), "nobody else is to blame");
    }

    #[tokio::test]
    async fn who_is_late_is_whose_turn_it_was() {
        let limit = Duration::from_secs(1);
        let late = Ended::Timeout {
            limit,
            throttled: Duration::ZERO,
        };
        let waits = || StreamBody::new(stream::pending()).boxed_unsync();
        let asked = watch();
        let mut body = RequestBody::new(waits(), 100, asked.clone());
        assert!(body.frame().now_or_never().is_none());
        assert_eq!(asked.end(late.clone()), Ended::RequestTimeout { limit });
        // The guest has not asked for it, or wants no more of it.
        let ignored = watch();
        let _unread = RequestBody::new(waits(), 100, ignored.clone());
        assert_eq!(ignored.end(late.clone()), late);
        let left = watch();
        let told = Awaited::default();
        let mut body = RequestBody::new(waits(), 100, left.clone()).told(Some(told.clone()));
        assert_eq!(told.so_far(), Duration::ZERO);
        assert!(body.frame().now_or_never().is_none());
        while told.so_far() < Duration::from_millis(20) {
            tokio::task::yield_now().await;
        }
        drop(body);
        assert_eq!(left.end(late.clone()), late);
        let waited = told.so_far();
        assert!(waited >= Duration::from_millis(20), "{waited:?}");
        assert_eq!(told.so_far(), waited, "and no longer");
    }

    #[tokio::test]
    async fn once_something_has_come_it_is_the_guests_turn() {
        let limit = Duration::from_secs(1);
        let (mut client, sent) = futures::channel::mpsc::channel(1);
        let (asked, told) = (watch(), Awaited::default());
        let body = StreamBody::new(sent).boxed_unsync();
        let mut body = RequestBody::new(body, 100, asked.clone()).told(Some(told.clone()));
        assert!(body.frame().now_or_never().is_none());
        client.try_send(Ok(Frame::data(Bytes::from("x")))).unwrap();
        // It never asks again.
        let waited = told.so_far();
        let began = Instant::now();
        while began.elapsed() < Duration::from_millis(5) {
            tokio::task::yield_now().await;
        }
        assert_eq!(told.so_far(), waited, "and no longer");
        let late = Ended::Timeout {
            limit,
            throttled: Duration::ZERO,
        };
        assert_eq!(asked.end(late.clone()), late);
    }
}
