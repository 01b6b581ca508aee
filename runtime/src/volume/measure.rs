//! How much a directory holds, with everything below it.
//!
//! Guests write there meanwhile and are not trusted: nothing is opened by a path that a link could
//! lead out of it, and no tree is too deep or too large to be given up.

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, openat2, statat};

/// What a file, a directory or a link takes at least: so that nothing is free.
pub(crate) const ENTRY_BYTES: u64 = 4096;

/// Bytes below `root`, at most what makes `enough`. Sizes are those that files claim: a hole counts
/// as what could be written into it. A file with several names counts once for each.
pub(super) fn measure(root: &Path, enough: u64) -> io::Result<u64> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(root, flags, Mode::empty())?;
    let mut total: u64 = 0;
    let mut waiting = vec![PathBuf::from(".")];
    while let Some(path) = waiting.pop() {
        let Some(directory) = open_below(&root, &path)? else {
            continue; // gone meanwhile
        };
        for entry in Dir::read_from(&directory)? {
            let entry = entry?;
            let name = entry.file_name();
            if name.to_bytes() == b"." || name.to_bytes() == b".." {
                continue;
            }
            let Ok(stat) = statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW) else {
                continue; // gone meanwhile
            };
            let size = u64::try_from(stat.st_size).unwrap_or(0);
            let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
            total = total.saturating_add(if is_directory {
                ENTRY_BYTES
            } else {
                size.max(ENTRY_BYTES)
            });
            if total >= enough {
                return Ok(total);
            }
            if is_directory {
                waiting.push(path.join(OsStr::from_bytes(name.to_bytes())));
            }
        }
    }
    Ok(total)
}

/// Opens a directory by its path from the root, through no link.
fn open_below(root: &OwnedFd, path: &Path) -> io::Result<Option<OwnedFd>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    use rustix::io::Errno;
    match openat2(root, path, flags, Mode::empty(), resolve) {
        Ok(directory) => Ok(Some(directory)),
        // Removed, or replaced by something else, since its name was read.
        Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR | Errno::XDEV) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_summed_and_links_not_followed() {
        let outside = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("big"), vec![0; 1 << 20]).unwrap();
        let root = tempfile::tempdir().unwrap();
        let at = |path: &str| root.path().join(path);
        assert_eq!(measure(root.path(), u64::MAX).unwrap(), 0);
        std::fs::write(at("small"), "x").unwrap();
        std::fs::create_dir_all(at("a/b")).unwrap();
        std::fs::write(at("a/b/file"), vec![0; 10_000]).unwrap();
        std::os::unix::fs::symlink(outside.path(), at("link")).unwrap();
        std::os::unix::fs::symlink("/", at("a/rootlink")).unwrap();
        let sparse = std::fs::File::create(at("sparse")).unwrap();
        sparse.set_len(100_000).unwrap();
        let expected = ENTRY_BYTES * 5 + 10_000 + 100_000;
        assert_eq!(measure(root.path(), u64::MAX).unwrap(), expected);
        assert!(measure(root.path(), 5000).unwrap() >= 5000);
    }
}
