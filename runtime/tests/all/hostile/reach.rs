//! Attacks on what was not granted.

use std::path::Path;

use tokio::net::TcpListener;
use wasmorch_runtime::{Network, OutboundHttp, Preopen, ReplicaConfig};

use super::*;

fn with_volume(folder: &Path) -> ReplicaConfig {
    let preopens = vec![Preopen {
        host: folder.to_owned(),
        guest: "/data".into(),
        read_only: false,
        limit_bytes: Some(1 << 20),
    }];
    ReplicaConfig {
        preopens,
        ..patient()
    }
}

#[tokio::test]
async fn paths_do_not_lead_out_of_a_volume() {
    let around = tempfile::tempdir().unwrap();
    std::fs::write(around.path().join("secret"), "secret").unwrap();
    let inside = around.path().join("volume");
    std::fs::create_dir(&inside).unwrap();
    let report = attack("/escape", with_volume(&inside)).await;
    assert_eq!(report, Ok((200, "refused ".repeat(6))));
}

/// By links that it makes, and by one that somebody else has put there.
#[tokio::test]
async fn links_do_not_lead_out_of_a_volume() {
    let around = tempfile::tempdir().unwrap();
    let secret = around.path().join("secret");
    std::fs::write(&secret, "secret").unwrap();
    let inside = around.path().join("volume");
    std::fs::create_dir(&inside).unwrap();
    std::os::unix::fs::symlink(&secret, inside.join("planted")).unwrap();
    let path = format!("/symlink?{}", secret.display());
    let report = attack(&path, with_volume(&inside)).await;
    assert_eq!(report, Ok((200, "refused ".repeat(4))));
}

/// Each file is written far behind its beginning.
#[tokio::test]
async fn a_volume_is_full_when_it_is_full() {
    let folder = tempfile::tempdir().unwrap();
    let report = attack("/disk", with_volume(folder.path())).await;
    assert_eq!(report, Ok((200, "insufficient-space".into())));
}

#[tokio::test]
async fn no_socket_reaches_metadata_or_this_machine() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let here = listener.local_addr().unwrap().to_string();
    for address in ["169.254.169.254:80", &here, "10.0.0.1:80"] {
        let config = ReplicaConfig {
            network: Network::Allow {
                connect: vec!["*".parse().unwrap()],
                listen: Vec::new(),
            },
            ..patient()
        };
        let report = attack(&format!("/connect?{address}"), config).await;
        assert_eq!(report, Ok((200, "access-denied".into())), "{address}");
    }
}

/// A name that is granted and leads to a private address is as good as none.
#[tokio::test]
async fn a_name_does_not_lead_to_a_private_address() {
    let (port, asked) = silent().await;
    for host in [
        "localhost",
        "169.254.169.254",
        "[::ffff:169.254.169.254]",
        "0.0.0.0",
    ] {
        let pattern = format!("*:{port}").parse().unwrap();
        let config = ReplicaConfig {
            outbound: OutboundHttp::allow([pattern]),
            ..patient()
        };
        let attacker = http("fetcher-http", config).await;
        let url = format!("/fetch?http://{host}:{port}/latest/meta-data");
        let (status, body) = fetch(&attacker, &url).await.unwrap();
        assert_eq!(status, 502, "{host}");
        assert!(body.contains("DestinationIpProhibited"), "{host}: {body}");
    }
    assert_eq!(asked.available_permits(), 0, "nobody has come");
    // And by sockets: names are for those who were granted one.
    let config = ReplicaConfig {
        network: Network::Allow {
            connect: vec!["*".parse().unwrap()],
            listen: Vec::new(),
        },
        ..patient()
    };
    let report = attack("/lookup?localhost", config).await.unwrap().1;
    assert!(!report.contains("127"), "{report}");
    // One granted name is not all of them.
    for (granted, found) in [("localhost:1", true), ("db.example.com", false)] {
        let config = ReplicaConfig {
            network: Network::Allow {
                connect: vec![granted.parse().unwrap()],
                listen: Vec::new(),
            },
            ..patient()
        };
        let report = attack("/lookup?localhost", config).await.unwrap().1;
        assert_eq!(report.contains("Some("), found, "{granted}: {report}");
    }
}

/// A server that accepts, and says nothing; counts who comes.
async fn silent() -> (u16, Arc<tokio::sync::Semaphore>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let came = Arc::new(tokio::sync::Semaphore::new(0));
    let counted = came.clone();
    tokio::spawn(async move {
        let mut kept = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            counted.add_permits(1);
            kept.push(stream);
        }
    });
    (port, came)
}

#[tokio::test]
async fn requests_in_hand_have_an_end() {
    let (port, _came) = silent().await;
    let config = ReplicaConfig {
        outbound: OutboundHttp::allow([format!("127.0.0.1:{port}").parse().unwrap()]),
        ..patient()
    };
    let path = format!("/requests?127.0.0.1:{port}");
    let (_, report) = attack(&path, config).await.unwrap();
    assert!(report.contains("ConnectionLimitReached"), "{report}");
}
