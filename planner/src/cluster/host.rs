//! One host as the leader knows it: what is stored of it, and what it says.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use wasmorch_api::status::{Capacity, Drain, HostRecord, HostState};
use wasmorch_api::{
    BootId, HostInfo, PlacementNumber, PlacementSet, RemovalId, Slot, Timestamp, WorkloadKey,
};

use super::Line;
use crate::booked::Booked;
use crate::boots::Boots;
use crate::observe::ASK_EVERY;

/// The label by which gateways keep requests near.
const ZONE: &str = "zone";

/// One host.
#[derive(Debug, Clone)]
pub struct Host {
    /// As stored.
    pub record: HostRecord,
    /// The record has reached the store.
    pub(crate) stored: bool,
    /// This one or an earlier one has.
    pub(crate) recorded: bool,
    /// Its current start; `None` until it has been heard in this term.
    pub boot: Option<BootId>,
    /// When it was last heard, or when the term began.
    pub heard: Timestamp,
    /// Its last heartbeat.
    pub(crate) beat: Timestamp,
    /// Whether it lives.
    pub state: HostState,
    /// Its set as stored.
    pub set: Option<PlacementSet>,
    /// The set's store sequence.
    pub set_sequence: u64,
    /// When the set was written.
    pub(crate) set_at: Timestamp,
    /// When to ask for it to be taken up, if it has not been by then.
    pub(crate) sync_due: Timestamp,
    /// And how long after that to ask again.
    pub(crate) sync_wait: Duration,
    /// The sequence it says it holds.
    pub applied: u64,
    /// The last status report that was folded in.
    pub(crate) status_seq: u64,
    /// Everything it runs is known: a full report came in this boot, or its first heartbeat said that it
    /// holds nothing, and the store names nothing there.
    pub synced: bool,
    /// When its full status was last asked for.
    pub(crate) asked: Timestamp,
    /// The store sequence its gateway has applied.
    pub table_seq: u64,
    /// What its live replicas use, by its own count.
    pub used: Capacity,
    /// What its set books.
    pub(crate) booked: Booked,
    /// The same by the priority of whose it is.
    pub(crate) by_priority: BTreeMap<u32, Booked>,
    /// The hosts that are like it.
    pub(crate) class: u32,
    pub(crate) number: u32,
    /// Its label `zone`, as all tables that name it share it.
    pub(crate) zone: Option<Arc<str>>,
    /// Its reports of replicas that its set does not hold (any more).
    pub(crate) leaving: BTreeSet<(WorkloadKey, PlacementNumber)>,
    /// Events of it in this term, newest last.
    pub(crate) story: VecDeque<Line>,
    /// Since when it counts as dead.
    pub(crate) dead_since: Option<Timestamp>,
    /// When it was last heard again after that.
    pub(crate) back_since: Option<Timestamp>,
    /// It died with replicas that wait for its return: what they do is to be told again.
    pub(crate) forgotten: bool,
    /// It has told this leader that it holds its set.
    pub(crate) caught_up: bool,
    /// What must not run twice and was taken out of its set unheard, with the sequence of the set after.
    pub(crate) unsure: BTreeMap<(WorkloadKey, PlacementNumber), (Slot, u64)>,
    /// Its set in the store names a workload that is no more.
    pub(crate) names_removed: bool,
    /// The starts before its current one.
    pub(crate) boots: Boots,
    /// The start that the store knows to be the one that may start what must not run twice.
    pub(crate) granted: Option<BootId>,
    /// So long after a start of it was last heard nothing of that runs that must not run twice: the longest
    /// of what it may run; zero: nothing.
    pub(crate) once_for: Duration,
    /// Some of that has left its set: once it has ended, this may be less.
    pub(crate) once_less: bool,
    /// Its last heartbeat says that it ends, and so many reports it had sent by then.
    pub(crate) leaves: Option<u64>,
    /// Sets of leaders whose term is over that it has refused since its start; `None`: not heard yet.
    pub(crate) stale_sets: Option<u64>,
    /// When it was last said that it refuses some.
    pub(crate) stale_said: Option<Timestamp>,
    /// When it was last said that it claims a term that cannot be.
    pub(crate) term_said: Option<Timestamp>,
    /// What it says that it has still to remove; `None`: it says nothing of that.
    pub(crate) removals: Option<Vec<RemovalId>>,
}

impl Host {
    pub(crate) fn new(record: HostRecord, stored: bool, since: Timestamp) -> Self {
        Self {
            granted: record.boot.clone().filter(|_| stored),
            record,
            stored,
            recorded: stored,
            boot: None,
            heard: since,
            beat: since,
            state: HostState::Alive,
            set: None,
            set_sequence: 0,
            set_at: since,
            sync_due: since,
            sync_wait: ASK_EVERY,
            applied: 0,
            status_seq: 0,
            synced: false,
            asked: Timestamp(0),
            table_seq: 0,
            used: Capacity::default(),
            booked: Booked::default(),
            by_priority: BTreeMap::new(),
            class: u32::MAX,
            number: 0,
            zone: None,
            leaving: BTreeSet::new(),
            story: VecDeque::new(),
            dead_since: None,
            back_since: None,
            forgotten: false,
            caught_up: false,
            unsure: BTreeMap::new(),
            names_removed: false,
            boots: Boots::default(),
            once_for: Duration::ZERO,
            once_less: false,
            leaves: None,
            stale_sets: None,
            stale_said: None,
            term_said: None,
            removals: None,
        }
    }

    /// A copy that holds another set.
    pub(super) fn without_set(&self, set: Option<PlacementSet>) -> Self {
        Self {
            record: self.record.clone(),
            boot: self.boot.clone(),
            set,
            leaving: BTreeSet::new(),
            story: VecDeque::new(),
            by_priority: BTreeMap::new(),
            unsure: self.unsure.clone(),
            zone: self.zone.clone(),
            boots: self.boots.clone(),
            granted: self.granted.clone(),
            removals: None,
            ..*self
        }
    }

    /// What it last said of itself.
    pub fn info(&self) -> &HostInfo {
        &self.record.info
    }

    /// Follows what it last said of itself.
    pub(crate) fn note_zone(&mut self) {
        let zone = self.record.info.labels.get(ZONE);
        self.zone = zone.map(|zone| zone.as_str().into());
    }

    /// What may be booked on it.
    pub fn capacity(&self) -> Capacity {
        self.record.info.capacity
    }

    /// It holds a set, and the store has none of it.
    pub(crate) fn holds_unkept(&self) -> bool {
        self.set.is_none() && self.applied > 0
    }

    /// It was removed and came back: it is to hold nothing any more. Of one whose record is there the set
    /// was lost, and what it holds is all that is left of that.
    pub(crate) fn came_back(&self) -> bool {
        self.known() && self.holds_unkept() && !self.recorded
    }

    /// The sequence of its set in the store, 0 when there is none; `None`: the store does not know it.
    pub fn set_stored(&self) -> Option<u64> {
        match self.set {
            Some(_) => Some(self.set_sequence),
            None => self.recorded.then_some(0),
        }
    }

    /// Its record is to be written. That of one that came back is so after the set that tells it to hold
    /// nothing: whoever reads the one without the other takes the set for lost.
    pub(crate) fn to_record(&self) -> bool {
        let heard = self.boot.is_some() || self.recorded;
        !self.stored && heard && (self.recorded || !self.holds_unkept())
    }

    /// Something of it may have to be written though no placement of its changes: it is to be recorded, came
    /// back, is being drained, or holds what was removed.
    pub(crate) fn may_be_written(&self) -> bool {
        let drains = self.record.drain.is_some_and(|drain| !drain.drained);
        !self.stored || drains || self.names_removed
    }

    /// No set names it, and nothing that it ran is waited for.
    pub(crate) fn holds_nothing(&self) -> bool {
        self.set.is_none() && self.leaving.is_empty() && self.unsure.is_empty()
    }

    /// Neither cordoned nor drained.
    pub(crate) fn takes_new(&self) -> bool {
        !self.record.cordoned && self.record.drain.is_none()
    }

    /// Its record, if it is being drained and nothing is left there.
    pub(crate) fn now_drained(&self) -> Option<HostRecord> {
        let drain = self.record.drain.filter(|drain| !drain.drained)?;
        let held = self.set.iter().flat_map(|set| &set.groups);
        let silent = self.state == HostState::Dead;
        let ended = silent || self.known() && self.leaving.is_empty();
        (ended && held.count() == 0).then(|| HostRecord {
            drain: Some(Drain {
                drained: true,
                ..drain
            }),
            ..self.record.clone()
        })
    }

    /// Heard in this term, and everything it runs is known.
    pub fn known(&self) -> bool {
        self.boot.is_some() && self.synced
    }
}
