//! Where things lie: the checkout, cargo's target folder, the user's cache folder.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

/// The folders that every task works in.
pub(crate) struct Project {
    /// The checkout.
    pub(crate) root: PathBuf,
    /// Cargo's target folder of the main workspace.
    pub(crate) target: PathBuf,
    /// Where the guests are built. A folder of its own, so that the two builds never wait for each other.
    pub(crate) guests_target: PathBuf,
    /// Tools fetched once and kept over checkouts: `$XDG_CACHE_HOME/wasmorch`.
    pub(crate) cache: PathBuf,
}

impl Project {
    /// Finds the checkout that this xtask was called in.
    pub(crate) fn find() -> Result<Self> {
        // Asked when it runs: a target folder that several checkouts share holds one xtask, with the
        // paths of whichever built it.
        let package = env::var_os("CARGO_MANIFEST_DIR")
            .context("CARGO_MANIFEST_DIR is not set: run this as `cargo xtask`")?;
        let root = Path::new(&package)
            .parent()
            .context("xtask lies in a folder of the checkout")?
            .to_owned();
        let chosen = env::var_os("CARGO_TARGET_DIR").filter(|dir| !dir.is_empty());
        let (target, guests_target) = match chosen {
            // Relative to where cargo was called, as cargo itself takes it.
            Some(dir) => {
                let target = env::current_dir()
                    .context("finding the current folder")?
                    .join(dir);
                let guests_target = target.join("guests");
                (target, guests_target)
            }
            None => (root.join("target"), root.join("workloads/target")),
        };
        Ok(Self {
            root,
            target,
            guests_target,
            cache: cache_home()?.join("wasmorch"),
        })
    }

    /// The finished components, `<name>.wasm` each.
    pub(crate) fn guests(&self) -> PathBuf {
        self.target.join("guests")
    }

    /// The `wasmorch` that [`Project::build_binary`] makes.
    pub(crate) fn binary(&self) -> PathBuf {
        self.target.join("debug/wasmorch")
    }

    /// `cargo`, run at the root of the checkout.
    pub(crate) fn cargo(&self) -> Command {
        let cargo = env::var_os("CARGO").filter(|cargo| !cargo.is_empty());
        let cargo = cargo.unwrap_or_else(|| OsString::from("cargo"));
        let mut command = Command::new(cargo);
        command
            .current_dir(&self.root)
            .env("CARGO_TARGET_DIR", &self.target);
        command
    }

    /// Builds `wasmorch` in the dev profile.
    ///
    /// `--workspace` and not `-p`: features are then united as `cargo test --workspace` unites them, and nothing is
    /// compiled twice.
    pub(crate) fn build_binary(&self) -> Result<()> {
        let mut build = self.cargo();
        build.args(["build", "--quiet", "--workspace", "--bin", "wasmorch"]);
        crate::process::run(&mut build).context("wasmorch did not build")
    }

    /// Builds the `wasmorch` of devices, without compiler and controller, beside the other: in the dev profile,
    /// for tests.
    pub(crate) fn build_device_binary(&self) -> Result<()> {
        let mut build = self.cargo();
        build.args([
            "build",
            "--quiet",
            "--package",
            "wasmorch-cli",
            "--no-default-features",
        ]);
        crate::process::run(&mut build)
            .context("wasmorch without default features did not build")?;
        let device = self.target.join("debug/wasmorch-device");
        // Cargo gives both the same name; a copy of a file that runs cannot be overwritten.
        let _ = std::fs::remove_file(&device);
        std::fs::rename(self.binary(), &device)
            .with_context(|| format!("keeping {}", device.display()))
    }

    /// A path as people want to read it: relative to the checkout where it lies inside.
    pub(crate) fn shown<'a>(&self, path: &'a Path) -> std::path::Display<'a> {
        path.strip_prefix(&self.root).unwrap_or(path).display()
    }
}

fn cache_home() -> Result<PathBuf> {
    let set = |name| {
        env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    set("XDG_CACHE_HOME")
        .or_else(|| set("HOME").map(|home| home.join(".cache")))
        .context("there is no cache folder: set HOME or XDG_CACHE_HOME to an absolute path")
}
