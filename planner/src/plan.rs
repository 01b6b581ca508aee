//! A plan: what should change, and the pass over all workloads that makes it.
//!
//! Owns the shape of a plan and how it becomes store writes. Each room below decides its part:
//! `slots` and `rollout` what a workload needs, `place` where, `tables` what gateways must know.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use wasmorch_api::record::Removed;
use wasmorch_api::status::HostRecord;
use wasmorch_api::{
    EventKind, HostId, PlacedSlot, PlacementGroup, PlacementNumber, PlacementSet, Record, Removal,
    RevisionNumber, RouteTable, Slot, Timestamp, WorkloadKey,
};

use crate::agenda::{Dirt, Left};
use crate::check::BrokenRule;
use crate::cluster::{Cluster, Host, only_counted};
use crate::planted::{self, Bug};
use crate::pool::Pool;
use crate::removals::Removals;
use crate::slots;
use crate::tables::{self, Endpoints};
use crate::write::{EventDraft, Write};

/// Everything that should change now. An empty plan means that the cluster is as wanted.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Plan {
    /// New placements.
    pub start: Vec<Start>,
    /// Placements to take out of their host's set.
    pub stop: Vec<Stop>,
    /// Placements to rest from now on, or to run.
    pub shift: Vec<Shift>,
    /// Records that moved.
    pub update: Vec<Record>,
    /// Hosts to remember.
    pub hosts: Vec<HostRecord>,
    /// Endpoint tables that changed.
    pub endpoints: Vec<Endpoints>,
    /// Route tables that changed.
    pub routes: Vec<RouteTable>,
    /// What is kept of removed workloads, after hosts have removed their data.
    pub removed: Vec<Removed>,
    /// Hosts whose set is written anew though no placement of theirs changes.
    pub stale_sets: BTreeSet<HostId>,
    /// What could not be placed all of: `queries::status` says why.
    pub unplaced: Vec<WorkloadKey>,
    /// What to say aloud once it is stored.
    pub events: Vec<EventDraft>,
    /// Plan again then even if nothing happens.
    pub wake_at: Option<Timestamp>,
}

/// One new placement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Start {
    /// The workload.
    pub key: WorkloadKey,
    /// The seat.
    pub slot: Slot,
    /// Its number.
    pub placement: PlacementNumber,
    /// What it runs.
    pub revision: RevisionNumber,
    /// Where.
    pub host: HostId,
    /// It is to rest.
    pub standby: bool,
    /// Arguments in place of the spec's.
    pub args: Option<Arc<Vec<String>>>,
}

/// One placement that is told something else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shift {
    /// The workload.
    pub key: WorkloadKey,
    /// Its number.
    pub placement: PlacementNumber,
    /// Where it is.
    pub host: HostId,
    /// To rest; otherwise to run.
    pub standby: bool,
}

/// One placement that ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stop {
    /// The workload.
    pub key: WorkloadKey,
    /// The seat.
    pub slot: Slot,
    /// Its number.
    pub placement: PlacementNumber,
    /// Where it is.
    pub host: HostId,
    /// Why.
    pub why: StopReason,
}

/// Why a placement ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum StopReason {
    /// More than wanted.
    NotWanted,
    /// Its successor is there, or it makes room for it.
    Replaced,
    /// Its host is dead.
    HostDead,
    /// Its host's starts are used up.
    GivenUp,
    /// The job has ended.
    Ended,
    /// The slot has a better one.
    Duplicate,
    /// It is to leave its host: its successor is there, or it makes room for it.
    Moved,
    /// Its host is drained, and it has no other: one on every host.
    Drained,
    /// It has not left its host by the deadline.
    Overdue,
    /// It makes room for what goes first.
    Preempted,
    /// A canary where none is to be any more.
    Canary,
}

impl StopReason {
    /// For people.
    pub const fn words(self) -> &'static str {
        match self {
            Self::NotWanted => "more than wanted",
            Self::Replaced => "replaced by its successor",
            Self::HostDead => "its host is dead",
            Self::GivenUp => "its host's starts are used up",
            Self::Ended => "the job has ended",
            Self::Duplicate => "its slot has a better one",
            Self::Moved => "moved to another host",
            Self::Drained => "its host is drained",
            Self::Overdue => "its host is drained, and the deadline has passed",
            Self::Preempted => "made room for a workload of higher priority",
            Self::Canary => "no canary is wanted there any more",
        }
    }
}

impl Plan {
    /// Whether nothing would be written.
    pub fn is_empty(&self) -> bool {
        self.start.is_empty()
            && self.stop.is_empty()
            && self.shift.is_empty()
            && self.update.is_empty()
            && self.hosts.is_empty()
            && self.endpoints.is_empty()
            && self.routes.is_empty()
            && self.removed.is_empty()
            && self.stale_sets.is_empty()
    }
}

/// A host's placements by workload and revision.
type Held = Vec<((WorkloadKey, RevisionNumber), Vec<PlacedSlot>)>;

/// A plan's starts and stops by host: looked up, never walked.
struct Changes<'a> {
    started: HashMap<&'a HostId, Vec<&'a Start>>,
    stopped: HashMap<&'a HostId, BTreeSet<(&'a WorkloadKey, PlacementNumber)>>,
    shifted: HashMap<(&'a WorkloadKey, PlacementNumber), bool>,
}

impl<'a> Changes<'a> {
    fn of(plan: &'a Plan) -> Self {
        let (mut started, mut stopped) = (HashMap::new(), HashMap::new());
        for start in &plan.start {
            let starts: &mut Vec<&Start> = started.entry(&start.host).or_default();
            starts.push(start);
        }
        for stop in &plan.stop {
            let stops: &mut BTreeSet<_> = stopped.entry(&stop.host).or_default();
            stops.insert((&stop.key, stop.placement));
        }
        let shifted = plan.shift.iter();
        let shifted = shifted.map(|shift| ((&shift.key, shift.placement), shift.standby));
        Self {
            started,
            stopped,
            shifted: shifted.collect(),
        }
    }
}

impl Plan {
    /// The plan without what breaks these rules, the whole part of each workload in it: it must not keep
    /// everyone else from going on. They stay dirty, and are planned again.
    #[must_use]
    pub fn without(mut self, broken: &[BrokenRule]) -> Self {
        let out = broken.iter().flat_map(|rule| rule.workloads(&self));
        let out: BTreeSet<WorkloadKey> = out.collect();
        let hosts: BTreeSet<&HostId> = broken.iter().filter_map(BrokenRule::host).collect();
        self.stale_sets.retain(|one| !hosts.contains(one));
        self.start.retain(|one| !out.contains(&one.key));
        self.stop.retain(|one| !out.contains(&one.key));
        self.shift.retain(|one| !out.contains(&one.key));
        self.update.retain(|one| !out.contains(&one.key()));
        self.endpoints.retain(|one| !out.contains(&one.key()));
        self.routes.retain(|one| !out.contains(&one.key()));
        let named = |event: &EventDraft| {
            let (namespace, name) = (event.namespace.clone()?, event.workload.clone()?);
            Some(WorkloadKey::new(namespace, name))
        };
        self.events
            .retain(|event| named(event).is_none_or(|key| !out.contains(&key)));
        self
    }

    /// How much it would write for workloads.
    #[must_use]
    pub fn size(&self) -> usize {
        self.decided() + self.endpoints.len() + self.routes.len()
    }

    /// The same without what gateways know.
    fn decided(&self) -> usize {
        self.start.len() + self.stop.len() + self.shift.len() + self.update.len()
    }
}

/// Larger priority first, then by name: who is served first when room is scarce.
type Turn = (Reverse<u32>, WorkloadKey);

impl Cluster {
    /// What should change now. Looks at what has changed since the last plan, and at what waited
    /// for the time that it is now. The state is not touched but for what was last said of unplaced
    /// slots, so that the same trouble is announced once; a plan that is not carried out is made
    /// again.
    pub fn plan(&mut self, now: Timestamp) -> Plan {
        if std::mem::take(&mut self.stale) {
            self.recount();
        }
        self.agenda.doubt_plan();
        let mut plan = Plan::default();
        let hosts = &self.hosts;
        self.to_write
            .retain(|id| hosts.get(id).is_some_and(Host::may_be_written));
        for host in { self.to_write.iter() }.filter_map(|id| hosts.get(id)) {
            if let Some(record) = host.now_drained() {
                let said = format!("{} runs nothing any more", host.info().name);
                let event = EventDraft::cluster(EventKind::HostDrained, said);
                plan.events.push(event.host(&record.host));
                plan.hosts.push(record);
            } else if host.to_record() {
                plan.hosts.push(host.record.clone());
            }
        }
        plan.stale_sets = self.stale_sets();
        plan.removed = self.removals_done();
        let mut pool = std::mem::take(&mut self.pool);
        pool.refresh(&self.hosts);
        let limited = self.namespaces.keys();
        let limited = limited.map(|namespace| (namespace.clone(), self.held_now(namespace)));
        pool.held.extend(limited);
        let workloads = &self.workloads;
        let counts =
            |key: &WorkloadKey| { workloads.get(key) }.is_some_and(|one| one.awaited.is_some());
        let mut work = self.agenda.take(now, counts);
        self.follow_bonds(&mut work);
        let mut turns: BTreeSet<Turn> = work.keys().map(|key| self.turn(key)).collect();
        let mut queued = false;
        while let Some(turn) = turns.pop_first() {
            let Some(dirt) = work.remove(&turn.1) else {
                continue;
            };
            let stops = plan.stop.len();
            self.plan_one(&mut pool, &turn.1, dirt, now, &mut plan);
            if plan.stop.len() > stops {
                // What has been made room with goes later: it is placed elsewhere, or waits.
                for key in pool.preempted.workloads() {
                    let other = self.turn(key);
                    if other > turn {
                        turns.insert(other);
                        work.insert(key.clone(), Dirt::Whole);
                    }
                }
                // What it frees may be what others wait for: all that come later have their turn from now on.
                if !std::mem::replace(&mut queued, true) {
                    for key in self.agenda.waiting() {
                        let other = self.turn(key);
                        if other > turn && turns.insert(other) {
                            work.insert(key.clone(), Dirt::Whole);
                        }
                    }
                }
            }
        }
        self.pool = pool;
        plan.wake_at = self.agenda.next_wake();
        plan
    }

    /// All that the last plan writes is stored and committed: whatever it has planned through, to where
    /// nothing but readiness is awaited, need not be looked at again. Whoever does not say so, as after a plan
    /// that was refused or stored in part, has the next plan look at all of it.
    pub fn carried_out(&mut self) {
        self.agenda.carried_out();
    }

    fn turn(&self, key: &WorkloadKey) -> Turn {
        let workload = self.workloads.get(key);
        let target = workload.and_then(|workload| workload.target());
        let priority = target.map_or(0, |target| target.spec.priority);
        (Reverse(priority), key.clone())
    }

    fn plan_one(
        &mut self,
        pool: &mut Pool,
        key: &WorkloadKey,
        dirt: Dirt,
        now: Timestamp,
        plan: &mut Plan,
    ) {
        let before = (plan.size(), plan.decided());
        let updates = plan.update.len();
        let mut stops = plan.stop.len();
        if pool.preempted.of(key).is_some() {
            // What others have ended of it is not in its tables any more either.
            let mine = |stop: &Stop| stop.why == StopReason::Preempted && stop.key == *key;
            plan.stop.sort_by_key(mine);
            stops = plan.stop.partition_point(|stop| !mine(stop));
        }
        let workload = self.workloads.get_mut(key);
        let left = workload.map(|one| (one.awaited.take(), one.steady));
        let (awaited, steady) = left.unwrap_or_default();
        let partly = awaited.is_some() || steady;
        let passed = slots::plan_workload(self, pool, (key, &dirt), awaited, now, plan);
        // Whose room it has taken is among its stops, and not its own.
        let own = |stop: &Stop| stop.key == *key;
        plan.stop[stops..].sort_by_key(own);
        stops += plan.stop[stops..].partition_point(|stop| !own(stop));
        let awaits = tables::plan_tables(self, (key, &dirt), partly, stops, plan);
        let wrote = plan.size() != before.0;
        let decided = plan.decided() - before.1 - usize::from(self.only_counts(key, updates, plan));
        if partly && matches!(dirt, Dirt::Part { .. }) {
            // Looked at in part only: what the rest awaits has not changed.
        } else if awaits {
            self.stale_tables.insert(key.clone());
        } else {
            self.stale_tables.remove(key);
        }
        let (Some(passed), Some(workload)) = (passed, self.workloads.get_mut(key)) else {
            return;
        };
        for stop in &plan.stop[stops..] {
            workload.told_to_end(stop.placement, stop.why);
        }
        let wakes = (workload.wake, passed.wake);
        workload.wake = passed.wake;
        workload.steady = passed.steady;
        workload.awaited = passed.awaited;
        plan.unplaced
            .extend(passed.unplaced.as_ref().map(|_| key.clone()));
        workload.unplaced = passed.unplaced;
        // What has been ended may make room for its successor, and where workloads depend on each other
        // others look at what it has become.
        let through = passed.through && plan.stop.len() == stops && self.bound.is_empty();
        let looked_at = || if passed.whole { Dirt::Whole } else { dirt };
        let left = match wrote {
            false => Left::InOrder,
            true if passed.whole && through => Left::Through,
            // Only reports say what is ready: no table leads to another.
            true if decided == 0 => Left::Told(looked_at()),
            true => Left::Open(looked_at()),
        };
        self.agenda.planned(key, left, passed.waits, wakes);
    }

    /// Whether all that the plan writes to a record from there on is how far its rollout has come.
    fn only_counts(&self, key: &WorkloadKey, from: usize, plan: &Plan) -> bool {
        let before = self.workloads.get(key).map(|one| &one.record);
        match (before, &plan.update[from..]) {
            (Some(before), [after]) => only_counted(before.clone(), after),
            _ => false,
        }
    }

    /// The store writes of a plan, in the order in which they may take effect: records first, then
    /// what gateways know, then what hosts run: nothing is ended that a table still names.
    pub fn writes(&self, plan: Plan) -> Vec<Write> {
        let mut writes: Vec<Write> = Vec::new();
        let mut touched: BTreeSet<&HostId> = plan
            .start
            .iter()
            .map(|start| &start.host)
            .chain(plan.stop.iter().map(|stop| &stop.host))
            .chain(plan.shift.iter().map(|shift| &shift.host))
            .collect();
        // A host that was removed and returned holds a set that nobody keeps any more: without an
        // explicit one it would run that for ever.
        touched.extend(&plan.stale_sets);
        let removals = self.spared(self.removals());
        let changes = Changes::of(&plan);
        let sets = touched.into_iter();
        let sets = sets.map(|host| Write::Placements(self.set_after(host, &changes, &removals)));
        let sets: Vec<Write> = sets.collect();
        let hosts = plan.hosts.into_iter().map(Box::new);
        writes.extend(hosts.map(Write::Host));
        let records = plan.update.into_iter().map(Box::new);
        writes.extend(records.map(Write::Record));
        let removed = plan.removed.into_iter();
        writes.extend(removed.map(|one| self.write_removed(one)));
        writes.extend(plan.routes.into_iter().map(Write::Routes));
        writes.extend(plan.endpoints.into_iter().map(Write::Endpoints));
        writes.extend(sets);
        writes
    }

    fn set_after(&self, host: &HostId, changes: &Changes<'_>, removals: &Removals) -> PlacementSet {
        let stopped = changes.stopped.get(host);
        let mut placed = self.held(host, |key, slot| {
            let stays = !stopped.is_some_and(|stopped| stopped.contains(&(key, slot.placement)));
            let started = changes.started.get(host).into_iter().flatten();
            stays
                && (!planted::is(Bug::SetsNotComplete) || { started }
                    .any(|start| start.key == *key))
        });
        for ((key, _), slots) in &mut placed {
            for slot in slots {
                let shifted = changes.shifted.get(&(&*key, slot.placement));
                slot.standby = shifted.copied().unwrap_or(slot.standby);
            }
        }
        for start in changes.started.get(host).into_iter().flatten() {
            let slot = PlacedSlot {
                slot: start.slot,
                placement: start.placement,
                standby: start.standby,
                args: start.args.clone(),
            };
            match placed.last_mut() {
                Some(((key, revision), slots))
                    if *key == start.key && *revision == start.revision =>
                {
                    slots.push(slot);
                }
                _ => placed.push(((start.key.clone(), start.revision), vec![slot])),
            }
        }
        self.set(host, placed, removals.of(host))
    }

    /// What a host's set holds, as far as it stays.
    fn held(&self, host: &HostId, stays: impl Fn(&WorkloadKey, &PlacedSlot) -> bool) -> Held {
        let set = self.hosts.get(host).and_then(|host| host.set.as_ref());
        let mut placed = Held::new();
        for group in set.iter().flat_map(|set| &set.groups) {
            let key = group.key();
            let slots = group.slots.iter().filter(|slot| stays(&key, slot));
            let slots: Vec<PlacedSlot> = slots.cloned().collect();
            if !slots.is_empty() {
                placed.push(((key, group.revision), slots));
            }
        }
        placed
    }

    fn set(&self, host: &HostId, mut placed: Held, removals: Vec<Removal>) -> PlacementSet {
        placed.sort_by(|(a, _), (b, _)| a.cmp(b));
        placed.dedup_by(|(next, more), (first, slots)| {
            let same = next == first;
            if same {
                slots.append(more);
            }
            same
        });
        let groups = placed
            .into_iter()
            .map(|((key, revision), slots)| PlacementGroup {
                namespace: key.namespace,
                workload: key.name,
                revision,
                slots,
            })
            .collect();
        PlacementSet {
            cluster: self.cluster.clone(),
            term: self.term,
            leader: self.leader.clone(),
            host: host.clone(),
            groups,
            removals,
        }
    }
}
