//! What hosts have said and the control loop has not read yet.
//!
//! A bounded queue in the order in which messages came, with one rule of its own: of one start of a
//! host two heartbeats wait, the oldest, which keeps its turn, and the newest. So however long a plan
//! takes, no living host falls silent for want of room, and heartbeats never crowd out the reports that
//! only a full report could replace. Knows nothing of what the messages mean.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use wasmorch_api::{BootId, HostId, Timestamp};
use wasmorch_planner::Observation;

/// Statuses of replicas that wait in reports, an empty report counted as one: some 350 MiB when hosts start
/// millions while one plan is made. What is dropped costs more: its host tells everything again.
const STATUSES_MAX: usize = if cfg!(test) { 1 << 10 } else { 1 << 20 };
/// And so many more in answers that were asked for: others leave them their room.
const ASKED_MAX: usize = STATUSES_MAX / 4;
/// Hosts of which heartbeats may wait: as many as can be in one cluster.
pub(crate) const HOSTS_MAX: usize = 65_536;

/// One observation and when it came.
#[derive(Debug)]
pub(crate) struct Heard {
    pub(crate) what: Observation,
    pub(crate) at: Timestamp,
}

impl Heard {
    /// How many statuses of replicas it holds; whatever holds none counts as one.
    pub(crate) fn weight(&self) -> usize {
        match &self.what {
            Observation::Status(report) => report.replicas.len().max(1),
            Observation::Heartbeat(_) | Observation::Tick => 1,
        }
    }
}

/// The queue, shared by those who listen and the one who reads.
#[derive(Debug, Clone, Default)]
pub(crate) struct Inbox(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    /// Something came.
    came: Notify,
    /// Something was read.
    went: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    next: u64,
    queue: BTreeMap<u64, Heard>,
    /// Where the heartbeats of a host's start wait, the oldest and the newest. Two hosts under one name keep
    /// theirs each.
    beats: HashMap<(HostId, BootId), (u64, Option<u64>)>,
    statuses: usize,
}

impl Inbox {
    /// Takes one in; `false`: there is no room for it, and it is dropped.
    pub(crate) fn put(&self, heard: Heard) -> bool {
        let taken = self.waiting().put(heard, STATUSES_MAX).is_ok();
        if taken {
            self.0.came.notify_one();
        }
        taken
    }

    /// Takes one in when there is room for it: an answer that was asked for is worth the wait.
    pub(crate) async fn put_when_room(&self, mut heard: Heard) {
        loop {
            let went = self.0.went.notified();
            match self.waiting().put(heard, STATUSES_MAX + ASKED_MAX) {
                Ok(()) => break,
                Err(back) => heard = back,
            }
            went.await;
        }
        self.0.came.notify_one();
    }

    /// The oldest, if there is one.
    pub(crate) fn take_now(&self) -> Option<Heard> {
        let taken = self.waiting().take();
        if taken.is_some() {
            self.0.went.notify_one();
        }
        taken
    }

    /// Waits for one. Nothing is lost when it is dropped before it has answered.
    pub(crate) async fn take(&self) -> Heard {
        loop {
            let came = self.0.came.notified();
            if let Some(heard) = self.take_now() {
                return heard;
            }
            came.await;
        }
    }

    /// Whether nothing waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting().queue.is_empty()
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.0
            .waiting
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    fn put(&mut self, heard: Heard, most: usize) -> Result<(), Heard> {
        match &heard.what {
            Observation::Heartbeat(beat) => {
                let start = (beat.host.clone(), beat.boot.clone());
                if !self.beats.contains_key(&start) && self.beats.len() >= HOSTS_MAX {
                    return Err(heard);
                }
                match self.beats.entry(start) {
                    Entry::Vacant(none) => _ = none.insert((self.next, None)),
                    Entry::Occupied(mut waits) => {
                        if let Some(older) = waits.get_mut().1.replace(self.next) {
                            self.queue.remove(&older);
                        }
                    }
                }
            }
            Observation::Status(_) => {
                let more = heard.weight();
                // What alone is larger than all of the room passes an empty queue.
                if self.statuses > 0 && self.statuses + more > most {
                    return Err(heard);
                }
                self.statuses += more;
            }
            Observation::Tick => {}
        }
        self.queue.insert(self.next, heard);
        self.next += 1;
        Ok(())
    }

    fn take(&mut self) -> Option<Heard> {
        let (_, heard) = self.queue.pop_first()?;
        match &heard.what {
            Observation::Heartbeat(beat) => {
                let start = (beat.host.clone(), beat.boot.clone());
                if let Some((_, newest)) = self.beats.remove(&start)
                    && let Some(newest) = newest
                {
                    self.beats.insert(start, (newest, None));
                }
            }
            Observation::Status(_) => self.statuses -= heard.weight(),
            Observation::Tick => {}
        }
        Some(heard)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use wasmorch_api::{Heartbeat, StatusReport, Term};

    use super::*;

    fn beat(host: &str, boot: &str, sequence: u64) -> Heard {
        let beat = Heartbeat {
            sequence,
            ..Heartbeat::new(
                "c1".parse().unwrap(),
                host.parse().unwrap(),
                boot.parse().unwrap(),
                Term(1),
            )
        };
        heard(Observation::Heartbeat(Box::new(beat)))
    }

    fn report(host: &str, number: u64, statuses: usize) -> Heard {
        let status = serde_json::json!({
            "namespace": "default", "workload": "w", "replica": "1-0-1", "revision": 1,
            "state": "running", "ready": true, "since": Timestamp(1),
        });
        let status = serde_json::from_value(status).unwrap();
        heard(Observation::Status(StatusReport {
            cluster: "c1".parse().unwrap(),
            host: host.parse().unwrap(),
            boot: "b1".parse().unwrap(),
            status_seq: number,
            full: false,
            replicas: vec![status; statuses],
            next: None,
        }))
    }

    fn heard(what: Observation) -> Heard {
        let at = Timestamp(1);
        Heard { what, at }
    }

    fn read(inbox: &Inbox) -> Vec<String> {
        let taken = std::iter::from_fn(|| inbox.take_now());
        let named = taken.map(|heard| match heard.what {
            Observation::Heartbeat(beat) => {
                format!("{} {} {}", beat.host, beat.boot, beat.sequence)
            }
            Observation::Status(report) => format!("{} report {}", report.host, report.status_seq),
            Observation::Tick => "tick".to_owned(),
        });
        named.collect()
    }

    #[test]
    fn of_one_start_of_a_host_the_oldest_and_the_newest_heartbeat_wait_each_in_its_turn() {
        let inbox = Inbox::default();
        let came = [
            beat("h1", "b1", 1),
            beat("h2", "b1", 1),
            report("h1", 1, 1),
            beat("h1", "b1", 2),
            beat("h1", "b1", 3),
            beat("h1", "b2", 7),
        ];
        for one in came {
            assert!(inbox.put(one));
        }
        assert_eq!(
            read(&inbox),
            ["h1 b1 1", "h2 b1 1", "h1 report 1", "h1 b1 3", "h1 b2 7"]
        );
        assert!(inbox.is_empty());
        assert!(inbox.put(beat("h1", "b1", 4)));
        assert_eq!(read(&inbox), ["h1 b1 4"]);
    }

    #[test]
    fn a_flood_of_reports_leaves_room_for_heartbeats() {
        let inbox = Inbox::default();
        let half = STATUSES_MAX / 2;
        assert!(inbox.put(report("h1", 1, half)));
        assert!(inbox.put(report("h1", 2, half)));
        assert!(
            !inbox.put(report("h1", 3, 0)),
            "an empty one takes room too"
        );
        assert!(inbox.put(beat("h1", "b1", 1)));
        assert_eq!(read(&inbox).len(), 3);
        assert!(inbox.put(report("h1", 4, STATUSES_MAX + 1)), "one passes");
        assert!(!inbox.put(report("h1", 5, 1)));
        assert_eq!(read(&inbox), ["h1 report 4"]);
    }

    #[test]
    fn beyond_all_hosts_that_can_be_none_is_heard_and_those_that_wait_are() {
        let inbox = Inbox::default();
        for n in 0..HOSTS_MAX {
            assert!(inbox.put(beat(&format!("h{n}"), "b1", 1)));
        }
        assert!(!inbox.put(beat("more", "b1", 1)));
        assert!(
            !inbox.put(beat("h0", "b2", 1)),
            "another start counts as one"
        );
        assert!(inbox.put(beat("h0", "b1", 2)));
        assert!(inbox.take_now().is_some() && inbox.take_now().is_some());
        assert!(inbox.put(beat("more", "b1", 1)), "there is room again");
    }

    #[tokio::test]
    async fn an_answer_waits_for_room_and_a_reader_for_an_answer() {
        let inbox = Inbox::default();
        let (reader, writer) = (inbox.clone(), inbox.clone());
        let read = tokio::spawn(async move { reader.take().await.what });
        tokio::task::yield_now().await;
        assert!(inbox.put(report("h1", 1, STATUSES_MAX)));
        let limit = Duration::from_secs(30);
        assert!(tokio::time::timeout(limit, read).await.is_ok());
        assert!(inbox.put(report("h1", 2, STATUSES_MAX)));
        writer.put_when_room(report("h1", 2, ASKED_MAX)).await;
        let waits = tokio::spawn(async move { writer.put_when_room(report("h1", 3, 1)).await });
        tokio::task::yield_now().await;
        assert!(!waits.is_finished());
        assert!(inbox.take_now().is_some());
        tokio::time::timeout(limit, waits).await.unwrap().unwrap();
        assert!(!inbox.is_empty());
    }
}
