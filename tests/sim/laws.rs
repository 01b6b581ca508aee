//! What must hold at every step, kept in books of its own: laws of the store and of plans.
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
use wasmorch_planner::{Plan, StopReason, Write};

pub(crate) use super::host_laws::HostLaw;
use super::world::World;

/// A silent host is dead after this; `wasmorch_planner::DEAD_AFTER`, said again here on purpose.
const DEAD_AFTER: u64 = 5_000;

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
    /// Namespaces with a quota.
    pub(crate) limited: bool,
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
            self.broken(format!("term {} follows {}", after.term, before.term));
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
            self.broken(format!(
                "the store took a batch of {leader} in term {term}; in force is {in_force:?}"
            ));
        }
    }

    pub(crate) fn law_freezes_for_a_reason(&mut self) {
        if !self.store.regressed {
            self.broken("a leader froze though the store lost nothing");
        }
    }

    /// What a stored batch may contain, and what it leaves behind.
    pub(crate) fn laws_of_writes(&mut self, writes: &[Write]) {
        let mut touched: BTreeSet<WorkloadKey> = BTreeSet::new();
        let mut found = Vec::new();
        if !self.laws.regressed {
            found.extend(self.laws.begun_too_soon(writes));
        }
        for write in writes {
            match write {
                Write::Record(record) => {
                    let before = self.laws.records.get(&record.key()).cloned();
                    let wrong = self.laws.runs.wrong(before.as_ref(), record);
                    let wanted = (record.key(), record.revision);
                    let spec = self.laws.specs.get(&wanted);
                    let count = super::load::wrong(before.as_ref(), record, spec);
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
                    touched.insert(key.clone());
                }
                Write::Revision(revision) => self.laws.know(revision),
                Write::Namespace(_) => self.laws.limited = true,
                Write::DeleteNamespace(_) => self.laws.limited = false,
                Write::Host(record) => {
                    self.laws
                        .hosts
                        .insert(record.host.clone(), record.as_ref().clone());
                    found.extend(self.host_order_lost(&record.host));
                }
                Write::DeleteHost(host) => {
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
                found.extend(self.laws.torn_apart(&key));
            }
            found.extend(self.user.oracle.wrong(&key, self.laws.record(&key)));
        }
        if self.weather.batch_max >= 1_000 {
            found.extend(self.slot_crowded());
        }
        if let Some(first) = found.into_iter().next() {
            self.broken(first);
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

    fn set_wrong(&mut self, set: &PlacementSet) -> Option<String> {
        if self.laws.regressed {
            return None;
        }
        if let Some(before) = self.laws.sets.get(&set.host)
            && before.term > set.term
        {
            return Some(format!(
                "{}: a set of term {} over one of {}",
                set.host, set.term, before.term
            ));
        }
        for (key, revision, slot, number) in placed(set) {
            if !self.store.bucket.has(&key::revision(&key, revision)) {
                return Some(format!(
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
                return Some(format!(
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
            self.broken(wrong);
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
            self.broken(format!(
                "{key}: the acknowledged revision {number} is not stored"
            ));
        }
    }

    /// What a plan may do, by what its leader has heard.
    pub(crate) fn laws_of_a_plan(&mut self, at: usize, plan: &Plan, writes: &[Write]) {
        // A deadline is kept, whatever serves: no promise holds from then on.
        for stop in plan
            .stop
            .iter()
            .filter(|stop| stop.why == StopReason::Overdue)
        {
            self.laws.may_lack.insert(stop.key.clone(), u64::MAX);
        }
        let Some(leading) = self.controllers[at].leads() else {
            return;
        };
        let mut found = None;
        let now = self.controller_clock(at);
        let settled = self.now >= leading.since + DEAD_AFTER;
        for stop in &plan.stop {
            let heard = leading.last_heard.get(&stop.host);
            let known = leading.cluster.hosts().contains_key(&stop.host);
            if !leading.spoken.contains(&stop.host) && !settled {
                found = Some(format!(
                    "a new leader stops {} of {} on a host that has not spoken",
                    stop.placement, stop.key
                ));
            }
            let silent = heard.map_or(DEAD_AFTER, |heard| self.now - heard);
            if stop.why == StopReason::HostDead {
                found = found.or_else(|| self.lost_too_soon(at, &stop.key, stop.placement));
            }
            if stop.why == StopReason::HostDead && known && silent < DEAD_AFTER {
                found = Some(format!(
                    "{} of {} ends for its host's death, silent for {silent} ms",
                    stop.placement, stop.key
                ));
            }
        }
        found = found.or_else(|| self.replaced_too_soon(at, plan));
        for start in &plan.start {
            if !leading.spoken.contains(&start.host) {
                found = Some(format!(
                    "{} starts on a host that has not spoken",
                    start.key
                ));
            }
            let host = leading.cluster.hosts().get(&start.host);
            let closed = host.filter(|host| host.record.cordoned || host.record.drain.is_some());
            if closed.is_some() {
                found = Some(format!(
                    "{} starts on a cordoned or drained host",
                    start.key
                ));
            }
        }
        found = found.or_else(|| super::move_laws::wrong(&leading.cluster, plan, now));
        let how = (&self.laws.paused, self.weather.calm);
        found = found.or_else(|| {
            let wrong = super::answers::wrong(&leading.cluster, plan, &self.fates, how);
            wrong.filter(|_| !self.laws.regressed)
        });
        found = found.or_else(|| self.beyond_quota(at, plan));
        found = found.or_else(|| self.pre_empted_by_none(at, plan));
        found = found.or_else(|| self.runs_left_out(at, plan));
        found = found.or_else(|| self.promoted_too_soon(at, plan));
        // A deposed leader that does not know it yet plans from what was; that goes nowhere.
        let current = self.lease_holds(at);
        found = found.or_else(|| self.host_crowded(plan).filter(|_| current));
        found = found.or_else(|| self.claim_not_met(plan).filter(|_| current));
        found = found.or_else(|| self.laws.starts_held(plan).filter(|_| current));
        for write in writes.iter().filter(|_| current) {
            if let Write::Placements(set) = write {
                found = found.or_else(|| self.set_is_not_the_plan(set, plan));
            }
        }
        if let Some(found) = found {
            self.broken(found);
        }
        let stops = plan.stop.iter();
        let preempted = stops.filter(|stop| stop.why == StopReason::Preempted);
        let keys = preempted.map(|stop| stop.key.clone());
        self.laws.preempted.extend(keys);
    }

    /// A plan promotes a revision of which fewer replicas serve than were to prove it.
    fn promoted_too_soon(&self, at: usize, plan: &Plan) -> Option<String> {
        let cluster = &self.controllers[at].leads()?.cluster;
        plan.update.iter().find_map(|after| {
            let workload = cluster.workload(&after.key())?;
            let trial = workload.record.on_trial()?;
            if after.revision != trial {
                return None;
            }
            let canary = workload
                .revisions
                .get(&trial)?
                .spec
                .update
                .canary
                .as_ref()?;
            let placed = workload.placements.iter();
            let serve = placed
                .filter(|(number, placed)| placed.revision == trial && workload.is_ready(**number));
            let (serve, least) = (serve.count(), canary.replicas.min(after.wanted()) as usize);
            let key = after.key();
            (serve < least).then(|| {
                format!("revision {trial} of {key} is promoted, and {serve} of {least} serve")
            })
        })
    }

    /// What a plan starts for a slot whose replica is on a dead host, and stays wanted there.
    fn replaced_too_soon(&self, at: usize, plan: &Plan) -> Option<String> {
        let cluster = &self.controllers[at].leads()?.cluster;
        for start in &plan.start {
            let Some(workload) = cluster.workload(&start.key) else {
                continue;
            };
            let ends = |number: PlacementNumber| {
                let mut stops = plan.stop.iter();
                stops.any(|stop| (&stop.key, stop.placement) == (&start.key, number))
            };
            // What rolls, restarts or leaves its host has a successor for another reason.
            let stays = workload.placements.iter().filter(|(number, placed)| {
                placed.slot == start.slot
                    && placed.revision == start.revision
                    && **number >= workload.record.fresh_from
                    && !ends(**number)
            });
            let mut stays = stays.map(|(number, _)| *number);
            let soon = stays.find_map(|number| self.lost_too_soon(at, &start.key, number));
            if soon.is_some() {
                return soon;
            }
        }
        None
    }

    /// A replica that counts as lost before its `disconnect` says so.
    fn lost_too_soon(
        &self,
        at: usize,
        key: &WorkloadKey,
        number: PlacementNumber,
    ) -> Option<String> {
        let leading = self.controllers[at].leads()?;
        let placed = leading.cluster.workload(key)?.placements.get(&number)?;
        let host = leading.cluster.hosts().get(&placed.host)?;
        if host.state != HostState::Dead || host.record.drain.is_some() {
            return None;
        }
        let spec = self.laws.specs.get(&(key.clone(), placed.revision))?;
        let heard = leading.last_heard.get(&placed.host);
        let silent = self.now - heard.copied().unwrap_or(leading.since);
        let after = DEAD_AFTER + spec.disconnect.lost_after.0.as_millis() as u64;
        (!spec.disconnect.replace || silent < after).then(|| {
            format!("{number} of {key} is replaced, its host silent for {silent} of {after} ms")
        })
    }

    /// The slots of a namespace with a quota are within it after a plan, or no more than before.
    fn beyond_quota(&self, at: usize, plan: &Plan) -> Option<String> {
        let leading = self.controllers[at].leads()?;
        let namespace = &plan.start.first()?.key.namespace;
        let most = leading.cluster.namespace(namespace)?.quota.replicas?;
        if self.laws.regressed {
            // What a replica counts for may be among what the store has lost.
            return None;
        }
        let workloads = leading.cluster.workloads().iter();
        let placed = workloads.flat_map(|(key, workload)| {
            let placements = workload.placements.iter();
            placements.map(move |(number, placed)| (key.clone(), placed.slot, *number))
        });
        let all: BTreeSet<_> = placed.collect();
        let ended = |key: &WorkloadKey, number: PlacementNumber| {
            let mut stops = plan.stop.iter();
            stops.any(|stop| (&stop.key, stop.placement) == (key, number))
        };
        let slots = |staying: bool| -> BTreeSet<(WorkloadKey, Slot)> {
            let some = all
                .iter()
                .filter(|(key, _, number)| !staying || !ended(key, *number));
            some.map(|(key, slot, _)| (key.clone(), *slot)).collect()
        };
        let (before, mut after) = (slots(false), slots(true));
        let starts = plan.start.iter();
        after.extend(starts.map(|start| (start.key.clone(), start.slot)));
        let (before, after) = (before.len() as u64, after.len() as u64);
        (after > before.max(most))
            .then(|| format!("{namespace} would have {after} slots, and may have {most}"))
    }

    /// What makes room has a lower priority than what starts in its place.
    fn pre_empted_by_none(&self, at: usize, plan: &Plan) -> Option<String> {
        let leading = self.controllers[at].leads()?;
        let priority = |key: &WorkloadKey| {
            let revision = leading.cluster.workload(key)?.record.revision;
            let spec = self.laws.specs.get(&(key.clone(), revision))?;
            Some((spec.priority, spec.min_available))
        };
        let stops = plan.stop.iter();
        for stop in stops.filter(|stop| stop.why == StopReason::Preempted) {
            let (mine, keeps) = priority(&stop.key)?;
            let mut starts = plan.start.iter().filter(|start| start.host == stop.host);
            if !starts.any(|start| priority(&start.key).is_some_and(|(one, _)| one > mine)) {
                return Some(format!(
                    "{} makes room for nothing that goes first",
                    stop.key
                ));
            }
            let workload = leading.cluster.workload(&stop.key)?;
            let ready = workload.placements.iter().filter(|(number, placed)| {
                let mut ended = plan.stop.iter();
                let ended = ended.any(|one| {
                    one.why == stop.why && (&one.key, one.placement) == (&stop.key, **number)
                });
                let host = leading.cluster.hosts().get(&placed.host);
                let lives = host.is_some_and(|host| host.state != HostState::Dead);
                !ended && lives && workload.is_ready(**number)
            });
            if workload.is_ready(stop.placement) && (ready.count() as u32) < keeps {
                return Some(format!("{} falls below min_available = {keeps}", stop.key));
            }
        }
        None
    }

    /// What has one replica on every host starts none beside another that stays, but for a successor
    /// in the same slot.
    fn host_crowded(&self, plan: &Plan) -> Option<String> {
        for start in &plan.start {
            if !self
                .laws
                .per_host
                .contains(&(start.key.clone(), start.revision))
            {
                continue;
            }
            let starts = plan.start.iter();
            let starts = starts.filter(|one| (&one.key, &one.host) == (&start.key, &start.host));
            // A store that went back gives a number to another revision too.
            if starts.count() > 1 && !self.laws.regressed {
                return Some(format!("two of {} start on {}", start.key, start.host));
            }
            let there = self
                .laws
                .sets
                .get(&start.host)
                .map(placed)
                .unwrap_or_default();
            let stopped = |number: PlacementNumber| {
                let mut stops = plan.stop.iter();
                stops.any(|stop| (&stop.key, stop.placement) == (&start.key, number))
            };
            let beside = there.iter().find(|(key, _, slot, number)| {
                *key == start.key && *slot != start.slot && !stopped(*number)
            });
            if beside.is_some() && !self.laws.regressed {
                return Some(format!(
                    "{} starts on {} beside another",
                    start.key, start.host
                ));
            }
        }
        None
    }

    /// A host's new set is its old one, less what the plan stops, and what it starts.
    fn set_is_not_the_plan(&self, set: &PlacementSet, plan: &Plan) -> Option<String> {
        if self.laws.regressed {
            return None;
        }
        let mut wanted = self
            .laws
            .sets
            .get(&set.host)
            .map(placed)
            .unwrap_or_default();
        for stop in plan.stop.iter().filter(|stop| stop.host == set.host) {
            wanted.retain(|(key, _, _, number)| (key, *number) != (&stop.key, stop.placement));
        }
        for start in plan.start.iter().filter(|start| start.host == set.host) {
            wanted.insert((
                start.key.clone(),
                start.revision,
                start.slot,
                start.placement,
            ));
        }
        let made = placed(set);
        let lost: Vec<_> = wanted.symmetric_difference(&made).take(3).collect();
        (!lost.is_empty()).then(|| format!("a set is not what its plan says: {lost:?}"))
    }
}
