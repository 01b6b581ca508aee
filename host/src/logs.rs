//! Past logs of replicas on this host: JSON lines in files, bounded each and together.
//!
//! ```text
//! logs/<namespace>/<workload>/<replica>.log      the newer half
//! logs/<namespace>/<workload>/<replica>.log.1    the older half, thrown away at the next turn
//! ```
//!
//! Owns `logs/`. One writer thread has the files; everybody else has a bounded queue that counts
//! what it had to drop, and readers, who open files of their own. A line that was torn by a crash
//! is skipped when read.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use wasmorch_api::messages::{LogLine, LogsReply, LogsRequest};
use wasmorch_api::{ReplicaId, WorkloadKey};

use crate::runner::protocol::ReplicaKey;

/// Batches that may wait for the writer.
const QUEUE: usize = 256;
/// Half of what one replica may keep.
const HALF_BYTES_MAX: u64 = 512 * 1024;
/// What ended replicas may keep together.
const ENDED_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// How many files ended replicas may keep together: a crash loop makes many small ones.
const ENDED_FILES_MAX: usize = 2000;
/// Files held open; beyond, all are closed and opened again as needed.
const OPEN_MAX: usize = 128;
/// A reply is under 512 KiB; this leaves room for what is round the lines.
const REPLY_BYTES_MAX: usize = 400 * 1024;

enum Job {
    Lines(Vec<(ReplicaKey, LogLine)>),
    Ended(ReplicaKey),
}

/// Where lines go in.
#[derive(Debug)]
pub(crate) struct LogStore {
    queue: mpsc::Sender<Job>,
    dropped: Arc<AtomicU64>,
    writer: JoinHandle<()>,
    reader: LogReader,
}

impl LogStore {
    /// Starts the writer over this folder.
    pub(crate) fn start(folder: PathBuf) -> Self {
        let (queue, jobs) = mpsc::channel(QUEUE);
        let reader = LogReader::new(folder.clone());
        let writer = tokio::task::spawn_blocking(move || Writer::new(folder).run(jobs));
        Self {
            queue,
            dropped: Arc::default(),
            writer,
            reader,
        }
    }

    /// Keeps these lines; never waits. Counted are those that were lost before them on their way, and
    /// those that do not fit the queue.
    pub(crate) fn write(&self, lines: Vec<(ReplicaKey, LogLine)>) {
        let count = lines.len() as u64;
        let mut lost = lines.iter().map(|(_, line)| line.dropped).sum();
        if self.queue.try_send(Job::Lines(lines)).is_err() {
            lost += count;
        }
        self.dropped.fetch_add(lost, Ordering::Relaxed);
    }

    /// The replica has ended: its log may be pruned when space is short.
    pub(crate) fn ended(&self, replica: ReplicaKey) {
        // Lost in a full queue, it only stays longer than it must.
        let _ = self.queue.try_send(Job::Ended(replica));
    }

    /// Lines dropped since the start.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// For those who read.
    pub(crate) fn reader(&self) -> LogReader {
        self.reader.clone()
    }

    /// Writes what is queued, and ends the writer.
    pub(crate) async fn close(self) {
        drop(self.queue);
        if self.writer.await.is_err() {
            tracing::error!("the log writer panicked");
        }
    }
}

struct Writer {
    folder: PathBuf,
    open: BTreeMap<ReplicaKey, (File, u64)>,
    /// Written to in this start of the daemon, and not ended.
    live: BTreeSet<PathBuf>,
    failing: bool,
}

impl Writer {
    fn new(folder: PathBuf) -> Self {
        Self {
            folder,
            open: BTreeMap::new(),
            live: BTreeSet::new(),
            failing: false,
        }
    }

    fn run(mut self, mut jobs: mpsc::Receiver<Job>) {
        self.prune();
        while let Some(job) = jobs.blocking_recv() {
            match job {
                Job::Lines(lines) => self.lines(lines),
                Job::Ended(replica) => {
                    self.open.remove(&replica);
                    self.live.remove(&path(&self.folder, &replica));
                    self.prune();
                }
            }
        }
    }

    /// One write a replica and batch.
    fn lines(&mut self, lines: Vec<(ReplicaKey, LogLine)>) {
        let mut texts: BTreeMap<ReplicaKey, Vec<u8>> = BTreeMap::new();
        for (replica, line) in lines {
            let text = texts.entry(replica).or_default();
            // A line is plain data, which always encodes.
            if serde_json::to_writer(&mut *text, &line).is_ok() {
                text.push(b'\n');
            }
        }
        for (replica, text) in texts {
            let result = self.append(&replica, &text);
            // Said once, not for every line of a full disk.
            if let Err(error) = &result
                && !self.failing
            {
                tracing::warn!(%replica, %error, "logs cannot be written: lines are lost");
            }
            self.failing = result.is_err();
        }
    }

    fn append(&mut self, replica: &ReplicaKey, text: &[u8]) -> io::Result<()> {
        let path = path(&self.folder, replica);
        if !self.open.contains_key(replica) {
            if self.open.len() >= OPEN_MAX {
                self.open.clear();
            }
            if let Some(folder) = path.parent() {
                fs::create_dir_all(folder)?;
            }
            let file = File::options().create(true).append(true).open(&path)?;
            let bytes = file.metadata()?.len();
            self.open.insert(replica.clone(), (file, bytes));
            self.live.insert(path.clone());
        }
        let Some((file, bytes)) = self.open.get_mut(replica) else {
            return Ok(());
        };
        let written = file.write_all(text);
        *bytes += text.len() as u64;
        if *bytes >= HALF_BYTES_MAX {
            self.open.remove(replica);
            fs::rename(&path, older(&path))?;
        }
        written
    }

    /// Deletes logs of ended replicas beyond the bounds, the oldest first.
    fn prune(&self) {
        self.prune_to(ENDED_BYTES_MAX, ENDED_FILES_MAX);
    }

    fn prune_to(&self, bytes_max: u64, files_max: usize) {
        let mut ended: Vec<(SystemTime, u64, PathBuf)> = Vec::new();
        for folder in folders(&self.folder)
            .iter()
            .flat_map(|namespace| folders(namespace))
        {
            for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
                let path = entry.path();
                let newer = path.with_extension("");
                if self.live.contains(&path) || self.live.contains(&newer) {
                    continue;
                }
                if let Ok(data) = entry.metadata() {
                    let at = data.modified().unwrap_or(SystemTime::UNIX_EPOCH);
                    ended.push((at, data.len(), path));
                }
            }
        }
        ended.sort();
        let (mut bytes, mut files) = (ended.iter().map(|(_, b, _)| b).sum::<u64>(), ended.len());
        for (_, size, path) in ended {
            if bytes <= bytes_max && files <= files_max {
                return;
            }
            if fs::remove_file(path).is_ok() {
                bytes -= size;
                files -= 1;
            }
        }
    }
}

fn folders(path: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.path())
        .filter(|path| path.is_dir())
        .collect()
}

fn workload_folder(folder: &Path, workload: &WorkloadKey) -> PathBuf {
    folder
        .join(workload.namespace.as_str())
        .join(workload.name.as_str())
}

fn path(folder: &Path, replica: &ReplicaKey) -> PathBuf {
    workload_folder(folder, &replica.workload).join(format!("{}.log", replica.id))
}

/// The older half of a log: `<replica>.log.1`.
fn older(path: &Path) -> PathBuf {
    path.with_extension("log.1")
}

/// Reads past logs. Cheap to clone; blocking.
#[derive(Debug, Clone)]
pub(crate) struct LogReader {
    folder: PathBuf,
}

impl LogReader {
    /// Reads under this folder.
    pub(crate) fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// The last lines of a workload here, or of one replica, oldest first; as many as fit a reply.
    pub(crate) fn tail(&self, request: &LogsRequest) -> LogsReply {
        let workload = WorkloadKey::new(request.namespace.clone(), request.workload.clone());
        let replicas = match request.replica {
            Some(replica) => BTreeSet::from([replica]),
            None => self.replicas(&workload),
        };
        let tail = usize::try_from(request.tail).unwrap_or(usize::MAX);
        let mut lines: Vec<LogLine> = Vec::new();
        for id in replicas {
            let path = path(&self.folder, &ReplicaKey::new(workload.clone(), id));
            let mut own = read_lines(&older(&path));
            own.extend(read_lines(&path));
            let skip = own.len().saturating_sub(tail);
            lines.extend(own.into_iter().skip(skip));
        }
        // Stable: the order of a replica's own lines stays, even within a millisecond.
        lines.sort_by_key(|line| line.at);
        let mut room = REPLY_BYTES_MAX;
        let fits = lines.iter().rev().take(tail).take_while(|line| {
            let bytes = serde_json::to_vec(line).map_or(0, |bytes| bytes.len() + 1);
            let fits = bytes <= room;
            room = room.saturating_sub(bytes);
            fits
        });
        let skip = lines.len() - fits.count();
        LogsReply {
            lines: lines.split_off(skip),
        }
    }

    fn replicas(&self, workload: &WorkloadKey) -> BTreeSet<ReplicaId> {
        let entries = fs::read_dir(workload_folder(&self.folder, workload));
        let names = entries
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.file_name());
        names
            .filter_map(|name| name.to_str()?.split_once(".log")?.0.parse().ok())
            .collect()
    }
}

fn read_lines(path: &Path) -> Vec<LogLine> {
    let Ok(file) = File::open(path) else {
        return Vec::new();
    };
    BufReader::new(file)
        .split(b'\n')
        .map_while(Result::ok)
        .filter_map(|line| serde_json::from_slice(&line).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use wasmorch_api::{Name, Timestamp};

    use super::*;

    fn replica(id: &str) -> ReplicaKey {
        ReplicaKey::new(
            WorkloadKey::new(Name::default(), "web".parse().unwrap()),
            id.parse().unwrap(),
        )
    }

    fn line(id: &str, at: u64, text: &str) -> (ReplicaKey, LogLine) {
        let line = LogLine {
            at: Timestamp(at),
            replica: id.parse().unwrap(),
            stream: "stdout".into(),
            request_id: None,
            text: text.into(),
            dropped: 0,
        };
        (replica(id), line)
    }

    fn request(replica: Option<&str>, tail: u32) -> LogsRequest {
        LogsRequest {
            namespace: Name::default(),
            workload: "web".parse().unwrap(),
            replica: replica.map(|id| id.parse().unwrap()),
            tail,
        }
    }

    fn texts(reply: LogsReply) -> Vec<String> {
        reply.lines.into_iter().map(|line| line.text).collect()
    }

    #[tokio::test]
    async fn lines_of_replicas_come_back_in_order_of_time() {
        let folder = tempfile::tempdir().unwrap();
        let store = LogStore::start(folder.path().to_owned());
        let reader = store.reader();
        store.write(vec![
            line("1-1-1", 1, "a"),
            line("2-2-1", 2, "b"),
            line("1-1-1", 3, "c"),
        ]);
        store.close().await;
        assert_eq!(texts(reader.tail(&request(None, 10))), ["a", "b", "c"]);
        assert_eq!(texts(reader.tail(&request(None, 2))), ["b", "c"]);
        assert_eq!(texts(reader.tail(&request(Some("1-1-1"), 10))), ["a", "c"]);
        assert_eq!(texts(reader.tail(&request(Some("9-9-9"), 10))), [""; 0]);
    }

    #[test]
    fn a_log_is_bounded_and_a_torn_line_is_skipped() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = Writer::new(folder.path().to_owned());
        for at in 0..3000 {
            writer.lines(vec![line("1-1-1", at, &"x".repeat(1000))]);
        }
        let file = path(folder.path(), &replica("1-1-1"));
        let bytes = |path: &Path| fs::metadata(path).map_or(0, |data| data.len());
        assert!(bytes(&file) + bytes(&older(&file)) <= 2 * HALF_BYTES_MAX + 2000);
        File::options()
            .append(true)
            .open(&file)
            .unwrap()
            .write_all(b"{\"at\":")
            .unwrap();
        let reader = LogReader {
            folder: folder.path().to_owned(),
        };
        let reply = reader.tail(&request(None, u32::MAX));
        assert_eq!(reply.lines.last().unwrap().at, Timestamp(2999));
        assert!(serde_json::to_vec(&reply).unwrap().len() < 512 * 1024);
        assert!(reply.lines.len() > 300);
    }

    #[test]
    fn ended_logs_are_pruned_and_live_ones_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = Writer::new(folder.path().to_owned());
        writer.lines(vec![line("1-1-1", 1, "old"), line("1-1-2", 2, "live")]);
        writer.live.remove(&path(folder.path(), &replica("1-1-1")));
        writer.prune_to(0, 0);
        let reader = LogReader {
            folder: folder.path().to_owned(),
        };
        assert_eq!(texts(reader.tail(&request(None, 10))), ["live"]);
    }

    #[tokio::test]
    async fn a_full_queue_counts_what_it_drops() {
        let (queue, _jobs) = mpsc::channel(1);
        let writer = tokio::task::spawn_blocking(|| {});
        let reader = LogReader {
            folder: PathBuf::new(),
        };
        let store = LogStore {
            queue,
            dropped: Arc::default(),
            writer,
            reader,
        };
        store.write(vec![line("1-1-1", 1, "kept")]);
        store.write(vec![line("1-1-1", 2, "a"), line("1-1-1", 3, "b")]);
        assert_eq!(store.dropped(), 2);
        let mut after_a_flood = line("1-1-1", 4, "c");
        after_a_flood.1.dropped = 100;
        store.write(vec![after_a_flood]);
        assert_eq!(store.dropped(), 103, "on the way to the queue too");
    }
}
