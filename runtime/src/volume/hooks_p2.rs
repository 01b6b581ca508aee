//! `wasi:filesystem` 0.2 for replicas with a limited directory: what writes asks first.
//!
//! Each function here stands in for wasmtime-wasi's of the same name, asks for room (`room.rs`) and then
//! calls that one. The rest of the interface stays as it is.

use wasmtime::StoreContextMut;
use wasmtime::component::{Linker, Resource};
use wasmtime_wasi::filesystem::WasiFilesystemView as _;
use wasmtime_wasi::p2::bindings::filesystem::preopens::Host as _;
use wasmtime_wasi::p2::bindings::filesystem::types::{
    DescriptorFlags, ErrorCode, HostDescriptor as _, OpenFlags, PathFlags,
};
use wasmtime_wasi::p2::{DynOutputStream, FsError};

use super::room::Fd;
use super::stream_p2::Counted;
use crate::state::GuestState;

/// As wasmtime-wasi names them; a test of `link` holds these versions equal to `wit/`.
pub(crate) const TYPES: &str = "wasi:filesystem/types@0.2.12";
pub(crate) const PREOPENS: &str = "wasi:filesystem/preopens@0.2.12";

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

fn directories(mut store: Store<'_>) -> wasmtime::Result<(Vec<(Fd, String)>,)> {
    let found = store.data_mut().filesystem().get_directories()?;
    store.data_mut().note_directories(&found);
    Ok((found,))
}

async fn open_at(
    mut store: Store<'_>,
    (fd, at, path, open, flags): (Fd, PathFlags, String, OpenFlags, DescriptorFlags),
) -> Result<Fd, FsError> {
    let _taken = match open.contains(OpenFlags::CREATE) {
        true => store.data().room(&fd).take_entry().await?,
        false => None,
    };
    let within = fd.rep();
    let state = store.data_mut();
    let opened = state
        .filesystem()
        .open_at(fd, at, path, open, flags)
        .await?;
    state.note_opened(within, &opened)?;
    Ok(opened)
}

async fn write(
    mut store: Store<'_>,
    (fd, bytes, offset): (Fd, Vec<u8>, u64),
) -> Result<u64, FsError> {
    let (room, file) = (store.data().room(&fd), store.data().file(&fd)?);
    let end = offset.saturating_add(bytes.len() as u64);
    let _taken = room.take_up_to(file.as_deref(), end).await?;
    let mut files = store.data_mut().filesystem();
    files.write(fd, bytes, offset).await
}

async fn set_size(mut store: Store<'_>, (fd, to): (Fd, u64)) -> Result<(), FsError> {
    let (room, file) = (store.data().room(&fd), store.data().file(&fd)?);
    let _taken = room.take_up_to(file.as_deref(), to).await?;
    store.data_mut().filesystem().set_size(fd, to).await
}

fn stream(
    mut store: Store<'_>,
    fd: Fd,
    position: Option<u64>,
) -> Result<Resource<DynOutputStream>, FsError> {
    let state = store.data_mut();
    let counted = state.room(&fd).quota().zip(state.file(&fd)?);
    let stream = match position {
        Some(offset) => state.filesystem().write_via_stream(fd, offset)?,
        None => state.filesystem().append_via_stream(fd)?,
    };
    let Some((quota, file)) = counted else {
        return Ok(stream);
    };
    let inner = state.table.delete(stream)?;
    let counted: DynOutputStream = Box::new(Counted::new(inner, file, quota, position));
    Ok(state.table.push(counted)?)
}

async fn create_directory_at(
    mut store: Store<'_>,
    (fd, path): (Fd, String),
) -> Result<(), FsError> {
    let _taken = store.data().room(&fd).take_entry().await?;
    let mut files = store.data_mut().filesystem();
    files.create_directory_at(fd, path).await
}

async fn symlink_at(
    mut store: Store<'_>,
    (fd, from, to): (Fd, String, String),
) -> Result<(), FsError> {
    let _taken = store.data().room(&fd).take_entry().await?;
    store.data_mut().filesystem().symlink_at(fd, from, to).await
}

async fn link_at(
    mut store: Store<'_>,
    (fd, at, from, to_fd, to): (Fd, PathFlags, String, Fd, String),
) -> Result<(), FsError> {
    if !store.data().is_one_place(&fd, &to_fd) {
        return Err(ErrorCode::CrossDevice.into());
    }
    let _taken = store.data().room(&to_fd).take_entry().await?;
    let mut files = store.data_mut().filesystem();
    files.link_at(fd, at, from, to_fd, to).await
}

async fn rename_at(
    mut store: Store<'_>,
    (fd, from, to_fd, to): (Fd, String, Fd, String),
) -> Result<(), FsError> {
    if !store.data().is_one_place(&fd, &to_fd) {
        return Err(ErrorCode::CrossDevice.into());
    }
    let mut files = store.data_mut().filesystem();
    files.rename_at(fd, from, to_fd, to).await
}
