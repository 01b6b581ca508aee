//! The store: one KV bucket with all state, the object store of artifacts, the stream of events.
//!
//! Owns how they are laid out in JetStream and every read and write of them. It knows keys and
//! bytes, not what they mean: that is the planner's. `async_nats` is named in the modules below and
//! in the link only.
//!
//! Invariants: every write but the lease's and the term's own is an atomic batch that the store
//! itself fences by the sequence of `term`; one batch is on its way at a time. An error says
//! whether the write certainly did not happen or whether that is unknown.

mod batch;
mod consumers;
mod leadership;
mod load;
mod objects;
mod rebuild;
mod setup;

use async_nats::jetstream;
use wasmorch_api::subjects;

use crate::error::ControllerError;
use crate::link::Link;

pub use batch::{BATCH_BYTES_MAX, BATCH_MESSAGES_MAX, BatchAck, Entry};
pub use leadership::LeaseView;
pub use load::{Loaded, LoadedEntry};
pub use objects::{Object, ObjectError};

/// Why a read or a write of the store failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Somebody else has written what this write expected to be unchanged. Nothing was written.
    #[error("the store refused the write: a newer leader has written since")]
    Fenced,
    /// Whether the write happened is not known.
    #[error("no answer from the store: whether the write happened is unknown ({0})")]
    Unknown(String),
    /// The store has no room. Nothing was written.
    #[error("the store is full: {0}")]
    Full(String),
    /// One value is over the server's message limit. Nothing was written.
    #[error("the value of {key} has {bytes} bytes, over the server's message limit of {max}")]
    TooLarge {
        /// The key.
        key: String,
        /// How large, headers included.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// More than one batch can hold. Nothing was written.
    #[error("{count} writes do not fit one atomic batch of at most {BATCH_MESSAGES_MAX}")]
    TooMany {
        /// How many.
        count: usize,
    },
    /// The store is busy or changes its leader: the same write may pass soon. Nothing was written.
    #[error("the store is not ready: {0}")]
    NotReady(String),
    /// The store is not there. Nothing was written.
    #[error("the store does not answer: {0}")]
    Unavailable(String),
    /// The store refused for another reason. Nothing was written.
    #[error("the store refused: {what} (error {code})")]
    Refused {
        /// JetStream's error code.
        code: u64,
        /// What it said.
        what: String,
    },
    /// A stored value is not what its key promises.
    #[error("the value of {key} cannot be read: {what}")]
    Unreadable {
        /// The key.
        key: String,
        /// Why.
        what: String,
    },
}

impl StoreError {
    /// Whether this side can no longer know what the store holds: it must step down and read anew.
    pub fn ends_leadership(&self) -> bool {
        matches!(self, Self::Fenced | Self::Unknown(_))
    }
}

/// The open store, cheap to clone.
#[derive(Clone)]
pub struct Store {
    link: Link,
    js: jetstream::Context,
    state: jetstream::stream::Stream,
    objects: jetstream::object_store::ObjectStore,
    /// In front of every subject that is written: JetStream in another domain is reached through
    /// its API prefix (as the KV clients do).
    put_prefix: String,
    /// One batch at a time: batches on their way together that share a fence fail at three replicas.
    writing: std::sync::Arc<tokio::sync::Mutex<()>>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store")
            .field("url", &self.link.url())
            .finish_non_exhaustive()
    }
}

impl Store {
    /// Checks the server, and opens the streams; creates those that are absent and updates those
    /// that differ.
    pub async fn open(link: &Link, js_domain: Option<&str>) -> Result<Self, ControllerError> {
        setup::check_server(link)?;
        let (js, put_prefix) = setup::context(link, js_domain);
        setup::check_jetstream(link, &js).await?;
        let replicas = setup::replicas(link);
        let state = setup::ensure(&js, setup::state_stream(replicas)).await?;
        setup::ensure(&js, setup::event_stream(replicas)).await?;
        let objects = setup::ensure_objects(&js, replicas).await?;
        Ok(Self {
            link: link.clone(),
            js,
            state,
            objects,
            put_prefix,
            writing: std::sync::Arc::default(),
        })
    }

    /// The last sequence of the state stream, asked from its leader.
    pub async fn last_sequence(&self) -> Result<u64, StoreError> {
        match self.state.get_info().await {
            Ok(info) => Ok(info.state.last_sequence),
            Err(error) => Err(StoreError::Unavailable(error.to_string())),
        }
    }

    /// The largest value that a batch takes.
    pub fn value_bytes_max(&self) -> usize {
        { self.link.message_bytes_max() }.saturating_sub(batch::HEADER_BYTES_MAX)
    }

    fn put_subject(&self, key: &str) -> String {
        format!("{}{}", self.put_prefix, subjects::state(key))
    }
}
