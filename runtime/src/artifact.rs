//! An artifact, what it exports, and its code while that is in memory.
//!
//! What an artifact is, is read from its exports and nothing else. Shared by every replica of the same digest
//! in this process, and so is its code, linked once for all of them: nothing of a replica is in it.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use wasmorch_api::Digest;
use wasmtime::component::{Component, InstancePre};
use wasmtime::{Engine, Module};

use crate::bindings::messaging::MessagesPre;
use crate::ended::PrepareError;
use crate::http::{self, HttpPre};
use crate::link;
use crate::loaded::{Counted, Counts};
use crate::messages;
use crate::state::{GuestState, ReplicaShared};

/// The well-known interfaces that a component exports.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Exports {
    /// `wasi:http/incoming-handler@0.2`.
    pub http_p2: bool,
    /// `wasi:http/handler@0.3`.
    pub http_p3: bool,
    /// `wasmcloud:messaging/handler@0.2`.
    pub messages: bool,
    /// `wasi:cli/run@0.2`.
    pub command_p2: bool,
    /// `wasi:cli/run@0.3`.
    pub command_p3: bool,
}

/// What kind of WebAssembly an artifact is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// A component, with the well-known interfaces it exports.
    Component(Exports),
    /// A core module (preview 1).
    CoreModule,
}

/// What the compiler made.
pub(crate) enum Compiled {
    Component(Component),
    Module(Module),
}

impl Compiled {
    fn engine(&self) -> &Engine {
        match self {
            Self::Component(component) => component.engine(),
            Self::Module(module) => module.engine(),
        }
    }

    /// Of its mapping: machine code, and what belongs to it.
    fn bytes(&self) -> u64 {
        let image = match self {
            Self::Component(component) => component.image_range(),
            Self::Module(module) => module.image_range(),
        };
        (image.end as usize).saturating_sub(image.start as usize) as u64
    }
}

/// Compiled code in memory, linked as far as somebody needed it. Whoever executes it holds it.
pub(crate) struct Code {
    pub(crate) compiled: Compiled,
    /// The cache has it, too.
    is_kept: bool,
    /// By whether its volumes have limits.
    http: [OnceLock<HttpPre>; 2],
    messages: [OnceLock<MessagesPre<GuestState>>; 2],
    counted: Counted,
}

impl Code {
    pub(crate) fn component(&self) -> Option<&Component> {
        match &self.compiled {
            Compiled::Component(component) => Some(component),
            Compiled::Module(_) => None,
        }
    }

    /// Linked to be called by `wasi:http`, once for all replicas.
    pub(crate) fn http(&self, replica: &ReplicaShared) -> Result<&HttpPre, PrepareError> {
        self.linked(&self.http, replica, HttpPre::new, http::WRONG)
    }

    /// Linked to be called by `wasmcloud:messaging`, once for all replicas.
    pub(crate) fn messages(
        &self,
        replica: &ReplicaShared,
    ) -> Result<&MessagesPre<GuestState>, PrepareError> {
        let of = |linked| MessagesPre::new(linked).map_err(|_| messages::WRONG);
        self.linked(&self.messages, replica, of, messages::WRONG)
    }

    fn linked<'a, P>(
        &'a self,
        cells: &'a [OnceLock<P>; 2],
        replica: &ReplicaShared,
        of: impl FnOnce(InstancePre<GuestState>) -> Result<P, PrepareError>,
        wrong: PrepareError,
    ) -> Result<&'a P, PrepareError> {
        let is_limited = replica.is_limited;
        let cell = &cells[usize::from(is_limited)];
        if let Some(linked) = cell.get() {
            return Ok(linked);
        }
        let component = self.component().ok_or(wrong)?;
        let linked = of(link::pre(&replica.runtime, component, is_limited)?)?;
        // Somebody else may have been first; that is as good.
        Ok(cell.get_or_init(|| linked))
    }
}

/// An artifact that was loaded in this process. Its code may be unloaded while nobody uses it, and is had
/// again from the cache, or from the bytes.
pub struct Artifact {
    digest: Digest,
    shape: Shape,
    engine: Engine,
    compile_time: Option<Duration>,
    /// A file with its bytes. Without one its code stays.
    bytes: OnceLock<PathBuf>,
    code: Mutex<Option<Arc<Code>>>,
    /// When its code was loaded, or last asked for: milliseconds of the runtime's time.
    used_ms: AtomicU64,
}

impl Artifact {
    /// With its code loaded.
    pub(crate) fn new(
        digest: Digest,
        (compiled, is_kept): (Compiled, bool),
        compile_time: Option<Duration>,
        counts: &Arc<Counts>,
    ) -> (Self, Arc<Code>) {
        let shape = match &compiled {
            Compiled::Component(component) => Shape::Component(exports_of(component)),
            Compiled::Module(_) => Shape::CoreModule,
        };
        let artifact = Self {
            digest,
            shape,
            engine: compiled.engine().clone(),
            compile_time,
            bytes: OnceLock::new(),
            code: Mutex::default(),
            used_ms: AtomicU64::new(0),
        };
        let code = artifact.take_in((compiled, is_kept), counts);
        (artifact, code)
    }

    /// The digest of the bytes it was made from.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// Component or core module, and what it exports.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Whether the compiled code came from the cache, when it was loaded first.
    pub fn from_cache(&self) -> bool {
        self.compile_time.is_none()
    }

    /// How long it took to compile; `None` when it came from the cache.
    pub fn compile_time(&self) -> Option<Duration> {
        self.compile_time
    }

    /// Whether its code is in memory.
    pub fn is_loaded(&self) -> bool {
        self.lock().is_some()
    }

    /// The engine that it was compiled for.
    pub(crate) fn engine(&self) -> &Engine {
        &self.engine
    }

    fn lock(&self) -> MutexGuard<'_, Option<Arc<Code>>> {
        // Held to copy or replace it, neither of which panics.
        self.code.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its bytes are in this file: from now on its code may be unloaded.
    pub(crate) fn lies_in(&self, path: PathBuf) {
        // The first is as good as any other: they have the same bytes.
        let _ = self.bytes.set(path);
    }

    pub(crate) fn bytes(&self) -> Option<&PathBuf> {
        self.bytes.get()
    }

    /// Its code, if it is loaded; it is used from now.
    pub(crate) fn code(&self, now_ms: u64) -> Option<Arc<Code>> {
        self.used_ms.store(now_ms, Relaxed);
        self.lock().clone()
    }

    /// Its code has been loaded again.
    pub(crate) fn take_in(
        &self,
        (compiled, is_kept): (Compiled, bool),
        counts: &Arc<Counts>,
    ) -> Arc<Code> {
        self.used_ms.store(counts.now_ms(), Relaxed);
        let mut held = self.lock();
        if let Some(code) = &*held {
            return code.clone();
        }
        let code = Arc::new(Code {
            counted: Counted::new(counts, compiled.bytes()),
            compiled,
            is_kept,
            http: Default::default(),
            messages: Default::default(),
        });
        *held = Some(code.clone());
        code
    }

    /// What can be unloaded, nobody using it: when that was last, and its bytes. Code that is used now was used
    /// until now.
    pub(crate) fn unused(&self, now_ms: u64) -> Option<(u64, u64)> {
        self.bytes.get()?;
        let code = self.lock();
        let code = code.as_ref().filter(|code| code.is_kept)?;
        if Arc::strong_count(code) > 1 {
            self.used_ms.store(now_ms, Relaxed);
            return None;
        }
        Some((self.used_ms.load(Relaxed), code.counted.bytes))
    }

    /// Its code, to be dropped, unless somebody uses it by now.
    pub(crate) fn unload(&self) -> Option<Code> {
        let mut code = self.lock();
        let unloaded = Arc::try_unwrap(code.take()?);
        unloaded.map_err(|used| *code = Some(used)).ok()
    }
}

impl std::fmt::Debug for Artifact {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Artifact")
            .field("digest", &self.digest.to_string())
            .field("shape", &self.shape)
            .field("compile_time", &self.compile_time)
            .field("loaded", &self.is_loaded())
            .finish()
    }
}

fn exports_of(component: &Component) -> Exports {
    let mut found = Exports::default();
    for (name, _) in component.component_type().exports(component.engine()) {
        match name.split_once('@') {
            Some(("wasi:http/incoming-handler", v)) if v.starts_with("0.2.") => {
                found.http_p2 = true
            }
            Some(("wasi:http/handler", v)) if v.starts_with("0.3.") => found.http_p3 = true,
            Some(("wasmcloud:messaging/handler", v)) if v.starts_with("0.2.") => {
                found.messages = true;
            }
            Some(("wasi:cli/run", v)) if v.starts_with("0.2.") => found.command_p2 = true,
            Some(("wasi:cli/run", v)) if v.starts_with("0.3.") => found.command_p3 = true,
            _ => {}
        }
    }
    found
}
