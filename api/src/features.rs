//! What a host can run beyond what every host can, and what a revision needs of that.
//!
//! Owns the words. A host tells them with all else that it is (`HostInfo::features`), and placement passes
//! by a host that lacks one: an older one in a cluster that is being upgraded, which would only find out
//! when it tries. Every host has WASI 0.2 with all its capabilities, and the stores in JetStream and in
//! memory; what later versions add gets a word here.

use std::collections::BTreeMap;

use crate::component::Inspection;
use crate::spec::{StoreBinding, WorkloadSpec};

/// Components of WASI 0.3.
pub const WASI_0_3: &str = "wasi@0.3";

/// What a host of this version has.
pub const ALL: &[&str] = &["blobstore=disk", "blobstore=s3", "keyvalue=redis", WASI_0_3];

/// Backends that every host has.
const EVERYWHERE: [&str; 2] = ["jetstream", "memory"];

/// What a component needs, for its revision.
pub fn of_component(inspection: &Inspection) -> Vec<String> {
    let new = |name: &String| {
        let version = name.rsplit_once('@').map(|(_, version)| version);
        name.starts_with("wasi:") && version.is_some_and(|one| one.starts_with("0.3."))
    };
    let mut names = inspection.imports.iter().chain(&inspection.exports);
    let new = names.any(new);
    new.then(|| WASI_0_3.to_owned()).into_iter().collect()
}

/// What a spec needs besides.
pub fn of_spec(spec: &WorkloadSpec) -> Vec<String> {
    let stores = |binding: &str, stores: &BTreeMap<String, StoreBinding>| {
        let backends = stores.values().map(|store| &store.backend);
        backends
            .filter(|backend| !EVERYWHERE.contains(&backend.as_str()))
            .map(|backend| format!("{binding}={backend}"))
            .collect::<Vec<String>>()
    };
    let bindings = &spec.bindings;
    let mut all = stores("keyvalue", &bindings.keyvalue);
    all.extend(stores("blobstore", &bindings.blobstore));
    all.sort();
    all.dedup();
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::component::Shape;

    #[test]
    fn only_what_some_host_may_lack_has_a_word() {
        let component = |import: &str, export: &str| {
            of_component(&Inspection {
                shape: Shape::Component,
                exports: vec![export.to_owned()],
                imports: vec![import.to_owned()],
                kind: None,
                size_bytes: 1,
            })
        };
        let none: [&str; 0] = [];
        let (old, new) = ("wasi:http/types@0.2.4", "wasi:http/types@0.3.0");
        assert_eq!(component(old, "wasi:http/incoming-handler@0.2.4"), none);
        assert_eq!(
            component(new, "wasi:http/incoming-handler@0.2.4"),
            [WASI_0_3]
        );
        assert_eq!(component(old, "wasi:http/handler@0.3.0"), [WASI_0_3]);
    }

    #[test]
    fn a_host_of_this_version_has_every_backend_of_the_grammar() {
        let mut spec = WorkloadSpec::default();
        let store = |backend: &&str| StoreBinding {
            backend: (*backend).to_owned(),
            ..StoreBinding::default()
        };
        let (keyvalue, blobstore) = crate::manifest::backends();
        let bound = |words: Vec<&'static str>| {
            let words = words.into_iter();
            words.map(|word| (word.to_owned(), store(&word))).collect()
        };
        (spec.bindings.keyvalue, spec.bindings.blobstore) = (bound(keyvalue), bound(blobstore));
        let needed = of_spec(&spec);
        assert!(
            needed.iter().all(|one| ALL.contains(&one.as_str())),
            "{needed:?}"
        );
        assert_eq!(needed.len() + 1, ALL.len());
    }
}
