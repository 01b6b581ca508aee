//! One http replica as the gateway meets it: whether it takes requests, and how it is drained.
//!
//! Invariants:
//! - A request that gets [`LocalError::Refused`] was not executed, and is given back whole.
//! - Whoever closes it and then finds no one entering knows that no one comes after.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

use http::{Request, Response};
use tokio::sync::Notify;
use wasmorch_api::RevisionNumber;
use wasmorch_gateway::{Body, Deadline, Health, Hops, LocalError};
use wasmorch_runtime::{BodySide, Ended, HttpReplica, Lineage, LogSink, RequestId};

use super::choice::Candidate;
use crate::runner::answers::{Counted, Tally, Told, answered};

/// The longest name of a request that a client may give.
const REQUEST_ID_MAX: usize = 128;

/// Where a member stands. Order matters: higher is closer to the end.
pub(super) const UNREADY: u8 = 0;
pub(super) const SERVING: u8 = 1;
pub(super) const LEAVING: u8 = 2;
pub(super) const CLOSED: u8 = 3;

/// One http replica.
pub(super) struct Member {
    pub(super) guest: Arc<HttpReplica>,
    pub(super) revision: RevisionNumber,
    logs: Arc<dyn LogSink>,
    tally: Option<Arc<Tally>>,
    pub(super) health: Health,
    stage: AtomicU8,
    /// Requests between being let in and the head of their response.
    entering: AtomicUsize,
    /// Told when `entering` falls to zero.
    emptied: Notify,
}

/// Counts one request as let in.
struct Entered<'a>(&'a Member);

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        if self.0.entering.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.emptied.notify_waiters();
        }
    }
}

impl Member {
    pub(super) fn new(
        guest: Arc<HttpReplica>,
        revision: RevisionNumber,
        logs: Arc<dyn LogSink>,
        tally: Option<Arc<Tally>>,
    ) -> Self {
        Self {
            guest,
            revision,
            logs,
            tally,
            health: Health::default(),
            stage: AtomicU8::new(UNREADY),
            entering: AtomicUsize::new(0),
            emptied: Notify::new(),
        }
    }

    /// Readiness, while it has not begun to leave.
    pub(super) fn set_ready(&self, ready: bool) {
        let (from, to) = if ready {
            (UNREADY, SERVING)
        } else {
            (SERVING, UNREADY)
        };
        // Failing means that it is there already, or on its way out.
        let _ = self
            .stage
            .compare_exchange(from, to, Ordering::SeqCst, Ordering::SeqCst);
    }

    /// Lets a request in unless the member is closed. Counted before it is looked at, so that
    /// whoever closes and then finds no one counted knows that no one comes after.
    fn enter(&self) -> Option<Entered<'_>> {
        self.entering.fetch_add(1, Ordering::SeqCst);
        let entered = Entered(self);
        (self.stage() != CLOSED).then_some(entered)
    }

    /// Passes a request to the guest. Whether a failure is the replica's own is in the second part.
    pub(super) async fn handle(
        &self,
        request: Request<Body>,
    ) -> Result<Response<Body>, (LocalError, bool)> {
        let Some(_entered) = self.enter() else {
            return Err((LocalError::Refused(request), false));
        };
        let mut request = request;
        let lineage = lineage(request.extensions());
        let id = request_id(request.headers());
        request.extensions_mut().insert(lineage);
        request.extensions_mut().insert(id.clone());
        self.guest.count_request();
        let counted = self.tally.clone().map(Counted::begin);
        if let Some(awaited) = counted.as_ref().and_then(Counted::awaited) {
            request.extensions_mut().insert(awaited.clone());
        }
        let told = Told {
            logs: self.logs.clone(),
            id,
        };
        let entering = self.guest.enter(&request);
        let answer = match entering.await {
            // The replica is ended, and this one has had no seat: it goes elsewhere whole.
            Err(Ended::Stopped) => {
                counted.into_iter().for_each(Counted::given_back);
                return Err((LocalError::Refused(request), false));
            }
            Err(ended) => Err(ended),
            Ok(admission) => self.guest.serve(request, admission).await,
        };
        let answered = answered(answer, counted, told);
        answered.map_err(|ended| {
            let blamed = blames_replica(&ended);
            (local_error(ended), blamed)
        })
    }

    /// Lets nobody in from here on.
    pub(super) fn close(&self) {
        self.stage.store(CLOSED, Ordering::SeqCst);
    }

    /// Goes on answering until it is `withdrawn` from what other gateways route by, then takes nothing new,
    /// and returns when nothing is in hand any more.
    pub(super) async fn drain(&self, withdrawn: impl Future<Output = ()>) {
        let was_serving = self.stage.fetch_max(LEAVING, Ordering::SeqCst) == SERVING;
        if was_serving {
            withdrawn.await;
        }
        self.close();
        loop {
            let emptied = self.emptied.notified();
            if self.entering.load(Ordering::SeqCst) == 0 {
                break;
            }
            emptied.await;
        }
        self.guest.close();
        self.guest.idle().await;
    }
}

impl Candidate for Member {
    fn stage(&self) -> u8 {
        self.stage.load(Ordering::SeqCst)
    }

    fn revision(&self) -> RevisionNumber {
        self.revision
    }

    fn has_room(&self) -> bool {
        self.guest.has_room()
    }

    fn load(&self) -> usize {
        self.guest.load()
    }

    fn health(&self) -> &Health {
        &self.health
    }
}

/// The client's own name for a request, where it can stand in a line; a new one elsewhere.
fn request_id(headers: &http::HeaderMap) -> RequestId {
    let given = headers.get("x-request-id").and_then(|id| id.to_str().ok());
    let legal = |id: &&str| {
        (1..=REQUEST_ID_MAX).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic())
    };
    match given.filter(legal) {
        Some(given) => RequestId(given.into()),
        None => RequestId::next(),
    }
}

/// What the guest's own requests inherit, as the gateway tells it.
fn lineage(extensions: &http::Extensions) -> Lineage {
    Lineage {
        hops: extensions.get::<Hops>().map_or(0, |hops| hops.0),
        deadline: extensions.get::<Deadline>().map(|deadline| deadline.0),
    }
}

/// Whether a failure says something of the replica: not what its caller, the host or its load brought
/// about.
fn blames_replica(ended: &Ended) -> bool {
    let others = matches!(
        ended,
        Ended::Busy { .. } | Ended::HostFull { .. } | Ended::CallerTimeout { .. } | Ended::Stopped
    );
    !others && !ended.is_the_clients()
}

/// What a failure means to the gateway. The reasons are the runtime's: they name the limit.
fn local_error(ended: Ended) -> LocalError {
    let reason = ended.to_string();
    match ended {
        Ended::Busy { retry_after, .. } | Ended::HostFull { retry_after, .. } => LocalError::Busy {
            retry_after,
            reason,
        },
        Ended::Timeout { .. } | Ended::CallerTimeout { .. } => LocalError::TimedOut { reason },
        Ended::BodyTooLarge {
            side: BodySide::Request,
            ..
        } => LocalError::TooLarge { reason },
        Ended::RequestBroken(_) => LocalError::Broken { reason },
        Ended::RequestTimeout { .. } => LocalError::Late { reason },
        Ended::Stopped => LocalError::Stopped,
        _ => LocalError::Failed { reason },
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn requests_are_named_by_their_clients_or_by_us() {
        let named = |id: &str| {
            let mut headers = http::HeaderMap::new();
            headers.insert("x-request-id", id.parse().unwrap());
            request_id(&headers)
        };
        assert_eq!(&*named("a-1").0, "a-1");
        for wrong in ["", "a b", "\u{e9}", &"x".repeat(REQUEST_ID_MAX + 1)] {
            assert_ne!(&*named(wrong).0, wrong);
        }
        assert_ne!(named(""), named(""), "each has one of its own");
    }

    #[test]
    fn failures_are_what_the_gateway_needs_to_know() {
        let second = Duration::from_secs(1);
        let busy = Ended::Busy {
            concurrency: 1,
            queue: 1,
            retry_after: second,
        };
        assert!(
            matches!(local_error(busy), LocalError::Busy { retry_after, .. } if retry_after == second)
        );
        let late = Ended::Timeout {
            limit: second,
            throttled: Duration::ZERO,
        };
        assert!(matches!(local_error(late), LocalError::TimedOut { .. }));
        let large = |side| {
            local_error(Ended::BodyTooLarge {
                side,
                limit_bytes: 1,
            })
        };
        assert!(matches!(
            large(BodySide::Request),
            LocalError::TooLarge { .. }
        ));
        assert!(matches!(
            large(BodySide::Response),
            LocalError::Failed { .. }
        ));
        let broken = Ended::RequestBroken("invalid chunk size".into());
        let slow = Ended::RequestTimeout { limit: second };
        for ended in [&broken, &slow] {
            assert!(!blames_replica(ended), "{ended}");
        }
        assert!(matches!(local_error(broken), LocalError::Broken { .. }));
        assert!(matches!(local_error(slow), LocalError::Late { .. }));
        assert!(!blames_replica(&Ended::Stopped));
        assert!(matches!(local_error(Ended::Stopped), LocalError::Stopped));
        let trap = Ended::Trap {
            message: "unreachable".into(),
            backtrace: String::new(),
        };
        assert!(
            matches!(local_error(trap), LocalError::Failed { reason } if reason.contains("unreachable"))
        );
    }
}
