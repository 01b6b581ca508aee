//! `wasi:sockets`: which addresses a guest may reach, and on which ports it may listen.
//!
//! The check is on the address that is used, so a name that resolves to something else than
//! before, or a guest that resolves by itself, gains nothing. Private ranges are reached only when
//! the pattern names an address, a range of them, or `localhost`. Who listens may answer a datagram
//! where it came from, and sends none elsewhere.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use wasmtime_wasi::WasiCtxBuilder;
use wasmtime_wasi::sockets::SocketAddrUse;

use crate::outbound::PatternError;
use crate::outbound::address::{is_restricted, split_port};

/// What a replica may do by sockets.
#[derive(Debug, Clone, Default)]
pub enum Network {
    /// Nothing.
    #[default]
    Denied,
    /// Everything that the host's process may (`run --allow-network`).
    Any,
    /// What is listed.
    Allow {
        /// Where it may connect to, and send datagrams to.
        connect: Vec<SocketPattern>,
        /// The ports that it may listen on.
        listen: Vec<u16>,
    },
}

impl Network {
    pub(crate) fn apply(&self, wasi: &mut WasiCtxBuilder) {
        match self {
            Self::Denied => {
                wasi.allow_tcp(false).allow_udp(false);
            }
            Self::Any => {
                wasi.allow_tcp(true)
                    .allow_udp(true)
                    .allow_ip_name_lookup(true)
                    .inherit_network();
            }
            Self::Allow { connect, listen } => {
                let names = connect
                    .iter()
                    .any(|p| matches!(p.host, SocketHost::Name(_)));
                let allowed = Arc::new(Allowed {
                    connect: connect.clone(),
                    listen: listen.clone(),
                    askers: Mutex::default(),
                });
                wasi.allow_tcp(true)
                    .allow_udp(true)
                    .allow_ip_name_lookup(names);
                wasi.socket_addr_check(move |address, usage| {
                    let allowed = allowed.clone();
                    Box::pin(async move { allowed.allows(address, usage).await })
                });
            }
        }
    }
}

/// What one instance may do, and who has asked it something.
#[derive(Debug, Default)]
struct Allowed {
    connect: Vec<SocketPattern>,
    listen: Vec<u16>,
    /// Where datagrams came from on a port that is listened on, the newest last: they may be
    /// answered.
    askers: Mutex<VecDeque<SocketAddr>>,
}

/// So many askers are remembered.
const ASKERS_MAX: usize = 256;

impl Allowed {
    async fn allows(&self, address: SocketAddr, usage: SocketAddrUse) -> bool {
        match usage {
            // The port is the operating system's choice: the implicit bind of a client.
            SocketAddrUse::TcpBind | SocketAddrUse::UdpBind if address.port() == 0 => true,
            SocketAddrUse::TcpBind | SocketAddrUse::TcpListen | SocketAddrUse::UdpBind => {
                self.listen.contains(&address.port())
            }
            // Whoever reaches a port that is open to listening is welcome.
            SocketAddrUse::TcpAccept => true,
            SocketAddrUse::UdpReceive if !self.listen.is_empty() => {
                self.has_asked(address);
                true
            }
            SocketAddrUse::UdpSend if self.askers().contains(&address) => true,
            SocketAddrUse::TcpConnect | SocketAddrUse::UdpSend | SocketAddrUse::UdpReceive => {
                for pattern in &self.connect {
                    if pattern.matches(address).await {
                        return true;
                    }
                }
                false
            }
        }
    }

    fn askers(&self) -> MutexGuard<'_, VecDeque<SocketAddr>> {
        // A panic while it was held leaves a list that is usable.
        self.askers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has_asked(&self, address: SocketAddr) {
        let mut askers = self.askers();
        askers.retain(|known| *known != address);
        if askers.len() == ASKERS_MAX {
            askers.pop_front();
        }
        askers.push_back(address);
    }
}

/// Where a guest may connect to: `host[:port]`, the host an address, a range (`10.0.0.0/8`), a
/// name, or `*` for every public address. Without a port every port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SocketPattern {
    host: SocketHost,
    port: Option<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum SocketHost {
    Any,
    Range(IpAddr, u8),
    Name(String),
}

impl std::str::FromStr for SocketPattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        let wrong = |why| PatternError {
            pattern: text.to_owned(),
            why,
        };
        let (host, port) = split_port(text).ok_or_else(|| wrong("the port is no number"))?;
        let host = match host.split_once('/') {
            Some((address, bits)) => {
                let address: IpAddr = address
                    .parse()
                    .map_err(|_| wrong("the range is no address/bits"))?;
                let width = if address.is_ipv4() { 32 } else { 128 };
                let bits = bits.parse().ok().filter(|bits| *bits <= width);
                SocketHost::Range(address, bits.ok_or_else(|| wrong("too many bits"))?)
            }
            None if host == "*" => SocketHost::Any,
            None if host.is_empty() => return Err(wrong("there is no host")),
            None => match host.parse::<IpAddr>() {
                Ok(address) => SocketHost::Range(address, if address.is_ipv4() { 32 } else { 128 }),
                Err(_) => SocketHost::Name(host.to_ascii_lowercase()),
            },
        };
        Ok(Self { host, port })
    }
}

impl SocketPattern {
    async fn matches(&self, address: SocketAddr) -> bool {
        if self.port.is_some_and(|port| port != address.port()) {
            return false;
        }
        let ip = address.ip().to_canonical();
        match &self.host {
            SocketHost::Any => !is_restricted(ip),
            SocketHost::Range(range, bits) => in_range(ip, *range, *bits),
            SocketHost::Name(name) => {
                if is_restricted(ip) && name != "localhost" {
                    return false;
                }
                match tokio::net::lookup_host((name.clone(), address.port())).await {
                    Ok(mut found) => found.any(|found| found.ip().to_canonical() == ip),
                    Err(_) => false,
                }
            }
        }
    }
}

fn in_range(ip: IpAddr, range: IpAddr, bits: u8) -> bool {
    match (ip, range) {
        (IpAddr::V4(ip), IpAddr::V4(range)) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
            ip.to_bits() & mask == range.to_bits() & mask
        }
        (IpAddr::V6(ip), IpAddr::V6(range)) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
            ip.to_bits() & mask == range.to_bits() & mask
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn matches(pattern: &str, address: &str) -> bool {
        pattern
            .parse::<SocketPattern>()
            .unwrap()
            .matches(address.parse().unwrap())
            .await
    }

    #[tokio::test]
    async fn patterns_match_addresses() {
        assert!(matches("10.0.0.5:5432", "10.0.0.5:5432").await);
        assert!(!matches("10.0.0.5:5432", "10.0.0.5:5433").await);
        assert!(matches("10.0.0.0/8", "10.9.9.9:1").await);
        assert!(!matches("10.0.0.0/8", "11.0.0.1:1").await);
        assert!(matches("[::1]:80", "[::1]:80").await);
        assert!(matches("*:443", "1.1.1.1:443").await);
        assert!(!matches("*:443", "169.254.169.254:443").await);
        assert!(!matches("*", "[::ffff:127.0.0.1]:443").await);
        assert!(matches("localhost", "127.0.0.1:9").await);
        assert!(matches("0.0.0.0/0", "127.0.0.1:9").await);
    }

    #[test]
    fn wrong_patterns_are_refused() {
        for pattern in ["", ":80", "a:b", "10.0.0.0/33", "x/8"] {
            assert!(pattern.parse::<SocketPattern>().is_err(), "{pattern}");
        }
    }

    #[tokio::test]
    async fn listening_needs_its_port() {
        let local: SocketAddr = "0.0.0.0:9000".parse().unwrap();
        let listening = |port| Allowed {
            listen: vec![port],
            ..Allowed::default()
        };
        let tcp = SocketAddrUse::TcpListen;
        assert!(listening(9000).allows(local, tcp).await);
        assert!(!listening(9001).allows(local, tcp).await);
    }

    #[tokio::test]
    async fn datagrams_are_answered_and_sent_to_nobody_else() {
        let listening = Allowed {
            listen: vec![9000],
            ..Allowed::default()
        };
        let asker = |port| SocketAddr::from(([10, 0, 0, 1], port));
        let (receive, send) = (SocketAddrUse::UdpReceive, SocketAddrUse::UdpSend);
        assert!(!listening.allows(asker(1), send).await);
        assert!(listening.allows(asker(1), receive).await);
        assert!(listening.allows(asker(1), send).await);
        assert!(!listening.allows(asker(2), send).await);
        for port in 2..=300 {
            assert!(listening.allows(asker(port), receive).await);
        }
        assert!(!listening.allows(asker(1), send).await, "long ago");
        assert_eq!(listening.askers().len(), ASKERS_MAX);
    }
}
