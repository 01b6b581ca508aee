//! A runner in a process of its own.
//!
//! ```text
//!   daemon                                              runner (`wasmorch runner`)
//!   spawn ─ descriptors, by SCM_RIGHTS ─> its stdin ──> serve
//!   Writer ── Settings, then ToRunner ──>  socket  ───> Reader ──> supervisor
//!   Reader <───────── FromRunner ────────── pair <───── Writer <─┘
//! ```
//!
//! Owns both ends of the socket. Its end is the end of the runner: a runner whose daemon is gone
//! reads the end of the stream, and on Linux the kernel kills it besides. Nothing but stdin is
//! inherited: every other descriptor of the daemon is closed on exec.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::TcpListener;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::protocol::{FromRunner, QUEUE, ToRunner};
use super::wire::{FROM_RUNNER_MAX, Reader, TO_RUNNER_MAX, Writer};
use super::{
    RunnerConfig, RunnerEnd, RunnerError, RunnerHandle, Settings, run, sandbox, supervisor, wire,
};
use crate::child::Child;

/// Descriptors that are handed over at the most: the public listener, that for other hosts, and the
/// ledger, in this order.
const DESCRIPTORS_MAX: usize = 3;
/// Descriptors need a byte to travel with.
const WITH_DESCRIPTORS: &[u8] = b"D";

/// How a runner's allocator, jemalloc in `wasmorch`, gives memory back: what was free for a second. Few threads
/// allocate, so few arenas do. Its thread for that is begun by [`serve`]'s caller: from here it would come before
/// the sandbox, and stay outside of it.
const ALLOCATOR_ENV: &str = "_RJEM_MALLOC_CONF";
const ALLOCATOR_CONF: &str = "narenas:2,dirty_decay_ms:1000,muzzy_decay_ms:0";

/// How to start the program that calls [`serve`]: this very binary, with what makes it one.
#[derive(Debug, Clone)]
pub struct RunnerCommand {
    /// The binary.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
}

impl RunnerCommand {
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

/// Starts a runner in a process of its own. Must be called in a tokio runtime.
///
/// # Errors
///
/// When it cannot be started. What fails later comes from [`RunnerEnd::join`].
pub(crate) fn spawn(
    command: &RunnerCommand,
    config: RunnerConfig,
) -> Result<RunnerHandle, RunnerError> {
    let (ours, theirs) = UnixStream::pair().map_err(RunnerError::Spawn)?;
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
    let child = Child::spawn(process).map_err(RunnerError::Spawn)?;
    let descriptors: Vec<_> = std::iter::once(config.http.as_fd())
        .chain(config.peer.as_ref().map(|peer| peer.as_fd()))
        .chain(config.ledger.as_ref().map(|ledger| ledger.as_fd()))
        .collect();
    send_descriptors(&ours, &descriptors).map_err(RunnerError::Spawn)?;
    let stream = ours
        .set_nonblocking(true)
        .and_then(|()| tokio::net::UnixStream::from_std(ours))
        .map_err(RunnerError::Spawn)?;
    let (to, inbox) = mpsc::channel(QUEUE);
    let (outbox, from) = mpsc::channel(QUEUE);
    let talk: JoinHandle<()> = tokio::spawn(talk(stream, config.settings, inbox, outbox));
    Ok(RunnerHandle {
        to,
        from,
        end: RunnerEnd::of_process(child, talk),
    })
}

/// The daemon's end. Returns when the runner's end is closed.
async fn talk(
    stream: tokio::net::UnixStream,
    settings: Settings,
    mut inbox: mpsc::Receiver<ToRunner>,
    outbox: mpsc::Sender<FromRunner>,
) {
    let (reading, writing) = stream.into_split();
    let write = async move {
        let mut writer = Writer::new(writing);
        writer.send(&settings).await?;
        while let Some(message) = inbox.recv().await {
            writer.send(&message).await?;
        }
        // The daemon asks no more: the runner reads the end of the stream, and ends.
        Ok::<_, io::Error>(())
    };
    let read = async move {
        let mut reader = Reader::new(reading, FROM_RUNNER_MAX);
        loop {
            match reader.next().await {
                Ok(Some(message)) => {
                    if outbox.send(message).await.is_err() {
                        return;
                    }
                }
                Ok(None) => return,
                Err(error) => {
                    tracing::error!(%error, "a runner is not understood");
                    return;
                }
            }
        }
    };
    let mut read = std::pin::pin!(read);
    tokio::select! {
        () = &mut read => {}
        // Whether it could be told or not: what it still says is read to its end.
        _ = write => read.await,
    }
}

/// The whole of a runner's process: takes over what its daemon hands it, and runs until that
/// closes the socket. `confined` is called once it has given up what it does not need, before there are guests.
///
/// # Errors
///
/// When it was started by anything but a daemon, or cannot run.
pub fn serve(confined: impl FnOnce()) -> Result<(), RunnerError> {
    #[cfg(target_os = "linux")]
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
        .map_err(|error| RunnerError::Daemon(error.into()))?;
    let mut socket = take_stdin().map_err(RunnerError::Daemon)?;
    let mut descriptors = receive_descriptors(&socket).map_err(RunnerError::Daemon)?;
    if descriptors.is_empty() {
        let none = io::Error::other("no listener came with the first byte");
        return Err(RunnerError::Daemon(none));
    }
    let http = TcpListener::from(descriptors.remove(0));
    let settings: Option<Settings> =
        wire::read_now(&mut socket, TO_RUNNER_MAX).map_err(RunnerError::Daemon)?;
    let Some(settings) = settings else {
        return Ok(());
    };
    // Before there are threads: they inherit it.
    sandbox::enter(&settings.paths);
    confined();
    let ledger = settings.column.and_then(|_| descriptors.pop());
    let peer = descriptors.pop().map(TcpListener::from);
    let config = RunnerConfig {
        settings,
        http,
        peer,
        ledger,
    };
    socket.set_nonblocking(true).map_err(RunnerError::Daemon)?;
    run(move |guests| async move {
        let stream = tokio::net::UnixStream::from_std(socket).map_err(RunnerError::Daemon)?;
        let (reading, writing) = stream.into_split();
        let reader = Reader::new(reading, TO_RUNNER_MAX);
        let (to, inbox) = mpsc::channel(QUEUE);
        let (outbox, from) = mpsc::channel(QUEUE);
        let talk = async {
            tokio::join!(hear(reader, to), tell(writing, from));
            std::future::pending().await
        };
        tokio::select! {
            ended = supervisor::run(config, guests, inbox, outbox) => ended,
            never = talk => never,
        }
    })
}

/// Passes on what the daemon says. Its end drops the sender, and that ends the supervisor.
async fn hear(mut reader: Reader<OwnedReadHalf>, to: mpsc::Sender<ToRunner>) {
    loop {
        match reader.next().await {
            Ok(Some(message)) => {
                if to.send(message).await.is_err() {
                    return;
                }
            }
            Ok(None) => return,
            Err(error) => {
                tracing::error!(%error, "the daemon is not understood");
                return;
            }
        }
    }
}

/// Tells the daemon. One that is gone is found out by who reads.
async fn tell(stream: OwnedWriteHalf, mut from: mpsc::Receiver<FromRunner>) {
    let mut writer = Writer::new(stream);
    while let Some(message) = from.recv().await {
        if writer.send(&message).await.is_err() {
            return;
        }
    }
}

/// Stdin as a socket of its own, so that nothing reads it by accident.
fn take_stdin() -> io::Result<UnixStream> {
    let socket = io::stdin().as_fd().try_clone_to_owned()?;
    let nothing = std::fs::File::open("/dev/null")?;
    rustix::stdio::dup2_stdin(&nothing)?;
    Ok(UnixStream::from(socket))
}

fn send_descriptors(socket: &UnixStream, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !ancillary.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::other("too many descriptors"));
    }
    let bytes = [IoSlice::new(WITH_DESCRIPTORS)];
    sendmsg(socket, &bytes, &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(())
}

fn receive_descriptors(socket: &UnixStream) -> io::Result<Vec<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let mut bytes = [IoSliceMut::new(&mut byte)];
    recvmsg(socket, &mut bytes, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    Ok(ancillary
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
            _ => None,
        })
        .flatten()
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listeners_arrive_and_are_closed_on_exec() {
        let (near, far) = UnixStream::pair().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        send_descriptors(&near, &[listener.as_fd(), listener.as_fd()]).unwrap();
        let received = receive_descriptors(&far).unwrap();
        assert_eq!(received.len(), 2);
        for descriptor in received {
            let flags = rustix::io::fcntl_getfd(&descriptor).unwrap();
            assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
            let same = TcpListener::from(descriptor).local_addr().unwrap();
            assert_eq!(same, listener.local_addr().unwrap());
        }
    }
}
