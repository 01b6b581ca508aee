//! The data of a store, and how a store is made.
//!
//! One store, one instance, one request, unless it may be used again (`reuse.rs`). What is the same
//! for every request of a replica is in [`ReplicaShared`], made once when the replica is prepared.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Weak};

use wasmtime::{Engine, Store, UpdateDeadline};
use wasmtime_wasi::p1::WasiP1Ctx;
use wasmtime_wasi::{FsPerms, ResourceTable, WasiCtx, WasiCtxBuilder, WasiCtxView, WasiView};
use wasmtime_wasi_http::{WasiHttpCtx, WasiHttpCtxView, WasiHttpView};

use crate::artifact::{Artifact, Code};
use crate::config::ReplicaConfig;
use crate::ended::{Ended, PrepareError};
use crate::guest::{Deadline, RETRY_AFTER, Watch};
use crate::holdings::{self, RESOURCES_MAX, TASKS_MAX};
use crate::limits::{MemoryLimiter, Meter};
use crate::logs::{LineWriter, LogStream, RequestTag};
use crate::network::Sockets;
use crate::outbound::Hooks;
use crate::refusals::Refusals;
use crate::reuse::Pool;
use crate::runtime::Runtime;
use crate::streams::OpenStreams;
use crate::volume::{self, Places, Volumes};

/// Bytes of random data in one call.
const RANDOM_BYTES_MAX: u64 = 1 << 20;
/// What one call of a component may hand to the host, whatever its memory limit is.
const HANDED_BYTES: RangeInclusive<u64> = 1 << 20..=128 << 20;

/// What a store's data does at a tick of the epoch.
type AtTick<T> = fn(&mut T) -> wasmtime::Result<UpdateDeadline>;

/// What every store of a replica shares.
pub(crate) struct ReplicaShared {
    pub(crate) runtime: Runtime,
    engine: Engine,
    pub(crate) config: ReplicaConfig,
    /// What `wasi:config` answers.
    pub(crate) variables: BTreeMap<String, String>,
    pub(crate) volumes: Volumes,
    pub(crate) sockets: Arc<Sockets>,
    pub(crate) refusals: Arc<Refusals>,
    /// Some of them have a limit, which what it is linked to watches.
    pub(crate) is_limited: bool,
    pub(crate) meter: Arc<Meter>,
}

impl ReplicaShared {
    /// Checks what can be checked once: that the directories open.
    pub(crate) fn new(
        runtime: &Runtime,
        engine: &Engine,
        config: ReplicaConfig,
    ) -> Result<Arc<Self>, PrepareError> {
        let volumes = Volumes::open(&config.preopens)?;
        let is_limited = volume::is_limited(&config.preopens);
        let variables = config.config.iter().cloned().collect();
        let refusals = Refusals::new(config.logs.clone());
        let sockets = Arc::new(Sockets::new(config.network.clone(), refusals.clone()));
        let meter = Meter::new(config.account.clone(), config.limits.cpu_millis);
        let meter = Arc::new(meter);
        Ok(Arc::new(Self {
            runtime: runtime.clone(),
            engine: engine.clone(),
            config,
            variables,
            volumes,
            sockets,
            refusals,
            is_limited,
            meter,
        }))
    }

    /// Its code, loaded again if it was unloaded meanwhile. That it cannot be loaded is the host's fault and
    /// not the guest's. Must be called in a tokio runtime.
    pub(crate) async fn code(
        &self,
        artifact: &Arc<Artifact>,
        deadline: Option<Deadline>,
    ) -> Result<Arc<Code>, Ended> {
        if let Some(code) = self.runtime.code_now(artifact) {
            return Ok(code);
        }
        let load = self.runtime.load_again(artifact);
        let loaded = match deadline {
            Some(limit) => tokio::time::timeout_at(limit.at, load).await,
            None => Ok(load.await),
        };
        let message = match loaded {
            Ok(Ok(code)) => return Ok(code),
            Ok(Err(error)) => format!("its code cannot be loaded: {error}"),
            Err(_) => "its code was not loaded within the time of the request".to_owned(),
        };
        tracing::warn!(replica = self.config.name, message);
        Err(Ended::HostFull {
            message,
            retry_after: RETRY_AFTER,
        })
    }

    pub(crate) fn watch(&self) -> Arc<Watch> {
        Arc::new(self.new_watch())
    }

    /// The watch of an instance that several requests share.
    pub(crate) fn watch_of_several(&self) -> Arc<Watch> {
        Arc::new(self.new_watch().of_several())
    }

    fn new_watch(&self) -> Watch {
        Watch::new(
            self.runtime.clone(),
            self.meter.clone(),
            self.config.limits.memory_bytes,
        )
    }

    /// A context with everything but standard streams.
    pub(crate) fn wasi(&self) -> wasmtime::Result<WasiCtxBuilder> {
        let mut wasi = WasiCtxBuilder::new();
        wasi.args(&self.config.args)
            .envs(&self.config.env)
            .max_random_size(RANDOM_BYTES_MAX);
        for preopen in &self.config.preopens {
            let perms = if preopen.read_only {
                FsPerms::ReadOnly
            } else {
                FsPerms::ReadWrite
            };
            wasi.preopened_dir(&preopen.host, &preopen.guest, perms)?;
        }
        self.sockets.apply(&mut wasi);
        Ok(wasi)
    }

    /// Sends stdout and stderr to the logs.
    pub(crate) fn log_streams(
        &self,
        wasi: &mut WasiCtxBuilder,
        tag: &RequestTag,
    ) -> [LineWriter; 2] {
        let logs = &self.config.logs;
        let writers = [LogStream::Stdout, LogStream::Stderr]
            .map(|stream| LineWriter::new(logs.clone(), stream, tag.clone()));
        let [stdout, stderr] = writers.clone();
        wasi.stdout(stdout).stderr(stderr);
        writers
    }

    fn hooks(&self) -> Hooks {
        let config = &self.config;
        Hooks::new(
            config.outbound.clone(),
            config.limits.body_bytes,
            self.refusals.clone(),
        )
    }

    fn limiter(&self, watch: &Arc<Watch>) -> MemoryLimiter {
        MemoryLimiter::new(
            self.meter.clone(),
            watch.clone(),
            self.config.limits.memory_bytes,
        )
    }

    /// A store for a component.
    pub(crate) fn store(
        self: &Arc<Self>,
        wasi: WasiCtx,
        tag: RequestTag,
        watch: &Arc<Watch>,
    ) -> Store<GuestState> {
        let mut table = ResourceTable::new();
        table.set_max_capacity(RESOURCES_MAX);
        let state = GuestState {
            wasi,
            table,
            http: WasiHttpCtx::new(),
            hooks: self.hooks(),
            limiter: self.limiter(watch),
            tag,
            lines: None,
            places: Places::default(),
            streams: OpenStreams::default(),
            shared: self.clone(),
        };
        let mut store = Store::new(&self.engine, state);
        store.limiter(|state| &mut state.limiter);
        // Lists may name the same bytes again and again: what is copied out of the guest in one call
        // is no more than what it may have.
        let memory = self.config.limits.memory_bytes;
        let handed = memory.clamp(*HANDED_BYTES.start(), *HANDED_BYTES.end());
        store.set_hostcall_fuel(usize::try_from(handed).unwrap_or(usize::MAX));
        store.set_max_component_handles(RESOURCES_MAX);
        if let Some(tasks) = store.concurrent_resource_table() {
            tasks.set_max_capacity(TASKS_MAX);
        }
        self.begin(&mut store, |state| {
            let streams = state.streams.count();
            state.limiter.at_tick(&mut state.table, streams)
        });
        store
    }

    /// A store for a core module.
    pub(crate) fn module_store(
        self: &Arc<Self>,
        mut wasi: WasiP1Ctx,
        watch: &Arc<Watch>,
    ) -> Store<ModuleState> {
        wasi.ctx().table.set_max_capacity(RESOURCES_MAX);
        let state = ModuleState {
            wasi,
            limiter: self.limiter(watch),
        };
        let mut store = Store::new(&self.engine, state);
        store.limiter(|state| &mut state.limiter);
        self.begin(&mut store, |state| {
            // There are none of these in preview 1.
            state.limiter.at_tick(state.wasi.ctx().table, 0)
        });
        store
    }

    /// From here on the guest is asked at every tick whether it may go on.
    fn begin<T: 'static>(&self, store: &mut Store<T>, at_tick: AtTick<T>) {
        store.set_epoch_deadline(1);
        store.epoch_deadline_callback(move |mut store| at_tick(store.data_mut()));
        self.meter.started.fetch_add(1, Relaxed);
    }
}

/// The data of a component's store.
pub(crate) struct GuestState {
    wasi: WasiCtx,
    pub(crate) table: ResourceTable,
    http: WasiHttpCtx,
    pub(crate) hooks: Hooks,
    limiter: MemoryLimiter,
    tag: RequestTag,
    /// Its standard streams, where it may serve another request.
    lines: Option<[LineWriter; 2]>,
    pub(crate) places: Places,
    pub(crate) streams: OpenStreams,
    pub(crate) shared: Arc<ReplicaShared>,
}

impl GuestState {
    pub(crate) fn tag(&self) -> &RequestTag {
        &self.tag
    }

    /// It may serve another request: its lines will be said during that, and when memory is short
    /// those that wait go before it.
    pub(crate) fn may_be_kept(&mut self, lines: [LineWriter; 2], waiting: Weak<Pool>) {
        self.lines = Some(lines);
        self.limiter.instead_of(waiting);
    }

    /// What happens from now on belongs to another request.
    pub(crate) fn begin(&mut self, tag: RequestTag, watch: &Arc<Watch>) {
        for lines in self.lines.iter().flatten() {
            lines.begin(tag.clone());
        }
        self.tag = tag;
        self.limiter.begin(watch.clone());
    }

    /// A request begins in an instance for several: lines are said under this tag from now on.
    pub(crate) fn serve(&mut self, tag: RequestTag) {
        for lines in self.lines.iter().flatten() {
            lines.begin(tag.clone());
        }
        self.tag = tag;
    }

    /// Ends its lines. Whether it met no limit and left nothing of its request behind.
    pub(crate) fn is_between_requests(&mut self) -> bool {
        self.lines.iter().flatten().for_each(LineWriter::end_line);
        !self.limiter.was_denied() && holdings::is_between_requests(&mut self.table)
    }
}

impl WasiView for GuestState {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView {
            ctx: &mut self.wasi,
            table: &mut self.table,
        }
    }
}

impl WasiHttpView for GuestState {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView {
            ctx: &mut self.http,
            table: &mut self.table,
            hooks: &mut self.hooks,
        }
    }
}

/// The data of a core module's store.
pub(crate) struct ModuleState {
    pub(crate) wasi: WasiP1Ctx,
    limiter: MemoryLimiter,
}
