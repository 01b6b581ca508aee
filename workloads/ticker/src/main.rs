//! A service: prints `tick 1`, `tick 2`, ... for ever, one a second, or every so many milliseconds as its first
//! argument says. Plain Rust: a `wasi:cli` command needs no bindings.

use std::process::ExitCode;
use std::thread::sleep;
use std::time::Duration;

fn main() -> ExitCode {
    let interval = match std::env::args().nth(1).map(|arg| arg.parse()) {
        None => Duration::from_secs(1),
        Some(Ok(ms)) => Duration::from_millis(ms),
        Some(Err(_)) => {
            eprintln!("usage: ticker [INTERVAL_MS]");
            return ExitCode::FAILURE;
        }
    };
    for tick in 1u64.. {
        println!("tick {tick}");
        sleep(interval);
    }
    ExitCode::SUCCESS
}
