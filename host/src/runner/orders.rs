//! What the daemon wants of one replica, as the replica's task sees it.
//!
//! ```text
//!   wait > start > drain > stop        only forward; the latest counts
//! ```

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use wasmorch_api::messages::WITHDRAWN_WITHIN;

/// The latest order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// Prepare, then wait.
    Wait,
    /// Serve or run.
    Start,
    /// Take nothing new; finish what is in hand until then.
    Drain {
        /// When work in hand is cut off.
        until: Instant,
        /// No other host's gateway sends here any more.
        withdrawn: bool,
    },
    /// End now.
    Stop,
}

impl Order {
    fn rank(self) -> u8 {
        match self {
            Self::Wait => 0,
            Self::Start => 1,
            Self::Drain { .. } => 2,
            Self::Stop => 3,
        }
    }

    /// A drain that begins now. A deadline beyond what the clock can express is a day.
    pub(super) fn drain(deadline: Duration) -> Self {
        const DAY: Duration = Duration::from_secs(24 * 60 * 60);
        Self::Drain {
            until: Instant::now() + deadline.min(DAY),
            withdrawn: false,
        }
    }

    /// Whether the replica shall end.
    pub(super) fn ends(self) -> bool {
        self.rank() >= 2
    }
}

/// The supervisor's end.
#[derive(Debug)]
pub(super) struct Orderer(watch::Sender<Order>);

/// The replica task's end.
#[derive(Debug, Clone)]
pub(super) struct Orders(watch::Receiver<Order>);

/// How a replica shall end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    /// In order, until then.
    Drain(Instant),
    /// Now.
    Stop,
}

pub(super) fn orders() -> (Orderer, Orders) {
    let (sender, receiver) = watch::channel(Order::Wait);
    (Orderer(sender), Orders(receiver))
}

impl Orderer {
    /// Gives an order; one that would lead back is ignored.
    pub(super) fn give(&self, order: Order) {
        self.0.send_if_modified(|held| {
            let forward = order.rank() > held.rank();
            if forward {
                *held = order;
            }
            forward
        });
    }

    /// No other host's gateway sends to it any more; news only to one that drains.
    pub(super) fn withdrawn(&self) {
        self.0.send_if_modified(|held| match held {
            Order::Drain { withdrawn, .. } => !std::mem::replace(withdrawn, true),
            _ => false,
        });
    }

    pub(super) fn latest(&self) -> Order {
        *self.0.borrow()
    }
}

impl Orders {
    /// Waits for the first order that `wanted` takes. A supervisor that is gone means stop.
    async fn until(&mut self, wanted: impl Fn(Order) -> bool) -> Order {
        match self.0.wait_for(|order| wanted(*order)).await {
            Ok(order) => *order,
            Err(_) => Order::Stop,
        }
    }

    /// Waits for the start; `false` when it shall end instead.
    pub(super) async fn start(&mut self) -> bool {
        self.until(|order| order != Order::Wait).await == Order::Start
    }

    /// Waits until it shall end.
    pub(super) async fn ending(&mut self) -> Ending {
        match self.until(Order::ends).await {
            Order::Drain { until, .. } => Ending::Drain(until),
            _ => Ending::Stop,
        }
    }

    /// While it drains, waits until nobody sends to it any more, as far as that is known in time.
    pub(super) async fn withdrawn(&mut self) {
        let Ending::Drain(until) = self.ending().await else {
            return;
        };
        // What is in hand then has the other half at least.
        let most = until.saturating_duration_since(Instant::now()) / 2;
        let waits = |order| {
            matches!(
                order,
                Order::Drain {
                    withdrawn: false,
                    ..
                }
            )
        };
        let told = self.until(|order| !waits(order));
        // Later than that it is not waited for.
        drop(timeout(most.min(WITHDRAWN_WITHIN), told).await);
    }

    /// Waits until it shall end at once: a stop, or the deadline of a drain.
    pub(super) async fn cut_off(&mut self) {
        let Ending::Drain(until) = self.ending().await else {
            return;
        };
        tokio::select! {
            () = tokio::time::sleep_until(until) => {}
            _ = self.until(|order| order == Order::Stop) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn orders_only_lead_forward() {
        let (orderer, mut orders) = orders();
        orderer.give(Order::Start);
        assert!(orders.start().await);
        orderer.give(Order::Stop);
        orderer.give(Order::drain(Duration::from_secs(5)));
        assert_eq!(orders.ending().await, Ending::Stop);
        assert_eq!(orderer.latest(), Order::Stop);
    }

    #[tokio::test]
    async fn one_that_drains_waits_for_gateways_and_for_deaf_ones_not_long() {
        async fn waited(deadline: Duration, told: impl FnOnce(&Orderer)) -> Duration {
            let (orderer, mut orders) = orders();
            let began = Instant::now();
            orderer.give(Order::drain(deadline));
            told(&orderer);
            orders.withdrawn().await;
            began.elapsed()
        }
        let minute = Duration::from_secs(60);
        let stop = |orderer: &Orderer| orderer.give(Order::Stop);
        assert!(waited(minute, Orderer::withdrawn).await < WITHDRAWN_WITHIN);
        assert!(waited(minute, stop).await < WITHDRAWN_WITHIN);
        let deaf = waited(minute, |_| {}).await;
        assert!((WITHDRAWN_WITHIN..minute / 4).contains(&deaf), "{deaf:?}");
        let half = waited(Duration::from_secs(1), |_| {}).await;
        assert!(half < WITHDRAWN_WITHIN, "{half:?} of a short drain");
    }

    #[tokio::test]
    async fn a_drain_is_cut_off_by_its_deadline_by_a_stop_and_by_a_supervisor_that_is_gone() {
        let (orderer, mut first) = orders();
        orderer.give(Order::drain(Duration::ZERO));
        first.cut_off().await;

        let (orderer, mut second) = orders();
        orderer.give(Order::drain(Duration::from_secs(3600)));
        orderer.give(Order::Stop);
        second.cut_off().await;

        let (orderer, mut third) = orders();
        drop(orderer);
        assert!(!third.start().await);
        third.cut_off().await;
    }
}
