//! The tables against a model that knows no index and no order.

use proptest::prelude::*;
use wasmorch_api::{ClusterId, HostEndpoint, Kind, Name, Route, Term};

use super::*;

fn key(namespace: &str, name: &str) -> WorkloadKey {
    WorkloadKey::new(namespace.parse().unwrap(), name.parse().unwrap())
}

fn routes(key: &WorkloadKey, routes: &[&str]) -> RouteTable {
    RouteTable {
        cluster: ClusterId::from_random([0; 10]),
        term: Term(1),
        namespace: key.namespace.clone(),
        workload: key.name.clone(),
        kind: Kind::Http,
        routes: routes
            .iter()
            .map(|route| Route::parse(route).unwrap())
            .collect(),
        timeout: None,
    }
}

fn endpoints(key: &WorkloadKey, ready: u32) -> EndpointTable {
    EndpointTable {
        cluster: ClusterId::from_random([0; 10]),
        term: Term(1),
        namespace: key.namespace.clone(),
        workload: key.name.clone(),
        hosts: vec![HostEndpoint {
            host: "h1".parse().unwrap(),
            peer: Some("127.0.0.1:1".into()),
            ready,
            standby: None,
            weight: 1,
            canary: 0,
            zone: None,
        }],
        canary: None,
    }
}

fn found(tables: &Tables, host: &str, path: &str) -> Option<WorkloadKey> {
    tables
        .find(host, path, "localhost")
        .map(|target| target.key.clone())
}

#[test]
fn precedence() {
    let tables = Tables::new();
    let [web, shop, api, wide, wider] =
        ["web", "shop", "api", "wide", "wider"].map(|name| key("default", name));
    tables.apply_routes(routes(&web, &[]), 1);
    tables.apply_routes(
        routes(&shop, &["a.example.com/", "web.default.localhost/x"]),
        2,
    );
    tables.apply_routes(routes(&api, &["a.example.com/api/"]), 3);
    tables.apply_routes(routes(&wide, &["*.example.com/only"]), 4);
    tables.apply_routes(routes(&wider, &["*.com/"]), 5);
    for (host, path, expected) in [
        ("web.default.localhost", "/x/y", Some(&web)),
        ("a.example.com", "/", Some(&shop)),
        ("a.example.com", "/api", Some(&api)),
        ("a.example.com", "/api/v1", Some(&api)),
        ("a.example.com", "/apis", Some(&shop)),
        ("b.example.com", "/only", Some(&wide)),
        ("b.c.example.com", "/only/x", Some(&wide)),
        ("b.example.com", "/other", Some(&wider)),
        ("example.com", "/only", Some(&wider)),
        ("com", "/", None),
        ("web.other.localhost", "/", None),
        ("xweb.default.localhost", "/", None),
        ("", "/", None),
        ("localhost", "/", None),
        (".localhost", "/", None),
    ] {
        assert_eq!(
            found(&tables, host, path).as_ref(),
            expected,
            "{host} {path}"
        );
    }
    tables.remove_routes(&web, 6);
    assert_eq!(found(&tables, "web.default.localhost", "/x/y"), Some(shop));
}

#[test]
fn only_http_workloads_are_routed() {
    let tables = Tables::new();
    let orders = key("default", "orders");
    let table = RouteTable {
        kind: Kind::Messages,
        ..routes(&orders, &["a.example.com"])
    };
    tables.apply_routes(table, 1);
    assert_eq!(found(&tables, "orders.default.localhost", "/"), None);
    assert_eq!(found(&tables, "a.example.com", "/"), None);
}

#[test]
fn an_older_version_is_ignored_and_a_deletion_is_a_version() {
    let tables = Tables::new();
    let web = key("default", "web");
    tables.apply_routes(routes(&web, &["new.example.com"]), 5);
    tables.apply_routes(routes(&web, &["old.example.com"]), 4);
    assert_eq!(found(&tables, "new.example.com", "/"), Some(web.clone()));
    assert_eq!(found(&tables, "old.example.com", "/"), None);
    tables.remove_routes(&web, 3);
    assert_eq!(found(&tables, "new.example.com", "/"), Some(web.clone()));
    tables.remove_routes(&web, 6);
    tables.apply_routes(routes(&web, &["new.example.com"]), 5);
    assert_eq!(found(&tables, "new.example.com", "/"), None);
    assert_eq!(tables.sequence(), 0, "routes come another way");

    tables.apply_endpoints(endpoints(&web, 2), 8);
    tables.apply_endpoints(endpoints(&web, 1), 7);
    assert_eq!(tables.snapshot().1, [endpoints(&web, 2)]);
    tables.remove_endpoints(&web, 9);
    tables.apply_endpoints(endpoints(&web, 1), 8);
    assert!(tables.snapshot().1.is_empty());
    assert_eq!(tables.sequence(), 9);
}

#[test]
fn a_listing_replaces_all_but_what_is_newer() {
    let tables = Tables::new();
    let [web, gone, live] = ["web", "gone", "live"].map(|name| key("default", name));
    tables.apply_routes(routes(&web, &[]), 9);
    tables.apply_routes(routes(&gone, &[]), 2);
    tables.apply_routes(routes(&live, &[]), 12);
    tables.apply_endpoints(endpoints(&gone, 1), 3);
    tables.replace_all(
        vec![(routes(&web, &["old.example.com"]), 8)],
        vec![(endpoints(&web, 1), 10)],
    );
    let (held, hosts) = tables.snapshot();
    assert_eq!(
        held,
        [routes(&live, &[]), routes(&web, &[])],
        "the live update stays, the newer too"
    );
    assert_eq!(hosts, [endpoints(&web, 1)]);
    assert_eq!(tables.sequence(), 10);
    tables.replace_all_as_of(vec![], vec![], 20);
    assert_eq!(tables.snapshot(), (vec![], vec![]));
    assert_eq!(tables.sequence(), 20);
}

#[test]
fn forgotten_deletions_still_hold() {
    let mut versions = Versions::<u32>::default();
    let web = key("default", "web");
    versions.put(web.clone(), 5, Some(1));
    versions.put(web.clone(), 6, None);
    versions.forget_a_deletion();
    assert!(versions.entries.is_empty());
    assert!(!versions.accepts(&web, 5) && !versions.accepts(&web, 6) && versions.accepts(&web, 7));
}

/// What the index must agree with: all routes, one by one, through `Route::matches`.
fn model(tables: &[RouteTable], host: &str, path: &str) -> Option<WorkloadKey> {
    let named =
        |table: &&RouteTable| format!("{}.{}.localhost", table.workload, table.namespace) == host;
    if let Some(table) = tables.iter().find(named) {
        return Some(table.key());
    }
    let rank = |route: &Route| {
        let exact = !route.host.starts_with('*');
        (
            exact,
            route.host.len(),
            route.path.trim_end_matches('/').len(),
        )
    };
    tables
        .iter()
        .flat_map(|table| table.routes.iter().map(|route| (route, table.key())))
        .filter(|(route, _)| route.matches(host, path))
        .max_by(|(a, a_key), (b, b_key)| rank(a).cmp(&rank(b)).then(b_key.cmp(a_key)))
        .map(|(_, key)| key)
}

fn a_host() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(vec!["a", "b", "localhost"]), 1..4)
        .prop_map(|labels| labels.join("."))
}

fn a_path() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(vec!["", "x", "xy", "y"]), 1..4)
        .prop_map(|segments| format!("/{}", segments.join("/")))
}

fn a_route() -> impl Strategy<Value = Route> {
    (any::<bool>(), a_host(), a_path()).prop_map(|(wild, host, path)| {
        Route::parse(&format!("{}{host}{path}", if wild { "*." } else { "" })).unwrap()
    })
}

proptest! {
    #[test]
    fn the_index_agrees_with_the_model(
        changes in prop::collection::vec(
            (0..3usize, prop::option::weighted(0.8, prop::collection::vec(a_route(), 0..5))),
            1..12,
        ),
        asked in prop::collection::vec((a_host(), a_path()), 1..20),
    ) {
        let names: [Name; 3] = ["a", "b", "c"].map(|name| name.parse().unwrap());
        let tables = Tables::new();
        let mut held = std::collections::BTreeMap::new();
        for (at, (name, change)) in changes.into_iter().enumerate() {
            let key = WorkloadKey::new(names[1].clone(), names[name].clone());
            let sequence = at as u64 + 1;
            match change {
                Some(list) => {
                    let table = RouteTable { routes: list, ..routes(&key, &[]) };
                    held.insert(key, table.clone());
                    tables.apply_routes(table, sequence);
                }
                None => {
                    held.remove(&key);
                    tables.remove_routes(&key, sequence);
                }
            }
        }
        let held: Vec<_> = held.into_values().collect();
        for (host, path) in asked {
            prop_assert_eq!(
                found(&tables, &host, &path), model(&held, &host, &path), "{} {}", host, path
            );
        }
        prop_assert_eq!(tables.snapshot().0, held);
    }
}
