//! The host daemon from start to end.
//!
//! Owns the order of things. Start: lock and files, listeners, runners, link, then the loop; so
//! that whatever is refused is refused before anything runs, and what was held runs before NATS is
//! heard. End: drain (the leader is told), then link, runners with what they have in hand, admin, logs;
//! each joined.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use wasmorch_api::status::Capacity;
use wasmorch_api::{BootId, HostId, HostInfo, Name, NatsOptions, VERSION, features};

use crate::admin::{self, Views};
use crate::agent::{Agent, Held, Identity};
use crate::artifacts::Artifacts;
use crate::certificates::{self, TlsSource};
use crate::children;
use crate::driver::{Driver, Parts};
use crate::error::HostError;
use crate::files::{DataDir, HostFile};
use crate::link::Link;
use crate::logs::LogStore;
use crate::machine;
use crate::pool::Pool;
use crate::process::ProcessCommand;
use crate::remover::Remover;
use crate::tables::Tables;

/// For the lock of a daemon that is just ending.
const LOCK_WAIT: Duration = Duration::from_secs(1);
const LOCK_RETRY: Duration = Duration::from_millis(20);
/// Events of the link that may wait for the loop; beyond, the link waits.
const LINK_QUEUE: usize = 1024;
/// Replicas that one host may be given: what its placement set, its memory of them and its
/// reports are sized for.
const REPLICAS_MAX: usize = 20_000;

/// How a host is to run.
#[derive(Debug)]
pub struct HostConfig {
    /// How to reach NATS.
    pub nats: NatsOptions,
    /// The data folder.
    pub data: PathBuf,
    /// Where the gateway answers clients.
    pub http: SocketAddr,
    /// A port of `http`'s address that is taken instead when nobody has it: the last start's.
    pub http_port_before: Option<u16>,
    /// Certificates: then `http` speaks TLS only.
    pub tls: Option<TlsSource>,
    /// A load balancer in front tells of clients by the PROXY protocol, version 2.
    pub proxy_protocol: bool,
    /// Where it answers other hosts; `None`: a free port on `http`'s address.
    pub peer: Option<SocketAddr>,
    /// Where other hosts reach `peer`, when that is not its own address: `HOST:PORT`.
    pub advertise: Option<String>,
    /// Health and metrics.
    pub admin: SocketAddr,
    /// Its name; `None`: the hostname.
    pub name: Option<Name>,
    /// The domain of automatic names: `<name>.<namespace>.<domain>`.
    pub domain: String,
    /// Labels that constraints look at.
    pub labels: BTreeMap<String, String>,
    /// Taints that workloads must tolerate, `key` or `key=value`.
    pub taints: Vec<String>,
    /// Memory that may be booked; `None`: most of the machine's.
    pub memory: Option<u64>,
    /// Cpu that may be booked; `None`: every core.
    pub cpu_millis: Option<u64>,
    /// Between two heartbeats.
    pub heartbeat: Duration,
    /// When it is told to end, what is in hand may take so long.
    pub drain: Duration,
    /// Where the operator puts code that was compiled elsewhere; nobody else may write there.
    pub given: Option<PathBuf>,
    /// What runs guests.
    pub runners: Runners,
    /// Told once everything listens and what was held is being started.
    pub started: Option<oneshot::Sender<HostStarted>>,
}

/// What runs guests.
#[derive(Debug, Clone, Default)]
pub enum Runners {
    /// A thread of the daemon: for tests, debuggers and the smallest devices.
    #[default]
    InDaemon,
    /// Processes.
    Processes {
        /// How many; `None`: one for each core.
        count: Option<NonZeroUsize>,
        /// What starts one.
        runner: ProcessCommand,
        /// What starts the process that compiles for them.
        compiler: ProcessCommand,
    },
}

impl Runners {
    fn count(&self) -> NonZeroUsize {
        match self {
            Self::InDaemon => NonZeroUsize::MIN,
            Self::Processes { count, .. } => count.unwrap_or_else(|| {
                std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN)
            }),
        }
    }
}

/// Where a started host listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostStarted {
    /// The host.
    pub host: HostId,
    /// The gateway.
    pub http: SocketAddr,
    /// The gateway, for other hosts.
    pub peer: SocketAddr,
    /// Health and metrics.
    pub admin: SocketAddr,
}

/// Runs a host until `shutdown`, then drains it.
///
/// # Errors
///
/// When it cannot start; see [`HostError`]. A NATS server that cannot be reached is no error: the
/// host runs what it last held, and waits.
pub async fn run(mut config: HostConfig, shutdown: CancellationToken) -> Result<(), HostError> {
    crate::descriptors::raise();
    if let Some(folder) = &config.given {
        wasmorch_runtime::check_compiled_folder(folder).map_err(HostError::Compiled)?;
    }
    let mut disk = Disk::open(&config).await?;
    let certificates = open_certificates(&config, &disk).await?;
    let sockets = Sockets::bind(&config)?;
    let listening = HostStarted {
        host: disk.host.host.clone(),
        http: sockets.http.address,
        peer: sockets.peer.address,
        admin: sockets.admin.address,
    };
    let info = info(&config, &listening).await;
    tracing::info!(
        host = %listening.host, name = %info.name, http = %listening.http, peer = ?info.peer,
        admin = %listening.admin, data = %config.data.display(), "host starts"
    );
    let admin = sockets.admin.tokio()?;
    let guests = (sockets.http.listener, sockets.peer.listener);
    let remover = Remover::start(disk.data.volumes())?;
    let spawn = children::runner(&config, &disk, guests);
    let pool = Pool::start(
        spawn,
        children::compiler(&config, &disk),
        config.runners.count(),
        REPLICAS_MAX,
    )?;
    let logs = LogStore::start(disk.data.logs());
    let (events, link_events) = mpsc::channel(LINK_QUEUE);
    let (pulse, beats) = watch::channel(None);
    let artifacts = Artifacts::new(disk.data.artifacts());
    let started = Link::start(
        &config.nats,
        listening.host.clone(),
        (logs.reader(), artifacts.clone()),
        events,
        beats,
    )
    .await;
    let (link, link_tasks) = match started {
        Ok(started) => started,
        Err(error) => {
            pool.close(tokio::time::Instant::now()).await;
            logs.close().await;
            return Err(error.into());
        }
    };
    let newest = certificates.as_ref().map(certificates::Store::newest);
    let stop_following = CancellationToken::new();
    let following = certificates.map(|store| tokio::spawn(store.follow(stop_following.clone())));
    let views = Views::default();
    let stop_admin = CancellationToken::new();
    let admin = tokio::spawn(admin::serve(admin, views.clone(), stop_admin.clone()));
    let driver = Driver::new(Parts {
        agent: disk.agent(),
        artifacts,
        data: disk.data.clone(),
        host: disk.host,
        tables: disk.tables,
        certificates: newest,
        info,
        link,
        logs,
        pool,
        remover,
        pulse,
        views,
        drain: config.drain,
    });
    if let Some(started) = config.started.take() {
        // Who started the host may not wait for it.
        let _ = started.send(listening);
    }
    let (pool, logs, until) = driver.run(link_events, shutdown).await;
    link_tasks.close().await;
    stop_following.cancel();
    if let Some(following) = following {
        // A panic has been reported by the runtime.
        let _ = following.await;
    }
    pool.close(until).await;
    stop_admin.cancel();
    if admin.await.is_err() {
        tracing::error!("the admin listener panicked");
    }
    logs.close().await;
    tracing::info!("host ended");
    Ok(())
}

/// The data folder and what it held.
pub(crate) struct Disk {
    pub(crate) data: Arc<DataDir>,
    pub(crate) host: HostFile,
    held: Option<Held>,
    tables: Tables,
}

impl Disk {
    /// Waits a moment for a lock: a daemon that has just been killed may still hold it.
    async fn open(config: &HostConfig) -> Result<Self, HostError> {
        let deadline = Instant::now() + LOCK_WAIT;
        loop {
            let root = config.data.clone();
            let opening = tokio::task::spawn_blocking(move || Self::read(&root));
            let opened = opening
                .await
                .unwrap_or_else(|panicked| std::panic::resume_unwind(panicked.into_panic()));
            match opened {
                Err(HostError::Locked { .. }) if Instant::now() < deadline => {
                    tokio::time::sleep(LOCK_RETRY).await;
                }
                done => return done,
            }
        }
    }

    fn read(root: &Path) -> Result<Self, HostError> {
        let data = DataDir::open(root)?;
        let host = data.host(|| HostId::from_random(rand::random()))?;
        let held = data.held()?;
        let tables = Tables::load(data.tables()?.unwrap_or_default());
        Ok(Self {
            data: Arc::new(data),
            host,
            held,
            tables,
        })
    }

    fn agent(&mut self) -> Agent {
        let boot = BootId::from_random(rand::random());
        let (host, cluster) = (self.host.host.clone(), self.host.cluster.clone());
        Agent::new(
            Identity {
                host,
                boot,
                cluster,
            },
            self.held.take(),
        )
    }
}

/// Reads what the public port is to show, before it listens.
async fn open_certificates(
    config: &HostConfig,
    disk: &Disk,
) -> Result<Option<certificates::Store>, HostError> {
    let Some(source) = config.tls.clone() else {
        return Ok(None);
    };
    let (own, domain) = (disk.data.tls(), config.domain.clone());
    let opening =
        tokio::task::spawn_blocking(move || certificates::Store::open(&source, &own, &domain));
    let opened = opening.await;
    opened
        .unwrap_or_else(|panicked| std::panic::resume_unwind(panicked.into_panic()))
        .map(Some)
}

/// A bound listener and where it listens.
struct Bound {
    listener: TcpListener,
    address: SocketAddr,
    flag: &'static str,
}

impl Bound {
    fn bind(flag: &'static str, address: SocketAddr) -> Result<Self, HostError> {
        let failed = |source: std::io::Error| {
            if source.kind() == std::io::ErrorKind::AddrInUse {
                HostError::PortInUse {
                    flag,
                    address,
                    source,
                }
            } else {
                HostError::Listen {
                    flag,
                    address,
                    source,
                }
            }
        };
        let listener = TcpListener::bind(address).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self {
            listener,
            address,
            flag,
        })
    }

    fn tokio(self) -> Result<tokio::net::TcpListener, HostError> {
        let (flag, address) = (self.flag, self.address);
        tokio::net::TcpListener::from_std(self.listener).map_err(|source| HostError::Listen {
            flag,
            address,
            source,
        })
    }
}

struct Sockets {
    http: Bound,
    peer: Bound,
    admin: Bound,
}

impl Sockets {
    fn bind(config: &HostConfig) -> Result<Self, HostError> {
        let peer = config
            .peer
            .unwrap_or_else(|| SocketAddr::new(config.http.ip(), 0));
        // Bound at once: to look first whether it is free would leave a moment for another to take it.
        let before = config
            .http_port_before
            .and_then(|port| Bound::bind("--http", SocketAddr::new(config.http.ip(), port)).ok());
        Ok(Self {
            http: before.map_or_else(|| Bound::bind("--http", config.http), Ok)?,
            peer: Bound::bind("--peer", peer)?,
            admin: Bound::bind("--admin", config.admin)?,
        })
    }
}

/// What the host is, for heartbeats.
async fn info(config: &HostConfig, listening: &HostStarted) -> HostInfo {
    let (http, peer, url) = (listening.http, listening.peer, config.nats.url.clone());
    let reaching = tokio::task::spawn_blocking(move || {
        (
            machine::reachable(http, &url),
            machine::reachable(peer, &url),
        )
    });
    let (reach_http, reach_peer) = reaching.await.unwrap_or_default();
    let peer = config
        .advertise
        .clone()
        .or_else(|| reach_peer.map(|peer| peer.to_string()));
    if peer.is_none() {
        tracing::warn!(
            "other hosts cannot be told where to reach this one: give --advertise HOST:PORT"
        );
    }
    HostInfo {
        name: config.name.clone().unwrap_or_else(machine::hostname),
        labels: config.labels.clone(),
        taints: config.taints.clone(),
        arch: std::env::consts::ARCH.to_owned(),
        features: features::ALL.iter().map(|&one| one.to_owned()).collect(),
        version: VERSION.to_owned(),
        http: reach_http.unwrap_or(http).to_string(),
        tls: config.tls.is_some(),
        peer: peer.map(Into::into),
        admin: listening.admin.to_string(),
        domain: config.domain.clone(),
        heartbeat_ms: u64::try_from(config.heartbeat.as_millis()).unwrap_or(u64::MAX),
        capacity: Capacity {
            memory_bytes: config.memory.unwrap_or_else(machine::memory_bytes),
            cpu_millis: config.cpu_millis.unwrap_or_else(machine::cpu_millis),
            replicas: REPLICAS_MAX as u64,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_in_use_names_the_flag_and_the_address() {
        let taken = Bound::bind("--http", "127.0.0.1:0".parse().unwrap()).unwrap();
        let Err(error) = Bound::bind("--http", taken.address) else {
            panic!("it is in use")
        };
        assert!(matches!(error, HostError::PortInUse { .. }));
        let text = error.to_string();
        assert!(
            text.starts_with(&format!("--http {} is in use", taken.address)),
            "{text}"
        );
    }
}
