//! The cluster's state as the leader knows it.
//!
//! Owns the maps; how stored entries and acknowledged writes change them is `stored.rs`'. It decides nothing.

mod host;
mod stored;
mod workload;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use wasmorch_api::record::{NamespaceRecord, Removed};
use wasmorch_api::status::{HostRecord, HostState};
use wasmorch_api::{
    ClusterId, EventKind, HostId, HostInfo, Kind, LeaderId, Name, PlacementSet, ReplicaId, Term,
    Timestamp, WorkloadKey,
};

use crate::agenda::Agenda;
use crate::autoscale::Scaling;
use crate::booked::Booked;
use crate::detection::Detection;
use crate::pool::{Classes, Pool};
use crate::ports::Listeners;
use crate::silence::Silence;
use crate::withdrawals::Withdrawals;
use crate::write::EventDraft;

pub use host::Host;
pub(crate) use stored::only_counted;
pub use workload::{Placed, Reported, Workload};

/// The whole state.
#[derive(Debug, Clone)]
pub struct Cluster {
    /// Which cluster.
    pub cluster: ClusterId,
    /// The leader's term.
    pub term: Term,
    /// The leader.
    pub leader: LeaderId,
    /// When the term began: a host not heard since is given a full dead-window from here.
    pub since: Timestamp,
    /// When a silent host counts as dead.
    pub detection: Detection,
    /// The largest value that the store takes.
    pub value_bytes_max: usize,
    /// How far clocks are ahead of the time that everything here counts by: they have been set forward, or
    /// the machine was suspended, since the term began.
    pub(crate) ahead: Duration,
    /// The last tick, to notice the leader's own stalls.
    pub(crate) ticked: Timestamp,
    /// Silences, to tell a network that broke from hosts that died.
    pub(crate) silence: Silence,
    pub(crate) hosts: BTreeMap<HostId, Host>,
    pub(crate) workloads: BTreeMap<WorkloadKey, Workload>,
    /// Counters of workloads that are gone.
    pub(crate) removed: BTreeMap<WorkloadKey, Removed>,
    /// The store sequence of each of those removals.
    pub(crate) removed_at: BTreeMap<WorkloadKey, u64>,
    /// Those of them whose data hosts have still to remove.
    pub(crate) removing: BTreeSet<WorkloadKey>,
    /// Namespaces with a quota.
    pub(crate) namespaces: BTreeMap<Name, NamespaceRecord>,
    /// What each namespace's workloads hold, as a quota counts it.
    pub(crate) held: BTreeMap<Name, Booked>,
    /// Those with `scale`, and what their load was.
    pub(crate) scaling: BTreeMap<WorkloadKey, Scaling>,
    /// Those with one replica on every host: whatever changes about hosts concerns them.
    pub(crate) per_host: BTreeSet<WorkloadKey>,
    /// Those that are held, or go with others: whatever changes about these concerns them.
    pub(crate) bound: BTreeSet<WorkloadKey>,
    /// How many workloads have each priority.
    pub(crate) priorities: BTreeMap<u32, usize>,
    /// What has to be planned.
    pub(crate) agenda: Agenda,
    /// Hosts that wait until gateways route past what they drain.
    pub(crate) withdrawals: Withdrawals,
    /// Workloads whose stored endpoints name a host that holds nothing of them and has not spoken.
    pub(crate) stale_tables: BTreeSet<WorkloadKey>,
    pub(crate) classes: Classes,
    /// Workloads that listen on ports of their hosts.
    pub(crate) listeners: Listeners,
    /// `Host::once_for` where a leader before this one may have given anything, and taken it out of the set unheard:
    /// the longest of all revisions.
    pub(crate) once_for: Duration,
    /// The last number given to a host; none is given twice.
    pub(crate) numbered: u32,
    /// Hosts whose record or set may have to be written though no placement of theirs changes: all for which
    /// `Host::may_be_written`, and perhaps others.
    pub(crate) to_write: BTreeSet<HostId>,
    /// Where there is room: made from the hosts, and thrown away at will.
    pub(crate) pool: Pool,
    /// When it was last said that a host is not taken up.
    pub(crate) turned_away_said: Option<Timestamp>,
    /// The counters are not to be trusted: the next plan counts anew.
    pub(crate) stale: bool,
}

/// One line of a workload's or a host's story: as much of an event as `why` shows.
#[derive(Debug, Clone)]
pub(crate) struct Line {
    pub(crate) at: Timestamp,
    pub(crate) kind: EventKind,
    pub(crate) replica: Option<ReplicaId>,
    pub(crate) reason: Box<str>,
}

/// A clock that is ahead by less has drifted, and was not set.
const STEP: Duration = Duration::from_secs(1);
/// Events kept for each workload's and each host's `why`.
const STORY_KEPT: usize = 30;
/// What a server takes unless it is told otherwise, without what a message carries beside its value.
const VALUE_BYTES_MAX: usize = (1 << 20) - (4 << 10);

impl Cluster {
    /// An empty state at the start of a term.
    pub fn new(cluster: ClusterId, term: Term, leader: LeaderId, now: Timestamp) -> Self {
        Self {
            cluster,
            term,
            leader,
            since: now,
            detection: Detection::default(),
            value_bytes_max: VALUE_BYTES_MAX,
            ahead: Duration::ZERO,
            ticked: now,
            silence: Silence::default(),
            hosts: BTreeMap::new(),
            workloads: BTreeMap::new(),
            removed: BTreeMap::new(),
            removed_at: BTreeMap::new(),
            removing: BTreeSet::new(),
            namespaces: BTreeMap::new(),
            held: BTreeMap::new(),
            scaling: BTreeMap::new(),
            per_host: BTreeSet::new(),
            bound: BTreeSet::new(),
            priorities: BTreeMap::new(),
            agenda: Agenda::default(),
            withdrawals: Withdrawals::default(),
            stale_tables: BTreeSet::new(),
            classes: Classes::default(),
            listeners: Listeners::default(),
            once_for: Duration::ZERO,
            numbered: 0,
            to_write: BTreeSet::new(),
            pool: Pool::default(),
            turned_away_said: None,
            stale: true,
        }
    }

    /// Hosts by id.
    pub fn hosts(&self) -> &BTreeMap<HostId, Host> {
        &self.hosts
    }

    /// Workloads by namespace and name.
    pub fn workloads(&self) -> &BTreeMap<WorkloadKey, Workload> {
        &self.workloads
    }

    /// A workload.
    pub fn workload(&self, key: &WorkloadKey) -> Option<&Workload> {
        self.workloads.get(key)
    }

    /// Nobody could be heard until now: the leader was reading what is stored.
    pub fn listen_from(&mut self, now: Timestamp) {
        let late = now.since(self.since);
        (self.since, self.ticked) = (now, now);
        for host in self.hosts.values_mut() {
            host.heard = host.heard.after(late);
            host.dead_since = host.dead_since.map(|since| since.after(late));
        }
    }

    /// A new leader has waited long enough for hosts to speak.
    pub(crate) fn settled(&self, now: Timestamp) -> bool {
        now.since(self.since) >= self.detection.settle()
    }

    /// Whether a new leader still waits for hosts to say what they hold: until then nothing is placed on
    /// them, and what would be cannot be told.
    pub fn listens(&self, now: Timestamp) -> bool {
        let waits = |host: &Host| host.state != HostState::Dead && !host.known();
        !self.settled(now) && self.hosts.values().any(waits)
    }

    /// What clocks show at a time: what people name, times of a schedule, is meant by those. Whether a host
    /// lives, and how long something may take, is not: that would see a clock that is set as time that passed.
    pub fn wall(&self, now: Timestamp) -> Timestamp {
        now.after(self.ahead)
    }

    /// The clock shows `wall` at `now`. It is followed where it is set; what has been begun stays begun, so
    /// that one that is set back repeats nothing. `true`: something may be due.
    pub fn follow_clock(&mut self, wall: Timestamp, now: Timestamp) -> bool {
        let ahead = wall.since(now);
        if ahead.abs_diff(self.ahead) < STEP {
            return false;
        }
        self.ahead = ahead;
        let cron = self.workloads.iter();
        let cron = cron.filter(|(_, one)| one.record.kind == Kind::Cron);
        cron.for_each(|(key, _)| self.agenda.whole(key));
        true
    }

    /// A copy with these workloads alone. Hosts keep what all others book on them, so that a plan
    /// on the copy finds the room that there is; its size grows with hosts, not with replicas.
    pub(crate) fn excerpt(&self, keys: &[WorkloadKey]) -> Self {
        if self.stale {
            // Not counted yet: right after a start, and the next plan mends it.
            return self.clone();
        }
        let (cluster, leader) = (self.cluster.clone(), self.leader.clone());
        let mut copy = Self::new(cluster, self.term, leader, self.since);
        copy.detection = self.detection;
        copy.value_bytes_max = self.value_bytes_max;
        copy.ahead = self.ahead;
        copy.ticked = self.ticked;
        copy.stale = false;
        copy.classes = self.classes.clone();
        copy.held = self.held.clone();
        copy.listeners = self.listeners_without(keys);
        copy.numbered = self.numbered;
        copy.to_write = self.to_write.clone();
        for (id, host) in &self.hosts {
            let groups = keys.iter().flat_map(|key| host.groups_of(key));
            let set = host.set.as_ref().map(|set| PlacementSet {
                groups: groups.cloned().collect(),
                cluster: set.cluster.clone(),
                term: set.term,
                leader: set.leader.clone(),
                host: set.host.clone(),
                removals: Vec::new(),
            });
            copy.hosts.insert(id.clone(), host.without_set(set));
        }
        for key in keys {
            let removed = self.removed.get(key).cloned();
            copy.removed.extend(removed.map(|one| (key.clone(), one)));
            let Some(workload) = self.workloads.get(key) else {
                continue;
            };
            copy.agenda.whole(key);
            let workload = Workload {
                counted_as: None,
                ..workload.clone()
            };
            copy.workloads.insert(key.clone(), workload);
            copy.note_target(key);
            copy.note_bonds(key);
        }
        copy
    }

    pub(crate) fn count_priority(&mut self, before: Option<u32>, now: Option<u32>) {
        if let Some(now) = now {
            *self.priorities.entry(now).or_default() += 1;
        }
        if let Some(before) = before
            && let Some(count) = self.priorities.get_mut(&before)
        {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.priorities.remove(&before);
            }
        }
    }

    /// What a host is has changed: name, labels, capacity, cordon.
    pub(crate) fn host_reshaped(&mut self, id: &HostId) {
        if let Some(host) = self.hosts.get_mut(id) {
            host.note_zone();
        }
        self.classify(id);
        self.pool.rebuild();
        self.host_changed(id);
    }

    /// The host, entered now if it was unknown: its record was lost or never written, and it tells
    /// what it is with its next heartbeat.
    pub(crate) fn host_entry(&mut self, id: &HostId, joined: Timestamp, heard: Timestamp) -> bool {
        if self.hosts.contains_key(id) {
            return false;
        }
        let record = HostRecord {
            host: id.clone(),
            info: HostInfo::default(),
            cordoned: false,
            drain: None,
            joined,
            dead_since: None,
            boot: None,
        };
        let mut host = Host::new(record, false, heard);
        self.numbered += 1;
        host.number = self.numbered;
        self.hosts.insert(id.clone(), host);
        self.to_write.insert(id.clone());
        self.host_reshaped(id);
        true
    }

    /// Remembers events of workloads and hosts for `why`.
    pub fn remember(&mut self, events: &[EventDraft], now: Timestamp) {
        for event in events {
            let story = match (&event.namespace, &event.workload, &event.host) {
                (Some(namespace), Some(name), _) => {
                    let key = WorkloadKey::new(namespace.clone(), name.clone());
                    let workload = self.workloads.get_mut(&key);
                    workload.map(|workload| &mut workload.story)
                }
                (None, None, Some(id)) => self.hosts.get_mut(id).map(|host| &mut host.story),
                _ => None,
            };
            let Some(story) = story else { continue };
            if story.len() == STORY_KEPT {
                story.pop_front();
            }
            story.push_back(Line {
                at: now,
                kind: event.kind,
                replica: event.replica,
                reason: event.reason.as_str().into(),
            });
        }
    }
}
