//! A store in this process: gone with the replica, shared by its instances.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;

use super::{KEYS_PAGE, KeyValueError, KeyValueStore, Keys, Version};
use crate::budget::MemoryShare;

/// What an entry costs beside its key and its value.
const ENTRY_BYTES: usize = 128;

/// A store in memory, within what its replica may keep there.
#[derive(Default)]
pub struct MemoryStore {
    held: Mutex<Held>,
    share: MemoryShare,
}

#[derive(Default)]
struct Held {
    values: HashMap<String, (Bytes, u64)>,
    /// Keys by the number of their last write: a listing goes by it, so that its cursor means the
    /// same whatever is written meanwhile.
    order: BTreeMap<u64, String>,
    writes: u64,
}

impl Held {
    /// What was kept for it.
    fn remove(&mut self, key: &str) -> usize {
        let Some((value, revision)) = self.values.remove(key) else {
            return 0;
        };
        self.order.remove(&revision);
        size(key, &value)
    }

    fn set(&mut self, key: &str, value: Bytes, share: &MemoryShare) -> Result<(), KeyValueError> {
        let freed = self.values.get(key).map_or(0, |(old, _)| size(key, old));
        let kept = share.keep(size(key, &value), freed);
        kept.map_err(KeyValueError::other)?;
        self.remove(key);
        self.writes += 1;
        self.order.insert(self.writes, key.to_owned());
        self.values.insert(key.to_owned(), (value, self.writes));
        Ok(())
    }

    fn revision(&self, key: &str) -> u64 {
        self.values.get(key).map_or(0, |(_, revision)| *revision)
    }
}

fn size(key: &str, value: &Bytes) -> usize {
    2 * key.len() + value.len() + ENTRY_BYTES
}

impl MemoryStore {
    /// An empty one.
    pub fn new(share: MemoryShare) -> Self {
        Self {
            held: Mutex::default(),
            share,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        // Nothing in here panics between two changes that belong together.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl KeyValueStore for MemoryStore {
    async fn get(&self, key: &str) -> Result<Option<Bytes>, KeyValueError> {
        Ok(self.lock().values.get(key).map(|(value, _)| value.clone()))
    }

    async fn set(&self, key: &str, value: Bytes) -> Result<(), KeyValueError> {
        self.lock().set(key, value, &self.share)
    }

    async fn delete(&self, key: &str) -> Result<(), KeyValueError> {
        let freed = self.lock().remove(key);
        self.share.give_up(freed);
        Ok(())
    }

    async fn exists(&self, key: &str) -> Result<bool, KeyValueError> {
        Ok(self.lock().values.contains_key(key))
    }

    async fn keys(&self, cursor: Option<u64>) -> Result<Keys, KeyValueError> {
        let held = self.lock();
        let from = cursor.unwrap_or(0).saturating_add(1);
        let mut page = held.order.range(from..);
        let taken: Vec<(&u64, &String)> = page.by_ref().take(KEYS_PAGE).collect();
        let last = taken.last().map(|(revision, _)| **revision);
        Ok(Keys {
            keys: taken.into_iter().map(|(_, key)| key.clone()).collect(),
            cursor: last.filter(|_| page.next().is_some()),
        })
    }

    async fn read(&self, key: &str) -> Result<(Option<Bytes>, Version), KeyValueError> {
        let held = self.lock();
        let value = held.values.get(key).map(|(value, _)| value.clone());
        Ok((value, Version::Revision(held.revision(key))))
    }

    async fn swap(
        &self,
        key: &str,
        version: &Version,
        value: Bytes,
    ) -> Result<bool, KeyValueError> {
        let mut held = self.lock();
        if *version != Version::Revision(held.revision(key)) {
            return Ok(false);
        }
        held.set(key, value, &self.share).map(|()| true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_listing_has_every_key_once_over_its_pages() {
        let store = MemoryStore::default();
        let wanted = KEYS_PAGE * 2 + 5;
        for number in 0..wanted {
            store.set(&number.to_string(), "x".into()).await.unwrap();
        }
        let mut cursor = None;
        let mut pages = Vec::new();
        loop {
            let page = store.keys(cursor).await.unwrap();
            pages.push(page.keys);
            cursor = page.cursor;
            if cursor.is_none() {
                break;
            }
        }
        assert_eq!(pages.len(), 3);
        let mut keys: Vec<String> = pages.into_iter().flatten().collect();
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), wanted);
        let past = store.keys(Some(u64::MAX)).await.unwrap();
        assert_eq!(past, Keys::default());
    }

    #[tokio::test]
    async fn stores_share_a_bound_and_give_back_what_is_deleted() {
        let share = MemoryShare::default();
        let [store, other] = [(); 2].map(|()| MemoryStore::new(share.clone()));
        let half = Bytes::from(vec![0; 32 << 20]);
        store.set("a", half.clone()).await.unwrap();
        assert!(other.set("b", half.clone()).await.is_err());
        assert_eq!(other.get("b").await, Ok(None));
        store.set("a", half.clone()).await.unwrap();
        store.delete("a").await.unwrap();
        store.delete("a").await.unwrap();
        other.set("b", half.clone()).await.unwrap();
        other.delete("b").await.unwrap();
        store.set("a", half).await.unwrap();
        assert_eq!(store.lock().order.len(), 1);
    }

    #[tokio::test]
    async fn increments_at_once_lose_none() {
        let store = std::sync::Arc::new(MemoryStore::default());
        let tasks: Vec<_> = (0..20)
            .map(|_| {
                let store = store.clone();
                tokio::spawn(async move {
                    for _ in 0..10 {
                        store.increment("n", 1).await.unwrap();
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(store.get("n").await, Ok(Some("200".into())));
    }

    #[tokio::test]
    async fn a_swap_after_a_write_is_refused() {
        let store = MemoryStore::default();
        let (value, version) = store.read("k").await.unwrap();
        assert_eq!(value, None);
        store.set("k", "theirs".into()).await.unwrap();
        assert_eq!(store.swap("k", &version, "mine".into()).await, Ok(false));
        assert_eq!(store.get("k").await, Ok(Some("theirs".into())));
        let (_, version) = store.read("k").await.unwrap();
        assert_eq!(store.swap("k", &version, "mine".into()).await, Ok(true));
    }
}
