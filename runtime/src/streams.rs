//! Streams of WASI 0.3 that hold a descriptor of the operating system: what is open counts as a handle.
//!
//! wasmtime-wasi gives a stream the file or the socket itself, so a guest may drop its descriptor and keep the
//! stream, which is in no table that could be looked through. What tells that one is closed:
//!
//! | stream | closed when |
//! | --- | --- |
//! | of a file | nobody has the file any more |
//! | of a connection | the future that comes with it resolves |
//! | of a listener | nothing does: it counts for as long as its instance lives |
//! | of a folder's entries | it is dropped: it is one of ours (`listing/p3.rs`) |

use std::collections::BTreeMap;
use std::fs::File;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};

use tokio::sync::oneshot;
use wasmtime::component::{
    Access, FutureConsumer, FutureReader, Linker, Resource, Source, StreamReader,
};
use wasmtime::{AsContextMut as _, StoreContextMut};
use wasmtime_wasi::filesystem::{Descriptor, WasiFilesystem, WasiFilesystemView as _};
use wasmtime_wasi::p3::bindings::filesystem::types::{
    ErrorCode as FileError, HostDescriptorWithStore as _,
};
use wasmtime_wasi::p3::bindings::sockets::types::{
    ErrorCode, HostTcpSocketWithStore as _, TcpSocket,
};
use wasmtime_wasi::sockets::{WasiSockets, WasiSocketsView as _};

use crate::state::GuestState;
use crate::volume::FILES;

/// As wasmtime-wasi names it; a test of `link` holds this version equal to `wit/`.
pub(crate) const SOCKETS: &str = "wasi:sockets/types@0.3.0";

type Store<'a> = StoreContextMut<'a, GuestState>;
type Fd = Resource<Descriptor>;
/// What a guest hears at the end of a stream.
type Told = Result<(), ErrorCode>;
type FileTold = Result<(), FileError>;

/// The streams that one guest has open.
#[derive(Debug, Default)]
pub(crate) struct OpenStreams {
    open: OpenStream,
    /// By their place in memory: one that has several streams is one descriptor.
    files: BTreeMap<usize, Weak<File>>,
    listeners: u64,
}

/// Counts for as long as it is held.
#[derive(Debug, Clone, Default)]
pub(crate) struct OpenStream(Arc<()>);

impl OpenStreams {
    pub(crate) fn open(&self) -> OpenStream {
        self.open.clone()
    }

    /// A stream of this file begins.
    pub(crate) fn note(&mut self, file: &Arc<File>) {
        let place = Arc::as_ptr(file).addr();
        self.files.insert(place, Arc::downgrade(file));
    }

    /// How many there are.
    pub(crate) fn count(&mut self) -> u64 {
        self.files.retain(|_, file| file.strong_count() > 0);
        let open = Arc::strong_count(&self.open.0) - 1;
        (open + self.files.len()) as u64 + self.listeners
    }
}

/// Puts functions that count in the place of those that open streams.
pub(crate) fn add_to_linker(linker: &mut Linker<GuestState>) -> wasmtime::Result<()> {
    linker.allow_shadowing(true);
    let mut types = linker.instance(FILES)?;
    types.func_wrap(
        "[method]descriptor.read-via-stream",
        |mut store, (fd, offset): (Fd, u64)| {
            note(&mut store, &fd)?;
            let access = files(&mut store);
            Ok((WasiFilesystem::read_via_stream(access, fd, offset)?,))
        },
    )?;
    types.func_wrap(
        "[method]descriptor.write-via-stream",
        |mut store, (fd, data, offset): (Fd, StreamReader<u8>, u64)| {
            note(&mut store, &fd)?;
            let access = files(&mut store);
            let told: FutureReader<FileTold> =
                WasiFilesystem::write_via_stream(access, fd, data, offset)?;
            Ok((told,))
        },
    )?;
    types.func_wrap(
        "[method]descriptor.append-via-stream",
        |mut store, (fd, data): (Fd, StreamReader<u8>)| {
            note(&mut store, &fd)?;
            let access = files(&mut store);
            let told: FutureReader<FileTold> = WasiFilesystem::append_via_stream(access, fd, data)?;
            Ok((told,))
        },
    )?;
    let mut types = linker.instance(SOCKETS)?;
    types.func_wrap(
        "[method]tcp-socket.send",
        |mut store, (socket, data): (Resource<TcpSocket>, StreamReader<u8>)| {
            let access = sockets(&mut store);
            let told = WasiSockets::send(access, socket, data)?;
            Ok((until_closed(store, told)?,))
        },
    )?;
    types.func_wrap(
        "[method]tcp-socket.receive",
        |mut store, (socket,): (Resource<TcpSocket>,)| {
            let access = sockets(&mut store);
            let (data, told) = WasiSockets::receive(access, socket)?;
            Ok(((data, until_closed(store, told)?),))
        },
    )?;
    types.func_wrap_async(
        "[method]tcp-socket.listen",
        |store, (socket,): (Resource<TcpSocket>,)| Box::new(listen(store, socket)),
    )?;
    linker.allow_shadowing(false);
    Ok(())
}

/// The guest as wasmtime-wasi's functions take it.
fn files<'a>(store: &'a mut Store<'_>) -> Access<'a, GuestState, WasiFilesystem> {
    Access::<GuestState, WasiFilesystem>::new(store.as_context_mut(), GuestState::filesystem)
}

fn sockets<'a>(store: &'a mut Store<'_>) -> Access<'a, GuestState, WasiSockets> {
    Access::<GuestState, WasiSockets>::new(store.as_context_mut(), GuestState::sockets)
}

fn note(store: &mut Store<'_>, fd: &Fd) -> wasmtime::Result<()> {
    let state = store.data_mut();
    // One that is no file is refused by whoever is to open the stream.
    if let Descriptor::File(file) = state.table.get(fd)? {
        state.streams.note(&file.file);
    }
    Ok(())
}

async fn listen(
    mut store: Store<'_>,
    socket: Resource<TcpSocket>,
) -> wasmtime::Result<(Result<StreamReader<Resource<TcpSocket>>, ErrorCode>,)> {
    let access = sockets(&mut store);
    match WasiSockets::listen(access, socket).await {
        Ok(accepted) => {
            store.data_mut().streams.listeners += 1;
            Ok((Ok(accepted),))
        }
        Err(error) => Ok((Err(error.downcast()?),)),
    }
}

/// Passes on what is told when a stream is closed, which counts until then.
fn until_closed(
    mut store: Store<'_>,
    told: FutureReader<Told>,
) -> wasmtime::Result<FutureReader<Told>> {
    let (to, hears) = oneshot::channel();
    let passes = PassesOn {
        to: Some(to),
        _open: store.data().streams.open(),
    };
    told.pipe(&mut store, passes)?;
    FutureReader::new(&mut store, hears)
}

struct PassesOn {
    to: Option<oneshot::Sender<Told>>,
    _open: OpenStream,
}

impl FutureConsumer<GuestState> for PassesOn {
    type Item = Told;

    fn poll_consume(
        mut self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        store: StoreContextMut<'_, GuestState>,
        mut source: Source<'_, Told>,
        _finish: bool,
    ) -> Poll<wasmtime::Result<()>> {
        let mut told = None;
        source.read(store, &mut told)?;
        if let Some((told, to)) = told.zip(self.to.take()) {
            // A guest that does not wait for it has dropped its end.
            let _ = to.send(told);
        }
        Poll::Ready(Ok(()))
    }
}
