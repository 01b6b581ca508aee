//! Outbound HTTP over TLS, with the roots of the system: `SSL_CERT_FILE` is where the system says that they
//! are. They are read once in a process, so the test runs itself again in one that was told of them.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use wasmorch_runtime::{HttpReplica, OutboundHttp, ReplicaConfig};

use crate::support::{fetch, http};

/// Where the second process finds certificates and keys.
const FOLDER: &str = "WASMORCH_TEST_CERTIFICATES";
const NAME: &str = "tls::https_is_spoken_with_whom_the_system_trusts_and_with_nobody_else";

fn write_certificate(folder: &Path, file: &str, name: &str) {
    let made = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
    let path = folder.join(file);
    std::fs::write(path.with_extension("crt"), made.cert.pem()).unwrap();
    std::fs::write(path.with_extension("key"), made.signing_key.serialize_pem()).unwrap();
}

/// A server that answers `sealed` over TLS, with that certificate; counts connections.
async fn serve(folder: &Path, file: &str) -> (u16, Arc<AtomicUsize>) {
    let path = folder.join(file);
    let chain = CertificateDer::from_pem_file(path.with_extension("crt")).unwrap();
    let key = PrivateKeyDer::from_pem_file(path.with_extension("key")).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![chain], key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = connections.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, counted) = (acceptor.clone(), counted.clone());
            tokio::spawn(async move {
                // A client that trusts it not ends here.
                let Ok(mut stream) = acceptor.accept(stream).await else {
                    return;
                };
                counted.fetch_add(1, Ordering::SeqCst);
                let mut buffer = [0; 4096];
                while stream.read(&mut buffer).await.is_ok_and(|n| n > 0) {
                    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nsealed";
                    let _ = stream.write_all(answer).await;
                    let _ = stream.flush().await;
                }
            });
        }
    });
    (port, connections)
}

async fn fetcher(port: u16) -> HttpReplica {
    let hosts = [format!("localhost:{port}"), format!("127.0.0.1:{port}")];
    let config = ReplicaConfig {
        outbound: OutboundHttp::allow(hosts.map(|host| host.parse().unwrap())),
        ..ReplicaConfig::new("test")
    };
    http("fetcher-http", config).await
}

#[test]
fn https_is_spoken_with_whom_the_system_trusts_and_with_nobody_else() {
    if let Some(folder) = std::env::var_os(FOLDER) {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        return runtime.block_on(in_a_system_that_trusts(folder.as_ref()));
    }
    let folder = tempfile::tempdir().unwrap();
    write_certificate(folder.path(), "trusted", "localhost");
    write_certificate(folder.path(), "stranger", "localhost");
    let again = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", NAME, "--nocapture"])
        .env(FOLDER, folder.path())
        .env("SSL_CERT_FILE", folder.path().join("trusted.crt"))
        .env_remove("SSL_CERT_DIR")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&again.stdout);
    let failed = String::from_utf8_lossy(&again.stderr);
    assert!(again.status.success(), "{said}\n{failed}");
    assert!(said.contains("1 passed"), "it ran: {said}");
}

async fn in_a_system_that_trusts(folder: &Path) {
    let (port, connections) = serve(folder, "trusted").await;
    let replica = fetcher(port).await;
    let url = format!("/fetch?https://localhost:{port}/");
    for _ in 0..3 {
        let answer = fetch(&replica, &url).await.unwrap();
        assert_eq!(answer, (200, "sealed".into()));
    }
    assert_eq!(connections.load(Ordering::SeqCst), 1, "it is kept");
    let denied = (502, "ErrorCode::TlsCertificateError\n".to_owned());
    // The same server by a name that its certificate does not have.
    let url = format!("/fetch?https://127.0.0.1:{port}/");
    assert_eq!(fetch(&replica, &url).await.unwrap(), denied);
    // One of the right name, whom nobody vouches for.
    let (port, strangers) = serve(folder, "stranger").await;
    let url = format!("/fetch?https://localhost:{port}/");
    assert_eq!(fetch(&fetcher(port).await, &url).await.unwrap(), denied);
    assert_eq!(strangers.load(Ordering::SeqCst), 0);
    assert_eq!(connections.load(Ordering::SeqCst), 1);
    // And one that does not speak it.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        }
    });
    let url = format!("/fetch?https://localhost:{port}/");
    let answer = fetch(&fetcher(port).await, &url).await.unwrap();
    assert_eq!(answer, (502, "ErrorCode::TlsProtocolError\n".to_owned()));
}
