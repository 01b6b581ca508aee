//! Ports for servers that are told theirs, and have it again after a restart.
//!
//! Port 0 would do only for who listens at once: the system gives the same ports to connections, and
//! between the look and the server's own bind, or while it is down, another test's connection takes it.

use std::hash::{BuildHasher as _, RandomState};
use std::net::{Ipv4Addr, TcpListener};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU16, Ordering};

const LOWEST: u16 = 10_000;
/// Where Linux begins unless it was told otherwise.
const CONNECTIONS_FROM: u16 = 32_768;

/// Another one each time, from a place of this process's own.
static NEXT: LazyLock<AtomicU16> = LazyLock::new(|| {
    let random = RandomState::new().hash_one(std::process::id());
    AtomicU16::new((random % u64::from(u16::MAX)) as u16)
});

/// A port of loopback that nobody listens on, and that the system gives to nobody by itself.
pub fn free() -> u16 {
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range");
    let from = range
        .ok()
        .and_then(|range| range.split_whitespace().next()?.parse().ok());
    let above = from.unwrap_or(CONNECTIONS_FROM);
    if above <= LOWEST {
        // Connections have nearly all of them: then any will do, and may be lost to one.
        let any = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|any| any.local_addr());
        return any.expect("a port is free").port();
    }
    let span = above - LOWEST;
    let mut tries = (0..span).map(|_| LOWEST + NEXT.fetch_add(1, Ordering::Relaxed) % span);
    tries
        .find(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok())
        .expect("a port is free")
}
