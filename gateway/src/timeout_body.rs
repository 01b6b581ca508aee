//! A client's body that does not come.
//!
//! Whoever waits for it holds a seat of its replica, and costs its client nothing. So between two pieces of a
//! body only so much time may pass. What counts is that it is waited for: a replica may take its time before it
//! reads on. Once the answer has begun the two are in conversation, and a pause says nothing.
//!
//! ```text
//!   asked for more ── nothing comes for too long ──> broken off, and answered 408
//! ```

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep_until};

use crate::BoxError;
use crate::answer::Answer;
use crate::stats::ErrorClass;

const UNANSWERED: u8 = 0;
const LATE: u8 = 1;
const ANSWERED: u8 = 2;

/// How it stands with a request whose body is waited for.
#[derive(Debug, Clone, Default)]
pub(crate) struct BodyTimeout(Arc<AtomicU8>);

impl BodyTimeout {
    /// The answer begins. Where it is one that the body was to blame for, it says how.
    pub(crate) fn answered(&self, answer: Answer, limit: Duration) -> Answer {
        let before = self.0.swap(ANSWERED, Relaxed);
        if before != LATE || answer.class() != Some(ErrorClass::BadRequest) {
            return answer;
        }
        let text = format!("nothing of the request's body came for {limit:?}; send it faster");
        Answer::error(ErrorClass::LateRequest, text).closing()
    }
}

/// A body whose pieces are not too far apart.
pub(crate) struct TimeoutBody<B> {
    body: B,
    limit: Duration,
    state: BodyTimeout,
    /// Whether the timer is for the piece that is waited for now.
    waits: bool,
    /// Made when it is first needed.
    timer: Option<Pin<Box<Sleep>>>,
}

impl<B> TimeoutBody<B> {
    pub(crate) fn new(body: B, limit: Duration, state: BodyTimeout) -> Self {
        Self {
            body,
            limit,
            state,
            waits: false,
            timer: None,
        }
    }

    fn poll_late(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.state.0.load(Relaxed) == ANSWERED {
            return Poll::Pending;
        }
        let until = Instant::now() + self.limit;
        let timer = self
            .timer
            .get_or_insert_with(|| Box::pin(sleep_until(until)));
        if !std::mem::replace(&mut self.waits, true) {
            timer.as_mut().reset(until);
        }
        ready!(timer.as_mut().poll(cx));
        let late = |now| (now == UNANSWERED).then_some(LATE);
        match self.state.0.fetch_update(Relaxed, Relaxed, late) {
            Ok(_) => Poll::Ready(()),
            Err(_) => Poll::Pending,
        }
    }
}

impl<B> http_body::Body for TimeoutBody<B>
where
    B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Unpin,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) {
            self.waits = false;
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        ready!(self.poll_late(cx));
        let why = format!("nothing of it came for {:?}", self.limit);
        Poll::Ready(Some(Err(why.into())))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
