//! The artifact cache: components on disk under their digest, hashed before every use.
//!
//! Owns `artifacts/`. Invariants: a file under its final name has had the right digest and was
//! synced before it got that name; a file that no longer hashes to its name is deleted, never
//! used; what is being fetched lies under a temporary name that goes away with the fetch. That a
//! digest is fetched once at a time is the agent's doing.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::sync::Semaphore;
use wasmorch_api::{ARTIFACT_BYTES_MAX, ByteSize, Digest};
use wasmorch_runtime::{DISK_SPARE_BYTES, sync_folder};

use crate::error::is_disk_full;

/// Fetches at once: enough to fill a link, few enough to bound memory and disk.
const FETCHES_MAX: usize = 4;
/// A fetch without a byte for so long has stalled.
const STALLED: Duration = Duration::from_secs(20);
/// What no held placement uses is kept up to this, newest first, for a rollback.
const UNUSED_BYTES_MAX: u64 = 1024 * 1024 * 1024;
const CHUNK_BYTES: usize = 256 * 1024;
const TEMPORARY: &str = ".new-";

/// Why an artifact could not be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub(crate) struct FetchError {
    /// For people.
    pub reason: String,
    /// Only a matter of time.
    pub retryable: bool,
}

impl FetchError {
    /// Trying again may help without anybody doing anything.
    pub(crate) fn retryable(reason: impl Into<String>) -> Self {
        Self {
            reason: reason.into(),
            retryable: true,
        }
    }

    /// Somebody has to do something first.
    pub(crate) fn lasting(reason: impl Into<String>) -> Self {
        Self {
            reason: reason.into(),
            retryable: false,
        }
    }
}

/// Bytes from the store, not yet trusted.
pub(crate) struct Source {
    /// How many the store says there are.
    pub bytes: u64,
    /// The bytes.
    pub reader: Box<dyn AsyncRead + Send + Unpin>,
}

/// The cache. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Artifacts {
    folder: PathBuf,
    fetches: Arc<Semaphore>,
}

impl Artifacts {
    /// The cache in this folder; leftovers of fetches that were cut off are removed.
    pub(crate) fn new(folder: PathBuf) -> Self {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(TEMPORARY) {
                // A leftover costs space only; the next start tries again.
                let _ = fs::remove_file(entry.path());
            }
        }
        Self {
            folder,
            fetches: Arc::new(Semaphore::new(FETCHES_MAX)),
        }
    }

    /// Where an artifact lies whose bytes have just been hashed; `open` reaches for the store when
    /// the cache has none, or damaged ones.
    ///
    /// # Errors
    ///
    /// See [`FetchError`]; nothing half written stays.
    pub(crate) async fn have<Open, Opened>(
        &self,
        digest: &Digest,
        open: Open,
    ) -> Result<PathBuf, FetchError>
    where
        Open: FnOnce() -> Opened,
        Opened: Future<Output = Result<Source, FetchError>>,
    {
        let path = self.folder.join(digest.hex());
        if self.cached(digest, &path).await? {
            return Ok(path);
        }
        let _permit = self
            .fetches
            .acquire()
            .await
            .map_err(|_| FetchError::retryable("the host is shutting down"))?;
        let source = open().await?;
        self.fetch(digest, &path, source).await?;
        Ok(path)
    }

    /// Where an artifact lies whose bytes have just been hashed; `None`: the cache has none.
    ///
    /// # Errors
    ///
    /// See [`FetchError`].
    pub(crate) async fn own(&self, digest: &Digest) -> Result<Option<PathBuf>, FetchError> {
        let path = self.folder.join(digest.hex());
        Ok(self.cached(digest, &path).await?.then_some(path))
    }

    async fn cached(&self, digest: &Digest, path: &Path) -> Result<bool, FetchError> {
        let (wanted, file) = (digest.clone(), path.to_owned());
        let hashed = tokio::task::spawn_blocking(move || hash_file(&file)).await;
        let hashed = hashed.map_err(|_| FetchError::retryable("hashing was cut off"))?;
        match hashed {
            Ok(found) if found == wanted => return Ok(true),
            Ok(found) => {
                tracing::warn!(artifact = %digest, %found, "damaged in the cache: fetched again");
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => {
                tracing::warn!(artifact = %digest, %error, "unreadable in the cache: fetched again");
            }
        }
        fs::remove_file(path).map_err(|error| {
            FetchError::lasting(format!(
                "damaged {} cannot be deleted: {error}",
                path.display()
            ))
        })?;
        Ok(false)
    }

    async fn fetch(&self, digest: &Digest, path: &Path, source: Source) -> Result<(), FetchError> {
        if source.bytes > ARTIFACT_BYTES_MAX {
            return Err(FetchError::lasting(format!(
                "artifact {} is {}; the limit is {}",
                digest.short(),
                ByteSize(source.bytes).approximate(),
                ByteSize(ARTIFACT_BYTES_MAX).approximate()
            )));
        }
        self.check_space(digest, source.bytes)?;
        let failed = |error: io::Error| self.disk_failed(digest, source.bytes, &error);
        let temporary = tempfile::Builder::new()
            .prefix(TEMPORARY)
            .tempfile_in(&self.folder)
            .map_err(failed)?;
        let file = temporary.as_file().try_clone().map_err(failed)?;
        let mut file = tokio::fs::File::from_std(file);
        let mut reader = source.reader;
        let mut hash = Sha256::new();
        let mut chunk = vec![0; CHUNK_BYTES];
        let mut total = 0u64;
        loop {
            let read = read_some(digest, &mut reader, &mut chunk).await?;
            if read == 0 {
                break;
            }
            total += read as u64;
            if total > source.bytes {
                return Err(mismatch(digest, "it is longer than the store said"));
            }
            hash.update(&chunk[..read]);
            file.write_all(&chunk[..read]).await.map_err(failed)?;
        }
        let found = Digest::from_hash(hash.finalize().into());
        if found != *digest {
            return Err(mismatch(
                digest,
                &format!("the store's bytes are {}", found.short()),
            ));
        }
        file.flush().await.map_err(failed)?;
        file.sync_all().await.map_err(failed)?;
        temporary
            .persist(path)
            .map_err(|error| failed(error.error))?;
        sync_folder(&self.folder).map_err(failed)
    }

    /// Refuses before the first byte what cannot fit, with the numbers.
    fn check_space(&self, digest: &Digest, bytes: u64) -> Result<(), FetchError> {
        let Ok(disk) = rustix::fs::statvfs(&self.folder) else {
            return Ok(());
        };
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        if free >= bytes.saturating_add(DISK_SPARE_BYTES) {
            return Ok(());
        }
        Err(FetchError::lasting(format!(
            "disk full while fetching {}: it needs {}, and {} are free in {}: free some space there",
            digest.short(),
            ByteSize(bytes + DISK_SPARE_BYTES).approximate(),
            ByteSize(free).approximate(),
            self.folder.display()
        )))
    }

    fn disk_failed(&self, digest: &Digest, bytes: u64, error: &io::Error) -> FetchError {
        if is_disk_full(error) {
            return FetchError::lasting(format!(
                "disk full while fetching {}: it needs {} in {}: free some space there",
                digest.short(),
                ByteSize(bytes).approximate(),
                self.folder.display()
            ));
        }
        let folder = self.folder.display();
        FetchError::lasting(format!(
            "writing {} to {folder} failed: {error}",
            digest.short()
        ))
    }

    /// Deletes what is not in use beyond the bound, the longest unused first. Blocking.
    pub(crate) fn prune(&self, in_use: &BTreeSet<Digest>) {
        self.prune_to(in_use, UNUSED_BYTES_MAX);
    }

    fn prune_to(&self, in_use: &BTreeSet<Digest>, bytes_max: u64) {
        let in_use: BTreeSet<&str> = in_use.iter().map(Digest::hex).collect();
        let mut unused: Vec<(SystemTime, u64, PathBuf)> = fs::read_dir(&self.folder)
            .into_iter()
            .flatten()
            .flatten()
            .filter(|entry| {
                let name = entry.file_name();
                let name = name.to_string_lossy();
                !name.starts_with(TEMPORARY) && !in_use.contains(name.as_ref())
            })
            .filter_map(|entry| {
                let data = entry.metadata().ok()?;
                Some((data.modified().ok()?, data.len(), entry.path()))
            })
            .collect();
        unused.sort();
        let mut total: u64 = unused.iter().map(|(_, bytes, _)| bytes).sum();
        for (_, bytes, path) in unused {
            if total <= bytes_max {
                break;
            }
            if fs::remove_file(&path).is_ok() {
                tracing::info!(file = %path.display(), "unused artifact deleted");
                total -= bytes;
            }
        }
    }
}

async fn read_some(
    digest: &Digest,
    reader: &mut (dyn AsyncRead + Send + Unpin),
    chunk: &mut [u8],
) -> Result<usize, FetchError> {
    match tokio::time::timeout(STALLED, reader.read(chunk)).await {
        Ok(Ok(read)) => Ok(read),
        // How the object store says that its own checksum does not hold.
        Ok(Err(error)) if error.kind() == io::ErrorKind::InvalidData => {
            Err(mismatch(digest, "the store's own checksum does not hold"))
        }
        Ok(Err(error)) => Err(FetchError::retryable(format!(
            "fetching {} broke off: {error}",
            digest.short()
        ))),
        Err(_) => Err(FetchError::retryable(format!(
            "fetching {} stalled for {STALLED:?}",
            digest.short()
        ))),
    }
}

fn mismatch(digest: &Digest, how: &str) -> FetchError {
    FetchError::lasting(format!(
        "digest mismatch: the bytes of artifact {} in the store are damaged ({how}): upload it again \
         with a deploy",
        digest.short()
    ))
}

fn hash_file(path: &Path) -> io::Result<Digest> {
    let mut file = File::open(path)?;
    let mut hash = Sha256::new();
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let read = file.read(&mut chunk)?;
        if read == 0 {
            return Ok(Digest::from_hash(hash.finalize().into()));
        }
        hash.update(&chunk[..read]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BYTES: &[u8] = b"\0asm component";

    fn source(bytes: &'static [u8]) -> Result<Source, FetchError> {
        Ok(Source {
            bytes: bytes.len() as u64,
            reader: Box::new(bytes),
        })
    }

    fn nothing() -> Result<Source, FetchError> {
        Err(FetchError::retryable("no connection"))
    }

    fn cache() -> (tempfile::TempDir, Artifacts) {
        let folder = tempfile::tempdir().unwrap();
        let artifacts = Artifacts::new(folder.path().to_owned());
        (folder, artifacts)
    }

    fn count(folder: &Path) -> usize {
        fs::read_dir(folder).unwrap().count()
    }

    #[tokio::test]
    async fn fetched_once_and_then_from_the_cache() {
        let (_folder, artifacts) = cache();
        let digest = Digest::of(BYTES);
        assert!(
            artifacts
                .have(&digest, async || nothing())
                .await
                .unwrap_err()
                .retryable
        );
        let path = artifacts
            .have(&digest, async || source(BYTES))
            .await
            .unwrap();
        assert_eq!(fs::read(&path).unwrap(), BYTES);
        assert_eq!(
            artifacts.have(&digest, async || nothing()).await.unwrap(),
            path
        );
    }

    #[tokio::test]
    async fn damage_in_the_store_is_never_kept() {
        let (folder, artifacts) = cache();
        let error = artifacts
            .have(&Digest::of(BYTES), async || source(b"\0asm tampered!"))
            .await
            .unwrap_err();
        assert!(
            !error.retryable && error.reason.starts_with("digest mismatch"),
            "{error}"
        );
        assert_eq!(count(folder.path()), 0);
    }

    #[tokio::test]
    async fn damage_in_the_cache_is_fetched_again() {
        let (_folder, artifacts) = cache();
        let digest = Digest::of(BYTES);
        let path = artifacts
            .have(&digest, async || source(BYTES))
            .await
            .unwrap();
        fs::write(&path, b"bit rot").unwrap();
        assert!(artifacts.have(&digest, async || nothing()).await.is_err());
        assert!(!path.exists(), "not even kept for looking at");
        artifacts
            .have(&digest, async || source(BYTES))
            .await
            .unwrap();
        assert_eq!(fs::read(&path).unwrap(), BYTES);
    }

    #[tokio::test]
    async fn what_is_too_large_or_does_not_fit_is_refused_before_the_first_byte() {
        let (folder, artifacts) = cache();
        let open = |bytes| {
            move || async move {
                Ok(Source {
                    bytes,
                    reader: Box::new(tokio::io::empty()),
                })
            }
        };
        let error = artifacts
            .have(&Digest::of(BYTES), open(ARTIFACT_BYTES_MAX + 1))
            .await
            .unwrap_err();
        assert!(error.reason.contains("the limit is 256 MiB"), "{error}");
        let error = artifacts
            .check_space(&Digest::of(BYTES), u64::MAX / 2)
            .unwrap_err();
        assert!(
            !error.retryable && error.reason.contains("disk full while fetching"),
            "{error}"
        );
        assert_eq!(count(folder.path()), 0);
    }

    #[tokio::test]
    async fn a_fetch_that_breaks_off_leaves_nothing() {
        let (folder, artifacts) = cache();
        let broken = tokio_test_reader();
        let open = || async {
            Ok(Source {
                bytes: 100,
                reader: Box::new(broken),
            })
        };
        let error = artifacts.have(&Digest::of(BYTES), open).await.unwrap_err();
        assert!(
            error.retryable && error.reason.contains("broke off"),
            "{error}"
        );
        assert_eq!(count(folder.path()), 0);
        fs::write(folder.path().join(".new-left"), b"x").unwrap();
        Artifacts::new(folder.path().to_owned());
        assert_eq!(count(folder.path()), 0);
    }

    /// Some bytes, then an error.
    fn tokio_test_reader() -> impl AsyncRead + Send + Unpin {
        struct Broken(bool);
        impl AsyncRead for Broken {
            fn poll_read(
                mut self: std::pin::Pin<&mut Self>,
                _: &mut std::task::Context<'_>,
                buffer: &mut tokio::io::ReadBuf<'_>,
            ) -> std::task::Poll<io::Result<()>> {
                if std::mem::replace(&mut self.0, true) {
                    return std::task::Poll::Ready(Err(io::Error::other("gone")));
                }
                buffer.put_slice(b"some");
                std::task::Poll::Ready(Ok(()))
            }
        }
        Broken(false)
    }

    #[test]
    fn pruning_keeps_what_is_in_use() {
        let (folder, artifacts) = cache();
        let (used, unused) = (Digest::of(b"a"), Digest::of(b"b"));
        fs::write(folder.path().join(used.hex()), b"a").unwrap();
        fs::write(folder.path().join(unused.hex()), b"b").unwrap();
        artifacts.prune(&BTreeSet::from([used.clone()]));
        assert_eq!(count(folder.path()), 2, "under the bound");
        artifacts.prune_to(&BTreeSet::from([used.clone()]), 0);
        assert_eq!(count(folder.path()), 1);
        assert!(folder.path().join(used.hex()).exists());
    }
}
