//! The `up` that is measured, and what is timed of it.
//!
//! Times begin when a process of the CLI is spawned. The harness of the tests looks every 20 ms,
//! which is too coarse here: see [`until`].

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::Signal;
use serde_json::Value;
use wasmorch_tests::http;
use wasmorch_tests::process::{Done, Process};
use wasmorch_tests::up::Home;

/// Whatever takes longer than this has failed.
const PATIENCE: Duration = Duration::from_secs(180);
/// Between two looks at first: the error of a short time.
const LOOK_EVERY_MIN: Duration = Duration::from_millis(1);
/// Between two looks of a long wait.
const LOOK_EVERY_MAX: Duration = Duration::from_millis(20);

/// The binary that is measured: the one that `cargo xtask bench` names, else the one beside this.
pub(crate) fn binary() -> Result<PathBuf> {
    let path = match std::env::var_os("WASMORCH_BIN") {
        Some(path) => path.into(),
        None => std::env::current_exe()
            .context("no path of our own")?
            .with_file_name("wasmorch"),
    };
    ensure!(
        path.exists(),
        "{} is missing: run `cargo xtask bench deploy`",
        path.display()
    );
    Ok(path)
}

/// How long one `deploy` took.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deployed {
    /// Until the gateway first gave the workload's own answer.
    pub(crate) answered: Duration,
    /// Until the CLI exited 0.
    pub(crate) exited: Duration,
}

/// One data folder, and `wasmorch up` on it.
pub(crate) struct Cluster {
    binary: PathBuf,
    home: Home,
    process: Option<Process>,
    gateway: String,
}

impl Cluster {
    /// An empty folder; nothing runs yet.
    pub(crate) fn new(binary: &Path) -> Self {
        let (binary, home) = (binary.to_path_buf(), Home::new());
        Self {
            binary,
            home,
            process: None,
            gateway: String::new(),
        }
    }

    /// Its folder.
    pub(crate) fn home(&self) -> &Home {
        &self.home
    }

    /// The gateway's address; empty before `up`.
    pub(crate) fn gateway(&self) -> &str {
        &self.gateway
    }

    /// The id of the running `up`.
    pub(crate) fn id(&self) -> Result<u32> {
        Ok(self.process.as_ref().context("`up` does not run")?.id())
    }

    fn command<S: AsRef<OsStr>>(&self, args: &[S]) -> Command {
        let folder = self.home.path();
        let mut command = Command::new(&self.binary);
        command
            .args(args)
            .current_dir(folder)
            .env("XDG_STATE_HOME", folder.join("state"))
            .env("XDG_DATA_HOME", folder.join("data"))
            .env("WASMORCH_NATS_SERVER", wasmorch_tests::nats::binary())
            .env_remove("WASMORCH_NATS")
            .env_remove("WASMORCH_LOG");
        command
    }

    /// Runs `wasmorch ARGS`, which must succeed.
    pub(crate) fn run<S: AsRef<OsStr>>(&self, args: &[S]) -> Result<Done> {
        let words: Vec<_> = args
            .iter()
            .map(|word| word.as_ref().to_string_lossy())
            .collect();
        let done = Done::run(self.command(args));
        ensure!(
            done.code == 0,
            "`wasmorch {}` exited {}:\n{}",
            words.join(" "),
            done.code,
            done.err
        );
        Ok(done)
    }

    /// Starts `up`; how long it took to be ready.
    pub(crate) fn up(&mut self) -> Result<Duration> {
        let command = self.command(&["up", "--http", "127.0.0.1:0", "--json"]);
        let began = Instant::now();
        let mut process = Process::start(command, self.home.path(), "up");
        let said = until("`wasmorch up` to be ready", || {
            if let Some(status) = process.ended() {
                bail!("`wasmorch up` ended with {status}:\n{}", process.stderr());
            }
            let said = process.stdout();
            Ok(said.ends_with('\n').then_some(said))
        })?;
        let took = began.elapsed();
        let said: Value = serde_json::from_str(&said).context("`up --json` printed no JSON")?;
        let gateway = &said["hosts"][0]["http"];
        self.gateway = gateway
            .as_str()
            .with_context(|| format!("no gateway in {said}"))?
            .to_owned();
        self.process = Some(process);
        Ok(took)
    }

    /// Ctrl-C, and its end.
    pub(crate) fn stop(&mut self) -> Result<()> {
        let mut process = self.process.take().context("`up` does not run")?;
        process.signal(Signal::INT);
        let status = until("`wasmorch up` to stop", || Ok(process.ended()))?;
        ensure!(
            status.success(),
            "`wasmorch up` stopped with {status}:\n{}",
            process.stderr()
        );
        Ok(())
    }

    /// Whether the workload itself answers: 200, with `text` in the body.
    pub(crate) fn answers(&self, name: &str, text: &str) -> bool {
        http::get(&self.gateway, &format!("{name}.default.localhost"), "/")
            .is_ok_and(|answer| answer.status == 200 && answer.body.contains(text))
    }

    /// Waits for the workload's first answer.
    pub(crate) fn first_answer(&self, name: &str, text: &str) -> Result<()> {
        until(&format!("an answer of {name}"), || {
            Ok(self.answers(name, text).then_some(()))
        })
    }

    /// `deploy FILE --name NAME`, timed.
    pub(crate) fn deploy(&self, file: &Path, name: &str, text: &str) -> Result<Deployed> {
        let mut command = self.command(&["deploy", "--name", name]);
        command
            .arg(file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let failed = AtomicBool::new(false);
        let began = Instant::now();
        let child = command.spawn().context("`wasmorch deploy` did not start")?;
        let (output, exited, answered) = std::thread::scope(|scope| {
            let asking = scope.spawn(|| {
                until(&format!("an answer of {name}"), || {
                    ensure!(!failed.load(Ordering::Relaxed), "`deploy` failed");
                    Ok(self.answers(name, text).then(|| began.elapsed()))
                })
            });
            let output = child.wait_with_output();
            let exited = began.elapsed();
            let succeeded = output.as_ref().is_ok_and(|output| output.status.success());
            failed.store(!succeeded, Ordering::Relaxed);
            (
                output,
                exited,
                asking.join().expect("asking does not panic"),
            )
        });
        let output = output.context("`wasmorch deploy` cannot be waited for")?;
        ensure!(
            output.status.success(),
            "`wasmorch deploy` ended with {}:\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(Deployed {
            answered: answered?,
            exited,
        })
    }

    /// `rm NAME`, and waits until nothing of it is listed or answers.
    pub(crate) fn remove(&self, name: &str, text: &str) -> Result<()> {
        self.run(&["rm", name])?;
        until(&format!("{name} to be gone"), || {
            let listed = self.run(&["ps", "--json"])?.json();
            let items = listed.as_array().context("`ps --json` is no array")?;
            let gone = !items.iter().any(|item| item["name"] == name) && !self.answers(name, text);
            Ok(gone.then_some(()))
        })
    }
}

/// Asks until there is an answer. Looks every millisecond at first and then more rarely, up to
/// [`LOOK_EVERY_MAX`]: looking shares the machine with what it measures.
fn until<T>(what: &str, mut ask: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let began = Instant::now();
    loop {
        if let Some(answer) = ask()? {
            return Ok(answer);
        }
        ensure!(
            began.elapsed() < PATIENCE,
            "waited {PATIENCE:?} in vain for {what}"
        );
        let pause = (began.elapsed() / 100).clamp(LOOK_EVERY_MIN, LOOK_EVERY_MAX);
        std::thread::park_timeout(pause);
    }
}
