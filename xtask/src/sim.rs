//! `cargo xtask sim`: runs the deterministic cluster of `tests/sim`. A failing run prints its seed, and the seed replays it.

use anyhow::{Context, Result};

use crate::process;
use crate::project::Project;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Replay this one seed
    #[arg(long, conflicts_with = "seeds")]
    seed: Option<u64>,
    /// Run so many seeds
    #[arg(long)]
    seeds: Option<u64>,
    /// Passed to `cargo test`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    cargo_test: Vec<String>,
}

pub(crate) fn run(project: &Project, args: &Args) -> Result<()> {
    let mut test = project.cargo();
    // As `cargo xtask test` builds it: naming the package alone would resolve other features, and
    // compile wasmtime once more.
    test.args(["test", "--workspace", "--test", "all"]);
    test.args(&args.cargo_test);
    test.args([
        "--",
        "--nocapture",
        "--exact",
        "sim::seeds::every_seed_keeps_the_laws",
    ]);
    if let Some(seed) = args.seed {
        test.env("WASMORCH_SIM_SEED", seed.to_string());
    }
    if let Some(seeds) = args.seeds {
        test.env("WASMORCH_SIM_SEEDS", seeds.to_string());
    }
    process::run(&mut test).context("the simulator found a failure")
}
