//! Quotas: what all workloads of a namespace may have together.
//!
//! Owns what counts against one, and how it is told that it is used up.
//!
//! Rule: each slot counts once, with what its newest placement books (`resources.reserve`) and as one
//! replica; a successor in a rollout does not count beside the one that it replaces, and what drains
//! does not count. A deploy, a scale or a start that asks for more than the quota is *refused*: whoever asks
//! is there to be told, and nothing is half done. What grows by itself (`per-host` with the hosts,
//! cron with its schedule) or meets a quota that was lowered stays *unplaced*, with the reason;
//! what runs goes on, and is not placed again once it has ended.
//!
//! What each namespace holds is kept as sets change (`Cluster::held`), and counted on while a plan is made.

use std::collections::BTreeMap;

use wasmorch_api::record::{NamespaceRecord, Quota};
use wasmorch_api::{
    ApiError, ByteSize, Cpu, ErrorCode, Kind, Name, PlacementNumber, Record, Slot, WorkloadKey,
    WorkloadSpec,
};

use crate::booked::Booked;
use crate::cluster::{Cluster, Workload};
use crate::place::{Effort, Removed};
use crate::planted::{self, Bug};
use crate::slots::Pass;

/// What a quota allows; a dimension that it leaves out is not limited.
pub(crate) fn limit(quota: &Quota) -> Booked {
    Booked {
        memory_bytes: quota.memory_bytes.unwrap_or(u64::MAX),
        cpu_millis: quota.cpu_millis.unwrap_or(u64::MAX),
        replicas: quota.replicas.unwrap_or(u64::MAX),
        set_bytes: u64::MAX,
    }
}

/// The first dimension in which `after` is more than before and more than the limit: its name, and by
/// how much.
fn beyond(before: Booked, after: Booked, limit: Booked) -> Option<(&'static str, u64)> {
    let grows = after.minus(before);
    let dimensions = after.dimensions(grows, limit).into_iter();
    let over = |(dimension, after, grows, limit): (&'static str, u64, u64, u64)| {
        (grows > 0 && after > limit).then(|| (dimension, after - limit))
    };
    { dimensions }.find_map(over)
}

impl Cluster {
    /// A namespace's record.
    pub fn namespace(&self, namespace: &Name) -> Option<&NamespaceRecord> {
        self.namespaces.get(namespace)
    }

    /// The workloads of a namespace.
    fn in_namespace(&self, namespace: &Name) -> impl Iterator<Item = (&WorkloadKey, &Workload)> {
        let first = WorkloadKey::new(namespace.clone(), Name::default());
        let rest = self.workloads.range(first..);
        let of = namespace.clone();
        rest.take_while(move |(key, _)| key.namespace == of)
    }

    /// What a namespace's workloads hold now.
    pub(crate) fn held_now(&self, namespace: &Name) -> Booked {
        self.held.get(namespace).copied().unwrap_or_default()
    }

    /// What is counted of each namespace, counted anew.
    pub(crate) fn recount_held(&mut self) {
        self.held.clear();
        for (key, workload) in &self.workloads {
            let mut last = None;
            for (slot, _) in &workload.slots {
                if last.replace(*slot) != Some(*slot) {
                    let counts = workload.slot_counts(key, *slot);
                    note_held(&mut self.held, &key.namespace, Booked::default(), counts);
                }
            }
        }
    }
}

impl Workload {
    /// What a slot counts for: what its newest placement books.
    pub(crate) fn slot_counts(&self, key: &WorkloadKey, slot: Slot) -> Booked {
        let newest = self.numbers_of(slot).last();
        let placed = newest.and_then(|number| self.placements.get(&number));
        let revision = placed.and_then(|one| Some((one, self.revisions.get(&one.revision)?)));
        revision.map_or_else(Booked::default, |(placed, revision)| {
            Booked::of(key, &revision.spec, placed.args.as_deref())
        })
    }
}

/// A slot of a namespace counts for something else than before.
pub(crate) fn note_held(
    held: &mut BTreeMap<Name, Booked>,
    namespace: &Name,
    before: Booked,
    after: Booked,
) {
    let Some(all) = held.get_mut(namespace) else {
        held.insert(namespace.clone(), after);
        return;
    };
    *all = all.minus(before).plus(after);
    if *all == Booked::default() {
        held.remove(namespace);
    }
}

impl Pass<'_> {
    /// What the slot counts for.
    fn slot_counts(&self, slot: Slot) -> Booked {
        let all = (slot, PlacementNumber(0))..=(slot, PlacementNumber(u64::MAX));
        let other = self.others.range(all).next_back().map(|(_, seat)| seat);
        let newest = self.seats_of(slot).last();
        let newest = { newest.into_iter().chain(other) }.max_by_key(|seat| seat.number);
        let booked = newest.and_then(|seat| {
            let revision = self.workload.revisions.get(&seat.placed.revision)?;
            let args = seat.placed.args.as_deref();
            Some(Booked::of(self.key, &revision.spec, args))
        });
        booked.unwrap_or_default()
    }

    /// Whether the namespace's quota has room for one more in this slot; what is lacking is noted.
    pub(crate) fn within_quota(&mut self, slot: Slot, wants: Booked) -> bool {
        let namespace = &self.key.namespace;
        let Some(known) = self.cluster.namespaces.get(namespace) else {
            return true;
        };
        if planted::is(Bug::QuotaIgnored) {
            return true;
        }
        let held = self.pool.held.get(namespace).copied().unwrap_or_default();
        let after = held.minus(self.slot_counts(slot)).plus(wants);
        let lacks = beyond(held, after, limit(&known.quota));
        if let Some(lacks) = lacks {
            self.over_quota = Some(lacks);
        }
        lacks.is_none()
    }

    /// Whatever is done next to a slot changes what the namespace holds; `change` does it.
    pub(crate) fn counting(&mut self, slot: Slot, change: impl FnOnce(&mut Self)) {
        if !self.pool.held.contains_key(&self.key.namespace) {
            // It has no quota.
            change(self);
            return;
        }
        let before = self.slot_counts(slot);
        change(self);
        let after = self.slot_counts(slot);
        if let Some(held) = self.pool.held.get_mut(&self.key.namespace) {
            *held = held.minus(before).plus(after);
        }
    }

    /// Why nothing more is placed, for every host.
    pub(crate) fn removed_by_quota(&self) -> Option<Removed> {
        let (dimension, lacks) = self.over_quota?;
        let known = self.cluster.namespaces.get(&self.key.namespace)?;
        let namespace = &self.key.namespace;
        let raise = raise(namespace, &known.quota, dimension, lacks);
        Some(Removed {
            filter: format!("quota of namespace {namespace} ({dimension})"),
            lacking: Some((dimension, lacks)),
            effort: (Effort::Command, lacks),
            fix: format!(
                "raise it with `{raise}`, or free {}",
                amount(dimension, lacks)
            ),
        })
    }
}

fn amount(dimension: &str, many: u64) -> String {
    match dimension {
        "memory" => ByteSize(many).approximate(),
        "cpu" => format!("{} of cpu", Cpu(many)),
        _ => format!("{many} replicas"),
    }
}

/// The command that lets it pass.
fn raise(namespace: &Name, quota: &Quota, dimension: &str, lacks: u64) -> String {
    let flag = match dimension {
        "memory" => format!(
            "--memory {}",
            ByteSize(quota.memory_bytes.unwrap_or(0).saturating_add(lacks))
        ),
        "cpu" => format!(
            "--cpu {}",
            Cpu(quota.cpu_millis.unwrap_or(0).saturating_add(lacks))
        ),
        _ => format!(
            "--replicas {}",
            quota.replicas.unwrap_or(0).saturating_add(lacks)
        ),
    };
    format!("wasmorch quota -n {namespace} {flag}")
}

/// What a workload asks for with a count, by the revision that its last deploy asked for.
fn asks(record: &Record, (spec, kind): (&WorkloadSpec, Kind), desired: u32) -> Booked {
    let one = Booked::of(&record.key(), spec, None);
    let seats = u64::from(spec.job.seats());
    let many = match kind {
        _ if record.stopped => 0,
        // Its run begins with it.
        Kind::Job if record.held().is_some() => seats,
        // What has run to its end asks for nothing; a cron workload's next run comes by itself.
        Kind::Job => record.runs().map(|run| u64::from(run.wanted())).sum(),
        Kind::Cron => seats,
        // What rests holds its place.
        _ if desired == 0 => u64::from(record.seats(spec)),
        _ => u64::from(desired),
    };
    Booked {
        memory_bytes: one.memory_bytes.saturating_mul(many),
        cpu_millis: one.cpu_millis.saturating_mul(many),
        replicas: many,
        set_bytes: 0,
    }
}

/// How many replicas of a workload its namespace's quota allows beside what all others ask for, and are
/// about to. `None`: there is no quota.
pub(crate) fn allows(cluster: &Cluster, key: &WorkloadKey, spec: &WorkloadSpec) -> Option<u32> {
    let known = cluster.namespaces.get(&key.namespace)?;
    let mut held = Booked::default();
    for (other, workload) in cluster.in_namespace(&key.namespace) {
        let Some(target) = workload.target().filter(|_| other != key) else {
            continue;
        };
        let record = &workload.record;
        let wished = cluster.wished(other).unwrap_or(0);
        let desired = record.desired.max(wished);
        held = held.plus(asks(record, (&target.spec, record.kind), desired));
    }
    let one = Booked {
        replicas: 1,
        set_bytes: 0,
        ..Booked::of(key, spec, None)
    };
    let limit = limit(&known.quota);
    let fits = { limit.minus(held) }.dimensions(one, limit);
    let fits = fits.into_iter().filter(|(_, _, one, _)| *one > 0);
    let fits = fits.map(|(_, free, one, _)| free / one).min()?;
    Some(u32::try_from(fits).unwrap_or(u32::MAX))
}

/// Refuses what would ask for more than the namespace's quota; what asks for no more than before passes.
pub(crate) fn refuse_beyond(
    cluster: &Cluster,
    namespace: &Name,
    changed: &[(Record, &WorkloadSpec, Kind)],
) -> Result<(), ApiError> {
    let Some(known) = cluster.namespaces.get(namespace) else {
        return Ok(());
    };
    let (mut before, mut after) = (Booked::default(), Booked::default());
    for (key, workload) in cluster.in_namespace(namespace) {
        let Some(target) = workload.asked() else {
            continue;
        };
        let record = &workload.record;
        let asked = asks(record, (&target.spec, target.kind), record.desired_asked());
        before = before.plus(asked);
        if !changed.iter().any(|(record, ..)| record.name == key.name) {
            after = after.plus(asked);
        }
    }
    for (record, spec, kind) in changed {
        after = after.plus(asks(record, (spec, *kind), record.desired_asked()));
    }
    let limit = limit(&known.quota);
    let Some((dimension, lacks)) = beyond(before, after, limit) else {
        return Ok(());
    };
    let of = |booked: Booked| {
        let mut dimensions = booked.dimensions(booked, booked).into_iter();
        let found = dimensions.find(|(name, ..)| *name == dimension);
        amount(dimension, found.map_or(0, |(_, value, ..)| value))
    };
    let raise = raise(namespace, &known.quota, dimension, lacks);
    Err(ApiError::new(
        ErrorCode::Denied,
        format!("namespace {namespace} would go beyond its quota"),
        format!(
            "{} would be asked for in all, {} are allowed",
            of(after),
            of(limit)
        ),
        format!(
            "raise it with `{raise}`, or ask for fewer replicas or a smaller resources.reserve"
        ),
    ))
}
