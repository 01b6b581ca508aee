//! A nats-server of the test's own, or three of them as one cluster.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::process::Process;
use crate::{http, ports, wait_for};

/// The server's binary: from `cargo xtask test`, or where `cargo xtask setup` put it.
pub fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("WASMORCH_NATS_SERVER") {
        return path.into();
    }
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .unwrap_or_else(|| {
            PathBuf::from(std::env::var_os("HOME").expect("HOME is set")).join(".cache")
        });
    let versions = std::fs::read_dir(cache.join("wasmorch/nats-server"));
    versions
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path().join("nats-server")))
        .find(|path| path.exists())
        .expect("no nats-server: run `cargo xtask setup`")
}

/// A running server.
pub struct Nats {
    process: Option<Process>,
    folder: PathBuf,
    port: u16,
    /// Settings of JetStream besides; `None`: without it.
    jetstream: Option<String>,
    /// Lines of the configuration besides.
    more: String,
    /// Where it listens.
    address: &'static str,
    /// Where it tells of itself over HTTP, while it runs.
    monitoring: String,
}

impl Nats {
    /// A server with JetStream in `folder`.
    pub fn start(folder: &Path) -> Self {
        Self::begin(folder, Some(""), "")
    }

    /// `count` servers with JetStream that form one cluster.
    pub fn cluster(folder: &Path, count: usize) -> Vec<Self> {
        // Routes must be known beforehand.
        let ports: Vec<u16> = (0..count).map(|_| ports::free()).collect();
        let routes: Vec<String> = ports
            .iter()
            .map(|port| format!("\"nats://127.0.0.1:{port}\""))
            .collect();
        let routes = routes.join(", ");
        let server = |(n, port): (usize, &u16)| {
            let more = format!(
                "server_name: n{n}\ncluster {{ name: test, listen: \"127.0.0.1:{port}\", routes: [{routes}] }}\n"
            );
            Self::begin(&folder.join(format!("n{n}")), Some(""), &more)
        };
        ports.iter().enumerate().map(server).collect()
    }

    /// A server without JetStream.
    pub fn without_jetstream(folder: &Path) -> Self {
        Self::begin(folder, None, "")
    }

    /// A server whose JetStream is in a domain.
    pub fn in_domain(folder: &Path, domain: &str) -> Self {
        Self::begin(folder, Some(&format!(", domain: {domain}")), "")
    }

    /// A server with JetStream and more lines in its configuration.
    pub fn configured(folder: &Path, more: &str) -> Self {
        Self::begin(folder, Some(""), more)
    }

    /// A server with JetStream that other networks reach too.
    pub fn on_every_address(folder: &Path) -> Self {
        Self::begin_at("0.0.0.0", folder, Some(""), "")
    }

    fn begin(folder: &Path, jetstream: Option<&str>, more: &str) -> Self {
        Self::begin_at("127.0.0.1", folder, jetstream, more)
    }

    fn begin_at(address: &'static str, folder: &Path, jetstream: Option<&str>, more: &str) -> Self {
        std::fs::create_dir_all(folder).expect("the test's own folder is writable");
        let mut nats = Self {
            process: None,
            folder: folder.to_path_buf(),
            port: ports::free(),
            jetstream: jetstream.map(str::to_owned),
            more: more.to_owned(),
            address,
            monitoring: String::new(),
        };
        nats.start_again();
        nats
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        if let Some(process) = self.process.take() {
            process.kill();
        }
    }

    /// Its process, for signals.
    pub fn process(&self) -> &Process {
        self.process.as_ref().expect("the server runs")
    }

    /// Whether it runs.
    pub fn runs(&self) -> bool {
        self.process.is_some()
    }

    /// How many of its connections, as it sees them, have `part` in their names.
    pub fn connections(&self, part: &str) -> usize {
        let told = http::get(&self.monitoring, "localhost", "/connz").expect("it tells");
        let told: Value = serde_json::from_str(&told.body).expect("JSON");
        let open = told["connections"].as_array().expect("a list").iter();
        let names = open.filter_map(|one| one["name"].as_str());
        names.filter(|name| name.contains(part)).count()
    }

    /// Where JetStream keeps everything.
    pub fn store(&self) -> PathBuf {
        self.folder.join("store")
    }

    /// Starts it on the same port from the same data.
    pub fn start_again(&mut self) {
        let ports = self.folder.join("ports");
        let _ = std::fs::remove_dir_all(&ports);
        std::fs::create_dir_all(&ports).expect("the test's own folder is writable");
        let config = self.folder.join("nats.conf");
        let jetstream = if let Some(more) = &self.jetstream {
            format!(
                "jetstream {{ store_dir: \"{}\", sync_interval: always{more} }}\n",
                self.store().display()
            )
        } else {
            String::new()
        };
        let text = format!(
            "listen: \"{}:{}\"\nhttp: \"127.0.0.1:-1\"\nports_file_dir: \"{}\"\n{jetstream}{}\n",
            self.address,
            self.port,
            ports.display(),
            self.more
        );
        std::fs::write(&config, text).expect("the test's own folder is writable");
        let mut command = Command::new(binary());
        command.arg("-c").arg(&config);
        let process = self
            .process
            .insert(Process::start(command, &self.folder, "nats-server"));
        let told = wait_for("nats-server to listen", || {
            if let Some(status) = process.ended() {
                panic!("nats-server ended with {status}:\n{}", process.stderr());
            }
            let file = std::fs::read_dir(&ports).ok()?.next()?.ok()?.path();
            let told = std::fs::read_to_string(file).ok()?;
            serde_json::from_str::<Value>(&told).ok()
        });
        let address = told["monitoring"][0].as_str().expect("an address");
        self.monitoring = address.trim_start_matches("http://").to_owned();
    }
}
