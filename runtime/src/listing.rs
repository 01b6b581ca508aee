//! `read-directory` of WASI 0.3 in the place of wasmtime-wasi's: there each stream keeps a thread that waits until its
//! guest reads on, and a few hundred of them leave none for anybody else.
//!
//! Here a thread is taken for one part of the entries at a time, when a guest asks for more. A stream counts as a handle
//! (`streams.rs`) for as long as it lives, and the folder is opened by the first who reads.

use std::collections::VecDeque;
use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, openat, statat};
use rustix::io::Errno;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use wasmtime::StoreContextMut;
use wasmtime::component::{
    Destination, FutureReader, Linker, Resource, StreamProducer, StreamReader, StreamResult,
};
use wasmtime_wasi::filesystem::Descriptor;
use wasmtime_wasi::p3::bindings::filesystem::types::{DescriptorType, DirectoryEntry, ErrorCode};

use crate::state::GuestState;
use crate::streams::OpenStream;
use crate::volume::FILES;

/// Entries that are read at once, and wait for their guest: each a name of 255 bytes at most.
const PART: usize = 64;

/// What a guest hears at the end.
type Told = Result<(), ErrorCode>;
/// What `read-directory` answers.
type Listed = (StreamReader<DirectoryEntry>, FutureReader<Told>);

/// Puts the function in the place of the one that is there.
pub(crate) fn add_to_linker(linker: &mut Linker<GuestState>) -> wasmtime::Result<()> {
    linker.allow_shadowing(true);
    linker.instance(FILES)?.func_wrap(
        "[method]descriptor.read-directory",
        |store, (fd,): (Resource<Descriptor>,)| Ok((read_directory(store, &fd)?,)),
    )?;
    linker.allow_shadowing(false);
    Ok(())
}

fn read_directory(
    mut store: StoreContextMut<'_, GuestState>,
    fd: &Resource<Descriptor>,
) -> wasmtime::Result<Listed> {
    let (told, hears) = oneshot::channel();
    let state = store.data();
    let folder = match state.table.get(fd)? {
        Descriptor::Dir(folder) => Ok(folder.dir.clone()),
        Descriptor::File(_) => Err(ErrorCode::NotDirectory),
    };
    let listing = Listing::new(folder, told, state.streams.open());
    let entries = StreamReader::new(&mut store, listing)?;
    Ok((entries, FutureReader::new(&mut store, hears)?))
}

/// A folder that is being read.
struct Folder {
    folder: Arc<File>,
    /// Once it was opened for that.
    entries: Option<Dir>,
}

/// The next entries of a folder, and what there is to tell when they are the last.
struct Part {
    entries: VecDeque<DirectoryEntry>,
    end: Option<Told>,
}

impl Folder {
    /// Blocks.
    fn part(&mut self) -> Part {
        let mut entries = VecDeque::new();
        let mut end = None;
        while entries.len() < PART && end.is_none() {
            match self.next() {
                Ok(Some(entry)) => entries.push_back(entry),
                Ok(None) => end = Some(Ok(())),
                Err(error) => end = Some(Err(error)),
            }
        }
        Part { entries, end }
    }

    fn next(&mut self) -> Result<Option<DirectoryEntry>, ErrorCode> {
        if self.entries.is_none() {
            // A descriptor of its own: another listing has its own place in the folder.
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let opened = openat(&self.folder, c".", flags, Mode::empty()).map_err(failed)?;
            self.entries = Some(Dir::new(opened).map_err(failed)?);
        }
        let Some(entries) = &mut self.entries else {
            return Ok(None);
        };
        while let Some(entry) = entries.read() {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            let kind = kind(&self.folder, name, entry.file_type())?;
            let name = name.to_str().map_err(|_| ErrorCode::IllegalByteSequence)?;
            return Ok(Some(DirectoryEntry {
                type_: kind,
                name: name.to_owned(),
            }));
        }
        Ok(None)
    }
}

fn failed(error: Errno) -> ErrorCode {
    io::Error::from(error).into()
}

/// What an entry is; asked for where the file system does not say it with the name.
fn kind(folder: &File, name: &CStr, known: FileType) -> Result<DescriptorType, ErrorCode> {
    let kind = match known {
        FileType::Unknown => {
            let about = statat(folder, name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
            FileType::from_raw_mode(about.st_mode)
        }
        known => known,
    };
    // As wasmtime-wasi has it, which tells no pipe and no socket of a folder either.
    Ok(match kind {
        FileType::RegularFile => DescriptorType::RegularFile,
        FileType::Directory => DescriptorType::Directory,
        FileType::Symlink => DescriptorType::SymbolicLink,
        FileType::CharacterDevice => DescriptorType::CharacterDevice,
        FileType::BlockDevice => DescriptorType::BlockDevice,
        FileType::Fifo | FileType::Socket | FileType::Unknown => DescriptorType::Other(None),
    })
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
    fn new(
        folder: Result<Arc<File>, ErrorCode>,
        told: oneshot::Sender<Told>,
        open: OpenStream,
    ) -> Self {
        let (folder, end) = match folder {
            Ok(folder) => (Some(folder), None),
            Err(code) => (None, Some(Err(code))),
        };
        Self {
            folder: folder.map(|folder| Folder {
                folder,
                entries: None,
            }),
            reading: None,
            part: Part {
                entries: VecDeque::new(),
                end,
            },
            told: Some(told),
            _open: open,
        }
    }

    fn tell(&mut self, what: Told) {
        if let Some(told) = self.told.take() {
            // A guest that does not wait for it has dropped its end.
            let _ = told.send(what);
        }
    }

    /// Reads the next part; whether there is one to come.
    fn poll_part(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut reading = match (self.reading.take(), self.folder.take()) {
            (Some(reading), _) => reading,
            (None, Some(mut folder)) => tokio::task::spawn_blocking(move || {
                let part = folder.part();
                (folder, part)
            }),
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
            Poll::Ready(Err(_)) => {
                self.part.end = Some(Err(ErrorCode::Io));
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
                destination.set_buffer(Some(entry));
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_folder_is_read_in_parts_to_its_end() {
        let folder = tempfile::tempdir().unwrap();
        let names: BTreeSet<_> = (0..3 * PART)
            .map(|number| format!("file-{number}"))
            .collect();
        for name in &names {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        let mut reading = Folder {
            folder: Arc::new(File::open(folder.path()).unwrap()),
            entries: None,
        };
        let mut found = BTreeSet::new();
        loop {
            let part = reading.part();
            assert!(part.entries.len() <= PART);
            found.extend(part.entries.into_iter().map(|entry| entry.name));
            if let Some(end) = part.end {
                assert!(end.is_ok());
                break;
            }
        }
        assert_eq!(found, names);
    }

    #[test]
    fn entries_have_their_kinds_and_what_is_no_folder_has_none() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("folder")).unwrap();
        std::fs::write(folder.path().join("file"), "").unwrap();
        std::os::unix::fs::symlink("file", folder.path().join("link")).unwrap();
        let read = |path: &std::path::Path| {
            let folder = Arc::new(File::open(path).unwrap());
            let entries = None;
            Folder { folder, entries }.part()
        };
        let part = read(folder.path());
        assert_eq!(part.entries.len(), 3);
        for entry in part.entries {
            let is_it = match entry.name.as_str() {
                "folder" => matches!(entry.type_, DescriptorType::Directory),
                "file" => matches!(entry.type_, DescriptorType::RegularFile),
                _ => matches!(entry.type_, DescriptorType::SymbolicLink),
            };
            assert!(is_it, "{}", entry.name);
        }
        let none = read(&folder.path().join("file"));
        assert!(none.entries.is_empty() && matches!(none.end, Some(Err(_))));
    }
}
