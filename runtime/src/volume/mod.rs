//! Directories of the host that a guest sees, and the limit on what they hold.
//!
//! wasmtime-wasi keeps a guest below its directories (paths are resolved beneath them, whatever
//! links and renames there are) and refuses writes to those that are read-only. It knows no limit
//! on size: for replicas with a limited directory the functions that write are replaced by ones
//! that ask for room first (`hooks_p2.rs`, `hooks_p3.rs`, `room.rs`), which the [`Quota`] counts.
//!
//! Invariants:
//! - A write that would go over the limit is refused (`insufficient-space`) before it is made.
//! - Files do not move between directories that are counted apart (`cross-device`).
//! - What cannot be counted is not given a limit: core modules.

mod hooks_p2;
mod hooks_p3;
mod measure;
mod quota;
mod room;
mod stream_p2;
mod stream_p3;

use std::collections::HashMap;
use std::sync::Arc;

use wasmtime::component::{Component, Linker};

pub(crate) use hooks_p2::TYPES as FILES_P2;
pub(crate) use hooks_p3::TYPES as FILES;
pub(crate) use measure::ENTRY_BYTES;
pub(crate) use quota::{Quota, Taken};

use crate::config::Preopen;
use crate::ended::PrepareError;
use crate::state::GuestState;

/// What the name of a count has after its directory's. No directory of a binding has a dot.
const SUFFIX: &str = "used";

/// Puts functions that count in the place of those that write; of 0.3 where the engine has them.
pub(crate) fn add_to_linker(
    linker: &mut Linker<GuestState>,
    concurrent: bool,
) -> wasmtime::Result<()> {
    hooks_p2::add_to_linker(linker)?;
    if concurrent {
        hooks_p3::add_to_linker(linker)?;
    }
    Ok(())
}

/// The limits of a replica's directories, in their order.
#[derive(Clone, Default)]
pub(crate) struct Volumes(Arc<[Option<Arc<Quota>>]>);

impl Volumes {
    /// Opens the directories, and what counts those with a limit.
    pub(crate) fn open(preopens: &[Preopen]) -> Result<Self, PrepareError> {
        let mut quotas = Vec::with_capacity(preopens.len());
        for preopen in preopens {
            let open = || -> std::io::Result<_> {
                std::fs::read_dir(&preopen.host)?;
                let limit = preopen.limit_bytes.filter(|_| !preopen.read_only);
                limit
                    .map(|limit| {
                        let count = preopen.host.with_added_extension(SUFFIX);
                        Quota::open(&preopen.host, &count, limit)
                    })
                    .transpose()
            };
            quotas.push(open().map_err(|source| PrepareError::Preopen {
                path: preopen.host.display().to_string(),
                source,
            })?);
        }
        Ok(Self(quotas.into()))
    }

    fn get(&self, at: usize) -> Option<Arc<Quota>> {
        self.0.get(at).cloned().flatten()
    }
}

/// Whether any of these directories has a limit that has to be watched.
pub(crate) fn is_limited(preopens: &[Preopen]) -> bool {
    let mut preopens = preopens.iter();
    preopens.any(|preopen| preopen.limit_bytes.is_some() && !preopen.read_only)
}

/// Refuses a limit where nothing would hold it: better no start than a limit that is none.
pub(crate) fn check(
    component: Option<&Component>,
    preopens: &[Preopen],
) -> Result<(), PrepareError> {
    if is_limited(preopens) && component.is_none() {
        return Err(PrepareError::UncountedVolume { by: "core modules" });
    }
    Ok(())
}

/// Which directory each open descriptor of a guest is in. Every descriptor that a guest gets comes
/// from a function that notes it here, so an entry of one that was closed is overwritten before its
/// number is used again.
#[derive(Debug, Default)]
pub(crate) struct Places(HashMap<u32, usize>);

impl Places {
    pub(crate) fn note(&mut self, descriptor: u32, place: Option<usize>) {
        match place {
            Some(place) => self.0.insert(descriptor, place),
            None => self.0.remove(&descriptor),
        };
    }

    fn of(&self, descriptor: u32) -> Option<usize> {
        self.0.get(&descriptor).copied()
    }
}
