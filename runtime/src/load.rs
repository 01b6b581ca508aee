//! From bytes to an [`Artifact`] with its code: from this process, from the cache, or from the compiler.
//!
//! Single flight: a digest that is being loaded is waited for, not loaded twice. A caller that goes away
//! stops nobody; compiling goes on and its result is kept.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt, Shared};
use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, oneshot};
use wasmorch_api::Digest;

use crate::artifact::{Artifact, Code, Compiled};
use crate::compile::{compile, serialize};
use crate::engines::ENGINE;
use crate::runtime::{Inner, Runtime};

/// Why bytes could not be loaded. Data, since it may have happened in another process.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum LoadError {
    /// Not WebAssembly at all.
    #[error("these bytes are not WebAssembly: {0}")]
    NotWasm(String),
    /// WebAssembly that is damaged, truncated, or uses what this engine does not know.
    #[error("this WebAssembly is not valid: {0}")]
    Invalid(String),
    /// The bytes are not those of the digest.
    #[error("the bytes have digest {actual}, not {expected}")]
    DigestMismatch {
        /// What was asked for.
        expected: String,
        /// What the bytes are.
        actual: String,
    },
    /// The compiler failed.
    #[error("compiling failed: {0}")]
    Compile(String),
    /// Whoever loaded it ended before it was done.
    #[error("loading was cut off")]
    CutOff,
    /// The file with the bytes could not be read.
    #[error("artifact {}: {} cannot be read: {reason}", digest.short(), path.display())]
    Unreadable {
        /// Which artifact.
        digest: Digest,
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// This program was built without one, and has no code to load.
    #[error(
        "this host has no compiler and {}: `wasmorch compile --target {} APP.wasm` makes it, by a wasmorch \
         with {ENGINE}; put it where --compiled of the host points",
        given.as_deref().map_or("was given no code".into(), |why| format!("refuses the code it was given: {why}")),
        crate::target::here(),
    )]
    NoCompiler {
        /// Why the code that was given is not used; `None`: none was.
        given: Option<String>,
    },
}

/// Code that is verified and mapped at the same time, off the async threads.
const MAPPED_AT_ONCE: usize = 4;

/// An artifact, its code held.
#[derive(Clone)]
struct Loaded(Arc<Artifact>, Arc<Code>);

type Landed = Result<Option<Loaded>, LoadError>;
type Flight = Shared<BoxFuture<'static, Landed>>;

/// Where the bytes are.
enum Bytecode {
    Here(Bytes),
    File(PathBuf),
}

/// What is loaded and what is being loaded.
pub(crate) struct Loads {
    table: Mutex<Table>,
    mapping: Arc<Semaphore>,
}

#[derive(Default)]
struct Table {
    known: HashMap<Digest, Weak<Artifact>>,
    flights: HashMap<Digest, Flight>,
}

impl Default for Loads {
    fn default() -> Self {
        Self {
            table: Mutex::default(),
            mapping: Arc::new(Semaphore::new(MAPPED_AT_ONCE)),
        }
    }
}

impl Loads {
    fn lock(&self) -> MutexGuard<'_, Table> {
        // A panic while it was held leaves both maps usable.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every artifact that somebody has.
    pub(crate) fn known(&self) -> Vec<Arc<Artifact>> {
        let table = self.lock();
        table.known.values().filter_map(Weak::upgrade).collect()
    }
}

impl Runtime {
    /// Loads an artifact: what this process has already, what the cache has, else compiles `bytes`
    /// on the compile pool and keeps the code. Must be called in a tokio runtime.
    ///
    /// # Errors
    ///
    /// When the bytes are no valid WebAssembly or have another digest.
    pub async fn load(&self, digest: &Digest, bytes: Bytes) -> Result<Arc<Artifact>, LoadError> {
        self.found(digest, Bytecode::Here(bytes)).await
    }

    /// The same with the bytes in a file, which stays as it is: read only when there is no code yet. While
    /// nobody uses the code it may be unloaded.
    ///
    /// # Errors
    ///
    /// As those of [`Self::load`], and when the file cannot be read.
    pub async fn load_file(
        &self,
        digest: &Digest,
        path: &Path,
    ) -> Result<Arc<Artifact>, LoadError> {
        let artifact = self.found(digest, Bytecode::File(path.to_owned())).await?;
        artifact.lies_in(path.to_owned());
        Ok(artifact)
    }

    /// Loads an artifact without its bytes: `None` when it is neither in this process nor in the
    /// cache. Must be called in a tokio runtime.
    ///
    /// # Errors
    ///
    /// When it is being compiled for another caller, and that fails.
    pub async fn load_cached(&self, digest: &Digest) -> Result<Option<Arc<Artifact>>, LoadError> {
        Ok(self
            .fly(digest, None)
            .await?
            .map(|Loaded(artifact, _)| artifact))
    }

    async fn found(&self, digest: &Digest, from: Bytecode) -> Result<Arc<Artifact>, LoadError> {
        let loaded = self.fly(digest, Some(from)).await?;
        loaded
            .map(|Loaded(artifact, _)| artifact)
            .ok_or_else(|| LoadError::Compile("no bytes".into()))
    }

    /// The code of an artifact, which was unloaded. Boxed: it is rare, and would make every request
    /// larger. Must be called in a tokio runtime.
    pub(crate) fn load_again<'a>(
        &'a self,
        artifact: &'a Artifact,
    ) -> BoxFuture<'a, Result<Arc<Code>, LoadError>> {
        let from = artifact.bytes().cloned().map(Bytecode::File);
        let loaded = self.fly(artifact.digest(), from);
        async {
            let loaded = loaded.await?;
            let gone = || LoadError::Compile("the code is gone, and so are the bytes".into());
            loaded.map(|Loaded(_, code)| code).ok_or_else(gone)
        }
        .boxed()
    }

    /// Its code, if that is in memory.
    pub(crate) fn code_now(&self, artifact: &Artifact) -> Option<Arc<Code>> {
        artifact.code(self.inner.counts.now_ms())
    }

    /// Its code, for somebody who just loaded it; mapped or compiled again where others have pushed it out
    /// meanwhile. Blocks then.
    pub(crate) fn code_or_load(&self, artifact: &Arc<Artifact>) -> Result<Arc<Code>, LoadError> {
        if let Some(code) = self.code_now(artifact) {
            return Ok(code);
        }
        let digest = artifact.digest();
        let Some(path) = artifact.bytes() else {
            return Err(LoadError::Compile("its code is gone".into()));
        };
        let loaded = match self.inner.map_kept(digest) {
            Ok(Some(loaded)) => loaded,
            _ => {
                let bytes =
                    std::fs::read(path).map_err(|error| unreadable(digest, path, &error))?;
                self.inner.load_or_compile(digest, &bytes)?
            }
        };
        Ok(loaded.1)
    }

    async fn fly(
        &self,
        digest: &Digest,
        mut from: Option<Bytecode>,
    ) -> Result<Option<Loaded>, LoadError> {
        loop {
            let (flight, job) = {
                let mut table = self.inner.loads.lock();
                let known = table.known.get(digest).and_then(Weak::upgrade);
                if let Some(artifact) = known
                    && let Some(code) = self.code_now(&artifact)
                {
                    return Ok(Some(Loaded(artifact, code)));
                }
                match table.flights.get(digest) {
                    Some(flight) => (flight.clone(), None),
                    None => {
                        let (flight, land) = flight();
                        table.flights.insert(digest.clone(), flight.clone());
                        (flight, Some((from.take(), land)))
                    }
                }
            };
            let is_own = job.is_some();
            if let Some((from, land)) = job {
                // Not under the lock: a task that is dropped at once takes its flight out itself.
                self.start(digest.clone(), from, land);
            }
            match flight.await {
                Ok(Some(loaded)) => return Ok(Some(loaded)),
                // That says nothing of our bytes.
                Ok(None)
                | Err(
                    LoadError::CutOff
                    | LoadError::Unreadable { .. }
                    | LoadError::DigestMismatch { .. },
                ) if !is_own && from.is_some() => {}
                ended => return ended,
            }
        }
    }

    /// A task, which ends with the load whoever waits for it.
    fn start(&self, digest: Digest, from: Option<Bytecode>, land: oneshot::Sender<Landed>) {
        let inner = self.inner.clone();
        let landing = Landing {
            inner: inner.clone(),
            digest: digest.clone(),
        };
        tokio::spawn(async move {
            let loaded = inner.obtain(&digest, from).await;
            // First: whoever finds nothing may start another.
            drop(landing);
            // No one may be waiting any more; what was compiled is then only kept in the cache.
            let _ = land.send(loaded);
        });
    }
}

/// What is waited for, and where it lands.
fn flight() -> (Flight, oneshot::Sender<Landed>) {
    let (land, landed) = oneshot::channel();
    let flight = async move { landed.await.unwrap_or(Err(LoadError::CutOff)) };
    (flight.boxed().shared(), land)
}

fn unreadable(digest: &Digest, path: &Path, error: &std::io::Error) -> LoadError {
    LoadError::Unreadable {
        digest: digest.clone(),
        path: path.to_owned(),
        reason: error.to_string(),
    }
}

/// Takes a flight out of the table when its work is over, however it ended.
struct Landing {
    inner: Arc<Inner>,
    digest: Digest,
}

impl Drop for Landing {
    fn drop(&mut self) {
        self.inner.loads.lock().flights.remove(&self.digest);
    }
}

impl Inner {
    async fn obtain(
        self: &Arc<Self>,
        digest: &Digest,
        from: Option<Bytecode>,
    ) -> Result<Option<Loaded>, LoadError> {
        let bytes = match from {
            Some(Bytecode::Here(bytes)) => bytes,
            from => {
                if let Some(loaded) = self.mapped(digest).await? {
                    return Ok(Some(loaded));
                }
                let Some(Bytecode::File(path)) = from else {
                    return Ok(None);
                };
                if let (Some(compiler), Some(_)) = (&self.config.compiler, &self.cache) {
                    compiler.compile(digest).await?;
                    if let Some(loaded) = self.mapped(digest).await? {
                        return Ok(Some(loaded));
                    }
                    // The disk is full, for instance: code runs from memory then.
                }
                let bytes = tokio::fs::read(&path).await;
                Bytes::from(bytes.map_err(|error| unreadable(digest, &path, &error))?)
            }
        };
        let (tx, rx) = oneshot::channel();
        let (inner, digest) = (self.clone(), digest.clone());
        let pool = self.compile.pool().map_err(LoadError::Compile)?;
        pool.spawn(move || {
            _ = tx.send(inner.load_or_compile(&digest, &bytes));
            inner.unload_too_much();
        });
        let loaded = rx.await;
        loaded
            .unwrap_or_else(|_| Err(LoadError::Compile("the compiler panicked".into())))
            .map(Some)
    }

    /// What is kept, mapped. That reads the whole file once to verify it, so it leaves the async threads.
    async fn mapped(self: &Arc<Self>, digest: &Digest) -> Result<Option<Loaded>, LoadError> {
        if self.cache.is_none() {
            return Ok(None);
        }
        // Never closed.
        let turn = self.loads.mapping.clone().acquire_owned().await;
        let (tx, rx) = oneshot::channel();
        let (inner, digest) = (self.clone(), digest.clone());
        tokio::task::spawn_blocking(move || {
            // Why code that was given is refused is told when nothing else helps: by `load_or_compile`.
            _ = tx.send(inner.map_kept(&digest).unwrap_or_default());
            // Whoever asked does not wait for the room to be made.
            inner.unload_too_much();
            drop(turn);
        });
        rx.await.map_err(|_| LoadError::CutOff)
    }

    fn load_or_compile(&self, digest: &Digest, bytes: &[u8]) -> Result<Loaded, LoadError> {
        let actual = Digest::of(bytes);
        if actual != *digest {
            return Err(LoadError::DigestMismatch {
                expected: digest.to_string(),
                actual: actual.to_string(),
            });
        }
        let given = match self.map_kept(digest) {
            Ok(Some(loaded)) => return Ok(loaded),
            Ok(None)
                if self.cache.is_none()
                    && (self.config.given_dir.is_some() || self.config.compiler.is_some()) =>
            {
                Some("its own folder for compiled code cannot be used".to_owned())
            }
            Ok(None) => None,
            Err(refused) => {
                tracing::warn!(%digest, reason = refused, "compiled code that was given is refused");
                Some(refused)
            }
        };
        let started = Instant::now();
        let compiled = compile(&self.engines, bytes).map_err(|error| match error {
            LoadError::NoCompiler { .. } => LoadError::NoCompiler { given },
            error => error,
        })?;
        let took = started.elapsed();
        tracing::info!(%digest, bytes = bytes.len(), ms = took.as_millis() as u64, "compiled");
        let mut is_kept = false;
        if let Some(cache) = &self.cache {
            match serialize(&compiled) {
                Ok(code) => is_kept = cache.put(digest, &code),
                Err(error) => {
                    tracing::warn!(%digest, "compiled code cannot be serialized: {error:#}")
                }
            }
        }
        Ok(self.remember(digest, (compiled, is_kept), Some(took)))
    }

    /// What the cache has, or was given; why what was given is not used.
    fn map_kept(&self, digest: &Digest) -> Result<Option<Loaded>, String> {
        let Some(cache) = &self.cache else {
            return Ok(None);
        };
        let compiled = cache.get(&self.engines, digest)?;
        Ok(compiled.map(|compiled| self.remember(digest, (compiled, true), None)))
    }

    fn remember(
        &self,
        digest: &Digest,
        compiled: (Compiled, bool),
        took: Option<Duration>,
    ) -> Loaded {
        self.counts.loaded();
        let mut table = self.loads.lock();
        if let Some(artifact) = table.known.get(digest).and_then(Weak::upgrade) {
            let code = artifact.take_in(compiled, &self.counts);
            return Loaded(artifact, code);
        }
        let (artifact, code) = Artifact::new(digest.clone(), compiled, took, &self.counts);
        let artifact = Arc::new(artifact);
        // Dropped artifacts leave their entry behind; collect them as others come.
        table.known.retain(|_, weak| weak.strong_count() > 0);
        table
            .known
            .insert(digest.clone(), Arc::downgrade(&artifact));
        Loaded(artifact, code)
    }
}
