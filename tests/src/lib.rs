//! What the end-to-end tests stand on: real processes, a real nats-server, and nothing left behind.
//!
//! Owns starting, asking, waiting and cleaning up. Tests read as prose on top of it; they wait for
//! conditions with a deadline and never for time to pass.

pub mod creds;
pub mod daemons;
pub mod hostile;
pub mod http;
pub mod namespace;
pub mod nats;
pub mod nats_client;
pub mod ports;
pub mod process;
pub mod rolls;
pub mod up;

use std::path::PathBuf;
use std::time::{Duration, Instant};

/// A condition that takes longer than this has failed. Generous: CI machines are slow and shared.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The workspace's target folder for this build, from where the test binary lies.
fn target_dir() -> PathBuf {
    let exe = std::env::current_exe().expect("a running test knows its file");
    // <target>/debug/deps/all-<hash>; a benchmark: <target>/debug/wasmorch-benches
    let folder = exe.parent().expect("a file lies in a folder");
    let folder = match folder.parent() {
        Some(above) if folder.ends_with("deps") => above,
        _ => folder,
    };
    folder.to_path_buf()
}

/// The `wasmorch` binary of this build, or the one that a benchmark is told to measure.
pub fn wasmorch() -> PathBuf {
    let told = std::env::var_os("WASMORCH_BIN").map(PathBuf::from);
    let path = told.unwrap_or_else(|| target_dir().join("wasmorch"));
    assert!(
        path.exists(),
        "{} is missing: run `cargo xtask test`",
        path.display()
    );
    path
}

/// The `wasmorch` that was built without its default features: no compiler, no controller.
pub fn wasmorch_device() -> PathBuf {
    let path = target_dir().join("wasmorch-device");
    assert!(
        path.exists(),
        "{} is missing: run `cargo xtask test`",
        path.display()
    );
    path
}

/// A built sample component.
pub fn guest(name: &str) -> PathBuf {
    let folder = std::env::var_os("WASMORCH_GUESTS")
        .map(PathBuf::from)
        .unwrap_or_else(|| {
            target_dir()
                .parent()
                .expect("target/<profile> has a parent")
                .join("guests")
        });
    let path = folder.join(format!("{name}.wasm"));
    assert!(
        path.exists(),
        "{} is missing: run `cargo xtask setup`",
        path.display()
    );
    path
}

/// Asks until there is an answer; panics with `what` when it takes too long.
#[track_caller]
pub fn wait_for<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(
            began.elapsed() < PATIENCE,
            "waited {PATIENCE:?} in vain for {what}"
        );
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

/// Shows a figure that a test measured (with `--nocapture`).
pub fn measured(text: &str) {
    // A figure is a courtesy: a closed stderr fails no test.
    let _ = std::io::Write::write_all(&mut std::io::stderr(), format!("{text}\n").as_bytes());
}
