//! Before HTTP: TLS with certificates by name, and a load balancer that tells of the client.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::Request;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use wasmorch_gateway::{Certificates, PemPair};

use crate::support::*;

fn pair(name: &str) -> PemPair {
    let made = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
    PemPair {
        from: name.into(),
        chain: made.cert.pem().into_bytes(),
        key: made.signing_key.serialize_pem().into_bytes(),
    }
}

fn read(pairs: &[PemPair]) -> Certificates {
    Certificates::read(pairs, SystemTime::now()).unwrap()
}

/// A client that trusts these and nothing else, and offers these protocols.
fn connector(trusted: &[PemPair], alpn: &[&str]) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    for pair in trusted {
        let certificate = CertificateDer::from_pem_slice(&pair.chain).unwrap();
        roots.add(certificate).unwrap();
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    TlsConnector::from(Arc::new(config))
}

async fn connect(
    host: &Host,
    connector: &TlsConnector,
    name: &'static str,
) -> std::io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(host.http).await.unwrap();
    within(connector.connect(ServerName::try_from(name).unwrap(), stream)).await
}

/// One request by HTTP/1.1; what the replica saw.
async fn told(mut stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin) -> String {
    let request = b"GET / HTTP/1.1\r\nhost: shop.example.com\r\nconnection: close\r\n\r\n";
    stream.write_all(request).await.unwrap();
    let mut answer = Vec::new();
    // Closing without a farewell is an error to a TLS client, after all has been read.
    let _ = within(stream.read_to_end(&mut answer)).await;
    String::from_utf8(answer).unwrap()
}

#[tokio::test]
async fn a_client_gets_the_certificate_and_the_protocol_it_asks_for() {
    let pairs = [pair("shop.example.com"), pair("other.example.com")];
    let (newest, tls) = watch::channel(Some(read(&pairs)));
    let host = Host::start_with("a", 1, tells_headers(), |config| config.tls = Some(tls));

    for (at, name) in ["shop.example.com", "other.example.com"]
        .into_iter()
        .enumerate()
    {
        // Trusts this one only: the right one was shown.
        let connector = connector(&pairs[at..=at], &["http/1.1"]);
        let stream = connect(&host, &connector, name).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
        let answer = told(stream).await;
        assert!(answer.contains("x-forwarded-proto=https"), "{answer}");
        assert!(
            answer.contains("forwarded=for=127.0.0.1;proto=https"),
            "{answer}"
        );
    }
    // HTTP/2 when the client can.
    let both = connector(&pairs, &["h2", "http/1.1"]);
    let stream = connect(&host, &both, "shop.example.com").await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let io = TokioIo::new(stream);
    let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io)
        .await
        .unwrap();
    let driving = tokio::spawn(connection);
    let request = Request::get("https://shop.example.com/")
        .body(empty())
        .unwrap();
    let answer = within(sender.send_request(request)).await.unwrap();
    assert_eq!(answer.status(), 200);
    drop(sender);

    // New certificates count for new connections, at once.
    let renewed = pair("shop.example.com");
    newest.send_replace(Some(read(std::slice::from_ref(&renewed))));
    let old = connect(&host, &both, "shop.example.com").await;
    assert!(old.is_err(), "the old certificate was shown");
    let trusting = connector(&[renewed], &[]);
    assert!(
        told(connect(&host, &trusting, "shop.example.com").await.unwrap())
            .await
            .contains("200")
    );
    driving.abort();
    host.stop().await;
}

#[tokio::test]
async fn who_speaks_http_to_a_tls_port_is_told_and_the_peer_port_stays_plain() {
    let (_newest, tls) = watch::channel(Some(read(&[pair("a.example")])));
    let front = Host::start_with("a", 0, says(""), |config| config.tls = Some(tls));
    let answer = ask(front.http, "GET /", &["host: shop.example.com"]).await;
    assert_eq!(status(&answer), 400, "{answer}");
    assert!(answer.contains("write https"), "{answer}");
    let (_newest, tls) = watch::channel(Some(read(&[pair("a.example")])));
    let back = Host::start_with("b", 1, says("back"), |config| config.tls = Some(tls));
    let plain = Host::start("c", 0, says(""));
    plain.sees(&[("b", back.peer)]);
    assert_eq!(get(plain.http).await, (200, "back".to_owned()));
    for host in [front, back, plain] {
        host.stop().await;
    }
}

#[tokio::test]
async fn clients_wait_for_the_first_certificates_and_not_for_ever() {
    let (newest, tls) = watch::channel(None);
    let host = Host::start_with("a", 1, says("hello"), |config| {
        config.tls = Some(tls);
        config.limits.header_timeout = Duration::from_millis(200);
    });
    let mut early = TcpStream::connect(host.http).await.unwrap();
    assert_eq!(
        within(early.read(&mut [0])).await.unwrap_or(0),
        0,
        "cut off"
    );
    let pairs = [pair("a.example")];
    let client = connector(&pairs, &[]);
    let waiting = connect(&host, &client, "a.example");
    newest.send_replace(Some(read(&pairs)));
    assert!(told(waiting.await.unwrap()).await.ends_with("hello"));
    // A handshake that never ends is a head that never ends.
    let mut slow = TcpStream::connect(host.http).await.unwrap();
    slow.write_all(&[0x16, 3, 1]).await.unwrap();
    assert_eq!(within(slow.read(&mut [0])).await.unwrap_or(0), 0, "cut off");
    host.stop().await;
}

/// A PROXY header of version 2 for a client.
fn proxy(client: [u8; 4], port: u16) -> Vec<u8> {
    let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".to_vec();
    header.extend(client);
    header.extend([127, 0, 0, 1]);
    header.extend(port.to_be_bytes());
    header.extend([0, 80]);
    header
}

#[tokio::test]
async fn a_load_balancer_tells_of_the_client_and_nobody_else_may() {
    let host = Host::start_with("a", 1, tells_headers(), |config| {
        config.proxy_protocol = true;
    });
    let mut stream = TcpStream::connect(host.http).await.unwrap();
    stream
        .write_all(&proxy([192, 0, 2, 7], 5555))
        .await
        .unwrap();
    let answer = told(stream).await;
    assert!(answer.contains("x-forwarded-for=192.0.2.7\n"), "{answer}");
    assert!(
        answer.contains("forwarded=for=192.0.2.7;proto=http\n"),
        "{answer}"
    );

    // Its own health checks come from itself.
    let mut stream = TcpStream::connect(host.http).await.unwrap();
    stream
        .write_all(b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0")
        .await
        .unwrap();
    assert!(told(stream).await.contains("x-forwarded-for=127.0.0.1\n"));

    // Past the load balancer: closed, whatever it says.
    for bytes in [
        "GET / HTTP/1.1\r\nhost: shop.example.com\r\n\r\n",
        "PROXY TCP4 1.1.1.1 2.2.2.2 1 2\r\n",
    ] {
        assert_eq!(raw(host.http, bytes.as_bytes()).await, "", "{bytes}");
    }
    assert_eq!(host.calls(), 2);

    // On a port that does not expect it, it is no HTTP.
    let plain = Host::start("b", 1, tells_headers());
    let mut bytes = proxy([192, 0, 2, 7], 5555);
    bytes.extend(b"GET / HTTP/1.1\r\nhost: shop.example.com\r\nconnection: close\r\n\r\n");
    let answer = raw(plain.http, &bytes).await;
    assert!(!answer.contains("200 OK"), "{answer}");
    assert_eq!(plain.calls(), 0);
    host.stop().await;
    plain.stop().await;
}

#[tokio::test]
async fn a_load_balancer_may_pass_tls_through() {
    let pairs = [pair("a.example")];
    let (_newest, tls) = watch::channel(Some(read(&pairs)));
    let host = Host::start_with("a", 1, tells_headers(), |config| {
        config.proxy_protocol = true;
        config.tls = Some(tls);
    });
    let mut stream = TcpStream::connect(host.http).await.unwrap();
    stream
        .write_all(&proxy([192, 0, 2, 7], 5555))
        .await
        .unwrap();
    let name = ServerName::try_from("a.example").unwrap();
    let stream = within(connector(&pairs, &[]).connect(name, stream))
        .await
        .unwrap();
    let answer = told(stream).await;
    assert!(
        answer.contains("forwarded=for=192.0.2.7;proto=https\n"),
        "{answer}"
    );
    host.stop().await;
}
