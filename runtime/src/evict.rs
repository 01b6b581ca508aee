//! Which compiled code leaves the disk when there is too much of it: what was used longest ago.
//!
//! A file's time of modification is when it was last used. Code that is missing is made again, and code that is
//! mapped stays mapped; without a compiler there is no bound, for what its operator gave may be gone.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::SystemTime;

use crate::target::CODE_EXTENSION;

/// When there is too much, more goes than would have to: a look at all files for each that comes were too many.
const SPARE_SHARE: u64 = 16;

/// The bound of one folder with code.
pub(crate) struct Bound {
    dir: PathBuf,
    most: u64,
    /// About what lies there: others may write and delete, too.
    bytes: AtomicU64,
    /// What was written since that was looked at.
    written: AtomicU64,
}

impl Bound {
    pub(crate) fn new(dir: &Path, most: u64) -> Self {
        let most = if cfg!(feature = "compiler") {
            most
        } else {
            u64::MAX
        };
        let bytes = files(dir).iter().map(|file| file.bytes).sum();
        Self {
            dir: dir.to_owned(),
            most,
            bytes: AtomicU64::new(bytes),
            written: AtomicU64::new(0),
        }
    }

    /// Notes that a file is used now.
    pub(crate) fn used(code: &Path) {
        let touched = File::open(code).and_then(|file| file.set_modified(SystemTime::now()));
        if let Err(error) = touched {
            // It may leave before its time.
            tracing::debug!(file = %code.display(), %error, "the use of code is not noted");
        }
    }

    /// A file was written. Deletes others if it was too much.
    pub(crate) fn written(&self, code: &Path) {
        let bytes = fs::metadata(code).map_or(0, |about| about.len());
        let lie = self.bytes.fetch_add(bytes, Relaxed).saturating_add(bytes);
        let written = self.written.fetch_add(bytes, Relaxed).saturating_add(bytes);
        // The other runners of the host write there, too.
        if lie > self.most || written > self.most / SPARE_SHARE {
            self.evict(code);
        }
    }

    fn evict(&self, stays: &Path) {
        self.written.store(0, Relaxed);
        let mut files = files(&self.dir);
        files.sort_by_key(|file| file.used);
        let mut left: u64 = files.iter().map(|file| file.bytes).sum();
        let target = if left > self.most {
            self.most - self.most / SPARE_SHARE
        } else {
            left
        };
        for file in files.iter().filter(|file| file.path != stays) {
            if left <= target {
                break;
            }
            match fs::remove_file(&file.path) {
                Ok(()) => {
                    // Code without its mark is not used; a mark without code neither.
                    let _ = fs::remove_file(file.path.with_extension("mac"));
                    tracing::info!(file = %file.path.display(), "compiled code made room for other");
                }
                // Another runner was first.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    tracing::warn!(file = %file.path.display(), %error, "compiled code is not deleted");
                    continue;
                }
            }
            left = left.saturating_sub(file.bytes);
        }
        self.bytes.store(left, Relaxed);
    }
}

struct Code {
    path: PathBuf,
    bytes: u64,
    used: SystemTime,
}

fn files(dir: &Path) -> Vec<Code> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let code = entries.filter_map(|entry| {
        let path = entry.path();
        let is_code = path.extension().is_some_and(|kind| kind == CODE_EXTENSION);
        let about = is_code.then(|| entry.metadata().ok())??;
        Some(Code {
            path,
            bytes: about.len(),
            used: about.modified().unwrap_or(SystemTime::UNIX_EPOCH),
        })
    });
    code.collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[cfg(feature = "compiler")]
    #[test]
    fn what_was_used_longest_ago_goes_with_its_mark() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path();
        let write = |name: &str, age: u64| {
            let path = dir.join(format!("{name}.{CODE_EXTENSION}"));
            fs::write(path.with_extension("mac"), "m").unwrap();
            fs::write(&path, [0; 100]).unwrap();
            let then = SystemTime::now() - Duration::from_secs(age);
            File::open(&path).unwrap().set_modified(then).unwrap();
            path
        };
        let (old, older, used) = (write("old", 10), write("older", 20), write("used", 30));
        let bound = Bound::new(dir, 320);
        Bound::used(&used);
        let newest = write("newest", 0);
        bound.written(&newest);
        assert!(!older.exists() && !older.with_extension("mac").exists());
        assert!(
            old.exists() && used.exists() && newest.exists(),
            "300 of 320"
        );
        let huge = dir.join(format!("huge.{CODE_EXTENSION}"));
        fs::write(&huge, [0; 1000]).unwrap();
        bound.written(&huge);
        assert!(huge.exists(), "what was just written stays");
        assert!(!old.exists() && !used.exists() && !newest.exists());
    }
}
