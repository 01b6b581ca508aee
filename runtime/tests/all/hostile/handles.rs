//! Attacks on what the host holds for its guests.

use std::path::Path;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use wasmorch_api::ByteSize;
use wasmorch_runtime::{
    BlobContainer as _, BlobContainers, Network, ObjectsContainer, OutboundHttp, Preopen,
    ReplicaConfig,
};

use super::*;

pub(super) fn with_folder(folder: &Path) -> ReplicaConfig {
    let preopens = vec![Preopen {
        host: folder.to_owned(),
        guest: "/data".into(),
        read_only: false,
        limit_bytes: None,
    }];
    ReplicaConfig {
        preopens,
        ..patient()
    }
}

/// How many files of a folder this process has open.
pub(super) fn open_below(folder: &Path) -> usize {
    let open = std::fs::read_dir("/proc/self/fd").unwrap();
    let targets = open.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
    targets
        .filter(|target| target.parent() == Some(folder))
        .count()
}

#[tokio::test]
async fn resources_without_end_have_an_end() {
    for path in ["/fields", "/pollables"] {
        assert_handles(&attack(path, patient()).await);
    }
}

/// What hangs on them is memory, though it is the host's.
#[tokio::test]
async fn heads_and_bodies_count_as_memory() {
    for path in ["/headers", "/bodies", "/long-method"] {
        assert_memory(&attack(path, with_memory(32 << 20)).await);
    }
}

/// A server whose answers have a head of 90 KiB and no body.
async fn heads() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut head = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n".to_owned();
    for number in 0..90 {
        head += &format!("x-{number}: {}\r\n", "x".repeat(1000));
    }
    head += "\r\n";
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let head = head.clone();
            tokio::spawn(async move {
                let mut asked = [0; 4096];
                while stream.read(&mut asked).await.is_ok_and(|n| n > 0) {
                    // Whoever asked may be gone.
                    let _ = stream.write_all(head.as_bytes()).await;
                }
            });
        }
    });
    port
}

#[tokio::test]
async fn heads_of_answers_that_are_kept_count_as_memory() {
    let port = heads().await;
    let config = ReplicaConfig {
        outbound: OutboundHttp::allow([format!("127.0.0.1:{port}").parse().unwrap()]),
        ..with_memory(32 << 20)
    };
    let path = format!("/kept-answers?127.0.0.1:{port}");
    assert_memory(&attack(&path, config).await);
}

/// Many requests at once, each with a little less than one may have.
#[tokio::test]
async fn what_the_host_holds_is_summed_over_instances() {
    let attacker = Attacker::new("hostile", patient()).await;
    let all = (0..20).map(|_| {
        let replica = attacker.replica.clone();
        tokio::spawn(async move { fetch(&replica, "/headers").await })
    });
    for ended in all.collect::<Vec<_>>() {
        assert_memory(&ended.await.unwrap());
    }
    let usage = attacker.replica.usage();
    assert!(usage.memory_bytes_peak <= 64 << 20, "{usage:?}");
    attacker.is_contained().await;
}

#[tokio::test]
async fn files_and_their_streams_have_an_end() {
    let folder = tempfile::tempdir().unwrap();
    for path in ["/files?file", "/file-streams?file"] {
        assert_open(&attack(path, with_folder(folder.path())).await);
        eventually("files are closed", || open_below(folder.path()) == 0).await;
    }
}

#[tokio::test]
async fn listings_have_an_end_and_are_read_to_it() {
    let folder = tempfile::tempdir().unwrap();
    for number in 0..200 {
        std::fs::write(folder.path().join(number.to_string()), "").unwrap();
    }
    let ended = attack("/listings", with_folder(folder.path())).await;
    assert!(
        matches!(
            ended,
            Err(Ended::Handles { .. } | Ended::MemoryLimit { .. })
        ),
        "{ended:?}"
    );
    eventually("folders are closed", || open_below(folder.path()) == 0).await;
    let read = attack("/list", with_folder(folder.path())).await;
    assert_eq!(read, Ok((200, "200".into())));
}

#[tokio::test]
async fn sockets_have_an_end() {
    let config = ReplicaConfig {
        network: Network::Any,
        ..patient()
    };
    assert_open(&attack("/sockets", config).await);
}

#[tokio::test]
async fn values_that_are_read_have_an_end() {
    let folder = tempfile::tempdir().unwrap();
    let objects = folder.path().canonicalize().unwrap().join("objects");
    let container = ObjectsContainer::on_disk(&objects, ByteSize::mib(1)).unwrap();
    let value = Box::pin(std::io::Cursor::new(b"value"));
    container.write("value", value).await.unwrap();
    let mut blobs = BlobContainers::new(folder.path().to_owned());
    blobs.grant("default", Arc::new(container));
    let config = ReplicaConfig { blobs, ..patient() };
    assert_open(&attack("/values?value", config).await);
    eventually("files are closed", || open_below(&objects) == 0).await;
}
