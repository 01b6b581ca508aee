//! `wasi:filesystem` 0.2 for replicas with a limited directory: what writes asks first.
//!
//! Each function here stands in for wasmtime-wasi's of the same name and then calls that one. The
//! rest of the interface stays as it is.

use std::sync::Arc;

use wasmtime::StoreContextMut;
use wasmtime::component::{Linker, Resource};
use wasmtime_wasi::filesystem::{Descriptor, WasiFilesystemView as _};
use wasmtime_wasi::p2::bindings::filesystem::preopens::Host as _;
use wasmtime_wasi::p2::bindings::filesystem::types::{
    DescriptorFlags, ErrorCode, HostDescriptor as _, OpenFlags, PathFlags,
};
use wasmtime_wasi::p2::{DynOutputStream, FsError};

use super::measure::ENTRY_BYTES;
use super::quota::Quota;
use super::stream_p2::{Counted, Short};
use crate::state::GuestState;

/// As wasmtime-wasi names them; a test of `link` holds these versions equal to `wit/`.
pub(crate) const TYPES: &str = "wasi:filesystem/types@0.2.12";
pub(crate) const PREOPENS: &str = "wasi:filesystem/preopens@0.2.12";

type Fd = Resource<Descriptor>;
type Store<'a> = StoreContextMut<'a, GuestState>;
type Answer<T> = wasmtime::Result<(Result<T, ErrorCode>,)>;

/// Puts the functions in the place of those that are there.
pub(crate) fn add_to_linker(linker: &mut Linker<GuestState>) -> wasmtime::Result<()> {
    linker.allow_shadowing(true);
    linker
        .instance(PREOPENS)?
        .func_wrap("get-directories", |store, (): ()| directories(store))?;
    let mut types = linker.instance(TYPES)?;
    types.func_wrap_async("[method]descriptor.open-at", |store, args| {
        Box::new(async move { answer(open_at(store, args).await) })
    })?;
    types.func_wrap_async("[method]descriptor.write", |store, args| {
        Box::new(async move { answer(write(store, args).await) })
    })?;
    types.func_wrap_async("[method]descriptor.set-size", |store, args| {
        Box::new(async move { answer(set_size(store, args).await) })
    })?;
    types.func_wrap("[method]descriptor.write-via-stream", |store, args| {
        let (fd, offset): (Fd, u64) = args;
        answer(stream(store, fd, Some(offset)))
    })?;
    types.func_wrap("[method]descriptor.append-via-stream", |store, args| {
        let (fd,): (Fd,) = args;
        answer(stream(store, fd, None))
    })?;
    types.func_wrap_async("[method]descriptor.create-directory-at", |store, args| {
        Box::new(async move { answer(create_directory_at(store, args).await) })
    })?;
    types.func_wrap_async("[method]descriptor.symlink-at", |store, args| {
        Box::new(async move { answer(symlink_at(store, args).await) })
    })?;
    types.func_wrap_async("[method]descriptor.link-at", |store, args| {
        Box::new(async move { answer(link_at(store, args).await) })
    })?;
    types.func_wrap_async("[method]descriptor.rename-at", |store, args| {
        Box::new(async move { answer(rename_at(store, args).await) })
    })?;
    linker.allow_shadowing(false);
    Ok(())
}

/// An error code goes to the guest, anything else ends it.
fn answer<T>(result: Result<T, FsError>) -> Answer<T> {
    match result {
        Ok(value) => Ok((Ok(value),)),
        Err(error) => Ok((Err(error.downcast()?),)),
    }
}

fn quota(store: &Store<'_>, fd: &Fd) -> Option<Arc<Quota>> {
    let state = store.data();
    let place = state.places.of(fd.rep())?;
    state.shared.volumes.get(place)
}

async fn take(quota: Option<Arc<Quota>>, bytes: u64) -> Result<(), FsError> {
    let Some(quota) = quota else { return Ok(()) };
    if quota.take_measured(bytes).await? {
        Ok(())
    } else {
        Err(ErrorCode::InsufficientSpace.into())
    }
}

/// The bytes that a file has now; `None`: it is none, and the call that follows says so.
fn size(store: &Store<'_>, fd: &Fd) -> Result<Option<u64>, FsError> {
    match store.data().table.get(fd)? {
        Descriptor::File(file) => Ok(Some(file.file.metadata()?.len())),
        Descriptor::Dir(_) => Ok(None),
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

async fn open_at(
    mut store: Store<'_>,
    (fd, at, path, open, flags): (Fd, PathFlags, String, OpenFlags, DescriptorFlags),
) -> Result<Fd, FsError> {
    let place = store.data().places.of(fd.rep());
    if open.contains(OpenFlags::CREATE) {
        take(quota(&store, &fd), ENTRY_BYTES).await?;
    }
    let quota = quota(&store, &fd);
    let state = store.data_mut();
    let opened = state
        .filesystem()
        .open_at(fd, at, path, open, flags)
        .await?;
    state.places.note(opened.rep(), place);
    if let (Some(quota), Descriptor::File(file)) = (quota, state.table.get(&opened)?) {
        quota.note(&file.file);
    }
    Ok(opened)
}

async fn write(
    mut store: Store<'_>,
    (fd, bytes, offset): (Fd, Vec<u8>, u64),
) -> Result<u64, FsError> {
    if let (Some(quota), Some(size)) = (quota(&store, &fd), size(&store, &fd)?) {
        let end = offset.saturating_add(bytes.len() as u64);
        take(Some(quota), end.saturating_sub(size)).await?;
    }
    let mut files = store.data_mut().filesystem();
    files.write(fd, bytes, offset).await
}

async fn set_size(mut store: Store<'_>, (fd, to): (Fd, u64)) -> Result<(), FsError> {
    if let (Some(quota), Some(size)) = (quota(&store, &fd), size(&store, &fd)?) {
        take(Some(quota), to.saturating_sub(size)).await?;
    }
    store.data_mut().filesystem().set_size(fd, to).await
}

fn stream(
    mut store: Store<'_>,
    fd: Fd,
    position: Option<u64>,
) -> Result<Resource<DynOutputStream>, FsError> {
    let counted = match (quota(&store, &fd), store.data().table.get(&fd)?) {
        (Some(quota), Descriptor::File(file)) => Some((quota, file.file.clone())),
        _ => None,
    };
    let state = store.data_mut();
    let stream = match position {
        Some(offset) => state.filesystem().write_via_stream(fd, offset)?,
        None => state.filesystem().append_via_stream(fd)?,
    };
    let Some((quota, file)) = counted else {
        return Ok(stream);
    };
    let inner = state.table.delete(stream)?;
    let counted: DynOutputStream = Box::new(Counted {
        inner,
        file,
        quota,
        position,
        short: Short::No,
    });
    Ok(state.table.push(counted)?)
}

async fn create_directory_at(
    mut store: Store<'_>,
    (fd, path): (Fd, String),
) -> Result<(), FsError> {
    take(quota(&store, &fd), ENTRY_BYTES).await?;
    let mut files = store.data_mut().filesystem();
    files.create_directory_at(fd, path).await
}

async fn symlink_at(
    mut store: Store<'_>,
    (fd, from, to): (Fd, String, String),
) -> Result<(), FsError> {
    take(quota(&store, &fd), ENTRY_BYTES).await?;
    store.data_mut().filesystem().symlink_at(fd, from, to).await
}

async fn link_at(
    mut store: Store<'_>,
    (fd, at, from, to_fd, to): (Fd, PathFlags, String, Fd, String),
) -> Result<(), FsError> {
    same_place(&store, &fd, &to_fd)?;
    take(quota(&store, &to_fd), ENTRY_BYTES).await?;
    let mut files = store.data_mut().filesystem();
    files.link_at(fd, at, from, to_fd, to).await
}

async fn rename_at(
    mut store: Store<'_>,
    (fd, from, to_fd, to): (Fd, String, Fd, String),
) -> Result<(), FsError> {
    same_place(&store, &fd, &to_fd)?;
    let mut files = store.data_mut().filesystem();
    files.rename_at(fd, from, to_fd, to).await
}

/// What is counted apart is as good as on another disk.
fn same_place(store: &Store<'_>, from: &Fd, to: &Fd) -> Result<(), FsError> {
    let places = &store.data().places;
    if places.of(from.rep()) == places.of(to.rep()) {
        Ok(())
    } else {
        Err(ErrorCode::CrossDevice.into())
    }
}
