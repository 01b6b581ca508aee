//! Artifacts in the object store: whether one is there, and its bytes.
//!
//! The bytes are as the store gave them: comparing them with the digest is the caller's, who must
//! not trust them before.

use std::time::Duration;

use async_nats::jetstream::object_store::InfoErrorKind;
use bytes::Bytes;
use tokio::io::AsyncReadExt;
use wasmorch_api::Digest;

use super::Store;

/// A large artifact over a slow link; beyond it something is wrong.
const FETCH_TIMEOUT: Duration = Duration::from_secs(120);

/// What the store says of an artifact.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Object {
    /// Its size by its own word.
    pub bytes: u64,
}

/// Why an artifact could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ObjectError {
    /// It is not there.
    #[error("it is not in the object store")]
    Missing,
    /// Its pieces do not add up to what was put in.
    #[error("its bytes in the object store are not what was uploaded")]
    Corrupt,
    /// It has more bytes than it said, or than are allowed.
    #[error("it has more than {0} bytes")]
    TooLarge(u64),
    /// The store did not answer.
    #[error("the object store failed: {0}")]
    Failed(String),
}

impl Store {
    /// Looks whether an artifact is there.
    pub async fn object(&self, digest: &Digest) -> Result<Object, ObjectError> {
        match self.objects.info(digest.as_str()).await {
            Ok(info) if info.deleted => Err(ObjectError::Missing),
            Ok(info) => Ok(Object {
                bytes: info.size as u64,
            }),
            Err(error) => Err(match error.kind() {
                InfoErrorKind::NotFound => ObjectError::Missing,
                _ => ObjectError::Failed(error.to_string()),
            }),
        }
    }

    /// Reads an artifact, at most `bytes_max` of it.
    pub async fn fetch(&self, digest: &Digest, bytes_max: u64) -> Result<Bytes, ObjectError> {
        let said = self.object(digest).await?.bytes;
        if said > bytes_max {
            return Err(ObjectError::TooLarge(bytes_max));
        }
        if said == 0 {
            // An object without pieces has nothing to wait for.
            return Ok(Bytes::new());
        }
        let reading = async {
            let failed = |error: &dyn std::fmt::Display| ObjectError::Failed(error.to_string());
            let object = self
                .objects
                .get(digest.as_str())
                .await
                .map_err(|error| failed(&error))?;
            // One byte more than allowed shows that there is more.
            let mut object = object.take(bytes_max + 1);
            let mut bytes = Vec::with_capacity(usize::try_from(said).unwrap_or(0));
            object
                .read_to_end(&mut bytes)
                .await
                .map_err(|error| match error.kind() {
                    std::io::ErrorKind::InvalidData => ObjectError::Corrupt,
                    _ => failed(&error),
                })?;
            if bytes.len() as u64 > bytes_max {
                return Err(ObjectError::TooLarge(bytes_max));
            }
            Ok(Bytes::from(bytes))
        };
        match tokio::time::timeout(FETCH_TIMEOUT, reading).await {
            Ok(result) => result,
            Err(_) => Err(ObjectError::Failed("no bytes in time".to_owned())),
        }
    }
}
