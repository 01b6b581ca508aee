//! What a guest writes, in a file without a name, until it is complete.

use std::fs::File;
use std::io::{self, Seek as _, SeekFrom, Write as _};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamError, StreamResult};

/// The largest value: a disk that all workloads share is not one guest's to fill.
const VALUE_BYTES_MAX: u64 = 1 << 30;
/// Bytes of one write: it goes to the page cache at once.
const WRITE_BYTES: usize = 64 << 10;

/// A value that is being written. Its file is gone when nobody holds it any more.
#[derive(Debug, Clone)]
pub(super) struct Spool(Arc<Mutex<Spooled>>);

#[derive(Debug)]
struct Spooled {
    file: File,
    bytes: u64,
    failed: bool,
}

impl Spool {
    pub(super) fn new(folder: &Path) -> io::Result<Self> {
        let file = tempfile::tempfile_in(folder)?;
        Ok(Self(Arc::new(Mutex::new(Spooled {
            file,
            bytes: 0,
            failed: false,
        }))))
    }

    /// What was written, from its start.
    pub(super) fn read(&self) -> io::Result<File> {
        let mut spooled = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if spooled.failed {
            return Err(io::Error::other("not all of the value could be written"));
        }
        spooled.file.seek(SeekFrom::Start(0))?;
        spooled.file.try_clone()
    }

    fn write(&self, bytes: &[u8]) -> io::Result<()> {
        let mut spooled = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let total = spooled.bytes.saturating_add(bytes.len() as u64);
        let written = if total > VALUE_BYTES_MAX {
            let limit = VALUE_BYTES_MAX >> 20;
            Err(io::Error::other(format!("a value has at most {limit} MiB")))
        } else {
            spooled.file.write_all(bytes)
        };
        spooled.bytes = total;
        spooled.failed |= written.is_err();
        written
    }
}

/// The guest's end of it. Writes are done when they return, so there is nothing to wait for.
pub(super) struct SpoolStream(pub(super) Spool);

#[async_trait::async_trait]
impl OutputStream for SpoolStream {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        let written = self.0.write(&bytes);
        written.map_err(|error| StreamError::LastOperationFailed(error.into()))
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(WRITE_BYTES)
    }
}

#[async_trait::async_trait]
impl Pollable for SpoolStream {
    async fn ready(&mut self) {}
}
