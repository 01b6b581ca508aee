//! The compile pool: a bounded number of threads at low priority.
//!
//! Compiling is the only long computation of a host that no guest asked for, so it must neither
//! take every core nor starve what already runs. wasmtime compiles functions in parallel in the
//! rayon pool it is called in; calling it in this one bounds that too.

use std::sync::OnceLock;

use rayon::ThreadPool;

/// Added to the niceness of a compile thread: it yields to anything that serves.
#[cfg(target_os = "linux")]
const NICENESS: i32 = 10;

/// A pool that starts its threads at the first compilation.
pub(crate) struct CompilePool {
    threads: usize,
    pool: OnceLock<ThreadPool>,
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
    pub(crate) fn pool(&self) -> Result<&ThreadPool, String> {
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
