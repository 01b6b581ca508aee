//! Calls of a workload by NATS request: `wasmorch.v1.invoke.<ns>.<workload>`.
//!
//! ```text
//!   Wasmorch-Method, Wasmorch-Path, other headers, body ──> http request ──> a replica here
//!   Wasmorch-Status, headers, body <── http response     or Nats-Service-Error(-Code), {"error":..}
//! ```
//!
//! Every http replica that is ready is a member of its workload's queue group, so calls are shared
//! in proportion to replicas. Every call with a reply subject is answered.

mod translation;

use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio_util::sync::CancellationToken;
use wasmorch_api::{ApiError, ErrorCode, WorkloadKey, subjects};
use wasmorch_gateway::{Body, Local as _, LocalError};

use super::allow;
use super::intake::{Bounds, take_in};
use super::link::{Delivery, LinkError};
use super::messages::queue_group;
use super::replica::Life;
use super::supervisor::Context;

pub(super) use translation::{empty, failure};

/// The largest message before the server has said what it takes: the default of nats-server.
const PAYLOAD_MAX: usize = 1 << 20;
/// Before a subscription that was refused is tried again.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Who is called.
#[derive(Debug, Clone)]
pub(super) struct Callee {
    workload: WorkloadKey,
    /// The `Host` of calls that give none.
    host: String,
    /// Its gate has the seats that count; these bound what is under way to it.
    bounds: Bounds,
    /// It may rest when a call comes, which wakes it.
    rests: bool,
}

impl Callee {
    pub(super) fn of(life: &Life) -> Self {
        let resources = &life.launch.spec.resources;
        Self {
            workload: life.replica.workload.clone(),
            host: life.host_name(),
            bounds: Bounds::new(resources.concurrency, resources.queue),
            rests: life.launch.spec.standbys() > 0,
        }
    }
}

/// Takes calls whenever the replica is ready, and says so in `listening`, until `draining` is
/// cancelled and what was taken is answered.
pub(super) async fn serve(
    context: Arc<Context>,
    callee: Callee,
    mut ready: watch::Receiver<bool>,
    listening: watch::Sender<bool>,
    draining: CancellationToken,
) {
    if !context.link.is_configured() {
        return;
    }
    let subject = subjects::invoke(&callee.workload);
    let group = queue_group(&callee.workload);
    let callee = Arc::new(callee);
    while !draining.is_cancelled() {
        let waited = tokio::select! {
            () = draining.cancelled() => return,
            waited = until_ready(&mut ready) => waited,
        };
        if !waited {
            return;
        }
        // Boxed, as all that is over soon: there is such a task for every replica, and most do nothing.
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
        let until = draining.child_token();
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
        let mut taking = std::pin::pin!(take_in(
            vec![feed],
            Arc::new(callee.bounds.clone()),
            until.clone(),
            answer,
            shed
        ));
        let ended = tokio::select! {
            () = &mut taking => true,
            _ = ready.wait_for(|ready| !*ready) => false,
            () = confirmed => false,
        };
        listening.send_replace(false);
        if !ended {
            until.cancel();
            taking.await;
        }
    }
}

/// Returns once the server has taken the subscription, however long it is out of reach.
async fn confirmed(context: &Context) -> Result<(), LinkError> {
    context.link.connected().await?;
    context.link.confirm().await
}

/// `false`: whoever probes it is gone, so it will never be ready again.
async fn until_ready(ready: &mut watch::Receiver<bool>) -> bool {
    ready.wait_for(|ready| *ready).await.is_ok()
}

async fn answer(context: Arc<Context>, callee: Arc<Callee>, call: Delivery) {
    let reply = call.reply.clone().filter(|reply| allow::may_answer(reply));
    let workload = &callee.workload;
    if callee.rests && context.locals.ready(workload) == 0 {
        // In vain: another host may have been woken meanwhile, and is asked.
        context.locals.wake(workload).await;
    }
    let outcome = match translation::request(call, &callee.host) {
        Err(refusal) => Err(refusal),
        Ok(request) => match handle(&context, workload, request).await {
            Err(refusal) => Err(refusal),
            Ok(response) => {
                let room = context.link.max_payload().unwrap_or(PAYLOAD_MAX);
                translation::collect(workload, response, room).await
            }
        },
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

/// By a replica here; by one elsewhere when none here has taken it: the one that was called drains.
async fn handle(
    context: &Context,
    workload: &WorkloadKey,
    request: Request<Body>,
) -> Result<Response<Body>, ApiError> {
    let (error, code, fix) = match context.locals.handle(workload, request).await {
        Ok(response) => return Ok(response),
        Err(LocalError::NotHere(request) | LocalError::Refused(request)) => {
            let response = context.gateway.dispatch(workload, request).await;
            return translation::answered(workload, response).await;
        }
        Err(error @ LocalError::Busy { .. }) => (error, ErrorCode::Busy, "try again"),
        Err(error @ LocalError::TimedOut { .. }) => (error, ErrorCode::Unavailable, ""),
        Err(error @ LocalError::TooLarge { .. }) => (error, ErrorCode::TooLarge, ""),
        Err(error @ LocalError::Failed { .. }) => (error, ErrorCode::Internal, "see its logs"),
    };
    let what = format!("{workload} did not answer");
    Err(ApiError::new(code, what, error.to_string(), fix))
}

async fn shed(context: Arc<Context>, callee: Arc<Callee>, call: Delivery) {
    let Some(reply) = call.reply.filter(|reply| allow::may_answer(reply)) else {
        return;
    };
    let refusal = ApiError::new(
        ErrorCode::Busy,
        format!("{} was not called", callee.workload),
        "every seat and every place in its queue on this host is taken",
        "try again, or raise resources.concurrency, resources.queue or the number of replicas",
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
