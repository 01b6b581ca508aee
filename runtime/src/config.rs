//! What the runtime and a replica are told from outside, with the defaults of the contract.
//!
//! Plain data: nothing is opened, resolved or checked here.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use wasmorch_api::Digest;

use crate::{
    Account, BlobContainers, KeyValueStores, LoadError, LogSink, MemoryShare, Messaging, Network,
    NoLogs, OutboundHttp, Reuse, Secrets,
};

/// Compiles in another process: one for all that run guests, which need not be able to write to the folder of
/// compiled code then.
pub trait Compiler: Send + Sync + std::fmt::Debug {
    /// Resolves when the code of an artifact lies in the `compiled_dir` that both have, or could not be kept there.
    ///
    /// # Errors
    ///
    /// Why there is no code.
    fn compile(&self, digest: &Digest) -> BoxFuture<'static, Result<(), LoadError>>;
}

/// How a [`crate::Runtime`] is built. One per process.
#[derive(Debug, Clone)]
pub struct RuntimeConfig {
    /// Where compiled code is kept: `<compiled_dir>/<engine>/<target>/<digest>.cwasm`, the key of
    /// this host in `<compiled_dir>/key`. `None`: nothing is kept.
    pub compiled_dir: Option<PathBuf>,
    /// Bytes of code that may lie there; beyond it what was used longest ago is deleted.
    pub compiled_max: u64,
    /// Where the operator puts code that was compiled elsewhere, laid out as `compiled_dir`. It is taken
    /// only where nobody else may write, and only with a `compiled_dir`.
    pub given_dir: Option<PathBuf>,
    /// Instances that may live at the same time, over all replicas; sizes the pool.
    pub instances_max: u32,
    /// The largest memory that any replica may ask for, in bytes. It is reserved (not committed)
    /// for every instance of the pool.
    pub memory_max: u64,
    /// Compiled code that may be in memory, in bytes of its mappings. Beyond it what nobody uses is unloaded;
    /// what is in use may take more.
    pub loaded_max: u64,
    /// Threads that compile, at low priority.
    pub compile_threads: usize,
    /// Who compiles in place of this process, which then does so only what cannot be kept on disk.
    pub compiler: Option<Arc<dyn Compiler>>,
    /// Threads of the executor that run guests: so many guests run long at the same time.
    pub guest_threads: usize,
    /// Reserve all instances ahead (a host) instead of mapping them when they are made (`run`).
    pub pooling: bool,
}

impl Default for RuntimeConfig {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            compiled_dir: None,
            compiled_max: 8 << 30,
            given_dir: None,
            instances_max: 1000,
            // What a 32-bit memory can address.
            memory_max: 4 << 30,
            loaded_max: 256 << 20,
            // One core stays for what already runs.
            compile_threads: cores.saturating_sub(1).max(1),
            compiler: None,
            guest_threads: cores,
            pooling: true,
        }
    }
}

/// What one replica may use. Defaults are those of the manifest's `resources`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Linear memory, summed over all live instances of the replica.
    pub memory_bytes: u64,
    /// Wall clock of one request (until its response body ends), message or run. `None`: no limit.
    pub timeout: Option<Duration>,
    /// Requests or messages that run at the same time.
    pub concurrency: usize,
    /// Requests or messages that may wait for a free seat; beyond it they are refused as busy.
    pub queue: usize,
    /// The largest request body, and the largest response body.
    pub body_bytes: u64,
    /// Its share of the processor, in thousandths of a core, enforced over 100 ms. `None`: no
    /// limit.
    pub cpu_millis: Option<u64>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            memory_bytes: 64 << 20,
            timeout: Some(Duration::from_secs(30)),
            concurrency: 100,
            queue: 100,
            body_bytes: 16 << 20,
            cpu_millis: None,
        }
    }
}

/// A host directory that a guest sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Preopen {
    /// The directory on this machine.
    pub host: PathBuf,
    /// Its path for the guest.
    pub guest: String,
    /// Refuse writes.
    pub read_only: bool,
    /// At most so many bytes in it, each file and directory counting as 4 KiB at least. The count is
    /// kept beside the directory, in a file of its name and `.used`.
    pub limit_bytes: Option<u64>,
}

/// Everything a replica is given besides its code.
#[derive(Clone)]
pub struct ReplicaConfig {
    /// A label for traces, for example `shop/web/2-7-1`.
    pub name: String,
    /// Arguments of the program, the program's own name first.
    pub args: Vec<String>,
    /// Environment variables.
    pub env: Vec<(String, String)>,
    /// What `wasi:config/store` answers.
    pub config: Vec<(String, String)>,
    /// What it may use.
    pub limits: Limits,
    /// How often an instance is used (http replicas).
    pub reuse: Reuse,
    /// Where what it uses is counted, together with its shares in other processes.
    pub account: Account,
    /// Which hosts it may call by `wasi:http`.
    pub outbound: OutboundHttp,
    /// Which addresses it may reach by `wasi:sockets`.
    pub network: Network,
    /// Which directories it sees.
    pub preopens: Vec<Preopen>,
    /// Where its lines go: stdout, stderr, `wasi:logging`.
    pub logs: Arc<dyn LogSink>,
    /// What carries out `wasmcloud:messaging/consumer`, with its allow-lists applied; `None`
    /// denies.
    pub messaging: Option<Arc<dyn Messaging>>,
    /// The stores that `wasi:keyvalue` opens.
    pub keyvalue: KeyValueStores,
    /// The containers that `wasi:blobstore` opens.
    pub blobs: BlobContainers,
    /// What it may have of its process's memory besides; its stores are made with clones.
    pub share: MemoryShare,
    /// The secrets that `wasmcloud:secrets` hands out.
    pub secrets: Secrets,
}

impl ReplicaConfig {
    /// A replica that is granted nothing, with default limits and no logs.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            args: Vec::new(),
            env: Vec::new(),
            config: Vec::new(),
            limits: Limits::default(),
            reuse: Reuse::default(),
            account: Account::alone(),
            outbound: OutboundHttp::denied(),
            network: Network::Denied,
            preopens: Vec::new(),
            logs: Arc::new(NoLogs),
            messaging: None,
            keyvalue: KeyValueStores::default(),
            blobs: BlobContainers::default(),
            share: MemoryShare::default(),
            secrets: Secrets::default(),
        }
    }
}
