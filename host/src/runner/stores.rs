//! The stores of a replica, from its bindings: which backend serves which name.
//!
//! Owns the defaults that a binding leaves out. Nothing is opened here: a store connects when a
//! guest first uses it, so a server that is down keeps no replica from starting.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use wasmorch_api::spec::StoreBinding;
use wasmorch_api::{WorkloadKey, stores};
use wasmorch_runtime::{
    BlobContainer, BlobContainers, KeyValueStore, KeyValueStores, MemoryShare, MemoryStore,
    ObjectsContainer, RedisStore, S3Settings,
};

use super::link::{JetStreamBucket, JetStreamContainer, Link};

/// The stores of `bindings.keyvalue`; the refusal says which binding and why.
pub(super) fn keyvalue(
    link: &Arc<Link>,
    workload: &WorkloadKey,
    bindings: &BTreeMap<String, StoreBinding>,
    share: &MemoryShare,
) -> Result<KeyValueStores, String> {
    let mut granted = KeyValueStores::default();
    for (name, binding) in bindings {
        let store = keyvalue_store(link, workload, (name, binding), share)
            .map_err(|why| format!("bindings.keyvalue.{name}: {why}"))?;
        granted.grant(name, store);
    }
    Ok(granted)
}

fn keyvalue_store(
    link: &Arc<Link>,
    workload: &WorkloadKey,
    (name, binding): (&str, &StoreBinding),
    share: &MemoryShare,
) -> Result<Arc<dyn KeyValueStore>, String> {
    let setting = |key: &str| binding.settings.get(key).map(String::as_str);
    let own = stores::own_name(workload, name);
    match binding.backend.as_str() {
        "jetstream" => {
            let bucket = setting("bucket").unwrap_or(&own);
            stores::check_jetstream(bucket)?;
            let bucket = JetStreamBucket::new(link.clone(), bucket.to_owned(), share.clone());
            Ok(Arc::new(bucket))
        }
        "memory" => Ok(Arc::new(MemoryStore::new(share.clone()))),
        "redis" => {
            let url = setting("url").ok_or("redis needs `url`, as in redis://10.0.0.5:6379/0")?;
            let prefix = setting("prefix").map_or_else(|| format!("{own}:"), str::to_owned);
            Ok(Arc::new(RedisStore::new(url, prefix, share.clone())?))
        }
        other => Err(format!("there is no backend {other}")),
    }
}

/// Below the folder of volumes: where containers on disk are. No namespace is named so.
pub(crate) const BLOBS: &str = "_blobs";
/// Below the folder of volumes: where what guests write waits until it is complete.
const SPOOL: &str = "_spool";

/// The containers of `bindings.blobstore`; the refusal says which binding and why. `root` is where
/// this host keeps volumes.
pub(super) fn blobstore(
    link: &Arc<Link>,
    workload: &WorkloadKey,
    bindings: &BTreeMap<String, StoreBinding>,
    root: Option<&Path>,
) -> Result<BlobContainers, String> {
    if bindings.is_empty() {
        return Ok(BlobContainers::default());
    }
    let mut granted = match root {
        Some(root) => {
            let spool = root.join(SPOOL);
            std::fs::create_dir_all(&spool)
                .map_err(|error| format!("{} cannot be made: {error}", spool.display()))?;
            BlobContainers::new(spool)
        }
        None => BlobContainers::default(),
    };
    for (name, binding) in bindings {
        let container = container(link, workload, name, binding, root)
            .map_err(|why| format!("bindings.blobstore.{name}: {why}"))?;
        granted.grant(name, container);
    }
    Ok(granted)
}

fn container(
    link: &Arc<Link>,
    workload: &WorkloadKey,
    name: &str,
    binding: &StoreBinding,
    root: Option<&Path>,
) -> Result<Arc<dyn BlobContainer>, String> {
    let setting = |key: &str| binding.settings.get(key).map(String::as_str);
    let own = stores::own_name(workload, name);
    let named = setting("container").unwrap_or(&own);
    match binding.backend.as_str() {
        "jetstream" => {
            stores::check_jetstream(named)?;
            let container = JetStreamContainer::new(link.clone(), named.to_owned());
            Ok(Arc::new(container))
        }
        "disk" => {
            stores::check(named)?;
            let root = root.ok_or("this host keeps nothing on disk")?;
            if let Some(path) = setting("path") {
                stores::check_folder(path)?;
            }
            let folder = root.join(BLOBS).join(workload.namespace.as_str());
            let folder = folder.join(stores::on_disk(workload, name, binding));
            let container = ObjectsContainer::on_disk(&folder, stores::size_on_disk(binding)?);
            Ok(Arc::new(container.map_err(|error| error.to_string())?))
        }
        "s3" => {
            let settings = S3Settings {
                bucket: named.to_owned(),
                endpoint: setting("endpoint").map(str::to_owned),
                region: setting("region").map(str::to_owned),
                prefix: setting("prefix").map(str::to_owned),
            };
            let environment = std::env::vars_os()
                .filter_map(|(name, value)| name.into_string().ok().zip(value.into_string().ok()));
            let container = ObjectsContainer::in_s3(&settings, environment);
            Ok(Arc::new(container.map_err(|error| error.to_string())?))
        }
        other => Err(format!("there is no backend {other}")),
    }
}
