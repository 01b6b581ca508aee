//! Emptying the state stream to fill it anew (`recover`).
//!
//! The sequences go on beyond everything that a host has seen: hosts and gateways take the later
//! sequence for the newer word, and so does the guard.

use std::time::Duration;

use bytes::Bytes;
use wasmorch_api::Digest;
use wasmorch_api::subjects::key;

use super::batch::expected;
use super::{Store, StoreError};

const PURGE_TIMEOUT: Duration = Duration::from_secs(10);

impl Store {
    /// Forgets everything in the state stream; the next message gets a sequence of at least `next`.
    pub(crate) async fn empty(&self, next: u64) -> Result<(), StoreError> {
        let purging = async { self.state.purge().sequence(next).await };
        let purged = tokio::time::timeout(PURGE_TIMEOUT, purging).await;
        let unavailable = |why: String| StoreError::Unavailable(why);
        purged
            .map_err(|_| unavailable("emptying it took too long".to_owned()))?
            .map_err(|error| unavailable(error.to_string()))?;
        let last = self.last_sequence().await?;
        if last + 1 < next {
            let what = format!("its sequence is {last} and should be at least {}", next - 1);
            return Err(StoreError::Refused { code: 0, what });
        }
        Ok(())
    }

    /// Says that what is stored is not whole, until the key is deleted. Not fenced: there is no term.
    pub(crate) async fn mark_recovering(&self) -> Result<(), StoreError> {
        let body = Bytes::from_static(b"{}");
        self.put(key::RECOVERING, &expected(0, None), body)
            .await
            .map(|_| ())
    }

    /// Takes an object out that is no artifact.
    pub(crate) async fn delete_object(&self, digest: &Digest) {
        if let Err(error) = self.objects.delete(digest.as_str()).await {
            tracing::debug!(%error, "an object was left behind");
        }
    }
}
