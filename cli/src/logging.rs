//! What is written to stderr, and how much of it.
//!
//! Owns the filter, which a host hands on to its runners.

use std::sync::OnceLock;

use tracing_subscriber::EnvFilter;

use crate::args::{Cli, Command};

static FILTER: OnceLock<String> = OnceLock::new();

/// The filter in force when `WASMORCH_LOG` names none: what `runner --log` is given.
pub(crate) fn filter() -> &'static str {
    FILTER.get().map_or("error", String::as_str)
}

/// Sends what is logged to stderr.
pub(crate) fn to_stderr(cli: &Cli) {
    let default = FILTER.get_or_init(|| default(cli));
    let filter =
        EnvFilter::try_from_env("WASMORCH_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .init();
}

fn default(cli: &Cli) -> String {
    // A command tells by itself why it cannot connect; a daemon's log has room for the client's
    // words.
    let (default, client) = match &cli.command {
        Command::Runner(child) | Command::Compiler(child) => return child.log.clone(),
        Command::Host(_) => ("info", "error"),
        #[cfg(feature = "controller")]
        Command::Controller(_) => ("info", "error"),
        // It tells by itself when its own server comes and goes.
        #[cfg(feature = "controller")]
        Command::Up(_) if cli.global.nats.is_none() => (
            "warn,wasmorch_controller::link=error,wasmorch_host::link=error,\
             wasmorch_host::runner::link=error",
            "off",
        ),
        #[cfg(feature = "controller")]
        Command::Up(_) => ("warn", "off"),
        _ => ("error", "off"),
    };
    format!("{default},async_nats={client}")
}
