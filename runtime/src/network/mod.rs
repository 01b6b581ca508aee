//! `wasi:sockets`: which addresses a guest may reach, and on which ports it may listen.
//!
//! The check is on the address that is used, so a name that resolves to something else than
//! before, or a guest that resolves by itself, gains nothing. Private ranges are reached only when
//! the pattern names an address, a range of them, or `localhost`. Who listens may answer a datagram
//! where it came from, and sends none elsewhere.

pub(crate) mod lookup;
mod sockets;

use std::net::{IpAddr, SocketAddr};

pub(crate) use sockets::Sockets;

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
                // As names are compared with it: in ASCII.
                Err(_) => match url::Host::parse(host) {
                    Ok(url::Host::Domain(name)) => SocketHost::Name(complete(&name)),
                    Ok(_) | Err(_) => return Err(wrong("the host is no name")),
                },
            },
        };
        Ok(Self { host, port })
    }
}

impl SocketPattern {
    /// Whether the address is meant; `None`: only looking its name up will tell.
    fn matches(&self, address: SocketAddr) -> Option<bool> {
        if self.port.is_some_and(|port| port != address.port()) {
            return Some(false);
        }
        let ip = address.ip().to_canonical();
        match &self.host {
            SocketHost::Any => Some(!is_restricted(ip)),
            SocketHost::Range(range, bits) => Some(in_range(ip, *range, *bits)),
            SocketHost::Name(name) if is_restricted(ip) && name != "localhost" => Some(false),
            SocketHost::Name(_) => None,
        }
    }
}

/// A name as it is compared: a final dot marks it as complete, and is not part of it.
fn complete(name: &str) -> String {
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
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

    #[test]
    fn wrong_patterns_are_refused() {
        for pattern in ["", ":80", "a:b", "10.0.0.0/33", "x/8", "a b"] {
            assert!(pattern.parse::<SocketPattern>().is_err(), "{pattern}");
        }
        let unicode: SocketPattern = "b\u{fc}cher.example:1".parse().unwrap();
        let name = "xn--bcher-kva.example".to_owned();
        assert_eq!(unicode.host, SocketHost::Name(name));
    }
}
