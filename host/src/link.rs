//! The daemon's control connection to NATS: what the store says of this host, what the host tells,
//! what it is asked.
//!
//! The only files of the daemon that name `async_nats` are this one and those below it. Owns the
//! rule that a live message is only a hint: subscribe first, then read, at every (re)connect,
//! whenever messages were lost, when the leader says that the host is behind, and now and then
//! anyway.
//!
//! Invariants: the heartbeat awaits no work of anybody; nothing that the host tells makes the host
//! wait (what the connection does not take at once is dropped, and the leader asks); every read
//! ends in a bounded time.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use async_nats::Client;
use async_nats::connection::State;
use futures::FutureExt as _;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use wasmorch_api::messages::{HeardNote, HeldReply, WithdrawnNote};
use wasmorch_api::{
    ClusterId, Heartbeat, HostId, LeaderId, NatsOptions, PlacementSet, StatusReport, Term, subjects,
};

use crate::artifacts::Artifacts;
use crate::logs::LogReader;
use crate::tables::{TableChange, TablesFile};

mod connection;
mod serve;
mod store;

use connection::{Connection, connect, warn_when_absent};
use store::Reading;

/// Before the first heartbeat there is nothing to say; that one is noticed at once.
const NOTHING_TO_SAY: Duration = Duration::from_secs(1);
/// A heartbeat that the connection does not take within this is dropped: the next one is newer.
const HEARTBEAT_TIMEOUT: Duration = Duration::from_millis(800);
/// For one question to the store.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Between two tries of reading everything: from the first to the last.
const SYNC_RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(1));
/// What is newer than the last reading is asked for this often, in case a live message was lost
/// unnoticed. Costs two small questions, whatever the cluster's size.
const CATCH_UP_EVERY: Duration = Duration::from_secs(10);
/// Everything is read again this often: a deletion whose marker has expired is seen only so.
const SYNC_EVERY: Duration = Duration::from_secs(600);
/// Between two readings, however often they are asked for.
const SYNC_PAUSE: Duration = Duration::from_millis(50);
/// For the last messages to leave when the daemon ends.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// How to reach NATS was said wrongly.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The credentials file.
    #[error("the credentials file {} cannot be used", .path.display())]
    Credentials {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The URL.
    #[error("`{url}` is no NATS server's address ({why}): write it like nats://127.0.0.1:4222")]
    Address {
        /// As it was given, without a password.
        url: String,
        /// Why.
        why: String,
    },
}

/// What comes from NATS, for the driver.
#[derive(Debug)]
pub(crate) enum LinkEvent {
    /// The store was reached; it is this cluster's.
    Connected {
        /// The cluster.
        cluster: ClusterId,
        /// The term in force.
        term: Term,
        /// Its leader.
        leader: LeaderId,
        /// The sequence at which it began.
        fence: u64,
    },
    /// Another term of the same cluster has begun.
    Term {
        /// The term in force.
        term: Term,
        /// Its leader.
        leader: LeaderId,
        /// The sequence at which it began.
        fence: u64,
    },
    /// A leader has heard this host.
    Heard(HeardNote),
    /// Gateways route past what drains here.
    Withdrawn(WithdrawnNote),
    /// The server is out of reach.
    Disconnected,
    /// A placement set, live or read.
    Set {
        /// The set.
        set: Box<PlacementSet>,
        /// Its sequence.
        sequence: u64,
    },
    /// The store has none for this host.
    NoSet,
    /// A table changed.
    Table(TableChange),
    /// Every table, read from the store.
    Tables {
        /// The tables.
        read: TablesFile,
        /// Up to which sequence each kind is complete: (routes, endpoints).
        as_of: (u64, u64),
    },
    /// Somebody asks for everything the host knows of its replicas.
    Status {
        /// From a page before.
        cursor: Option<String>,
        /// The answer; `None` before the host belongs to a cluster.
        reply: oneshot::Sender<Option<StatusReport>>,
    },
    /// Somebody asks for the set that the host holds.
    Held {
        /// From a page before.
        cursor: Option<String>,
        /// The answer; `None` before the host belongs to a cluster.
        reply: oneshot::Sender<Option<HeldReply>>,
    },
}

/// The connection, cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Link {
    client: Client,
    context: async_nats::jetstream::Context,
    /// `$JS.API`, or a domain's.
    api: Arc<str>,
    host: HostId,
}

/// The link's tasks, to be ended.
#[derive(Debug)]
pub(crate) struct LinkTasks {
    tasks: TaskTracker,
    stop: CancellationToken,
    link: Link,
    shared: Arc<Shared>,
}

/// What the tasks share.
#[derive(Debug, Default)]
struct Shared {
    connection: watch::Sender<Connection>,
    /// Messages were lost on our side: read everything again.
    lost: Notify,
    /// Something newer may be there.
    behind: Notify,
    /// The leader says that the host should hold at least this.
    wanted_sequence: AtomicU64,
    /// The leader says that this term has begun.
    wanted_term: AtomicU64,
    /// The daemon ends: a lost connection is no news.
    ending: AtomicBool,
}

impl Link {
    /// Makes the connection, in the background, and starts to follow the store.
    ///
    /// # Errors
    ///
    /// When the options are wrong; a server that cannot be reached is waited for.
    pub(crate) async fn start(
        options: &NatsOptions,
        host: HostId,
        (logs, artifacts): (LogReader, Artifacts),
        events: mpsc::Sender<LinkEvent>,
        pulse: watch::Receiver<Option<Heartbeat>>,
    ) -> Result<(Self, LinkTasks), LinkError> {
        let shared = Arc::new(Shared::default());
        let client = connect(options, &host, shared.clone()).await?;
        let (context, api) = match &options.js_domain {
            Some(domain) => (
                async_nats::jetstream::with_domain(client.clone(), domain),
                format!("$JS.{domain}.API"),
            ),
            None => (
                async_nats::jetstream::new(client.clone()),
                "$JS.API".to_owned(),
            ),
        };
        let link = Self {
            client,
            context,
            api: api.into(),
            host,
        };
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let owned = |work: futures::future::BoxFuture<'static, ()>| {
            let stop = stop.clone();
            tasks.spawn(async move { stop.run_until_cancelled(work).await.unwrap_or_default() });
        };
        let subscriptions = serve::Subscriptions::open(&link).await;
        let answers = serve::Answers {
            link: link.clone(),
            shared: shared.clone(),
            events: events.clone(),
            logs,
            artifacts,
        };
        let listening = serve::listen(answers, subscriptions);
        owned(listening.boxed());
        owned(follow(link.clone(), shared.clone(), events).boxed());
        owned(warn_when_absent(shared.clone(), options.shown()).boxed());
        owned(beat(link.clone(), pulse).boxed());
        tasks.close();
        let all = LinkTasks {
            tasks,
            stop,
            link: link.clone(),
            shared,
        };
        Ok((link, all))
    }

    /// Whether the server is there now.
    pub(crate) fn is_up(&self) -> bool {
        self.client.connection_state() == State::Connected
    }

    /// Tells without waiting; `false`: it was dropped, because the server is away or the
    /// connection is clogged.
    pub(crate) fn tell(&self, subject: String, body: Vec<u8>) -> bool {
        if !self.is_up() {
            return false;
        }
        // Unconstrained: a used-up budget of the calling task is no clogged connection.
        let publish = tokio::task::unconstrained(self.client.publish(subject, body.into()));
        matches!(publish.now_or_never(), Some(Ok(())))
    }

    /// Tells the leader of this heartbeat besides those of every second.
    pub(crate) fn beat_now(&self, heartbeat: &Heartbeat) -> bool {
        let body = serde_json::to_vec(heartbeat);
        body.is_ok_and(|body| self.tell(subjects::heartbeat(&self.host), body))
    }

    /// Tells the leader of changes.
    pub(crate) fn report(&self, report: &StatusReport) -> bool {
        let body = serde_json::to_vec(report);
        body.is_ok_and(|body| self.tell(subjects::status(&self.host), body))
    }
}

impl LinkTasks {
    /// Lets the last messages leave, then ends the connection and everything that used it.
    pub(crate) async fn close(self) {
        self.shared.ending.store(true, Ordering::Relaxed);
        if self.link.is_up()
            && timeout(FLUSH_TIMEOUT, self.link.client.flush())
                .await
                .is_err()
        {
            tracing::warn!("the last messages did not leave in time");
        }
        self.stop.cancel();
        self.tasks.wait().await;
        // Everything was flushed: what is left to end is the client's own task.
        let _ = timeout(FLUSH_TIMEOUT, self.link.client.drain()).await;
    }
}

/// Reads everything at every (re)connect and after messages were lost, and what is new now and
/// then, and whenever the leader says that the host is behind.
async fn follow(link: Link, shared: Arc<Shared>, events: mpsc::Sender<LinkEvent>) {
    let mut connection = shared.connection.subscribe();
    let mut delay = SYNC_RETRY.0;
    // The last full reading and when it was; nothing while one is due.
    let mut read: Option<(Reading, Instant)> = None;
    let mut told_up = false;
    loop {
        if !connection.borrow_and_update().up {
            if std::mem::take(&mut told_up) && events.send(LinkEvent::Disconnected).await.is_err() {
                return;
            }
            (read, delay) = (None, SYNC_RETRY.0);
            if connection.changed().await.is_err() {
                return;
            }
            continue;
        }
        let wanted = shared.wanted_sequence.load(Ordering::Relaxed);
        read = read.filter(|(_, at)| at.elapsed() < SYNC_EVERY);
        let told_term = shared.wanted_term.load(Ordering::Relaxed);
        if let Some((reading, _)) = &mut read
            && !link.follow_term(reading, told_term, &events).await
        {
            read = None;
        }
        let result = match &mut read {
            Some((reading, _)) => link.catch_up(reading, wanted, &events).await,
            None => {
                // It may break off after it has told of the connection: the end is told anyway.
                told_up = true;
                match link.sync(wanted, &events).await {
                    Ok((reading, placements)) => {
                        read = Some((reading, Instant::now()));
                        placements
                    }
                    Err(error) => Err(error),
                }
            }
        };
        let wait = match result {
            Ok(()) => {
                delay = SYNC_RETRY.0;
                CATCH_UP_EVERY
            }
            Err(error) => {
                // Before the first controller there is nothing to read: that is no fault.
                tracing::debug!(%error, "the store cannot be read now");
                let wait = delay;
                delay = (delay * 2).min(SYNC_RETRY.1);
                wait
            }
        };
        tokio::time::sleep(SYNC_PAUSE).await;
        tokio::select! {
            // A new connection, or none.
            changed = connection.changed() => {
                read = None;
                if changed.is_err() { return }
            }
            () = shared.lost.notified() => read = None,
            () = shared.behind.notified() => {}
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// Tells the leader, as often as the heartbeat itself says, that the host lives. Looks at what others
/// left for it, and waits for nobody.
async fn beat(link: Link, mut pulse: watch::Receiver<Option<Heartbeat>>) {
    let subject = subjects::heartbeat(&link.host);
    let mut next = Instant::now();
    let mut known = false;
    loop {
        tokio::select! {
            () = sleep_until(next) => {}
            // The first one at once: a new host is seen without a second's wait.
            changed = pulse.changed(), if !known => if changed.is_err() { return },
        }
        let heartbeat = pulse.borrow_and_update().clone();
        let every = heartbeat.as_ref().map(|beat| beat.info.heartbeat_every());
        next = Instant::now() + every.unwrap_or(NOTHING_TO_SAY);
        let Some(heartbeat) = heartbeat else { continue };
        if !link.is_up() {
            continue;
        }
        known = true;
        let Ok(body) = serde_json::to_vec(&heartbeat) else {
            continue;
        };
        let publish = link.client.publish(subject.clone(), body.into());
        if timeout(HEARTBEAT_TIMEOUT, publish).await.is_err() {
            tracing::warn!("the connection to NATS is clogged: a heartbeat was dropped");
        }
    }
}

impl Shared {
    fn note_behind(&self, sequence: u64) {
        self.wanted_sequence.fetch_max(sequence, Ordering::Relaxed);
        self.behind.notify_one();
    }

    fn note_term(&self, term: Term) {
        self.wanted_term.fetch_max(term.0, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn wrong_options_are_errors_and_an_absent_server_is_not() {
        let start = |options: NatsOptions| async move {
            let (events, _) = mpsc::channel(1);
            let (_, pulse) = watch::channel(None);
            let files = (
                LogReader::new(PathBuf::new()),
                Artifacts::new(PathBuf::from("/nonexistent")),
            );
            Link::start(&options, "h1".parse().unwrap(), files, events, pulse).await
        };
        let options = |url: &str| NatsOptions {
            url: url.into(),
            ..NatsOptions::default()
        };
        let error = start(options("nats://h:notaport")).await.unwrap_err();
        assert!(
            error.to_string().contains("nats://127.0.0.1:4222"),
            "{error}"
        );
        let creds = NatsOptions {
            creds: Some("/nonexistent".into()),
            ..options("nats://127.0.0.1:1")
        };
        assert!(matches!(
            start(creds).await.unwrap_err(),
            LinkError::Credentials { .. }
        ));
        let (link, tasks) = start(options("nats://127.0.0.1:1")).await.unwrap();
        assert!(!link.is_up());
        assert!(
            !link.tell("x".into(), Vec::new()),
            "dropped at once, not kept"
        );
        tasks.close().await;
    }
}
