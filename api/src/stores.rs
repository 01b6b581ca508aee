//! Names of what bindings store in: buckets, containers, prefixes.
//!
//! Invariant: no binding names a bucket of the cluster's own, and the default names of two workloads
//! never meet.

use crate::ids::WorkloadKey;
use crate::spec::StoreBinding;
use crate::units::ByteSize;

/// What begins the names of the cluster's own buckets and streams.
pub const CLUSTER_PREFIX: &str = "wasmorch";
/// The longest name of a bucket: with what is put before it, it still names a stream.
const NAME_BYTES_MAX: usize = 200;
/// What is kept on disk holds one file at least, and no more than any disk.
const SIZE_MIN: ByteSize = ByteSize(4096);
const SIZE_MAX: ByteSize = ByteSize(1 << 50);

/// What a volume or a container on disk may hold whose binding names no `size`.
pub const SIZE_DEFAULT: ByteSize = ByteSize::mib(1024);

/// The bucket, container or prefix of a binding that names none: `<namespace>_<workload>_<binding>`.
/// No `_` is in a namespace or in a workload's name, so no two are the same.
pub fn own_name(workload: &WorkloadKey, binding: &str) -> String {
    format!("{}_{}_{binding}", workload.namespace, workload.name)
}

/// Whether a JetStream bucket may be named so by a binding.
///
/// # Errors
///
/// Why not, to stand after the key's name.
pub fn check_jetstream(name: &str) -> Result<(), String> {
    check(name)?;
    if name.contains('.') {
        return Err("holds a dot, which no bucket of JetStream has".into());
    }
    Ok(())
}

/// Whether a container of any backend may be named so.
///
/// # Errors
///
/// Why not, to stand after the key's name.
pub fn check(name: &str) -> Result<(), String> {
    let legal = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    if !(1..=NAME_BYTES_MAX).contains(&name.len())
        || !name.bytes().all(legal)
        || name.starts_with('.')
        || name.contains("..")
    {
        return Err(format!(
            "must be 1 to {NAME_BYTES_MAX} letters, digits, `-`, `_`, `.`, and begin with no dot"
        ));
    }
    if name.to_ascii_lowercase().starts_with(CLUSTER_PREFIX) {
        return Err(format!(
            "begins with `{CLUSTER_PREFIX}`: such names are the cluster's own"
        ));
    }
    Ok(())
}

/// The folder of a container on disk, below those of its namespace: `[<path>/]<container>`.
pub fn on_disk(workload: &WorkloadKey, name: &str, binding: &StoreBinding) -> String {
    let own = || own_name(workload, name);
    let container = binding.settings.get("container").cloned();
    let container = container.unwrap_or_else(own);
    match binding.settings.get("path") {
        Some(path) => format!("{path}/{container}"),
        None => container,
    }
}

/// What a container on disk may hold.
///
/// # Errors
///
/// Why its `size` is none, to stand after the key's name.
pub fn size_on_disk(binding: &StoreBinding) -> Result<ByteSize, String> {
    match binding.settings.get("size") {
        Some(text) => check_size(text),
        None => Ok(SIZE_DEFAULT),
    }
}

/// The size of what a binding keeps on disk.
///
/// # Errors
///
/// Why it is none, to stand after the key's name.
pub fn check_size(text: &str) -> Result<ByteSize, String> {
    let size = text
        .parse::<ByteSize>()
        .map_err(|error| error.to_string())?;
    if (SIZE_MIN..=SIZE_MAX).contains(&size) {
        return Ok(size);
    }
    Err(format!("must be {SIZE_MIN} to {SIZE_MAX}"))
}

/// The durable consumer of a subscription that names none: one per workload and stream.
pub fn durable_name(workload: &WorkloadKey, stream: &str) -> String {
    own_name(workload, stream)
}

/// Whether a subscription may name this stream.
///
/// # Errors
///
/// Why not, to stand after the key's name.
pub fn check_stream(name: &str) -> Result<(), String> {
    check_jetstream(name)?;
    for kind in ["KV_", "OBJ_"] {
        if let Some(bucket) = name.strip_prefix(kind) {
            check_jetstream(bucket)?;
        }
    }
    Ok(())
}

/// Whether a folder below a host's data may be named so.
///
/// # Errors
///
/// Why not, to stand after the key's name.
pub fn check_folder(path: &str) -> Result<(), String> {
    if path.starts_with('/') {
        return Err("is a folder below the host's data: write it without the first `/`".into());
    }
    path.split('/').try_for_each(check)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clusters_own_buckets_cannot_be_named() {
        for bad in [
            "wasmorch_state",
            "WASMORCH_artifacts",
            "wasmorch",
            "",
            ".",
            "..",
            "a..b",
            "a/b",
            "a b",
            "*",
            "a\n",
        ] {
            assert!(check(bad).is_err(), "{bad:?}");
            assert!(check_jetstream(bad).is_err(), "{bad:?}");
        }
        for bad in ["/etc", "../x", "a/../b", "a//b", "", "a/"] {
            assert!(check_folder(bad).is_err(), "{bad:?}");
        }
        assert!(check_folder("a/b.c").is_ok());
        assert!(check("my.bucket").is_ok());
        assert!(check_jetstream("my.bucket").is_err());
        assert!(check_jetstream("shop-cart").is_ok());
    }

    #[test]
    fn a_disk_has_a_size_whether_it_names_one_or_not() {
        let sized = |size: Option<&str>| {
            let settings = size.map(|size| ("size".to_owned(), size.to_owned()));
            size_on_disk(&StoreBinding {
                backend: "disk".into(),
                settings: settings.into_iter().collect(),
            })
        };
        assert_eq!(sized(None), Ok(ByteSize::mib(1024)));
        assert_eq!(sized(Some("5GiB")), Ok(ByteSize::mib(5 * 1024)));
        for bad in ["much", "1KiB", "", "2000TiB"] {
            assert!(sized(Some(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn own_names_are_their_own() {
        let key = |namespace: &str, name: &str| {
            WorkloadKey::new(namespace.parse().unwrap(), name.parse().unwrap())
        };
        assert_eq!(own_name(&key("shop", "web"), "cart"), "shop_web_cart");
        assert_ne!(
            own_name(&key("a-b", "c"), "d"),
            own_name(&key("a", "b-c"), "d")
        );
        assert!(check_jetstream(&own_name(&key("shop", "web"), "cart_2")).is_ok());
    }
}
