//! The lease and the term: the two keys that are written alone, each against its own last sequence; and
//! what else is read of one key from the stream's leader.
//!
//! Traps, all of them met: the KV client's `update` sends no TTL, so a lease renewed with it never
//! ends; its `create` drops the TTL over the marker of an expired key; a read from a replica may be
//! stale. So the lease is a raw put with TTL and expected sequence, and both keys are read from the
//! stream's leader.

use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::stream::LastRawMessageErrorKind;
use bytes::Bytes;
use serde::de::DeserializeOwned;
use wasmorch_api::record::{Lease, TermRecord};
use wasmorch_api::subjects::key;
use wasmorch_api::{Timestamp, subjects};

use super::batch::{delete_marker, expected, is_marker};
use super::{Store, StoreError};
use crate::lease::LeaseTimes;

/// Who holds the lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LeaseView {
    /// Nobody. `sequence` is what a write must expect: 0 when the key has no message at all, else
    /// that of the marker that ended it.
    Free {
        /// To expect.
        sequence: u64,
    },
    /// Somebody.
    Held {
        /// Who.
        lease: Lease,
        /// To expect.
        sequence: u64,
    },
}

impl Store {
    /// Reads the lease.
    pub async fn read_lease(&self) -> Result<LeaseView, StoreError> {
        Ok(match self.read_last::<Lease>(key::LEASE).await? {
            (Some(lease), sequence) => LeaseView::Held { lease, sequence },
            (None, sequence) => LeaseView::Free { sequence },
        })
    }

    /// Takes or renews the lease: written with its TTL if nobody has written it since `sequence`.
    /// Returns the sequence to expect next.
    pub async fn write_lease(
        &self,
        lease: &Lease,
        sequence: u64,
        times: &LeaseTimes,
    ) -> Result<u64, StoreError> {
        let mut headers = expected(sequence, None);
        headers.push(("Nats-TTL", times.ttl_header()));
        let ack = self.put(key::LEASE, &headers, json(lease)).await?;
        Ok(ack.seq)
    }

    /// Gives the lease back, so that another controller need not wait for its end.
    pub async fn drop_lease(&self, sequence: u64) -> Result<(), StoreError> {
        let mut headers = expected(sequence, None);
        headers.extend(delete_marker());
        self.put(key::LEASE, &headers, Bytes::new())
            .await
            .map(|_| ())
    }

    /// The store's own time when the lease was last written; `None`: nobody has.
    pub async fn lease_written(&self) -> Result<Option<Timestamp>, StoreError> {
        let last = self.last_message(key::LEASE).await?;
        Ok(last.map(|message| {
            let ms = message.time.unix_timestamp_nanos() / 1_000_000;
            Timestamp(u64::try_from(ms).unwrap_or(0))
        }))
    }

    /// Reads the term in force, with the sequence to expect.
    pub async fn read_term(&self) -> Result<(Option<TermRecord>, u64), StoreError> {
        self.read_last(key::TERM).await
    }

    /// Begins a term. The sequence that it gets fences every write of it.
    pub async fn write_term(&self, term: &TermRecord, sequence: u64) -> Result<u64, StoreError> {
        let ack = self
            .put(key::TERM, &expected(sequence, None), json(term))
            .await?;
        Ok(ack.seq)
    }

    /// The sequence of the last message on a key, its marker if it was deleted; 0: there is none.
    pub(crate) async fn sequence_of(&self, key: &str) -> Result<u64, StoreError> {
        let last = self.last_message(key).await?;
        Ok(last.map_or(0, |message| message.sequence))
    }

    /// The last value of a key (`None`: absent or deleted) and its sequence (0: no message at all).
    async fn read_last<T: DeserializeOwned>(
        &self,
        key: &str,
    ) -> Result<(Option<T>, u64), StoreError> {
        let Some(message) = self.last_message(key).await? else {
            return Ok((None, 0));
        };
        if is_marker(&message.headers) {
            return Ok((None, message.sequence));
        }
        let value =
            serde_json::from_slice(&message.payload).map_err(|error| StoreError::Unreadable {
                key: key.into(),
                what: error.to_string(),
            })?;
        Ok((Some(value), message.sequence))
    }

    async fn last_message(&self, key: &str) -> Result<Option<StreamMessage>, StoreError> {
        let subject = subjects::state(key);
        match self.state.get_last_raw_message_by_subject(&subject).await {
            Ok(message) => Ok(Some(message)),
            Err(error) => match error.kind() {
                LastRawMessageErrorKind::NoMessageFound => Ok(None),
                LastRawMessageErrorKind::JetStream(answer)
                    if answer.error_code() == ErrorCode::NO_MESSAGE_FOUND =>
                {
                    Ok(None)
                }
                _ => Err(StoreError::Unavailable(error.to_string())),
            },
        }
    }
}

fn json<T: serde::Serialize>(value: &T) -> Bytes {
    serde_json::to_vec(value)
        .expect("our own types have string keys and serialise")
        .into()
}
