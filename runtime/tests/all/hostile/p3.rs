//! Attacks by the means of WASI 0.3: tasks, streams, work after the answer.

use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use wasmorch_runtime::{Limits, Network, ReplicaConfig};

use super::handles::{open_below, with_folder};
use super::*;
use crate::support::get;

async fn attack(path: &str, config: ReplicaConfig) -> Result<(u16, String), Ended> {
    Attacker::new("hostile-p3", config).await.attack(path).await
}

#[tokio::test]
async fn a_loop_in_an_async_handler_is_timed_out() {
    assert_eq!(attack("/spin", config()).await, Err(timeout()));
}

#[tokio::test]
async fn tasks_and_streams_without_end_have_an_end() {
    for path in ["/tasks", "/streams"] {
        let limits = Limits {
            memory_bytes: 1 << 30,
            ..Limits::default()
        };
        let config = ReplicaConfig {
            limits,
            ..patient()
        };
        assert_handles(&attack(path, config).await);
    }
}

#[tokio::test]
async fn host_calls_dropped_in_the_middle_leave_nothing() {
    let report = attack("/dropped", config()).await;
    assert_eq!(report, Ok((200, "dropped\n".into())));
}

/// Whether the answer came before is the guest's business; it has no more time for that.
#[tokio::test]
async fn work_after_the_answer_is_timed_out() {
    for path in ["/after", "/waits-after"] {
        let attacker = Attacker::new("hostile-p3", config()).await;
        let answered = attacker.attack(path).await;
        let is_whole = answered == Ok((200, "and now\n".into()));
        assert!(
            is_whole || answered == Err(timeout()),
            "{path}: {answered:?}"
        );
        assert_eq!(attacker.replica.usage().failed_total, 1, "{path}");
    }
}

#[tokio::test]
async fn an_endless_stream_ends_at_its_limit() {
    let (config, ended) = endless();
    assert_eq!(attack("/endless", config).await, Err(ended));
}

/// The client has gone, and the guest goes on writing.
#[tokio::test]
async fn a_guest_that_ignores_cancellation_is_dropped() {
    let attacker = Attacker::new("hostile-p3", patient()).await;
    let response = attacker.replica.handle(get("/ignores")).await.unwrap();
    drop(response);
    attacker.is_contained().await;
}

#[tokio::test]
async fn a_panic_in_an_async_handler_is_a_trap() {
    assert_trap(&attack("/panic", config()).await, "unreachable");
}

#[tokio::test]
async fn a_request_that_is_not_sent_counts_as_memory() {
    assert_memory(&attack("/long-method", with_memory(32 << 20)).await);
}

/// The same attack so often at once that each alone is within its bounds: one is ended, and then all are.
async fn at_once(attacker: &Attacker, path: &str) {
    let mut all = JoinSet::new();
    for _ in 0..8 {
        let (replica, path) = (attacker.replica.clone(), path.to_owned());
        all.spawn(async move { fetch(&replica, &path).await });
    }
    assert_open(&all.join_next().await.unwrap().unwrap());
    attacker.replica.stop();
    all.join_all().await;
    eventually("nothing is left", || {
        attacker.account.own(Field::Handles) == 0
    })
    .await;
}

/// Of files whose descriptors were dropped.
#[tokio::test]
async fn streams_of_files_have_an_end() {
    let folder = tempfile::tempdir().unwrap();
    let attacker = Attacker::new("hostile-p3", with_folder(folder.path())).await;
    at_once(&attacker, "/file-streams?400").await;
    eventually("files are closed", || open_below(folder.path()) == 0).await;
}

/// Of folders of which nothing is read: none keeps a thread from who reads.
#[tokio::test]
async fn streams_of_folders_have_an_end_and_hold_no_thread() {
    let folder = tempfile::tempdir().unwrap();
    for number in 0..200 {
        std::fs::write(folder.path().join(number.to_string()), "").unwrap();
    }
    let attacker = Attacker::new("hostile-p3", with_folder(folder.path())).await;
    at_once(&attacker, "/listings?300").await;
    let read = attack("/list", with_folder(folder.path())).await;
    assert_eq!(read, Ok((200, "200 Ok(())".into())));
    eventually("folders are closed", || open_below(folder.path()) == 0).await;
}

/// Of connections whose sockets were dropped. The server has gone, and nobody looks.
#[tokio::test]
async fn streams_of_connections_have_an_end() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let here = listener.local_addr().unwrap();
    let server = tokio::spawn(async move { while listener.accept().await.is_ok() {} });
    let config = ReplicaConfig {
        network: Network::Any,
        ..patient()
    };
    let attacker = Attacker::new("hostile-p3", config).await;
    at_once(&attacker, &format!("/connections?{here}=300")).await;
    server.abort();
}

/// What counts them passes on what they bring.
#[tokio::test]
async fn streams_that_are_counted_are_read_to_their_end() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let here = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(b"all of it").await.unwrap();
    });
    let config = ReplicaConfig {
        network: Network::Any,
        ..patient()
    };
    let received = attack(&format!("/receive?{here}"), config).await;
    assert_eq!(received, Ok((200, "all of it Ok(())".into())));
}
