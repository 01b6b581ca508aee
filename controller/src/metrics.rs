//! Counters of one controller process, and their text form (Prometheus exposition format 0.0.4).
//!
//! Owns the numbers. They live as long as the process, over changes of leadership.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// The counters, cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Metrics(Arc<Counters>);

#[derive(Debug)]
struct Counters {
    started: Instant,
    /// When the process's main loop last turned, in ms since `started`.
    turned_ms: AtomicU64,
    /// The term it leads; 0: it does not lead.
    leading: AtomicU64,
    terms: AtomicU64,
    hosts: AtomicU64,
    workloads: AtomicU64,
    plans: AtomicU64,
    plans_refused: AtomicU64,
    plan_us: AtomicU64,
    batches: AtomicU64,
    batches_failed: AtomicU64,
    batch_us: AtomicU64,
    writes: AtomicU64,
    calls: AtomicU64,
    calls_refused: AtomicU64,
    observations: AtomicU64,
    observations_dropped: AtomicU64,
    events: AtomicU64,
    events_dropped: AtomicU64,
    notes_dropped: AtomicU64,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let zero = || AtomicU64::new(0);
        Self(Arc::new(Counters {
            started: Instant::now(),
            turned_ms: zero(),
            leading: zero(),
            terms: zero(),
            hosts: zero(),
            workloads: zero(),
            plans: zero(),
            plans_refused: zero(),
            plan_us: zero(),
            batches: zero(),
            batches_failed: zero(),
            batch_us: zero(),
            writes: zero(),
            calls: zero(),
            calls_refused: zero(),
            observations: zero(),
            observations_dropped: zero(),
            events: zero(),
            events_dropped: zero(),
            notes_dropped: zero(),
        }))
    }

    /// The loop that keeps this process useful (leading or waiting to) has turned.
    pub(crate) fn turned(&self) {
        let ms = self.0.started.elapsed().as_millis();
        self.0
            .turned_ms
            .store(u64::try_from(ms).unwrap_or(u64::MAX), Relaxed);
    }

    /// How long ago it last turned.
    pub(crate) fn since_turn(&self) -> Duration {
        let turned = Duration::from_millis(self.0.turned_ms.load(Relaxed));
        self.0.started.elapsed().saturating_sub(turned)
    }

    pub(crate) fn led(&self, term: u64) {
        self.0.leading.store(term, Relaxed);
        if term > 0 {
            self.0.terms.fetch_add(1, Relaxed);
        }
    }

    /// The term this process leads.
    pub(crate) fn leading(&self) -> Option<u64> {
        Some(self.0.leading.load(Relaxed)).filter(|term| *term > 0)
    }

    pub(crate) fn size(&self, hosts: usize, workloads: usize) {
        self.0.hosts.store(hosts as u64, Relaxed);
        self.0.workloads.store(workloads as u64, Relaxed);
    }

    pub(crate) fn planned(&self, took: Duration) {
        self.0.plans.fetch_add(1, Relaxed);
        self.0.plan_us.fetch_add(micros(took), Relaxed);
    }

    pub(crate) fn plan_refused(&self) {
        self.0.plans_refused.fetch_add(1, Relaxed);
    }

    pub(crate) fn stored(&self, writes: usize, took: Duration) {
        self.0.batches.fetch_add(1, Relaxed);
        self.0.writes.fetch_add(writes as u64, Relaxed);
        self.0.batch_us.fetch_add(micros(took), Relaxed);
    }

    pub(crate) fn store_failed(&self) {
        self.0.batches_failed.fetch_add(1, Relaxed);
    }

    pub(crate) fn called(&self, refused: bool) {
        self.0.calls.fetch_add(1, Relaxed);
        self.0.calls_refused.fetch_add(u64::from(refused), Relaxed);
    }

    pub(crate) fn observed(&self) {
        self.0.observations.fetch_add(1, Relaxed);
    }

    pub(crate) fn observation_dropped(&self) {
        self.0.observations_dropped.fetch_add(1, Relaxed);
    }

    pub(crate) fn event(&self, dropped: bool) {
        self.0.events.fetch_add(1, Relaxed);
        self.0.events_dropped.fetch_add(u64::from(dropped), Relaxed);
    }

    pub(crate) fn note_dropped(&self) {
        self.0.notes_dropped.fetch_add(1, Relaxed);
    }

    /// All of them as text.
    pub(crate) fn text(&self, connected: bool) -> String {
        let c = &self.0;
        let gauges = [
            (
                "connected",
                u64::from(connected),
                "1 while NATS is connected",
            ),
            (
                "term",
                c.leading.load(Relaxed),
                "the term this process leads, 0 when it does not",
            ),
            ("hosts", c.hosts.load(Relaxed), "hosts known to the leader"),
            (
                "workloads",
                c.workloads.load(Relaxed),
                "workloads known to the leader",
            ),
        ];
        let counters = [
            ("terms_total", &c.terms, "terms this process has begun"),
            ("plans_total", &c.plans, "plans made"),
            (
                "plans_refused_total",
                &c.plans_refused,
                "plans that broke a rule",
            ),
            ("plan_microseconds_total", &c.plan_us, "time spent planning"),
            ("batches_total", &c.batches, "batches stored"),
            (
                "batches_failed_total",
                &c.batches_failed,
                "batches not stored",
            ),
            (
                "batch_microseconds_total",
                &c.batch_us,
                "time spent storing",
            ),
            ("writes_total", &c.writes, "keys written"),
            ("calls_total", &c.calls, "API calls answered"),
            ("calls_refused_total", &c.calls_refused, "API calls refused"),
            (
                "observations_total",
                &c.observations,
                "messages of hosts folded in",
            ),
            (
                "observations_dropped_total",
                &c.observations_dropped,
                "messages of hosts dropped",
            ),
            ("events_total", &c.events, "events"),
            (
                "events_dropped_total",
                &c.events_dropped,
                "events that were not published",
            ),
            (
                "notes_dropped_total",
                &c.notes_dropped,
                "notes to hosts that were not sent",
            ),
        ];
        let mut text = String::new();
        for (name, value, help) in gauges {
            line(&mut text, name, "gauge", help, value);
        }
        for (name, value, help) in counters {
            line(&mut text, name, "counter", help, value.load(Relaxed));
        }
        text
    }
}

fn line(text: &mut String, name: &str, kind: &str, help: &str, value: u64) {
    let name = format!("wasmorch_controller_{name}");
    let _ = writeln!(
        text,
        "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}"
    );
}

fn micros(took: Duration) -> u64 {
    u64::try_from(took.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_has_every_counter_once() {
        let metrics = Metrics::new();
        metrics.led(7);
        metrics.stored(3, Duration::from_millis(2));
        let text = metrics.text(true);
        assert!(text.contains("\nwasmorch_controller_term 7\n"), "{text}");
        assert!(text.contains("\nwasmorch_controller_writes_total 3\n"));
        assert!(text.contains("\nwasmorch_controller_batch_microseconds_total 2000\n"));
        assert_eq!(text.matches("# TYPE").count(), 19);
    }
}
