//! The NATS API: one micro service, every call answered.
//!
//! Owns the intake: subjects and bodies become requests, what a deploy names is inspected, and the
//! control loop is asked. Nothing here touches the cluster's state.
//!
//! ```text
//!  wasmorch.v1.api.>  ─▶ read ─▶ (deploy: inspect artifacts) ─▶ control loop ─▶ lease? ─▶ reply
//!     queue group term-<n>         bounded, off the loop           bounded        else silence
//! ```
//!
//! Invariants: at most [`CALLS_MAX`] calls in hand, more are refused as busy; without the lease
//! nothing is answered, so that the next leader's answer is the only one.

mod micro;
pub(crate) mod page;
mod request;
mod verb;

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use wasmorch_api::error::ErrorBody;
use wasmorch_api::{
    ApiError, ClusterId, ErrorCode, Kind, LeaderId, Name, Term, Timestamp, WorkloadSpec, subjects,
};

use crate::artifacts::{Artifacts, Features};
use crate::lease::LeaseClock;
use crate::link::{Inbound, Link, LinkError, Subscription};
use crate::metrics::Metrics;

pub(crate) use request::Request;
pub(crate) use verb::Verb;

/// Calls in hand at once.
pub(crate) const CALLS_MAX: usize = 256;
/// The control loop answers within a batch or two; beyond this something hangs, and the caller is
/// told before it gives up by itself (10 s).
const ANSWER_TIMEOUT: Duration = Duration::from_secs(9);
const ERROR: &str = "Nats-Service-Error";
const ERROR_CODE: &str = "Nats-Service-Error-Code";
/// Says that a status leaves so many replicas out.
const LEFT_OUT: &str = "Wasmorch-Replicas-Left-Out";

/// One call on its way to the control loop.
#[derive(Debug)]
pub(crate) struct ApiCall {
    pub(crate) verb: Verb,
    /// `None`: the whole cluster.
    pub(crate) namespace: Option<Name>,
    pub(crate) request: Request,
    /// `deploy`, `plan`: each spec with the kind that its component turned out to have.
    pub(crate) workloads: Vec<(WorkloadSpec, Kind)>,
    /// What their components need that some hosts may lack.
    pub(crate) features: Features,
    pub(crate) answer: oneshot::Sender<Result<Reply, ApiError>>,
}

/// A good answer.
#[derive(Debug, Clone)]
pub(crate) struct Reply {
    pub(crate) body: Vec<u8>,
    /// Replicas that did not fit.
    pub(crate) left_out: usize,
}

impl Reply {
    pub(crate) fn new(body: Vec<u8>) -> Self {
        Self { body, left_out: 0 }
    }
}

/// What the intake needs.
#[derive(Debug, Clone)]
pub(crate) struct Api {
    pub(crate) link: Link,
    pub(crate) lease: LeaseClock,
    pub(crate) artifacts: Artifacts,
    pub(crate) calls: mpsc::Sender<ApiCall>,
    pub(crate) metrics: Metrics,
}

/// Whose API it is.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    pub(crate) cluster: ClusterId,
    pub(crate) term: Term,
    pub(crate) leader: LeaderId,
    pub(crate) since: Timestamp,
}

impl Api {
    /// Begins to take calls. The tasks belong to `tasks`; intake ends with `stop`, calls in hand
    /// are finished.
    pub(crate) async fn serve(
        self,
        identity: &Identity,
        tasks: &TaskTracker,
        stop: &CancellationToken,
    ) -> Result<(), LinkError> {
        let Identity {
            cluster,
            term,
            leader,
            since,
        } = identity;
        let service = micro::Service::new(cluster, *term, leader, *since);
        // One subscription for all verbs: an unknown one is answered too.
        let subject = format!("{}.api.>", subjects::PREFIX);
        let calls = self
            .link
            .subscribe(&subject, Some(service.queue_group()))
            .await?;
        for (question, messages) in service.discover(&self.link).await? {
            let (service, link, stop) = (service.clone(), self.link.clone(), stop.clone());
            tasks.spawn(service.answer(question, messages, link, stop));
        }
        // Answered only once the server knows the subscriptions: who sees the leader can call it.
        self.link.flush().await?;
        tasks.spawn(self.take(service, calls, tasks.clone(), stop.clone()));
        Ok(())
    }

    async fn take(
        self,
        service: micro::Service,
        mut calls: Subscription,
        tasks: TaskTracker,
        stop: CancellationToken,
    ) {
        let in_hand = Arc::new(Semaphore::new(CALLS_MAX));
        loop {
            let message = tokio::select! {
                () = stop.cancelled() => return,
                message = calls.next() => message,
            };
            let Some(message) = message else { return };
            let (api, service) = (self.clone(), service.clone());
            match in_hand.clone().try_acquire_owned() {
                Ok(permit) => {
                    tasks.spawn(api.call(service, message, permit));
                }
                Err(_) => {
                    let answer = Err(busy());
                    let verb = request::target(&message.subject).verb;
                    api.answer(&service, verb, message.reply, answer, Instant::now())
                        .await;
                }
            }
        }
    }

    async fn call(self, service: micro::Service, message: Inbound, permit: OwnedSemaphorePermit) {
        let began = Instant::now();
        let target = request::target(&message.subject);
        let verb = target.verb;
        let answer = self.carry_out(target, &message).await;
        self.answer(&service, verb, message.reply, answer, began)
            .await;
        drop(permit);
    }

    async fn carry_out(
        &self,
        target: request::Target,
        message: &Inbound,
    ) -> Result<Reply, ApiError> {
        let namespace = target.namespace?;
        let verb = target
            .verb
            .expect("a subject without a verb has been refused");
        let request = request::read(verb, &message.body)?;
        let (workloads, features) = match &request {
            Request::Deploy(deploy) => self.artifacts.check(&deploy.workloads).await?,
            _ => Default::default(),
        };
        let (sender, receiver) = oneshot::channel();
        let call = ApiCall {
            verb,
            namespace,
            request,
            workloads,
            features,
            answer: sender,
        };
        self.calls.try_send(call).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => busy(),
            mpsc::error::TrySendError::Closed(_) => stepping_down(),
        })?;
        match tokio::time::timeout(ANSWER_TIMEOUT, receiver).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(stepping_down()),
            Err(_) => Err(ApiError::new(
                ErrorCode::Unavailable,
                "no answer in time",
                "the store takes long; whether this was done is not known",
                "try again with the same request_id: it is not done twice",
            )),
        }
    }

    async fn answer(
        &self,
        service: &micro::Service,
        verb: Option<Verb>,
        reply: Option<String>,
        answer: Result<Reply, ApiError>,
        began: Instant,
    ) {
        let code = answer.as_ref().err().map(|error| error.code.number());
        self.metrics.called(code.is_some());
        if let Some(verb) = verb {
            service.answered(verb, code, began.elapsed());
        }
        let Some(reply) = reply else { return };
        let (headers, body) = encode(answer);
        let headers: Vec<(&str, &str)> = headers
            .iter()
            .map(|(name, value)| (*name, value.as_str()))
            .collect();
        // Last thing before it goes out: a process that was frozen until now must keep silent.
        if !self.lease.holds(Instant::now()) {
            tracing::warn!("a call is not answered: the lease has ended");
            return;
        }
        if let Err(error) = self.link.publish(&reply, &headers, body.into()).await {
            tracing::warn!(%error, "a call was not answered");
        }
    }
}

fn encode(answer: Result<Reply, ApiError>) -> (Vec<(&'static str, String)>, Vec<u8>) {
    match answer {
        Ok(Reply { body, left_out: 0 }) => (Vec::new(), body),
        Ok(Reply { body, left_out }) => (vec![(LEFT_OUT, left_out.to_string())], body),
        Err(error) => {
            let headers = vec![
                (ERROR, error.what.clone()),
                (ERROR_CODE, error.code.number().to_string()),
            ];
            let body =
                serde_json::to_vec(&ErrorBody { error }).expect("an error has string keys only");
            (headers, body)
        }
    }
}

fn busy() -> ApiError {
    ApiError::new(
        ErrorCode::Busy,
        "too many calls at once",
        format!("the leader takes {CALLS_MAX} at a time"),
        "try again in a moment",
    )
}

/// The leader lets go with the call in its hands.
pub(crate) fn stepping_down() -> ApiError {
    ApiError::new(
        ErrorCode::Unavailable,
        "the leader changes",
        "whether this was done is not known",
        "try again with the same request_id: it is not done twice",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_has_headers_and_a_body() {
        let error = ApiError::new(ErrorCode::NotFound, "no workload web", "", "see ps");
        let (headers, body) = encode(Err(error));
        assert_eq!(
            headers,
            [
                ("Nats-Service-Error", "no workload web".to_owned()),
                ("Nats-Service-Error-Code", "404".to_owned())
            ]
        );
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(body["error"]["code"], "not_found");
        assert_eq!(body["error"]["fix"], "see ps");
    }

    #[test]
    fn a_good_answer_has_no_headers_unless_something_is_left_out() {
        assert!(encode(Ok(Reply::new(b"{}".to_vec()))).0.is_empty());
        let (headers, _) = encode(Ok(Reply {
            body: Vec::new(),
            left_out: 3,
        }));
        assert_eq!(headers, [("Wasmorch-Replicas-Left-Out", "3".to_owned())]);
    }
}
