//! `cargo xtask setup`: what building, testing and the demo need beyond a Rust toolchain and Python's pip.
//!
//! Everything is found before it is fetched, fetched once and kept in the user's cache folder, without root.
//! Running it again takes about a second.

mod guests;
mod nats;

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::project::Project;

/// What setup has made ready.
pub(crate) struct Ready {
    /// A nats-server new enough for us.
    pub(crate) nats_server: PathBuf,
    /// The folder of the sample components.
    pub(crate) guests: PathBuf,
    binary: PathBuf,
}

impl Ready {
    /// Tells a command where everything is, by environment variables.
    pub(crate) fn apply(&self, command: &mut Command) {
        command
            .env("WASMORCH_NATS_SERVER", &self.nats_server)
            .env("WASMORCH_GUESTS", &self.guests)
            .env("WASMORCH_BIN", &self.binary);
    }
}

/// Sets everything up, saying what it does.
pub(crate) fn run(project: &Project) -> Result<Ready> {
    let nats_server = nats::find_or_fetch(&project.cache).context("no nats-server")?;
    let toolchain = guests::toolchain(project).context("no toolchain for the guests")?;
    guests::build(project, &toolchain).context("the guests are not ready")?;
    Ok(Ready {
        nats_server,
        guests: project.guests(),
        binary: project.binary(),
    })
}

/// One line of progress, aligned with the others.
pub(crate) fn step(subject: &str, what: &str) {
    println!("{subject:<16}{what}");
}
