//! A runner compiles nothing: it asks the daemon, which has a process for that.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::FutureExt as _;
use futures::future::BoxFuture;
use tokio::sync::{mpsc, oneshot};
use wasmorch_api::Digest;
use wasmorch_runtime::{Compiler, LoadError};

use super::protocol::FromRunner;

type Waiting = HashMap<Digest, Vec<oneshot::Sender<Result<(), LoadError>>>>;

/// See the module's head.
#[derive(Debug)]
pub(super) struct Elsewhere {
    out: mpsc::Sender<FromRunner>,
    waiting: Mutex<Waiting>,
}

impl Elsewhere {
    pub(super) fn new(out: mpsc::Sender<FromRunner>) -> Arc<Self> {
        Arc::new(Self {
            out,
            waiting: Mutex::default(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // Held to change the map, which does not panic.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The daemon has answered.
    pub(super) fn compiled(&self, digest: &Digest, result: &Result<(), LoadError>) {
        let waiting = self.lock().remove(digest);
        for waits in waiting.into_iter().flatten() {
            // It may have gone away meanwhile.
            let _ = waits.send(result.clone());
        }
    }
}

impl Compiler for Elsewhere {
    fn compile(&self, digest: &Digest) -> BoxFuture<'static, Result<(), LoadError>> {
        let (tx, rx) = oneshot::channel();
        self.lock().entry(digest.clone()).or_default().push(tx);
        let (out, digest) = (self.out.clone(), digest.clone());
        async move {
            // A daemon that is gone takes this process with it.
            let _ = out.send(FromRunner::Compile { digest }).await;
            rx.await.unwrap_or(Err(LoadError::CutOff))
        }
        .boxed()
    }
}
