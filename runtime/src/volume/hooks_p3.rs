//! `wasi:filesystem` 0.3 for replicas with a limited directory: what writes asks for room first
//! (`room.rs`), as in `hooks_p2.rs`.

use tokio::sync::oneshot;
use wasmtime::StoreContextMut;
use wasmtime::component::{Accessor, FutureReader, Linker, StreamReader};
use wasmtime_wasi::FsPerms;
use wasmtime_wasi::filesystem::{Descriptor, WasiFilesystem, WasiFilesystemView as _};
use wasmtime_wasi::p3::bindings::filesystem::preopens::Host as _;
use wasmtime_wasi::p3::bindings::filesystem::types::{
    DescriptorFlags, ErrorCode, HostDescriptorWithStore as _, OpenFlags, PathFlags,
};
use wasmtime_wasi::p3::filesystem::FilesystemError;

use super::room::{Fd, Room};
use super::stream_p3::{Told, Writer};
use crate::state::GuestState;

/// As wasmtime-wasi names them; a test of `link` holds these versions equal to `wit/`.
pub(crate) const TYPES: &str = "wasi:filesystem/types@0.3.0";
pub(crate) const PREOPENS: &str = "wasi:filesystem/preopens@0.3.0";

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

fn room(guest: &Guest, fd: &Fd) -> Room {
    guest.with(|mut store| store.data_mut().room(fd))
}

fn is_one_place(guest: &Guest, one: &Fd, other: &Fd) -> bool {
    guest.with(|mut store| store.data_mut().is_one_place(one, other))
}

fn directories(mut store: Store<'_>) -> wasmtime::Result<(Vec<(Fd, String)>,)> {
    let found = store.data_mut().filesystem().get_directories()?;
    store.data_mut().note_directories(&found);
    Ok((found,))
}

fn written(
    mut store: Store<'_>,
    fd: &Fd,
    mut data: StreamReader<u8>,
    position: Option<u64>,
) -> wasmtime::Result<(Written,)> {
    let (told, hears) = oneshot::channel();
    let room = store.data().room(fd);
    let file = match store.data().table.get(fd)? {
        Descriptor::File(file) if file.perms == FsPerms::ReadOnly => Err(ErrorCode::NotPermitted),
        Descriptor::File(file) => Ok(file.file.clone()),
        Descriptor::Dir(_) => Err(ErrorCode::IsDirectory),
    };
    match file {
        Ok(file) => {
            store.data_mut().streams.note(&file);
            data.pipe(&mut store, Writer::new(file, room, position, told))?;
        }
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
    let _taken = match open.contains(OpenFlags::CREATE) {
        true => room(guest, &fd).take_entry().await?,
        false => None,
    };
    let within = fd.rep();
    let opened = WasiFilesystem::open_at(&files(guest), fd, at, path, open, flags).await?;
    guest.with(|mut store| store.data_mut().note_opened(within, &opened))?;
    Ok(opened)
}

async fn set_size(guest: &Guest, (fd, to): (Fd, u64)) -> Result<(), FilesystemError> {
    let file = guest.with(|mut store| store.data_mut().file(&fd))?;
    let _taken = room(guest, &fd).take_up_to(file.as_deref(), to).await?;
    WasiFilesystem::set_size(&files(guest), fd, to).await
}

async fn create_directory_at(
    guest: &Guest,
    (fd, path): (Fd, String),
) -> Result<(), FilesystemError> {
    let _taken = room(guest, &fd).take_entry().await?;
    WasiFilesystem::create_directory_at(&files(guest), fd, path).await
}

async fn symlink_at(
    guest: &Guest,
    (fd, from, to): (Fd, String, String),
) -> Result<(), FilesystemError> {
    let _taken = room(guest, &fd).take_entry().await?;
    WasiFilesystem::symlink_at(&files(guest), fd, from, to).await
}

async fn link_at(
    guest: &Guest,
    (fd, at, from, to_fd, to): (Fd, PathFlags, String, Fd, String),
) -> Result<(), FilesystemError> {
    if !is_one_place(guest, &fd, &to_fd) {
        return Err(ErrorCode::CrossDevice.into());
    }
    let _taken = room(guest, &to_fd).take_entry().await?;
    WasiFilesystem::link_at(&files(guest), fd, at, from, to_fd, to).await
}

async fn rename_at(
    guest: &Guest,
    (fd, from, to_fd, to): (Fd, String, Fd, String),
) -> Result<(), FilesystemError> {
    if !is_one_place(guest, &fd, &to_fd) {
        return Err(ErrorCode::CrossDevice.into());
    }
    WasiFilesystem::rename_at(&files(guest), fd, from, to_fd, to).await
}
