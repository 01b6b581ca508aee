//! The cluster's state as it is stored: what `backup` keeps, and which artifacts it names.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use async_nats::jetstream::consumer::DeliverPolicy;
use async_nats::jetstream::consumer::pull::OrderedConfig;
use async_nats::jetstream::object_store::InfoErrorKind;
use futures::StreamExt as _;
use serde_json::Value;
use tokio::time::timeout;
use wasmorch_api::error::chain;
use wasmorch_api::{Digest, subjects};

use super::{Link, NO_LEADER, START_CONTROLLER};
use crate::error::{CliError, Exit};

/// Nothing comes for so long: the server is gone.
const SILENCE_MAX: Duration = Duration::from_secs(10);

impl Link {
    /// Every key and its value. Reading needs no leader; what is written meanwhile may be in it.
    pub(crate) async fn state(&self) -> Result<BTreeMap<String, Value>, CliError> {
        let stream = self.jetstream.get_stream(subjects::STATE_STREAM).await;
        let stream = stream.map_err(|error| {
            let why = format!("there is no stored state ({})", chain(&error));
            CliError::new(Exit::UNAVAILABLE, NO_LEADER, why, START_CONTROLLER)
        })?;
        let mut values = BTreeMap::new();
        if stream.cached_info().state.messages == 0 {
            return Ok(values);
        }
        let config = OrderedConfig {
            filter_subject: subjects::state(">"),
            deliver_policy: DeliverPolicy::LastPerSubject,
            ..OrderedConfig::default()
        };
        let consumer = stream.create_consumer(config).await;
        let consumer = consumer.map_err(|error| unread(&error))?;
        let mut messages = consumer.messages().await.map_err(|error| unread(&error))?;
        loop {
            let message = match timeout(SILENCE_MAX, messages.next()).await {
                Ok(Some(Ok(message))) => message,
                Ok(Some(Err(error))) => return Err(unread(&error)),
                Ok(None) | Err(_) => return Err(broken_off("nothing more comes")),
            };
            let pending = message
                .info()
                .map_err(|error| broken_off(&error.to_string()))?;
            let pending = pending.pending;
            if let Some(key) = subjects::state_key(&message.subject) {
                // An empty value marks a deletion.
                if message.payload.is_empty() {
                    values.remove(key);
                } else {
                    let value = serde_json::from_slice(&message.payload);
                    let value = value.map_err(|error| {
                        let why = format!("the value of `{key}` is no JSON: {error}");
                        CliError::new(Exit::FAILED, "the stored state is damaged", why, "")
                    })?;
                    values.insert(key.to_owned(), value);
                }
            }
            if pending == 0 {
                return Ok(values);
            }
        }
    }

    /// Which of these are not in the object store.
    pub(crate) async fn missing(&self, digests: BTreeSet<Digest>) -> Result<Vec<Digest>, CliError> {
        let store = self
            .jetstream
            .get_object_store(subjects::ARTIFACT_BUCKET)
            .await;
        let store = store.map_err(|error| unread(&error))?;
        let mut missing = Vec::new();
        for digest in digests {
            match store.info(digest.as_str()).await {
                Ok(info) if info.deleted => missing.push(digest),
                Ok(_) => {}
                Err(error) if error.kind() == InfoErrorKind::NotFound => missing.push(digest),
                Err(error) => return Err(unread(&error)),
            }
        }
        Ok(missing)
    }
}

fn unread(error: &(dyn std::error::Error + 'static)) -> CliError {
    broken_off(&chain(error))
}

fn broken_off(why: &str) -> CliError {
    CliError::new(
        Exit::UNAVAILABLE,
        "the stored state cannot be read",
        why,
        "try again",
    )
}
