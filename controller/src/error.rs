//! Why a controller cannot run, and what to do about it.
//!
//! Owns the one error type at the crate's edge. The command line maps variants to exit codes
//! (unreachable, too old, no JetStream: 69), so a variant is named for what the user must mend.

use std::net::SocketAddr;
use std::path::PathBuf;

use crate::store::StoreError;

/// A cause from a library, kept for the chain.
pub type Source = Box<dyn std::error::Error + Send + Sync>;

/// Why the controller ended or never began.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ControllerError {
    /// No server answers there.
    #[error("NATS does not answer at {url}: start it, or pass the right --nats URL")]
    Unreachable {
        /// Where (without a password).
        url: String,
        /// What happened.
        #[source]
        source: Source,
    },
    /// The server answers and wants somebody else.
    #[error(
        "NATS at {url} refuses these credentials: pass the right --creds FILE, or a URL with user and password"
    )]
    Denied {
        /// Where (without a password).
        url: String,
        /// What happened.
        #[source]
        source: Source,
    },
    /// The credentials file cannot be used.
    #[error("the credentials file {} cannot be read", path.display())]
    Credentials {
        /// The file.
        path: PathBuf,
        /// What happened.
        #[source]
        source: std::io::Error,
    },
    /// The server lacks atomic batches.
    #[error(
        "nats-server {found} is too old: atomic writes need 2.12 or newer; update it and start again"
    )]
    TooOld {
        /// Its version.
        found: String,
    },
    /// The server, or this account on it, keeps nothing.
    #[error(
        "NATS at {url} has no JetStream for this account: start nats-server with `-js`, or enable it for the account"
    )]
    NoJetStream {
        /// Where (without a password).
        url: String,
    },
    /// A stream of ours is there and is not what it must be.
    #[error(
        "the stream {stream} cannot hold wasmorch's state: {why}; remove or rename it, or use another NATS account"
    )]
    WrongStream {
        /// Its name.
        stream: String,
        /// What is wrong with it.
        why: String,
    },
    /// The store failed while it was opened.
    #[error("the store cannot be opened")]
    Store(#[source] StoreError),
    /// The admin listener could not be bound.
    #[error("the admin listener cannot be bound at {addr}: choose another --admin ADDR")]
    Admin {
        /// Where.
        addr: SocketAddr,
        /// What happened.
        #[source]
        source: std::io::Error,
    },
}
