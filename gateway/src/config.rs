//! What a gateway is told when it starts. Plain data.

use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use wasmorch_api::HostId;

use crate::crowd::Crowd;
use crate::tls::Certificates;
use crate::tunnel::{Pipe, Tunnel};

/// What a gateway needs besides its tables and its replicas.
#[derive(Debug)]
pub struct GatewayConfig {
    /// The public listener.
    pub http: TcpListener,
    /// Whether a load balancer in front tells of the client by the PROXY protocol, version 2. Then
    /// every public connection must begin with it.
    pub proxy_protocol: bool,
    /// Certificates of the public port, the newest ones: then it speaks TLS only, and clients wait
    /// until there are some. `None`: it is cleartext.
    pub tls: Option<watch::Receiver<Option<Certificates>>>,
    /// Where other gateways reach this host's replicas; `None`: this host only answers by itself.
    pub peer: Option<TcpListener>,
    /// The way to hosts that cannot be dialled; `None`: they are not reached.
    pub tunnel: Option<Arc<dyn Tunnel>>,
    /// Streams that other hosts have opened to this one's peer service.
    pub tunnelled: Option<mpsc::Receiver<Pipe>>,
    /// This host. Its own entry in an endpoint table is never dialled.
    pub host: HostId,
    /// This host's label `zone`: hosts in the same one are preferred.
    pub zone: Option<String>,
    /// `<name>.<namespace>.<domain>` is every http workload's name.
    pub domain: String,
    /// Whether an unknown host is answered with a list of the known ones, and a failure with how it came.
    /// Not for the internet.
    pub development: bool,
    /// Bounds and time-outs.
    pub limits: Limits,
    /// The other processes that accept from `http`; `None`: there are none.
    pub crowd: Option<Arc<dyn Crowd>>,
}

impl GatewayConfig {
    /// Default limits, no hints.
    pub fn new(
        http: TcpListener,
        peer: Option<TcpListener>,
        host: HostId,
        domain: impl Into<String>,
    ) -> Self {
        Self {
            http,
            proxy_protocol: false,
            tls: None,
            peer,
            tunnel: None,
            tunnelled: None,
            host,
            zone: None,
            domain: domain.into(),
            development: false,
            limits: Limits::default(),
            crowd: None,
        }
    }
}

/// Bounds and time-outs of a gateway.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Open connections on each port; one more is answered 503 and closed.
    pub connections_max: usize,
    /// Requests in hand; one more is answered 503.
    pub requests_max: u64,
    /// The head of a request; a larger one is answered 431.
    pub header_bytes_max: usize,
    /// The first request's head must be complete this long after the connection was accepted, a further
    /// one's after its first byte (by HTTP/1.1: other bytes of HTTP/2 are no heads).
    pub header_timeout: Duration,
    /// Between requests a connection may rest this long; where all places are taken, until another comes.
    pub idle_timeout: Duration,
    /// Between two pieces of a client's body, as long as it is waited for and the answer has not begun.
    pub body_timeout: Duration,
    /// A client that takes nothing of its response for so long loses it; so does a guest.
    pub stall_timeout: Duration,
    /// A client that closes its half of the connection so soon after its request waits for the answer; one
    /// that does so later has given up.
    pub half_close_within: Duration,
    /// One that has closed its half is answered, if something of its answer comes
    /// at least so often: it may be gone.
    pub half_closed_timeout: Duration,
    /// Requests at once on one HTTP/2 connection of a client.
    pub streams_max: u32,
    /// Requests that an HTTP/2 connection of a client may give up in ten seconds before they are answered;
    /// one for every ten answered ones on top. Beyond, it is closed.
    pub resets_max: u32,
    /// After shutdown has begun, requests in hand may take this long.
    pub drain: Duration,
    /// Connecting to another host may take this long.
    pub connect_timeout: Duration,
    /// A host that does not answer for so long is asked through the tunnel as well.
    pub tunnel_after: Duration,
    /// A host that is reached through the tunnel is dialled again: from the first to the last.
    pub dial_again: (Duration, Duration),
    /// A connection to another host closes after being unused for this long.
    pub peer_idle: Duration,
    /// Connections kept to one other host. Several, so that several cores and runners share.
    pub peer_connections: usize,
    /// And at the most, while these are full. Beyond, a request goes elsewhere or is answered 503.
    pub peer_connections_max: usize,
    /// Requests at once on one connection between gateways. Each may have its whole window unread.
    pub peer_streams_max: u32,
    /// Tries of one request on other hosts, the first included. What may have been executed is tried
    /// once more at most; what certainly was not, so often: a rollout may have taken its replica from
    /// more than one host before the tables say so.
    pub attempts_max: usize,
    /// So many failures to connect in a row eject a host.
    pub eject_after: u32,
    /// It stays ejected this long.
    pub eject_for: Duration,
    /// Gateways that one request, and what it causes, may pass.
    pub hops_max: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 8192,
            requests_max: 16_384,
            header_bytes_max: 64 * 1024,
            header_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(75),
            body_timeout: Duration::from_secs(10),
            stall_timeout: Duration::from_secs(30),
            // Who closes its half does so with its last bytes; who gives up has waited for tenths of a second.
            half_close_within: Duration::from_millis(250),
            half_closed_timeout: Duration::from_secs(30),
            streams_max: 200,
            resets_max: 100,
            drain: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(2),
            tunnel_after: Duration::from_millis(300),
            dial_again: (Duration::from_secs(1), Duration::from_secs(30)),
            peer_idle: Duration::from_secs(60),
            peer_connections: 2,
            peer_connections_max: 16,
            peer_streams_max: 128,
            attempts_max: 3,
            eject_after: 2,
            eject_for: Duration::from_secs(3),
            hops_max: 16,
        }
    }
}

/// Why a gateway could not start.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// A listener cannot be used.
    #[error("the gateway cannot use its {port} listener")]
    Listener {
        /// `public` or `peer`.
        port: &'static str,
        /// What the system says.
        #[source]
        source: std::io::Error,
    },
}
