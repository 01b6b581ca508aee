//! A runner under test, and the daemon's side of its channel.

pub(crate) mod nats;

use std::collections::VecDeque;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::TokioIo;
use tokio::time::{Instant, timeout, timeout_at};
use wasmorch_api::messages::LogLine;
use wasmorch_api::spec::Subscription;
use wasmorch_api::{
    ClusterId, Digest, EndpointTable, HostEndpoint, HostId, Kind, NatsOptions, PlacementNumber,
    ReplicaId, Revision, RevisionNumber, RouteTable, Slot, Term, Timestamp, WorkloadKey,
    WorkloadSpec,
};
use wasmorch_host::runner::protocol::{
    FromRunner, Launch, Outcome, ReplicaKey, ReplicaUsage, ToRunner,
};
use wasmorch_host::runner::{RunnerConfig, RunnerHandle, Settings, spawn};

/// No condition is waited for longer.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// A spec that asks for nothing.
pub(crate) fn spec() -> WorkloadSpec {
    WorkloadSpec::default()
}

/// A spec that handles a subject.
pub(crate) fn subscribing(subject: &str) -> WorkloadSpec {
    let mut spec = spec();
    spec.bindings.subscribe = vec![Subscription {
        subject: subject.into(),
        ..Subscription::default()
    }];
    spec
}

/// A sample guest.
fn guest(name: &str) -> PathBuf {
    let folder = std::env::var_os("WASMORCH_GUESTS").map_or_else(
        // Cargo runs tests in their package's folder.
        || PathBuf::from("../target/guests"),
        PathBuf::from,
    );
    let path = folder.join(name).with_extension("wasm");
    assert!(
        path.is_file(),
        "{} is missing: run `cargo xtask setup`",
        path.display()
    );
    path
}

/// An answer of the gateway.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: String,
}

/// `GET` through the gateway, over a connection of its own.
pub(crate) async fn get(gateway: SocketAddr, workload: &str, path: &str) -> Answer {
    let ask = async {
        let stream = tokio::net::TcpStream::connect(gateway).await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .unwrap();
        let connection = tokio::spawn(connection);
        let request = hyper::Request::get(path)
            .header("host", format!("{workload}.default.localhost"))
            .body(Empty::<Bytes>::new())
            .unwrap();
        let response = sender.send_request(request).await.unwrap();
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        drop(sender);
        let _ = connection.await;
        Answer {
            status,
            body: String::from_utf8_lossy(&body).into_owned(),
        }
    };
    timeout(DEADLINE, ask)
        .await
        .expect("the gateway answers in time")
}

/// A runner, and what it has said.
pub(crate) struct Bench {
    runner: RunnerHandle,
    pub(crate) http: SocketAddr,
    host: HostId,
    placements: u64,
    sequence: u64,
    /// Said and not yet waited for, lines apart.
    said: VecDeque<FromRunner>,
    lines: Vec<(ReplicaKey, LogLine)>,
    files: tempfile::TempDir,
}

impl Bench {
    pub(crate) fn start(nats: Option<NatsOptions>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let http = listener.local_addr().unwrap();
        let host: HostId = "h1".parse().unwrap();
        let files = tempfile::tempdir().unwrap();
        let settings = Settings {
            host: host.clone(),
            zone: None,
            tls: false,
            proxy_protocol: false,
            domain: "localhost".into(),
            development: false,
            nats,
            // Shared by all tests, so that each guest is compiled once.
            compiled: Some(Path::new(env!("CARGO_TARGET_TMPDIR")).join("compiled")),
            compiled_elsewhere: false,
            given: None,
            volumes: Some(files.path().join("volumes")),
            paths: Default::default(),
            loaded_max: 256 << 20,
            column: None,
        };
        let runner = spawn(RunnerConfig {
            settings,
            http: listener,
            peer: None,
            ledger: None,
        })
        .unwrap();
        runner
            .to
            .try_send(ToRunner::Open)
            .expect("the runner listens");
        Self {
            runner,
            http,
            host,
            placements: 0,
            sequence: 0,
            said: VecDeque::new(),
            lines: Vec::new(),
            files,
        }
    }

    pub(crate) async fn send(&self, message: ToRunner) {
        self.runner
            .to
            .send(message)
            .await
            .expect("the runner listens");
    }

    /// With more time than a test waits.
    pub(crate) async fn drain(&self, replica: &ReplicaKey) {
        let replica = replica.clone();
        let deadline_ms = 20_000;
        self.send(ToRunner::Drain {
            replica,
            deadline_ms,
        })
        .await;
    }

    async fn hear(&mut self, what: &str, until: Instant) {
        let message = timeout_at(until, self.runner.from.recv()).await;
        let message = message.unwrap_or_else(|_| panic!("no {what}; said: {:?}", self.said));
        match message.unwrap_or_else(|| panic!("the runner ended before {what}")) {
            FromRunner::Logs(lines) => self.lines.extend(lines),
            other => self.said.push_back(other),
        }
    }

    /// Takes the first message that fits, said already or still to come.
    pub(crate) async fn wait<R>(
        &mut self,
        what: &str,
        fits: impl Fn(&FromRunner) -> Option<R>,
    ) -> R {
        let until = Instant::now() + DEADLINE;
        loop {
            let found = self
                .said
                .iter()
                .enumerate()
                .find_map(|(at, said)| Some((at, fits(said)?)));
            if let Some((at, found)) = found {
                self.said.remove(at);
                return found;
            }
            self.hear(what, until).await;
        }
    }

    /// Whether it has said such a thing, among what was not waited for.
    pub(crate) fn has_said(&self, fits: impl Fn(&FromRunner) -> bool) -> bool {
        self.said.iter().any(fits)
    }

    /// Where its volumes are.
    pub(crate) fn volumes(&self) -> PathBuf {
        self.files.path().join("volumes")
    }

    /// Waits for a line of a replica.
    pub(crate) async fn line(
        &mut self,
        replica: &ReplicaKey,
        fits: impl Fn(&LogLine) -> bool,
    ) -> LogLine {
        let until = Instant::now() + DEADLINE;
        loop {
            let mut lines = self.lines.iter();
            if let Some((_, line)) = lines.find(|(of, line)| of == replica && fits(line)) {
                return line.clone();
            }
            self.hear("such line", until).await;
        }
    }

    /// The lines of a replica so far.
    pub(crate) fn lines(&self, replica: &ReplicaKey) -> Vec<String> {
        let lines = self.lines.iter().filter(|(of, _)| of == replica);
        lines.map(|(_, line)| line.text.clone()).collect()
    }

    fn key(&mut self, workload: &str) -> ReplicaKey {
        self.placements += 1;
        let id = ReplicaId {
            slot: Slot(self.placements),
            placement: PlacementNumber(self.placements),
            start: 1,
        };
        ReplicaKey::new(workload_key(workload), id)
    }

    /// Prepares a sample guest; the error is why it was rejected.
    pub(crate) async fn prepare(
        &mut self,
        workload: &str,
        kind: Kind,
        sample: &str,
        spec: WorkloadSpec,
    ) -> Result<ReplicaKey, String> {
        let path = guest(sample);
        let digest = Digest::of(&std::fs::read(&path).unwrap());
        self.prepare_file(workload, kind, path, digest, spec).await
    }

    /// Prepares any bytes.
    pub(crate) async fn prepare_bytes(
        &mut self,
        workload: &str,
        kind: Kind,
        bytes: &[u8],
        spec: WorkloadSpec,
    ) -> Result<ReplicaKey, String> {
        let digest = Digest::of(bytes);
        let path = self.files.path().join(digest.hex());
        std::fs::write(&path, bytes).unwrap();
        self.prepare_file(workload, kind, path, digest, spec).await
    }

    async fn prepare_file(
        &mut self,
        workload: &str,
        kind: Kind,
        artifact_path: PathBuf,
        artifact: Digest,
        spec: WorkloadSpec,
    ) -> Result<ReplicaKey, String> {
        let replica = self.key(workload);
        let revision = Revision {
            namespace: replica.workload.namespace.clone(),
            name: replica.workload.name.clone(),
            number: RevisionNumber(1),
            kind,
            artifact,
            features: Vec::new(),
            spec,
            at: Timestamp(0),
            by: String::new(),
            changes: Vec::new(),
        };
        let launch = Launch {
            revision: Arc::new(revision),
            artifact_path,
            args: None,
            row: None,
        };
        self.send(ToRunner::Prepare {
            replica: replica.clone(),
            launch: Box::new(launch),
        })
        .await;
        let prepared = self
            .wait("end of preparing", |message| match message {
                FromRunner::Prepared { replica: of, .. } if *of == replica => Some(Ok(())),
                FromRunner::Rejected {
                    replica: of,
                    reason,
                } if *of == replica => Some(Err(reason.clone())),
                _ => None,
            })
            .await;
        prepared.map(|()| replica)
    }

    /// Starts a prepared replica.
    pub(crate) async fn begin(&mut self, replica: &ReplicaKey) {
        self.send(ToRunner::Start {
            replica: replica.clone(),
        })
        .await;
        self.wait("start", |message| match message {
            FromRunner::Started { replica: of } if of == replica => Some(()),
            _ => None,
        })
        .await;
    }

    /// Prepares, routes, starts, and waits until it is ready.
    pub(crate) async fn serve(
        &mut self,
        workload: &str,
        kind: Kind,
        sample: &str,
        spec: WorkloadSpec,
    ) -> ReplicaKey {
        let replica = self
            .prepare(workload, kind, sample, spec)
            .await
            .expect("prepared");
        self.route(workload).await;
        self.begin(&replica).await;
        assert_eq!(self.health(&replica).await, (true, None));
        replica
    }

    /// The next word about a replica's readiness.
    pub(crate) async fn health(&mut self, replica: &ReplicaKey) -> (bool, Option<String>) {
        self.wait("readiness", |message| match message {
            FromRunner::Health {
                replica: of,
                ready,
                reason,
            } if of == replica => Some((*ready, reason.clone())),
            _ => None,
        })
        .await
    }

    pub(crate) async fn stopped(&mut self, replica: &ReplicaKey) {
        self.wait("stop", |message| match message {
            FromRunner::Stopped { replica: of } if of == replica => Some(()),
            _ => None,
        })
        .await;
    }

    pub(crate) async fn ended(&mut self, replica: &ReplicaKey) -> Outcome {
        self.wait("end", |message| match message {
            FromRunner::Ended {
                replica: of,
                outcome,
            } if of == replica => Some(outcome.clone()),
            _ => None,
        })
        .await
    }

    /// Asks for usage until that of a replica fits.
    pub(crate) async fn usage_until(
        &mut self,
        replica: &ReplicaKey,
        fits: impl Fn(&ReplicaUsage) -> bool,
    ) -> ReplicaUsage {
        let until = Instant::now() + DEADLINE;
        loop {
            assert!(Instant::now() < until, "no such usage");
            self.send(ToRunner::Usage).await;
            let usage = self
                .wait("usage", |message| match message {
                    FromRunner::Usage(usage) => Some(usage.clone()),
                    _ => None,
                })
                .await;
            if let Some(of) = usage
                .replicas
                .into_iter()
                .find(|of| of.replica == *replica && fits(of))
            {
                return of;
            }
        }
    }

    /// Tells the gateway that this host serves a workload.
    pub(crate) async fn route(&mut self, workload: &str) {
        let cluster: ClusterId = "test".parse().unwrap();
        let key = workload_key(workload);
        self.sequence += 1;
        let routes = RouteTable {
            cluster: cluster.clone(),
            term: Term(1),
            namespace: key.namespace.clone(),
            workload: key.name.clone(),
            kind: Kind::Http,
            routes: Vec::new(),
            timeout: None,
        };
        let endpoints = EndpointTable {
            cluster,
            term: Term(1),
            namespace: key.namespace,
            workload: key.name,
            hosts: vec![HostEndpoint {
                host: self.host.clone(),
                peer: None,
                ready: 1,
                standby: None,
                weight: 1,
                canary: 0,
                zone: None,
            }],
            canary: None,
        };
        let routes = ToRunner::Routes {
            changed: vec![(routes, self.sequence)],
            removed: Vec::new(),
        };
        let endpoints = ToRunner::Endpoints {
            changed: vec![(endpoints, self.sequence)],
            removed: Vec::new(),
        };
        self.send(routes).await;
        self.send(endpoints).await;
        // Messages are taken in order: once this is answered the tables are in.
        self.send(ToRunner::Ping(self.sequence)).await;
        let number = self.sequence;
        self.wait("pong", |message| {
            matches!(message, FromRunner::Pong(n) if *n == number).then_some(())
        })
        .await;
    }

    /// Ends the runner: its threads must end too, whatever still runs.
    pub(crate) async fn end(self) {
        self.runner
            .shutdown(DEADLINE)
            .await
            .expect("the runner ends");
    }
}

fn workload_key(workload: &str) -> WorkloadKey {
    WorkloadKey::new("default".parse().unwrap(), workload.parse().unwrap())
}
