//! What the daemon's children are started with: runners, and their compiler.
//!
//! Owns which part of the daemon's configuration each of them is told, and what it may open.

use std::net::TcpListener;
use std::path::Path;

use tokio_util::task::AbortOnDropHandle;

use crate::compiler;
use crate::daemon::{Disk, HostConfig, Runners};
use crate::machine;
use crate::pool::{Spawn, StartCompiler};
use crate::process::{self, Spawned};
use crate::runner::{self, RunnerConfig, RunnerError, Settings};

/// Compiled code that is kept in memory while nobody uses it, at the most: that of a thousand small
/// components, or of a few with an interpreter.
const LOADED_MAX: u64 = 256 << 20;
/// And no more than this part of the memory for replicas.
const LOADED_SHARE: u64 = 8;

/// What makes a runner, the first and every one after it: each gets the listeners that the daemon
/// keeps, so that a runner that ends loses none.
pub(crate) fn runner(
    config: &HostConfig,
    disk: &Disk,
    (http, peer): (TcpListener, TcpListener),
) -> Spawn {
    let domain = config.domain.clone();
    let in_processes = matches!(config.runners, Runners::Processes { .. });
    let settings = Settings {
        host: disk.host.host.clone(),
        // A domain that only this machine knows is somebody's desk.
        development: domain == "localhost" || domain.ends_with(".localhost"),
        domain,
        zone: config.labels.get("zone").cloned(),
        tls: config.tls.is_some(),
        proxy_protocol: config.proxy_protocol,
        nats: Some(config.nats.clone()),
        compiled: Some(disk.data.compiled()),
        compiled_elsewhere: in_processes,
        // Else it is the compiler that takes it.
        given: config.given.clone().filter(|_| !in_processes),
        volumes: Some(disk.data.volumes()),
        loaded_max: loaded_max(config.memory.unwrap_or_else(machine::memory_bytes)),
        paths: disk.data.for_runners(config.nats.creds.as_deref()),
        column: None,
    };
    let runners = config.runners.clone();
    let compiled = disk.data.compiled();
    Box::new(move |column| {
        prepare(&compiled);
        let (column, ledger) = column.map_err(RunnerError::Spawn)?.unzip();
        let config = RunnerConfig {
            settings: Settings {
                column,
                ..settings.clone()
            },
            http: http.try_clone().map_err(RunnerError::Spawn)?,
            peer: Some(peer.try_clone().map_err(RunnerError::Spawn)?),
            ledger,
        };
        match &runners {
            Runners::InDaemon => runner::spawn(config),
            Runners::Processes { runner, .. } => runner::spawn_process(runner, config),
        }
    })
}

/// What makes the compiler's process; `None`: guests run in the daemon, and are compiled there.
pub(crate) fn compiler(config: &HostConfig, disk: &Disk) -> Option<StartCompiler> {
    let Runners::Processes { compiler, .. } = &config.runners else {
        return None;
    };
    let command = compiler.clone();
    let settings = compiler::Settings {
        artifacts: disk.data.artifacts(),
        compiled: disk.data.compiled(),
        given: config.given.clone(),
        paths: disk.data.for_compiler(config.given.as_deref()),
    };
    Some(Box::new(move || {
        prepare(&settings.compiled);
        let spawned = process::spawn(&command, settings.clone(), &|_| Ok(()))?;
        let talk = AbortOnDropHandle::new(tokio::spawn(spawned.talk));
        Ok(Spawned {
            child: spawned.child,
            to: spawned.to,
            from: spawned.from,
            talk,
        })
    }))
}

/// The folder of compiled code, before somebody is confined who may only read it, or write below it.
fn prepare(compiled: &Path) {
    if let Err(error) = wasmorch_runtime::prepare_compiled_folder(compiled) {
        tracing::warn!(dir = %compiled.display(), %error, "compiled code will not be kept");
    }
}

/// Code is there to be run: a small machine keeps less of it in memory, and loads it more often.
fn loaded_max(memory_bytes: u64) -> u64 {
    (memory_bytes / LOADED_SHARE).min(LOADED_MAX)
}
