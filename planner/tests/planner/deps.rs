//! What waits for what, and what goes back together.

use wasmorch_api::messages::{RolloutAction, RolloutView, WorkloadState};
use wasmorch_api::spec::{Canary, OnFailure, Promote, Replicas, Scale};
use wasmorch_api::{
    ApiError, Digest, EventKind, HumanDuration, Kind, Record, RolloutState, WorkloadKey,
    WorkloadSpec,
};
use wasmorch_planner::commands::{self, DeployInput};
use wasmorch_planner::{check, preview, queries, why};

use super::{Command, Fate, World, name, rollout_request};

/// Ten seconds for progress, so that tests are short.
fn of(workload: &str, version: &str, depends_on: &[&str]) -> WorkloadSpec {
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

fn key(workload: &str) -> WorkloadKey {
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

    fn http(&mut self, specs: &[WorkloadSpec], atomic: bool) {
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

    fn ask_of(&mut self, workload: &str, command: Command) {
        let request = wasmorch_api::messages::ChangeRequest {
            workload: name(workload),
            desired: None,
            args: None,
            data: false,
            request_id: None,
            by: None,
        };
        let outcome = command(&self.cluster, &request, &self.call()).unwrap();
        self.store(outcome.writes);
    }

    fn record(&self, workload: &str) -> &Record {
        &self.cluster.workload(&key(workload)).unwrap().record
    }

    fn view(&self, workload: &str) -> RolloutView {
        let workload = self.cluster.workload(&key(workload)).unwrap();
        queries::rollout_view(&self.cluster, workload).unwrap()
    }

    fn waits(&self, workload: &str) -> Vec<(String, String, bool)> {
        let waits = self.view(workload).waits_for.into_iter();
        let all = waits.map(|one| (one.workload.to_string(), one.why, one.for_a_person));
        all.collect()
    }

    fn stands(&self, workload: &str) -> (RolloutState, u64) {
        let record = self.record(workload);
        (record.rollout.as_ref().unwrap().state, record.revision.0)
    }

    fn state_of(&self, workload: &str) -> WorkloadState {
        queries::state(
            &self.cluster,
            self.cluster.workload(&key(workload)).unwrap(),
        )
    }

    fn fate(&mut self, workload: &str, revision: u64, fate: Fate) {
        self.own_fates.insert((workload.to_owned(), revision), fate);
    }

    /// Placements by revision.
    fn runs(&self, workload: &str) -> Vec<u64> {
        let placements = &self.cluster.workload(&key(workload)).unwrap().placements;
        placements
            .values()
            .map(|placed| placed.revision.0)
            .collect()
    }

    /// Rounds until it is so.
    fn go_until(&mut self, what: &str, so: impl Fn(&Self) -> bool) {
        for _ in 0..400 {
            if so(self) {
                return;
            }
            self.round();
        }
        panic!("never: {what}");
    }

    fn told_of(&self, workload: &str, kind: EventKind) -> Vec<String> {
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

/// Two that run at revision 1, and revision 2 of both deployed together.
fn together(fate: Fate) -> World {
    let mut world = World::new(3);
    world.http(&[of("web", "1", &[]), of("orders", "1", &[])], false);
    world.run(8);
    world.fate("orders", 2, fate);
    world.http(&[of("web", "2", &[]), of("orders", "2", &[])], true);
    world
}

#[test]
fn what_is_deployed_together_completes_together() {
    let mut world = together(Fate::Unready);
    world.go_until("web waits", |world| !world.waits("web").is_empty());
    assert_eq!(world.runs("web"), [2, 2]);
    assert_eq!(world.stands("web").0, RolloutState::Rolling);
    let (on, why, _) = world.waits("web").remove(0);
    assert_eq!(
        (on.as_str(), why.as_str()),
        ("orders", "deployed together, 0 of 2 ready")
    );
    world.own_fates.clear();
    world.go_until("both", |world| {
        ["web", "orders"].map(|one| world.stands(one)) == [(RolloutState::Completed, 2); 2]
    });
    assert!(world.plan().is_empty());
}

#[test]
fn what_is_deployed_together_goes_back_together() {
    let mut world = together(Fate::Unready);
    world.go_until("web waits", |world| !world.waits("web").is_empty());
    world.go_until("both", |world| {
        ["web", "orders"].map(|one| world.stands(one)) == [(RolloutState::Reverted, 1); 2]
    });
    world.run(4);
    assert_eq!(
        (world.runs("web"), world.runs("orders")),
        (vec![1, 1], vec![1, 1])
    );
    let said = world.told_of("web", EventKind::RolloutReverted).remove(0);
    assert!(said.starts_with("orders failed: "), "{said}");
    assert!(said.ends_with(", deployed together (atomic)"), "{said}");
    assert!(world.plan().is_empty());
}

#[test]
fn what_has_arrived_goes_back_too_when_it_fails_before_the_others_are_there() {
    let mut world = together(Fate::Unready);
    world.go_until("web waits", |world| !world.waits("web").is_empty());
    world.own_fates.clear();
    world.fate("web", 2, Fate::GivesUp);
    world.go_until("both", |world| {
        ["web", "orders"].map(|one| world.stands(one)) == [(RolloutState::Reverted, 1); 2]
    });
}

#[test]
fn a_new_leader_takes_the_rest_back() {
    let mut world = together(Fate::Unready);
    world.go_until("orders failed", |world| {
        world.stands("orders").0 == RolloutState::Reverting
    });
    assert_eq!(
        world.stands("web").0,
        RolloutState::Rolling,
        "the next plan's"
    );
    world.new_leader();
    world.go_until("both", |world| {
        ["web", "orders"].map(|one| world.stands(one)) == [(RolloutState::Reverted, 1); 2]
    });
}

#[test]
fn whoever_takes_the_failed_one_out_takes_the_rest_back() {
    for how in ["deploy", "stop", "rm", "rollback"] {
        let mut world = together(Fate::Unready);
        world.go_until("orders failed", |world| {
            world.stands("orders").0 == RolloutState::Reverting
        });
        match how {
            "deploy" => world.http(&[of("orders", "3", &[])], false),
            "stop" => world.ask_of("orders", commands::stop),
            "rm" => world.ask_of("orders", commands::rm),
            _ => {
                // A rollback waits for the revert to end.
                continue;
            }
        }
        assert_eq!(world.stands("web"), (RolloutState::Reverting, 1), "{how}");
        world.go_until(how, |world| {
            world.stands("web") == (RolloutState::Reverted, 1)
        });
    }
}

#[test]
fn whoever_is_taken_out_in_time_holds_up_nobody() {
    for command in [commands::stop as Command, commands::rm] {
        let mut world = together(Fate::Unready);
        world.go_until("web waits", |world| !world.waits("web").is_empty());
        world.ask_of("orders", command);
        world.go_until("web", |world| {
            world.stands("web") == (RolloutState::Completed, 2)
        });
    }
}

#[test]
fn what_was_new_goes_back_to_nothing_and_can_be_tried_again() {
    let mut world = World::new(3);
    world.http(&[of("orders", "1", &[])], false);
    world.run(8);
    world.fate("orders", 2, Fate::Unready);
    let both = [of("web", "1", &[]), of("orders", "2", &[])];
    world.http(&both, true);
    world.go_until("web ran", |world| world.runs("web").len() == 2);
    world.go_until("orders", |world| {
        world.stands("orders") == (RolloutState::Reverted, 1)
    });
    world.run(4);
    assert_eq!(world.state_of("web"), WorkloadState::Stopped);
    assert_eq!(
        (world.stands("web"), world.runs("web")),
        ((RolloutState::Failed, 1), vec![])
    );
    // The same once more, and once more in vain: what never served is nothing to go back to.
    world.fate("orders", 3, Fate::Unready);
    world.http(&both, true);
    world.go_until("orders again", |world| {
        world.stands("orders") == (RolloutState::Reverted, 1)
            && world.stands("web") == (RolloutState::Failed, 2)
    });
    assert_eq!(world.state_of("web"), WorkloadState::Stopped);
    world.http(&both, true);
    world.go_until("both", |world| {
        world.stands("web") == (RolloutState::Completed, 3)
            && world.stands("orders") == (RolloutState::Completed, 4)
    });
    assert_eq!(world.state_of("web"), WorkloadState::Ready);
}

#[test]
fn abort_of_one_is_abort_of_all() {
    let mut world = together(Fate::Unready);
    world.go_until("web waits", |world| !world.waits("web").is_empty());
    world.rollout_of("web", RolloutAction::Abort).unwrap();
    assert_eq!(world.stands("web"), (RolloutState::Aborted, 1));
    assert_eq!(world.stands("orders"), (RolloutState::Aborted, 1));
    world.run(12);
    assert_eq!(
        (world.runs("web"), world.runs("orders")),
        (vec![1, 1], vec![1, 1])
    );
    let said = world.view("orders").reason.unwrap();
    assert_eq!(said, "web aborted by test, deployed together (atomic)");
}

#[test]
fn what_waits_and_goes_together_does_both() {
    for (fate, ends) in [
        (Fate::Ready, (RolloutState::Completed, 2)),
        (Fate::Unready, (RolloutState::Reverted, 1)),
    ] {
        let mut world = World::new(3);
        world.http(&[of("web", "1", &[]), of("orders", "1", &[])], false);
        world.run(8);
        world.fate("orders", 2, fate);
        world.http(&[of("web", "2", &["orders"]), of("orders", "2", &[])], true);
        world.go_until("both", |world| {
            ["web", "orders"].map(|one| world.stands(one)) == [ends; 2]
        });
        assert!(world.plan().is_empty());
    }
}

#[test]
fn canaries_come_after_the_wait_and_before_the_others_are_waited_for() {
    let mut world = World::new(3);
    world.http(&[of("web", "1", &[]), of("orders", "1", &[])], false);
    world.run(8);
    world.fate("orders", 2, Fate::Unready);
    let mut web = of("web", "2", &["orders"]);
    web.update.canary = Some(Canary {
        replicas: 1,
        bake: HumanDuration::secs(2),
        promote: Promote::Auto,
        ..Canary::default()
    });
    world.http(&[web, of("orders", "2", &[])], true);
    world.run(4);
    assert_eq!(world.stands("web"), (RolloutState::Rolling, 1));
    world.own_fates.clear();
    world.go_until("canaries", |world| {
        world.stands("web") == (RolloutState::Canary, 1)
    });
    world.go_until("both", |world| {
        ["web", "orders"].map(|one| world.stands(one)) == [(RolloutState::Completed, 2); 2]
    });
}

fn nightly(version: &str, schedule: &str, depends_on: &[&str]) -> (WorkloadSpec, Kind) {
    let mut cron = of("nightly", version, depends_on);
    (cron.replicas, cron.schedule) = (None, Some(schedule.into()));
    (cron, Kind::Cron)
}

#[test]
fn a_cron_workload_completes_and_goes_back_with_the_others() {
    let ends = [
        (Fate::Ready, (RolloutState::Completed, 2)),
        (Fate::Unready, (RolloutState::Reverted, 1)),
    ];
    for ((fate, ends), on) in ends
        .into_iter()
        .flat_map(|one| [(one, None), (one, Some("web"))])
    {
        let mut world = World::new(3);
        let first = vec![
            (of("web", "1", &[]), Kind::Http),
            nightly("1", "@daily", &[]),
        ];
        world.deploy_all(first, false).unwrap();
        world.run(8);
        world.fate("web", 2, fate);
        let on: Vec<&str> = on.into_iter().collect();
        let second = nightly("2", "@hourly", &on);
        let both = vec![(of("web", "2", &[]), Kind::Http), second];
        world.deploy_all(both, true).unwrap();
        let waits = world.waits("nightly").remove(0);
        assert_eq!(waits.0, "web");
        if on.is_empty() {
            assert_eq!(world.stands("nightly"), (RolloutState::Rolling, 2));
            assert_eq!(waits.1, "deployed together, 0 of 2 ready");
            // What it runs meanwhile it has run.
            world.ask_of("nightly", commands::start);
        }
        world.go_until("both", |world| {
            ["web", "nightly"].map(|one| world.stands(one)) == [ends; 2]
        });
        let record = world.record("nightly");
        assert_eq!(record.stable.map(|stable| stable.0), Some(ends.1));
        assert_eq!(record.run.is_some(), on.is_empty());
        assert!(!record.stopped);
        world.run(12);
        assert!(world.plan().is_empty());
        assert_eq!(
            world.stands("nightly"),
            ends,
            "how a run ends changes nothing"
        );
    }
}

#[test]
fn a_new_cron_workload_goes_back_to_nothing_and_can_be_tried_again() {
    let mut world = World::new(3);
    world.http(&[of("web", "1", &[])], false);
    world.run(8);
    world.fate("web", 2, Fate::Unready);
    let both = vec![
        (of("web", "2", &[]), Kind::Http),
        nightly("1", "@daily", &[]),
    ];
    world.deploy_all(both.clone(), true).unwrap();
    world.go_until("both", |world| {
        world.stands("web") == (RolloutState::Reverted, 1)
            && world.stands("nightly") == (RolloutState::Failed, 1)
    });
    assert_eq!(world.state_of("nightly"), WorkloadState::Stopped);
    let before = world.cluster.clone();
    world.deploy_all(both, true).unwrap();
    world.go_until("both", |world| {
        world.stands("web") == (RolloutState::Completed, 3)
            && world.stands("nightly") == (RolloutState::Completed, 2)
    });
    // Or a person starts it, as it is.
    world.cluster = before;
    world.ask_of("nightly", commands::start);
    world.run(4);
    let record = world.record("nightly");
    assert!(!record.stopped && record.rollout.is_none());
}

#[test]
fn what_changes_into_a_cron_workload_changes_back() {
    let mut world = World::new(3);
    let first = [of("web", "1", &[]), of("nightly", "1", &[])];
    world.http(&first, false);
    world.run(8);
    world.fate("web", 2, Fate::Unready);
    let both = vec![
        (of("web", "2", &[]), Kind::Http),
        nightly("2", "@daily", &[]),
    ];
    world.deploy_all(both, true).unwrap();
    world.go_until("both", |world| {
        ["web", "nightly"].map(|one| world.stands(one)) == [(RolloutState::Reverted, 1); 2]
    });
    assert_eq!(world.record("nightly").kind, Kind::Http);
    assert_eq!(world.runs("nightly"), [1, 1]);
}

#[test]
fn what_cannot_go_back_is_not_deployed_together() {
    let mut world = World::new(1);
    let mut pauses = of("web", "1", &[]);
    pauses.update.on_failure = OnFailure::Pause;
    let all = vec![(pauses, Kind::Http), (of("report", "1", &[]), Kind::Job)];
    let refused = world.deploy_all(all, true).unwrap_err();
    let at: Vec<&str> = refused.problems.iter().map(|one| one.at.as_str()).collect();
    assert_eq!(at, ["workloads[0].update.on_failure", "workloads[1].kind"]);
}
