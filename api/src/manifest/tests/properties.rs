//! What must hold for every spec and every text.

use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

use crate::ids::{Digest, Name};
use crate::manifest::{read_deploy, read_manifest};
use crate::spec::*;
use crate::units::{ByteSize, Cpu, HumanDuration, Share};

fn duration() -> impl Strategy<Value = HumanDuration> {
    (1u64..10_000_000).prop_map(HumanDuration::millis)
}

fn word() -> impl Strategy<Value = String> {
    "[a-z][a-z0-9]{0,10}"
}

fn any_text() -> impl Strategy<Value = String> {
    "\\PC{0,20}"
}

fn label_test() -> impl Strategy<Value = LabelTest> {
    prop_oneof![
        any_text().prop_map(LabelTest::Eq),
        any_text().prop_map(LabelTest::Ne),
        vec(any_text(), 1..4).prop_map(LabelTest::In),
        vec(any_text(), 1..4).prop_map(LabelTest::NotIn),
        any_text().prop_map(LabelTest::Matches),
        any::<bool>().prop_map(LabelTest::Exists),
    ]
}

fn constraint() -> impl Strategy<Value = Constraint> {
    prop_oneof![
        (word(), label_test()).prop_map(|(label, test)| Constraint::Label { label, test }),
        (word(), 1u32..100).prop_map(|(distinct, max)| Constraint::Distinct { distinct, max }),
    ]
}

fn affinity() -> impl Strategy<Value = Affinity> {
    (word(), -100..=100, label_test()).prop_map(|(label, weight, test)| Affinity {
        label,
        weight,
        test,
    })
}

fn probe() -> impl Strategy<Value = Probe> {
    (
        "/[a-z]{0,8}",
        100u16..300,
        300u16..600,
        duration(),
        1u64..3_600_000,
        1u32..9,
        1u32..9,
    )
        .prop_map(|(path, from, to, interval, timeout, pass, fail)| Probe {
            path,
            status: Some(StatusRange { from, to }),
            interval: HumanDuration(interval.0 + std::time::Duration::from_millis(10)),
            timeout: HumanDuration::millis(timeout),
            pass,
            fail,
        })
}

fn resources() -> impl Strategy<Value = Resources> {
    (
        65_536u64..1 << 40,
        1u64..64_000,
        1u32..1_000,
        0u32..1_000,
        duration(),
        0u64..1 << 30,
    )
        .prop_map(
            |(memory, cpu, concurrency, queue, timeout, body)| Resources {
                memory: ByteSize(memory),
                cpu: Cpu(cpu),
                concurrency,
                queue,
                timeout,
                body: ByteSize(body),
                reserve: Reserve {
                    memory: ByteSize(memory / 2),
                    cpu: Cpu(cpu / 2),
                },
            },
        )
}

fn disconnect() -> impl Strategy<Value = Disconnect> {
    let reconcile = select(vec![
        Reconcile::KeepOriginal,
        Reconcile::KeepReplacement,
        Reconcile::LongestRunning,
        Reconcile::BestScore,
    ]);
    (
        duration(),
        option::of(Just(HumanDuration::secs(3))),
        any::<bool>(),
        reconcile,
        any::<bool>(),
    )
        .prop_map(
            |(lost_after, stop_after, replace, reconcile, exclusive)| Disconnect {
                lost_after: if stop_after.is_some() {
                    lost_after.max(HumanDuration::secs(4))
                } else {
                    lost_after
                },
                replace,
                reconcile,
                stop_after,
                exclusive: exclusive && stop_after.is_some(),
            },
        )
}

fn subscription() -> impl Strategy<Value = Subscription> {
    let consumer = (
        word(),
        option::of(word()),
        option::of(1u32..99),
        option::of(1u32..99),
        option::of(word()),
    );
    (
        "[a-z]{1,9}(\\.[a-z]{1,4}|\\.\\*){0,3}(\\.>)?",
        option::of(consumer),
    )
        .prop_map(|(subject, consumer)| {
            let Some((stream, durable, max_in_flight, attempts, dead_letter)) = consumer else {
                return Subscription {
                    subject,
                    ..Subscription::default()
                };
            };
            Subscription {
                subject,
                stream: Some(stream),
                durable,
                max_in_flight,
                attempts,
                dead_letter,
            }
        })
}

fn bindings() -> impl Strategy<Value = Bindings> {
    let store = |setting: &'static str| {
        let settings = btree_map(Just(setting.to_owned()), word(), 0..2);
        btree_map(
            word(),
            settings.prop_map(|settings| StoreBinding {
                backend: "jetstream".into(),
                settings,
            }),
            0..3,
        )
    };
    let volume = (option::of(4_096u64..1 << 40), select(vec!["ro", "rw"]));
    let sockets = (vec("[a-z]{1,5}:[1-9][0-9]{0,3}", 0..3), vec(1u16.., 0..3));
    let lists = (
        vec("[a-z]{1,5}\\.[a-z]{2}(:80)?", 0..3),
        vec(word(), 0..3),
        vec(word(), 0..3),
        vec(subscription(), 0..3),
    );
    let tables = (
        store("bucket"),
        store("container"),
        btree_map(word(), volume, 0..3),
        option::of(sockets),
    );
    (lists, tables).prop_map(
        |((http, workloads, publish, subscribe), (keyvalue, blobstore, volumes, sockets))| {
            let volume = |(name, (size, mode)): (String, (Option<u64>, &str))| {
                let path = format!("/{name}");
                let size = size.map(ByteSize);
                (
                    name,
                    Volume {
                        path,
                        size,
                        mode: mode.into(),
                        on_host_loss: "wait".into(),
                    },
                )
            };
            Bindings {
                http,
                workloads,
                publish,
                subscribe,
                keyvalue,
                blobstore,
                volume: volumes.into_iter().map(volume).collect(),
                sockets: sockets.map(|(connect, listen)| Sockets { connect, listen }),
            }
        },
    )
}

fn update() -> impl Strategy<Value = Update> {
    let canary = (1u32..9, option::of(1u32..=100), duration(), any::<bool>()).prop_map(
        |(replicas, percent, bake, manual)| Canary {
            replicas,
            percent,
            bake,
            promote: if manual {
                Promote::Manual
            } else {
                Promote::Auto
            },
        },
    );
    let fail_when = (0u32..=100_000, 1u32..99, option::of(duration())).prop_map(
        |(errors, min_requests, p99)| FailWhen {
            errors: Share(errors),
            min_requests,
            p99,
        },
    );
    let numbers = (1u32..9, 1u32..9, 0u64..1_000, 1_001u64..9_000, duration());
    let rest = (
        option::of(word()),
        any::<bool>(),
        any::<bool>(),
        option::of(fail_when),
        option::of(canary),
    );
    (numbers, rest).prop_map(
        |(
            (max_surge, max_unavailable, min_ready, deadline, drain),
            (by, stop_first, pause, fail_when, canary),
        )| Update {
            max_surge: if stop_first { 0 } else { max_surge },
            max_unavailable,
            min_ready: HumanDuration::millis(min_ready),
            progress_deadline: HumanDuration::millis(deadline),
            order: if stop_first {
                UpdateOrder::StopFirst
            } else {
                UpdateOrder::StartFirst
            },
            by,
            drain,
            on_failure: if pause {
                OnFailure::Pause
            } else {
                OnFailure::Revert
            },
            fail_when,
            canary: canary.filter(|_| !stop_first),
        },
    )
}

fn amount() -> impl Strategy<Value = (Option<Replicas>, Option<Scale>)> {
    let scale =
        (0u32..9, 9u32..99, 1u32..99, 0u32..=100_000).prop_map(|(min, max, target, tolerance)| {
            Scale {
                min,
                max,
                target: [("concurrency".to_owned(), target)].into(),
                window: HumanDuration::secs(60),
                panic: HumanDuration::secs(6),
                tolerance: Share(tolerance),
            }
        });
    prop_oneof![
        Just((None, None)),
        (0u32..=1_000_000).prop_map(|count| (Some(Replicas::Count(count)), None)),
        Just((Some(Replicas::PerHost(PerHost::PerHost)), None)),
        scale.prop_map(|scale| (None, Some(scale))),
    ]
}

/// Any legal spec without a kind: what a kind rules out is tested by the corpus.
fn spec() -> impl Strategy<Value = WorkloadSpec> {
    let texts = (
        vec(any_text(), 0..4),
        btree_map(word(), any_text(), 0..4),
        btree_map(word(), any_text(), 0..4),
    );
    let places = (
        vec(constraint(), 0..4),
        vec(affinity(), 0..4),
        vec(word(), 0..4),
        disconnect(),
    );
    let life = (
        option::of(probe()),
        option::of(probe()),
        update(),
        duration(),
        1u32..9,
    );
    let policy = option::of(select(vec![
        RestartPolicy::Always,
        RestartPolicy::OnFailure,
        RestartPolicy::Never,
    ]));
    (
        texts,
        places,
        life,
        amount(),
        bindings(),
        resources(),
        policy,
    )
        .prop_map(
            |(texts, places, life, (replicas, scale), bindings, resources, policy)| {
                let (args, environment, config) = texts;
                let (mut constraints, affinity, mut tolerate, disconnect) = places;
                if matches!(replicas, Some(Replicas::PerHost(_))) {
                    constraints.retain(|one| matches!(one, Constraint::Label { .. }));
                }
                let (ready, live, update, start_grace, attempts) = life;
                tolerate.sort();
                tolerate.dedup();
                let mut spec = WorkloadSpec {
                    name: "web".parse().unwrap(),
                    artifact: Some(Digest::of(b"web")),
                    args,
                    depends_on: vec!["orders".parse::<Name>().unwrap()],
                    routes: vec!["a.b/c".into()],
                    replicas,
                    scale,
                    environment,
                    config,
                    resources,
                    restart: Restart {
                        policy,
                        ..Restart::default()
                    },
                    constraints,
                    affinity,
                    tolerate,
                    disconnect,
                    health: Health {
                        start_grace,
                        ready,
                        live,
                    },
                    update,
                    bindings,
                    job: Job {
                        attempts,
                        ..Job::default()
                    },
                    ..WorkloadSpec::default()
                };
                repair(&mut spec);
                spec
            },
        )
}

/// Makes what was drawn independently fit together.
fn repair(spec: &mut WorkloadSpec) {
    let Bindings {
        http,
        workloads,
        publish,
        subscribe,
        sockets,
        ..
    } = &mut spec.bindings;
    for list in [http, workloads, publish] {
        list.sort();
        list.dedup();
    }
    subscribe.dedup_by_key(|subscription| subscription.subject.clone());
    subscribe.truncate(1);
    if let Some(sockets) = sockets {
        sockets.connect.sort();
        sockets.connect.dedup();
        sockets.listen.sort_unstable();
        sockets.listen.dedup();
    }
    if spec.bindings.writes() || spec.runs_once() || spec.per_host() && spec.bindings.listens() {
        spec.update.order = UpdateOrder::StopFirst;
        spec.update.max_surge = 0;
        spec.update.canary = None;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn a_serialised_spec_reads_back(spec in spec()) {
        let body = serde_json::json!({ "workloads": [spec] }).to_string();
        let request = read_deploy(body.as_bytes());
        prop_assert_eq!(request.map(|request| request.workloads), Ok(vec![spec.clone()]), "{}", body);
        // The lenient form of our own parts agrees.
        let json = serde_json::to_string(&spec).unwrap();
        prop_assert_eq!(serde_json::from_str::<WorkloadSpec>(&json).unwrap(), spec);
    }

    #[test]
    fn a_spec_written_as_toml_reads_back(spec in spec()) {
        let mut written = serde_json::to_value(&spec).unwrap();
        let digest = written.as_object_mut().unwrap().remove("artifact").unwrap();
        written["component"] = digest;
        let text = toml::to_string(&serde_json::json!({ "workload": written })).unwrap();
        let manifest = read_manifest(&text);
        prop_assert_eq!(manifest.map(|mut manifest| manifest.workloads.remove(0).spec), Ok(spec), "{}", text);
    }

    #[test]
    fn no_text_panics(text in "\\PC{0,200}") {
        let _ = read_manifest(&text);
        let _ = read_deploy(text.as_bytes());
    }

    /// The contract's example with lines dropped, doubled, and characters changed: near to legal.
    #[test]
    fn no_damaged_manifest_panics(
        edits in vec((any::<proptest::sample::Index>(), any::<proptest::sample::Index>(), "\\PC{0,3}"), 1..6),
    ) {
        let mut text = include_str!("../testdata/contract.toml").to_owned();
        for (from, to, new) in edits {
            let bounds: Vec<usize> = text.char_indices().map(|(at, _)| at).collect();
            let (from, length) = (*from.get(&bounds), to.index(40));
            let to = bounds.iter().copied().find(|at| *at >= from + length).unwrap_or(text.len());
            text.replace_range(from..to.max(from), &new);
        }
        if let Err(problems) = read_manifest(&text) {
            prop_assert!(!problems.is_empty());
            prop_assert!(problems.iter().all(|problem| problem.line.is_some() && !problem.what.is_empty()));
        }
    }

    /// Values of the wrong type in the place of every key.
    #[test]
    fn no_wrong_type_panics(at in any::<proptest::sample::Index>(), value in select(vec!["1", "-1", "1.5", "nan", "true", "\"\"", "[]", "{}", "[[]]", "1979-05-27"])) {
        let text = include_str!("../testdata/contract.toml");
        let lines: Vec<&str> = text.lines().collect();
        let line = at.index(lines.len());
        let Some((key, _)) = lines[line].split_once(" = ") else { return Ok(()) };
        let replaced = format!("{key} = {value}");
        let mut lines = lines;
        lines[line] = &replaced;
        let _ = read_manifest(&lines.join("\n"));
    }
}
