//! What a client does that the protocol library does not tell: when the head of a further request begins,
//! and when a client closes its half of the connection, or is gone.
//!
//! A connection may rest for long between two requests, and a head may not take as long. Which of the
//! two it is the protocol library does not tell, so what is read is looked at here. What begins and
//! when it has taken too long is the sweep's (`connections`).
//!
//! By HTTP/1.1 without TLS a client may close its half once it has sent all of its request, and is answered all the
//! same. So the library reads nothing while an answer is made, and whether the client is still there is seen
//! here. Closing one half and closing the whole look alike until something is sent. But who means to read on
//! closes its half right after its request, and who gives up has waited first:
//!
//! ```text
//!   the last byte of a request ── closed soon after ──> is answered, if the sweep does not find that to take too long
//!                              ── closed later, or reset ──> gone, and what works for it ends
//! ```

use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use crate::connections::Watch;
use crate::tunnel::Pipe;

/// Looks at a client without taking anything of what it sends.
pub(crate) trait Look {
    /// Ready once there is something to see: whether it has closed its half; an error, when it is gone.
    fn poll_closed(&self, cx: &mut Context<'_>) -> Poll<io::Result<bool>>;
}

impl Look for TcpStream {
    fn poll_closed(&self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let mut byte = [MaybeUninit::uninit()];
        let peeked = self.poll_peek(cx, &mut ReadBuf::uninit(&mut byte));
        peeked.map_ok(|bytes| bytes == 0)
    }
}

/// Who closes its half of TLS is gone: the protocol library reads on, and sees it.
impl Look for TlsStream<TcpStream> {
    fn poll_closed(&self, _: &mut Context<'_>) -> Poll<io::Result<bool>> {
        Poll::Pending
    }
}

/// HTTP/2, which reads all the while.
impl Look for Pipe {
    fn poll_closed(&self, _: &mut Context<'_>) -> Poll<io::Result<bool>> {
        Poll::Pending
    }
}

/// A connection's stream of plain bytes.
pub(crate) struct Heads<S> {
    stream: S,
    watch: Arc<Watch>,
    /// When the client last said something.
    spoke: Instant,
    /// Who closes its half so soon after that waits for an answer.
    close_within: Duration,
    /// The client has closed its half, and says no more.
    half_closed: bool,
}

impl<S> Heads<S> {
    pub(crate) fn new(stream: S, watch: Arc<Watch>, close_within: Duration) -> Self {
        Self {
            stream,
            watch,
            spoke: Instant::now(),
            close_within,
            half_closed: false,
        }
    }

    fn wrote(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if self.half_closed && matches!(written, Poll::Ready(Ok(1..))) {
            self.watch.half_closed();
        }
        written
    }
}

impl<S: Look> Heads<S> {
    /// Looks whether whoever is to be answered is there.
    fn look(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if self.half_closed || !self.watch.answers_http1() {
            return Ok(());
        }
        // Also what makes its task look again.
        if let Poll::Ready(closed) = self.stream.poll_closed(cx)
            && closed?
        {
            if self.spoke.elapsed() > self.close_within {
                return Err(io::Error::new(
                    io::ErrorKind::ConnectionAborted,
                    "the client has gone before it was answered",
                ));
            }
            self.half_closed = true;
            self.watch.half_closed();
        }
        Ok(())
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Heads<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = ready!(Pin::new(&mut self.stream).poll_read(cx, buffer));
        if buffer.filled().len() > before {
            self.spoke = Instant::now();
            self.watch.bytes_came();
        }
        Poll::Ready(read)
    }
}

impl<S: AsyncWrite + Look + Unpin> AsyncWrite for Heads<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.wrote(written)
    }

    /// The protocol library comes by here whenever its task is woken.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.look(cx)?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.wrote(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
