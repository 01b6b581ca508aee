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
    assert_eq!(error.code, wasmorch_api::ErrorCode::Invalid);
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

#[test]
fn what_becomes_a_service_is_routed_to_until_its_last_http_replica_ends() {
    let mut world = World::new(2);
    deploy(&mut world, with_route("web", "1")).unwrap();
    world.run(8);
    let service = WorkloadSpec {
        routes: Vec::new(),
        ..spec("2", 1)
    };
    world.deploy(service, Kind::Service);
    let mut served = 0;
    for _ in 0..20 {
        world.round();
        let workload = world.cluster.workload(&web()).unwrap();
        let http = workload.placements.values();
        let http = http.filter(|one| one.revision.0 == 1);
        let http: Vec<HostId> = http.map(|one| one.host.clone()).collect();
        let routes = workload.routes.as_ref().unwrap();
        let endpoints = workload.endpoints.as_ref().unwrap().whole();
        let named = endpoints.hosts.iter();
        let named: Vec<HostId> = named.map(|one| one.host.clone()).collect();
        assert_eq!(named, http, "the service is sent nothing");
        let kind = if http.is_empty() {
            Kind::Service
        } else {
            Kind::Http
        };
        assert_eq!((routes.kind, routes.routes.len()), (kind, http.len()));
        served += http.len();
    }
    assert!(served > 0, "both at once for a while");
    assert_eq!(world.rollout(), RolloutState::Completed);
    assert!(world.plan().is_empty());

    // The route is free, and leads to nobody else.
    deploy(&mut world, with_route("other", "1")).unwrap();
    world.run(8);
    let lead = world.cluster.workloads().values();
    let lead = lead.filter(|one| one.routes.as_ref().is_some_and(|it| !it.routes.is_empty()));
    let lead: Vec<&str> = lead.map(|one| one.record.name.as_str()).collect();
    assert_eq!(lead, ["other"]);
    // And back.
    let back = rollout_request("web", None);
    let error = commands::rollback(&world.cluster, &back, &world.call()).unwrap_err();
    refused_with_both_names(&error, "default/web", "default/other");
    world.change_of("other", commands::rm, None);
    let back = commands::rollback(&world.cluster, &back, &world.call()).unwrap();
    world.store(back.writes);
    world.run(12);
    let routes = world.cluster.workload(&web()).unwrap().routes.clone();
    let routes = routes.unwrap();
    assert_eq!((routes.kind, routes.routes.len()), (Kind::Http, 1));
}

#[test]
fn what_becomes_a_job_leaves_the_tables_at_once() {
    let mut world = World::new(2);
    deploy(&mut world, with_route("web", "1")).unwrap();
    world.run(8);
    let job = WorkloadSpec {
        routes: Vec::new(),
        ..spec("2", 1)
    };
    world.deploy(job, Kind::Job);
    world.round();
    let workload = world.cluster.workload(&web()).unwrap();
    let routes = workload.routes.as_ref().unwrap();
    assert_eq!((routes.kind, routes.routes.len()), (Kind::Job, 0));
    let endpoints = workload.endpoints.as_ref().unwrap().whole();
    assert_eq!(endpoints.hosts, []);
}

#[test]
fn an_automatic_name_is_no_other_workloads_route() {
    let mut world = World::new(2);
    let mut with = |workload: &str, route: &str| {
        let spec = WorkloadSpec {
            routes: vec![route.to_owned()],
            ..with_route(workload, "1")
        };
        deploy(&mut world, spec).map_err(|error| (error.code, error.what, error.why))
    };
    for (route, why) in [
        ("hello.default.localhost/", "default/hello"),
        ("Hello.default.localhost/api", "default/hello"),
        ("other.shop.localhost/", "shop/other"),
        ("*.default.localhost/", "namespace default"),
    ] {
        let (code, what, said) = with("other", route).unwrap_err();
        assert_eq!(code, wasmorch_api::ErrorCode::Invalid);
        let lower = route.to_ascii_lowercase();
        let host = lower.split('/').next().unwrap();
        assert!(
            what.contains(host) && what.contains("default/other"),
            "{what}"
        );
        assert!(said.contains(why), "{said}");
    }
    for route in [
        "other.default.localhost/",
        "shop.localhost/",
        "a.b.c.localhost/",
        "*.localhost/",
        "hello.default.example.com/",
    ] {
        with("other", route).unwrap();
    }
}
