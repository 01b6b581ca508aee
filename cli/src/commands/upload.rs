//! The artifacts of a manifest, into the cluster's store.

use std::collections::HashSet;
use std::future::ready;

use futures::stream::{self, StreamExt as _};
use indicatif::ProgressBar;
use serde_json::json;
use tokio_util::sync::CancellationToken;
use wasmorch_api::ByteSize;

use super::source::{Item, Prepared, Source};
use crate::error::CliError;
use crate::link::{Link, Upload, Uploads};
use crate::out::progress::Progress;

/// Puts every artifact into the store that is not there, several at once. What is said of them is
/// said in the order of the manifest, and nothing without `progress`.
pub(super) async fn upload(
    link: &Link,
    prepared: &Prepared,
    progress: Option<&Progress>,
    stop: &CancellationToken,
) -> Result<(), CliError> {
    let uploads = Uploads::into(link).await?;
    // One that fails takes the others along, and each cleans up behind itself.
    let stop = stop.child_token();
    let mut seen = HashSet::new();
    let mut done = stream::iter(&prepared.items)
        .filter_map(|item| ready(item.source.as_ref().map(|source| (item, source))))
        .map(|(item, source)| {
            let first = seen.insert(&source.digest);
            let (uploads, stop) = (&uploads, &stop);
            async move {
                let result = match first {
                    true => upload_one(uploads, item, source, progress, stop).await,
                    // Another workload of this manifest has the same bytes and sends them.
                    false => Ok(Upload::Present),
                };
                (item, source, result)
            }
        })
        .buffered(Uploads::AT_ONCE);
    let mut outcome = Ok(());
    while let Some((item, source, result)) = done.next().await {
        let told = match (result, progress) {
            (Ok(upload), Some(progress)) if outcome.is_ok() => {
                report(progress, item, source, upload)
            }
            (result, _) => result.map(|_| ()),
        };
        if let Err(error) = told {
            stop.cancel();
            outcome = outcome.and(Err(error));
        }
    }
    outcome
}

async fn upload_one(
    uploads: &Uploads<'_>,
    item: &Item,
    source: &Source,
    progress: Option<&Progress>,
    stop: &CancellationToken,
) -> Result<Upload, CliError> {
    let size = source.bytes.len() as u64;
    let bar = match progress {
        Some(progress) => progress.upload(item.spec.name.as_str(), size),
        None => ProgressBar::hidden(),
    };
    let step = |stored: u64| bar.set_position(stored);
    let bytes = source.bytes.clone();
    let done = uploads.upload(&source.digest, bytes, stop, step).await;
    bar.finish_and_clear();
    done
}

fn report(
    progress: &Progress,
    item: &Item,
    source: &Source,
    upload: Upload,
) -> Result<(), CliError> {
    let sent = upload == Upload::Sent;
    let size = source.bytes.len() as u64;
    let text = format!(
        "{}  {} ({}, {})",
        item.spec.name,
        if sent { "uploaded" } else { "already uploaded" },
        ByteSize(size).approximate(),
        source.digest.short(),
    );
    let object = json!({
        "stage": "uploaded", "workload": item.spec.name, "artifact": source.digest,
        "size_bytes": size, "present": !sent,
    });
    progress.stage(&text, &object)
}
