//! Which cluster a command speaks to, and where the folders of this user are.
//!
//! Owns `$XDG_STATE_HOME/wasmorch/current.json`: the `up` that was started last on this machine.

use std::env;
use std::fs;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use wasmorch_api::NatsOptions;

use crate::args::Global;
use crate::error::{CliError, Exit};

/// The `up` that was started last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Current {
    /// Its NATS server.
    pub(crate) url: String,
    /// Its process.
    pub(crate) pid: i32,
    /// Its data folder.
    pub(crate) data: PathBuf,
    /// Its credentials, when the server was the user's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) creds: Option<PathBuf>,
    /// Its JetStream domain, likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) js_domain: Option<String>,
}

impl Current {
    /// What is noted, if anything is.
    pub(crate) fn read() -> Option<Self> {
        serde_json::from_slice(&fs::read(current_file()?).ok()?).ok()
    }

    /// Notes it, whole or not at all.
    #[cfg(feature = "controller")]
    pub(crate) fn write(&self) -> Result<(), CliError> {
        let Some(file) = current_file() else {
            return Ok(());
        };
        let json = serde_json::to_vec_pretty(self).expect("plain data is JSON");
        write_whole(&file, &json)
    }

    /// Whether that process is still there.
    fn runs(&self) -> bool {
        // A process of another user is there too, and may not be signalled.
        rustix::process::Pid::from_raw(self.pid).is_some_and(|pid| {
            rustix::process::test_kill_process(pid) != Err(rustix::io::Errno::SRCH)
        })
    }

    /// Removes the note when it is still this one.
    #[cfg(feature = "controller")]
    pub(crate) fn remove(&self) {
        if Self::read().as_ref() == Some(self) {
            // What stays behind names a server that does not answer, and the error says so.
            let _ = current_file().map(fs::remove_file);
        }
    }
}

fn current_file() -> Option<PathBuf> {
    Some(base("XDG_STATE_HOME", ".local/state")?.join("current.json"))
}

/// `$XDG_.._HOME/wasmorch`; relative values are ignored, as the XDG specification says.
fn base(variable: &str, below_home: &str) -> Option<PathBuf> {
    let absolute = |path: PathBuf| path.is_absolute().then_some(path);
    let folder = env::var_os(variable)
        .and_then(|path| absolute(path.into()))
        .or_else(|| Some(absolute(env::var_os("HOME")?.into())?.join(below_home)))?;
    Some(folder.join("wasmorch"))
}

/// `$XDG_CACHE_HOME/wasmorch`: tools, compiled code.
#[cfg(any(feature = "compiler", feature = "controller"))]
pub(crate) fn cache_dir() -> Option<PathBuf> {
    base("XDG_CACHE_HOME", ".cache")
}

/// `$XDG_DATA_HOME/wasmorch/<part>`, where a daemon keeps its data unless told.
pub(crate) fn data_dir(given: Option<PathBuf>, part: &str) -> Result<PathBuf, CliError> {
    let folder = match given {
        Some(folder) => folder,
        None => base("XDG_DATA_HOME", ".local/share")
            .ok_or_else(|| CliError::usage("no data folder", "pass --data DIR, or set HOME"))?
            .join(part),
    };
    // Logs and state are their owner's.
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&folder)
        .map_err(|error| CliError::writing(&folder, &error))?;
    // A daemon must not depend on the folder it was started in.
    fs::canonicalize(&folder).map_err(|error| CliError::writing(&folder, &error))
}

/// Replaces a file so that a reader sees the old one or the new one, also after a crash. It is for its
/// owner alone: a URL may hold a password.
pub(crate) fn write_whole(file: &Path, bytes: &[u8]) -> Result<(), CliError> {
    let wrong = |error: std::io::Error| CliError::writing(file, &error);
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder).map_err(wrong)?;
    }
    wasmorch_runtime::write_atomic(file, bytes).map_err(wrong)
}

/// The server that was named, if one was.
pub(crate) fn named(global: &Global) -> Option<NatsOptions> {
    Some(NatsOptions {
        url: global.nats.clone()?,
        creds: global.creds.clone(),
        js_domain: global.js_domain.clone(),
    })
}

/// The cluster in force: `--nats`, `WASMORCH_NATS`, else the `up` that was started last.
pub(crate) fn find(global: &Global) -> Result<NatsOptions, CliError> {
    if let Some(named) = named(global) {
        return Ok(named);
    }
    let current = Current::read().ok_or_else(|| {
        CliError::new(
            Exit::UNAVAILABLE,
            "no cluster",
            "",
            "start one with `wasmorch up` or pass --nats",
        )
    })?;
    if !current.runs() {
        return Err(CliError::new(
            Exit::UNAVAILABLE,
            "no cluster",
            format!(
                "the `up` that was started last (pid {}) has ended",
                current.pid
            ),
            "start it again with `wasmorch up` or pass --nats",
        ));
    }
    Ok(NatsOptions {
        url: current.url,
        creds: global.creds.clone().or(current.creds),
        js_domain: global.js_domain.clone().or(current.js_domain),
    })
}

/// Of a user's name; a leader takes 200 bytes.
const USER_CHARS_MAX: usize = 50;

/// Who asks, for `history` and events.
pub(crate) fn user() -> String {
    let user = ["USER", "LOGNAME"]
        .into_iter()
        .find_map(|name| env::var(name).ok());
    // It is told again with what was done: on one line, and short.
    let user = user.map(|user| {
        let plain = user.chars().filter(|one| !one.is_control());
        plain.take(USER_CHARS_MAX).collect::<String>()
    });
    user.filter(|user| !user.is_empty())
        .unwrap_or_else(|| format!("uid {}", rustix::process::getuid().as_raw()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_up_that_has_ended_is_noticed() {
        let current = |pid| Current {
            url: "nats://127.0.0.1:1".into(),
            pid,
            data: "/".into(),
            creds: None,
            js_domain: None,
        };
        assert!(current(std::process::id() as i32).runs());
        // Beyond what any kernel hands out.
        assert!(!current(i32::MAX).runs());
        assert!(!current(0).runs());
    }

    #[test]
    fn files_are_replaced_whole() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("below/current.json");
        write_whole(&file, b"one").unwrap();
        write_whole(&file, b"two").unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"two");
        assert_eq!(fs::read_dir(file.parent().unwrap()).unwrap().count(), 1);
    }
}
