//! What is not granted is told in the replica's log: once, however often a guest tries, and with what grants it.

use std::sync::Arc;

use bytes::Bytes;
use tokio_util::sync::CancellationToken;
use wasmorch_runtime::{
    Capture, CommandReplica, LogLevel, LogStream, OutboundHttp, ReplicaConfig, Stdio,
};

use crate::support::{Lines, artifact, fetch, http, runtime};

fn logged(lines: &Arc<Lines>) -> ReplicaConfig {
    ReplicaConfig {
        logs: lines.clone(),
        ..ReplicaConfig::new("test")
    }
}

/// The one warning that there is.
#[track_caller]
fn told(lines: &Lines) -> String {
    let warning = LogStream::Wasi(LogLevel::Warn);
    let mut all = lines.all();
    all.retain(|line| line.stream == warning);
    let [only] = all.as_slice() else {
        panic!("not one line: {all:?}");
    };
    only.text.clone()
}

/// What an http guest is refused, asked for several times.
async fn refused(guest: &str, path: &str, config: ReplicaConfig) {
    let replica = http(guest, config).await;
    for _ in 0..3 {
        let (status, body) = fetch(&replica, path).await.unwrap();
        assert!(
            (400..600).contains(&status),
            "{guest} {path}: {status} {body}"
        );
    }
}

#[tokio::test]
async fn a_host_that_is_not_granted_is_told_once() {
    let lines = Arc::default();
    let path = "/fetch?http://api.example.com:8080/";
    refused("fetcher-http", path, logged(&lines)).await;
    let text = told(&lines);
    assert!(
        text.contains("`--grant http=api.example.com:8080`"),
        "{text}"
    );
    assert!(
        text.contains("`--allow-http api.example.com:8080`"),
        "{text}"
    );
}

#[tokio::test]
async fn a_name_that_leads_to_a_private_address_is_told() {
    let lines = Arc::default();
    let config = ReplicaConfig {
        outbound: OutboundHttp::allow(["*:9".parse().unwrap()]),
        ..logged(&lines)
    };
    refused("fetcher-http", "/fetch?http://127.0.0.1:9/", config).await;
    let text = told(&lines);
    assert!(text.contains("not public"), "{text}");
}

#[tokio::test]
async fn a_store_a_container_and_a_secret_that_are_not_granted_are_told() {
    for (guest, path, grant) in [
        ("keeper-http", "/get?cart/a", "`--grant keyvalue=cart`"),
        ("blobs-http", "/sum?img/cat", "`--grant blobstore=img`"),
        ("secrets-http", "/hold?db", "secret `db`"),
    ] {
        let lines = Arc::default();
        refused(guest, path, logged(&lines)).await;
        let text = told(&lines);
        assert!(text.contains(grant), "{guest}: {text}");
    }
}

#[tokio::test]
async fn a_socket_and_a_port_that_are_not_granted_are_told() {
    for (act, target, grant) in [
        (
            "tcp",
            "10.0.0.1:5432",
            "`--grant sockets=connect:10.0.0.1:5432`",
        ),
        (
            "udp",
            "10.0.0.1:53",
            "`--grant sockets=connect:10.0.0.1:53`",
        ),
        ("listen", "9000", "`--grant sockets=listen:9000`"),
    ] {
        let lines = Arc::default();
        let config = ReplicaConfig {
            args: vec!["dialer".into(), act.into(), target.into()],
            ..logged(&lines)
        };
        let artifact = artifact("dialer").await;
        let replica = CommandReplica::prepare(&runtime(), &artifact, config).unwrap();
        for _ in 0..3 {
            let stdio = Stdio::Captured {
                stdin: Bytes::new(),
                output: Capture::new(),
            };
            let code = replica.run(stdio, CancellationToken::new()).await;
            assert_eq!(code, Ok(1), "{act}");
        }
        let text = told(&lines);
        assert!(text.contains(grant), "{act}: {text}");
    }
}
