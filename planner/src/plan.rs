//! A plan: what should change, and the pass over all workloads that makes it.
//!
//! Owns the shape of a plan and how it becomes store writes. Each room below decides its part:
//! `slots` and `rollout` what a workload needs, `place` where, `tables` what gateways must know.

use std::collections::{BTreeMap, BTreeSet};

use wasmorch_api::messages::Unplaced;
use wasmorch_api::status::HostRecord;
use wasmorch_api::{
    EndpointTable, HostId, PlacedSlot, PlacementGroup, PlacementNumber, PlacementSet, Record,
    RevisionNumber, RouteTable, Slot, Timestamp, WorkloadKey,
};

use crate::cluster::{Cluster, Placed};
use crate::place::Books;
use crate::planted::{self, Bug};
use crate::slots;
use crate::tables;
use crate::write::{EventDraft, Write};

/// Everything that should change now. An empty plan means that the cluster is as wanted.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Plan {
    /// New placements.
    pub start: Vec<Start>,
    /// Placements to take out of their host's set.
    pub stop: Vec<Stop>,
    /// Records that moved.
    pub update: Vec<Record>,
    /// Hosts to remember.
    pub hosts: Vec<HostRecord>,
    /// Endpoint tables that changed.
    pub endpoints: Vec<EndpointTable>,
    /// Route tables that changed.
    pub routes: Vec<RouteTable>,
    /// Hosts that hold a set which nobody keeps any more: each gets an explicit one.
    pub forgotten: usize,
    /// What could not be placed, why, and what would fix it.
    pub unplaced: Vec<Unplaced>,
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
    /// Arguments in place of the spec's.
    pub args: Option<Vec<String>>,
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
}

impl Plan {
    /// Whether nothing would be written.
    pub fn is_empty(&self) -> bool {
        self.start.is_empty()
            && self.stop.is_empty()
            && self.update.is_empty()
            && self.hosts.is_empty()
            && self.endpoints.is_empty()
            && self.routes.is_empty()
            && self.forgotten == 0
    }

    pub(crate) fn wake(&mut self, at: Timestamp) {
        self.wake_at = Some(self.wake_at.map_or(at, |earlier| earlier.min(at)));
    }
}

impl Cluster {
    /// What should change now. The state is not touched but for what was last said of unplaced
    /// slots, so that the same trouble is announced once.
    pub fn plan(&mut self, now: Timestamp) -> Plan {
        let mut plan = Plan::default();
        for host in self.hosts.values() {
            if !host.stored && host.boot.is_some() {
                plan.hosts.push(host.record.clone());
            }
        }
        plan.forgotten = self
            .hosts
            .values()
            .filter(|host| host.holds_unkept())
            .count();
        let mut books = Books::of(self);
        for key in self.by_priority() {
            slots::plan_workload(self, &mut books, &key, now, &mut plan);
        }
        tables::plan_tables(self, &mut plan);
        self.announce_unplaced(&mut plan);
        plan
    }

    /// Larger priority first, then by name: who is served first when room is scarce.
    fn by_priority(&self) -> Vec<WorkloadKey> {
        let mut keys: Vec<_> = self
            .workloads
            .iter()
            .map(|(key, workload)| {
                let priority = workload.target().map_or(0, |target| target.spec.priority);
                (std::cmp::Reverse(priority), key.clone())
            })
            .collect();
        keys.sort();
        keys.into_iter().map(|(_, key)| key).collect()
    }

    fn announce_unplaced(&mut self, plan: &mut Plan) {
        let now_unplaced: BTreeMap<&str, &Unplaced> = plan
            .unplaced
            .iter()
            .map(|one| (one.workload.as_str(), one))
            .collect();
        for (key, workload) in &mut self.workloads {
            let found = now_unplaced
                .get(key.to_string().as_str())
                .map(|one| (*one).clone());
            if found != workload.unplaced {
                if let Some(trouble) = &found {
                    let reason = crate::explain::one_line(trouble);
                    let mut event = EventDraft::of(key, wasmorch_api::EventKind::Unplaced, reason);
                    event.detail = serde_json::to_value(trouble).unwrap_or_default();
                    plan.events.push(event);
                }
                workload.unplaced = found;
            }
        }
    }

    /// The store writes of a plan, in the order in which they may take effect: records first, then
    /// what hosts run, then what gateways know.
    pub fn writes(&self, plan: &Plan) -> Vec<Write> {
        let mut writes = Vec::new();
        writes.extend(
            plan.hosts
                .iter()
                .cloned()
                .map(|host| Write::Host(Box::new(host))),
        );
        writes.extend(
            plan.update
                .iter()
                .cloned()
                .map(|record| Write::Record(Box::new(record))),
        );
        let mut touched: BTreeSet<&HostId> = plan
            .start
            .iter()
            .map(|start| &start.host)
            .chain(plan.stop.iter().map(|stop| &stop.host))
            .collect();
        // A host that was removed and returned holds a set that nobody keeps any more: without an
        // explicit one it would run that for ever.
        let forgotten = self.hosts.iter().filter(|(_, host)| host.holds_unkept());
        touched.extend(forgotten.map(|(id, _)| id));
        for host in touched {
            writes.push(Write::Placements(self.set_after(host, plan)));
        }
        writes.extend(plan.routes.iter().cloned().map(Write::Routes));
        writes.extend(plan.endpoints.iter().cloned().map(Write::Endpoints));
        writes
    }

    fn set_after(&self, host: &HostId, plan: &Plan) -> PlacementSet {
        let stopped: BTreeSet<(&WorkloadKey, PlacementNumber)> = plan
            .stop
            .iter()
            .map(|stop| (&stop.key, stop.placement))
            .collect();
        let mut placed: BTreeMap<(WorkloadKey, RevisionNumber), Vec<PlacedSlot>> = BTreeMap::new();
        let touched = |key: &WorkloadKey| {
            !planted::is(Bug::SetsNotComplete) || plan.start.iter().any(|start| start.key == *key)
        };
        for (key, workload) in self.workloads.iter().filter(|(key, _)| touched(key)) {
            for (number, seat) in &workload.placements {
                if seat.host == *host && !stopped.contains(&(key, *number)) {
                    placed
                        .entry((key.clone(), seat.revision))
                        .or_default()
                        .push(PlacedSlot {
                            slot: seat.slot,
                            placement: *number,
                            args: seat.args.clone(),
                        });
                }
            }
        }
        for start in plan.start.iter().filter(|start| start.host == *host) {
            placed
                .entry((start.key.clone(), start.revision))
                .or_default()
                .push(PlacedSlot {
                    slot: start.slot,
                    placement: start.placement,
                    args: start.args.clone(),
                });
        }
        self.set(host, placed)
    }

    /// A host's set without one workload, for `rm`.
    pub(crate) fn set_without(&self, host: &HostId, gone: &WorkloadKey) -> PlacementSet {
        let mut placed: BTreeMap<(WorkloadKey, RevisionNumber), Vec<PlacedSlot>> = BTreeMap::new();
        for (key, workload) in self.workloads.iter().filter(|(key, _)| *key != gone) {
            for (
                number,
                Placed {
                    slot,
                    revision,
                    args,
                    ..
                },
            ) in workload
                .placements
                .iter()
                .filter(|(_, seat)| seat.host == *host)
            {
                placed
                    .entry((key.clone(), *revision))
                    .or_default()
                    .push(PlacedSlot {
                        slot: *slot,
                        placement: *number,
                        args: args.clone(),
                    });
            }
        }
        self.set(host, placed)
    }

    fn set(
        &self,
        host: &HostId,
        placed: BTreeMap<(WorkloadKey, RevisionNumber), Vec<PlacedSlot>>,
    ) -> PlacementSet {
        PlacementSet {
            cluster: self.cluster.clone(),
            term: self.term,
            leader: self.leader.clone(),
            host: host.clone(),
            groups: placed
                .into_iter()
                .map(|((key, revision), slots)| PlacementGroup {
                    namespace: key.namespace,
                    workload: key.name,
                    revision,
                    slots,
                })
                .collect(),
        }
    }
}
