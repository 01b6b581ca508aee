//! A request body that can be sent again, as long as little of it was sent.
//!
//! HTTP/2 starts to send a body at once, so a host that refuses a request has often been sent the
//! beginning of its body. What was sent is kept, up to a bound, until a host accepts; then, or
//! beyond the bound, it is let go, and the rest streams through untouched.
//!
//! Invariant: one attempt at a time reads the body; a former attempt gets an error.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as _, Frame, SizeHint};
use wasmorch_api::error::chain;

use crate::{Body, BoxError};

/// What is kept for one request; small requests are what rollouts and retries meet.
const KEPT_BYTES_MAX: usize = 64 * 1024;
/// And in so many pieces: a small piece may hold on to the whole buffer that it was read into.
const KEPT_PIECES_MAX: usize = 16;

/// A request's body over all its attempts.
#[derive(Debug, Clone)]
pub(crate) struct Replay {
    /// `None`: the request has no body.
    shared: Option<Arc<Mutex<Shared>>>,
}

/// The body of one attempt.
#[derive(Debug)]
pub(crate) struct Attempt {
    shared: Option<Arc<Mutex<Shared>>>,
    number: u32,
}

/// A frame that can be given again.
#[derive(Debug, Clone)]
enum Piece {
    Data(Bytes),
    Trailers(HeaderMap),
}

impl Piece {
    fn of(frame: &Frame<Bytes>) -> Option<Self> {
        let data = frame.data_ref().cloned().map(Self::Data);
        data.or_else(|| frame.trailers_ref().cloned().map(Self::Trailers))
    }

    fn frame(self) -> Frame<Bytes> {
        match self {
            Self::Data(bytes) => Frame::data(bytes),
            Self::Trailers(trailers) => Frame::trailers(trailers),
        }
    }
}

#[derive(Debug)]
struct Shared {
    body: Body,
    /// The attempt that reads.
    attempt: u32,
    /// What was read from `body`, from its beginning while `keeping`.
    kept: VecDeque<Piece>,
    kept_bytes: usize,
    keeping: bool,
    /// How much of `kept` this attempt has been given. Always 0 when not `keeping`.
    given: usize,
    /// Whether bytes are gone that another attempt would need.
    spent: bool,
    /// Why it ended before its end, by the doing of whoever sends it.
    broken: Option<String>,
}

impl Replay {
    pub(crate) fn new(body: Body) -> Self {
        if body.is_end_stream() {
            return Self { shared: None };
        }
        let shared = Shared {
            body,
            attempt: 0,
            kept: VecDeque::new(),
            kept_bytes: 0,
            keeping: true,
            given: 0,
            spent: false,
            broken: None,
        };
        Self {
            shared: Some(Arc::new(Mutex::new(shared))),
        }
    }

    /// The body for a new attempt; the former one's ends. For the `last` one nothing is kept.
    pub(crate) fn attempt(&self, last: bool) -> Attempt {
        let number = self.shared.as_ref().map_or(0, |shared| {
            let mut shared = lock(shared);
            shared.attempt += 1;
            shared.given = 0;
            if last {
                shared.stop_keeping();
            }
            shared.attempt
        });
        Attempt {
            shared: self.shared.clone(),
            number,
        }
    }

    /// Whether another attempt would be given all of the body.
    pub(crate) fn is_whole(&self) -> bool {
        self.shared
            .as_ref()
            .is_none_or(|shared| !lock(shared).spent)
    }

    /// Why the body ended before its end, when its sender has broken it off: no host is to blame for what
    /// became of the request.
    pub(crate) fn broken(&self) -> Option<String> {
        lock(self.shared.as_ref()?).broken.clone()
    }

    /// No other attempt follows.
    pub(crate) fn settle(&self) {
        if let Some(shared) = &self.shared {
            lock(shared).stop_keeping();
        }
    }
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn stop_keeping(&mut self) {
        if self.keeping {
            self.kept.drain(..self.given);
            self.given = 0;
            self.keeping = false;
            self.spent = true;
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self.keeping {
            if let Some(piece) = self.kept.get(self.given) {
                self.given += 1;
                return Poll::Ready(Some(Ok(piece.clone().frame())));
            }
        } else if let Some(piece) = self.kept.pop_front() {
            return Poll::Ready(Some(Ok(piece.frame())));
        }
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(Some(Err(error))) = &polled {
            self.broken = Some(chain(&**error));
        }
        if let Poll::Ready(Some(frame)) = &polled {
            match frame.as_ref().ok().and_then(Piece::of) {
                Some(piece) if self.keeping => self.keep(piece),
                Some(_) => {}
                // An error is given once.
                None => self.stop_keeping(),
            }
        }
        polled
    }

    fn keep(&mut self, piece: Piece) {
        // Trailers are as small as a head may be.
        self.kept_bytes += match &piece {
            Piece::Data(bytes) => bytes.len(),
            Piece::Trailers(_) => 0,
        };
        self.kept.push_back(piece);
        self.given += 1;
        if self.kept_bytes > KEPT_BYTES_MAX || self.kept.len() > KEPT_PIECES_MAX {
            self.stop_keeping();
        }
    }
}

impl Attempt {
    /// Of a request that has no body.
    pub(crate) const fn empty() -> Self {
        Self {
            shared: None,
            number: 0,
        }
    }
}

impl http_body::Body for Attempt {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let Some(shared) = &self.shared else {
            return Poll::Ready(None);
        };
        let mut shared = lock(shared);
        if shared.attempt != self.number {
            return Poll::Ready(Some(Err("the request goes to another host".into())));
        }
        shared.poll(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.shared.as_ref().is_none_or(|shared| {
            let shared = lock(shared);
            shared.attempt == self.number
                && shared.given == shared.kept.len()
                && shared.body.is_end_stream()
        })
    }

    fn size_hint(&self) -> SizeHint {
        // The request's Content-Length says what there is to say.
        SizeHint::default()
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt as _, StreamBody};

    use super::*;

    fn body(chunks: &[usize]) -> Body {
        let frames: Vec<_> = chunks
            .iter()
            .enumerate()
            .map(|(at, len)| Ok(Frame::data(Bytes::from(vec![at as u8; *len]))))
            .collect();
        StreamBody::new(futures::stream::iter(frames)).boxed_unsync()
    }

    async fn next(attempt: &mut Attempt) -> Option<usize> {
        let frame = attempt.frame().await?.unwrap();
        frame.into_data().ok().map(|bytes| bytes.len())
    }

    #[tokio::test]
    async fn a_second_attempt_gets_all_of_it() {
        let replay = Replay::new(body(&[1, 2, 3]));
        let mut first = replay.attempt(false);
        assert_eq!(
            (next(&mut first).await, next(&mut first).await),
            (Some(1), Some(2))
        );
        assert!(replay.is_whole());
        let mut second = replay.attempt(false);
        assert!(first.frame().await.unwrap().is_err());
        assert_eq!(next(&mut second).await, Some(1));
        // Accepted before all that was kept has been given again: it is still given.
        replay.settle();
        assert!(!replay.is_whole());
        assert_eq!(
            (next(&mut second).await, next(&mut second).await),
            (Some(2), Some(3))
        );
        assert_eq!(next(&mut second).await, None);
    }

    #[tokio::test]
    async fn the_last_attempt_gets_all_of_it_too() {
        let replay = Replay::new(body(&[1, 2]));
        assert_eq!(next(&mut replay.attempt(false)).await, Some(1));
        let mut last = replay.attempt(true);
        assert!(!last.is_end_stream() && !replay.is_whole());
        assert_eq!(
            (
                next(&mut last).await,
                next(&mut last).await,
                next(&mut last).await
            ),
            (Some(1), Some(2), None)
        );
    }

    #[tokio::test]
    async fn trailers_are_given_again_too() {
        let mut trailers = HeaderMap::new();
        trailers.insert("x-sum", http::HeaderValue::from_static("7"));
        let frames = [
            Ok(Frame::data(Bytes::from("x"))),
            Ok(Frame::trailers(trailers.clone())),
        ];
        let replay = Replay::new(StreamBody::new(futures::stream::iter(frames)).boxed_unsync());
        let first = replay.attempt(false).collect().await.unwrap();
        assert_eq!(first.trailers(), Some(&trailers));
        assert!(replay.is_whole());
        let second = replay.attempt(true).collect().await.unwrap();
        assert_eq!(second.trailers(), Some(&trailers));
        assert_eq!(second.to_bytes(), "x");
    }

    #[tokio::test]
    async fn beyond_the_bound_it_is_spent() {
        let replay = Replay::new(body(&[KEPT_BYTES_MAX, 1, 5]));
        let mut attempt = replay.attempt(false);
        assert_eq!(next(&mut attempt).await, Some(KEPT_BYTES_MAX));
        assert!(replay.is_whole());
        assert_eq!(next(&mut attempt).await, Some(1));
        assert!(!replay.is_whole());
        assert_eq!(
            (next(&mut attempt).await, next(&mut attempt).await),
            (Some(5), None)
        );
    }

    #[tokio::test]
    async fn no_body_is_always_whole() {
        let replay = Replay::new(
            http_body_util::Empty::new()
                .map_err(|e| match e {})
                .boxed_unsync(),
        );
        let mut attempt = replay.attempt(false);
        assert!(attempt.is_end_stream() && attempt.frame().await.is_none());
        replay.settle();
        assert!(replay.is_whole());
    }
}
