//! Removes what a removed workload left below `volumes/`: its volumes, and its containers on disk.
//!
//! ```text
//! _removed/<ns>/<workload>   the removals that have been carried out, a line each
//! _trash/<n>                 what is being removed: moved away in one step, then taken apart
//! ```
//!
//! Owns the thread that does so. Invariants: what is moved away is never seen again under its name; the
//! note is written after that and before anything of the workload starts again, so that a removal that was
//! carried out is not carried out a second time, whatever the daemon was told before. Nobody waits until the
//! trash is empty. A guest may have made a tree of any depth: it is taken apart level by level, with one
//! open folder at a time and without recursion.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread::JoinHandle;

use tokio::sync::mpsc;
use wasmorch_api::{Removal, RemovalId};
use wasmorch_runtime::{sync_folder, write_atomic};

use crate::agent::Event;
use crate::error::HostError;
use crate::runner::BLOBS;

/// Below the folder of volumes. No namespace is named so.
const NOTES: &str = "_removed";
const TRASH: &str = "_trash";
/// So many removals are remembered: more than a set names of one workload.
const LINES_MAX: usize = 64;
/// So many files are removed between two looks at what is asked for.
const AT_ONCE: usize = 1_000;
/// Answers that the daemon has not taken yet.
const ANSWERS: usize = 16;

/// The thread that removes, one thing after the other.
pub(crate) struct Remover {
    /// Bounded by what a set names: the agent asks for nothing twice.
    asked: Option<Sender<Removal>>,
    answers: mpsc::Receiver<Event>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Remover {
    /// Begins with what an earlier daemon left in the trash.
    ///
    /// # Errors
    ///
    /// When there is no thread to be had.
    pub(crate) fn start(volumes: PathBuf) -> Result<Self, HostError> {
        let (asked, to_do) = channel();
        let (answer, answers) = mpsc::channel(ANSWERS);
        let stop = Arc::new(AtomicBool::new(false));
        let stops = stop.clone();
        let thread = std::thread::Builder::new()
            .name("remover".to_owned())
            .spawn({
                let volumes = volumes.clone();
                move || run(&volumes, &to_do, &answer, &stops)
            })
            .map_err(|source| HostError::disk("starting to clear", volumes, source))?;
        Ok(Self {
            asked: Some(asked),
            answers,
            stop,
            thread: Some(thread),
        })
    }

    /// Asks for one removal; [`Event::DataRemoved`] follows.
    pub(crate) fn ask(&self, removal: Removal) {
        if let Some(asked) = &self.asked {
            // Gone only when the daemon ends.
            let _ = asked.send(removal);
        }
    }

    /// The next answer.
    pub(crate) async fn next(&mut self) -> Option<Event> {
        self.answers.recv().await
    }
}

impl Drop for Remover {
    /// What is in hand is broken off: it is gone on with after the next start.
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.asked = None;
        self.answers.close();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn run(volumes: &Path, to_do: &Receiver<Removal>, answer: &mpsc::Sender<Event>, stop: &AtomicBool) {
    let trash = volumes.join(TRASH);
    let mut stuck = BTreeSet::new();
    let mut empty = false;
    while !stop.load(Ordering::Relaxed) {
        let next = if empty {
            to_do.recv().map_err(|_| TryRecvError::Disconnected)
        } else {
            to_do.try_recv()
        };
        match next {
            Ok(removal) => {
                let failed = remove(volumes, &removal).err();
                empty = false;
                if answer
                    .blocking_send(Event::DataRemoved { removal, failed })
                    .is_err()
                {
                    return;
                }
            }
            Err(TryRecvError::Empty) => empty = !take_one_apart(&trash, &mut stuck, stop),
            Err(TryRecvError::Disconnected) => return,
        }
    }
}

/// Moves it away, unless that was done before; the failure says what and why.
fn remove(volumes: &Path, removal: &Removal) -> Result<(), String> {
    let id = &removal.id;
    let namespace = id.workload.namespace.as_str();
    let workload = Path::new(namespace).join(id.workload.name.as_str());
    let note = volumes.join(NOTES).join(&workload);
    let mut lines = done(&note)?;
    if lines.iter().any(|line| covers(line, id)) {
        return Ok(());
    }
    let blobs = volumes.join(BLOBS).join(namespace);
    let containers = removal.containers.iter();
    let containers = containers.filter(|folder| wasmorch_api::stores::check_folder(folder).is_ok());
    let folders = containers.map(|folder| blobs.join(folder));
    let trash = volumes.join(TRASH);
    make(&trash)?;
    for folder in folders.chain([volumes.join(&workload)]) {
        throw_away(&folder, &trash).map_err(|error| at(&folder, &error))?;
    }
    make(note.parent().unwrap_or(volumes))?;
    lines.push(format!("{} {}", id.before, id.at.0));
    let old = lines.len().saturating_sub(LINES_MAX);
    let text = lines[old..].join("\n");
    write_atomic(&note, text.as_bytes()).map_err(|error| at(&note, &error))
}

/// Whether a removal that was carried out is this one, or a later one that took this one's with it.
fn covers(line: &str, id: &RemovalId) -> bool {
    let mut numbers = line.split(' ').map(str::parse::<u64>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(before)), Some(Ok(at))) => before >= id.before.0 && at >= id.at.0,
        _ => false,
    }
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

/// There is no such folder, nor can there be one.
const ABSENT: [io::ErrorKind; 2] = [io::ErrorKind::NotFound, io::ErrorKind::NotADirectory];

/// Moves a folder into the trash; one that is not there is gone already.
fn throw_away(folder: &Path, trash: &Path) -> io::Result<()> {
    match fs::rename(folder, free(trash)?) {
        Err(error) if ABSENT.contains(&error.kind()) => return Ok(()),
        other => other?,
    }
    // Before the note that says so.
    for folder in folder.parent().into_iter().chain([trash]) {
        sync_folder(folder)?;
    }
    Ok(())
}

/// What is not there need not be removed; another removal may be at the same trash.
fn gone(done: io::Result<()>) -> io::Result<()> {
    match done {
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

/// Takes a part of one thing in the trash apart, but for those that are `stuck`; `false`: there is nothing else.
fn take_one_apart(trash: &Path, stuck: &mut BTreeSet<PathBuf>, stop: &AtomicBool) -> bool {
    let entries = fs::read_dir(trash).into_iter().flatten();
    let mut paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let Some(path) = paths.find(|path| !stuck.contains(path)) else {
        return false;
    };
    if let Err(error) = gone(take_apart(&path, trash, stop)) {
        tracing::error!(path = %path.display(), %error, "removed data stay on the disk until the next start");
        stuck.insert(path);
    }
    true
}

/// Folders within a folder are moved up beside it, so that none is ever deep.
fn take_apart(path: &Path, trash: &Path, stop: &AtomicBool) -> io::Result<()> {
    // Of the thing itself: no link is followed.
    if !fs::symlink_metadata(path)?.is_dir() {
        return fs::remove_file(path);
    }
    for (at, inner) in fs::read_dir(path)?.enumerate() {
        if stop.load(Ordering::Relaxed) || at == AT_ONCE {
            return Ok(());
        }
        let inner = inner?;
        gone(if inner.file_type()?.is_dir() {
            fs::rename(inner.path(), free(trash)?)
        } else {
            fs::remove_file(inner.path())
        })?;
    }
    fs::remove_dir(path)
}

#[cfg(test)]
mod tests {
    use wasmorch_api::{PlacementNumber, Timestamp, WorkloadKey};

    use super::*;

    fn of(before: u64, containers: &[&str]) -> Removal {
        Removal {
            id: RemovalId {
                workload: WorkloadKey::new("shop".parse().unwrap(), "cart".parse().unwrap()),
                before: PlacementNumber(before),
                at: Timestamp(before * 1_000),
            },
            containers: containers.iter().map(ToString::to_string).collect(),
        }
    }

    /// What the thread does when nothing is asked of it.
    fn empty(root: &Path) {
        let (mut stuck, stop) = (BTreeSet::new(), AtomicBool::new(false));
        while take_one_apart(&root.join(TRASH), &mut stuck, &stop) {}
        let left = fs::read_dir(root.join(TRASH)).into_iter().flatten().count();
        assert_eq!(left, stuck.len());
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
        remove(root, &asked).unwrap();
        assert!(!volume.exists() && !blob.exists());
        assert!(neighbour.exists() && other.exists());
        assert_eq!(fs::read_dir(root.join(TRASH)).unwrap().count(), 2);
        empty(root);

        write(&volume);
        remove(root, &asked).unwrap();
        assert!(volume.exists(), "done once");
        remove(root, &of(8, &[])).unwrap();
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
        remove(&root, &of(1, &[])).unwrap();
        assert!(!root.join("shop/cart").exists());
        empty(&root);
        assert_eq!(fs::read_dir(root.join(TRASH)).unwrap().count(), 0);
        assert!(precious.exists());
    }

    #[tokio::test]
    async fn the_thread_answers_goes_on_with_what_was_left_and_ends() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        write(&root.join(TRASH).join("left/y/z"));
        write(&root.join("shop/cart/1/data/file"));
        let mut remover = Remover::start(root.to_owned()).unwrap();
        remover.ask(of(3, &[]));
        let Some(Event::DataRemoved { removal, failed }) = remover.next().await else {
            panic!("no answer")
        };
        assert_eq!((removal, failed), (of(3, &[]), None));
        assert!(!root.join("shop/cart").exists());
        while fs::read_dir(root.join(TRASH)).unwrap().count() > 0 {
            tokio::task::yield_now().await;
        }
        // Where a folder is to be there is a file.
        fs::remove_dir_all(root.join(NOTES)).unwrap();
        fs::write(root.join(NOTES), b"").unwrap();
        remover.ask(of(4, &[]));
        let Some(Event::DataRemoved { failed, .. }) = remover.next().await else {
            panic!("no answer")
        };
        assert!(failed.unwrap().contains(NOTES));
    }

    #[test]
    fn what_a_later_removal_has_taken_is_not_taken_again() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let volume = root.join("shop/cart/1/data/file");
        remove(root, &of(9, &[])).unwrap();
        write(&volume);
        remove(root, &of(7, &[])).unwrap();
        assert!(volume.exists(), "an old store says so again");
        // In a store that was lost, numbers begin anew.
        let mut anew = of(2, &[]);
        anew.id.at = Timestamp(90_000);
        remove(root, &anew).unwrap();
        assert!(!volume.exists());
    }
}
