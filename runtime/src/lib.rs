//! Runs one WebAssembly component well: engine, sandbox limits, capabilities, workload kinds.
//!
//! ```text
//!   Runtime ── load ──> Artifact ── prepare ──> HttpReplica | MessagesReplica | CommandReplica
//!   engine, epochs,     compiled code,          pre-linked; one store and one instance for each
//!   compile pool,       from the cache or       request, message or run; limits summed over all
//!   compiled cache      the compiler; unloaded  the live instances of the replica
//!                       while nobody uses it
//! ```
//!
//! Without the feature `compiler` it runs what another wasmorch compiled for it ([`Target`]).
//!
//! Invariants:
//!
//! - It knows no cluster: no NATS, no placement, no workload names beyond a label for traces. What
//!   it needs from outside comes in as trait objects ([`LogSink`], [`Messaging`],
//!   [`InternalRoute`], [`SecretStore`]).
//! - Nothing is granted by default. Every standard interface is linked, and denies at run time
//!   unless the [`ReplicaConfig`] allows.
//! - A guest can end only itself: memory, time, concurrency, bodies and lines are bounded, guests
//!   are interrupted by epochs, and a panic in a host call is a failed request.
//! - Whoever drops the future of a request drops its store.
//! - `unsafe` occurs in `cache.rs`, to map compiled code that was verified before, and in
//!   `ledger.rs`, to map the counters that runners share.

mod artifact;
mod bindings;
mod blobstore;
mod body;
mod budget;
mod cache;
mod command;
#[cfg(feature = "compiler")]
mod compile;
#[cfg(not(feature = "compiler"))]
#[path = "compile_absent.rs"]
mod compile;
mod config;
mod ended;
mod engines;
mod evict;
mod files;
mod gate;
mod given;
mod guest;
mod holdings;
mod http;
mod keyvalue;
mod ledger;
mod limits;
mod link;
mod listing;
mod load;
mod loaded;
mod logs;
mod messages;
mod names;
mod network;
mod outbound;
mod pace;
mod refusals;
mod reuse;
mod runtime;
mod secrets;
mod share;
mod state;
mod streams;
mod target;
mod ticker;
mod together;
mod variables;
mod volume;

/// Limits that nothing written in a spec moves, for whoever shows them.
pub mod fixed {
    pub use crate::engines::{TABLE_ELEMENTS_MAX, WASM_STACK_BYTES};
    pub use crate::holdings::{HANDLES_MAX, RESOURCES_MAX};
    pub use crate::limits::{INSTANCES_MAX, MEMORIES_MAX, TABLES_MAX};
    pub use crate::outbound::IN_HAND_MAX;
}

pub use artifact::{Artifact, Exports, Shape};
pub use blobstore::{
    BlobContainer, BlobContainers, BlobRead, MemoryContainer, ObjectInfo, ObjectsContainer,
    ObjectsError, S3Settings,
};
pub use body::{Awaited, Body, BodyError};
pub use budget::{HeldMemory, MemoryShare, NoMemory};
pub use cache::prepare_compiled_folder;
pub use command::{Capture, CommandReplica, Stdio};
#[cfg(feature = "compiler")]
pub use compile::compile_for;
pub use config::{Compiler, Limits, Preopen, ReplicaConfig, RuntimeConfig};
pub use ended::{BodySide, Ended, PrepareError};
pub use engines::ENGINE;
pub use files::{DISK_SPARE_BYTES, sync_folder, write_atomic};
pub use gate::{Place, Seat};
pub use given::check_folder as check_compiled_folder;
pub use http::{Admission, HttpReplica};
pub use keyvalue::{
    KEYS_PAGE, KeyValueError, KeyValueStore, KeyValueStores, Keys, MemoryStore, RedisStore,
    VALUE_BYTES_MAX, Version, increment_by_swaps,
};
pub use ledger::{Account, Field, Ledger};
pub use limits::Usage;
pub use link::{granted_imports, wasi_imports};
pub use load::LoadError;
pub use loaded::LoadedCode;
pub use logs::{LogLevel, LogLine, LogSink, LogStream, NoLogs, RequestId};
pub use messages::{Message, MessagesReplica, Messaging, MessagingError};
pub use network::{Network, SocketPattern};
pub use outbound::{HostPattern, InternalRoute, Lineage, OutboundHttp, PatternError, RouteError};
pub use reuse::Reuse;
pub use runtime::{Runtime, RuntimeError};
pub use secrets::{SECRET_BYTES_MAX, SecretError, SecretStore, SecretValue, Secrets};
pub use target::{Target, UnknownTarget, compiled_path};
