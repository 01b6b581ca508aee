//! What a guest writes: within its limit and its time, and not as if it were whole when it is not.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use tokio::task::AbortHandle;
use tokio::time::{Sleep, sleep_until};
use wasmtime_wasi_http::WasiBody;

use super::BodyError;
use crate::ended::{BodySide, Ended};
use crate::guest::{Deadline, Watch};
use crate::holdings::{AHEAD_BYTES, BODY_CHUNKS};

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
    use wasmtime_wasi_http::Error;

    use super::super::tests::watch;
    use super::*;

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
