//! The HTTP entry on every host: any gateway answers for every http workload of the cluster.
//!
//! ```text
//!   client ──> public port ── host, path ──> workload ──┬── Local (a replica here, same task)
//!                                                       └── peer port of another host ──> Local
//! ```
//!
//! Owns: the tables it routes by, the listeners and their connections, balancing, forwarding.
//!
//! Invariants:
//!
//! - It knows no NATS and no runtime: tables are told to it, replicas are behind [`Local`].
//! - A request to a replica on this host is served in the task of its connection: no spawn, no
//!   channel.
//! - Forwarding headers are believed on the peer port only, and the peer port never forwards: a
//!   request passes at most two gateways, and a cycle of workloads that call each other ends at the
//!   hop limit.
//! - A request goes elsewhere only if it was certainly not executed; or, once, if executing it twice is
//!   the same as once.
//! - No client holds what others need for longer than it uses it: see `connections`, `stall` and `timeout_body`.
//! - Connections, requests, replay buffers and pools are bounded; whatever is refused says why.

mod answer;
mod balance;
mod config;
mod connections;
mod crowd;
mod expect;
mod forward;
mod front;
mod gateway;
mod headers;
mod heads;
mod health;
mod index;
mod local;
mod peer_port;
mod peers;
mod proxy_protocol;
mod refusals;
mod replay;
mod server;
mod socket;
mod stall;
mod stats;
mod tables;
mod timeout_body;
mod tls;
mod trace;
mod tunnel;

use bytes::Bytes;

pub use config::{GatewayConfig, GatewayError, Limits};
pub use crowd::Crowd;
pub use gateway::{Canary, Deadline, Gateway, Hops};
pub use health::Health;
pub use local::{Local, LocalError};
pub use server::{Server, serve};
pub use stats::{ErrorClass, Stats};
pub use tables::Tables;
pub use tls::{BadCertificate, Certificates, PemPair};
pub use tunnel::{Pipe, Tunnel};

/// Any error, as bodies carry it.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A streamed body, of requests and of responses.
pub type Body = http_body_util::combinators::UnsyncBoxBody<Bytes, BoxError>;
