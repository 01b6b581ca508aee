//! `cargo xtask demo`: the main job on a fresh machine, each step with the command a user would type and its output.
//!
//! The cluster lives in a folder of its own under the system's temporary folder: a user's own `wasmorch up` and what
//! `wasmorch` remembers of it are never touched. Whatever fails, the cluster is ended and the folder removed.

mod http;

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::process;
use crate::project::Project;
use crate::setup::{self, Ready};

/// A first start on a slow machine, nats-server included.
const UP_WITHIN: Duration = Duration::from_secs(60);
/// What `wasmorch` itself grants to draining, and some more.
const DOWN_WITHIN: Duration = Duration::from_secs(60);
/// Enough for a clean end when the demo has failed already.
const ABANDON_AFTER: Duration = Duration::from_secs(10);
const SCALED_WITHIN: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// What would lead the demo to another cluster than its own.
const OTHER_CLUSTERS: [&str; 3] = ["WASMORCH_NATS", "WASMORCH_CREDS", "WASMORCH_JS_DOMAIN"];

pub(crate) fn run(project: &Project) -> Result<()> {
    say("Getting a nats-server, a guest toolchain and the sample components");
    let ready = setup::run(project)?;
    say("Building wasmorch");
    project.build_binary()?;
    let demo = Demo::new(project, &ready)?;
    demo.show()
}

/// A line that says what comes next.
fn say(what: &str) {
    println!("\n== {what}");
}

struct Demo {
    home: Home,
    binary: PathBuf,
    nats_server: PathBuf,
    guests: PathBuf,
}

impl Demo {
    fn new(project: &Project, ready: &Ready) -> Result<Self> {
        Ok(Self {
            home: Home::new()?,
            binary: project.binary(),
            nats_server: ready.nats_server.clone(),
            guests: ready.guests.clone(),
        })
    }

    fn show(&self) -> Result<()> {
        say("Starting a cluster in one process tree: NATS, a controller, a host with its gateway");
        let up = self.up()?;
        if let Err(failed) = self.tour() {
            println!("\n-- what `wasmorch up` has printed:\n{}", up.printed());
            return Err(failed);
        }
        say("Shutting down: SIGINT, as Ctrl-C sends it");
        up.stop()?;
        println!("\nThe demo is done. Your own cluster is one command away: wasmorch up");
        Ok(())
    }

    /// The main job, on the running cluster.
    fn tour(&self) -> Result<()> {
        say("Deploying the first version");
        let v1 = self.guests.join("hello-http.wasm");
        let v1 = v1.to_string_lossy();
        let deployed = self.wasmorch(&["deploy", &v1, "--name", "hello"])?;
        let url = url(&deployed).context("`deploy` printed no URL")?;

        say("Asking it, through the gateway");
        expect(&get(&url, "/")?, "Hello from wasmorch, v1")?;

        say("Scaling to three replicas");
        self.wasmorch(&["scale", "hello=3"])?;
        self.wait_until_ready("hello", 3)?;
        self.wasmorch(&["ps", "hello"])?;

        say("Rolling to the second version, one replica after the other, gated by health");
        let v2 = self.guests.join("hello-http-v2.wasm");
        let v2 = v2.to_string_lossy();
        self.wasmorch(&["deploy", &v2, "--name", "hello"])?;
        expect(&get(&url, "/")?, "Hello from wasmorch, v2")?;

        say("Having it write to its log");
        get(&url, "/log?a-line-from-the-demo")?;

        say("Looking at what runs");
        self.wasmorch(&["ps"])?;
        self.wasmorch(&["ps", "hello"])?;
        let logs = self.wasmorch(&["logs", "--tail", "5", "hello"])?;
        expect(&logs, "a-line-from-the-demo")?;
        self.wasmorch(&["history", "hello"])?;
        Ok(())
    }

    /// Starts `wasmorch up` and waits until it answers.
    fn up(&self) -> Result<Up> {
        let data = self.home.0.join("data");
        let data = data.to_string_lossy();
        let args = ["up", "--data", &data, "--http", "127.0.0.1:0"];
        println!("$ wasmorch {}", args.join(" "));
        let log = self.home.0.join("up.log");
        let output = File::create(&log).with_context(|| format!("making {}", log.display()))?;
        let child = self
            .command(&args)
            .stdin(Stdio::null())
            .stdout(output.try_clone().context("sharing the log of `up`")?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("starting {}", self.binary.display()))?;
        let mut up = Up { child, log };

        let current = self.home.0.join("state/wasmorch/current.json");
        let answers = wait(UP_WITHIN, || {
            if let Some(status) = up.child.try_wait().context("looking after `up`")? {
                bail!("`wasmorch up` ended with {status}:\n{}", up.printed());
            }
            Ok(current.is_file() && self.succeeds(&["hosts"]))
        })?;
        ensure!(
            answers,
            "`wasmorch up` is not ready after {UP_WITHIN:?}:\n{}",
            up.printed()
        );
        print!("{}", up.printed());
        Ok(up)
    }

    /// Runs `wasmorch` as a user would, showing the command and what it prints. Fails when it fails.
    fn wasmorch(&self, args: &[&str]) -> Result<String> {
        println!("$ wasmorch {}", args.join(" "));
        let output = self
            .command(args)
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("starting {}", self.binary.display()))?;
        let printed = String::from_utf8_lossy(&output.stdout);
        // Progress goes to stderr; shown here, after the answer, since both are captured.
        print!("{}{printed}", String::from_utf8_lossy(&output.stderr));
        ensure!(
            output.status.success(),
            "`wasmorch {}`: {}",
            args.join(" "),
            output.status
        );
        Ok(printed.into_owned())
    }

    fn succeeds(&self, args: &[&str]) -> bool {
        self.command(args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
    }

    fn wait_until_ready(&self, workload: &str, replicas: usize) -> Result<()> {
        let ready = wait(SCALED_WITHIN, || {
            let output = self
                .command(&["ps", workload, "--json"])
                .output()
                .context("starting `wasmorch ps`")?;
            Ok(ready_replicas(&output.stdout) == replicas)
        })?;
        ensure!(
            ready,
            "{workload} has not {replicas} ready replicas after {SCALED_WITHIN:?}"
        );
        Ok(())
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        for name in OTHER_CLUSTERS {
            command.env_remove(name);
        }
        command
            .args(args)
            .env("XDG_STATE_HOME", self.home.0.join("state"))
            .env("XDG_DATA_HOME", self.home.0.join("share"))
            .env("WASMORCH_NATS_SERVER", &self.nats_server);
        command
    }
}

/// How many of the replicas that `ps --json` lists are ready. Something else than a list counts as none yet.
fn ready_replicas(json: &[u8]) -> usize {
    let listed: Value = serde_json::from_slice(json).unwrap_or_default();
    let replicas = listed.as_array().map(Vec::as_slice).unwrap_or_default();
    replicas
        .iter()
        .filter(|replica| replica["ready"] == true)
        .count()
}

/// The last URL that `deploy` printed, without its path.
fn url(printed: &str) -> Option<String> {
    let start = printed.rfind("http://")?;
    let url = printed[start..].split_whitespace().next()?;
    let authority = url.trim_start_matches("http://").split('/').next()?;
    Some(format!("http://{authority}"))
}

/// Asks and shows what `curl` would show. Names under `.localhost` are this machine (RFC 6761).
fn get(url: &str, target: &str) -> Result<String> {
    println!("$ curl {url}{target}");
    let body = http::get(url, target).with_context(|| format!("GET {url}{target}"))?;
    print!("{body}");
    Ok(body)
}

fn expect(output: &str, wanted: &str) -> Result<()> {
    ensure!(
        output.contains(wanted),
        "expected `{wanted}`, got:\n{output}"
    );
    Ok(())
}

/// Looks until `done` or the deadline; says which. An error ends it at once.
fn wait(within: Duration, mut done: impl FnMut() -> Result<bool>) -> Result<bool> {
    let deadline = Instant::now() + within;
    while Instant::now() < deadline {
        if done()? {
            return Ok(true);
        }
        pause();
    }
    Ok(false)
}

#[allow(
    clippy::disallowed_methods,
    reason = "between two looks at another process, each under a deadline"
)]
fn pause() {
    std::thread::sleep(LOOK_EVERY);
}

/// A running `wasmorch up`, ended with this value.
struct Up {
    child: Child,
    log: PathBuf,
}

impl Up {
    fn printed(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Stops in order and waits for the clean end.
    fn stop(mut self) -> Result<()> {
        let before = self.printed().len();
        self.interrupt()?;
        let ended = self.wait(DOWN_WITHIN)?;
        let printed = self.printed();
        print!("{}", printed.get(before..).unwrap_or_default());
        match ended {
            Some(status) if status.success() => Ok(()),
            Some(status) => bail!("`wasmorch up` ended with {status}"),
            None => bail!("`wasmorch up` has not ended {DOWN_WITHIN:?} after SIGINT"),
        }
    }

    fn interrupt(&self) -> Result<()> {
        process::run(Command::new("kill").args(["-INT", &self.child.id().to_string()]))
    }

    fn wait(&mut self, within: Duration) -> Result<Option<ExitStatus>> {
        let mut ended = None;
        wait(within, || {
            ended = self.child.try_wait().context("waiting for `up`")?;
            Ok(ended.is_some())
        })?;
        Ok(ended)
    }
}

impl Drop for Up {
    /// After a clean stop there is nothing to do. After a failure: in order if it can, at once if it cannot, so that
    /// nothing writes any more when the folder is removed.
    fn drop(&mut self) {
        let running = self.child.try_wait().is_ok_and(|ended| ended.is_none());
        let gone = !running
            || (self.interrupt().is_ok()
                && self.wait(ABANDON_AFTER).is_ok_and(|ended| ended.is_some()));
        if !gone {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// The folder of one demo, removed with this value.
struct Home(PathBuf);

impl Home {
    fn new() -> Result<Self> {
        let path = env::temp_dir().join(format!("wasmorch-demo-{}", std::process::id()));
        make(&path)?;
        Ok(Self(path))
    }
}

fn make(path: &Path) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("making {}", path.display()))
}

impl Drop for Home {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_url_is_the_last_one_printed() {
        let printed = "see http://docs.example/\nready  http://hello.default.localhost:8080/\n";
        assert_eq!(
            url(printed).as_deref(),
            Some("http://hello.default.localhost:8080")
        );
        assert_eq!(url("unchanged"), None);
    }

    #[test]
    fn only_ready_replicas_count() {
        let json =
            br#"[{"replica": "1-1-1", "ready": true}, {"replica": "2-2-1", "ready": false}]"#;
        assert_eq!(ready_replicas(json), 1);
        assert_eq!(ready_replicas(b""), 0);
        assert_eq!(ready_replicas(b"{}"), 0);
    }
}
