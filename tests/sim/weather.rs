//! What one seed is like: its size, its pace, and which faults it knows.
//!
//! Swarm testing: a fault that is possible in every run hides those that need its absence, so each
//! seed enables a random part of them, and some none at all.

use super::rng::Rng;

/// The faults that come and go by themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// A host is cut off from NATS, both ways or one way.
    PartitionHost,
    /// A controller is.
    PartitionController,
    /// A host's daemon is killed and comes back with its disk.
    CrashHost,
    /// A host burns down; another takes its place with an empty disk, or none does.
    LoseHost,
    /// A host's runner dies with all it ran.
    CrashRunner,
    /// A second daemon starts on a copy of a host's data folder.
    TwinHost,
    /// A host's clock is set forward, or back.
    JumpClock,
    /// A controller is killed and starts again.
    CrashController,
    /// A controller stands still and goes on as if nothing had been.
    FreezeController,
    /// The store answers nothing.
    StopStore,
    /// The store is put back to an older copy.
    RegressStore,
    /// A set of a deposed leader reaches a host past the store.
    ForgeSet,
}

const ALL: [Fault; 11] = [
    Fault::PartitionHost,
    Fault::PartitionController,
    Fault::CrashHost,
    Fault::LoseHost,
    Fault::CrashRunner,
    Fault::TwinHost,
    Fault::JumpClock,
    Fault::CrashController,
    Fault::FreezeController,
    Fault::StopStore,
    Fault::ForgeSet,
];

/// Everything that is fixed for one seed.
#[derive(Debug, Clone)]
pub(crate) struct Weather {
    pub(crate) hosts: usize,
    pub(crate) controllers: usize,
    pub(crate) workloads: usize,
    /// How long faults come and go.
    pub(crate) storm_ms: u64,
    pub(crate) faults: Vec<Fault>,
    /// Between two faults, at most.
    pub(crate) fault_every_ms: u64,
    /// Messages in a thousand that are lost.
    pub(crate) lost: u64,
    pub(crate) doubled: u64,
    /// In a thousand that take long.
    pub(crate) late: u64,
    pub(crate) late_ms: u64,
    /// Answers of the store in a thousand that come from a server that lags.
    pub(crate) stale: u64,
    /// Requests to the store in a thousand that are lost, or their answers.
    pub(crate) store_lost: u64,
    /// Crashes in a thousand effects of a host.
    pub(crate) crash_in_effects: u64,
    /// Starts in a thousand that fail.
    pub(crate) flaky: u64,
    /// Artifacts in a thousand that never work.
    pub(crate) bad_artifacts: u64,
    /// One of so many hosts is slow.
    pub(crate) slow_hosts: u64,
    /// Writes in one batch, at most.
    pub(crate) batch_max: usize,
    /// Replicas that a host has room for.
    pub(crate) room: u64,
    /// Between two calls of the user, at most.
    pub(crate) call_every_ms: u64,
    /// No fault of any kind: what is lost, the planner lost.
    pub(crate) calm: bool,
}

impl Weather {
    pub(crate) fn of(rng: &mut Rng) -> Self {
        let calm = rng.one_in(10);
        let mut faults: Vec<Fault> = ALL.iter().copied().filter(|_| rng.one_in(3)).collect();
        if rng.one_in(8) {
            faults.push(Fault::RegressStore);
        }
        let mut some = |one_in: u64, most: u64| {
            if rng.one_in(one_in) {
                rng.between(1, most)
            } else {
                0
            }
        };
        let mut weather = Self {
            lost: some(2, 150),
            doubled: some(3, 150),
            late: some(2, 200),
            stale: some(3, 300),
            store_lost: some(4, 60),
            crash_in_effects: some(5, 20),
            flaky: some(3, 300),
            bad_artifacts: some(2, 400),
            slow_hosts: some(3, 4),
            late_ms: 0,
            hosts: 0,
            controllers: 0,
            workloads: 0,
            storm_ms: 0,
            fault_every_ms: 0,
            batch_max: 1000,
            room: 12,
            call_every_ms: 0,
            calm,
            faults,
        };
        weather.late_ms = *rng.pick(&[50, 300, 1_500, 4_000]);
        weather.hosts = rng.between(1, 6) as usize;
        weather.controllers = rng.between(1, 3) as usize;
        weather.workloads = rng.between(1, 4) as usize;
        weather.storm_ms = rng.between(10, 45) * 1_000;
        weather.fault_every_ms = rng.between(1_000, 10_000);
        weather.call_every_ms = rng.between(1_000, 8_000);
        weather.room = *rng.pick(&[12, 12, 12, 5, 3]);
        // Half of a plan is stored, and another leader reads it.
        if rng.below(5) < 2 {
            weather.batch_max = rng.between(1, 3) as usize;
        }
        if calm {
            weather.calm_down();
            weather.faults.clear();
            weather.bad_artifacts = 0;
        }
        weather
    }

    /// The storm is over.
    pub(crate) fn calm_down(&mut self) {
        self.lost = 0;
        self.doubled = 0;
        self.late = 0;
        self.stale = 0;
        self.store_lost = 0;
        self.crash_in_effects = 0;
        self.flaky = 0;
        self.slow_hosts = 0;
    }

    pub(crate) fn regresses(&self) -> bool {
        self.faults.contains(&Fault::RegressStore)
    }
}
