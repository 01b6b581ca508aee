//! `host`: a daemon, until a signal.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::json;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use wasmorch_api::error::chain;
use wasmorch_api::{HostId, NatsOptions};
use wasmorch_host::{
    HostConfig, HostError, HostStarted, LinkError, ProcessCommand, Runners, TlsSource,
};

use super::{Context, Interrupt};
use crate::args::HostArgs;
use crate::cluster;
use crate::error::{CliError, Exit};
use crate::logging;
use crate::out::table::pairs;

/// A daemon that was told to stop and does not is left behind so long after its drain.
pub(super) const STOP_MAX: Duration = Duration::from_secs(30);

/// `host`.
pub(crate) async fn run(ctx: &Context, args: HostArgs) -> Result<Exit, CliError> {
    let mut interrupt = Interrupt::listen()?;
    let labels = args.labels()?;
    let tls = args.front.tls()?;
    let nats = cluster::find(&ctx.global)?;
    let data = cluster::data_dir(args.data.clone(), "host")?;
    let (sender, started) = oneshot::channel();
    let secure = tls.is_some();
    let stop_max = args.drain + STOP_MAX;
    let config = HostConfig {
        labels,
        ..host_config(args, tls, nats, data, sender)
    };
    let stop = CancellationToken::new();
    let running = wasmorch_host::run(config, stop.clone());
    let signals = (&stop, &mut interrupt, stop_max);
    let ended = until_signal(ctx, running, signals, async {
        let HostStarted {
            host,
            http,
            peer,
            admin,
        } = started.await.ok()?;
        let scheme = if secure { "https" } else { "http" };
        let text = addresses(
            &host,
            &format!("{scheme}://{http}"),
            &peer.to_string(),
            &admin.to_string(),
        );
        Some((
            text,
            json!({ "host": host, "http": http, "peer": peer, "admin": admin }),
        ))
    });
    match Box::pin(ended).await? {
        Some(ended) => ended.map_err(|error| host_error(&error)).map(|()| Exit::OK),
        None => Ok(Exit::OK),
    }
}

fn host_config(
    args: HostArgs,
    tls: Option<TlsSource>,
    nats: NatsOptions,
    data: PathBuf,
    started: oneshot::Sender<HostStarted>,
) -> HostConfig {
    HostConfig {
        nats,
        data,
        http: args.http,
        http_port_before: None,
        tls,
        proxy_protocol: args.front.proxy_protocol,
        peer: args.peer,
        advertise: args.advertise,
        admin: args.admin,
        name: args.name,
        domain: args.domain,
        labels: BTreeMap::new(),
        taints: args.taints,
        memory: args.memory.map(|memory| memory.0),
        cpu_millis: args.cpu.map(|cpu| cpu.0),
        heartbeat: args.heartbeat,
        drain: args.drain,
        given: args.compiled,
        runners: runners(args.runners),
        started: Some(started),
    }
}

/// So many processes of this very program; 0: none, guests run in the daemon.
pub(crate) fn runners(count: Option<u32>) -> Runners {
    let count = count.map(|count| usize::try_from(count).unwrap_or(usize::MAX));
    if count == Some(0) {
        return Runners::InDaemon;
    }
    let child = |what| ProcessCommand::this([what, "--log", logging::filter()]);
    Runners::Processes {
        count: count.and_then(NonZeroUsize::new),
        runner: child("runner"),
        compiler: child("compiler"),
    }
}

fn addresses(host: &HostId, gateway: &str, peer: &str, admin: &str) -> String {
    pairs(&[
        ("host", host.to_string()),
        ("gateway", gateway.to_owned()),
        ("peer", peer.to_owned()),
        ("admin", format!("http://{admin}")),
    ])
}

/// Runs a daemon until it ends or a signal comes; then stops it. `None`: it did not stop within `stop_max`.
pub(super) async fn until_signal<E>(
    ctx: &Context,
    running: impl Future<Output = Result<(), E>>,
    (stop, interrupt, stop_max): (&CancellationToken, &mut Interrupt, Duration),
    started: impl Future<Output = Option<(String, serde_json::Value)>>,
) -> Result<Option<Result<(), E>>, CliError> {
    // A daemon's future is large, and this one moves.
    let running = Box::pin(running);
    tokio::pin!(running, started);
    let mut told = false;
    loop {
        tokio::select! {
            ended = &mut running => return Ok(Some(ended)),
            shown = &mut started, if !told => {
                told = true;
                match shown {
                    Some((_, object)) if ctx.out.is_json() => ctx.out.json_line(&object)?,
                    Some((text, _)) => ctx.out.text(&text)?,
                    None => {}
                }
            }
            () = interrupt.next() => break,
        }
    }
    stop.cancel();
    tokio::select! {
        ended = running => Ok(Some(ended)),
        () = interrupt.next() => Err(CliError::interrupted("stopped at once")),
        () = tokio::time::sleep(stop_max) => {
            tracing::error!(seconds = stop_max.as_secs(), "did not stop in time");
            Ok(None)
        }
    }
}

/// Why a host ended, with its exit code.
pub(crate) fn host_error(error: &HostError) -> CliError {
    let exit = match error {
        HostError::PortInUse { .. } | HostError::Locked { .. } | HostError::DiskFull { .. } => {
            Exit::BLOCKED
        }
        HostError::Listen { source, .. } => denied_or(source, Exit::USAGE),
        HostError::Data { source, .. } => denied_or(source, Exit::BLOCKED),
        HostError::CertificateFile { source, .. } if source.kind() == ErrorKind::NotFound => {
            Exit::NOT_FOUND
        }
        HostError::CertificateFile { source, .. } => denied_or(source, Exit::USAGE),
        HostError::Certificates { .. } => Exit::USAGE,
        HostError::Compiled(_) => Exit::USAGE,
        HostError::Damaged { .. } => Exit::FAILED,
        HostError::Nats(LinkError::Credentials { source, .. }) => {
            denied_or(source, Exit::NOT_FOUND)
        }
        HostError::Nats(LinkError::Address { .. }) => Exit::USAGE,
        HostError::Runner(_) => Exit::FAILED,
    };
    split(exit, "the host cannot run", error)
}

/// What the system refuses for lack of a right is that, whatever it was for.
pub(super) fn denied_or(error: &std::io::Error, otherwise: Exit) -> Exit {
    match error.kind() {
        ErrorKind::PermissionDenied => Exit::DENIED,
        _ => otherwise,
    }
}

/// The parts' errors say what happened and, after a colon, what to do.
pub(super) fn split(exit: Exit, what: &str, error: &(dyn std::error::Error + 'static)) -> CliError {
    CliError::new(exit, what, chain(error), "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_right_is_told_by_its_own_exit_code() {
        let error = |kind: ErrorKind| HostError::Listen {
            flag: "--http",
            address: "127.0.0.1:80".parse().unwrap(),
            source: kind.into(),
        };
        let exit = |kind| host_error(&error(kind)).exit;
        assert_eq!(exit(ErrorKind::PermissionDenied), Exit::DENIED);
        assert_eq!(exit(ErrorKind::AddrNotAvailable), Exit::USAGE);
    }
}
