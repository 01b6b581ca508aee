//! `ps`, `status`, `history`: what there is.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use wasmorch_api::Name;
use wasmorch_api::messages::{
    HistoryItem, HistoryRequest, ListRequest, Page, StatusReply, WorkloadRequest, WorkloadSummary,
};

use super::{Context, now};
use crate::args::{PsArgs, Target};
use crate::error::{CliError, Exit};
use crate::link::Link;
use crate::out::{rollouts, views};

/// Every page of a list.
pub(crate) async fn every_page<T: DeserializeOwned>(
    link: &Link,
    namespace: Option<&Name>,
    verb: &str,
) -> Result<Vec<T>, CliError> {
    let request = |cursor| ListRequest {
        cursor,
        limit: None,
    };
    every_page_of(link, namespace, verb, request).await
}

/// The same where each page is asked for in its own words, given the cursor.
async fn every_page_of<T: DeserializeOwned, R: Serialize>(
    link: &Link,
    namespace: Option<&Name>,
    verb: &str,
    request: impl Fn(Option<String>) -> R,
) -> Result<Vec<T>, CliError> {
    let mut items = Vec::new();
    let mut cursor = None;
    loop {
        let page: Page<T> = link.call(namespace, verb, &request(cursor.clone())).await?;
        items.extend(page.items);
        // A cursor that does not move would never end.
        if page.next.is_none() || page.next == cursor {
            return Ok(items);
        }
        cursor = page.next;
    }
}

/// The status of each.
pub(crate) async fn statuses(
    link: &Link,
    namespace: &Name,
    names: &[Name],
    all: bool,
) -> Result<Vec<StatusReply>, CliError> {
    let mut found = Vec::new();
    for name in names {
        let request = WorkloadRequest {
            workload: name.clone(),
            all,
        };
        found.push(link.call(Some(namespace), "status", &request).await?);
    }
    Ok(found)
}

/// `ps`.
pub(crate) async fn ps(ctx: &Context, args: PsArgs) -> Result<Exit, CliError> {
    let Some(target) = &args.target else {
        let namespace = ctx.global.namespace();
        let asked = (!args.all_namespaces).then_some(&namespace);
        let items: Vec<WorkloadSummary> = every_page(&ctx.link().await?, asked, "list").await?;
        if ctx.out.is_json() {
            ctx.out.json(&items)?;
        } else {
            ctx.out.text(&views::workloads(
                &items,
                args.all_namespaces,
                ctx.out.width(),
            ))?;
        }
        return Ok(Exit::OK);
    };
    let (namespace, names) = ctx.resolve(target)?;
    let found = statuses(&ctx.link().await?, &namespace, &names, args.all).await?;
    if ctx.out.is_json() {
        let mut items = Vec::new();
        for status in &found {
            for replica in &status.replicas {
                items.push(with("workload", json!(status.summary.name), json!(replica)));
            }
        }
        ctx.out.json(&items)?;
    } else {
        ctx.out
            .text(&views::replicas(&found, now(), ctx.out.width()))?;
    }
    Ok(Exit::OK)
}

/// An object with one more field.
pub(crate) fn with(key: &str, value: Value, mut object: Value) -> Value {
    if let Value::Object(fields) = &mut object {
        fields.insert(key.to_owned(), value);
    }
    object
}

/// `status`.
pub(crate) async fn status(ctx: &Context, target: &Target) -> Result<Exit, CliError> {
    let (namespace, names) = ctx.resolve(target)?;
    let found = statuses(&ctx.link().await?, &namespace, &names, false).await?;
    if ctx.out.is_json() {
        return one_or_all(ctx, target, &found);
    }
    let texts: Vec<String> = found
        .iter()
        .map(|status| views::status(status, now(), ctx.out.width()))
        .collect();
    ctx.out.text(&texts.join("\n"))?;
    Ok(Exit::OK)
}

/// A workload is an object, a manifest's workloads are a list.
pub(crate) fn one_or_all<T: serde::Serialize>(
    ctx: &Context,
    target: &Target,
    found: &[T],
) -> Result<Exit, CliError> {
    match (target, found) {
        (Target::Workload(_), [one]) => ctx.out.json(one)?,
        _ => ctx.out.json(&found)?,
    }
    Ok(Exit::OK)
}

/// `history`.
pub(crate) async fn history(ctx: &Context, target: &Target) -> Result<Exit, CliError> {
    let (namespace, names) = ctx.resolve(target)?;
    let link = ctx.link().await?;
    let mut listed = Vec::new();
    for name in &names {
        let request = |cursor| HistoryRequest {
            workload: name.clone(),
            limit: None,
            cursor,
        };
        let items: Vec<HistoryItem> =
            every_page_of(&link, Some(&namespace), "history", request).await?;
        if ctx.out.is_json() {
            for item in &items {
                let item = json!(item);
                let several = names.len() > 1;
                listed.push(if several {
                    with("workload", json!(name), item)
                } else {
                    item
                });
            }
            continue;
        }
        let request = WorkloadRequest {
            workload: name.clone(),
            all: false,
        };
        let status: StatusReply = link.call(Some(&namespace), "status", &request).await?;
        let current = Some(status.summary.revision.0);
        if names.len() > 1 {
            ctx.out.line(&format!("{name}:"))?;
        }
        ctx.out
            .text(&rollouts::history(&items, current, now(), ctx.out.width()))?;
    }
    if ctx.out.is_json() {
        ctx.out.json(&listed)?;
    }
    Ok(Exit::OK)
}
