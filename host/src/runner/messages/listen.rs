//! What a messages replica listens to: its subjects and streams, from the moment it may be asked.
//!
//! ```text
//!   subscribe (one queue group per workload) ──> take in ──> confirm: a round trip through the server
//! ```
//!
//! A replica that may rest listens from when it is prepared on. What comes while it rests wakes it, and is
//! handled when it has started; when it is told to end instead, what has come is handled all the same.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use wasmorch_api::{WorkloadKey, subjects};
use wasmorch_runtime::MessagesReplica;

use super::{Handler, queue_group};
use crate::runner::allow::Pattern;
use crate::runner::backlog::Backlog;
use crate::runner::consume::{StreamSubscription, consume};
use crate::runner::intake::take_in;
use crate::runner::link::{Durable, Feed, LinkError};
use crate::runner::protocol::{FromRunner, ReplicaKey};
use crate::runner::replica::Life;
use crate::runner::supervisor::Context;

/// Before a subscription that was refused is tried again.
pub(super) const RETRY_AFTER: Duration = Duration::from_secs(1);
/// A server that is not reached by then is told as the reason for not being ready.
const TELL_AFTER: Duration = Duration::from_secs(2);
/// The daemon is told again after so long that a message waits.
const WAKE_AGAIN: Duration = Duration::from_secs(1);

/// Whether what comes on its subjects comes here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Stands {
    Unknown,
    NotReady(String),
    /// The server has confirmed.
    Ready,
}

/// The start of a replica, as its messages see it.
#[derive(Debug, Clone)]
pub(super) struct Start {
    started: watch::Receiver<bool>,
    wanted: Arc<Notify>,
}

impl Start {
    /// Until it has started; has it woken when it rests.
    pub(super) async fn awaited(&self) {
        if *self.started.borrow() {
            return;
        }
        self.wanted.notify_one();
        // Whoever could tell is gone with the replica itself.
        let _ = self.started.clone().wait_for(|started| *started).await;
    }
}

/// The task that listens, begun and ended.
pub(in crate::runner) struct Intake {
    started: watch::Sender<bool>,
    stands: watch::Receiver<Stands>,
    draining: CancellationToken,
    cut_off: CancellationToken,
    tasks: JoinSet<()>,
}

impl Intake {
    /// Listens from here on; what comes is handled from [`Self::start`] on.
    pub(in crate::runner) fn begin(life: &Life, guest: &Arc<MessagesReplica>) -> Self {
        let (started, starts) = watch::channel(false);
        let (standing, stands) = watch::channel(Stands::Unknown);
        let draining = CancellationToken::new();
        let wanted = Arc::new(Notify::new());
        let start = Start {
            started: starts.clone(),
            wanted: wanted.clone(),
        };
        let concurrency = life.launch.revision.spec.resources.concurrency;
        let listener = Listener {
            context: life.context.clone(),
            workload: life.replica.workload.clone(),
            subscribe: life.subscribe.clone(),
            streams: life.streams.clone(),
            concurrency: usize::try_from(concurrency).unwrap_or(usize::MAX),
            backlog: life.counts.backlog.clone(),
            guest: guest.clone(),
            handler: Arc::new(Handler::of(life, guest, start)),
        };
        let (context, replica) = (life.context.clone(), life.replica.clone());
        let (ends, mut tasks) = (draining.clone(), JoinSet::new());
        let cut_off = CancellationToken::new();
        tasks.spawn(listener.run(standing, draining.clone(), cut_off.clone()));
        tasks.spawn(async move {
            tokio::select! {
                () = ends.cancelled() => {}
                () = wake(context, replica, wanted, starts) => {}
            }
        });
        Self {
            started,
            stands,
            draining,
            cut_off,
            tasks,
        }
    }

    /// Whether it is ready: watched.
    pub(super) fn stands(&self) -> watch::Receiver<Stands> {
        self.stands.clone()
    }

    /// Whether the server has confirmed that all comes here, once that is `news`.
    pub(in crate::runner) async fn listens(&mut self, news: impl Fn(bool) -> bool) -> Option<bool> {
        let now = self
            .stands
            .wait_for(|stands| news(*stands == Stands::Ready))
            .await;
        now.ok().map(|stands| *stands == Stands::Ready)
    }

    /// What has come is handled from here on.
    pub(super) fn start(&self) {
        self.started.send_replace(true);
    }

    /// Takes nothing any more, and returns when what has come is handled.
    pub(in crate::runner) async fn end(&mut self) {
        self.draining.cancel();
        self.start();
        while self.tasks.join_next().await.is_some() {}
    }

    /// Drops what is in hand.
    pub(in crate::runner) async fn cut_off(&mut self) {
        self.draining.cancel();
        self.cut_off.cancel();
        while self.tasks.join_next().await.is_some() {}
    }
}

/// Tells the daemon that a message waits for the start, until it has started.
async fn wake(
    context: Arc<Context>,
    replica: ReplicaKey,
    wanted: Arc<Notify>,
    mut started: watch::Receiver<bool>,
) {
    tokio::select! {
        _ = started.wait_for(|started| *started) => return,
        () = wanted.notified() => {}
    }
    loop {
        let (workload, holder) = (replica.workload.clone(), Some(replica.id));
        context.tell(FromRunner::Wake { workload, holder }).await;
        let starts = started.wait_for(|started| *started);
        if timeout(WAKE_AGAIN, starts).await.is_ok() {
            return;
        }
    }
}

struct Listener {
    context: Arc<Context>,
    workload: WorkloadKey,
    subscribe: Vec<Pattern>,
    streams: Vec<StreamSubscription>,
    concurrency: usize,
    backlog: Option<Arc<Backlog>>,
    guest: Arc<MessagesReplica>,
    handler: Arc<Handler>,
}

impl Listener {
    async fn run(
        self,
        standing: watch::Sender<Stands>,
        draining: CancellationToken,
        cut_off: CancellationToken,
    ) {
        let mut work = JoinSet::new();
        tokio::select! {
            biased;
            () = draining.cancelled() => {}
            () = self.listen(&standing, &draining, &mut work) => draining.cancelled().await,
        }
        tokio::select! {
            biased;
            () = cut_off.cancelled() => work.shutdown().await,
            () = async { while work.join_next().await.is_some() {} } => {}
        }
    }

    /// Subscribes, starts the intake, and returns when the server has confirmed.
    async fn listen(
        &self,
        standing: &watch::Sender<Stands>,
        draining: &CancellationToken,
        work: &mut JoinSet<()>,
    ) {
        let link = &self.context.link;
        let not_ready = |reason: String| {
            standing.send_if_modified(|stands| {
                let now = Stands::NotReady(reason);
                let other = *stands != now;
                *stands = now;
                other
            });
        };
        let (feeds, durables) = loop {
            match self.subscribe().await {
                Ok(both) => break both,
                Err(error) => {
                    not_ready(error.to_string());
                    tokio::time::sleep(RETRY_AFTER).await;
                }
            }
        };
        self.take_in(feeds, durables, draining, work);
        loop {
            if timeout(TELL_AFTER, link.connected()).await.is_err() {
                not_ready(LinkError::Disconnected.to_string());
                let _ = link.connected().await;
            }
            match link.confirm().await {
                Ok(()) => break,
                Err(error) => {
                    not_ready(format!("its subscriptions are not confirmed: {error}"));
                    tokio::time::sleep(RETRY_AFTER).await;
                }
            }
        }
        standing.send_replace(Stands::Ready);
    }

    fn take_in(
        &self,
        feeds: Vec<Feed>,
        durables: Vec<(Durable, StreamSubscription)>,
        draining: &CancellationToken,
        work: &mut JoinSet<()>,
    ) {
        for (durable, subscription) in durables {
            if let Some(backlog) = self.backlog.clone() {
                work.spawn(backlog.follow(durable.clone(), draining.clone()));
            }
            let (handler, draining) = (self.handler.clone(), draining.clone());
            let consuming = consume(durable, subscription, self.concurrency, handler, draining);
            work.spawn(consuming);
        }
        let (handler, shedder) = (self.handler.clone(), self.handler.clone());
        let handle = move |message, seat| {
            let handler = handler.clone();
            async move { handler.handle(message, seat).await }
        };
        let shed = move |message| {
            let handler = shedder.clone();
            async move { handler.shed(message).await }
        };
        let draining = draining.clone();
        work.spawn(take_in(feeds, self.guest.clone(), draining, handle, shed));
    }

    /// Finds the consumer of every stream, then joins the queue group of every subject and of the workload's
    /// own `invoke` subject: what comes there is taken in at once.
    async fn subscribe(
        &self,
    ) -> Result<(Vec<Feed>, Vec<(Durable, StreamSubscription)>), LinkError> {
        let link = &self.context.link;
        let group = queue_group(&self.workload);
        let invoke = subjects::invoke(&self.workload);
        let mut durables = Vec::with_capacity(self.streams.len());
        if !self.streams.is_empty() && timeout(TELL_AFTER, link.connected()).await.is_err() {
            return Err(LinkError::Disconnected);
        }
        for subscription in &self.streams {
            let durable = link.durable(&subscription.config).await?;
            durables.push((durable, subscription.clone()));
        }
        let mut feeds = Vec::with_capacity(self.subscribe.len() + 1);
        let subjects = self.subscribe.iter().map(|pattern| pattern.as_str());
        for subject in subjects.chain([invoke.as_str()]) {
            feeds.push(link.subscribe(subject, &group).await?);
        }
        Ok((feeds, durables))
    }
}
