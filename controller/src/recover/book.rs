//! Records, revisions and hosts as they are put together.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use wasmorch_api::record::{Removed, Run};
use wasmorch_api::status::HostRecord;
use wasmorch_api::subjects::key;
use wasmorch_api::{
    HostId, Kind, Name, PlacedSlot, PlacementNumber, PlacementSet, Record, Revision,
    RevisionNumber, Rollout, Timestamp, WorkloadKey, backup,
};
use wasmorch_planner::{Stored, Write};

use super::{Rebuilder, Told};
use crate::store::Entry;

/// Placements that were numbered and that nobody remembers: their host is away, or they had ended.
const PLACEMENTS_SPARE: u64 = 1_000;

/// See the module's head.
#[derive(Debug, Default)]
pub(super) struct Book {
    pub(super) records: BTreeMap<WorkloadKey, Record>,
    pub(super) revisions: BTreeMap<WorkloadKey, BTreeMap<RevisionNumber, Revision>>,
    removed: BTreeMap<WorkloadKey, Removed>,
    hosts: BTreeMap<HostId, HostRecord>,
    /// Sets that the store has of hosts that may be silent.
    sets: BTreeMap<HostId, PlacementSet>,
    others: BTreeMap<String, Bytes>,
    held: BTreeMap<WorkloadKey, Held>,
    pub(super) unreadable: Vec<String>,
}

/// What hosts hold of one workload.
#[derive(Debug, Default)]
struct Held {
    slots: BTreeMap<RevisionNumber, Vec<PlacedSlot>>,
}

impl Held {
    fn all(&self) -> impl Iterator<Item = &PlacedSlot> {
        self.slots.values().flatten()
    }

    fn next_placement(&self) -> PlacementNumber {
        let last = self.all().map(|slot| slot.placement).max();
        last.unwrap_or_default().next()
    }

    fn highest_slot(&self) -> u32 {
        // What rests is no replica.
        let runs = self.all().filter(|slot| !slot.standby);
        let highest = runs.map(|slot| slot.slot.0).max().unwrap_or(0);
        u32::try_from(highest).unwrap_or(u32::MAX)
    }
}

impl Book {
    /// Takes one stored value; `here`: the store itself has it, which knows better than a backup
    /// what has been removed.
    pub(super) fn take(&mut self, at: &str, value: &[u8], here: bool) {
        match Stored::parse(at, value) {
            Ok(Some(stored)) => self.take_stored(stored, here),
            Ok(None) if backup::holds(at) => {
                let value = Bytes::copy_from_slice(value);
                self.others.entry(at.to_owned()).or_insert(value);
            }
            Ok(None) => {}
            Err(_) => self.unreadable.push(at.to_owned()),
        }
    }

    fn take_stored(&mut self, stored: Stored, here: bool) {
        match stored {
            Stored::Record(record) => {
                let key = record.key();
                let known = self.records.get(&key).map(|known| known.updated);
                // One that was deployed anew has what hosts have still to remove beside it.
                let removed = self.removed.get(&key);
                let gone = removed.is_some_and(|removed| removed.newest >= record.newest);
                if !gone && known.is_none_or(|known| known < record.updated) {
                    self.records.insert(key, *record);
                }
            }
            Stored::Removed(removed) => {
                let key = removed.key();
                if here || !self.records.contains_key(&key) {
                    self.removed.entry(key).or_insert(removed);
                }
            }
            Stored::Revision(revision) => self.know(*revision),
            Stored::Namespace(one) => {
                let at = key::namespace(&one.namespace);
                let value = serde_json::to_vec(&one).unwrap_or_default();
                self.others.entry(at).or_insert(value.into());
            }
            Stored::Host(host) => {
                self.hosts.entry(host.host.clone()).or_insert(*host);
            }
            Stored::Placements(set) if here => {
                self.sets.insert(set.host.clone(), set);
            }
            // Made anew.
            Stored::Placements(_) | Stored::Endpoints(_) | Stored::Routes(_) => {}
        }
    }

    fn know(&mut self, revision: Revision) {
        let known = self.revisions.entry(revision.key()).or_default();
        known.entry(revision.number).or_insert(revision);
    }

    /// Takes what hosts hold, and brings every record up to it.
    pub(super) fn hold(&mut self, hosts: &[Told], now: Timestamp, lost: &mut Vec<String>) {
        for told in hosts {
            let record = self.hosts.entry(told.beat.host.clone());
            let record = record.or_insert_with(|| HostRecord {
                host: told.beat.host.clone(),
                info: told.beat.info.clone(),
                cordoned: false,
                drain: None,
                joined: now,
                dead_since: None,
                boot: None,
            });
            record.info = told.beat.info.clone();
            record.dead_since = None;
            record.boot = Some(told.beat.boot.clone());
            for revision in &told.held.revisions {
                self.know(revision.clone());
            }
        }
        let mut held: BTreeMap<WorkloadKey, Held> = BTreeMap::new();
        for group in hosts.iter().flat_map(|told| &told.held.groups) {
            let slots = &mut held.entry(group.key()).or_default().slots;
            slots
                .entry(group.revision)
                .or_default()
                .extend(group.slots.iter().cloned());
        }
        for (key, mut held) in held {
            let known = self.revisions.get(&key);
            held.slots.retain(|number, _| {
                let there = known.is_some_and(|known| known.contains_key(number));
                if !there {
                    lost.push(format!(
                        "{key}: no host has its revision {number}; deploy it again"
                    ));
                }
                there
            });
            if !held.slots.is_empty() {
                self.held.insert(key, held);
            }
        }
        for (key, held) in &self.held {
            let record = self.records.remove(key);
            let revisions = &self.revisions[key];
            let removed = self.removed.get(key);
            let record = brought_up(record, key, held, revisions, removed, now);
            // What runs again after its removal keeps its data.
            if let Some(removed) = self.removed.get_mut(key) {
                let oldest = held
                    .slots
                    .values()
                    .flatten()
                    .map(|slot| slot.placement)
                    .min();
                { &mut removed.removals }
                    .retain(|one| oldest.is_none_or(|oldest| oldest >= one.before));
            }
            self.records.insert(key.clone(), record);
        }
        self.check_records(lost, now);
    }

    /// What no host holds goes on from where it was remembered; without its revision it cannot.
    fn check_records(&mut self, lost: &mut Vec<String>, now: Timestamp) {
        let (revisions, held) = (&self.revisions, &self.held);
        self.records.retain(|key, record| {
            let known = revisions.get(key);
            let Some(target) = known.and_then(|known| known.get(&record.revision)) else {
                lost.push(format!(
                    "{key}: its revision {} is lost; deploy it again",
                    record.revision
                ));
                return false;
            };
            if !held.contains_key(key) {
                record.next_placement.0 += PLACEMENTS_SPARE;
            }
            if let Some(rollout) = record.rollout.as_mut().filter(|r| !r.state.ended()) {
                // It has had no time since.
                rollout.deadline = now.after(target.spec.update.progress_deadline.0);
            }
            true
        });
        self.revisions
            .retain(|key, _| self.records.contains_key(key));
        let orphans: Vec<WorkloadKey> = self
            .held
            .keys()
            .filter(|key| !self.records.contains_key(key))
            .cloned()
            .collect();
        for key in orphans {
            self.held.remove(&key);
        }
    }

    /// Workloads that no host holds.
    pub(super) fn not_held(&self) -> u64 {
        let not_held = self
            .records
            .keys()
            .filter(|key| !self.held.contains_key(key));
        not_held.count() as u64
    }

    /// Hosts that are known of and did not tell.
    pub(super) fn silent(&self, told: &[Told]) -> Vec<Name> {
        let told: BTreeSet<&HostId> = told.iter().map(|told| &told.beat.host).collect();
        let silent = self
            .hosts
            .values()
            .filter(|host| !told.contains(&host.host));
        silent.map(|host| host.info.name.clone()).collect()
    }

    /// The placement sets: of hosts that told, what they hold; of silent ones, what the store has, and
    /// nothing where it has none: a host that is known and has no set at all would look like a loss.
    pub(super) fn sets(&self, told: &[Told], by: &Rebuilder) -> Vec<PlacementSet> {
        // What hosts that told have still to remove is named by the next plan; a silent one may read
        // this first.
        let held = told.iter();
        let held = held.map(|told| (&told.beat.host, &told.held.groups[..], Vec::new()));
        let answered: BTreeSet<&HostId> = told.iter().map(|told| &told.beat.host).collect();
        let silent = self.hosts.keys().filter(|host| !answered.contains(host));
        let silent = silent.map(|host| {
            let set = self.sets.get(host);
            let groups = set.map_or(&[][..], |set| &set.groups);
            let removals = set.map(|set| set.removals.clone());
            (host, groups, removals.unwrap_or_default())
        });
        let runs = |group: &wasmorch_api::PlacementGroup| {
            let known = self.revisions.get(&group.key());
            known.is_some_and(|known| known.contains_key(&group.revision))
        };
        held.chain(silent)
            .map(|(host, groups, removals)| PlacementSet {
                removals,
                cluster: by.cluster.clone(),
                term: by.term,
                leader: by.leader.clone(),
                host: host.clone(),
                groups: groups.iter().filter(|group| runs(group)).cloned().collect(),
            })
            .collect()
    }

    /// Everything but sets and tables.
    pub(super) fn writes(&self) -> Vec<Write> {
        let mut writes = Vec::new();
        let hosts = self.hosts.values().cloned();
        writes.extend(hosts.map(|host| Write::Host(Box::new(host))));
        let records = self.records.values().cloned();
        writes.extend(records.map(|record| Write::Record(Box::new(record))));
        let revisions = self.revisions.values().flat_map(BTreeMap::values).cloned();
        writes.extend(revisions.map(|revision| Write::Revision(Box::new(revision))));
        let removed = self.removed.iter().filter(|(key, removed)| {
            !removed.removals.is_empty() || !self.records.contains_key(key)
        });
        writes.extend(removed.map(|(_, removed)| Write::Removed(removed.clone())));
        writes
    }

    /// What the planner does not know.
    pub(super) fn others(&self) -> impl Iterator<Item = Entry> {
        self.others
            .iter()
            .filter(|(at, _)| *at != key::TERM && *at != key::LEASE)
            .map(|(at, value)| Entry {
                key: at.clone(),
                value: Some(value.clone()),
            })
    }
}

/// A record that knows at least what hosts hold.
fn brought_up(
    known: Option<Record>,
    key: &WorkloadKey,
    held: &Held,
    revisions: &BTreeMap<RevisionNumber, Revision>,
    removed: Option<&Removed>,
    now: Timestamp,
) -> Record {
    let newest_held = held.slots.keys().next_back().copied().unwrap_or_default();
    let target = &revisions[&newest_held];
    let later = known.as_ref().is_none_or(|record| {
        newest_held > record.newest || held.next_placement() > record.next_placement
    });
    let mut record = known.unwrap_or_else(|| Record {
        updated: now,
        answered: Vec::new(),
        ..Record::new(key, target.kind, newest_held, removed, target.at)
    });
    if later {
        go_on(&mut record, held, revisions, target, now);
    }
    let counted = revisions.keys().next_back().copied();
    let counted = counted.max(removed.map(|removed| removed.newest));
    record.newest = record.newest.max(counted.unwrap_or_default());
    let next = held
        .next_placement()
        .max(record.next_placement)
        .max(removed.map_or(PlacementNumber(0), |removed| removed.next_placement));
    record.next_placement = PlacementNumber(next.0 + PLACEMENTS_SPARE);
    record.updated = now;
    record
}

/// Hosts hold something that the record does not know of: it follows them.
fn go_on(
    record: &mut Record,
    held: &Held,
    revisions: &BTreeMap<RevisionNumber, Revision>,
    target: &Revision,
    now: Timestamp,
) {
    let before = held.slots.keys().rev().nth(1).copied();
    let number = target.number;
    record.kind = target.kind;
    record.revision = number;
    record.stopped = false;
    record.crash_loop.clear();
    record.stable = Some(before.unwrap_or(number));
    // Two revisions at once are a rollout under way.
    let patience = target.spec.update.progress_deadline.0;
    record.rollout = before.map(|from| Rollout::begin(number, Some(from), now, patience));
    if target.spec.update.canary.is_some()
        && let Some(before) = before.and_then(|before| revisions.get(&before))
        && before.kind == target.kind
        && wasmorch_planner::may_stand_beside(&before.spec, &target.spec)
    {
        // Nobody knows whether they had been promoted: they are watched anew.
        record.put_on_trial(before.number);
    }
    if !target.kind.ends() {
        record.desired = held.highest_slot();
        return;
    }
    let job = &target.spec.job;
    record.desired = job.seats();
    // What the schedule named before is nobody's any more.
    record.scheduled = (target.kind == Kind::Cron).then_some(now);
    record.earlier.clear();
    let slots = held.slots.get(&number);
    let first = slots.and_then(|slots| slots.iter().min_by_key(|slot| slot.placement));
    record.run = first.map(|first| {
        let number = record.run.as_ref().map_or(1, |run| run.number + 1);
        Run::new(number, first.placement, first.args.as_deref().cloned(), job)
    });
}
