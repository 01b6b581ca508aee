//! Runs: jobs with several completions, and any history of runs.

use wasmorch_api::record::Run;
use wasmorch_api::spec::Overlap;
use wasmorch_api::{EventKind, HumanDuration};

use super::*;

fn job(completions: u32, parallelism: u32, attempts: u32) -> WorkloadSpec {
    let mut spec = WorkloadSpec {
        replicas: None,
        ..spec("1", 1)
    };
    spec.kind = Some(Kind::Job);
    spec.job.completions = completions;
    spec.job.parallelism = parallelism;
    spec.job.attempts = attempts;
    spec
}

pub(super) fn cron(schedule: &str, overlap: Overlap, catch_up: u64) -> WorkloadSpec {
    WorkloadSpec {
        kind: Some(Kind::Cron),
        schedule: Some(schedule.into()),
        overlap: Some(overlap),
        catch_up: Some(HumanDuration::secs(catch_up)),
        ..job(1, 1, 1)
    }
}

impl World {
    pub(super) fn run_of(&self) -> Run {
        let workload = self.cluster.workload(&web()).unwrap();
        workload.record.run.clone().unwrap()
    }

    pub(super) fn running(&self) -> usize {
        self.cluster.workload(&web()).unwrap().record.runs().count()
    }

    pub(super) fn starts(&self) -> usize {
        self.plans.iter().map(|plan| plan.start.len()).sum()
    }

    pub(super) fn told(&self, kind: EventKind) -> Vec<String> {
        let events = self.plans.iter().flat_map(|plan| &plan.events);
        let events = events.filter(|event| event.kind == kind);
        events.map(|event| event.reason.clone()).collect()
    }

    /// So many times of the schedule have been begun or left out.
    pub(super) fn begun(&self) -> usize {
        self.told(EventKind::Started).len()
    }

    /// Time passes for everyone, in steps that no host dies of.
    pub(super) fn pass(&mut self, seconds: u64) {
        let until = self.now.0 + seconds * 1_000;
        while self.now.0 < until {
            self.round();
        }
    }

    /// Nobody leads for a while, and then another does.
    pub(super) fn interregnum(&mut self, seconds: u64) {
        self.now.0 += seconds * 1_000;
        self.new_leader();
        self.run(3);
    }
}

/// 12:00:00 of a day.
pub(super) const NOON: Timestamp = Timestamp(1_764_072_000_000);

pub(super) fn noon(hosts: usize) -> World {
    let mut world = World::new(hosts);
    world.now = NOON;
    world.cluster.observe(Observation::Tick, world.now);
    world.run(1);
    world
}

#[test]
fn a_job_brings_as_many_completions_as_wanted() {
    let mut world = World::new(3);
    world.fates.insert(1, Fate::Unready);
    world.deploy(job(7, 3, 1), Kind::Job);
    world.run(4);
    let workload = world.cluster.workload(&web()).unwrap();
    assert_eq!(workload.placements.len(), 3, "parallelism");
    assert_eq!(world.state(), WorkloadState::Pending);
    world.fates.insert(1, Fate::Completes);
    world.run(8);
    assert_eq!(
        (world.state(), world.starts()),
        (WorkloadState::Completed, 7)
    );
    assert_eq!(world.run_of().completed, 7);
    assert_eq!(world.told(EventKind::JobCompleted), ["7 of 7 completions"]);
    assert!(world.run_of().counted.is_empty() || world.plan().is_empty());
    // Again, and only once at a time.
    world.fates.insert(1, Fate::Unready);
    world.change(commands::start, None);
    world.run(2);
    let refused = commands::start(&world.cluster, &request(), &world.call()).unwrap_err();
    assert_eq!(refused.what, "web is still running");
    world.fates.insert(1, Fate::Completes);
    world.run(8);
    assert_eq!((world.run_of().number, world.starts()), (2, 14));
}

fn request() -> ChangeRequest {
    ChangeRequest {
        workload: name("web"),
        desired: None,
        args: None,
        data: false,
        request_id: None,
        by: None,
    }
}

#[test]
fn a_completion_is_tried_on_other_hosts_until_its_attempts_are_used_up() {
    for (attempts, hosts) in [(1, 1), (3, 1), (4, 2), (7, 3)] {
        let mut world = World::new(3);
        world.fates.insert(1, Fate::GivesUp);
        world.deploy(job(2, 1, attempts), Kind::Job);
        world.run(12);
        assert_eq!(world.state(), WorkloadState::Failed, "{attempts}");
        // Three starts on each host.
        let used: BTreeSet<HostId> = { world.plans.iter() }
            .flat_map(|plan| &plan.start)
            .map(|start| start.host.clone())
            .collect();
        assert_eq!((world.starts(), used.len()), (hosts, hosts), "{attempts}");
        assert_eq!(
            world.told(EventKind::JobFailed),
            ["after 0 of 2 completions: GivesUp"]
        );
    }
    let mut world = World::new(3);
    world.fates.insert(1, Fate::GivesUp);
    let mut never = job(1, 1, 5);
    never.restart.policy = Some(wasmorch_api::spec::RestartPolicy::Never);
    world.deploy(never, Kind::Job);
    world.run(8);
    assert_eq!((world.state(), world.starts()), (WorkloadState::Failed, 1));
}

#[test]
fn a_failed_run_ends_whatever_is_left_of_it() {
    let mut world = World::new(3);
    world.fates.insert(1, Fate::Unready);
    world.deploy(job(5, 3, 1), Kind::Job);
    world.run(3);
    world.fates.insert(1, Fate::GivesUp);
    world.run(4);
    assert_eq!(world.state(), WorkloadState::Failed);
    assert!(
        world
            .cluster
            .workload(&web())
            .unwrap()
            .placements
            .is_empty()
    );
}

#[test]
fn a_lost_host_is_nobodys_attempt() {
    let mut world = World::new(3);
    world.fates.insert(1, Fate::Unready);
    world.deploy(job(2, 2, 1), Kind::Job);
    world.run(3);
    let lost = world
        .plans
        .iter()
        .flat_map(|plan| &plan.start)
        .next()
        .unwrap()
        .host
        .clone();
    world.silent.insert(lost);
    world.run(14);
    assert_eq!(world.starts(), 3, "replaced");
    world.fates.insert(1, Fate::Completes);
    world.run(4);
    assert_eq!(
        (world.state(), world.run_of().completed),
        (WorkloadState::Completed, 2)
    );
}

#[test]
fn a_completion_is_counted_once_though_its_batch_was_cut() {
    let mut world = World::new(2);
    world.fates.insert(1, Fate::Completes);
    world.deploy(job(3, 1, 1), Kind::Job);
    world.run(2);
    // The record reaches the store, the set does not, and another leader follows.
    for id in [host(1), host(2)] {
        world.heartbeat(&id);
        world.report(&id);
    }
    let plan = world.cluster.plan(world.now);
    let writes = world.cluster.writes(plan);
    let records = writes
        .into_iter()
        .filter(|write| matches!(write, Write::Record(_)));
    let records: Vec<Write> = records.collect();
    assert_eq!(records.len(), 1);
    world.store(records);
    let counted = world.run_of().completed;
    assert!(counted > 0);
    world.new_leader();
    world.run(1);
    assert_eq!(world.run_of().completed, counted);
    world.run(12);
    assert_eq!(world.run_of().completed, 3);
    let ended: BTreeSet<PlacementNumber> = { world.plans.iter().flat_map(|plan| &plan.stop) }
        .filter(|stop| stop.why == wasmorch_planner::StopReason::Ended)
        .map(|stop| stop.placement)
        .collect();
    assert_eq!(ended.len(), 3, "three replicas have ended");
}

#[test]
fn a_deploy_leaves_a_running_run_and_its_times_alone() {
    let mut world = noon(1);
    world.fates.insert(1, Fate::Unready);
    world.deploy(cron("*/5 * * * *", Overlap::Skip, 60), Kind::Cron);
    world.pass(302);
    let before = world.cluster.workload(&web()).unwrap().placements.clone();
    assert_eq!(before.len(), 1);
    let mut other = cron("*/5 * * * *", Overlap::Skip, 60);
    other.artifact = Some(Digest::of(b"2"));
    world.fates.insert(2, Fate::Completes);
    world.deploy(other, Kind::Cron);
    world.run(4);
    assert_eq!(world.cluster.workload(&web()).unwrap().placements, before);
    assert!(
        world
            .cluster
            .workload(&web())
            .unwrap()
            .record
            .rollout
            .is_none()
    );
    world.fates.insert(1, Fate::Completes);
    world.pass(300);
    assert_eq!(world.run_of().number, 2);
    let last = world
        .plans
        .iter()
        .flat_map(|plan| &plan.start)
        .last()
        .unwrap();
    assert_eq!(last.revision.0, 2);
    let outcome = commands::rm(&world.cluster, &request(), &world.call()).unwrap();
    world.store(outcome.writes);
    world.run(2);
}

#[derive(Debug, Clone)]
enum Step {
    Deploy(u8, u8, u8, u8),
    Stop,
    Start,
    Fate(u8),
    Silence(u8),
    Speak(u8),
    NewLeader,
    Lose,
    Pass(u8),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => (1..4u8, 1..6u8, 1..4u8, 0..4u8).prop_map(|(v, c, p, o)| Step::Deploy(v, c, p, o)),
        1 => Just(Step::Stop),
        2 => Just(Step::Start),
        3 => (0..4u8).prop_map(Step::Fate),
        1 => (1..4u8).prop_map(Step::Silence),
        2 => (1..4u8).prop_map(Step::Speak),
        1 => Just(Step::NewLeader),
        1 => Just(Step::Lose),
        6 => (1..40u8).prop_map(Step::Pass),
    ];
    prop::collection::vec(step, 3..25)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    /// Jobs and cron, whatever happens: every plan is the one from scratch and passes the checker
    /// (`World::plan` asserts both); no time is begun twice; a job that can ends.
    #[test]
    fn any_history_of_runs_is_safe_and_ends(steps in steps()) {
        let mut world = noon(3);
        let mut kind = Kind::Job;
        for step in &steps {
            match *step {
                Step::Deploy(version, completions, parallelism, overlap) => {
                    let mut spec = job(completions.into(), parallelism.into(), 4);
                    kind = Kind::Job;
                    if overlap > 0 {
                        let overlap = [Overlap::Skip, Overlap::Allow, Overlap::Replace][overlap as usize - 1];
                        let shape = spec.job.clone();
                        spec = cron("* * * * *", overlap, 60);
                        spec.job = shape;
                        kind = Kind::Cron;
                    }
                    spec.artifact = Some(Digest::of(&[version]));
                    world.deploy(spec, kind);
                }
                Step::Stop | Step::Start => {
                    let command = if matches!(step, Step::Stop) { commands::stop } else { commands::start };
                    if let Ok(outcome) = command(&world.cluster, &request(), &world.call()) {
                        world.store(outcome.writes);
                    }
                }
                Step::Fate(fate) => {
                    let fate = [Fate::Ready, Fate::Unready, Fate::GivesUp, Fate::Completes][fate as usize];
                    for revision in 1..20 {
                        world.fates.insert(revision, fate);
                    }
                }
                Step::Silence(n) => drop(world.silent.insert(host(n as usize))),
                Step::Speak(n) => drop(world.silent.remove(&host(n as usize))),
                Step::NewLeader => world.new_leader(),
                Step::Lose => drop(world.cluster.plan(world.now)),
                Step::Pass(rounds) => world.run(rounds as usize),
            }
        }
        world.silent.clear();
        world.fates.extend((1..20).map(|revision| (revision, Fate::Completes)));
        world.run(40);
        let Some(workload) = world.cluster.workload(&web()) else { return Ok(()) };
        if kind == Kind::Job {
            prop_assert_eq!(workload.record.runs().count(), 0);
            prop_assert!(workload.placements.is_empty());
        }
        let mut begun = world.told(EventKind::Started);
        let all = begun.len();
        begun.iter_mut().for_each(|text| *text = text.split("for ").last().unwrap().to_owned());
        begun.sort();
        begun.dedup();
        prop_assert_eq!(begun.len(), all, "a time was begun twice");
    }
}
