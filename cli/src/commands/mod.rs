//! What each command does. A command gets parsed arguments, answers on `Out`, and ends with an
//! exit code or the one error that `main` prints.

mod changes;
#[cfg(feature = "compiler")]
mod compile;
#[cfg(feature = "controller")]
pub(crate) mod controller;
mod deploy;
mod drain;
mod events;
mod follow;
pub(crate) mod host;
mod hosts;
mod inspect;
mod interrupt;
mod logs;
mod outcome;
mod plan;
mod quota;
mod recover;
mod rollout;
#[cfg(feature = "compiler")]
mod run;
mod show;
mod source;
mod upload;
mod verdict;
mod why;

use std::path::Path;
use std::time::SystemTime;

use wasmorch_api::{Name, RequestId, Timestamp};

use crate::args::{Cli, Command, Global, Target};
use crate::cluster;
use crate::error::{CliError, Exit};
use crate::link::Link;
use crate::out::Out;

pub(crate) use interrupt::Interrupt;

/// What every command has at hand.
#[derive(Debug, Clone)]
pub(crate) struct Context {
    pub(crate) global: Global,
    pub(crate) out: Out,
}

impl Context {
    /// Connects to the cluster in force.
    pub(crate) async fn link(&self) -> Result<Link, CliError> {
        Link::connect(&cluster::find(&self.global)?, self.global.timeout).await
    }

    /// The namespace and the workloads that a target names.
    pub(crate) fn resolve(&self, target: &Target) -> Result<(Name, Vec<Name>), CliError> {
        match target {
            Target::Workload(name) => Ok((self.global.namespace(), vec![name.clone()])),
            Target::Manifest(file) => {
                let manifest = source::read_manifest(file)?;
                let namespace = self.namespace_of(file, manifest.namespace)?;
                let names = manifest
                    .workloads
                    .into_iter()
                    .map(|workload| workload.spec.name);
                Ok((namespace, names.collect()))
            }
        }
    }

    /// A manifest and `--namespace` must not contradict each other.
    pub(crate) fn namespace_of(&self, file: &Path, named: Option<Name>) -> Result<Name, CliError> {
        match (named, &self.global.namespace) {
            (Some(named), Some(flag)) if named != *flag => Err(CliError::usage(
                format!(
                    "{} is about namespace {named}, --namespace says {flag}",
                    file.display()
                ),
                "leave --namespace out, or change the manifest",
            )),
            (Some(named), _) => Ok(named),
            (None, _) => Ok(self.global.namespace()),
        }
    }
}

/// Now, by this machine's clock: for ages.
pub(crate) fn now() -> Timestamp {
    SystemTime::now().into()
}

/// An id for one write, so that asking twice changes nothing twice.
pub(crate) fn request_id() -> RequestId {
    RequestId::from_random(rand::random())
}

/// Runs a command to its end.
pub(crate) async fn run(cli: Cli) -> Result<Exit, CliError> {
    let out = Out::new(&cli.global);
    let ctx = Context {
        global: cli.global,
        out,
    };
    match cli.command {
        // These have their own end on Ctrl-C.
        #[cfg(feature = "controller")]
        Command::Up(args) => crate::up::run(&ctx, args).await,
        Command::Host(args) => host::run(&ctx, args).await,
        #[cfg(feature = "controller")]
        Command::Controller(args) => controller::run(&ctx, args).await,
        Command::Deploy(args) => deploy::run(&ctx, args).await,
        Command::Logs(args) => logs::run(&ctx, args).await,
        Command::Events(args) => events::run(&ctx, args).await,
        #[cfg(feature = "compiler")]
        Command::Run(args) => run::run(&ctx, args).await,
        #[cfg(feature = "compiler")]
        Command::Compile(args) => compile::run(&ctx, args).await,
        Command::Drain {
            host,
            deadline,
            cancel,
        } => drain::run(&ctx, &host.host, deadline, cancel).await,
        Command::Restart(args) => rollout::restart(&ctx, args).await,
        Command::Rollback { target, to, detach } => {
            rollout::rollback(&ctx, &target, to, detach).await
        }
        command => {
            let mut interrupt = Interrupt::listen()?;
            tokio::select! {
                ended = simple(&ctx, command) => ended,
                () = interrupt.next() => Err(CliError::interrupted("interrupted")),
            }
        }
    }
}

/// Commands that ask once and answer.
async fn simple(ctx: &Context, command: Command) -> Result<Exit, CliError> {
    match command {
        Command::Plan(args) => plan::run(ctx, args).await,
        Command::Ps(args) => show::ps(ctx, args).await,
        Command::Status(args) => show::status(ctx, &args.target).await,
        Command::History(args) => show::history(ctx, &args.target).await,
        Command::Why { subject } => why::run(ctx, &subject).await,
        Command::Inspect { file } => inspect::run(ctx, &file),
        Command::Scale { to } => changes::scale(ctx, &to).await,
        Command::Quota {
            memory,
            cpu,
            replicas,
            clear,
        } => {
            let request = wasmorch_api::messages::QuotaRequest {
                memory_bytes: memory.map(|size| size.0),
                cpu_millis: cpu.map(|cpu| cpu.0),
                replicas,
                clear,
                ..Default::default()
            };
            quota::run(ctx, request).await
        }
        Command::Stop(args) => changes::stop(ctx, &args.target).await,
        Command::Start { target, args } => changes::start(ctx, &target, args).await,
        Command::Rm { target, data } => changes::rm(ctx, &target, data).await,
        Command::Rollout(args) => rollout::act(ctx, &args).await,
        Command::Env => hosts::env(ctx),
        Command::Backup { file } => recover::backup(ctx, &file).await,
        Command::Recover { file } => recover::recover(ctx, file.as_deref()).await,
        command => hosts::run(ctx, command).await,
    }
}
