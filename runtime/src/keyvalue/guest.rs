//! Both drafts of `wasi:keyvalue`, on one [`KeyValueStore`].
//!
//! What they have in common is on [`Bucket`], with the bounds; each draft's functions only fetch
//! the bucket and translate.

use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use wasmtime::component::{HasSelf, Linker, Resource, ResourceTableError};

use super::{KEY_BYTES_MAX, KeyValueError, KeyValueStore, VALUE_BYTES_MAX, Version};
use crate::bindings::keyvalue::wasi::keyvalue0_2_0_draft as draft;
use crate::bindings::keyvalue2::wasi::keyvalue0_2_0_draft2 as draft2;
use crate::budget::MemoryShare;
use crate::refusals::Refused;
use crate::state::GuestState;

/// Keys of one batch.
const BATCH_KEYS_MAX: usize = 10_000;
/// Calls of one batch under way at once.
const BATCH_CONCURRENCY: usize = 16;

/// Adds both drafts.
pub(crate) fn add_to_linker(linker: &mut Linker<GuestState>) -> wasmtime::Result<()> {
    draft::store::add_to_linker::<_, HasSelf<_>>(linker, |state| state)?;
    draft::atomics::add_to_linker::<_, HasSelf<_>>(linker, |state| state)?;
    draft::batch::add_to_linker::<_, HasSelf<_>>(linker, |state| state)?;
    draft2::store::add_to_linker::<_, HasSelf<_>>(linker, |state| state)?;
    draft2::atomics::add_to_linker::<_, HasSelf<_>>(linker, |state| state)?;
    draft2::batch::add_to_linker::<_, HasSelf<_>>(linker, |state| state)
}

/// What goes to the guest as an error, and what ends it.
pub(crate) enum GuestError {
    Store(KeyValueError),
    Trap(wasmtime::Error),
}

impl From<KeyValueError> for GuestError {
    fn from(error: KeyValueError) -> Self {
        Self::Store(error)
    }
}

impl From<ResourceTableError> for GuestError {
    fn from(error: ResourceTableError) -> Self {
        Self::Trap(error.into())
    }
}

type Result<T, E = GuestError> = std::result::Result<T, E>;

/// An open store.
#[derive(Clone)]
pub struct Bucket {
    store: Arc<dyn KeyValueStore>,
    share: MemoryShare,
}

/// What a key held when the guest asked.
pub struct Cas {
    bucket: Bucket,
    key: String,
    version: Version,
}

impl Cas {
    /// What of it is the guest's doing: a backend may compare with all that the key held.
    pub(crate) fn size(&self) -> u64 {
        let value = match &self.version {
            Version::Value(Some(value)) => value.len(),
            Version::Value(None) | Version::Revision(_) => 0,
        };
        (self.key.len() + value) as u64
    }
}

fn check_key(key: &str) -> Result<(), KeyValueError> {
    if key.len() <= KEY_BYTES_MAX {
        return Ok(());
    }
    Err(KeyValueError::other(format!(
        "a key of {} bytes: at most {KEY_BYTES_MAX}",
        key.len()
    )))
}

fn check_size(bytes: usize, what: &str) -> Result<(), KeyValueError> {
    if bytes <= VALUE_BYTES_MAX {
        return Ok(());
    }
    let limit = VALUE_BYTES_MAX >> 20;
    Err(KeyValueError::other(format!(
        "{what} of {bytes} bytes: at most {limit} MiB"
    )))
}

/// Whoever else may write to the backend knows nothing of our bounds.
fn check_read(value: Option<&Bytes>) -> Result<(), KeyValueError> {
    check_size(value.map_or(0, Bytes::len), "the value of this key, one")
}

fn check_batch(keys: usize) -> Result<(), KeyValueError> {
    if keys <= BATCH_KEYS_MAX {
        return Ok(());
    }
    Err(KeyValueError::other(format!(
        "a batch of {keys} keys: at most {BATCH_KEYS_MAX}"
    )))
}

impl Bucket {
    async fn get(&self, key: &str) -> Result<Option<Vec<u8>>, KeyValueError> {
        check_key(key)?;
        let value = self.store.get(key).await?;
        check_read(value.as_ref())?;
        Ok(value.map(Vec::from))
    }

    async fn set(&self, key: &str, value: Vec<u8>) -> Result<(), KeyValueError> {
        check_key(key)?;
        check_size(value.len(), "a value")?;
        self.store.set(key, value.into()).await
    }

    async fn delete(&self, key: &str) -> Result<(), KeyValueError> {
        check_key(key)?;
        self.store.delete(key).await
    }

    async fn exists(&self, key: &str) -> Result<bool, KeyValueError> {
        check_key(key)?;
        self.store.exists(key).await
    }

    async fn increment(&self, key: &str, delta: i64) -> Result<i64, KeyValueError> {
        check_key(key)?;
        self.store.increment(key, delta).await
    }

    async fn cas(&self, key: String) -> Result<(Cas, Option<Vec<u8>>), KeyValueError> {
        check_key(&key)?;
        let (value, version) = self.store.read(&key).await?;
        check_read(value.as_ref())?;
        let cas = Cas {
            bucket: self.clone(),
            key,
            version,
        };
        Ok((cas, value.map(Vec::from)))
    }

    /// The values of these keys, in their order. All of them together are no larger than one may be.
    async fn get_many(
        &self,
        keys: Vec<String>,
    ) -> Result<Vec<(String, Option<Vec<u8>>)>, KeyValueError> {
        check_batch(keys.len())?;
        let mut values = futures::stream::iter(keys)
            .map(|key| async move {
                check_key(&key)?;
                let value = self.store.get(&key).await?;
                Ok::<_, KeyValueError>((key, value))
            })
            .buffered(BATCH_CONCURRENCY);
        // Those that are here wait for the others: they count together with other guests'.
        let (mut found, mut held, mut bytes) = (Vec::new(), Vec::new(), 0);
        while let Some((key, value)) = values.try_next().await? {
            let size = value.as_ref().map_or(0, Bytes::len);
            bytes += size;
            check_size(bytes, "values of one batch, together")?;
            held.push(self.share.try_hold(size).map_err(KeyValueError::other)?);
            found.push((key, value.map(Vec::from)));
        }
        Ok(found)
    }

    async fn set_many(&self, pairs: Vec<(String, Vec<u8>)>) -> Result<(), KeyValueError> {
        check_batch(pairs.len())?;
        futures::stream::iter(pairs.into_iter().map(Ok))
            .try_for_each_concurrent(BATCH_CONCURRENCY, |(key, value)| async move {
                self.set(&key, value).await
            })
            .await
    }

    async fn delete_many(&self, keys: Vec<String>) -> Result<(), KeyValueError> {
        check_batch(keys.len())?;
        futures::stream::iter(keys.into_iter().map(Ok))
            .try_for_each_concurrent(
                BATCH_CONCURRENCY,
                |key| async move { self.delete(&key).await },
            )
            .await
    }
}

impl GuestState {
    fn bucket(&self, bucket: &Resource<Bucket>) -> Result<Bucket> {
        Ok(self.table.get(bucket)?.clone())
    }

    fn open_bucket(&mut self, identifier: &str) -> Result<Resource<Bucket>> {
        let store = self.shared.config.keyvalue.open(identifier);
        let store =
            store.inspect_err(|_| self.shared.refusals.tell(Refused::KeyValue(identifier)))?;
        let share = self.shared.config.share.clone();
        Ok(self.table.push(Bucket { store, share })?)
    }
}

/// What both drafts have to the letter.
macro_rules! common {
    ($draft:ident, $cursor:ty, $from:expr, $to:expr) => {
        impl $draft::store::Host for GuestState {
            async fn open(&mut self, identifier: String) -> Result<Resource<Bucket>> {
                self.open_bucket(&identifier)
            }

            fn convert_error(
                &mut self,
                error: GuestError,
            ) -> wasmtime::Result<$draft::store::Error> {
                match error {
                    GuestError::Store(error) => Ok(error.into()),
                    GuestError::Trap(error) => Err(error),
                }
            }
        }

        impl From<KeyValueError> for $draft::store::Error {
            fn from(error: KeyValueError) -> Self {
                match error {
                    KeyValueError::NoSuchStore => Self::NoSuchStore,
                    KeyValueError::AccessDenied => Self::AccessDenied,
                    KeyValueError::Other(why) => Self::Other(why),
                }
            }
        }

        impl $draft::store::HostBucket for GuestState {
            async fn get(
                &mut self,
                bucket: Resource<Bucket>,
                key: String,
            ) -> Result<Option<Vec<u8>>> {
                Ok(self.bucket(&bucket)?.get(&key).await?)
            }

            async fn set(
                &mut self,
                bucket: Resource<Bucket>,
                key: String,
                value: Vec<u8>,
            ) -> Result<()> {
                Ok(self.bucket(&bucket)?.set(&key, value).await?)
            }

            async fn delete(&mut self, bucket: Resource<Bucket>, key: String) -> Result<()> {
                Ok(self.bucket(&bucket)?.delete(&key).await?)
            }

            async fn exists(&mut self, bucket: Resource<Bucket>, key: String) -> Result<bool> {
                Ok(self.bucket(&bucket)?.exists(&key).await?)
            }

            async fn list_keys(
                &mut self,
                bucket: Resource<Bucket>,
                cursor: Option<$cursor>,
            ) -> Result<$draft::store::KeyResponse> {
                let cursor = cursor.map($from).transpose()?;
                let page = self.bucket(&bucket)?.store.keys(cursor).await?;
                Ok($draft::store::KeyResponse {
                    keys: page.keys,
                    cursor: page.cursor.map($to),
                })
            }

            async fn drop(&mut self, bucket: Resource<Bucket>) -> wasmtime::Result<()> {
                self.table.delete(bucket)?;
                Ok(())
            }
        }
    };
}

common!(draft, u64, Ok::<u64, GuestError>, |cursor: u64| cursor);
common!(
    draft2,
    String,
    |cursor: String| cursor
        .parse::<u64>()
        .map_err(|_| KeyValueError::other("this cursor came from no listing")),
    |cursor: u64| cursor.to_string()
);

impl draft::atomics::Host for GuestState {
    async fn increment(
        &mut self,
        bucket: Resource<Bucket>,
        key: String,
        delta: u64,
    ) -> Result<u64> {
        let delta = i64::try_from(delta)
            .map_err(|_| KeyValueError::other("a delta beyond 63 bits cannot be added"))?;
        let sum = self.bucket(&bucket)?.increment(&key, delta).await?;
        Ok(u64::try_from(sum).map_err(|_| KeyValueError::other("the sum is negative"))?)
    }
}

impl draft::batch::Host for GuestState {
    async fn get_many(
        &mut self,
        bucket: Resource<Bucket>,
        keys: Vec<String>,
    ) -> Result<Vec<Option<(String, Vec<u8>)>>> {
        let found = self.bucket(&bucket)?.get_many(keys).await?;
        let pairs = found.into_iter().map(|(key, value)| Some(key).zip(value));
        Ok(pairs.collect())
    }

    async fn set_many(
        &mut self,
        bucket: Resource<Bucket>,
        key_values: Vec<(String, Vec<u8>)>,
    ) -> Result<()> {
        Ok(self.bucket(&bucket)?.set_many(key_values).await?)
    }

    async fn delete_many(&mut self, bucket: Resource<Bucket>, keys: Vec<String>) -> Result<()> {
        Ok(self.bucket(&bucket)?.delete_many(keys).await?)
    }
}

impl draft2::atomics::Host for GuestState {
    async fn increment(
        &mut self,
        bucket: Resource<Bucket>,
        key: String,
        delta: i64,
    ) -> Result<i64> {
        Ok(self.bucket(&bucket)?.increment(&key, delta).await?)
    }

    async fn swap(
        &mut self,
        cas: Resource<Cas>,
        value: Vec<u8>,
    ) -> wasmtime::Result<Result<(), draft2::atomics::CasError>> {
        use draft2::atomics::CasError;
        let Cas {
            bucket,
            key,
            version,
        } = self.table.delete(cas)?;
        let swapped = match check_size(value.len(), "a value") {
            Ok(()) => bucket.store.swap(&key, &version, value.into()).await,
            Err(error) => Err(error),
        };
        let again = match swapped {
            Ok(true) => return Ok(Ok(())),
            Ok(false) => bucket.cas(key).await,
            Err(error) => Err(error),
        };
        Ok(Err(match again {
            Ok((cas, _)) => CasError::CasFailed(self.table.push(cas)?),
            Err(error) => CasError::StoreError(error.into()),
        }))
    }
}

impl draft2::atomics::HostCas for GuestState {
    async fn new(&mut self, bucket: Resource<Bucket>, key: String) -> Result<Resource<Cas>> {
        let (cas, _) = self.bucket(&bucket)?.cas(key).await?;
        Ok(self.table.push(cas)?)
    }

    /// The handle goes with what is read: a guest that has seen the value may swap it.
    async fn current(&mut self, cas: Resource<Cas>) -> Result<Option<Vec<u8>>> {
        let Cas { bucket, key, .. } = self.table.get(&cas)?;
        let (bucket, key) = (bucket.clone(), key.clone());
        let (read, value) = bucket.cas(key).await?;
        *self.table.get_mut(&cas)? = read;
        Ok(value)
    }

    async fn drop(&mut self, cas: Resource<Cas>) -> wasmtime::Result<()> {
        self.table.delete(cas)?;
        Ok(())
    }
}

impl draft2::batch::Host for GuestState {
    async fn get_many(
        &mut self,
        bucket: Resource<Bucket>,
        keys: Vec<String>,
    ) -> Result<Vec<(String, Option<Vec<u8>>)>> {
        Ok(self.bucket(&bucket)?.get_many(keys).await?)
    }

    async fn set_many(
        &mut self,
        bucket: Resource<Bucket>,
        key_values: Vec<(String, Vec<u8>)>,
    ) -> Result<()> {
        Ok(self.bucket(&bucket)?.set_many(key_values).await?)
    }

    async fn delete_many(&mut self, bucket: Resource<Bucket>, keys: Vec<String>) -> Result<()> {
        Ok(self.bucket(&bucket)?.delete_many(keys).await?)
    }
}

#[cfg(test)]
mod tests {
    use wasmtime::component::ResourceTable;

    use super::super::MemoryStore;
    use super::*;
    use crate::holdings::Looks;

    #[test]
    fn what_a_swap_compares_with_is_the_guests_memory() {
        const BYTES: usize = 8 << 20;
        let bucket = Bucket {
            store: Arc::new(MemoryStore::default()),
            share: MemoryShare::default(),
        };
        let mut table = ResourceTable::new();
        let read = Cas {
            bucket,
            key: "k".into(),
            version: Version::Value(Some(vec![0; BYTES].into())),
        };
        table.push(read).unwrap();
        let held = Looks::default().look(&mut table, 0).unwrap();
        assert!(held.bytes > BYTES as u64 / 2, "{held:?}");
    }
}
