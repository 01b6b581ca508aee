//! What is left of compiled code that nobody will map again.
//!
//! The runtime keeps it under `<engine>/<target>/<digest>.cwasm` and deletes only what is too much: that of
//! another engine, or of a digest that this host has forgotten, would stay for long. A file's time is that of
//! its last use. Deleting is always safe, since code that is missing is made again, and code that is mapped
//! stays mapped.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// What was just written may be of an artifact that is only about to be used.
const YOUNG: Duration = Duration::from_secs(3600);

/// Deletes code of artifacts that are not in `artifacts` any more, and all but the newest code of
/// one digest: the others are of engines that came before. Blocking.
pub(crate) fn prune(compiled: &Path, artifacts: &Path) {
    prune_before(compiled, artifacts, SystemTime::now() - YOUNG);
}

fn prune_before(compiled: &Path, artifacts: &Path, before: SystemTime) {
    let mut newest: BTreeMap<String, (SystemTime, PathBuf)> = BTreeMap::new();
    let mut unused = Vec::new();
    let targets = entries(compiled).flat_map(|engine| entries(&engine));
    for code in targets.flat_map(|target| entries(&target)) {
        let digest = code
            .file_stem()
            .map(|stem| stem.to_string_lossy().into_owned());
        let modified = fs::metadata(&code).and_then(|about| about.modified());
        let (Some(digest), Ok(modified)) = (digest, modified) else {
            continue;
        };
        if code.extension().is_none_or(|kind| kind != "cwasm") {
            continue;
        }
        if !artifacts.join(&digest).exists() {
            unused.push((modified, code));
        } else if let Some(older) = newest.insert(digest.clone(), (modified, code))
            && let Some(newer) = newest.get_mut(&digest)
        {
            let older = if older.0 > newer.0 {
                std::mem::replace(newer, older)
            } else {
                older
            };
            unused.push(older);
        }
    }
    for (modified, code) in unused {
        if modified < before && fs::remove_file(&code).is_ok() {
            let _ = fs::remove_file(code.with_extension("mac"));
            tracing::info!(file = %code.display(), "unused compiled code deleted");
        }
    }
}

fn entries(folder: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    let found = fs::read_dir(folder).into_iter().flatten().flatten();
    found.map(|entry| entry.path())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_artifact_or_an_older_engine_has_goes() {
        let folder = tempfile::tempdir().unwrap();
        let (compiled, artifacts) = (folder.path().join("compiled"), folder.path().join("a"));
        fs::create_dir_all(&artifacts).unwrap();
        fs::write(artifacts.join("kept"), "x").unwrap();
        let now = SystemTime::now();
        let write = |engine: &str, digest: &str, age: u64| {
            let target = compiled.join(engine).join("target");
            fs::create_dir_all(&target).unwrap();
            let code = target.join(format!("{digest}.cwasm"));
            fs::write(code.with_extension("mac"), "m").unwrap();
            let file = fs::File::create(&code).unwrap();
            file.set_modified(now - Duration::from_secs(age)).unwrap();
            code
        };
        let (old, new) = (write("old", "kept", 9000), write("new", "kept", 8000));
        let (gone, young) = (write("new", "gone", 8000), write("new", "soon", 10));
        fs::write(compiled.join("key"), "k").unwrap();
        prune(&compiled, &artifacts);
        assert!(!old.exists() && !old.with_extension("mac").exists());
        assert!(new.exists() && new.with_extension("mac").exists());
        assert!(!gone.exists());
        assert!(young.exists() && compiled.join("key").exists());
    }
}
