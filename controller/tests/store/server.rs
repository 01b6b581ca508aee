//! A nats-server of one test: a free port, a folder of its own, killed when dropped.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// Longer than any wait of a test that passes.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// A running server.
pub(crate) struct Server {
    child: Child,
    dir: TempDir,
    url: String,
}

impl Server {
    /// One with JetStream.
    pub(crate) fn start() -> Self {
        Self::with(TempDir::new().unwrap(), 0, true)
    }

    /// One that keeps nothing.
    pub(crate) fn without_jetstream() -> Self {
        Self::with(TempDir::new().unwrap(), 0, false)
    }

    fn with(dir: TempDir, port: u16, jetstream: bool) -> Self {
        let port = if port == 0 {
            "-1".to_owned()
        } else {
            port.to_string()
        };
        let mut command = Command::new(binary());
        command.args(["-a", "127.0.0.1", "-p", &port, "-D"]);
        if jetstream {
            command.arg("-js").arg("-sd").arg(dir.path());
        }
        let mut child = command
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("nats-server starts");
        let log = child.stderr.take().unwrap();
        let (sender, receiver) = std::sync::mpsc::channel();
        // Reads to the end, so that a full pipe never stops the server.
        std::thread::spawn(move || {
            for line in BufReader::new(log).lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        let mut url = None;
        let began = Instant::now();
        while let Ok(line) = receiver.recv_timeout(DEADLINE.saturating_sub(began.elapsed())) {
            if let Some((_, addr)) = line.split_once("Listening for client connections on ") {
                url = Some(format!("nats://{}", addr.trim()));
            }
            if line.ends_with("Server is ready") {
                break;
            }
        }
        let url = url.expect("nats-server tells where it listens");
        Self { child, dir, url }
    }

    /// Where it listens.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// How to reach it.
    pub(crate) fn options(&self) -> wasmorch_api::NatsOptions {
        wasmorch_api::NatsOptions {
            url: self.url.clone(),
            ..Default::default()
        }
    }

    /// Kills it and starts it again at the same port: with the same folder, or with an empty one.
    pub(crate) fn restart(&mut self, wiped: bool) {
        self.kill();
        let port = self.url.rsplit_once(':').unwrap().1.parse().unwrap();
        let dir = std::mem::replace(&mut self.dir, TempDir::new().unwrap());
        let dir = if wiped { TempDir::new().unwrap() } else { dir };
        *self = Self::with(dir, port, true);
    }

    fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("WASMORCH_NATS_SERVER") {
        return path.into();
    }
    let cache = std::env::var_os("XDG_CACHE_HOME").map_or_else(
        || Path::new(&std::env::var_os("HOME").unwrap_or_default()).join(".cache"),
        PathBuf::from,
    );
    let versions = std::fs::read_dir(cache.join("wasmorch/nats-server"));
    versions
        .into_iter()
        .flatten()
        .flatten()
        .map(|version| version.path().join("nats-server"))
        .find(|path| path.is_file())
        .expect("no nats-server here: run cargo xtask setup")
}

/// Waits until `condition` gives a value.
pub(crate) async fn eventually<T, F>(what: &str, mut condition: impl FnMut() -> F) -> T
where
    F: Future<Output = Option<T>>,
{
    let began = Instant::now();
    loop {
        if let Some(value) = condition().await {
            return value;
        }
        assert!(began.elapsed() < DEADLINE, "never came: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
