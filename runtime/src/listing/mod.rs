//! `read-directory` in the place of wasmtime-wasi's. There a stream of 0.3 keeps a thread that waits until its guest reads
//! on, and a few hundred of them leave none for anybody else; one of 0.2 has a whole folder in memory that nobody counts.
//!
//! Here a thread is taken for one part of the entries at a time, when a guest asks for more. The folder is opened by the
//! first who reads.

pub(crate) mod p2;
mod p3;

use std::collections::VecDeque;
use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::sync::Arc;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, openat, statat};
use rustix::io::Errno;
use tokio::task::JoinHandle;
use wasmtime::component::Linker;

use crate::state::GuestState;

/// Entries that are read at once, and wait for their guest.
const PART: usize = 64;
/// What they take at the most: a name has 255 bytes.
pub(crate) const PART_BYTES: u64 = PART as u64 * 512;

/// Puts the functions in the place of those that are there; of 0.3 where the engine has them.
pub(crate) fn add_to_linker(
    linker: &mut Linker<GuestState>,
    concurrent: bool,
) -> wasmtime::Result<()> {
    linker.allow_shadowing(true);
    p2::add_to_linker(linker)?;
    if concurrent {
        p3::add_to_linker(linker)?;
    }
    linker.allow_shadowing(false);
    Ok(())
}

/// What a folder has.
struct Entry {
    name: String,
    kind: FileType,
}

/// The next entries of a folder, and how it ended when they are the last.
#[derive(Default)]
struct Part {
    entries: VecDeque<Entry>,
    end: Option<io::Result<()>>,
}

/// A folder that is being read.
struct Folder {
    folder: Arc<File>,
    /// Once it was opened for that.
    entries: Option<Dir>,
}

impl Folder {
    fn new(folder: Arc<File>) -> Self {
        Self {
            folder,
            entries: None,
        }
    }

    /// The next part, on a thread for what blocks. It is read whether or not anybody waits for it.
    fn read(mut self) -> JoinHandle<(Self, Part)> {
        tokio::task::spawn_blocking(move || {
            let part = self.part();
            (self, part)
        })
    }

    /// Blocks.
    fn part(&mut self) -> Part {
        let mut part = Part::default();
        while part.entries.len() < PART && part.end.is_none() {
            match self.next() {
                Ok(Some(entry)) => part.entries.push_back(entry),
                Ok(None) => part.end = Some(Ok(())),
                Err(error) => part.end = Some(Err(error)),
            }
        }
        part
    }

    fn next(&mut self) -> io::Result<Option<Entry>> {
        if self.entries.is_none() {
            // A descriptor of its own: another listing has its own place in the folder.
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let opened = openat(&*self.folder, c".", flags, Mode::empty())?;
            self.entries = Some(Dir::new(opened)?);
        }
        let Some(entries) = &mut self.entries else {
            return Ok(None);
        };
        while let Some(entry) = entries.read() {
            let entry = entry?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            let kind = kind(&self.folder, name, entry.file_type())?;
            let name = name.to_str().map_err(|_| Errno::ILSEQ)?.to_owned();
            return Ok(Some(Entry { name, kind }));
        }
        Ok(None)
    }
}

/// What an entry is; asked for where the file system does not say it with the name.
fn kind(folder: &File, name: &CStr, known: FileType) -> io::Result<FileType> {
    match known {
        FileType::Unknown => {
            let about = statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)?;
            Ok(FileType::from_raw_mode(about.st_mode))
        }
        known => Ok(known),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    fn open(path: &Path) -> Folder {
        Folder::new(Arc::new(File::open(path).unwrap()))
    }

    #[test]
    fn a_folder_is_read_in_parts_to_its_end() {
        let folder = tempfile::tempdir().unwrap();
        let names = (0..3 * PART).map(|number| format!("file-{number}"));
        let names: BTreeSet<_> = names.collect();
        for name in &names {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        let mut reading = open(folder.path());
        let mut found = BTreeSet::new();
        loop {
            let part = reading.part();
            assert!(part.entries.len() <= PART);
            found.extend(part.entries.into_iter().map(|entry| entry.name));
            if let Some(end) = part.end {
                assert!(end.is_ok());
                break;
            }
        }
        assert_eq!(found, names);
    }

    #[test]
    fn entries_have_their_kinds_and_what_is_no_folder_has_none() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("folder")).unwrap();
        std::fs::write(folder.path().join("file"), "").unwrap();
        std::os::unix::fs::symlink("file", folder.path().join("link")).unwrap();
        let part = open(folder.path()).part();
        assert_eq!(part.entries.len(), 3);
        for entry in part.entries {
            let expected = match entry.name.as_str() {
                "folder" => FileType::Directory,
                "file" => FileType::RegularFile,
                _ => FileType::Symlink,
            };
            assert_eq!(entry.kind, expected, "{}", entry.name);
        }
        let none = open(&folder.path().join("file")).part();
        assert!(none.entries.is_empty() && matches!(none.end, Some(Err(_))));
    }
}
