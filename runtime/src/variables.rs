//! `wasi:config`: what a guest is told of its configuration.
//!
//! Other hosts know the interface by other names, alike to the letter. What is linked here serves all of
//! them, so that their components run unchanged.

use std::collections::BTreeMap;

use wasmtime::StoreContextMut;
use wasmtime::component::{ComponentType, Linker, Lower};

use crate::state::GuestState;

/// As `wit/` names them; a test of `link` holds the two equal.
const NAMES: [&str; 4] = [
    // wasmtime and wasmCloud 2.
    "wasi:config/store@0.2.0-rc.1",
    // wasmCloud 1, later and at first.
    "wasi:config/store@0.2.0-draft",
    "wasi:config/runtime@0.2.0-draft",
    // Spin.
    "wasi:config/store@0.2.0-draft-2024-09-27",
];

/// Adds the interface under each of its names.
pub(crate) fn add_to_linker(linker: &mut Linker<GuestState>) -> wasmtime::Result<()> {
    for name in NAMES {
        let mut instance = linker.instance(name)?;
        instance.func_wrap("get", |store, (key,): (String,)| {
            Ok((Answer::Ok(values(&store).get(&key).cloned()),))
        })?;
        instance.func_wrap("get-all", |store, (): ()| {
            let all = values(&store).iter();
            let all = all.map(|(key, value)| (key.clone(), value.clone()));
            Ok((Answer::Ok(all.collect::<Vec<_>>()),))
        })?;
    }
    Ok(())
}

type Answer<T> = Result<T, Unavailable>;

/// `error`: the values are at hand, so nothing here makes one.
#[derive(ComponentType, Lower)]
#[component(variant)]
#[expect(dead_code, reason = "the interface has it")]
enum Unavailable {
    #[component(name = "upstream")]
    Upstream(String),
    #[component(name = "io")]
    Io(String),
}

fn values<'a>(store: &'a StoreContextMut<'_, GuestState>) -> &'a BTreeMap<String, String> {
    &store.data().shared.variables
}
