//! The data folder: who this host is, what it last held, what it last routed by.
//!
//! ```text
//! lock             held while the daemon lives; names its pid
//! host.json        the host's id, minted once, and its cluster, once known
//! placements.json  the set in force with its revisions and start numbers: enough to start alone
//! endpoints/       the routing tables
//! artifacts/ compiled/ volumes/ logs/      others' rooms
//! ```
//!
//! Invariants: a file is either the old or the new one, never half (written beside, synced,
//! renamed, folder synced). A damaged file is an error with a way out, or is set aside with a
//! warning when the store has it too; never a panic.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use wasmorch_api::{ClusterId, HostId};
use wasmorch_runtime::write_atomic;

use crate::agent::Held;
use crate::error::HostError;
use crate::sandbox::Paths;
use crate::tables::TablesFile;

const HOST: &str = "host.json";
const PLACEMENTS: &str = "placements.json";
const TABLES: &str = "endpoints/tables.json";

/// The content of `host.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HostFile {
    /// Minted once.
    pub host: HostId,
    /// The cluster it belongs to, once it has met one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<ClusterId>,
}

/// A locked data folder.
#[derive(Debug)]
pub(crate) struct DataDir {
    root: PathBuf,
    /// Unlocked when it is closed, by the system if need be.
    _lock: File,
}

impl DataDir {
    /// Makes the folder if need be, and locks it.
    ///
    /// # Errors
    ///
    /// When another daemon has it, or it cannot be written.
    pub(crate) fn open(root: &Path) -> Result<Self, HostError> {
        for folder in ["", "endpoints", "artifacts", "compiled", "volumes", "logs"] {
            let path = root.join(folder);
            fs::create_dir_all(&path).map_err(|source| HostError::disk("making", path, source))?;
        }
        let root = root
            .canonicalize()
            .map_err(|source| HostError::disk("opening", root, source))?;
        let lock = lock(&root)?;
        Ok(Self { root, _lock: lock })
    }

    /// `artifacts/`.
    pub(crate) fn artifacts(&self) -> PathBuf {
        self.root.join("artifacts")
    }

    /// `volumes/`.
    pub(crate) fn volumes(&self) -> PathBuf {
        self.root.join("volumes")
    }

    /// `compiled/`.
    pub(crate) fn compiled(&self) -> PathBuf {
        self.root.join("compiled")
    }

    /// `tls/`: the certificate that this host makes for itself.
    pub(crate) fn tls(&self) -> PathBuf {
        self.root.join("tls")
    }

    /// What a runner may open of this host: no lock, no identity, no log. And the credentials with which
    /// it comes to NATS, as they are when it starts: what lies beside them is not its business.
    /// Compiled code only to read.
    pub(crate) fn for_runners(&self, creds: Option<&Path>) -> Paths {
        Paths {
            read: [self.artifacts(), self.compiled()]
                .into_iter()
                .chain(creds.map(Path::to_owned))
                .collect(),
            write: vec![self.volumes()],
        }
    }

    /// What the compiler may open: artifacts to read, code to write; no volumes, no credentials.
    pub(crate) fn for_compiler(&self, given: Option<&Path>) -> Paths {
        Paths {
            read: std::iter::once(self.artifacts())
                .chain(given.map(Path::to_owned))
                .collect(),
            write: vec![self.compiled()],
        }
    }

    /// `logs/`.
    pub(crate) fn logs(&self) -> PathBuf {
        self.root.join("logs")
    }

    /// Who this host is; `mint` makes the id at the very first start.
    ///
    /// # Errors
    ///
    /// When the file is damaged: a new id would make this host a stranger to its own replicas.
    pub(crate) fn host(&self, mint: impl FnOnce() -> HostId) -> Result<HostFile, HostError> {
        let path = self.root.join(HOST);
        match read_json(&path) {
            Ok(Some(file)) => Ok(file),
            Ok(None) => {
                let file = HostFile {
                    host: mint(),
                    cluster: None,
                };
                self.write_host(&file)?;
                Ok(file)
            }
            Err(ReadError::Damaged(why)) => Err(HostError::Damaged { path, why }),
            Err(ReadError::Io(source)) => Err(HostError::disk("reading", path, source)),
        }
    }

    /// Writes `host.json`.
    ///
    /// # Errors
    ///
    /// When the disk fails or is full; the file is then as before.
    pub(crate) fn write_host(&self, file: &HostFile) -> Result<(), HostError> {
        self.write(HOST, file)
    }

    /// What the host last held. A damaged file is set aside: the store has the set too.
    ///
    /// # Errors
    ///
    /// When the disk fails.
    pub(crate) fn held(&self) -> Result<Option<Held>, HostError> {
        self.read_or_set_aside(PLACEMENTS)
    }

    /// Writes what the host holds.
    ///
    /// # Errors
    ///
    /// When the disk fails or is full; the file is then as before.
    pub(crate) fn write_held(&self, held: &Held) -> Result<(), HostError> {
        self.write(PLACEMENTS, held)
    }

    /// What the gateway last routed by. A damaged file is set aside.
    ///
    /// # Errors
    ///
    /// When the disk fails.
    pub(crate) fn tables(&self) -> Result<Option<TablesFile>, HostError> {
        self.read_or_set_aside(TABLES)
    }

    /// Writes what the gateway routes by.
    ///
    /// # Errors
    ///
    /// When the disk fails or is full; the file is then as before.
    pub(crate) fn write_tables(&self, tables: &TablesFile) -> Result<(), HostError> {
        self.write(TABLES, tables)
    }

    fn read_or_set_aside<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, HostError> {
        let path = self.root.join(name);
        match read_json(&path) {
            Ok(content) => Ok(content),
            Err(ReadError::Io(source)) => Err(HostError::disk("reading", path, source)),
            Err(ReadError::Damaged(why)) => {
                let aside = path.with_extension("damaged");
                tracing::warn!(file = %path.display(), %why, kept_as = %aside.display(),
                    "damaged: set aside, the store is asked instead");
                fs::rename(&path, &aside)
                    .map_err(|source| HostError::disk("renaming", path, source))?;
                Ok(None)
            }
        }
    }

    fn write<T: Serialize>(&self, name: &str, content: &T) -> Result<(), HostError> {
        let path = self.root.join(name);
        serde_json::to_vec(content)
            .map_err(io::Error::from)
            .and_then(|bytes| write_atomic(&path, &bytes))
            .map_err(|source| HostError::disk("writing", path, source))
    }
}

/// Takes the lock, or says who has it.
fn lock(root: &Path) -> Result<File, HostError> {
    let path = root.join("lock");
    let failed = |source| HostError::disk("locking", &path, source);
    let mut file = File::options()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(&path)
        .map_err(failed)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut text = String::new();
            // The pid only makes the message better.
            let pid = file
                .read_to_string(&mut text)
                .ok()
                .and_then(|_| text.trim().parse().ok());
            return Err(HostError::Locked {
                path: root.to_owned(),
                pid,
            });
        }
        Err(TryLockError::Error(source)) => return Err(failed(source)),
    }
    file.set_len(0).map_err(failed)?;
    file.rewind().map_err(failed)?;
    writeln!(file, "{}", std::process::id()).map_err(failed)?;
    Ok(file)
}

enum ReadError {
    Io(io::Error),
    Damaged(String),
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, ReadError> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(ReadError::Io(error)),
    };
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|error| ReadError::Damaged(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> HostId {
        text.parse().unwrap()
    }

    #[test]
    fn the_id_is_minted_once() {
        let folder = tempfile::tempdir().unwrap();
        let data = DataDir::open(folder.path()).unwrap();
        assert_eq!(data.host(|| id("first")).unwrap().host, id("first"));
        assert_eq!(data.host(|| id("second")).unwrap().host, id("first"));
    }

    #[test]
    fn a_folder_is_one_daemons() {
        let folder = tempfile::tempdir().unwrap();
        let data = DataDir::open(folder.path()).unwrap();
        let error = DataDir::open(folder.path()).unwrap_err();
        let HostError::Locked { pid, .. } = &error else {
            panic!("{error}")
        };
        assert_eq!(*pid, Some(std::process::id()));
        assert!(
            error
                .to_string()
                .contains(&format!("locked by pid {}", std::process::id()))
        );
        drop(data);
        DataDir::open(folder.path()).unwrap();
    }

    #[test]
    fn a_damaged_identity_is_an_error_and_damaged_placements_are_set_aside() {
        let folder = tempfile::tempdir().unwrap();
        let data = DataDir::open(folder.path()).unwrap();
        fs::write(folder.path().join(HOST), b"{").unwrap();
        assert!(matches!(
            data.host(|| id("h")).unwrap_err(),
            HostError::Damaged { .. }
        ));
        fs::write(folder.path().join(PLACEMENTS), b"{\"set\":").unwrap();
        assert_eq!(data.held().unwrap(), None);
        assert!(folder.path().join("placements.damaged").exists());
        assert_eq!(
            data.held().unwrap(),
            None,
            "and then it is as if there were none"
        );
    }
}
