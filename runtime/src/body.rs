//! Bodies in both directions: streamed, bounded, and tied to the guest that reads or writes them.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use bytes::{Buf as _, Bytes};
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::combinators::UnsyncBoxBody;
use tokio::task::AbortHandle;
use tokio::time::{Sleep, sleep_until};
use wasmorch_api::error::chain;
use wasmtime_wasi_http::{Error, WasiBody};

use crate::ended::{BodySide, Ended};
use crate::guest::{Deadline, Watch};
use crate::holdings::{AHEAD_BYTES, BODY_CHUNKS};

/// Why a body broke off. That of a response is an [`Ended`] when the guest is the reason.
pub type BodyError = Box<dyn std::error::Error + Send + Sync>;

/// A streamed body, as requests come in and responses go out.
pub type Body = UnsyncBoxBody<Bytes, BodyError>;

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

/// A response body. While it is read, its guest may still be writing it: dropping it before its
/// end stops the guest; after its end the guest may finish what it does, within its timeout.
pub(crate) struct ResponseBody {
    body: WasiBody,
    watch: Arc<Watch>,
    guest: Option<AbortHandle>,
    deadline: Option<Deadline>,
    /// Until the deadline, once it was waited for: a guest of 0.3 that passes its request's body on may be
    /// done long before.
    late: Option<Pin<Box<Sleep>>>,
    limit: u64,
    /// What was taken from the guest before anybody asked for it: a few frames.
    ahead: VecDeque<Frame<Bytes>>,
    /// Of the guest's, what lies ahead included.
    taken: u64,
    /// The content length, when the guest gave one.
    expected: Option<u64>,
    finished: bool,
    /// The guest gives no more.
    ended: bool,
}

impl ResponseBody {
    pub(crate) fn new(
        body: WasiBody,
        expected: Option<u64>,
        limit: u64,
        watch: Arc<Watch>,
    ) -> Self {
        let finished = expected == Some(0) || body.is_end_stream();
        Self {
            body,
            watch,
            guest: None,
            deadline: None,
            late: None,
            limit,
            ahead: VecDeque::new(),
            taken: 0,
            expected,
            finished,
            ended: false,
        }
    }

    /// Whoever writes it from now on.
    pub(crate) fn written_by(&mut self, guest: AbortHandle) {
        self.guest = Some(guest);
    }

    /// To be there whole by then.
    pub(crate) fn due(mut self, deadline: Option<Deadline>) -> Self {
        self.deadline = deadline;
        self
    }

    /// Takes what is there, to be sent together with the head. Whether that was something, and there is
    /// room for more.
    ///
    /// # Errors
    ///
    /// Why the guest ended in the middle of it: nothing was sent yet.
    pub(crate) fn take_ahead(&mut self, cx: &mut Context<'_>) -> Result<bool, Ended> {
        let mut found = false;
        loop {
            if self.ahead_bytes() >= AHEAD_BYTES || self.ahead.len() >= BODY_CHUNKS {
                return Ok(false);
            }
            match self.poll_guest(cx) {
                Poll::Pending => return Ok(found),
                Poll::Ready(None) => return Ok(false),
                Poll::Ready(Some(frame)) => {
                    self.ahead.push_back(frame?);
                    found = true;
                }
            }
        }
    }

    /// The guest's next frame, within its limits.
    fn poll_guest(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Ended>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let failed = match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Some(Ok(frame))) => {
                self.taken += bytes_of(&frame);
                if self.taken <= self.limit {
                    self.finished |= self.expected == Some(self.taken) || frame.is_trailers();
                    return Poll::Ready(Some(Ok(frame)));
                }
                let (side, limit_bytes) = (BodySide::Response, self.limit);
                self.watch.end(Ended::BodyTooLarge { side, limit_bytes })
            }
            // A guest that ended early looks like the end of the body: ask how it ended.
            Poll::Ready(None) => match (self.watch.ended(), self.expected) {
                // Counted, where it ended for all of an instance.
                (Some(ended), _) if !self.finished => self.watch.end(ended.clone()),
                // What is passed on ends with the request's body, as if that had been all of it.
                _ if !self.finished
                    && let Some(broken) = self.watch.request_failure() =>
                {
                    self.watch.end(broken.clone())
                }
                (_, Some(expected)) if self.taken < expected => {
                    let taken = self.taken;
                    let short = format!("its body ended after {taken} of {expected} bytes");
                    self.watch.end(Ended::Guest(short))
                }
                _ => {
                    self.finished = true;
                    self.ended = true;
                    return Poll::Ready(None);
                }
            },
            Poll::Ready(Some(Err(error))) => self.watch.end(Ended::Guest(error.to_string())),
        };
        Poll::Ready(Some(Err(self.broken(failed))))
    }

    /// Resolves when it should be there, with that.
    fn poll_late(&mut self, cx: &mut Context<'_>) -> Poll<Deadline> {
        let Some(deadline) = self.deadline else {
            return Poll::Pending;
        };
        let late = self
            .late
            .get_or_insert_with(|| Box::pin(sleep_until(deadline.at)));
        late.as_mut().poll(cx).map(|()| deadline)
    }

    /// Nothing comes of it any more.
    fn broken(&mut self, why: Ended) -> Ended {
        self.ended = true;
        self.stop_guest();
        why
    }

    fn ahead_bytes(&self) -> u64 {
        self.ahead.iter().map(bytes_of).sum()
    }

    fn stop_guest(&mut self) {
        if let Some(guest) = self.guest.take() {
            guest.abort();
        }
    }
}

fn bytes_of(frame: &Frame<Bytes>) -> u64 {
    frame.data_ref().map_or(0, |data| data.len() as u64)
}

impl http_body::Body for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(frame) = self.ahead.pop_front() {
            return Poll::Ready(Some(Ok(frame)));
        }
        let mut next = self.poll_guest(cx);
        if next.is_pending()
            && let Poll::Ready(late) = self.poll_late(cx)
        {
            let late = self.watch.end_late(late);
            next = Poll::Ready(Some(Err(self.broken(late))));
        }
        next.map(|next| next.map(|frame| frame.map_err(BodyError::from)))
    }

    fn is_end_stream(&self) -> bool {
        // Not before it is known how the guest ended.
        self.finished && self.ahead.is_empty() && (self.ended || self.body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        let delivered = self.taken - self.ahead_bytes();
        match self.expected {
            Some(expected) => SizeHint::with_exact(expected.saturating_sub(delivered)),
            // All of it is here, so its length need not stay unknown.
            None if self.ended && !self.ahead.iter().any(Frame::is_trailers) => {
                SizeHint::with_exact(self.ahead_bytes())
            }
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

#[cfg(test)]
mod tests {
    use futures::{FutureExt as _, stream};
    use http_body_util::{BodyExt as _, StreamBody};

    use super::*;
    use crate::ledger::Account;
    use crate::limits::Meter;
    use crate::{Runtime, RuntimeConfig};

    fn body(frames: Vec<Result<&'static str, Error>>, limit: u64) -> ResponseBody {
        sized(frames, None, limit)
    }

    fn sized(
        frames: Vec<Result<&'static str, Error>>,
        expected: Option<u64>,
        limit: u64,
    ) -> ResponseBody {
        let frames = frames.into_iter();
        let frames = frames.map(|frame| frame.map(|text| Frame::data(Bytes::from(text))));
        let body = StreamBody::new(stream::iter(frames)).boxed_unsync();
        ResponseBody::new(body, expected, limit, watch())
    }

    async fn ahead(body: &mut ResponseBody) -> Result<(), Ended> {
        std::future::poll_fn(|cx| Poll::Ready(body.take_ahead(cx)))
            .await
            .map(drop)
    }

    fn watch() -> Arc<Watch> {
        let runtime = Runtime::new(RuntimeConfig {
            pooling: false,
            ..Default::default()
        });
        let meter = Arc::new(Meter::new(Account::alone(), None));
        Arc::new(Watch::new(runtime.unwrap(), meter, 0))
    }

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

    #[tokio::test]
    async fn a_body_that_is_there_has_a_length_and_keeps_its_order() {
        let mut body = body(vec![Ok("one "), Ok("two")], 100);
        assert_eq!(body.size_hint().exact(), None);
        ahead(&mut body).await.unwrap();
        assert_eq!(body.size_hint().exact(), Some(7));
        assert!(!body.is_end_stream());
        let first = body.frame().await.unwrap().unwrap();
        assert_eq!(first.data_ref().unwrap(), "one ");
        assert_eq!(body.size_hint().exact(), Some(3));
        let rest = body.collect().await.unwrap().to_bytes();
        assert_eq!(rest, "two");
    }

    #[tokio::test]
    async fn no_more_lies_ahead_than_a_body_may_have_on_the_way() {
        let frames = (0..20).map(|_| Ok("x")).collect();
        let mut body = body(frames, 100);
        ahead(&mut body).await.unwrap();
        assert_eq!(body.ahead.len(), BODY_CHUNKS);
        assert_eq!(body.size_hint().exact(), None);
        let all = body.collect().now_or_never().unwrap();
        assert_eq!(all.unwrap().to_bytes().len(), 20);
    }

    #[tokio::test]
    async fn what_breaks_before_anything_was_sent_is_no_answer() {
        let mut broken = body(vec![Ok("one "), Err(Error::HttpProtocolError)], 100);
        assert!(matches!(ahead(&mut broken).await, Err(Ended::Guest(_))));
        let mut short = sized(vec![Ok("one ")], Some(10), 100);
        let ended = ahead(&mut short).await.unwrap_err().to_string();
        assert!(ended.contains("4 of 10"), "{ended}");
        let mut none = sized(Vec::new(), Some(10), 100);
        assert!(ahead(&mut none).await.is_err());
        let mut large = body(vec![Ok("one "), Ok("two")], 5);
        assert!(matches!(
            ahead(&mut large).await,
            Err(Ended::BodyTooLarge { limit_bytes: 5, .. })
        ));
    }
}
