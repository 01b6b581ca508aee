//! Flags of what makes a cluster: `up`, `controller`, and the `child` that `up` starts.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::host::{FrontArgs, within};

pub(crate) const UP_EXAMPLES: &str = "Examples:
  wasmorch up
  wasmorch up --hosts 3 --http 127.0.0.1:9000
  wasmorch up --nats nats://127.0.0.1:4222   with a server of your own

Ctrl-C drains and stops in order; a second one stops at once. The data stays: the next
`wasmorch up` brings every workload back.";

/// `up`.
#[derive(Debug, Args)]
pub(crate) struct UpArgs {
    /// How many hosts
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) hosts: u16,
    /// Where everything is kept [default: $XDG_DATA_HOME/wasmorch/up]
    #[arg(long, value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,
    /// Where the first host's gateway listens
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8080")]
    pub(crate) http: SocketAddr,
    #[command(flatten)]
    pub(crate) front: FrontArgs,
    /// Where its NATS server listens, loopback only [default: a free port]
    #[arg(long, value_name = "ADDR", conflicts_with = "nats")]
    pub(crate) nats_listen: Option<SocketAddr>,
    /// Fetch a nats-server without asking when there is none
    #[arg(long)]
    pub(crate) yes: bool,
}

/// `controller`.
#[derive(Debug, Args)]
pub(crate) struct ControllerArgs {
    /// Health and metrics [default: none]
    #[arg(long, value_name = "ADDR")]
    pub(crate) admin: Option<SocketAddr>,
    /// A host silent for this long is dead, and its replicas are placed elsewhere. Hosts that speak too
    /// seldom for it are given three of their heartbeats
    #[arg(long, value_name = "D", default_value = "5s", value_parser = dead_after)]
    pub(crate) dead_after: Duration,
}

/// 500 ms to an hour: below, a busy leader is slower than what it looks for.
fn dead_after(text: &str) -> Result<Duration, String> {
    within(text, Duration::from_millis(500), Duration::from_secs(3_600))
}

/// `child`: not for people.
#[derive(Debug, Args)]
pub(crate) struct ChildArgs {
    /// The process that must still be the parent.
    #[arg(long)]
    pub(crate) parent: i32,
    /// What to become.
    #[arg(last = true, required = true)]
    pub(crate) command: Vec<OsString>,
}
