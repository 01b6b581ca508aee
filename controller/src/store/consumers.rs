//! Durable consumers of removed workloads, and streams that held their data.

use std::collections::BTreeSet;
use std::time::Duration;

use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::context::DeleteStreamErrorKind;
use async_nats::jetstream::stream::ConsumerErrorKind;
use futures::future::join_all;

use super::Store;

/// Nobody waits longer for an answer to `rm` on account of these.
const WITHIN: Duration = Duration::from_secs(1);
/// The same for streams, whose files have to go.
const STREAM_WITHIN: Duration = Duration::from_secs(4);

impl Store {
    /// Removes consumers, each of a stream by its name; gives back those that may still be there.
    pub async fn remove_consumers(&self, consumers: &[(String, String)]) -> Vec<String> {
        let removing = consumers.iter().map(|(stream, consumer)| async move {
            let removed = self.js.delete_consumer_from_stream(consumer, stream);
            let why = match tokio::time::timeout(WITHIN, removed).await {
                Ok(Ok(_)) => return None,
                Ok(Err(error)) => match error.kind() {
                    ConsumerErrorKind::JetStream(answer) if is_gone(answer.error_code()) => {
                        return None;
                    }
                    _ => error.to_string(),
                },
                Err(_) => "no answer".to_owned(),
            };
            Some(format!("{consumer} of stream {stream}: {why}"))
        });
        join_all(removing).await.into_iter().flatten().collect()
    }

    /// Removes streams with all that is in them; gives back those that may still be there.
    pub async fn remove_streams(&self, streams: &BTreeSet<String>) -> Vec<String> {
        let removing = streams.iter().map(|stream| async move {
            let removed = self.js.delete_stream(stream);
            let why = match tokio::time::timeout(STREAM_WITHIN, removed).await {
                Ok(Ok(_)) => return None,
                Ok(Err(error)) => match error.kind() {
                    DeleteStreamErrorKind::JetStream(answer) if is_gone(answer.error_code()) => {
                        return None;
                    }
                    _ => error.to_string(),
                },
                Err(_) => "no answer".to_owned(),
            };
            Some(format!(
                "stream {stream}, which could not be removed: {why}"
            ))
        });
        join_all(removing).await.into_iter().flatten().collect()
    }
}

fn is_gone(code: ErrorCode) -> bool {
    [ErrorCode::CONSUMER_NOT_FOUND, ErrorCode::STREAM_NOT_FOUND].contains(&code)
}
