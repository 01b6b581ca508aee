//! What must hold at every step, kept in books of its own: laws of the store, and of plans in `plans`.
//!
//! Written apart from planner and agent, so that one mistake is not made twice. The laws of hosts
//! are in `host_laws`.

use std::collections::{BTreeMap, BTreeSet};

use wasmorch_api::record::TermRecord;
use wasmorch_api::status::{HostRecord, HostState};
use wasmorch_api::subjects::key;
use wasmorch_api::{
    HostId, LeaderId, PlacementNumber, PlacementSet, Record, Revision, RevisionNumber,
    RolloutState, Slot, Term, WorkloadKey, WorkloadSpec,
};
use wasmorch_planner::{Cluster, Plan, StopReason, Write};

mod plans;

pub(crate) use super::host_laws::HostLaw;
use super::law::{Broken, Law};
use super::world::World;

/// A silent host is dead after this; `wasmorch_planner::DEAD_AFTER`, said again here on purpose.
const DEAD_AFTER: u64 = 5_000;
/// Two leaders' clocks, by so much at most.
const CLOCKS_DIFFER: u64 = 3_000;

/// One placement as a set names it.
type Placed = (WorkloadKey, RevisionNumber, Slot, PlacementNumber);

/// The books.
#[derive(Debug, Default)]
pub(crate) struct Laws {
    pub(crate) last_written: u64,
    /// Every host's set as stored.
    sets: BTreeMap<HostId, PlacementSet>,
    /// Every workload's record as stored.
    pub(crate) records: BTreeMap<WorkloadKey, Record>,
    hosts: BTreeMap<HostId, HostRecord>,
    /// What each placement number has meant since it was first given out.
    meant: BTreeMap<(WorkloadKey, PlacementNumber), (Slot, RevisionNumber, HostId)>,
    /// Replicas ever given to a runner, by data folder.
    pub(crate) started: BTreeSet<(usize, wasmorch_host::runner::protocol::ReplicaKey)>,
    /// In calm worlds: how many slots are wanted, and how many of these have been ready.
    pub(crate) proven: BTreeMap<WorkloadKey, (u64, u64)>,
    /// Removals with their data: what earlier placements left is to go.
    pub(crate) data_gone: BTreeMap<WorkloadKey, PlacementNumber>,
    /// So many slots may the namespace have.
    pub(crate) quota: Option<u64>,
    /// What has run to its end, and when runs were begun.
    pub(crate) runs: super::runs::Runs,
    /// Every revision's spec.
    specs: BTreeMap<(WorkloadKey, RevisionNumber), WorkloadSpec>,
    /// Revisions of which a replica has truly been ready.
    pub(crate) once_ready: BTreeSet<(WorkloadKey, RevisionNumber)>,
    /// Workloads that have made room for others.
    pub(crate) preempted: BTreeSet<WorkloadKey>,
    /// Revisions with one replica on every host.
    pub(crate) per_host: BTreeSet<(WorkloadKey, RevisionNumber)>,
    /// The largest `max_unavailable` of any revision of a workload.
    pub(crate) may_lack: BTreeMap<WorkloadKey, u64>,
    pub(crate) regressed: bool,
    /// Rollouts that were paused.
    paused: super::answers::Paused,
}

fn placed(set: &PlacementSet) -> BTreeSet<Placed> {
    set.groups
        .iter()
        .flat_map(|group| {
            let one = |slot: &wasmorch_api::PlacedSlot| {
                (group.key(), group.revision, slot.slot, slot.placement)
            };
            group.slots.iter().map(one)
        })
        .collect()
}

impl Laws {
    /// The store is an older one: its books with it, and numbers may come again.
    /// `revisions`: what the older store holds; their numbers may have named others since.
    pub(crate) fn store_regressed(&mut self, revisions: &[Revision]) {
        self.regressed = true;
        for revision in revisions {
            self.know(revision);
        }
    }

    fn know(&mut self, revision: &Revision) {
        let may = u64::from(revision.spec.update.max_unavailable);
        let most = self.may_lack.entry(revision.key()).or_default();
        *most = (*most).max(may);
        self.runs.note(revision);
        let one = (revision.key(), revision.number);
        if revision.spec.per_host() {
            self.per_host.insert(one.clone());
        } else {
            // A store that went back gives a number a second time.
            self.per_host.remove(&one);
        }
        self.specs.insert(one, revision.spec.clone());
    }

    pub(crate) fn record(&self, key: &WorkloadKey) -> Option<&Record> {
        self.records.get(key)
    }

    /// Every host's set as stored.
    pub(crate) fn sets(&self) -> &BTreeMap<HostId, PlacementSet> {
        &self.sets
    }

    /// The spec that is wanted.
    pub(crate) fn spec(&self, key: &WorkloadKey) -> Option<&WorkloadSpec> {
        let revision = self.records.get(key)?.revision;
        self.specs.get(&(key.clone(), revision))
    }

    /// The spec of a revision.
    pub(crate) fn spec_of(
        &self,
        key: &WorkloadKey,
        number: RevisionNumber,
    ) -> Option<&WorkloadSpec> {
        self.specs.get(&(key.clone(), number))
    }

    /// Whether any revision of it listens on a port.
    pub(crate) fn has_listened(&self, key: &WorkloadKey) -> bool {
        let mut specs = self.specs.iter().filter(|((one, _), _)| one == key);
        specs.any(|(_, spec)| !super::claims::ports(spec).is_empty())
    }

    /// Whether the wanted revision has one replica on every host.
    pub(crate) fn is_per_host(&self, key: &WorkloadKey) -> bool {
        let revision = self.records.get(key).map(|record| record.revision);
        revision.is_some_and(|revision| self.per_host.contains(&(key.clone(), revision)))
    }

    /// Whether all its revisions are alike in that.
    pub(crate) fn has_changed_sides(&self, key: &WorkloadKey) -> bool {
        let newest = self.records.get(key).map_or(0, |record| record.newest.0);
        let per_host = { &self.per_host }
            .iter()
            .filter(|(one, _)| one == key)
            .count() as u64;
        per_host > 0 && per_host < newest
    }

    /// The namespace's slots, by the sets.
    pub(crate) fn slots_held(&self) -> u64 {
        let all = self.sets.values().flat_map(placed);
        let all: BTreeSet<_> = all.map(|(key, _, slot, _)| (key, slot)).collect();
        all.len() as u64
    }

    /// A batch that leaves more slots than the quota allows, and than there were.
    fn quota_exceeded(&self, before: u64) -> Option<String> {
        let most = self.quota.filter(|_| !self.regressed)?;
        let held = self.slots_held();
        (held > most.max(before))
            .then(|| format!("{held} slots are held, {before} were, and {most} may be"))
    }

    /// When a cron workload's schedule names its next time.
    pub(crate) fn due(&self, key: &WorkloadKey) -> Option<u64> {
        self.runs.due(self.record(key)?)
    }

    pub(crate) fn host(&self, host: &HostId) -> Option<&HostRecord> {
        self.hosts.get(host)
    }
}

impl World {
    pub(crate) fn law_terms_grow(&mut self, before: Option<TermRecord>, after: &TermRecord) {
        if let Some(before) = before
            && (after.term <= before.term || after.cluster != before.cluster)
        {
            let how = format!("term {} follows {}", after.term, before.term);
            self.broken(Law::TermsGrow, how);
        }
    }

    /// Whoever has just got the lease has it alone.
    pub(crate) fn law_of_one_lease(&mut self, at: usize) {
        let mut others = (0..self.controllers.len()).filter(|other| *other != at);
        let other = others.find(|other| self.lease_holds(*other));
        if let Some(other) = other.filter(|_| self.store.regressed.is_none()) {
            let how = format!("ctl{at} gets the lease, and ctl{other} still holds it");
            self.broken(Law::OneLease, how);
        }
    }

    pub(crate) fn law_only_the_leader_writes(&mut self, by: &(Term, LeaderId)) {
        let in_force = self
            .store
            .bucket
            .term
            .as_ref()
            .map(|(record, _)| (record.term, record.leader.clone()));
        if in_force.as_ref() != Some(by) && !self.laws.regressed {
            let (term, leader) = by;
            let how = format!(
                "the store took a batch of {leader} in term {term}; in force is {in_force:?}"
            );
            self.broken(Law::OnlyTheLeaderWrites, how);
        }
    }

    pub(crate) fn law_freezes_for_a_reason(&mut self) {
        if self.store.regressed.is_none() {
            let how = "a leader froze though the store lost nothing";
            self.broken(Law::FreezesForAReason, how);
        }
    }

    /// What a stored batch may contain, and what it leaves behind.
    pub(crate) fn laws_of_writes(&mut self, writes: &[Write]) {
        let mut touched: BTreeSet<WorkloadKey> = BTreeSet::new();
        let held = self.laws.quota.map(|_| self.laws.slots_held());
        let mut found: Vec<Broken> = Vec::new();
        if !self.laws.regressed {
            found.extend(Law::Dependencies.by(self.laws.begun_too_soon(writes)));
        }
        for write in writes {
            match write {
                Write::Record(record) => {
                    let before = self.laws.records.get(&record.key()).cloned();
                    let wrong = Law::Runs.by(self.laws.runs.wrong(before.as_ref(), record));
                    let wanted = (record.key(), record.revision);
                    let spec = self.laws.specs.get(&wanted);
                    let count = super::load::wrong(before.as_ref(), record, spec);
                    let count = Law::Bounds.by(count);
                    let wrong = wrong.into_iter().chain(count);
                    found.extend(wrong.filter(|_| !self.laws.regressed));
                    if let Some(rollout) = &record.rollout
                        && rollout.state == RolloutState::Paused
                    {
                        self.laws.paused.insert((record.key(), rollout.started));
                    }
                    self.laws
                        .records
                        .insert(record.key(), record.as_ref().clone());
                    touched.insert(record.key());
                }
                Write::DeleteRecord(key) => {
                    self.laws.records.remove(key);
                    self.laws.runs.removed(key);
                    // Whoever plans next writes the sets without it: `stray` sees to that.
                    for set in self.laws.sets.values_mut() {
                        set.groups.retain(|group| group.key() != *key);
                    }
                    touched.insert(key.clone());
                }
                Write::Revision(revision) => self.laws.know(revision),
                Write::Namespace(record) => self.laws.quota = record.quota.replicas,
                Write::DeleteNamespace(_) => self.laws.quota = None,
                Write::Host(record) => {
                    self.laws
                        .hosts
                        .insert(record.host.clone(), record.as_ref().clone());
                    found.extend(Law::Acknowledged.by(self.host_order_lost(&record.host)));
                }
                Write::Removed(removed) => self.note_removal(removed),
                Write::DeleteHost(host) => {
                    self.data_given_up(host);
                    self.laws.hosts.remove(host);
                }
                Write::Placements(set) => {
                    found.extend(self.set_wrong(set));
                    self.laws.sets.insert(set.host.clone(), set.clone());
                }
                Write::DeletePlacements(host) => {
                    self.laws.sets.remove(host);
                }
                _ => {}
            }
        }
        for key in touched {
            if !self.laws.regressed {
                found.extend(Law::Together.by(self.laws.torn_apart(&key)));
            }
            let wrong = self.user.oracle.wrong(&key, self.laws.record(&key));
            found.extend(Law::Acknowledged.by(wrong));
        }
        if self.weather.batch_max >= 1_000 {
            found.extend(Law::OneSuccessor.by(self.slot_crowded()));
            found.extend(Law::Quota.by(held.and_then(|held| self.laws.quota_exceeded(held))));
        }
        if let Some(first) = found.into_iter().next() {
            self.breaks(first);
        }
    }

    fn host_order_lost(&self, host: &HostId) -> Option<String> {
        let stored = self.laws.host(host)?;
        let stored = (stored.cordoned, stored.drain.is_some());
        let known = self.user.oracle.closed(host);
        let lost = known.0.is_some_and(|known| known != stored.0)
            || known.1.is_some_and(|known| known != stored.1);
        lost.then(|| {
            format!("{host}: (cordoned, drained) {known:?} was acknowledged, stored is {stored:?}")
        })
    }

    fn set_wrong(&mut self, set: &PlacementSet) -> Option<Broken> {
        if self.laws.regressed {
            return None;
        }
        if let Some(before) = self.laws.sets.get(&set.host)
            && before.term > set.term
        {
            return Law::SetTerms.by(format!(
                "{}: a set of term {} over one of {}",
                set.host, set.term, before.term
            ));
        }
        for (key, revision, slot, number) in placed(set) {
            if !self.store.bucket.has(&key::revision(&key, revision)) {
                return Law::RevisionsAreStored.by(format!(
                    "a set names revision {revision} of {key}, which is not stored"
                ));
            }
            let means = (slot, revision, set.host.clone());
            let meant = self
                .laws
                .meant
                .entry((key.clone(), number))
                .or_insert_with(|| means.clone());
            if *meant != means {
                return Law::NumbersMeanOne.by(format!(
                    "placement {number} of {key} was {meant:?} and is {means:?}"
                ));
            }
        }
        None
    }

    /// A slot has one current placement and at most one successor.
    fn slot_crowded(&self) -> Option<String> {
        if self.laws.regressed {
            return None;
        }
        let mut seats: BTreeMap<(WorkloadKey, Slot), u32> = BTreeMap::new();
        for (key, _, slot, _) in self.laws.sets.values().flat_map(placed) {
            *seats.entry((key, slot)).or_default() += 1;
        }
        let ((key, slot), count) = seats.into_iter().find(|(_, count)| *count > 2)?;
        Some(format!("slot {slot} of {key} has {count} placements"))
    }

    /// An acknowledged request is stored, at the moment of its acknowledgement and ever after.
    pub(crate) fn law_of_what_was_acknowledged(&mut self, key: &WorkloadKey) {
        let record = self.store.bucket.value(&key::workload(key));
        let record: Option<Record> =
            record.map(|value| serde_json::from_slice(&value).expect("a stored record reads back"));
        if let Some(wrong) = self.user.oracle.wrong(key, record.as_ref()) {
            self.broken(Law::Acknowledged, wrong);
            return;
        }
        let Some((number, digest)) = self.user.oracle.revision(key).cloned() else {
            return;
        };
        let newest = record.map_or(0, |record| record.newest.0);
        let number = RevisionNumber(number);
        let stored = self.store.bucket.value(&key::revision(key, number));
        let stored: Option<wasmorch_api::Revision> = stored
            .map(|value| serde_json::from_slice(&value).expect("a stored revision reads back"));
        // Old ones are pruned.
        let kept = newest < number.0 + wasmorch_planner::REVISIONS_KEPT as u64 / 2;
        if kept && stored.is_none_or(|revision| revision.artifact != digest) {
            let how = format!("{key}: the acknowledged revision {number} is not stored");
            self.broken(Law::Acknowledged, how);
        }
    }
}
