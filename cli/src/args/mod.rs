//! The command line: every command, flag and example. Parsing ends here, in validated types.
//!
//! It must not know what a command does. Usage errors exit 64 (`main` maps clap's own 2).

#[cfg(feature = "controller")]
mod cluster;
mod host;
#[cfg(feature = "compiler")]
mod program;
mod values;
mod workloads;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::builder::Resettable;
use clap::{Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand, ValueEnum};
use wasmorch_api::{ByteSize, Cpu, HumanDuration, Name};

#[cfg(feature = "controller")]
pub(crate) use cluster::{ChildArgs, ControllerArgs, UpArgs};
pub(crate) use host::{ChildProcessArgs, HostArgs};
#[cfg(feature = "compiler")]
pub(crate) use program::{ANY_NETWORK, CompileArgs, RunArgs};
pub(crate) use values::{KeyValue, LogTarget, ScaleTo, Target};
pub(crate) use workloads::{
    DeployArgs, EventsArgs, LogsArgs, PlanArgs, PsArgs, RolloutAction, RolloutArgs, SpecArgs,
};

/// Runs WebAssembly components on one machine or many, over NATS.
#[derive(Debug, Parser)]
#[command(
    name = "wasmorch",
    version,
    propagate_version = false,
    disable_help_subcommand = true,
    subcommand_required = true,
    arg_required_else_help = true,
    max_term_width = 100,
    after_help = "Two commands to a running app:\n  wasmorch up\n  wasmorch deploy app.wasm"
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What a flag is when it is not given, and under which id clap knows the flag.
const VARIABLES: [(&str, &str); 3] = [
    ("nats", "WASMORCH_NATS"),
    ("creds", "WASMORCH_CREDS"),
    ("js_domain", "WASMORCH_JS_DOMAIN"),
];

impl Cli {
    /// Reads this process's command line.
    pub(crate) fn read() -> Result<Self, clap::Error> {
        let is_empty = |name: &str| std::env::var_os(name).is_some_and(|value| value.is_empty());
        Self::read_from(std::env::args_os(), is_empty)
    }

    /// A variable that is set to nothing is not set: scripts have no other way to say so.
    fn read_from<T: Into<OsString> + Clone>(
        line: impl IntoIterator<Item = T>,
        is_empty: impl Fn(&str) -> bool,
    ) -> Result<Self, clap::Error> {
        let mut command = Self::command();
        for (flag, _) in VARIABLES.iter().filter(|(_, name)| is_empty(name)) {
            command = command.mut_arg(flag, |arg| arg.env(Resettable::Reset));
        }
        let mut matches = command.try_get_matches_from_mut(line)?;
        Self::from_arg_matches_mut(&mut matches).map_err(|error| error.format(&mut command))
    }
}

/// When to colour.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Color {
    /// On a terminal.
    #[default]
    Auto,
    /// Everywhere.
    Always,
    /// Nowhere.
    Never,
}

/// What every command takes.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// The cluster's NATS server; without it, the `up` that was started last
    #[arg(long, global = true, value_name = "URL", env = "WASMORCH_NATS")]
    pub(crate) nats: Option<String>,
    /// The NATS credentials file
    #[arg(long, global = true, value_name = "FILE", env = "WASMORCH_CREDS")]
    pub(crate) creds: Option<PathBuf>,
    /// The JetStream domain, behind a leaf node
    #[arg(long, global = true, value_name = "DOMAIN", env = "WASMORCH_JS_DOMAIN")]
    pub(crate) js_domain: Option<String>,
    /// The namespace [default: default]
    #[arg(short, long, global = true, value_name = "NAME")]
    pub(crate) namespace: Option<Name>,
    /// Answer in JSON
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Colours and progress bars: auto, always or never
    #[arg(
        long,
        global = true,
        value_name = "WHEN",
        value_enum,
        default_value_t,
        hide_possible_values = true,
        hide_default_value = true
    )]
    pub(crate) color: Color,
    /// How long to wait for an answer [default: 10s]
    #[arg(id = "timeout", long, global = true, value_name = "TIME", value_parser = values::some_time)]
    pub(crate) timeout: Option<HumanDuration>,
}

impl Global {
    /// The namespace in force.
    pub(crate) fn namespace(&self) -> Name {
        self.namespace.clone().unwrap_or_default()
    }
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a whole cluster here: NATS, a controller, hosts
    #[cfg(feature = "controller")]
    #[command(after_help = cluster::UP_EXAMPLES)]
    Up(UpArgs),
    /// Deploy a component, or what a wasmorch.toml says
    #[command(after_help = workloads::DEPLOY_EXAMPLES)]
    Deploy(DeployArgs),
    /// Say what a deploy would change; exits 2 when something would stay unplaced
    #[command(
        after_help = "Examples:\n  wasmorch plan app.wasm --replicas 3\n  wasmorch plan wasmorch.toml --json"
    )]
    Plan(PlanArgs),
    /// List workloads, or the replicas of one
    #[command(
        after_help = "Examples:\n  wasmorch ps\n  wasmorch ps -A\n  wasmorch ps web --all --json"
    )]
    Ps(PsArgs),
    /// Show one workload: spec, replicas, rollout
    #[command(
        after_help = "Examples:\n  wasmorch status web\n  wasmorch status wasmorch.toml --json"
    )]
    Status(Targeted),
    /// Explain why a workload, host or replica is as it is
    #[command(
        after_help = "Examples:\n  wasmorch why web\n  wasmorch why web/2-7-1\n  wasmorch why h1\n  wasmorch why wasmorch.toml"
    )]
    Why {
        /// WORKLOAD, HOST or WORKLOAD/REPLICA; or a manifest: all its workloads
        #[arg(value_name = "WORKLOAD|HOST|REPLICA")]
        subject: String,
    },
    /// List the revisions of a workload
    #[command(after_help = "Examples:\n  wasmorch history web")]
    History(Targeted),
    /// Show what replicas wrote
    #[command(
        after_help = "Examples:\n  wasmorch logs web\n  wasmorch logs -f --tail 20 web\n  wasmorch logs web/2-7-1"
    )]
    Logs(LogsArgs),
    /// Show what happened in the cluster
    #[command(
        after_help = "Examples:\n  wasmorch events\n  wasmorch events -f\n  wasmorch events --since 1d --json"
    )]
    Events(EventsArgs),
    /// Say what a file is, and what it would need granted
    #[command(
        after_help = "Examples:\n  wasmorch inspect app.wasm\n  wasmorch inspect app.wasm --json"
    )]
    Inspect {
        /// A component or core module
        #[arg(value_name = "APP.wasm")]
        file: PathBuf,
    },
    /// Set how many replicas are wanted
    #[command(after_help = "Examples:\n  wasmorch scale web=3\n  wasmorch scale web=3 api=0")]
    Scale {
        /// Workloads and counts
        #[arg(value_name = "WORKLOAD=N", required = true)]
        to: Vec<ScaleTo>,
    },
    /// Go back to an earlier revision
    #[command(after_help = "Examples:\n  wasmorch rollback web\n  wasmorch rollback web --to 3")]
    Rollback {
        /// The workload
        #[arg(value_name = "WORKLOAD")]
        target: Target,
        /// To this revision; without it, to the last good one before
        #[arg(long, value_name = "N", value_parser = values::number)]
        to: Option<u64>,
        /// Do not wait until it is ready
        #[arg(long)]
        detach: bool,
    },
    /// Replace every replica by a fresh one of the same revision
    Restart(Waited),
    /// Stop every replica, keep the workload
    Stop(Targeted),
    /// Undo `stop`, or run a job once now
    #[command(after_help = "Examples:\n  wasmorch start web\n  wasmorch start nightly -- --full")]
    Start {
        /// The workload
        #[arg(value_name = "WORKLOAD")]
        target: Target,
        /// A job's arguments for this run
        #[arg(last = true, value_name = "ARGS")]
        args: Vec<String>,
    },
    /// Remove a workload; its data stays unless --data
    #[command(after_help = "Examples:\n  wasmorch rm web\n  wasmorch rm wasmorch.toml --data")]
    Rm {
        /// The workload
        #[arg(value_name = "WORKLOAD")]
        target: Target,
        /// What it alone keeps in the cluster too: buckets, containers, volumes
        #[arg(long)]
        data: bool,
    },
    /// Look at a rollout, hold it, end it
    #[command(
        after_help = "Examples:\n  wasmorch rollout status web\n  wasmorch rollout abort web"
    )]
    Rollout(RolloutArgs),
    /// Show or set what a namespace may have
    #[command(
        after_help = "Examples:\n  wasmorch quota -n shop\n  wasmorch quota -n shop --memory 4GiB --replicas 100\n  wasmorch quota -n shop --clear"
    )]
    Quota {
        /// Memory that its replicas may reserve together
        #[arg(long, value_name = "SIZE")]
        memory: Option<ByteSize>,
        /// Cpu that they may reserve, `500m` or `2`
        #[arg(long, value_name = "N")]
        cpu: Option<Cpu>,
        /// Replicas
        #[arg(long, value_name = "N", value_parser = values::number)]
        replicas: Option<u64>,
        /// Lift every limit, but for those named beside
        #[arg(long)]
        clear: bool,
    },
    /// List hosts
    Hosts,
    /// Place nothing new on a host
    Cordon(HostName),
    /// Undo `cordon`
    Uncordon(HostName),
    /// Move everything off a host, and wait until nothing is left there
    #[command(
        after_help = "It stays drained, over restarts too, until `--cancel` or `uncordon`.\n\nExamples:\n  wasmorch drain h2\n  wasmorch drain h2 --deadline 5m\n  wasmorch drain h2 --cancel"
    )]
    Drain {
        #[command(flatten)]
        host: HostName,
        /// Stop what has not moved by then
        #[arg(long, value_name = "TIME")]
        deadline: Option<HumanDuration>,
        /// Undo it
        #[arg(long)]
        cancel: bool,
    },
    /// Forget a host that will not come back
    #[command(name = "host-rm")]
    HostRm(HostName),
    /// Even out the hosts by moving replicas, each ready there before it leaves
    #[command(after_help = "Examples:\n  wasmorch rebalance --max-moves 10")]
    Rebalance {
        /// At most so many
        #[arg(long, value_name = "N", value_parser = values::small_number)]
        max_moves: u32,
    },
    /// Write what hosts cannot know to a file
    Backup {
        /// The file
        file: PathBuf,
    },
    /// Rebuild the cluster's state from hosts and a backup
    Recover {
        /// The backup
        file: Option<PathBuf>,
    },
    /// Print how other tools reach the cluster
    #[command(
        after_help = "Examples:\n  eval $(wasmorch env)\n  nats req wasmorch.v1.api.default.list '{}'"
    )]
    Env,
    /// Run a component or core module here and now, without a cluster
    #[cfg(feature = "compiler")]
    #[command(after_help = program::RUN_EXAMPLES)]
    Run(RunArgs),
    /// Compile for hosts that have no compiler
    #[cfg(feature = "compiler")]
    #[command(after_help = program::COMPILE_EXAMPLES)]
    Compile(CompileArgs),
    /// Run a host daemon
    #[command(after_help = host::HOST_EXAMPLES)]
    Host(HostArgs),
    /// Run a controller; any number may run, one leads
    #[cfg(feature = "controller")]
    #[command(after_help = "Examples:\n  wasmorch controller --nats nats://10.0.0.1:4222")]
    Controller(ControllerArgs),
    /// Becomes another program that ends with its parent
    #[cfg(feature = "controller")]
    #[command(name = "child", hide = true)]
    Child(ChildArgs),
    /// Runs guests for the host that started it
    #[command(name = "runner", hide = true)]
    Runner(ChildProcessArgs),
    /// Compiles for the host that started it
    #[command(name = "compiler", hide = true)]
    Compiler(ChildProcessArgs),
}

/// A workload, or a manifest's.
#[derive(Debug, Args)]
pub(crate) struct Targeted {
    /// The workload, or a manifest: all its workloads
    #[arg(value_name = "WORKLOAD")]
    pub(crate) target: Target,
}

/// A workload, and whether to wait.
#[derive(Debug, Args)]
pub(crate) struct Waited {
    /// The workload, or a manifest: all its workloads
    #[arg(value_name = "WORKLOAD")]
    pub(crate) target: Target,
    /// Do not wait until it is ready
    #[arg(long)]
    pub(crate) detach: bool,
}

/// A host by name.
#[derive(Debug, Args)]
pub(crate) struct HostName {
    /// The host's name
    #[arg(value_name = "HOST")]
    pub(crate) host: Name,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn global_flags_stand_anywhere() {
        let before = parse("wasmorch --json -n shop --timeout 3s ps").unwrap();
        let after = parse("wasmorch ps --json -n shop --timeout 3s").unwrap();
        for cli in [before, after] {
            assert!(cli.global.json);
            assert_eq!(cli.global.namespace().as_str(), "shop");
            assert_eq!(cli.global.timeout, Some(HumanDuration::secs(3)));
        }
    }

    #[test]
    fn a_variable_that_is_set_to_nothing_is_not_set() {
        let flag = |line: &str| {
            let cli = Cli::read_from(line.split_whitespace(), |_| true).unwrap();
            cli.global.nats
        };
        assert_eq!(flag("wasmorch ps"), None);
        assert_eq!(flag("wasmorch ps --nats nats://x").unwrap(), "nats://x");
        let command = Cli::command();
        for (flag, name) in VARIABLES {
            let arg = command.get_arguments().find(|arg| arg.get_id() == flag);
            assert_eq!(arg.and_then(|arg| arg.get_env()).unwrap(), name);
        }
    }

    #[test]
    fn mistakes_are_refused() {
        for line in [
            "wasmorch",
            "wasmorch ps A_B",
            "wasmorch scale web",
            "wasmorch scale web=-1",
            "wasmorch up --nats nats://x --nats-listen 127.0.0.1:0",
            "wasmorch deploy app.wasm --memory lots",
            "wasmorch run --dir nowhere app.wasm",
            "wasmorch compile --target sparc-solaris app.wasm",
            "wasmorch compile",
            "wasmorch why",
            "wasmorch ps --timeout 0s",
            "wasmorch run --timeout 0s app.wasm",
            "wasmorch frobnicate",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
