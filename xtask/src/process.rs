//! Running other programs: a failure always names the command and how it ended.

use std::process::{Command, Output};

use anyhow::{Context, Result, bail};

/// Runs a command with our stdin, stdout and stderr.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let line = line(command);
    let status = command
        .status()
        .with_context(|| format!("starting `{line}`"))?;
    if !status.success() {
        bail!("`{line}`: {status}");
    }
    Ok(())
}

/// Runs a command and gives its stdout. When it fails, the error ends with what it wrote to stderr.
pub(crate) fn read(command: &mut Command) -> Result<String> {
    let line = line(command);
    let Output {
        status,
        stdout,
        stderr,
    } = command
        .output()
        .with_context(|| format!("starting `{line}`"))?;
    if !status.success() {
        let stderr = String::from_utf8_lossy(&stderr);
        bail!("`{line}`: {status}\n{}", stderr.trim_end());
    }
    String::from_utf8(stdout)
        .with_context(|| format!("`{line}` printed something that is not UTF-8"))
}

/// The command as one would type it.
pub(crate) fn line(command: &Command) -> String {
    let mut line = command.get_program().to_string_lossy().into_owned();
    for arg in command.get_args() {
        line.push(' ');
        line.push_str(&arg.to_string_lossy());
    }
    line
}
