//! The two engines of a runtime, and their settings.
//!
//! What uses nothing of the component model's concurrency (all of WASI 0.2, core modules) runs in an
//! engine without it: wasmtime then keeps no books of tasks for each call between host and guest. For a
//! small http component that was a sixth of the processor time of a request in a fresh instance, and a
//! quarter in one that is used again (`benches/README.md`).
//!
//! ```text
//!   plain        core modules; components of 0.2
//!   concurrent   components that name an interface of 0.3, or use async functions, streams, futures
//! ```
//!
//! Code compiled for one does not load in the other: wasmtime refuses it. Each has a pool of its own, so
//! twice the address space is reserved; limits are counted over both.
//!
//! A program without the feature `compiler` has the same engines, which load what another compiled.

use wasmtime::{
    Config, Enabled, Engine, InstanceAllocationStrategy, ModuleVersionStrategy,
    PoolingAllocationConfig,
};

use crate::config::RuntimeConfig;
use crate::runtime::RuntimeError;

/// Names what compiled code depends on, besides its target: the version of wasmtime (a mended compiler
/// compiles again), and our settings of it, counted up by whoever changes them. It stands in the code
/// itself too, and code of another name does not load.
pub const ENGINE: &str = "wasmtime-48.0.8-1";

/// How deep a guest may recurse. Half of its stack: host calls run on the rest.
pub const WASM_STACK_BYTES: usize = 512 << 10;
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
pub const TABLE_ELEMENTS_MAX: usize = 64 << 10;

/// Tables in the pool for each instance in it: adapters and shims have one each.
pub(crate) const TABLES_PER_INSTANCE: u32 = 4;

/// Both engines.
pub(crate) struct Engines {
    plain: Engine,
    concurrent: Engine,
    pooled: bool,
}

impl Engines {
    pub(crate) fn new(config: &RuntimeConfig) -> Result<Self, RuntimeError> {
        let (plain, plain_pooled) = build(config, false)?;
        let (concurrent, concurrent_pooled) = build(config, true)?;
        Ok(Self {
            plain,
            concurrent,
            pooled: plain_pooled && concurrent_pooled,
        })
    }

    /// For core modules, and what uses nothing of 0.3.
    pub(crate) fn plain(&self) -> &Engine {
        &self.plain
    }

    /// For all others.
    pub(crate) fn concurrent(&self) -> &Engine {
        &self.concurrent
    }

    /// Whether instances of both come from pools reserved ahead.
    pub(crate) fn pooled(&self) -> bool {
        self.pooled
    }

    /// Whether an engine is the one for 0.3.
    pub(crate) fn is_concurrent(&self, engine: &Engine) -> bool {
        Engine::same(&self.concurrent, engine)
    }

    /// What advances the epochs of both, for as long as either lives; it keeps neither alive.
    pub(crate) fn ticks(&self) -> impl FnMut() -> bool + Send + 'static {
        let engines = [&self.plain, &self.concurrent].map(Engine::weak);
        move || {
            let mut lives = false;
            for engine in engines.iter().filter_map(wasmtime::EngineWeak::upgrade) {
                engine.increment_epoch();
                lives = true;
            }
            lives
        }
    }
}

/// An engine, and whether it is pooled.
fn build(config: &RuntimeConfig, concurrent: bool) -> Result<(Engine, bool), RuntimeError> {
    if config.pooling {
        let mut pooled = base_config(concurrent)?;
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
    let engine = Engine::new(&base_config(concurrent)?).map_err(|error| refused(&error))?;
    Ok((engine, false))
}

fn refused(error: &wasmtime::Error) -> RuntimeError {
    RuntimeError::Engine(format!("{error:#}"))
}

/// What `wasmtime serve` has, and interruption on top. All that compiled code depends on is here.
pub(crate) fn base_config(concurrent: bool) -> Result<Config, RuntimeError> {
    let mut config = Config::new();
    config
        .wasm_component_model(true)
        .concurrency_support(concurrent)
        .wasm_component_model_async(concurrent)
        .memory_init_cow(true)
        .epoch_interruption(true)
        .max_wasm_stack(WASM_STACK_BYTES)
        .async_stack_size(STACK_BYTES)
        .module_version(ModuleVersionStrategy::Custom(ENGINE.to_owned()))
        .map_err(|error| refused(&error))?;
    #[cfg(feature = "compiler")]
    config
        .cranelift_opt_level(wasmtime::OptLevel::Speed)
        .parallel_compilation(true);
    Ok(config)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compiled_code_is_named_after_the_wasmtime_in_use() {
        let lock = include_str!("../../Cargo.lock");
        let (_, after) = lock
            .split_once("name = \"wasmtime\"\nversion = \"")
            .unwrap();
        let version = after.split('"').next().unwrap();
        assert!(
            ENGINE.starts_with(&format!("wasmtime-{version}-")),
            "{ENGINE}"
        );
    }
}
