//! What a guest says, as lines: stdout, stderr and `wasi:logging`.
//!
//! A line is cut at [`LINE_BYTES_MAX`] and continued on the next, so no guest makes the host hold
//! more than that. What happens to lines, and how many of them are kept, is the sink's business;
//! a sink never blocks.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, LazyLock, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::io::AsyncWrite;
use wasmtime::component::{HasSelf, Linker};
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamResult};

use crate::bindings::logging::wasi::logging0_1_0_draft::logging;
use crate::state::GuestState;

/// The longest line.
const LINE_BYTES_MAX: usize = 16 << 10;
/// What a guest may write at once.
const WRITE_BYTES_MAX: usize = 64 << 10;

/// The levels of `wasi:logging`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// The flow of control.
    Trace,
    /// For who debugs.
    Debug,
    /// For who monitors.
    Info,
    /// A hazard.
    Warn,
    /// A serious error.
    Error,
    /// A fatal error.
    Critical,
}

/// Where a guest said it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
    /// `wasi:logging`, with the level.
    Wasi(LogLevel),
}

/// One line that a guest said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    /// Where.
    pub stream: LogStream,
    /// During which request or message; `None` for commands.
    pub request_id: Option<Arc<str>>,
    /// The text, without its end of line. What was no UTF-8 is replaced.
    pub text: String,
}

/// Takes the lines of a replica. Must never block: guests wait for it.
pub trait LogSink: Send + Sync {
    /// Takes one line.
    fn line(&self, line: LogLine);
}

/// Forgets every line.
#[derive(Debug, Clone, Copy)]
pub struct NoLogs;

impl LogSink for NoLogs {
    fn line(&self, _line: LogLine) {}
}

/// Tells the numbers of this process from those of others, of which each replica may have several.
static PROCESS: LazyLock<u32> = LazyLock::new(rand::random);
/// The newest number of this process.
static NUMBER: AtomicU64 = AtomicU64::new(0);

/// The name of a request or message in the lines that are said during it, unlike that of any other.
/// Those of HTTP requests are given by whoever has them, as an extension.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestId(pub Arc<str>);

impl RequestId {
    /// A new one.
    pub fn next() -> Self {
        Self(name(NUMBER.fetch_add(1, Relaxed)))
    }
}

fn name(number: u64) -> Arc<str> {
    format!("{:08x}-{number}", *PROCESS).into()
}

/// Names the request that a store serves; the text is made when the first line needs it.
#[derive(Clone)]
pub(crate) struct RequestTag(Option<Arc<Tag>>);

struct Tag {
    number: u64,
    text: OnceLock<Arc<str>>,
}

impl RequestTag {
    pub(crate) fn none() -> Self {
        Self(None)
    }

    /// The name that was given, or a new one.
    pub(crate) fn new(given: Option<&RequestId>) -> Self {
        let text = given.map(|id| OnceLock::from(id.0.clone()));
        Self(Some(Arc::new(Tag {
            number: NUMBER.fetch_add(1, Relaxed),
            text: text.unwrap_or_default(),
        })))
    }

    fn text(&self) -> Option<Arc<str>> {
        let tag = self.0.as_ref()?;
        Some(tag.text.get_or_init(|| name(tag.number)).clone())
    }
}

/// Splits what is written into lines. Every handle of one stream of a store shares it.
#[derive(Clone)]
pub(crate) struct LineWriter(Arc<Mutex<Lines>>);

struct Lines {
    sink: Arc<dyn LogSink>,
    stream: LogStream,
    tag: RequestTag,
    rest: Vec<u8>,
}

impl LineWriter {
    pub(crate) fn new(sink: Arc<dyn LogSink>, stream: LogStream, tag: RequestTag) -> Self {
        Self(Arc::new(Mutex::new(Lines {
            sink,
            stream,
            tag,
            rest: Vec::new(),
        })))
    }

    /// Ends the line, if one has begun.
    pub(crate) fn end_line(&self) {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !lines.rest.is_empty() {
            lines.emit();
        }
    }

    /// What comes is said during another request.
    pub(crate) fn begin(&self, tag: RequestTag) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).tag = tag;
    }

    fn append(&self, bytes: &[u8]) {
        // A sink that panicked left the buffer whole.
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .append(bytes);
    }
}

impl Lines {
    fn append(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let room = LINE_BYTES_MAX - self.rest.len();
            let window = &bytes[..bytes.len().min(room)];
            match window.iter().position(|byte| *byte == b'\n') {
                Some(end) => {
                    self.rest.extend_from_slice(&bytes[..end]);
                    self.emit();
                    bytes = &bytes[end + 1..];
                }
                None => {
                    self.rest.extend_from_slice(window);
                    bytes = &bytes[window.len()..];
                    if self.rest.len() == LINE_BYTES_MAX {
                        self.emit();
                    }
                }
            }
        }
    }

    fn emit(&mut self) {
        let line = self.rest.strip_suffix(b"\r").unwrap_or(&self.rest);
        let text = String::from_utf8_lossy(line).into_owned();
        self.rest.clear();
        self.sink.line(LogLine {
            stream: self.stream,
            request_id: self.tag.text(),
            text,
        });
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        if !self.rest.is_empty() {
            self.emit();
        }
    }
}

impl IsTerminal for LineWriter {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for LineWriter {
    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }

    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(self.clone())
    }
}

impl OutputStream for LineWriter {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.append(&bytes);
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(WRITE_BYTES_MAX)
    }
}

#[async_trait::async_trait]
impl Pollable for LineWriter {
    async fn ready(&mut self) {}
}

impl AsyncWrite for LineWriter {
    fn poll_write(
        self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let taken = bytes.len().min(WRITE_BYTES_MAX);
        self.append(&bytes[..taken]);
        Poll::Ready(Ok(taken))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Without a version: what wasmCloud's first SDK imports. As `wit/` names it; a test of `link` holds the two
/// equal.
const UNVERSIONED: &str = "wasi:logging/logging";

/// Adds `wasi:logging` under both of its names.
pub(crate) fn add_to_linker(linker: &mut Linker<GuestState>) -> wasmtime::Result<()> {
    logging::add_to_linker::<_, HasSelf<_>>(linker, |state| state)?;
    linker.instance(UNVERSIONED)?.func_wrap(
        "log",
        |mut store, (level, context, message): (logging::Level, String, String)| {
            logging::Host::log(store.data_mut(), level, context, message)
        },
    )
}

impl logging::Host for GuestState {
    fn log(
        &mut self,
        level: logging::Level,
        context: String,
        message: String,
    ) -> wasmtime::Result<()> {
        let level = match level {
            logging::Level::Trace => LogLevel::Trace,
            logging::Level::Debug => LogLevel::Debug,
            logging::Level::Info => LogLevel::Info,
            logging::Level::Warn => LogLevel::Warn,
            logging::Level::Error => LogLevel::Error,
            logging::Level::Critical => LogLevel::Critical,
        };
        let sink = self.shared.config.logs.clone();
        let lines = LineWriter::new(sink, LogStream::Wasi(level), self.tag().clone());
        if !context.is_empty() {
            lines.append(context.as_bytes());
            lines.append(b": ");
        }
        lines.append(message.as_bytes());
        // An end of line at the end ends the line, it begins no other.
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Kept(Mutex<Vec<String>>);

    impl LogSink for Kept {
        fn line(&self, line: LogLine) {
            self.0.lock().unwrap().push(line.text);
        }
    }

    fn lines_of(chunks: &[&[u8]]) -> Vec<String> {
        let kept = Arc::new(Kept::default());
        let writer = LineWriter::new(kept.clone(), LogStream::Stdout, RequestTag::none());
        for chunk in chunks {
            writer.append(chunk);
        }
        drop(writer);
        Arc::into_inner(kept).unwrap().0.into_inner().unwrap()
    }

    #[test]
    fn lines_are_joined_split_and_ended() {
        assert_eq!(lines_of(&[b"a", b"b\r\n\nc"]), ["ab", "", "c"]);
        assert_eq!(lines_of(&[b"a\n"]), ["a"]);
        assert_eq!(lines_of(&[]), Vec::<String>::new());
    }

    #[test]
    fn long_lines_are_cut() {
        let long = vec![b'x'; 2 * LINE_BYTES_MAX + 1];
        let lengths: Vec<_> = lines_of(&[&long]).iter().map(String::len).collect();
        assert_eq!(lengths, [LINE_BYTES_MAX, LINE_BYTES_MAX, 1]);
    }
}
