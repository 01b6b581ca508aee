//! Reading the store: single keys, all tables, revisions, artifacts.
//!
//! Owns the wire forms of direct gets. A direct get may be answered by a server that lags behind,
//! so what is read is compared by sequence with what is known, and what is missing is asked for
//! again by those who need it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_nats::header::{NATS_MARKER_REASON, NATS_SEQUENCE, NATS_SUBJECT};
use async_nats::jetstream::object_store::GetErrorKind;
use async_nats::{HeaderMap, Message};
use bytes::Bytes;
use futures::StreamExt as _;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio::time::timeout;
use wasmorch_api::record::TermRecord;
use wasmorch_api::subjects::{ARTIFACT_BUCKET, STATE_STREAM, key, parse_table, state};
use wasmorch_api::{
    ClusterId, Digest, EndpointTable, PlacementSet, Revision, RevisionNumber, RouteTable, Term,
    WorkloadKey,
};

use super::{Link, LinkEvent, REQUEST_TIMEOUT};
use crate::artifacts::{FetchError, Source};
use crate::tables::{TableChange, TablesFile};

/// Messages of one page of tables.
const PAGE: usize = 256;
/// A server that lags behind what the leader named is asked again so often.
const LAG_TRIES: u32 = 5;
const LAG_DELAY: Duration = Duration::from_millis(100);

/// The largest artifact over a slow link.
const UPLOAD_TIMEOUT: Duration = Duration::from_secs(120);

/// Where the tables lie.
const ROUTES: &str = "pub.routes.>";
const ENDPOINTS: &str = "pub.endpoints.>";

/// What has been read: of which cluster, in which term, and up to where the tables are complete:
/// (routes, endpoints).
#[derive(Debug, Clone)]
pub(super) struct Reading {
    cluster: ClusterId,
    term: Term,
    as_of: (u64, u64),
}

/// Why the store could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum StoreError {
    /// No connection.
    #[error("no connection to NATS")]
    Disconnected,
    /// Nobody answers for the bucket.
    #[error("NATS has no state of a cluster yet: start a controller, or check --js-domain")]
    NoState,
    /// It took too long.
    #[error("no answer from the store within {REQUEST_TIMEOUT:?}")]
    TimedOut,
    /// Anything else that the store says.
    #[error("the store says: {0}")]
    Refused(String),
    /// What is stored cannot be read: newer than this host, or not ours.
    #[error("`{key}` in the store cannot be read ({why}): is this host older than the controller?")]
    Unreadable {
        /// The key.
        key: String,
        /// Why.
        why: String,
    },
}

/// One value as stored.
pub(super) struct Stored {
    pub(super) sequence: u64,
    /// `None`: deleted.
    pub(super) body: Option<Bytes>,
}

impl Stored {
    /// Reads a message that the store sent or republished; `None` when it is no such message.
    pub(super) fn read(headers: Option<&HeaderMap>, body: &Bytes) -> Option<Self> {
        let headers = headers?;
        let sequence = headers.get(NATS_SEQUENCE)?.as_str().parse().ok()?;
        let deleted = headers.get(NATS_MARKER_REASON).is_some()
            || headers
                .get("KV-Operation")
                .is_some_and(|operation| matches!(operation.as_str(), "DEL" | "PURGE"));
        Some(Self {
            sequence,
            body: (!deleted).then(|| body.clone()),
        })
    }

    pub(super) fn decode<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, StoreError> {
        let decode = |body: &Bytes| {
            serde_json::from_slice(body).map_err(|error| StoreError::Unreadable {
                key: key.to_owned(),
                why: error.to_string(),
            })
        };
        self.body.as_ref().map(decode).transpose()
    }
}

/// A page of a direct batch get (nats-server 2.11 and newer).
#[derive(Serialize)]
struct BatchRequest<'a> {
    seq: u64,
    batch: usize,
    next_by_subj: &'a str,
}

impl Link {
    /// Reads what is this host's: the cluster, its placements, every table. Placements that cannot
    /// be read hold up no route: how that went is told apart.
    pub(super) async fn sync(
        &self,
        wanted: u64,
        events: &mpsc::Sender<LinkEvent>,
    ) -> Result<(Reading, Result<(), StoreError>), StoreError> {
        let (term, fence) = self.term().await?;
        let (term, leader, cluster) = (term.term, term.leader, term.cluster);
        send(
            events,
            LinkEvent::Connected {
                cluster: cluster.clone(),
                term,
                leader,
                fence,
            },
        )
        .await?;
        let placements = self.tell_placements(wanted, events).await;
        let routes = self.tables::<RouteTable>(ROUTES, 0).await?;
        let endpoints = self.tables::<EndpointTable>(ENDPOINTS, 0).await?;
        let as_of = (routes.as_of, endpoints.as_of);
        // What another cluster wrote is none of this host's.
        let read = TablesFile {
            routes: routes.live(|table| table.cluster == cluster),
            endpoints: endpoints.live(|table| table.cluster == cluster),
        };
        send(events, LinkEvent::Tables { read, as_of }).await?;
        let reading = Reading {
            cluster,
            term,
            as_of,
        };
        Ok((reading, placements))
    }

    /// The term in force, and its sequence.
    async fn term(&self) -> Result<(TermRecord, u64), StoreError> {
        let stored = self.get(key::TERM).await?.ok_or(StoreError::NoState)?;
        let term = stored.decode(key::TERM)?.ok_or(StoreError::NoState)?;
        Ok((term, stored.sequence))
    }

    /// Looks at the term when a leader has named a later one than was read. `false`: the store is
    /// another cluster's by now (it was recovered, or wiped), and all of it is to be read anew.
    pub(super) async fn follow_term(
        &self,
        reading: &mut Reading,
        told: u64,
        events: &mpsc::Sender<LinkEvent>,
    ) -> bool {
        if told <= reading.term.0 {
            return true;
        }
        match self.term().await {
            Ok((record, _)) if record.cluster != reading.cluster => false,
            Ok((record, fence)) => {
                reading.term = record.term;
                let (term, leader) = (record.term, record.leader);
                let event = LinkEvent::Term {
                    term,
                    leader,
                    fence,
                };
                // The daemon is ending when nobody takes it.
                let _ = send(events, event).await;
                true
            }
            // The leader says it again.
            Err(error) => {
                tracing::debug!(%error, "the term cannot be read now");
                true
            }
        }
    }

    /// Reads what is newer than `reading`: the placements, and tables that changed.
    pub(super) async fn catch_up(
        &self,
        reading: &mut Reading,
        wanted: u64,
        events: &mpsc::Sender<LinkEvent>,
    ) -> Result<(), StoreError> {
        let placements = self.tell_placements(wanted, events).await;
        let routes = self.tables::<RouteTable>(ROUTES, reading.as_of.0).await?;
        reading.as_of.0 = routes.as_of;
        for change in routes.changes("routes", TableChange::Routes, TableChange::RoutesGone) {
            send(events, LinkEvent::Table(change)).await?;
        }
        let endpoints = self
            .tables::<EndpointTable>(ENDPOINTS, reading.as_of.1)
            .await?;
        reading.as_of.1 = endpoints.as_of;
        let (changed, gone) = (TableChange::Endpoints, TableChange::EndpointsGone);
        for change in endpoints.changes("endpoints", changed, gone) {
            send(events, LinkEvent::Table(change)).await?;
        }
        placements
    }

    async fn tell_placements(
        &self,
        wanted: u64,
        events: &mpsc::Sender<LinkEvent>,
    ) -> Result<(), StoreError> {
        send(events, self.placements(wanted).await?).await
    }

    /// This host's set; asked again for a while when the store's answer is older than `wanted`.
    async fn placements(&self, wanted: u64) -> Result<LinkEvent, StoreError> {
        let key = key::placements(&self.host);
        let mut tries = 0;
        loop {
            let stored = self.get(&key).await?;
            let sequence = stored.as_ref().map_or(0, |stored| stored.sequence);
            tries += 1;
            if sequence < wanted && tries < LAG_TRIES {
                tokio::time::sleep(LAG_DELAY * tries).await;
                continue;
            }
            let set = stored
                .map(|stored| stored.decode::<PlacementSet>(&key))
                .transpose()?;
            return Ok(match set.flatten() {
                Some(set) => LinkEvent::Set {
                    set: Box::new(set),
                    sequence,
                },
                None => LinkEvent::NoSet,
            });
        }
    }

    /// A revision.
    pub(crate) async fn revision(
        &self,
        workload: &WorkloadKey,
        number: RevisionNumber,
    ) -> Result<Arc<Revision>, StoreError> {
        let key = key::revision(workload, number);
        let revision = match self.get(&key).await? {
            Some(stored) => stored.decode::<Revision>(&key)?,
            None => None,
        };
        let revision =
            revision.ok_or_else(|| StoreError::Refused("it is not in the store".into()))?;
        // Whoever waits for it is found by these.
        if revision.key() == *workload && revision.number == number {
            Ok(Arc::new(revision))
        } else {
            Err(StoreError::Unreadable {
                key,
                why: "it is another revision's".into(),
            })
        }
    }

    /// An artifact's bytes, not yet trusted.
    pub(crate) async fn artifact(&self, digest: &Digest) -> Result<Source, FetchError> {
        if !self.is_up() {
            return Err(FetchError::retryable(StoreError::Disconnected.to_string()));
        }
        let opening = async {
            let store = self
                .context
                .get_object_store(ARTIFACT_BUCKET)
                .await
                .map_err(|error| {
                    FetchError::retryable(format!("the object store cannot be opened: {error}"))
                })?;
            store
                .get(digest.as_str())
                .await
                .map_err(|error| match error.kind() {
                    GetErrorKind::NotFound => FetchError::lasting(format!(
                        "artifact {} is not in the store: deploy it again",
                        digest.short()
                    )),
                    _ => FetchError::retryable(format!(
                        "artifact {} cannot be opened: {error}",
                        digest.short()
                    )),
                })
        };
        let object = timeout(REQUEST_TIMEOUT * 2, opening)
            .await
            .map_err(|_| FetchError::retryable(StoreError::TimedOut.to_string()))??;
        let bytes = u64::try_from(object.info().size).unwrap_or(u64::MAX);
        Ok(Source {
            bytes,
            reader: Box::new(object),
        })
    }

    /// Puts an artifact into the store, from a file whose bytes have just been hashed; its size.
    pub(super) async fn put_artifact(&self, digest: &Digest, path: &Path) -> Result<u64, String> {
        let putting = async {
            let mut file = tokio::fs::File::open(path)
                .await
                .map_err(|e| e.to_string())?;
            let store = self.context.get_object_store(ARTIFACT_BUCKET).await;
            let store = store.map_err(|error| error.to_string())?;
            let stored = store.put(digest.as_str(), &mut file).await;
            let info = stored.map_err(|error| error.to_string())?;
            Ok(info.size as u64)
        };
        timeout(UPLOAD_TIMEOUT, putting)
            .await
            .map_err(|_| format!("it took longer than {UPLOAD_TIMEOUT:?}"))?
    }

    /// One key, by direct get.
    async fn get(&self, key: &str) -> Result<Option<Stored>, StoreError> {
        if !self.is_up() {
            return Err(StoreError::Disconnected);
        }
        let subject = format!("{}.DIRECT.GET.{STATE_STREAM}.{}", self.api, state(key));
        let message = self
            .client
            .request(subject, Bytes::new())
            .await
            .map_err(|error| {
                use async_nats::RequestErrorKind;
                match error.kind() {
                    RequestErrorKind::NoResponders => StoreError::NoState,
                    RequestErrorKind::TimedOut => StoreError::TimedOut,
                    _ => StoreError::Refused(error.to_string()),
                }
            })?;
        match status(&message) {
            None | Some(200) => Stored::read(message.headers.as_ref(), &message.payload)
                .map(Some)
                .ok_or_else(|| StoreError::Refused("an answer without a sequence".into())),
            Some(404) => Ok(None),
            Some(code) => Err(refused(&message, code)),
        }
    }

    /// All values under these keys newer than `after`, in their order. It is complete up to the
    /// highest sequence that is in it: a server that shows one holds everything before it.
    async fn tables<T: DeserializeOwned>(
        &self,
        keys: &str,
        after: u64,
    ) -> Result<Read<T>, StoreError> {
        let filter = state(keys);
        let mut read = Read {
            values: Vec::new(),
            as_of: after,
        };
        loop {
            let page = self.page(&filter, read.as_of + 1).await?;
            for (subject, stored) in page.messages {
                read.as_of = read.as_of.max(stored.sequence);
                match stored.decode::<T>(&subject) {
                    Ok(value) => read.values.push((subject, value, stored.sequence)),
                    // One that cannot be read must not hide the others.
                    Err(error) => tracing::warn!(%error, "skipped"),
                }
            }
            if page.last {
                return Ok(read);
            }
        }
    }

    async fn page(&self, filter: &str, from: u64) -> Result<Page, StoreError> {
        let refused = |error: &dyn std::fmt::Display| StoreError::Refused(error.to_string());
        let inbox = self.client.new_inbox();
        let subscribing = timeout(REQUEST_TIMEOUT, self.client.subscribe(inbox.clone())).await;
        let mut answers = subscribing
            .map_err(|_| StoreError::TimedOut)?
            .map_err(|error| refused(&error))?;
        let request = BatchRequest {
            seq: from,
            batch: PAGE,
            next_by_subj: filter,
        };
        let body = serde_json::to_vec(&request).map_err(|error| refused(&error))?;
        let subject = format!("{}.DIRECT.GET.{STATE_STREAM}", self.api);
        let asking = self.client.publish_with_reply(subject, inbox, body.into());
        timeout(REQUEST_TIMEOUT, asking)
            .await
            .map_err(|_| StoreError::TimedOut)?
            .map_err(|error| refused(&error))?;
        let mut messages = Vec::new();
        loop {
            let message = timeout(REQUEST_TIMEOUT, answers.next())
                .await
                .map_err(|_| StoreError::TimedOut)?
                .ok_or(StoreError::Disconnected)?;
            match status(&message) {
                None | Some(200) => {
                    let headers = message.headers.as_ref();
                    let subject = headers.and_then(|headers| headers.get(NATS_SUBJECT));
                    let subject = subject.map(ToString::to_string).unwrap_or_default();
                    messages.extend(
                        Stored::read(headers, &message.payload).map(|stored| (subject, stored)),
                    );
                }
                // End of the batch, with the number of messages beyond it.
                Some(204) => {
                    let last = messages.is_empty() || pending(&message) == Some(0);
                    return Ok(Page { messages, last });
                }
                Some(404) => {
                    return Ok(Page {
                        messages,
                        last: true,
                    });
                }
                Some(503) => return Err(StoreError::NoState),
                Some(code) => return Err(self::refused(&message, code)),
            }
        }
    }
}

struct Page {
    messages: Vec<(String, Stored)>,
    last: bool,
}

/// Values under some keys; a deleted one is `None`.
struct Read<T> {
    values: Vec<(String, Option<T>, u64)>,
    as_of: u64,
}

impl<T> Read<T> {
    fn live(self, wanted: impl Fn(&T) -> bool) -> Vec<(T, u64)> {
        let live = self
            .values
            .into_iter()
            .filter_map(|(_, value, at)| Some((value?, at)));
        live.filter(|(value, _)| wanted(value)).collect()
    }

    fn changes(
        self,
        kind: &str,
        changed: impl Fn(T, u64) -> TableChange,
        gone: impl Fn(WorkloadKey, u64) -> TableChange,
    ) -> Vec<TableChange> {
        let change = |(subject, value, at): (String, Option<T>, u64)| match value {
            Some(table) => Some(changed(table, at)),
            None => Some(gone(parse_table(&subject, kind)?, at)),
        };
        self.values.into_iter().filter_map(change).collect()
    }
}

/// The daemon is ending when nobody takes events; the tasks end with it.
async fn send(events: &mpsc::Sender<LinkEvent>, event: LinkEvent) -> Result<(), StoreError> {
    events
        .send(event)
        .await
        .map_err(|_| StoreError::Disconnected)
}

fn status(message: &Message) -> Option<u16> {
    message.status.map(|status| status.as_u16())
}

fn pending(message: &Message) -> Option<u64> {
    message
        .headers
        .as_ref()?
        .get("Nats-Num-Pending")?
        .as_str()
        .parse()
        .ok()
}

fn refused(message: &Message, code: u16) -> StoreError {
    StoreError::Refused(match &message.description {
        Some(text) => format!("{code} {text}"),
        None => code.to_string(),
    })
}
