//! Reading all state at the start of a term.
//!
//! The last message of every key, by an ordered consumer. The reader has just written `term` at the
//! sequence `fence`; whatever was acknowledged to earlier leaders lies before it. A consumer may
//! read from a replica that lags, so the end of the load is not "no more for now" but having seen
//! a sequence: the fence itself at the start of a term, the stream's last one later in it. A replica
//! that has it has all before it.

use std::time::Duration;

use async_nats::jetstream::consumer::DeliverPolicy;
use async_nats::jetstream::consumer::pull::OrderedConfig;
use bytes::Bytes;
use futures::StreamExt;
use wasmorch_api::subjects;
use wasmorch_api::subjects::key;

use super::batch::is_marker;
use super::{Store, StoreError};

/// The reader gives up when nothing comes for this long.
const SILENCE_MAX: Duration = Duration::from_secs(10);

/// One key with its value.
#[derive(Debug, Clone)]
pub struct LoadedEntry {
    /// The key.
    pub key: String,
    /// Its value.
    pub value: Bytes,
    /// The value's sequence.
    pub sequence: u64,
}

/// All state at the fence.
#[derive(Debug, Default)]
pub struct Loaded {
    /// Keys that have a value, without `term` and `lease`.
    pub entries: Vec<LoadedEntry>,
    /// The last sequence seen.
    pub last_sequence: u64,
}

impl Store {
    /// Reads every key as it was at the sequence `until`, or later. [`StoreError::Fenced`] when
    /// another term than that of `fence` has begun meanwhile.
    pub async fn load(&self, fence: u64, until: u64) -> Result<Loaded, StoreError> {
        let config = OrderedConfig {
            filter_subject: subjects::state(">"),
            deliver_policy: DeliverPolicy::LastPerSubject,
            ..OrderedConfig::default()
        };
        let unavailable =
            |error: &dyn std::fmt::Display| StoreError::Unavailable(error.to_string());
        let consumer = self
            .state
            .create_consumer(config)
            .await
            .map_err(|e| unavailable(&e))?;
        let mut messages = consumer.messages().await.map_err(|e| unavailable(&e))?;
        let mut loaded = Loaded::default();
        loop {
            let next = tokio::time::timeout(SILENCE_MAX, messages.next()).await;
            let message = match next {
                Ok(Some(Ok(message))) => message,
                Ok(Some(Err(error))) => return Err(unavailable(&error)),
                Ok(None) => return Err(unavailable(&"the reader was closed")),
                Err(_) => return Err(unavailable(&"nothing came for 10 s")),
            };
            let info = message.info().map_err(|error| unavailable(&error))?;
            let (sequence, subject) = (info.stream_sequence, message.subject.as_str());
            let Some(key) = subjects::state_key(subject) else {
                continue;
            };
            loaded.last_sequence = loaded.last_sequence.max(sequence);
            match key {
                key::TERM if sequence > fence => return Err(StoreError::Fenced),
                key::TERM | key::LEASE => {}
                // A lagging replica may have shown the value before its marker.
                key if message.headers.as_ref().is_some_and(is_marker) => {
                    loaded.entries.retain(|entry| entry.key != key);
                }
                key => {
                    let (key, value) = (key.to_owned(), message.payload.clone());
                    loaded.entries.push(LoadedEntry {
                        key,
                        value,
                        sequence,
                    });
                }
            }
            if sequence >= until {
                return Ok(loaded);
            }
        }
    }
}
