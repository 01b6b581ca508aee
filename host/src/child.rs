//! A child process that never outlives us, however we end.
//!
//! ```text
//!  our thread ── spawns ──▶ the child ── asks the kernel to be killed with its parent
//!     │ lives as long as the child        (its own doing: exec keeps the request)
//!     └── waits, then reaps
//! ```
//!
//! Linux sends the parent-death signal when the *thread* that spawned the child ends, hence a
//! thread of its own. The child has its own process group: a terminal's Ctrl-C is ours to handle.

use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError, mpsc};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};
use tokio::sync::watch;

/// A running child. Dropping it kills it.
#[derive(Debug)]
pub struct Child {
    pid: Pid,
    /// `true` once the process id may belong to somebody else.
    gone: Arc<Mutex<bool>>,
    ended: watch::Receiver<Option<String>>,
}

impl Child {
    /// Starts a program.
    ///
    /// # Errors
    ///
    /// When it cannot be started, or no thread for it.
    pub fn spawn(mut command: Command) -> io::Result<Self> {
        command.process_group(0);
        let (spawned, spawning) = mpsc::sync_channel(1);
        let (end, ended) = watch::channel(None);
        let gone = Arc::new(Mutex::new(false));
        let held = gone.clone();
        std::thread::Builder::new()
            .name("child".into())
            .spawn(move || {
                let started = command.spawn();
                // What the child has inherited is its own from here on.
                drop(command);
                let mut child = match started {
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
    pub fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// How it ended, once it has. Safe to cancel.
    pub async fn ended(&mut self) -> String {
        match self.ended.wait_for(Option::is_some).await {
            Ok(how) => how.clone().unwrap_or_default(),
            Err(_) => "unknown".into(),
        }
    }

    /// How it ended, if it has.
    pub fn has_ended(&self) -> Option<String> {
        self.ended.borrow().clone()
    }

    /// Asks it to end.
    pub fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// Ends it.
    pub fn kill(&self) {
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
