//! Compiled code that this host's operator gave it, in a folder laid out as the host's own:
//! `<dir>/<engine>/<target>/<digest>.cwasm`, made by [`crate::compile_for`].
//!
//! Compiled code runs as it is, outside of every sandbox, so who may write there may be the host. It is
//! taken only where nobody but this user and root may write: the file, and each folder down to it from
//! the one that was named, opened one in another and not by way of links. That nobody else may put
//! another folder in the place of that one is looked at once, when the host starts. What is taken is copied
//! into the host's own folder under the host's mark; nothing is mapped from here, where it may change.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use wasmorch_api::Digest;

use crate::target::{file_name, folder_here};

/// May write: the group, or everybody.
const OTHERS_WRITE: u32 = 0o022;
/// In such a folder only its owner may rename what is another's.
const STICKY: u32 = 0o1000;

/// The folder that the operator named.
pub(crate) struct Given {
    dir: PathBuf,
}

impl Given {
    pub(crate) fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// The code given for a digest, open; `None` when none was. Refuses what others may have written,
    /// with the words for the operator.
    pub(crate) fn open(&self, digest: &Digest) -> Result<Option<File>, String> {
        let mut path = self.dir.clone();
        let mut folder = match File::open(&path) {
            Ok(folder) => folder,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(unreadable(&path, &error)),
        };
        check(&path, &about(&path, &folder)?)?;
        for name in &folder_here() {
            path.push(name);
            let flags = OFlags::RDONLY | OFlags::DIRECTORY;
            match open_in(&folder, Path::new(name), flags) {
                Ok(inner) => folder = inner,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(unreadable(&path, &error)),
            }
            check(&path, &about(&path, &folder)?)?;
        }
        let name = file_name(digest);
        path.push(&name);
        let file = match open_in(&folder, Path::new(&name), OFlags::RDONLY | OFlags::NONBLOCK) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(unreadable(&path, &error)),
        };
        let about = about(&path, &file)?;
        if !about.is_file() {
            return Err(format!("{} is not a file", path.display()));
        }
        check(&path, &about)?;
        Ok(Some(file))
    }
}

/// Whether code may be taken from a folder: it is there, only this user and root may write in it, and nobody
/// else may put another in its place.
///
/// # Errors
///
/// The words for who named it.
pub fn check_folder(folder: &Path) -> Result<(), String> {
    let whole = folder
        .canonicalize()
        .map_err(|error| unreadable(folder, &error))?;
    for (depth, path) in whole.ancestors().enumerate() {
        let about = path.metadata().map_err(|error| unreadable(path, &error))?;
        if !about.is_dir() {
            return Err(format!("{} is not a folder", path.display()));
        }
        if depth > 0 && about.mode() & STICKY != 0 {
            check_owner(path, &about)?;
        } else {
            check(path, &about)?;
        }
    }
    Ok(())
}

/// Opens what has this name in a folder, and is no link.
fn open_in(folder: &File, name: &Path, flags: OFlags) -> io::Result<File> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(folder, name, flags, Mode::empty())?.into())
}

fn about(path: &Path, open: &File) -> Result<Metadata, String> {
    open.metadata().map_err(|error| unreadable(path, &error))
}

fn unreadable(path: &Path, error: &io::Error) -> String {
    format!("{} cannot be read: {error}", path.display())
}

fn check(path: &Path, about: &Metadata) -> Result<(), String> {
    check_owner(path, about)?;
    if about.mode() & OTHERS_WRITE != 0 {
        return Err(format!(
            "others may write {}: chmod go-w it",
            path.display()
        ));
    }
    Ok(())
}

fn check_owner(path: &Path, about: &Metadata) -> Result<(), String> {
    let user = rustix::process::geteuid().as_raw();
    let path = path.display();
    if about.uid() != user && about.uid() != 0 {
        return Err(format!(
            "{path} belongs to user {}, and this host is user {user}: chown it",
            about.uid()
        ));
    }
    Ok(())
}
