//! Why work ended without success, in words a user can act on.
//!
//! Whatever is refused says what, why, and what would make it pass.

use std::fmt;
use std::time::Duration;

/// A wait for the processor that took this part of the time, or more, is told of.
const THROTTLED_PART: u32 = 4;

/// Which of the two bodies of a request was too large.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodySide {
    /// The client's.
    Request,
    /// The guest's.
    Response,
}

/// Why a request, a message or a run ended without success.
///
/// A response body that breaks off carries one of these as its error: `downcast_ref::<Ended>()`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// The guest trapped.
    Trap {
        /// What wasmtime says, for example `wasm trap: integer divide by zero`.
        message: String,
        /// The guest's frames, innermost first, or nothing.
        backtrace: String,
    },
    /// The guest failed after it was denied memory.
    MemoryLimit {
        /// The limit of the replica.
        limit_bytes: u64,
        /// What all its instances together would have had.
        wanted_bytes: u64,
    },
    /// The guest failed after it was denied a table.
    TableLimit {
        /// Elements that one table may have.
        limit: u64,
        /// Elements that it would have had.
        wanted: u64,
    },
    /// It held too much open: files, sockets, streams, or any other handles.
    Handles {
        /// The limit: for files, sockets and streams of all instances of the replica, for others
        /// of one instance.
        limit: u64,
    },
    /// It took too long.
    Timeout {
        /// The limit.
        limit: Duration,
        /// How much of it passed while it waited for its share of the processor.
        throttled: Duration,
    },
    /// Whoever asked has stopped waiting.
    CallerTimeout {
        /// What it had left when the request came in.
        limit: Duration,
    },
    /// All seats and all places in the queue are taken.
    Busy {
        /// Seats.
        concurrency: usize,
        /// Places in the queue.
        queue: usize,
        /// When to try again.
        retry_after: Duration,
    },
    /// The pool of instances of this host is used up, or it has no code to make one of.
    HostFull {
        /// What ran out, or failed.
        message: String,
        /// When to try again.
        retry_after: Duration,
    },
    /// A body was larger than allowed.
    BodyTooLarge {
        /// Whose.
        side: BodySide,
        /// The limit.
        limit_bytes: u64,
    },
    /// The request's body broke off, or was no body: whoever sent it did not send all of it.
    RequestBroken(String),
    /// The time was over while the guest waited for more of the request's body.
    RequestTimeout {
        /// The limit.
        limit: Duration,
    },
    /// It was stopped from outside.
    Stopped,
    /// The guest returned without setting a response.
    NoResponse,
    /// The guest's handler returned an error of its own.
    Guest(String),
    /// A mistake of ours, a panic in a host call among them.
    Internal(String),
}

impl Ended {
    /// Whether it is the doing of whoever sent the request, and says nothing of the guest.
    pub fn is_the_clients(&self) -> bool {
        matches!(
            self,
            Self::RequestBroken(_)
                | Self::RequestTimeout { .. }
                | Self::BodyTooLarge {
                    side: BodySide::Request,
                    ..
                }
        )
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Trap { message, .. } => write!(f, "the guest trapped: {message}"),
            Self::MemoryLimit {
                limit_bytes,
                wanted_bytes,
            } => write!(
                f,
                "memory limit of {} reached: {} wanted over all live instances of the replica; \
                 raise it with `--memory` or resources.memory",
                Bytes(*limit_bytes),
                Bytes(*wanted_bytes),
            ),
            Self::TableLimit { limit, wanted } => write!(
                f,
                "a table of {wanted} elements was wanted, and none may have more than {limit}; this \
                 limit is fixed"
            ),
            Self::Handles { limit } => write!(
                f,
                "more than {limit} handles were open at the same time; this limit is fixed: drop \
                 what is not used any more"
            ),
            Self::Timeout { limit, throttled } if *throttled >= *limit / THROTTLED_PART => write!(
                f,
                "timed out after {limit:?}, {:.1}s of which it waited for its share of the processor; raise \
                 resources.cpu, or resources.timeout",
                throttled.as_secs_f64()
            ),
            Self::Timeout { limit, .. } => write!(
                f,
                "timed out after {limit:?}; raise it with `--timeout` or resources.timeout"
            ),
            Self::CallerTimeout { limit } => write!(
                f,
                "the caller waited {limit:?} and no longer; raise the caller's resources.timeout"
            ),
            Self::Busy {
                concurrency,
                queue,
                retry_after,
            } => write!(
                f,
                "busy: {concurrency} run and {queue} wait already; try again in {retry_after:?}, \
                 or raise resources.concurrency, resources.queue or the number of replicas"
            ),
            Self::HostFull {
                message,
                retry_after,
            } => write!(
                f,
                "this host cannot run another instance ({message}); try again in {retry_after:?}"
            ),
            Self::BodyTooLarge { side, limit_bytes } => write!(
                f,
                "the {} body is larger than {}; raise it with resources.body",
                match side {
                    BodySide::Request => "request",
                    BodySide::Response => "response",
                },
                Bytes(*limit_bytes),
            ),
            Self::RequestBroken(message) => {
                write!(f, "the body of the request did not come whole: {message}")
            }
            Self::RequestTimeout { limit } => write!(
                f,
                "the body of the request did not come within {limit:?}; send it faster, or raise \
                 resources.timeout"
            ),
            Self::Stopped => f.write_str("stopped"),
            Self::NoResponse => f.write_str(
                "the guest returned without setting a response (wasi:http response-outparam)",
            ),
            Self::Guest(message) => write!(f, "the guest failed: {message}"),
            Self::Internal(message) => write!(f, "internal error: {message}"),
        }
    }
}

impl std::error::Error for Ended {}

/// Why a replica could not be prepared.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// The artifact exports nothing that this kind of replica calls.
    #[error("this artifact cannot run as {kind}: it exports no {expected}")]
    WrongShape {
        /// The kind asked for.
        kind: &'static str,
        /// What such an artifact exports.
        expected: &'static str,
    },
    /// An import that this runtime lacks, or provides with another type.
    #[error("linking failed: {0}")]
    Link(String),
    /// One instance alone needs more memory than the replica may use.
    #[error(
        "one instance needs {} of memory from the start, and the limit is {}; raise it with \
         `--memory` or resources.memory", Bytes(*needed_bytes), Bytes(*limit_bytes)
    )]
    Memory {
        /// What one instance starts with.
        needed_bytes: u64,
        /// The limit of the replica.
        limit_bytes: u64,
    },
    /// A directory could not be opened.
    #[error("directory {path} cannot be opened")]
    Preopen {
        /// The directory on this machine.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A directory with a limit, and code whose writes are not counted.
    #[error("the size of a volume is not held for {by} in this version: leave `size` out")]
    UncountedVolume {
        /// What is not counted.
        by: &'static str,
    },
}

/// Shows bytes as people write limits: `64MiB`, or `65.2MiB` when it is not whole.
struct Bytes(u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (unit, shift) in [("GiB", 30), ("MiB", 20), ("KiB", 10)] {
            let size = 1_u64 << shift;
            if self.0 >= size {
                if self.0.is_multiple_of(size) {
                    return write!(f, "{}{unit}", self.0 / size);
                }
                return write!(f, "{:.1}{unit}", self.0 as f64 / size as f64);
            }
        }
        write!(f, "{} bytes", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_say_how_far_and_what_raises_them() {
        let ended = Ended::MemoryLimit {
            limit_bytes: 64 << 20,
            wanted_bytes: (65 << 20) + 65536,
        };
        assert_eq!(
            ended.to_string(),
            "memory limit of 64MiB reached: 65.1MiB wanted over all live instances of the replica; \
             raise it with `--memory` or resources.memory"
        );
        let timeout = |throttled| Ended::Timeout {
            limit: Duration::from_secs(30),
            throttled: Duration::from_millis(throttled),
        };
        assert_eq!(
            timeout(7000).to_string(),
            "timed out after 30s; raise it with `--timeout` or resources.timeout"
        );
        assert_eq!(
            timeout(24_320).to_string(),
            "timed out after 30s, 24.3s of which it waited for its share of the processor; raise \
             resources.cpu, or resources.timeout"
        );
    }
}
