//! The parts of an `up` that run in this process: one controller, N hosts, each a task that is
//! owned, watched and joined here.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;
use tokio::sync::oneshot;
use tokio::task::{JoinError, JoinSet};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use wasmorch_api::{HostId, NatsOptions};
use wasmorch_controller::{ControllerConfig, ControllerStarted};
use wasmorch_host::{HostConfig, HostStarted, TlsSource};

use crate::commands::controller::controller_error;
use crate::commands::host::{host_error, runners};
use crate::error::{CliError, Exit};

/// What hosts have in hand may take so long: somebody waits for it at a terminal.
const DRAIN: Duration = Duration::from_secs(5);
/// How long hosts may take to end.
const HOSTS_MAX: Duration = Duration::from_secs(45);
/// How long the controller may take to hand its lease back.
const CONTROLLER_MAX: Duration = Duration::from_secs(10);
/// From its start to bound listeners; a host first reads what it holds.
const STARTED_MAX: Duration = Duration::from_secs(30);

/// Where a host listens.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct HostAddresses {
    pub(crate) name: String,
    pub(crate) id: HostId,
    pub(crate) http: SocketAddr,
    pub(crate) peer: SocketAddr,
    pub(crate) admin: SocketAddr,
}

type Ended = Result<(), CliError>;

/// What runs.
#[derive(Default)]
pub(crate) struct Parts {
    hosts: JoinSet<(String, Ended)>,
    controller: JoinSet<Ended>,
    starting: Vec<oneshot::Receiver<HostStarted>>,
    stop_hosts: CancellationToken,
    stop_controller: CancellationToken,
}

impl Parts {
    /// Starts the controller and waits until it listens; its admin address.
    pub(crate) async fn start_controller(
        &mut self,
        nats: &NatsOptions,
    ) -> Result<Option<SocketAddr>, CliError> {
        let (sender, started) = oneshot::channel();
        let admin = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
        let config = ControllerConfig {
            nats: nats.clone(),
            admin,
            dead_after: wasmorch_controller::DEAD_AFTER,
            started: Some(sender),
        };
        let stop = self.stop_controller.clone();
        self.controller.spawn(async move {
            let running = Box::pin(wasmorch_controller::run(config, stop));
            running.await.map_err(|error| controller_error(&error))
        });
        let ControllerStarted { admin, .. } = self.started(started, "the controller").await?;
        Ok(admin)
    }

    /// Starts a host; [`Self::hosts_started`] waits for it.
    pub(crate) fn start_host(
        &mut self,
        nats: &NatsOptions,
        name: &str,
        data: PathBuf,
        (http, http_port_before): (SocketAddr, Option<u16>),
        (tls, proxy_protocol): (Option<TlsSource>, bool),
        runners_each: u32,
    ) -> Result<(), CliError> {
        std::fs::create_dir_all(&data).map_err(|error| CliError::writing(&data, &error))?;
        let (sender, started) = oneshot::channel();
        let config = HostConfig {
            nats: nats.clone(),
            data,
            http,
            http_port_before,
            tls,
            proxy_protocol,
            // Hosts of one machine forward to each other there; until peers are authenticated, the
            // port where forwarding headers are believed stays off the network.
            peer: Some(SocketAddr::from(([127, 0, 0, 1], 0))),
            advertise: None,
            admin: SocketAddr::from(([127, 0, 0, 1], 0)),
            name: name.parse().ok(),
            domain: "localhost".into(),
            labels: Default::default(),
            taints: Vec::new(),
            memory: None,
            cpu_millis: None,
            heartbeat: Duration::from_secs(1),
            drain: DRAIN,
            given: None,
            runners: runners(Some(runners_each)),
            started: Some(sender),
        };
        let (stop, name) = (self.stop_hosts.clone(), name.to_owned());
        self.hosts.spawn(async move {
            let ended = Box::pin(wasmorch_host::run(config, stop)).await;
            (name, ended.map_err(|error| host_error(&error)))
        });
        self.starting.push(started);
        Ok(())
    }

    /// Waits until the hosts listen.
    pub(crate) async fn hosts_started(
        &mut self,
        names: Vec<String>,
    ) -> Result<Vec<HostAddresses>, CliError> {
        let mut hosts = Vec::new();
        for (name, starting) in names.into_iter().zip(std::mem::take(&mut self.starting)) {
            let HostStarted {
                host,
                http,
                peer,
                admin,
            } = self.started(starting, &format!("host {name}")).await?;
            hosts.push(HostAddresses {
                name,
                id: host,
                http,
                peer,
                admin,
            });
        }
        Ok(hosts)
    }

    async fn started<T>(
        &mut self,
        started: oneshot::Receiver<T>,
        what: &str,
    ) -> Result<T, CliError> {
        tokio::pin!(started);
        let late = || CliError::new(Exit::FAILED, format!("{what} did not start"), "", "");
        let waiting = async {
            tokio::select! {
                biased;
                told = &mut started => match told {
                    Ok(told) => Ok(told),
                    // It ended, and its end says why.
                    Err(_) => Err(self.next_end().await),
                },
                error = self.next_end() => Err(error),
            }
        };
        timeout(STARTED_MAX, waiting)
            .await
            .unwrap_or_else(|_| Err(late()))
    }

    /// The first part that ends, and why: none should. Safe to cancel.
    pub(crate) async fn next_end(&mut self) -> CliError {
        tokio::select! {
            Some(ended) = self.controller.join_next() => match ended {
                Ok(ended) => unexpected("the controller", ended),
                Err(error) => panicked("the controller", &error),
            },
            Some(ended) = self.hosts.join_next() => match ended {
                Ok((name, ended)) => unexpected(&format!("host {name}"), ended),
                Err(error) => panicked("a host", &error),
            },
            else => std::future::pending().await,
        }
    }

    /// Drains and joins the hosts; the names of those that took too long.
    pub(crate) async fn stop_hosts(&mut self) -> Vec<String> {
        self.stop_hosts.cancel();
        let joined = async { while self.hosts.join_next().await.is_some() {} };
        if timeout(HOSTS_MAX, joined).await.is_ok() {
            return Vec::new();
        }
        let late = self.hosts.len();
        self.hosts.abort_all();
        vec![crate::out::human::count(late as u64, "host")]
    }

    /// Stops and joins the controller; whether it did in time.
    pub(crate) async fn stop_controller(&mut self) -> bool {
        self.stop_controller.cancel();
        let joined = async { while self.controller.join_next().await.is_some() {} };
        timeout(CONTROLLER_MAX, joined).await.is_ok()
    }
}

/// Runners of each host, so that all together have one for each core of this machine.
pub(crate) fn runners_each(hosts: u16) -> u32 {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    u32::try_from(cores / usize::from(hosts.max(1))).map_or(1, |each| each.max(1))
}

fn unexpected(what: &str, ended: Ended) -> CliError {
    match ended {
        Err(error) => error,
        Ok(()) => CliError::bug(format!("{what} ended by itself"), ""),
    }
}

fn panicked(what: &str, error: &JoinError) -> CliError {
    CliError::bug(format!("{what} ended by a panic"), error.to_string())
}
