//! `cargo xtask`: everything a developer or CI does with this repository, beyond what `cargo build` does.
//!
//! Knows the other crates only as folders, commands and files: it builds in seconds, before anything else is there.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command for people: printing is its work"
)]

mod bench;
mod demo;
mod process;
mod project;
mod setup;
mod sim;
mod test;
mod tidy;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::project::Project;

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    about = "Sets up, shows, tests and measures wasmorch"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Get a nats-server and a guest toolchain, build the sample components
    Setup,
    /// Set up, then show the main job end to end: deploy, request, scale, roll, shut down
    Demo,
    /// Set up, then run every test; further arguments go to `cargo test`
    Test(test::Args),
    /// Set up, then run one benchmark; further arguments go to it
    Bench(bench::Args),
    /// Run the cluster simulator
    Sim(sim::Args),
    /// Check module docs, import boundaries, leftovers and paths
    Tidy,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = Project::find().and_then(|project| match cli.command {
        Command::Setup => setup::run(&project).map(|_ready| ()),
        Command::Demo => demo::run(&project),
        Command::Test(args) => test::run(&project, &args),
        Command::Bench(args) => bench::run(&project, &args),
        Command::Sim(args) => sim::run(&project, &args),
        Command::Tidy => tidy::run(&project),
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
