//! The API as a NATS micro service (ADR-32): what `nats micro ls`, `info` and `stats` show.
//!
//! Owns the answers to `$SRV.PING|INFO|STATS` and the counts behind them. Written by hand because
//! async-nats' own service answers an error with an empty body and subscribes to one subject for
//! each endpoint, so that a call of an unknown verb would get no answer at all.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;
use tokio_util::sync::CancellationToken;
use wasmorch_api::{ClusterId, LeaderId, Term, Timestamp, VERSION, subjects};

use super::verb::Verb;
use crate::link::{Link, LinkError, Subscription};

/// The service's name.
pub(super) const NAME: &str = "wasmorch";
const DESCRIPTION: &str = "wasmorch: deploys and runs WebAssembly workloads";

/// The service of one leader in one term.
#[derive(Debug, Clone)]
pub(super) struct Service {
    standard: Standard,
    queue_group: String,
    started: Timestamp,
    counts: Arc<Mutex<[Count; Verb::ALL.len()]>>,
}

/// The fields that every answer has.
#[derive(Debug, Clone, Serialize)]
struct Standard {
    name: &'static str,
    id: String,
    version: &'static str,
    metadata: Metadata,
}

#[derive(Debug, Clone, Serialize)]
struct Metadata {
    cluster: String,
    term: String,
    leader: String,
}

#[derive(Debug, Clone, Copy, Default)]
struct Count {
    requests: u64,
    errors: u64,
    last_error: Option<u16>,
    took: Duration,
}

#[derive(Serialize)]
struct Answer<'a, T> {
    #[serde(rename = "type")]
    kind: String,
    #[serde(flatten)]
    standard: &'a Standard,
    #[serde(flatten)]
    more: T,
}

#[derive(Serialize)]
struct Nothing {}

#[derive(Serialize)]
struct InfoPart {
    description: &'static str,
    endpoints: Vec<EndpointInfo>,
}

#[derive(Serialize)]
struct EndpointInfo {
    name: &'static str,
    subject: String,
    queue_group: String,
    metadata: std::collections::BTreeMap<String, String>,
}

#[derive(Serialize)]
struct StatsPart {
    started: String,
    endpoints: Vec<EndpointStats>,
}

#[derive(Serialize)]
struct EndpointStats {
    name: &'static str,
    subject: String,
    queue_group: String,
    num_requests: u64,
    num_errors: u64,
    last_error: String,
    processing_time: u64,
    average_processing_time: u64,
}

impl Service {
    pub(super) fn new(
        cluster: &ClusterId,
        term: Term,
        leader: &LeaderId,
        started: Timestamp,
    ) -> Self {
        Self {
            standard: Standard {
                name: NAME,
                // One instance is one leadership.
                id: format!("{leader}-{term}"),
                version: VERSION,
                metadata: Metadata {
                    cluster: cluster.to_string(),
                    term: term.to_string(),
                    leader: leader.to_string(),
                },
            },
            queue_group: queue_group(term),
            started,
            counts: Arc::default(),
        }
    }

    pub(super) fn queue_group(&self) -> &str {
        &self.queue_group
    }

    /// Counts one answered call.
    pub(super) fn answered(&self, verb: Verb, error: Option<u16>, took: Duration) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = &mut counts[verb.index()];
        count.requests += 1;
        count.took += took;
        if error.is_some() {
            count.errors += 1;
            count.last_error = error;
        }
    }

    /// Answers discovery until told to stop. Nine subjects: all, by name, by instance, for each of
    /// three questions; everybody answers, so no queue group.
    pub(super) async fn discover(
        &self,
        link: &Link,
    ) -> Result<Vec<(Question, Subscription)>, LinkError> {
        let mut subscriptions = Vec::new();
        for question in [Question::Ping, Question::Info, Question::Stats] {
            let (word, id) = (question.word(), &self.standard.id);
            for subject in [
                format!("$SRV.{word}"),
                format!("$SRV.{word}.{NAME}"),
                format!("$SRV.{word}.{NAME}.{id}"),
            ] {
                subscriptions.push((question, link.subscribe(&subject, None).await?));
            }
        }
        Ok(subscriptions)
    }

    /// Answers one of the subscriptions of [`Self::discover`].
    pub(super) async fn answer(
        self,
        question: Question,
        mut messages: Subscription,
        link: Link,
        stop: CancellationToken,
    ) {
        loop {
            let message = tokio::select! {
                () = stop.cancelled() => return,
                message = messages.next() => message,
            };
            let Some(message) = message else { return };
            let Some(reply) = message.reply else { continue };
            if let Err(error) = link.publish(&reply, &[], self.body(question).into()).await {
                tracing::debug!(%error, "a service discovery was not answered");
            }
        }
    }

    fn body(&self, question: Question) -> Vec<u8> {
        let kind = format!(
            "io.nats.micro.v1.{}_response",
            question.word().to_lowercase()
        );
        let standard = &self.standard;
        let body = match question {
            Question::Ping => serde_json::to_vec(&Answer {
                kind,
                standard,
                more: Nothing {},
            }),
            Question::Info => serde_json::to_vec(&Answer {
                kind,
                standard,
                more: self.info(),
            }),
            Question::Stats => serde_json::to_vec(&Answer {
                kind,
                standard,
                more: self.stats(),
            }),
        };
        body.expect("our own types have string keys and serialise")
    }

    fn info(&self) -> InfoPart {
        let endpoints = Verb::ALL
            .iter()
            .map(|verb| EndpointInfo {
                name: verb.as_str(),
                subject: subject(*verb),
                queue_group: self.queue_group.clone(),
                metadata: Default::default(),
            })
            .collect();
        InfoPart {
            description: DESCRIPTION,
            endpoints,
        }
    }

    fn stats(&self) -> StatsPart {
        let counts = *self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let endpoints = Verb::ALL
            .iter()
            .map(|verb| {
                let count = counts[verb.index()];
                let nanos = u64::try_from(count.took.as_nanos()).unwrap_or(u64::MAX);
                EndpointStats {
                    name: verb.as_str(),
                    subject: subject(*verb),
                    queue_group: self.queue_group.clone(),
                    num_requests: count.requests,
                    num_errors: count.errors,
                    last_error: count
                        .last_error
                        .map(|code| code.to_string())
                        .unwrap_or_default(),
                    processing_time: nanos,
                    average_processing_time: nanos.checked_div(count.requests).unwrap_or(0),
                }
            })
            .collect();
        StatsPart {
            started: self.started.to_string(),
            endpoints,
        }
    }
}

/// Each leader has its own, so that a frozen one cannot take requests from the next.
fn queue_group(term: Term) -> String {
    format!("term-{term}")
}

fn subject(verb: Verb) -> String {
    format!("{}.api.*.{}", subjects::PREFIX, verb.as_str())
}

/// What discovery asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Question {
    Ping,
    Info,
    Stats,
}

impl Question {
    fn word(self) -> &'static str {
        match self {
            Self::Ping => "PING",
            Self::Info => "INFO",
            Self::Stats => "STATS",
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn service() -> Service {
        let cluster = "c1".parse().unwrap();
        Service::new(
            &cluster,
            Term(7),
            &"l1".parse().unwrap(),
            Timestamp(1_700_000_000_000),
        )
    }

    fn body(service: &Service, question: Question) -> Value {
        serde_json::from_slice(&service.body(question)).unwrap()
    }

    #[test]
    fn every_answer_has_the_standard_fields() {
        for (question, kind) in [
            (Question::Ping, "io.nats.micro.v1.ping_response"),
            (Question::Info, "io.nats.micro.v1.info_response"),
            (Question::Stats, "io.nats.micro.v1.stats_response"),
        ] {
            let body = body(&service(), question);
            assert_eq!(body["type"], kind);
            assert_eq!(body["name"], "wasmorch");
            assert_eq!(body["id"], "l1-7");
            assert_eq!(body["version"], VERSION);
            assert_eq!(body["metadata"]["term"], "7");
        }
    }

    #[test]
    fn every_verb_is_an_endpoint() {
        let info = body(&service(), Question::Info);
        let endpoints = info["endpoints"].as_array().unwrap();
        assert_eq!(endpoints.len(), Verb::ALL.len());
        assert_eq!(endpoints[0]["queue_group"], "term-7");
        let subjects: Vec<_> = endpoints
            .iter()
            .map(|endpoint| endpoint["subject"].as_str().unwrap())
            .collect();
        assert!(subjects.contains(&"wasmorch.v1.api.*.host-rm"));
    }

    #[test]
    fn calls_are_counted() {
        let service = service();
        service.answered(Verb::List, None, Duration::from_micros(10));
        service.answered(Verb::List, Some(404), Duration::from_micros(30));
        let stats = body(&service, Question::Stats);
        assert_eq!(stats["started"], "2023-11-14T22:13:20.000Z");
        let list = stats["endpoints"]
            .as_array()
            .unwrap()
            .iter()
            .find(|endpoint| endpoint["name"] == "list")
            .unwrap()
            .clone();
        assert_eq!(list["num_requests"], 2);
        assert_eq!(list["num_errors"], 1);
        assert_eq!(list["last_error"], "404");
        assert_eq!(list["processing_time"], 40_000);
        assert_eq!(list["average_processing_time"], 20_000);
    }
}
