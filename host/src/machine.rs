//! What this machine is: its name, its memory, its cores, the address others reach it by.
//!
//! Owns the reading of the operating system's own words. Everything here has a plain fallback: a
//! host must come up on any machine, and flags can say it better.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _, UdpSocket};

use wasmorch_api::Name;

/// Assumed when the machine does not tell: small enough to be true anywhere.
const MEMORY_FALLBACK_BYTES: u64 = 1024 * 1024 * 1024;
/// Part of the memory that replicas may book; the rest is the system's and the host's own.
const MEMORY_SHARE_PERCENT: u64 = 80;

/// The hostname as a legal name; `host` when there is none.
pub(crate) fn hostname() -> Name {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let name = read("/proc/sys/kernel/hostname")
        .or_else(|| read("/etc/hostname"))
        .or_else(|| std::env::var("HOSTNAME").ok());
    name.and_then(|name| Name::nearest(name.trim()))
        .or_else(|| Name::nearest("host"))
        .unwrap_or_default()
}

/// Memory that replicas may book: a share of the machine's, or of what its control group allows.
pub(crate) fn memory_bytes() -> u64 {
    let machine = std::fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| mem_total(&text));
    let group = [
        "/sys/fs/cgroup/memory.max",
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
    ]
    .iter()
    .find_map(|path| {
        std::fs::read_to_string(path)
            .ok()?
            .trim()
            .parse::<u64>()
            .ok()
    });
    let all = match (machine, group) {
        (Some(machine), Some(group)) => machine.min(group),
        (Some(all), None) | (None, Some(all)) => all,
        (None, None) => MEMORY_FALLBACK_BYTES,
    };
    all / 100 * MEMORY_SHARE_PERCENT
}

fn mem_total(text: &str) -> Option<u64> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// Cpu that replicas may book, thousandths of a core.
pub(crate) fn cpu_millis() -> u64 {
    std::thread::available_parallelism().map_or(1000, |cores| cores.get() as u64 * 1000)
}

/// The address by which others reach a listener: its own, or, when it listens on every address,
/// the one by which this machine reaches its NATS server. `None` too when it listens on loopback and
/// that server is elsewhere: so are the others, and would find themselves there. Blocking (names are
/// resolved).
pub(crate) fn reachable(listening: SocketAddr, nats_url: &str) -> Option<SocketAddr> {
    let ip = listening.ip();
    if !ip.is_unspecified() && !ip.is_loopback() {
        return Some(listening);
    }
    let address = local_address_towards(nats_url)?;
    if ip.is_loopback() {
        return address.is_loopback().then_some(listening);
    }
    Some(SocketAddr::new(address, listening.port()))
}

fn local_address_towards(nats_url: &str) -> Option<IpAddr> {
    let first = nats_url.split(',').next()?.trim();
    let server = first.split_once("://").map_or(first, |(_, rest)| rest);
    let server = server.rsplit_once('@').map_or(server, |(_, rest)| rest);
    let server = server.split('/').next()?;
    let with_port = if server
        .rsplit_once(':')
        .is_some_and(|(_, port)| port.parse::<u16>().is_ok())
    {
        server.to_owned()
    } else {
        format!("{server}:4222")
    };
    let target = with_port.to_socket_addrs().ok()?.next()?;
    let any: SocketAddr = if target.is_ipv4() {
        ([0, 0, 0, 0], 0).into()
    } else {
        ([0u16; 8], 0).into()
    };
    // Connecting a datagram socket sends nothing: it only asks the routing table.
    let socket = UdpSocket::bind(any).ok()?;
    socket.connect(target).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_always_has_a_name_and_some_memory() {
        assert!(!hostname().as_str().is_empty());
        assert!(memory_bytes() > 0);
        assert!(cpu_millis() >= 1000);
    }

    #[test]
    fn meminfo() {
        assert_eq!(
            mem_total("MemFree: 1 kB\nMemTotal:       2048 kB\n"),
            Some(2 << 20)
        );
        assert_eq!(mem_total("MemTotal: much"), None);
    }

    #[test]
    fn a_listener_on_every_address_is_reached_by_one_of_them() {
        let own: SocketAddr = "192.0.2.1:80".parse().unwrap();
        assert_eq!(reachable(own, "nats://127.0.0.1"), Some(own));
        let every: SocketAddr = "0.0.0.0:80".parse().unwrap();
        let reached = |url: &str| reachable(every, url).map(|address| address.to_string());
        assert_eq!(
            reached("nats://u:p@127.0.0.1:4222,other"),
            Some("127.0.0.1:80".into())
        );
        assert_eq!(reached("127.0.0.1"), Some("127.0.0.1:80".into()));
        assert_eq!(reached("nats://"), None);
    }

    #[test]
    fn a_listener_on_loopback_is_told_only_to_who_is_here() {
        let own: SocketAddr = "127.0.0.1:80".parse().unwrap();
        assert_eq!(reachable(own, "nats://127.0.0.1:4222"), Some(own));
        // Whether or not there is a way there: nobody there reaches this machine's loopback.
        assert_eq!(reachable(own, "nats://192.0.2.9:4222"), None);
    }
}
