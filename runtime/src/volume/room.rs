//! What a descriptor's directory has room for, and what is noted of it: the same for `wasi:filesystem` 0.2
//! and 0.3, whose functions (`hooks_p2.rs`, `hooks_p3.rs`) only ask here and then call wasmtime-wasi's.

use std::fs::File;
use std::io;
use std::sync::Arc;

use rustix::io::Errno;
use wasmtime::component::{Resource, ResourceTableError};
use wasmtime_wasi::filesystem::Descriptor;

use super::measure::ENTRY_BYTES;
use super::quota::{Quota, Taken};
use crate::state::GuestState;

/// A descriptor as a guest names it.
pub(super) type Fd = Resource<Descriptor>;

/// The room in one directory of a guest. Without a limit there is always some, and nothing is counted.
#[derive(Clone)]
pub(super) struct Room(Option<Arc<Quota>>);

impl Room {
    /// Takes bytes until they are written, measuring if need be. Fails as a full disk does.
    pub(super) async fn take(&self, bytes: u64) -> io::Result<Option<Taken>> {
        let Some(quota) = &self.0 else {
            return Ok(None);
        };
        match quota.take_measured(bytes).await? {
            Some(taken) => Ok(Some(taken)),
            None => Err(Errno::NOSPC.into()),
        }
    }

    /// For one more file, directory or link.
    pub(super) async fn take_entry(&self) -> io::Result<Option<Taken>> {
        self.take(ENTRY_BYTES).await
    }

    /// For what a file grows by until it ends there. What is no file takes nothing: the call that follows
    /// says so.
    pub(super) async fn take_up_to(
        &self,
        file: Option<&File>,
        end: u64,
    ) -> io::Result<Option<Taken>> {
        match file {
            Some(file) if self.0.is_some() => {
                let grows = end.saturating_sub(file.metadata()?.len());
                self.take(grows).await
            }
            _ => Ok(None),
        }
    }

    /// The count behind it.
    pub(super) fn quota(self) -> Option<Arc<Quota>> {
        self.0
    }
}

impl GuestState {
    /// The room where this descriptor is.
    pub(super) fn room(&self, fd: &Fd) -> Room {
        let place = self.places.of(fd.rep());
        Room(place.and_then(|place| self.shared.volumes.get(place)))
    }

    /// Whether both are in the same directory of the replica: what is counted apart is as good as on another
    /// disk.
    pub(super) fn is_one_place(&self, one: &Fd, other: &Fd) -> bool {
        self.places.of(one.rep()) == self.places.of(other.rep())
    }

    /// The file that a descriptor is; `None`: a directory.
    pub(super) fn file(&self, fd: &Fd) -> Result<Option<Arc<File>>, ResourceTableError> {
        Ok(match self.table.get(fd)? {
            Descriptor::File(file) => Some(file.file.clone()),
            Descriptor::Dir(_) => None,
        })
    }

    /// What was opened in the directory of a descriptor with that number is there too.
    pub(super) fn note_opened(
        &mut self,
        within: u32,
        opened: &Fd,
    ) -> Result<(), ResourceTableError> {
        let place = self.places.of(within);
        self.places.note(opened.rep(), place);
        if let (Some(quota), Some(file)) = (self.room(opened).quota(), self.file(opened)?) {
            quota.note(&file);
        }
        Ok(())
    }

    /// The directories that the guest was given, each with the path that it knows them by.
    pub(super) fn note_directories(&mut self, found: &[(Fd, String)]) {
        for (fd, path) in found {
            let mut preopens = self.shared.config.preopens.iter();
            let place = preopens.position(|preopen| preopen.guest == *path);
            self.places.note(fd.rep(), place);
        }
    }
}
