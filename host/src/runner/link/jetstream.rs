//! JetStream over the data connection: what the stores and the consumers of guests share.

use async_nats::Client;
use async_nats::HeaderMap;
use async_nats::jetstream::context::{GetStreamErrorKind, PublishError, PublishErrorKind};
use async_nats::jetstream::object_store::{self, ObjectStore};
use async_nats::jetstream::stream::{Config, Stream};
use async_nats::jetstream::{Context, ErrorCode};
use bytes::Bytes;

use super::{Link, LinkError};

/// What survives the loss of one server.
const CLUSTER_REPLICAS: usize = 3;
/// What headers and the protocol take of a message, at most.
const HEADROOM_BYTES: usize = 16 << 10;

/// The client and its JetStream, with a server now.
#[derive(Debug, Clone)]
pub(super) struct JetStream {
    pub(super) client: Client,
    pub(super) context: Context,
    /// What stands before a subject that is published to: a domain's.
    prefix: String,
}

impl Link {
    pub(super) async fn jetstream(&self) -> Result<JetStream, LinkError> {
        let client = self.ready_client().await?.clone();
        let domain = self.options.as_ref().and_then(|o| o.js_domain.as_deref());
        let (context, prefix) = match domain {
            Some(domain) => (
                async_nats::jetstream::with_domain(client.clone(), domain),
                format!("$JS.{domain}.API."),
            ),
            None => (async_nats::jetstream::new(client.clone()), String::new()),
        };
        Ok(JetStream {
            client,
            context,
            prefix,
        })
    }
}

impl JetStream {
    /// The largest payload that fits into one message with room for its headers.
    pub(super) fn payload_max(&self) -> usize {
        let max = self.client.max_payload();
        max.saturating_sub(HEADROOM_BYTES).max(max / 2)
    }

    /// Three in a cluster; a server alone can keep one.
    pub(super) fn replicas(&self) -> usize {
        match self.client.server_info().cluster {
            Some(_) => CLUSTER_REPLICAS,
            None => 1,
        }
    }

    /// A stream that is there.
    pub(super) async fn find(&self, name: &str) -> Result<Option<Stream>, LinkError> {
        match self.context.get_stream(name).await {
            Ok(stream) => Ok(Some(stream)),
            Err(error) => match error.kind() {
                GetStreamErrorKind::JetStream(answer)
                    if answer.error_code() == ErrorCode::STREAM_NOT_FOUND =>
                {
                    Ok(None)
                }
                _ => Err(refused(&error)),
            },
        }
    }

    /// A stream, made when it is not there. One that is there stays as its owner made it.
    pub(super) async fn find_or_make(&self, config: Config) -> Result<Stream, LinkError> {
        if let Some(stream) = self.find(&config.name).await? {
            return Ok(stream);
        }
        // Whoever makes it first: a creation with the same settings answers the same.
        let name = config.name.clone();
        match self.context.create_stream(config).await {
            Ok(stream) => Ok(stream),
            Err(error) => self.find(&name).await?.ok_or_else(|| refused(&error)),
        }
    }

    /// An object store; one that is not there is made when `make` says so.
    pub(super) async fn objects(
        &self,
        name: &str,
        make: bool,
    ) -> Result<Option<ObjectStore>, LinkError> {
        let stream = format!("OBJ_{name}");
        if self.find(&stream).await?.is_none() {
            if !make {
                return Ok(None);
            }
            let config = object_store::Config {
                bucket: name.to_owned(),
                num_replicas: self.replicas(),
                ..object_store::Config::default()
            };
            if let Err(error) = self.context.create_object_store(config).await
                && self.find(&stream).await?.is_none()
            {
                return Err(refused(&error));
            }
        }
        let store = self.context.get_object_store(name).await;
        store.map(Some).map_err(|error| refused(&error))
    }

    /// Publishes into a stream and waits until it is stored; gives its sequence.
    pub(super) async fn store(
        &self,
        subject: &str,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<u64, PublishError> {
        let subject = format!("{}{subject}", self.prefix);
        let stored = self
            .context
            .publish_with_headers(subject, headers, body)
            .await?
            .await?;
        Ok(stored.sequence)
    }
}

pub(super) fn refused(error: &dyn std::fmt::Display) -> LinkError {
    LinkError::Refused(error.to_string())
}

/// Whether the stream is gone: it has to be looked for again.
pub(super) fn is_gone(error: &PublishError) -> bool {
    error.kind() == PublishErrorKind::StreamNotFound
}
