//! A child process that never outlives us, however we end.
//!
//! ```text
//!  our thread ── spawns ──▶ `wasmorch child` ── asks the kernel to be killed with its parent,
//!     │ lives as long           │               checks that the parent is still there,
//!     │ as the child            ▼               becomes the program (exec keeps the request)
//!     └── waits ─────────▶ nats-server
//! ```
//!
//! Linux sends the parent-death signal when the *thread* that spawned the child ends, hence a
//! thread of its own. The child has its own process group: a terminal's Ctrl-C is ours to handle.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError, mpsc};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};
use tokio::sync::watch;

use crate::args::ChildArgs;
use crate::error::{CliError, Exit};

/// A running child.
pub(crate) struct Child {
    pid: Pid,
    /// `true` once the process id may belong to somebody else.
    gone: Arc<Mutex<bool>>,
    ended: watch::Receiver<Option<String>>,
}

impl Child {
    /// Starts a program; what it prints goes to `output`.
    pub(crate) fn spawn(program: &Path, args: Vec<OsString>, output: &Path) -> io::Result<Self> {
        let output = File::create(output)?;
        let mut command = command(program, args)?;
        command
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .process_group(0);
        let (spawned, spawning) = mpsc::sync_channel(1);
        let (end, ended) = watch::channel(None);
        let gone = Arc::new(Mutex::new(false));
        let held = gone.clone();
        std::thread::Builder::new()
            .name("child".into())
            .spawn(move || {
                let mut child = match command.spawn() {
                    Ok(child) => child,
                    Err(error) => {
                        let _ = spawned.send(Err(error));
                        return;
                    }
                };
                let pid = Pid::from_child(&child);
                let _ = spawned.send(Ok(pid));
                // Waits without reaping: until the lock is taken the process id stays the child's.
                let _ = rustix::process::waitid(
                    WaitId::Pid(pid),
                    WaitIdOptions::EXITED | WaitIdOptions::NOWAIT,
                );
                *held.lock().unwrap_or_else(PoisonError::into_inner) = true;
                let how = match child.wait() {
                    Ok(status) => status.to_string(),
                    Err(error) => error.to_string(),
                };
                let _ = end.send(Some(how));
            })?;
        let pid = spawning
            .recv()
            .map_err(|_| io::Error::other("the spawning thread ended"))??;
        Ok(Self { pid, gone, ended })
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// How it ended, once it has. Safe to cancel.
    pub(crate) async fn ended(&mut self) -> String {
        match self.ended.wait_for(Option::is_some).await {
            Ok(how) => how.clone().unwrap_or_default(),
            Err(_) => "unknown".into(),
        }
    }

    /// How it ended, if it has.
    pub(crate) fn has_ended(&self) -> Option<String> {
        self.ended.borrow().clone()
    }

    /// Asks it to end.
    pub(crate) fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// Ends it.
    pub(crate) fn kill(&self) {
        self.signal(Signal::KILL);
    }

    fn signal(&self, signal: Signal) {
        let gone = self.gone.lock().unwrap_or_else(PoisonError::into_inner);
        if !*gone {
            // It may be ending right now.
            let _ = rustix::process::kill_process(self.pid, signal);
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.kill();
    }
}

#[cfg(target_os = "linux")]
fn command(program: &Path, args: Vec<OsString>) -> io::Result<Command> {
    // Not `current_exe`: that names a file, which an update may have replaced.
    let mut command = Command::new("/proc/self/exe");
    command
        .arg("child")
        .arg("--parent")
        .arg(std::process::id().to_string())
        .arg("--")
        .arg(program)
        .args(args);
    Ok(command)
}

#[cfg(not(target_os = "linux"))]
fn command(program: &Path, args: Vec<OsString>) -> io::Result<Command> {
    // No parent-death signal here: a killed `up` leaves its server behind, and the next one finds
    // the data folder in use.
    let mut command = Command::new(program);
    command.args(args);
    Ok(command)
}

/// `wasmorch child`: becomes the program, and dies with its parent. Returns only when it fails.
pub(crate) fn exec(args: &ChildArgs) -> CliError {
    let failed = |what: &str, why: String| CliError::new(Exit::FAILED, what, why, "");
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::set_parent_process_death_signal(Some(Signal::KILL)) {
        return failed("the parent-death signal cannot be set", error.to_string());
    }
    // The parent may have died before the signal was set.
    let parent = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get());
    if parent != Some(args.parent) {
        return failed("the parent is gone", String::new());
    }
    let Some((program, rest)) = args.command.split_first() else {
        return failed("nothing to run", String::new());
    };
    let error = Command::new(program).args(rest).exec();
    failed(
        &format!("cannot run {}", program.to_string_lossy()),
        error.to_string(),
    )
}
