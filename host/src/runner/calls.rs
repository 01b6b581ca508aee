//! The task of one http replica that takes calls over NATS, begun and ended.

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::invoke;
use super::replica::Life;

/// Calls over NATS: taken while it rests, and while it is ready.
pub(super) struct Calls {
    pub(super) ready: watch::Sender<bool>,
    /// The server has confirmed that they are taken.
    pub(super) listens: watch::Receiver<bool>,
    draining: CancellationToken,
    tasks: JoinSet<()>,
}

impl Calls {
    /// Taken from here on, or when it is ready.
    pub(super) fn begin(life: &Life, at_once: bool) -> Self {
        let (ready, readiness) = watch::channel(at_once);
        let (listening, listens) = watch::channel(false);
        let draining = CancellationToken::new();
        let mut tasks = JoinSet::new();
        tasks.spawn(invoke::serve(
            life.context.clone(),
            invoke::Callee::of(life),
            readiness,
            listening,
            draining.clone(),
        ));
        Self {
            ready,
            listens,
            draining,
            tasks,
        }
    }

    /// Whether the server has confirmed that they are taken, once that is `news`.
    pub(super) async fn listens(&mut self, news: impl Fn(bool) -> bool) -> Option<bool> {
        let now = self.listens.wait_for(|now| news(*now)).await;
        now.ok().map(|now| *now)
    }

    /// Takes none any more; those in hand go on.
    pub(super) fn close(&self) {
        self.draining.cancel();
    }

    /// Cuts off those in hand.
    pub(super) async fn cut_off(&mut self) {
        self.tasks.shutdown().await;
    }

    /// Takes none any more, and returns when those in hand are answered.
    pub(super) async fn end(&mut self) {
        self.close();
        while self.tasks.join_next().await.is_some() {}
    }
}
