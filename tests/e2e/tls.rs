//! TLS on the public port, from the flags on: certificates that are taken, renewed and refused.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use wasmorch_tests::nats::Nats;
use wasmorch_tests::process::Process;
use wasmorch_tests::up::Home;
use wasmorch_tests::{guest, http, wait_for};

/// `up` with flags, until it is ready; where its gateway listens.
pub(super) fn up(home: &Home, flags: &[&str]) -> (Process, String) {
    let args = [&["up", "--http", "127.0.0.1:0", "--json"], flags].concat();
    let mut up = Process::start(home.command(&args), home.path(), "up");
    wait_for("`up` to be ready", || {
        assert!(up.ended().is_none(), "`up` ended:\n{}", up.stderr());
        up.stdout().contains('\n').then_some(())
    });
    let told: serde_json::Value = serde_json::from_str(up.stdout().trim()).expect("JSON");
    let gateway = told["hosts"][0]["http"].as_str().expect("text").to_owned();
    (up, gateway)
}

/// A GET by a client that trusts what is in this file and nothing else.
fn get(gateway: &str, name: &str, trusted: &Path) -> std::io::Result<String> {
    let pem = std::fs::read(trusted)?;
    let mut roots = RootCertStore::empty();
    let other = std::io::Error::other::<String>;
    let certificate = CertificateDer::from_pem_slice(&pem).map_err(|e| other(e.to_string()))?;
    roots.add(certificate).map_err(|e| other(e.to_string()))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring has what the default versions need")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let server = ServerName::try_from(name.to_owned()).expect("a DNS name");
    let client =
        ClientConnection::new(Arc::new(config), server).expect("the configuration is whole");
    let mut stream = StreamOwned::new(client, TcpStream::connect(gateway)?);
    write!(
        stream,
        "GET / HTTP/1.1\r\nhost: {name}\r\nconnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    match stream.read_to_string(&mut answer) {
        // Closed without a farewell, after all of it.
        Err(error) if answer.is_empty() => Err(error),
        _ => Ok(answer),
    }
}

/// A certificate and its key, for a name.
fn write(folder: &Path, file: &str, name: &str) {
    let made = rcgen::generate_simple_self_signed([name.to_owned()]).expect("a certificate");
    let path = folder.join(file);
    std::fs::write(path.with_extension("key"), made.signing_key.serialize_pem()).expect("written");
    std::fs::write(path.with_extension("crt"), made.cert.pem()).expect("written");
}

fn deploy(home: &Home) -> serde_json::Value {
    let hello = guest("hello-http");
    let hello = hello.to_str().expect("text");
    home.run(&["deploy", hello, "--name", "hello"]).ok();
    home.run(&["ps", "--json"]).ok().json()
}

#[test]
fn a_certificate_made_here_serves_and_http_is_told() {
    let home = Home::new();
    let (_up, gateway) = up(&home, &["--tls-self-signed"]);
    let port = gateway.rsplit(':').next().expect("a port");
    let urls = deploy(&home)[0]["urls"].clone();
    assert_eq!(urls[0], format!("https://hello.default.localhost:{port}/"));
    let certificate = home.path().join("data/wasmorch/up/h1/tls/self-signed.crt");
    let answer = wait_for("an answer", || {
        let answer = get(&gateway, "hello.default.localhost", &certificate);
        let answer = answer.expect("it is trusted");
        answer.starts_with("HTTP/1.1 200").then_some(answer)
    });
    assert!(answer.contains("Hello from wasmorch, v1\n"), "{answer}");
    let plain = http::get(&gateway, "hello.default.localhost", "/").expect("answers");
    assert_eq!(plain.status, 400, "{plain:?}");
    assert!(plain.body.contains("write https"), "{plain:?}");
}

#[test]
fn certificates_are_renewed_in_place_and_bad_ones_change_nothing() {
    let home = Home::new();
    let folder = home.path().join("certificates");
    std::fs::create_dir(&folder).expect("the test's own folder is writable");
    write(&folder, "web", "hello.default.localhost");
    let (up, gateway) = up(&home, &["--tls-cert", folder.to_str().expect("text")]);
    deploy(&home);
    let answers = |trusted: &Path| {
        get(&gateway, "hello.default.localhost", trusted)
            .is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
    };
    let old = home.path().join("old.crt");
    std::fs::copy(folder.join("web.crt"), &old).expect("copied");
    wait_for("an answer", || answers(&old).then_some(()));

    std::fs::write(folder.join("web.crt"), "no certificate").expect("written");
    wait_for("the bad one to be told", || {
        let told = up.stderr();
        (told.contains("stay as they were") && told.contains("there is no certificate in it"))
            .then_some(())
    });
    assert!(answers(&old), "the old one stays");
    write(&folder, "web", "hello.default.localhost");
    let new = folder.join("web.crt");
    wait_for("the new one to be shown", || answers(&new).then_some(()));
    assert!(!answers(&old), "the old one is gone");
}

#[test]
fn certificates_that_no_client_could_use_are_refused_at_the_start() {
    let home = Home::new();
    let nats = Nats::start(&home.path().join("nats"));
    let url = nats.url();
    write(home.path(), "a", "a.example");
    write(home.path(), "b", "b.example");
    let host = |flags: &[&str]| {
        let args = [&["--nats", &url, "host", "--http", "127.0.0.1:0"], flags].concat();
        home.run(&args)
    };
    host(&["--tls-cert", "a.crt"]).refused(64, &["no --tls-key for a.crt"]);
    host(&["--tls-key", "a.key"]).refused(64, &["--tls-cert"]);
    host(&[
        "--tls-cert",
        "a.crt",
        "--tls-key",
        "a.key",
        "--tls-key",
        "b.key",
    ])
    .refused(64, &["no --tls-cert for b.key"]);
    host(&["--tls-cert", "gone.crt", "--tls-key", "a.key"]).refused(66, &["gone.crt"]);
    // All that is wrong, at once.
    host(&[
        "--tls-cert",
        "a.crt",
        "--tls-key",
        "b.key",
        "--tls-cert",
        "b.crt",
        "--tls-key",
        "a.key",
    ])
    .refused(
        64,
        &[
            "a.crt: the key belongs",
            "b.crt: the key belongs",
            "give the key",
        ],
    );
    host(&[
        "--tls-cert",
        "a.crt",
        "--tls-key",
        "a.key",
        "--tls-self-signed",
    ])
    .refused(64, &["--tls-self-signed"]);
}
