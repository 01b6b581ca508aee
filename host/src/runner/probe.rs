//! Whether a guest answers as its spec says it shall: readiness and liveness of http replicas.
//!
//! ```text
//!   unproven ── `pass` passes in a row ──> passing ── `fail` failures in a row ──> failing
//!        ^                                    ^                                       |
//!        `-- failures change nothing          `────── `pass` passes in a row ─────────'
//! ```
//!
//! Owns the counting and the probe itself. What a change means is the caller's business.
//!
//! A probe takes no seat and stands in no queue: a replica all of whose seats are taken answers it
//! beside its requests, and is neither unready nor ended for being busy.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, header};
use http_body_util::{BodyExt as _, Empty};
use tokio::time::{Instant, timeout_at};
use wasmorch_api::spec::Probe;
use wasmorch_gateway::Body;
use wasmorch_runtime::{Ended, HttpReplica};

/// The user agent of probes, so that a guest's logs can tell them from requests.
const USER_AGENT: &str = concat!("wasmorch-probe/", env!("CARGO_PKG_VERSION"));
/// Probes are at least so far apart, whatever the spec says: each costs an instance.
const INTERVAL_MIN: Duration = Duration::from_millis(100);
/// A probe reads no more than this of the answer.
const BODY_READ_MAX: usize = 1 << 20;

/// What one probe told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The guest answered as it should.
    Pass,
    /// It did not.
    Fail(String),
    /// No one can tell: there was no room for one more instance. Being busy is no failure.
    Unknown(String),
}

/// What a verdict changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Change {
    /// It passes now.
    Passing,
    /// It passes no more, or still not and for another reason than before.
    Failing(String),
}

/// Counts verdicts.
#[derive(Debug)]
pub(super) struct Judge {
    pass: u32,
    fail: u32,
    passing: bool,
    passed: u32,
    failed: u32,
    /// The reason told last.
    told: Option<String>,
}

impl Judge {
    pub(super) fn new(probe: &Probe) -> Self {
        Self {
            pass: probe.pass.max(1),
            fail: probe.fail.max(1),
            passing: false,
            passed: 0,
            failed: 0,
            told: None,
        }
    }

    /// Takes one verdict.
    pub(super) fn take(&mut self, verdict: Verdict) -> Option<Change> {
        match verdict {
            Verdict::Pass => {
                self.failed = 0;
                self.passed = self.passed.saturating_add(1);
                let proven = !self.passing && self.passed >= self.pass;
                proven.then(|| {
                    self.passing = true;
                    self.told = None;
                    Change::Passing
                })
            }
            Verdict::Fail(reason) => {
                self.passed = 0;
                self.failed = self.failed.saturating_add(1);
                if self.passing && self.failed < self.fail {
                    return None;
                }
                self.passing = false;
                self.tell(reason)
            }
            // Told while nothing else is known; it changes nothing.
            Verdict::Unknown(reason) if !self.passing && self.told.is_none() => self.tell(reason),
            Verdict::Unknown(_) => None,
        }
    }

    /// Failures in a row.
    pub(super) fn failed(&self) -> u32 {
        self.failed
    }

    fn tell(&mut self, reason: String) -> Option<Change> {
        let news = self.told.as_ref() != Some(&reason);
        news.then(|| {
            self.told = Some(reason.clone());
            Change::Failing(reason)
        })
    }
}

/// Asks one replica again and again.
pub(super) struct Prober<'a> {
    /// The key of its spec, for people.
    name: &'static str,
    guest: &'a HttpReplica,
    probe: &'a Probe,
    /// `<name>.<namespace>.<domain>`.
    host: &'a str,
    next: Instant,
}

impl<'a> Prober<'a> {
    /// The first probe comes at once.
    pub(super) fn new(
        name: &'static str,
        guest: &'a HttpReplica,
        probe: &'a Probe,
        host: &'a str,
    ) -> Self {
        Self {
            name,
            guest,
            probe,
            host,
            next: Instant::now(),
        }
    }

    /// Waits for the time of the next probe, then asks. Dropping it between the two loses nothing.
    pub(super) async fn next(&mut self) -> Verdict {
        tokio::time::sleep_until(self.next).await;
        let interval = self.probe.interval.0.max(INTERVAL_MIN);
        self.next = Instant::now() + interval;
        // Boxed: between two probes a replica waits, and many do.
        Box::pin(self.ask()).await
    }

    async fn ask(&self) -> Verdict {
        let request = match self.request() {
            Ok(request) => request,
            Err(error) => {
                return Verdict::Fail(format!("health path `{}`: {error}", self.probe.path));
            }
        };
        let until = Instant::now() + self.probe.timeout.0;
        // What a guest does after its answer to a probe has no seat either: it is over soon.
        let within = self.probe.timeout.0 * 2;
        match timeout_at(until, self.guest.probe(request, within)).await {
            Ok(Ok(response)) => self.judge(response, until).await,
            Ok(Err(ended)) if self.had_no_room(&ended) => Verdict::Unknown(ended.to_string()),
            Ok(Err(ended)) => Verdict::Fail(format!("GET {}: {ended}", self.probe.path)),
            Err(_) => Verdict::Fail(format!(
                "GET {}: no answer within {} ({}.timeout)",
                self.probe.path, self.probe.timeout, self.name
            )),
        }
    }

    /// Whether it is others that the probe's instance had no room beside.
    fn had_no_room(&self, ended: &Ended) -> bool {
        match ended {
            Ended::HostFull { .. } => true,
            Ended::MemoryLimit { .. } => self.guest.usage().in_flight > 0 || !self.guest.has_room(),
            _ => false,
        }
    }

    fn request(&self) -> Result<Request<Body>, http::Error> {
        Request::get(&self.probe.path)
            .header(header::HOST, self.host)
            .header(header::USER_AGENT, USER_AGENT)
            .body(
                Empty::<Bytes>::new()
                    .map_err(|never| match never {})
                    .boxed_unsync(),
            )
    }

    /// The status decides; a guest that fails while it writes the body fails. A body without an
    /// end is no failure: it is read until the probe's time is over.
    async fn judge(&self, response: http::Response<Body>, until: Instant) -> Verdict {
        if let Some(why) = unwanted(self.probe, self.name, &response) {
            return Verdict::Fail(format!("GET {}: {why}", self.probe.path));
        }
        let mut body = response.into_body();
        let mut read = 0;
        while read < BODY_READ_MAX {
            match timeout_at(until, body.frame()).await {
                Err(_) | Ok(None) => break,
                Ok(Some(Ok(frame))) => read += frame.data_ref().map_or(0, Bytes::len),
                Ok(Some(Err(error))) => {
                    return Verdict::Fail(format!("GET {}: {error}", self.probe.path));
                }
            }
        }
        Verdict::Pass
    }
}

/// Why a response's head does not pass.
fn unwanted<B>(probe: &Probe, name: &str, response: &http::Response<B>) -> Option<String> {
    let status = response.status();
    if probe.status.is_none() && status.is_redirection() {
        let to = response.headers().get(header::LOCATION);
        let to = to.map(|to| format!("redirects to {}", String::from_utf8_lossy(to.as_bytes())));
        let to = to.unwrap_or_else(|| format!("status {} redirects", status.as_u16()));
        return Some(format!(
            "{to}: name the final path ({name}.path), or the statuses that pass ({name}.status)"
        ));
    }
    let wanted = probe.wanted();
    let passes = wanted.contains(status.as_u16());
    (!passes).then(|| {
        let status = status.as_u16();
        format!("status {status}, and {wanted} is wanted ({name}.status)")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redirect_proves_nothing_unless_it_is_asked_for() {
        let redirect = http::Response::builder()
            .status(302)
            .header(header::LOCATION, "/login")
            .body(())
            .unwrap();
        let mut probe = Probe::default();
        let why = unwanted(&probe, "health.ready", &redirect).unwrap();
        assert!(
            why.starts_with("redirects to /login: name the final path"),
            "{why}"
        );
        probe.status = Some("100-499".parse().unwrap());
        assert_eq!(unwanted(&probe, "health.ready", &redirect), None);
        probe.status = Some("200".parse().unwrap());
        let why = unwanted(&probe, "health.ready", &redirect).unwrap();
        assert_eq!(why, "status 302, and 200 is wanted (health.ready.status)");
        let missing = http::Response::builder().status(404).body(()).unwrap();
        assert_eq!(unwanted(&Probe::default(), "health.ready", &missing), None);
    }

    fn judge(pass: u32, fail: u32) -> Judge {
        Judge::new(&Probe {
            pass,
            fail,
            ..Probe::default()
        })
    }

    fn failing(reason: &str) -> Option<Change> {
        Some(Change::Failing(reason.into()))
    }

    fn fail(reason: &str) -> Verdict {
        Verdict::Fail(reason.into())
    }

    #[test]
    fn the_first_pass_is_enough_by_default() {
        let mut judge = Judge::new(&Probe::default());
        assert_eq!(judge.take(Verdict::Pass), Some(Change::Passing));
        assert_eq!(judge.take(Verdict::Pass), None);
    }

    #[test]
    fn passes_and_failures_count_in_a_row() {
        let mut judge = judge(2, 3);
        assert_eq!(judge.take(Verdict::Pass), None);
        assert_eq!(judge.take(fail("a")), failing("a"));
        assert_eq!(judge.take(Verdict::Pass), None);
        assert_eq!(judge.take(Verdict::Pass), Some(Change::Passing));
        assert_eq!(judge.take(fail("b")), None);
        assert_eq!(judge.take(fail("b")), None);
        assert_eq!(judge.take(Verdict::Pass), None);
        assert_eq!(judge.take(fail("b")), None);
        assert_eq!(judge.take(fail("b")), None);
        assert_eq!(judge.take(fail("b")), failing("b"));
    }

    #[test]
    fn a_reason_is_told_once() {
        let mut judge = judge(1, 1);
        assert_eq!(judge.take(fail("a")), failing("a"));
        assert_eq!(judge.take(fail("a")), None);
        assert_eq!(judge.take(fail("b")), failing("b"));
    }

    #[test]
    fn being_busy_changes_nothing() {
        let mut judge = judge(1, 1);
        assert_eq!(judge.take(Verdict::Unknown("busy".into())), failing("busy"));
        assert_eq!(judge.take(Verdict::Pass), Some(Change::Passing));
        for _ in 0..10 {
            assert_eq!(judge.take(Verdict::Unknown("busy".into())), None);
        }
    }
}
