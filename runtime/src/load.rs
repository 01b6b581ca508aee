//! From bytes to an [`Artifact`]: from this process, from the cache, or from the compiler.
//!
//! Single flight: a digest that is being compiled is waited for, not compiled twice. A caller that
//! goes away stops nobody; the compilation goes on and its result is kept.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Instant;

use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt, Shared};
use tokio::sync::oneshot;
use wasmorch_api::Digest;

use crate::artifact::Artifact;
use crate::compile::{Pool, compile, serialize};
use crate::engines::ENGINE;
use crate::runtime::{Inner, Runtime};

/// Why bytes could not be loaded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
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

type Loaded = Result<Arc<Artifact>, LoadError>;
type Flight = Shared<BoxFuture<'static, Loaded>>;

/// What is loaded and what is being loaded.
#[derive(Default)]
pub(crate) struct Loads(Mutex<Table>);

#[derive(Default)]
struct Table {
    loaded: HashMap<Digest, Weak<Artifact>>,
    flights: HashMap<Digest, Flight>,
}

impl Loads {
    fn lock(&self) -> MutexGuard<'_, Table> {
        // A panic while it was held leaves both maps usable.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Runtime {
    /// Loads an artifact: what this process has already, what the cache has, else compiles `bytes`
    /// on the compile pool and keeps the code.
    ///
    /// # Errors
    ///
    /// When the bytes are no valid WebAssembly or have another digest.
    pub async fn load(&self, digest: &Digest, bytes: Bytes) -> Result<Arc<Artifact>, LoadError> {
        self.fly(digest, Some(bytes))
            .await?
            .ok_or_else(|| LoadError::Compile("no bytes".into()))
    }

    /// Loads an artifact without its bytes: `None` when it is neither in this process nor in the
    /// cache.
    ///
    /// # Errors
    ///
    /// When it is being compiled for another caller, and that fails.
    pub async fn load_cached(&self, digest: &Digest) -> Result<Option<Arc<Artifact>>, LoadError> {
        self.fly(digest, None).await
    }

    async fn fly(
        &self,
        digest: &Digest,
        bytes: Option<Bytes>,
    ) -> Result<Option<Arc<Artifact>>, LoadError> {
        // Started before the table is locked: a job that is refused would unlock it again itself.
        let pool = match &bytes {
            Some(_) => Some(self.inner.compile.pool().map_err(LoadError::Compile)?),
            None => None,
        };
        let flight = {
            let mut table = self.inner.loads.lock();
            if let Some(artifact) = table.loaded.get(digest).and_then(Weak::upgrade) {
                return Ok(Some(artifact));
            }
            match (table.flights.get(digest), bytes.zip(pool)) {
                (Some(flight), _) => Some(flight.clone()),
                (None, Some((bytes, pool))) => {
                    let flight = self.start(pool, digest.clone(), bytes);
                    table.flights.insert(digest.clone(), flight.clone());
                    Some(flight)
                }
                (None, None) => None,
            }
        };
        match flight {
            Some(flight) => flight.await.map(Some),
            None => self.map_cached(digest).await,
        }
    }

    /// Mapping reads the whole file once to verify it, so it leaves the async threads.
    async fn map_cached(&self, digest: &Digest) -> Result<Option<Arc<Artifact>>, LoadError> {
        if self.inner.cache.is_none() {
            return Ok(None);
        }
        let (inner, digest) = (self.inner.clone(), digest.clone());
        // Why code that was given is refused is told when nothing else helps: by `load`.
        tokio::task::spawn_blocking(move || inner.map_kept(&digest).unwrap_or_default())
            .await
            .map_err(|error| LoadError::Compile(error.to_string()))
    }

    fn start(&self, pool: &Pool, digest: Digest, bytes: Bytes) -> Flight {
        let (tx, rx) = oneshot::channel();
        let inner = self.inner.clone();
        let landing = Landing {
            inner: inner.clone(),
            digest: digest.clone(),
        };
        pool.spawn(move || {
            // Also when compiling panics, the flight ends and the next caller starts another.
            let _landing = landing;
            // No one may be waiting any more; the artifact is then only kept in the cache.
            let _ = tx.send(inner.load_or_compile(&digest, &bytes));
        });
        async move {
            rx.await
                .unwrap_or_else(|_| Err(LoadError::Compile("the compiler panicked".into())))
        }
        .boxed()
        .shared()
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
    fn load_or_compile(&self, digest: &Digest, bytes: &[u8]) -> Loaded {
        let actual = Digest::of(bytes);
        if actual != *digest {
            return Err(LoadError::DigestMismatch {
                expected: digest.to_string(),
                actual: actual.to_string(),
            });
        }
        let given = match self.map_kept(digest) {
            Ok(Some(artifact)) => return Ok(artifact),
            Ok(None) if self.cache.is_none() && self.config.given_dir.is_some() => {
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
        if let Some(cache) = &self.cache {
            match serialize(&compiled) {
                Ok(code) => cache.put(digest, &code),
                Err(error) => {
                    tracing::warn!(%digest, "compiled code cannot be serialized: {error:#}")
                }
            }
        }
        let artifact = Artifact::new(digest.clone(), compiled, Some(took));
        Ok(self.remember(artifact))
    }

    /// What the cache has, or was given; why what was given is not used.
    fn map_kept(&self, digest: &Digest) -> Result<Option<Arc<Artifact>>, String> {
        let Some(cache) = &self.cache else {
            return Ok(None);
        };
        let compiled = cache.get(&self.engines, digest)?;
        Ok(compiled.map(|compiled| self.remember(Artifact::new(digest.clone(), compiled, None))))
    }

    fn remember(&self, artifact: Artifact) -> Arc<Artifact> {
        let artifact = Arc::new(artifact);
        let mut table = self.loads.lock();
        // Dropped artifacts leave their entry behind; collect them as others come.
        table.loaded.retain(|_, weak| weak.strong_count() > 0);
        table
            .loaded
            .insert(artifact.digest().clone(), Arc::downgrade(&artifact));
        artifact
    }
}
