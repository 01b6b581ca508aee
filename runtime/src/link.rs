//! What guests can import: the linkers, and the same as names.
//!
//! Everything is linked for every replica, and denies at run time what was not granted; whether a
//! component may import it at all is checked when it is deployed. [`wasi_imports`] and
//! [`granted_imports`] name what is linked here, so that check can be held equal to it.

use std::sync::{Arc, OnceLock};

use wasmtime::Engine;
use wasmtime::component::{Component, HasSelf, InstancePre, Linker};

use crate::artifact::{Artifact, Code};
use crate::bindings::messaging;
use crate::blobstore;
use crate::config::{Limits, ReplicaConfig};
use crate::ended::PrepareError;
use crate::engines::TABLES_PER_INSTANCE;
use crate::keyvalue;
use crate::limits::ELEMENT_BYTES;
use crate::listing;
use crate::logs;
use crate::network::lookup;
use crate::runtime::Runtime;
use crate::secrets;
use crate::state::GuestState;
use crate::streams;
use crate::variables;
use crate::volume;

/// A page of WebAssembly memory.
const PAGE_BYTES: u64 = 64 << 10;

/// The interfaces that every guest may import, each with its version track: any version that is
/// compatible with it (`0.2` means 0.2.0 to 0.2.12).
pub fn wasi_imports() -> &'static [&'static str] {
    wasmorch_api::component::PROVIDED
}

/// The interfaces that a guest may import when a binding grants them, and the binding's name.
pub fn granted_imports() -> &'static [(&'static str, &'static str)] {
    wasmorch_api::component::GRANTED
}

/// One linker for each engine, without and with what watches the limits of volumes; made when it is needed.
#[derive(Default)]
pub(crate) struct Linkers([[OnceLock<Linker<GuestState>>; 2]; 2]);

/// The code of an artifact that was just loaded, for a replica whose volumes are held to their limits. May
/// block.
pub(crate) fn code(
    runtime: &Runtime,
    artifact: &Arc<Artifact>,
    config: &ReplicaConfig,
) -> Result<Arc<Code>, PrepareError> {
    let code = runtime.code_or_load(artifact);
    let code = code.map_err(|error| PrepareError::Link(error.to_string()))?;
    volume::check(code.component(), &config.preopens)?;
    Ok(code)
}

/// A component with all its imports resolved: what is left per request is to instantiate it.
pub(crate) fn pre(
    runtime: &Runtime,
    component: &Component,
    limited: bool,
) -> Result<InstancePre<GuestState>, PrepareError> {
    let engine = component.engine();
    let concurrent = runtime.engines().is_concurrent(engine);
    let [plain, limiting] = &runtime.inner.linkers.0[usize::from(concurrent)];
    let cell = if limited { limiting } else { plain };
    let linker = match cell.get() {
        Some(linker) => Ok(linker),
        None => linker(engine, concurrent, limited).map(|linker| cell.get_or_init(|| linker)),
    };
    linker
        .and_then(|linker| linker.instantiate_pre(component))
        .map_err(|error| PrepareError::Link(format!("{error:#}")))
}

fn linker(
    engine: &Engine,
    concurrent: bool,
    limited: bool,
) -> wasmtime::Result<Linker<GuestState>> {
    let mut linker = Linker::new(engine);
    wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
    wasmtime_wasi_http::p2::add_only_http_to_linker_async(&mut linker)?;
    if concurrent {
        wasmtime_wasi::p3::add_to_linker(&mut linker)?;
        wasmtime_wasi_http::p3::add_to_linker(&mut linker)?;
    }
    variables::add_to_linker(&mut linker)?;
    logs::add_to_linker(&mut linker)?;
    messaging::Messages::add_to_linker::<_, HasSelf<_>>(&mut linker, |state| state)?;
    keyvalue::add_to_linker(&mut linker)?;
    blobstore::add_to_linker(&mut linker)?;
    secrets::add_to_linker(&mut linker)?;
    lookup::add_to_linker(&mut linker, concurrent)?;
    if concurrent {
        streams::add_to_linker(&mut linker)?;
    }
    listing::add_to_linker(&mut linker, concurrent)?;
    if limited {
        volume::add_to_linker(&mut linker, concurrent)?;
    }
    Ok(linker)
}

/// How many instances may run at the same time: the limit, or fewer when not that many fit in the
/// memory with what each starts with, or in half of the pool of instances, memories and tables: the
/// other half is for everyone else. The rest waits in the queue instead of failing.
pub(crate) fn concurrency(
    runtime: &Runtime,
    component: &Component,
    limits: &Limits,
) -> Result<usize, PrepareError> {
    let required = component.resources_required();
    let (pages, elements) = required.as_ref().map_or((0, 0), |required| {
        let pages = required.max_initial_memory_size.unwrap_or(0);
        (pages, required.max_initial_table_size.unwrap_or(0))
    });
    let needed_bytes = pages
        .saturating_mul(PAGE_BYTES)
        .saturating_add(elements.saturating_mul(ELEMENT_BYTES));
    if needed_bytes > limits.memory_bytes {
        return Err(PrepareError::Memory {
            needed_bytes,
            limit_bytes: limits.memory_bytes,
        });
    }
    let fitting = limits
        .memory_bytes
        .checked_div(needed_bytes)
        .unwrap_or(u64::MAX);
    let half = required.map_or(u32::MAX, |required| {
        let instances = runtime.config().instances_max / 2;
        let tables = instances.saturating_mul(TABLES_PER_INSTANCE);
        let memories = instances / required.num_memories.max(1);
        memories.min(tables / required.num_tables.max(1)).max(1)
    });
    let pooled = if runtime.pooled() { half } else { u32::MAX };
    let fitting = fitting.min(u64::from(pooled));
    Ok(limits
        .concurrency
        .min(usize::try_from(fitting).unwrap_or(usize::MAX)))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use super::*;
    use crate::RuntimeConfig;

    /// What guests export, and what wasmtime has behind a feature.
    const NOT_IMPORTED: [&str; 6] = [
        "wasi:cli/run@0.2",
        "wasi:cli/run@0.3",
        "wasi:clocks/timezone@0.2",
        "wasi:clocks/timezone@0.3",
        "wasi:http/incoming-handler@0.2",
        "wasi:http/handler@0.3",
    ];

    /// An interface of `wit/deps`.
    struct Interface {
        full_name: String,
        /// The name of a function or of a resource; interfaces of types alone have none.
        function: Option<String>,
        resource: Option<String>,
    }

    /// The interfaces of `wit/deps` by their track. Reads the shape that these files have: one
    /// package each, interfaces at the left edge.
    fn interfaces() -> BTreeMap<String, Interface> {
        // Cargo runs tests in their package's folder.
        let deps = Path::new("../wit/deps");
        let mut found = BTreeMap::new();
        for entry in std::fs::read_dir(deps).unwrap() {
            let text = std::fs::read_to_string(entry.unwrap().path().join("package.wit")).unwrap();
            let package = text
                .lines()
                .find_map(|line| line.strip_prefix("package "))
                .unwrap();
            let package = package.trim_end_matches(';');
            let (package, version) = match package.split_once('@') {
                Some((package, version)) => (package, format!("@{version}")),
                None => (package, String::new()),
            };
            let track = match version.rsplit_once('.') {
                Some((track, _)) if !version.contains('-') => track,
                _ => &version,
            };
            for block in text.split("\ninterface ").skip(1) {
                let (name, rest) = block.split_once(' ').unwrap();
                let (body, _) = rest.split_once("\n}").unwrap();
                let words = |line: &str, sign: &str| {
                    line.split_once(sign)
                        .map(|(name, _)| name.trim().to_owned())
                };
                let function = body
                    .lines()
                    .filter(|line| line.contains(": func(") || line.contains(": async func("))
                    .find_map(|line| words(line, ": "));
                let resource = body
                    .lines()
                    .filter_map(|line| line.trim().strip_prefix("resource "))
                    .find_map(|line| line.split([' ', ';', '{']).next().map(str::to_owned));
                let full_name = format!("{package}/{name}{version}");
                let interface = Interface {
                    full_name,
                    function,
                    resource,
                };
                found.insert(format!("{package}/{name}{track}"), interface);
            }
        }
        found
    }

    #[test]
    fn the_names_are_those_of_the_interfaces() {
        let granted = granted_imports().iter().map(|(name, _)| *name);
        let mut named: Vec<_> = wasi_imports().iter().copied().chain(granted).collect();
        named.sort_unstable();
        let mut imported: Vec<_> = interfaces().into_keys().collect();
        imported.retain(|name| {
            !NOT_IMPORTED.contains(&name.as_str())
                && !name.starts_with("wasmcloud:messaging/handler")
        });
        assert_eq!(named, imported);
    }

    /// What is linked cannot be defined a second time.
    #[test]
    fn every_named_import_is_linked() {
        let runtime = Runtime::new(RuntimeConfig {
            pooling: false,
            ..Default::default()
        })
        .unwrap();
        let mut linker = linker(runtime.engines().concurrent(), true, false).unwrap();
        let interfaces = interfaces();
        let granted = granted_imports().iter().map(|(name, _)| *name);
        let mut checked = 0;
        for name in wasi_imports().iter().copied().chain(granted) {
            let interface = &interfaces[name];
            let mut instance = linker.instance(&interface.full_name).unwrap();
            let defined = match (&interface.resource, &interface.function) {
                (Some(resource), _) => {
                    let kind = wasmtime::component::ResourceType::host::<()>();
                    instance.resource(resource, kind, |_, _| Ok(())).is_err()
                }
                (None, Some(function)) => instance.func_wrap(function, |_, (): ()| Ok(())).is_err(),
                (None, None) => continue,
            };
            assert!(defined, "{} is not linked", interface.full_name);
            checked += 1;
        }
        assert!(checked > 45, "{checked}");
        let mut unknown = linker.instance("wasi:nn/graph@0.2.0").unwrap();
        assert!(unknown.func_wrap("load", |_, (): ()| Ok(())).is_ok());
    }
}
