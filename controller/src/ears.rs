//! What comes from hosts: heartbeats and status reports, and answers to what the leader asks.
//!
//! Owns the subscriptions and the questions. Messages are parsed here, off the control loop, and go
//! to it by a bounded inbox; when that is full they are dropped, which the protocol heals: a
//! heartbeat comes again in a second, a missed report shows as a gap and the whole is asked for.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use serde::de::DeserializeOwned;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use wasmorch_api::error::ErrorBody;
use wasmorch_api::messages::{
    HeardNote, HeldReply, HeldRequest, HostStatusRequest, SyncRequest, WithdrawnNote,
};
use wasmorch_api::{Heartbeat, HostId, StatusReport, Term, subjects};
use wasmorch_planner::Observation;

use crate::clock::{Clock, Seldom};
use crate::inbox::{HOSTS_MAX, Heard, Inbox};
use crate::link::{Inbound, Link, LinkError, Subscription};
use crate::metrics::Metrics;

/// Notes to hosts that wait to be sent: more than one turn of the control loop hears heartbeats.
const NOTES_MAX: usize = 16_384;
/// Hosts that are asked for their status at the same time.
const ASKS_MAX: usize = 64;
/// Other questions on their way at the same time: to the store, and what hosts hold.
const QUESTIONS_MAX: usize = 8;
/// Pages of one host's status: far beyond what its capacity allows.
const PAGES_MAX: usize = 1_000;
/// What a host holds is asked for again so often when it changed meanwhile.
const HELD_TRIES: usize = 3;
/// Malformed messages are complained about this often.
const COMPLAIN_EVERY: Duration = Duration::from_secs(10);

/// Subscribes to heartbeats and statuses and reads them until told to stop.
#[derive(Debug, Clone)]
pub(crate) struct Ears {
    pub(crate) link: Link,
    pub(crate) clock: Clock,
    pub(crate) inbox: Inbox,
    pub(crate) metrics: Metrics,
}

impl Ears {
    /// Starts listening; the tasks belong to `tasks` and end with `stop`.
    pub(crate) async fn listen(
        &self,
        tasks: &TaskTracker,
        stop: &CancellationToken,
    ) -> Result<(), LinkError> {
        let beats = self.link.subscribe(subjects::HEARTBEATS, None).await?;
        let reports = self.link.subscribe(subjects::STATUSES, None).await?;
        let (ears, token) = (self.clone(), stop.clone());
        tasks.spawn(async move { ears.read(beats, token, heartbeat).await });
        let (ears, token) = (self.clone(), stop.clone());
        tasks.spawn(async move { ears.read(reports, token, report).await });
        Ok(())
    }

    async fn read(
        self,
        mut messages: Subscription,
        stop: CancellationToken,
        parse: fn(&Inbound) -> Result<Observation, String>,
    ) {
        let mut complaint = Seldom::new(COMPLAIN_EVERY);
        loop {
            let message = tokio::select! {
                () = stop.cancelled() => return,
                message = messages.next() => match message {
                    Some(message) => message,
                    None => return,
                },
            };
            match parse(&message) {
                Ok(what) => self.hear(what),
                Err(why) => {
                    self.metrics.observation_dropped();
                    if let Some(more) = complaint.now() {
                        let subject = &message.subject;
                        tracing::warn!(subject, why, more, "a host's message is not understood");
                    }
                }
            }
        }
    }

    fn hear(&self, what: Observation) {
        let heard = Heard {
            what,
            at: self.clock.now(),
        };
        if self.inbox.put(heard) {
            self.metrics.observed();
        } else {
            self.metrics.observation_dropped();
        }
    }
}

fn heartbeat(message: &Inbound) -> Result<Observation, String> {
    let beat: Heartbeat = parse(&message.body)?;
    from_itself(message, &subjects::heartbeat(&beat.host))?;
    Ok(Observation::Heartbeat(Box::new(beat)))
}

fn report(message: &Inbound) -> Result<Observation, String> {
    let mut report: StatusReport = parse(&message.body)?;
    // Hundreds of thousands may wait for the leader while it plans.
    report.replicas.shrink_to_fit();
    from_itself(message, &subjects::status(&report.host))?;
    if report.full && report.next.is_some() {
        // Pages are joined by who asks for them; one alone would pass for everything.
        return Err("one page of a full report that nobody asked for".to_owned());
    }
    Ok(Observation::Status(report))
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, String> {
    serde_json::from_slice(body).map_err(|error| error.to_string())
}

/// NATS permissions are by subject: a host may speak for itself only.
fn from_itself(message: &Inbound, expected: &str) -> Result<(), String> {
    if message.subject == expected {
        Ok(())
    } else {
        Err(format!("its body belongs on {expected}"))
    }
}

/// Asks hosts, a bounded number at a time.
#[derive(Debug, Clone)]
pub(crate) struct Asker {
    link: Link,
    clock: Clock,
    inbox: Inbox,
    tasks: TaskTracker,
    stop: CancellationToken,
    permits: Arc<Semaphore>,
    notes: mpsc::Sender<(String, Bytes)>,
    /// Hosts to ask for their status, each once.
    statuses: mpsc::Sender<HostId>,
    asked: Arc<Mutex<HashSet<HostId>>>,
    metrics: Metrics,
}

impl Asker {
    pub(crate) fn new(ears: &Ears, tasks: &TaskTracker, stop: &CancellationToken) -> Self {
        let (notes, noted) = mpsc::channel(NOTES_MAX);
        // A new leader asks all of them, and none may have to wait for the next turn of a busy control loop.
        let (statuses, hosts) = mpsc::channel(HOSTS_MAX);
        let (link, token) = (ears.link.clone(), stop.clone());
        tasks.spawn(async move {
            tokio::select! {
                () = token.cancelled() => {}
                () = tell(link, noted) => {}
            }
        });
        let asker = Self {
            link: ears.link.clone(),
            clock: ears.clock,
            inbox: ears.inbox.clone(),
            tasks: tasks.clone(),
            stop: stop.clone(),
            permits: Arc::new(Semaphore::new(QUESTIONS_MAX)),
            notes,
            statuses,
            asked: Arc::default(),
            metrics: ears.metrics.clone(),
        };
        let (asking, token) = (asker.clone(), stop.clone());
        tasks.spawn(async move {
            tokio::select! {
                () = token.cancelled() => {}
                () = asking.ask(hosts) => {}
            }
        });
        asker
    }

    pub(crate) fn link(&self) -> &Link {
        &self.link
    }

    /// Asks a host for everything it knows, unless it is being asked; the answer comes as an observation.
    pub(crate) fn status(&self, host: HostId) {
        if self.asked().insert(host.clone()) && self.statuses.try_send(host.clone()).is_err() {
            self.asked().remove(&host);
        }
    }

    fn asked(&self) -> MutexGuard<'_, HashSet<HostId>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks one host after the other, as many at a time as there are permits.
    async fn ask(self, mut hosts: mpsc::Receiver<HostId>) {
        let permits = Arc::new(Semaphore::new(ASKS_MAX));
        while let Some(host) = hosts.recv().await {
            // Nobody closes it.
            let Ok(permit) = permits.clone().acquire_owned().await else {
                return;
            };
            let asker = self.clone();
            self.spawn(permit, async move {
                let asked = Asked(asker, host);
                asked.0.ask_one(&asked.1).await;
            });
        }
    }

    async fn ask_one(&self, host: &HostId) {
        let asked_at = self.clock.now();
        match full_status(&self.link, host).await {
            Ok(report) => {
                let (what, at) = (Observation::Status(report), self.clock.now());
                self.inbox.put_when_room(Heard { what, at }).await;
            }
            Err(why) => {
                let took_ms = self.clock.now().since(asked_at).as_millis();
                tracing::debug!(%host, why, took_ms, "a host did not tell its status");
            }
        }
    }

    /// Tells a host to get its placements again.
    pub(crate) fn sync(&self, host: HostId, term: Term, sequence: u64) {
        let body = serde_json::to_vec(&SyncRequest { term, sequence }).expect("numbers serialise");
        self.note(subjects::host(&host, "sync"), body);
    }

    /// Tells a host that it was heard.
    pub(crate) fn heard(&self, host: HostId, note: &HeardNote) {
        let body = serde_json::to_vec(note).expect("our own types serialise");
        self.note(subjects::host(&host, "heard"), body);
    }

    /// Tells a host that gateways route past what it drains.
    pub(crate) fn withdrawn(&self, host: HostId, note: &WithdrawnNote) {
        let body = serde_json::to_vec(note).expect("numbers serialise");
        self.note(subjects::host(&host, "withdrawn"), body);
    }

    /// What needs no answer has a queue of its own: however many questions are on their way, a host
    /// whose replicas live by being heard is told so.
    fn note(&self, subject: String, body: Vec<u8>) {
        if self.notes.try_send((subject, body.into())).is_err() {
            self.metrics.note_dropped();
        }
    }

    /// Runs one question, unless too many are on their way; `false`: it was left out.
    pub(crate) fn run(&self, work: impl Future<Output = ()> + Send + 'static) -> bool {
        let Ok(permit) = self.permits.clone().try_acquire_owned() else {
            return false;
        };
        self.spawn(permit, work);
        true
    }

    fn spawn(&self, permit: OwnedSemaphorePermit, work: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = work => {}
            }
            drop(permit);
        });
    }
}

/// A host that is being asked, until this is dropped.
struct Asked(Asker, HostId);

impl Drop for Asked {
    fn drop(&mut self) {
        self.0.asked().remove(&self.1);
    }
}

/// Tells hosts what needs no answer, one after the other.
async fn tell(link: Link, mut notes: mpsc::Receiver<(String, Bytes)>) {
    while let Some((subject, body)) = notes.recv().await {
        if let Err(error) = link.publish(&subject, &[], body).await {
            tracing::debug!(subject, %error, "a host was not told");
        }
    }
}

/// All pages of a host's status as one report.
pub(crate) async fn full_status(link: &Link, host: &HostId) -> Result<StatusReport, String> {
    let subject = subjects::host(host, "status");
    let mut whole: Option<StatusReport> = None;
    let mut cursor = None;
    for _ in 0..PAGES_MAX {
        let request = HostStatusRequest {
            cursor: cursor.take(),
        };
        let body = serde_json::to_vec(&request).expect("an optional string serialises");
        let answer = link.request(&subject, Bytes::from(body)).await;
        let page: StatusReport = parse(&answer.map_err(|error| error.to_string())?)?;
        cursor = page.next.clone();
        whole = Some(joined(whole, page, host)?);
        if cursor.is_none() {
            break;
        }
    }
    if cursor.is_some() {
        return Err(format!("more than {PAGES_MAX} pages"));
    }
    whole.ok_or_else(|| "no page".to_owned())
}

/// All pages of what a host holds. A set that changes between two pages is asked for again.
pub(crate) async fn held(link: &Link, host: &HostId) -> Result<HeldReply, String> {
    for _ in 0..HELD_TRIES {
        if let Some(held) = held_once(link, host).await? {
            return Ok(held);
        }
    }
    Err("what it holds changes all the time".to_owned())
}

async fn held_once(link: &Link, host: &HostId) -> Result<Option<HeldReply>, String> {
    let subject = subjects::host(host, "held");
    let mut whole: Option<HeldReply> = None;
    let mut cursor = None;
    for _ in 0..PAGES_MAX {
        let request = HeldRequest {
            cursor: cursor.take(),
        };
        let body = serde_json::to_vec(&request).expect("an optional string serialises");
        let answer = link.request(&subject, Bytes::from(body)).await;
        let answer = answer.map_err(|error| error.to_string())?;
        let page: HeldReply = match parse::<ErrorBody>(&answer) {
            Ok(refusal) => return Err(refusal.error.what),
            Err(_) => parse(&answer)?,
        };
        if page.host != *host {
            return Err("the answer is another host's".to_owned());
        }
        cursor = page.next.clone();
        match &mut whole {
            None => whole = Some(HeldReply { next: None, ..page }),
            Some(whole) if whole.sequence != page.sequence => return Ok(None),
            Some(whole) => {
                whole.groups.extend(page.groups);
                whole.revisions.extend(page.revisions);
            }
        }
        if cursor.is_none() {
            return Ok(whole);
        }
    }
    Err(format!("more than {PAGES_MAX} pages"))
}

/// The first page's number counts: changes while the others were read are reported after it.
fn joined(
    whole: Option<StatusReport>,
    page: StatusReport,
    host: &HostId,
) -> Result<StatusReport, String> {
    if page.host != *host || !page.full {
        return Err("the answer is no full report of this host".to_owned());
    }
    let Some(mut whole) = whole else {
        return Ok(StatusReport { next: None, ..page });
    };
    if page.boot != whole.boot {
        return Err("the host started again meanwhile".to_owned());
    }
    whole.replicas.extend(page.replicas);
    Ok(whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(boot: &str, status_seq: u64, next: Option<&str>) -> StatusReport {
        StatusReport {
            cluster: "c1".parse().unwrap(),
            host: "h1".parse().unwrap(),
            boot: boot.parse().unwrap(),
            status_seq,
            full: true,
            replicas: Vec::new(),
            next: next.map(str::to_owned),
        }
    }

    #[test]
    fn pages_join_under_the_first_number() {
        let host: HostId = "h1".parse().unwrap();
        let whole = joined(None, page("b1", 4, Some("x")), &host).unwrap();
        let whole = joined(Some(whole), page("b1", 6, None), &host).unwrap();
        assert_eq!((whole.status_seq, whole.next), (4, None));
    }

    #[test]
    fn pages_of_two_boots_do_not_join() {
        let host: HostId = "h1".parse().unwrap();
        let whole = joined(None, page("b1", 4, Some("x")), &host).unwrap();
        assert!(joined(Some(whole), page("b2", 1, None), &host).is_err());
        assert!(joined(None, page("b1", 1, None), &"h2".parse().unwrap()).is_err());
    }

    #[test]
    fn a_host_speaks_for_itself_only() {
        let body = serde_json::to_vec(&StatusReport {
            full: false,
            ..page("b1", 1, None)
        })
        .unwrap();
        let inbound = |subject: &str| Inbound {
            subject: subject.to_owned(),
            reply: None,
            body: body.clone().into(),
        };
        assert!(report(&inbound("wasmorch.v1.status.h1")).is_ok());
        let body = serde_json::to_vec(&page("b1", 1, Some("x")))
            .unwrap()
            .into();
        let part = Inbound {
            body,
            ..inbound("wasmorch.v1.status.h1")
        };
        assert!(report(&part).unwrap_err().contains("one page"));
        assert!(
            report(&inbound("wasmorch.v1.status.h2"))
                .unwrap_err()
                .contains("status.h1")
        );
        let garbage = Inbound {
            body: "{".into(),
            ..inbound("wasmorch.v1.status.h1")
        };
        assert!(report(&garbage).is_err());
    }
}
