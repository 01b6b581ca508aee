//! What a request or response may carry from one side of the gateway to the other.
//!
//! Owns the names of our own headers, what ends at a hop, what is believed from whom, and the host
//! name a request asks for. Looks at each header once and changes nothing in the common case.

use std::borrow::Cow;
use std::net::SocketAddr;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::PathAndQuery;
use http::{Request, Uri, Version};

/// Which workload a request on the peer port is for: `namespace/name`.
pub(crate) const WORKLOAD: HeaderName = HeaderName::from_static("wasmorch-workload");
/// Who is there? The host that whoever dialled means, and the answer when it is that one.
pub(crate) const HOST: HeaderName = HeaderName::from_static("wasmorch-host");
/// How many gateways a request, and what caused it, has passed.
pub(crate) const HOPS: HeaderName = HeaderName::from_static("wasmorch-hops");
/// On an answer of the peer port: the workload's requests in hand on that host.
pub(crate) const LOAD: HeaderName = HeaderName::from_static("wasmorch-load");
/// How many milliseconds whoever asked still waits.
pub(crate) const DEADLINE: HeaderName = HeaderName::from_static("wasmorch-deadline");
/// Nothing is ready anywhere, and a replica rests on the host that is asked: it is to be woken.
pub(crate) const WAKE: HeaderName = HeaderName::from_static("wasmorch-wake");
/// On an answer of the peer port: the request was not executed.
pub(crate) const REFUSED: HeaderName = HeaderName::from_static("wasmorch-refused");
/// On an answer that a gateway made: which kind of error.
pub(crate) const ERROR: HeaderName = HeaderName::from_static("wasmorch-error");

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// A DNS name has at most 253 characters; a port and brackets come on top.
const HOST_BYTES_MAX: usize = 270;

/// Headers that `Connection` cannot name: what the message says would change.
const NEVER_HOP_BY_HOP: [HeaderName; 2] = [header::HOST, header::CONTENT_LENGTH];

fn is_hop_by_hop(name: &str) -> bool {
    matches!(
        name,
        "connection"
            | "keep-alive"
            | "proxy-connection"
            | "proxy-authenticate"
            | "proxy-authorization"
            | "te"
            | "transfer-encoding"
            | "upgrade"
            | "http2-settings"
    )
}

fn is_ours(name: &str) -> bool {
    name.starts_with("wasmorch-")
}

/// Headers by which proxies tell of the client. From outside anyone can write them.
fn is_forwarding(name: &str) -> bool {
    name == "forwarded" || name == "x-real-ip" || name.starts_with("x-forwarded-")
}

/// Removes what ends at this hop, and what `also` says.
fn scrub(headers: &mut HeaderMap, also: impl Fn(&str) -> bool) {
    let ends = |name: &str| is_hop_by_hop(name) || also(name);
    if !headers.keys().any(|name| ends(name.as_str())) {
        return;
    }
    let trailers = headers.get(header::TE).is_some_and(accepts_trailers);
    let mut doomed: Vec<HeaderName> = headers
        .keys()
        .filter(|name| ends(name.as_str()))
        .cloned()
        .collect();
    for named in headers.get_all(header::CONNECTION) {
        let names = named.to_str().unwrap_or_default().split(',');
        doomed.extend(
            names
                .filter_map(|name| HeaderName::from_bytes(name.trim().as_bytes()).ok())
                .filter(|name| !NEVER_HOP_BY_HOP.contains(name)),
        );
    }
    for name in doomed {
        headers.remove(name);
    }
    if trailers {
        // The one thing `TE` says that is about the message and not about the connection.
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
}

fn accepts_trailers(te: &HeaderValue) -> bool {
    te.to_str()
        .unwrap_or_default()
        .split(',')
        .any(|coding| coding.trim() == "trailers")
}

/// Of a request from outside: nothing of ours, nothing that only a gateway may say. `Expect` is
/// answered by the connection when the body is first read.
pub(crate) fn scrub_public_request(headers: &mut HeaderMap) {
    scrub(headers, |name| {
        is_ours(name) || is_forwarding(name) || name == "expect"
    });
}

/// Of a request from another gateway: forwarding headers stay.
pub(crate) fn scrub_peer_request(headers: &mut HeaderMap) {
    scrub(headers, |name| is_ours(name) || name == "expect");
}

/// Of a guest's response: nothing that only a gateway may say.
pub(crate) fn scrub_local_response(headers: &mut HeaderMap) {
    scrub(headers, is_ours);
}

/// Of another gateway's response: its error stays.
pub(crate) fn scrub_peer_response(headers: &mut HeaderMap) {
    scrub(headers, |name| is_ours(name) && name != ERROR.as_str());
}

/// What another gateway says of its load.
pub(crate) fn load(headers: &HeaderMap) -> Option<u32> {
    headers.get(LOAD)?.to_str().ok()?.parse().ok()
}

/// What a connection's requests tell of their client; made once for each connection.
#[derive(Debug)]
pub(crate) struct Client {
    address: HeaderValue,
    forwarded: HeaderValue,
    protocol: HeaderValue,
}

impl Client {
    /// `secure`: it speaks TLS.
    pub(crate) fn new(address: SocketAddr, secure: bool) -> Self {
        let protocol = if secure { "https" } else { "http" };
        // A dual-stack listener sees IPv4 clients as mapped addresses.
        let ip = address.ip().to_canonical();
        let quoted = if ip.is_ipv6() {
            format!("\"[{ip}]\"")
        } else {
            ip.to_string()
        };
        let value = |text: String| HeaderValue::try_from(text).expect("an address is plain text");
        Self {
            address: value(ip.to_string()),
            protocol: HeaderValue::from_static(protocol),
            forwarded: value(format!("for={quoted};proto={protocol}")),
        }
    }

    /// Tells of the client. `Forwarded` names no host: the request keeps its `Host`.
    pub(crate) fn tell(&self, headers: &mut HeaderMap) {
        if let Some(host) = headers.get(header::HOST) {
            let host = host.clone();
            headers.insert(FORWARDED_HOST, host);
        }
        headers.insert(header::FORWARDED, self.forwarded.clone());
        headers.insert(FORWARDED_FOR, self.address.clone());
        headers.insert(FORWARDED_PROTO, self.protocol.clone());
    }
}

/// Why a request cannot be routed at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadHost {
    #[error("the request names no host; send one Host header")]
    Missing,
    #[error("the request names more than one host")]
    Several,
    #[error("the request's host is not a host name")]
    Illegal,
    #[error("the request's target is neither a path, which begins with `/`, nor a whole URL")]
    Target,
}

/// Why a body is not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadCoding {
    #[error("the request's body is chunked twice")]
    Doubled,
    #[error("no transfer coding but chunked is read; content codings go through")]
    Unknown,
}

/// Whether a body comes in the one way that is read (RFC 9112, 6.1). A component is not told of codings of
/// the connection, so it could not undo them.
pub(crate) fn check_codings(headers: &HeaderMap) -> Result<(), BadCoding> {
    if !headers.contains_key(header::TRANSFER_ENCODING) {
        return Ok(());
    }
    let values = headers.get_all(header::TRANSFER_ENCODING).iter();
    let codings = values.flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    let codings = codings.map(<[u8]>::trim_ascii);
    let (mut chunked, mut unknown) = (0, false);
    for coding in codings.filter(|coding| !coding.is_empty()) {
        if coding.eq_ignore_ascii_case(b"chunked") {
            chunked += 1;
        } else {
            unknown = true;
        }
    }
    match (chunked, unknown) {
        (2.., _) => Err(BadCoding::Doubled),
        (_, true) => Err(BadCoding::Unknown),
        _ => Ok(()),
    }
}

/// Brings a request into the one form that all else works on: origin-form URI, one `Host` header.
/// An authority in the URI wins over `Host` (RFC 9112, 3.2.2); in HTTP/2 they must agree.
pub(crate) fn normalise<B>(request: &mut Request<B>) -> Result<(), BadHost> {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let (host, more) = (hosts.next(), hosts.next());
    if more.is_some() {
        return Err(BadHost::Several);
    }
    let Some(authority) = request.uri().authority() else {
        return if host.is_some() {
            Ok(())
        } else {
            Err(BadHost::Missing)
        };
    };
    if request.uri().scheme().is_none() {
        // `foo` alone is an authority, which CONNECT has (RFC 9112, 3.2).
        return Err(BadHost::Target);
    }
    let same = host.is_some_and(|host| host.as_bytes() == authority.as_str().as_bytes());
    if !same {
        if host.is_some() && request.version() == Version::HTTP_2 {
            return Err(BadHost::Several);
        }
        let value = HeaderValue::from_str(authority.as_str()).map_err(|_| BadHost::Illegal)?;
        request.headers_mut().insert(header::HOST, value);
    }
    let path = request.uri().path_and_query().cloned();
    *request.uri_mut() = Uri::from(path.unwrap_or_else(|| PathAndQuery::from_static("/")));
    Ok(())
}

/// The host name that a `Host` header asks for: lower case, no port, no dot at its end.
pub(crate) fn host_name(host: &HeaderValue) -> Result<Cow<'_, str>, BadHost> {
    let text = host.to_str().map_err(|_| BadHost::Illegal)?;
    if text.is_empty() {
        return Err(BadHost::Missing);
    }
    let (name, port) = if text.starts_with('[') {
        let end = text.find(']').ok_or(BadHost::Illegal)? + 1;
        text.split_at(end)
    } else {
        text.split_at(text.find(':').unwrap_or(text.len()))
    };
    let port_fits = match port.strip_prefix(':') {
        Some(digits) => digits.len() <= 5 && digits.bytes().all(|b| b.is_ascii_digit()),
        None => port.is_empty(),
    };
    let legal = |b: u8| b.is_ascii_alphanumeric() || b"-._[]:".contains(&b);
    let name = name.strip_suffix('.').unwrap_or(name);
    if text.len() > HOST_BYTES_MAX || name.is_empty() || !port_fits || !name.bytes().all(legal) {
        return Err(BadHost::Illegal);
    }
    if name.bytes().any(|b| b.is_ascii_uppercase()) {
        return Ok(Cow::Owned(name.to_ascii_lowercase()));
    }
    Ok(Cow::Borrowed(name))
}

/// Whether the client wants to go on in another protocol that ours would have to carry.
pub(crate) fn wants_websocket(headers: &HeaderMap) -> bool {
    headers.get_all(header::UPGRADE).iter().any(|upgrade| {
        let protocols = upgrade.to_str().unwrap_or_default().split(',');
        protocols
            .into_iter()
            .any(|protocol| protocol.trim().eq_ignore_ascii_case("websocket"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            let name = HeaderName::from_static(name);
            map.append(name, HeaderValue::from_static(value));
        }
        map
    }

    #[test]
    fn what_ends_at_the_hop_is_removed() {
        let mut map = headers(&[
            ("connection", "x-private, close, host, content-length"),
            ("x-private", "1"),
            ("content-length", "3"),
            ("host", "a"),
            ("te", "gzip, trailers"),
            ("transfer-encoding", "chunked"),
            ("wasmorch-hops", "0"),
            ("forwarded", "for=evil"),
            ("x-forwarded-anything", "evil"),
            ("x-real-ip", "evil"),
            ("accept", "*/*"),
        ]);
        scrub_public_request(&mut map);
        let expected = headers(&[
            ("content-length", "3"),
            ("host", "a"),
            ("te", "trailers"),
            ("accept", "*/*"),
        ]);
        assert_eq!(map, expected);
    }

    #[test]
    fn a_peer_is_believed_and_a_guest_is_not() {
        let told = headers(&[("forwarded", "for=1.2.3.4"), ("x-forwarded-for", "1.2.3.4")]);
        let mut request = told.clone();
        request.insert(HOPS, HeaderValue::from_static("1"));
        scrub_peer_request(&mut request);
        assert_eq!(request, told);
        let mut response = headers(&[("wasmorch-refused", "1"), ("wasmorch-error", "busy")]);
        scrub_peer_response(&mut response);
        assert_eq!(response, headers(&[("wasmorch-error", "busy")]));
        scrub_local_response(&mut response);
        assert!(response.is_empty());
    }

    #[test]
    fn host_names() {
        for (text, expected) in [
            ("Shop.Example.com:8080", Ok("shop.example.com")),
            ("a.localhost.", Ok("a.localhost")),
            ("a.localhost.:80", Ok("a.localhost")),
            ("127.0.0.1:1", Ok("127.0.0.1")),
            ("[::1]:8080", Ok("[::1]")),
            ("[::1]", Ok("[::1]")),
            ("", Err(BadHost::Missing)),
            (":80", Err(BadHost::Illegal)),
            (".", Err(BadHost::Illegal)),
            ("a:b", Err(BadHost::Illegal)),
            ("a:123456", Err(BadHost::Illegal)),
            ("user@a", Err(BadHost::Illegal)),
            ("a b", Err(BadHost::Illegal)),
            ("a/b", Err(BadHost::Illegal)),
            ("[::1", Err(BadHost::Illegal)),
            ("[::1]x", Err(BadHost::Illegal)),
        ] {
            let value = HeaderValue::from_static(text);
            assert_eq!(
                host_name(&value).as_deref().map_err(|e| *e),
                expected,
                "{text}"
            );
        }
        let long = HeaderValue::try_from("a".repeat(300)).unwrap();
        assert_eq!(host_name(&long), Err(BadHost::Illegal));
    }

    #[test]
    fn requests_take_one_form() {
        let request = |uri: &str, hosts: &[&'static str], version| {
            let mut request = Request::builder()
                .uri(uri)
                .version(version)
                .body(())
                .unwrap();
            for host in hosts {
                request
                    .headers_mut()
                    .append(header::HOST, HeaderValue::from_static(host));
            }
            normalise(&mut request)?;
            let host = request.headers()[header::HOST].to_str().unwrap().to_owned();
            Ok((request.uri().to_string(), host))
        };
        let form = |uri: &str, host: &str| Ok((uri.to_owned(), host.to_owned()));
        assert_eq!(request("/x?y", &["a"], Version::HTTP_11), form("/x?y", "a"));
        assert_eq!(
            request("http://b:1/x?y", &["a"], Version::HTTP_11),
            form("/x?y", "b:1")
        );
        assert_eq!(request("http://b", &[], Version::HTTP_2), form("/", "b"));
        assert_eq!(
            request("http://b/", &["a"], Version::HTTP_2),
            Err(BadHost::Several)
        );
        assert_eq!(
            request("/", &["a", "a"], Version::HTTP_11),
            Err(BadHost::Several)
        );
        assert_eq!(request("/", &[], Version::HTTP_11), Err(BadHost::Missing));
        assert_eq!(
            request("foo", &["a"], Version::HTTP_11),
            Err(BadHost::Target)
        );
    }

    #[test]
    fn one_coding_is_read() {
        let codings = |values: &[&'static str]| {
            let name = "transfer-encoding";
            let pairs: Vec<_> = values.iter().map(|value| (name, *value)).collect();
            check_codings(&headers(&pairs))
        };
        assert_eq!(codings(&[]), Ok(()));
        assert_eq!(codings(&["Chunked"]), Ok(()));
        assert_eq!(codings(&[", chunked"]), Ok(()));
        assert_eq!(codings(&["gzip, chunked"]), Err(BadCoding::Unknown));
        assert_eq!(codings(&["identity", "chunked"]), Err(BadCoding::Unknown));
        assert_eq!(codings(&["chunked, chunked"]), Err(BadCoding::Doubled));
        assert_eq!(codings(&["chunked", "chunked"]), Err(BadCoding::Doubled));
        let both = codings(&["chunked, gzip, chunked"]);
        assert_eq!(both, Err(BadCoding::Doubled));
    }

    #[test]
    fn clients_are_told_of() {
        let mut map = headers(&[("host", "a:1")]);
        Client::new("[::ffff:1.2.3.4]:5".parse().unwrap(), false).tell(&mut map);
        assert_eq!(map[header::FORWARDED], "for=1.2.3.4;proto=http");
        assert_eq!(map[FORWARDED_FOR], "1.2.3.4");
        assert_eq!(map[FORWARDED_PROTO], "http");
        assert_eq!(map[FORWARDED_HOST], "a:1");
        Client::new("[::2]:5".parse().unwrap(), true).tell(&mut map);
        assert_eq!(map[header::FORWARDED], "for=\"[::2]\";proto=https");
        assert_eq!(map[FORWARDED_PROTO], "https");
        assert_eq!(map[FORWARDED_FOR], "::2");
    }
}
