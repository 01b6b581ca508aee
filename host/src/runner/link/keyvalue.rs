//! `wasi:keyvalue` in a JetStream KV bucket.
//!
//! An entry is what every KV client knows: the last message of `$KV.<bucket>.<key>`. Beyond that:
//!
//! - A key that is no KV key (or begins with `=`) is stored as `=` and its base64url.
//! - A value larger than a message lies in the object store `<bucket>_large`, under a name of its
//!   own; the entry holds no bytes and names it in the header `Wasmorch-Large`. The entry is what
//!   commits: a swap compares its revision, as of any other. The object of an entry that was
//!   replaced is deleted after it; a runner that dies in between leaves it behind.
//! - Deletion leaves a marker, which the server forgets after a while in buckets made here.
//!
//! Reads come from a server that has every acknowledged write: by a direct get where there is one
//! replica, else from the stream's leader.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, pull};
use async_nats::jetstream::context::PublishErrorKind;
use async_nats::jetstream::object_store::ObjectStore;
use async_nats::jetstream::stream::{
    Config, DirectGetErrorKind, DiscardPolicy, LastRawMessageErrorKind, StorageType, Stream,
};
use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};
use wasmorch_runtime::{KEYS_PAGE, KeyValueError, KeyValueStore, Keys, MemoryShare, Version};

use super::jetstream::{JetStream, is_gone, refused};
use super::{Link, LinkError};

mod entry;
mod large;

use entry::{Entry, Held, LARGE, MARKER_REASON, OPERATION, decode, encode};
use large::{delete_object, get_object, put_object};

/// Deleted keys are remembered so long, for watchers.
const MARKER_TTL: Duration = Duration::from_secs(3600);
/// For a page of keys.
const PAGE_TIMEOUT: Duration = Duration::from_secs(10);
/// The object store of large values is looked for again after this long: another host may have
/// made it.
const LOOK_AGAIN: Duration = Duration::from_secs(30);
/// Reads of one large value: each that finds it gone means that it was replaced meanwhile.
const LARGE_READS: usize = 5;

const EXPECTED: &str = "Nats-Expected-Last-Subject-Sequence";
const MESSAGE_TTL: &str = "Nats-TTL";

/// A bucket. Found, or made, when it is first used.
pub(in crate::runner) struct JetStreamBucket {
    link: Arc<Link>,
    bucket: String,
    opened: Mutex<Option<Arc<Opened>>>,
    /// Increments of this runner go one after the other: only other runners can collide.
    increments: Mutex<()>,
    /// Of the memory for large values.
    share: MemoryShare,
}

struct Opened {
    jetstream: JetStream,
    stream: Stream,
    /// `$KV.<bucket>.`
    subjects: String,
    /// Whether any server may answer a read.
    direct: bool,
    /// One message per key, so a listing can go on from a sequence.
    single: bool,
    /// Messages may end by themselves.
    ttl: bool,
    large: Mutex<Large>,
}

/// Where large values are, as far as it is known.
#[derive(Default)]
struct Large {
    store: Option<ObjectStore>,
    looked: Option<Instant>,
}

fn other(error: LinkError) -> KeyValueError {
    KeyValueError::other(error)
}

impl JetStreamBucket {
    pub(in crate::runner) fn new(link: Arc<Link>, bucket: String, share: MemoryShare) -> Self {
        Self {
            link,
            bucket,
            opened: Mutex::default(),
            increments: Mutex::default(),
            share,
        }
    }

    async fn open(&self) -> Result<Arc<Opened>, KeyValueError> {
        // Also when it was opened before: without a server there is no waiting for one.
        let jetstream = self.link.jetstream().await.map_err(other)?;
        let mut opened = self.opened.lock().await;
        if let Some(opened) = &*opened {
            return Ok(opened.clone());
        }
        let config = bucket_config(&self.bucket, jetstream.replicas());
        let stream = jetstream.find_or_make(config).await.map_err(other)?;
        let config = &stream.cached_info().config;
        let new = Arc::new(Opened {
            subjects: format!("$KV.{}.", self.bucket),
            direct: config.allow_direct && config.num_replicas == 1 && config.mirror.is_none(),
            single: config.max_messages_per_subject == 1,
            ttl: config.allow_message_ttl,
            jetstream,
            stream,
            large: Mutex::default(),
        });
        *opened = Some(new.clone());
        Ok(new)
    }

    async fn forget(&self) {
        *self.opened.lock().await = None;
    }

    /// Writes an entry; `Ok(false)` when it is not at the expected revision.
    async fn write(
        &self,
        opened: &Opened,
        key: &str,
        mut headers: HeaderMap,
        body: Bytes,
        expected: Option<u64>,
    ) -> Result<bool, KeyValueError> {
        if let Some(revision) = expected {
            headers.insert(EXPECTED, revision.to_string().as_str());
        }
        let subject = format!("{}{}", opened.subjects, encode(key));
        match opened.jetstream.store(&subject, headers, body).await {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == PublishErrorKind::WrongLastSequence => Ok(false),
            Err(error) => {
                if is_gone(&error) {
                    self.forget().await;
                }
                Err(KeyValueError::other(error))
            }
        }
    }

    /// Writes a value of any size in place of what is there, at a revision or whatever it is.
    async fn put(
        &self,
        key: &str,
        value: Bytes,
        expected: Option<u64>,
    ) -> Result<bool, KeyValueError> {
        let opened = self.open().await?;
        let large = value.len() > opened.jetstream.payload_max();
        let store = opened.large(&self.bucket, large).await?;
        let replaced = opened.object_of(store.as_ref(), key).await?;
        let (mut headers, mut body, mut object) = (HeaderMap::new(), value, None);
        if let Some(store) = store.as_ref().filter(|_| large) {
            let name = put_object(&opened, store, &body).await?;
            headers.insert(LARGE, name.as_str());
            (body, object) = (Bytes::new(), Some(name));
        }
        let written = self.write(&opened, key, headers, body, expected).await;
        // Of the old and the new object the one is left that an entry names.
        let unused = if matches!(written, Ok(true)) {
            replaced
        } else if matches!(written, Ok(false)) {
            object
        } else {
            // Unknown: the entry may be there.
            None
        };
        delete_object(store.as_ref(), unused).await;
        written
    }

    async fn entry(&self, key: &str) -> Result<(Arc<Opened>, Entry), KeyValueError> {
        let opened = self.open().await?;
        match opened.entry(key).await {
            Ok(entry) => Ok((opened, entry)),
            Err(error) => {
                // It may be that the bucket is gone; looking for it again is cheap.
                self.forget().await;
                Err(other(error))
            }
        }
    }

    async fn read_entry(&self, key: &str) -> Result<(Option<Bytes>, u64), KeyValueError> {
        for _ in 0..LARGE_READS {
            let (opened, Entry { revision, value }) = self.entry(key).await?;
            let name = match value {
                Held::Nothing => return Ok((None, revision)),
                Held::Small(value) => return Ok((Some(value), revision)),
                Held::Large(name) => name,
            };
            let Some(store) = opened.large(&self.bucket, true).await? else {
                break;
            };
            if let Some(value) = get_object(&store, &name, &self.share).await? {
                return Ok((Some(value), revision));
            }
        }
        Err(KeyValueError::other(format!(
            "the large value of this key is gone from the object store {}_large",
            self.bucket
        )))
    }
}

impl Opened {
    async fn entry(&self, key: &str) -> Result<Entry, LinkError> {
        let subject = format!("{}{}", self.subjects, encode(key));
        if self.direct {
            match self.stream.direct_get_last_for_subject(subject).await {
                Ok(message) => Ok(Entry::of(message)),
                Err(error) if error.kind() == DirectGetErrorKind::NotFound => Ok(Entry::NONE),
                Err(error) => Err(refused(&error)),
            }
        } else {
            match self.stream.get_last_raw_message_by_subject(&subject).await {
                Ok(message) => Ok(Entry::of(message)),
                Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => {
                    Ok(Entry::NONE)
                }
                Err(error) => Err(refused(&error)),
            }
        }
    }

    /// The object store of large values: made when `needed`, else `None` where there is none.
    async fn large(
        &self,
        bucket: &str,
        needed: bool,
    ) -> Result<Option<ObjectStore>, KeyValueError> {
        let mut large = self.large.lock().await;
        if let Some(store) = &large.store {
            return Ok(Some(store.clone()));
        }
        let looked = large.looked.is_some_and(|at| at.elapsed() < LOOK_AGAIN);
        if looked && !needed {
            return Ok(None);
        }
        let name = format!("{bucket}_large");
        let store = self.jetstream.objects(&name, needed).await;
        large.store = store.map_err(other)?;
        large.looked = Some(Instant::now());
        Ok(large.store.clone())
    }

    /// The object that an entry names now: with large values about, it is looked at before it is
    /// replaced.
    async fn object_of(
        &self,
        store: Option<&ObjectStore>,
        key: &str,
    ) -> Result<Option<String>, KeyValueError> {
        if store.is_none() {
            return Ok(None);
        }
        match self.entry(key).await.map_err(other)?.value {
            Held::Large(name) => Ok(Some(name)),
            _ => Ok(None),
        }
    }

    /// Entries from a sequence on, at most a page of them, and whether there are more. Values stay
    /// at the server.
    async fn page(&self, from: u64) -> Result<(Vec<(String, u64, bool)>, bool), LinkError> {
        let config = pull::Config {
            deliver_policy: if self.single {
                DeliverPolicy::ByStartSequence {
                    start_sequence: from,
                }
            } else {
                DeliverPolicy::LastPerSubject
            },
            ack_policy: AckPolicy::None,
            filter_subject: format!("{}>", self.subjects),
            headers_only: true,
            inactive_threshold: PAGE_TIMEOUT,
            memory_storage: true,
            num_replicas: 1,
            ..pull::Config::default()
        };
        let consumer = self.stream.create_consumer(config).await;
        let consumer = consumer.map_err(|error| refused(&error))?;
        let mut left = consumer.cached_info().num_pending;
        let mut entries = Vec::new();
        while left > 0 && entries.len() < KEYS_PAGE {
            let batch = consumer.fetch().max_messages(KEYS_PAGE).messages().await;
            let mut batch = batch.map_err(|error| refused(&error))?;
            let mut came = 0;
            while let Some(message) = batch.next().await {
                let message = message.map_err(|error| refused(&error))?;
                let sequence = message.info().map_err(|error| refused(&error))?;
                let sequence = sequence.stream_sequence;
                came += 1;
                let key = message.subject.strip_prefix(&*self.subjects);
                let headers = message.headers.as_ref();
                let has = |name| headers.is_some_and(|headers| headers.get(name).is_some());
                let deleted = has(OPERATION) || has(MARKER_REASON);
                if let Some(key) = key.filter(|_| sequence >= from) {
                    entries.push((key.to_owned(), sequence, deleted));
                }
            }
            if came == 0 {
                break;
            }
            left = left.saturating_sub(came);
        }
        let name = consumer.cached_info().name.clone();
        if let Err(error) = self.stream.delete_consumer(&name).await {
            // It ends by itself when nobody asks it any more.
            tracing::debug!(%error, "a listing's consumer could not be deleted");
        }
        Ok((entries, left > 0))
    }
}

fn bucket_config(bucket: &str, replicas: usize) -> Config {
    Config {
        name: format!("KV_{bucket}"),
        description: Some("wasmorch: a keyvalue binding".to_owned()),
        subjects: vec![format!("$KV.{bucket}.>")],
        max_messages_per_subject: 1,
        max_messages: -1,
        max_bytes: -1,
        max_message_size: -1,
        max_consumers: -1,
        storage: StorageType::File,
        num_replicas: replicas,
        // What makes a stream a KV bucket for every client.
        allow_direct: true,
        allow_rollup: true,
        deny_delete: true,
        discard: DiscardPolicy::New,
        allow_message_ttl: true,
        ..Config::default()
    }
}

#[async_trait]
impl KeyValueStore for JetStreamBucket {
    async fn get(&self, key: &str) -> Result<Option<Bytes>, KeyValueError> {
        Ok(self.read_entry(key).await?.0)
    }

    async fn set(&self, key: &str, value: Bytes) -> Result<(), KeyValueError> {
        self.put(key, value, None).await.map(|_| ())
    }

    async fn delete(&self, key: &str) -> Result<(), KeyValueError> {
        let (opened, entry) = self.entry(key).await?;
        let object = match entry.value {
            Held::Nothing => return Ok(()),
            Held::Small(_) => None,
            Held::Large(name) => Some(name),
        };
        let mut headers = HeaderMap::new();
        headers.insert(OPERATION, "DEL");
        if opened.ttl {
            headers.insert(MESSAGE_TTL, MARKER_TTL.as_secs().to_string().as_str());
        }
        self.write(&opened, key, headers, Bytes::new(), None)
            .await?;
        if object.is_some() {
            let store = opened.large(&self.bucket, false).await?;
            delete_object(store.as_ref(), object).await;
        }
        Ok(())
    }

    async fn exists(&self, key: &str) -> Result<bool, KeyValueError> {
        let (_, entry) = self.entry(key).await?;
        Ok(!matches!(entry.value, Held::Nothing))
    }

    async fn keys(&self, cursor: Option<u64>) -> Result<Keys, KeyValueError> {
        let opened = self.open().await?;
        let from = cursor.unwrap_or(0).saturating_add(1);
        let page = timeout(PAGE_TIMEOUT, opened.page(from)).await;
        let page = page.unwrap_or(Err(LinkError::TimedOut(PAGE_TIMEOUT)));
        let (mut entries, more) = page.map_err(other)?;
        // By their sequence they come already, but where a bucket keeps history.
        entries.sort_unstable_by_key(|(_, sequence, _)| *sequence);
        let more = more || entries.len() > KEYS_PAGE;
        entries.truncate(KEYS_PAGE);
        let cursor = entries.last().map(|(_, sequence, _)| *sequence);
        // What was written during the listing is in it twice; the last word counts.
        let mut last: HashMap<String, bool> = HashMap::new();
        for (key, _, deleted) in entries {
            last.insert(key, deleted);
        }
        let live = last.into_iter().filter(|(_, deleted)| !deleted);
        Ok(Keys {
            keys: live.filter_map(|(key, _)| decode(&key)).collect(),
            cursor: cursor.filter(|_| more),
        })
    }

    async fn read(&self, key: &str) -> Result<(Option<Bytes>, Version), KeyValueError> {
        let (value, revision) = self.read_entry(key).await?;
        Ok((value, Version::Revision(revision)))
    }

    async fn swap(
        &self,
        key: &str,
        version: &Version,
        value: Bytes,
    ) -> Result<bool, KeyValueError> {
        match version {
            Version::Revision(revision) => self.put(key, value, Some(*revision)).await,
            Version::Value(_) => Ok(false),
        }
    }

    async fn increment(&self, key: &str, delta: i64) -> Result<i64, KeyValueError> {
        let _turn = self.increments.lock().await;
        wasmorch_runtime::increment_by_swaps(self, key, delta).await
    }
}
