//! Code that nobody uses leaves memory, and is had again when it is asked for.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use wasmorch_api::Digest;
use wasmorch_runtime::{
    Artifact, Ended, HttpReplica, Message, MessagesReplica, ReplicaConfig, Reuse, Runtime,
    RuntimeConfig,
};

use crate::support::{eventually, fetch, guest};

/// Room for the code of two of the samples.
const ROOM: u64 = 700 << 10;

struct Shelf {
    folder: tempfile::TempDir,
    runtime: Runtime,
}

impl Shelf {
    fn new(loaded_max: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let runtime = Runtime::new(RuntimeConfig {
            compiled_dir: Some(folder.path().join("compiled")),
            loaded_max,
            pooling: false,
            ..RuntimeConfig::default()
        })
        .unwrap();
        Self { folder, runtime }
    }

    /// A file with the sample in it, with a digest of its own.
    fn file(&self, sample: &str, number: u8) -> (Digest, PathBuf) {
        let mut bytes = guest(sample).to_vec();
        // A custom section `n` of one byte.
        bytes.extend([0, 3, 1, b'n', number]);
        let path = self.folder.path().join(format!("{sample}-{number}.wasm"));
        std::fs::write(&path, &bytes).unwrap();
        (Digest::of(&bytes), path)
    }

    async fn load(&self, sample: &str, number: u8) -> Arc<Artifact> {
        let (digest, path) = self.file(sample, number);
        self.runtime.load_file(&digest, &path).await.unwrap()
    }

    fn http(&self, artifact: &Arc<Artifact>, reuse: Reuse) -> HttpReplica {
        let config = ReplicaConfig {
            reuse,
            ..ReplicaConfig::new("test")
        };
        HttpReplica::prepare(&self.runtime, artifact, config).unwrap()
    }

    /// Waits until its code has left: what was used a moment ago stays.
    async fn unloaded(&self, artifact: &Artifact) {
        let has_left = || {
            self.runtime.unload_unused();
            !artifact.is_loaded()
        };
        eventually("the code to be unloaded", has_left).await;
    }

    fn code_of(&self, artifact: &Artifact) -> PathBuf {
        let compiled = self.folder.path().join("compiled");
        let name = format!("{}.cwasm", artifact.digest().hex());
        find(&compiled, &name).unwrap()
    }
}

fn find(folder: &Path, name: &str) -> Option<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap();
    entries.into_iter().find_map(|entry| {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => find(&path, name),
            false => path.ends_with(name).then_some(path),
        }
    })
}

#[tokio::test]
async fn what_was_unused_for_longest_is_unloaded_and_loaded_again_when_asked() {
    let shelf = Shelf::new(ROOM);
    let mut replicas = Vec::new();
    for number in 0..5 {
        let artifact = shelf.load("hello-http", number).await;
        let replica = shelf.http(&artifact, Reuse::default());
        replicas.push((artifact, replica));
    }
    let before = shelf.runtime.loaded();
    assert!(before.bytes > ROOM, "used a moment ago: {before:?}");
    shelf.unloaded(&replicas[2].0).await;
    let unloaded = shelf.runtime.loaded();
    assert!(unloaded.bytes <= ROOM, "{unloaded:?}");
    assert!(!replicas[0].0.is_loaded(), "unused for longest");
    assert!(replicas[4].0.is_loaded(), "it was asked for last");
    for (artifact, replica) in &replicas {
        assert_eq!(fetch(replica, "/").await.unwrap().0, 200);
        assert!(artifact.is_loaded());
    }
    let after = shelf.runtime.loaded();
    assert_eq!(
        after.loads - before.loads,
        unloaded.unloads - before.unloads
    );
    assert!(after.loads > before.loads, "{before:?} {after:?}");
}

#[tokio::test]
async fn an_instance_that_waits_keeps_its_code() {
    let shelf = Shelf::new(ROOM);
    let kept = shelf.load("hello-http", 0).await;
    let reuse = Reuse {
        requests: 100,
        idle: Duration::from_secs(600),
        ..Reuse::default()
    };
    let replica = shelf.http(&kept, reuse);
    assert_eq!(fetch(&replica, "/").await.unwrap().0, 200);
    let mut others = Vec::new();
    for number in 1..6 {
        others.push(shelf.load("hello-http", number).await);
    }
    shelf.unloaded(&others[0]).await;
    assert!(kept.is_loaded());
    replica.close();
    for number in 6..9 {
        others.push(shelf.load("hello-http", number).await);
    }
    shelf.unloaded(&kept).await;
}

#[tokio::test]
async fn a_handler_of_messages_is_loaded_again_too() {
    let shelf = Shelf::new(ROOM);
    let artifact = shelf.load("echo-messages", 0).await;
    let config = ReplicaConfig::new("test");
    let replica = MessagesReplica::prepare(&shelf.runtime, &artifact, config).unwrap();
    let mut others = Vec::new();
    for number in 0..6 {
        others.push(shelf.load("hello-http", number).await);
    }
    shelf.unloaded(&artifact).await;
    let message = Message {
        subject: "a.b".into(),
        body: "hello".into(),
        reply_to: None,
    };
    assert_eq!(replica.handle(message).await, Ok(()));
    assert!(artifact.is_loaded());
}

#[tokio::test]
async fn code_that_has_left_the_cache_is_compiled_again() {
    let shelf = Shelf::new(0);
    let artifact = shelf.load("hello-http", 0).await;
    let replica = shelf.http(&artifact, Reuse::default());
    shelf.unloaded(&artifact).await;
    std::fs::remove_file(shelf.code_of(&artifact)).unwrap();
    assert_eq!(fetch(&replica, "/").await.unwrap().0, 200);

    let (code, (digest, bytes)) = (shelf.code_of(&artifact), shelf.file("hello-http", 0));
    assert_eq!(digest, *artifact.digest());
    shelf.unloaded(&artifact).await;
    std::fs::remove_file(&code).unwrap();
    std::fs::rename(&bytes, bytes.with_extension("gone")).unwrap();
    let refused = fetch(&replica, "/").await.unwrap_err();
    assert!(matches!(refused, Ended::HostFull { .. }), "{refused}");
    let text = refused.to_string();
    assert!(text.contains("its code cannot be loaded"), "{text}");
    assert!(text.contains("hello-http-0.wasm cannot be read"), "{text}");
    std::fs::rename(bytes.with_extension("gone"), &bytes).unwrap();
    assert_eq!(fetch(&replica, "/").await.unwrap().0, 200, "back again");
}

#[tokio::test]
async fn those_who_ask_at_the_same_time_share_one_load() {
    let shelf = Shelf::new(0);
    let artifact = shelf.load("hello-http", 0).await;
    let replica = shelf.http(&artifact, Reuse::default());
    shelf.unloaded(&artifact).await;
    let before = shelf.runtime.loaded().loads;
    let all = (0..20).map(|_| fetch(&replica, "/"));
    for answer in futures::future::join_all(all).await {
        assert_eq!(answer.unwrap().0, 200);
    }
    assert_eq!(shelf.runtime.loaded().loads - before, 1);
}

#[tokio::test]
async fn whoever_loads_from_bytes_keeps_the_code() {
    let shelf = Shelf::new(0);
    let bytes = guest("hello-http");
    let artifact = shelf.runtime.load(&Digest::of(&bytes), bytes).await;
    let artifact = artifact.unwrap();
    let other = shelf.load("hello-http", 1).await;
    shelf.unloaded(&other).await;
    assert!(artifact.is_loaded(), "it could not be had again");
}

#[tokio::test]
async fn code_that_the_cache_could_not_keep_stays() {
    let shelf = Shelf::new(0);
    let compiled = shelf.folder.path().join("compiled");
    let other = shelf.load("hello-http", 0).await;
    // A file where the folder was: nothing can be made in it.
    let engine = std::fs::read_dir(&compiled)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let engine = engine.into_iter().find(|path| path.is_dir()).unwrap();
    std::fs::rename(&engine, engine.with_extension("away")).unwrap();
    std::fs::write(&engine, "").unwrap();
    let artifact = shelf.load("hello-http", 1).await;
    shelf.unloaded(&other).await;
    assert!(artifact.is_loaded(), "every request would compile it again");
}
