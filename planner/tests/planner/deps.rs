//! What waits for what.

use wasmorch_api::messages::{RolloutAction, RolloutView, WorkloadState};
use wasmorch_api::spec::{Replicas, Scale};
use wasmorch_api::{
    ApiError, Digest, EventKind, HumanDuration, Kind, Record, RolloutState, WorkloadKey,
    WorkloadSpec,
};
use wasmorch_planner::commands::{self, DeployInput};
use wasmorch_planner::{check, preview, queries, why};

use super::{Command, Fate, World, name, rollout_request};

/// Ten seconds for progress, so that tests are short.
pub(super) fn of(workload: &str, version: &str, depends_on: &[&str]) -> WorkloadSpec {
    let mut spec = WorkloadSpec {
        name: name(workload),
        artifact: Some(Digest::of(version.as_bytes())),
        replicas: Some(Replicas::Count(2)),
        depends_on: depends_on.iter().map(|on| name(on)).collect(),
        ..WorkloadSpec::default()
    };
    spec.update.progress_deadline = HumanDuration::secs(10);
    spec
}

pub(super) fn key(workload: &str) -> WorkloadKey {
    WorkloadKey::new(name("default"), name(workload))
}

impl World {
    pub(super) fn deploy_all(
        &mut self,
        workloads: Vec<(WorkloadSpec, Kind)>,
        atomic: bool,
    ) -> Result<(), ApiError> {
        let input = DeployInput {
            workloads,
            atomic,
            ..DeployInput::default()
        };
        let outcome = commands::deploy(&self.cluster, &input, &self.call())?;
        self.cluster.remember(&outcome.events, self.now);
        self.store(outcome.writes);
        Ok(())
    }

    pub(super) fn http(&mut self, specs: &[WorkloadSpec], atomic: bool) {
        let all = specs.iter().map(|spec| (spec.clone(), Kind::Http));
        self.deploy_all(all.collect(), atomic).unwrap();
    }

    pub(super) fn rollout_of(
        &mut self,
        workload: &str,
        action: RolloutAction,
    ) -> Result<(), ApiError> {
        let request = rollout_request(workload, Some(action));
        let outcome = commands::rollout(&self.cluster, &request, &self.call())?;
        self.store(outcome.writes);
        Ok(())
    }

    pub(super) fn ask_of(&mut self, workload: &str, command: Command) {
        self.change_of(workload, command, None);
    }

    pub(super) fn record(&self, workload: &str) -> &Record {
        &self.cluster.workload(&key(workload)).unwrap().record
    }

    pub(super) fn view(&self, workload: &str) -> RolloutView {
        let workload = self.cluster.workload(&key(workload)).unwrap();
        queries::rollout_view(&self.cluster, workload).unwrap()
    }

    pub(super) fn waits(&self, workload: &str) -> Vec<(String, String, bool)> {
        let waits = self.view(workload).waits_for.into_iter();
        let all = waits.map(|one| (one.workload.to_string(), one.why, one.for_a_person));
        all.collect()
    }

    pub(super) fn stands(&self, workload: &str) -> (RolloutState, u64) {
        let record = self.record(workload);
        (record.rollout.as_ref().unwrap().state, record.revision.0)
    }

    pub(super) fn state_of(&self, workload: &str) -> WorkloadState {
        queries::state(
            &self.cluster,
            self.cluster.workload(&key(workload)).unwrap(),
        )
    }

    pub(super) fn fate(&mut self, workload: &str, revision: u64, fate: Fate) {
        self.own_fates.insert((workload.to_owned(), revision), fate);
    }

    /// Placements by revision.
    pub(super) fn runs(&self, workload: &str) -> Vec<u64> {
        let placements = &self.cluster.workload(&key(workload)).unwrap().placements;
        placements
            .values()
            .map(|placed| placed.revision.0)
            .collect()
    }

    /// Rounds until it is so.
    pub(super) fn go_until(&mut self, what: &str, so: impl Fn(&Self) -> bool) {
        for _ in 0..400 {
            if so(self) {
                return;
            }
            self.round();
        }
        panic!("never: {what}");
    }

    pub(super) fn told_of(&self, workload: &str, kind: EventKind) -> Vec<String> {
        let events = self.plans.iter().flat_map(|plan| &plan.events);
        let mine = events
            .filter(|event| event.kind == kind && event.workload.as_ref() == Some(&name(workload)));
        mine.map(|event| event.reason.clone()).collect()
    }
}

#[test]
fn what_depends_on_another_starts_when_that_is_ready() {
    let mut world = World::new(3);
    world.fate("orders", 1, Fate::Unready);
    world.http(
        &[of("web", "1", &["orders"]), of("orders", "1", &[])],
        false,
    );
    world.run(4);
    assert_eq!((world.runs("web"), world.runs("orders").len()), (vec![], 2));
    let waits = ("orders".to_owned(), "0 of 2 ready".to_owned(), false);
    assert_eq!(world.waits("web"), [waits]);
    assert_eq!(world.state_of("web"), WorkloadState::Pending);
    let why = why::workload(&world.cluster, &key("web")).unwrap();
    let story = why["story"].to_string();
    assert!(story.contains("waits for orders: 0 of 2 ready"), "{story}");
    world.own_fates.clear();
    world.go_until("both", |world| {
        ["web", "orders"].map(|one| world.stands(one)) == [(RolloutState::Completed, 1); 2]
    });
    let began = world.told_of("web", EventKind::RolloutStarted);
    assert_eq!(began, ["orders is ready: to revision 1"]);
    assert!(world.plan().is_empty());
}

#[test]
fn the_old_revision_serves_on_and_is_mended_while_the_new_one_is_held() {
    let mut world = World::new(3);
    world.http(&[of("web", "1", &[]), of("orders", "1", &[])], false);
    world.run(8);
    world.fate("orders", 2, Fate::Unready);
    let mut web = of("web", "2", &["orders"]);
    web.replicas = Some(Replicas::Count(3));
    let mut orders = of("orders", "2", &[]);
    orders.update.progress_deadline = HumanDuration::secs(600);
    orders.health.start_grace = HumanDuration::secs(600);
    world.http(&[web, orders], false);
    // A replica of the old one fails meanwhile: that is not the new one's fault.
    world.fate("web", 1, Fate::GivesUp);
    world.run(1);
    world.own_fates.remove(&("web".to_owned(), 1));
    // It loses a host too: the old revision takes its place.
    let placements = &world.cluster.workload(&key("web")).unwrap().placements;
    let host = placements.values().next().unwrap().host.clone();
    world.silent.insert(host);
    for _ in 0..90 {
        world.round();
        assert_eq!(world.stands("web"), (RolloutState::Rolling, 1));
        assert!(world.runs("web").iter().all(|revision| *revision == 1));
    }
    let web = world.cluster.workload(&key("web")).unwrap();
    assert_eq!(
        (queries::ready(&world.cluster, web), web.record.desired),
        (3, 3)
    );
    world.own_fates.clear();
    world.go_until("web", |world| {
        world.stands("web") == (RolloutState::Completed, 2)
    });
    assert_eq!(world.runs("web"), [2, 2, 2]);
}

#[test]
fn the_load_is_followed_while_the_new_revision_is_held() {
    let scaled = |version, on: &[&str], min, max| {
        let mut spec = of("web", version, on);
        let target = [("concurrency".to_owned(), 10)].into();
        let (window, panic) = (HumanDuration::secs(10), HumanDuration::secs(3));
        let tolerance = wasmorch_api::Share(10_000);
        spec.replicas = None;
        spec.scale = Some(Scale {
            min,
            max,
            target,
            window,
            panic,
            tolerance,
        });
        spec
    };
    let desired = |world: &World| world.record("web").desired;
    // Where both follow it the new one goes on from there; one that names a count has that.
    for (counts, ends) in [(None, 7), (Some(3), 3)] {
        let mut world = World::new(4);
        world.http(&[scaled("1", &[], 2, 12), of("orders", "1", &[])], false);
        world.run(8);
        world.fate("orders", 2, Fate::Unready);
        let mut orders = of("orders", "2", &[]);
        orders.update.progress_deadline = HumanDuration::secs(600);
        orders.health.start_grace = HumanDuration::secs(600);
        let mut web = scaled("2", &["orders"], 1, 7);
        if let Some(counts) = counts {
            (web.scale, web.replicas) = (None, Some(Replicas::Count(counts)));
        }
        world.http(&[web, orders], false);
        world.load.insert(key("web"), 100);
        world.run(40);
        assert_eq!(world.stands("web"), (RolloutState::Rolling, 1));
        assert_eq!(desired(&world), 10);
        world.own_fates.clear();
        world.go_until("web", |world| {
            world.stands("web") == (RolloutState::Completed, 2)
        });
        assert_eq!(desired(&world), ends);
        assert_eq!(world.runs("web").len() as u32, ends);
    }
    // A first one has no load while it is held, and nothing moves it.
    let mut world = World::new(2);
    world.fate("orders", 1, Fate::Unready);
    world.http(
        &[scaled("1", &["orders"], 3, 7), of("orders", "1", &[])],
        false,
    );
    world.run(12);
    assert_eq!((desired(&world), world.runs("web")), (3, vec![]));
}

#[test]
fn a_dependency_that_fails_fails_the_one_that_waits_after_its_own_deadline() {
    let mut world = World::new(3);
    world.http(&[of("web", "1", &[]), of("orders", "1", &[])], false);
    world.run(8);
    world.fate("orders", 2, Fate::GivesUp);
    world.http(
        &[of("web", "2", &["orders"]), of("orders", "2", &[])],
        false,
    );
    world.go_until("orders went back", |world| {
        world.stands("orders").0 == RolloutState::Reverted
    });
    let began = world.now;
    assert_eq!(world.stands("web"), (RolloutState::Rolling, 1));
    world.go_until("web went back", |world| {
        world.stands("web") == (RolloutState::Reverted, 1)
    });
    let waited = world.now.since(began).as_secs();
    assert!((8..=12).contains(&waited), "{waited} s");
    let reason = world.view("web").reason.unwrap();
    let wanted = "orders did not become ready: its rollout was reverted: replica failed: GivesUp";
    assert_eq!(reason, wanted);
    assert_eq!(world.runs("web"), [1, 1]);
    // What serves after an old failure is good enough for a new deploy.
    world.http(&[of("web", "3", &["orders"])], false);
    world.go_until("web", |world| {
        world.stands("web") == (RolloutState::Completed, 3)
    });
}

#[test]
fn a_first_revision_that_waited_in_vain_begins_when_the_other_is_mended() {
    let mut world = World::new(2);
    world.fate("orders", 1, Fate::GivesUp);
    world.http(
        &[of("web", "1", &["orders"]), of("orders", "1", &[])],
        false,
    );
    world.go_until("failed", |world| {
        world.state_of("web") == WorkloadState::Failed
    });
    assert_eq!(world.runs("web"), [0; 0]);
    world.http(&[of("orders", "2", &[])], false);
    world.go_until("web", |world| {
        world.stands("web") == (RolloutState::Completed, 1)
    });
}

#[test]
fn nobody_waits_for_what_is_gone_or_stopped() {
    for command in [commands::rm as Command, commands::stop] {
        let mut world = World::new(2);
        world.fate("orders", 1, Fate::Unready);
        world.http(
            &[of("web", "1", &["orders"]), of("orders", "1", &[])],
            false,
        );
        world.run(3);
        assert_eq!(world.runs("web"), [0; 0]);
        world.ask_of("orders", command);
        world.go_until("web", |world| world.state_of("web") == WorkloadState::Ready);
    }
}

#[test]
fn a_person_has_all_the_time_there_is() {
    let mut world = World::new(2);
    let chain = [of("web", "1", &["orders"]), of("orders", "1", &["stock"])];
    world.fate("stock", 1, Fate::Unready);
    world.http(
        &[chain[0].clone(), chain[1].clone(), of("stock", "1", &[])],
        false,
    );
    world.run(2);
    world.rollout_of("stock", RolloutAction::Pause).unwrap();
    world.run(120);
    assert_eq!(world.stands("web").0, RolloutState::Rolling);
    let (on, why, person) = world.waits("web").remove(0);
    assert_eq!((on.as_str(), person), ("orders", true));
    assert_eq!(why, "it waits for stock itself");
    assert_eq!(
        world.waits("orders")[0].1,
        "its rollout is paused: paused by test"
    );
    assert_eq!(
        world
            .plan()
            .wake_at
            .filter(|at| *at < world.now.after(std::time::Duration::from_secs(3600))),
        None
    );
    world.own_fates.clear();
    world.rollout_of("stock", RolloutAction::Resume).unwrap();
    world.go_until("web", |world| world.state_of("web") == WorkloadState::Ready);
}

#[test]
fn a_job_is_waited_for_until_it_has_completed() {
    let mut world = World::new(2);
    let job = (of("migrate", "1", &[]), Kind::Job);
    let mut job = job;
    job.0.replicas = None;
    let web = (of("web", "1", &["migrate"]), Kind::Http);
    world.deploy_all(vec![web, job], false).unwrap();
    world.run(60);
    assert_eq!(
        (world.runs("web"), world.runs("migrate").len()),
        (vec![], 1)
    );
    assert_eq!(world.waits("web")[0].1, "it has not completed yet");
    world.fate("migrate", 1, Fate::Completes);
    world.go_until("web", |world| world.state_of("web") == WorkloadState::Ready);
}

#[test]
fn the_run_of_a_held_jobs_old_revision_goes_on_and_ends() {
    let mut world = World::new(2);
    let job = |version: &str, on: &[&str]| {
        let mut job = of("migrate", version, on);
        job.replicas = None;
        vec![(job, Kind::Job)]
    };
    world.deploy_all(job("1", &[]), false).unwrap();
    world.fate("orders", 1, Fate::Unready);
    world.http(&[of("orders", "1", &[])], false);
    world.run(3);
    world.deploy_all(job("2", &["orders"]), false).unwrap();
    world.run(2);
    world.fate("migrate", 1, Fate::Completes);
    world.run(4);
    assert_eq!(world.stands("migrate"), (RolloutState::Rolling, 1));
    assert_eq!(world.record("migrate").run.as_ref().unwrap().completed, 1);
    world.fate("migrate", 2, Fate::Completes);
    world.own_fates.remove(&("orders".to_owned(), 1));
    world.go_until("the new one", |world| {
        world.stands("migrate") == (RolloutState::Completed, 2)
    });
}

#[test]
fn a_job_and_a_cron_workload_wait_too() {
    let mut world = World::new(2);
    world.fate("orders", 1, Fate::Unready);
    let mut job = of("migrate", "1", &["orders"]);
    job.replicas = None;
    let mut cron = of("nightly", "1", &["orders"]);
    (cron.replicas, cron.schedule) = (None, Some("* * * * *".into()));
    let orders = (of("orders", "1", &[]), Kind::Http);
    let all = vec![(job, Kind::Job), (cron, Kind::Cron), orders];
    world.deploy_all(all, false).unwrap();
    world.fate("migrate", 1, Fate::Completes);
    world.fate("nightly", 1, Fate::Completes);
    for _ in 0..10 {
        world.round();
        assert_eq!(
            (world.runs("migrate"), world.runs("nightly")),
            (vec![], vec![])
        );
        assert_eq!(world.state_of("migrate"), WorkloadState::Pending);
    }
    world.own_fates.remove(&("orders".to_owned(), 1));
    world.go_until("the job", |world| {
        world.state_of("migrate") == WorkloadState::Completed
    });
    world.go_until("a run", |world| world.record("nightly").run.is_some());
}

#[test]
fn what_cannot_be_waited_for_is_refused() {
    let mut world = World::new(1);
    let mut deploy = |spec: WorkloadSpec, kind| {
        let refused = world.deploy_all(vec![(spec, kind)], false);
        refused.map_err(|error| error.problems[0].what.clone())
    };
    let refused = deploy(of("web", "1", &["orders"]), Kind::Http).unwrap_err();
    assert!(
        refused.contains("there is no workload orders in namespace default"),
        "{refused}"
    );
    let mut cron = of("nightly", "1", &[]);
    (cron.replicas, cron.schedule) = (None, Some("* * * * *".into()));
    deploy(cron, Kind::Cron).unwrap();
    let refused = deploy(of("web", "1", &["nightly"]), Kind::Http).unwrap_err();
    assert!(refused.contains("nightly is a cron workload"), "{refused}");
    deploy(of("a", "1", &[]), Kind::Http).unwrap();
    deploy(of("b", "1", &["a"]), Kind::Http).unwrap();
    deploy(of("c", "1", &["b"]), Kind::Http).unwrap();
    let refused = deploy(of("a", "2", &["c"]), Kind::Http).unwrap_err();
    let circle = "goes in a circle: a waits for c, c waits for b, b waits for a";
    assert!(refused.starts_with(circle), "{refused}");
}

#[test]
fn a_held_rollout_can_be_aborted_rolled_back_and_followed_by_another() {
    let mut world = World::new(2);
    world.http(&[of("web", "1", &[]), of("orders", "1", &[])], false);
    world.run(8);
    world.fate("orders", 2, Fate::Unready);
    let held = |world: &mut World, version: &str| {
        world.http(&[of("web", version, &["orders"])], false);
        world.run(1);
    };
    world.http(&[of("orders", "2", &[])], false);
    held(&mut world, "2");
    world.rollout_of("web", RolloutAction::Abort).unwrap();
    world.run(2);
    assert_eq!(world.stands("web"), (RolloutState::Aborted, 1));
    held(&mut world, "3");
    let request = rollout_request("web", None);
    let outcome = commands::rollback(&world.cluster, &request, &world.call()).unwrap();
    assert_eq!(outcome.reply.workloads[0].revision.0, 1);
    world.store(outcome.writes);
    world.run(2);
    assert_eq!(world.stands("web"), (RolloutState::Completed, 1));
    held(&mut world, "4");
    held(&mut world, "5");
    assert_eq!(world.stands("web"), (RolloutState::Rolling, 1));
    world.own_fates.clear();
    world.go_until("web", |world| {
        world.stands("web") == (RolloutState::Completed, 5)
    });
    assert_eq!(world.runs("web"), [5, 5]);
}

/// Seed 756 of the simulator.
#[test]
fn what_was_aborted_is_not_ready_while_it_serves_on() {
    let mut world = World::new(2);
    world.http(&[of("orders", "1", &[])], false);
    world.run(8);
    let mut orders = of("orders", "2", &[]);
    (orders.update.max_surge, orders.update.max_unavailable) = (0, 2);
    orders.update.min_ready = HumanDuration::secs(600);
    orders.update.progress_deadline = HumanDuration::secs(3600);
    world.http(&[orders], false);
    world.go_until("the second", |world| world.runs("orders") == [2, 2]);
    world.run(4);
    world.fate("orders", 1, Fate::Unready);
    world.rollout_of("orders", RolloutAction::Abort).unwrap();
    assert_eq!(world.stands("orders"), (RolloutState::Aborted, 1));
    world.http(&[of("web", "1", &["orders"])], false);
    world.run(3);
    let waits = ("orders".to_owned(), "0 of 2 ready".to_owned(), false);
    assert_eq!(world.waits("web"), [waits]);
    world.own_fates.clear();
    world.go_until("both", |world| {
        world.stands("web") == (RolloutState::Completed, 1) && world.runs("orders") == [1, 1]
    });
}

#[test]
fn the_checker_refuses_what_is_held() {
    let mut world = World::new(1);
    world.fate("orders", 1, Fate::Unready);
    world.http(
        &[of("web", "1", &["orders"]), of("orders", "1", &[])],
        false,
    );
    world.run(3);
    let start = wasmorch_planner::Start {
        key: key("web"),
        slot: wasmorch_api::Slot(1),
        placement: wasmorch_api::PlacementNumber(100),
        revision: wasmorch_api::RevisionNumber(1),
        host: super::host(1),
        standby: false,
        args: None,
    };
    let plan = wasmorch_planner::Plan {
        start: vec![start],
        ..wasmorch_planner::Plan::default()
    };
    let broken = check::check(&world.cluster, &plan);
    assert!(
        broken.iter().any(|rule| rule.to_string().contains("held")),
        "{broken:?}"
    );
    assert_eq!(check::check_touched(&world.cluster, &plan), broken);
}

#[test]
fn a_preview_shows_the_end_of_it() {
    let world = World::new(2);
    let workloads = vec![
        (of("web", "1", &["orders"]), Kind::Http),
        (of("orders", "1", &[]), Kind::Http),
    ];
    let input = DeployInput {
        workloads,
        atomic: true,
        ..DeployInput::default()
    };
    let shown = preview::of_deploy(&world.cluster, &input, &world.call()).unwrap();
    assert_eq!(shown["start"].as_array().unwrap().len(), 4, "{shown}");
}
