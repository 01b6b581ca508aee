//! The connection itself: how it is made, kept, and how it stands.
//!
//! It is made in the background and tried for ever; what is said and heard over it is not known here.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_nats::{Client, ConnectOptions};
use tokio::time::timeout;
use wasmorch_api::{HostId, NatsOptions};

use super::{LinkError, REQUEST_TIMEOUT, Shared};

/// Between two tries to reach the server, at most.
const RECONNECT_DELAY_MAX: Duration = Duration::from_secs(2);
/// A server that has gone without a word is noticed after two of these.
const PING_EVERY: Duration = Duration::from_secs(5);
/// Without a first connection for this long it is said that there is none.
const ABSENT_AFTER: Duration = Duration::from_secs(2);

/// How the connection stands; a new generation is a new connection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Connection {
    pub(super) up: bool,
    pub(super) generation: u64,
}

pub(super) async fn connect(
    options: &NatsOptions,
    host: &HostId,
    shared: Arc<Shared>,
) -> Result<Client, LinkError> {
    let mut connect = ConnectOptions::new();
    if let Some(path) = &options.creds {
        connect = ConnectOptions::with_credentials_file(path)
            .await
            .map_err(|source| LinkError::Credentials {
                path: path.clone(),
                source,
            })?;
    }
    let servers: Vec<&str> = options.url.split(',').map(str::trim).collect();
    connect
        .name(format!("wasmorch-host-{host}"))
        .ping_interval(PING_EVERY)
        .connection_timeout(REQUEST_TIMEOUT)
        .request_timeout(Some(REQUEST_TIMEOUT))
        .retry_on_initial_connect()
        .reconnect_delay_callback(|attempts| {
            let exponent = u32::try_from(attempts.saturating_sub(1)).unwrap_or(u32::MAX);
            Duration::from_millis(20)
                .saturating_mul(2u32.saturating_pow(exponent))
                .min(RECONNECT_DELAY_MAX)
        })
        .event_callback(move |event| {
            note(&event, &shared);
            std::future::ready(())
        })
        .connect(servers.as_slice())
        .await
        .map_err(|error| LinkError::Address {
            url: options.shown(),
            why: error.to_string(),
        })
}

fn note(event: &async_nats::Event, shared: &Shared) {
    use async_nats::Event;
    match event {
        Event::Connected => {
            tracing::info!("connected to NATS");
            shared.connection.send_modify(|connection| {
                connection.up = true;
                connection.generation += 1;
            });
        }
        Event::Disconnected | Event::Closed => {
            if !shared.ending.load(Ordering::Relaxed) {
                tracing::warn!("no connection to NATS: holding what runs, trying again");
            }
            shared
                .connection
                .send_modify(|connection| connection.up = false);
        }
        // Messages were lost on our side.
        Event::SlowConsumer(_) => shared.lost.notify_one(),
        other => tracing::debug!(event = %other, "NATS"),
    }
}

/// Says once that the server does not answer, when it does not soon after the start. The client says nothing of
/// first attempts that fail.
pub(super) async fn warn_when_absent(shared: Arc<Shared>, url: String) {
    if !connects_within(&shared, ABSENT_AFTER).await {
        tracing::warn!("NATS does not answer at {url}: holding what runs, trying on until it does");
    }
}

async fn connects_within(shared: &Shared, wait: Duration) -> bool {
    let mut connection = shared.connection.subscribe();
    let first = connection.wait_for(|connection| connection.generation > 0);
    timeout(wait, first).await.is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_first_connection_is_waited_for_and_its_absence_noticed() {
        let shared = Shared::default();
        let soon = Duration::from_millis(10);
        assert!(!connects_within(&shared, soon).await);
        note(&async_nats::Event::Connected, &shared);
        note(&async_nats::Event::Disconnected, &shared);
        // One that was there and has gone is told of as that.
        assert!(connects_within(&shared, soon).await);
    }
}
