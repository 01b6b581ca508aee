//! PROXY protocol, version 2: a load balancer in front says who the client is, before the client's
//! first byte.
//!
//! Pure, but for [`read`], which reads exactly what the header says and nothing of what follows.
//! Version 1 (text) is refused: whoever can speak it can speak version 2 and is read without guessing.
//! (The format: haproxy's `doc/proxy-protocol.txt`, section 2.2.)
//!
//! Invariant: on a port that expects it, a connection without it is closed. Else whoever reaches the
//! port past the load balancer could choose to be believed or not.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::io::{AsyncRead, AsyncReadExt as _};

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
const HEAD_BYTES: usize = 16;
/// Addresses take at most 216 bytes; the rest is for what load balancers add (TLS details, ids).
const BODY_BYTES_MAX: usize = 4096;

/// Why a connection does not begin as it must.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProxyError {
    #[error("it does not begin with a PROXY protocol header of version 2")]
    NotProxy,
    #[error("the PROXY protocol header has {0}")]
    Malformed(&'static str),
    #[error("the PROXY protocol header broke off")]
    Io(#[from] io::Error),
}

/// Reads the header. `None`: the load balancer speaks for itself (a health check), or of a client
/// that has no address.
pub(crate) async fn read(
    stream: &mut (impl AsyncRead + Unpin),
) -> Result<Option<SocketAddr>, ProxyError> {
    let mut head = [0; HEAD_BYTES];
    // The signature first: a client that speaks HTTP has sent enough to be told apart.
    stream.read_exact(&mut head[..SIGNATURE.len()]).await?;
    if head[..SIGNATURE.len()] != SIGNATURE {
        return Err(ProxyError::NotProxy);
    }
    stream.read_exact(&mut head[SIGNATURE.len()..]).await?;
    let length = usize::from(u16::from_be_bytes([head[14], head[15]]));
    if length > BODY_BYTES_MAX {
        return Err(ProxyError::Malformed("more than 4096 bytes"));
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    parse(head[12], head[13], &body)
}

fn parse(command: u8, family: u8, body: &[u8]) -> Result<Option<SocketAddr>, ProxyError> {
    match command {
        0x20 => return Ok(None),
        0x21 => {}
        _ => return Err(ProxyError::Malformed("an unknown version or command")),
    }
    let short = ProxyError::Malformed("too short addresses");
    match family {
        // TCP over IPv4: source, destination, source port, destination port.
        0x11 => {
            let Some((source, _)) = body.split_first_chunk::<4>() else {
                return Err(short);
            };
            let port = port(body, 8).ok_or(short)?;
            Ok(Some(SocketAddr::new(
                IpAddr::V4(Ipv4Addr::from(*source)),
                port,
            )))
        }
        0x21 => {
            let Some((source, _)) = body.split_first_chunk::<16>() else {
                return Err(short);
            };
            let port = port(body, 32).ok_or(short)?;
            Ok(Some(SocketAddr::new(
                IpAddr::V6(Ipv6Addr::from(*source)),
                port,
            )))
        }
        // Unspecified, or a Unix socket.
        0x00 | 0x31 => Ok(None),
        _ => Err(ProxyError::Malformed("an address that is not of TCP")),
    }
}

/// The source port; the destination's follows it.
fn port(body: &[u8], at: usize) -> Option<u16> {
    let ports = body.get(at..at + 4)?;
    Some(u16::from_be_bytes([ports[0], ports[1]]))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let mut bytes = SIGNATURE.to_vec();
        bytes.extend([command, family]);
        bytes.extend(u16::try_from(body.len()).unwrap().to_be_bytes());
        bytes.extend(body);
        bytes
    }

    fn v4() -> Vec<u8> {
        [
            &[192, 0, 2, 7][..],
            &[127, 0, 0, 1],
            &[0x30, 0x39],
            &[0, 80],
        ]
        .concat()
    }

    fn v6() -> Vec<u8> {
        let source = "2001:db8::7".parse::<Ipv6Addr>().unwrap().octets();
        [&source[..], &[0; 16], &[0x30, 0x39], &[0, 80]].concat()
    }

    async fn read_all(mut bytes: &[u8]) -> (Result<Option<SocketAddr>, String>, usize) {
        let before = bytes.len();
        let read = read(&mut bytes).await.map_err(|error| error.to_string());
        (read, before - bytes.len())
    }

    #[tokio::test]
    async fn clients_are_told_and_what_follows_is_left() {
        let extra = [v4(), vec![3, 0, 4, 1, 2, 3, 4]].concat();
        for (command, family, body, expected) in [
            (0x21, 0x11, v4(), Some("192.0.2.7:12345")),
            (0x21, 0x21, v6(), Some("[2001:db8::7]:12345")),
            (0x21, 0x11, extra, Some("192.0.2.7:12345")),
            (0x20, 0x00, vec![], None),
            (0x20, 0x11, v4(), None),
            (0x21, 0x31, vec![0; 216], None),
        ] {
            let header = header(command, family, &body);
            let mut bytes = header.clone();
            bytes.extend(b"GET / HTTP/1.1\r\n");
            let (read, used) = read_all(&bytes).await;
            let expected = expected.map(|text| text.parse().unwrap());
            assert_eq!((read, used), (Ok(expected), header.len()));
        }
    }

    #[tokio::test]
    async fn what_is_no_header_is_refused() {
        for bytes in [
            b"GET / HTTP/1.1\r\nhost: a\r\n\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.7 127.0.0.1 1 2\r\n".to_vec(),
            header(0x11, 0x11, &v4()),
            header(0x22, 0x11, &v4()),
            header(0x21, 0x12, &v4()),
            header(0x21, 0x11, &v4()[..11]),
            header(0x21, 0x21, &v4()),
            header(0x21, 0x11, &[0; 5000]),
            header(0x21, 0x11, &v4())[..20].to_vec(),
            SIGNATURE.to_vec(),
        ] {
            assert!(read_all(&bytes).await.0.is_err(), "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_harm(command: u8, family: u8, body in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse(command, family, &body);
        }
    }
}
