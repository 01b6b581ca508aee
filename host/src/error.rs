//! Why a host could not start or go on, for people and for exit codes.
//!
//! Each variant says what failed and what to do; the cause is its source, printed once at the top.

use std::net::SocketAddr;
use std::path::PathBuf;

use wasmorch_gateway::BadCertificate;

use crate::link::LinkError;
use crate::runner::RunnerError;

/// Why the host daemon ended.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// Another process has the address.
    #[error(
        "{flag} {address} is in use by another process: give another address, or port 0 for a free one"
    )]
    PortInUse {
        /// The flag that chose the address.
        flag: &'static str,
        /// The address.
        address: SocketAddr,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The address cannot be listened on.
    #[error(
        "{flag} {address} cannot be listened on: give an address of this machine, with a port it may use"
    )]
    Listen {
        /// The flag that chose the address.
        flag: &'static str,
        /// The address.
        address: SocketAddr,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// Another daemon uses the data folder.
    #[error("data folder {} is locked{}: stop that process, or give another --data folder",
        .path.display(), .pid.map(|pid| format!(" by pid {pid}")).unwrap_or_default())]
    Locked {
        /// The folder.
        path: PathBuf,
        /// Who has it.
        pid: Option<u32>,
    },
    /// The data folder's disk is full.
    #[error("disk full while {what} {}: free some space there", .path.display())]
    DiskFull {
        /// What was being done.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The data folder cannot be used.
    #[error("{what} {} failed: the data folder must be readable and writable for this user", .path.display())]
    Data {
        /// What was being done.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// A file that cannot be done without is not what it was.
    #[error("{} is damaged ({why}): restore it, or delete it and the host joins as a new one", .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// How.
        why: String,
    },
    /// The folder of compiled code that the operator named may be others' too, or is not there.
    #[error(
        "--compiled: {0}; what lies there runs outside of every sandbox, so it must belong to this user or \
         root, with nobody else writing there"
    )]
    Compiled(String),
    /// A certificate's file cannot be read.
    #[error("{} cannot be read: give --tls-cert and --tls-key as files that this user may read", .path.display())]
    CertificateFile {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// Certificates that no client could use.
    #[error("{}", .bad.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Certificates {
        /// All that is wrong.
        bad: Vec<BadCertificate>,
    },
    /// How to reach NATS was said wrongly. (A server that cannot be reached is waited for.)
    #[error("NATS")]
    Nats(#[from] LinkError),
    /// Guests cannot be run here.
    #[error("the runner did not start")]
    Runner(#[from] RunnerError),
}

impl HostError {
    /// A failed disk operation; a full disk is told apart.
    pub(crate) fn disk(
        what: &'static str,
        path: impl Into<PathBuf>,
        source: std::io::Error,
    ) -> Self {
        let path = path.into();
        if is_disk_full(&source) {
            Self::DiskFull { what, path, source }
        } else {
            Self::Data { what, path, source }
        }
    }
}

/// Whether the disk, or this user's share of it, is used up.
pub(crate) fn is_disk_full(error: &std::io::Error) -> bool {
    matches!(
        error.kind(),
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded
    )
}
