//! `hosts`, `cordon`, `uncordon`, `host-rm`, `rebalance` and `env`.

use serde_json::Value;
use wasmorch_api::messages::{HostRequest, HostView, RebalanceReply};

use super::show::every_page;
use super::{Context, request_id};
use crate::args::Command;
use crate::cluster;
use crate::error::{CliError, Exit};
use crate::out::table::Tone;
use crate::out::views;

/// Commands about hosts and the cluster as a whole.
pub(crate) async fn run(ctx: &Context, command: Command) -> Result<Exit, CliError> {
    match command {
        Command::Hosts => list(ctx).await,
        Command::Cordon(host) => {
            change(
                ctx,
                "cordon",
                host.host.as_str(),
                "cordoned: nothing new is placed there",
            )
            .await
        }
        Command::Uncordon(host) => change(ctx, "uncordon", host.host.as_str(), "uncordoned").await,
        Command::HostRm(host) => change(ctx, "host-rm", host.host.as_str(), "removed").await,
        Command::Rebalance { max_moves } => rebalance(ctx, max_moves).await,
        other => Err(CliError::bug("no such command", format!("{other:?}"))),
    }
}

async fn list(ctx: &Context) -> Result<Exit, CliError> {
    let items: Vec<HostView> = every_page(&ctx.link().await?, None, "hosts").await?;
    if ctx.out.is_json() {
        ctx.out.json(&items)?;
    } else {
        ctx.out.text(&views::hosts(&items, ctx.out.width()))?;
    }
    Ok(Exit::OK)
}

/// `rebalance --max-moves N`: asked until all is looked at; the moves themselves go on by themselves.
async fn rebalance(ctx: &Context, max_moves: u32) -> Result<Exit, CliError> {
    let link = ctx.link().await?;
    let mut all = RebalanceReply::default();
    loop {
        let found = u32::try_from(all.moves.len()).unwrap_or(u32::MAX);
        let request = HostRequest {
            max_moves: Some(max_moves.saturating_sub(found)),
            cursor: all.next.clone(),
            request_id: Some(request_id()),
            by: Some(cluster::user()),
            ..HostRequest::default()
        };
        let reply: RebalanceReply = link.call(None, "rebalance", &request).await?;
        // A leader looks at a part of a large cluster at a time. One that comes no further is not asked
        // for ever.
        let stuck = reply.moves.is_empty() && reply.next == all.next;
        all.moves.extend(reply.moves);
        all.next = reply.next;
        if all.next.is_none() || stuck || all.moves.len() >= max_moves as usize {
            break;
        }
    }
    if ctx.out.is_json() {
        ctx.out.json(&all)?;
        return Ok(Exit::OK);
    }
    let text = views::moves(&all, max_moves);
    ctx.out.text(&text)?;
    Ok(Exit::OK)
}

async fn change(ctx: &Context, verb: &str, host: &str, said: &str) -> Result<Exit, CliError> {
    let request = HostRequest {
        host: Some(host.to_owned()),
        request_id: Some(request_id()),
        by: Some(cluster::user()),
        ..HostRequest::default()
    };
    let reply: Value = ctx.link().await?.call(None, verb, &request).await?;
    if ctx.out.is_json() {
        ctx.out.json(&reply)?;
    } else {
        ctx.out
            .line(&format!("{}  {said}", Tone::Name.paint(host)))?;
    }
    Ok(Exit::OK)
}

/// `env`.
pub(crate) fn env(ctx: &Context) -> Result<Exit, CliError> {
    let options = cluster::find(&ctx.global)?;
    let creds = options
        .creds
        .as_ref()
        .map(|creds| creds.display().to_string());
    if ctx.out.is_json() {
        ctx.out
            .json(&serde_json::json!({ "NATS_URL": options.url, "NATS_CREDS": creds }))?;
        return Ok(Exit::OK);
    }
    ctx.out
        .line(&format!("export NATS_URL={}", quoted(&options.url)))?;
    if let Some(creds) = creds {
        ctx.out
            .line(&format!("export NATS_CREDS={}", quoted(&creds)))?;
    }
    Ok(Exit::OK)
}

/// As a shell reads it back.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.:/,@%+=".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_reads_back_what_was_meant() {
        assert_eq!(quoted("nats://127.0.0.1:4222"), "nats://127.0.0.1:4222");
        assert_eq!(quoted("a b'c;$(x)"), r"'a b'\''c;$(x)'");
        assert_eq!(quoted(""), "''");
    }
}
