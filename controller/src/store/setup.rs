//! How the streams are laid out, and that they are so.
//!
//! A stream that is there with other settings is changed to ours where JetStream can do that
//! (limits, replicas, republish); what cannot be changed (where it stores, what it retains) is
//! refused with what is wrong.

use std::time::Duration;

use async_nats::jetstream;
use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::context::{
    AccountErrorKind, CreateStreamError, CreateStreamErrorKind, GetStreamError, GetStreamErrorKind,
};
use async_nats::jetstream::object_store::ObjectStore;
use async_nats::jetstream::stream::{
    Config, DiscardPolicy, Republish, RetentionPolicy, StorageType, Stream,
};
use wasmorch_api::error::chain;
use wasmorch_api::subjects;

use super::StoreError;
use super::batch::refusal;
use crate::error::ControllerError;
use crate::link::Link;

/// Atomic publish came with 2.12.
const OLDEST: (u32, u32) = (2, 12);
/// Past events are kept so long and so far, whichever ends first (CONTRACT, "NATS API").
const EVENT_AGE_MAX: Duration = Duration::from_secs(7 * 24 * 3600);
const EVENT_BYTES_MAX: i64 = 100 * 1024 * 1024;
/// What survives the loss of one server.
const CLUSTER_REPLICAS: usize = 3;

/// `2.15.1` or `2.12.0-RC.1` -> (2, 15); `None` when it is no version.
fn version(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.trim_start_matches('v').split(['.', '-']);
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

pub(super) fn check_server(link: &Link) -> Result<(), ControllerError> {
    let found = link.client().server_info().version;
    // A server that gives no version we can read is taken at its word: what it lacks shows when
    // the streams are made.
    if version(&found).is_some_and(|version| version < OLDEST) {
        return Err(ControllerError::TooOld { found });
    }
    Ok(())
}

pub(super) fn context(link: &Link, js_domain: Option<&str>) -> (jetstream::Context, String) {
    match js_domain {
        Some(domain) => {
            let js = jetstream::with_domain(link.client().clone(), domain);
            (js, format!("$JS.{domain}.API."))
        }
        None => (jetstream::new(link.client().clone()), String::new()),
    }
}

pub(super) async fn check_jetstream(
    link: &Link,
    js: &jetstream::Context,
) -> Result<(), ControllerError> {
    let no_jetstream = || ControllerError::NoJetStream {
        url: link.url().to_owned(),
    };
    match js.query_account().await {
        Ok(_) => Ok(()),
        Err(error) => Err(match error.kind() {
            AccountErrorKind::JetStreamUnavailable => no_jetstream(),
            AccountErrorKind::JetStream(ref answer)
                if [
                    ErrorCode::JETSTREAM_NOT_ENABLED,
                    ErrorCode::JETSTREAM_NOT_ENABLED_FOR_ACCOUNT,
                ]
                .contains(&answer.error_code()) =>
            {
                no_jetstream()
            }
            _ => ControllerError::Store(StoreError::Unavailable(error.to_string())),
        }),
    }
}

/// Three in a cluster; a server alone can keep one.
pub(super) fn replicas(link: &Link) -> usize {
    if link.client().server_info().cluster.is_some() {
        CLUSTER_REPLICAS
    } else {
        1
    }
}

/// The stream behind the KV bucket of all state.
pub(super) fn state_stream(replicas: usize) -> Config {
    let (source, destination) = subjects::REPUBLISH;
    Config {
        name: subjects::STATE_STREAM.to_owned(),
        description: Some("wasmorch: all state. Written by the leader alone".to_owned()),
        subjects: vec![subjects::state(">")],
        max_messages_per_subject: 1,
        republish: Some(Republish {
            source: source.to_owned(),
            destination: destination.to_owned(),
            headers_only: false,
        }),
        // What makes a stream a KV bucket for every client.
        allow_direct: true,
        allow_rollup: true,
        deny_delete: true,
        discard: DiscardPolicy::New,
        // The lease ends by itself; a batch is stored whole or not at all.
        allow_message_ttl: true,
        allow_atomic_publish: true,
        ..common(replicas)
    }
}

/// The stream of past events.
pub(super) fn event_stream(replicas: usize) -> Config {
    Config {
        name: subjects::EVENT_STREAM.to_owned(),
        description: Some("wasmorch: past events".to_owned()),
        subjects: vec![subjects::events(None)],
        max_age: EVENT_AGE_MAX,
        max_bytes: EVENT_BYTES_MAX,
        discard: DiscardPolicy::Old,
        allow_direct: true,
        ..common(replicas)
    }
}

fn common(replicas: usize) -> Config {
    Config {
        max_bytes: -1,
        max_messages: -1,
        max_messages_per_subject: -1,
        max_consumers: -1,
        max_message_size: -1,
        retention: RetentionPolicy::Limits,
        storage: StorageType::File,
        num_replicas: replicas,
        ..Config::default()
    }
}

/// Takes from `found` what we do not decide, and from `wanted` what we do.
fn merged(found: &Config, wanted: &Config) -> Config {
    Config {
        description: wanted.description.clone(),
        subjects: wanted.subjects.clone(),
        max_bytes: wanted.max_bytes,
        max_messages: wanted.max_messages,
        max_messages_per_subject: wanted.max_messages_per_subject,
        max_age: wanted.max_age,
        max_message_size: wanted.max_message_size,
        discard: wanted.discard,
        republish: wanted.republish.clone(),
        allow_direct: wanted.allow_direct,
        allow_rollup: wanted.allow_rollup,
        deny_delete: wanted.deny_delete,
        // A person may have asked for more replicas than we would.
        num_replicas: found.num_replicas.max(wanted.num_replicas),
        // What cannot be taken back once it is on.
        allow_message_ttl: found.allow_message_ttl || wanted.allow_message_ttl,
        allow_atomic_publish: found.allow_atomic_publish || wanted.allow_atomic_publish,
        ..found.clone()
    }
}

/// What makes a stream unusable, when an update cannot mend it.
fn unusable(found: &Config) -> Option<&'static str> {
    if found.storage != StorageType::File {
        Some("it keeps its messages in memory, and they would not survive a restart")
    } else if found.retention != RetentionPolicy::Limits {
        Some("its retention forgets messages that somebody has read")
    } else if found.mirror.is_some() || found.sources.is_some() {
        Some("it is a copy of another stream")
    } else if found.sealed {
        Some("it is sealed")
    } else {
        None
    }
}

/// The stream as wanted: made when absent, changed when different.
pub(super) async fn ensure(
    js: &jetstream::Context,
    wanted: Config,
) -> Result<Stream, ControllerError> {
    let found = match js.get_stream(&wanted.name).await {
        Ok(stream) => stream,
        Err(error) => match error.kind() {
            GetStreamErrorKind::JetStream(answer)
                if answer.error_code() == ErrorCode::STREAM_NOT_FOUND =>
            {
                return create(js, wanted).await;
            }
            _ => return Err(store_failed(&error)),
        },
    };
    let config = found.cached_info().config.clone();
    if let Some(why) = unusable(&config) {
        let why = why.to_owned();
        return Err(ControllerError::WrongStream {
            stream: wanted.name,
            why,
        });
    }
    let target = merged(&config, &wanted);
    if target == config {
        return Ok(found);
    }
    tracing::info!(stream = wanted.name, "changing the stream's settings");
    match js.update_stream(&target).await {
        Ok(_) => js
            .get_stream(&wanted.name)
            .await
            .map_err(|error| store_failed(&error)),
        // More replicas than there are servers now: the stream is sound as it is.
        Err(error)
            if lacks_peers(&error)
                && merged(
                    &config,
                    &Config {
                        num_replicas: 1,
                        ..wanted.clone()
                    },
                ) == config =>
        {
            tracing::warn!(
                stream = wanted.name,
                "too few NATS servers for three replicas"
            );
            Ok(found)
        }
        Err(error) => Err(not_made(wanted.name, &error)),
    }
}

async fn create(js: &jetstream::Context, wanted: Config) -> Result<Stream, ControllerError> {
    let name = wanted.name.clone();
    let created = match js.create_stream(wanted.clone()).await {
        Err(error) if wanted.num_replicas > 1 && lacks_peers(&error) => {
            tracing::warn!(
                stream = name,
                "too few NATS servers for three replicas: keeping one"
            );
            js.create_stream(Config {
                num_replicas: 1,
                ..wanted
            })
            .await
        }
        other => other,
    };
    match created {
        Ok(stream) => Ok(stream),
        Err(error) => match js.get_stream(&name).await {
            // Another controller came first.
            Ok(stream) => Ok(stream),
            Err(_) => Err(not_made(name, &error)),
        },
    }
}

fn lacks_peers(error: &(dyn std::error::Error + 'static)) -> bool {
    answer(error).is_some_and(|answer| {
        [
            ErrorCode::CLUSTER_NO_PEERS,
            ErrorCode::STREAM_REPLICAS_NOT_SUPPORTED,
        ]
        .contains(&answer.error_code())
    })
}

pub(super) async fn ensure_objects(
    js: &jetstream::Context,
    replicas: usize,
) -> Result<ObjectStore, ControllerError> {
    if let Ok(store) = js.get_object_store(subjects::ARTIFACT_BUCKET).await {
        return Ok(store);
    }
    let config = |num_replicas| jetstream::object_store::Config {
        bucket: subjects::ARTIFACT_BUCKET.to_owned(),
        description: Some("wasmorch: components, each under its digest".to_owned()),
        max_bytes: -1,
        storage: StorageType::File,
        num_replicas,
        ..Default::default()
    };
    let mut made = js.create_object_store(config(replicas)).await;
    if replicas > 1 && made.as_ref().is_err_and(|error| lacks_peers(error)) {
        made = js.create_object_store(config(1)).await;
    }
    match made {
        Ok(store) => Ok(store),
        Err(error) => js
            .get_object_store(subjects::ARTIFACT_BUCKET)
            .await
            .map_err(|_| not_made(format!("OBJ_{}", subjects::ARTIFACT_BUCKET), &error)),
    }
}

/// What JetStream has answered; `None`: nothing, as while its servers choose their leader.
fn answer(error: &(dyn std::error::Error + 'static)) -> Option<jetstream::Error> {
    let mut causes = std::iter::successors(Some(error), |error| error.source());
    causes.find_map(|cause| {
        let made = cause.downcast_ref().map(CreateStreamError::kind);
        let got = cause.downcast_ref().map(GetStreamError::kind);
        match (made, got) {
            (Some(CreateStreamErrorKind::JetStream(answer)), _)
            | (_, Some(GetStreamErrorKind::JetStream(answer))) => Some(answer),
            _ => None,
        }
    })
}

/// Why a stream is not as wanted: for good when another stream has our subjects or this server does not know
/// our settings.
fn not_made(stream: String, error: &(dyn std::error::Error + 'static)) -> ControllerError {
    match answer(error) {
        Some(answer) if answer.code() == 400 && !is_full(&answer) => ControllerError::WrongStream {
            stream,
            why: answer.to_string(),
        },
        _ => store_failed(error),
    }
}

fn is_full(answer: &jetstream::Error) -> bool {
    let refused = refusal(answer.error_code().0, String::new());
    matches!(refused, StoreError::Full(_))
}

fn store_failed(error: &(dyn std::error::Error + 'static)) -> ControllerError {
    ControllerError::Store(match answer(error) {
        Some(answer) => refusal(answer.error_code().0, answer.to_string()),
        None => StoreError::Unavailable(chain(error)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_number() {
        assert_eq!(version("2.15.1"), Some((2, 15)));
        assert_eq!(version("2.12.0-RC.1"), Some((2, 12)));
        assert_eq!(version("v2.9.3"), Some((2, 9)));
        assert_eq!(version("dev"), None);
        assert!(version("2.9.25") < Some(OLDEST));
        assert!(version("3.0.0") > Some(OLDEST));
    }

    #[test]
    fn a_stream_as_wanted_needs_no_change() {
        for wanted in [state_stream(1), event_stream(3)] {
            assert_eq!(merged(&wanted, &wanted), wanted);
        }
    }

    #[test]
    fn what_the_server_filled_in_stays() {
        let wanted = state_stream(1);
        let found = Config {
            duplicate_window: Duration::from_secs(120),
            num_replicas: 5,
            allow_atomic_publish: false,
            deny_delete: false,
            ..wanted.clone()
        };
        let target = merged(&found, &wanted);
        assert_eq!(target.duplicate_window, Duration::from_secs(120));
        assert_eq!(target.num_replicas, 5);
        assert!(target.allow_atomic_publish && target.deny_delete);
    }

    #[test]
    fn state_in_memory_is_refused() {
        let found = Config {
            storage: StorageType::Memory,
            ..state_stream(1)
        };
        assert!(unusable(&found).is_some_and(|why| why.contains("memory")));
        assert_eq!(unusable(&state_stream(3)), None);
    }
}
