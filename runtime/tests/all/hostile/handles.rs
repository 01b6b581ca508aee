//! Attacks on what the host holds for its guests.

use std::path::Path;

use wasmorch_runtime::{Network, Preopen, ReplicaConfig};

use super::*;

fn with_folder(folder: &Path) -> ReplicaConfig {
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
async fn headers_and_bodies_count_as_memory() {
    for path in ["/headers", "/bodies"] {
        assert_memory(&attack(path, with_memory(32 << 20)).await);
    }
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
async fn sockets_have_an_end() {
    let config = ReplicaConfig {
        network: Network::Any,
        ..patient()
    };
    assert_open(&attack("/sockets", config).await);
}
