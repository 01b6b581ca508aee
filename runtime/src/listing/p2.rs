//! `read-directory` of WASI 0.2: a resource, which counts as a handle and with the memory of a part (`holdings.rs`).

use rustix::fs::FileType;
use wasmtime::StoreContextMut;
use wasmtime::component::{Linker, Resource, ResourceType};
use wasmtime_wasi::filesystem::Descriptor;
use wasmtime_wasi::p2::bindings::filesystem::types::{DescriptorType, DirectoryEntry, ErrorCode};

use super::{Entry, Folder, Part};
use crate::state::GuestState;
use crate::volume::FILES_P2;

type Store<'a> = StoreContextMut<'a, GuestState>;
type Answer<T> = wasmtime::Result<(Result<T, ErrorCode>,)>;

/// What a guest has of a folder that it reads.
pub(crate) struct Listing {
    /// `None`: it is being read, or was read to its end.
    folder: Option<Folder>,
    /// Read, and not taken yet.
    part: Part,
}

/// Puts the functions in the place of those that are there.
pub(super) fn add_to_linker(linker: &mut Linker<GuestState>) -> wasmtime::Result<()> {
    let mut types = linker.instance(FILES_P2)?;
    types.resource(
        "directory-entry-stream",
        ResourceType::host::<Listing>(),
        |mut store, rep| {
            let listing = Resource::<Listing>::new_own(rep);
            store.data_mut().table.delete(listing)?;
            Ok(())
        },
    )?;
    types.func_wrap("[method]descriptor.read-directory", read_directory)?;
    types.func_wrap_async(
        "[method]directory-entry-stream.read-directory-entry",
        |store, (listing,): (Resource<Listing>,)| Box::new(next(store, listing)),
    )
}

fn read_directory(
    mut store: Store<'_>,
    (fd,): (Resource<Descriptor>,),
) -> Answer<Resource<Listing>> {
    let state = store.data_mut();
    let folder = match state.table.get(&fd)? {
        Descriptor::Dir(folder) => folder.dir.clone(),
        Descriptor::File(_) => return Ok((Err(ErrorCode::NotDirectory),)),
    };
    let listing = Listing {
        folder: Some(Folder::new(folder)),
        part: Part::default(),
    };
    Ok((Ok(state.table.push(listing)?),))
}

async fn next(mut store: Store<'_>, listing: Resource<Listing>) -> Answer<Option<DirectoryEntry>> {
    loop {
        let held = store.data_mut().table.get_mut(&listing)?;
        if let Some(entry) = held.part.entries.pop_front() {
            return Ok((Ok(Some(entry.into())),));
        }
        if let Some(end) = held.part.end.take() {
            // Whoever asks again hears the same of the end, and an error once.
            held.part.end = Some(Ok(()));
            return Ok((end.map(|()| None).map_err(ErrorCode::from),));
        }
        let Some(folder) = held.folder.take() else {
            return Ok((Ok(None),));
        };
        let (folder, part) = folder.read().await?;
        let held = store.data_mut().table.get_mut(&listing)?;
        held.folder = Some(folder);
        held.part = part;
    }
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
            FileType::Unknown => DescriptorType::Unknown,
        };
        Self {
            type_,
            name: entry.name,
        }
    }
}
