//! One route, one workload: also when an earlier revision is brought back.

use super::*;

const ROUTE: &str = "shop.example.com/";

fn with_route(workload: &str, version: &str) -> WorkloadSpec {
    WorkloadSpec {
        name: name(workload),
        routes: vec![ROUTE.to_owned()],
        ..spec(version, 1)
    }
}

fn deploy(world: &mut World, spec: WorkloadSpec) -> Result<(), wasmorch_api::ApiError> {
    let input = DeployInput {
        workloads: vec![(spec, Kind::Http)],
        ..DeployInput::default()
    };
    let writes = commands::deploy(&world.cluster, &input, &world.call())?.writes;
    world.store(writes);
    Ok(())
}

fn refused_with_both_names(error: &wasmorch_api::ApiError, route_of: &str, owner: &str) {
    assert_eq!(error.code, wasmorch_api::ErrorCode::Conflict);
    assert!(
        error.what.contains(ROUTE) && error.what.contains(route_of),
        "{error:?}"
    );
    assert!(error.why.contains(owner), "{error:?}");
}

#[test]
fn a_route_that_was_given_up_is_free_only_when_nothing_leads_back_to_it() {
    let mut world = World::new(2);
    deploy(&mut world, with_route("web", "1")).unwrap();
    world.run(8);
    deploy(&mut world, spec("2", 1)).unwrap();
    world.round();
    // It may go back at any time, by itself too.
    let error = deploy(&mut world, with_route("other", "1")).unwrap_err();
    refused_with_both_names(&error, "default/other", "default/web");
    world.run(12);
    assert_eq!(world.rollout(), RolloutState::Completed);
    deploy(&mut world, with_route("other", "1")).unwrap();
    world.run(8);

    let back = rollout_request("web", None);
    let error = commands::rollback(&world.cluster, &back, &world.call()).unwrap_err();
    refused_with_both_names(&error, "default/web", "default/other");
    world.change_of("other", commands::rm, None);
    commands::rollback(&world.cluster, &back, &world.call()).unwrap();
}
