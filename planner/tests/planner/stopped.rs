//! What is held at zero stays there, whatever else is asked of it; and what of a first revision can be asked.

use super::*;
use wasmorch_api::{ApiError, ErrorCode};

fn scaled(world: &mut World, to: u32) -> wasmorch_api::messages::ChangeReply {
    let request = ChangeRequest {
        workload: name("web"),
        desired: Some(to),
        args: None,
        data: false,
        request_id: None,
        by: None,
    };
    let outcome = commands::scale(&world.cluster, &request, &world.call()).unwrap();
    world.store(outcome.writes);
    outcome.reply
}

fn back(world: &mut World) -> Result<bool, ApiError> {
    let request = rollout_request("web", None);
    let outcome = commands::rollback(&world.cluster, &request, &world.call())?;
    let deployed = &outcome.reply.workloads[0];
    let changed = deployed.changed;
    world.store(outcome.writes);
    Ok(changed)
}

#[test]
fn scale_of_what_is_stopped_says_what_it_remembers() {
    let mut world = World::new(1);
    world.deploy(spec("1", 1), Kind::Http);
    world.run(6);
    assert_eq!(scaled(&mut world, 2).note, None);
    world.change(commands::stop, None);
    world.run(2);
    let reply = scaled(&mut world, 3);
    assert_eq!((reply.desired, reply.state), (0, WorkloadState::Stopped));
    let note = reply.note.unwrap();
    assert!(
        note.contains("3 remembered") && note.contains("wasmorch start web"),
        "{note}"
    );
    world.run(3);
    assert_eq!(world.ready(), 0);
    world.change(commands::start, None);
    world.run(6);
    assert_eq!((world.ready(), world.state()), (3, WorkloadState::Ready));
}

#[test]
fn a_rollback_of_what_is_stopped_starts_nothing() {
    for kind in [Kind::Http, Kind::Job] {
        let mut world = World::new(1);
        for version in ["1", "2"] {
            world.deploy(spec(version, 2), kind);
            world.run(12);
        }
        world.change(commands::stop, None);
        world.run(3);
        assert!(back(&mut world).unwrap());
        world.run(6);
        let record = &world.cluster.workload(&web()).unwrap().record;
        assert_eq!((record.revision.0, record.stopped), (1, true));
        assert!(record.rollout.is_none(), "nobody waits for it");
        assert_eq!(world.state(), WorkloadState::Stopped);
        let placements = &world.cluster.workload(&web()).unwrap().placements;
        assert!(placements.is_empty(), "{kind}");
        // Asked again it changes nothing.
        let mut request = rollout_request("web", None);
        request.to = Some(record.revision);
        let again = commands::rollback(&world.cluster, &request, &world.call()).unwrap();
        assert!(!again.reply.workloads[0].changed && again.writes.is_empty());
        world.change(commands::start, None);
        world.run(8);
        let workload = world.cluster.workload(&web()).unwrap();
        let mut placed = workload.placements.values();
        assert!(placed.len() > 0 && placed.all(|one| one.revision.0 == 1));
        if kind == Kind::Http {
            // It has proven itself, and is what a bad one goes back to.
            assert_eq!(world.rollout(), RolloutState::Completed);
            assert_eq!(workload.record.stable, Some(workload.record.revision));
            world.fates.insert(3, Fate::GivesUp);
            world.deploy(spec("3", 2), kind);
            world.run(40);
            assert_eq!(world.rollout(), RolloutState::Reverted);
            let record = &world.cluster.workload(&web()).unwrap().record;
            assert_eq!(record.revision.0, 1);
        }
    }
}

#[test]
fn a_trial_that_was_stopped_is_given_up_by_a_rollback() {
    let mut world = World::new(2);
    world.deploy(spec("1", 2), Kind::Http);
    world.run(10);
    let mut canary = spec("2", 2);
    canary.update.canary = Some(wasmorch_api::spec::Canary::default());
    world.deploy(canary, Kind::Http);
    world.run(2);
    assert_eq!(world.rollout(), RolloutState::Canary);
    world.change(commands::stop, None);
    world.run(2);
    assert!(back(&mut world).unwrap());
    world.change(commands::start, None);
    world.run(10);
    let workload = world.cluster.workload(&web()).unwrap();
    assert_eq!(workload.record.revision.0, 1);
    assert!(workload.placements.values().all(|one| one.revision.0 == 1));
}

#[test]
fn a_first_revision_has_nothing_to_go_back_to() {
    let mut world = World::new(1);
    world.fates.insert(1, Fate::Unready);
    world.deploy(spec("1", 1), Kind::Http);
    world.run(2);
    let none = back(&mut world).unwrap_err();
    assert_eq!(none.code, ErrorCode::NotFound, "{none}");
    // What is advised is what works.
    let request = ChangeRequest {
        workload: name("web"),
        desired: None,
        args: None,
        data: false,
        request_id: None,
        by: None,
    };
    let restart = commands::restart(&world.cluster, &request, &world.call()).unwrap_err();
    assert!(restart.fix.contains("wasmorch stop web"), "{restart:?}");
    let abort = rollout_request("web", Some(RolloutAction::Abort));
    let refused = commands::rollout(&world.cluster, &abort, &world.call()).unwrap_err();
    assert!(refused.fix.contains("wasmorch stop web"), "{refused:?}");
    world.change(commands::stop, None);
    world.run(2);
    assert_eq!(world.state(), WorkloadState::Stopped);
    // Of a later one it is `abort`.
    let mut world = World::new(1);
    world.deploy(spec("1", 1), Kind::Http);
    world.run(8);
    world.deploy(spec("2", 1), Kind::Http);
    world.round();
    let restart = commands::restart(&world.cluster, &request, &world.call()).unwrap_err();
    assert!(restart.fix.contains("rollout abort web"), "{restart:?}");
    let abort = rollout_request("web", Some(RolloutAction::Abort));
    commands::rollout(&world.cluster, &abort, &world.call()).unwrap();
}

#[test]
fn a_dead_host_runs_nothing_that_is_known_of() {
    let mut world = World::new(1);
    world.deploy(spec("1", 1), Kind::Http);
    world.run(6);
    let runs = |world: &World| {
        let why = why::host(&world.cluster, "h1", world.now).unwrap();
        let one = &why["runs"][0];
        ["replicas", "ready", "lost"].map(|field| one[field].as_u64().unwrap())
    };
    assert_eq!(runs(&world), [1, 1, 0]);
    world.silent.insert(host(1));
    world.run(16);
    assert_eq!(world.cluster.hosts()[&host(1)].state, HostState::Dead);
    assert_eq!(runs(&world), [1, 0, 1]);
    world.silent.clear();
    world.run(3);
    assert_eq!(runs(&world), [1, 1, 0]);
}

#[test]
fn hosts_tell_what_is_used_and_what_keeps_workloads_away() {
    let mut world = World::new(1);
    world.taints.insert(host(1), vec!["edge".to_owned()]);
    let mut beat = world.beat(&host(1));
    (beat.memory_bytes, beat.cpu_millis, beat.replicas) = (5, 6, 7);
    let beat = Observation::Heartbeat(Box::new(beat));
    world.cluster.observe(beat, world.now);
    let view = serde_json::to_value(&queries::hosts(&world.cluster, world.now)[0]).unwrap();
    let used = serde_json::json!({"memory_bytes": 5, "cpu_millis": 6, "replicas": 7});
    assert_eq!((&view["used"], &view["taints"][0]), (&used, &"edge".into()));
}
