//! `wasi:blobstore`: allowed, not granted, denied; streams, ranges, and what is never finished.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use wasmorch_api::ByteSize;
use wasmorch_runtime::{
    BlobContainer, BlobContainers, HttpReplica, MemoryContainer, MemoryShare, ObjectsContainer,
    ReplicaConfig, S3Settings,
};

use crate::support::{PATIENCE, fetch, http};

async fn blobs(containers: BlobContainers) -> HttpReplica {
    let config = ReplicaConfig {
        blobs: containers,
        ..ReplicaConfig::new("test")
    };
    http("blobs-http", config).await
}

async fn ask(replica: &HttpReplica, target: &str) -> (u16, String) {
    fetch(replica, target).await.unwrap()
}

/// What every backend must do.
async fn exercise(container: impl BlobContainer + 'static) {
    let mut containers = BlobContainers::default();
    containers.grant("img", Arc::new(container));
    let replica = blobs(containers).await;
    let ok = |text: &str| (200, text.to_owned());
    for bytes in [0, 1, 12_000_000] {
        let put = format!("/put?img/a/cat={bytes}");
        assert_eq!(ask(&replica, &put).await, ok("done"));
        let sum = ask(&replica, "/sum?img/a/cat").await;
        assert_eq!(sum, ok(&format!("{bytes} of {bytes}")));
    }
    assert_eq!(ask(&replica, "/get?img/a/cat").await.1.len(), 12_000_000);
    for (range, length) in [
        ("0-0", 1),
        ("11999999-99999999", 1),
        ("12000000-12000001", 0),
        ("5-3", 0),
        ("0-18446744073709551615", 12_000_000),
    ] {
        let range = ask(&replica, &format!("/range?img/a/cat={range}")).await;
        assert_eq!(range, ok(&length.to_string()));
    }
    assert_eq!(ask(&replica, "/drop?img/never=100000").await, ok("done"));
    assert_eq!(ask(&replica, "/has?img/never").await, ok("false"));
    // Names that a path would take elsewhere.
    for name in ["..%2F..%2Fetc", "%2Fetc", "a%2F%2Fb", "%D0%BA%0A", "%3D"] {
        let put = format!("/put?img/{name}=3");
        assert_eq!(ask(&replica, &put).await, ok("done"), "{name}");
        let sum = ask(&replica, &format!("/sum?img/{name}")).await;
        assert_eq!(sum, ok("3 of 3"), "{name}");
    }
    let listed = ask(&replica, "/list?img").await.1;
    assert_eq!(listed.lines().count(), 6, "{listed}");
    assert!(listed.lines().any(|name| name == "../../etc"), "{listed}");
    assert_eq!(ask(&replica, "/copy?img/a/cat=img/b").await, ok("done"));
    assert_eq!(ask(&replica, "/copy?img/b=img/b").await, ok("done"));
    assert_eq!(ask(&replica, "/move?img/b=img/c").await, ok("done"));
    assert_eq!(ask(&replica, "/has?img/b").await, ok("false"));
    let info = ask(&replica, "/info?img/c").await;
    assert_eq!(info, ok("img c 12000000 true"));
    assert_eq!(ask(&replica, "/delete?img/c").await, ok("done"));
    assert_eq!(ask(&replica, "/delete?img/c").await, ok("done"), "again");
    let (status, why) = ask(&replica, "/sum?img/c").await;
    assert_eq!((status, why.as_str()), (502, "there is no object `c`"));
    assert_eq!(ask(&replica, "/clear?img").await, ok("done"));
    assert_eq!(ask(&replica, "/list?img").await, ok(""));
}

#[tokio::test]
async fn memory_does_it_all() {
    exercise(MemoryContainer::default()).await;
}

#[tokio::test]
async fn a_disk_does_it_all_and_writes_nowhere_else() {
    let folder = tempfile::tempdir().unwrap();
    let inside = folder.path().join("objects");
    exercise(ObjectsContainer::on_disk(&inside, ByteSize::mib(100)).unwrap()).await;
    let beside = std::fs::read_dir(folder.path()).unwrap();
    assert_eq!(beside.count(), 1);
}

#[tokio::test]
async fn a_disk_is_full_at_its_size_and_has_room_again() {
    let folder = tempfile::tempdir().unwrap();
    let mut containers = BlobContainers::default();
    let container = ObjectsContainer::on_disk(folder.path(), ByteSize::mib(2)).unwrap();
    containers.grant("img", Arc::new(container));
    let replica = blobs(containers).await;
    assert_eq!(ask(&replica, "/put?img/a=1500000").await.0, 200);
    let (status, why) = ask(&replica, "/put?img/b=1500000").await;
    assert!(status == 502 && why.contains("full"), "{why}");
    assert_eq!(ask(&replica, "/list?img").await.1.trim(), "a");
    assert_eq!(ask(&replica, "/delete?img/a").await.0, 200);
    assert_eq!(ask(&replica, "/put?img/b=1500000").await.0, 200);
    assert_eq!(ask(&replica, "/list?img").await.1.trim(), "b");
}

#[tokio::test]
async fn without_a_grant_and_under_another_name_there_is_no_container() {
    let none = blobs(BlobContainers::default()).await;
    let mut one = BlobContainers::default();
    one.grant("img", Arc::new(MemoryContainer::default()));
    let one = blobs(one).await;
    for replica in [none, one] {
        for target in [
            "/put?other/x=1",
            "/list?other",
            "/copy?img/x=other/x",
            "/sum?other/x",
        ] {
            let (status, why) = ask(&replica, target).await;
            assert_eq!(status, 502, "{target}");
            assert!(why.starts_with("not granted"), "{target}: {why}");
        }
    }
    let any = blobs(BlobContainers::in_memory(&MemoryShare::default())).await;
    assert_eq!(ask(&any, "/put?whatever/x=1").await.0, 200);
}

/// A server that speaks S3's protocol: moto, from PyPI, ended when dropped.
struct Moto {
    child: Child,
    endpoint: String,
}

impl Moto {
    /// `None` where there is no `moto_server` on PATH.
    async fn start() -> Option<Self> {
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr();
        let port = free.unwrap().port();
        let child = Command::new("moto_server")
            .args(["-H", "127.0.0.1", "-p", &port.to_string()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        let moto = Self {
            child,
            endpoint: format!("http://127.0.0.1:{port}"),
        };
        let up = async {
            while tokio::net::TcpStream::connect(("127.0.0.1", port))
                .await
                .is_err()
            {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        // It is a Python program: its start takes a while.
        tokio::time::timeout(3 * PATIENCE, up).await.ok()?;
        Some(moto)
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn keys() -> Vec<(String, String)> {
    ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"]
        .map(|name| (name.to_owned(), "test".to_owned()))
        .to_vec()
}

#[expect(
    clippy::print_stderr,
    reason = "tells whoever reads the tests' output that there was nothing to test with"
)]
#[tokio::test]
async fn a_granted_container_in_s3_does_it_all() {
    let Some(moto) = Moto::start().await else {
        eprintln!("no moto_server on PATH (pip install 'moto[server]'): S3 is not tested here");
        return;
    };
    // moto takes any signature; making a bucket is not a container's business.
    let authority = moto.endpoint.trim_start_matches("http://");
    let mut stream = tokio::net::TcpStream::connect(authority).await.unwrap();
    let make = format!(
        "PUT /shop HTTP/1.1\r\nhost: {authority}\r\nconnection: close\r\ncontent-length: 0\r\n\
         authorization: AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request\r\n\r\n"
    );
    stream.write_all(make.as_bytes()).await.unwrap();
    let mut made = String::new();
    stream.read_to_string(&mut made).await.unwrap();
    assert!(made.starts_with("HTTP/1.1 200"), "{made}");

    for prefix in [None, Some("a/b".to_owned())] {
        let settings = S3Settings {
            bucket: "shop".into(),
            endpoint: Some(moto.endpoint.clone()),
            prefix,
            ..S3Settings::default()
        };
        exercise(ObjectsContainer::in_s3(&settings, keys()).unwrap()).await;
    }
}

#[test]
fn nobody_comes_to_s3_as_the_machine() {
    let settings = S3Settings {
        bucket: "shop".into(),
        ..S3Settings::default()
    };
    let given = |name: &str| {
        let given = [(name.to_owned(), "true".to_owned())];
        ObjectsContainer::in_s3(&settings, given).err()
    };
    // Half of what says who comes says nothing.
    for half in [
        "AWS_REGION",
        "AWS_ACCESS_KEY_ID",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    ] {
        let refused = given(half).map(|error| error.to_string());
        let said = refused.is_some_and(|why| why.contains("AWS_ACCESS_KEY_ID"));
        assert!(said, "{half}");
    }
    assert!(ObjectsContainer::in_s3(&settings, keys()).is_ok());
    assert!(given("AWS_SKIP_SIGNATURE").is_none(), "a public bucket");
}
