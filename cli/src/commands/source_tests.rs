//! What is read from files and flags, and how it is refused.

use super::*;
use crate::args::{Global, KeyValue};
use crate::out::Out;

fn ctx() -> Context {
    let global = Global::default();
    Context {
        out: Out::new(&global),
        global,
    }
}

fn args(file: &Path) -> SpecArgs {
    SpecArgs {
        file: file.to_owned(),
        ..SpecArgs::default()
    }
}

fn refusal(file: &Path) -> CliError {
    match prepare(&ctx(), &args(file)) {
        Ok(_) => panic!("accepted"),
        Err(error) => error,
    }
}

#[test]
fn files_that_are_no_component_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("app.wasm");
    assert_eq!(refusal(&file).exit, Exit::NOT_FOUND);
    assert_eq!(refusal(folder.path()).exit, Exit::NOT_FOUND);
    for bytes in [&b""[..], b"#!/bin/sh\n", b"\0asm", b"\0asm\x01\0\0\0"] {
        std::fs::write(&file, bytes).unwrap();
        assert_eq!(refusal(&file).exit, Exit::BYTES, "{bytes:?}");
    }
    std::fs::File::create(&file)
        .unwrap()
        .set_len(ARTIFACT_BYTES_MAX + 1)
        .unwrap();
    assert_eq!(refusal(&file).exit, Exit::BYTES);
}

#[test]
fn manifests_tell_every_mistake_with_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("wasmorch.toml");
    std::fs::write(
        &file,
        "[[workload]]\nname = \"A_B\"\ncomponent = \"a.wasm\"\nreplcas = 2\n",
    )
    .unwrap();
    let error = refusal(&file);
    assert_eq!(error.exit, Exit::USAGE);
    assert_eq!(error.problems.len(), 2);
    let places: Vec<String> = error
        .problems
        .iter()
        .map(|problem| error.place(problem))
        .collect();
    assert!(places[0].contains("wasmorch.toml:2:"), "{places:?}");
    assert!(places[1].contains("wasmorch.toml:4:1"), "{places:?}");
}

#[test]
fn a_component_that_is_missing_is_found_in_the_manifest() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("wasmorch.toml");
    std::fs::write(
        &file,
        "[[workload]]\nname = \"a\"\ncomponent = \"a.wasm\"\n",
    )
    .unwrap();
    let error = refusal(&file);
    assert_eq!(error.exit, Exit::NOT_FOUND);
    let place = error.place(&error.problems[0]);
    assert!(place.contains("wasmorch.toml:3:"), "{place}");
}

#[test]
fn every_component_that_cannot_be_read_is_reported_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("wasmorch.toml");
    std::fs::write(folder.path().join("text.wasm"), "no wasm").unwrap();
    std::fs::create_dir(folder.path().join("folder.wasm")).unwrap();
    let text: String = ["none", "text", "folder", "other"]
        .iter()
        .map(|name| format!("[[workload]]\nname = \"{name}\"\ncomponent = \"{name}.wasm\"\n"))
        .collect();
    std::fs::write(&file, text).unwrap();
    let error = refusal(&file);
    assert_eq!(error.exit, Exit::BYTES, "what nothing can mend weighs most");
    let places: Vec<String> = error.problems.iter().map(|one| error.place(one)).collect();
    assert_eq!(places.len(), 4, "{places:?}");
    for (line, words) in [
        (3, "no such file"),
        (6, "not WebAssembly"),
        (9, "folder"),
        (12, "other.wasm"),
    ] {
        let at = format!("wasmorch.toml:{line}:");
        let told = places.iter().find(|place| place.contains(&at)).unwrap();
        assert!(told.contains(words), "{told}");
    }
}

#[test]
fn flags_and_a_manifest_contradict_each_other() {
    let given = SpecArgs {
        replicas: Some(2),
        ..args(Path::new("x.toml"))
    };
    let Err(error) = prepare(&ctx(), &given) else {
        panic!("accepted")
    };
    assert_eq!(
        (error.exit, error.what.as_str()),
        (Exit::USAGE, "--replicas with a manifest")
    );
}

#[test]
fn flags_come_on_top() {
    let mut spec = WorkloadSpec::default();
    spec.environment.insert("KEPT".into(), "1".into());
    let pair = |value: &str| KeyValue {
        key: "NEW".into(),
        value: value.into(),
    };
    let given = SpecArgs {
        env: vec![pair("1"), pair("2")],
        grants: vec!["http=api.example.com".into()],
        job: true,
        ..args(Path::new("a.wasm"))
    };
    apply(&given, &mut spec).unwrap();
    assert_eq!(spec.environment.len(), 2);
    assert_eq!(spec.environment["NEW"], "2", "the last one counts");
    assert_eq!(spec.bindings.http, ["api.example.com"]);
    assert_eq!(spec.kind, Some(Kind::Job));
    let wrong = SpecArgs {
        grants: vec!["htp=x".into(), "y".into()],
        ..SpecArgs::default()
    };
    assert_eq!(apply(&wrong, &mut spec).unwrap_err().problems.len(), 2);
}

#[test]
fn names_come_from_the_file() {
    let name = |file: &str| name_of(&args(Path::new(file))).map(|name| name.to_string());
    assert_eq!(name("dir/My_App.wasm").unwrap(), "my-app");
    assert_eq!(name("app.wasm").unwrap(), "app");
    for (file, hint) in [
        ("___.wasm", "--name NAME"),
        ("\u{fc}nicode.wasm", "--name NAME"),
        ("my app.v2.wasm", "--name my-app-v2"),
    ] {
        let refused = name(file).unwrap_err();
        assert_eq!(refused.exit, Exit::USAGE, "{file}");
        assert!(refused.fix.contains(hint), "{}", refused.fix);
    }
}

#[test]
fn a_volume_that_is_written_makes_a_roll_stop_first() {
    let with = |grant: &str| {
        let mut args = args(Path::new("app.wasm"));
        args.grants = vec![grant.to_owned()];
        let mut spec = WorkloadSpec::default();
        apply(&args, &mut spec).unwrap();
        spec.update
    };
    let update = with("volume=data:/data");
    assert_eq!(update.order, UpdateOrder::StopFirst);
    assert_eq!((update.max_surge, update.max_unavailable), (0, 1));
    assert_eq!(with("volume=data:/data:ro"), Update::default());
}
