//! `Expect: 100-continue`: a client that waits to be told to send its body.
//!
//! The protocol library tells it so when the body is first asked for, and not any more once the head of the answer
//! is out. A replica that begins its answer before it reads, as one that gives back what it is given, would
//! wait for a client that waits for it. So before such a head goes out the body is asked for in the replica's place,
//! if it may still want it.
//!
//! ```text
//!   head of a success, and somebody holds the body ──> asked for ──> 100 Continue ──> the head
//!   any other head, or nobody does ─────────────────────────────────────────────────> the head
//! ```

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, StatusCode, Version, header};
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;

use crate::BoxError;

type Next = Option<Result<Frame<Bytes>, BoxError>>;

struct State {
    body: Incoming,
    /// Whether it was ever asked for.
    asked: bool,
    /// What came at once, when it was asked for in the replica's place.
    came: Option<Next>,
}

impl State {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Next> {
        self.asked = true;
        if let Some(next) = self.came.take() {
            return Poll::Ready(next);
        }
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        polled.map(|next| next.map(|frame| frame.map_err(BoxError::from)))
    }
}

/// The body, as a replica reads it.
pub(crate) struct Expected(Arc<Mutex<State>>);

/// What tells its client to send it.
pub(crate) struct Invitation(Arc<Mutex<State>>);

/// Whether a client waits before it sends its body.
pub(crate) fn is_expected(version: Version, headers: &HeaderMap, body: &Incoming) -> bool {
    let expects = headers.get(header::EXPECT).is_some_and(|expect| {
        let expect = expect.as_bytes();
        expect.eq_ignore_ascii_case(b"100-continue")
    });
    expects && version == Version::HTTP_11 && !body.is_end_stream()
}

pub(crate) fn expected(body: Incoming) -> (Expected, Invitation) {
    let state = State {
        body,
        asked: false,
        came: None,
    };
    let state = Arc::new(Mutex::new(state));
    (Expected(state.clone()), Invitation(state))
}

impl Invitation {
    /// Before the head of an answer goes out.
    pub(crate) async fn extend(self, status: StatusCode) {
        // Whoever is refused, or sent elsewhere, had better keep its body; nor is it sent for nobody.
        if !status.is_success() || Arc::strong_count(&self.0) == 1 {
            return;
        }
        std::future::poll_fn(|cx| {
            let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if !state.asked
                && let Poll::Ready(next) = state.poll(cx)
            {
                state.came = Some(next);
            }
            Poll::Ready(())
        })
        .await;
        // The library looks who was asked for before it takes the head from us: with the next turn of this task.
        tokio::task::yield_now().await;
    }
}

impl http_body::Body for Expected {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Next> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.poll(cx)
    }

    fn is_end_stream(&self) -> bool {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.came.is_none() && state.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let came = state.came.iter().flatten().flatten();
        let came: u64 = came
            .filter_map(Frame::data_ref)
            .map(|data| data.len() as u64)
            .sum();
        let rest = state.body.size_hint();
        match rest.exact() {
            Some(rest) => SizeHint::with_exact(rest + came),
            None => SizeHint::default(),
        }
    }
}
