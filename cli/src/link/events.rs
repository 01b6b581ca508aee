//! Past and coming events, from the stream `wasmorch_events`.

use std::time::{Duration, SystemTime};

use async_nats::jetstream::consumer::pull::{Ordered, OrderedConfig};
use async_nats::jetstream::consumer::{Consumer, DeliverPolicy};
use futures::StreamExt as _;
use tokio::time::timeout;
use wasmorch_api::error::chain;
use wasmorch_api::{Event, Name, Timestamp, subjects};

use super::{Link, lost};
use crate::error::{CliError, Exit};

/// Past events at most, the newest of them.
const PAST_MAX: u64 = 10_000;

/// Events in their order, from a moment on.
pub(crate) struct Events {
    messages: Ordered,
    /// How many lay there when it began.
    pub(crate) past: u64,
    wait: Duration,
}

impl Link {
    /// Events of a namespace and of the whole cluster since `since`.
    pub(crate) async fn events(
        &self,
        namespace: &Name,
        since: Timestamp,
    ) -> Result<Events, CliError> {
        let stream = self
            .jetstream
            .get_stream_no_info(subjects::EVENT_STREAM)
            .await;
        let stream = stream.map_err(|error| lost(&error))?;
        let start = SystemTime::UNIX_EPOCH + Duration::from_millis(since.0);
        let config = OrderedConfig {
            filter_subjects: vec![
                subjects::events(Some(namespace)),
                subjects::event(None, "*"),
            ],
            deliver_policy: DeliverPolicy::ByStartTime {
                start_time: start.into(),
            },
            ..OrderedConfig::default()
        };
        let consumer: Consumer<OrderedConfig> =
            stream.create_consumer(config).await.map_err(|error| {
                CliError::new(
                    Exit::UNAVAILABLE,
                    "events cannot be read",
                    chain(&error),
                    "the stream `wasmorch_events` is made by the first controller: start one",
                )
            })?;
        let past = consumer.cached_info().num_pending;
        let messages = consumer.messages().await.map_err(|error| lost(&error))?;
        Ok(Events {
            messages,
            past,
            wait: self.timeout,
        })
    }
}

impl Events {
    /// The next event; what is none (of a later version) is passed over. Waits without end.
    pub(crate) async fn next(&mut self) -> Result<Option<Event>, CliError> {
        match self.messages.next().await {
            Some(Ok(message)) => Ok(serde_json::from_slice(&message.payload).ok()),
            Some(Err(error)) => Err(lost(&error)),
            None => Err(CliError::new(
                Exit::UNAVAILABLE,
                "the stream of events ended",
                "",
                "",
            )),
        }
    }

    /// What lay there, the oldest passed over when there is too much of it.
    pub(crate) async fn past(&mut self) -> Result<Vec<Event>, CliError> {
        let mut events = Vec::new();
        for number in 0..self.past {
            let next = timeout(self.wait, self.next()).await.map_err(|_| {
                CliError::new(Exit::UNAVAILABLE, "events came no further", "", "try again")
            })??;
            if number + PAST_MAX >= self.past {
                events.extend(next);
            }
        }
        Ok(events)
    }
}
