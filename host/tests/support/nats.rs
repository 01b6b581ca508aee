//! A nats-server of a test's own, ended when dropped.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;
use tokio::time::{Instant, sleep};
use wasmorch_api::NatsOptions;

use super::DEADLINE;

/// A server on a port of loopback.
pub(crate) struct NatsServer {
    program: PathBuf,
    port: u16,
    child: Child,
    /// Where JetStream keeps its streams.
    store: Option<TempDir>,
}

fn program() -> PathBuf {
    if let Some(named) = std::env::var_os("WASMORCH_NATS_SERVER") {
        return named.into();
    }
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))
        .map(|cache| cache.join("wasmorch/nats-server"));
    let cached = cache.and_then(|cache| std::fs::read_dir(cache).ok());
    let mut cached = cached
        .into_iter()
        .flatten()
        .flatten()
        .map(|e| e.path().join("nats-server"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut on_path = std::env::split_paths(&path).map(|folder| folder.join("nats-server"));
    let found = cached
        .find(|path| path.is_file())
        .or_else(|| on_path.find(|path| path.is_file()));
    found.expect("a nats-server: run `cargo xtask setup` or set WASMORCH_NATS_SERVER")
}

fn run(program: &PathBuf, port: u16, store: Option<&TempDir>) -> Child {
    let mut command = Command::new(program);
    command.args(["-a", "127.0.0.1", "-p", &port.to_string()]);
    if let Some(store) = store {
        command.arg("-js").arg("-sd").arg(store.path());
    }
    command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("nats-server starts")
}

impl NatsServer {
    pub(crate) async fn start() -> Self {
        Self::begin(None).await
    }

    /// One with JetStream, whose streams outlive a restart.
    pub(crate) async fn start_jetstream() -> Self {
        Self::begin(Some(tempfile::tempdir().unwrap())).await
    }

    async fn begin(store: Option<TempDir>) -> Self {
        let free = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let program = program();
        let child = run(&program, free, store.as_ref());
        let server = Self {
            program,
            port: free,
            child,
            store,
        };
        server.up().await;
        server
    }

    /// Kills it and starts another on the same port.
    pub(crate) async fn restart(&mut self) {
        self.stop();
        self.child = run(&self.program, self.port, self.store.as_ref());
        self.up().await;
    }

    /// Kills it.
    pub(crate) fn stop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    async fn up(&self) {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.port));
        let until = Instant::now() + DEADLINE;
        while tokio::net::TcpStream::connect(address).await.is_err() {
            assert!(Instant::now() < until, "nats-server does not listen");
            sleep(std::time::Duration::from_millis(10)).await;
        }
    }

    pub(crate) fn options(&self) -> NatsOptions {
        NatsOptions {
            url: format!("nats://127.0.0.1:{}", self.port),
            ..NatsOptions::default()
        }
    }

    pub(crate) async fn client(&self) -> async_nats::Client {
        async_nats::connect(self.options().url).await.unwrap()
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
