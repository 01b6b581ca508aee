//! The engine and what lives as long as it: epochs, the compile pool, the cache of compiled code.
//!
//! One [`Runtime`] per process; it is cheap to clone. The last clone that is dropped joins the
//! ticker and ends the compile pool.

use std::sync::Arc;

use wasmtime::PoolingAllocationConfig;
use wasmtime::{Config, Enabled, Engine, InstanceAllocationStrategy, OptLevel};

use crate::cache::Cache;
use crate::compile::CompilePool;
use crate::config::RuntimeConfig;
use crate::load::Loads;
use crate::pace::Pacer;
use crate::reuse::Places;

/// How deep a guest may recurse. Half of its stack: host calls run on the rest.
const WASM_STACK_BYTES: usize = 512 << 10;
/// The whole stack of a guest, host calls included.
const STACK_BYTES: usize = 1 << 20;
/// Memory that a free slot of the pool keeps, so that its next user faults on no page.
const MEMORY_KEEP_RESIDENT_BYTES: usize = 512 << 10;
/// The same for tables.
const TABLE_KEEP_RESIDENT_BYTES: usize = 64 << 10;
/// The same for stacks.
const STACK_KEEP_RESIDENT_BYTES: usize = 64 << 10;
/// The largest table. Components made from Python or JavaScript have tens of thousands of
/// functions; wasmtime's default of 20,000 is too small for some.
pub(crate) const TABLE_ELEMENTS_MAX: usize = 64 << 10;

/// Tables in the pool for each instance in it: adapters and shims have one each.
pub(crate) const TABLES_PER_INSTANCE: u32 = 4;

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

/// The engine with all that lives as long as it.
#[derive(Clone)]
pub struct Runtime {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) engine: Engine,
    pub(crate) pacer: Pacer,
    pub(crate) compile: CompilePool,
    pub(crate) cache: Option<Cache>,
    pub(crate) loads: Loads,
    pub(crate) config: RuntimeConfig,
    pub(crate) waiting: Places,
    pooled: bool,
}

impl Runtime {
    /// Builds the engine and starts the ticker.
    ///
    /// Where the address space for the pool cannot be reserved, instances are mapped on demand,
    /// and a warning says so. A cache folder that cannot be used is a warning too: code is then
    /// compiled anew by every process.
    ///
    /// # Errors
    ///
    /// When wasmtime refuses the configuration, or no thread can be started.
    pub fn new(config: RuntimeConfig) -> Result<Self, RuntimeError> {
        let (engine, pooled) = build_engine(&config)?;
        let turns = config.guest_threads;
        let pacer = Pacer::start(&engine, turns).map_err(RuntimeError::Ticker)?;
        let cache = config.compiled_dir.as_deref().and_then(|dir| {
            Cache::open(dir, &engine)
                .inspect_err(|error| {
                    tracing::warn!(dir = %dir.display(), %error, "compiled code will not be kept");
                })
                .ok()
        });
        let compile = CompilePool::new(config.compile_threads);
        let loads = Loads::default();
        Ok(Self {
            inner: Arc::new(Inner {
                engine,
                pacer,
                compile,
                cache,
                loads,
                config,
                waiting: Places::default(),
                pooled,
            }),
        })
    }

    /// Whether instances come from a pool reserved ahead.
    pub fn pooled(&self) -> bool {
        self.inner.pooled
    }

    /// The configuration it was made with.
    pub fn config(&self) -> &RuntimeConfig {
        &self.inner.config
    }

    pub(crate) fn engine(&self) -> &Engine {
        &self.inner.engine
    }
}

impl std::fmt::Debug for Runtime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Runtime")
            .field("config", &self.inner.config)
            .finish_non_exhaustive()
    }
}

fn build_engine(config: &RuntimeConfig) -> Result<(Engine, bool), RuntimeError> {
    if config.pooling {
        let mut pooled = base_config();
        pooled.allocation_strategy(InstanceAllocationStrategy::Pooling(pool_config(config)));
        match Engine::new(&pooled) {
            Ok(engine) => return Ok((engine, true)),
            Err(error) => tracing::warn!(
                instances = config.instances_max,
                memory_max = config.memory_max,
                error = format!("{error:#}"),
                "the pool of instances cannot be reserved; instances are mapped on demand, slower",
            ),
        }
    }
    let engine =
        Engine::new(&base_config()).map_err(|error| RuntimeError::Engine(format!("{error:#}")))?;
    Ok((engine, false))
}

/// What `wasmtime serve` has, and interruption on top.
fn base_config() -> Config {
    let mut config = Config::new();
    config
        .wasm_component_model(true)
        .wasm_component_model_async(true)
        .cranelift_opt_level(OptLevel::Speed)
        .parallel_compilation(true)
        .memory_init_cow(true)
        .epoch_interruption(true)
        .max_wasm_stack(WASM_STACK_BYTES)
        .async_stack_size(STACK_BYTES);
    config
}

fn pool_config(config: &RuntimeConfig) -> PoolingAllocationConfig {
    let instances = config.instances_max.max(1);
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(instances)
        // A component has several core instances: adapters, shims, shared libraries. Counted, not
        // reserved, so there may be plenty.
        .total_core_instances(instances.saturating_mul(64))
        .total_memories(instances)
        .total_tables(instances.saturating_mul(TABLES_PER_INSTANCE))
        // A 0.3 component has a stack per task.
        .total_stacks(instances.saturating_mul(4))
        .total_gc_heaps(instances)
        .max_memory_size(usize::try_from(config.memory_max).unwrap_or(usize::MAX))
        .max_memories_per_module(4)
        .max_tables_per_module(8)
        .table_elements(TABLE_ELEMENTS_MAX)
        .linear_memory_keep_resident(MEMORY_KEEP_RESIDENT_BYTES)
        .table_keep_resident(TABLE_KEEP_RESIDENT_BYTES)
        .async_stack_keep_resident(STACK_KEEP_RESIDENT_BYTES)
        .pagemap_scan(Enabled::Auto);
    pool
}
