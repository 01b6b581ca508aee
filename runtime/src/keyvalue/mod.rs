//! `wasi:keyvalue`: stores by the name of their binding, and the backends that need no cluster.
//!
//! ```text
//!   guest ── open("cart") ──> Bucket ──> dyn KeyValueStore: memory | redis | what the host brings
//! ```
//!
//! Owns the bounds on keys, values and batches, and what `increment` is made of where a backend
//! has nothing better. Two drafts of the interface (`guest.rs`) stand on the one trait.
//!
//! Invariant: a store never hands out a value that nobody wrote, and a swap never overwrites one
//! that changed since it was read.

#[expect(
    unreachable_pub,
    reason = "the generated bindings re-export what guests hold"
)]
pub(crate) mod guest;
mod memory;
mod redis;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use rand::Rng as _;

pub(crate) use guest::add_to_linker;
pub use memory::MemoryStore;
pub use redis::RedisStore;

use crate::budget::MemoryShare;

/// The longest key. Encoded for NATS it still fits into one protocol line.
const KEY_BYTES_MAX: usize = 2048;
/// The largest value: it is held in memory whole, once for every call in progress.
pub const VALUE_BYTES_MAX: usize = 32 << 20;
/// Keys in one page of a listing.
pub const KEYS_PAGE: usize = 1000;
/// The binding that serves any name that has none of its own.
const DEFAULT: &str = "default";
/// Tries of one increment. Each try that fails means that somebody else's succeeded.
const INCREMENT_ATTEMPTS: u32 = 100;
/// Between two of them, at most.
const INCREMENT_PAUSE_MAX: Duration = Duration::from_millis(20);

/// Why a store did not do what was asked; the text is for guests.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyValueError {
    /// No binding has this name.
    #[error("there is no such store")]
    NoSuchStore,
    /// No store was granted.
    #[error("no store is granted")]
    AccessDenied,
    /// The backend, or a bound of ours.
    #[error("{0}")]
    Other(String),
}

impl KeyValueError {
    /// A failure in words.
    pub fn other(why: impl ToString) -> Self {
        Self::Other(why.to_string())
    }
}

/// What a key held when it was read: what a swap compares with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Version {
    /// The backend numbers its writes; 0: the key was not there.
    Revision(u64),
    /// The backend compares values; `None`: the key was not there.
    Value(Option<Bytes>),
}

/// A page of keys.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Keys {
    /// In no order; a key that changes during the listing may be in two pages.
    pub keys: Vec<String>,
    /// Where the next page begins; `None`: this is the last.
    pub cursor: Option<u64>,
}

/// A store. Opened once per replica; connecting is the backend's business, when it is first used.
///
/// Keys and values are within the bounds of this module. No call may wait for ever.
#[async_trait]
pub trait KeyValueStore: Send + Sync {
    /// The value of a key.
    async fn get(&self, key: &str) -> Result<Option<Bytes>, KeyValueError>;

    /// Sets a value. When this returns, the write is as durable as the backend makes it.
    async fn set(&self, key: &str, value: Bytes) -> Result<(), KeyValueError>;

    /// Deletes a key that may be there.
    async fn delete(&self, key: &str) -> Result<(), KeyValueError>;

    /// Whether a key has a value.
    async fn exists(&self, key: &str) -> Result<bool, KeyValueError>;

    /// A page of keys.
    async fn keys(&self, cursor: Option<u64>) -> Result<Keys, KeyValueError>;

    /// The value of a key, and what to compare with when it is swapped.
    async fn read(&self, key: &str) -> Result<(Option<Bytes>, Version), KeyValueError>;

    /// Sets a value if the key is as it was at `version`; says whether it was.
    async fn swap(&self, key: &str, version: &Version, value: Bytes)
    -> Result<bool, KeyValueError>;

    /// Adds to a decimal number; an absent one counts as 0.
    async fn increment(&self, key: &str, delta: i64) -> Result<i64, KeyValueError> {
        increment_by_swaps(self, key, delta).await
    }
}

/// An increment made of reads and swaps.
///
/// # Errors
///
/// The store's; or that the value is no number, or that others were quicker again and again.
pub async fn increment_by_swaps<S: KeyValueStore + ?Sized>(
    store: &S,
    key: &str,
    delta: i64,
) -> Result<i64, KeyValueError> {
    for _ in 0..INCREMENT_ATTEMPTS {
        let (value, version) = store.read(key).await?;
        let sum = add(value.as_deref(), delta)?;
        if store.swap(key, &version, sum.to_string().into()).await? {
            return Ok(sum);
        }
        // Those who collided once shall not do so again and again.
        let pause = rand::rng().random_range(Duration::ZERO..INCREMENT_PAUSE_MAX);
        tokio::time::sleep(pause).await;
    }
    Err(KeyValueError::other(
        "too many writers at once: the increment was not done; try again",
    ))
}

fn add(value: Option<&[u8]>, delta: i64) -> Result<i64, KeyValueError> {
    let held: i64 = match value {
        None => 0,
        Some(value) => std::str::from_utf8(value)
            .ok()
            .and_then(|text| text.parse().ok())
            .ok_or_else(|| KeyValueError::other("the value is no decimal number"))?,
    };
    held.checked_add(delta)
        .ok_or_else(|| KeyValueError::other("the sum does not fit into 64 bits"))
}

/// The stores that a replica was granted, by the names of their bindings.
#[derive(Clone, Default)]
pub struct KeyValueStores(BTreeMap<String, Arc<dyn KeyValueStore>>);

impl KeyValueStores {
    /// Grants a store under a name. `default` serves any name that has no store of its own.
    pub fn grant(&mut self, name: impl Into<String>, store: Arc<dyn KeyValueStore>) {
        self.0.insert(name.into(), store);
    }

    /// One store in memory, under every name: for `run`, where nothing shall outlive the program.
    pub fn in_memory(share: &MemoryShare) -> Self {
        let mut stores = Self::default();
        stores.grant(DEFAULT, Arc::new(MemoryStore::new(share.clone())));
        stores
    }

    fn open(&self, name: &str) -> Result<Arc<dyn KeyValueStore>, KeyValueError> {
        if self.0.is_empty() {
            return Err(KeyValueError::AccessDenied);
        }
        let store = self.0.get(name).or_else(|| self.0.get(DEFAULT));
        store.cloned().ok_or(KeyValueError::NoSuchStore)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_serves_what_has_no_store_of_its_own() {
        let mut stores = KeyValueStores::default();
        assert_eq!(stores.open("cart").err(), Some(KeyValueError::AccessDenied));
        stores.grant("cart", Arc::new(MemoryStore::default()));
        assert!(stores.open("cart").is_ok());
        assert_eq!(stores.open("other").err(), Some(KeyValueError::NoSuchStore));
        stores.grant(DEFAULT, Arc::new(MemoryStore::default()));
        assert!(stores.open("other").is_ok());
    }

    #[test]
    fn sums_are_decimal_and_bounded() {
        assert_eq!(add(None, 5), Ok(5));
        assert_eq!(add(Some(b"-3"), 5), Ok(2));
        assert!(add(Some(b"x"), 1).is_err());
        assert!(add(Some(b"\xff"), 1).is_err());
        assert!(add(Some(i64::MAX.to_string().as_bytes()), 1).is_err());
    }
}
