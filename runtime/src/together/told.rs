//! A body whose end is told to who waits for it, and that ends with who waits.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::BodyExt as _;
use tokio::sync::oneshot;
use wasmtime_wasi_http::WasiBody;

/// Tells when a body was read to its end, and breaks off when it broke off or was given up; and what ends the
/// body when it is dropped.
pub(super) fn until_its_end(
    response: http::Response<WasiBody>,
) -> (
    http::Response<WasiBody>,
    oneshot::Receiver<()>,
    oneshot::Sender<()>,
) {
    let (ended, told) = oneshot::channel();
    let (cut, is_cut) = oneshot::channel();
    let length = response.headers().get(http::header::CONTENT_LENGTH);
    let length = length.and_then(|length| length.to_str().ok()?.parse().ok());
    let response = response.map(|inner| {
        let body = Told {
            inner,
            left: length,
            ended: Some(ended),
            is_cut,
        };
        body.boxed_unsync()
    });
    (response, told, cut)
}

/// A body whose end is told.
struct Told {
    inner: WasiBody,
    /// Bytes that are still to come, where that was said.
    left: Option<u64>,
    ended: Option<oneshot::Sender<()>>,
    is_cut: oneshot::Receiver<()>,
}

impl Told {
    fn tell(&mut self) {
        self.ended.take().map(|ended| ended.send(()));
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        // Whoever knows that nothing comes any more does not ask.
        if self.left == Some(0) || http_body::Body::is_end_stream(&self.inner) {
            self.tell();
        }
    }
}

impl http_body::Body for Told {
    type Data = Bytes;
    type Error = <WasiBody as http_body::Body>::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Self::Error>>> {
        // Its reader finds the reason in the watch.
        if self.ended.is_some() && Pin::new(&mut self.is_cut).poll(cx).is_ready() {
            self.ended = None;
            return Poll::Ready(None);
        }
        let frame = Pin::new(&mut self.inner).poll_frame(cx);
        match &frame {
            Poll::Ready(None) => self.tell(),
            Poll::Ready(Some(Err(_))) => self.ended = None,
            Poll::Ready(Some(Ok(frame))) => {
                let bytes = frame.data_ref().map_or(0, |data| data.len() as u64);
                self.left = self.left.map(|left| left.saturating_sub(bytes));
            }
            Poll::Pending => {}
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.inner.size_hint()
    }
}
