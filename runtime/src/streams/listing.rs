//! What a folder has, as a stream of `wasi:filesystem` 0.3.
//!
//! wasmtime-wasi reads it on a thread that waits for the guest, one of those that all replicas share. Here a
//! thread reads a few entries and is free again.

use std::fs::File;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use rustix::fs::{AtFlags, Dir, DirEntry, FileType, statat};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use wasmtime::StoreContextMut;
use wasmtime::component::{Destination, StreamProducer, StreamResult, VecBuffer};
use wasmtime_wasi::p3::bindings::filesystem::types::{DescriptorType, DirectoryEntry, ErrorCode};

use super::{FileTold, OpenStream};

/// Entries that are read at once.
const ENTRIES: usize = 64;

/// Those that were read, and where the next are; `None`: these are the last.
type Batch = (Vec<DirectoryEntry>, Option<Dir>);

/// Gives the entries of one folder.
pub(super) struct Listing {
    folder: Arc<File>,
    /// Where it goes on, once it has begun.
    next: Option<Dir>,
    reading: Option<JoinHandle<Result<Batch, ErrorCode>>>,
    is_over: bool,
    told: Option<oneshot::Sender<FileTold>>,
    _open: OpenStream,
}

impl Listing {
    pub(super) fn new(
        folder: Arc<File>,
        told: oneshot::Sender<FileTold>,
        open: OpenStream,
    ) -> Self {
        Self {
            folder,
            next: None,
            reading: None,
            is_over: false,
            told: Some(told),
            _open: open,
        }
    }

    fn tell(&mut self, what: FileTold) {
        if let Some(told) = self.told.take() {
            // A guest that does not wait for it has dropped its end.
            let _ = told.send(what);
        }
    }
}

impl Drop for Listing {
    fn drop(&mut self) {
        self.tell(Ok(()));
    }
}

impl<D> StreamProducer<D> for Listing {
    type Item = DirectoryEntry;
    type Buffer = VecBuffer<DirectoryEntry>;

    fn poll_produce<'a>(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut store: StoreContextMut<'a, D>,
        mut destination: Destination<'a, Self::Item, Self::Buffer>,
        finish: bool,
    ) -> Poll<wasmtime::Result<StreamResult>> {
        // A guest that asks whether it may read takes nothing.
        if destination.remaining(&mut store) == Some(0) {
            return Poll::Ready(Ok(StreamResult::Completed));
        }
        if self.is_over {
            return Poll::Ready(Ok(StreamResult::Dropped));
        }
        let listing = &mut *self;
        let reading = listing.reading.get_or_insert_with(|| {
            let (folder, next) = (listing.folder.clone(), listing.next.take());
            tokio::task::spawn_blocking(move || read(&folder, next))
        });
        let read = match Pin::new(reading).poll(cx) {
            // What is read by then is for the next who asks.
            Poll::Pending if finish => return Poll::Ready(Ok(StreamResult::Cancelled)),
            polled => ready!(polled),
        };
        listing.reading = None;
        let (entries, next) = match read.unwrap_or(Err(ErrorCode::Io)) {
            Ok(batch) => batch,
            Err(code) => {
                listing.tell(Err(code));
                return Poll::Ready(Ok(StreamResult::Dropped));
            }
        };
        listing.is_over = next.is_none();
        listing.next = next;
        if entries.is_empty() {
            listing.tell(Ok(()));
            return Poll::Ready(Ok(StreamResult::Dropped));
        }
        destination.set_buffer(entries.into());
        Poll::Ready(Ok(StreamResult::Completed))
    }
}

fn read(folder: &File, next: Option<Dir>) -> Result<Batch, ErrorCode> {
    let mut dir = match next {
        Some(next) => next,
        None => Dir::read_from(folder).map_err(io::Error::from)?,
    };
    let mut entries = Vec::new();
    while entries.len() < ENTRIES {
        let Some(found) = dir.read() else {
            return Ok((entries, None));
        };
        let found = found.map_err(io::Error::from)?;
        if matches!(found.file_name().to_bytes(), b"." | b"..") {
            continue;
        }
        entries.extend(entry(folder, &found)?);
    }
    Ok((entries, Some(dir)))
}

/// `None`: it is gone.
fn entry(folder: &File, found: &DirEntry) -> Result<Option<DirectoryEntry>, ErrorCode> {
    let name = found.file_name();
    let kind = match found.file_type() {
        // There are filesystems that do not say.
        FileType::Unknown => match statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(about) => FileType::from_raw_mode(about.st_mode),
            Err(rustix::io::Errno::NOENT) => return Ok(None),
            Err(error) => return Err(io::Error::from(error).into()),
        },
        kind => kind,
    };
    let name = name.to_str().map_err(|_| ErrorCode::IllegalByteSequence)?;
    Ok(Some(DirectoryEntry {
        type_: match kind {
            FileType::BlockDevice => DescriptorType::BlockDevice,
            FileType::CharacterDevice => DescriptorType::CharacterDevice,
            FileType::Directory => DescriptorType::Directory,
            FileType::Symlink => DescriptorType::SymbolicLink,
            FileType::RegularFile => DescriptorType::RegularFile,
            _ => DescriptorType::Other(None),
        },
        name: name.to_owned(),
    }))
}
