//! The listeners and their connections: accepting, protocols, bounds, shutdown.
//!
//! ```text
//!   run ── shutdown ──> accept loops end ──> connections finish what is in hand
//!                                              │ all gone, or the drain deadline: cut off
//!                                              v
//!                                            connections to other hosts end ──> joined
//! ```
//!
//! Owns every task of a connection, and joins it. What a public connection begins with, before its
//! HTTP (PROXY protocol, TLS), is in `front`.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::BoxError;
use crate::config::{GatewayConfig, GatewayError, Limits};
use crate::connections::{Connections, Place};
use crate::crowd::{Crowd, LEAVE_FOR};
use crate::front::{Front, Opened};
use crate::gateway::Gateway;
use crate::headers::Client;
use crate::heads::{Heads, Look};
use crate::local::Local;
use crate::peers::{STREAM_WINDOW_BYTES, connection_window};
use crate::socket;
use crate::stall;
use crate::stats::{CounterGauge, Gauge};
use crate::tables::Tables;
use crate::tunnel::Pipe;
use wasmorch_api::error::chain;

/// After a failed accept (no file descriptors left), so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Unread data of one public HTTP/2 connection.
const PUBLIC_WINDOW_BYTES: u32 = 1024 * 1024;
/// Pings find clients that are gone while their response streams.
const PING_INTERVAL: Duration = Duration::from_secs(20);
/// What a connection too many is told.
const TOO_MANY: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\nwasmorch-error: overloaded\r\n\
content-type: text/plain; charset=utf-8\r\ncontent-length: 50\r\nconnection: close\r\n\r\n\
this gateway has too many connections; try again.\n";

/// Serves until `shutdown`, then drains.
///
/// # Errors
///
/// When a listener cannot be used. Must be called in a tokio runtime with I/O and time.
pub async fn serve(
    config: GatewayConfig,
    tables: Tables,
    local: Arc<dyn Local>,
    shutdown: CancellationToken,
) -> Result<(), GatewayError> {
    Server::new(config, tables, local)?.run(shutdown).await;
    Ok(())
}

/// A gateway that is bound and not yet serving.
#[derive(Debug)]
pub struct Server {
    gateway: Gateway,
    http: TcpListener,
    front: Front,
    peer: Option<TcpListener>,
    tunnelled: Option<mpsc::Receiver<Pipe>>,
    limits: Limits,
    crowd: Option<Arc<dyn Crowd>>,
}

impl Server {
    /// Takes the listeners over.
    ///
    /// # Errors
    ///
    /// When a listener cannot be used. Must be called in a tokio runtime with I/O and time.
    pub fn new(
        config: GatewayConfig,
        tables: Tables,
        local: Arc<dyn Local>,
    ) -> Result<Self, GatewayError> {
        let gateway = Gateway::new(tables, local, &config);
        let GatewayConfig {
            http,
            proxy_protocol,
            tls,
            peer,
            tunnelled,
            limits,
            crowd,
            ..
        } = config;
        let front = Front {
            proxy_protocol,
            tls,
        };
        let listener = |port, listener: std::net::TcpListener| {
            let taken = listener
                .set_nonblocking(true)
                .and_then(|()| TcpListener::from_std(listener));
            taken.map_err(|source| GatewayError::Listener { port, source })
        };
        let http = listener("public", http)?;
        let peer = peer.map(|peer| listener("peer", peer)).transpose()?;
        Ok(Self {
            gateway,
            http,
            front,
            peer,
            tunnelled,
            limits,
            crowd,
        })
    }

    /// The handle, for requests that come in another way and for counters.
    pub fn gateway(&self) -> Gateway {
        self.gateway.clone()
    }

    /// Serves until `shutdown`, then drains: requests in hand may finish until the deadline.
    /// Returns when every task has ended.
    pub async fn run(self, shutdown: CancellationToken) {
        let Self {
            gateway,
            http,
            front,
            peer,
            tunnelled,
            limits,
            crowd,
        } = self;
        let tasks = TaskTracker::new();
        let public = Port::new(Role::Public, front, &gateway, &limits, &tasks, crowd);
        let peers = Port::new(
            Role::Peer,
            Front::default(),
            &gateway,
            &limits,
            &tasks,
            None,
        );
        let ports = [public.connections.clone(), peers.connections.clone()];
        // Whoever drops this future ends all that it began.
        let _ends = EndOnDrop(&ports);
        let stop = shutdown.child_token();
        let _stops = stop.clone().drop_guard();

        let mut accepting = vec![tasks.spawn(public.accept(http, stop.clone()))];
        if let Some(tunnelled) = tunnelled {
            let (peers, stop) = (peers.clone(), stop.clone());
            accepting.push(tasks.spawn(peers.accept_tunnelled(tunnelled, stop)));
        }
        accepting.extend(peer.map(|peer| tasks.spawn(peers.accept(peer, stop.clone()))));
        let mut sweeping = pin!(sweep(&ports));
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = &mut sweeping => {}
        }
        for accepting in accepting {
            // A panic has been reported by the runtime; the port is closed either way.
            let _ = accepting.await;
        }
        ports.iter().for_each(|port| port.close());
        tasks.close();
        let in_hand = async {
            tasks.wait().await;
            gateway.called().await;
        };
        let drained = tokio::select! {
            drained = timeout(limits.drain, in_hand) => drained.is_ok(),
            () = &mut sweeping => false,
        };
        if !drained {
            let cut_off = gateway.stats().in_flight;
            tracing::warn!(cut_off, "drain deadline passed");
            ports.iter().for_each(|port| port.end());
            tasks.wait().await;
        }
        gateway.end().await;
    }
}

/// Looks at all connections now and then, for ever.
async fn sweep(ports: &[Arc<Connections>]) {
    let Some(tick) = ports.iter().map(|port| port.tick()).min() else {
        return std::future::pending().await;
    };
    let mut interval = tokio::time::interval(tick);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        ports.iter().for_each(|port| port.sweep());
    }
}

struct EndOnDrop<'p>(&'p [Arc<Connections>]);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.0.iter().for_each(|port| port.end());
    }
}

/// Who is at the other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Public,
    Peer,
}

/// Runs the streams of HTTP/2 connections. They end with their connection.
#[derive(Debug, Clone)]
struct Streams {
    tasks: TaskTracker,
    stall_timeout: Option<Duration>,
}

impl<F> hyper::rt::Executor<F> for Streams
where
    F: Future<Output: Send> + Send + 'static,
{
    fn execute(&self, stream: F) {
        let Some(limit) = self.stall_timeout else {
            self.tasks.spawn(stream);
            return;
        };
        self.tasks.spawn(async move {
            if stall::driven(limit, stream).await.is_none() {
                tracing::debug!("a stream is reset: its client takes nothing");
            }
        });
    }
}

/// One listener's connections.
#[derive(Clone)]
struct Port {
    role: Role,
    shared: Arc<Shared>,
    connections: Arc<Connections>,
    tasks: TaskTracker,
}

impl Port {
    fn new(
        role: Role,
        front: Front,
        gateway: &Gateway,
        limits: &Limits,
        tasks: &TaskTracker,
        crowd: Option<Arc<dyn Crowd>>,
    ) -> Self {
        let connections = Connections::new(limits).among(crowd);
        let shared = Shared {
            role,
            gateway: gateway.clone(),
            builder: protocols((role, &front), limits, tasks),
            front,
            stall_timeout: stall_timeout(role, limits),
            half_close_within: limits.half_close_within,
        };
        Self {
            role,
            shared: Arc::new(shared),
            connections: Arc::new(connections),
            tasks: tasks.clone(),
        }
    }

    async fn accept(self, listener: TcpListener, stop: CancellationToken) {
        loop {
            // One that is stuck takes none: so only for a moment.
            if self.connections.is_over() && timeout(LEAVE_FOR, stop.cancelled()).await.is_ok() {
                return;
            }
            let accepted = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, client)) => self.serve(stream, client),
                Err(error) if is_the_clients(&error) => {}
                Err(error) => {
                    tracing::warn!(role = ?self.role, %error, "cannot accept connections");
                    let _ = timeout(ACCEPT_PAUSE, stop.cancelled()).await;
                }
            }
        }
    }

    /// A place for one more connection, and its count; `None`: there are too many, which is counted.
    fn admit(&self) -> Option<(Place, CounterGauge)> {
        let counters = self.shared.gateway.counters();
        let Some(place) = self.connections.enter() else {
            counters.connections_refused.fetch_add(1, Relaxed);
            if self.connections.refuses() {
                tracing::warn!(role = ?self.role, "too many connections: one is refused");
            }
            return None;
        };
        counters.connections.fetch_add(1, Relaxed);
        let open: CounterGauge =
            Gauge::new(counters.clone(), |counters| &counters.connections_open);
        Some((place, open))
    }

    /// The same for streams that other hosts have opened through the tunnel.
    async fn accept_tunnelled(self, mut streams: mpsc::Receiver<Pipe>, stop: CancellationToken) {
        while let Some(Some(stream)) = stop.run_until_cancelled(streams.recv()).await {
            let Some((place, open)) = self.admit() else {
                // Whoever opened it sees it close, and goes elsewhere.
                continue;
            };
            let shared = self.shared.clone();
            self.tasks.spawn(async move {
                // A peer tells of the client in the request.
                let nobody = Client::new(SocketAddr::from(([0, 0, 0, 0], 0)), false);
                if let Err(error) = shared.drive(place, stream, nobody).await {
                    tracing::debug!(error = chain(&*error), "tunnelled connection ended");
                }
                drop(open);
            });
        }
    }

    fn serve(&self, stream: TcpStream, address: SocketAddr) {
        let Some((place, open)) = self.admit() else {
            return refuse(&stream, &self.shared);
        };
        if let Err(error) = socket::prepare(&stream) {
            tracing::debug!(%error, "connection is gone already");
            return;
        }
        let shared = self.shared.clone();
        self.tasks.spawn(async move {
            shared.connection(place, stream, address).await;
            drop(open);
        });
    }
}

/// What every connection of a port needs.
struct Shared {
    role: Role,
    gateway: Gateway,
    builder: auto::Builder<Streams>,
    front: Front,
    stall_timeout: Option<Duration>,
    half_close_within: Duration,
}

impl Shared {
    /// The whole life of a connection.
    async fn connection(&self, place: Place, stream: TcpStream, address: SocketAddr) {
        let role = self.role;
        let opened = match place.until_ordered(self.front.open(stream, address)).await {
            None => return,
            Some(opened) => opened,
        };
        let ended = match opened {
            Ok((Opened::Plain(stream), client)) => self.drive(place, stream, client).await,
            Ok((Opened::Secure(stream), client)) => self.drive(place, *stream, client).await,
            Err(error) => Err(error),
        };
        if let Err(error) = ended {
            tracing::debug!(?role, %address, error = chain(&*error), "connection ended");
        }
    }

    async fn drive<S>(&self, place: Place, stream: S, client: Client) -> Result<(), BoxError>
    where
        S: AsyncRead + AsyncWrite + Look + Unpin + Send + 'static,
    {
        let (role, gateway) = (self.role, self.gateway.clone());
        let (client, watch) = (Arc::new(client), place.watch().clone());
        let service = service_fn(move |request| {
            let (gateway, client, watch) = (gateway.clone(), client.clone(), watch.clone());
            async move {
                Ok::<_, Infallible>(match role {
                    Role::Public => gateway.public(request, &client, &watch).await,
                    Role::Peer => gateway.peer(request, &watch).await,
                })
            }
        });
        let stream = Heads::new(stream, place.watch().clone(), self.half_close_within);
        let connection = self.builder.serve_connection(TokioIo::new(stream), service);
        let driven = place.drive(connection);
        match self.stall_timeout {
            None => driven.await,
            Some(limit) => {
                let ended = stall::driven(limit, driven).await;
                ended.unwrap_or_else(|| Err("its client takes nothing".into()))
            }
        }
    }
}

/// Another gateway stalls when its client does, and ends that itself.
fn stall_timeout(role: Role, limits: &Limits) -> Option<Duration> {
    (role == Role::Public).then_some(limits.stall_timeout)
}

fn protocols(
    (role, front): (Role, &Front),
    limits: &Limits,
    tasks: &TaskTracker,
) -> auto::Builder<Streams> {
    let mut builder = auto::Builder::new(Streams {
        tasks: tasks.clone(),
        stall_timeout: stall_timeout(role, limits),
    });
    // A gateway adds headers of its own on the way to another.
    let header_bytes_max = match role {
        Role::Public => limits.header_bytes_max,
        Role::Peer => limits.header_bytes_max.saturating_mul(2),
    };
    let (streams_max, window) = match role {
        Role::Public => (limits.streams_max, PUBLIC_WINDOW_BYTES),
        Role::Peer => {
            let streams_max = limits.peer_streams_max;
            (
                streams_max,
                connection_window(streams_max, STREAM_WINDOW_BYTES),
            )
        }
    };
    builder
        .http1()
        .timer(TokioTimer::new())
        // Whoever has sent all may close its half: whether it is gone is looked at in `heads`.
        .half_close(front.is_plain())
        // The sweep does it, for both protocols and without a timer for each request.
        .header_read_timeout(None)
        // Below 8 KiB hyper panics.
        .max_buf_size(header_bytes_max.max(8192));
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_header_list_size(u32::try_from(header_bytes_max).unwrap_or(u32::MAX))
        .max_concurrent_streams(streams_max)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(window)
        .keep_alive_interval(PING_INTERVAL);
    match role {
        Role::Public => builder,
        Role::Peer => builder.http2_only(),
    }
}

/// Errors of one connection, not of the listener.
fn is_the_clients(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted
    )
}

/// Says why, if that can be done at once.
fn refuse(stream: &TcpStream, shared: &Shared) {
    if shared.role == Role::Public && shared.front.is_plain() {
        // What the client has sent is read, or closing would discard the answer.
        let _ = stream.try_read(&mut [0; 4096]);
        let _ = stream.try_write(TOO_MANY);
    }
}
