//! Outbound HTTP: what a guest may call, and how the call is made.
//!
//! An allow-list of patterns, checked against the authority of the request, and once more against
//! the address that its name resolves to (`connect.rs`), so that a name in the list does not lead
//! into a private network. Denied by default. Redirects are the guest's business: each is a
//! request of its own and checked like any other.
//!
//! One pooled client per replica.

pub(crate) mod address;
mod bounded;
mod client;
mod connect;
mod hooks;
mod lineage;

use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

use tokio::sync::Semaphore;

pub(crate) use client::Pool;
pub(crate) use hooks::Hooks;
pub use lineage::Lineage;
pub(crate) use lineage::Lineages;

use crate::body::Body;
use address::split_port;

/// Ports of a pattern that gives none.
pub(crate) const DEFAULT_PORTS: [u16; 2] = [80, 443];
/// Names under this suffix are the cluster's own.
const INTERNAL_SUFFIX: &str = ".internal";

/// A pattern that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{pattern}` is no host pattern: {why}; write host, host:port, *.host or *")]
pub struct PatternError {
    /// What was written.
    pub pattern: String,
    /// What is wrong with it.
    pub why: &'static str,
}

/// Which hosts may be called: `host[:port]`, `*.host[:port]` or `*`; 80 and 443 unless given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPattern {
    host: HostMatch,
    port: Option<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum HostMatch {
    Any,
    /// With its leading dot.
    Suffix(String),
    Name(String),
    Address(IpAddr),
}

impl FromStr for HostPattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        let wrong = |why| PatternError {
            pattern: text.to_owned(),
            why,
        };
        if text.contains("://") {
            return Err(wrong("it is a URL; only its host is wanted"));
        }
        let (host, port) = split_port(text).ok_or_else(|| wrong("the port is no number"))?;
        let host = host.to_ascii_lowercase();
        let host = if let Ok(address) = host.parse::<IpAddr>() {
            HostMatch::Address(address.to_canonical())
        } else if host == "*" {
            HostMatch::Any
        } else {
            // A final dot marks a name as complete; it is not part of what is compared.
            let host = host.strip_suffix('.').unwrap_or(&host).to_owned();
            let name = host.strip_prefix("*.").unwrap_or(&host);
            let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
            let named = !name.is_empty() && !name.starts_with('.');
            if !named || !name.chars().all(legal) {
                return Err(wrong("the host is no name"));
            }
            match host.strip_prefix('*') {
                Some(suffix) => HostMatch::Suffix(suffix.to_owned()),
                None => HostMatch::Name(host),
            }
        };
        Ok(Self { host, port })
    }
}

impl HostPattern {
    /// Whether a host, in lower case and without brackets, is meant.
    pub(crate) fn matches(&self, host: &str, port: u16) -> bool {
        let port_matches = match self.port {
            Some(expected) => expected == port,
            None => DEFAULT_PORTS.contains(&port),
        };
        port_matches
            && match &self.host {
                HostMatch::Any => true,
                HostMatch::Suffix(suffix) => host.ends_with(suffix),
                HostMatch::Name(name) => name == host,
                HostMatch::Address(address) => host
                    .parse::<IpAddr>()
                    .is_ok_and(|ip| ip.to_canonical() == *address),
            }
    }

    /// An address, or `localhost`, named in so many letters: then it may be private.
    fn is_literal(&self) -> bool {
        match &self.host {
            HostMatch::Address(_) => true,
            HostMatch::Name(name) => name == "localhost",
            HostMatch::Any | HostMatch::Suffix(_) => false,
        }
    }
}

/// Why a route inside the cluster did not answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    /// The workload is not granted.
    #[error("not granted")]
    NotGranted,
    /// The authority names no workload, or not over plain `http`.
    #[error("{0}")]
    Invalid(&'static str),
}

/// Carries requests to hosts under `.internal`, which are tried here before any allow-list.
#[async_trait::async_trait]
pub trait InternalRoute: Send + Sync {
    /// Sends the request to the workload that its authority names, on behalf of a guest that works
    /// under this lineage.
    async fn send(
        &self,
        request: http::Request<Body>,
        lineage: Lineage,
    ) -> Result<http::Response<Body>, RouteError>;
}

/// What a replica may call by `wasi:http`.
#[derive(Clone)]
pub struct OutboundHttp {
    patterns: Arc<[HostPattern]>,
    internal: Option<Arc<dyn InternalRoute>>,
    /// Made with the first pattern, so that who may call nothing has no client.
    pool: Option<Pool>,
    /// For requests in hand; clones share it.
    room: Arc<Semaphore>,
}

impl Default for OutboundHttp {
    fn default() -> Self {
        Self::allow([])
    }
}

/// Requests that a replica may have in hand in one runner, from the first byte to the last of the
/// answer: each may be a connection.
pub const IN_HAND_MAX: usize = 512;

impl OutboundHttp {
    /// Nothing.
    pub fn denied() -> Self {
        Self::default()
    }

    /// What the patterns match. The clones of it share one pool of connections.
    pub fn allow(patterns: impl IntoIterator<Item = HostPattern>) -> Self {
        let patterns: Arc<[HostPattern]> = patterns.into_iter().collect();
        let pool = (!patterns.is_empty()).then(|| Pool::new(patterns.clone()));
        Self {
            patterns,
            internal: None,
            pool,
            room: Arc::new(Semaphore::new(IN_HAND_MAX)),
        }
    }

    /// Sends what goes to `.internal` by this route.
    #[must_use]
    pub fn with_internal(mut self, route: Arc<dyn InternalRoute>) -> Self {
        self.internal = Some(route);
        self
    }

    fn internal(&self, host: &str) -> Option<&Arc<dyn InternalRoute>> {
        self.internal
            .as_ref()
            .filter(|_| host.ends_with(INTERNAL_SUFFIX))
    }

    /// The pool, when the target is allowed.
    fn pool(&self, host: &str, port: u16) -> Option<&Pool> {
        self.pool
            .as_ref()
            .filter(|_| self.patterns.iter().any(|p| p.matches(host, port)))
    }
}

impl std::fmt::Debug for OutboundHttp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OutboundHttp")
            .field("patterns", &self.patterns)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, host: &str, port: u16) -> bool {
        pattern.parse::<HostPattern>().unwrap().matches(host, port)
    }

    #[test]
    fn patterns_match_hosts_and_ports() {
        assert!(matches("api.x.com", "api.x.com", 443));
        assert!(matches("api.x.com", "api.x.com", 80));
        assert!(!matches("api.x.com", "api.x.com", 8443));
        assert!(matches("API.x.com.", "api.x.com", 80));
        assert!(matches("*.x.com:8443", "a.b.x.com", 8443));
        assert!(!matches("*.x.com", "x.com", 80));
        assert!(!matches("*.x.com", "evilx.com", 80));
        assert!(!matches("api.x.com", "api.x.com.evil.org", 80));
        assert!(matches("*", "anything.org", 443));
        assert!(matches("[::1]:8080", "::1", 8080));
        assert!(matches("127.0.0.1:8080", "::ffff:127.0.0.1", 8080));
    }

    #[test]
    fn wrong_patterns_say_why() {
        for pattern in [
            "",
            "http://x.com",
            "x.com:http",
            "*x.com",
            "a b",
            "*.",
            ".x",
        ] {
            assert!(pattern.parse::<HostPattern>().is_err(), "{pattern}");
        }
        assert_eq!(
            "https://x.com"
                .parse::<HostPattern>()
                .unwrap_err()
                .to_string(),
            "`https://x.com` is no host pattern: it is a URL; only its host is wanted; \
             write host, host:port, *.host or *"
        );
    }
}
