//! The load on workloads with `scale`: how much there is, who has it in hand, and what must follow.
//!
//! Owns which workloads have it. All of it comes from the seed by numbers of its own, so that a world
//! without is the same with and without this file.

use wasmorch_api::spec::Scale;
use wasmorch_api::{HumanDuration, Record, Share, WorkloadKey, WorkloadSpec};
use wasmorch_host::agent::Event as AgentEvent;
use wasmorch_host::runner::protocol::{FromRunner, ReplicaUsage, Usage};

use super::rng::Rng;
use super::runner::There;
use super::world::{EPOCH, World};

/// What one replica should have in hand.
const TARGET: u64 = 10;
/// It bears a tenth more: so many tenths.
const BEARS: u64 = 11;
/// The load stays for so long.
const STEP: u64 = 7_000;
const WINDOW: u64 = 8;
const PANIC: u64 = 3;

/// Loads of one world.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Loads {
    seed: u64,
    /// From here on nothing changes.
    until: Option<u64>,
}

impl Loads {
    pub(crate) fn new(seed: u64) -> Self {
        let until = None;
        Self { seed, until }
    }

    /// The storm is over.
    pub(crate) fn rest(&mut self, now: u64) {
        self.until = Some(now);
    }

    fn rng(self, key: &WorkloadKey, step: u64) -> Rng {
        let name = key.name.as_str().bytes();
        let name = name.fold(0, |sum: u64, byte| sum << 8 | u64::from(byte));
        Rng::new(self.seed.rotate_left(32) ^ name ^ step << 48)
    }

    /// Its bounds, in worlds and for workloads that have them.
    fn scale(self, key: &WorkloadKey) -> Option<Scale> {
        let mut rng = self.rng(key, u64::MAX);
        if !self.seed.is_multiple_of(3) || rng.one_in(3) {
            return None;
        }
        // Drawn apart, so that all else of a world is the same with and without.
        let from_zero = self.rng(key, u64::MAX - 1).one_in(2);
        let min = rng.between(1, 2) as u32;
        Some(Scale {
            min: if from_zero { 0 } else { min },
            max: min + rng.between(1, 3) as u32,
            target: [("concurrency".to_owned(), TARGET as u32)].into(),
            window: HumanDuration::secs(WINDOW),
            panic: HumanDuration::secs(PANIC),
            tolerance: Share(10_000),
        })
    }

    /// How much there is now.
    fn at(self, key: &WorkloadKey, now: u64) -> u64 {
        let now = self.until.unwrap_or(now);
        let mut rng = self.rng(key, (now - EPOCH) / STEP);
        if rng.one_in(4) { 0 } else { rng.between(0, 55) }
    }

    /// Gives a spec that counts replicas bounds instead, if its workload has them.
    pub(crate) fn bound(self, key: &WorkloadKey, spec: &mut WorkloadSpec) {
        if spec.per_host() || spec.replicas.is_none() {
            return;
        }
        let Some(scale) = self.scale(key) else {
            return;
        };
        spec.min_available = spec.min_available.min(scale.min);
        spec.replicas = None;
        spec.scale = Some(scale);
    }
}

/// A count that moved is within the bounds.
pub(crate) fn wrong(
    before: Option<&Record>,
    after: &Record,
    spec: Option<&WorkloadSpec>,
) -> Option<String> {
    let scale = spec?.scale.as_ref()?;
    let moved = before?.desired != after.desired;
    let bounds = scale.min..=scale.max;
    (moved && !bounds.contains(&after.desired)).then(|| {
        let (key, desired) = (after.key(), after.desired);
        format!("{key} shall have {desired}, and its bounds are {bounds:?}")
    })
}

impl World {
    /// Requests that find nothing ready anywhere wake what rests on this host.
    fn requests_wake(&mut self, at: usize) {
        let Some(up) = &self.hosts[at].up else {
            return;
        };
        let rests = up.runner.iter();
        let rests = rests.filter(|(_, run)| run.follows && run.there == There::Prepared);
        let mut rests: Vec<WorkloadKey> = rests.map(|(one, _)| one.workload.clone()).collect();
        rests.dedup();
        for workload in rests {
            let ups = self.hosts.iter().filter_map(|host| host.up.as_ref());
            let mut all = ups.flat_map(|up| &up.runner);
            let serves = all.any(|(one, run)| one.workload == workload && run.ready);
            if !serves && self.loads.at(&workload, self.now) > 0 {
                self.agent_event(
                    at,
                    AgentEvent::Runner(FromRunner::Wake {
                        workload,
                        holder: None,
                    }),
                );
            }
        }
    }

    /// The runner tells what its replicas have in hand: all that are ready share it.
    pub(crate) fn runner_tells_usage(&mut self, at: usize) {
        self.requests_wake(at);
        let mut replicas = Vec::new();
        let Some(up) = &self.hosts[at].up else {
            return;
        };
        let here = { &up.runner }
            .iter()
            .filter(|(_, run)| run.there == There::Running);
        for (replica, run) in here.filter(|(_, run)| run.follows) {
            let key = &replica.workload;
            let ups = self.hosts.iter().filter_map(|host| host.up.as_ref());
            let all = ups.flat_map(|up| &up.runner);
            let all = all.filter(|(one, run)| one.workload == *key && run.ready);
            let mut all: Vec<_> = all.map(|(one, _)| one.id).collect();
            all.sort_unstable();
            let has = |rank: usize| {
                let (load, many) = (self.loads.at(key, self.now), all.len() as u64);
                load / many + u64::from((rank as u64) < load % many)
            };
            let rank = all.iter().position(|one| *one == replica.id);
            replicas.push(ReplicaUsage {
                replica: replica.clone(),
                memory_bytes: 0,
                cpu_millis: 0,
                in_flight: rank.filter(|_| run.ready).map_or(0, has),
                request_millis: 0,
                pending: 0,
                answers: run.asked.answers,
            });
        }
        if !replicas.is_empty() {
            let usage = Usage {
                replicas,
                ..Usage::default()
            };
            self.agent_event(at, AgentEvent::Runner(FromRunner::Usage(usage)));
        }
    }

    /// For so long what was may still move a count.
    pub(crate) fn remembers_load(&self) -> u64 {
        let mut specs = { self.laws.records.keys() }.filter_map(|key| self.laws.spec(key));
        let scales = specs.any(|spec| spec.scale.is_some());
        if scales { (WINDOW + 2) * 1_000 } else { 0 }
    }

    /// The count is not what the load needs, give or take what the tolerance bears. Where no more have a
    /// place it may be lower.
    pub(crate) fn count_trouble(
        &self,
        key: &WorkloadKey,
        record: &Record,
        full: bool,
    ) -> Option<String> {
        let scale = self.laws.spec(key)?.scale.as_ref()?;
        if record.stopped {
            return None;
        }
        let (load, desired) = (self.loads.at(key, self.now), record.desired);
        let needed = load.div_ceil(TARGET) as u32;
        // What has not proven itself does not go to zero.
        let proven = record.stable == Some(record.revision) && record.active_rollout().is_none();
        let least = scale.min.max(u32::from(!proven));
        let needed = needed.clamp(least, scale.max);
        let bears = load * 10 <= u64::from(desired) * TARGET * BEARS;
        let fits = desired == needed || desired < needed && desired >= scale.min && bears;
        // Far fewer are ready than are needed: that is a panic, in which nothing is lowered.
        let panics = self.ready_slots(key, u64::MAX) * 2 <= u64::from(needed);
        let fits = fits || full && (desired < needed || panics);
        let leading = self.controllers.iter().find_map(|one| one.leads());
        // A host tells no load of a revision without `scale`: while a rollout, perhaps a paused one, leaves
        // some of them alone on a host, nobody knows what they carry, and nothing is lowered.
        let scales =
            |revision| { self.laws.spec_of(key, revision) }.is_some_and(|one| one.scale.is_some());
        let untold = self
            .hosts
            .iter()
            .filter_map(|host| host.up.as_ref())
            .any(|up| {
                let runs = up.runner.iter().filter(|(one, _)| one.workload == *key);
                let mut runs = runs.map(|(_, run)| run.revision).peekable();
                runs.peek().is_some() && !runs.any(scales)
            });
        let untold = untold && record.active_rollout().is_some();
        let fits = fits || untold && desired > needed;
        (!fits).then(|| {
            let why = leading.and_then(|one| wasmorch_planner::why::workload(&one.cluster, key));
            let found = why.map(|why| why["scale"].to_string()).unwrap_or_default();
            format!("{key} needs {needed} for {load}, and shall have {desired}: {found}")
        })
    }
}
