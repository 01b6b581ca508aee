//! What guests say, on its way to the daemon: bounded per replica and in all, in batches.
//!
//! ```text
//!   guest ── line ──> ReplicaLogs (rate) ──> queue (bounded) ──> batch, every 50 ms ──> Logs
//! ```
//!
//! Invariants: a guest never waits for its lines; every line that is lost is counted, and the next
//! one that gets through says so.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use wasmorch_api::messages::LogLine;
use wasmorch_runtime::{Ended, LogLevel, LogSink, LogStream, RequestId};

use super::protocol::{FromRunner, ReplicaKey};

/// Lines of all replicas that wait for the next batch: more than twice what one may say at once.
const QUEUE_LINES: usize = 8192;
/// Of a replica's, once the queue is half full: the rest of it is for those who say little.
const CROWDED_LINES: usize = 64;
/// Between two batches, at least.
const BATCH_INTERVAL: Duration = Duration::from_millis(50);
/// A batch ends at so much text.
const BATCH_BYTES_MAX: usize = 256 << 10;
/// Lines of one replica a second, and how many at once after a quiet time. What a person or a log
/// store can make use of; a guest that writes more is told so in its log.
const LINES_PER_SECOND: u32 = 1000;
const LINES_BURST: u32 = 4000;
/// The same in bytes.
const BYTES_PER_SECOND: u32 = 512 << 10;
const BYTES_BURST: u32 = 2 << 20;
/// Of a failure's text: its reason and the innermost frames.
const BACKTRACE_LINES_MAX: usize = 12;

enum Item {
    Line(Arc<Sender>, LogLine),
    /// Answered when everything before it is with the daemon.
    Flush(oneshot::Sender<()>),
}

/// Where all replicas' lines go.
#[derive(Clone)]
pub(super) struct LogQueue(mpsc::Sender<Item>);

/// What fills up again with time.
#[derive(Debug)]
struct Bucket {
    level: f64,
    per_second: f64,
    burst: f64,
}

impl Bucket {
    fn new(per_second: u32, burst: u32) -> Self {
        let burst = f64::from(burst);
        Self {
            level: burst,
            per_second: f64::from(per_second),
            burst,
        }
    }

    fn fill(&mut self, elapsed: Duration) {
        self.level = self
            .burst
            .min(self.level + elapsed.as_secs_f64() * self.per_second);
    }
}

/// How much one replica may say.
#[derive(Debug)]
struct Rate {
    lines: Bucket,
    bytes: Bucket,
    filled: Instant,
    /// Lost since the last line that got through.
    dropped: u64,
}

impl Rate {
    fn new(now: Instant) -> Self {
        Self {
            lines: Bucket::new(LINES_PER_SECOND, LINES_BURST),
            bytes: Bucket::new(BYTES_PER_SECOND, BYTES_BURST),
            filled: now,
            dropped: 0,
        }
    }

    /// Whether a line of so many bytes may pass.
    fn take(&mut self, bytes: usize, now: Instant) -> bool {
        let elapsed = now.saturating_duration_since(self.filled);
        self.filled = now;
        self.lines.fill(elapsed);
        self.bytes.fill(elapsed);
        let bytes = bytes as f64;
        let passes = self.lines.level >= 1.0 && self.bytes.level >= bytes;
        if passes {
            self.lines.level -= 1.0;
            self.bytes.level -= bytes;
        }
        passes
    }
}

/// Whose lines they are.
struct Sender {
    replica: ReplicaKey,
    /// Its lines in the queue.
    waiting: AtomicUsize,
}

/// One replica's lines.
pub(super) struct ReplicaLogs {
    sender: Arc<Sender>,
    queue: LogQueue,
    rate: Mutex<Rate>,
}

impl LogQueue {
    /// The queue, and the task that empties it until every sink and queue handle is gone.
    pub(super) fn new(out: mpsc::Sender<FromRunner>) -> (Self, impl Future<Output = ()>) {
        let (sender, receiver) = mpsc::channel(QUEUE_LINES);
        (Self(sender), deliver(receiver, out))
    }

    /// The sink of one replica.
    pub(super) fn sink(&self, replica: ReplicaKey) -> Arc<ReplicaLogs> {
        let rate = Mutex::new(Rate::new(Instant::now()));
        Arc::new(ReplicaLogs {
            sender: Arc::new(Sender {
                replica,
                waiting: AtomicUsize::new(0),
            }),
            queue: self.clone(),
            rate,
        })
    }

    /// Waits until all lines said so far are with the daemon.
    pub(super) async fn flush(&self) {
        let (done, delivered) = oneshot::channel();
        if self.0.send(Item::Flush(done)).await.is_ok() {
            let _ = delivered.await;
        }
    }
}

impl ReplicaLogs {
    fn say(&self, rate: &mut Rate, stream: String, request_id: Option<String>, text: String) {
        let line = LogLine {
            at: SystemTime::now().into(),
            replica: self.sender.replica.id,
            stream,
            request_id,
            text,
            dropped: rate.dropped,
        };
        let queue = &self.queue.0;
        let is_crowded = queue.capacity() < QUEUE_LINES / 2;
        let before = self.sender.waiting.fetch_add(1, Relaxed);
        let takes = !is_crowded || before < CROWDED_LINES;
        if takes
            && queue
                .try_send(Item::Line(self.sender.clone(), line))
                .is_ok()
        {
            rate.dropped = 0;
        } else {
            self.sender.waiting.fetch_sub(1, Relaxed);
            rate.dropped += 1;
        }
    }
}

impl LogSink for ReplicaLogs {
    fn line(&self, line: wasmorch_runtime::LogLine) {
        // A panic while it was held leaves counters, which are usable.
        let mut rate = self.rate.lock().unwrap_or_else(PoisonError::into_inner);
        if !rate.take(line.text.len(), Instant::now()) {
            rate.dropped += 1;
            return;
        }
        let stream = stream_word(line.stream).to_owned();
        self.say(
            &mut rate,
            stream,
            line.request_id.map(|id| id.to_string()),
            line.text,
        );
    }
}

impl Drop for ReplicaLogs {
    /// Lines lost at the very end have no next line that could say so.
    fn drop(&mut self) {
        let mut rate = self.rate.lock().unwrap_or_else(PoisonError::into_inner);
        if rate.dropped > 0 {
            let text = format!(
                "{} lines were lost: written faster than they are kept",
                rate.dropped
            );
            self.say(
                &mut rate,
                stream_word(LogStream::Wasi(LogLevel::Warn)).to_owned(),
                None,
                text,
            );
        }
    }
}

/// Whether a failure is the guest's doing and so belongs into its log: being busy, being stopped,
/// a client's body and a caller's patience are not.
fn is_the_guests(ended: &Ended) -> bool {
    let others = matches!(
        ended,
        Ended::Busy { .. } | Ended::HostFull { .. } | Ended::CallerTimeout { .. } | Ended::Stopped
    );
    !others && !ended.is_the_clients()
}

/// Says in a guest's log how it failed, if that is its doing: the guest cannot any more. `during` names
/// the request.
pub(super) fn failed(logs: &dyn LogSink, what: &str, during: Option<&RequestId>, ended: &Ended) {
    if !is_the_guests(ended) {
        return;
    }
    let mut text = format!("{what} failed: {ended}");
    if let Ended::Trap { backtrace, .. } = ended
        && !backtrace.is_empty()
    {
        text = format!("{text}\n{}", backtrace.trim_end());
    }
    for line in text.lines().take(BACKTRACE_LINES_MAX) {
        let stream = LogStream::Wasi(LogLevel::Error);
        logs.line(wasmorch_runtime::LogLine {
            stream,
            request_id: during.map(|id| id.0.clone()),
            text: line.to_owned(),
        });
    }
}

/// A warning in a workload's log, of what the host did with its work.
pub(super) fn say(logs: &dyn LogSink, text: &str) {
    logs.line(wasmorch_runtime::LogLine {
        stream: LogStream::Wasi(LogLevel::Warn),
        request_id: None,
        text: text.to_owned(),
    });
}

fn stream_word(stream: LogStream) -> &'static str {
    match stream {
        LogStream::Stdout => "stdout",
        LogStream::Stderr => "stderr",
        LogStream::Wasi(LogLevel::Trace) => "trace",
        LogStream::Wasi(LogLevel::Debug) => "debug",
        LogStream::Wasi(LogLevel::Info) => "info",
        LogStream::Wasi(LogLevel::Warn) => "warn",
        LogStream::Wasi(LogLevel::Error) => "error",
        LogStream::Wasi(LogLevel::Critical) => "critical",
    }
}

/// Sends batches until every sink is gone, or the daemon.
async fn deliver(mut queue: mpsc::Receiver<Item>, out: mpsc::Sender<FromRunner>) {
    while let Some(first) = queue.recv().await {
        let mut lines = Vec::new();
        let mut flushed = Vec::new();
        let mut next = Some(first);
        let mut bytes = 0;
        while let Some(item) = next {
            match item {
                Item::Line(sender, line) => {
                    sender.waiting.fetch_sub(1, Relaxed);
                    bytes += line.text.len();
                    lines.push((sender.replica.clone(), line));
                }
                Item::Flush(done) => flushed.push(done),
            }
            next = if bytes < BATCH_BYTES_MAX {
                queue.try_recv().ok()
            } else {
                None
            };
        }
        let sent = Instant::now();
        // Lines that found the queue full are told with the next line of their replica.
        if !lines.is_empty() && out.send(FromRunner::Logs(lines)).await.is_err() {
            return;
        }
        let waited_for = !flushed.is_empty();
        for done in flushed {
            let _ = done.send(());
        }
        if !waited_for && bytes < BATCH_BYTES_MAX {
            // Lines gather meanwhile. The first line after a quiet time is not held back.
            tokio::time::sleep_until(sent + BATCH_INTERVAL).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replica(slot: u64) -> ReplicaKey {
        use wasmorch_api::{PlacementNumber, ReplicaId, Slot, WorkloadKey};
        let id = ReplicaId {
            slot: Slot(slot),
            placement: PlacementNumber(1),
            start: 1,
        };
        ReplicaKey::new(
            WorkloadKey::new("shop".parse().unwrap(), "web".parse().unwrap()),
            id,
        )
    }

    fn line(text: &str) -> wasmorch_runtime::LogLine {
        wasmorch_runtime::LogLine {
            stream: LogStream::Stdout,
            request_id: None,
            text: text.to_owned(),
        }
    }

    #[test]
    fn a_replica_has_a_burst_and_then_a_rate() {
        let start = Instant::now();
        let mut rate = Rate::new(start);
        let passed = (0..100_000).filter(|_| rate.take(10, start)).count();
        assert_eq!(passed, LINES_BURST as usize);
        let later = start + Duration::from_secs(1);
        let passed = (0..100_000).filter(|_| rate.take(10, later)).count();
        assert_eq!(passed, LINES_PER_SECOND as usize);
        let mut rate = Rate::new(start);
        assert!(
            (0..100_000).filter(|_| rate.take(16 << 10, start)).count() <= 128,
            "bytes too"
        );
    }

    #[tokio::test]
    async fn lines_come_in_order_and_losses_are_told() {
        let (out, mut from) = mpsc::channel(64);
        let (queue, deliver) = LogQueue::new(out);
        let task = tokio::spawn(deliver);
        let sink = queue.sink(replica(1));
        let flood = LINES_BURST as usize + 500;
        for number in 0..flood {
            sink.line(line(&number.to_string()));
        }
        queue.flush().await;
        drop((sink, queue));
        let (mut texts, mut dropped) = (Vec::new(), 0);
        while let Some(FromRunner::Logs(lines)) = from.recv().await {
            for (_, line) in lines {
                dropped += line.dropped;
                texts.push(line.text);
            }
        }
        task.await.unwrap();
        assert_eq!(texts[..3], ["0", "1", "2"]);
        assert!(dropped >= 1, "{dropped}");
        // What was not dropped arrived; the last line tells of those before it.
        assert_eq!(texts.len() as u64 - 1 + dropped, flood as u64);
    }

    /// The flood comes while nobody takes lines out.
    #[tokio::test]
    async fn who_says_little_is_heard_beside_those_who_flood() {
        let (out, mut from) = mpsc::channel(64);
        let (queue, deliver) = LogQueue::new(out);
        let sinks = [1, 2, 3, 4].map(|slot| queue.sink(replica(slot)));
        for noisy in &sinks[..3] {
            for _ in 0..LINES_BURST {
                noisy.line(line("x"));
            }
        }
        let quiet = &sinks[3];
        for text in ["one", "two"] {
            quiet.line(line(text));
        }
        drop((sinks, queue));
        let task = tokio::spawn(deliver);
        let mut heard = Vec::new();
        while let Some(FromRunner::Logs(lines)) = from.recv().await {
            let of_quiet = lines.into_iter().filter(|(of, _)| of.id.slot.0 == 4);
            heard.extend(of_quiet.map(|(_, line)| (line.text, line.dropped)));
        }
        task.await.unwrap();
        assert_eq!(heard, [("one".to_owned(), 0), ("two".to_owned(), 0)]);
    }
}
