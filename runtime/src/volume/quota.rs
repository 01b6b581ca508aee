//! The count of what a directory holds, kept beside it.
//!
//! ```text
//!   take(bytes) ── count + bytes <= limit ──> taken
//!        |  no
//!        `── measure again (what was deleted is noticed only here) ── try once more ──> full
//! ```
//!
//! The count is a file of eight bytes, changed under a lock: all processes that serve the replica
//! share it. Invariant: it is never less than what is there, as far as guests write it; what they
//! delete is noticed when the limit is reached. A file that was deleted while this process has it open
//! counts until it is closed.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::measure::{ENTRY_BYTES, measure};

/// A directory is not measured again before: a guest that writes on at the limit shall not keep a
/// disk busy with it.
const MEASURE_PAUSE: Duration = Duration::from_millis(100);
/// What the name of a count has after its directory's. No directory of a binding has a dot.
const SUFFIX: &str = "used";

/// The limit of one directory.
#[derive(Debug)]
pub(crate) struct Quota {
    root: PathBuf,
    limit: u64,
    /// The lock of the file is between processes, this one between threads: they share the open file,
    /// and with it that lock.
    count: std::sync::Mutex<File>,
    measured: Mutex<Option<Instant>>,
    /// Files that guests here have opened: one that is deleted takes its room until it is closed.
    opened: std::sync::Mutex<Vec<Weak<File>>>,
}

/// Holds both locks of a count.
struct Locked<'a>(MutexGuard<'a, File>);

impl<'a> Locked<'a> {
    fn new(count: &'a std::sync::Mutex<File>) -> io::Result<Self> {
        // A panic while it was held leaves a file, which is usable.
        let count = count.lock().unwrap_or_else(PoisonError::into_inner);
        flock(&*count, FlockOperation::LockExclusive)?;
        Ok(Self(count))
    }

    fn read(&self) -> io::Result<u64> {
        let mut bytes = [0; 8];
        self.0.read_exact_at(&mut bytes, 0)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn write(&self, used: u64) -> io::Result<()> {
        self.0.write_all_at(&used.to_le_bytes(), 0)
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        if let Err(error) = flock(&*self.0, FlockOperation::Unlock) {
            tracing::warn!(%error, "the count of a volume could not be unlocked");
        }
    }
}

impl Quota {
    /// Opens the count, and measures when there is none yet.
    pub(super) fn open(root: &Path, limit: u64) -> io::Result<Arc<Self>> {
        let count = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(root.with_added_extension(SUFFIX))?;
        let quota = Self {
            root: root.to_owned(),
            limit,
            count: std::sync::Mutex::new(count),
            measured: Mutex::new(None),
            opened: std::sync::Mutex::default(),
        };
        let locked = Locked::new(&quota.count)?;
        if locked.read().is_err() {
            locked.write(measure(root, u64::MAX)?)?;
        }
        drop(locked);
        Ok(Arc::new(quota))
    }

    /// A guest here has opened this file.
    pub(super) fn note(&self, file: &Arc<File>) {
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        // Before the list grows, those that were closed leave it.
        if opened.len() == opened.capacity() {
            opened.retain(|file| file.strong_count() > 0);
        }
        opened.push(Arc::downgrade(file));
    }

    /// Bytes of files without a name that guests here have open.
    fn nameless(&self) -> u64 {
        let opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        let open = opened.iter().filter_map(Weak::upgrade);
        let sizes: BTreeMap<_, _> = open
            .filter_map(|file| file.metadata().ok())
            .filter(|about| about.nlink() == 0)
            .map(|about| ((about.dev(), about.ino()), about.len().max(ENTRY_BYTES)))
            .collect();
        sizes
            .values()
            .fold(0, |sum, size| sum.saturating_add(*size))
    }

    /// Takes bytes, unless that would be more than the limit. Does not measure.
    pub(super) fn take(&self, bytes: u64) -> io::Result<bool> {
        if bytes == 0 {
            return Ok(true);
        }
        let locked = Locked::new(&self.count)?;
        let wanted = locked.read()?.saturating_add(bytes);
        if wanted > self.limit {
            return Ok(false);
        }
        locked.write(wanted)?;
        Ok(true)
    }

    /// Takes bytes; measures when they are too many.
    pub(super) async fn take_measured(self: &Arc<Self>, bytes: u64) -> io::Result<bool> {
        if self.take(bytes)? {
            return Ok(true);
        }
        self.measure().await?;
        self.take(bytes)
    }

    /// What is left.
    pub(super) fn left(&self) -> io::Result<u64> {
        let used = Locked::new(&self.count)?.read()?;
        Ok(self.limit.saturating_sub(used))
    }

    /// Measures, unless another has begun to since this was asked for. Not more often than the
    /// pause allows: who is too early waits.
    pub(super) async fn measure(self: &Arc<Self>) -> io::Result<()> {
        let asked = Instant::now();
        let mut measured = self.measured.lock().await;
        if let Some(last) = *measured {
            if last > asked {
                return Ok(());
            }
            tokio::time::sleep_until(last + MEASURE_PAUSE).await;
        }
        *measured = Some(Instant::now());
        let quota = self.clone();
        let measuring = tokio::task::spawn_blocking(move || {
            let before = Locked::new(&quota.count)?.read()?;
            let found = measure(&quota.root, quota.limit)?.saturating_add(quota.nameless());
            let locked = Locked::new(&quota.count)?;
            // What was taken meanwhile may be in what was found, and may not.
            let since = locked.read()?.saturating_sub(before);
            locked.write(found.saturating_add(since))
        });
        measuring.await.map_err(io::Error::other)?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_count_is_shared_survives_and_notices_deletions_at_the_limit() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("data");
        std::fs::create_dir(&root).unwrap();
        let one = Quota::open(&root, 100_000).unwrap();
        let other = Quota::open(&root, 100_000).unwrap();
        assert!(one.take(60_000).unwrap());
        std::fs::write(root.join("file"), vec![0; 60_000]).unwrap();
        assert!(!other.take(60_000).unwrap(), "they share it");
        assert!(!other.take_measured(60_000).await.unwrap());
        drop((one, other));

        let again = Quota::open(&root, 100_000).unwrap();
        assert_eq!(again.left().unwrap(), 40_000);
        std::fs::remove_file(root.join("file")).unwrap();
        assert!(!again.take(60_000).unwrap(), "not measured yet");
        assert!(again.take_measured(60_000).await.unwrap());
        assert_eq!(again.left().unwrap(), 40_000);
    }

    #[tokio::test]
    async fn a_deleted_file_counts_until_it_is_closed() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("data");
        std::fs::create_dir(&root).unwrap();
        let quota = Quota::open(&root, 100_000).unwrap();
        let path = root.join("file");
        let open = || Arc::new(File::options().read(true).open(&path).unwrap());
        assert!(quota.take(60_000).unwrap());
        std::fs::write(&path, vec![0; 60_000]).unwrap();
        let (file, again) = (open(), open());
        quota.note(&file);
        quota.note(&again);
        std::fs::remove_file(&path).unwrap();
        assert!(!quota.take_measured(60_000).await.unwrap(), "it is held");
        assert_eq!(quota.left().unwrap(), 40_000, "and counts once");
        drop((file, again));
        assert!(quota.take_measured(60_000).await.unwrap());
        for _ in 0..1000 {
            quota.note(&Arc::new(File::open(&root).unwrap()));
        }
        assert!(
            quota.opened.lock().unwrap().len() < 100,
            "closed ones leave"
        );
    }

    #[test]
    fn threads_of_one_process_lose_no_count() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("data");
        std::fs::create_dir(&root).unwrap();
        let quota = Quota::open(&root, u64::MAX).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..2000 {
                        assert!(quota.take(1).unwrap());
                    }
                });
            }
        });
        assert_eq!(quota.left().unwrap(), u64::MAX - 8000);
    }
}
