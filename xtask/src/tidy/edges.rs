//! Who may depend on whom, by the manifests. A new edge between our crates is an event: it is argued in the commit
//! that changes this table.

use super::Finding;

/// Our crates, by their folder, and those of ours that each may know.
const EDGES: &[(&str, &[&str])] = &[
    ("api", &[]),
    ("planner", &["api"]),
    ("controller", &["api", "planner"]),
    ("runtime", &["api"]),
    ("gateway", &["api"]),
    ("host", &["api", "runtime", "gateway"]),
    (
        "cli",
        &["api", "planner", "controller", "runtime", "gateway", "host"],
    ),
    ("xtask", &[]),
];

/// Folders that may know everything.
const ALL_KNOWING: &[&str] = &["tests", "benches"];

/// Dependencies that only some of our crates may have. A name stands for all that begin with it and a hyphen, too.
const RESERVED: &[(&str, &[&str])] = &[
    (
        "async-nats",
        &["controller", "host", "cli", "tests", "benches"],
    ),
    ("wasmtime", &["runtime"]),
    ("cranelift", &["runtime"]),
    (
        "tokio",
        &[
            "controller",
            "runtime",
            "gateway",
            "host",
            "cli",
            "tests",
            "benches",
        ],
    ),
    (
        "rand",
        &[
            "controller",
            "runtime",
            "gateway",
            "host",
            "cli",
            "tests",
            "benches",
        ],
    ),
];

/// Checks the manifest of one of our crates. The workspace's own manifest names versions and depends on nothing.
pub(super) fn check(path: &str, text: &str) -> Vec<Finding> {
    let Some(folder) = path.strip_suffix("/Cargo.toml") else {
        return Vec::new();
    };
    let known = EDGES
        .iter()
        .find(|edge| edge.0 == folder)
        .map(|edge| edge.1);
    if known.is_none() && !ALL_KNOWING.contains(&folder) {
        return Vec::new(); // a guest
    }
    let manifest: toml::Table = match text.parse() {
        Ok(manifest) => manifest,
        Err(error) => return vec![Finding::error(path, 1, format!("not TOML: {error}"))],
    };

    let mut findings = Vec::new();
    for name in dependencies(&manifest) {
        let line = line_of(text, &name);
        if let (Some(ours), Some(known)) = (name.strip_prefix("wasmorch-"), known)
            && !known.contains(&ours)
        {
            let what = format!("{folder} must not depend on {ours} (DESIGN: who may know whom)");
            findings.push(Finding::error(path, line, what));
        }
        let reserved = RESERVED
            .iter()
            .find(|(reserved, _)| is_or_belongs_to(&name, reserved));
        if let Some((reserved, allowed)) = reserved
            && !allowed.contains(&folder)
        {
            let what = format!(
                "{folder} must not depend on {name}: {reserved} is for {}",
                allowed.join(", ")
            );
            findings.push(Finding::error(path, line, what));
        }
    }
    findings
}

fn is_or_belongs_to(name: &str, reserved: &str) -> bool {
    let rest = name.strip_prefix(reserved);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
}

/// Every package named under any `dependencies`, whatever its kind and its target.
fn dependencies(manifest: &toml::Table) -> Vec<String> {
    let mut names = Vec::new();
    for (key, value) in manifest {
        let Some(table) = value.as_table() else {
            continue;
        };
        match key.as_str() {
            "dependencies" | "dev-dependencies" | "build-dependencies" => {
                for (name, dependency) in table {
                    // `name = { package = "its real name" }`
                    let real = dependency.get("package").and_then(toml::Value::as_str);
                    names.push(real.unwrap_or(name).to_owned());
                }
            }
            "target" => {
                let targets = table.values().filter_map(toml::Value::as_table);
                names.extend(targets.flat_map(dependencies));
            }
            _ => {}
        }
    }
    names
}

/// The first line that names the dependency.
fn line_of(text: &str, name: &str) -> usize {
    let named =
        |line: &str| line.trim_start().starts_with(name) || line.contains(&format!("\"{name}\""));
    text.lines().position(named).map_or(1, |index| index + 1)
}

#[cfg(test)]
mod tests {
    use super::check;

    fn lines(path: &str, text: &str) -> Vec<(usize, String)> {
        let findings = check(path, text).into_iter();
        findings
            .map(|finding| (finding.line, finding.what))
            .collect()
    }

    #[test]
    fn an_edge_against_the_picture_is_found() {
        let text = "[package]\nname = \"wasmorch-controller\"\n[dependencies]\nwasmorch-api.workspace = true\nwasmorch-host.workspace = true\n";
        let found = lines("controller/Cargo.toml", text);
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].0, 5);
        assert!(found[0].1.contains("must not depend on host"), "{found:?}");
    }

    #[test]
    fn no_kind_of_dependency_hides_an_edge() {
        for text in [
            "[dev-dependencies]\nwasmorch-controller = { path = \"../controller\" }\n",
            "[build-dependencies]\nwasmorch-controller.workspace = true\n",
            "[target.'cfg(unix)'.dependencies]\nwasmorch-controller.workspace = true\n",
            "[dependencies]\nother = { package = \"wasmorch-controller\", path = \"../controller\" }\n",
        ] {
            assert_eq!(lines("host/Cargo.toml", text).len(), 1, "{text}");
            assert!(lines("tests/Cargo.toml", text).is_empty(), "{text}");
        }
    }

    #[test]
    fn reserved_dependencies_stay_where_they_belong() {
        let text = "[dependencies]\nwasmtime-wasi.workspace = true\n";
        assert!(lines("runtime/Cargo.toml", text).is_empty());
        assert_eq!(lines("host/Cargo.toml", text).len(), 1);
        let text = "[dependencies]\ntokio-util.workspace = true\nrand.workspace = true\n";
        assert_eq!(lines("planner/Cargo.toml", text).len(), 2);
        assert!(lines("gateway/Cargo.toml", text).is_empty());
        assert!(lines("api/Cargo.toml", "[dependencies]\nrandom-name = \"1\"\n").is_empty());
    }

    #[test]
    fn guests_are_free() {
        assert!(
            lines(
                "workloads/ticker/Cargo.toml",
                "[dependencies]\ntokio = \"1\"\n"
            )
            .is_empty()
        );
    }
}
