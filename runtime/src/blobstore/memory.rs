//! A container in this process: gone with the replica, shared by its instances.

use std::collections::BTreeMap;
use std::io::Cursor;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use tokio::io::AsyncReadExt as _;

use super::{BlobContainer, BlobRead, ObjectInfo};
use crate::budget::MemoryShare;

/// What an object costs beside its name and its bytes.
const OBJECT_BYTES: usize = 128;
/// What is read of a value before it is asked whether there is room for it.
const PART_BYTES: u64 = 1 << 20;

/// A container in memory, within what its replica may keep there.
#[derive(Default)]
pub struct MemoryContainer {
    objects: Mutex<BTreeMap<String, Object>>,
    share: MemoryShare,
}

struct Object {
    bytes: Bytes,
    written: u64,
}

fn size(name: &str, bytes: usize) -> usize {
    name.len() + bytes + OBJECT_BYTES
}

impl MemoryContainer {
    /// An empty one.
    pub fn new(share: MemoryShare) -> Self {
        Self {
            objects: Mutex::default(),
            share,
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Object>> {
        // Nothing in here panics between two changes that belong together.
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn gone(&self, name: &str, object: Option<Object>) {
        let freed = object.map_or(0, |object| size(name, object.bytes.len()));
        self.share.give_up(freed);
    }
}

/// What is kept for an object that is being written: given up when it is not written to its end.
struct Keeping<'a> {
    share: &'a MemoryShare,
    bytes: usize,
}

impl Keeping<'_> {
    fn more(&mut self, bytes: usize) -> Result<(), String> {
        let kept = self.share.keep(bytes, 0);
        kept.map_err(|full| full.to_string())?;
        self.bytes += bytes;
        Ok(())
    }

    fn written(mut self) {
        self.bytes = 0;
    }
}

impl Drop for Keeping<'_> {
    fn drop(&mut self) {
        self.share.give_up(self.bytes);
    }
}

#[async_trait]
impl BlobContainer for MemoryContainer {
    async fn created(&self) -> Result<u64, String> {
        Ok(0)
    }

    async fn object(&self, name: &str) -> Result<Option<ObjectInfo>, String> {
        Ok(self.lock().get(name).map(|object| ObjectInfo {
            size: object.bytes.len() as u64,
            written: object.written,
        }))
    }

    async fn read(&self, name: &str, start: u64, length: u64) -> Result<BlobRead, String> {
        let found = self.lock().get(name).map(|object| object.bytes.clone());
        let bytes = found.ok_or_else(|| format!("there is no object `{name}`"))?;
        let at = |at: u64| usize::try_from(at).unwrap_or(usize::MAX).min(bytes.len());
        let part = bytes.slice(at(start)..at(start.saturating_add(length)));
        Ok(Box::pin(Cursor::new(part)))
    }

    async fn write(&self, name: &str, mut body: BlobRead) -> Result<(), String> {
        let mut keeping = Keeping {
            share: &self.share,
            bytes: 0,
        };
        keeping.more(size(name, 0))?;
        let mut bytes = Vec::new();
        loop {
            let mut part = (&mut body).take(PART_BYTES);
            let read = part.read_to_end(&mut bytes).await;
            let read = read.map_err(|error| error.to_string())?;
            if read == 0 {
                break;
            }
            keeping.more(read)?;
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let object = Object {
            bytes: bytes.into(),
            written: now.map_or(0, |now| now.as_secs()),
        };
        let replaced = self.lock().insert(name.to_owned(), object);
        keeping.written();
        self.gone(name, replaced);
        Ok(())
    }

    async fn delete(&self, name: &str) -> Result<(), String> {
        let deleted = self.lock().remove(name);
        self.gone(name, deleted);
        Ok(())
    }

    async fn names(&self) -> Result<BoxStream<'static, Result<String, String>>, String> {
        let names: Vec<_> = self.lock().keys().cloned().map(Ok).collect();
        Ok(futures::stream::iter(names).boxed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(bytes: usize) -> BlobRead {
        Box::pin(tokio::io::repeat(b'x').take(bytes as u64))
    }

    #[tokio::test]
    async fn it_is_bounded_and_gives_back_what_is_replaced_and_deleted() {
        let container = MemoryContainer::default();
        for _ in 0..4 {
            container.write("a", body(30 << 20)).await.unwrap();
        }
        let why = container.write("b", body(1 << 40)).await.unwrap_err();
        assert!(why.contains("64 MiB"), "{why}");
        assert_eq!(container.object("b").await, Ok(None));
        container.write("b", body(30 << 20)).await.unwrap();
        for name in ["a", "b", "a"] {
            container.delete(name).await.unwrap();
        }
        container.write("c", body(60 << 20)).await.unwrap();
    }
}
