//! Calls of a workload by NATS request: `wasmorch.v1.invoke.<ns>.<workload>`.
//!
//! ```text
//!   Wasmorch-Method, Wasmorch-Path, other headers, body ──> http request ──> a replica here
//!   Wasmorch-Status, headers, body <── http response     or Nats-Service-Error(-Code), {"error":..}
//! ```
//!
//! A runner with an http replica of a workload that is ready, or may rest, is a member of its queue group, and
//! gives each call to its gateway: to a replica here while one has room, else to the least busy elsewhere. Every
//! call with a reply subject is answered.

mod translation;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio_util::sync::CancellationToken;
use wasmorch_api::{ApiError, ErrorCode, WorkloadKey, subjects};
use wasmorch_gateway::Local as _;

use super::allow;
use super::intake::{Bounds, take_in};
use super::link::{Delivery, LinkError};
use super::messages::queue_group;
use super::supervisor::Context;

pub(super) use translation::{empty, failure};

/// The largest message before the server has said what it takes: the default of nats-server.
const PAYLOAD_MAX: usize = 1 << 20;
/// Before a subscription that was refused is tried again.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Calls of one workload at work at once, and as many that wait. Seats and queues of its replicas are what
/// counts; these bound what is held of it here, a message each.
const CALLS_MAX: u32 = 256;

/// Who is called.
#[derive(Debug)]
pub(super) struct Callee {
    workload: WorkloadKey,
    /// The `Host` of calls that give none.
    host: String,
}

impl Callee {
    pub(super) fn new(workload: WorkloadKey, host: String) -> Self {
        Self { workload, host }
    }
}

/// Takes calls, and says so in `listening`, until `draining` is cancelled and what was taken is answered.
pub(super) async fn serve(
    context: Arc<Context>,
    callee: Callee,
    listening: watch::Sender<bool>,
    draining: CancellationToken,
) {
    let subject = subjects::invoke(&callee.workload);
    let group = queue_group(&callee.workload);
    let callee = Arc::new(callee);
    let bounds = Arc::new(Bounds::new(CALLS_MAX, CALLS_MAX));
    while !draining.is_cancelled() {
        // Boxed, as all that is over soon: there are many such tasks, and most do nothing.
        let feed = match Box::pin(context.link.subscribe(&subject, &group)).await {
            Ok(feed) => feed,
            Err(error) => {
                tracing::warn!(subject, %error, "calls cannot be taken");
                tokio::select! {
                    () = draining.cancelled() => return,
                    () = tokio::time::sleep(RETRY_AFTER) => continue,
                }
            }
        };
        let confirmed = async {
            if let Err(error) = Box::pin(confirmed(&context)).await {
                tracing::debug!(subject, %error, "calls are perhaps not taken yet");
            }
            listening.send_replace(true);
            std::future::pending::<()>().await;
        };
        let answer = |call: Delivery, seat| {
            let answering = answer(context.clone(), callee.clone(), call);
            async move {
                let _seat: OwnedSemaphorePermit = seat;
                answering.await;
            }
        };
        let shed = |call: Delivery| shed(context.clone(), callee.clone(), call);
        let taking = take_in(vec![feed], bounds.clone(), draining.clone(), answer, shed);
        tokio::select! {
            () = taking => {}
            () = confirmed => {}
        }
        listening.send_replace(false);
    }
}

/// Returns once the server has taken the subscription, however long it is out of reach.
async fn confirmed(context: &Context) -> Result<(), LinkError> {
    context.link.connected().await?;
    context.link.confirm().await
}

async fn answer(context: Arc<Context>, callee: Arc<Callee>, call: Delivery) {
    let reply = call.reply.clone().filter(|reply| allow::may_answer(reply));
    let workload = &callee.workload;
    if context.locals.awaits(workload) {
        // In vain: another host may have been woken meanwhile, and is asked.
        context.locals.wake(workload).await;
    }
    let outcome = match translation::request(call, &callee.host) {
        Err(refusal) => Err(refusal.into()),
        Ok(request) => {
            let response = context.gateway.call(workload, request).await;
            let room = context.link.max_payload().unwrap_or(PAYLOAD_MAX);
            match translation::answered(workload, response).await {
                Err(refusal) => Err(refusal),
                Ok(response) => translation::collect(workload, response, room).await,
            }
        }
    };
    let Some(reply) = reply else { return };
    let answer = match outcome {
        Ok((headers, body)) => Delivery {
            subject: reply,
            reply: None,
            headers,
            body,
        },
        Err(refusal) => translation::error(reply, refusal),
    };
    send(&context, answer).await;
}

async fn shed(context: Arc<Context>, callee: Arc<Callee>, call: Delivery) {
    let Some(reply) = call.reply.filter(|reply| allow::may_answer(reply)) else {
        return;
    };
    let refusal = ApiError::new(
        ErrorCode::Busy,
        format!("{} was not called", callee.workload),
        format!("{CALLS_MAX} calls of it wait here, and as many are at work"),
        "try again, or raise the number of replicas",
    );
    send(&context, translation::error(reply, refusal)).await;
}

async fn send(context: &Context, answer: Delivery) {
    match context.link.publish(answer).await {
        Ok(()) => {}
        Err(LinkError::Disconnected) => tracing::debug!("NATS was lost before an answer was sent"),
        Err(error) => tracing::warn!(%error, "an answer could not be sent"),
    }
}
