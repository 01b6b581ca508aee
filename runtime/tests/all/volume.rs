//! Volumes: what is given, what is not, and a size that holds whichever way a guest writes.

use std::path::Path;

use bytes::Bytes;
use tokio_util::sync::CancellationToken;
use wasmorch_runtime::{
    Capture, CommandReplica, HttpReplica, Preopen, PrepareError, ReplicaConfig, Stdio,
};

use crate::support::{artifact, fetch, http, runtime};

const LIMIT: u64 = 1_000_000;

fn volume(host: &Path, guest: &str) -> Preopen {
    Preopen {
        host: host.to_owned(),
        guest: guest.to_owned(),
        read_only: false,
        limit_bytes: Some(LIMIT),
    }
}

async fn files(preopens: Vec<Preopen>) -> HttpReplica {
    let config = ReplicaConfig {
        preopens,
        ..ReplicaConfig::new("test")
    };
    http("files-http", config).await
}

async fn ask(replica: &HttpReplica, target: &str) -> (u16, String) {
    fetch(replica, target).await.unwrap()
}

fn done() -> (u16, String) {
    (200, "done".into())
}

/// What a directory holds, as its files say.
fn held(root: &Path) -> u64 {
    let entries = std::fs::read_dir(root).unwrap().map(Result::unwrap);
    let sizes = entries.map(|entry| {
        let meta = entry.path().symlink_metadata().unwrap();
        if meta.is_dir() {
            held(&entry.path())
        } else {
            meta.len()
        }
    });
    sizes.sum()
}

#[tokio::test]
async fn nothing_is_seen_without_a_volume_and_nothing_written_to_a_read_only_one() {
    let none = files(Vec::new()).await;
    let (status, why) = ask(&none, "/read?/data/file").await;
    assert_eq!((status, why.as_str()), (507, "no-entry"));

    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("file"), "here").unwrap();
    let mut preopen = volume(folder.path(), "/data");
    preopen.read_only = true;
    let replica = files(vec![preopen]).await;
    assert_eq!(
        ask(&replica, "/read?/data/file").await,
        (200, "here".into())
    );
    for target in [
        "/write?/data/file=1",
        "/append?/data/file=1",
        "/resize?/data/file=0",
        "/make?/data/new",
        "/directory?/data/new",
        "/symlink?file=/data/new",
        "/link?/data/file=/data/new",
        "/rename?/data/file=/data/new",
        "/remove?/data/file",
    ] {
        assert_eq!(ask(&replica, target).await.0, 507, "{target}");
    }
    assert_eq!(std::fs::read(folder.path().join("file")).unwrap(), b"here");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[tokio::test]
async fn no_path_leads_out_of_a_volume() {
    let outside = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join("secret"), "secret").unwrap();
    let root = outside.path().join("volume");
    std::fs::create_dir(&root).unwrap();
    // What a guest may have left there in another life, or what restored a backup.
    std::os::unix::fs::symlink(outside.path(), root.join("out")).unwrap();
    std::os::unix::fs::symlink("../secret", root.join("up")).unwrap();
    std::os::unix::fs::symlink("/", root.join("all")).unwrap();
    for limit in [Some(LIMIT), None] {
        let preopen = Preopen {
            limit_bytes: limit,
            ..volume(&root, "/data")
        };
        let replica = files(vec![preopen]).await;
        for path in [
            "/data/../secret",
            "/data/./../secret",
            "/data/out/secret",
            "/data/up",
            "/data/all/etc/passwd",
            "/data//etc/passwd",
            "/etc/passwd",
        ] {
            for act in ["/read?PATH", "/write?PATH=1", "/make?PATH"] {
                let target = act.replace("PATH", path);
                let (status, body) = ask(&replica, &target).await;
                assert_eq!(status, 507, "{target}: {body}");
            }
        }
        // Links may be made, but lead nowhere; an absolute one is refused at once.
        let _ = ask(&replica, "/symlink?../secret=/data/mine").await;
        assert_eq!(ask(&replica, "/read?/data/mine").await.0, 507);
        assert_eq!(ask(&replica, "/symlink?/etc=/data/etc").await.0, 507);
    }
    let secret = std::fs::read(outside.path().join("secret")).unwrap();
    assert_eq!(secret, b"secret");
    assert_eq!(
        std::fs::read_dir(outside.path()).unwrap().count(),
        3,
        "and the count"
    );
}

#[tokio::test]
async fn a_directory_that_is_swapped_for_a_link_leads_nowhere() {
    let outside = tempfile::tempdir().unwrap();
    std::fs::create_dir(outside.path().join("secrets")).unwrap();
    std::fs::write(outside.path().join("secrets/file"), "secret").unwrap();
    let root = outside.path().join("volume");
    std::fs::create_dir_all(root.join("a")).unwrap();
    std::fs::write(root.join("a/file"), "own").unwrap();
    std::os::unix::fs::symlink("../secrets", root.join("b")).unwrap();
    let replica = files(vec![volume(&root, "/data")]).await;
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let swapping = std::thread::spawn({
        let (stop, root) = (stop.clone(), root.clone());
        move || {
            let at = |name: &str| root.join(name);
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                std::fs::rename(at("a"), at("c")).unwrap();
                std::fs::rename(at("b"), at("a")).unwrap();
                std::fs::rename(at("a"), at("b")).unwrap();
                std::fs::rename(at("c"), at("a")).unwrap();
            }
        }
    });
    let mut own = 0;
    for _ in 0..300 {
        let (status, body) = ask(&replica, "/read?/data/a/file").await;
        assert!(!body.contains("secret"), "{body}");
        own += u32::from(status == 200);
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    swapping.join().unwrap();
    assert!(own > 0, "its own file was read now and then");
}

#[tokio::test]
async fn the_size_holds_whichever_way_a_guest_writes() {
    for (act, fits) in [
        ("/write?/data/file=", 900_000),
        ("/stream?/data/file=", 900_000),
        ("/append?/data/file=", 900_000),
        ("/resize?/data/file=", 900_000),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("data");
        std::fs::create_dir(&root).unwrap();
        let replica = files(vec![volume(&root, "/data")]).await;
        let (status, why) = ask(&replica, &format!("{act}{}", LIMIT * 2)).await;
        assert_eq!(status, 507, "{act}");
        assert_eq!(why, "insufficient-space", "{act}");
        assert!(held(&root) <= LIMIT, "{act}: {}", held(&root));
        assert_eq!(ask(&replica, "/remove?/data/file").await, done(), "{act}");
        // What was deleted can be written again.
        assert_eq!(
            ask(&replica, &format!("{act}{fits}")).await,
            done(),
            "{act}"
        );
        assert_eq!(ask(&replica, "/size?/data/file").await.1, fits.to_string());
        // In its place there is room, beyond it there is not.
        if act != "/append?/data/file=" {
            assert_eq!(
                ask(&replica, &format!("{act}{fits}")).await,
                done(),
                "{act}"
            );
        }
        assert_eq!(
            ask(&replica, "/write?/data/more=200000").await.0,
            507,
            "{act}"
        );
        assert!(held(&root) <= LIMIT, "{act}");
    }
}

#[tokio::test]
async fn names_and_holes_are_counted_and_a_count_outlives_its_replica() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("data");
    std::fs::create_dir(&root).unwrap();
    let replica = files(vec![volume(&root, "/data")]).await;
    let mut made = 0;
    for number in 0..260 {
        let act = ["make", "directory", "symlink?x="][number % 3];
        let target = if act.ends_with('=') {
            format!("/{act}/data/{number}")
        } else {
            format!("/{act}?/data/{number}")
        };
        made += u64::from(ask(&replica, &target).await == done());
    }
    assert_eq!(made, LIMIT / 4096, "each counts as 4 KiB");
    drop(replica);
    let again = files(vec![volume(&root, "/data")]).await;
    assert_eq!(ask(&again, "/make?/data/new").await.0, 507);
    assert_eq!(ask(&again, "/remove?/data/0").await, done());
    assert_eq!(ask(&again, "/remove?/data/3").await, done());
    assert_eq!(ask(&again, "/make?/data/new").await, done());
}

#[tokio::test]
async fn files_do_not_move_between_volumes_that_are_counted_apart() {
    let folder = tempfile::tempdir().unwrap();
    let [a, b] = ["a", "b"].map(|name| folder.path().join(name));
    std::fs::create_dir(&a).unwrap();
    std::fs::create_dir(&b).unwrap();
    let replica = files(vec![volume(&a, "/a"), volume(&b, "/b")]).await;
    assert_eq!(ask(&replica, "/write?/a/file=800000").await, done());
    assert_eq!(ask(&replica, "/write?/b/file=800000").await, done());
    for act in ["rename", "link"] {
        let (status, why) = ask(&replica, &format!("/{act}?/a/file=/b/other")).await;
        assert_eq!((status, why.as_str()), (507, "cross-device"));
    }
    assert_eq!(ask(&replica, "/rename?/a/file=/a/other").await, done());
}

/// What a guest of 0.3 says when it does that to files.
async fn act_p3(preopens: &[Preopen], words: &str) -> String {
    let output = Capture::new();
    let stdio = Stdio::Captured {
        stdin: Bytes::new(),
        output: output.clone(),
    };
    let words = format!("command-p3 files {words}");
    let config = ReplicaConfig {
        args: words.split(' ').map(str::to_owned).collect(),
        preopens: preopens.to_vec(),
        ..ReplicaConfig::new("test")
    };
    let artifact = artifact("command-p3").await;
    let replica = CommandReplica::prepare(&runtime(), &artifact, config).unwrap();
    let code = replica.run(stdio, CancellationToken::new()).await.unwrap();
    assert_eq!(code, 0, "{words}");
    let said = String::from_utf8(output.stdout().to_vec()).unwrap();
    said.trim().to_owned()
}

#[tokio::test]
async fn the_size_holds_for_guests_of_p3_too() {
    const FULL: &str = "ErrorCode::InsufficientSpace";
    for (act, fits) in [
        ("stream", 900_000),
        ("append", 900_000),
        ("resize", 900_000),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("data");
        std::fs::create_dir(&root).unwrap();
        let given = [volume(&root, "/data")];
        let ask = async |words: String| act_p3(&given, &words).await;
        assert_eq!(
            ask(format!("{act} file {}", LIMIT * 2)).await,
            FULL,
            "{act}"
        );
        assert!(held(&root) <= LIMIT, "{act}: {}", held(&root));
        assert_eq!(ask("remove file".into()).await, "done", "{act}");
        // What was deleted can be written again.
        assert_eq!(ask(format!("{act} file {fits}")).await, "done", "{act}");
        let written = std::fs::read(root.join("file")).unwrap();
        assert_eq!(written.len() as u64, fits, "{act}");
        let expected = if act == "resize" { 0 } else { b'x' };
        assert!(written.iter().all(|byte| *byte == expected), "{act}");
        // In its place there is room, beyond it there is not.
        if act != "append" {
            assert_eq!(ask(format!("{act} file {fits}")).await, "done", "{act}");
        }
        assert_eq!(ask("append more 200000".into()).await, FULL, "{act}");
        assert!(held(&root) <= LIMIT, "{act}");
    }
}

#[tokio::test]
async fn names_count_and_stay_in_their_volume_for_guests_of_p3_too() {
    let folder = tempfile::tempdir().unwrap();
    let [a, b] = ["a", "b"].map(|name| folder.path().join(name));
    std::fs::create_dir(&a).unwrap();
    std::fs::create_dir(&b).unwrap();
    let mut given = [volume(&a, "/a"), volume(&b, "/b")];
    // Three names, of 4 KiB each.
    given[0].limit_bytes = Some(3 * 4096);
    assert_eq!(act_p3(&given, "make file").await, "done");
    for act in ["rename", "link"] {
        let said = act_p3(&given, &format!("{act} file ../other")).await;
        assert_eq!(said, "ErrorCode::CrossDevice", "{act}");
    }
    assert_eq!(act_p3(&given, "rename file other").await, "done");
    assert_eq!(act_p3(&given, "directory folder").await, "done");
    assert_eq!(act_p3(&given, "symlink new other").await, "done");
    for full in [
        "make new2",
        "directory new2",
        "symlink new2 other",
        "link other new2",
    ] {
        let said = act_p3(&given, full).await;
        assert_eq!(said, "ErrorCode::InsufficientSpace", "{full}");
    }
    given[0].read_only = true;
    for denied in ["stream other 1", "append other 1", "make new2"] {
        assert_ne!(act_p3(&given, denied).await, "done", "{denied}");
    }
}

#[tokio::test]
async fn where_writes_are_not_counted_a_limit_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let config = ReplicaConfig {
        preopens: vec![volume(folder.path(), "/data")],
        ..ReplicaConfig::new("test")
    };
    let prepared =
        CommandReplica::prepare(&runtime(), &artifact("wordcount-p1").await, config.clone());
    assert!(matches!(
        prepared.err(),
        Some(PrepareError::UncountedVolume { .. })
    ));
    let prepared = CommandReplica::prepare(&runtime(), &artifact("wordcount").await, config);
    assert!(prepared.is_ok());
}
