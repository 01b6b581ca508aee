//! Artifacts into the object store, under their digest, skipping what is there.
//!
//! Writes what NATS object stores are made of (chunks, then a meta message), so that `nats object
//! get` reads it; unlike the library it has several chunks under way at once, which matters when
//! the server syncs each one, and it takes a broken-off upload away again.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use async_nats::HeaderMap;
use async_nats::jetstream::context::PublishAckFuture;
use async_nats::jetstream::stream::{DirectGetErrorKind, Stream};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE;
use bytes::Bytes;
use futures::TryStreamExt as _;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio_util::sync::CancellationToken;
use wasmorch_api::error::chain;
use wasmorch_api::{Digest, HumanDuration, subjects};

use super::{Link, NO_LEADER, START_CONTROLLER};
use crate::error::{CliError, Exit};

/// A chunk's size: with it a full window is 4 MiB, and any server's message limit holds it.
const CHUNK_BYTES: usize = 256 * 1024;
/// Chunks under way at once, of all uploads together: on a slow link more of them would only wait
/// for each other, and for longer than an acknowledgement is waited for.
const WINDOW: usize = 16;

/// What became of the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Upload {
    /// They are there now.
    Sent,
    /// They were there.
    Present,
}

/// What is read of an object's meta message.
#[derive(Deserialize)]
struct Meta {
    #[serde(default)]
    size: u64,
    #[serde(default)]
    digest: Option<String>,
    #[serde(default)]
    deleted: bool,
    #[serde(default)]
    nuid: String,
    #[serde(default)]
    chunks: usize,
}

/// Uploads that share a window of chunks.
pub(crate) struct Uploads<'a> {
    link: &'a Link,
    stream: Stream<()>,
    window: Semaphore,
}

/// A chunk that the server has not confirmed.
struct Sent<'a> {
    size: u64,
    ack: PublishAckFuture,
    _place: SemaphorePermit<'a>,
}

impl<'a> Uploads<'a> {
    /// How many artifacts it makes sense to send at once: small ones are one chunk.
    pub(crate) const AT_ONCE: usize = WINDOW;

    pub(crate) async fn into(link: &'a Link) -> Result<Self, CliError> {
        let store = format!("OBJ_{}", subjects::ARTIFACT_BUCKET);
        let stream = link.jetstream.get_stream_no_info(&store).await;
        Ok(Self {
            link,
            stream: stream.map_err(|error| failed(&error))?,
            window: Semaphore::new(WINDOW),
        })
    }

    /// Puts the bytes of `digest` into the artifact store. `progress` is told how many are stored.
    /// Once `stop` is cancelled, what has been sent is taken away again, unless it may be whole.
    pub(crate) async fn upload(
        &self,
        digest: &Digest,
        bytes: Bytes,
        stop: &CancellationToken,
        mut progress: impl FnMut(u64),
    ) -> Result<Upload, CliError> {
        if stop.is_cancelled() {
            return Err(CliError::interrupted("interrupted"));
        }
        let stream = &self.stream;
        let name = URL_SAFE.encode(digest.as_str());
        let meta_subject = format!("$O.{}.M.{name}", subjects::ARTIFACT_BUCKET);
        let checksum = checksum(digest);
        if self
            .is_stored(&meta_subject, &checksum, bytes.len() as u64)
            .await?
        {
            return Ok(Upload::Present);
        }
        let id = format!("{:032x}", rand::random::<u128>());
        let chunks = format!("$O.{}.C.{id}", subjects::ARTIFACT_BUCKET);
        // From here on nobody knows whether the object is there, until the server has said so.
        let meta_sent = AtomicBool::new(false);
        let sending = async {
            let count = self.send_chunks(&chunks, &bytes, &mut progress).await?;
            let meta = json!({
                "name": digest.as_str(),
                "options": { "max_chunk_size": CHUNK_BYTES },
                "bucket": subjects::ARTIFACT_BUCKET,
                "nuid": id,
                "size": bytes.len(),
                "mtime": wasmorch_api::Timestamp::from(std::time::SystemTime::now()),
                "chunks": count,
                "digest": checksum,
            });
            let mut headers = HeaderMap::new();
            headers.insert("Nats-Rollup", "sub");
            let meta = meta.to_string().into();
            meta_sent.store(true, Relaxed);
            let sent = self
                .link
                .jetstream
                .publish_with_headers(meta_subject, headers, meta)
                .await;
            sent.map_err(|error| failed(&error))?
                .await
                .map_err(|error| failed(&error))
        };
        let stored = tokio::select! {
            stored = sending => stored.map(|_| Upload::Sent),
            () = stop.cancelled() => Err(CliError::interrupted("interrupted")),
        };
        if stored.is_err() && !meta_sent.load(Relaxed) {
            // No meta message names these chunks: nobody would ever read them. Best effort, since
            // the connection may be what failed.
            let purge = async { stream.purge().filter(chunks).await };
            let _ = tokio::time::timeout(super::ATTEMPT, purge).await;
        }
        stored
    }

    async fn is_stored(&self, meta: &str, checksum: &str, size: u64) -> Result<bool, CliError> {
        let message = match self.stream.direct_get_last_for_subject(meta).await {
            Ok(message) => message,
            Err(error) => {
                return match error.kind() {
                    DirectGetErrorKind::NotFound => Ok(false),
                    DirectGetErrorKind::TimedOut => Err(failed(&error)),
                    // No stream, so no controller has ever led here.
                    _ => Err(CliError::new(
                        Exit::UNAVAILABLE,
                        NO_LEADER,
                        format!("there is no artifact store ({})", chain(&error)),
                        START_CONTROLLER,
                    )),
                };
            }
        };
        let meta: Option<Meta> = serde_json::from_slice(&message.payload).ok();
        let meta = meta.filter(|meta| {
            !meta.deleted && meta.size == size && meta.digest.as_deref() == Some(checksum)
        });
        match meta {
            Some(meta) => has_chunks(&self.stream, &meta).await,
            None => Ok(false),
        }
    }

    async fn send_chunks(
        &self,
        subject: &str,
        bytes: &Bytes,
        progress: &mut impl FnMut(u64),
    ) -> Result<usize, CliError> {
        let mut under_way: VecDeque<Sent<'_>> = VecDeque::with_capacity(WINDOW);
        let mut stored = 0;
        let mut count = 0;
        let mut acknowledge = async |sent: Sent<'_>| {
            sent.ack.await.map_err(|error| failed(&error))?;
            stored += sent.size;
            progress(stored);
            Ok::<(), CliError>(())
        };
        for from in (0..bytes.len()).step_by(CHUNK_BYTES) {
            let chunk = bytes.slice(from..bytes.len().min(from + CHUNK_BYTES));
            // Whoever holds places of the window frees one before it waits for one.
            let place = loop {
                if let Ok(place) = self.window.try_acquire() {
                    break place;
                }
                match under_way.pop_front() {
                    Some(oldest) => acknowledge(oldest).await?,
                    None => break self.window.acquire().await.expect("it is never closed"),
                }
            };
            let size = chunk.len() as u64;
            let ack = self.link.jetstream.publish(subject.to_owned(), chunk).await;
            under_way.push_back(Sent {
                size,
                ack: ack.map_err(|error| failed(&error))?,
                _place: place,
            });
            count += 1;
        }
        for sent in under_way {
            acknowledge(sent).await?;
        }
        Ok(count)
    }
}

/// Whether the bytes are there too: an upload that broke off may have left the meta message alone.
async fn has_chunks(stream: &Stream<()>, meta: &Meta) -> Result<bool, CliError> {
    let chunks = format!("$O.{}.C.{}", subjects::ARTIFACT_BUCKET, meta.nuid);
    let counted = stream.info_with_subjects(chunks).await;
    let counted = counted.map_err(|error| failed(&error))?;
    let counted: Vec<(String, usize)> = counted
        .try_collect()
        .await
        .map_err(|error| failed(&error))?;
    let found: usize = counted.iter().map(|(_, count)| count).sum();
    Ok(found >= meta.chunks)
}

/// The form in which object stores note a sha256.
fn checksum(digest: &Digest) -> String {
    let hex = digest.hex().as_bytes();
    let raw: Vec<u8> = hex
        .chunks(2)
        .map(|pair| {
            let digit = |b: u8| char::from(b).to_digit(16).expect("a digest is hex") as u8;
            digit(pair[0]) << 4 | digit(pair[1])
        })
        .collect();
    format!("SHA-256={}", URL_SAFE.encode(raw))
}

fn failed(error: &(dyn std::error::Error + 'static)) -> CliError {
    let why = chain(error);
    // The store's own words for a full disk or a full account.
    if why.contains("insufficient") || why.contains("maximum") || why.contains("no space") {
        return CliError::new(
            Exit::BLOCKED,
            "the artifact store is full",
            why,
            "make room for NATS",
        );
    }
    CliError::new(
        Exit::UNAVAILABLE,
        "the artifact cannot be uploaded",
        why,
        format!(
            "try again; a slow link may need more than {}",
            HumanDuration(super::TIMEOUT)
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_those_of_object_stores() {
        // sha256 of nothing, as `nats object info` shows it.
        assert_eq!(
            checksum(&Digest::of(b"")),
            "SHA-256=47DEQpj8HBSa-_TImW-5JCeuQeRkm5NMpJWZG3hSuFU="
        );
    }
}
