//! Jobs with several completions, and cron.

use std::time::Duration;

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

fn cron(schedule: &str, overlap: Overlap, catch_up: u64) -> WorkloadSpec {
    WorkloadSpec {
        kind: Some(Kind::Cron),
        schedule: Some(schedule.into()),
        overlap: Some(overlap),
        catch_up: Some(HumanDuration::secs(catch_up)),
        ..job(1, 1, 1)
    }
}

impl World {
    fn run_of(&self) -> Run {
        let workload = self.cluster.workload(&web()).unwrap();
        workload.record.run.clone().unwrap()
    }

    fn running(&self) -> usize {
        self.cluster.workload(&web()).unwrap().record.runs().count()
    }

    fn starts(&self) -> usize {
        self.plans.iter().map(|plan| plan.start.len()).sum()
    }

    fn told(&self, kind: EventKind) -> Vec<String> {
        let events = self.plans.iter().flat_map(|plan| &plan.events);
        let events = events.filter(|event| event.kind == kind);
        events.map(|event| event.reason.clone()).collect()
    }

    /// So many times of the schedule have been begun or left out.
    fn begun(&self) -> usize {
        self.told(EventKind::Started).len()
    }

    /// Time passes for everyone, in steps that no host dies of.
    fn pass(&mut self, seconds: u64) {
        let until = self.now.0 + seconds * 1_000;
        while self.now.0 < until {
            self.round();
        }
    }

    /// Nobody leads for a while, and then another does.
    fn interregnum(&mut self, seconds: u64) {
        self.now.0 += seconds * 1_000;
        self.new_leader();
        self.run(3);
    }
}

/// 12:00:00 of a day.
const NOON: Timestamp = Timestamp(1_764_072_000_000);

fn noon(hosts: usize) -> World {
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
fn cron_runs_at_its_times_and_at_no_other() {
    let mut world = noon(1);
    world.fates.insert(1, Fate::Completes);
    world.deploy(cron("*/5 * * * *", Overlap::Skip, 60), Kind::Cron);
    world.run(3);
    assert_eq!(
        (world.begun(), world.state()),
        (0, WorkloadState::Idle),
        "12:00 is now"
    );
    let next = queries::status(&world.cluster, &web(), false).unwrap().next;
    assert_eq!(next, Some(Timestamp(NOON.0 + 300_000)));
    world.pass(295);
    assert_eq!(world.begun(), 0);
    world.pass(10);
    assert_eq!((world.begun(), world.starts()), (1, 1));
    assert_eq!(world.run_of().scheduled, Some(Timestamp(NOON.0 + 300_000)));
    world.pass(600);
    assert_eq!((world.begun(), world.starts()), (3, 3));
    assert_eq!(world.told(EventKind::JobCompleted).len(), 3);
    assert_eq!(world.told(EventKind::CronSkipped), [""; 0]);
    // Stopped: nothing. Started again: nothing is made up for.
    world.change(commands::stop, None);
    world.pass(900);
    world.change(commands::start, None);
    world.pass(5);
    assert_eq!(world.begun(), 3);
    world.pass(300);
    assert_eq!(world.begun(), 4);
    // Out of its turn.
    world.change(commands::start, None);
    world.pass(3);
    assert_eq!((world.begun(), world.starts()), (4, 5));
}

#[test]
fn a_clock_that_is_set_forward_is_followed_by_schedules_and_by_nothing_else() {
    let mut world = noon(2);
    world
        .fates
        .extend([(1, Fate::Completes), (2, Fate::Completes)]);
    world.deploy(cron("0 15 * * *", Overlap::Skip, 600), Kind::Cron);
    world.run(3);
    let from = world.now;
    // The time was not known when the term began: it is five to three.
    let ahead = Duration::from_secs(2 * 3_600 + 55 * 60);
    let wall = |now: Timestamp| now.after(ahead);
    assert!(
        !world
            .cluster
            .follow_clock(from.after(Duration::from_millis(900)), from)
    );
    assert!(world.cluster.follow_clock(wall(from), from));
    assert!(!world.cluster.follow_clock(wall(from), from), "once");
    world.pass(290);
    assert_eq!(world.begun(), 0);
    world.pass(15);
    assert_eq!((world.begun(), world.starts()), (1, 1));
    assert_eq!(
        world.run_of().scheduled,
        Some(Timestamp(NOON.0 + 3 * 3_600_000))
    );
    let alive = |host: &wasmorch_planner::Host| host.state == HostState::Alive;
    assert!(
        world.cluster.hosts().values().all(alive),
        "no time has passed"
    );
    // What is deployed, or started, from now on counts by that clock, too.
    world.change(commands::stop, None);
    world.change(commands::start, None);
    world.deploy(cron("*/5 * * * *", Overlap::Skip, 3_600), Kind::Cron);
    world.pass(5);
    assert_eq!(world.begun(), 1, "what the clock has leapt over is no time");
    world.pass(300);
    assert_eq!(world.begun(), 2);
    // Set back: nothing is begun twice.
    assert!(world.cluster.follow_clock(world.now, world.now));
    world.pass(300);
    assert_eq!(world.begun(), 2, "those times have been");
}

#[test]
fn a_deploy_of_what_is_stopped_goes_on_with_no_run_of_before() {
    for spec in ["*/5 * * * *", "*/10 * * * *"] {
        let mut world = noon(1);
        world.fates.insert(1, Fate::Unready);
        world.deploy(cron("*/5 * * * *", Overlap::Skip, 60), Kind::Cron);
        world.pass(302);
        assert_eq!((world.begun(), world.starts()), (1, 1));
        world.change(commands::stop, None);
        world.pass(10);
        world.deploy(cron(spec, Overlap::Skip, 60), Kind::Cron);
        world.pass(30);
        assert_eq!((world.begun(), world.starts()), (1, 1), "{spec}");
    }
}

#[test]
fn another_leader_begins_nothing_twice_and_misses_nothing_within_catch_up() {
    let mut world = noon(1);
    world.fates.insert(1, Fate::Completes);
    world.deploy(cron("*/5 * * * *", Overlap::Skip, 120), Kind::Cron);
    world.pass(302);
    assert_eq!(world.begun(), 1);
    world.interregnum(20);
    assert_eq!((world.begun(), world.starts()), (1, 1), "begun already");
    // 12:10 comes while nobody leads, and is made up for.
    world.pass(270);
    world.interregnum(60);
    world.pass(10);
    assert_eq!((world.begun(), world.starts()), (2, 2));
    assert_eq!(world.told(EventKind::CronSkipped), [""; 0]);
    // 12:15 is two and a half minutes late: left out, and said. 12:20 is not.
    world.pass(200);
    world.interregnum(260);
    let skipped = world.told(EventKind::CronSkipped);
    assert_eq!(skipped.len(), 1, "{skipped:?}");
    assert!(
        skipped[0].contains("missed by more than catch_up (2m)"),
        "{skipped:?}"
    );
    let begun = world.begun();
    world.pass(300);
    assert_eq!(world.begun(), begun + 1);
}

#[test]
fn what_still_runs_is_waited_for_joined_or_replaced() {
    for (overlap, begun, running, skipped) in [
        (Overlap::Skip, 1, 1, 4),
        (Overlap::Allow, 5, 5, 0),
        (Overlap::Replace, 5, 1, 0),
    ] {
        let mut world = noon(1);
        world.fates.insert(1, Fate::Unready);
        world.deploy(cron("* * * * *", overlap, 60), Kind::Cron);
        world.pass(310);
        assert_eq!(
            (world.begun(), world.running()),
            (begun, running),
            "{overlap:?}"
        );
        assert_eq!(
            world.cluster.workload(&web()).unwrap().placements.len(),
            running
        );
        assert_eq!(world.told(EventKind::CronSkipped).len(), skipped);
        assert_eq!(world.desired().1 as usize, running);
        world.fates.insert(1, Fate::Completes);
        world.pass(5);
        assert_eq!((world.running(), world.state()), (0, WorkloadState::Idle));
    }
}

#[test]
fn runs_at_once_are_bounded_and_the_rest_wait_for_their_turn() {
    let mut world = noon(1);
    world.fates.insert(1, Fate::Unready);
    world.deploy(cron("* * * * *", Overlap::Allow, 3_600), Kind::Cron);
    world.pass(20 * 60 + 5);
    assert_eq!((world.begun(), world.running()), (16, 16));
    world.fates.insert(1, Fate::Completes);
    world.pass(5);
    assert_eq!(world.begun(), 20, "all of them in the end");
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
