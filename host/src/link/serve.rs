//! What arrives unasked: live sets and tables, and requests to this host.
//!
//! Owns the subscriptions; they outlive reconnects. Requests are answered by tasks of a bounded
//! number, refusals included, so that a slow one holds up nothing. Notes, which ask for nothing, are
//! taken in turn and are none of that number: what must not run twice rests on them.

use std::sync::Arc;

use async_nats::{HeaderMap, Message};
use futures::StreamExt as _;
use futures::stream::BoxStream;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use wasmorch_api::error::ErrorBody;
use wasmorch_api::messages::{
    HeldRequest, HostStatusRequest, LogsRequest, SyncRequest, UploadReply, UploadRequest,
};
use wasmorch_api::{ApiError, Digest, ErrorCode, PlacementSet, WorkloadKey, subjects};

use super::store::Stored;
use super::{Link, LinkEvent, Shared};
use crate::artifacts::Artifacts;
use crate::logs::LogReader;
use crate::tables::TableChange;

/// Requests answered at once; beyond, they are told to come again.
const REQUESTS_MAX: usize = 8;
/// Even that is not told to more than so many at once; the rest get no answer.
const REFUSALS_MAX: usize = 64;

/// What the host listens to.
pub(super) struct Subscriptions {
    placements: BoxStream<'static, Message>,
    routes: BoxStream<'static, Message>,
    endpoints: BoxStream<'static, Message>,
    requests: BoxStream<'static, Message>,
}

impl Subscriptions {
    /// Subscribes; the server knows of it before anything that is asked afterwards.
    pub(super) async fn open(link: &Link) -> Self {
        let subscribe = async |subject: String| {
            let subscriber = link.client.subscribe(subject).await;
            subscriber
                .expect("the subject is made of validated ids")
                .boxed()
        };
        Self {
            placements: subscribe(subjects::placements(&link.host)).await,
            routes: subscribe(subjects::ROUTES_ALL.to_owned()).await,
            endpoints: subscribe(subjects::ENDPOINTS_ALL.to_owned()).await,
            requests: subscribe(subjects::host(&link.host, "*")).await,
        }
    }
}

/// What answers are made of, cheap to clone.
#[derive(Clone)]
pub(super) struct Answers {
    pub(super) link: Link,
    pub(super) shared: Arc<Shared>,
    pub(super) events: mpsc::Sender<LinkEvent>,
    pub(super) logs: LogReader,
    pub(super) artifacts: Artifacts,
}

/// Passes on what arrives until the connection is closed for good.
pub(super) async fn listen(answers: Answers, mut subscriptions: Subscriptions) {
    let mut answering = JoinSet::new();
    loop {
        let event = tokio::select! {
            Some(message) = subscriptions.placements.next() => placements(&message),
            Some(message) = subscriptions.routes.next() => {
                table(&message, "routes", TableChange::Routes, TableChange::RoutesGone)
            }
            Some(message) = subscriptions.endpoints.next() => {
                table(&message, "endpoints", TableChange::Endpoints, TableChange::EndpointsGone)
            }
            Some(message) = subscriptions.requests.next() => {
                let answers = answers.clone();
                if let Some(taken) = answers.note(&message).await {
                    if message.reply.is_some() && answering.len() < REFUSALS_MAX {
                        answering.spawn(async move { reply(&answers.link, message, taken).await });
                    }
                } else if answering.len() < REQUESTS_MAX {
                    answering.spawn(async move {
                        let answer = answers.answer(&message).await;
                        reply(&answers.link, message, answer).await;
                    });
                } else if answering.len() < REFUSALS_MAX {
                    answering.spawn(async move { reply(&answers.link, message, Err(busy())).await });
                }
                continue;
            }
            Some(_) = answering.join_next(), if !answering.is_empty() => continue,
            else => return,
        };
        match event {
            Ok(event) => {
                if answers.events.send(event).await.is_err() {
                    return;
                }
            }
            Err(why) => {
                // It may have hidden something: what the store has is what counts.
                tracing::warn!(%why, "a message that cannot be read");
                answers.shared.note_behind(0);
            }
        }
    }
}

fn placements(message: &Message) -> Result<LinkEvent, String> {
    let stored = Stored::read(message.headers.as_ref(), &message.payload)
        .ok_or_else(|| format!("{} without a sequence", message.subject))?;
    let set = stored
        .decode::<PlacementSet>(&message.subject)
        .map_err(|error| error.to_string())?;
    Ok(match set {
        Some(set) => LinkEvent::Set {
            set: Box::new(set),
            sequence: stored.sequence,
        },
        None => LinkEvent::NoSet,
    })
}

fn table<T: DeserializeOwned>(
    message: &Message,
    kind: &str,
    changed: impl FnOnce(T, u64) -> TableChange,
    gone: impl FnOnce(WorkloadKey, u64) -> TableChange,
) -> Result<LinkEvent, String> {
    let key = subjects::parse_table(&message.subject, kind)
        .ok_or_else(|| format!("{} names no workload", message.subject))?;
    let stored = Stored::read(message.headers.as_ref(), &message.payload)
        .ok_or_else(|| format!("{} without a sequence", message.subject))?;
    let table = stored
        .decode::<T>(&message.subject)
        .map_err(|error| error.to_string())?;
    Ok(LinkEvent::Table(match table {
        Some(table) => changed(table, stored.sequence),
        None => gone(key, stored.sequence),
    }))
}

impl Answers {
    /// Takes what is only told; `None`: the message asks for something.
    async fn note(&self, message: &Message) -> Option<Result<Vec<u8>, ApiError>> {
        let event = match message.subject.rsplit('.').next() {
            Some("sync") => request(message).map(|request: SyncRequest| {
                self.shared.note_term(request.term);
                self.shared.note_behind(request.sequence);
                None
            }),
            Some("heard") => request(message).map(|note| Some(LinkEvent::Heard(note))),
            Some("withdrawn") => request(message).map(|note| Some(LinkEvent::Withdrawn(note))),
            _ => return None,
        };
        let event = match event {
            Ok(event) => event,
            Err(error) => return Some(Err(error)),
        };
        if let Some(event) = event
            && self.events.send(event).await.is_err()
        {
            return Some(Err(internal("the host is shutting down")));
        }
        Some(Ok(b"{}".to_vec()))
    }

    async fn answer(&self, message: &Message) -> Result<Vec<u8>, ApiError> {
        match message.subject.rsplit('.').next() {
            Some("status") => {
                let HostStatusRequest { cursor } = request(message)?;
                encode(
                    &self
                        .asked(|reply| LinkEvent::Status { cursor, reply })
                        .await?,
                )
            }
            Some("held") => {
                let HeldRequest { cursor } = request(message)?;
                encode(
                    &self
                        .asked(|reply| LinkEvent::Held { cursor, reply })
                        .await?,
                )
            }
            Some("upload") => {
                let request: UploadRequest = request(message)?;
                encode(&self.upload(&request.digest).await?)
            }
            Some("logs") => {
                let (logs, request): (_, LogsRequest) = (self.logs.clone(), request(message)?);
                let reply = tokio::task::spawn_blocking(move || logs.tail(&request)).await;
                encode(&reply.map_err(|_| internal("the logs could not be read"))?)
            }
            verb => Err(ApiError::new(
                ErrorCode::NotFound,
                format!("a host has no `{}`", verb.unwrap_or_default()),
                "it answers status, held, upload, logs, sync, heard and withdrawn",
                "",
            )),
        }
    }

    /// What only the agent knows.
    async fn asked<T>(
        &self,
        question: impl FnOnce(oneshot::Sender<Option<T>>) -> LinkEvent,
    ) -> Result<T, ApiError> {
        let (reply, answer) = oneshot::channel();
        let ending = || internal("the host is shutting down");
        self.events
            .send(question(reply))
            .await
            .map_err(|_| ending())?;
        answer.await.map_err(|_| ending())?.ok_or_else(|| {
            ApiError::new(
                ErrorCode::Unavailable,
                "the host belongs to no cluster yet",
                "it has not reached a store with a cluster's state",
                "start a controller",
            )
        })
    }

    /// Puts an artifact back that the store has lost and this host has on its disk.
    async fn upload(&self, digest: &Digest) -> Result<UploadReply, ApiError> {
        let path = self.artifacts.own(digest).await;
        let path = path
            .map_err(|error| internal(&error.reason))?
            .ok_or_else(|| {
                let what = format!("this host has no artifact {}", digest.short());
                ApiError::new(ErrorCode::NotFound, what, "", "ask another host")
            })?;
        let stored = self.link.put_artifact(digest, &path).await;
        stored.map(|bytes| UploadReply { bytes }).map_err(|why| {
            let what = format!("artifact {} could not be put back", digest.short());
            ApiError::new(ErrorCode::Unavailable, what, why, "try again")
        })
    }
}

/// Reads a request; an empty body is `{}`, as tools send it.
fn request<T: DeserializeOwned>(message: &Message) -> Result<T, ApiError> {
    let body: &[u8] = if message.payload.is_empty() {
        b"{}"
    } else {
        &message.payload
    };
    serde_json::from_slice(body).map_err(|error| {
        let what = format!("the request on {} cannot be read", message.subject);
        ApiError::new(
            ErrorCode::Invalid,
            what,
            error.to_string(),
            "see docs/reference.md, NATS API",
        )
    })
}

fn encode(reply: &impl Serialize) -> Result<Vec<u8>, ApiError> {
    serde_json::to_vec(reply).map_err(|error| internal(&error.to_string()))
}

fn internal(why: &str) -> ApiError {
    ApiError::new(
        ErrorCode::Internal,
        "the host could not answer",
        why,
        "try again",
    )
}

fn busy() -> ApiError {
    ApiError::new(
        ErrorCode::Busy,
        "the host is answering too many requests",
        format!("it answers {REQUESTS_MAX} at once"),
        "try again",
    )
}

async fn reply(link: &Link, message: Message, answer: Result<Vec<u8>, ApiError>) {
    let Some(to) = message.reply else { return };
    let sent = match answer {
        Ok(body) => link.client.publish(to, body.into()).await,
        Err(error) => {
            let mut headers = HeaderMap::new();
            // A header is one line; the body has the rest.
            headers.insert(
                "Nats-Service-Error",
                error.what.lines().next().unwrap_or_default(),
            );
            headers.insert(
                "Nats-Service-Error-Code",
                error.code.number().to_string().as_str(),
            );
            let body = serde_json::to_vec(&ErrorBody { error }).unwrap_or_default();
            link.client
                .publish_with_headers(to, headers, body.into())
                .await
        }
    };
    if let Err(error) = sent {
        tracing::debug!(%error, "an answer could not be sent");
    }
}

#[cfg(test)]
mod tests;
