//! The replicas of this host, as the gateway sees them.
//!
//! Owns the trait and its refusals. It must not know how replicas run.

use std::time::Duration;

use http::{Request, Response};
use wasmorch_api::WorkloadKey;

use crate::Body;

/// The replicas of this host.
#[async_trait::async_trait]
pub trait Local: Send + Sync + 'static {
    /// How many replicas of the workload are ready here. Asked for every request: keep it cheap.
    fn ready(&self, workload: &WorkloadKey) -> u32;

    /// Whether a request would start at once. When it would not, and another host that serves the
    /// workload has less in hand, the request goes there.
    fn has_room(&self, workload: &WorkloadKey) -> bool {
        let _ = workload;
        true
    }

    /// Requests of the workload that are in hand here, waiting ones included. Told to gateways that
    /// choose among hosts.
    fn load(&self, workload: &WorkloadKey) -> u32 {
        let _ = workload;
        0
    }

    /// Starts a replica that rests here, and waits, though not for ever, until one is ready. `false`:
    /// none is.
    async fn wake(&self, workload: &WorkloadKey) -> bool {
        let _ = workload;
        false
    }

    /// Serves a request. Its URI is in origin form, its `Host` header is set, hop-by-hop headers
    /// are gone. Dropping the future, or the body of the response, cancels the work.
    async fn handle(
        &self,
        workload: &WorkloadKey,
        request: Request<Body>,
    ) -> Result<Response<Body>, LocalError>;
}

/// Why a replica of this host did not answer. Reasons are for people: what happened, which limit,
/// how far, how to raise it.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    /// No replica is ready here. The request is untouched.
    #[error("no replica is ready on this host")]
    NotHere(Request<Body>),
    /// The replica takes no more requests (it drains, or ends). The request is untouched.
    #[error("the replica is draining")]
    Refused(Request<Body>),
    /// Every seat and every place in the queue is taken; or there was no room for one more instance. It
    /// was not executed.
    #[error("{reason}")]
    Busy {
        /// When to try again.
        retry_after: Duration,
        /// Which limit.
        reason: String,
    },
    /// It ran for too long.
    #[error("{reason}")]
    TimedOut {
        /// Which limit.
        reason: String,
    },
    /// The body of the request is too large.
    #[error("{reason}")]
    TooLarge {
        /// Which limit.
        reason: String,
    },
    /// The body of the request broke off, or is none.
    #[error("{reason}")]
    Broken {
        /// What is wrong with it.
        reason: String,
    },
    /// The body of the request did not come in time.
    #[error("{reason}")]
    Late {
        /// Which limit.
        reason: String,
    },
    /// The host has ended the replica while it had the request in hand: it may have been executed.
    #[error("the replica was ended while it had the request in hand")]
    Stopped,
    /// The guest failed.
    #[error("{reason}")]
    Failed {
        /// What happened.
        reason: String,
    },
}
