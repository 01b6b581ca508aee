//! How the guest of an http replica answers, counted for `update.fail_when`.
//!
//! Owns what counts as a request, as an error and as slow; what follows from it is the leader's to
//! decide. Every http replica is counted: a few atomic additions for each request. Probes are not
//! requests and do not come by here. What the guest fails is told in its log, also after the head of
//! its answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use http::Response;
use http_body::Body as _;
use http_body_util::BodyExt as _;
use wasmorch_api::{Answers, Kind, WorkloadSpec};
use wasmorch_gateway::Body;
use wasmorch_runtime::{Awaited, BodySide, Ended, LogSink, RequestId};

use super::logs::failed;

/// The counts of one replica in this runner.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// `fail_when.p99`.
    slow_after: Option<Duration>,
    requests: AtomicU64,
    errors: AtomicU64,
    slow: AtomicU64,
}

impl Tally {
    /// One, if answers of this kind are judged.
    pub(super) fn of(spec: &WorkloadSpec, kind: Kind) -> Option<Arc<Self>> {
        let when = spec.update.judged_by(kind)?;
        Some(Arc::new(Self {
            slow_after: when.p99.map(|p99| p99.0),
            ..Self::default()
        }))
    }

    pub(super) fn so_far(&self) -> Answers {
        // The parts before the whole: no share is ever more than all.
        let (errors, slow) = (self.errors.load(Relaxed), self.slow.load(Relaxed));
        Answers {
            requests: self.requests.load(Relaxed).max(errors).max(slow),
            errors,
            slow,
        }
    }
}

/// One request, from the moment it was let in. Whoever goes away before there is an answer leaves nothing
/// to count, unless it has waited for longer than `fail_when.p99` already: that one is slow.
pub(super) struct Counted {
    tally: Arc<Tally>,
    began: Instant,
    /// How long its guest has waited for its client, where it is asked how long it took.
    awaited: Option<Awaited>,
    /// An answer came, or it is known that none counts.
    settled: bool,
}

impl Counted {
    pub(super) fn begin(tally: Arc<Tally>) -> Self {
        Self {
            awaited: tally.slow_after.map(|_| Awaited::default()),
            tally,
            began: Instant::now(),
            settled: false,
        }
    }

    /// What the request is to carry.
    pub(super) fn awaited(&self) -> Option<&Awaited> {
        self.awaited.as_ref()
    }

    /// It has had no seat here, and is another's.
    pub(super) fn given_back(mut self) {
        self.settled = true;
    }

    /// Counts how it ended. Whoever watches the body of an answer goes on with what is given back.
    fn settle(&mut self, answer: &Result<Response<Body>, Ended>) -> Option<Arc<Tally>> {
        self.settled = true;
        match answer {
            Ok(response) => {
                let failed = response.status().is_server_error();
                self.count(failed);
                (!failed).then(|| self.tally.clone())
            }
            Err(ended) => {
                match fault(ended) {
                    Some(failed) => self.count(failed),
                    // Its caller had no more time, and has left like a client that goes away.
                    None if matches!(ended, Ended::CallerTimeout { .. }) => self.given_up(),
                    None => {}
                }
                None
            }
        }
    }

    fn count(&self, failed: bool) {
        let tally = &self.tally;
        tally.requests.fetch_add(1, Relaxed);
        if failed {
            tally.errors.fetch_add(1, Relaxed);
        }
        if self.is_slow() {
            tally.slow.fetch_add(1, Relaxed);
        }
    }

    /// Whoever asked has gone without an answer. How long one would have taken nobody knows, but that it is
    /// longer than this: it counts once that is too long.
    fn given_up(&self) {
        if self.is_slow() {
            self.count(false);
        }
    }

    fn is_slow(&self) -> bool {
        let slow_after = self.tally.slow_after;
        let clients = || {
            self.awaited
                .as_ref()
                .map_or(Duration::ZERO, Awaited::so_far)
        };
        slow_after.is_some_and(|after| self.began.elapsed().saturating_sub(clients()) > after)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        if !self.settled {
            self.given_up();
        }
    }
}

/// Whether an end without an answer is the guest's fault; `None`: the guest had no say in it.
fn fault(ended: &Ended) -> Option<bool> {
    match ended {
        Ended::Trap { .. }
        | Ended::MemoryLimit { .. }
        | Ended::TableLimit { .. }
        | Ended::Handles { .. }
        | Ended::Timeout { .. }
        | Ended::NoResponse
        | Ended::Guest(_)
        | Ended::BodyTooLarge {
            side: BodySide::Response,
            ..
        } => Some(true),
        // The guest has answered none of these, or no request that was one.
        Ended::BodyTooLarge {
            side: BodySide::Request,
            ..
        }
        | Ended::RequestBroken(_)
        | Ended::RequestTimeout { .. }
        | Ended::CallerTimeout { .. }
        | Ended::Busy { .. }
        | Ended::HostFull { .. }
        | Ended::Stopped
        | Ended::Internal(_) => None,
    }
}

/// Whether an answer that has begun ended so by the guest's fault. One without an end is cut at
/// `resources.timeout`, and was good until then.
fn breaks_off(ended: &Ended) -> bool {
    !matches!(ended, Ended::Timeout { .. }) && fault(ended) == Some(true)
}

/// Where it is told how a request failed, and under which name.
pub(super) struct Told {
    pub(super) logs: Arc<dyn LogSink>,
    pub(super) id: RequestId,
}

/// Counts and tells how a request ended, and goes on watching the body of its answer.
pub(super) fn answered(
    answer: Result<Response<Body>, Ended>,
    counted: Option<Counted>,
    told: Told,
) -> Result<Response<Body>, Ended> {
    let mut tally = counted.and_then(|mut counted| counted.settle(&answer));
    let Told { logs, id } = told;
    let response = answer.inspect_err(|ended| failed(&*logs, "a request", Some(&id), ended))?;
    if response.body().is_end_stream() {
        return Ok(response);
    }
    Ok(response.map(|body| {
        let watched = body.inspect_err(move |error| {
            let Some(ended) = error.downcast_ref::<Ended>() else {
                return;
            };
            failed(&*logs, "an answer that had begun", Some(&id), ended);
            if breaks_off(ended)
                && let Some(tally) = tally.take()
            {
                tally.errors.fetch_add(1, Relaxed);
            }
        });
        watched.boxed_unsync()
    }))
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use bytes::Bytes;
    use http_body::Frame;
    use http_body_util::{Empty, StreamBody};
    use wasmorch_api::HumanDuration;
    use wasmorch_api::spec::FailWhen;
    use wasmorch_runtime::{BodyError, LogLine};

    use super::*;

    fn tally(p99: Option<u64>) -> Arc<Tally> {
        let mut spec = WorkloadSpec::default();
        let none = Tally::of(&spec, Kind::Messages);
        assert!(none.is_none(), "http alone");
        spec.update.fail_when = Some(FailWhen {
            p99: p99.map(HumanDuration::millis),
            ..FailWhen::default()
        });
        Tally::of(&spec, Kind::Http).expect("http")
    }

    fn answer(status: u16) -> Result<Response<Body>, Ended> {
        let body = Empty::new().map_err(|never| match never {}).boxed_unsync();
        Ok(Response::builder().status(status).body(body).expect("one"))
    }

    #[derive(Default)]
    struct Lines(Mutex<Vec<(Option<Arc<str>>, String)>>);

    impl LogSink for Lines {
        fn line(&self, line: LogLine) {
            let mut lines = self.0.lock().expect("no panic");
            lines.push((line.request_id, line.text));
        }
    }

    fn ended(
        counted: Counted,
        end: Result<Response<Body>, Ended>,
    ) -> Result<Response<Body>, Ended> {
        let told = Told {
            logs: Arc::new(Lines::default()),
            id: RequestId::next(),
        };
        answered(end, Some(counted), told)
    }

    fn figures(tally: &Tally) -> (u64, u64, u64) {
        let so_far = tally.so_far();
        (so_far.requests, so_far.errors, so_far.slow)
    }

    #[test]
    fn what_the_guest_fails_is_an_error_and_what_it_never_saw_is_nothing() {
        let tally = tally(None);
        let second = Duration::from_secs(1);
        let busy = Ended::Busy {
            concurrency: 1,
            queue: 1,
            retry_after: second,
        };
        let trap = Ended::Trap {
            message: "unreachable".into(),
            backtrace: String::new(),
        };
        let late = Ended::Timeout {
            limit: second,
            throttled: Duration::ZERO,
        };
        let gone = Ended::CallerTimeout { limit: second };
        let broken = Ended::RequestBroken("invalid chunk size".into());
        let slow = Ended::RequestTimeout { limit: second };
        let ends = [
            (answer(200), (1, 0, 0)),
            (answer(404), (2, 0, 0)),
            (answer(503), (3, 1, 0)),
            (Err(trap), (4, 2, 0)),
            (Err(late), (5, 3, 0)),
            (Err(gone), (5, 3, 0)),
            (Err(broken), (5, 3, 0)),
            (Err(slow), (5, 3, 0)),
            (Err(busy), (5, 3, 0)),
            (Err(Ended::Stopped), (5, 3, 0)),
        ];
        for (end, expected) in ends {
            let words = format!("{end:?}");
            drop(ended(Counted::begin(tally.clone()), end));
            assert_eq!(figures(&tally), expected, "{words}");
        }
        drop(Counted::begin(tally.clone()));
        assert_eq!(figures(&tally), (5, 3, 0), "the client went away");
    }

    #[test]
    fn what_is_later_than_the_p99_is_slow_answered_or_not() {
        let tally = tally(Some(50));
        let begun = |ago: u64| {
            let mut counted = Counted::begin(tally.clone());
            counted.began -= Duration::from_millis(ago);
            counted
        };
        drop(ended(begun(0), answer(200)));
        assert_eq!(figures(&tally), (1, 0, 0));
        drop(ended(begun(60), answer(200)));
        assert_eq!(figures(&tally), (2, 0, 1));
        drop(begun(60));
        assert_eq!(figures(&tally), (3, 0, 2), "whoever waited has gone");
        let limit = Duration::from_millis(60);
        let out_of_time = || Err(Ended::CallerTimeout { limit });
        drop(ended(begun(60), out_of_time()));
        assert_eq!(
            figures(&tally),
            (4, 0, 3),
            "whoever waited had no more time"
        );
        drop(ended(begun(0), out_of_time()));
        drop(begun(0));
        assert_eq!(figures(&tally), (4, 0, 3), "too soon to tell");
    }

    #[tokio::test]
    async fn an_answer_that_breaks_off_is_an_error_and_one_without_an_end_is_none() {
        let trap = Ended::Trap {
            message: "unreachable".into(),
            backtrace: String::new(),
        };
        let limit = Duration::from_secs(30);
        let broken = Ended::RequestBroken("invalid chunk size".into());
        for (end, errors) in [
            (trap, 1),
            (
                Ended::Timeout {
                    limit,
                    throttled: Duration::ZERO,
                },
                0,
            ),
            (broken, 0),
        ] {
            let tally = tally(None);
            // A client's doing is not the guest's, and stands not in its log.
            let said = format!("an answer that had begun failed: {end}");
            let said = (!end.is_the_clients()).then(|| (Some("r-7".into()), said));
            let frames: [Result<Frame<Bytes>, BodyError>; 2] = [
                Ok(Frame::data(Bytes::from_static(b"half"))),
                Err(Box::new(end)),
            ];
            let body = StreamBody::new(futures::stream::iter(frames)).boxed_unsync();
            let lines = Arc::new(Lines::default());
            let told = Told {
                logs: lines.clone(),
                id: RequestId("r-7".into()),
            };
            let counted = Some(Counted::begin(tally.clone()));
            let answered = answered(Ok(Response::new(body)), counted, told);
            assert_eq!(figures(&tally), (1, 0, 0));
            let body = answered.expect("a head").into_body();
            assert!(body.collect().await.is_err());
            assert_eq!(figures(&tally), (1, errors, 0));
            let lines = lines.0.lock().expect("no panic");
            assert_eq!(*lines, Vec::from_iter(said));
        }
    }
}
