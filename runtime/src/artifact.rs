//! A loaded artifact: compiled code, and what it exports.
//!
//! What an artifact is, is read from its exports and nothing else. Immutable and shared by every
//! replica of the same digest in this process.

use std::time::Duration;

use wasmorch_api::Digest;
use wasmtime::component::Component;
use wasmtime::{Engine, Module};

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

/// Compiled code.
pub(crate) enum Compiled {
    Component(Component),
    Module(Module),
}

/// Code that is loaded in this process, ready to be prepared.
pub struct Artifact {
    digest: Digest,
    shape: Shape,
    compiled: Compiled,
    compile_time: Option<Duration>,
}

impl Artifact {
    pub(crate) fn new(digest: Digest, compiled: Compiled, compile_time: Option<Duration>) -> Self {
        let shape = match &compiled {
            Compiled::Component(component) => Shape::Component(exports_of(component)),
            Compiled::Module(_) => Shape::CoreModule,
        };
        Self {
            digest,
            shape,
            compiled,
            compile_time,
        }
    }

    /// The digest of the bytes it was made from.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// Component or core module, and what it exports.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Whether the compiled code came from the cache.
    pub fn from_cache(&self) -> bool {
        self.compile_time.is_none()
    }

    /// How long it took to compile; `None` when it came from the cache.
    pub fn compile_time(&self) -> Option<Duration> {
        self.compile_time
    }

    /// The engine that it was compiled for.
    pub(crate) fn engine(&self) -> &Engine {
        match &self.compiled {
            Compiled::Component(component) => component.engine(),
            Compiled::Module(module) => module.engine(),
        }
    }

    pub(crate) fn component(&self) -> Option<&Component> {
        match &self.compiled {
            Compiled::Component(component) => Some(component),
            Compiled::Module(_) => None,
        }
    }

    pub(crate) fn compiled(&self) -> &Compiled {
        &self.compiled
    }
}

impl std::fmt::Debug for Artifact {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Artifact")
            .field("digest", &self.digest.to_string())
            .field("shape", &self.shape)
            .field("compile_time", &self.compile_time)
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
