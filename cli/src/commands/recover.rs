//! `backup` and `recover`: a cluster's state to a file, and back from its hosts and that file.
//!
//! Owns the order in which a lost store comes back: what the store still has goes to a file beside
//! the user, the leader rebuilds the state, then hosts put back the artifacts that the store has lost.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use wasmorch_api::backup::{self, Backup};
use wasmorch_api::messages::{HostView, RecoverReply, RecoverRequest, UploadReply, UploadRequest};
use wasmorch_api::record::TermRecord;
use wasmorch_api::status::HostState;
use wasmorch_api::{ARTIFACT_BYTES_MAX, Digest, ErrorCode, Record, Revision, Timestamp, subjects};

use super::show::{every_page, with};
use super::{Context, now, request_id};
use crate::cluster;
use crate::error::{CliError, Exit};
use crate::link::{Link, Uploads};
use crate::out::human::count;

/// A host may have to put back the largest artifact over a slow link.
const UPLOAD_WAIT: Duration = Duration::from_secs(120);

/// `backup`.
pub(crate) async fn backup(ctx: &Context, file: &Path) -> Result<Exit, CliError> {
    let Some(made) = read(&ctx.link().await?).await? else {
        return Err(CliError::new(
            Exit::FAILED,
            "there is nothing to back up",
            format!(
                "the store holds no workload; {} is left as it is",
                file.display()
            ),
            "a store that was wiped is rebuilt from the hosts: `wasmorch recover`",
        ));
    };
    write(file, &made)?;
    let family = |family: &str| {
        made.keys
            .keys()
            .filter(|key| key.starts_with(family))
            .count()
    };
    let counts = [
        ("workloads", family("workload.")),
        ("revisions", family("revision.")),
        ("hosts", family("host.")),
    ];
    if ctx.out.is_json() {
        let mut said = json!({ "file": file, "cluster": made.cluster, "term": made.term });
        for (noun, number) in counts {
            said = with(noun, json!(number), said);
        }
        ctx.out.json(&said)?;
    } else {
        let counts = counts.map(|(noun, number)| count(number as u64, noun.trim_end_matches('s')));
        ctx.out
            .line(&format!("{}  {}", file.display(), counts.join(", ")))?;
        ctx.out
            .note("artifacts are not in it: keep the components, or a host that runs them");
    }
    Ok(Exit::OK)
}

/// The store's content; `None` without a workload.
async fn read(link: &Link) -> Result<Option<Backup>, CliError> {
    let mut keys = link.state().await?;
    let term = keys.remove(subjects::key::TERM);
    keys.retain(|key, _| backup::holds(key));
    if !keys.keys().any(|key| key.starts_with("workload.")) {
        return Ok(None);
    }
    let term: Option<TermRecord> = term.and_then(|term| serde_json::from_value(term).ok());
    let term = term.ok_or_else(|| {
        let what = "the stored state names no cluster";
        CliError::new(Exit::UNAVAILABLE, what, "", "start a controller")
    })?;
    Ok(Some(Backup {
        format: backup::FORMAT.to_owned(),
        cluster: term.cluster,
        term: term.term,
        at: now(),
        keys,
    }))
}

fn encode(made: &Backup) -> Result<Vec<u8>, CliError> {
    serde_json::to_vec(made)
        .map_err(|error| CliError::bug("the backup cannot be written", error.to_string()))
}

/// The old file or the new one, never half; for its owner alone, since values of environments and
/// passwords are in it.
fn write(path: &Path, made: &Backup) -> Result<(), CliError> {
    cluster::write_whole(path, &encode(made)?)
}

/// `recover`.
pub(crate) async fn recover(ctx: &Context, file: Option<&Path>) -> Result<Exit, CliError> {
    let given = file.map(read_file).transpose()?;
    let link = ctx.link().await?;
    let unfinished = unfinished()?;
    if let Some(copy) = &unfinished {
        ctx.out.note(&format!(
            "a recover from this folder broke off: the copy that it made ({}) goes in, from {UNFINISHED}",
            copy.at
        ));
    }
    let backup = match (given, &unfinished) {
        // One that broke off has emptied the store: its copy has what is nowhere else any more.
        (Some(given), Some(copy)) => Some(given.and(copy.clone())),
        (given, copy) => given.or_else(|| copy.clone()),
    };
    let backup = match backup {
        Some(backup) => {
            let bytes = Bytes::from(encode(&backup)?);
            let digest = Digest::of(&bytes);
            let stop = CancellationToken::new();
            let uploads = Uploads::into(&link).await?;
            uploads.upload(&digest, bytes, &stop, |_| {}).await?;
            Some(digest)
        }
        None => None,
    };
    let kept = keep_what_is_there(&link, unfinished).await?;
    let request = RecoverRequest {
        backup,
        request_id: Some(request_id()),
        by: Some(cluster::user()),
    };
    let reply: Result<RecoverReply, CliError> = link.call(None, "recover", &request).await;
    let reply = match (reply, &kept) {
        (Ok(reply), _) => reply,
        (Err(error), kept) => {
            // Refused: a copy made for this is of no use. Unknown: it may be all there is, and the next
            // recover from this folder passes it.
            if let (Some(Kept { new: true, .. }), true) = (kept, error.code.is_some_and(refused)) {
                let _ = std::fs::remove_file(UNFINISHED);
            }
            return Err(error);
        }
    };
    let kept = kept.map(|kept| kept.finished()).transpose()?;
    let artifacts = put_back(&link).await?;
    report(ctx, &reply, &artifacts, kept.as_deref())?;
    let failed = artifacts.missing.iter().any(|missing| missing.current);
    Ok(if failed { Exit::FAILED } else { Exit::OK })
}

/// The leader has looked at it and has changed nothing.
fn refused(code: ErrorCode) -> bool {
    !matches!(code, ErrorCode::Unavailable | ErrorCode::Internal)
}

/// The copy that a recover makes of what it is about to empty. It lies under this name in the folder
/// of whoever asks until the recover has succeeded.
const UNFINISHED: &str = "wasmorch-recover-unfinished.json";

/// The copy of a recover that broke off.
fn unfinished() -> Result<Option<Backup>, CliError> {
    let path = Path::new(UNFINISHED);
    if path.exists() {
        read_file(path).map(Some)
    } else {
        Ok(None)
    }
}

/// What the store had before.
struct Kept {
    at: Timestamp,
    /// Made for this recover; else an earlier one's, which broke off.
    new: bool,
}

impl Kept {
    /// It is nobody's last copy any more: renamed to what says so.
    fn finished(self) -> Result<PathBuf, CliError> {
        let path = PathBuf::from(format!("wasmorch-before-recover-{}.json", self.at.0));
        std::fs::rename(UNFINISHED, &path)
            .and_then(|()| wasmorch_runtime::sync_folder(Path::new(".")))
            .map_err(|error| CliError::writing(&path, &error))?;
        Ok(path)
    }
}

fn read_file(path: &Path) -> Result<Backup, CliError> {
    let bytes = std::fs::read(path).map_err(|error| CliError::reading(path, &error))?;
    let no_backup = |why: String| {
        CliError::new(
            Exit::USAGE,
            format!("{} is no backup", path.display()),
            why,
            "pass a file that `wasmorch backup` wrote",
        )
    };
    if bytes.len() as u64 > ARTIFACT_BYTES_MAX {
        return Err(no_backup(format!("it has {} bytes", bytes.len())));
    }
    Backup::read(&bytes).map_err(no_backup)
}

/// A store that went back to an older state still holds what no host knows, and recovering empties
/// it: a copy goes to the folder of whoever asks. After a recover that broke off the copy is there,
/// and what the store has since is added.
async fn keep_what_is_there(
    link: &Link,
    unfinished: Option<Backup>,
) -> Result<Option<Kept>, CliError> {
    let new = unfinished.is_none();
    let (copy, there) = (unfinished, read(link).await?);
    let made = match (copy, there) {
        (Some(copy), Some(there)) => copy.and(there),
        (copy, there) => match copy.or(there) {
            Some(made) => made,
            None => return Ok(None),
        },
    };
    write(Path::new(UNFINISHED), &made)?;
    Ok(Some(Kept { at: made.at, new }))
}

/// What became of the artifacts that the store had lost.
#[derive(Default)]
struct Artifacts {
    put_back: usize,
    missing: Vec<Missing>,
}

struct Missing {
    digest: Digest,
    /// `namespace/name revision n`.
    of: Vec<String>,
    /// One of them is what its workload runs.
    current: bool,
}

/// Has hosts put back what the object store lacks.
async fn put_back(link: &Link) -> Result<Artifacts, CliError> {
    let named = named(&link.state().await?);
    let missing = link.missing(named.keys().cloned().collect()).await?;
    let mut done = Artifacts::default();
    if missing.is_empty() {
        return Ok(done);
    }
    let hosts: Vec<HostView> = every_page(link, None, "hosts").await?;
    for digest in missing {
        let request = UploadRequest {
            digest: digest.clone(),
        };
        let mut found = false;
        for host in hosts.iter().filter(|host| host.state != HostState::Dead) {
            let asked = link.call_host_within(&host.id, "upload", &request, UPLOAD_WAIT);
            // A host that has it not says so; one that is gone is as good.
            if let Ok(UploadReply { .. }) = asked.await {
                found = true;
                break;
            }
        }
        if found {
            done.put_back += 1;
        } else {
            let uses = &named[&digest];
            done.missing.push(Missing {
                of: uses.iter().map(|(of, _)| of.clone()).collect(),
                current: uses.iter().any(|(_, current)| *current),
                digest,
            });
        }
    }
    Ok(done)
}

/// The artifacts that revisions name: by which, and whether that is the wanted one.
fn named(state: &BTreeMap<String, Value>) -> BTreeMap<Digest, Vec<(String, bool)>> {
    let wanted: BTreeSet<(String, u64)> = state
        .iter()
        .filter(|(key, _)| key.starts_with("workload."))
        .filter_map(|(_, value)| serde_json::from_value::<Record>(value.clone()).ok())
        .map(|record| (record.key().to_string(), record.revision.0))
        .collect();
    let mut named: BTreeMap<Digest, Vec<(String, bool)>> = BTreeMap::new();
    let revisions = state.iter().filter(|(key, _)| key.starts_with("revision."));
    for (_, value) in revisions {
        let Ok(revision) = serde_json::from_value::<Revision>(value.clone()) else {
            continue;
        };
        let key = revision.key().to_string();
        let text = format!("{key} revision {}", revision.number);
        let current = wanted.contains(&(key, revision.number.0));
        named
            .entry(revision.artifact)
            .or_default()
            .push((text, current));
    }
    named
}

fn report(
    ctx: &Context,
    reply: &RecoverReply,
    artifacts: &Artifacts,
    kept: Option<&Path>,
) -> Result<(), CliError> {
    if ctx.out.is_json() {
        let missing: Vec<Value> = artifacts
            .missing
            .iter()
            .map(|one| json!({ "artifact": one.digest, "of": one.of, "current": one.current }))
            .collect();
        let said = serde_json::to_value(reply)
            .map_err(|error| CliError::bug("the answer cannot be written", error.to_string()))?;
        let said = with("artifacts_put_back", json!(artifacts.put_back), said);
        let said = with("artifacts_missing", json!(missing), said);
        return ctx.out.json(&with("kept", json!(kept), said));
    }
    ctx.out.line(&format!(
        "recovered {}, {} and {} from {}",
        count(reply.workloads, "workload"),
        count(reply.revisions, "revision"),
        count(reply.placements, "placement"),
        count(reply.hosts.len() as u64, "host"),
    ))?;
    if reply.from_backup > 0 {
        let number = count(reply.from_backup, "workload");
        ctx.out.note(&format!(
            "{number} run nowhere and are as they were remembered"
        ));
    }
    for host in &reply.silent {
        ctx.out
            .note(&format!("host {host} is known and did not answer"));
    }
    for line in &reply.lost {
        ctx.out.note(line);
    }
    if artifacts.put_back > 0 {
        let number = count(artifacts.put_back as u64, "artifact");
        ctx.out.note(&format!("{number} put back by hosts"));
    }
    for one in &artifacts.missing {
        ctx.out.note(&format!(
            "artifact {} of {} is lost: `wasmorch deploy` with the same component uploads it again",
            one.digest.short(),
            one.of.join(", ")
        ));
    }
    if let Some(kept) = kept {
        ctx.out.note(&format!(
            "what the store had before is in {}",
            kept.display()
        ));
    }
    Ok(())
}
