//! What hosts say, folded into the state: heartbeats, status reports, and silence.
//!
//! Owns liveness and the numbering of reports. Level-triggered: whatever was missed is asked for
//! again, so a lost message costs time and never correctness.

use std::time::Duration;

use wasmorch_api::status::{Capacity, HostState};
use wasmorch_api::{
    BootId, EventKind, Heartbeat, HostId, ReplicaState, ReplicaStatus, StatusReport, Term,
    Timestamp,
};

use crate::alarms::{claims_a_term, refuses_more, two_in_one};
use crate::cluster::{Cluster, Host, Reported};
use crate::planted::{self, Bug};
use crate::silence::Silent;
use crate::write::EventDraft;

/// Something seen.
#[derive(Debug, Clone, PartialEq)]
pub enum Observation {
    /// A host lives.
    Heartbeat(Box<Heartbeat>),
    /// Replicas changed; or, with `full`, everything a host knows.
    Status(StatusReport),
    /// Time passed.
    Tick,
}

/// What the shell should ask of a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ask {
    /// Everything it knows: a report was missed.
    Status(HostId),
    /// To get its set again: it is behind.
    Sync {
        /// The host.
        host: HostId,
        /// What it should hold.
        sequence: u64,
    },
    /// Tells a host that it was heard: what it may run only while a leader hears it rests on that.
    Heard {
        /// The host.
        host: HostId,
        /// Its start.
        boot: BootId,
        /// Its own time when it spoke.
        at: Timestamp,
        /// The sequence of its set; [`HeardNote::NOTHING_ONCE`](wasmorch_api::messages::HeardNote) to a start
        /// that may not start what must not run twice.
        sequence: u64,
    },
    /// Tells a host that the gateways route past what it drains: see `withdrawals`.
    Withdrawn {
        /// The host.
        host: HostId,
        /// The sequence of the set by which that drains; `None`: all, the host shuts down.
        set: Option<u64>,
    },
    /// A host has seen a later term than ours: this leader may be deposed, or the store went back.
    NewerTerm(Term),
}

/// What follows from an observation.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Observed {
    /// Questions to hosts.
    pub asks: Vec<Ask>,
    /// Events to publish.
    pub events: Vec<EventDraft>,
    /// Something changed that a plan may depend on.
    pub changed: bool,
}

/// A host that lags is asked again no sooner than this.
pub(crate) const ASK_EVERY: Duration = Duration::from_secs(1);
/// And at the latest after this.
const SYNC_EVERY_MOST: Duration = Duration::from_secs(16);

impl Cluster {
    /// Folds in one observation.
    pub fn observe(&mut self, what: Observation, now: Timestamp) -> Observed {
        let mut out = Observed::default();
        match what {
            Observation::Heartbeat(beat) => self.heartbeat(*beat, now, &mut out),
            Observation::Status(report) => self.report(report, now, &mut out),
            Observation::Tick => self.tick(now, &mut out),
        }
        self.remember(&out.events, now);
        out
    }

    fn heartbeat(&mut self, mut beat: Heartbeat, now: Timestamp, out: &mut Observed) {
        if beat.cluster != self.cluster {
            return;
        }
        if beat.term > self.term && beat.term.is_credible(self.term) {
            out.asks.push(Ask::NewerTerm(beat.term));
        }
        if let Some(why) = self.takes_no(&beat.host, Some(&beat.info)) {
            out.events.extend(self.turned_away(&beat.host, why, now));
            return;
        }
        let new = self.host_entry(&beat.host, now, now);
        let Some(host) = self.hosts.get_mut(&beat.host) else {
            return;
        };
        let known = (host.known(), host.state);
        let window = self.detection.dead(&beat.info);
        let boot = beat.boot.clone();
        let tells_nothing = tells_of_nothing(&beat);
        let mut reshaped = false;
        // Never back: beats that waited in a queue must not look like silence.
        host.heard = host.heard.max(now);
        let loads = std::mem::take(&mut beat.loads);
        let before = std::mem::replace(&mut host.applied, beat.sequence);
        out.changed |= host.note_removals(beat.removals.take(), before);
        host.table_seq = beat.table_seq;
        host.used = Capacity {
            memory_bytes: beat.memory_bytes,
            cpu_millis: beat.cpu_millis,
            replicas: beat.replicas,
        };
        if host.record.info != beat.info {
            host.record.info = std::mem::take(&mut beat.info);
            host.stored = false;
            self.to_write.insert(beat.host.clone());
            reshaped = true;
            out.changed = true;
        }
        if host.boot.as_ref() != Some(&beat.boot) {
            // There is nothing to ask one that has just come to be: thousands may join at once.
            host.synced = host.holds_nothing() && tells_nothing;
            let before = host.boot.replace(beat.boot.clone());
            if before.is_some() {
                self.silence.restarted(&beat.host);
                host.stale_sets = Some(0);
            }
            if before.is_some_and(|before| host.boots.change(before, &beat.boot, now)) {
                out.events.push(two_in_one(host));
            }
            self.pool.touch(&beat.host);
            host.sync_wait = ASK_EVERY;
            host.status_seq = 0;
            host.asked = Timestamp(0);
            out.changed = true;
        }
        out.events.extend(refuses_more(host, beat.stale_sets, now));
        if !beat.term.is_credible(self.term) {
            out.events.extend(claims_a_term(host, beat.term, now));
        }
        let name = host.record.info.name.clone();
        if new {
            let reason = format!("{name} joined");
            out.events
                .push(EventDraft::cluster(EventKind::HostJoined, reason).host(&beat.host));
        } else if beat.leaving && host.state != HostState::Dead {
            let reason = format!("{name} shuts down");
            out.events
                .push(EventDraft::cluster(EventKind::HostDead, reason).host(&beat.host));
            out.changed = true;
        } else if !beat.leaving && host.state != HostState::Alive {
            let reason = format!("{name} was {} and is heard again", host.state);
            out.events
                .push(EventDraft::cluster(EventKind::HostReturned, reason).host(&beat.host));
            out.changed = true;
        }
        // One that says that it leaves is as good as gone: no silence has to prove it.
        if beat.leaving {
            if { self.hosts.get(&beat.host) }.is_some_and(|host| host.state != HostState::Dead) {
                self.note_shutdown(&beat.host, now);
            }
            self.host_died(&beat.host, now.after(window));
        } else {
            if host.state == HostState::Dead {
                self.host_is_back(&beat.host, beat.status_seq, now);
            }
            if let Some(host) = self.hosts.get_mut(&beat.host)
                && std::mem::replace(&mut host.state, HostState::Alive) != HostState::Alive
            {
                host.sync_wait = ASK_EVERY;
            }
        }
        if self.withdrawals.hang_on(&beat.host) {
            self.follow_withdrawals(now, out);
        }
        self.grant(&beat, now, out);
        let Some(host) = self.hosts.get_mut(&beat.host) else {
            return;
        };
        if host.note_settled(beat.sequence, beat.status_seq) {
            self.agenda.room();
            out.changed = true;
        }
        if let Some(at) = beat.at.filter(|_| host.set.is_some()) {
            out.asks.push(Ask::Heard {
                host: beat.host.clone(),
                boot,
                at,
                sequence: host.echoed_sequence(),
            });
        }
        let may_ask = now.since(host.asked) >= ASK_EVERY;
        if may_ask && (!host.synced || beat.status_seq > host.status_seq) {
            host.asked = now;
            out.asks.push(Ask::Status(beat.host.clone()));
        }
        if host.set.is_some()
            && beat.sequence < host.set_sequence
            && now >= host.sync_due
            && !planted::is(Bug::SyncNotAsked)
        {
            // Each time after twice as long: one that is slow to take its set is not made slower.
            host.sync_due = now.after(host.sync_wait);
            host.sync_wait = (host.sync_wait * 2).min(SYNC_EVERY_MOST);
            out.asks.push(Ask::Sync {
                host: beat.host.clone(),
                sequence: host.set_sequence,
            });
        }
        let moved = known != (host.known(), host.state);
        self.note_loads(&beat.host, loads, now);
        if reshaped {
            self.host_reshaped(&beat.host);
        } else if moved {
            self.host_changed(&beat.host);
        }
    }

    fn report(&mut self, report: StatusReport, now: Timestamp, out: &mut Observed) {
        if report.cluster != self.cluster {
            return;
        }
        if self.takes_no(&report.host, None).is_some() {
            // Its heartbeats say why.
            return;
        }
        self.host_entry(&report.host, now, now);
        let Some(host) = self.hosts.get_mut(&report.host) else {
            return;
        };
        let known = host.known();
        if host.boot.as_ref() != Some(&report.boot) {
            // The heartbeat of a new boot comes within a second; of an old boot, never again.
            if host.boot.is_some() {
                return;
            }
            host.boot = Some(report.boot.clone());
        }
        if report.full {
            if report.status_seq < host.status_seq {
                return;
            }
            let first_of_boot = !host.synced && host.status_seq == 0;
            host.synced = true;
            host.status_seq = report.status_seq;
            if !known {
                self.host_changed(&report.host);
            }
            self.forget_reports(&report, first_of_boot);
        } else {
            if report.status_seq <= host.status_seq {
                return;
            }
            let gap =
                report.status_seq > host.status_seq + 1 && !planted::is(Bug::StatusGapIgnored);
            if !host.synced || gap {
                // A gap: what was missed may matter more than this. Only a full report mends it.
                host.synced = false;
                if now.since(host.asked) >= ASK_EVERY / 10 {
                    host.asked = now;
                    out.asks.push(Ask::Status(report.host.clone()));
                }
                if known {
                    self.host_changed(&report.host);
                }
                return;
            }
            host.status_seq = report.status_seq;
        }
        out.changed = true;
        for status in report.replicas {
            self.fold_status(&report.host, status, now, out);
        }
        self.note_over(&report.host, out);
    }

    fn fold_status(
        &mut self,
        host: &HostId,
        mut status: ReplicaStatus,
        now: Timestamp,
        out: &mut Observed,
    ) {
        let key = status.key();
        if let Some(one) = self.hosts.get_mut(host) {
            let (ended, replica) = (status.state.ended(), status.replica);
            if !ended && !self.workloads.contains_key(&key) {
                one.still_ends(&key, replica);
            } else if ended && one.forget_ending(|id, n| (id, n) == (&key, replica.placement)) {
                self.agenda.room();
            }
        }
        let Some(workload) = self.workloads.get_mut(&key) else {
            return;
        };
        // One allocation for a name, however many reports carry it.
        status.namespace = workload.record.namespace.clone();
        status.workload = workload.record.name.clone();
        workload.tally.hear(&workload.record, &status);
        let number = status.replica.placement;
        let known = workload.reports.get(&number);
        if known.is_some_and(|known| known.host == *host && known.status == status) {
            // A full report tells everything again.
            return;
        }
        // Most reports of a start say how far it is on its way, which nothing depends on.
        if !self.bound.is_empty() || !workload.still_starts(host, &status) {
            self.agenda
                .part(&key, Some(status.replica.slot), Some(host));
        }
        if status.state == ReplicaState::Stopped && status.reason.is_none() {
            let why = workload.told.remove(&number);
            status.reason = why.map(|why| why.words().to_owned());
        }
        let newer_start = workload.reports.get(&number).is_some_and(|known| {
            known.host == *host && known.status.replica.start > status.replica.start
        });
        if newer_start {
            // A full report tells of past starts too; what runs now has been heard already.
            if status.state.ended() {
                let (host, ready_at, running_at) = (host.clone(), None, None);
                workload.remember_ended(Reported {
                    host,
                    status,
                    ready_at,
                    running_at,
                });
            }
            return;
        }
        let before = workload
            .reports
            .get(&number)
            .filter(|known| known.status.replica == status.replica);
        if before.is_some_and(|known| known.status.state > status.state) {
            return;
        }
        let was_ready = before.is_some_and(|known| known.status.ready);
        let spares = workload.target();
        if status.ready != was_ready && spares.is_some_and(|one| one.spec.min_available > 0) {
            // Who waits above it may take the place of one that is not ready, or of one to spare.
            self.agenda.room();
        }
        let was = before.map(|known| known.status.state);
        let running = status.state == ReplicaState::Running;
        let reported = Reported {
            host: host.clone(),
            ready_at: (running && status.ready)
                .then(|| before.and_then(|known| known.ready_at).unwrap_or(now)),
            running_at: running.then(|| before.and_then(|known| known.running_at).unwrap_or(now)),
            status: status.clone(),
        };
        let mut event = |kind, reason: &str| {
            out.events.push(
                EventDraft::of(&key, kind, reason)
                    .revision(status.revision)
                    .host(host)
                    .replica(status.replica),
            );
        };
        if running && status.ready && !was_ready {
            event(EventKind::ReplicaReady, "proven to serve");
        }
        if was != Some(status.state) {
            let reason = status.reason.as_deref();
            match status.state {
                ReplicaState::Failed => event(EventKind::ReplicaFailed, reason.unwrap_or("failed")),
                ReplicaState::Rejected => {
                    event(EventKind::ReplicaRejected, reason.unwrap_or("rejected"));
                }
                ReplicaState::Stopped => {
                    event(EventKind::ReplicaStopped, reason.unwrap_or("as told"));
                }
                _ => {}
            }
        }
        if status.state.ended() {
            workload.remember_ended(reported.clone());
        }
        let leaves = !workload.placements.contains_key(&number);
        if status.state.ended() && leaves {
            self.remove_report(&key, number);
            // A slot may have waited for its end.
            self.agenda.room();
        } else {
            self.put_report(&key, reported);
        }
    }

    fn tick(&mut self, now: Timestamp, out: &mut Observed) {
        let gap = now.since(self.ticked);
        self.ticked = now;
        let detection = self.detection;
        let stalled = if gap > detection.stall() {
            gap
        } else {
            Duration::ZERO
        };
        if !self.settled(now.before(stalled)) {
            // A new leader gives hosts the time to speak: time in which it listens.
            self.since = self.since.after(stalled).min(now);
        }
        let (mut silent, mut living) = (Vec::new(), 0);
        let mut moved = Vec::new();
        for (id, host) in &mut self.hosts {
            host.heard = host.heard.after(stalled).min(now);
            host.boots.stalled(stalled);
            let silence = now.since(host.heard);
            // Only a heartbeat makes a host alive again.
            if host.state == HostState::Dead {
                continue;
            }
            living += 1;
            let due = silence >= detection.dead(host.info()) || planted::is(Bug::DeadWindowZero);
            if !due && silence < detection.suspect(host.info()) {
                continue;
            }
            silent.push(Silent {
                heard: host.heard,
                host: id.clone(),
                due,
            });
            if host.state == HostState::Alive {
                host.state = HostState::Suspect;
                moved.push(id.clone());
                out.events
                    .push(fell_silent(EventKind::HostSuspect, host, now));
            }
        }
        let verdict = self.silence.look(silent, living, now);
        if let Some((many, of)) = verdict.alarm {
            let reason = format!(
                "{many} of {of} hosts fell silent together: more likely the network than the hosts, \
                 so one of them a minute is replaced"
            );
            let event = EventDraft::cluster(EventKind::AlarmMassSilence, reason);
            out.events.push(event);
        }
        for id in verdict.dead {
            self.host_died(&id, now);
            if let Some(host) = self.hosts.get(&id) {
                out.events.push(fell_silent(EventKind::HostDead, host, now));
                moved.push(id);
            }
        }
        out.changed |= !moved.is_empty();
        out.changed |= self.follow_loads(now);
        self.follow_withdrawals(now, out);
        for id in moved {
            self.host_changed(&id);
        }
    }
}

/// It holds no set, runs nothing, and has reported nothing in this boot.
fn tells_of_nothing(beat: &Heartbeat) -> bool {
    beat.sequence == 0 && beat.replicas == 0 && beat.status_seq == 0
}

fn fell_silent(kind: EventKind, host: &Host, now: Timestamp) -> EventDraft {
    let (name, silence) = (&host.record.info.name, now.since(host.heard));
    let reason = format!("{name} silent for {:.1} s", silence.as_secs_f64());
    EventDraft::cluster(kind, reason).host(&host.record.host)
}
