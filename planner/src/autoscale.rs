//! Counts that follow the load: what hosts tell of it, and when a workload's `desired` moves.
//!
//! Owns the load as heartbeats tell it, for every workload with `scale`; how many that asks for is
//! `scaler`'s. All of it is this leader's own and never stored: a new leader starts with none, and lowers
//! nothing until it has heard a whole window.
//!
//! Rule: once a second the newest figures of all hosts are summed up. A host's figures count until its next
//! heartbeat, and while it is alive and has a replica: what has left a host, or fell silent with it, is no load
//! any more, and whoever has it now tells of it. A sum in which a host is missing that may have a part in it is
//! good enough to go up by, and not to go down.
//! Every 2 s the sum is judged; a count that differs is a *wish*, which the workload's next pass carries out
//! with one event, and which is dropped when someone else has changed the count meanwhile.
//!
//! Known limit: work in hand is looked at once a second, and not added up over it.

use std::collections::BTreeMap;
use std::time::Duration;

use wasmorch_api::spec::Scale;
use wasmorch_api::status::{HostState, Load, WorkloadLoad};
use wasmorch_api::{EventKind, HostId, Timestamp, WorkloadKey};

use crate::cluster::{Cluster, Host, Workload};
use crate::planted::{self, Bug};
use crate::queries;
use crate::quota;
use crate::scaler::{Scaler, Standing, Verdict};
use crate::slots::Pass;
use crate::write::EventDraft;

/// Hosts tell their load with every heartbeat.
const SAMPLE_EVERY: Duration = Duration::from_secs(1);
/// A count changes no more often: what follows from a change shows no sooner.
const JUDGE_EVERY: Duration = Duration::from_secs(2);
/// A ready replica's host tells of it by then.
const TOLD_WITHIN: Duration = Duration::from_secs(3);

/// What is known of one workload with `scale`.
#[derive(Debug, Clone, Default)]
pub(crate) struct Scaling {
    scaler: Scaler,
    /// What each host told, and with which of its heartbeats.
    told: BTreeMap<HostId, (Timestamp, Load)>,
    sampled: Timestamp,
    judged: Timestamp,
    /// What was last found.
    pub(crate) verdict: Option<Verdict>,
    /// What the load asks for now.
    wish: Option<Verdict>,
}

impl Scaling {
    /// Somebody else has set the count, or what it goes by.
    fn forget_wish(&mut self) {
        self.wish = None;
        self.verdict = None;
    }
}

impl Cluster {
    /// A workload's wanted revision may have `scale`, or have it no more.
    pub(crate) fn note_scale(&mut self, key: &WorkloadKey) {
        let Some(target) = self.workloads.get(key).and_then(Workload::target) else {
            // Its record came first: what is known of its load stays until the revision is there.
            return;
        };
        if target.spec.scale.is_some() {
            self.scaling.entry(key.clone()).or_default();
        } else {
            self.scaling.remove(key);
        }
    }

    /// The count is another: a wish that was made for the one before is none any more.
    pub(crate) fn note_count(&mut self, key: &WorkloadKey) {
        if let Some(scaling) = self.scaling.get_mut(key) {
            scaling.forget_wish();
        }
    }

    /// A heartbeat's figures; those of the one before are no longer true.
    pub(crate) fn note_loads(&mut self, id: &HostId, loads: Vec<WorkloadLoad>, now: Timestamp) {
        let Some(host) = self.hosts.get_mut(id) else {
            return;
        };
        host.beat = now;
        for one in loads {
            let key = WorkloadKey::new(one.namespace, one.workload);
            let Some(scaling) = self.scaling.get_mut(&key) else {
                continue;
            };
            match scaling.told.get_mut(id) {
                Some(told) => *told = (now, one.load),
                None => _ = scaling.told.insert(id.clone(), (now, one.load)),
            }
        }
    }

    /// Time passes: looks at the load, and judges it. `true`: a count shall be another.
    pub(crate) fn follow_loads(&mut self, now: Timestamp) -> bool {
        let due = |one: &Scaling| now.since(one.sampled) >= SAMPLE_EVERY;
        let due = self.scaling.iter().filter(|(_, one)| due(one));
        let due: Vec<WorkloadKey> = due.map(|(key, _)| key.clone()).collect();
        let mut moved = false;
        for key in due {
            // The others' wishes stay where they are: the quota is asked with them.
            if let Some(mut one) = self.scaling.remove(&key) {
                self.follow_load_of(&key, &mut one, now);
                if one.wish.is_some() {
                    self.agenda.whole(&key);
                    moved = true;
                }
                self.scaling.insert(key, one);
            }
        }
        moved
    }

    fn follow_load_of(&self, key: &WorkloadKey, one: &mut Scaling, now: Timestamp) {
        let Some(workload) = self.workloads.get(key) else {
            return;
        };
        let Some(scale) = scale_of(workload) else {
            return;
        };
        one.sampled = now;
        let (load, whole) = self.sum_up(workload, one, now);
        one.scaler.sample(now, load, whole, scale.window.0);
        let desired = workload.record.desired;
        let none = workload.record.stopped || workload.record.held_bare();
        if none || scale.within(desired) != desired {
            // Into its bounds it comes by itself.
            one.forget_wish();
        } else if now.since(one.judged) >= JUDGE_EVERY {
            one.judged = now;
            one.verdict = self.judge(key, workload, &mut one.scaler, now);
            let moves = |verdict: &Verdict| verdict.from != verdict.to;
            one.wish = one.verdict.clone().filter(moves);
        }
    }

    /// The load of all its replicas, and whether everyone was heard who may have a part in it.
    fn sum_up(&self, workload: &Workload, scaling: &mut Scaling, now: Timestamp) -> (Load, bool) {
        let alive = |host: &Host| host.state == HostState::Alive && host.boot.is_some();
        let counts = |id: &HostId, at: Timestamp| {
            let host = self.hosts.get(id);
            let newest = |host: &Host| host.beat == at && workload.holders.get(host.number) > 0;
            let kept = planted::is(Bug::OldLoadKept);
            host.is_some_and(|host| alive(host) && (newest(host) || kept))
        };
        scaling.told.retain(|id, (at, _)| counts(id, *at));
        let loads = scaling.told.values();
        let load = loads.fold(Load::default(), |sum, (_, load)| sum.plus(*load));
        let missing = |(number, placed): (&_, &crate::cluster::Placed)| {
            if scaling.told.contains_key(&placed.host) {
                return false;
            }
            match self.hosts.get(&placed.host) {
                // What a dead host had is others' now, or nobody's.
                None => false,
                Some(host) if host.state == HostState::Dead => false,
                Some(host) if alive(host) => {
                    let report = workload.reports.get(number);
                    let ready = report.and_then(|report| report.ready_at);
                    ready.is_some_and(|ready| now.since(ready) > TOLD_WITHIN)
                }
                Some(_) => true,
            }
        };
        // While it is held at zero, no load says nothing.
        let whole = !workload.record.stopped && !workload.placements.iter().any(missing);
        (load, whole)
    }

    fn judge(
        &self,
        key: &WorkloadKey,
        workload: &Workload,
        scaler: &mut Scaler,
        now: Timestamp,
    ) -> Option<Verdict> {
        let target = workload.target()?;
        // What has not proven itself yet does not go to zero: nobody would know whether it can.
        let record = &workload.record;
        let proven = record.stable == Some(record.revision) && record.active_rollout().is_none();
        let standing = Standing {
            scale: target.spec.scale.as_ref()?,
            kind: target.kind,
            cpu_millis: target.spec.resources.cpu.0,
            desired: workload.record.desired,
            ready: queries::ready(self, workload),
            placed: workload.unplaced.is_none(),
            may_rest: proven,
            allowed: quota::allows(self, key, &target.spec).unwrap_or(u32::MAX),
        };
        scaler.judge(&standing, now)
    }

    /// What was last found of a workload's load, in words.
    pub(crate) fn scaling_words(&self, key: &WorkloadKey) -> Option<&str> {
        let verdict = self.scaling.get(key)?.verdict.as_ref()?;
        Some(&verdict.reason)
    }

    /// What the load asks for, and is not wanted yet.
    pub(crate) fn wished(&self, key: &WorkloadKey) -> Option<u32> {
        let wish = self.scaling.get(key)?.wish.as_ref()?;
        Some(wish.to)
    }
}

fn scale_of(workload: &Workload) -> Option<&Scale> {
    workload.target()?.spec.scale.as_ref()
}

impl Pass<'_> {
    /// Moves the count to what the load asks for, and within its bounds. The running rollout gets no more
    /// time for it, as it does for a person's: each replica that becomes ready gives it some anyway, and a
    /// load that goes on growing must not keep one that fails from its end.
    pub(crate) fn follow_load(&mut self) {
        let target = self.target.clone();
        let Some(scale) = &target.spec.scale else {
            return;
        };
        if self.record.stopped || self.scope.is_some() {
            return;
        }
        if self.follow_woken() {
            return;
        }
        let from = self.record.desired;
        let scaling = self.cluster.scaling.get(self.key);
        let wish = scaling.and_then(|one| one.wish.as_ref());
        let wish = wish.filter(|wish| wish.from == from);
        let to = scale.within(wish.map_or(from, |wish| wish.to));
        if to == from || to == 0 && self.record.active_rollout().is_some() {
            return;
        }
        let reason = match wish {
            Some(wish) => wish.reason.clone(),
            None => format!(
                "{from} to {to}: scale allows {} to {}",
                scale.min, scale.max
            ),
        };
        self.record.desired = to;
        let mut event = EventDraft::of(self.key, EventKind::Scaled, reason);
        event.detail = wish.map_or_else(
            || serde_json::json!({"from": from, "to": to}),
            |wish| serde_json::to_value(wish).unwrap_or_default(),
        );
        self.plan.events.push(event);
    }
}
