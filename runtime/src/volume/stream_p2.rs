//! An output stream into a file, that asks the quota before it writes.

use std::fs::File;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use wasmtime_wasi::p2::{DynOutputStream, OutputStream, Pollable, StreamError, StreamResult};

use super::quota::{Quota, Taken};

/// Passes on what fits.
pub(super) struct Counted {
    inner: DynOutputStream,
    file: Arc<File>,
    quota: Arc<Quota>,
    /// Where the next byte goes; `None`: at the end.
    position: Option<u64>,
    /// There was no room; measuring may find some.
    short: Short,
    /// For what was passed on and may not be written yet.
    taken: Option<Taken>,
}

/// How far a stream without room has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Short {
    /// There is room, as far as is known.
    No,
    /// There is none: it is to be measured.
    Asked,
    /// It was measured.
    Measured,
}

fn failed(error: io::Error) -> StreamError {
    StreamError::LastOperationFailed(error.into())
}

fn full() -> StreamError {
    failed(io::Error::from_raw_os_error(
        rustix::io::Errno::NOSPC.raw_os_error(),
    ))
}

impl Counted {
    pub(super) fn new(
        inner: DynOutputStream,
        file: Arc<File>,
        quota: Arc<Quota>,
        position: Option<u64>,
    ) -> Self {
        Self {
            inner,
            file,
            quota,
            position,
            short: Short::No,
            taken: None,
        }
    }

    /// Bytes of the file that lie after the position: writing them takes nothing.
    fn overwritable(&self) -> io::Result<u64> {
        let Some(position) = self.position else {
            return Ok(0);
        };
        Ok(self.file.metadata()?.len().saturating_sub(position))
    }

    /// What writing so many bytes adds to the file.
    fn growth(&self, bytes: u64) -> io::Result<u64> {
        match self.position {
            None => Ok(bytes),
            Some(position) => {
                let end = position.saturating_add(bytes);
                Ok(end.saturating_sub(self.file.metadata()?.len()))
            }
        }
    }
}

#[async_trait::async_trait]
impl OutputStream for Counted {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        let length = bytes.len() as u64;
        let growth = self.growth(length).map_err(failed)?;
        // Others may have taken what was left when this was permitted.
        let Some(taken) = self.quota.take(growth).map_err(failed)? else {
            return Err(full());
        };
        self.inner.write(bytes)?;
        self.taken = Some(taken);
        if let Some(position) = &mut self.position {
            *position = position.saturating_add(length);
        }
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        self.inner.flush()
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        let permit = self.inner.check_write()?;
        if permit == 0 {
            return Ok(0);
        }
        // It takes the next part only when it has written the one before.
        self.taken = None;
        let left = self.quota.left().map_err(failed)?;
        let room = left.saturating_add(self.overwritable().map_err(failed)?);
        if room == 0 {
            return match self.short {
                Short::No | Short::Asked => {
                    self.short = Short::Asked;
                    Ok(0)
                }
                Short::Measured => {
                    self.short = Short::No;
                    Err(full())
                }
            };
        }
        self.short = Short::No;
        Ok(permit.min(usize::try_from(room).unwrap_or(usize::MAX)))
    }

    async fn cancel(&mut self) {
        self.inner.cancel().await;
    }
}

#[async_trait::async_trait]
impl Pollable for Counted {
    async fn ready(&mut self) {
        self.inner.ready().await;
        // What was passed on is written.
        self.taken = None;
        if self.short == Short::Asked {
            if let Err(error) = self.quota.measure().await {
                tracing::warn!(%error, "a volume could not be measured");
            }
            self.short = Short::Measured;
        }
    }
}
