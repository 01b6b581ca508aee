//! What a process has one of: its engines, their epochs, the compile pool, the cache of compiled code.
//!
//! One [`Runtime`] per process; it is cheap to clone. The last clone that is dropped joins the
//! ticker and ends the compile pool.

use std::sync::Arc;

use crate::cache::Cache;
use crate::compile::CompilePool;
use crate::config::RuntimeConfig;
use crate::engines::Engines;
use crate::link::Linkers;
use crate::load::Loads;
use crate::loaded::Counts;
use crate::pace::Pacer;
use crate::reuse::Places;

/// Why a runtime could not be made.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// wasmtime refused the configuration.
    #[error("the WebAssembly engine cannot start: {0}")]
    Engine(String),
    /// No thread for the epoch ticker.
    #[error("the epoch thread cannot start")]
    Ticker(#[source] std::io::Error),
}

/// The engines with all that lives as long as they.
#[derive(Clone)]
pub struct Runtime {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) engines: Engines,
    pub(crate) pacer: Pacer,
    pub(crate) compile: CompilePool,
    pub(crate) cache: Option<Cache>,
    pub(crate) loads: Loads,
    pub(crate) counts: Arc<Counts>,
    pub(crate) linkers: Linkers,
    pub(crate) config: RuntimeConfig,
    pub(crate) waiting: Places,
}

impl Runtime {
    /// Builds the engines and starts the ticker.
    ///
    /// Where the address space for the pool cannot be reserved, instances are mapped on demand,
    /// and a warning says so. A cache folder that cannot be used is a warning too: code is then
    /// compiled anew by every process.
    ///
    /// # Errors
    ///
    /// When wasmtime refuses the configuration, or no thread can be started.
    pub fn new(config: RuntimeConfig) -> Result<Self, RuntimeError> {
        let engines = Engines::new(&config)?;
        let turns = config.guest_threads;
        let pacer = Pacer::start(engines.ticks(), turns).map_err(RuntimeError::Ticker)?;
        let cache = config.compiled_dir.as_deref().and_then(|dir| {
            Cache::open(dir, config.given_dir.clone(), config.compiled_max)
                .inspect_err(|error| {
                    tracing::warn!(dir = %dir.display(), %error, "compiled code will not be kept");
                })
                .ok()
        });
        let compile = CompilePool::new(config.compile_threads);
        Ok(Self {
            inner: Arc::new(Inner {
                engines,
                pacer,
                compile,
                cache,
                loads: Loads::default(),
                counts: Arc::default(),
                linkers: Linkers::default(),
                config,
                waiting: Places::default(),
            }),
        })
    }

    /// Whether instances come from a pool reserved ahead.
    pub fn pooled(&self) -> bool {
        self.inner.engines.pooled()
    }

    /// The configuration it was made with.
    pub fn config(&self) -> &RuntimeConfig {
        &self.inner.config
    }

    pub(crate) fn engines(&self) -> &Engines {
        &self.inner.engines
    }
}

impl std::fmt::Debug for Runtime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Runtime")
            .field("config", &self.inner.config)
            .finish_non_exhaustive()
    }
}
