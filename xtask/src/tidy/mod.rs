//! `cargo xtask tidy`: what the compiler does not check. Each finding is one line, `path:line: what`.
//!
//! - `edges`: which crate may depend on which (manifests), DESIGN's picture of who may know whom.
//! - `sources`: module docs, names that only some files may name, leftovers, files that have outgrown a reader.
//! - `paths`: paths of one machine and host names of registries, in any tracked file.

mod edges;
mod paths;
mod rust;
mod sources;

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process::read;
use crate::project::Project;

/// One thing to mend.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Finding {
    /// From the root of the checkout.
    path: String,
    /// From 1.
    line: usize,
    what: String,
    /// A warning is shown and fails nothing.
    warning: bool,
}

impl Finding {
    fn error(path: &str, line: usize, what: impl Into<String>) -> Self {
        Self {
            path: path.to_owned(),
            line,
            what: what.into(),
            warning: false,
        }
    }

    fn warning(path: &str, line: usize, what: impl Into<String>) -> Self {
        Self {
            warning: true,
            ..Self::error(path, line, what)
        }
    }
}

pub(crate) fn run(project: &Project) -> Result<()> {
    let mut findings = Vec::new();
    let files = files(project)?;
    for path in &files {
        let Ok(bytes) = fs::read(project.root.join(path)) else {
            continue; // deleted in the working tree, or a link to nowhere
        };
        let Ok(text) = String::from_utf8(bytes) else {
            continue; // not a text
        };
        findings.extend(check(path, &text));
    }

    for finding in &findings {
        let Finding {
            path, line, what, ..
        } = finding;
        let kind = if finding.warning { "warning: " } else { "" };
        println!("{path}:{line}: {kind}{what}");
    }
    let errors = findings.iter().filter(|finding| !finding.warning).count();
    println!("tidy: {} files, {errors} to mend", files.len());
    if errors > 0 {
        bail!("tidy found {errors} to mend");
    }
    Ok(())
}

/// Everything that all rules say about one file.
fn check(path: &str, text: &str) -> Vec<Finding> {
    let mut findings = paths::check(path, text);
    if path.ends_with(".rs") {
        findings.extend(sources::check(path, text));
    }
    if path.ends_with("Cargo.toml") {
        findings.extend(edges::check(path, text));
    }
    findings
}

/// The files that git tracks or would track.
fn files(project: &Project) -> Result<Vec<String>> {
    let listed = read(Command::new("git").current_dir(&project.root).args([
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
    ]))
    .context("listing the files of the checkout")?;
    let mut files: Vec<String> = listed
        .split('\0')
        .filter(|path| !path.is_empty())
        .map(str::to_owned)
        .collect();
    files.sort();
    files.dedup();
    Ok(files)
}
