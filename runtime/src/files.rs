//! Files of this machine's disk that outlive a crash.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;

/// What stays free on the disk, whatever is fetched or written for guests: one that is full is full
/// for everybody.
pub const DISK_SPARE_BYTES: u64 = 64 << 20;

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
        .prefix(".new-")
        .tempfile_in(folder)?;
    let written = write(file.as_file_mut())?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    sync_folder(folder)?;
    Ok(written)
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
    use std::fs;

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
