//! Manifests and requests, each with what is read from it or all that is said about it.

use crate::manifest::{ComponentRef, Problem, not_undone, not_yet, read_deploy, read_manifest};
use crate::spec::Kind;

fn messages(problems: &[Problem]) -> String {
    problems
        .iter()
        .map(|problem| format!("{problem}\n"))
        .collect()
}

/// A file of `testdata/`, read.
macro_rules! corpus {
    ($($test:ident: $file:literal,)*) => {$(
        #[test]
        fn $test() {
            let text = include_str!(concat!("../testdata/", $file));
            let shown = match read_manifest(text) {
                Ok(manifest) => serde_json::to_string_pretty(
                    &manifest.workloads.iter().map(|workload| &workload.spec).collect::<Vec<_>>(),
                )
                .unwrap(),
                Err(problems) => messages(&problems),
            };
            insta::assert_snapshot!($file, shown);
        }
    )*};
}

corpus! {
    small: "small.toml",
    digest: "digest.toml",
    contract: "contract.toml",
    bad_keys: "bad-keys.toml",
    bad_types: "bad-types.toml",
    bad_values: "bad-values.toml",
    bad_syntax: "bad-syntax.toml",
    empty: "empty.toml",
    no_workload: "no-workload.toml",
}

#[test]
fn the_contract_is_read_whole() {
    let manifest = read_manifest(include_str!("../testdata/contract.toml")).unwrap();
    assert_eq!(manifest.namespace.unwrap().as_str(), "shop");
    assert!(manifest.atomic);
    assert_eq!(manifest.workloads.len(), 3);
    let web = &manifest.workloads[0];
    assert_eq!(web.component, Some(ComponentRef::Path("web.wasm".into())));
    assert_eq!((web.spec.artifact.clone(), web.at.0), (None, 3));
}

#[test]
fn what_the_contract_shows_runs() {
    let manifest = read_manifest(include_str!("../testdata/contract.toml")).unwrap();
    let mut shown = String::new();
    for workload in &manifest.workloads {
        let kind = workload.spec.kind.unwrap_or(Kind::Messages);
        let problems = not_yet(&workload.spec, kind);
        let located: Vec<_> = problems
            .into_iter()
            .map(|problem| workload.locate(problem))
            .collect();
        shown.push_str(&messages(&located));
    }
    let manifest = read_manifest(include_str!("../testdata/digest.toml")).unwrap();
    for workload in &manifest.workloads {
        shown.push_str(&messages(&not_yet(&workload.spec, Kind::Service)));
    }
    assert_eq!(shown, "", "nothing of it is \"not yet\"");
    let small = read_manifest(include_str!("../testdata/small.toml")).unwrap();
    assert_eq!(not_yet(&small.workloads[0].spec, Kind::Http), []);
}

#[test]
fn what_cannot_go_back_with_others() {
    let manifest = read_manifest(include_str!("../testdata/small.toml")).unwrap();
    let mut spec = manifest.workloads[0].spec.clone();
    for kind in [Kind::Http, Kind::Cron] {
        assert_eq!(not_undone(&spec, kind), []);
    }
    spec.update.on_failure = crate::spec::OnFailure::Pause;
    let both = not_undone(&spec, Kind::Job);
    assert_eq!(
        both.iter().map(|one| one.at.as_str()).collect::<Vec<_>>(),
        ["kind", "update.on_failure"]
    );
    assert!(
        both[0]
            .what
            .contains("a job cannot be deployed with `atomic`")
    );
}

/// All that is said about a workload with this `scale`.
fn scaled(kind: &str, scale: &str) -> String {
    let text = format!(
        "[workload]\nname = \"w\"\ncomponent = \"w.wasm\"\nkind = \"{kind}\"\nscale = {{ {scale} }}\n"
    );
    match read_manifest(&text) {
        Ok(manifest) => {
            let spec = &manifest.workloads[0].spec;
            messages(&not_yet(spec, spec.kind.unwrap()))
        }
        Err(problems) => messages(&problems),
    }
}

/// Of each, one thing is said, or nothing where nothing is expected.
#[track_caller]
fn said_of_scales(cases: &[(&str, &str, &str)]) {
    for (kind, scale, said) in cases {
        let shown = scaled(kind, scale);
        let one = shown.lines().count() == usize::from(!said.is_empty());
        assert!(one && shown.contains(said), "{kind}, {scale}: {shown}");
    }
}

#[test]
fn what_a_scale_may_follow() {
    said_of_scales(&[
        ("http", "max = 9, target = { concurrency = 5 }", ""),
        ("http", "max = 9, target = { requests_per_second = 5 }", ""),
        ("service", "max = 9, target = { cpu = 70 }", ""),
        ("messages", "max = 9, target = { concurrency = 5 }", ""),
        (
            "messages",
            "max = 9, target = { pending = 5 }",
            "pending counts what waits in a stream: name one in bindings.subscribe",
        ),
        (
            "service",
            "min = 0, max = 9, target = { cpu = 70 }",
            "scale.min: is 1 or more for a service",
        ),
        ("messages", "min = 0, max = 9, target = { cpu = 70 }", ""),
        (
            "messages",
            "max = 9, target = { requests_per_second = 5 }",
            "requests_per_second is for http",
        ),
        (
            "service",
            "max = 9, target = { concurrency = 5 }",
            "concurrency is for http and messages: write cpu",
        ),
        (
            "http",
            "max = 9, target = { cpu = 170 }",
            "scale.target.cpu",
        ),
        ("http", "max = 9, target = {}", "names no measure"),
        (
            "http",
            "max = 9, target = { cpu = 70, concurrency = 5 }",
            "names several measures",
        ),
        (
            "http",
            "max = 9, target = { cpu = 70 }, window = \"2h\"",
            "scale.window",
        ),
        (
            "http",
            "max = 9, target = { cpu = 70 }, panic = \"100ms\"",
            "scale.panic",
        ),
        (
            "job",
            "max = 9, target = { cpu = 70 }",
            "is for what runs on",
        ),
    ]);
    let unknown = scaled("http", "max = 9, target = { latency = 5 }");
    assert!(
        unknown.contains("scale.target.latency") && unknown.contains("names no measure"),
        "{unknown}"
    );
}

#[test]
fn what_no_replica_could_exceed_is_no_target() {
    said_of_scales(&[
        // A replica has 100 seats and as many places to wait; within the tolerance the count stays.
        ("http", "max = 9, target = { concurrency = 181 }", ""),
        (
            "http",
            "max = 9, target = { concurrency = 182 }",
            "one carries 200 at most (resources.concurrency and queue)",
        ),
        (
            "messages",
            "max = 9, target = { concurrency = 200 }, tolerance = \"0%\"",
            "concurrency = 200 would never make a replica more",
        ),
        ("http", "max = 9, target = { cpu = 90 }", ""),
        (
            "http",
            "max = 9, target = { cpu = 95 }",
            "one carries 100 at most (percent of resources.cpu)",
        ),
        (
            "http",
            "max = 9, target = { cpu = 95 }, tolerance = \"5%\"",
            "",
        ),
    ]);
    // By what the replica itself may take.
    for (kind, target, resources, said) in [
        ("http", "concurrency = 10", "concurrency = 8, queue = 4", ""),
        (
            "http",
            "concurrency = 50",
            "concurrency = 8, queue = 4",
            "one carries 12 at most",
        ),
        ("service", "cpu = 70", "cpu = \"1\"", ""),
        (
            "service",
            "cpu = 70",
            "cpu = \"2\"",
            "one carries 50 at most (percent of resources.cpu, for a service uses one core)",
        ),
        // Two thirds of it are more than 60 and a tenth, and not more than 61 and a tenth.
        ("service", "cpu = 60", "cpu = \"1500m\"", ""),
        (
            "service",
            "cpu = 61",
            "cpu = \"1500m\"",
            "one carries 66 at most",
        ),
        ("http", "cpu = 70", "cpu = \"2\"", ""),
    ] {
        let scale = format!("max = 9, target = {{ {target} }} }}\nresources = {{ {resources}");
        said_of_scales(&[(kind, &scale, said)]);
    }
}

#[test]
fn requests() {
    let digest = format!("sha256:{}", "0".repeat(64));
    let good = format!(
        r#"{{"workloads":[{{"name":"web","artifact":"{digest}","replicas":2,"health":{{"ready":false}}}}],
            "if_index":18446744073709551615,"request_id":"r-1","by":"ann"}}"#
    );
    let request = read_deploy(good.as_bytes()).unwrap();
    assert_eq!(request.if_index, Some(u64::MAX));
    assert_eq!(request.by.as_deref(), Some("ann"));
    assert_eq!(request.workloads[0].health.ready, None);
    let mut shown = String::new();
    for bad in [
        "",
        "[]",
        "{}",
        "null",
        r#"{"workloads":[]}"#,
        r#"{"workloads":{}}"#,
        r#"{"workloads":[1]}"#,
        r#"{"workloads":[{}, {}]}"#,
        r#"{"workloads":[],"workloads":[]}"#,
        r#"{"workloads":[{"name":"web","component":"web.wasm","replicas":null}],"atomic":1}"#,
        r#"{"workload":[],"if_index":-1,"request_id":"a b","by":"a\nb"}"#,
        &format!(
            r#"{{"workloads":[{{"name":"web","artifact":"{digest}","routes":["a.b"]}},
                {{"name":"web","artifact":"sha256:1","routes":["A.B/"]}}]}}"#
        ),
    ] {
        shown.push_str(&format!(
            "{bad}\n{}\n",
            messages(&read_deploy(bad.as_bytes()).unwrap_err())
        ));
    }
    insta::assert_snapshot!("requests", shown);
}

/// What says where and how replicas run, and says it wrongly: each mistake is named, by file and by API.
#[test]
fn absurd_placement_is_refused() {
    for (line, said) in [
        ("replicas = -1", "replicas"),
        ("replicas = 1.5", "replicas"),
        ("replicas = 9999999999", "replicas"),
        ("min_available = -1", "min_available"),
        (
            "scale = { min = -1, max = 3, target = { cpu = 70 } }",
            "scale.min",
        ),
        ("job = { completions = -3 }", "job.completions"),
        ("instance = { concurrency = 2 }", "instance.concurrency"),
        (
            "instance = { reuse = 5, concurrency = 0 }",
            "instance.concurrency",
        ),
        (
            "resources = { reserve = { memory = -1 } }",
            "resources.reserve.memory",
        ),
        (
            "constraints = [{ label = true, eq = \"a\" }]",
            "constraints[0].label",
        ),
        (
            "constraints = [{ label = \"zone\", eq = 5 }]",
            "constraints[0].eq",
        ),
        (
            "constraints = [{ label = \"zone\", in = [[]] }]",
            "constraints[0].in[0]",
        ),
        (
            "constraints = [{ distinct = [\"host\"] }]",
            "constraints[0].distinct",
        ),
        (
            "constraints = [{ distinct = \"host\", max = -2 }]",
            "constraints[0].max",
        ),
        (
            "affinity = [{ label = \"a\", eq = \"b\", weight = -101 }]",
            "affinity[0].weight",
        ),
        ("routes = [\"orders.shop.internal/\"]", "routes[0]"),
        ("tolerate = [5]", "tolerate[0]"),
        ("spread = [{}]", "spread[0]"),
        (
            "bindings = { sockets = { listen = [-1] } }",
            "bindings.sockets.listen[0]",
        ),
    ] {
        let text = format!("[workload]\nname = \"a\"\ncomponent = \"a\"\n{line}\n");
        let problems = read_manifest(&text).unwrap_err();
        let named = problems.iter().any(|one| one.at.ends_with(said));
        assert!(named, "{line}: {problems:?}");
        let workload: toml::Table = toml::from_str(line).unwrap();
        let mut workload = serde_json::to_value(workload).unwrap();
        workload["name"] = "a".into();
        workload["artifact"] = format!("sha256:{}", "0".repeat(64)).into();
        let body = serde_json::json!({ "workloads": [workload] }).to_string();
        let problems = read_deploy(body.as_bytes()).unwrap_err();
        let named = problems.iter().any(|one| one.at.ends_with(said));
        assert!(named, "{body}: {problems:?}");
    }
}

#[test]
fn a_subscription_that_is_neither_says_both_that_it_may_be() {
    let text = "[workload]\nname = \"a\"\ncomponent = \"a\"\nbindings = { subscribe = [5] }\n";
    let problems = read_manifest(text).unwrap_err();
    let what = &problems[0].what;
    assert!(
        what.contains("a subject like") && what.contains("a table"),
        "{what}"
    );
}

#[test]
fn what_is_too_much_is_refused_shortly() {
    let with = |line: &str| format!("[workload]\nname = \"a\"\ncomponent = \"a\"\n{line}\n");
    let what = |line: &str| {
        let problems = read_manifest(&with(line)).unwrap_err();
        assert!(problems.len() <= 101, "{}", problems.len());
        problems.last().unwrap().what.clone()
    };
    let constraints = "{ distinct = \"host\" }, ".repeat(1_001);
    assert_eq!(
        what(&format!("constraints = [{constraints}]")),
        "has 1001 entries; at most 1000 are accepted"
    );
    let wrong = "{ distinct = 1 }, ".repeat(1_000);
    assert_eq!(
        what(&format!("constraints = [{wrong}]")),
        "and 900 more mistakes"
    );
    let large = format!("config = {{ a = \"{}\" }}", "x".repeat(128 * 1024));
    assert!(
        what(&large).contains("at most 131072 are accepted"),
        "{}",
        what(&large)
    );
    let many = "[[workload]]\nname = \"a\"\ncomponent = \"a\"\n".repeat(301);
    assert_eq!(
        read_manifest(&many).unwrap_err()[0].what,
        "has 301 entries; at most 300 are accepted"
    );
}

/// Every manifest in the reference is read, and runs in this version.
#[test]
fn the_reference_holds() {
    let page = include_str!("../../../../docs/reference.md");
    let examples: Vec<&str> = page
        .split("```toml\n")
        .skip(1)
        .map(|rest| rest.split("```").next().unwrap())
        .collect();
    assert!(examples.len() >= 2);
    for example in examples {
        let manifest =
            read_manifest(example).unwrap_or_else(|problems| panic!("{}", messages(&problems)));
        for workload in manifest.workloads {
            assert_eq!(not_yet(&workload.spec, Kind::Http), []);
        }
    }
}
