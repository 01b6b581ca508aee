//! `run`: a component or core module here and now, with the runtime alone and no cluster.
//!
//! The exit code is the guest's own; 124 out of time, 134 trap, 137 out of memory, 65 no program.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use wasmorch_api::component::Shape;
use wasmorch_api::error::chain;
use wasmorch_api::{ByteSize, Kind};
use wasmorch_runtime::{
    BlobContainers, CommandReplica, Ended, HostPattern, HttpReplica, KeyValueStores, Limits,
    LoadError, Network, OutboundHttp, Preopen, PrepareError, ReplicaConfig, Runtime, RuntimeConfig,
    SocketPattern, Stdio,
};

use super::source::{Source, read_component};
use super::{Context, Interrupt};
use crate::args::{ANY_NETWORK, KeyValue, RunArgs};
use crate::cluster::cache_dir;
use crate::error::{CliError, Exit};
use crate::serve;

/// The limit of a deployed replica, so that what runs here runs there.
const MEMORY: ByteSize = ByteSize::mib(64);
/// Compiled code that is kept for the next time: what was used longest ago goes first.
const COMPILED_MAX: u64 = 1 << 30;
/// For one request with `--http`, likewise.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// `run`.
pub(crate) async fn run(ctx: &Context, args: RunArgs) -> Result<Exit, CliError> {
    let mut interrupt = Interrupt::listen()?;
    let source = read_component(&args.file)?;
    let is_http = source.inspection.runs_as(Kind::Http);
    let is_command = source.inspection.runs_as(Kind::Service);
    let file = args.file.display();
    if source.inspection.kind.is_none() {
        return Err(CliError::new(
            Exit::BYTES,
            format!("{file} exports nothing that can be run"),
            "",
            "`wasmorch inspect` shows what it exports",
        ));
    }
    if args.http.is_some() && !is_http {
        return Err(wrong_kind(
            format!("{file} answers no HTTP requests"),
            "leave --http out",
        ));
    }
    if args.http.is_none() && !is_command {
        let (what, fix) = if is_http {
            (
                format!("{file} is no program: it answers HTTP requests"),
                "serve it: --http 127.0.0.1:0",
            )
        } else {
            (
                format!("{file} is no program"),
                "`wasmorch inspect` shows what it is",
            )
        };
        return Err(wrong_kind(what, fix));
    }
    let config = config(&args, &source)?;
    // Before the compiler works for nothing.
    let listener = args.http.map(serve::listen).transpose()?;
    let preparing = async {
        let runtime = runtime(&args)?;
        let loaded = runtime.load(&source.digest, source.bytes.clone()).await;
        let artifact = loaded.map_err(|error| refused_bytes(&source, &error))?;
        Ok::<_, CliError>((runtime, artifact))
    };
    let (runtime, artifact) = tokio::select! {
        prepared = preparing => prepared?,
        () = interrupt.next() => return Err(CliError::interrupted("interrupted")),
    };
    let prepare_error = |error| refused_preparing(&source, &error);
    if let Some(listener) = listener {
        let replica = HttpReplica::prepare(&runtime, &artifact, config).map_err(prepare_error)?;
        return serve::serve(ctx, listener, replica, &mut interrupt).await;
    }
    let replica = CommandReplica::prepare(&runtime, &artifact, config).map_err(prepare_error)?;
    let stop = CancellationToken::new();
    let running = replica.run(Stdio::Inherit, stop.clone());
    tokio::pin!(running);
    let ended = tokio::select! {
        ended = &mut running => ended,
        () = interrupt.next() => {
            stop.cancel();
            running.await
        }
    };
    match ended {
        // What a process can end with: the low byte, as everywhere.
        Ok(code) => Ok(Exit(code & 0xff)),
        Err(ended) => Err(ended_error(&ended)),
    }
}

fn wrong_kind(what: String, fix: &str) -> CliError {
    CliError::new(Exit::USAGE, what, "", fix)
}

fn runtime(args: &RunArgs) -> Result<Runtime, CliError> {
    let config = RuntimeConfig {
        compiled_dir: cache_dir()
            .filter(|_| !args.no_cache)
            .map(|cache| cache.join("compiled")),
        compiled_max: COMPILED_MAX,
        // One program at a time needs no pool; a server has one instance for each request.
        pooling: args.http.is_some(),
        ..RuntimeConfig::default()
    };
    Runtime::new(config).map_err(|error| {
        CliError::new(Exit::BLOCKED, "the runtime cannot start", chain(&error), "")
    })
}

fn config(args: &RunArgs, source: &Source) -> Result<ReplicaConfig, CliError> {
    let name = args
        .file
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let mut config = ReplicaConfig::new(name.clone());
    config.args = std::iter::once(name)
        .chain(args.args.iter().cloned())
        .collect();
    config.env = environment(&args.env);
    let timeout = args.timeout.map(|timeout| timeout.0);
    config.limits = Limits {
        memory_bytes: args.memory.unwrap_or(MEMORY).0,
        timeout: timeout.or(args.http.map(|_| REQUEST_TIMEOUT)),
        ..Limits::default()
    };
    let pattern = |error: wasmorch_runtime::PatternError, flag: &str| {
        CliError::usage(format!("{flag}: {error}"), "")
    };
    let hosts: Result<Vec<HostPattern>, CliError> = args
        .allow_http
        .iter()
        .map(|text| text.parse().map_err(|error| pattern(error, "--allow-http")))
        .collect();
    config.outbound = OutboundHttp::allow(hosts?);
    config.keyvalue = KeyValueStores::in_memory(&config.share);
    config.blobs = BlobContainers::in_memory(&config.share);
    config.network = network(&args.allow_network, pattern)?;
    config.preopens = args
        .dirs
        .iter()
        .map(|dir| Preopen {
            host: dir.host.clone(),
            guest: dir.guest.clone(),
            read_only: dir.read_only,
            limit_bytes: None,
        })
        .collect();
    if args.http.is_some() {
        config.logs = std::sync::Arc::new(serve::StderrLogs);
    } else if source.inspection.shape == Shape::Component {
        // `wasi:logging` of a program; its stdout and stderr are ours.
        config.logs = std::sync::Arc::new(serve::StderrLogs);
    }
    Ok(config)
}

/// Each variable once: the last one given counts, as in a shell.
fn environment(pairs: &[KeyValue]) -> Vec<(String, String)> {
    let pairs = pairs
        .iter()
        .map(|pair| (pair.key.clone(), pair.value.clone()));
    pairs.collect::<BTreeMap<_, _>>().into_iter().collect()
}

fn network(
    patterns: &[String],
    wrong: impl Fn(wasmorch_runtime::PatternError, &str) -> CliError,
) -> Result<Network, CliError> {
    if patterns.is_empty() {
        return Ok(Network::Denied);
    }
    if patterns.iter().any(|pattern| pattern == ANY_NETWORK) {
        return Ok(Network::Any);
    }
    let connect: Result<Vec<SocketPattern>, CliError> = patterns
        .iter()
        .map(|text| {
            text.parse()
                .map_err(|error| wrong(error, "--allow-network"))
        })
        .collect();
    Ok(Network::Allow {
        connect: connect?,
        listen: Vec::new(),
    })
}

fn refused_bytes(source: &Source, error: &LoadError) -> CliError {
    CliError::new(
        Exit::BYTES,
        format!("{} cannot be run", source.path.display()),
        chain(error),
        "build it again, for WASI 0.2, 0.3 or preview 1",
    )
}

fn refused_preparing(source: &Source, error: &PrepareError) -> CliError {
    let what = format!("{} cannot be run", source.path.display());
    let (exit, fix) = match error {
        PrepareError::Preopen { .. } => (Exit::NOT_FOUND, "see --dir"),
        PrepareError::Memory { .. } => (Exit::MEMORY, ""),
        _ => (
            Exit::BYTES,
            "`wasmorch inspect` shows what it imports and exports",
        ),
    };
    CliError::new(exit, what, chain(error), fix)
}

fn ended_error(ended: &Ended) -> CliError {
    let exit = match ended {
        Ended::Trap { .. } => Exit::TRAP,
        Ended::MemoryLimit { .. } => Exit::MEMORY,
        Ended::Timeout { .. } => Exit::TIMED_OUT,
        Ended::Stopped => return CliError::interrupted("interrupted"),
        Ended::Internal(_) => Exit::BUG,
        _ => Exit::FAILED,
    };
    let why = match ended {
        Ended::Trap { backtrace, .. } => backtrace.trim_end().to_owned(),
        _ => String::new(),
    };
    CliError::new(exit, ended.to_string(), why, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_variable_given_twice_the_last_counts() {
        let pairs = ["A=1", "B=x", "A=2"].map(|text| text.parse().unwrap());
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        assert_eq!(environment(&pairs), [pair("A", "2"), pair("B", "x")]);
    }

    #[test]
    fn how_a_guest_ended_is_in_the_exit_code() {
        let trap = Ended::Trap {
            message: "unreachable".into(),
            backtrace: "0: x\n".into(),
        };
        let memory = Ended::MemoryLimit {
            limit_bytes: 1,
            wanted_bytes: 2,
        };
        let timeout = Ended::Timeout {
            limit: Duration::from_secs(1),
            throttled: Duration::ZERO,
        };
        for (ended, exit) in [
            (trap, 134),
            (memory, 137),
            (timeout, 124),
            (Ended::Stopped, 130),
        ] {
            assert_eq!(ended_error(&ended).exit, Exit(exit));
        }
    }
}
