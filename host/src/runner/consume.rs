//! Messages from streams: each is handled until it is, or given up after its last attempt.
//!
//! ```text
//!   take (as many as there are seats) ──> the guest ── returned ──> acknowledged
//!                                            |── failed ──> again, later each time
//!                                            `── failed for the last time ──> dead letter, given up
//! ```
//!
//! Invariants:
//! - A message is acknowledged after its handler has returned, never before: a guest that traps and
//!   a runner that dies lose none. What was done for it may be done twice.
//! - No more are in hand than `max_in_flight` says and the replica has seats for. Its other runners
//!   may have taken those seats: then a message waits in hand. It is not given back, since the
//!   server counts every delivery as an attempt.
//! - The consumer is the workload's, over all its replicas and revisions; only `rm` removes it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use wasmorch_api::WorkloadKey;
use wasmorch_api::spec::Subscription;
use wasmorch_api::stores;
use wasmorch_runtime::Ended;

use super::allow::{self, Pattern};
use super::link::{ACK_WAIT, Durable, DurableConfig, LinkError, Taken};
use super::messages::Handler;

/// Deliveries of one message where the spec says nothing.
const ATTEMPTS: u32 = 5;
/// In hand at once where the spec says nothing.
const IN_FLIGHT: u32 = 64;
/// Before the second attempt; doubled before each that follows.
const AGAIN_AFTER: Duration = Duration::from_secs(1);
/// At most.
const AGAIN_AFTER_MAX: Duration = Duration::from_secs(60);
/// Before a consumer that failed is looked for again.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// One subscription to a stream.
#[derive(Debug, Clone)]
pub(super) struct StreamSubscription {
    pub(super) config: DurableConfig,
    attempts: u32,
    dead_letter: Option<String>,
}

impl StreamSubscription {
    /// Reads one of `bindings.subscribe` that names a stream; the refusal says why.
    pub(super) fn of(
        workload: &WorkloadKey,
        subscription: &Subscription,
        stream: &str,
    ) -> Result<Self, String> {
        stores::check_stream(stream)?;
        let pattern: Pattern = subscription
            .subject
            .parse()
            .map_err(|error| format!("{error}"))?;
        if let Some(why) = pattern.subscribing_refused() {
            return Err(why);
        }
        if let Some(subject) = &subscription.dead_letter
            && !(allow::is_concrete(subject) && allow::may_see(subject))
        {
            return Err(format!("`{subject}` is no subject for dead letters"));
        }
        let own = || stores::durable_name(workload, stream);
        Ok(Self {
            config: DurableConfig {
                stream: stream.to_owned(),
                name: subscription.durable.clone().unwrap_or_else(own),
                subject: subscription.subject.clone(),
                in_flight_max: subscription.max_in_flight.unwrap_or(IN_FLIGHT),
            },
            attempts: subscription.attempts.unwrap_or(ATTEMPTS).max(1),
            dead_letter: subscription.dead_letter.clone(),
        })
    }
}

/// What becomes of a message that was not handled.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Verdict {
    Again(Duration),
    GiveUp(String),
}

fn verdict(attempt: u64, attempts: u32, ended: &Ended) -> Verdict {
    match ended {
        // Not the message's doing, nor the guest's.
        Ended::Stopped => Verdict::Again(Duration::ZERO),
        ended if attempt >= u64::from(attempts) => Verdict::GiveUp(ended.to_string()),
        _ => {
            let doublings = u32::try_from(attempt.saturating_sub(1)).unwrap_or(u32::MAX);
            let factor = 2_u32.saturating_pow(doublings.min(16));
            Verdict::Again(AGAIN_AFTER.saturating_mul(factor).min(AGAIN_AFTER_MAX))
        }
    }
}

/// Handles the messages of one subscription until `drain` is cancelled and what is in hand is done.
/// Dropping the future drops what is in hand: it comes again.
pub(super) async fn consume(
    mut durable: Durable,
    subscription: StreamSubscription,
    seats: usize,
    handler: Arc<Handler>,
    drain: CancellationToken,
) {
    let in_hand = usize::try_from(subscription.config.in_flight_max).unwrap_or(usize::MAX);
    let seats = in_hand.min(seats).clamp(1, Semaphore::MAX_PERMITS);
    let free = Arc::new(Semaphore::new(seats));
    let subscription = Arc::new(subscription);
    let mut work = JoinSet::new();
    while !drain.is_cancelled() {
        let first = tokio::select! {
            biased;
            () = drain.cancelled() => break,
            permit = free.clone().acquire_owned() => permit,
        };
        // Nobody closes it.
        let Ok(first) = first else { break };
        // While its seats are taken, others may have the messages.
        let room = tokio::select! {
            biased;
            () = drain.cancelled() => break,
            room = handler.has_room() => room,
        };
        if !room {
            break;
        }
        let more = u32::try_from(free.available_permits()).unwrap_or(u32::MAX);
        let mut permits = free.clone().try_acquire_many_owned(more).ok();
        let mut first = Some(first);
        let count = 1 + permits.as_ref().map_or(0, |permits| permits.num_permits());
        let taken = durable.take(count, |taken| {
            let permit = first
                .take()
                .or_else(|| permits.as_mut().and_then(|permits| permits.split(1)));
            let (subscription, handler) = (subscription.clone(), handler.clone());
            work.spawn(async move {
                let _permit = permit;
                handle(&taken, &subscription, &handler).await;
            });
        });
        let taken = taken.await;
        drop((first, permits));
        while work.try_join_next().is_some() {}
        if let Err(error) = taken {
            tracing::debug!(consumer = subscription.config.name, %error, "it is looked for again");
            match look_again(&handler, &subscription, &drain).await {
                Some(found) => durable = found,
                None => break,
            }
        }
    }
    while work.join_next().await.is_some() {}
}

/// Finds the consumer again, however long it takes; `None`: it is to drain.
async fn look_again(
    handler: &Handler,
    subscription: &StreamSubscription,
    drain: &CancellationToken,
) -> Option<Durable> {
    loop {
        tokio::select! {
            biased;
            () = drain.cancelled() => return None,
            () = tokio::time::sleep(RETRY_AFTER) => {}
        }
        let found: Result<Durable, LinkError> =
            handler.context.link.durable(&subscription.config).await;
        match found {
            Ok(durable) => return Some(durable),
            Err(error) => tracing::debug!(%error, "a consumer is not there"),
        }
    }
}

async fn handle(taken: &Taken, subscription: &StreamSubscription, handler: &Handler) {
    let attempts = subscription.attempts;
    if taken.attempt > u64::from(attempts) {
        // The last attempt came to no end that anyone could tell of: its runner died.
        give_up(taken, subscription, handler, "its last attempt did not end").await;
        return;
    }
    let handled = handler.handle_kept(&taken.delivery);
    tokio::pin!(handled);
    let ended = loop {
        tokio::select! {
            biased;
            ended = &mut handled => break ended,
            () = tokio::time::sleep(ACK_WAIT / 3) => taken.working().await,
        }
    };
    match ended {
        Ok(()) => taken.done().await,
        Err(ended) => match verdict(taken.attempt, attempts, &ended) {
            Verdict::Again(after) => taken.again(after).await,
            Verdict::GiveUp(why) => give_up(taken, subscription, handler, &why).await,
        },
    }
}

/// The dead letter first: a message is gone from its consumer only when it is somewhere else.
async fn give_up(taken: &Taken, subscription: &StreamSubscription, handler: &Handler, why: &str) {
    let subject = &taken.delivery.subject;
    let attempts = taken.attempt.min(u64::from(subscription.attempts));
    if let Some(to) = &subscription.dead_letter {
        let added = [
            ("Wasmorch-Subject", subject.clone()),
            ("Wasmorch-Stream", subscription.config.stream.clone()),
            ("Wasmorch-Consumer", subscription.config.name.clone()),
            ("Wasmorch-Attempts", attempts.to_string()),
            ("Wasmorch-Reason", one_line(why)),
        ];
        if let Err(error) = taken.copy_to(to, &added).await {
            handler.say(&format!(
                "the message on `{subject}` cannot be given up: its dead letter to `{to}`: {error}"
            ));
            taken.again(AGAIN_AFTER_MAX).await;
            return;
        }
    }
    let to = subscription.dead_letter.as_deref().unwrap_or("nowhere");
    handler.say(&format!(
        "the message on `{subject}` is given up after {attempts} attempts; dead letter: {to}"
    ));
    taken.given_up().await;
}

/// A header holds one line.
fn one_line(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    line.chars()
        .filter(|c| !c.is_control())
        .take(1024)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_tried_again_later_each_time_and_given_up_at_last() {
        let trap = Ended::Trap {
            message: "unreachable".into(),
            backtrace: String::new(),
        };
        let seconds = |n| Verdict::Again(Duration::from_secs(n));
        assert_eq!(verdict(1, 5, &trap), seconds(1));
        assert_eq!(verdict(2, 5, &trap), seconds(2));
        assert_eq!(verdict(4, 5, &trap), seconds(8));
        assert!(matches!(verdict(5, 5, &trap), Verdict::GiveUp(_)));
        assert_eq!(verdict(40, 1000, &trap), seconds(60));
        assert_eq!(
            verdict(9, 5, &Ended::Stopped),
            Verdict::Again(Duration::ZERO),
            "nobody's doing"
        );
    }

    #[test]
    fn subscriptions_stay_out_of_what_is_the_clusters() {
        let workload = WorkloadKey::new("shop".parse().unwrap(), "orders".parse().unwrap());
        let of = |subject: &str, stream: &str, dead_letter: Option<&str>| {
            let subscription = Subscription {
                subject: subject.into(),
                dead_letter: dead_letter.map(str::to_owned),
                ..Subscription::default()
            };
            StreamSubscription::of(&workload, &subscription, stream)
        };
        let good = of("shop.orders.*", "SHOP", Some("shop.dead")).unwrap();
        assert_eq!(good.config.name, "shop_orders_SHOP");
        for (subject, stream, dead_letter) in [
            ("shop.*", "KV_wasmorch_state", None),
            ("shop.*", "wasmorch_events", None),
            ("shop.*", "a.b", None),
            ("$KV.wasmorch_state.>", "SHOP", None),
            ("wasmorch.>", "SHOP", None),
            ("shop.*", "SHOP", Some("wasmorch.v1.api.x.rm")),
            ("shop.*", "SHOP", Some("$KV.x.y")),
            ("shop.*", "SHOP", Some("shop.*")),
        ] {
            assert!(
                of(subject, stream, dead_letter).is_err(),
                "{subject} {stream}"
            );
        }
    }
}
