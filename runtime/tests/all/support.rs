//! What the tests share: guests, one runtime for all of them, requests, and a log that can be read.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use wasmorch_api::Digest;
use wasmorch_runtime::{
    Artifact, Body, Ended, HttpReplica, LogLine, LogSink, ReplicaConfig, Runtime, RuntimeConfig,
};

/// How long a test waits for what must come.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    Runtime::new(RuntimeConfig {
        instances_max: 200,
        ..RuntimeConfig::default()
    })
    .unwrap()
});

pub(crate) fn runtime() -> Runtime {
    RUNTIME.clone()
}

/// The bytes of a sample guest.
pub(crate) fn guest(name: &str) -> Bytes {
    let dir = std::env::var_os("WASMORCH_GUESTS").map_or_else(
        // Cargo runs tests in their package's folder.
        || PathBuf::from("../target/guests"),
        PathBuf::from,
    );
    let path = dir.join(format!("{name}.wasm"));
    std::fs::read(&path)
        .unwrap_or_else(|error| panic!("{}: {error}; run `cargo xtask setup`", path.display()))
        .into()
}

/// A sample guest, compiled once for all tests.
pub(crate) async fn artifact(name: &str) -> Arc<Artifact> {
    static KEPT: LazyLock<Mutex<HashMap<String, Arc<Artifact>>>> = LazyLock::new(Mutex::default);
    if let Some(artifact) = KEPT.lock().unwrap().get(name) {
        return artifact.clone();
    }
    let bytes = guest(name);
    let artifact = runtime().load(&Digest::of(&bytes), bytes).await.unwrap();
    KEPT.lock()
        .unwrap()
        .insert(name.to_owned(), artifact.clone());
    artifact
}

pub(crate) async fn http(name: &str, config: ReplicaConfig) -> HttpReplica {
    HttpReplica::prepare(&runtime(), &artifact(name).await, config).unwrap()
}

pub(crate) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into())
        .map_err(|never| match never {})
        .boxed_unsync()
}

pub(crate) fn get(path: &str) -> http::Request<Body> {
    http::Request::get(path)
        .header("host", "test")
        .body(full(""))
        .unwrap()
}

/// Status and whole body, or why there is none.
pub(crate) async fn fetch(replica: &HttpReplica, path: &str) -> Result<(u16, String), Ended> {
    answer(replica, get(path)).await
}

/// The same of any request.
pub(crate) async fn answer(
    replica: &HttpReplica,
    request: http::Request<Body>,
) -> Result<(u16, String), Ended> {
    let response = replica.handle(request).await?;
    let status = response.status().as_u16();
    match response.into_body().collect().await {
        Ok(body) => Ok((
            status,
            String::from_utf8_lossy(&body.to_bytes()).into_owned(),
        )),
        Err(error) => Err(error.downcast_ref::<Ended>().unwrap().clone()),
    }
}

/// Keeps every line.
#[derive(Default)]
pub(crate) struct Lines(Mutex<Vec<LogLine>>);

impl Lines {
    pub(crate) fn all(&self) -> Vec<LogLine> {
        self.0.lock().unwrap().clone()
    }

    pub(crate) fn texts(&self) -> Vec<String> {
        self.all().into_iter().map(|line| line.text).collect()
    }
}

impl LogSink for Lines {
    fn line(&self, line: LogLine) {
        self.0.lock().unwrap().push(line);
    }
}

/// Waits until a condition holds, and fails when it does not in time.
pub(crate) async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < PATIENCE, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
