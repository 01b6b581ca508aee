//! `read-directory` of WASI 0.3: a stream, which counts as a handle (`streams.rs`) for as long as it lives.

use std::fs::File;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use rustix::fs::FileType;
use rustix::io::Errno;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use wasmtime::StoreContextMut;
use wasmtime::component::{
    Destination, FutureReader, Linker, Resource, StreamProducer, StreamReader, StreamResult,
};
use wasmtime_wasi::filesystem::Descriptor;
use wasmtime_wasi::p3::bindings::filesystem::types::{DescriptorType, DirectoryEntry, ErrorCode};

use super::{Entry, Folder, Part};
use crate::state::GuestState;
use crate::streams::OpenStream;
use crate::volume::FILES;

/// What a guest hears at the end.
type Told = Result<(), ErrorCode>;
/// What `read-directory` answers.
type Listed = (StreamReader<DirectoryEntry>, FutureReader<Told>);

/// Puts the function in the place of the one that is there.
pub(super) fn add_to_linker(linker: &mut Linker<GuestState>) -> wasmtime::Result<()> {
    linker.instance(FILES)?.func_wrap(
        "[method]descriptor.read-directory",
        |store, (fd,): (Resource<Descriptor>,)| Ok((read_directory(store, &fd)?,)),
    )
}

fn read_directory(
    mut store: StoreContextMut<'_, GuestState>,
    fd: &Resource<Descriptor>,
) -> wasmtime::Result<Listed> {
    let (told, hears) = oneshot::channel();
    let state = store.data();
    let folder = match state.table.get(fd)? {
        Descriptor::Dir(folder) => Ok(folder.dir.clone()),
        Descriptor::File(_) => Err(Errno::NOTDIR.into()),
    };
    let listing = Listing::new(folder, told, state.streams.open());
    let entries = StreamReader::new(&mut store, listing)?;
    Ok((entries, FutureReader::new(&mut store, hears)?))
}

impl From<Entry> for DirectoryEntry {
    fn from(entry: Entry) -> Self {
        let type_ = match entry.kind {
            FileType::RegularFile => DescriptorType::RegularFile,
            FileType::Directory => DescriptorType::Directory,
            FileType::Symlink => DescriptorType::SymbolicLink,
            FileType::CharacterDevice => DescriptorType::CharacterDevice,
            FileType::BlockDevice => DescriptorType::BlockDevice,
            FileType::Fifo => DescriptorType::Fifo,
            FileType::Socket => DescriptorType::Socket,
            FileType::Unknown => DescriptorType::Other(None),
        };
        Self {
            type_,
            name: entry.name,
        }
    }
}

/// The stream of a folder's entries.
struct Listing {
    /// `None`: it is being read, or there is nothing to read.
    folder: Option<Folder>,
    reading: Option<JoinHandle<(Folder, Part)>>,
    /// Read, and not taken yet.
    part: Part,
    told: Option<oneshot::Sender<Told>>,
    _open: OpenStream,
}

impl Listing {
    fn new(folder: io::Result<Arc<File>>, told: oneshot::Sender<Told>, open: OpenStream) -> Self {
        let (folder, end) = match folder {
            Ok(folder) => (Some(Folder::new(folder)), None),
            Err(error) => (None, Some(Err(error))),
        };
        Self {
            folder,
            reading: None,
            part: Part {
                end,
                ..Part::default()
            },
            told: Some(told),
            _open: open,
        }
    }

    fn tell(&mut self, what: io::Result<()>) {
        if let Some(told) = self.told.take() {
            // A guest that does not wait for it has dropped its end.
            let _ = told.send(what.map_err(ErrorCode::from));
        }
    }

    /// Reads the next part.
    fn poll_part(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut reading = match (self.reading.take(), self.folder.take()) {
            (Some(reading), _) => reading,
            (None, Some(folder)) => folder.read(),
            (None, None) => {
                self.part.end = Some(Ok(()));
                return Poll::Ready(());
            }
        };
        match Pin::new(&mut reading).poll(cx) {
            Poll::Ready(Ok((folder, part))) => {
                self.folder = Some(folder);
                self.part = part;
                Poll::Ready(())
            }
            Poll::Ready(Err(lost)) => {
                self.part.end = Some(Err(io::Error::other(lost)));
                Poll::Ready(())
            }
            Poll::Pending => {
                self.reading = Some(reading);
                Poll::Pending
            }
        }
    }
}

impl Drop for Listing {
    /// The guest has read enough, or has ended.
    fn drop(&mut self) {
        self.tell(Ok(()));
    }
}

impl<D> StreamProducer<D> for Listing {
    type Item = DirectoryEntry;
    type Buffer = Option<DirectoryEntry>;

    fn poll_produce<'a>(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut store: StoreContextMut<'a, D>,
        mut destination: Destination<'a, Self::Item, Self::Buffer>,
        finish: bool,
    ) -> Poll<wasmtime::Result<StreamResult>> {
        // Who only asks whether there is something takes nothing.
        if destination.remaining(&mut store) == Some(0) {
            return Poll::Ready(Ok(StreamResult::Completed));
        }
        loop {
            if let Some(entry) = self.part.entries.pop_front() {
                destination.set_buffer(Some(entry.into()));
                return Poll::Ready(Ok(StreamResult::Completed));
            }
            if let Some(end) = self.part.end.take() {
                self.tell(end);
                return Poll::Ready(Ok(StreamResult::Dropped));
            }
            match self.poll_part(cx) {
                Poll::Ready(()) => {}
                Poll::Pending if finish => return Poll::Ready(Ok(StreamResult::Cancelled)),
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}
