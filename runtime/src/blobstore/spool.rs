//! What a guest writes, in a file without a name, until it is complete.
//!
//! Files are made and written on threads that may block: the one that runs guests does not wait for a
//! disk.
//! A guest writes on when the last write is done.

use std::fs::File;
use std::io::{self, Seek as _, SeekFrom, Write as _};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};

use bytes::Bytes;
use futures::FutureExt as _;
use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamError, StreamResult};

use crate::files::DISK_SPARE_BYTES;

/// The largest value: a disk that all workloads share is not one guest's to fill.
const VALUE_BYTES_MAX: u64 = 1 << 30;
/// What all unfinished values of a replica hold in one runner, for the same reason.
const ALL_BYTES_MAX: u64 = 2 << 30;
/// Unfinished values of a replica in one runner: each is an open file.
const VALUES_MAX: usize = 256;
/// Bytes of one write.
const WRITE_BYTES: usize = 64 << 10;

/// What the unfinished values of a replica take.
#[derive(Debug, Default)]
pub(super) struct Spooling {
    values: AtomicUsize,
    bytes: AtomicU64,
}

impl Spooling {
    fn take_bytes(&self, bytes: u64, limit: u64) -> bool {
        let taken = self.bytes.fetch_add(bytes, SeqCst).saturating_add(bytes);
        if taken > limit {
            self.bytes.fetch_sub(bytes, SeqCst);
        }
        taken <= limit
    }
}

/// What one of them takes, given back when dropped.
#[derive(Debug)]
struct Taken {
    all: Arc<Spooling>,
    bytes: AtomicU64,
}

impl Taken {
    /// `None`: there are too many values.
    fn new(all: &Arc<Spooling>) -> Option<Self> {
        let before = all.values.fetch_add(1, SeqCst);
        let taken = Self {
            all: all.clone(),
            bytes: AtomicU64::new(0),
        };
        (before < VALUES_MAX).then_some(taken)
    }

    /// Takes room for the bytes, where each bound has some.
    fn take(&self, bytes: u64) -> Result<(), String> {
        let total = self.bytes.load(SeqCst).saturating_add(bytes);
        if total > VALUE_BYTES_MAX {
            return Err(format!("a value has at most {} MiB", VALUE_BYTES_MAX >> 20));
        }
        if !self.all.take_bytes(bytes, ALL_BYTES_MAX) {
            return Err(format!(
                "all unfinished values together have at most {} MiB: finish or drop some",
                ALL_BYTES_MAX >> 20
            ));
        }
        self.bytes.store(total, SeqCst);
        Ok(())
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.all.bytes.fetch_sub(*self.bytes.get_mut(), SeqCst);
        self.all.values.fetch_sub(1, SeqCst);
    }
}

/// A value that is being written. Its file is gone when nobody holds it any more.
#[derive(Debug, Clone)]
pub(super) struct Spool(Arc<Spooled>);

#[derive(Debug)]
struct Spooled {
    file: File,
    taken: Taken,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    writing: Option<JoinHandle<io::Result<()>>>,
    failed: Option<String>,
}

impl State {
    fn note(&mut self, done: Result<io::Result<()>, tokio::task::JoinError>) {
        self.writing = None;
        let failure = match done {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        self.failed.get_or_insert(failure);
    }

    /// Waits for the write under way. Safe to cancel.
    async fn written(&mut self) {
        if let Some(writing) = &mut self.writing {
            let done = writing.await;
            self.note(done);
        }
    }

    /// Whether a write is still under way.
    fn is_writing(&mut self) -> bool {
        let done = self.writing.as_mut().map(|writing| writing.now_or_never());
        if let Some(Some(done)) = done {
            self.note(done);
        }
        self.writing.is_some()
    }
}

impl Spool {
    pub(super) async fn new(folder: &Path, all: &Arc<Spooling>) -> io::Result<Self> {
        let taken = Taken::new(all).ok_or_else(|| {
            io::Error::other(format!(
                "at most {VALUES_MAX} values are written at once: finish or drop some"
            ))
        })?;
        let folder = folder.to_owned();
        // The thread goes on when nobody waits any more, and what was taken is given back then.
        let making = tokio::task::spawn_blocking(move || {
            let file = tempfile::tempfile_in(folder)?;
            Ok(Self(Arc::new(Spooled {
                file,
                taken,
                state: Mutex::default(),
            })))
        });
        making.await.map_err(io::Error::other)?
    }

    /// What was written, from its start.
    pub(super) async fn read(&self) -> io::Result<File> {
        let mut state = self.0.state.lock().await;
        state.written().await;
        if let Some(why) = &state.failed {
            return Err(io::Error::other(format!(
                "not all of the value could be written: {why}"
            )));
        }
        (&self.0.file).seek(SeekFrom::Start(0))?;
        self.0.file.try_clone()
    }

    fn write(&self, bytes: Bytes) -> StreamResult<()> {
        let failed = |why: String| {
            let error = io::Error::other(why);
            Err(StreamError::LastOperationFailed(error.into()))
        };
        let busy = || StreamError::trap("written without a permit");
        let mut state = self.0.state.try_lock().map_err(|_| busy())?;
        if state.is_writing() {
            return Err(busy());
        }
        if let Some(why) = &state.failed {
            return failed(why.clone());
        }
        if let Err(why) = self.0.taken.take(bytes.len() as u64) {
            state.failed = Some(why.clone());
            return failed(why);
        }
        let spooled = self.0.clone();
        let writing = tokio::task::spawn_blocking(move || {
            check_space(&spooled.file, bytes.len() as u64)?;
            (&spooled.file).write_all(&bytes)
        });
        state.writing = Some(writing);
        Ok(())
    }
}

/// A disk that is full is full for everybody: for what hosts keep, too.
fn check_space(file: &File, bytes: u64) -> io::Result<()> {
    let Ok(disk) = rustix::fs::fstatvfs(file) else {
        return Ok(());
    };
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    if free >= bytes.saturating_add(DISK_SPARE_BYTES) {
        return Ok(());
    }
    Err(io::ErrorKind::StorageFull.into())
}

/// The guest's end of it.
pub(super) struct SpoolStream(pub(super) Spool);

#[async_trait::async_trait]
impl OutputStream for SpoolStream {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        let Ok(mut state) = self.0.0.state.try_lock() else {
            return Ok(0);
        };
        if state.is_writing() {
            return Ok(0);
        }
        match &state.failed {
            None => Ok(WRITE_BYTES),
            Some(why) => {
                let error = io::Error::other(why.clone());
                Err(StreamError::LastOperationFailed(error.into()))
            }
        }
    }
}

#[async_trait::async_trait]
impl Pollable for SpoolStream {
    async fn ready(&mut self) {
        self.0.0.state.lock().await.written().await;
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[tokio::test]
    async fn writes_are_in_order_and_complete_when_read() {
        let (folder, all) = (tempfile::tempdir().unwrap(), Arc::default());
        let spool = Spool::new(folder.path(), &all).await.unwrap();
        let mut stream = SpoolStream(spool.clone());
        for part in ["one ", "two ", "three"] {
            stream.ready().await;
            assert_eq!(stream.check_write().unwrap(), WRITE_BYTES);
            stream.write(Bytes::from(part)).unwrap();
        }
        let mut text = String::new();
        let mut file = spool.read().await.unwrap();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "one two three");
    }

    #[tokio::test]
    async fn unfinished_values_are_bounded_together() {
        let (folder, all) = (tempfile::tempdir().unwrap(), Arc::<Spooling>::default());
        let new = async || Spool::new(folder.path(), &all).await;
        let mut spools = Vec::new();
        for _ in 0..VALUES_MAX {
            spools.push(new().await.unwrap());
        }
        assert!(new().await.is_err(), "too many");
        spools.truncate(1);
        spools.extend([new().await.unwrap(), new().await.unwrap()]);
        let gib = 1 << 30;
        let take = |spool: &Spool, bytes| spool.0.taken.take(bytes);
        assert!(take(&spools[0], gib).is_ok());
        assert!(take(&spools[0], 1).is_err(), "the largest value");
        assert!(take(&spools[1], gib).is_ok());
        assert!(take(&spools[2], 1).is_err(), "all together");
        spools.remove(0);
        assert!(take(&spools[1], gib).is_ok(), "room again");
        let mut stream = SpoolStream(spools[1].clone());
        assert!(stream.write(Bytes::from("x")).is_err());
        assert!(spools[1].read().await.is_err(), "it is not whole");
        drop((stream, spools));
        assert_eq!(all.bytes.load(SeqCst), 0);
        assert_eq!(all.values.load(SeqCst), 0);
    }
}
