//! The `wasmorch` binary: parse, run, print the one error, end with the exit code.
//!
//! Only this file ends the process, after everything else is joined or given up.

mod args;
mod cluster;
mod commands;
mod error;
mod link;
mod logging;
mod out;
#[cfg(feature = "compiler")]
mod serve;
#[cfg(feature = "controller")]
mod up;

use std::io::Write as _;
use std::time::Duration;

use args::{Cli, Command};
use error::{CliError, Exit};

/// What is freed goes back to the system: glibc keeps in its arenas what guests once had a runner hold
/// (benches/README.md, "A neighbour during attacks").
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// What is still at work when a command has ended (a read of stdin that nobody waits for) gets this
/// long.
const LAST_WORK: Duration = Duration::from_millis(200);

/// Begins the thread that gives back what a runner has freed, also while nothing is allocated. Where there cannot
/// be one, that is done along with the allocations.
fn give_back() {
    if let Err(error) = tikv_jemalloc_ctl::background_thread::write(true) {
        tracing::debug!(%error, "the allocator has no thread of its own");
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "this is the one place that ends the process"
)]
fn main() {
    std::process::exit(run().0);
}

fn run() -> Exit {
    let cli = match Cli::read() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    // Becomes another program, so before anything else is set up.
    #[cfg(feature = "controller")]
    if let Command::Child(child) = &cli.command {
        let error = up::process::exec(child);
        out::print_error(&error, false);
        return error.exit;
    }
    panic_hook();
    logging::to_stderr(&cli);
    let json = cli.global.json;
    // These make their own threads, each for one thing.
    match &cli.command {
        Command::Runner(_) => return ended("runner", wasmorch_host::serve_runner(give_back)),
        Command::Compiler(_) => return ended("compiler", wasmorch_host::serve_compiler(give_back)),
        _ => {}
    }
    let threads = if works_much(&cli.command) {
        tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
    } else {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
    };
    let runtime = match threads {
        Ok(runtime) => runtime,
        Err(error) => {
            let error = CliError::bug("threads cannot be started", error.to_string());
            out::print_error(&error, json);
            return error.exit;
        }
    };
    let ended = runtime.block_on(async { Box::pin(commands::run(cli)).await });
    runtime.shutdown_timeout(LAST_WORK);
    match ended {
        Ok(exit) => exit,
        Err(error) => {
            out::print_error(&error, json);
            error.exit
        }
    }
}

/// How a child of a host ended.
fn ended(who: &str, how: Result<(), wasmorch_host::RunnerError>) -> Exit {
    match how {
        Ok(()) => Exit::OK,
        Err(error) => {
            let error = wasmorch_api::error::chain(&error);
            tracing::error!(error, "the {who} ended");
            Exit::FAILED
        }
    }
}

/// Help and version are answers; everything else that clap refuses is 64, not its own 2.
fn usage(error: &clap::Error) -> Exit {
    // A closed pipe is no reason to fail.
    let _ = error.print();
    if error.use_stderr() {
        Exit::USAGE
    } else {
        Exit::OK
    }
}

/// Commands that run guests or daemons; the others are done before a second thread has started.
fn works_much(command: &Command) -> bool {
    match command {
        #[cfg(feature = "compiler")]
        Command::Run(_) => true,
        #[cfg(feature = "controller")]
        Command::Up(_) | Command::Controller(_) => true,
        Command::Host(_) => true,
        _ => false,
    }
}

/// A panic is a bug of ours. In a task it ends the task, and its owner says so; here on the main
/// thread it ends the process.
#[expect(
    clippy::disallowed_methods,
    reason = "a panic of the main thread has no one else to end it"
)]
fn panic_hook() {
    let main = std::thread::current().id();
    std::panic::set_hook(Box::new(move |panic| {
        let place = panic
            .location()
            .map(|at| format!(" at {at}"))
            .unwrap_or_default();
        let text = panic.payload_as_str().unwrap_or("no message");
        let _ = writeln!(
            std::io::stderr(),
            "error: a bug of ours{place}\n  why: {text}\n  fix: please report it"
        );
        if std::thread::current().id() == main {
            std::process::exit(Exit::BUG.0);
        }
    }));
}
