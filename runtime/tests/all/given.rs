//! Compiled code from elsewhere: what is taken, what is refused, and that it runs.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use wasmorch_api::Digest;
use wasmorch_runtime::{
    Artifact, HttpReplica, ReplicaConfig, Runtime, RuntimeConfig, Target, check_compiled_folder,
    compile_for, compiled_path,
};

use crate::support::{fetch, guest};

/// A host's folders: its own, and the one that its operator fills.
struct Disk {
    folder: tempfile::TempDir,
}

impl Disk {
    fn new() -> Self {
        let disk = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        fs::create_dir(disk.given()).unwrap();
        mode(&disk.given(), 0o755);
        disk
    }

    fn given(&self) -> PathBuf {
        self.folder.path().join("given")
    }

    /// Puts code for this machine where code for this digest is looked for.
    fn give(&self, digest: &Digest, code: &[u8]) -> PathBuf {
        let path = self.given().join(compiled_path(here(), digest));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        for folder in path.ancestors().skip(1).take(2) {
            mode(folder, 0o755);
        }
        fs::write(&path, code).unwrap();
        mode(&path, 0o644);
        path
    }

    /// What a process that starts now loads.
    async fn load(&self, bytes: &Bytes) -> (Runtime, Arc<Artifact>) {
        let runtime = Runtime::new(RuntimeConfig {
            compiled_dir: Some(self.folder.path().join("own")),
            given_dir: Some(self.given()),
            pooling: false,
            ..RuntimeConfig::default()
        })
        .unwrap();
        let artifact = runtime
            .load(&Digest::of(bytes), bytes.clone())
            .await
            .unwrap();
        (runtime, artifact)
    }

    /// Whether it had to be compiled: what was given was not used.
    async fn compiles(&self, bytes: &Bytes) -> bool {
        let (_, artifact) = self.load(bytes).await;
        let compiled = !artifact.from_cache();
        fs::remove_dir_all(self.folder.path().join("own")).unwrap();
        compiled
    }
}

fn here() -> Target {
    Target::here().expect("tests run where code can be compiled for")
}

fn elsewhere() -> Target {
    *Target::ALL
        .iter()
        .find(|target| **target != here())
        .unwrap()
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[tokio::test]
async fn code_from_elsewhere_runs_and_is_kept_as_the_hosts_own() {
    for name in ["hello-http", "hello-http-p3"] {
        let disk = Disk::new();
        let bytes = guest(name);
        let digest = Digest::of(&bytes);
        let given = disk.give(&digest, &compile_for(here(), &bytes).unwrap());
        let (runtime, artifact) = disk.load(&bytes).await;
        assert!(artifact.from_cache(), "{name} was compiled");
        let replica = HttpReplica::prepare(&runtime, &artifact, ReplicaConfig::new("t")).unwrap();
        assert_eq!(fetch(&replica, "/").await.unwrap().0, 200, "{name}");
        fs::remove_file(given).unwrap();
        assert!(disk.load(&bytes).await.1.from_cache(), "{name} is kept");
    }
}

#[tokio::test]
async fn code_that_others_may_write_is_not_taken() {
    let disk = Disk::new();
    let bytes = guest("hello-http");
    let digest = Digest::of(&bytes);
    let path = disk.give(&digest, &compile_for(here(), &bytes).unwrap());
    for open in path.ancestors().take(4) {
        let before = fs::metadata(open).unwrap().permissions();
        for others in [0o020, 0o002] {
            mode(open, before.mode() | others);
            assert!(disk.compiles(&bytes).await, "{others:o} {}", open.display());
        }
        fs::set_permissions(open, before).unwrap();
    }
    assert!(!disk.compiles(&bytes).await);
}

#[tokio::test]
async fn code_that_does_not_fit_is_not_run() {
    let disk = Disk::new();
    let bytes = guest("hello-http");
    let digest = Digest::of(&bytes);
    let code = compile_for(here(), &bytes).unwrap();
    let wrong: [(&str, Vec<u8>); 5] = [
        ("nothing", Vec::new()),
        ("WebAssembly", bytes.to_vec()),
        ("half of it", code[..code.len() / 2].to_vec()),
        (
            "another processor",
            compile_for(elsewhere(), &bytes).unwrap(),
        ),
        ("another version", renamed(&code)),
    ];
    for (what, code) in wrong {
        disk.give(&digest, &code);
        assert!(disk.compiles(&bytes).await, "{what} was taken");
    }
    let path = disk.give(&digest, &code);
    assert!(!disk.compiles(&bytes).await);
    // The same code, behind a link at each place.
    for linked in path.ancestors().take(3) {
        let aside = disk.folder.path().join("aside");
        fs::rename(linked, &aside).unwrap();
        std::os::unix::fs::symlink(&aside, linked).unwrap();
        assert!(
            disk.compiles(&bytes).await,
            "by way of {}",
            linked.display()
        );
        fs::remove_file(linked).unwrap();
        fs::rename(&aside, linked).unwrap();
    }
    assert!(!disk.compiles(&bytes).await);
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    assert!(disk.compiles(&bytes).await, "a folder was taken");
}

#[test]
fn a_folder_is_refused_where_others_may_put_another_in_its_place() {
    let disk = Disk::new();
    check_compiled_folder(&disk.given()).unwrap();
    mode(disk.folder.path(), 0o777);
    let refused = check_compiled_folder(&disk.given()).unwrap_err();
    assert!(refused.contains("chmod go-w"), "{refused}");
    // As in /tmp: others may add, and not rename what is not theirs.
    mode(disk.folder.path(), 0o1777);
    check_compiled_folder(&disk.given()).unwrap();
    mode(&disk.given(), 0o1777);
    check_compiled_folder(&disk.given()).unwrap_err();
    check_compiled_folder(&disk.given().join("nothing")).unwrap_err();
}

/// The same code under the name of another engine.
fn renamed(code: &[u8]) -> Vec<u8> {
    let name = wasmorch_runtime::ENGINE.as_bytes();
    let at = code.windows(name.len()).position(|bytes| bytes == name);
    let mut code = code.to_vec();
    code[at.expect("code names its engine") + name.len() - 1] = b'0';
    code
}
