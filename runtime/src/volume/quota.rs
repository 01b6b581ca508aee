//! The count of what a directory holds, kept beside it.
//!
//! ```text
//!   take(bytes) ── count + bytes <= limit ──> taken
//!        |  no
//!        `── measure again (what was deleted is noticed only here) ── try once more ──> full
//! ```
//!
//! The count is a small file, changed under a lock: all processes that serve the replica share it.
//! Invariant: it is never less than what is there, as far as guests write it; what they delete is
//! noticed when the limit is reached. A file that was deleted while this process has it open counts
//! until it is closed.
//!
//! What was taken is *in hand* until it is written ([`Taken`]). A measurement does not find it, so it
//! is added to what was found; once too often where it was written meanwhile, which the next one mends.
//! A process that dies leaves what it had in hand: whoever opens the count begins that sum again, under
//! a number by which those know who had a part of the old one.

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
/// The limit of one directory.
#[derive(Debug)]
pub(crate) struct Quota {
    root: PathBuf,
    limit: u64,
    /// The lock of the file is between processes, this one between threads: they share the open file,
    /// and with it that lock.
    count: std::sync::Mutex<File>,
    /// When it was measured last; held until the measuring itself is over, whoever still waits for it.
    measured: Arc<Mutex<Option<Instant>>>,
    /// Files that guests here have opened: one that is deleted takes its room until it is closed.
    opened: std::sync::Mutex<Vec<Weak<File>>>,
}

/// What the file has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Count {
    /// Bytes that are there or are taken.
    used: u64,
    /// Those of them that may not be written yet.
    in_hand: u64,
    /// How often that sum was begun.
    begun: u64,
    /// All bytes that were ever taken: it only grows, whatever measurements find.
    total: u64,
}

impl Count {
    const BYTES: usize = 40;
    /// Stands first: a file that a power cut has left empty or full of zeros is none.
    const MARK: u64 = u64::from_le_bytes(*b"wm-count");

    fn read(file: &File) -> io::Result<Self> {
        let mut bytes = [0; Self::BYTES];
        file.read_exact_at(&mut bytes, 0)?;
        let mut numbers = bytes.chunks_exact(8).map(|bytes| {
            let mut number = [0; 8];
            number.copy_from_slice(bytes);
            u64::from_le_bytes(number)
        });
        let mut next = || numbers.next().unwrap_or_default();
        if next() != Self::MARK {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(Self {
            used: next(),
            in_hand: next(),
            begun: next(),
            total: next(),
        })
    }

    /// So much was found by a measurement that began when the count was `before`. What was in hand then and
    /// what was taken since may be in what was found, and may not; others may have measured meanwhile.
    fn measured(self, before: Self, found: u64) -> Self {
        let since = self.total.wrapping_sub(before.total);
        let used = found.saturating_add(before.in_hand).saturating_add(since);
        Self { used, ..self }
    }

    fn write(self, file: &File) -> io::Result<()> {
        let mut bytes = [0; Self::BYTES];
        let numbers = [Self::MARK, self.used, self.in_hand, self.begun, self.total];
        for (at, number) in bytes.chunks_exact_mut(8).zip(numbers) {
            at.copy_from_slice(&number.to_le_bytes());
        }
        file.write_all_at(&bytes, 0)
    }
}

/// Bytes that were taken, and are in hand until this is dropped. They stay taken: who did not write them
/// after all is found out by measuring.
#[derive(Debug)]
#[must_use = "what is dropped at once was not in hand while it was written"]
pub(crate) struct Taken {
    quota: Arc<Quota>,
    bytes: u64,
    begun: u64,
}

impl Drop for Taken {
    fn drop(&mut self) {
        if self.bytes == 0 {
            return;
        }
        let done = || -> io::Result<()> {
            let locked = Locked::new(&self.quota.count)?;
            let mut count = locked.read()?;
            if count.begun == self.begun {
                count.in_hand = count.in_hand.saturating_sub(self.bytes);
                locked.write(count)?;
            }
            Ok(())
        };
        if let Err(error) = done() {
            // Too much is counted, until somebody opens it again.
            tracing::warn!(%error, "the count of a volume could not be written");
        }
    }
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

    fn read(&self) -> io::Result<Count> {
        Count::read(&self.0)
    }

    fn write(&self, count: Count) -> io::Result<()> {
        count.write(&self.0)
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
    /// Opens the count of a directory, and measures that when there is none yet. May block.
    pub(crate) fn open(root: &Path, count: &Path, limit: u64) -> io::Result<Arc<Self>> {
        let count = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(count)?;
        let quota = Self {
            root: root.to_owned(),
            limit,
            count: std::sync::Mutex::new(count),
            measured: Arc::default(),
            opened: std::sync::Mutex::default(),
        };
        let locked = Locked::new(&quota.count)?;
        let count = match locked.read() {
            Ok(count) => Count {
                in_hand: 0,
                begun: count.begun.wrapping_add(1),
                ..count
            },
            Err(_) => Count {
                used: measure(root, u64::MAX)?,
                ..Count::default()
            },
        };
        locked.write(count)?;
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
    pub(super) fn take(self: &Arc<Self>, bytes: u64) -> io::Result<Option<Taken>> {
        let taken = |begun| Taken {
            quota: self.clone(),
            bytes,
            begun,
        };
        if bytes == 0 {
            return Ok(Some(taken(0)));
        }
        let locked = Locked::new(&self.count)?;
        let mut count = locked.read()?;
        count.used = count.used.saturating_add(bytes);
        if count.used > self.limit {
            return Ok(None);
        }
        count.in_hand = count.in_hand.saturating_add(bytes);
        count.total = count.total.wrapping_add(bytes);
        locked.write(count)?;
        Ok(Some(taken(count.begun)))
    }

    /// Takes bytes; measures when they are too many.
    pub(crate) async fn take_measured(self: &Arc<Self>, bytes: u64) -> io::Result<Option<Taken>> {
        if let Some(taken) = self.take(bytes)? {
            return Ok(Some(taken));
        }
        self.measure().await?;
        self.take(bytes)
    }

    /// What is left.
    pub(super) fn left(&self) -> io::Result<u64> {
        let count = Locked::new(&self.count)?.read()?;
        Ok(self.limit.saturating_sub(count.used))
    }

    /// Measures, unless another has begun to since this was asked for. Not more often than the
    /// pause allows: who is too early waits.
    pub(super) async fn measure(self: &Arc<Self>) -> io::Result<()> {
        let asked = Instant::now();
        let mut measured = self.measured.clone().lock_owned().await;
        if let Some(last) = *measured {
            if last > asked {
                return Ok(());
            }
            tokio::time::sleep_until(last + MEASURE_PAUSE).await;
        }
        *measured = Some(Instant::now());
        let quota = self.clone();
        let measuring = tokio::task::spawn_blocking(move || {
            // A guest that stops waiting begins no other beside it.
            let _measuring = measured;
            let before = Locked::new(&quota.count)?.read()?;
            let found = measure(&quota.root, quota.limit)?.saturating_add(quota.nameless());
            let locked = Locked::new(&quota.count)?;
            locked.write(locked.read()?.measured(before, found))
        });
        measuring.await.map_err(io::Error::other)?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened(root: &Path, limit: u64) -> io::Result<Arc<Quota>> {
        Quota::open(root, &root.with_added_extension("used"), limit)
    }

    #[tokio::test]
    async fn a_count_is_shared_survives_and_notices_deletions_at_the_limit() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("data");
        std::fs::create_dir(&root).unwrap();
        let one = opened(&root, 100_000).unwrap();
        let other = opened(&root, 100_000).unwrap();
        let taken = one.take(60_000).unwrap().unwrap();
        std::fs::write(root.join("file"), vec![0; 60_000]).unwrap();
        drop(taken);
        assert!(other.take(60_000).unwrap().is_none(), "they share it");
        assert!(other.take_measured(60_000).await.unwrap().is_none());
        drop((one, other));

        let again = opened(&root, 100_000).unwrap();
        assert_eq!(again.left().unwrap(), 40_000);
        std::fs::remove_file(root.join("file")).unwrap();
        assert!(again.take(60_000).unwrap().is_none(), "not measured yet");
        assert!(again.take_measured(60_000).await.unwrap().is_some());
        assert_eq!(again.left().unwrap(), 40_000);
    }

    #[tokio::test]
    async fn a_deleted_file_counts_until_it_is_closed() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("data");
        std::fs::create_dir(&root).unwrap();
        let quota = opened(&root, 100_000).unwrap();
        let path = root.join("file");
        let open = || Arc::new(File::options().read(true).open(&path).unwrap());
        let taken = quota.take(60_000).unwrap().unwrap();
        std::fs::write(&path, vec![0; 60_000]).unwrap();
        drop(taken);
        let (file, again) = (open(), open());
        quota.note(&file);
        quota.note(&again);
        std::fs::remove_file(&path).unwrap();
        let none = quota.take_measured(60_000).await.unwrap();
        assert!(none.is_none(), "it is held");
        assert_eq!(quota.left().unwrap(), 40_000, "and counts once");
        drop((file, again));
        assert!(quota.take_measured(60_000).await.unwrap().is_some());
        for _ in 0..1000 {
            quota.note(&Arc::new(File::open(&root).unwrap()));
        }
        assert!(
            quota.opened.lock().unwrap().len() < 100,
            "closed ones leave"
        );
    }

    /// A part that is written only after the measurement has passed its file.
    #[tokio::test]
    async fn what_is_in_hand_anywhere_counts_while_it_is_not_written() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("data");
        std::fs::create_dir(&root).unwrap();
        let one = opened(&root, 100_000).unwrap();
        let other = opened(&root, 100_000).unwrap();
        let taken = one.take(60_000).unwrap().unwrap();
        for quota in [&one, &other] {
            let more = quota.take_measured(60_000).await.unwrap();
            assert!(more.is_none(), "it would be 120,000 once that is written");
        }
        assert_eq!(other.left().unwrap(), 40_000);
        // Let go unwritten, or written and deleted: the room is there again.
        drop(taken);
        assert!(other.take_measured(60_000).await.unwrap().is_some());
        // It was let go too, so all is free.
        assert!(one.take_measured(100_000).await.unwrap().is_some());
    }

    #[test]
    fn what_was_taken_counts_although_another_measurement_ended_meanwhile() {
        let before = Count {
            used: 100,
            total: 100,
            ..Count::default()
        };
        // Another one found ten, and fifty were taken after it.
        let now = Count {
            used: 60,
            total: 150,
            ..before
        };
        assert_eq!(now.measured(before, 5).used, 55);
    }

    #[tokio::test]
    async fn one_is_measured_at_a_time_also_when_nobody_waits_for_it() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("data");
        std::fs::create_dir(&root).unwrap();
        let quota = opened(&root, 100_000).unwrap();
        // It cannot end while this is held.
        let held = Locked::new(&quota.count).unwrap();
        let mut measuring = Box::pin(quota.measure());
        std::future::poll_fn(|cx| {
            assert!(measuring.as_mut().poll(cx).is_pending());
            std::task::Poll::Ready(())
        })
        .await;
        drop(measuring);
        assert!(quota.measured.try_lock().is_err(), "it is still at it");
        drop(held);
        quota.measure().await.unwrap();
    }

    #[tokio::test]
    async fn a_count_that_is_no_count_is_measured_anew() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("data");
        std::fs::create_dir(&root).unwrap();
        std::fs::write(root.join("file"), vec![0; 60_000]).unwrap();
        for rubbish in [vec![0; Count::BYTES], vec![7; 100], Vec::new()] {
            std::fs::write(folder.path().join("data.used"), rubbish).unwrap();
            let quota = opened(&root, 100_000).unwrap();
            assert_eq!(quota.left().unwrap(), 40_000);
        }
    }

    #[tokio::test]
    async fn what_the_dead_had_in_hand_is_let_go_by_who_comes_after() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("data");
        std::fs::create_dir(&root).unwrap();
        let dead = opened(&root, 100_000).unwrap();
        // Nobody drops what a killed process had.
        let lost = dead.take(60_000).unwrap().unwrap();
        let next = opened(&root, 100_000).unwrap();
        let taken = next.take_measured(60_000).await.unwrap().unwrap();
        // One that was only slow takes nothing from what others have in hand.
        drop(lost);
        assert!(next.take_measured(60_000).await.unwrap().is_none());
        drop(taken);
        assert!(next.take_measured(100_000).await.unwrap().is_some());
    }

    #[test]
    fn threads_of_one_process_lose_no_count() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("data");
        std::fs::create_dir(&root).unwrap();
        let quota = opened(&root, u64::MAX).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..2000 {
                        assert!(quota.take(1).unwrap().is_some());
                    }
                });
            }
        });
        assert_eq!(quota.left().unwrap(), u64::MAX - 8000);
        let count = Count::read(&quota.count.lock().unwrap()).unwrap();
        assert_eq!(count.in_hand, 0, "all of it was let go");
    }
}
