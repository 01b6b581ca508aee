//! What waits for what.

use wasmorch_api::messages::{RolloutAction, RolloutView, WorkloadState};
use wasmorch_api::spec::Replicas;
use wasmorch_api::{
    ApiError, Digest, EventKind, HumanDuration, Kind, Record, RolloutState, WorkloadKey,
    WorkloadSpec,
};
use wasmorch_planner::commands::{self, DeployInput};
use wasmorch_planner::{preview, queries, why};

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
