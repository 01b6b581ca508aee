//! Programs that run from start to end: `wasi:cli/run` 0.2 and 0.3, and core modules (preview 1).
//!
//! Used by `run`, by jobs and by services. One replica may run several times, one after another
//! or at the same time; the timeout is for each whole run, or for the start of what goes on for ever.

use std::sync::Arc;

use bytes::Bytes;
use tokio_util::sync::CancellationToken;
use wasmtime::{InstancePre, Linker};
use wasmtime_wasi::p1;
use wasmtime_wasi::p2::bindings as p2;
use wasmtime_wasi::p2::pipe::{MemoryInputPipe, MemoryOutputPipe};
use wasmtime_wasi::p3::bindings as p3;
use wasmtime_wasi::{I32Exit, WasiCtxBuilder};

use crate::artifact::{Artifact, Code, Compiled};
use crate::config::ReplicaConfig;
use crate::ended::{Ended, PrepareError};
use crate::gate::Gate;
use crate::guest::{Deadline, Metered, Watch, bounded};
use crate::limits::Usage;
use crate::link;
use crate::logs::RequestTag;
use crate::runtime::Runtime;
use crate::state::{GuestState, ModuleState, ReplicaShared};
use crate::volume;

/// What each captured stream holds at most; beyond it the guest's writes fail.
const CAPTURE_BYTES_MAX: usize = 16 << 20;
/// The exit code of a program whose `run` returns an error.
const EXIT_FAILURE: i32 = 1;

/// Where the standard streams of a program go.
#[derive(Clone)]
pub enum Stdio {
    /// Those of this process. For one program per process.
    Inherit,
    /// Output to the replica's [`crate::LogSink`], input from these bytes.
    Logs {
        /// What the program reads; empty: nothing.
        stdin: Bytes,
    },
    /// Output into memory, input from these bytes.
    Captured {
        /// What the program reads; empty: nothing.
        stdin: Bytes,
        /// Where the output is kept.
        output: Capture,
    },
}

/// The output of a program, kept in memory: at most 16 MiB of each stream.
#[derive(Clone)]
pub struct Capture {
    stdout: MemoryOutputPipe,
    stderr: MemoryOutputPipe,
}

impl Capture {
    /// Holds nothing yet.
    pub fn new() -> Self {
        Self {
            stdout: MemoryOutputPipe::new(CAPTURE_BYTES_MAX),
            stderr: MemoryOutputPipe::new(CAPTURE_BYTES_MAX),
        }
    }

    /// What was written to standard output so far.
    pub fn stdout(&self) -> Bytes {
        self.stdout.contents()
    }

    /// What was written to standard error so far.
    pub fn stderr(&self) -> Bytes {
        self.stderr.contents()
    }
}

impl Default for Capture {
    fn default() -> Self {
        Self::new()
    }
}

enum Pre {
    P2(p2::CommandPre<GuestState>),
    P3(p3::CommandPre<GuestState>),
    Module(InstancePre<ModuleState>),
}

/// Until when a program may take.
#[derive(Clone, Copy)]
struct Times {
    /// To be there: whatever its module does when it is instantiated.
    start: Option<Deadline>,
    /// To end.
    end: Option<Deadline>,
}

/// A replica that runs a program.
pub struct CommandReplica {
    shared: Arc<ReplicaShared>,
    pre: Pre,
    gate: Gate,
    /// It is about to run, or runs: its code stays.
    _code: Arc<Code>,
}

impl CommandReplica {
    /// Links the component or core module, once for all runs. A component that exports both
    /// versions of `wasi:cli/run` is run by 0.3.
    ///
    /// # Errors
    ///
    /// When it is no program, or imports what is not provided.
    pub fn prepare(
        runtime: &Runtime,
        artifact: &Arc<Artifact>,
        config: ReplicaConfig,
    ) -> Result<Self, PrepareError> {
        const WRONG: PrepareError = PrepareError::WrongShape {
            kind: "a program",
            expected: "wasi:cli/run@0.2, wasi:cli/run@0.3 or _start",
        };
        let mut concurrency = config.limits.concurrency;
        let code = link::code(runtime, artifact, &config)?;
        let pre = match &code.compiled {
            Compiled::Component(component) => {
                concurrency = link::concurrency(runtime, component, &config.limits)?;
                let is_limited = volume::is_limited(&config.preopens);
                let linked = link::pre(runtime, component, is_limited)?;
                match p3::CommandPre::new(linked.clone()) {
                    Ok(pre) => Pre::P3(pre),
                    Err(_) => Pre::P2(p2::CommandPre::new(linked).map_err(|_| WRONG)?),
                }
            }
            Compiled::Module(module) => {
                if module.get_export("_start").is_none() {
                    return Err(WRONG);
                }
                let linked = module_linker(runtime)
                    .and_then(|linker| linker.instantiate_pre(module))
                    .map_err(|error| PrepareError::Link(format!("{error:#}")))?;
                Pre::Module(linked)
            }
        };
        let (account, limits) = (config.account.clone(), &config.limits);
        let gate = Gate::new(account, concurrency, limits.queue);
        Ok(Self {
            shared: ReplicaShared::new(runtime, artifact.engine(), config)?,
            pre,
            gate,
            _code: code,
        })
    }

    /// Runs the program to its end and gives its exit code. Must be called in a tokio runtime.
    ///
    /// # Errors
    ///
    /// Why it did not end by itself; [`Ended::Stopped`] once `stop` is cancelled.
    pub async fn run(&self, stdio: Stdio, stop: CancellationToken) -> Result<i32, Ended> {
        let whole = Deadline::after(self.shared.config.limits.timeout);
        let times = Times {
            start: whole,
            end: whole,
        };
        self.within(times, stdio, stop, || {}).await
    }

    /// The same of a program that is meant to go on for ever: the timeout is for its start, and `up` is
    /// called when that is over.
    ///
    /// # Errors
    ///
    /// As of [`Self::run`].
    pub async fn serve(
        &self,
        stdio: Stdio,
        stop: CancellationToken,
        up: impl FnOnce() + Send,
    ) -> Result<i32, Ended> {
        let times = Times {
            start: Deadline::after(self.shared.config.limits.timeout),
            end: None,
        };
        self.within(times, stdio, stop, up).await
    }

    async fn within(
        &self,
        times: Times,
        stdio: Stdio,
        stop: CancellationToken,
        up: impl FnOnce() + Send,
    ) -> Result<i32, Ended> {
        let enter = self.gate.enter(times.start.map(|start| start.at));
        let _seat = enter.await?;
        let watch = self.shared.watch();
        let mut wasi = self
            .shared
            .wasi()
            .map_err(|error| watch.end(Ended::Internal(format!("{error:#}"))))?;
        self.streams(&mut wasi, stdio);
        let program = async {
            match &self.pre {
                Pre::Module(pre) => self.run_module(pre, wasi, &watch, times, up).await,
                Pre::P2(pre) => self.run_p2(pre, wasi, &watch, times, up).await,
                Pre::P3(pre) => self.run_p3(pre, wasi, &watch, times, up).await,
            }
        };
        let program = Metered::new(self.shared.meter.clone(), program);
        tokio::select! {
            biased;
            () = stop.cancelled() => Err(watch.end(Ended::Stopped)),
            ended = program => ended,
        }
    }

    fn streams(&self, wasi: &mut WasiCtxBuilder, stdio: Stdio) {
        match stdio {
            Stdio::Inherit => {
                wasi.inherit_stdio();
            }
            Stdio::Logs { stdin } => {
                wasi.stdin(MemoryInputPipe::new(stdin));
                self.shared.log_streams(wasi, &RequestTag::none());
            }
            Stdio::Captured { stdin, output } => {
                wasi.stdin(MemoryInputPipe::new(stdin));
                wasi.stdout(output.stdout).stderr(output.stderr);
            }
        }
    }

    async fn run_p2(
        &self,
        pre: &p2::CommandPre<GuestState>,
        mut wasi: WasiCtxBuilder,
        watch: &Arc<Watch>,
        times: Times,
        up: impl FnOnce(),
    ) -> Result<i32, Ended> {
        let mut store = self.shared.store(wasi.build(), RequestTag::none(), watch);
        let start = pre.instantiate_async(&mut store);
        let command = bounded(watch, times.start, start).await?;
        up();
        bounded(watch, times.end, async {
            let ended = command.wasi_cli_run().call_run(&mut store).await;
            exit_code(ended.map(|result| result.map_or(EXIT_FAILURE, |()| 0)))
        })
        .await
    }

    async fn run_p3(
        &self,
        pre: &p3::CommandPre<GuestState>,
        mut wasi: WasiCtxBuilder,
        watch: &Arc<Watch>,
        times: Times,
        up: impl FnOnce(),
    ) -> Result<i32, Ended> {
        let mut store = self.shared.store(wasi.build(), RequestTag::none(), watch);
        let start = pre.instantiate_async(&mut store);
        let command = bounded(watch, times.start, start).await?;
        up();
        bounded(watch, times.end, async {
            let ended = store
                .run_concurrent(async |store| command.wasi_cli_run().call_run(store).await)
                .await?;
            exit_code(ended.map(|result| result.map_or(EXIT_FAILURE, |()| 0)))
        })
        .await
    }

    async fn run_module(
        &self,
        pre: &InstancePre<ModuleState>,
        mut wasi: WasiCtxBuilder,
        watch: &Arc<Watch>,
        times: Times,
        up: impl FnOnce(),
    ) -> Result<i32, Ended> {
        let mut store = self.shared.module_store(wasi.build_p1(), watch);
        let start = pre.instantiate_async(&mut store);
        let instance = bounded(watch, times.start, start).await?;
        up();
        bounded(watch, times.end, async {
            let start = instance.get_typed_func::<(), ()>(&mut store, "_start")?;
            exit_code(start.call_async(&mut store, ()).await.map(|()| 0))
        })
        .await
    }

    /// What it uses.
    pub fn usage(&self) -> Usage {
        self.shared
            .meter
            .usage(self.gate.in_flight(), self.gate.queued())
    }
}

/// Leaving by `exit` is an error to wasmtime; here it is how a program ends.
fn exit_code(ended: wasmtime::Result<i32>) -> wasmtime::Result<i32> {
    ended.or_else(|error| match error.downcast_ref::<I32Exit>() {
        Some(exit) => Ok(exit.0),
        None => Err(error),
    })
}

fn module_linker(runtime: &Runtime) -> wasmtime::Result<Linker<ModuleState>> {
    let mut linker = Linker::new(runtime.engines().plain());
    p1::add_to_linker_async(&mut linker, |state: &mut ModuleState| &mut state.wasi)?;
    Ok(linker)
}
