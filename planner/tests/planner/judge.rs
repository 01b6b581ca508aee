//! Revisions that are judged by their answers.

use wasmorch_api::messages::RolloutAction;
use wasmorch_api::spec::{Canary, FailWhen, OnFailure};
use wasmorch_api::{EventKind, HumanDuration, RevisionNumber};

use super::*;

fn judged(version: &str, replicas: u32) -> WorkloadSpec {
    let mut spec = spec(version, replicas);
    spec.update.fail_when = Some(FailWhen::default());
    spec
}

impl World {
    /// Two replicas of a good first revision, and how those of the next answer.
    fn after_a_good_one(answers: Answers) -> Self {
        let mut world = Self::new(3);
        world.deploy(spec("1", 2), Kind::Http);
        world.run(10);
        assert_eq!(world.rollout(), RolloutState::Completed);
        world.answers.insert(2, answers);
        world
    }

    fn reason(&self) -> String {
        let rollout = self
            .cluster
            .workload(&web())
            .unwrap()
            .record
            .rollout
            .as_ref();
        rollout.unwrap().reason.clone().unwrap_or_default()
    }

    fn stored_revision(&self) -> RevisionNumber {
        self.cluster.workload(&web()).unwrap().record.revision
    }

    /// The reasons of all events of a kind.
    fn reasons(&self, kind: EventKind) -> Vec<String> {
        let events = self.plans.iter().flat_map(|plan| &plan.events);
        let of_kind = events.filter(|event| event.kind == kind);
        of_kind.map(|event| event.reason.clone()).collect()
    }

    fn act(&mut self, action: RolloutAction) {
        let request = rollout_request("web", Some(action));
        let outcome = commands::rollout(&self.cluster, &request, &self.call()).unwrap();
        self.store(outcome.writes);
    }
}

fn answers(requests: u64, errors: u64) -> Answers {
    Answers {
        requests,
        errors,
        slow: 0,
    }
}

#[test]
fn a_revision_that_answers_badly_is_reverted_and_says_why() {
    let mut world = World::after_a_good_one(answers(60, 12));
    let began = world.now;
    world.deploy(judged("2", 2), Kind::Http);
    let mut placed = 0;
    while world.rollout() != RolloutState::Reverted {
        let plan = world.round();
        let of_new = plan.start.iter();
        placed += of_new.filter(|start| start.revision.0 == 2).count();
        assert!(world.ready() >= 2, "the old ones serve all the while");
        let took = world.now.since(began);
        assert!(
            took.as_secs() < 20,
            "{:?} {}",
            world.rollout(),
            world.reason()
        );
    }
    assert_eq!(placed, 1, "the first was told of before the second started");
    assert_eq!(world.stored_revision().0, 1);
    let why = "12 of 60 requests failed since ready (20%), fail_when allows 10%";
    assert_eq!(world.reason(), why);
    assert_eq!(world.reasons(EventKind::RolloutReverted), [why]);
    let story = why::workload(&world.cluster, &web()).unwrap()["story"].to_string();
    assert!(story.contains(why), "{story}");
    world.run(10);
    assert!(world.plan().is_empty());
}

#[test]
fn a_good_revision_completes_once_it_has_been_heard() {
    let mut world = World::after_a_good_one(answers(1_000, 100));
    let began = world.now;
    world.deploy(judged("2", 2), Kind::Http);
    while world.rollout() == RolloutState::Rolling {
        world.round();
    }
    assert_eq!(world.rollout(), RolloutState::Completed);
    // Two steps, each a second of `min_ready` and two until its answers have been heard.
    assert!(world.now.since(began).as_secs() >= 6, "not before");
    assert_eq!(world.stored_revision().0, 2);
    // What it does later is nobody's rollout.
    world.answers.insert(2, answers(10_000, 10_000));
    world.run(10);
    assert_eq!(
        (world.rollout(), world.stored_revision().0),
        (RolloutState::Completed, 2)
    );
}

#[test]
fn too_few_requests_are_no_verdict() {
    // Two replicas have eighteen together: fewer than it takes.
    let mut world = World::after_a_good_one(answers(9, 9));
    world.deploy(judged("2", 2), Kind::Http);
    world.run(30);
    assert_eq!(
        (world.rollout(), world.stored_revision().0),
        (RolloutState::Completed, 2)
    );
}

#[test]
fn the_lost_take_no_errors_along() {
    let mut world = World::after_a_good_one(answers(12, 6));
    let mut next = judged("2", 2);
    next.update.min_ready = HumanDuration::secs(60);
    world.deploy(next, Kind::Http);
    world.run(4);
    assert_eq!(world.rollout(), RolloutState::Rolling);
    let workload = world.cluster.workload(&web()).unwrap();
    let mut placed = workload.placements.values();
    let of_new = placed.find(|placed| placed.revision.0 == 2).unwrap();
    world.silent.insert(of_new.host.clone());
    // Long before anything is ready for a minute: by the one that is lost and its successor.
    world.run(30);
    assert_eq!(
        world.rollout(),
        RolloutState::Reverted,
        "{}",
        world.reason()
    );
    assert!(
        world.reason().starts_with("12 of 24 requests failed"),
        "{}",
        world.reason()
    );
}

#[test]
fn canaries_are_judged_while_they_bake() {
    let mut world = World::after_a_good_one(answers(60, 12));
    let mut next = judged("2", 2);
    next.update.canary = Some(Canary {
        bake: HumanDuration::secs(60),
        ..Canary::default()
    });
    world.deploy(next, Kind::Http);
    for _ in 0..16 {
        world.round();
        assert!(world.ready() >= 2);
    }
    assert_eq!(
        world.rollout(),
        RolloutState::Reverted,
        "{}",
        world.reason()
    );
    assert!(
        world.reason().starts_with("canary: 12 of 60"),
        "{}",
        world.reason()
    );
}

#[test]
fn going_back_is_not_judged() {
    let mut world = World::new(3);
    world.deploy(judged("1", 2), Kind::Http);
    world.run(20);
    assert_eq!(world.rollout(), RolloutState::Completed);
    world.answers.insert(1, answers(100, 100));
    world.answers.insert(2, answers(100, 50));
    world.deploy(judged("2", 2), Kind::Http);
    world.run(30);
    assert_eq!(
        (world.rollout(), world.stored_revision().0),
        (RolloutState::Reverted, 1)
    );
    assert!(
        world.reason().starts_with("50 of 100"),
        "{}",
        world.reason()
    );
}

#[test]
fn a_first_revision_fails_by_its_answers_until_they_are_good() {
    let mut world = World::new(2);
    world.answers.insert(1, answers(40, 20));
    world.deploy(judged("1", 1), Kind::Http);
    world.run(30);
    assert_eq!(world.rollout(), RolloutState::Failed);
    assert_eq!(world.state(), WorkloadState::Failed);
    let why = "20 of 40 requests failed since ready (50%), fail_when allows 10%";
    assert_eq!(world.reason(), why);
    assert_eq!(world.reasons(EventKind::RolloutFailed), [why]);
    assert!(world.plan().is_empty(), "told once");
    world.answers.insert(1, answers(400, 20));
    world.run(4);
    assert_eq!(world.rollout(), RolloutState::Completed);
}

#[test]
fn a_person_may_go_on_in_spite_of_a_verdict() {
    let mut world = World::after_a_good_one(answers(40, 20));
    let mut next = judged("2", 1);
    next.update.min_ready = HumanDuration::secs(60);
    next.update.on_failure = OnFailure::Pause;
    world.deploy(next, Kind::Http);
    world.run(10);
    assert_eq!(world.rollout(), RolloutState::Paused);
    assert!(world.reason().starts_with("20 of 40"), "{}", world.reason());
    assert_eq!(world.reasons(EventKind::RolloutPaused), [world.reason()]);
    world.act(RolloutAction::Resume);
    world.run(4);
    assert_eq!(world.rollout(), RolloutState::Rolling, "{}", world.reason());
    // What comes after that counts again.
    world.answers.insert(2, answers(100, 70));
    world.run(10);
    assert_eq!(world.rollout(), RolloutState::Paused);
    assert!(world.reason().starts_with("50 of 60"), "{}", world.reason());
}

#[test]
fn a_new_leader_judges_by_what_it_is_told() {
    let mut world = World::after_a_good_one(answers(0, 0));
    let mut next = judged("2", 2);
    next.update.min_ready = HumanDuration::secs(30);
    world.deploy(next, Kind::Http);
    world.run(4);
    world.answers.insert(2, answers(40, 20));
    world.new_leader();
    world.run(10);
    assert_eq!(
        world.rollout(),
        RolloutState::Reverted,
        "{}",
        world.reason()
    );
    assert!(world.reason().starts_with("20 of 40"), "{}", world.reason());
}
