//! Programs of others that never outlive us: started by way of `wasmorch child`, which asks the
//! kernel to be killed with its parent, checks that the parent is still there, and becomes the
//! program (exec keeps the request). [`Child`] has the rest.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::Signal;
use wasmorch_host::Child;

use crate::args::ChildArgs;
use crate::error::{CliError, Exit};

/// Starts a program; what it prints goes to `output`.
pub(crate) fn spawn(program: &Path, args: Vec<OsString>, output: &Path) -> io::Result<Child> {
    let output = File::create(output)?;
    let mut command = command(program, args)?;
    command
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output);
    Child::spawn(command)
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
