//! `compile`: code for hosts elsewhere. Asks no cluster.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::json;
use wasmorch_api::{ByteSize, Digest, HumanDuration};
use wasmorch_runtime::{ENGINE, Target, compile_for, compiled_path, write_atomic};

use super::source::read_component;
use super::{Context, Interrupt};
use crate::args::CompileArgs;
use crate::error::{CliError, Exit};
use crate::out::progress::Progress;
use crate::out::table::{Cell, Table};

/// One file for one target.
struct Made {
    file: PathBuf,
    digest: Digest,
    target: Target,
    path: PathBuf,
    bytes: u64,
    took: Duration,
}

/// `compile [--target T].. [--out DIR] APP.wasm..`
pub(crate) async fn run(ctx: &Context, args: CompileArgs) -> Result<Exit, CliError> {
    let mut interrupt = Interrupt::listen()?;
    let targets = targets(args.targets)?;
    // All mistakes before the first long work.
    let sources = args.files.iter().map(|file| read_component(file));
    let sources = sources.collect::<Result<Vec<_>, _>>()?;
    let progress = Progress::new(ctx.out);
    let bar = progress.compiling((sources.len() * targets.len()) as u64);
    let mut made = Vec::new();
    for source in &sources {
        for target in &targets {
            bar.set_message(format!("{} for {target}", source.path.display()));
            let started = Instant::now();
            let compiling = compile(*target, source.bytes.clone(), &source.path);
            let code = tokio::select! {
                code = compiling => code?,
                () = interrupt.next() => return Err(CliError::interrupted("interrupted")),
            };
            let path = args.out.join(compiled_path(*target, &source.digest));
            write(&path, &code).map_err(|error| CliError::writing(&path, &error))?;
            made.push(Made {
                file: source.path.clone(),
                digest: source.digest.clone(),
                target: *target,
                path,
                bytes: code.len() as u64,
                took: started.elapsed(),
            });
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    if ctx.out.is_json() {
        ctx.out.json(&objects(&made))?;
    } else {
        ctx.out.text(&render(&made))?;
        ctx.out.note(&format!(
            "for hosts with {ENGINE}: wasmorch host --compiled {}",
            args.out.display()
        ));
    }
    Ok(Exit::OK)
}

fn targets(mut asked: Vec<Target>) -> Result<Vec<Target>, CliError> {
    if asked.is_empty() {
        let here = Target::here().ok_or_else(|| {
            CliError::usage(
                "this machine is no target of the compiler",
                "say which hosts it is for: --target x86_64-linux or aarch64-linux",
            )
        })?;
        asked.push(here);
    }
    asked.sort_unstable();
    asked.dedup();
    Ok(asked)
}

/// Off the thread that hears Ctrl-C.
async fn compile(target: Target, bytes: Bytes, file: &Path) -> Result<Vec<u8>, CliError> {
    let compiled = tokio::task::spawn_blocking(move || compile_for(target, &bytes)).await;
    let compiled = compiled.map_err(|error| CliError::bug("the compiler", error.to_string()))?;
    compiled.map_err(|error| {
        let what = format!("{} does not compile", file.display());
        CliError::new(Exit::BYTES, what, error.to_string(), "")
    })
}

/// Writes so that a file appears whole, and nobody but its owner may write it: hosts refuse code that
/// others may have changed.
fn write(path: &Path, code: &[u8]) -> std::io::Result<()> {
    use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut folders = std::fs::DirBuilder::new();
    folders.recursive(true).mode(0o755).create(folder)?;
    write_atomic(path, code)?;
    // For hosts that run as another user; whatever the umask is.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644))
}

fn objects(made: &[Made]) -> Vec<serde_json::Value> {
    let object = |made: &Made| {
        json!({
            "file": made.file, "digest": made.digest, "engine": ENGINE, "target": made.target.as_str(),
            "path": made.path, "bytes": made.bytes, "took_ms": made.took.as_millis() as u64,
        })
    };
    made.iter().map(object).collect()
}

fn render(made: &[Made]) -> String {
    let mut table = Table::new(&["FILE", "DIGEST", "TARGET", ">CODE", ">TOOK"]);
    for made in made {
        table.row(vec![
            Cell::from(made.file.display()),
            made.digest.short().into(),
            made.target.into(),
            ByteSize(made.bytes).approximate().into(),
            HumanDuration(round(made.took)).into(),
        ]);
    }
    table.render(None)
}

/// To what a person compares.
fn round(took: Duration) -> Duration {
    Duration::from_millis(took.as_millis() as u64 / 10 * 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_target_is_compiled_for_once() {
        let asked = ["aarch64-linux", "x86_64-linux", "arm64-linux"];
        let asked = asked.map(|target| target.parse().unwrap()).to_vec();
        assert_eq!(
            targets(asked).unwrap(),
            [Target::X8664Linux, Target::Aarch64Linux]
        );
    }

    #[test]
    fn what_is_written_only_its_owner_may_change() {
        use std::os::unix::fs::MetadataExt as _;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("engine/target/x.cwasm");
        write(&path, b"code").unwrap();
        write(&path, b"newer").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"newer");
        for path in path.ancestors().take(3) {
            assert_eq!(
                path.metadata().unwrap().mode() & 0o022,
                0,
                "{}",
                path.display()
            );
        }
        assert_eq!(
            std::fs::read_dir(path.parent().unwrap()).unwrap().count(),
            1
        );
    }

    #[test]
    fn what_was_made_is_a_table() {
        let made = Made {
            file: "shop/web.wasm".into(),
            digest: Digest::of(b""),
            target: Target::Aarch64Linux,
            path: "x".into(),
            bytes: 3_400_000,
            took: Duration::from_millis(1_234),
        };
        insta::assert_snapshot!(anstream::adapter::strip_str(&render(&[made])).to_string());
    }
}
