//! Loading: the cache of compiled code, damage to it, and bytes that are no WebAssembly.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use wasmorch_api::Digest;
use wasmorch_runtime::{ENGINE, HttpReplica, LoadError, ReplicaConfig, Runtime, RuntimeConfig};

use crate::support::{fetch, guest, runtime};

fn caching(dir: &Path) -> Runtime {
    let compiled_dir = Some(dir.to_owned());
    Runtime::new(RuntimeConfig {
        compiled_dir,
        pooling: false,
        ..RuntimeConfig::default()
    })
    .unwrap()
}

fn find(dir: &Path, extension: &str) -> PathBuf {
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
            } else if path.extension().is_some_and(|found| found == extension) {
                return path;
            }
        }
    }
    panic!("no *.{extension} in {}", dir.display());
}

#[tokio::test]
async fn compiled_code_is_kept_and_mapped_again() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = guest("hello-http");
    let digest = Digest::of(&bytes);
    let first = caching(dir.path());
    assert!(first.load_cached(&digest).await.unwrap().is_none());
    let compiled = first.load(&digest, bytes.clone()).await.unwrap();
    assert!(!compiled.from_cache() && compiled.compile_time().is_some());
    // In the same process: the very same artifact.
    assert!(Arc::ptr_eq(
        &compiled,
        &first.load(&digest, bytes.clone()).await.unwrap()
    ));

    let second = caching(dir.path());
    let mapped = second.load_cached(&digest).await.unwrap().unwrap();
    assert!(mapped.from_cache());
    assert_eq!(mapped.shape(), compiled.shape());
    let replica = HttpReplica::prepare(&second, &mapped, ReplicaConfig::new("test")).unwrap();
    assert_eq!(fetch(&replica, "/").await.unwrap().0, 200);

    use std::os::unix::fs::PermissionsExt as _;
    let key = std::fs::metadata(dir.path().join("key")).unwrap();
    assert_eq!((key.len(), key.permissions().mode() & 0o777), (32, 0o600));
}

/// Of a process that ended in the middle; what another writes just now is younger.
#[tokio::test]
async fn what_was_not_written_to_its_end_is_deleted() {
    let dir = tempfile::tempdir().unwrap();
    drop(caching(dir.path()));
    let engine = dir.path().join(ENGINE);
    let inside = std::fs::read_dir(engine).unwrap().next().unwrap();
    let inside = inside.unwrap().path();
    for folder in [dir.path(), &inside] {
        for (name, age) in [(".new-old", 7200), (".new-young", 60), ("other", 7200)] {
            let file = std::fs::File::create(folder.join(name)).unwrap();
            let then = SystemTime::now() - Duration::from_secs(age);
            file.set_modified(then).unwrap();
        }
    }
    drop(caching(dir.path()));
    for folder in [dir.path(), &inside] {
        let left = [".new-old", ".new-young", "other"].map(|name| folder.join(name).exists());
        assert_eq!(left, [false, true, true]);
    }
}

#[tokio::test]
async fn damaged_code_is_compiled_again_and_never_run() {
    let bytes = guest("wordcount-p1");
    let digest = Digest::of(&bytes);
    let flip = |path: &Path| {
        let mut code = std::fs::read(path).unwrap();
        let middle = code.len() / 2;
        code[middle] ^= 1;
        std::fs::write(path, code).unwrap();
    };
    let truncate = |path: &Path| {
        let code = std::fs::read(path).unwrap();
        std::fs::write(path, &code[..code.len() / 2]).unwrap();
    };
    let remove = |path: &Path| std::fs::remove_file(path).unwrap();
    type Damage<'a> = (&'static str, &'a dyn Fn(&Path));
    let damages: [Damage; 5] = [
        ("cwasm", &flip),
        ("cwasm", &truncate),
        ("cwasm", &remove),
        ("mac", &flip),
        ("mac", &truncate),
    ];
    let dir = tempfile::tempdir().unwrap();
    caching(dir.path())
        .load(&digest, bytes.clone())
        .await
        .unwrap();
    for (extension, damage) in damages {
        damage(&find(dir.path(), extension));
        let runtime = caching(dir.path());
        assert!(
            runtime.load_cached(&digest).await.unwrap().is_none(),
            "{extension}"
        );
        let again = runtime.load(&digest, bytes.clone()).await.unwrap();
        assert!(!again.from_cache(), "{extension}");
        assert!(
            caching(dir.path())
                .load_cached(&digest)
                .await
                .unwrap()
                .is_some()
        );
    }
}

#[tokio::test]
async fn code_of_another_host_or_digest_is_not_trusted() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = guest("wordcount-p1");
    let digest = Digest::of(&bytes);
    caching(dir.path()).load(&digest, bytes).await.unwrap();
    let other = Digest::of(b"other");
    for extension in ["cwasm", "mac"] {
        let path = find(dir.path(), extension);
        std::fs::copy(
            &path,
            path.with_file_name(format!("{}.{extension}", other.hex())),
        )
        .unwrap();
    }
    assert!(
        caching(dir.path())
            .load_cached(&other)
            .await
            .unwrap()
            .is_none()
    );
    std::fs::write(dir.path().join("key"), [7; 32]).unwrap();
    assert!(
        caching(dir.path())
            .load_cached(&digest)
            .await
            .unwrap()
            .is_none()
    );
}

#[tokio::test]
async fn a_cache_that_cannot_be_written_is_no_failure() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = caching(dir.path());
    // A file where the folder was: nothing can be made in it, whoever asks.
    let engine = find_dir(dir.path());
    std::fs::remove_dir_all(&engine).unwrap();
    std::fs::write(&engine, "").unwrap();
    let bytes = guest("wordcount-p1");
    assert!(
        !runtime
            .load(&Digest::of(&bytes), bytes)
            .await
            .unwrap()
            .from_cache()
    );
}

fn find_dir(dir: &Path) -> PathBuf {
    let entries = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    entries.into_iter().find(|path| path.is_dir()).unwrap()
}

#[tokio::test]
async fn the_same_digest_is_compiled_once() {
    let runtime = Runtime::new(RuntimeConfig {
        pooling: false,
        ..RuntimeConfig::default()
    })
    .unwrap();
    let bytes = guest("hello-http");
    let digest = Digest::of(&bytes);
    let all = (0..8).map(|_| runtime.load(&digest, bytes.clone()));
    let all: Vec<_> = futures::future::join_all(all).await;
    let first = all[0].as_ref().unwrap();
    assert!(
        all.iter()
            .all(|other| Arc::ptr_eq(first, other.as_ref().unwrap()))
    );
}

#[tokio::test]
async fn bad_bytes_say_what_is_wrong() {
    let load = |bytes: Bytes| async move { runtime().load(&Digest::of(&bytes), bytes).await };
    let error = load("#!/bin/sh".into()).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "these bytes are not WebAssembly: they begin with `#!/bin/sh`, not with \\0asm"
    );
    assert!(matches!(
        load(Bytes::new()).await.unwrap_err(),
        LoadError::NotWasm(_)
    ));
    let whole = guest("hello-http");
    let error = load(whole.slice(..whole.len() / 2)).await.unwrap_err();
    assert!(matches!(error, LoadError::Invalid(_)), "{error}");
    let error = load(whole.slice(..4)).await.unwrap_err();
    assert!(matches!(error, LoadError::Invalid(_)), "{error}");
    let error = runtime()
        .load(&Digest::of(b"other"), whole)
        .await
        .unwrap_err();
    assert!(matches!(error, LoadError::DigestMismatch { .. }), "{error}");
}
