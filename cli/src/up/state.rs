//! What an `up` keeps in its data folder: the lock, and the ports to take again.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Seek as _, Write as _};
use std::path::Path;

use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use crate::cluster::write_whole;
use crate::error::{CliError, Exit};

/// The data folder, held by this process alone until dropped.
pub(crate) struct Lock {
    _file: File,
}

impl Lock {
    /// Takes it, or says who has it.
    pub(crate) fn take(data: &Path) -> Result<Self, CliError> {
        let path = data.join("lock");
        let wrong = |error: std::io::Error| CliError::writing(&path, &error);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(wrong)?;
        if let Err(error) = rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            if error != rustix::io::Errno::WOULDBLOCK {
                return Err(wrong(error.into()));
            }
            let mut pid = String::new();
            let _ = file.read_to_string(&mut pid);
            let pid = pid.trim();
            let who = if pid.is_empty() {
                "another process".into()
            } else {
                format!("pid {pid}")
            };
            return Err(CliError::new(
                Exit::BLOCKED,
                format!("the data folder {} is in use", data.display()),
                format!("{who} holds it"),
                "stop that one, or pass another --data DIR",
            ));
        }
        file.set_len(0).map_err(wrong)?;
        file.rewind().map_err(wrong)?;
        writeln!(file, "{}", std::process::id()).map_err(wrong)?;
        Ok(Self { _file: file })
    }
}

/// `up.json`: ports of the last start, taken again when they are free, so that URLs survive.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Remembered {
    /// The NATS server's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) nats_port: Option<u16>,
    /// Each host's gateway.
    pub(crate) http_ports: BTreeMap<String, u16>,
}

impl Remembered {
    /// What the last start noted; nothing when it noted nothing legible.
    pub(crate) fn read(data: &Path) -> Self {
        let bytes = fs::read(data.join("up.json")).unwrap_or_default();
        serde_json::from_slice(&bytes).unwrap_or_default()
    }

    /// Notes it.
    pub(crate) fn write(&self, data: &Path) -> Result<(), CliError> {
        let json = serde_json::to_vec_pretty(self).expect("plain data is JSON");
        write_whole(&data.join("up.json"), &json)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_has_one_holder() {
        let folder = tempfile::tempdir().unwrap();
        let lock = Lock::take(folder.path()).unwrap();
        let error = Lock::take(folder.path()).err().unwrap();
        assert_eq!(error.exit, Exit::BLOCKED);
        assert!(
            error.why.contains(&std::process::id().to_string()),
            "{}",
            error.why
        );
        drop(lock);
        Lock::take(folder.path()).unwrap();
    }

    #[test]
    fn ports_of_the_last_start_are_remembered() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Remembered::read(folder.path()), Remembered::default());
        let noted = Remembered {
            nats_port: Some(4222),
            ..Remembered::default()
        };
        noted.write(folder.path()).unwrap();
        assert_eq!(Remembered::read(folder.path()), noted);
    }
}
