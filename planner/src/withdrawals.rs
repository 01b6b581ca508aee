//! When a host may stop answering for what it drains: once no gateway sends requests there.
//!
//! Tables are stored before the sets that end what they name no more (`Cluster::writes`), so whoever has
//! heard of the newest table before a set has heard of all that the set takes away. A host whose set ends
//! something goes on answering until it is told here that the gateways of all other hosts that live have
//! reported so, or until [`WITHDRAWN_WITHIN`] is over: nobody waits for a gateway that is deaf. One that
//! shuts down has no set to go by: it is told when no table names it any more.
//!
//! Nothing of it is stored. A new leader tells of what it has written itself; what drains by a set of the
//! one before waits its time out.

use std::collections::BTreeMap;

use wasmorch_api::messages::WITHDRAWN_WITHIN;
use wasmorch_api::status::HostState;
use wasmorch_api::{HostId, Kind, PlacedSlot, PlacementGroup, Timestamp, WorkloadKey};

use crate::cluster::Cluster;
use crate::observe::{Ask, Observed};
use crate::tables::Endpoints;

/// A host that waits for the gateways.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Withdrawal {
    /// Of the set by which something ends there; `None`: the host shuts down.
    set: Option<u64>,
    /// The newest table before that by which anything is withdrawn; `None`: some still name a host that shuts
    /// down.
    tables: Option<u64>,
    /// Beyond this the host waits no more.
    until: Timestamp,
}

/// Who waits, and for what.
#[derive(Debug, Clone, Default)]
pub(crate) struct Withdrawals {
    waiting: BTreeMap<HostId, Withdrawal>,
    /// The newest table that names less than the one before it.
    tables: u64,
    /// The hosts furthest behind when it was looked at last: before one of them is heard, nobody's wait is
    /// over. Nobody: it is to be looked at anew.
    behind: Vec<HostId>,
}

impl Withdrawals {
    /// A table that may name less than the one before it.
    pub(crate) fn note(&mut self, sequence: u64) {
        self.tables = self.tables.max(sequence);
    }

    fn wait(&mut self, host: &HostId, withdrawal: Withdrawal) {
        self.waiting.insert(host.clone(), withdrawal);
        self.behind.clear();
    }

    /// Whether somebody's wait may be over, now that this host has been heard.
    pub(crate) fn hang_on(&self, heard: &HostId) -> bool {
        !self.waiting.is_empty() && (self.behind.is_empty() || self.behind.contains(heard))
    }
}

impl Cluster {
    /// A table has been stored in the place of that which is held; `None`: it was deleted.
    pub(crate) fn note_table(
        &mut self,
        key: &WorkloadKey,
        table: Option<&Endpoints>,
        sequence: u64,
    ) {
        let Some(workload) = self.workloads.get(key) else {
            // It was removed, and its table goes now.
            self.withdrawals.note(sequence);
            return;
        };
        let withdraws = |before: &Endpoints| match table {
            Some(table) => table.withdraws_from(before),
            None => before.whole().is_withdrawn_by(None),
        };
        if workload.endpoints.as_ref().is_some_and(withdraws) {
            self.withdrawals.note(sequence);
        }
    }

    /// A host's new set is stored, without what is gone; `removed`: without workloads, too, that are removed and
    /// may have answered.
    pub(crate) fn note_withdrawn(
        &mut self,
        host: &HostId,
        (gone, removed): (&[(&PlacementGroup, &PlacedSlot)], bool),
        sequence: u64,
        now: Timestamp,
    ) {
        let answers = |group: &PlacementGroup| {
            let workload = self.workloads.get(&group.key());
            workload.is_some_and(|workload| workload.record.kind == Kind::Http)
        };
        let waits = self.withdrawals.waiting.get(host);
        if waits.is_some_and(|waits| waits.set.is_none() && now <= waits.until) {
            // It drains everything as it is.
            return;
        }
        if removed || gone.iter().any(|(group, _)| answers(group)) {
            let withdrawal = Withdrawal {
                set: Some(sequence),
                tables: Some(self.withdrawals.tables),
                until: now.after(WITHDRAWN_WITHIN),
            };
            self.withdrawals.wait(host, withdrawal);
        }
    }

    /// A host says for the first time that it shuts down.
    pub(crate) fn note_shutdown(&mut self, host: &HostId, now: Timestamp) {
        let withdrawal = Withdrawal {
            set: None,
            tables: None,
            until: now.after(WITHDRAWN_WITHIN),
        };
        self.withdrawals.wait(host, withdrawal);
    }

    /// Tells the hosts that no gateway sends to any more.
    pub(crate) fn follow_withdrawals(&mut self, now: Timestamp, out: &mut Observed) {
        if self.withdrawals.waiting.is_empty() {
            return;
        }
        let mut withdrawals = std::mem::take(&mut self.withdrawals);
        let newest = withdrawals.tables;
        let behind = self.furthest_behind();
        withdrawals.behind = behind.iter().map(|(_, id)| (*id).clone()).collect();
        // Its own gateway sees what drains without a table.
        let passed_by_others = |id: &HostId| {
            let other = behind.iter().find(|(_, one)| *one != id);
            other.map_or(u64::MAX, |(sequence, _)| *sequence)
        };
        withdrawals.waiting.retain(|id, withdrawal| {
            if now > withdrawal.until {
                return false;
            }
            if withdrawal.tables.is_none() && !self.in_tables(id) {
                withdrawal.tables = Some(newest);
            }
            let passed = { withdrawal.tables }.is_some_and(|tables| passed_by_others(id) >= tables);
            if passed {
                out.asks.push(Ask::Withdrawn {
                    host: id.clone(),
                    set: withdrawal.set,
                });
            }
            !passed
        });
        self.withdrawals = withdrawals;
    }

    /// Whether a stored table names the host.
    fn in_tables(&self, id: &HostId) -> bool {
        let held = self.hosts.get(id).and_then(|host| host.set.as_ref());
        let mut groups = held.iter().flat_map(|set| &set.groups);
        groups.any(|group| {
            let workload = self.workloads.get(&group.key());
            let table = workload.and_then(|workload| workload.endpoints.as_ref());
            table.is_some_and(|table| table.entry(id).is_some())
        })
    }

    /// The two hosts whose gateways are furthest behind, of those that live. One that a new leader has not heard
    /// yet has passed nothing.
    fn furthest_behind(&self) -> Vec<(u64, &HostId)> {
        let heard = { self.hosts.iter() }.filter(|(_, host)| host.state == HostState::Alive);
        let mut behind: Vec<(u64, &HostId)> =
            heard.map(|(id, host)| (host.table_seq, id)).collect();
        behind.sort_unstable();
        behind.truncate(2);
        behind
    }
}
