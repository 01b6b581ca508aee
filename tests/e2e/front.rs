//! How a connection of the public port begins, and whose its paths are.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use wasmorch_tests::up::Home;
use wasmorch_tests::{guest, wait_for};

use super::tls::up;

/// PROXY protocol, version 2: a TCP connection of 203.0.113.7 from port 4711, to port 443.
const FROM_A_CLIENT: &[u8] =
    b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c\xcb\x00\x71\x07\xc0\x00\x02\x01\x12\x67\x01\xbb";

/// A GET on a connection that begins with `opening`; all that comes back.
fn get(gateway: &str, opening: &[u8], path: &str) -> String {
    let mut stream = TcpStream::connect(gateway).expect("the gateway listens");
    let patience = Some(Duration::from_secs(30));
    stream.set_read_timeout(patience).expect("it can be set");
    let head = format!(
        "GET {path} HTTP/1.1\r\nhost: hello.default.localhost\r\nx-forwarded-for: 1.2.3.4\r\nconnection: close\r\n\r\n"
    );
    let mut answer = Vec::new();
    // A connection that does not begin as it must is closed, and reading it may fail.
    let _ = stream
        .write_all(&[opening, head.as_bytes()].concat())
        .and_then(|()| stream.read_to_end(&mut answer));
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn a_load_balancer_says_who_the_client_is_and_every_path_is_the_guests() {
    let home = Home::new();
    let (_up, gateway) = up(&home, &["--proxy-protocol"]);
    let hello = guest("hello-http");
    let hello = hello.to_str().expect("text");
    home.run(&["deploy", hello, "--name", "hello"]).ok();
    let answer = wait_for("an answer", || {
        let answer = get(&gateway, FROM_A_CLIENT, "/headers");
        answer.starts_with("HTTP/1.1 200").then_some(answer)
    });
    let told = answer.to_ascii_lowercase();
    assert!(told.contains("x-forwarded-for: 203.0.113.7"), "{answer}");
    assert!(told.contains("for=203.0.113.7"), "{answer}");
    assert!(!told.contains("1.2.3.4"), "{answer}");
    // Without it nobody is served: whoever comes past the load balancer could say anything.
    assert_eq!(get(&gateway, b"", "/headers"), "");

    // The host's own endpoints are on another port, so here these are paths like any other.
    for path in [
        "/healthz",
        "/readyz",
        "/metrics",
        "/version",
        "/.well-known/acme-challenge/x",
        "/.well-known/wasmorch",
    ] {
        let answer = get(&gateway, FROM_A_CLIENT, path);
        assert!(answer.starts_with("HTTP/1.1 404"), "{path}: {answer}");
        assert!(answer.ends_with("no such path\n"), "{path}: {answer}");
        assert!(!answer.contains("wasmorch-error"), "{path}: {answer}");
    }
}
