//! What each fuzz target does with its bytes. Also read by `tests/conformance`, which gives it every
//! file of the corpus on each run of the tests.
//!
//! Owns the properties: no panic, and whatever was accepted survives being written and read again.

use wasmorch_api::manifest::{check_kind, not_yet, read_deploy, read_manifest};
use wasmorch_api::{WorkloadSpec, component, subjects};

/// A manifest: any text. Every problem has a place in it.
pub(crate) fn manifest(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    match read_manifest(text) {
        Ok(manifest) => manifest
            .workloads
            .iter()
            .for_each(|one| accepted(&one.spec)),
        Err(problems) => assert!(!problems.is_empty(), "refused without a reason"),
    }
}

/// The body of `deploy`.
pub(crate) fn deploy(bytes: &[u8]) {
    match read_deploy(bytes) {
        Ok(request) => request.workloads.iter().for_each(accepted),
        Err(problems) => assert!(!problems.is_empty(), "refused without a reason"),
    }
}

/// A spec that was accepted reads back as itself, and every later check takes it.
fn accepted(spec: &WorkloadSpec) {
    let written = serde_json::to_vec(spec).expect("a spec is always JSON");
    let read: WorkloadSpec = serde_json::from_slice(&written).expect("what is stored reads back");
    assert_eq!(&read, spec, "it reads back as something else");
    for kind in wasmorch_api::Kind::ALL {
        let _ = not_yet(spec, kind);
        let _ = check_kind(spec, kind);
    }
}

/// A subject: what is taken for a call or a table is made again the same.
pub(crate) fn subject(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    if let Some((namespace, verb)) = subjects::parse_api(text) {
        assert_eq!(subjects::api(namespace.as_ref(), verb), text);
    }
    for table in ["endpoints", "routes"] {
        let _ = subjects::parse_table(text, table);
    }
    if let Some(key) = subjects::state_key(text) {
        assert_eq!(subjects::state(key), text);
    }
}

/// The bytes of a component or a core module.
pub(crate) fn component(bytes: &[u8]) {
    if let Err(problem) = component::inspect(bytes) {
        assert!(!problem.to_string().is_empty(), "refused without a reason");
    }
}
