//! A runner in a process of its own, with the listeners and the ledger that its daemon hands over by SCM_RIGHTS.
//!
//! How it is started and how the two talk is [`crate::process`]'s.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::TcpListener;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use super::{RunnerConfig, RunnerEnd, RunnerError, RunnerHandle, Settings, run, supervisor};
use crate::process::{self, ProcessCommand, Spawned};
use crate::sandbox;

/// Descriptors that are handed over at the most: the public listener, that for other hosts, and the
/// ledger, in this order.
const DESCRIPTORS_MAX: usize = 3;
/// Descriptors need a byte to travel with.
const WITH_DESCRIPTORS: &[u8] = b"D";

/// Starts a runner in a process of its own. Must be called in a tokio runtime.
///
/// # Errors
///
/// When it cannot be started. What fails later comes from [`RunnerEnd::join`].
pub(crate) fn spawn(
    command: &ProcessCommand,
    config: RunnerConfig,
) -> Result<RunnerHandle, RunnerError> {
    let descriptors: Vec<_> = std::iter::once(config.http.as_fd())
        .chain(config.peer.as_ref().map(|peer| peer.as_fd()))
        .chain(config.ledger.as_ref().map(|ledger| ledger.as_fd()))
        .collect();
    let hand_over = |socket: &UnixStream| send_descriptors(socket, &descriptors);
    let Spawned {
        child,
        to,
        from,
        talk,
    } = process::spawn(command, config.settings, &hand_over).map_err(RunnerError::Spawn)?;
    Ok(RunnerHandle {
        to,
        from,
        end: RunnerEnd::of_process(child, tokio::spawn(talk)),
    })
}

/// The whole of a runner's process: takes over what its daemon hands it, and runs until that
/// closes the socket. `confined` is called once it has given up what it does not need, before there are guests.
///
/// # Errors
///
/// When it was started by anything but a daemon, or cannot run.
pub fn serve(confined: impl FnOnce()) -> Result<(), RunnerError> {
    let mut socket = process::begin().map_err(RunnerError::Daemon)?;
    let mut descriptors = receive_descriptors(&socket).map_err(RunnerError::Daemon)?;
    if descriptors.is_empty() {
        let none = io::Error::other("no listener came with the first byte");
        return Err(RunnerError::Daemon(none));
    }
    let http = TcpListener::from(descriptors.remove(0));
    let settings: Option<Settings> = process::settings(&mut socket).map_err(RunnerError::Daemon)?;
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
    run(move |guests| async move {
        let (inbox, outbox, talk) = process::converse(socket).map_err(RunnerError::Daemon)?;
        tokio::select! {
            ended = supervisor::run(config, guests, inbox, outbox) => ended,
            never = talk => match never {},
        }
    })
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
