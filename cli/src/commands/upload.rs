//! The artifacts of a manifest, into the cluster's store.

use std::cell::RefCell;
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
    let first_failure = RefCell::new(None);
    let mut seen = HashSet::new();
    let mut done = stream::iter(&prepared.items)
        .filter_map(|item| ready(item.source.as_ref().map(|source| (item, source))))
        .map(|(item, source)| {
            let first = seen.insert(&source.digest);
            let (uploads, stop, first_failure) = (&uploads, &stop, &first_failure);
            async move {
                if !first {
                    // Another workload of this manifest has the same bytes and sends them.
                    return (item, source, Some(Upload::Present));
                }
                let sent = upload_one(uploads, item, source, progress, stop).await;
                let sent = sent.map_err(|error| {
                    // What follows from it is not what the user is told.
                    stop.cancel();
                    first_failure.borrow_mut().get_or_insert(error);
                });
                (item, source, sent.ok())
            }
        })
        .buffered(Uploads::AT_ONCE);
    while let Some((item, source, sent)) = done.next().await {
        if let (Some(upload), Some(progress), false) = (sent, progress, stop.is_cancelled())
            && let Err(error) = report(progress, item, source, upload)
        {
            stop.cancel();
            first_failure.borrow_mut().get_or_insert(error);
        }
    }
    drop(done);
    first_failure.into_inner().map_or(Ok(()), Err)
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
