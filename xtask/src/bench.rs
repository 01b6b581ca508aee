//! `cargo xtask bench NAME`: sets up, then runs one benchmark of the crate `benches`; `planner` is
//! the planner's own, `instantiate` the runtime's.

use std::process::Command;

use anyhow::{Context, Result};

use crate::project::Project;
use crate::{process, setup};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Which benchmark, for instance `deploy`
    name: String,
    /// Measure an optimised build: for figures that go into a document
    #[arg(long)]
    release: bool,
    /// Passed to the benchmark
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

pub(crate) fn run(project: &Project, args: &Args) -> Result<()> {
    if args.name == "planner" {
        return planner(project, args);
    }
    if args.name == "instantiate" {
        return instantiate(project, args);
    }
    let ready = setup::run(project)?;
    let profile = if args.release { "release" } else { "dev" };
    setup::step("bench", &format!("{}, {profile} profile", args.name));

    let mut build = project.cargo();
    // Both at once and of the workspace: one set of features, so that nothing is compiled twice.
    build.args(["build", "--quiet", "--workspace"]);
    build.args(["--bin", "wasmorch", "--bin", "wasmorch-benches"]);
    let built = project.target.join(match args.release {
        true => "release",
        false => "debug",
    });
    if args.release {
        build.arg("--release");
    }
    process::run(&mut build).context("wasmorch did not build")?;
    let mut bench = Command::new(built.join("wasmorch-benches"));
    bench.current_dir(&project.root);
    ready.apply(&mut bench);
    // It makes errors slower, and those of the servers beside ours too.
    bench.env_remove("RUST_BACKTRACE");
    bench.env("WASMORCH_BIN", built.join("wasmorch"));
    process::run(bench.arg(&args.name).args(&args.rest))
        .with_context(|| format!("the benchmark {} failed", args.name))
}

/// It names wasmtime, so it lies with the runtime; it needs guests, and no other process.
fn instantiate(project: &Project, args: &Args) -> Result<()> {
    let ready = setup::run(project)?;
    let profile = if args.release { "bench" } else { "dev" };
    setup::step("bench", &format!("instantiate, {profile} profile"));
    let mut bench = project.cargo();
    bench.args(["bench", "--quiet", "--profile", profile]);
    bench.args(["--package", "wasmorch-runtime", "--bench", "instantiate"]);
    ready.apply(&mut bench);
    bench.env_remove("RUST_BACKTRACE");
    process::run(bench.arg("--").args(&args.rest)).context("the benchmark instantiate failed")
}

/// The planner alone needs no nats-server, no guests and none of the other crates: it lies with the
/// planner, and is always optimised.
fn planner(project: &Project, args: &Args) -> Result<()> {
    setup::step("bench", "planner, bench profile");
    let mut bench = project.cargo();
    bench.args([
        "bench",
        "--quiet",
        "--package",
        "wasmorch-planner",
        "--bench",
        "planner",
    ]);
    process::run(bench.arg("--").args(&args.rest)).context("the benchmark planner failed")
}
