//! The command line's link to NATS: connecting with clear errors, requests, subscriptions.
//!
//! Only this folder names `async_nats`. Everything ends: with its result, or after the time that
//! the user gave (`--timeout`).

mod events;
mod state;
mod upload;

use std::time::Duration;

use async_nats::{ConnectErrorKind, ConnectOptions, RequestErrorKind};
use bytes::Bytes;
use futures::StreamExt as _;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::{Instant, sleep, timeout};
use wasmorch_api::error::ErrorBody;
use wasmorch_api::error::chain;
use wasmorch_api::{ErrorCode, HostId, HumanDuration, Name, NatsOptions, subjects};

pub(crate) use upload::{Upload, Uploads};

use crate::error::{CliError, Exit};

/// An answer is waited for this long unless told.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(10);
/// A leader that took a request and died answers never: then it is asked again, by the same
/// request id. Longer than any answer takes, shorter than a new election.
const ATTEMPT: Duration = Duration::from_secs(3);
/// Between two attempts while there is no leader.
const PAUSE: Duration = Duration::from_millis(50);
/// The oldest server with atomic batches.
const OLDEST: (u32, u32) = (2, 12);
/// Messages kept for a subscription that is not read.
const SUBSCRIPTION_MESSAGES_MAX: usize = 16_384;
const NO_LEADER: &str = "no controller leads this cluster";
const START_CONTROLLER: &str = "start one: `wasmorch controller`, or `wasmorch up` for all of it";

/// A connection to a cluster.
#[derive(Clone)]
pub(crate) struct Link {
    client: async_nats::Client,
    jetstream: async_nats::jetstream::Context,
    timeout: Duration,
}

impl Link {
    /// Connects, and refuses a server that cannot carry a cluster.
    pub(crate) async fn connect(
        options: &NatsOptions,
        wait: Option<HumanDuration>,
    ) -> Result<Self, CliError> {
        let url = options.shown();
        let wait = wait.map_or(TIMEOUT, |wait| wait.0);
        let connect = match &options.creds {
            Some(path) => ConnectOptions::with_credentials_file(path)
                .await
                .map_err(|error| CliError::reading(path, &error))?,
            None => ConnectOptions::new(),
        };
        let connect = connect
            .name("wasmorch")
            .connection_timeout(wait)
            .request_timeout(Some(wait))
            .subscription_capacity(SUBSCRIPTION_MESSAGES_MAX);
        let servers: Vec<&str> = options.url.split(',').map(str::trim).collect();
        // The client's own limit is for each address that a name resolves to.
        let client = match timeout(wait, connect.connect(servers)).await {
            Ok(Ok(client)) => client,
            Ok(Err(error)) => return Err(refused(&url, &error)),
            Err(_) => {
                return Err(unreachable(
                    &url,
                    format!("no answer within {}", HumanDuration(wait)),
                ));
            }
        };
        let mut jetstream = match &options.js_domain {
            Some(domain) => async_nats::jetstream::with_domain(client.clone(), domain),
            None => async_nats::jetstream::new(client.clone()),
        };
        jetstream.set_timeout(wait);
        let link = Self {
            client,
            jetstream,
            timeout: wait,
        };
        link.check_server(&url, options.js_domain.is_some()).await?;
        Ok(link)
    }

    async fn check_server(&self, url: &str, domain: bool) -> Result<(), CliError> {
        let info = self.client.server_info();
        if !new_enough(&info.version) {
            return Err(CliError::new(
                Exit::UNAVAILABLE,
                format!("nats-server {} at {url} is too old", info.version),
                "the cluster's state needs atomic writes, which came with 2.12",
                "update it, or point --nats at a newer one",
            ));
        }
        if info.jetstream && !domain {
            return Ok(());
        }
        // Another server of its cluster may have JetStream: ask.
        self.jetstream
            .query_account()
            .await
            .map(|_| ())
            .map_err(|error| {
                CliError::new(
                    Exit::UNAVAILABLE,
                    format!("NATS at {url} has no JetStream for this account"),
                    chain(&error),
                    "start nats-server with `-js`, enable it for the account, or pass --js-domain",
                )
            })
    }

    /// Asks the cluster. While nobody leads it asks again until the time is up, so a change of
    /// leader only costs time; every write carries a request id, so a repeat changes nothing.
    pub(crate) async fn call<Q: Serialize, R: DeserializeOwned>(
        &self,
        namespace: Option<&Name>,
        verb: &str,
        request: &Q,
    ) -> Result<R, CliError> {
        let subject = subjects::api(namespace, verb);
        let deadline = Instant::now() + self.timeout;
        let body = Bytes::from(to_json(request)?);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let asked = self.client.request(subject.clone(), body.clone());
            let kind = match timeout(left.min(ATTEMPT), asked).await {
                // A leader lets go with the request in its hands. The next one knows by the request's
                // id whether it was done. A recover that broke off has emptied the store: what comes
                // next is for its user to say.
                Ok(Ok(message)) => match read_reply(&message.payload) {
                    Err(error)
                        if error.code == Some(ErrorCode::Unavailable) && verb != "recover" =>
                    {
                        Silence::LetGo(error)
                    }
                    answered => return answered,
                },
                Ok(Err(error)) => match error.kind() {
                    RequestErrorKind::MaxPayloadExceeded => {
                        return Err(CliError::new(
                            Exit::BYTES,
                            "the request is over the server's limit",
                            chain(&error),
                            "deploy fewer workloads at once",
                        ));
                    }
                    RequestErrorKind::NoResponders => Silence::NoLeader,
                    _ => Silence::NoAnswer(chain(&error)),
                },
                Err(_) => Silence::NoAnswer("it took the request and did not answer".into()),
            };
            if Instant::now() + PAUSE >= deadline {
                return Err(kind.error(self.timeout));
            }
            sleep(PAUSE).await;
        }
    }

    /// Asks one host.
    pub(crate) async fn call_host<Q: Serialize, R: DeserializeOwned>(
        &self,
        host: &HostId,
        verb: &str,
        request: &Q,
    ) -> Result<R, CliError> {
        self.call_host_within(host, verb, request, self.timeout.min(ATTEMPT))
            .await
    }

    /// Asks one host for something that takes its time.
    pub(crate) async fn call_host_within<Q: Serialize, R: DeserializeOwned>(
        &self,
        host: &HostId,
        verb: &str,
        request: &Q,
        wait: Duration,
    ) -> Result<R, CliError> {
        let body = Bytes::from(to_json(request)?);
        let request = async_nats::Request::new().payload(body).timeout(Some(wait));
        let asked = self
            .client
            .send_request(subjects::host(host, verb), request);
        match timeout(wait, asked).await {
            Ok(Ok(message)) => read_reply(&message.payload),
            Ok(Err(error)) => Err(CliError::new(
                Exit::UNAVAILABLE,
                format!("host {host} does not answer"),
                chain(&error),
                "`wasmorch hosts` shows which hosts live",
            )),
            Err(_) => Err(CliError::new(
                Exit::UNAVAILABLE,
                format!("host {host} does not answer"),
                "",
                "`wasmorch hosts` shows which hosts live",
            )),
        }
    }

    /// Follows a subject from now on.
    pub(crate) async fn subscribe(&self, subject: String) -> Result<Subscription, CliError> {
        let subscriber = self
            .client
            .subscribe(subject)
            .await
            .map_err(|error| lost(&error))?;
        // Only a flush proves that the server knows of it.
        self.client.flush().await.map_err(|error| lost(&error))?;
        Ok(Subscription(subscriber))
    }
}

/// What comes on a subject; dropping it unsubscribes.
pub(crate) struct Subscription(async_nats::Subscriber);

impl Subscription {
    /// The next message; `None` when the connection is closed for good. Safe to cancel.
    pub(crate) async fn next(&mut self) -> Option<Bytes> {
        self.0.next().await.map(|message| message.payload)
    }
}

/// Why there was no answer.
enum Silence {
    NoLeader,
    NoAnswer(String),
    LetGo(CliError),
}

impl Silence {
    fn error(self, waited: Duration) -> CliError {
        let waited = format!("waited {}", HumanDuration(waited));
        match self {
            Self::NoLeader => CliError::new(Exit::UNAVAILABLE, NO_LEADER, waited, START_CONTROLLER),
            Self::NoAnswer(why) => CliError::new(
                Exit::UNAVAILABLE,
                "the cluster does not answer",
                format!("{why}; {waited}"),
                "see that a controller runs, or wait longer with --timeout",
            ),
            Self::LetGo(error) => error,
        }
    }
}

fn to_json(request: &impl Serialize) -> Result<Vec<u8>, CliError> {
    serde_json::to_vec(request)
        .map_err(|error| CliError::bug("the request cannot be written", chain(&error)))
}

/// A refusal has the shape `{"error": {..}}`, and no answer has that field.
fn read_reply<R: DeserializeOwned>(payload: &[u8]) -> Result<R, CliError> {
    if let Ok(refusal) = serde_json::from_slice::<ErrorBody>(payload) {
        return Err(refusal.error.into());
    }
    serde_json::from_slice(payload).map_err(|error| {
        CliError::new(
            Exit::BUG,
            "the answer is not one that this version understands",
            chain(&error),
            "use a `wasmorch` of the controller's version",
        )
    })
}

fn unreachable(url: &str, why: String) -> CliError {
    CliError::new(
        Exit::UNAVAILABLE,
        format!("NATS does not answer at {url}"),
        why,
        "start one with `wasmorch up`, or pass the right --nats URL",
    )
}

fn refused(url: &str, error: &async_nats::ConnectError) -> CliError {
    match error.kind() {
        ConnectErrorKind::ServerParse => CliError::usage(
            format!("`{url}` is no NATS URL"),
            "write it like nats://127.0.0.1:4222",
        ),
        ConnectErrorKind::Authentication | ConnectErrorKind::AuthorizationViolation => {
            CliError::new(
                Exit::DENIED,
                format!("NATS at {url} refuses these credentials"),
                chain(error),
                "pass the right --creds FILE, or a URL with user and password",
            )
        }
        _ => unreachable(url, chain(error)),
    }
}

fn lost(error: &(dyn std::error::Error + 'static)) -> CliError {
    CliError::new(
        Exit::UNAVAILABLE,
        "the connection to NATS is lost",
        chain(error),
        "",
    )
}

/// Whether a server of this version can hold a cluster's state.
pub(crate) fn new_enough(version: &str) -> bool {
    let mut numbers = version.split('.').map_while(|number| number.parse().ok());
    matches!((numbers.next(), numbers.next()), (Some(major), Some(minor)) if (major, minor) >= OLDEST)
}

#[cfg(test)]
mod tests {
    use wasmorch_api::messages::VersionReply;

    use super::*;

    #[test]
    fn versions_compare_as_numbers() {
        assert!(new_enough("2.12.0"));
        assert!(new_enough("2.15.1-RC.1"));
        assert!(new_enough("3.0.0"));
        assert!(!new_enough("2.9.25"));
        assert!(!new_enough(""));
    }

    #[test]
    fn replies_are_answers_or_refusals() {
        let refusal = br#"{"error":{"code":"not_found","what":"no such workload","why":"x"}}"#;
        let error = read_reply::<VersionReply>(refusal).unwrap_err();
        assert_eq!((error.exit, error.why.as_str()), (Exit::NOT_FOUND, "x"));
        assert_eq!(
            read_reply::<VersionReply>(b"{}").unwrap_err().exit,
            Exit::BUG
        );
        let answer = br#"{"version":"0.1.0","term":3,"leader":"abc","later":true}"#;
        assert_eq!(read_reply::<VersionReply>(answer).unwrap().term.0, 3);
    }
}
