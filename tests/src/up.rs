//! A whole cluster of the test's own: `wasmorch up`, or its parts as daemons.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

use crate::http::{self, Answer};
use crate::process::{Done, Process};
use crate::{wait_for, wasmorch};

/// A folder that stands for a user's home: nothing outside it is read or written.
pub struct Home {
    folder: TempDir,
}

impl Default for Home {
    fn default() -> Self {
        Self::new()
    }
}

impl Home {
    /// An empty one.
    pub fn new() -> Self {
        let folder = TempDir::with_prefix("wasmorch-test-").expect("the temp folder is writable");
        Self { folder }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// A file in it.
    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path().join(name);
        std::fs::write(&path, bytes).expect("the test's own folder is writable");
        path
    }

    /// `wasmorch ARGS` as this user.
    pub fn command<S: AsRef<OsStr>>(&self, args: &[S]) -> Command {
        self.command_of(&wasmorch(), args)
    }

    /// The same with another `wasmorch`.
    pub fn command_of<S: AsRef<OsStr>>(&self, wasmorch: &Path, args: &[S]) -> Command {
        let mut command = Command::new(wasmorch);
        command
            .args(args)
            .current_dir(self.path())
            .env("XDG_STATE_HOME", self.path().join("state"))
            .env("XDG_DATA_HOME", self.path().join("data"))
            .env("XDG_CACHE_HOME", self.path().join("cache"))
            .env("WASMORCH_NATS_SERVER", crate::nats::binary())
            .env_remove("WASMORCH_NATS")
            .env_remove("WASMORCH_LOG");
        command
    }

    /// Runs `wasmorch ARGS` to its end.
    pub fn run<S: AsRef<OsStr>>(&self, args: &[S]) -> Done {
        Done::run(self.command(args))
    }
}

/// A running `wasmorch up`.
pub struct Up {
    /// Its user.
    pub home: Home,
    /// The process; `None` while it is down.
    pub process: Option<Process>,
    hosts: usize,
}

impl Up {
    /// Starts one with so many hosts, and waits until it is ready.
    pub fn start(hosts: usize) -> Self {
        let mut up = Self {
            home: Home::new(),
            process: None,
            hosts,
        };
        up.start_again();
        up
    }

    /// Starts it again from its data.
    pub fn start_again(&mut self) {
        let hosts = self.hosts.to_string();
        let command =
            self.home
                .command(&["up", "--hosts", &hosts, "--http", "127.0.0.1:0", "--json"]);
        let mut process = Process::start(command, self.home.path(), "up");
        wait_for("`wasmorch up` to be ready", || {
            if let Some(status) = process.ended() {
                panic!("`up` ended with {status}:\n{}", process.stderr());
            }
            process.stdout().contains('\n').then_some(())
        });
        self.process = Some(process);
    }

    /// Runs `wasmorch ARGS` against it.
    pub fn run<S: AsRef<OsStr>>(&self, args: &[S]) -> Done {
        self.home.run(args)
    }

    /// `kill -9` of the whole thing's root.
    pub fn kill(&mut self) {
        if let Some(process) = self.process.take() {
            process.kill();
        }
    }

    /// The gateways' addresses, by host name.
    pub fn gateways(&self) -> Vec<String> {
        let hosts = self.run(&["hosts", "--json"]).ok().json();
        let list = hosts.as_array().expect("a list is an array");
        list.iter()
            .map(|host| host["http"].as_str().expect("http is text").to_owned())
            .collect()
    }

    /// GET through the first gateway, by the workload's automatic name.
    #[track_caller]
    pub fn get(&self, workload: &str, path: &str) -> Answer {
        let gateway = self.gateways().remove(0);
        http::get(&gateway, &format!("{workload}.default.localhost"), path)
            .unwrap_or_else(|error| panic!("GET {path} of {workload}: {error}"))
    }

    /// Deploys a sample under a name and waits until it is ready.
    #[track_caller]
    pub fn deploy(&self, sample: &str, name: &str, flags: &[&str]) -> Done {
        let path = crate::guest(sample);
        let path = path.to_str().expect("the target folder's path is text");
        let args: Vec<&str> = ["deploy", path, "--name", name]
            .into_iter()
            .chain(flags.iter().copied())
            .collect();
        self.run(&args).ok()
    }

    /// `ps --json`: every workload of the default namespace.
    #[track_caller]
    pub fn ps(&self) -> Value {
        self.run(&["ps", "--json"]).ok().json()
    }

    /// `status --json` of one workload.
    #[track_caller]
    pub fn status(&self, workload: &str) -> Value {
        self.run(&["status", workload, "--json"]).ok().json()
    }

    /// The NATS URL it runs on.
    pub fn nats_url(&self) -> String {
        let current = self.home.path().join("state/wasmorch/current.json");
        let text = std::fs::read_to_string(current).expect("`up` has written current.json");
        let told: Value = serde_json::from_str(&text).expect("current.json is JSON");
        told["url"].as_str().expect("url is text").to_owned()
    }
}

impl Up {
    /// `status --json` as text, once the workload exists.
    pub fn status_if_any(&self, workload: &str) -> Option<String> {
        let done = self.run(&["status", workload, "--json"]);
        (done.code == 0).then_some(done.out)
    }
}
