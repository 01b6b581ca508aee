//! In the place of `compile.rs` where the program is built without a compiler: it loads what was
//! compiled elsewhere, and says so when there is none.

use crate::artifact::Compiled;
use crate::engines::Engines;
use crate::load::LoadError;

/// Where code is verified and mapped: off the async threads.
pub(crate) struct Pool;

impl Pool {
    /// Called within a tokio runtime.
    #[expect(clippy::unused_self, reason = "as a pool of threads")]
    pub(crate) fn spawn(&self, job: impl FnOnce() + Send + 'static) {
        tokio::task::spawn_blocking(job);
    }
}

/// A pool that has nothing to compile.
pub(crate) struct CompilePool;

impl CompilePool {
    pub(crate) fn new(_threads: usize) -> Self {
        Self
    }

    #[expect(clippy::unnecessary_wraps, reason = "as with a compiler")]
    pub(crate) fn pool(&self) -> Result<&Pool, String> {
        Ok(&Pool)
    }
}

/// There is no compiler.
pub(crate) fn compile(_engines: &Engines, _bytes: &[u8]) -> Result<Compiled, LoadError> {
    Err(LoadError::NoCompiler { given: None })
}

/// Never asked for: nothing was compiled here.
pub(crate) fn serialize(_compiled: &Compiled) -> wasmtime::Result<Vec<u8>> {
    Err(wasmtime::format_err!(
        "code is serialized where it is compiled"
    ))
}
