//! `wasi:blobstore`: containers by the name of their binding, and the backends that need no cluster.
//!
//! ```text
//!   guest ── write ──> spool (a file without a name) ── finish ──> dyn BlobContainer
//!         <── read ── a stream ───────────────────────────────────     "
//! ```
//!
//! What a guest writes is spooled to a file and stored when it says that it is complete: a value
//! that is never finished leaves nothing, and no object is held in memory. Reads are streams.
//!
//! Invariant: an object is replaced whole or not at all, as far as the backend can.

#[expect(
    unreachable_pub,
    reason = "the generated bindings re-export what guests hold"
)]
pub(crate) mod guest;
mod memory;
mod objects;
mod room;
mod spool;

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;

use async_trait::async_trait;
use futures::stream::BoxStream;
use tokio::io::AsyncRead;

pub(crate) use guest::add_to_linker;
pub use memory::MemoryContainer;
pub use objects::{ObjectsContainer, ObjectsError, S3Settings};

use crate::budget::MemoryShare;

/// The longest name of an object.
const NAME_BYTES_MAX: usize = 1024;
/// The binding that serves any name that has none of its own.
const DEFAULT: &str = "default";

/// An object's bytes, as they come.
pub type BlobRead = Pin<Box<dyn AsyncRead + Send>>;

/// What is known of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ObjectInfo {
    /// In bytes.
    pub size: u64,
    /// When it was written, in seconds since 1970.
    pub written: u64,
}

/// A container. Opened once per replica; connecting is the backend's business, when it is first
/// used. Errors are for guests, in words. No call waits for ever.
#[async_trait]
pub trait BlobContainer: Send + Sync {
    /// When the container was made, in seconds since 1970; 0 where nobody knows.
    async fn created(&self) -> Result<u64, String>;

    /// What is known of an object; `None`: there is none.
    async fn object(&self, name: &str) -> Result<Option<ObjectInfo>, String>;

    /// An object's bytes from `start` on, so many of them at most.
    async fn read(&self, name: &str, start: u64, length: u64) -> Result<BlobRead, String>;

    /// Makes or replaces an object.
    async fn write(&self, name: &str, body: BlobRead) -> Result<(), String>;

    /// Deletes an object that may be there.
    async fn delete(&self, name: &str) -> Result<(), String>;

    /// Every name, in no order.
    async fn names(&self) -> Result<BoxStream<'static, Result<String, String>>, String>;
}

/// The containers that a replica was granted, by the names of their bindings.
#[derive(Clone)]
pub struct BlobContainers {
    granted: BTreeMap<String, Arc<dyn BlobContainer>>,
    spool: PathBuf,
    spooling: Arc<spool::Spooling>,
}

impl Default for BlobContainers {
    fn default() -> Self {
        Self::new(std::env::temp_dir())
    }
}

impl BlobContainers {
    /// No container yet; what guests write is kept in this folder until it is complete.
    pub fn new(spool: PathBuf) -> Self {
        Self {
            granted: BTreeMap::new(),
            spool,
            spooling: Arc::default(),
        }
    }

    /// Grants a container under a name. `default` serves any name that has none of its own.
    pub fn grant(&mut self, name: impl Into<String>, container: Arc<dyn BlobContainer>) {
        self.granted.insert(name.into(), container);
    }

    /// One container in memory, under every name: for `run`, where nothing outlives the program.
    pub fn in_memory(share: &MemoryShare) -> Self {
        let mut containers = Self::default();
        containers.grant(DEFAULT, Arc::new(MemoryContainer::new(share.clone())));
        containers
    }

    fn open(&self, name: &str) -> Result<Arc<dyn BlobContainer>, String> {
        let found = self.granted.get(name).or_else(|| self.granted.get(DEFAULT));
        found.cloned().ok_or_else(|| {
            format!("not granted: container `{name}`; grant it with `--grant blobstore={name}`")
        })
    }

    async fn spool(&self) -> io::Result<spool::Spool> {
        spool::Spool::new(&self.spool, &self.spooling).await
    }
}

fn check_name(name: &str) -> Result<(), String> {
    if (1..=NAME_BYTES_MAX).contains(&name.len()) {
        Ok(())
    } else {
        Err(format!(
            "an object's name has 1 to {NAME_BYTES_MAX} bytes, this one {}",
            name.len()
        ))
    }
}
