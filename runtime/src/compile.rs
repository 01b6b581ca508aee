//! From WebAssembly to code: for the engines of this process, or for a host elsewhere.
//!
//! Here it is done in a pool of a bounded number of threads at low priority. Compiling is the only long computation of a host that no guest asked for, so it must neither
//! take every core nor starve what already runs. wasmtime compiles functions in parallel in the
//! rayon pool it is called in; calling it in this one bounds that too.

use std::sync::OnceLock;

use wasmorch_api::component;
use wasmtime::component::Component;
use wasmtime::{Engine, Module};

use crate::artifact::Compiled;
use crate::engines::{Engines, base_config};
use crate::load::LoadError;
use crate::target::Target;

/// Added to the niceness of a compile thread: it yields to anything that serves.
#[cfg(target_os = "linux")]
const NICENESS: i32 = 10;

/// Its threads.
pub(crate) type Pool = rayon::ThreadPool;

/// A pool that starts its threads at the first compilation.
pub(crate) struct CompilePool {
    threads: usize,
    pool: OnceLock<Pool>,
}

impl CompilePool {
    pub(crate) fn new(threads: usize) -> Self {
        Self {
            threads: threads.max(1),
            pool: OnceLock::new(),
        }
    }

    /// The pool; a job is `spawn`ed on it. A panic in a job is logged and ends that job only.
    ///
    /// Fails when its threads cannot be started.
    pub(crate) fn pool(&self) -> Result<&Pool, String> {
        if let Some(pool) = self.pool.get() {
            return Ok(pool);
        }
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(self.threads)
            .thread_name(|n| format!("wasmorch-compile-{n}"))
            .start_handler(|_| lower_priority())
            .panic_handler(|_| tracing::error!("a compilation panicked"))
            .build()
            .map_err(|error| error.to_string())?;
        // Another thread may have been first; its pool is as good.
        Ok(self.pool.get_or_init(|| pool))
    }
}

#[cfg(target_os = "linux")]
fn lower_priority() {
    // On Linux the priority of a "process" is that of the thread with that id.
    let thread = rustix::thread::gettid();
    if let Err(error) = rustix::process::setpriority_process(Some(thread), NICENESS) {
        tracing::debug!(%error, "compile threads keep their priority");
    }
}

#[cfg(not(target_os = "linux"))]
fn lower_priority() {}

/// Compiles bytes for the engine that they need.
pub(crate) fn compile(engines: &Engines, bytes: &[u8]) -> Result<Compiled, LoadError> {
    if is_component(bytes)? {
        // The plain engine refuses the concurrency it does not have while it reads types, so before
        // anything is compiled. What the other says of bytes that are wrong is then the answer.
        let plain = || Component::from_binary(engines.plain(), bytes);
        if !names_concurrent(bytes)
            && let Ok(component) = plain()
        {
            return Ok(Compiled::Component(component));
        }
        Component::from_binary(engines.concurrent(), bytes).map(Compiled::Component)
    } else {
        Module::from_binary(engines.plain(), bytes).map(Compiled::Module)
    }
    .map_err(|error| invalid(&error))
}

/// What [`compile`] made, to be kept.
pub(crate) fn serialize(compiled: &Compiled) -> wasmtime::Result<Vec<u8>> {
    match compiled {
        Compiled::Component(component) => component.serialize(),
        Compiled::Module(module) => module.serialize(),
    }
}

/// Compiles bytes for a host elsewhere: what its engines load, and any processor of the target runs.
/// Uses every core, and is not short: seconds for a component of tens of megabytes.
///
/// # Errors
///
/// When the bytes are no valid WebAssembly.
pub fn compile_for(target: Target, bytes: &[u8]) -> Result<Vec<u8>, LoadError> {
    let engine = |concurrent| {
        let mut config =
            base_config(concurrent).map_err(|error| LoadError::Compile(error.to_string()))?;
        config
            .target(target.triple())
            .and_then(|config| Engine::new(config))
            .map_err(|error| LoadError::Compile(format!("for {target}: {error:#}")))
    };
    if is_component(bytes)? {
        if !names_concurrent(bytes)
            && let Ok(code) = engine(false)?.precompile_component(bytes)
        {
            return Ok(code);
        }
        engine(true)?.precompile_component(bytes)
    } else {
        engine(false)?.precompile_module(bytes)
    }
    .map_err(|error| invalid(&error))
}

fn invalid(error: &wasmtime::Error) -> LoadError {
    LoadError::Invalid(format!("{error:#}"))
}

/// The bytes after the magic: version and layer. A component's layer is 1, a module's 0.
fn is_component(bytes: &[u8]) -> Result<bool, LoadError> {
    let Some(header) = bytes.strip_prefix(b"\0asm") else {
        return Err(LoadError::NotWasm(format!(
            "they begin with `{}`, not with \\0asm",
            bytes[..bytes.len().min(16)].escape_ascii()
        )));
    };
    Ok(header.get(2) == Some(&1))
}

/// Whether it names an interface of WASI 0.3: those are linked in the concurrent engine only, also where
/// a component uses nothing of them that is async.
fn names_concurrent(bytes: &[u8]) -> bool {
    let is_concurrent = |name: &String| name.starts_with("wasi:") && name.contains("@0.3.");
    component::names(bytes).iter().any(is_concurrent)
}
