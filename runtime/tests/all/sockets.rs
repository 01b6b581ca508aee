//! `wasi:sockets` 0.2 and 0.3, TCP and UDP: allowed, not granted, denied, and the other way round.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio_util::sync::CancellationToken;
use wasmorch_runtime::{Capture, CommandReplica, Network, ReplicaConfig, Stdio};

use crate::support::{PATIENCE, artifact, runtime};

/// Exit code and output of a guest.
async fn run(guest: &str, args: &[&str], network: Network) -> (i32, String) {
    let mut config = ReplicaConfig::new("test");
    config.args = [guest]
        .iter()
        .chain(args)
        .map(ToString::to_string)
        .collect();
    config.network = network;
    let artifact = artifact(guest).await;
    let replica = CommandReplica::prepare(&runtime(), &artifact, config).unwrap();
    let output = Capture::new();
    let stdio = Stdio::Captured {
        stdin: Bytes::new(),
        output: output.clone(),
    };
    let code = replica.run(stdio, CancellationToken::new()).await.unwrap();
    let text = String::from_utf8_lossy(&output.stdout()).trim().to_owned();
    (code, text)
}

fn connect(pattern: &str) -> Network {
    Network::Allow {
        connect: vec![pattern.parse().unwrap()],
        listen: Vec::new(),
    }
}

fn listen(port: u16) -> Network {
    Network::Allow {
        connect: Vec::new(),
        listen: vec![port],
    }
}

/// Answers every connection, and every datagram, on one port.
async fn server() -> SocketAddr {
    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = tcp.local_addr().unwrap();
    let udp = UdpSocket::bind(address).await.unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = tcp.accept().await {
            tokio::spawn(async move {
                let mut question = [0; 4];
                if stream.read_exact(&mut question).await.is_ok() {
                    stream.write_all(b"pong").await.unwrap();
                }
            });
        }
    });
    tokio::spawn(async move {
        let mut question = [0; 16];
        while let Ok((_, from)) = udp.recv_from(&mut question).await {
            udp.send_to(b"pong", from).await.unwrap();
        }
    });
    address
}

async fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap().port()
}

#[tokio::test]
async fn a_granted_address_is_reached_by_tcp_and_udp() {
    let address = server().await;
    let (exact, port) = (address.to_string(), address.port());
    for (pattern, target) in [
        (exact.clone(), exact.clone()),
        (format!("127.0.0.0/8:{port}"), exact.clone()),
        (format!("localhost:{port}"), format!("localhost:{port}")),
    ] {
        for protocol in ["tcp", "udp"] {
            let answer = run("dialer", &[protocol, &target], connect(&pattern)).await;
            assert_eq!(answer, (0, "pong".into()), "{protocol} {pattern}");
        }
    }
    for protocol in ["tcp", "udp"] {
        let port = port.to_string();
        let answer = run("command-p3", &[protocol, &port], connect(&exact)).await;
        assert_eq!(answer, (0, "done".into()), "0.3 {protocol}");
    }
}

#[tokio::test]
async fn nothing_is_reached_without_a_grant_and_nothing_else_with_one() {
    let address = server().await;
    let (exact, port) = (address.to_string(), address.port().to_string());
    for network in [
        Network::Denied,
        connect("127.0.0.1:1"),
        connect("127.0.0.2"),
        connect("10.0.0.0/8"),
        // Every public address: this one is none.
        connect("*"),
        connect("db.example.com"),
        listen(address.port()),
    ] {
        for protocol in ["tcp", "udp"] {
            let (code, text) = run("dialer", &[protocol, &exact], network.clone()).await;
            assert_eq!(code, 1, "{protocol} {network:?}: {text}");
            let (_, text) = run("command-p3", &[protocol, &port], network.clone()).await;
            assert!(
                text.contains("AccessDenied"),
                "{protocol} {network:?}: {text}"
            );
        }
    }
    // Names are looked up only by who was granted one.
    let name = format!("localhost:{port}");
    let (code, text) = run("dialer", &["tcp", &name], connect(&exact)).await;
    assert_eq!(code, 1, "{text}");
}

#[tokio::test]
async fn a_granted_port_takes_connections_and_datagrams() {
    let port = free_port().await;
    let target = SocketAddr::from(([127, 0, 0, 1], port));
    let listening =
        tokio::spawn(
            async move { run("dialer", &["listen", &port.to_string()], listen(port)).await },
        );
    let dialing = async {
        loop {
            if let Ok(mut stream) = TcpStream::connect(target).await {
                stream.write_all(b"ping").await.unwrap();
                let mut answer = [0; 4];
                stream.read_exact(&mut answer).await.unwrap();
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let (answer, ended) = tokio::join!(tokio::time::timeout(PATIENCE, dialing), listening);
    assert_eq!(ended.unwrap(), (0, "ping".into()));
    assert_eq!(&answer.unwrap(), b"pong");

    let receiving =
        tokio::spawn(
            async move { run("dialer", &["receive", &port.to_string()], listen(port)).await },
        );
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let asking = async {
        let mut answer = [0; 4];
        loop {
            socket.send_to(b"ping", target).await.unwrap();
            let wait = Duration::from_millis(50);
            if let Ok(Ok(_)) = tokio::time::timeout(wait, socket.recv_from(&mut answer)).await {
                return answer;
            }
        }
    };
    let answer = tokio::time::timeout(PATIENCE, asking).await.unwrap();
    assert_eq!(&answer, b"pong");
    assert_eq!(receiving.await.unwrap(), (0, "ping".into()));
}

#[tokio::test]
async fn another_port_is_not_listened_on() {
    let port = free_port().await;
    let text = port.to_string();
    for network in [
        Network::Denied,
        listen(port.wrapping_add(1).max(1)),
        connect(&format!("127.0.0.1:{port}")),
    ] {
        for act in ["listen", "receive"] {
            let (code, text) = run("dialer", &[act, &text], network.clone()).await;
            assert_eq!(code, 1, "{act} {network:?}: {text}");
        }
        let (_, text) = run("command-p3", &["bind", &text], network.clone()).await;
        assert!(text.contains("AccessDenied"), "{network:?}: {text}");
    }
    let answer = run("command-p3", &["bind", &text], listen(port)).await;
    assert_eq!(answer, (0, "done".into()));
}
