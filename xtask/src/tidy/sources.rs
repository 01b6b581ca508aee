//! Rules for Rust files: module docs, names that only some files may name, leftovers, size.

use super::Finding;
use super::rust;

/// Names that only some files may name, and why.
struct Boundary {
    names: &'static [&'static str],
    /// Whether the file is inside the boundary, where the names must not appear.
    forbidden_in: fn(&str) -> bool,
    why: &'static str,
}

const BOUNDARIES: &[Boundary] = &[
    Boundary {
        names: &["async_nats"],
        forbidden_in: |path| !may_name_nats(path),
        why: "async_nats is named only in link and store modules of controller, host and cli",
    },
    Boundary {
        names: &["wasmtime", "wasmtime_wasi", "wasmtime_wasi_http"],
        forbidden_in: |path| !path.starts_with("runtime/"),
        why: "wasmtime is named only in runtime",
    },
    Boundary {
        names: &[
            "tokio",
            "async_nats",
            "rand",
            "Instant::now",
            "SystemTime::now",
            "Timestamp::now",
            "std::fs",
            "TcpStream",
            "TcpListener",
            "UdpSocket",
            "std::thread",
        ],
        forbidden_in: is_pure,
        why: "the planner and the agent are sans-I/O: time, randomness and events are arguments",
    },
    Boundary {
        names: &[
            "tokio",
            "async_nats",
            "rand",
            "std::fs",
            "TcpStream",
            "TcpListener",
            "UdpSocket",
        ],
        forbidden_in: |path| path.starts_with("api/"),
        why: "api does no I/O",
    },
];

const LEFTOVERS: &[&str] = &["todo!", "unimplemented!", "dbg!", "#[ignore"];

/// Around 400 lines a reader still holds a file whole.
const LINES_MAX: usize = 500;

/// The files that talk to NATS: `link` and `store`, as files or folders. Tests and benches are clients like any other.
fn may_name_nats(path: &str) -> bool {
    let mut parts = path.split('/');
    match parts.next() {
        Some("tests" | "benches") => true,
        Some("controller" | "host" | "cli") => {
            parts.any(|part| matches!(part, "link.rs" | "store.rs" | "link" | "store" | "tests"))
        }
        _ => false,
    }
}

/// What the simulator drives: decided by its arguments alone.
fn is_pure(path: &str) -> bool {
    path.starts_with("planner/src/") || path.starts_with("host/src/agent")
}

pub(super) fn check(path: &str, text: &str) -> Vec<Finding> {
    let code = rust::code(text);
    let mut findings = Vec::new();
    if !path.ends_with("build.rs") && !opens_with_docs(text) {
        let what = "a module opens with `//!`: what it owns, its invariants, what it must not know";
        findings.push(Finding::error(path, 1, what));
    }
    for boundary in BOUNDARIES
        .iter()
        .filter(|boundary| (boundary.forbidden_in)(path))
    {
        for name in boundary.names {
            findings.extend(lines_naming(&code, name).map(|line| {
                Finding::error(path, line, format!("`{name}` here: {}", boundary.why))
            }));
        }
    }
    for leftover in LEFTOVERS {
        let lines = lines_naming(&code, leftover);
        findings
            .extend(lines.map(|line| Finding::error(path, line, format!("leftover `{leftover}`"))));
    }
    let lines = bare_allows(&code).into_iter();
    findings.extend(lines.map(|line| Finding::error(path, line, "`allow` without a `reason`")));
    let lines = text.lines().count();
    if lines > LINES_MAX {
        let what =
            format!("{lines} lines: more than a reader holds whole; split it by what it owns");
        findings.push(Finding::warning(path, 1, what));
    }
    findings
}

/// Inner attributes may stand before the docs.
fn opens_with_docs(text: &str) -> bool {
    let mut lines = text.lines().map(str::trim_start);
    lines
        .find(|line| !line.is_empty() && !line.starts_with("#!["))
        .is_some_and(|line| line.starts_with("//!"))
}

/// The lines of the code that contain `name` as a whole word.
fn lines_naming(code: &str, name: &str) -> impl Iterator<Item = usize> {
    let lines = code.lines().enumerate();
    let named = lines.filter(move |(_, line)| words(line, name).next().is_some());
    named.map(|(index, _)| index + 1)
}

/// Where `name` stands in `text` with no letter, digit or underscore on either side.
fn words<'a>(text: &'a str, name: &'a str) -> impl Iterator<Item = usize> + 'a {
    let bytes = text.as_bytes();
    text.match_indices(name)
        .map(|(at, _)| at)
        .filter(move |at| {
            let before = at.checked_sub(1).map(|before| bytes[before]);
            let after = bytes.get(at + name.len()).copied();
            !before.is_some_and(rust::is_word) && !after.is_some_and(rust::is_word)
        })
}

/// The lines of `allow` attributes that give no reason. An attribute may span lines.
fn bare_allows(code: &str) -> Vec<usize> {
    let starts = ["#[allow(", "#![allow("]
        .into_iter()
        .flat_map(|start| code.match_indices(start));
    let mut lines: Vec<usize> = starts
        .filter(|(at, _)| {
            let attribute = &code[*at..];
            let end = attribute.find(")]").unwrap_or(attribute.len());
            words(&attribute[..end], "reason").next().is_none()
        })
        .map(|(at, _)| {
            code[..at].lines().count() + usize::from(code[..at].ends_with('\n') || at == 0)
        })
        .collect();
    lines.sort_unstable();
    lines
}

#[cfg(test)]
mod tests {
    use super::check;

    /// What is found in a file of that path with these lines after its docs.
    fn found(path: &str, code: &str) -> Vec<(usize, String)> {
        let findings = check(path, &format!("//! Docs.\n{code}\n"));
        let findings = findings.into_iter().filter(|finding| !finding.warning);
        findings
            .map(|finding| (finding.line, finding.what))
            .collect()
    }

    #[test]
    fn a_module_without_docs_is_found() {
        let no_docs = check("api/src/ids.rs", "use std::fmt;\n\n//! too late\n");
        assert_eq!(no_docs.len(), 1);
        assert!(check("api/src/ids.rs", "#![no_std]\n\n//! Ids.\n").is_empty());
        assert!(check("cli/build.rs", "fn main() {}\n").is_empty());
        assert_eq!(check("cli/src/empty.rs", "").len(), 1);
    }

    #[test]
    fn nats_is_named_in_links_and_stores_only() {
        let code = "\nuse async_nats::Client;";
        for path in [
            "host/src/link.rs",
            "controller/src/store/batch.rs",
            "tests/e2e/cluster.rs",
            "host/tests/support/nats.rs",
        ] {
            assert!(found(path, code).is_empty(), "{path}");
        }
        for path in [
            "host/src/driver.rs",
            "gateway/src/link.rs",
            "cli/src/linked.rs",
        ] {
            let found = found(path, code);
            assert_eq!(found.len(), 1, "{path}");
            assert_eq!(found[0].0, 3, "{path}");
        }
    }

    #[test]
    fn wasmtime_is_named_in_runtime_only() {
        assert!(found("runtime/src/engine.rs", "use wasmtime::Engine;").is_empty());
        assert_eq!(
            found("host/src/engine.rs", "use wasmtime::Engine;").len(),
            1
        );
        assert_eq!(
            found("host/src/engine.rs", "fn f(e: &wasmtime_wasi::WasiCtx) {}").len(),
            1
        );
        let only_said = "// as wasmtime does\nlet wasmtime_like = \"wasmtime\";";
        assert!(found("host/src/engine.rs", only_said).is_empty());
    }

    #[test]
    fn pure_code_takes_time_and_chance_as_arguments() {
        for code in [
            "let now = std::time::Instant::now();",
            "let now = SystemTime::now();",
            "use tokio::sync::mpsc;",
            "let n: u64 = rand::random();",
        ] {
            for path in [
                "planner/src/place.rs",
                "host/src/agent.rs",
                "host/src/agent/restart.rs",
            ] {
                assert_eq!(found(path, code).len(), 1, "{path}: {code}");
            }
            assert!(found("host/src/driver.rs", code).is_empty(), "{code}");
        }
        assert!(
            found(
                "api/src/spec.rs",
                "use std::net::IpAddr; // a value, no I/O"
            )
            .is_empty()
        );
        assert!(
            found(
                "planner/src/place.rs",
                "fn at(now: Instant, operand: u64) {}"
            )
            .is_empty()
        );
    }

    #[test]
    fn leftovers_are_found_in_code_only() {
        for code in [
            "todo!()",
            "unimplemented!(\"x\")",
            "dbg!(x)",
            "#[ignore]",
            "#[ignore = \"slow\"]",
        ] {
            assert_eq!(found("api/src/ids.rs", code).len(), 1, "{code}");
        }
        assert!(found("api/src/ids.rs", "// dbg!(x)\nlet x = \"todo!()\";").is_empty());
    }

    #[test]
    fn an_allow_gives_its_reason() {
        assert_eq!(
            found("api/src/ids.rs", "#[allow(dead_code)]\nfn f() {}")[0].0,
            2
        );
        assert_eq!(
            found("api/src/ids.rs", "\n    #![allow(dead_code)]")[0].0,
            3
        );
        let over_lines = "#[allow(\n    dead_code,\n    reason = \"used by the macro\"\n)]";
        assert!(found("api/src/ids.rs", over_lines).is_empty());
    }

    #[test]
    fn a_long_file_is_a_warning() {
        let long = format!("//! Docs.\n{}", "\n".repeat(500));
        let findings = check("api/src/ids.rs", &long);
        assert_eq!(findings.len(), 1);
        assert!(findings[0].warning);
    }
}
