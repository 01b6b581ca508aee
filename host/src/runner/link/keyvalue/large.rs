//! Values that no message holds: objects beside the bucket, each of one value and never written again.

use std::time::Duration;

use async_nats::jetstream::object_store::{GetErrorKind, ObjectMetadata, ObjectStore};
use bytes::Bytes;
use tokio::io::AsyncReadExt as _;
use tokio::time::timeout;
use wasmorch_runtime::{KeyValueError, MemoryShare, VALUE_BYTES_MAX};

use super::{LinkError, Opened, other};

/// To write a large value.
const LARGE_TIMEOUT: Duration = Duration::from_secs(60);
/// For the next part of one that is read.
const READ_TIMEOUT: Duration = Duration::from_secs(5);
/// Chunks of large values.
const CHUNK_BYTES_MAX: usize = 512 << 10;

pub(super) async fn put_object(
    opened: &Opened,
    store: &ObjectStore,
    value: &Bytes,
) -> Result<String, KeyValueError> {
    let name = format!("{:032x}", rand::random::<u128>());
    let meta = ObjectMetadata {
        name: name.clone(),
        chunk_size: Some(CHUNK_BYTES_MAX.min(opened.jetstream.payload_max())),
        ..ObjectMetadata::default()
    };
    match timeout(LARGE_TIMEOUT, store.put(meta, &mut &value[..])).await {
        Ok(Ok(_)) => Ok(name),
        Ok(Err(error)) => Err(KeyValueError::other(error)),
        Err(_) => Err(other(LinkError::TimedOut(LARGE_TIMEOUT))),
    }
}

/// `None`: it is gone, or goes while it is read.
pub(super) async fn get_object(
    store: &ObjectStore,
    name: &str,
    share: &MemoryShare,
) -> Result<Option<Bytes>, KeyValueError> {
    let mut object = match timeout(READ_TIMEOUT, store.get(name)).await {
        Ok(Ok(object)) => object,
        Ok(Err(error)) if error.kind() == GetErrorKind::NotFound => return Ok(None),
        Ok(Err(error)) => return Err(KeyValueError::other(error)),
        Err(_) => return Err(other(LinkError::TimedOut(READ_TIMEOUT))),
    };
    // Whoever may write to the bucket wrote that number.
    let size = object.info().size;
    if size > VALUE_BYTES_MAX {
        return Err(KeyValueError::other(format!(
            "the value of this key has {size} bytes: at most {VALUE_BYTES_MAX} are read"
        )));
    }
    let held = share.hold(size).await.map_err(KeyValueError::other)?;
    let mut value = Vec::with_capacity(size);
    loop {
        // Chunks that are deleted meanwhile never come.
        match timeout(READ_TIMEOUT, object.read_buf(&mut value)).await {
            Ok(Ok(0)) => return Ok(Some(held.keep(value))),
            Ok(Ok(_)) if value.len() > size => {
                return Err(KeyValueError::other(
                    "the value of this key is longer than it says",
                ));
            }
            Ok(Ok(_)) => {}
            Ok(Err(error)) => {
                tracing::debug!(name, %error, "a large value could not be read whole");
                return Ok(None);
            }
            Err(_) => return Ok(None),
        }
    }
}

pub(super) async fn delete_object(store: Option<&ObjectStore>, name: Option<String>) {
    if let Some((store, name)) = store.zip(name)
        && let Err(error) = store.delete(&name).await
    {
        tracing::debug!(name, %error, "a replaced large value could not be deleted");
    }
}
