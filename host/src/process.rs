//! This very program as a child of the daemon: how it is started, and how the two talk.
//!
//! ```text
//!   daemon                                      child (`wasmorch runner`, `wasmorch compiler`)
//!   spawn ─ what is handed over ─> its stdin ─> begin
//!   Writer ── settings, orders ──>  socket ───> Reader
//!   Reader <────── answers ──────── pair <───── Writer
//! ```
//!
//! Owns both ends of the socket. Its end is the end of the child: a child whose daemon is gone reads the end of
//! the stream, and on Linux the kernel kills it besides. Nothing but stdin is inherited: every other descriptor
//! of the daemon is closed on exec. It knows nothing of what is said.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;

use crate::child::Child;
use crate::wire::{self, Reader, Writer};

/// How many messages may wait in either direction; a full queue makes the sender wait, never drop.
pub const QUEUE: usize = 1024;
/// The longest message that the daemon takes from a child: log lines and usage, both bounded far below. A child
/// that was taken over cannot make the daemon hold more.
const FROM_CHILD_MAX: usize = 16 << 20;
/// The longest message that a child takes: every table of the cluster.
const TO_CHILD_MAX: usize = 512 << 20;

/// How a child's allocator, jemalloc in `wasmorch`, gives memory back: what was free for a second. Few threads
/// allocate, so few arenas do. Its thread for that is begun by the child itself: from here it would come before
/// the sandbox, and stay outside of it.
const ALLOCATOR_ENV: &str = "_RJEM_MALLOC_CONF";
const ALLOCATOR_CONF: &str = "narenas:2,dirty_decay_ms:1000,muzzy_decay_ms:0";

/// How to start a program: this very binary, with what makes it a child of one sort.
#[derive(Debug, Clone)]
pub struct ProcessCommand {
    /// The binary.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
}

impl ProcessCommand {
    /// This very program. On Linux not by its name: an update may have replaced that file.
    pub fn this(args: impl IntoIterator<Item = impl Into<String>>) -> Self {
        #[cfg(target_os = "linux")]
        let program = PathBuf::from("/proc/self/exe");
        #[cfg(not(target_os = "linux"))]
        let program = std::env::current_exe().unwrap_or_default();
        Self {
            program,
            args: args.into_iter().map(Into::into).collect(),
        }
    }
}

/// A child, and both directions of its talk.
pub(crate) struct Spawned<To, From, Talk> {
    pub(crate) child: Child,
    /// Dropped, it tells the child to end.
    pub(crate) to: mpsc::Sender<To>,
    /// `None` once the child has closed its end.
    pub(crate) from: mpsc::Receiver<From>,
    /// Passes messages until then; to be driven by whoever owns the child.
    pub(crate) talk: Talk,
}

/// Starts a child and tells it its settings. `hand_over` may send what is no message, first. Must be called in a
/// tokio runtime.
pub(crate) fn spawn<S, To, From>(
    command: &ProcessCommand,
    settings: S,
    hand_over: &dyn Fn(&UnixStream) -> io::Result<()>,
) -> io::Result<Spawned<To, From, impl Future<Output = ()> + Send + use<S, To, From>>>
where
    S: Serialize + Send + Sync,
    To: Serialize + Send + Sync,
    From: DeserializeOwned + Send,
{
    let (ours, theirs) = UnixStream::pair()?;
    let mut process = Command::new(&command.program);
    process
        .args(&command.args)
        .stdin(OwnedFd::from(theirs))
        // What guests print goes to their logs; our own stdout is for answers.
        .stdout(Stdio::null())
        .stderr(Stdio::inherit());
    // With RUST_BACKTRACE set, each request's end would walk the stack: wasmtime ends a guest's fiber
    // by an error that nobody sees. Panics still tell theirs.
    if std::env::var_os("RUST_LIB_BACKTRACE").is_none() {
        process.env("RUST_LIB_BACKTRACE", "0");
    }
    if std::env::var_os(ALLOCATOR_ENV).is_none() {
        process.env(ALLOCATOR_ENV, ALLOCATOR_CONF);
    }
    let child = Child::spawn(process)?;
    hand_over(&ours)?;
    ours.set_nonblocking(true)?;
    let stream = tokio::net::UnixStream::from_std(ours)?;
    let (to, inbox) = mpsc::channel(QUEUE);
    let (outbox, from) = mpsc::channel(QUEUE);
    Ok(Spawned {
        child,
        to,
        from,
        talk: talk(stream, settings, inbox, outbox),
    })
}

/// The daemon's end. Returns when the child's end is closed.
async fn talk<S: Serialize, To: Serialize, From: DeserializeOwned>(
    stream: tokio::net::UnixStream,
    settings: S,
    mut inbox: mpsc::Receiver<To>,
    outbox: mpsc::Sender<From>,
) {
    let (reading, writing) = stream.into_split();
    let write = async move {
        let mut writer = Writer::new(writing);
        writer.send(&settings).await?;
        while let Some(message) = inbox.recv().await {
            writer.send(&message).await?;
        }
        // The daemon asks no more: the child reads the end of the stream, and ends.
        Ok::<_, io::Error>(())
    };
    let mut read = std::pin::pin!(hear(Reader::new(reading, FROM_CHILD_MAX), outbox));
    tokio::select! {
        () = &mut read => {}
        // Whether it could be told or not: what it still says is read to its end.
        _ = write => read.await,
    }
}

/// The child's end, before there are threads: its stdin as a socket of its own, so that nothing reads it by
/// accident.
///
/// # Errors
///
/// When it was not started by a daemon.
pub(crate) fn begin() -> io::Result<UnixStream> {
    #[cfg(target_os = "linux")]
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    let socket = io::stdin().as_fd().try_clone_to_owned()?;
    let nothing = std::fs::File::open("/dev/null")?;
    rustix::stdio::dup2_stdin(&nothing)?;
    Ok(UnixStream::from(socket))
}

/// What [`spawn`] tells first; `None`: the daemon is gone. Blocks.
pub(crate) fn settings<S: DeserializeOwned>(socket: &mut UnixStream) -> io::Result<Option<S>> {
    wire::read_now(socket, TO_CHILD_MAX)
}

/// What comes from the daemon, until it is gone; what goes there; and what passes both on, for ever. Must be
/// called in a tokio runtime.
pub(crate) fn converse<To: DeserializeOwned, From: Serialize>(
    socket: UnixStream,
) -> io::Result<(
    mpsc::Receiver<To>,
    mpsc::Sender<From>,
    impl Future<Output = Never>,
)> {
    socket.set_nonblocking(true)?;
    let stream = tokio::net::UnixStream::from_std(socket)?;
    let (reading, writing): (OwnedReadHalf, OwnedWriteHalf) = stream.into_split();
    let (to, inbox) = mpsc::channel(QUEUE);
    let (outbox, from) = mpsc::channel(QUEUE);
    let talk = async {
        tokio::join!(
            hear(Reader::new(reading, TO_CHILD_MAX), to),
            tell(writing, from)
        );
        std::future::pending().await
    };
    Ok((inbox, outbox, talk))
}

/// Nothing is ever it.
pub(crate) enum Never {}

/// Passes on what the other end says. Its end drops the sender: that is how the end is heard.
async fn hear<M: DeserializeOwned>(mut reader: Reader<OwnedReadHalf>, to: mpsc::Sender<M>) {
    loop {
        match reader.next().await {
            Ok(Some(message)) => {
                if to.send(message).await.is_err() {
                    return;
                }
            }
            Ok(None) => return,
            Err(error) => {
                tracing::error!(%error, "the other process is not understood");
                return;
            }
        }
    }
}

/// Tells the daemon. One that is gone is found out by who reads.
async fn tell<M: Serialize>(stream: OwnedWriteHalf, mut from: mpsc::Receiver<M>) {
    let mut writer = Writer::new(stream);
    while let Some(message) = from.recv().await {
        if writer.send(&message).await.is_err() {
            return;
        }
    }
}
