//! The guest toolchain, and the sample components built with it.
//!
//! The toolchain is rustup's where rustup can add the targets, else Debian's compiler by `guest-toolchain/`, which is
//! built once into the cache folder.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::step;
use crate::process::{self, read};
use crate::project::Project;

/// Components, and one core module of preview 1.
const COMPONENT: &str = "wasm32-wasip2";
const CORE_MODULE: &str = "wasm32-wasip1";

/// Built a second time, as a core module.
const ALSO_CORE_MODULE: &str = "wordcount";

/// What the environment of a guest build must not inherit: it is meant for the machine's own target.
const NOT_FOR_GUESTS: [&str; 4] = [
    "RUSTFLAGS",
    "CARGO_ENCODED_RUSTFLAGS",
    "CARGO_BUILD_RUSTFLAGS",
    "CARGO_BUILD_TARGET",
];

/// Environment variables that make cargo build guests. Empty for the ordinary toolchain.
pub(super) struct Toolchain {
    environment: Vec<(String, OsString)>,
}

/// Finds a toolchain, or gets one.
pub(super) fn toolchain(project: &Project) -> Result<Toolchain> {
    let environment = Vec::new();
    let rustc = env::var_os("RUSTC").filter(|rustc| !rustc.is_empty());
    let rustc = rustc.unwrap_or_else(|| OsString::from("rustc"));
    if has_targets(Path::new(&rustc)) {
        step("guest toolchain", "the installed one");
        return Ok(Toolchain { environment });
    }
    let prefix = project.cache.join("guest-toolchain");
    if has_targets(&prefix.join("bin/rustc")) {
        step(
            "guest toolchain",
            &format!("Debian's, cached in {}", prefix.display()),
        );
        return debian(project, &prefix); // the script has the last word on what it cached
    }
    step("guest toolchain", "adding the targets with rustup");
    let added = read(Command::new("rustup").args(["target", "add", COMPONENT, CORE_MODULE]));
    match added {
        Ok(_) => Ok(Toolchain { environment }),
        Err(refused) => {
            let why = format!("{refused:#}");
            let why = why.lines().last().unwrap_or_default();
            let why = why.trim_start_matches("error:").trim();
            step("", &format!("rustup could not: {why}"));
            step(
                "",
                "using Debian's compiler instead (about 4 minutes, once)",
            );
            debian(project, &prefix)
        }
    }
}

/// Whether a rustc has a standard library for both targets. Also true of one that did not come by rustup.
fn has_targets(rustc: &Path) -> bool {
    [COMPONENT, CORE_MODULE].into_iter().all(|target| {
        let mut ask = Command::new(rustc);
        ask.args(["--print", "target-libdir", "--target", target]);
        let folder = read(&mut ask)
            .ok()
            .map(|folder| PathBuf::from(folder.trim()));
        let entries = folder.and_then(|folder| fs::read_dir(folder).ok());
        entries.is_some_and(|entries| {
            let names = entries.flatten().map(|entry| entry.file_name());
            names
                .into_iter()
                .any(|name| name.to_string_lossy().starts_with("libstd-"))
        })
    })
}

fn debian(project: &Project, prefix: &Path) -> Result<Toolchain> {
    if read(Command::new("apt-get").arg("--version")).is_err() {
        bail!(
            "this is no Debian either, so guest-toolchain/ cannot help: \
             run `rustup target add {COMPONENT} {CORE_MODULE}` where the network allows it"
        );
    }
    let printed = read(
        Command::new("sh")
            .arg(project.root.join("guest-toolchain/wasm-toolchain.sh"))
            .arg(prefix)
            .env("GUESTS_DEBIAN", "1"),
    )
    .context(
        "guest-toolchain/wasm-toolchain.sh failed; guest-toolchain/README.md says what it needs",
    )?;
    let environment = exports(&printed);
    if environment.is_empty() {
        bail!("guest-toolchain/wasm-toolchain.sh printed no `export` line");
    }
    Ok(Toolchain { environment })
}

/// Reads lines like `export RUSTC='/a/b'`.
fn exports(printed: &str) -> Vec<(String, OsString)> {
    printed
        .lines()
        .filter_map(|line| line.strip_prefix("export "))
        .filter_map(|assignment| assignment.split_once('='))
        .map(|(name, value)| (name.to_owned(), OsString::from(value.trim_matches('\''))))
        .collect()
}

/// Builds every guest and puts the results into [`Project::guests`], touching only those that changed.
pub(super) fn build(project: &Project, toolchain: &Toolchain) -> Result<()> {
    let workloads = project.root.join("workloads");
    cargo_build(project, toolchain, &["--target", COMPONENT])?;
    cargo_build(
        project,
        toolchain,
        &["--target", CORE_MODULE, "--package", ALSO_CORE_MODULE],
    )?;

    let built = |target: &str, file: &str| {
        let release = project.guests_target.join(target).join("release");
        release.join(file).with_extension("wasm")
    };
    let mut guests: Vec<(String, PathBuf)> = members(&workloads)?
        .into_iter()
        .filter_map(|name| {
            // A library is called after its crate, a binary after its package; one without either is only shared code.
            let files = [
                built(COMPONENT, &name),
                built(COMPONENT, &name.replace('-', "_")),
            ];
            let file = files.into_iter().find(|file| file.is_file())?;
            Some((name, file))
        })
        .collect();
    guests.push((
        format!("{ALSO_CORE_MODULE}-p1"),
        built(CORE_MODULE, ALSO_CORE_MODULE),
    ));

    let folder = project.guests();
    fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    let mut changed = 0;
    for (name, file) in &guests {
        let to = folder.join(name).with_extension("wasm");
        changed += usize::from(copy_if_changed(file, &to)?);
    }
    step(
        "guests",
        &format!(
            "{} in {} ({changed} changed)",
            guests.len(),
            project.shown(&folder)
        ),
    );
    Ok(())
}

fn cargo_build(project: &Project, toolchain: &Toolchain, args: &[&str]) -> Result<()> {
    let mut build = project.cargo();
    build
        .current_dir(project.root.join("workloads"))
        .args(["build", "--quiet", "--release", "--locked"])
        .args(args)
        .env("CARGO_TARGET_DIR", &project.guests_target);
    for name in NOT_FOR_GUESTS {
        build.env_remove(name);
    }
    build.envs(
        toolchain
            .environment
            .iter()
            .map(|(name, value)| (name, value)),
    );
    process::run(&mut build)
}

/// The packages of the guests' workspace, which are called as their folders.
fn members(workloads: &Path) -> Result<Vec<String>> {
    let path = workloads.join("Cargo.toml");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let manifest: toml::Table = text
        .parse()
        .with_context(|| format!("reading {}", path.display()))?;
    let members = manifest
        .get("workspace")
        .and_then(|workspace| workspace.get("members"))
        .and_then(|members| members.as_array())
        .with_context(|| format!("{} lists no members", path.display()))?;
    Ok(members
        .iter()
        .filter_map(|member| member.as_str().map(str::to_owned))
        .collect())
}

/// Copies whole or not at all. The same bytes stay untouched, and so does their time stamp.
fn copy_if_changed(from: &Path, to: &Path) -> Result<bool> {
    let bytes = fs::read(from).with_context(|| format!("reading {}", from.display()))?;
    if fs::read(to).is_ok_and(|there| there == bytes) {
        return Ok(false);
    }
    let partial = to.with_extension("wasm.partial");
    fs::write(&partial, bytes)
        .and_then(|()| fs::rename(&partial, to))
        .with_context(|| format!("writing {}", to.display()))?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn export_lines_become_variables() {
        let printed = "# a remark\nexport RUSTC='/p/bin/rustc'\nexport PATH='/p/bin:/usr/my bin'\n";
        let expected = [("RUSTC", "/p/bin/rustc"), ("PATH", "/p/bin:/usr/my bin")]
            .map(|(name, value)| (name.to_owned(), OsString::from(value)));
        assert_eq!(exports(printed), expected);
        assert!(exports("# rustup target\n").is_empty());
    }
}
