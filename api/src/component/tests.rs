//! Components made from text here, damaged ones, and how refusals read.

use proptest::prelude::*;
use proptest::sample::Index;

use super::*;
use crate::manifest::read_grant;
use crate::spec::WorkloadSpec;

/// A component with these imports and exports, as instances without anything in them.
fn component(imports: &[&str], exports: &[&str]) -> Vec<u8> {
    let imports = imports
        .iter()
        .map(|name| format!("(import \"{name}\" (instance))\n"));
    let exports = exports
        .iter()
        .map(|name| format!("(export \"{name}\" (instance $none))\n"));
    let body: String = imports
        .chain(["(instance $none)\n".to_owned()])
        .chain(exports)
        .collect();
    wat::parse_str(format!("(component {body})")).unwrap()
}

const START: &str = "(module (func (export \"_start\")))";

fn spec(kind: Option<Kind>, grants: &[&str]) -> WorkloadSpec {
    let mut spec = WorkloadSpec {
        name: "web".parse().unwrap(),
        kind,
        ..WorkloadSpec::default()
    };
    for grant in grants {
        read_grant(grant, &mut spec.bindings).unwrap();
    }
    spec
}

fn checked(bytes: &[u8], spec: &WorkloadSpec) -> CapabilityCheck {
    check(&inspect(bytes).unwrap(), spec)
}

#[test]
fn kinds_come_from_exports() {
    for (export, kind) in [
        ("wasi:http/incoming-handler@0.2.4", Some(Kind::Http)),
        ("wasi:http/handler@0.3.0", Some(Kind::Http)),
        ("wasmcloud:messaging/handler@0.2.0", Some(Kind::Messages)),
        ("wasi:cli/run@0.2.0", Some(Kind::Service)),
        ("wasi:cli/run@0.3.1", Some(Kind::Service)),
        ("wasi:cli/run@0.2.0-rc-2023-12-05", None),
        ("wasi:http/handler@0.3.0-rc-2025-09-16", None),
        ("a:b/c", None),
    ] {
        let inspection = inspect(&component(&[], &[export])).unwrap();
        assert_eq!(
            (inspection.kind, inspection.shape),
            (kind, Shape::Component),
            "{export}"
        );
        assert_eq!(inspection.exports, [export]);
    }
    // JavaScript components export both: the more specific counts, the other may be asked for.
    let both = component(
        &[],
        &["wasi:cli/run@0.2.3", "wasi:http/incoming-handler@0.2.3"],
    );
    let inspection = inspect(&both).unwrap();
    assert_eq!(inspection.kind, Some(Kind::Http));
    assert!(inspection.runs_as(Kind::Job) && !inspection.runs_as(Kind::Messages));
    assert_eq!(
        checked(&both, &spec(Some(Kind::Service), &[])).kind,
        Ok(Kind::Service)
    );
}

#[test]
fn only_the_outermost_level_counts() {
    let text = r#"(component
        (import "wasi:io/poll@0.2.6" (instance $poll (export "pollable" (type (sub resource)))))
        (alias export $poll "pollable" (type $pollable))
        (import "pollable" (type (eq $pollable)))
        (core module (import "env" "f" (func)) (func (export "x")))
        (component (import "inner:a/b@9.0.0" (instance)) (instance $none) (export "inner:c/d" (instance $none)))
        (instance $none) (export "wasi:cli/run@0.2.6" (instance $none)))"#;
    let inspection = inspect(&wat::parse_str(text).unwrap()).unwrap();
    assert_eq!(inspection.imports, ["wasi:io/poll@0.2.6"]);
    assert_eq!(inspection.exports, ["wasi:cli/run@0.2.6"]);
    assert_eq!(inspection.kind, Some(Kind::Service));
}

#[test]
fn core_modules() {
    let text = r#"(module
        (import "wasi_snapshot_preview1" "proc_exit" (func (param i32)))
        (memory (export "memory") 1) (func (export "_start") (call 0 (i32.const 3))))"#;
    let inspection = inspect(&wat::parse_str(text).unwrap()).unwrap();
    assert_eq!(
        (inspection.shape, inspection.kind),
        (Shape::CoreModule, Some(Kind::Service))
    );
    assert_eq!(inspection.imports, ["wasi_snapshot_preview1"]);
    assert!(check(&inspection, &spec(Some(Kind::Job), &[])).passes());
    assert!(!check(&inspection, &spec(Some(Kind::Http), &[])).passes());
    let problem = |text: &str| inspect(&wat::parse_str(text).unwrap()).unwrap_err();
    assert_eq!(problem("(module)"), ComponentProblem::NoStart);
    assert_eq!(
        problem("(module (memory (export \"_start\") 1))"),
        ComponentProblem::NoStart
    );
    let env = ComponentProblem::ForeignImport {
        module: "env".into(),
    };
    assert_eq!(
        problem("(module (import \"env\" \"f\" (func)) (func (export \"_start\")))"),
        env
    );
}

#[test]
fn what_is_no_component() {
    let good = component(&["wasi:cli/stdout@0.2.0"], &["wasi:cli/run@0.2.0"]);
    let module = wat::parse_str(START).unwrap();
    let mut broken = module.clone();
    *broken.last_mut().unwrap() = 0x00;
    let mut newer = module.clone();
    newer[4] = 9;
    let bytes: Vec<(&str, Vec<u8>)> = vec![
        ("empty", vec![]),
        ("html", b"  <!DOCTYPE html><html>404".to_vec()),
        ("elf", b"\x7fELF\x02\x01".to_vec()),
        ("wat", b";; a comment\n(module)".to_vec()),
        ("wit", b"package a:b;\nworld w {}".to_vec()),
        (
            "lfs",
            b"version https://git-lfs.github.com/spec/v1\n".to_vec(),
        ),
        ("text", "hallo, wörld".into()),
        ("binary", vec![0xff, 0, 1, 2]),
        ("gzip", vec![0x1f, 0x8b, 8]),
        ("half a header", b"\0as".to_vec()),
        ("half a component", good[..good.len() / 2].to_vec()),
        ("a byte short", good[..good.len() - 1].to_vec()),
        ("a wrong opcode", broken),
        ("a newer version", newer),
        ("only a header", b"\0asm\x01\0\0\0".to_vec()),
    ];
    let mut shown = String::new();
    for (what, bytes) in bytes {
        let problem = inspect(&bytes).unwrap_err();
        shown.push_str(&format!("{what}: {problem}\n    {}\n", problem.fix()));
    }
    let large = inspect_within(&good, 10).unwrap_err();
    shown.push_str(&format!("too large: {large}\n    {}\n", large.fix()));
    assert_eq!(large.refusal("web.wasm").code, ErrorCode::TooLarge);
    insta::assert_snapshot!(shown);
}

#[test]
fn nesting_is_bounded() {
    // The text parser has a bound of its own, so the bytes are put together here: the header, and a
    // section with the id of a nested component.
    let nested = |depth: usize| {
        let header = b"\0asm\x0d\0\x01\0";
        let mut bytes = header.to_vec();
        for _ in 0..depth {
            let mut length = bytes.len();
            let mut outer = [&header[..], &[4]].concat();
            while length >= 0x80 {
                outer.push((length & 0x7f) as u8 | 0x80);
                length >>= 7;
            }
            outer.push(length as u8);
            outer.append(&mut bytes);
            bytes = outer;
        }
        inspect(&bytes)
    };
    assert!(nested(NESTING_MAX).is_ok());
    assert!(matches!(
        nested(NESTING_MAX + 1),
        Err(ComponentProblem::Invalid { .. })
    ));
}

const FETCHER: &[&str] = &[
    "wasi:http/types@0.2.4",
    "wasi:http/outgoing-handler@0.2.4",
    "wasi:sockets/tcp@0.2.4",
    "wasi:cli/stdout@0.2.4",
];
const SECRETS: [&str; 2] = [
    "wasmcloud:secrets/reveal@0.1.0-draft",
    "wasmcloud:secrets/store@0.1.0-draft",
];
const SERVES: &[&str] = &["wasi:http/incoming-handler@0.2.4"];
const HANDLES: &[&str] = &["wasmcloud:messaging/handler@0.2.0"];
const CONSUMER: &[&str] = &[
    "wasmcloud:messaging/consumer@0.2.0",
    "wasmcloud:messaging/types@0.2.0",
];

#[test]
fn granted_and_not() {
    let fetcher = component(FETCHER, SERVES);
    assert!(checked(&fetcher, &spec(None, &["http=api.x.com"])).passes());
    assert!(checked(&fetcher, &spec(None, &["workloads=orders"])).passes());
    assert!(!checked(&fetcher, &spec(None, &["publish=a.b"])).passes());
    let newer = component(&["wasi:http/client@0.3.0"], &["wasi:http/handler@0.3.0"]);
    assert_eq!(
        checked(&newer, &spec(None, &[])).missing[0].flag(),
        "--grant http=HOST"
    );
    // Who handles messages may reply to them.
    let echo = component(CONSUMER, HANDLES);
    assert!(checked(&echo, &spec(None, &["subscribe=a.b"])).passes());
    let missing = checked(&echo, &spec(None, &[])).missing;
    assert_eq!(missing.len(), 1);
    let toml = missing[0].remedy.as_ref().map(|remedy| &*remedy.toml);
    assert_eq!(toml, Some("subscribe = [\"SUBJECT\"]"));
    // No grant of another kind stands for one that cannot be given yet.
    let secrets = component(&SECRETS, SERVES);
    for grants in [&[][..], &["http=a.b", "keyvalue=secrets"]] {
        let check = checked(&secrets, &spec(None, grants));
        let missing: Vec<_> = check.missing.iter().map(|one| one.binding).collect();
        assert_eq!(missing, ["secrets", "secrets"]);
        assert!(!check.bytes_refused, "the bytes are in order");
    }
    // Anyone else needs the grant.
    let teller = component(CONSUMER, SERVES);
    assert_eq!(
        checked(&teller, &spec(None, &[])).missing[0].binding,
        "publish"
    );
    assert!(checked(&teller, &spec(None, &["publish=a.b"])).passes());
}

#[test]
fn refusals_show_what_would_pass() {
    let run = &["wasi:cli/run@0.2.0"];
    let stores = [
        "wasi:keyvalue/store@0.2.0-draft",
        "wasi:keyvalue/atomics@0.2.0-draft",
    ];
    let strange = [
        "my:db/query@1.0.0",
        "wasi:http/types@0.2.0-rc-2023-11-10",
        "wasi:http/outgoing-handler@0.2.4",
    ];
    let mut web = spec(Some(Kind::Http), &[]);
    web.args = vec!["-v".into()];
    let cases = [
        ("not granted", component(FETCHER, SERVES), spec(None, &[])),
        (
            "some granted",
            component(&[FETCHER, CONSUMER].concat(), SERVES),
            spec(None, &["publish=a.>"]),
        ),
        ("no subject", component(CONSUMER, HANDLES), spec(None, &[])),
        ("two of one", component(&stores, SERVES), spec(None, &[])),
        ("not yet", component(&SECRETS, SERVES), spec(None, &[])),
        (
            "one of them not yet",
            component(&[SECRETS[0], FETCHER[1]], SERVES),
            spec(None, &[]),
        ),
        ("unknown imports", component(&strange, run), spec(None, &[])),
        (
            "no known export",
            component(&[], &["a:b/c"]),
            spec(None, &[]),
        ),
        (
            "an old export",
            component(&[], &["wasi:http/handler@0.3.0-rc-2025-09-16"]),
            spec(None, &[]),
        ),
        (
            "another kind",
            component(&[], run),
            spec(Some(Kind::Http), &[]),
        ),
        ("a contradiction", component(&[], SERVES), web),
    ];
    let mut shown = String::new();
    for (what, bytes, spec) in &cases {
        let check = checked(bytes, spec);
        let refusal = check.refusal(spec).unwrap();
        let code = refusal.code.as_str();
        let bytes = check.bytes_refused;
        shown.push_str(&format!(
            "# {what} ({code}, bytes refused: {bytes})\n{refusal}\n{}\n\n",
            refusal.fix
        ));
    }
    insta::assert_snapshot!(shown);
    let hello = component(
        &["wasi:cli/stdout@0.2.0", "wasi:logging/logging@0.1.0-draft"],
        SERVES,
    );
    assert_eq!(
        checked(&hello, &spec(None, &[])).refusal(&spec(None, &[])),
        None
    );
}

#[test]
fn the_printed_flags_pass() {
    let bytes = component(&[FETCHER, CONSUMER].concat(), SERVES);
    let mut spec = spec(None, &[]);
    for missing in checked(&bytes, &spec).missing {
        let remedy = missing.remedy.unwrap();
        let grant = remedy
            .flag
            .strip_prefix("--grant ")
            .unwrap()
            .replace("HOST", "a.b")
            .replace("SUBJECT", "a.b");
        read_grant(&grant, &mut spec.bindings).unwrap();
        // The TOML says the same as the flag.
        let toml = format!(
            "[workload]\nname = \"a\"\ncomponent = \"a\"\n[workload.bindings]\n{}\n",
            remedy.toml
        );
        crate::manifest::read_manifest(&toml.replace("HOST", "a.b").replace("SUBJECT", "a.b"))
            .unwrap();
    }
    assert!(checked(&bytes, &spec).passes());
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), wasm in any::<bool>(), component in any::<bool>()) {
        let header: &[u8] = match (wasm, component) {
            (false, _) => b"",
            (_, false) => b"\0asm\x01\0\0\0",
            (_, true) => b"\0asm\x0d\0\x01\0",
        };
        let _ = inspect(&[header, &bytes].concat());
    }

    #[test]
    fn no_damaged_component_panics(
        cut in any::<Index>(),
        changes in proptest::collection::vec((any::<Index>(), any::<u8>()), 0..8),
        whole in any::<bool>(),
    ) {
        let text = r#"(component
            (import "wasi:io/poll@0.2.6" (instance $poll (export "pollable" (type (sub resource)))))
            (core module $m (memory (export "memory") 1) (func (export "f") (param i32) (result i32) local.get 0 i32.eqz))
            (core instance $i (instantiate $m))
            (func $f (param "x" u32) (result bool) (canon lift (core func $i "f")))
            (instance $run (export "f" (func $f)))
            (export "wasi:cli/run@0.2.6" (instance $run)))"#;
        let mut bytes = wat::parse_str(text).unwrap();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if !whole {
            bytes.truncate(cut.index(bytes.len()));
        }
        if let Ok(inspection) = inspect(&bytes) {
            let spec = spec(None, &[]);
            let _ = check(&inspection, &spec).refusal(&spec);
        }
    }
}

#[test]
fn a_size_that_nothing_holds_is_refused() {
    let limited = |bytes: &[u8], size: bool| {
        let mut spec = spec(None, &["volume=data:/data"]);
        if let Some(volume) = spec.bindings.volume.get_mut("data") {
            volume.size = size.then_some(crate::ByteSize(1 << 20));
        }
        checked(bytes, &spec).passes()
    };
    let run = "wasi:cli/run@0.2.0";
    let p2 = component(&["wasi:filesystem/types@0.2.4"], &[run]);
    let p3 = component(&["wasi:filesystem/types@0.3.0"], &[run]);
    let module = wat::parse_str(START).unwrap();
    for (bytes, held) in [(&p2, true), (&p3, true), (&module, false)] {
        assert!(limited(bytes, false));
        assert_eq!(limited(bytes, true), held);
    }
}
