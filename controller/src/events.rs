//! Events: given their id and time here, published off the control loop.
//!
//! Owns the numbering (`<term>-<count>`) and the bounded queue. An event is a courtesy: a full
//! queue drops it and counts it, and nothing waits for it.

use bytes::Bytes;
use tokio::sync::mpsc;
use wasmorch_api::event::Event;
use wasmorch_api::{Term, Timestamp, subjects};
use wasmorch_planner::EventDraft;

use crate::link::Link;
use crate::metrics::Metrics;

/// Enough for a deploy of a thousand replicas to speak at once.
const QUEUE_MAX: usize = 4_096;

/// The control loop's end of the queue.
#[derive(Debug)]
pub(crate) struct Events {
    term: Term,
    count: u64,
    queue: mpsc::Sender<(String, Bytes)>,
    metrics: Metrics,
}

/// The publisher's end.
#[derive(Debug)]
pub(crate) struct Publisher {
    queue: mpsc::Receiver<(String, Bytes)>,
    link: Link,
}

/// Both ends, for one term.
pub(crate) fn queue(term: Term, link: Link, metrics: Metrics) -> (Events, Publisher) {
    let (sender, receiver) = mpsc::channel(QUEUE_MAX);
    (
        Events {
            term,
            count: 0,
            queue: sender,
            metrics,
        },
        Publisher {
            queue: receiver,
            link,
        },
    )
}

impl Events {
    /// Hands events over; never waits.
    pub(crate) fn publish(&mut self, drafts: &[EventDraft], now: Timestamp) {
        for draft in drafts {
            self.count += 1;
            let event = number(draft, self.term, self.count, now);
            tracing::info!(
                kind = event.kind.as_str(),
                namespace = event.namespace,
                workload = event.workload.as_ref().map(tracing::field::display),
                replica = event.replica.map(tracing::field::display),
                host = event.host.as_ref().map(tracing::field::display),
                reason = event.reason,
                "event"
            );
            let place = self.queue.try_reserve();
            self.metrics.event(place.is_err());
            // Written out only if it goes: a deploy of a million replicas has as many to tell.
            if let Ok(place) = place {
                let subject = subjects::event(draft.namespace.as_ref(), event.kind.as_str());
                let body = serde_json::to_vec(&event).expect("an event has string keys only");
                place.send((subject, body.into()));
            }
        }
    }
}

fn number(draft: &EventDraft, term: Term, count: u64, now: Timestamp) -> Event {
    Event {
        id: format!("{term}-{count}"),
        at: now,
        term,
        kind: draft.kind,
        namespace: draft
            .namespace
            .as_ref()
            .map_or_else(|| subjects::CLUSTER_TOKEN.to_owned(), ToString::to_string),
        workload: draft.workload.clone(),
        replica: draft.replica,
        host: draft.host.clone(),
        revision: draft.revision,
        reason: draft.reason.clone(),
        detail: draft.detail.clone(),
    }
}

impl Publisher {
    /// Publishes until the control loop is gone and the queue is empty.
    pub(crate) async fn run(mut self) {
        while let Some((subject, body)) = self.queue.recv().await {
            if let Err(error) = self.link.publish(&subject, &[], body).await {
                tracing::warn!(subject, %error, "an event was not published");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use wasmorch_api::{EventKind, Name};

    use super::*;

    #[test]
    fn ids_are_unique_within_the_cluster() {
        let draft = EventDraft::cluster(EventKind::LeaderElected, "elected");
        let event = number(&draft, Term(7), 3, Timestamp(0));
        assert_eq!((event.id.as_str(), event.namespace.as_str()), ("7-3", "_"));
        let mut draft = draft;
        draft.namespace = Some(Name::default());
        assert_eq!(
            number(&draft, Term(7), 4, Timestamp(0)).namespace,
            "default"
        );
    }
}
