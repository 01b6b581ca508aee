//! The volumes of a replica: directories of its slot, made when they are first needed.
//!
//! Invariant: a volume is named by checked names alone, so it lies where the data folder says.

use std::collections::BTreeMap;
use std::path::Path;

use wasmorch_api::spec::Volume;
use wasmorch_api::stores::SIZE_DEFAULT;
use wasmorch_runtime::{Preopen, Shape};

use super::protocol::ReplicaKey;

/// What the guests of the replica see of this host; the refusal says which volume and why.
pub(super) fn preopens(
    root: Option<&Path>,
    replica: &ReplicaKey,
    bindings: &BTreeMap<String, Volume>,
    shape: Shape,
) -> Result<Vec<Preopen>, String> {
    // What a core module writes cannot be counted, and a size that it names is refused.
    let default = matches!(shape, Shape::Component(_)).then_some(SIZE_DEFAULT);
    let mut preopens = Vec::with_capacity(bindings.len());
    for (name, volume) in bindings {
        let refused = |why: String| format!("bindings.volume.{name}: {why}");
        let root = root.ok_or_else(|| refused("this host keeps no volumes".into()))?;
        let legal = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if name.is_empty() || !name.chars().all(legal) {
            return Err(refused("its name is none".into()));
        }
        let workload = &replica.workload;
        let host = root
            .join(workload.namespace.as_str())
            .join(workload.name.as_str())
            .join(replica.id.slot.to_string())
            .join(name);
        std::fs::create_dir_all(&host)
            .map_err(|error| refused(format!("{} cannot be made: {error}", host.display())))?;
        preopens.push(Preopen {
            host,
            guest: volume.path.clone(),
            read_only: volume.mode == "ro",
            limit_bytes: volume.size.or(default).map(|size| size.0),
        });
    }
    Ok(preopens)
}
