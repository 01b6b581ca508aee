//! Where the figures were taken: without it they mean nothing.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

/// The machine, the build and the server, as label and text.
pub(crate) fn describe(
    wasmorch: &Path,
    nats_server: &Path,
    folder: &Path,
) -> Vec<(String, String)> {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let facts = [
        (
            "machine",
            format!("{}, {cores} cores, {}", model(), memory()),
        ),
        (
            "system",
            format!(
                "Linux {}, temp folder on {}",
                line("/proc/sys/kernel/osrelease"),
                filesystem(folder)
            ),
        ),
        ("load before", load()),
        (
            "wasmorch",
            format!("{} ({})", version(wasmorch), profile(wasmorch)),
        ),
        (
            "nats-server",
            format!(
                "{}, one, JetStream on disk, sync_interval always",
                version(nats_server)
            ),
        ),
        (
            "simulated",
            "nothing: real processes, sockets and files; the client shares the machine".into(),
        ),
    ];
    facts.map(|(label, text)| (label.to_owned(), text)).into()
}

/// The same as JSON.
pub(crate) fn json(facts: &[(String, String)]) -> Value {
    facts
        .iter()
        .map(|(label, text)| (label.replace(' ', "_"), json!(text)))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

/// The load averages: figures from a busy machine are to be known as such.
pub(crate) fn load() -> String {
    line("/proc/loadavg")
        .split(' ')
        .take(3)
        .collect::<Vec<_>>()
        .join(" ")
}

fn line(path: &str) -> String {
    std::fs::read_to_string(path).map_or_else(|_| "unknown".into(), |text| text.trim().to_owned())
}

fn model() -> String {
    let info = line("/proc/cpuinfo");
    let model = info
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    model.map_or_else(
        || std::env::consts::ARCH.to_owned(),
        |(_, name)| name.trim().to_owned(),
    )
}

fn memory() -> String {
    let info = line("/proc/meminfo");
    let kib = info.lines().find_map(|line| {
        line.strip_prefix("MemTotal:")?
            .split_whitespace()
            .next()?
            .parse::<u64>()
            .ok()
    });
    kib.map_or_else(
        || "unknown memory".into(),
        |kib| format!("{} GiB", kib.div_ceil(1 << 20)),
    )
}

/// The filesystem that flushing to disk is paid on.
fn filesystem(folder: &Path) -> String {
    let mounts = line("/proc/self/mounts");
    let holding = mounts.lines().filter_map(|line| {
        let mut words = line.split(' ').skip(1);
        let (at, kind) = (words.next()?, words.next()?);
        folder.starts_with(at).then_some((at.len(), kind))
    });
    holding
        .max_by_key(|(length, _)| *length)
        .map_or_else(|| "unknown".into(), |(_, kind)| kind.into())
}

fn version(program: &Path) -> String {
    let output = Command::new(program).arg("--version").output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    text.unwrap_or_default()
        .split_whitespace()
        .last()
        .unwrap_or("unknown")
        .to_owned()
}

/// Cargo's name for the profile is the folder that the binary lies in, but for one.
fn profile(program: &Path) -> String {
    match program
        .parent()
        .and_then(|folder| folder.file_name()?.to_str())
    {
        Some("debug") => "dev profile: our crates unoptimised, dependencies at opt-level 2".into(),
        Some(name) => format!("{name} profile"),
        None => "unknown profile".into(),
    }
}
