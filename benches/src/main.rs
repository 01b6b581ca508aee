//! What is measured, and against which peer: `cargo xtask bench NAME`.
//!
//! Owns the figures, not the parts: it drives the `wasmorch` binary and a real nats-server from
//! outside, as a user would, on the harness of the end-to-end tests. A run counts only after its
//! success was checked.

mod cluster;
mod density;
mod deploy;
mod fleet;
mod guest;
mod hostile;
mod http;
mod machine;
mod memory;
mod neighbour;
mod report;
mod rollout;
mod services;

use clap::{Parser, Subcommand};

/// Benchmarks of wasmorch.
#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Subcommand)]
enum Bench {
    /// `up` to ready, `deploy` to the first answer, resident memory
    Deploy(deploy::Args),
    /// A request through one gateway, through two, through the tunnel, and through nginx
    Services(services::Args),
    /// Rolls in a row under load, with hosts and leaders killed in the middle
    Rollout(rollout::Args),
    /// A real controller and nats-server with thousands of simulated hosts
    Cluster(fleet::Args),
    /// Requests a second beside `wasmtime serve` and bare hyper
    Http(http::Args),
    /// What a workload notices of attacks beside it
    Hostile(hostile::Args),
    /// How much one host holds: thousands of replicas, and of workloads loaded on demand
    Density(density::Args),
    /// Bare hyper, for `http`
    #[command(name = "serve-bare", hide = true)]
    ServeBare,
}

fn main() -> anyhow::Result<()> {
    match Args::parse().bench {
        Bench::Deploy(args) => deploy::run(&args),
        Bench::Services(args) => services::run(&args),
        Bench::Rollout(args) => rollout::run(&args),
        Bench::Cluster(args) => fleet::run(&args),
        Bench::Http(args) => http::run(&args),
        Bench::Hostile(args) => hostile::run(&args),
        Bench::Density(args) => density::run(&args),
        Bench::ServeBare => http::serve_bare(),
    }
}
