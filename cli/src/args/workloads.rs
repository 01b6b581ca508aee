//! Flags of commands about workloads: `deploy`, `plan`, `ps`, `logs`, `events`, `rollout`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use wasmorch_api::{ByteSize, HumanDuration, Name};

use super::values::{number, replicas, small_number};
use super::{KeyValue, LogTarget, Target};

pub(crate) const DEPLOY_EXAMPLES: &str = "Examples:
  wasmorch deploy app.wasm
  wasmorch deploy app.wasm --name web --replicas 3 --route shop.example.com/
  wasmorch deploy app.wasm --grant http=api.example.com --grant keyvalue=cart
  wasmorch deploy report.wasm --job -- --month 7
  wasmorch deploy wasmorch.toml";

/// What makes a spec.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct SpecArgs {
    /// A component or core module, or a manifest
    #[arg(value_name = "APP.wasm|FILE.toml")]
    pub(crate) file: PathBuf,
    /// The workload's name [default: the file's stem]
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<Name>,
    /// How many replicas
    #[arg(long, value_name = "N", value_parser = replicas)]
    pub(crate) replicas: Option<u32>,
    /// A route besides <name>.<namespace>.<domain>; may be given several times
    #[arg(long = "route", value_name = "HOST/PATH")]
    pub(crate) routes: Vec<String>,
    /// An environment variable; may be given several times
    #[arg(long = "env", value_name = "K=V")]
    pub(crate) env: Vec<KeyValue>,
    /// The memory limit of one replica
    #[arg(long, value_name = "SIZE")]
    pub(crate) memory: Option<ByteSize>,
    /// A capability: http=HOST, workloads=W, subscribe=S, publish=S, keyvalue=NAME, blobstore=NAME,
    /// volume=NAME:PATH[:ro], sockets=connect:ADDR or sockets=listen:PORT
    #[arg(long = "grant", value_name = "GRANT")]
    pub(crate) grants: Vec<String>,
    /// It runs to completion once
    #[arg(long)]
    pub(crate) job: bool,
    /// Only if nothing has changed since this index
    #[arg(long, value_name = "N", value_parser = number)]
    pub(crate) if_index: Option<u64>,
    /// The program's arguments
    #[arg(last = true, value_name = "ARGS")]
    pub(crate) args: Vec<String>,
}

impl SpecArgs {
    /// The flags that a manifest leaves no place for.
    pub(crate) fn spec_flags(&self) -> Vec<&'static str> {
        [
            ("--name", self.name.is_some()),
            ("--replicas", self.replicas.is_some()),
            ("--route", !self.routes.is_empty()),
            ("--env", !self.env.is_empty()),
            ("--memory", self.memory.is_some()),
            ("--grant", !self.grants.is_empty()),
            ("--job", self.job),
            ("-- ARGS", !self.args.is_empty()),
        ]
        .into_iter()
        .filter_map(|(flag, given)| given.then_some(flag))
        .collect()
    }
}

/// `deploy`.
#[derive(Debug, Args)]
pub(crate) struct DeployArgs {
    #[command(flatten)]
    pub(crate) spec: SpecArgs,
    /// Do not wait until it is ready
    #[arg(long)]
    pub(crate) detach: bool,
}

/// `plan`.
#[derive(Debug, Args)]
pub(crate) struct PlanArgs {
    #[command(flatten)]
    pub(crate) spec: SpecArgs,
}

/// `ps`.
#[derive(Debug, Args)]
pub(crate) struct PsArgs {
    /// Its replicas
    #[arg(value_name = "WORKLOAD")]
    pub(crate) target: Option<Target>,
    /// Every namespace
    #[arg(short = 'A', long, conflicts_with = "target")]
    pub(crate) all_namespaces: bool,
    /// Ended replicas too
    #[arg(long)]
    pub(crate) all: bool,
}

/// `logs`.
#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    /// The workload, one replica of it, or a manifest
    #[arg(value_name = "WORKLOAD[/REPLICA]")]
    pub(crate) target: LogTarget,
    /// Go on with what comes
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// The last so many lines
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = small_number)]
    pub(crate) tail: u32,
}

/// `events`.
#[derive(Debug, Args)]
pub(crate) struct EventsArgs {
    /// Go on with what comes
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Begin so long ago [default: 1h]
    #[arg(long, value_name = "TIME")]
    pub(crate) since: Option<HumanDuration>,
}

/// What a person does to a rollout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum RolloutAction {
    /// Only look
    Status,
    /// Hold it
    Pause,
    /// Go on
    Resume,
    /// End the canary well
    Promote,
    /// Back to the old revision
    Abort,
}

/// `rollout`.
#[derive(Debug, Args)]
pub(crate) struct RolloutArgs {
    /// What to do
    #[arg(value_enum)]
    pub(crate) action: RolloutAction,
    /// The workload, or a manifest: all its workloads
    #[arg(value_name = "WORKLOAD")]
    pub(crate) target: Target,
}
