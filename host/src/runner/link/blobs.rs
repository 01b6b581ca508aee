//! `wasi:blobstore` in a JetStream object store. Names may be any text: the store encodes them.

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::object_store::{GetErrorKind, InfoErrorKind, ObjectStore};
use async_trait::async_trait;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use tokio::io::AsyncReadExt as _;
use tokio::sync::Mutex;
use tokio::time::timeout;
use wasmorch_runtime::{BlobContainer, BlobRead, ObjectInfo};

use super::{Link, LinkError};

/// For an answer about one object.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// To write an object, however large.
const WRITE_TIMEOUT: Duration = Duration::from_secs(600);

/// An object store. Found, or made, when it is first used.
pub(in crate::runner) struct JetStreamContainer {
    link: Arc<Link>,
    container: String,
    opened: Mutex<Option<ObjectStore>>,
}

impl JetStreamContainer {
    pub(in crate::runner) fn new(link: Arc<Link>, container: String) -> Self {
        Self {
            link,
            container,
            opened: Mutex::default(),
        }
    }

    async fn open(&self) -> Result<ObjectStore, String> {
        let text = |error: LinkError| error.to_string();
        // Also when it was opened before: without a server there is no waiting for one.
        let jetstream = self.link.jetstream().await.map_err(text)?;
        let mut opened = self.opened.lock().await;
        if let Some(store) = &*opened {
            return Ok(store.clone());
        }
        let store = jetstream.objects(&self.container, true).await;
        let store = store.map_err(text)?.ok_or("the object store is gone")?;
        *opened = Some(store.clone());
        Ok(store)
    }

    /// A failure; the store is looked for again, since it may be gone.
    async fn failed(&self, error: &(dyn std::fmt::Display + Sync)) -> String {
        *self.opened.lock().await = None;
        error.to_string()
    }
}

fn too_long() -> String {
    LinkError::TimedOut(ANSWER_TIMEOUT).to_string()
}

#[async_trait]
impl BlobContainer for JetStreamContainer {
    async fn created(&self) -> Result<u64, String> {
        let name = format!("OBJ_{}", self.container);
        self.open().await?;
        let jetstream = self.link.jetstream().await;
        let jetstream = jetstream.map_err(|error| error.to_string())?;
        let stream = jetstream.find(&name).await;
        let stream = stream.map_err(|error| error.to_string())?;
        let created = stream.map(|stream| stream.cached_info().created.unix_timestamp());
        Ok(u64::try_from(created.unwrap_or(0)).unwrap_or(0))
    }

    async fn object(&self, name: &str) -> Result<Option<ObjectInfo>, String> {
        let store = self.open().await?;
        match timeout(ANSWER_TIMEOUT, store.info(name)).await {
            Err(_) => Err(too_long()),
            Ok(Ok(info)) if info.deleted => Ok(None),
            Ok(Ok(info)) => {
                let written = info.modified.map_or(0, |at| at.unix_timestamp());
                Ok(Some(ObjectInfo {
                    size: info.size as u64,
                    written: u64::try_from(written).unwrap_or(0),
                }))
            }
            Ok(Err(error)) if error.kind() == InfoErrorKind::NotFound => Ok(None),
            Ok(Err(error)) => Err(self.failed(&error).await),
        }
    }

    async fn read(&self, name: &str, start: u64, length: u64) -> Result<BlobRead, String> {
        let store = self.open().await?;
        let mut object = match timeout(ANSWER_TIMEOUT, store.get(name)).await {
            Err(_) => return Err(too_long()),
            Ok(Ok(object)) => object,
            Ok(Err(error)) if error.kind() == GetErrorKind::NotFound => {
                return Err(format!("there is no object `{name}`"));
            }
            Ok(Err(error)) => return Err(self.failed(&error).await),
        };
        // Chunks come in their order: what lies before is read and dropped.
        let (mut before, mut nowhere) = ((&mut object).take(start), tokio::io::sink());
        let passed = tokio::io::copy(&mut before, &mut nowhere);
        match timeout(WRITE_TIMEOUT, passed).await {
            Err(_) => Err(too_long()),
            Ok(Err(error)) => Err(error.to_string()),
            Ok(Ok(_)) => Ok(Box::pin(object.take(length))),
        }
    }

    async fn write(&self, name: &str, mut body: BlobRead) -> Result<(), String> {
        let store = self.open().await?;
        match timeout(WRITE_TIMEOUT, store.put(name, &mut body)).await {
            Err(_) => Err(LinkError::TimedOut(WRITE_TIMEOUT).to_string()),
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(self.failed(&error).await),
        }
    }

    async fn delete(&self, name: &str) -> Result<(), String> {
        if self.object(name).await?.is_none() {
            return Ok(());
        }
        let store = self.open().await?;
        match timeout(ANSWER_TIMEOUT, store.delete(name)).await {
            Err(_) => Err(too_long()),
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(self.failed(&error).await),
        }
    }

    async fn names(&self) -> Result<BoxStream<'static, Result<String, String>>, String> {
        let store = self.open().await?;
        let listing = match timeout(ANSWER_TIMEOUT, store.list()).await {
            Err(_) => return Err(too_long()),
            Ok(Ok(listing)) => listing,
            Ok(Err(error)) => return Err(self.failed(&error).await),
        };
        let names = listing.filter_map(|found| {
            std::future::ready(match found {
                Ok(info) => (!info.deleted).then_some(Ok(info.name)),
                Err(error) => Some(Err(error.to_string())),
            })
        });
        Ok(names.boxed())
    }
}
