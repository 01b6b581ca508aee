//! Removes what a removed workload left below `volumes/`: its volumes, and its containers on disk.
//!
//! ```text
//! _removed/<ns>/<workload>   the removals that have been carried out, a line each
//! _trash/<n>                 what is being removed: moved away in one step, then taken apart
//! ```
//!
//! Invariants: what is moved away is never seen again under its name; the note is written after
//! that and before anything of the workload starts again, so that a removal that was carried out is not
//! carried out a second time, whatever the daemon was told before. A guest may have made a tree of any
//! depth: it is taken apart level by level, with one open folder at a time and without recursion.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use wasmorch_api::Forget;
use wasmorch_runtime::write_atomic;

use crate::runner::BLOBS;

/// Below the folder of volumes. No namespace is named so.
const NOTES: &str = "_removed";
const TRASH: &str = "_trash";
/// So many removals are remembered: more than a set names of one workload.
const LINES_MAX: usize = 64;

/// Removes it, unless that was done before; the failure says what and why.
pub(crate) fn forget(volumes: &Path, forget: &Forget) -> Result<(), String> {
    let workload = Path::new(forget.namespace.as_str()).join(forget.workload.as_str());
    let note = volumes.join(NOTES).join(&workload);
    let line = format!("{} {}", forget.before, forget.at.0);
    let mut lines = done(&note)?;
    if lines.contains(&line) {
        return Ok(());
    }
    let blobs = volumes.join(BLOBS).join(forget.namespace.as_str());
    let containers = forget.containers.iter();
    let containers = containers.filter(|folder| wasmorch_api::stores::check_folder(folder).is_ok());
    let folders = containers.map(|folder| blobs.join(folder));
    let trash = volumes.join(TRASH);
    make(&trash)?;
    for folder in folders.chain([volumes.join(&workload)]) {
        throw_away(&folder, &trash).map_err(|error| at(&folder, &error))?;
    }
    make(note.parent().unwrap_or(volumes))?;
    lines.push(line);
    let old = lines.len().saturating_sub(LINES_MAX);
    let text = lines[old..].join("\n");
    write_atomic(&note, text.as_bytes()).map_err(|error| at(&note, &error))?;
    empty(volumes)
}

/// Takes apart what was thrown away, also by a daemon that did not come to its end.
pub(crate) fn empty(volumes: &Path) -> Result<(), String> {
    let trash = volumes.join(TRASH);
    take_apart(&trash).map_err(|error| at(&trash, &error))
}

/// The removals that have been carried out, the latest last.
fn done(note: &Path) -> Result<Vec<String>, String> {
    match fs::read_to_string(note) {
        Ok(text) => Ok(text.lines().map(str::to_owned).collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(at(note, &error)),
    }
}

fn make(folder: &Path) -> Result<(), String> {
    fs::create_dir_all(folder).map_err(|error| at(folder, &error))
}

fn at(path: &Path, error: &io::Error) -> String {
    format!("{}: {error}", path.display())
}

/// Moves a folder into the trash; one that is not there is gone already.
fn throw_away(folder: &Path, trash: &Path) -> io::Result<()> {
    match fs::rename(folder, free(trash)?) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// A name in the trash that nothing has.
fn free(trash: &Path) -> io::Result<PathBuf> {
    loop {
        let path = trash.join(format!("{:016x}", rand::random::<u64>()));
        match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(path),
            Err(error) => return Err(error),
            Ok(_) => {}
        }
    }
}

/// Folders within folders are moved up beside their parent, so that none is ever deep.
fn take_apart(trash: &Path) -> io::Result<()> {
    loop {
        let mut any = false;
        let entries = match fs::read_dir(trash) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other?,
        };
        for entry in entries {
            any = true;
            let entry = entry?;
            // Of the entry itself: no link is followed.
            if !entry.file_type()?.is_dir() {
                fs::remove_file(entry.path())?;
                continue;
            }
            for inner in fs::read_dir(entry.path())? {
                let inner = inner?;
                if inner.file_type()?.is_dir() {
                    fs::rename(inner.path(), free(trash)?)?;
                } else {
                    fs::remove_file(inner.path())?;
                }
            }
            fs::remove_dir(entry.path())?;
        }
        if !any {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(before: u64, containers: &[&str]) -> Forget {
        Forget {
            namespace: "shop".parse().unwrap(),
            workload: "cart".parse().unwrap(),
            before: wasmorch_api::PlacementNumber(before),
            at: wasmorch_api::Timestamp(before * 1_000),
            containers: containers.iter().map(ToString::to_string).collect(),
        }
    }

    fn write(path: &Path) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, b"x").unwrap();
    }

    #[test]
    fn what_it_left_goes_once_and_what_comes_later_stays() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let volume = root.join("shop/cart/1/data/file");
        let neighbour = root.join("shop/till/1/data/file");
        let blob = root.join(BLOBS).join("shop/a/box/blob");
        let other = root.join(BLOBS).join("shop/a/other/blob");
        for path in [&volume, &neighbour, &blob, &other] {
            write(path);
        }
        let asked = of(7, &["a/box", "../../shop/till", "/etc"]);
        forget(root, &asked).unwrap();
        assert!(!volume.exists() && !blob.exists());
        assert!(neighbour.exists() && other.exists());
        assert_eq!(fs::read_dir(root.join(TRASH)).unwrap().count(), 0);

        write(&volume);
        forget(root, &asked).unwrap();
        assert!(volume.exists(), "done once");
        forget(root, &of(8, &[])).unwrap();
        assert!(!volume.exists(), "and again for the next");
    }

    #[test]
    fn a_tree_of_any_depth_and_links_are_taken_apart() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("volumes");
        let precious = folder.path().join("precious");
        write(&precious);
        // Deeper than a path may be long: built from the inside.
        let mut inner = root.join("0");
        fs::create_dir_all(&inner).unwrap();
        std::os::unix::fs::symlink(&precious, inner.join("link")).unwrap();
        for n in 1..3_000 {
            let outer = root.join(n.to_string());
            fs::create_dir(&outer).unwrap();
            fs::rename(&inner, outer.join("d")).unwrap();
            inner = outer;
        }
        fs::create_dir_all(root.join("shop")).unwrap();
        fs::rename(&inner, root.join("shop/cart")).unwrap();
        forget(&root, &of(1, &[])).unwrap();
        assert!(!root.join("shop/cart").exists());
        assert_eq!(fs::read_dir(root.join(TRASH)).unwrap().count(), 0);
        assert!(precious.exists());
    }

    #[test]
    fn what_a_daemon_left_in_the_trash_goes_with_the_next() {
        let folder = tempfile::tempdir().unwrap();
        empty(folder.path()).unwrap();
        write(&folder.path().join(TRASH).join("x/y/z"));
        empty(folder.path()).unwrap();
        let trash = folder.path().join(TRASH);
        assert_eq!(fs::read_dir(trash).unwrap().count(), 0);
    }
}
