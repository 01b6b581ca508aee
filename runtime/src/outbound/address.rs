//! Addresses that no pattern reaches by accident, and the grammar that patterns share.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Whether an address is loopback, private, link-local (the cloud metadata address among them),
/// or otherwise no address of the public internet, after the registries of RFC 6890.
pub(crate) fn is_restricted(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => is_restricted_v4(ip),
        IpAddr::V6(ip) => is_restricted_v6(ip),
    }
}

fn is_restricted_v4(ip: Ipv4Addr) -> bool {
    let [a, b, c, _] = ip.octets();
    ip.is_loopback()
        || ip.is_private()
        || ip.is_link_local()
        || ip.is_multicast()
        || ip.is_documentation()
        || a == 0
        || a >= 240
        // Shared address space (carrier NAT).
        || (a == 100 && b & 0xc0 == 64)
        // IETF protocol assignments.
        || (a == 192 && b == 0 && c == 0)
        // Benchmarking.
        || (a == 198 && b & 0xfe == 18)
}

fn is_restricted_v6(ip: Ipv6Addr) -> bool {
    let segments = ip.segments();
    let embedded = |high: u16, low: u16| {
        is_restricted_v4(Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low)))
    };
    match segments {
        // 6to4, NAT64 and IPv4-compatible addresses carry an IPv4 address.
        [0x2002, high, low, ..] => embedded(high, low),
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => embedded(high, low),
        [0, 0, 0, 0, 0, 0, ..] => true,
        // NAT64 for local use, Teredo, documentation.
        [0x64, 0xff9b, 1, ..] | [0x2001, 0, ..] | [0x2001, 0xdb8, ..] => true,
        _ => {
            ip.is_multicast()
                || ip.is_unique_local()
                || ip.is_unicast_link_local()
                // The former site-local range.
                || segments[0] & 0xffc0 == 0xfec0
        }
    }
}

/// Splits `host[:port]`, where an IPv6 address with a port is in brackets. `None` when what stands
/// after the last `:` is no port.
pub(crate) fn split_port(text: &str) -> Option<(&str, Option<u16>)> {
    if let Some(rest) = text.strip_prefix('[') {
        let (host, rest) = rest.split_once(']')?;
        return match rest.strip_prefix(':') {
            Some(port) => Some((host, Some(port.parse().ok()?))),
            None if rest.is_empty() => Some((host, None)),
            None => None,
        };
    }
    match text.split_once(':') {
        // More than one colon: an IPv6 address without a port.
        Some((_, rest)) if rest.contains(':') => Some((text, None)),
        Some((host, port)) => Some((host, Some(port.parse().ok()?))),
        None => Some((text, None)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_addresses_are_known_in_every_form() {
        let restricted = [
            "127.0.0.1",
            "127.8.8.8",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "0.0.0.0",
            "100.64.0.1",
            "198.18.0.1",
            "255.255.255.255",
            "224.0.0.1",
            "::",
            "::1",
            "fe80::1",
            "fc00::1",
            "fd00:ec2::254",
            "ff02::1",
            "::ffff:10.0.0.1",
            "::ffff:169.254.169.254",
            "64:ff9b::7f00:1",
            "2002:7f00:1::",
            "::7f00:1",
            "fec0::1",
        ];
        for ip in restricted {
            assert!(is_restricted(ip.parse().unwrap()), "{ip}");
        }
        for ip in [
            "1.1.1.1",
            "8.8.8.8",
            "2606:4700::1111",
            "64:ff9b::808:808",
            "100.128.0.1",
        ] {
            assert!(!is_restricted(ip.parse().unwrap()), "{ip}");
        }
    }

    #[test]
    fn ports_are_split_off() {
        assert_eq!(split_port("a.b:80"), Some(("a.b", Some(80))));
        assert_eq!(split_port("a.b"), Some(("a.b", None)));
        assert_eq!(split_port("[::1]:80"), Some(("::1", Some(80))));
        assert_eq!(split_port("::1"), Some(("::1", None)));
        assert_eq!(split_port("a:99999"), None);
        assert_eq!(split_port("[::1]x"), None);
    }
}
