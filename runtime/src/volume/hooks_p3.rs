//! `wasi:filesystem` 0.3 for replicas with a limited directory: what writes asks first, as in
//! `hooks_p2.rs`.

use std::sync::Arc;

use tokio::sync::oneshot;
use wasmtime::StoreContextMut;
use wasmtime::component::{Accessor, FutureReader, Linker, Resource, StreamReader};
use wasmtime_wasi::FsPerms;
use wasmtime_wasi::filesystem::{Descriptor, WasiFilesystem, WasiFilesystemView as _};
use wasmtime_wasi::p3::bindings::filesystem::preopens::Host as _;
use wasmtime_wasi::p3::bindings::filesystem::types::{
    DescriptorFlags, ErrorCode, HostDescriptorWithStore as _, OpenFlags, PathFlags,
};
use wasmtime_wasi::p3::filesystem::FilesystemError;

use super::measure::ENTRY_BYTES;
use super::quota::Quota;
use super::stream_p3::{Told, Writer};
use crate::state::GuestState;

/// As wasmtime-wasi names them; a test of `link` holds these versions equal to `wit/`.
pub(crate) const TYPES: &str = "wasi:filesystem/types@0.3.0";
pub(crate) const PREOPENS: &str = "wasi:filesystem/preopens@0.3.0";

type Fd = Resource<Descriptor>;
type Store<'a> = StoreContextMut<'a, GuestState>;
type Guest = Accessor<GuestState>;
type Answer<T> = wasmtime::Result<(Result<T, ErrorCode>,)>;
/// Comes when the stream is written, or broke off.
type Written = FutureReader<Told>;

/// Puts the functions in the place of those that are there.
pub(crate) fn add_to_linker(linker: &mut Linker<GuestState>) -> wasmtime::Result<()> {
    linker.allow_shadowing(true);
    linker
        .instance(PREOPENS)?
        .func_wrap("get-directories", |store, (): ()| directories(store))?;
    let mut types = linker.instance(TYPES)?;
    types.func_wrap(
        "[method]descriptor.write-via-stream",
        |store, (fd, data, offset): (Fd, StreamReader<u8>, u64)| {
            written(store, &fd, data, Some(offset))
        },
    )?;
    types.func_wrap(
        "[method]descriptor.append-via-stream",
        |store, (fd, data): (Fd, StreamReader<u8>)| written(store, &fd, data, None),
    )?;
    types.func_wrap_concurrent("[method]descriptor.open-at", |guest, args| {
        Box::pin(async move { answer(open_at(guest, args).await) })
    })?;
    types.func_wrap_concurrent("[method]descriptor.set-size", |guest, args| {
        Box::pin(async move { answer(set_size(guest, args).await) })
    })?;
    types.func_wrap_concurrent("[method]descriptor.create-directory-at", |guest, args| {
        Box::pin(async move { answer(create_directory_at(guest, args).await) })
    })?;
    types.func_wrap_concurrent("[method]descriptor.symlink-at", |guest, args| {
        Box::pin(async move { answer(symlink_at(guest, args).await) })
    })?;
    types.func_wrap_concurrent("[method]descriptor.link-at", |guest, args| {
        Box::pin(async move { answer(link_at(guest, args).await) })
    })?;
    types.func_wrap_concurrent("[method]descriptor.rename-at", |guest, args| {
        Box::pin(async move { answer(rename_at(guest, args).await) })
    })?;
    linker.allow_shadowing(false);
    Ok(())
}

/// An error code goes to the guest, anything else ends it.
fn answer<T>(result: Result<T, FilesystemError>) -> Answer<T> {
    match result {
        Ok(value) => Ok((Ok(value),)),
        Err(error) => Ok((Err(error.downcast()?),)),
    }
}

/// The guest as wasmtime-wasi's functions take it.
fn files(guest: &Guest) -> Accessor<GuestState, WasiFilesystem> {
    guest.with_getter::<WasiFilesystem>(GuestState::filesystem)
}

fn quota(state: &GuestState, fd: &Fd) -> Option<Arc<Quota>> {
    let place = state.places.of(fd.rep())?;
    state.shared.volumes.get(place)
}

fn quota_of(guest: &Guest, fd: &Fd) -> Option<Arc<Quota>> {
    guest.with(|mut store| quota(store.data_mut(), fd))
}

async fn take(quota: Option<Arc<Quota>>, bytes: u64) -> Result<(), FilesystemError> {
    let Some(quota) = quota else { return Ok(()) };
    if quota.take_measured(bytes).await? {
        Ok(())
    } else {
        Err(ErrorCode::InsufficientSpace.into())
    }
}

fn directories(mut store: Store<'_>) -> wasmtime::Result<(Vec<(Fd, String)>,)> {
    let found = store.data_mut().filesystem().get_directories()?;
    let state = store.data_mut();
    for (fd, path) in &found {
        state.note_preopen(fd.rep(), path);
    }
    Ok((found,))
}

fn written(
    mut store: Store<'_>,
    fd: &Fd,
    mut data: StreamReader<u8>,
    position: Option<u64>,
) -> wasmtime::Result<(Written,)> {
    let (told, hears) = oneshot::channel();
    let quota = quota(store.data(), fd);
    let file = match store.data().table.get(fd)? {
        Descriptor::File(file) if file.perms == FsPerms::ReadOnly => Err(ErrorCode::NotPermitted),
        Descriptor::File(file) => Ok(file.file.clone()),
        Descriptor::Dir(_) => Err(ErrorCode::IsDirectory),
    };
    match file {
        Ok(file) => data.pipe(&mut store, Writer::new(file, quota, position, told))?,
        Err(code) => {
            data.close(&mut store)?;
            // Who asked holds the other end.
            let _ = told.send(Err(code));
        }
    }
    Ok((FutureReader::new(&mut store, hears)?,))
}

async fn open_at(
    guest: &Guest,
    (fd, at, path, open, flags): (Fd, PathFlags, String, OpenFlags, DescriptorFlags),
) -> Result<Fd, FilesystemError> {
    let (place, quota) = guest.with(|mut store| {
        let state = store.data_mut();
        (state.places.of(fd.rep()), quota(state, &fd))
    });
    if open.contains(OpenFlags::CREATE) {
        take(quota.clone(), ENTRY_BYTES).await?;
    }
    let opened = WasiFilesystem::open_at(&files(guest), fd, at, path, open, flags).await?;
    guest.with(|mut store| {
        let state = store.data_mut();
        state.places.note(opened.rep(), place);
        if let (Some(quota), Descriptor::File(file)) = (quota, state.table.get(&opened)?) {
            quota.note(&file.file);
        }
        Ok(opened)
    })
}

async fn set_size(guest: &Guest, (fd, to): (Fd, u64)) -> Result<(), FilesystemError> {
    let (quota, size) = guest.with(|mut store| {
        let state = store.data_mut();
        let size = match state.table.get(&fd)? {
            Descriptor::File(file) => Some(file.file.metadata()?.len()),
            Descriptor::Dir(_) => None,
        };
        Ok::<_, FilesystemError>((quota(state, &fd), size))
    })?;
    if let Some(size) = size {
        take(quota, to.saturating_sub(size)).await?;
    }
    WasiFilesystem::set_size(&files(guest), fd, to).await
}

async fn create_directory_at(
    guest: &Guest,
    (fd, path): (Fd, String),
) -> Result<(), FilesystemError> {
    take(quota_of(guest, &fd), ENTRY_BYTES).await?;
    WasiFilesystem::create_directory_at(&files(guest), fd, path).await
}

async fn symlink_at(
    guest: &Guest,
    (fd, from, to): (Fd, String, String),
) -> Result<(), FilesystemError> {
    take(quota_of(guest, &fd), ENTRY_BYTES).await?;
    WasiFilesystem::symlink_at(&files(guest), fd, from, to).await
}

async fn link_at(
    guest: &Guest,
    (fd, at, from, to_fd, to): (Fd, PathFlags, String, Fd, String),
) -> Result<(), FilesystemError> {
    same_place(guest, &fd, &to_fd)?;
    take(quota_of(guest, &to_fd), ENTRY_BYTES).await?;
    WasiFilesystem::link_at(&files(guest), fd, at, from, to_fd, to).await
}

async fn rename_at(
    guest: &Guest,
    (fd, from, to_fd, to): (Fd, String, Fd, String),
) -> Result<(), FilesystemError> {
    same_place(guest, &fd, &to_fd)?;
    WasiFilesystem::rename_at(&files(guest), fd, from, to_fd, to).await
}

/// What is counted apart is as good as on another disk.
fn same_place(guest: &Guest, from: &Fd, to: &Fd) -> Result<(), FilesystemError> {
    let same = guest.with(|mut store| {
        let places = &store.data_mut().places;
        places.of(from.rep()) == places.of(to.rep())
    });
    if same {
        Ok(())
    } else {
        Err(ErrorCode::CrossDevice.into())
    }
}
