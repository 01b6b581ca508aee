//! Files of this machine's disk that outlive a crash.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;
use std::time::SystemTime;

/// What stays free on the disk, whatever is fetched or written for guests: one that is full is full
/// for everybody.
pub const DISK_SPARE_BYTES: u64 = 64 << 20;

/// What a file is called until it is whole.
pub(crate) const UNFINISHED: &str = ".new-";

/// Puts `bytes` at `path` so that a crash at any point leaves the old or the new content. The file is
/// for its owner alone.
///
/// # Errors
///
/// When the disk does not take it; what was there stays.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> io::Result<()> {
    write_whole(path, |file| file.write_all(bytes))
}

/// The same of what `write` puts into the file; gives back what that gives.
pub(crate) fn write_whole<R>(
    path: &Path,
    write: impl FnOnce(&mut File) -> io::Result<R>,
) -> io::Result<R> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let mut file = tempfile::Builder::new()
        .prefix(UNFINISHED)
        .tempfile_in(folder)?;
    let written = write(file.as_file_mut())?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    sync_folder(folder)?;
    Ok(written)
}

/// Deletes what writes left that broke off before then; one that goes on is younger. What is not ours to delete
/// stays.
pub(crate) fn sweep_unfinished(folder: &Path, before: SystemTime) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let is_unfinished = entry
            .file_name()
            .as_encoded_bytes()
            .starts_with(UNFINISHED.as_bytes());
        let written = entry.metadata().and_then(|about| about.modified());
        if is_unfinished && written.is_ok_and(|written| written < before) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Makes a rename in this folder last.
///
/// # Errors
///
/// When the disk does not say that it does.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_that_fails_leaves_the_old_file_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.json");
        write_atomic(&path, b"old").unwrap();
        assert!(write_atomic(&folder.path().join("missing/x.json"), b"new").is_err());
        write_atomic(&path, b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
